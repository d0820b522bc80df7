//! Which rules are replayed, and what they are compared with: those of the configuration, of a directory, of a revision in git,
//! or what an earlier replay found and kept.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use tempfile::TempDir;
use watchbell::{
    config::diagnostic::Diagnostic,
    replay::{Report, Side},
    rule::{Loader, RuleSet, RuleSources, Selector},
};

use super::super::CliError;

/// What a replay is compared with.
#[derive(Debug)]
pub(super) enum Against {
    /// Other rules.
    Rules(Rules),
    /// What was found before.
    Saved(Box<Report>),
}

/// Rules, loaded.
#[derive(Debug)]
pub(super) struct Rules {
    sources: RuleSources,
    pub(super) set: Arc<RuleSet>,
    pub(super) diagnostics: Vec<Diagnostic>,
    only: Vec<Selector>,
    /// Where files are that were taken out of git.
    _files: Option<TempDir>,
}

impl Rules {
    /// The rules of these sources; of them only those that `only` names, with what they listen to.
    pub(super) fn load(sources: RuleSources, only: &[Selector]) -> Self {
        let loaded = Loader::new(sources.clone()).without_builtin().load();
        let set = select(loaded.set, only);
        Self { sources, set, diagnostics: loaded.diagnostics, only: only.to_vec(), _files: None }
    }

    /// As the side of a replay on so many threads. Loading the rules once more for each is worth it for many events.
    pub(super) fn side(&self, copies: usize) -> Side {
        let copy = || select(Loader::new(self.sources.clone()).without_builtin().load().set, &self.only);
        Side { rules: Arc::clone(&self.set), copies: std::iter::repeat_with(copy).take(copies).collect() }
    }
}

fn select(set: Arc<RuleSet>, only: &[Selector]) -> Arc<RuleSet> {
    if only.is_empty() {
        return set;
    }
    let wanted = |rule: &&Arc<_>| {
        let rule: &watchbell::rule::CompiledRule = rule;
        only.iter().any(|selector| selector.selects(&rule.metadata))
    };
    set.part(&set.detections.iter().filter(wanted).cloned().collect::<Vec<_>>())
}

impl Against {
    /// What `--against` names. `live` are the configured rules, if there is a configuration, and `sources` those replayed.
    pub(super) fn find(
        text: &str,
        live: Option<&RuleSources>,
        sources: &RuleSources,
        only: &[Selector],
    ) -> Result<Self, CliError> {
        if text == "live" {
            let live =
                live.ok_or_else(|| CliError::Usage("there is no configuration that names live rules".to_owned()))?;
            if live.roots == sources.roots {
                let hint = "these are the live rules: `--rules DIR` says which to compare with them";
                return Err(CliError::Usage(hint.to_owned()));
            }
            return Ok(Self::Rules(Rules::load(live.clone(), only)));
        }
        if let Some(revision) = text.strip_prefix("git:") {
            let files = tempfile::Builder::new()
                .prefix("watchbell-git-")
                .tempdir()
                .map_err(|error| CliError::Usage(format!("no temporary directory: {error}")))?;
            let mut roots = Vec::new();
            for (number, root) in sources.roots.iter().enumerate() {
                roots.push(from_git(root, revision, &files.path().join(number.to_string()))?);
            }
            let rules = Rules::load(RuleSources { roots, ..sources.clone() }, only);
            return Ok(Self::Rules(Rules { _files: Some(files), ..rules }));
        }
        let path = Path::new(text);
        if path.is_dir() || path.extension().is_some_and(|extension| extension == "rhai") {
            let sources = RuleSources { roots: vec![path.to_owned()], ..sources.clone() };
            return Ok(Self::Rules(Rules::load(sources, only)));
        }
        let saved = std::fs::read(path).map_err(|error| {
            CliError::Usage(format!(
                "`{text}` cannot be read: {error}: `--against` takes `live`, a directory of rules, `git:REVISION`, or what \
                 `replay --save` wrote"
            ))
        })?;
        let report = serde_json::from_slice(&saved)
            .map_err(|error| CliError::Usage(format!("`{text}` is not what `replay --save` writes: {error}")))?;
        Ok(Self::Saved(report))
    }
}

/// Takes the files of a directory, or one file, out of a revision. The working tree and its index stay as they are.
fn from_git(root: &Path, revision: &str, to: &Path) -> Result<PathBuf, CliError> {
    if revision.is_empty() || revision.starts_with('-') {
        return Err(CliError::Usage(format!("`git:{revision}` names no revision, such as `git:HEAD` or `git:main`")));
    }
    let real = root
        .canonicalize()
        .map_err(|error| CliError::Usage(format!("`{}` cannot be read: {error}", root.display())))?;
    let (directory, name) = match (real.is_dir(), real.parent(), real.file_name()) {
        (false, Some(parent), Some(name)) => (parent.to_owned(), Some(name.to_owned())),
        _ => (real, None),
    };
    std::fs::create_dir_all(to)
        .map_err(|error| CliError::Usage(format!("`{}` cannot be made: {error}", to.display())))?;
    let index = to.with_extension("index");
    let git = |place: &Path, arguments: &[&str]| {
        let done = Command::new("git")
            .args(["-c", "core.fsmonitor=false", "-C"])
            .arg(place)
            .args(arguments)
            .env("GIT_INDEX_FILE", &index)
            .output();
        let done = done.map_err(|error| CliError::Usage(format!("git cannot be run: {error}")))?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            let said = said.trim().lines().next().unwrap_or("it did not say why").to_owned();
            return Err(CliError::Usage(format!("git has no `{revision}` of `{}`: {said}", root.display())));
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim_end_matches('\n').to_owned())
    };
    // Where the directory is in its repository; empty at the top.
    let prefix = git(&directory, &["rev-parse", "--show-prefix"])?;
    git(&directory, &["read-tree", &format!("{revision}:{}", prefix.trim_end_matches('/'))])?;
    // From below the top, only files would be written that lie there.
    let top = git(&directory, &["rev-parse", "--show-toplevel"])?;
    git(Path::new(&top), &["checkout-index", "--all", &format!("--prefix={}/", to.display())])?;
    Ok(name.map_or_else(|| to.to_owned(), |name| to.join(name)))
}
