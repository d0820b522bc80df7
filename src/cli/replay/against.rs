//! The rules that are replayed, and what they are compared with: the configured rules, those of a directory or of a Git
//! revision, or a saved report.

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
    Rules(Rules),
    /// The report of an earlier replay.
    Saved(Box<Report>),
}

/// Loaded rules.
#[derive(Debug)]
pub(super) struct Rules {
    sources: RuleSources,
    pub(super) set: Arc<RuleSet>,
    pub(super) diagnostics: Vec<Diagnostic>,
    only: Vec<Selector>,
    /// Directory of files checked out of Git; deleted on drop.
    _files: Option<TempDir>,
}

impl Rules {
    /// Loads the rules that `only` selects, with the rules that they subscribe to; all if `only` is empty.
    pub(super) fn load(sources: RuleSources, only: &[Selector]) -> Self {
        let loaded = Loader::new(sources.clone()).without_builtin().load();
        let set = select(loaded.set, only);
        Self { sources, set, diagnostics: loaded.diagnostics, only: only.to_vec(), _files: None }
    }

    /// One side of a replay. For many events it is worth loading a copy of the rules for each thread.
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
    /// Resolves the argument of `--against`. `live` are the configured rules, if there is a configuration, and
    /// `sources` the replayed ones.
    pub(super) fn find(
        text: &str,
        live: Option<&RuleSources>,
        sources: &RuleSources,
        only: &[Selector],
    ) -> Result<Self, CliError> {
        if text == "live" {
            let live = live.ok_or_else(|| CliError::Usage("`--against live` needs a configuration".to_owned()))?;
            if live.roots == sources.roots {
                let message = "the replayed rules are the live rules; choose others with `--rules DIR`";
                return Err(CliError::Usage(message.to_owned()));
            }
            return Ok(Self::Rules(Rules::load(live.clone(), only)));
        }
        if let Some(revision) = text.strip_prefix("git:") {
            let files = tempfile::Builder::new()
                .prefix("watchbell-git-")
                .tempdir()
                .map_err(|error| CliError::Usage(format!("cannot create a temporary directory: {error}")))?;
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
                "cannot read `{text}`: {error}; `--against` takes `live`, a directory of rules, `git:REVISION`, or a \
                 file written by `replay --save`"
            ))
        })?;
        let report = serde_json::from_slice(&saved)
            .map_err(|error| CliError::Usage(format!("`{text}` was not written by `replay --save`: {error}")))?;
        Ok(Self::Saved(report))
    }
}

/// Checks out a directory or one file of a revision. The working tree and its index are not changed.
fn from_git(root: &Path, revision: &str, to: &Path) -> Result<PathBuf, CliError> {
    if revision.is_empty() || revision.starts_with('-') {
        return Err(CliError::Usage(format!(
            "`git:{revision}` is not a revision; use one such as `git:HEAD` or `git:main`"
        )));
    }
    let real =
        root.canonicalize().map_err(|error| CliError::Usage(format!("cannot read `{}`: {error}", root.display())))?;
    let (directory, name) = match (real.is_dir(), real.parent(), real.file_name()) {
        (false, Some(parent), Some(name)) => (parent.to_owned(), Some(name.to_owned())),
        _ => (real, None),
    };
    std::fs::create_dir_all(to)
        .map_err(|error| CliError::Usage(format!("cannot create `{}`: {error}", to.display())))?;
    let index = to.with_extension("index");
    let git = |directory: &Path, arguments: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "core.fsmonitor=false", "-C"])
            .arg(directory)
            .args(arguments)
            .env("GIT_INDEX_FILE", &index)
            .output();
        let output = output.map_err(|error| CliError::Usage(format!("cannot run git: {error}")))?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            let message = message.trim().lines().next().unwrap_or("no error message").to_owned();
            return Err(CliError::Usage(format!("git has no `{revision}` of `{}`: {message}", root.display())));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    };
    // Path of the directory in its repository; empty at the top.
    let prefix = git(&directory, &["rev-parse", "--show-prefix"])?;
    git(&directory, &["read-tree", &format!("{revision}:{}", prefix.trim_end_matches('/'))])?;
    // Run at the top: from a subdirectory, git would write only the files below it.
    let top = git(&directory, &["rev-parse", "--show-toplevel"])?;
    git(Path::new(&top), &["checkout-index", "--all", &format!("--prefix={}/", to.display())])?;
    Ok(name.map_or_else(|| to.to_owned(), |name| to.join(name)))
}
