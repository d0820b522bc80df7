//! Loads rules directories into a [`RuleSet`]: all `*.rhai` files, recursively, compiled together with the lists,
//! overrides and exceptions next to them.
//!
//! If a file does not compile, its last good version keeps running. A change to any file reloads all of them (a hundred
//! rules take milliseconds), so that imports can never be stale.

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
    set::{BrokenFile, Ignored, RuleSet, RuleSetContext},
};
use crate::{
    config::diagnostic::{Diagnostic, any_error},
    model::{action::Catalog, name::RuleId},
};

/// The inputs of a rule set.
#[derive(Debug, Clone, Default)]
pub struct RuleSources {
    /// Rules directories, or single files.
    pub roots: Vec<PathBuf>,
    /// Overrides from the configuration.
    pub overrides: Overrides,
    /// Whether symbolic links may lead out of the directories.
    pub follow_links: bool,
    /// Address databases (`.mmdb` files).
    pub geoip: Vec<PathBuf>,
    /// The organizations' actions.
    pub catalog: Arc<Catalog>,
    /// Actions that rules do not see, by source.
    pub ignored: Arc<Ignored>,
}

/// The result of a load.
#[derive(Debug)]
pub struct Loaded {
    /// The rules that run now.
    pub set: Arc<RuleSet>,
    /// All problems in the files. Empty if nothing changed.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether anything changed since the previous load.
    pub changed: bool,
}

impl Loaded {
    /// Returns the first problem that kept a whole root from being read.
    pub fn unreadable_root(&self) -> Option<&Diagnostic> {
        unreadable_root(&self.diagnostics)
    }
}

/// Returns the first diagnostic about a rules directory as a whole.
pub fn unreadable_root(diagnostics: &[Diagnostic]) -> Option<&Diagnostic> {
    diagnostics.iter().find(|diagnostic| diagnostic.code == "E001")
}

/// Called before each file is compiled, with a hash of its text and of all files that it could import. Returns whether
/// the file may be compiled. Called with `None` at the end of a load.
pub type LoadWatch = Box<dyn FnMut(Option<(&Path, &str)>) -> bool + Send>;

/// Loads rule files repeatedly, and keeps the last good version of each.
pub struct Loader {
    sources: RuleSources,
    builtin: bool,
    tuning: bool,
    generation: u64,
    last_good: BTreeMap<PathBuf, Arc<CompiledRule>>,
    last_overrides: BTreeMap<PathBuf, Overrides>,
    last_exceptions: BTreeMap<PathBuf, Vec<Arc<Exception>>>,
    last_resources: Arc<Resources>,
    /// Read only once: the databases are large, and an update needs a new file name or a restart.
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

/// The problems found so far during a load.
#[derive(Default)]
struct Loading {
    diagnostics: Vec<Diagnostic>,
    /// Files whose current version is not in use.
    broken: Vec<BrokenFile>,
}

impl Loading {
    fn breaks(&mut self, file: &Path, mut diagnostics: Vec<Diagnostic>, last_good_runs: bool) {
        let problem = diagnostics.iter().find(|diagnostic| any_error(std::slice::from_ref(diagnostic)));
        let problem = problem.map_or_else(String::new, Diagnostic::one_line);
        self.broken.push(BrokenFile { file: file.to_owned(), problem, last_good_runs });
        self.diagnostics.append(&mut diagnostics);
    }
}

impl Loader {
    /// Creates a loader of the files under the roots and the built-in check rules.
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

    /// Sets a function to call before each file is compiled.
    #[must_use]
    pub fn watched(mut self, watch: LoadWatch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Creates a loader of the files under these directories, with no other inputs.
    pub fn of(roots: Vec<PathBuf>) -> Self {
        Self::new(RuleSources { roots, ..RuleSources::default() })
    }

    /// Leaves out the built-in check rules, which a replay does not run.
    #[must_use]
    pub fn without_builtin(mut self) -> Self {
        self.builtin = false;
        self
    }

    /// Changes the organizations' actions. Takes effect on the next load.
    pub fn set_catalog(&mut self, catalog: Catalog) {
        if *self.sources.catalog != catalog {
            self.sources.catalog = Arc::new(catalog);
            self.fingerprint = None;
        }
    }

    /// Loads rules as their authors wrote them, without overrides and exceptions from files.
    #[must_use]
    pub fn without_tuning(mut self) -> Self {
        self.tuning = false;
        self
    }

    /// Changes the inputs of the rule set. Takes effect on the next load.
    pub fn set_sources(&mut self, sources: RuleSources) {
        self.sources = RuleSources { roots: sources.roots.iter().map(|root| normal(root)).collect(), ..sources };
        self.geo = None;
        self.fingerprint = None;
    }

    /// Returns the rules directories and single files.
    pub fn roots(&self) -> &[PathBuf] {
        &self.sources.roots
    }

    /// Reads and compiles all files, unless none has changed since the previous load.
    pub fn load(&mut self) -> Loaded {
        // A file's top level needs as much stack as its functions do.
        let loaded = stack::run("load", || self.load_here());
        // If no thread can be started, less stack is better than no rules.
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
        // If a file cannot be read at the moment, its last good version stays in effect.
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
            // With errors, a selector without a match may refer to a broken rule, so there would be false warnings.
            let all = rules.values().map(|rule| &rule.metadata);
            // The configuration may refer to the built-in rules even if they are left out.
            let configured = if self.builtin { 0 } else { self.sources.overrides.len() };
            let overrides = overrides.get(configured..).unwrap_or(&[]);
            loading.diagnostics.append(&mut overrides::unused(overrides, all.clone()));
            loading.diagnostics.append(&mut exception::unused(&exceptions, all));
            loading.diagnostics.extend(unmatched_subscriptions(&rules));
        }

        self.last_good.clone_from(&rules);
        self.generation += 1;
        let context = RuleSetContext {
            generation: self.generation,
            broken: loading.broken,
            fingerprint: fingerprint.to_hex().to_string(),
            roots: self.sources.roots.clone(),
            follow_links: self.sources.follow_links,
            exceptions,
            catalog: Arc::clone(&self.sources.catalog),
            ignored: Arc::clone(&self.sources.ignored),
            ..RuleSetContext::default()
        };
        self.current = Arc::new(RuleSet::new(rules.into_values(), context));
        Loaded { set: Arc::clone(&self.current), diagnostics: loading.diagnostics, changed: true }
    }

    /// Loads what rules can read in addition to their event. A broken list keeps its last good version.
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
        // `may_load` must be called just before the list is read.
        let (mut lists, mut problems) = Lists::read(files.lists.iter().filter(|(file, text)| {
            let allowed = may_load(file, text);
            if !allowed {
                refused.push(Diagnostic::error("E219", file, DIED));
            }
            allowed
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

    /// Returns the configuration's overrides, followed by those of the last good version of each file.
    fn overrides(&mut self, files: &Texts, loading: &mut Loading) -> Overrides {
        let mut overrides = self.sources.overrides.clone();
        for (file, text) in files.iter().filter(|(file, _)| file.ends_with(OVERRIDES)) {
            match overrides::read(file, text) {
                Ok(read) => {
                    self.last_overrides.insert(file.clone(), read);
                }
                Err(diagnostics) => loading.breaks(file, diagnostics, self.last_overrides.contains_key(file)),
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
                    // The exceptions are not shared yet.
                    for exception in read.iter_mut().filter_map(Arc::get_mut) {
                        if let ExceptionCondition::Expression { ast, .. } = &exception.condition {
                            exception.reads = scan::of_condition(ast);
                        }
                    }
                    self.last_exceptions.insert(file.clone(), read);
                }
                Err(diagnostics) => loading.breaks(file, diagnostics, self.last_exceptions.contains_key(file)),
            }
        }
        for exception in self.last_exceptions.values().flatten() {
            if exceptions.iter().any(|other| other.id == exception.id) {
                let message = format!("duplicate exception ID `{}`: another file already uses it", exception.id);
                let help = "give each exception a unique ID; this one is ignored";
                loading.diagnostics.push(exception.place.error("E106", message).help(help));
            } else {
                exceptions.push(Arc::clone(exception));
            }
        }
        exceptions
    }

    /// Compiles all rule files. A file that does not compile is replaced by its last good version.
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
        // An unreadable directory, such as one being replaced, says nothing about its files.
        for lost in unreadable {
            let inside = self.last_good.keys().filter(|file| **file != lost.file && file.starts_with(&lost.file));
            failed.extend(inside.map(|file| (file.clone(), lost.one_line())));
        }
        let builtin = self.builtin_texts();
        // An exact copy of a built-in rule is ignored.
        let is_copy = |text: &Arc<str>| builtin.values().any(|builtin| builtin == text);
        let mut others: Vec<(PathBuf, Diagnostic)> = Vec::new();
        let mut compiled: Vec<_> = builtin
            .iter()
            .chain(texts.iter().filter(|(_, text)| !is_copy(text)))
            .map(|(file, text)| {
                let (compiled, diagnostics) = if may_load(file, text) {
                    // A panic in the engine must affect only this file.
                    let compile = AssertUnwindSafe(|| compiler.compile(file, text, overrides));
                    std::panic::catch_unwind(compile).unwrap_or_else(|_| {
                        let message = "internal error: the engine panicked while compiling this file; please report it";
                        (Compiled::Broken, vec![Diagnostic::error("E217", file, message)])
                    })
                } else {
                    (Compiled::Broken, vec![Diagnostic::error("E219", file, DIED)])
                };
                // The file that had an id before keeps it, even if a new file uses the same id.
                let is_owner = match &compiled {
                    Compiled::Rule(rule) => self.last_good.get(file).is_some_and(|good| good.id() == rule.id()),
                    Compiled::LibraryFile | Compiled::Broken => false,
                };
                (!is_owner, file, text, compiled, diagnostics)
            })
            .collect();
        compiled.sort_by_key(|(is_new, ..)| *is_new);
        for (_, file, text, compiled, mut diagnostics) in compiled {
            match compiled {
                Compiled::LibraryFile => {
                    // A file is empty for a moment while it is being saved.
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
                        let message = format!("rule ID `{}` is already used by a built-in rule", rule.id());
                        let help = "remove this file, and tune the built-in rule in `overrides.toml`";
                        let diagnostic = Diagnostic::error("E210", file, message)
                            .at(text, rule.places.text("id", rule.id().as_str()))
                            .help(help);
                        others.push((file.clone(), diagnostic));
                    }
                    Some(owner) => {
                        let message = format!("rule ID `{}` is already used by `{}`", rule.id(), owner.display());
                        let diagnostic = Diagnostic::error("E210", file, message)
                            .at(text, rule.places.text("id", rule.id().as_str()))
                            .help("give this rule a unique ID");
                        failed.push((file.clone(), diagnostic.one_line()));
                        diagnostics.push(diagnostic);
                    }
                },
                Compiled::Broken => {
                    let problem = diagnostics.iter().find(|diagnostic| any_error(std::slice::from_ref(diagnostic)));
                    failed.push((file.clone(), problem.map_or_else(String::new, Diagnostic::one_line)));
                }
            }
            loading.diagnostics.append(&mut diagnostics);
        }
        failed.extend(report_builtin_ids(others, loading));
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

    /// Removes rules whose subscriptions form a cycle. The new and changed rules in it caused the cycle, so they are
    /// replaced by their last good versions. The other rules in it keep running.
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
                let subscription = |rule: &CompiledRule| {
                    let on = rule.metadata.on.iter().flatten().map(|selector| selector.as_str().to_owned());
                    (on.collect::<Vec<_>>(), rule.metadata.tags.clone(), rule.metadata.stage)
                };
                good.hash == rule.hash && subscription(good) == subscription(rule)
            };
            let is_unchanged = |file: &PathBuf| match (self.last_good.get(file), rules.get(file)) {
                (Some(good), Some(rule)) => same(good, rule),
                _ => false,
            };
            let mut changed: Vec<PathBuf> = members.iter().filter(|file| !is_unchanged(file)).cloned().collect();
            if changed.is_empty() {
                changed = members;
            }
            for file in changed {
                let Some(rule) = rules.remove(&file) else { continue };
                let message =
                    format!("rule `{}` subscribes to its own matches, directly or through other rules", rule.id());
                let help = "narrow `on`: a pattern may match the rule itself";
                let diagnostic = Diagnostic::error("E215", &file, message).help(help);
                let free = |good: &&Arc<CompiledRule>| !rules.values().any(|other| other.id() == good.id());
                let last_good = self.last_good.get(&file).filter(|good| !same(good, &rule)).filter(free).cloned();
                let problem = diagnostic.one_line();
                loading.diagnostics.push(diagnostic);
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

/// Reports files that use the ids of built-in rules, such as another version of those rules in a rules directory. They
/// share one diagnostic.
fn report_builtin_ids(mut files: Vec<(PathBuf, Diagnostic)>, loading: &mut Loading) -> Option<(PathBuf, String)> {
    if files.is_empty() {
        return None;
    }
    let others = files.len() - 1;
    let (file, mut diagnostic) = files.swap_remove(0);
    if others > 0 {
        let files = if others == 1 { "other file uses" } else { "other files use" };
        diagnostic.message.push_str(&format!(", and {others} {files} IDs of built-in rules"));
    }
    let problem = diagnostic.one_line();
    loading.diagnostics.push(diagnostic);
    Some((file, problem))
}

/// Parses the text of an `exceptions.toml` on its own, for commands that edit the file.
pub fn parse_exceptions(file: &Path, text: &str) -> Result<Vec<Arc<Exception>>, Vec<Diagnostic>> {
    let (mut engine, _) = sandbox::sandbox(&Limits::default());
    exception::read(&mut engine, file, text)
}

const DIED: &str = "the agent died twice while loading this file: it is skipped until it changes";

/// Hashes all files that rules could import, which are those that do not contain `RULE`. The hash is computed before
/// any of them is parsed.
fn hash_of_libraries(texts: &Texts) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for text in texts.values().filter(|text| !text.contains("RULE")) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize()
}

/// Returns warnings about subscriptions that match no rule.
fn unmatched_subscriptions(rules: &BTreeMap<PathBuf, Arc<CompiledRule>>) -> Vec<Diagnostic> {
    let mut warnings = Vec::new();
    for (file, rule) in rules {
        for selector in rule.metadata.on.iter().flatten() {
            if !rules.values().any(|other| selector.selects(&other.metadata)) {
                let (id, selector_text) = (rule.id(), selector.as_str());
                let message = format!("rule `{id}` subscribes to `{selector_text}`, which matches no rule");
                let near =
                    crate::config::diagnostic::nearest(selector_text, rules.values().map(|rule| rule.id().as_str()));
                let warning = Diagnostic::warning("W302", file, message);
                warnings.push(match near {
                    Some(near) => warning.help(format!("did you mean `{near}`?")),
                    None => warning.help("run `watchbell rules list` to list rule IDs"),
                });
            }
        }
    }
    warnings
}
