//! From rules directories to a [`RuleSet`]: all `*.rhai` files, recursively, compiled together.
//!
//! A file that does not compile leaves its last good version running. Files are taken as a whole: any change of any of them
//! loads all again (a hundred rules take milliseconds), so that what a file imports can never be stale.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use rhai::Map;

use super::{
    BrokenFile, CompiledRule, RuleSet,
    compile::{self, Compiled, Compiler},
    library::{Library, normal},
    shipped::BUILTIN,
};
use crate::{
    diagnostic::{Diagnostic, any_error},
    name::RuleId,
};

/// A rule file may not be larger: nobody writes such a rule.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Directories below directories, so that a loop of symbolic links ends.
const MAX_DIRECTORY_DEPTH: usize = 16;

/// What the configuration changes about one rule.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleOverride {
    /// Off or on, whatever the rule says.
    pub enabled: Option<bool>,
    /// Values for `params`.
    pub params: Option<serde_json::Value>,
}

/// What the configuration changes about rules, by id.
pub type Overrides = HashMap<RuleId, RuleOverride>;

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

/// Loads rule files again and again, remembering the last good version of each.
#[derive(Debug)]
pub struct Loader {
    roots: Vec<PathBuf>,
    overrides: Overrides,
    builtin: bool,
    generation: u64,
    last_good: BTreeMap<PathBuf, Arc<CompiledRule>>,
    fingerprint: Option<blake3::Hash>,
    current: Arc<RuleSet>,
}

impl Loader {
    /// A loader of the files under `roots` together with the check rules that are built in.
    pub fn new(roots: Vec<PathBuf>, overrides: Overrides) -> Self {
        Self {
            roots: roots.iter().map(|root| normal(root)).collect(),
            overrides,
            builtin: true,
            generation: 0,
            last_good: BTreeMap::new(),
            fingerprint: None,
            current: Arc::default(),
        }
    }

    /// Leaves the built-in check rules out: a replay does not run them.
    #[must_use]
    pub fn without_builtin(mut self) -> Self {
        self.builtin = false;
        self
    }

    /// Changes what the configuration says about rules; the next load takes it up.
    pub fn set_overrides(&mut self, roots: Vec<PathBuf>, overrides: Overrides) {
        self.roots = roots.iter().map(|root| normal(root)).collect();
        self.overrides = overrides;
        self.fingerprint = None;
    }

    /// The directories.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Reads and compiles all files, unless none has changed since the last time.
    pub fn load(&mut self) -> Loaded {
        let (texts, mut diagnostics) = read(&self.roots);
        let fingerprint = fingerprint(&texts, &diagnostics);
        if self.fingerprint == Some(fingerprint) {
            return Loaded { set: Arc::clone(&self.current), diagnostics: Vec::new(), changed: false };
        }
        self.fingerprint = Some(fingerprint);
        let unreadable: Vec<Diagnostic> = diagnostics.clone();

        let library = Arc::new(Library::new(self.roots.clone(), texts.clone()));
        let mut compiler = Compiler::new(library);
        let overrides = self.overrides.clone();
        let params = move |id: &RuleId| -> Option<Map> {
            overrides.get(id).and_then(|change| change.params.as_ref()).map(compile::params_from_json)
        };
        let mut rules: BTreeMap<PathBuf, Arc<CompiledRule>> = BTreeMap::new();
        let mut broken = Vec::new();
        let mut owners: HashMap<RuleId, PathBuf> = HashMap::new();
        let mut failed: Vec<(PathBuf, String)> =
            unreadable.iter().map(|diagnostic| (diagnostic.file.clone(), diagnostic.one_line())).collect();
        // A directory that cannot be read, as while it is being replaced, says nothing about its files.
        for lost in &unreadable {
            let inside = self.last_good.keys().filter(|file| **file != lost.file && file.starts_with(&lost.file));
            failed.extend(inside.map(|file| (file.clone(), lost.one_line())));
        }
        for (file, text) in self.builtin_texts().into_iter().chain(texts) {
            let (compiled, mut found) = compiler.compile(&file, &text, &params);
            let rule = match compiled {
                Compiled::LibraryFile => {
                    diagnostics.append(&mut found);
                    // A file that is just being saved is empty for an instant.
                    if text.trim().is_empty() && self.last_good.contains_key(&file) {
                        failed.push((file, "the file is empty: delete it to remove its rule".to_owned()));
                    }
                    continue;
                }
                Compiled::Rule(rule) => Some(rule),
                Compiled::Broken => None,
            };
            if let Some(rule) = rule {
                match owners.get(rule.id()) {
                    None => {
                        owners.insert(rule.id().clone(), file.clone());
                        rules.insert(file, Arc::new(self.overridden(*rule)));
                    }
                    Some(owner) => {
                        let message = format!("rule id `{}` is already used by `{}`", rule.id(), owner.display());
                        let span = id_span(&text, rule.id());
                        found.push(
                            Diagnostic::error("E210", &file, message)
                                .at(&text, span)
                                .help("give this rule an id of its own"),
                        );
                        failed.push((file, found.last().map_or_else(String::new, Diagnostic::one_line)));
                    }
                }
            } else {
                let problem = found.iter().find(|found| any_error(std::slice::from_ref(found)));
                failed.push((file, problem.map_or_else(String::new, Diagnostic::one_line)));
            }
            diagnostics.append(&mut found);
        }
        for (file, problem) in failed {
            let last_good = self.last_good.get(&file).filter(|rule| !owners.contains_key(rule.id())).cloned();
            let last_good_runs = last_good.is_some();
            if let Some(rule) = last_good {
                owners.insert(rule.id().clone(), file.clone());
                rules.insert(file.clone(), rule);
            }
            broken.push(BrokenFile { file, problem, last_good_runs });
        }
        self.last_good.clone_from(&rules);
        self.generation += 1;
        self.current = Arc::new(RuleSet::new(
            self.generation,
            rules.into_values(),
            broken,
            fingerprint.to_hex().to_string(),
            self.roots.clone(),
        ));
        Loaded { set: Arc::clone(&self.current), diagnostics, changed: true }
    }

    fn overridden(&self, mut rule: CompiledRule) -> CompiledRule {
        if let Some(enabled) = self.overrides.get(rule.id()).and_then(|change| change.enabled) {
            rule.metadata.enabled = enabled;
        }
        rule
    }

    fn builtin_texts(&self) -> Vec<(PathBuf, Arc<str>)> {
        let files = if self.builtin { BUILTIN } else { &[] };
        files.iter().map(|file| (PathBuf::from(format!("(built in)/{}", file.path)), Arc::from(file.text))).collect()
    }
}

/// A fingerprint of the files under `roots` as they are now: another than a [`RuleSet`]'s if they have changed since it was
/// loaded.
pub fn fingerprint_on_disk(roots: &[PathBuf]) -> String {
    let (texts, diagnostics) = read(&roots.iter().map(|root| normal(root)).collect::<Vec<_>>());
    fingerprint(&texts, &diagnostics).to_hex().to_string()
}

/// Reads all files under `roots`.
fn read(roots: &[PathBuf]) -> (BTreeMap<PathBuf, Arc<str>>, Vec<Diagnostic>) {
    let mut texts = BTreeMap::new();
    let mut diagnostics = Vec::new();
    for root in roots {
        if root.is_file() {
            read_file(root, &mut texts, &mut diagnostics);
        } else {
            let mut seen = HashSet::new();
            walk(root, 0, &mut seen, &mut |file| read_file(file, &mut texts, &mut diagnostics)).unwrap_or_else(
                |error| {
                    diagnostics.push(
                        Diagnostic::error("E001", root, format!("the rules directory cannot be read: {error}"))
                            .help("create it, or correct `paths` under `[rules]`"),
                    );
                },
            );
        }
    }
    (texts, diagnostics)
}

/// Calls `found` for each `*.rhai` file below `directory`. Names that begin with a dot are passed over: editors' and
/// Kubernetes' own (`..data`), whose files are reached by their proper names.
fn walk(
    directory: &Path,
    depth: usize,
    seen: &mut HashSet<PathBuf>,
    found: &mut dyn FnMut(&Path),
) -> std::io::Result<()> {
    if depth > MAX_DIRECTORY_DEPTH || !seen.insert(directory.canonicalize()?) {
        return Ok(());
    }
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            // A directory that vanishes while it is read is gone with the next look.
            walk(&path, depth + 1, seen, found).ok();
        } else if path.extension().is_some_and(|extension| extension == "rhai") {
            found(&path);
        }
    }
    Ok(())
}

fn read_file(file: &Path, texts: &mut BTreeMap<PathBuf, Arc<str>>, diagnostics: &mut Vec<Diagnostic>) {
    let problem = match std::fs::metadata(file) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            Some("the file is larger than 1 MiB: this is no rule".to_owned())
        }
        Ok(_) => match std::fs::read(file) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => {
                    texts.insert(normal(file), text.into());
                    None
                }
                Err(error) => {
                    let at = error.utf8_error().valid_up_to();
                    Some(format!("the file is not text: byte {at} is not UTF-8"))
                }
            },
            Err(error) => Some(format!("the file cannot be read: {error}")),
        },
        Err(error) => Some(format!("the file cannot be read: {error}")),
    };
    if let Some(problem) = problem {
        diagnostics.push(Diagnostic::error("E002", normal(file), problem));
    }
}

fn fingerprint(texts: &BTreeMap<PathBuf, Arc<str>>, diagnostics: &[Diagnostic]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (file, text) in texts {
        hasher.update(file.as_os_str().as_encoded_bytes());
        hasher.update(&(text.len() as u64).to_be_bytes());
        hasher.update(text.as_bytes());
    }
    for diagnostic in diagnostics {
        hasher.update(diagnostic.one_line().as_bytes());
    }
    hasher.finalize()
}

fn id_span(text: &str, id: &RuleId) -> std::ops::Range<usize> {
    let quoted = format!("\"{id}\"");
    text.find(&quoted).map_or(0..0, |start| start..start + quoted.len())
}
