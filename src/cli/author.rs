//! `watchbell rules new|fmt|docs|definitions`: verbs for authors of rules.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use watchbell::{
    api::{Client, request},
    config::diagnostic::any_error,
    model::{
        event::Event,
        name::{EventId, RuleId},
        time::Clock,
    },
    rule::{self, CompiledRule, Documented, Loader, test_file},
    source::file,
};

use super::{CliError, Context, ensure_readable, output, problems, replace_file};

#[derive(Debug, Args)]
pub(super) struct New {
    /// ID of the rule, such as `team.admin.what_happened`; the last part names the file, the part before it the folder
    id: RuleId,
    /// Start from this stored event, or the first event of this file; personal data is replaced
    #[arg(long, value_name = "ID|FILE")]
    from_event: Option<String>,
    /// Directory to write to; by default the first configured directory of rules
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
}

impl New {
    pub(super) fn run(self, context: &Context) -> Result<(), CliError> {
        let config = if self.rules.is_some() && !context.config.exists() { None } else { Some(context.config()?) };
        let root = match (&self.rules, &config) {
            (Some(root), _) => root.clone(),
            (None, Some(config)) => config.rules.roots.first().cloned().unwrap_or_else(|| PathBuf::from("rules")),
            (None, None) => PathBuf::from("rules"),
        };
        let event = match &self.from_event {
            None => serde_json::from_str(rule::EXAMPLE_EVENT).unwrap_or_default(),
            Some(path) if Path::new(path).is_file() => {
                let contents = file::read(Path::new(path))
                    .map_err(|error| CliError::Usage(format!("cannot read `{path}`: {error}")))?;
                let event = contents.events.first();
                let event = event.ok_or_else(|| CliError::Usage(format!("no events in `{path}`")))?;
                serde_json::from_str(&event.raw).unwrap_or_default()
            }
            Some(id) => {
                let config = config
                    .as_ref()
                    .ok_or_else(|| CliError::Usage("no configuration, so the store is unknown".to_owned()))?;
                let id = EventId::parse(id).map_err(|error| CliError::Usage(error.to_string()))?;
                let client = Client::open(config, &Clock::system())?;
                let event: Option<Event> = client.one(request::Event { id: id.clone() })?;
                event
                    .ok_or_else(|| CliError::Usage(format!("no event `{id}`; `watchbell events list` lists events")))?
                    .value()
            }
        };
        if let Some(owner) = Loader::of(vec![root.clone()]).load().set.all().find(|rule| *rule.id() == self.id) {
            return Err(CliError::Usage(format!("rule `{}` already exists in {}", self.id, owner.file.display())));
        }
        let scaffold = rule::scaffold(&self.id, &event, self.from_event.is_some());
        let (rule_file, test_file) = (root.join(&scaffold.rule_file), root.join(&scaffold.test_file));
        for (file, text) in [(&rule_file, &scaffold.rule), (&test_file, &scaffold.tests)] {
            if file.exists() {
                return Err(CliError::Usage(format!("`{}` already exists", file.display())));
            }
            let written =
                file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(file, text));
            written.map_err(|error| CliError::Usage(format!("cannot write `{}`: {error}", file.display())))?;
            context.output.line(&file.display().to_string())?;
        }
        context.output.note(&format!(
            "\nedit the rule, then run: watchbell test {}\nor, while you edit: watchbell test --watch",
            test_file.display()
        ));
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Fmt {
    /// Rule files, or directories of rules; by default the configured rules
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Write nothing; exit with code 1 if a file is not formatted
    #[arg(long)]
    check: bool,
}

impl Fmt {
    pub(super) fn run(self, context: &Context) -> Result<(), CliError> {
        let roots = if self.paths.is_empty() { context.config()?.rules.roots } else { self.paths };
        let mut changed = 0;
        for file in rule::rule_files(&roots) {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| CliError::Usage(format!("cannot read `{}`: {error}", file.display())))?;
            let formatted = rule::format(&text);
            if formatted == text {
                continue;
            }
            changed += 1;
            context.output.line(&file.display().to_string())?;
            if !self.check {
                replace_file(&file, &formatted)?;
            }
        }
        match (self.check, changed) {
            (true, 1..) => Err(CliError::Findings(format!("{} not formatted", output::count(changed, "file")))),
            (false, 1..) => {
                context.output.note(&format!("{} formatted", output::count(changed, "file")));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Docs {
    /// Directory of rules; by default the configured rules
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// Directory to write the pages to
    #[arg(long, value_name = "DIR", default_value = "docs/rules")]
    output: PathBuf,
    /// Write nothing; exit with code 1 if a page is not up to date
    #[arg(long)]
    check: bool,
}

impl Docs {
    pub(super) fn run(self, context: &Context) -> Result<(), CliError> {
        let roots = match &self.rules {
            Some(root) => vec![root.clone()],
            None => context.config()?.rules.roots,
        };
        // As the authors wrote them, without local overrides and exceptions.
        let loaded = Loader::of(roots).without_builtin().without_tuning().load();
        context.output.diagnostics(&loaded.diagnostics);
        ensure_readable(&loaded.diagnostics)?;
        if any_error(&loaded.diagnostics) {
            return Err(CliError::Rules(problems("some rules do not load", &loaded.diagnostics)));
        }
        let mut documented: Vec<Documented> =
            loaded.set.all().map(|rule| document(rule, &loaded.set.context.roots)).collect();
        documented.sort_by(|one, other| one.path.cmp(&other.path));
        let pages = rule::documentation(&documented);
        let mut outdated = Vec::new();
        for (name, text) in &pages {
            let path = self.output.join(name);
            if std::fs::read_to_string(&path).is_ok_and(|current| current == *text) {
                continue;
            }
            outdated.push(path.clone());
            if !self.check {
                let written =
                    path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
                written.map_err(|error| CliError::Usage(format!("cannot write `{}`: {error}", path.display())))?;
            }
        }
        // Pages without a rule are reported, not deleted: the user may have written them.
        let mut orphans = Vec::new();
        collect_pages(&self.output, &mut orphans);
        orphans.retain(|path| !pages.iter().any(|(name, _)| self.output.join(name) == *path));
        for path in &outdated {
            context.output.line(&path.display().to_string())?;
        }
        for path in &orphans {
            context.output.warning(&format!("`{}` has no rule; delete it", path.display()));
        }
        let wrong = outdated.len() + orphans.len();
        if self.check && wrong > 0 {
            let pages = output::count(wrong as u64, "page");
            return Err(CliError::Findings(format!("{pages} out of date; `watchbell rules docs` updates them")));
        }
        if !self.check {
            let (rules, pages) = (documented.len() as u64, outdated.len() as u64);
            context.output.note(&format!(
                "{} documented, {} written",
                output::count(rules, "rule"),
                output::count(pages, "file")
            ));
        }
        Ok(())
    }
}

fn document(rule: &Arc<CompiledRule>, roots: &[PathBuf]) -> Documented {
    let relative = roots.iter().find_map(|root| rule.file.strip_prefix(root).ok()).unwrap_or(&rule.file);
    let tests = test_file::test_file(&rule.file);
    let read_events = |path: &Path| file::read(path).map(|contents| contents.events).map_err(|error| error.to_string());
    let cases = std::fs::read_to_string(&tests).map(|text| test_file::read(&tests, &text, &read_events).0);
    Documented {
        rule: Arc::clone(rule),
        path: relative.with_extension("").to_string_lossy().replace('\\', "/"),
        text: rule.text().as_deref().unwrap_or_default().to_owned(),
        cases: cases.unwrap_or_default().into_iter().map(|case| case.name).collect(),
    }
}

fn collect_pages(directory: &Path, pages: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect_pages(&path, pages);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
}

/// Settings of the Rhai language server and of VS Code.
const EDITOR_FILES: [(&str, &str); 3] = [
    ("Rhai.toml", "[source]\ninclude = [\"rules/**/*.rhai\", \"definitions/*.d.rhai\"]\n"),
    (".vscode/settings.json", "{\n  \"files.associations\": { \"*.rhai\": \"rhai\", \"*.test.yaml\": \"yaml\" }\n}\n"),
    (".vscode/extensions.json", "{\n  \"recommendations\": [\"rhaiscript.vscode-rhai\"]\n}\n"),
];

/// Writes the definitions, and editor settings that do not exist yet.
pub(super) fn definitions(context: &Context, directory: &Path) -> Result<(), CliError> {
    let write = |path: PathBuf, text: &str, replace: bool| -> Result<(), CliError> {
        if !replace && path.exists() {
            context.output.note(&format!("kept     {}", path.display()));
            return Ok(());
        }
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
        written.map_err(|error| CliError::Usage(format!("cannot write `{}`: {error}", path.display())))?;
        context.output.note(&format!("written  {}", path.display()));
        Ok(())
    };
    for (name, text) in rule::definitions() {
        write(directory.join("definitions").join(name), &text, true)?;
    }
    for (name, text) in EDITOR_FILES {
        write(directory.join(name), text, false)?;
    }
    Ok(())
}
