//! The files of rules directories: which there are, what they are, and what of them may be read.
//!
//! A file is read only below the directories that the configuration names, wherever a link points: rules are checked out from
//! repositories that many may write to, and a link in one must not bring a secret of this machine into an alert's title. With
//! `follow_links` a link may lead outside, but not to a file that only its owner can read.

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

/// A file of overrides or exceptions may not be larger.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// A rule file may not be larger: nobody writes such a rule, and Rhai takes time by the square of how much there is in a file.
const MAX_RULE_BYTES: u64 = 64 * 1024;
/// Lists may be longer: some have an entry for each account.
const MAX_LIST_BYTES: u64 = 32 * 1024 * 1024;
/// Directories below directories, so that a loop of symbolic links ends.
const MAX_DIRECTORY_DEPTH: usize = 16;

/// Whether a file is one that could not be read, or stands in a directory that could not.
pub(in crate::rule) fn is_lost(file: &Path, unreadable: &[Diagnostic]) -> bool {
    unreadable.iter().any(|lost| file.starts_with(&lost.file))
}

/// A fingerprint of the files under `roots` as they are now: another than that of a [`RuleSet`](crate::rule::set::RuleSet) if they have changed
/// since it was loaded.
pub fn fingerprint_on_disk(roots: &[PathBuf], follow_links: bool) -> String {
    let (files, diagnostics) = read(&roots.iter().map(|root| normal(root)).collect::<Vec<_>>(), follow_links);
    fingerprint(&files, &diagnostics).to_hex().to_string()
}

/// What the file system says of the files under `roots`, without reading them: names, sizes and times of change. If it is the
/// same as before, so is [`fingerprint_on_disk`].
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

/// The test files under `roots`.
pub fn test_files(roots: &[PathBuf]) -> Vec<PathBuf> {
    files_ending(roots, ".test.yaml", true)
}

/// The rule files under `roots` themselves: no link out of them is followed, as what is listed here may be rewritten.
pub fn rule_files(roots: &[PathBuf]) -> Vec<PathBuf> {
    files_ending(roots, ".rhai", false)
}

fn files_ending(roots: &[PathBuf], end: &str, follow_links: bool) -> Vec<PathBuf> {
    let inside = Inside::new(roots, follow_links);
    let mut found = Vec::new();
    for root in roots {
        if root.is_file() {
            found.push(normal(root));
            continue;
        }
        // What cannot be read is told where rules are loaded.
        walk(root, 0, &inside, &mut HashSet::new(), &mut |file| {
            if file.to_string_lossy().ends_with(end) && (follow_links || inside.holds(file)) {
                found.push(normal(file));
            }
        })
        .ok();
    }
    found
}

pub(in crate::rule) type Texts = BTreeMap<PathBuf, Arc<str>>;

/// The files of a load, by what they are.
#[derive(Default)]
pub(in crate::rule) struct Files {
    /// `*.rhai`.
    pub(in crate::rule) rules: Texts,
    /// In a directory `lists`.
    pub(in crate::rule) lists: Texts,
    /// `overrides.toml` and `exceptions.toml`.
    pub(in crate::rule) tuning: Texts,
}

impl Files {
    /// Where a file belongs; none if it is of no concern.
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
            let mut take = |file: &Path| read_file(file, &inside, &mut files, &mut diagnostics);
            let walked = walk(root, 0, &inside, &mut seen, &mut take);
            if let Err(error) = walked {
                diagnostics.push(
                    Diagnostic::error("E001", root, format!("the rules directory cannot be read: {error}"))
                        .help("create it, or correct `paths` under `[rules]`"),
                );
            }
        }
    }
    (files, diagnostics)
}

/// Where files may be.
pub(in crate::rule) struct Inside {
    roots: Vec<PathBuf>,
    follow_links: bool,
}

impl Inside {
    /// Below these directories, or wherever links from there lead.
    pub(in crate::rule) fn new(roots: &[PathBuf], follow_links: bool) -> Self {
        let resolved = |root: &PathBuf| {
            let root = root.canonicalize().ok()?;
            // A root may be a single file: what stands beside it belongs to it.
            if root.is_file() { root.parent().map(Path::to_owned) } else { Some(root) }
        };
        Self { roots: roots.iter().filter_map(resolved).collect(), follow_links }
    }

    /// Whether a path leads to something below the directories.
    fn holds(&self, path: &Path) -> bool {
        path.canonicalize().is_ok_and(|path| self.roots.iter().any(|root| path.starts_with(root)))
    }

    /// What keeps a file from being read, if anything. It must be a file, of at most so many bytes.
    pub(in crate::rule) fn refuses(&self, file: &Path, limit: u64, what: &str) -> Option<String> {
        let unreadable = |error: std::io::Error| format!("the file cannot be read: {error}");
        let (metadata, resolved) = match (std::fs::metadata(file), file.canonicalize()) {
            (Ok(metadata), Ok(resolved)) => (metadata, resolved),
            (Err(error), _) | (_, Err(error)) => return Some(unreadable(error)),
        };
        // Opening a pipe would wait for somebody to write to it.
        if !metadata.is_file() {
            return Some("this is not a regular file".to_owned());
        }
        if metadata.len() > limit {
            let limit = if limit < 1 << 20 { format!("{} KiB", limit >> 10) } else { format!("{} MiB", limit >> 20) };
            return Some(format!("the file is larger than {limit}: this is no {what}"));
        }
        if self.roots.iter().any(|root| resolved.starts_with(root)) {
            return None;
        }
        if !self.follow_links {
            return Some(leads_out("the file", &resolved));
        }
        let is_private = metadata.mode() & 0o044 == 0;
        is_private.then(|| {
            "the file is a link to a file that only its owner can read, as secrets are: make it readable for its group"
                .to_owned()
        })
    }
}

fn leads_out(what: &str, to: &Path) -> String {
    let to = to.display();
    format!(
        "{what} is a link out of the rules directories, to `{to}`: put it there itself, or set `follow_links = true` under `[rules]`"
    )
}

/// Calls `found` for each file below `directory`. Names that begin with a dot are passed over: editors' and Kubernetes' own
/// (`..data`), whose files are reached by their proper names.
fn walk(
    directory: &Path,
    depth: usize,
    inside: &Inside,
    seen: &mut HashSet<PathBuf>,
    found: &mut dyn FnMut(&Path),
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
            // A link out of the directories leads to files that are none of ours: to their number there is no end.
            if depth == MAX_DIRECTORY_DEPTH || !inside.follow_links && !inside.holds(&path) {
                found(&path);
                continue;
            }
            match walk(&path, depth + 1, inside, seen, found) {
                // A directory that vanishes while it is read is gone with the next look.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                // One that cannot be read says nothing about its files: what was good of them runs on.
                walked => walked?,
            }
        } else {
            found(&path);
        }
    }
    Ok(())
}

fn read_file(file: &Path, inside: &Inside, files: &mut Files, diagnostics: &mut Vec<Diagnostic>) {
    if file.is_dir() {
        let to = file.canonicalize().unwrap_or_else(|_| file.to_owned());
        let problem = if inside.holds(file) {
            format!("directories nest more than {MAX_DIRECTORY_DEPTH} deep here: what is below is not read")
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
        () if ending("rhai") => (MAX_RULE_BYTES, "rule"),
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
                    Some(format!("the file is not text: byte {at} is not UTF-8"))
                }
            },
            Err(error) => Some(format!("the file cannot be read: {error}")),
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
