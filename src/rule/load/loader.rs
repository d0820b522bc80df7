//! From rules directories to a [`RuleSet`]: all `*.rhai` files, recursively, compiled together, with the lists, overrides and
//! exceptions beside them.
//!
//! A file that does not compile leaves its last good version running. Files are taken as a whole: any change of any of them
//! loads all again (a hundred rules take milliseconds), so that what a file imports can never be stale.

use std::{
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::rule::{
    cycle::in_a_circle,
    load::{
        compile::{Compiled, Compiler},
        files::{Files, Texts, fingerprint, is_lost, read},
        shipped::BUILTIN,
    },
    manifest::{
        exception::{self, EXCEPTIONS, Exception, ExceptionCondition},
        overrides::{self, OVERRIDES, Overrides},
    },
    script::{
        compiled::CompiledRule,
        import::{Imports, normal},
        lists::Lists,
        meter::Limits,
        places::Geo,
        resources::Resources,
        sandbox, scan, stack,
    },
    set::{BrokenFile, Ignored, RuleSet},
};
use crate::{
    config::diagnostic::{Diagnostic, any_error},
    model::{action::Catalog, name::RuleId},
};

/// What a rule set is made of.
#[derive(Debug, Clone, Default)]
pub struct RuleSources {
    /// Directories of rules, or single files.
    pub roots: Vec<PathBuf>,
    /// What the configuration says of rules.
    pub overrides: Overrides,
    /// Whether files may be links to places outside of the directories.
    pub follow_links: bool,
    /// Databases of addresses.
    pub geoip: Vec<PathBuf>,
    /// What organizations say of their actions.
    pub catalog: Arc<Catalog>,
    /// Actions that no rule is to look at, by source.
    pub ignored: Arc<Ignored>,
}

/// What a load gave.
#[derive(Debug)]
pub struct Loaded {
    /// The rules that run now.
    pub set: Arc<RuleSet>,
    /// Everything that is wrong with the files.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether the set differs from the one before.
    pub changed: bool,
}

impl Loaded {
    /// What keeps a rules directory, or a rule file that was named, from being read.
    pub fn unreadable_root(&self) -> Option<&Diagnostic> {
        unreadable_root(&self.diagnostics)
    }
}

/// The first of these that is about a rules directory as a whole.
pub fn unreadable_root(diagnostics: &[Diagnostic]) -> Option<&Diagnostic> {
    diagnostics.iter().find(|found| found.code == "E001")
}

/// Called before each file is compiled, with a hash of its text and of all files that it could import; says whether it may be
/// compiled. Called with `None` at the end.
pub type LoadWatch = Box<dyn FnMut(Option<(&Path, &str)>) -> bool + Send>;

/// Loads rule files again and again, remembering the last good version of each.
pub struct Loader {
    sources: RuleSources,
    builtin: bool,
    tuning: bool,
    generation: u64,
    last_good: BTreeMap<PathBuf, Arc<CompiledRule>>,
    last_overrides: BTreeMap<PathBuf, Overrides>,
    last_exceptions: BTreeMap<PathBuf, Vec<Arc<Exception>>>,
    last_resources: Arc<Resources>,
    /// Read once: databases are large, and replaced by files of another name or with a restart.
    geo: Option<(Arc<Geo>, Vec<Diagnostic>)>,
    fingerprint: Option<blake3::Hash>,
    current: Arc<RuleSet>,
    watch: Option<LoadWatch>,
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Loader({:?})", self.sources.roots)
    }
}

/// What became of a load so far.
#[derive(Default)]
struct Loading {
    diagnostics: Vec<Diagnostic>,
    /// Files that are not running as they are: the file, its first problem, whether an earlier version of it runs.
    broken: Vec<BrokenFile>,
}

impl Loading {
    fn breaks(&mut self, file: &Path, mut found: Vec<Diagnostic>, last_good_runs: bool) {
        let problem = found.iter().find(|found| any_error(std::slice::from_ref(found)));
        let problem = problem.map_or_else(String::new, Diagnostic::one_line);
        self.broken.push(BrokenFile { file: file.to_owned(), problem, last_good_runs });
        self.diagnostics.append(&mut found);
    }
}

impl Loader {
    /// A loader of the files under the roots together with the check rules that are built in.
    pub fn new(sources: RuleSources) -> Self {
        Self {
            sources: RuleSources { roots: sources.roots.iter().map(|root| normal(root)).collect(), ..sources },
            builtin: true,
            tuning: true,
            generation: 0,
            last_good: BTreeMap::new(),
            last_overrides: BTreeMap::new(),
            last_exceptions: BTreeMap::new(),
            last_resources: Arc::default(),
            geo: None,
            fingerprint: None,
            current: Arc::default(),
            watch: None,
        }
    }

    /// Asks `watch` before each file is compiled.
    #[must_use]
    pub fn watched(mut self, watch: LoadWatch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// A loader of the files under these directories, with nothing else said of them.
    pub fn of(roots: Vec<PathBuf>) -> Self {
        Self::new(RuleSources { roots, ..RuleSources::default() })
    }

    /// Leaves the built-in check rules out: a replay does not run them.
    #[must_use]
    pub fn without_builtin(mut self) -> Self {
        self.builtin = false;
        self
    }

    /// Changes what organizations say of their actions; the next load takes it up.
    pub fn set_catalog(&mut self, catalog: Catalog) {
        if *self.sources.catalog != catalog {
            self.sources.catalog = Arc::new(catalog);
            self.fingerprint = None;
        }
    }

    /// Takes rules as their authors wrote them: without overrides and exceptions.
    #[must_use]
    pub fn without_tuning(mut self) -> Self {
        self.tuning = false;
        self
    }

    /// Changes where rules are and what the configuration says about them; the next load takes it up.
    pub fn set_sources(&mut self, sources: RuleSources) {
        self.sources = RuleSources { roots: sources.roots.iter().map(|root| normal(root)).collect(), ..sources };
        self.geo = None;
        self.fingerprint = None;
    }

    /// The directories.
    pub fn roots(&self) -> &[PathBuf] {
        &self.sources.roots
    }

    /// Reads and compiles all files, unless none has changed since the last time.
    pub fn load(&mut self) -> Loaded {
        // What a file computes at its top level needs the same room as rules do.
        let loaded = stack::run("load", || self.load_here());
        // Without a thread for it there is less room, which is better than no rules.
        loaded.unwrap_or_else(|_| self.load_here())
    }

    fn load_here(&mut self) -> Loaded {
        let (mut files, unreadable) = read(&self.sources.roots, self.sources.follow_links);
        if !self.tuning {
            files.tuning.clear();
        }
        let fingerprint = fingerprint(&files, &unreadable);
        if self.fingerprint == Some(fingerprint) {
            return Loaded { set: Arc::clone(&self.current), diagnostics: Vec::new(), changed: false };
        }
        self.fingerprint = Some(fingerprint);
        let mut loading = Loading { diagnostics: unreadable.clone(), ..Loading::default() };

        let mut watch = self.watch.take();
        let libraries = hash_of_libraries(&files.rules);
        let mut may_load = |file: &Path, text: &str| {
            let hash = blake3::Hasher::new().update(libraries.as_bytes()).update(text.as_bytes()).finalize().to_hex();
            watch.as_mut().is_none_or(|watch| watch(Some((file, &hash))))
        };
        let resources = self.resources(&files, &unreadable, &mut may_load, &mut loading);
        let mut compiler = Compiler::new(Arc::clone(&resources));
        self.last_resources = resources;
        // What cannot be read just now says nothing, and what it said before holds.
        self.last_overrides.retain(|file, _| files.tuning.contains_key(file) || is_lost(file, &unreadable));
        self.last_exceptions.retain(|file, _| files.tuning.contains_key(file) || is_lost(file, &unreadable));
        let overrides = self.overrides(&files.tuning, &mut loading);
        let exceptions = self.exceptions(&files.tuning, &mut compiler, &mut loading);
        let rules = self.rules(&files.rules, &unreadable, &overrides, &mut compiler, &mut may_load, &mut loading);
        if let Some(watch) = &mut watch {
            watch(None);
        }
        self.watch = watch;
        if !any_error(&loading.diagnostics) {
            // What names a rule that is broken just now names one all the same.
            let all = rules.values().map(|rule| &rule.metadata);
            // Where the built-in rules are left out, the configuration may still speak of them.
            let configured = if self.builtin { 0 } else { self.sources.overrides.len() };
            let overrides = overrides.get(configured..).unwrap_or(&[]);
            loading.diagnostics.append(&mut overrides::unused(overrides, all.clone()));
            loading.diagnostics.append(&mut exception::unused(&exceptions, all));
            loading.diagnostics.extend(unheard(&rules));
        }

        self.last_good.clone_from(&rules);
        self.generation += 1;
        let about = RuleSet {
            generation: self.generation,
            broken: loading.broken,
            fingerprint: fingerprint.to_hex().to_string(),
            roots: self.sources.roots.clone(),
            follow_links: self.sources.follow_links,
            exceptions,
            catalog: Arc::clone(&self.sources.catalog),
            ignored: Arc::clone(&self.sources.ignored),
            ..RuleSet::default()
        };
        self.current = Arc::new(RuleSet::new(rules.into_values(), about));
        Loaded { set: Arc::clone(&self.current), diagnostics: loading.diagnostics, changed: true }
    }

    /// What rules can reach beside their event. A list that is broken keeps its last good version.
    fn resources(
        &mut self,
        files: &Files,
        unreadable: &[Diagnostic],
        may_load: &mut dyn FnMut(&Path, &str) -> bool,
        loading: &mut Loading,
    ) -> Arc<Resources> {
        let (geo, problems) = self.geo.get_or_insert_with(|| Geo::open(&self.sources.geoip));
        loading.diagnostics.extend(problems.iter().cloned());
        let mut refused = Vec::new();
        // Each is asked about just before it is read.
        let (mut lists, mut problems) = Lists::read(files.lists.iter().filter(|(file, text)| {
            let may = may_load(file, text);
            if !may {
                refused.push(Diagnostic::error("E219", file, DIED));
            }
            may
        }));
        problems.append(&mut refused);
        for problem in problems {
            let name = problem.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let file = problem.file.clone();
            lists.keep(&name, &self.last_resources.lists);
            let runs = lists.names().any(|known| known == name);
            loading.breaks(&file, vec![problem], runs);
        }
        for lost in unreadable {
            let name = lost.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            lists.keep(&name, &self.last_resources.lists);
        }
        let imports = Imports::new(self.sources.roots.clone(), files.rules.clone());
        Arc::new(Resources { imports, lists, geo: Arc::clone(geo) })
    }

    /// The configuration's overrides, then those of the files, each file as it last was good.
    fn overrides(&mut self, files: &Texts, loading: &mut Loading) -> Overrides {
        let mut overrides = self.sources.overrides.clone();
        for (file, text) in files.iter().filter(|(file, _)| file.ends_with(OVERRIDES)) {
            match overrides::read(file, text) {
                Ok(read) => {
                    self.last_overrides.insert(file.clone(), read);
                }
                Err(found) => loading.breaks(file, found, self.last_overrides.contains_key(file)),
            }
        }
        overrides.extend(self.last_overrides.values().flatten().cloned());
        overrides
    }

    fn exceptions(&mut self, files: &Texts, compiler: &mut Compiler, loading: &mut Loading) -> Vec<Arc<Exception>> {
        let mut exceptions: Vec<Arc<Exception>> = Vec::new();
        for (file, text) in files.iter().filter(|(file, _)| file.ends_with(EXCEPTIONS)) {
            match exception::read(compiler.engine(), file, text) {
                Ok(mut read) => {
                    // Nobody else has them yet.
                    for exception in read.iter_mut().filter_map(Arc::get_mut) {
                        if let ExceptionCondition::Expression { ast, .. } = &exception.condition {
                            exception.reads = scan::of_condition(ast);
                        }
                    }
                    self.last_exceptions.insert(file.clone(), read);
                }
                Err(found) => loading.breaks(file, found, self.last_exceptions.contains_key(file)),
            }
        }
        for exception in self.last_exceptions.values().flatten() {
            if exceptions.iter().any(|other| other.id == exception.id) {
                let message = format!("another file has an exception `{}`: this one is left out", exception.id);
                loading.diagnostics.push(exception.place.error("E106", message));
            } else {
                exceptions.push(Arc::clone(exception));
            }
        }
        exceptions
    }

    /// Compiles all rule files; one that does not compile is replaced by its last good version.
    fn rules(
        &self,
        texts: &Texts,
        unreadable: &[Diagnostic],
        overrides: &Overrides,
        compiler: &mut Compiler,
        may_load: &mut dyn FnMut(&Path, &str) -> bool,
        loading: &mut Loading,
    ) -> BTreeMap<PathBuf, Arc<CompiledRule>> {
        let mut rules: BTreeMap<PathBuf, Arc<CompiledRule>> = BTreeMap::new();
        let mut owners: HashMap<RuleId, PathBuf> = HashMap::new();
        let mut failed: Vec<(PathBuf, String)> =
            unreadable.iter().map(|diagnostic| (diagnostic.file.clone(), diagnostic.one_line())).collect();
        // A directory that cannot be read, as while it is being replaced, says nothing about its files.
        for lost in unreadable {
            let inside = self.last_good.keys().filter(|file| **file != lost.file && file.starts_with(&lost.file));
            failed.extend(inside.map(|file| (file.clone(), lost.one_line())));
        }
        let builtin = self.builtin_texts();
        // A copy of a built-in rule is that rule.
        let is_copy = |text: &Arc<str>| builtin.values().any(|builtin| builtin == text);
        let mut others: Vec<(PathBuf, Diagnostic)> = Vec::new();
        let mut compiled: Vec<_> = builtin
            .iter()
            .chain(texts.iter().filter(|(_, text)| !is_copy(text)))
            .map(|(file, text)| {
                let (compiled, found) = if may_load(file, text) {
                    // A panic in the engine is a fault of this one file.
                    let compile = AssertUnwindSafe(|| compiler.compile(file, text, overrides));
                    std::panic::catch_unwind(compile).unwrap_or_else(|_| {
                        let message = "the engine failed on this file: please report it";
                        (Compiled::Broken, vec![Diagnostic::error("E217", file, message)])
                    })
                } else {
                    (Compiled::Broken, vec![Diagnostic::error("E219", file, DIED)])
                };
                // Whoever had an id keeps it, whatever file comes along with the same.
                let is_owner = match &compiled {
                    Compiled::Rule(rule) => self.last_good.get(file).is_some_and(|good| good.id() == rule.id()),
                    Compiled::LibraryFile | Compiled::Broken => false,
                };
                (!is_owner, file, text, compiled, found)
            })
            .collect();
        compiled.sort_by_key(|(is_new, ..)| *is_new);
        for (_, file, text, compiled, mut found) in compiled {
            match compiled {
                Compiled::LibraryFile => {
                    // A file that is just being saved is empty for an instant.
                    if text.trim().is_empty() && self.last_good.contains_key(file) {
                        failed.push((file.clone(), "the file is empty: delete it to remove its rule".to_owned()));
                    }
                }
                Compiled::Rule(rule) => match owners.get(rule.id()) {
                    None => {
                        owners.insert(rule.id().clone(), file.clone());
                        rules.insert(file.clone(), Arc::new(*rule));
                    }
                    Some(owner) if builtin.contains_key(owner) => {
                        let message = format!("rule id `{}` is that of a built-in rule", rule.id());
                        let help = "leave the file out, and change the built-in rule in `overrides.toml`";
                        let found = Diagnostic::error("E210", file, message);
                        let found = found.at(text, rule.places.text("id", rule.id().as_str())).help(help);
                        others.push((file.clone(), found));
                    }
                    Some(owner) => {
                        let message = format!("rule id `{}` is already used by `{}`", rule.id(), owner.display());
                        let diagnostic = Diagnostic::error("E210", file, message)
                            .at(text, rule.places.text("id", rule.id().as_str()))
                            .help("give this rule an id of its own");
                        failed.push((file.clone(), diagnostic.one_line()));
                        found.push(diagnostic);
                    }
                },
                Compiled::Broken => {
                    let problem = found.iter().find(|found| any_error(std::slice::from_ref(found)));
                    failed.push((file.clone(), problem.map_or_else(String::new, Diagnostic::one_line)));
                }
            }
            loading.diagnostics.append(&mut found);
        }
        failed.extend(in_place_of_builtin(others, loading));
        for (file, problem) in failed {
            let last_good = self.last_good.get(&file).filter(|rule| !owners.contains_key(rule.id())).cloned();
            let last_good_runs = last_good.is_some();
            if let Some(rule) = last_good {
                owners.insert(rule.id().clone(), file.clone());
                rules.insert(file.clone(), rule);
            }
            loading.broken.push(BrokenFile { file, problem, last_good_runs });
        }
        self.break_circles(&mut rules, loading);
        rules
    }

    /// Takes rules out that listen in a circle. Those make it that are new or have changed: they go back to what they were, and the
    /// others, which did no wrong, run on.
    fn break_circles(&self, rules: &mut BTreeMap<PathBuf, Arc<CompiledRule>>, loading: &mut Loading) {
        loop {
            let all: Vec<Arc<CompiledRule>> = rules.values().cloned().collect();
            let members = in_a_circle(&all);
            let files = rules.iter().filter(|(_, rule)| members.contains(rule.id()));
            let members: Vec<PathBuf> = files.map(|(file, _)| file.clone()).collect();
            if members.is_empty() {
                return;
            }
            let same = |good: &CompiledRule, rule: &CompiledRule| {
                let hears = |rule: &CompiledRule| {
                    let on = rule.metadata.on.iter().flatten().map(|selector| selector.as_str().to_owned());
                    (on.collect::<Vec<_>>(), rule.metadata.tags.clone(), rule.metadata.stage)
                };
                good.hash == rule.hash && hears(good) == hears(rule)
            };
            let is_old = |file: &PathBuf| match (self.last_good.get(file), rules.get(file)) {
                (Some(good), Some(rule)) => same(good, rule),
                _ => false,
            };
            let mut makers: Vec<PathBuf> = members.iter().filter(|file| !is_old(file)).cloned().collect();
            if makers.is_empty() {
                makers = members;
            }
            for file in makers {
                let Some(rule) = rules.remove(&file) else { continue };
                let message =
                    format!("rule `{}` listens to its own matches, directly or through other rules", rule.id());
                let found =
                    Diagnostic::error("E215", &file, message).help("narrow `on`: a pattern may fit the rule itself");
                let free = |good: &&Arc<CompiledRule>| !rules.values().any(|other| other.id() == good.id());
                let last_good = self.last_good.get(&file).filter(|good| !same(good, &rule)).filter(free).cloned();
                let problem = found.one_line();
                loading.diagnostics.push(found);
                loading.broken.push(BrokenFile { file: file.clone(), problem, last_good_runs: last_good.is_some() });
                if let Some(good) = last_good {
                    rules.insert(file, good);
                }
            }
        }
    }

    fn builtin_texts(&self) -> Texts {
        let files = if self.builtin { BUILTIN } else { &[] };
        files.iter().map(|file| (PathBuf::from(format!("(built in)/{}", file.path)), Arc::from(file.text))).collect()
    }
}

/// Tells of files that have the ids of built-in rules, as when another version of them lies below a rules directory: once for all.
fn in_place_of_builtin(mut files: Vec<(PathBuf, Diagnostic)>, loading: &mut Loading) -> Option<(PathBuf, String)> {
    if files.is_empty() {
        return None;
    }
    let others = files.len() - 1;
    let (file, mut found) = files.swap_remove(0);
    if others > 0 {
        found.message.push_str(&format!(", and {others} other files have ids of built-in rules as well"));
    }
    let problem = found.one_line();
    loading.diagnostics.push(found);
    Some((file, problem))
}

/// Reads the text of an `exceptions.toml` by itself, as when one is to be added to.
pub fn parse_exceptions(file: &Path, text: &str) -> Result<Vec<Arc<Exception>>, Vec<Diagnostic>> {
    let (mut engine, _) = sandbox::sandbox(&Limits::default());
    exception::read(&mut engine, file, text)
}

const DIED: &str = "the agent died twice while it loaded this file: it is left out until it changes";

/// A hash of all files that rules could import: those that do not speak of `RULE`. It is made before any of them is parsed.
fn hash_of_libraries(texts: &Texts) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for text in texts.values().filter(|text| !text.contains("RULE")) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize()
}

/// Warnings about rules that listen to rules that are not there.
fn unheard(rules: &BTreeMap<PathBuf, Arc<CompiledRule>>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (file, rule) in rules {
        for selector in rule.metadata.on.iter().flatten() {
            if !rules.values().any(|other| selector.selects(&other.metadata)) {
                let message = format!("rule `{}` listens to `{}`, which no rule is", rule.id(), selector.as_str());
                let near = crate::config::diagnostic::nearest(
                    selector.as_str(),
                    rules.values().map(|rule| rule.id().as_str()),
                );
                let warning = Diagnostic::warning("W302", file, message);
                found.push(match near {
                    Some(near) => warning.help(format!("did you mean `{near}`?")),
                    None => warning,
                });
            }
        }
    }
    found
}
