//! The files in rules directories: finding them, classifying them, and deciding which may be read.
//!
//! Only files below the configured directories are read, even if a link points elsewhere: rules are often checked out
//! from repositories with many writers, and a link must not bring one of this machine's secrets into an alert's title.
//! With `follow_links` a link may lead outside, but not to a file that only its owner can read.

use std::{
    collections::{BTreeMap, HashSet},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::config::diagnostic::Diagnostic;
use crate::rule::{
    manifest::{exception::EXCEPTIONS, overrides::OVERRIDES},
    script::import::normal,
};

/// Maximum size of a file of overrides or exceptions.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// Maximum size of a rule file. Real rules are far smaller, and Rhai's compile time is quadratic in the size of a file.
const MAX_RULE_BYTES: u64 = 64 * 1024;
/// Maximum size of a list. Lists may be large: some have an entry for each account.
const MAX_LIST_BYTES: u64 = 32 * 1024 * 1024;
/// Maximum nesting of directories, so that a loop of symbolic links ends.
const MAX_DIRECTORY_DEPTH: usize = 16;

/// Whether a file could not be read, or is in a directory that could not.
pub(in crate::rule) fn is_lost(file: &Path, unreadable: &[Diagnostic]) -> bool {
    unreadable.iter().any(|lost| file.starts_with(&lost.file))
}

/// Returns a fingerprint of the files under `roots` as they are now. It differs from that of a
/// [`RuleSet`](crate::rule::set::RuleSet) if the files have changed since the set was loaded.
pub fn fingerprint_on_disk(roots: &[PathBuf], follow_links: bool) -> String {
    let (files, diagnostics) = read(&roots.iter().map(|root| normal(root)).collect::<Vec<_>>(), follow_links);
    fingerprint(&files, &diagnostics).to_hex().to_string()
}

/// Returns a hash of the names, sizes and times of change of the files under `roots`, without reading them. If it has not
/// changed, neither has [`fingerprint_on_disk`].
pub fn stamp_on_disk(roots: &[PathBuf], follow_links: bool) -> [u8; 32] {
    let inside = Inside::new(roots, follow_links);
    let mut hasher = blake3::Hasher::new();
    let mut note = |file: &Path| {
        hasher.update(file.as_os_str().as_encoded_bytes());
        // A name ends with a byte that it cannot have.
        hasher.update(&[0]);
        if let Ok(metadata) = std::fs::metadata(file) {
            for part in [metadata.ino(), metadata.len(), metadata.mode().into()] {
                hasher.update(&part.to_le_bytes());
            }
            for part in [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()] {
                hasher.update(&part.to_le_bytes());
            }
        }
    };
    for root in roots.iter().map(|root| normal(root)) {
        if root.is_dir() {
            // A directory that cannot be read has a diagnostic where rules are loaded.
            walk(&root, 0, &inside, &mut HashSet::new(), &mut note).ok();
        } else {
            note(&root);
        }
    }
    *hasher.finalize().as_bytes()
}

/// Returns the test files under `roots`.
pub fn test_files(roots: &[PathBuf]) -> Vec<PathBuf> {
    files_ending(roots, ".test.yaml", true)
}

/// Returns the rule files under `roots`. Links that lead outside are not followed, because callers may rewrite files.
pub fn rule_files(roots: &[PathBuf]) -> Vec<PathBuf> {
    files_ending(roots, ".rhai", false)
}

fn files_ending(roots: &[PathBuf], end: &str, follow_links: bool) -> Vec<PathBuf> {
    let inside = Inside::new(roots, follow_links);
    let mut files = Vec::new();
    for root in roots {
        if root.is_file() {
            files.push(normal(root));
            continue;
        }
        // Unreadable files are reported when rules are loaded.
        walk(root, 0, &inside, &mut HashSet::new(), &mut |file| {
            if file.to_string_lossy().ends_with(end) && (follow_links || inside.holds(file)) {
                files.push(normal(file));
            }
        })
        .ok();
    }
    files
}

pub(in crate::rule) type Texts = BTreeMap<PathBuf, Arc<str>>;

/// The files of a load, by kind.
#[derive(Default)]
pub(in crate::rule) struct Files {
    /// `*.rhai`.
    pub(in crate::rule) rules: Texts,
    /// Files in a directory named `lists`.
    pub(in crate::rule) lists: Texts,
    /// `overrides.toml` and `exceptions.toml`.
    pub(in crate::rule) tuning: Texts,
}

impl Files {
    /// Returns the map that a file belongs in, or `None` if it is not loaded at all.
    fn place(&mut self, file: &Path) -> Option<&mut Texts> {
        let extension = file.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let in_lists = file.parent().and_then(Path::file_name).is_some_and(|name| name == "lists");
        if extension == "rhai" {
            Some(&mut self.rules)
        } else if in_lists && ["txt", "csv", "json"].contains(&extension) {
            Some(&mut self.lists)
        } else if name == OVERRIDES || name == EXCEPTIONS {
            Some(&mut self.tuning)
        } else {
            None
        }
    }
}

/// Reads all files under `roots`.
pub(in crate::rule) fn read(roots: &[PathBuf], follow_links: bool) -> (Files, Vec<Diagnostic>) {
    let mut files = Files::default();
    let mut diagnostics = Vec::new();
    let inside = Inside::new(roots, follow_links);
    for root in roots {
        if root.is_file() {
            read_file(root, &inside, &mut files, &mut diagnostics);
        } else {
            let mut seen = HashSet::new();
            let mut visit = |file: &Path| read_file(file, &inside, &mut files, &mut diagnostics);
            let walked = walk(root, 0, &inside, &mut seen, &mut visit);
            if let Err(error) = walked {
                diagnostics.push(
                    Diagnostic::error("E001", root, format!("cannot read the rules directory: {error}"))
                        .help("create it, or correct `paths` under `[rules]`"),
                );
            }
        }
    }
    (files, diagnostics)
}

/// The places from which files may be read.
pub(in crate::rule) struct Inside {
    roots: Vec<PathBuf>,
    follow_links: bool,
}

impl Inside {
    /// Allows files below these directories, and with `follow_links` also those that links there lead to.
    pub(in crate::rule) fn new(roots: &[PathBuf], follow_links: bool) -> Self {
        let resolved = |root: &PathBuf| {
            let root = root.canonicalize().ok()?;
            // A root may be a single file. The files next to it belong to it.
            if root.is_file() { root.parent().map(Path::to_owned) } else { Some(root) }
        };
        Self { roots: roots.iter().filter_map(resolved).collect(), follow_links }
    }

    /// Whether a path resolves to something below the directories.
    fn holds(&self, path: &Path) -> bool {
        path.canonicalize().is_ok_and(|path| self.roots.iter().any(|root| path.starts_with(root)))
    }

    /// Returns why a file must not be read, or `None` if it may be. It must be a regular file of at most `limit` bytes.
    pub(in crate::rule) fn refuses(&self, file: &Path, limit: u64, what: &str) -> Option<String> {
        let unreadable = |error: std::io::Error| format!("cannot read the file: {error}");
        let (metadata, resolved) = match (std::fs::metadata(file), file.canonicalize()) {
            (Ok(metadata), Ok(resolved)) => (metadata, resolved),
            (Err(error), _) | (_, Err(error)) => return Some(unreadable(error)),
        };
        // Opening a pipe would wait for a writer.
        if !metadata.is_file() {
            return Some("not a regular file".to_owned());
        }
        if metadata.len() > limit {
            let limit = if limit < 1 << 20 { format!("{} KiB", limit >> 10) } else { format!("{} MiB", limit >> 20) };
            return Some(format!("the file is larger than {limit}, the limit for a {what}"));
        }
        if self.roots.iter().any(|root| resolved.starts_with(root)) {
            return None;
        }
        if !self.follow_links {
            return Some(leads_out("the file", &resolved));
        }
        let is_private = metadata.mode() & 0o044 == 0;
        is_private.then(|| {
            "the file is a link to a file that only its owner can read, as secrets are: make that file group-readable"
                .to_owned()
        })
    }
}

fn leads_out(what: &str, to: &Path) -> String {
    let to = to.display();
    format!(
        "{what} is a link out of the rules directories, to `{to}`: copy it there, or set `follow_links = true` under \
         `[rules]`"
    )
}

/// Calls `visit` for each file below `directory`. Names that start with a dot are skipped: editors and Kubernetes use
/// them (`..data`), and their files are also reachable by their proper names.
fn walk(
    directory: &Path,
    depth: usize,
    inside: &Inside,
    seen: &mut HashSet<PathBuf>,
    visit: &mut dyn FnMut(&Path),
) -> std::io::Result<()> {
    if !seen.insert(directory.canonicalize()?) {
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
            // A link out of the directories leads to unrelated files, of which there may be any number.
            if depth == MAX_DIRECTORY_DEPTH || !inside.follow_links && !inside.holds(&path) {
                visit(&path);
                continue;
            }
            match walk(&path, depth + 1, inside, seen, visit) {
                // A directory that vanishes while it is read will be missing on the next load.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // An unreadable directory says nothing about its files, so their last good versions keep running.
                walked => walked?,
            }
        } else {
            visit(&path);
        }
    }
    Ok(())
}

fn read_file(file: &Path, inside: &Inside, files: &mut Files, diagnostics: &mut Vec<Diagnostic>) {
    if file.is_dir() {
        let to = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let problem = if inside.holds(file) {
            format!("directories nest more than {MAX_DIRECTORY_DEPTH} levels deep: nothing below this one is read")
        } else {
            leads_out("the directory", &to)
        };
        diagnostics.push(Diagnostic::error("E002", normal(file), problem));
        return;
    }
    let Some(texts) = files.place(file) else {
        return;
    };
    let ending = |wanted: &str| file.extension().is_some_and(|extension| extension == wanted);
    let (limit, what) = match () {
        () if ending("rhai") => (MAX_RULE_BYTES, "rule file"),
        () if ending("toml") => (MAX_FILE_BYTES, "file of overrides or exceptions"),
        () => (MAX_LIST_BYTES, "list"),
    };
    let problem = match inside.refuses(file, limit, what) {
        Some(problem) => Some(problem),
        None => match std::fs::read(file) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => {
                    texts.insert(normal(file), text.into());
                    None
                }
                Err(error) => {
                    let at = error.utf8_error().valid_up_to();
                    Some(format!("the file is not valid UTF-8 (at byte {at})"))
                }
            },
            Err(error) => Some(format!("cannot read the file: {error}")),
        },
    };
    if let Some(problem) = problem {
        diagnostics.push(Diagnostic::error("E002", normal(file), problem));
    }
}

pub(in crate::rule) fn fingerprint(files: &Files, diagnostics: &[Diagnostic]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for (file, text) in files.rules.iter().chain(&files.lists).chain(&files.tuning) {
        hasher.update(file.as_os_str().as_encoded_bytes());
        hasher.update(&(text.len() as u64).to_be_bytes());
        hasher.update(text.as_bytes());
    }
    for diagnostic in diagnostics {
        hasher.update(diagnostic.one_line().as_bytes());
    }
    hasher.finalize()
}
