//! `watchbell rules new|fmt|docs|definitions`: what helps in writing rules.

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

use super::{CliError, Context, output, problems, readable, replace_file};

#[derive(Debug, Args)]
pub(super) struct New {
    /// Its id, such as `team.admin.what_happened`: the last part names the file, the one before it the folder
    id: RuleId,
    /// Begin from this stored event, or from the first event of this file; personal data is replaced
    #[arg(long, value_name = "ID|FILE")]
    from_event: Option<String>,
    /// The directory to write below; by default the first of the configuration's rules
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
                let found = file::read(Path::new(path))
                    .map_err(|error| CliError::Usage(format!("`{path}` cannot be read: {error}")))?;
                let event = found.events.first();
                let event = event.ok_or_else(|| CliError::Usage(format!("`{path}` holds no events")))?;
                serde_json::from_str(&event.raw).unwrap_or_default()
            }
            Some(id) => {
                let config = config
                    .as_ref()
                    .ok_or_else(|| CliError::Usage("there is no configuration that names a store".to_owned()))?;
                let id = EventId::parse(id).map_err(|error| CliError::Usage(error.to_string()))?;
                let client = Client::open(config, &Clock::system())?;
                let event: Option<Event> = client.one(request::Event { id: id.clone() })?;
                event
                    .ok_or_else(|| {
                        CliError::Usage(format!("there is no event `{id}`: `watchbell events list` lists them"))
                    })?
                    .value()
            }
        };
        if let Some(owner) = Loader::of(vec![root.clone()]).load().set.all().find(|rule| *rule.id() == self.id) {
            return Err(CliError::Usage(format!("there is a rule `{}` already: {}", self.id, owner.file.display())));
        }
        let scaffold = rule::scaffold(&self.id, &event);
        let (rule_file, test_file) = (root.join(&scaffold.rule_file), root.join(&scaffold.test_file));
        for (file, text) in [(&rule_file, &scaffold.rule), (&test_file, &scaffold.tests)] {
            if file.exists() {
                return Err(CliError::Usage(format!("`{}` is there already: nothing is overwritten", file.display())));
            }
            let written =
                file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(file, text));
            written.map_err(|error| CliError::Usage(format!("`{}` cannot be written: {error}", file.display())))?;
            context.output.line(&file.display().to_string())?;
        }
        context.output.note(&format!(
            "\nedit it, then: watchbell test {}\nwhile you do: watchbell test --watch",
            test_file.display()
        ));
        Ok(())
    }
}

#[derive(Debug, Args)]
pub(super) struct Fmt {
    /// Directories of rules or rule files; by default the rules of the configuration
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Write nothing; exit code 1 if a file is not formatted
    #[arg(long)]
    check: bool,
}

impl Fmt {
    pub(super) fn run(self, context: &Context) -> Result<(), CliError> {
        let roots = if self.paths.is_empty() { context.config()?.rules.roots } else { self.paths };
        let mut changed = 0;
        for file in rule::rule_files(&roots) {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| CliError::Usage(format!("`{}` cannot be read: {error}", file.display())))?;
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
    /// The directory of the rules; by default those of the configuration
    #[arg(long, value_name = "DIR")]
    rules: Option<PathBuf>,
    /// Where the pages are written
    #[arg(long, value_name = "DIR", default_value = "docs/rules")]
    output: PathBuf,
    /// Write nothing; exit code 1 if a page is not as it would be written
    #[arg(long)]
    check: bool,
}

impl Docs {
    pub(super) fn run(self, context: &Context) -> Result<(), CliError> {
        let roots = match &self.rules {
            Some(root) => vec![root.clone()],
            None => context.config()?.rules.roots,
        };
        // As their authors wrote them: what is tuned is not theirs.
        let loaded = Loader::of(roots).without_builtin().without_tuning().load();
        context.output.diagnostics(&loaded.diagnostics);
        readable(&loaded.diagnostics)?;
        if any_error(&loaded.diagnostics) {
            return Err(CliError::Rules(problems("rules do not load", &loaded.diagnostics)));
        }
        let mut documented: Vec<Documented> = loaded.set.all().map(|rule| document(rule, &loaded.set.roots)).collect();
        documented.sort_by(|one, other| one.path.cmp(&other.path));
        let pages = rule::documentation(&documented);
        let mut differ = Vec::new();
        for (name, text) in &pages {
            let path = self.output.join(name);
            if std::fs::read_to_string(&path).is_ok_and(|there| there == *text) {
                continue;
            }
            differ.push(path.clone());
            if !self.check {
                let written =
                    path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
                written.map_err(|error| CliError::Usage(format!("`{}` cannot be written: {error}", path.display())))?;
            }
        }
        // Pages of rules that are gone are told, not deleted: they may be somebody's own.
        let mut left = Vec::new();
        pages_below(&self.output, &mut left);
        left.retain(|path| !pages.iter().any(|(name, _)| self.output.join(name) == *path));
        for path in &differ {
            context.output.line(&path.display().to_string())?;
        }
        for path in &left {
            context.output.warning(&format!("`{}` belongs to no rule: delete it", path.display()));
        }
        let wrong = differ.len() + left.len();
        if self.check && wrong > 0 {
            let pages = output::count(wrong as u64, "page");
            return Err(CliError::Findings(format!("{pages} not current: `watchbell rules docs` writes them")));
        }
        if !self.check {
            let (rules, pages) = (documented.len() as u64, differ.len() as u64);
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
    let below = roots.iter().find_map(|root| rule.file.strip_prefix(root).ok()).unwrap_or(&rule.file);
    let tests = test_file::test_file(&rule.file);
    let read_events = |path: &Path| file::read(path).map(|found| found.events).map_err(|error| error.to_string());
    let cases = std::fs::read_to_string(&tests).map(|text| test_file::read(&tests, &text, &read_events).0);
    Documented {
        rule: Arc::clone(rule),
        path: below.with_extension("").to_string_lossy().replace('\\', "/"),
        text: rule.text().as_deref().unwrap_or_default().to_owned(),
        cases: cases.unwrap_or_default().into_iter().map(|case| case.name).collect(),
    }
}

fn pages_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            pages_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// What editors read: the language server's own file, and VS Code's.
const EDITOR_FILES: [(&str, &str); 3] = [
    ("Rhai.toml", "[source]\ninclude = [\"rules/**/*.rhai\", \"definitions/*.d.rhai\"]\n"),
    (".vscode/settings.json", "{\n  \"files.associations\": { \"*.rhai\": \"rhai\", \"*.test.yaml\": \"yaml\" }\n}\n"),
    (".vscode/extensions.json", "{\n  \"recommendations\": [\"rhaiscript.vscode-rhai\"]\n}\n"),
];

/// Writes the definitions, and settings for editors where there are none yet.
pub(super) fn definitions(context: &Context, directory: &Path) -> Result<(), CliError> {
    let write = |path: PathBuf, text: &str, replace: bool| -> Result<(), CliError> {
        if !replace && path.exists() {
            context.output.note(&format!("kept     {}", path.display()));
            return Ok(());
        }
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
        written.map_err(|error| CliError::Usage(format!("`{}` cannot be written: {error}", path.display())))?;
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
