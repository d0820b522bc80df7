//! `watchbell test`: runs the test files of rules.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use serde_json::json;
use watchbell::{
    config::{
        Config,
        diagnostic::{Diagnostic, any_error},
        settings::Place,
    },
    detect,
    model::event::IncomingEvent,
    replay::test_runner::{CaseResult, Mismatch, RuleResult, Suite},
    rule::{Case, CompiledRule, Loader, RuleKind, RuleOverride, RuleSet, RuleSources, WatchMode, Watcher, test_file},
    source::file,
};

use super::{CliError, Context, Format, ensure_readable, formats, junit, on_rule_thread, output, problems, runtime};

#[derive(Debug, Args)]
pub(super) struct TestArgs {
    /// Output format
    #[arg(long, value_name = "FORMAT", default_value = "human", value_parser = formats(&[Format::Junit, Format::Github]))]
    format: Format, // In place of the global argument of this id, whose value is this one's.
    /// Directories of rules, rule files or test files; by default the configured rules
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Only rules whose ID, or cases whose name, contains this text
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Run every rule on every case, to show unexpected alerts of other rules
    #[arg(long)]
    all_rules: bool,
    /// Apply overrides and exceptions
    #[arg(long)]
    tuned: bool,
    /// Minimum number of cases per rule; at least one must alert, and one must not
    #[arg(long, value_name = "NUMBER")]
    min_cases: Option<usize>,
    /// Run again whenever a file changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

/// Maximum depth of nested directories, so that a loop of symbolic links ends.
const MAX_DEPTH: usize = 16;

/// The results of one run.
struct Run {
    results: Vec<RuleResult>,
    diagnostics: Vec<Diagnostic>,
    took: Duration,
}

impl TestArgs {
    pub(super) fn run(self, context: &mut Context) -> Result<(), CliError> {
        let config = if self.paths.is_empty() || context.config.exists() { Some(context.config()?) } else { None };
        let (roots, only) = self.roots(config.as_ref())?;
        if !self.watch {
            return self.once(context, &roots, &only, config.as_ref());
        }
        let watched: Vec<PathBuf> = roots.clone();
        runtime()?.block_on(async {
            let mut watcher = Watcher::new(&watched, WatchMode::Auto);
            loop {
                if context.format == Format::Human {
                    context.output.raw("\x1b[2J\x1b[H")?;
                }
                // Taken before the files are read, so that no later change is missed.
                let seen = files(&watched);
                match self.once(context, &roots, &only, config.as_ref()) {
                    Ok(()) => {}
                    Err(CliError::Output(error)) => return Err(CliError::Output(error)),
                    Err(error) => context.output.error(&error.to_string(), None),
                }
                context.output.note("\nwatching for changes; press Ctrl-C to stop");
                while files(&watched) == seen {
                    watcher.changed().await;
                }
            }
        })
    }

    /// The directories that rules are loaded from, and the only rule files to test; if none, all are tested.
    fn roots(&self, config: Option<&Config>) -> Result<(Vec<PathBuf>, Vec<PathBuf>), CliError> {
        if self.paths.is_empty() {
            return Ok((config.map_or_else(Vec::new, |config| config.rules.roots.clone()), Vec::new()));
        }
        let mut roots: Vec<PathBuf> = Vec::new();
        let mut only = Vec::new();
        for path in &self.paths {
            if path.is_dir() {
                roots.push(path.clone());
                continue;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let rule = match name.strip_suffix(".test.yaml") {
                Some(stem) => path.with_file_name(format!("{stem}.rhai")),
                None => path.clone(),
            };
            if !rule.is_file() {
                let help = if name.ends_with(".rhai") || name.ends_with(".yaml") {
                    String::new()
                } else {
                    format!("; to select a rule by ID, use `watchbell test --filter {name}`")
                };
                return Err(CliError::Usage(format!("no rule file `{}`{help}", rule.display())));
            }
            let parent = rule.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
            // The rule may import a file from elsewhere in the configured directories.
            let configured = config.into_iter().flat_map(|config| &config.rules.roots);
            let root = configured.into_iter().find(|root| rule.starts_with(root)).map_or(parent, PathBuf::as_path);
            roots.push(root.to_owned());
            only.push(rule);
        }
        if only.len() < self.paths.len() {
            only.clear();
        }
        roots.sort();
        roots.dedup();
        Ok((roots, only))
    }

    fn once(
        &self,
        context: &Context,
        roots: &[PathBuf],
        only: &[PathBuf],
        config: Option<&Config>,
    ) -> Result<(), CliError> {
        let started = Instant::now();
        let loader = Loader::new(self.sources(roots, config)).without_builtin();
        let loaded = if self.tuned { loader } else { loader.without_tuning() }.load();
        let settings = config.map_or_else(detect::Settings::default, |config| config.detection.clone());
        let (results, mut diagnostics) = on_rule_thread(|| self.test(roots, only, config, &loaded.set, settings))?;
        let broken = any_error(&loaded.diagnostics);
        let rule_problems = problems("some rules do not load", &loaded.diagnostics);
        diagnostics.splice(0..0, loaded.diagnostics);
        let run = Run { results, diagnostics, took: started.elapsed() };
        show(context, &run)?;
        if broken {
            return Err(CliError::Rules(rule_problems));
        }
        let failed = run.results.iter().filter(|result| !result.passed()).count();
        if failed > 0 || any_error(&run.diagnostics) {
            let files = problems("some test files are invalid", &run.diagnostics);
            let rules = format!("{} failed", output::count(failed as u64, "rule"));
            return Err(CliError::Findings(if failed > 0 { rules } else { files }));
        }
        if run.results.iter().all(|result| result.cases.is_empty()) {
            let message = match &self.filter {
                Some(text) => format!("no rule or case matches `{text}`"),
                None => "no tests found; add `NAME.test.yaml` next to `NAME.rhai`".to_owned(),
            };
            return Err(CliError::Findings(message));
        }
        Ok(())
    }

    fn sources(&self, roots: &[PathBuf], config: Option<&Config>) -> RuleSources {
        let configured = config.map(|config| config.rules.clone()).unwrap_or_default();
        let overrides = if self.tuned { configured.overrides } else { Vec::new() };
        RuleSources { roots: roots.to_vec(), overrides, geoip: configured.geoip, ..RuleSources::default() }
    }

    fn test(
        &self,
        roots: &[PathBuf],
        only: &[PathBuf],
        config: Option<&Config>,
        set: &Arc<RuleSet>,
        settings: detect::Settings,
    ) -> (Vec<RuleResult>, Vec<Diagnostic>) {
        let suite = Suite { settings, others: self.all_rules.then(|| Arc::clone(set)), all: Arc::clone(set) };
        let mut diagnostics = Vec::new();
        let mut results = Vec::new();
        let mut known = Vec::new();
        let rules: Vec<&Arc<CompiledRule>> = set.all().filter(|rule| rule.kind == RuleKind::Detection).collect();
        for rule in rules {
            let tests = test_file::test_file(&rule.file);
            known.push(tests.clone());
            let wanted = only.is_empty() || only.iter().any(|file| same_file(file, &rule.file));
            let by_rule = self.filter.as_ref().is_none_or(|text| rule.id().as_str().contains(text.as_str()));
            if !wanted {
                continue;
            }
            let mut result = RuleResult {
                rule: rule.id().clone(),
                file: rule.file.clone(),
                tests: None,
                cases: Vec::new(),
                problems: Vec::new(),
            };
            let mut cases = Vec::new();
            let text = test_file::text_of(&tests);
            if !matches!(text, Ok(None)) {
                let (read, mut found) = match text {
                    Ok(text) => test_file::read(&tests, &text.unwrap_or_default(), &read_events),
                    Err(problems) => (Vec::new(), problems),
                };
                cases = read;
                if any_error(&found) {
                    result.problems.push("some of its tests are invalid".to_owned());
                }
                diagnostics.append(&mut found);
                result.tests = Some(tests.clone());
                cases.retain(|case| by_rule || self.filter.as_ref().is_some_and(|text| case.name.contains(text)));
            }
            if self.filter.is_some() && !by_rule && cases.is_empty() {
                continue;
            }
            let mut variants: BTreeMap<String, Result<Arc<CompiledRule>, String>> = BTreeMap::new();
            for case in &cases {
                let variant = match &case.params {
                    None => Ok(Arc::clone(rule)),
                    Some(params) => variants
                        .entry(params.to_string())
                        .or_insert_with(|| self.variant(roots, config, rule, params, &tests))
                        .clone(),
                };
                result.cases.push(match variant {
                    Ok(rule) => suite.run(&rule, case),
                    Err(problem) => CaseResult {
                        name: case.name.clone(),
                        line: case.line,
                        differences: vec![Mismatch {
                            what: "params".to_owned(),
                            expected: "valid parameters".to_owned(),
                            found: problem,
                        }],
                        read: Vec::new(),
                        took: Duration::ZERO,
                    },
                });
            }
            self.require_cases(&cases, &mut result);
            results.push(result);
        }
        if only.is_empty() && self.filter.is_none() {
            diagnostics.extend(orphans(roots, &known));
        }
        (results, diagnostics)
    }

    /// Loads the rule with other parameters.
    fn variant(
        &self,
        roots: &[PathBuf],
        config: Option<&Config>,
        rule: &CompiledRule,
        params: &serde_json::Value,
        tests: &Path,
    ) -> Result<Arc<CompiledRule>, String> {
        let place = Place { file: tests.into(), text: "".into(), span: 0..0 };
        let mut sources = self.sources(roots, config);
        sources.overrides.push(RuleOverride::of_params(rule.id(), params.clone(), place));
        let loaded = Loader::new(sources).without_builtin().without_tuning().load();
        let variant = loaded.set.all().find(|other| other.id() == rule.id()).cloned();
        variant.ok_or_else(|| loaded.diagnostics.first().map_or_else(String::new, |problem| problem.message.clone()))
    }

    fn require_cases(&self, cases: &[Case], result: &mut RuleResult) {
        let Some(minimum) = self.min_cases else {
            return;
        };
        let (alerting, quiet): (Vec<&Case>, Vec<&Case>) =
            cases.iter().partition(|case| case.matches.unwrap_or_else(|| case.expected.alerts()));
        if cases.len() < minimum {
            let count = output::count(cases.len() as u64, "case");
            result.problems.push(format!("{count} found, at least {minimum} required"));
        }
        if minimum > 0 && alerting.is_empty() {
            result.problems.push("no case that alerts".to_owned());
        }
        if minimum > 1 && quiet.is_empty() {
            result.problems.push("no case that does not alert; add a near miss that the rule must ignore".to_owned());
        }
    }
}

/// All files with their time of change and size. A different result means that a file has changed.
fn files(roots: &[PathBuf]) -> Vec<(PathBuf, Option<SystemTime>, u64)> {
    let mut found = Vec::new();
    let mut pending: Vec<(PathBuf, usize)> = roots.iter().map(|root| (root.clone(), 0)).collect();
    while let Some((path, depth)) = pending.pop() {
        let Ok(metadata) = std::fs::metadata(&path) else {
            continue;
        };
        if metadata.is_dir() && depth < MAX_DEPTH {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(entries.map(|entry| (entry.path(), depth + 1)));
        } else if metadata.is_file() {
            found.push((path, metadata.modified().ok(), metadata.len()));
        }
    }
    found.sort();
    found
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

fn read_events(path: &Path) -> Result<Vec<IncomingEvent>, String> {
    let contents = file::read(path).map_err(|error| error.to_string())?;
    match contents.broken {
        Some(reason) => Err(reason),
        None if contents.events.is_empty() => Err("the file has no events".to_owned()),
        None => Ok(contents.events),
    }
}

/// Test files without a rule: misspelt or left behind.
fn orphans(roots: &[PathBuf], known: &[PathBuf]) -> Vec<Diagnostic> {
    watchbell::rule::test_files(roots)
        .into_iter()
        .filter(|file| !known.iter().any(|known| same_file(known, file)))
        .map(|file| {
            let stem = file.file_name().unwrap_or_default().to_string_lossy().replace(".test.yaml", ".rhai");
            let message = format!("no rule `{stem}` that these tests can run");
            Diagnostic::error("E403", file, message)
        })
        .collect()
}

fn show(context: &Context, run: &Run) -> Result<(), CliError> {
    match context.format {
        Format::Json => {
            let passed = run.results.iter().all(RuleResult::passed) && !any_error(&run.diagnostics);
            context.output.json(&json!({ "passed": passed, "rules": run.results, "diagnostics": run.diagnostics }))?;
        }
        Format::Junit => context.output.raw(&as_junit(run))?,
        Format::Github => context.output.raw(&github(run))?,
        _ => {
            context.output.diagnostics(&run.diagnostics);
            ensure_readable(&run.diagnostics)?;
            human(context, run)?;
        }
    }
    Ok(())
}

fn human(context: &Context, run: &Run) -> Result<(), CliError> {
    let out = &context.output;
    let width = run.results.iter().map(|result| result.rule.as_str().len()).max().unwrap_or(0);
    for result in &run.results {
        let cases = output::count(result.cases.len() as u64, "case");
        let word = match (result.passed(), result.tests.is_some()) {
            (false, _) => "FAIL",
            (true, true) => "ok",
            (true, false) => "?",
        };
        let what = if result.tests.is_some() { cases } else { "no tests".to_owned() };
        out.line(&format!("{word:<5} {:<width$}  {what}", result.rule.as_str()))?;
        for problem in &result.problems {
            out.line(&format!("      {problem}"))?;
        }
        for case in result.cases.iter().filter(|case| !case.differences.is_empty()) {
            let file = result.tests.as_ref().unwrap_or(&result.file);
            out.line(&format!("\n      {} ({}:{})", output::printable(&case.name), file.display(), case.line))?;
            for line in explained(case) {
                out.line(&format!("        {}", output::printable(&line)))?;
            }
            out.line("")?;
        }
    }
    let all: Vec<&CaseResult> = run.results.iter().flat_map(|result| &result.cases).collect();
    let failed = all.iter().filter(|case| !case.differences.is_empty()).count();
    out.line(&format!(
        "\n{} of {}, {failed} failed, in {}",
        output::count(all.len() as u64, "case"),
        output::count(run.results.len() as u64, "rule"),
        watchbell::model::time::show_duration(run.took)
    ))?;
    Ok(())
}

/// The differences of a failed case, and the values that the rule saw.
fn explained(case: &CaseResult) -> Vec<String> {
    let mut lines = Vec::new();
    for difference in &case.differences {
        lines.push(format!("{}:", difference.what));
        lines.push(format!("  - expected  {}", difference.expected));
        lines.push(format!("  + found     {}", difference.found));
    }
    if !case.read.is_empty() {
        lines.push("what the rule saw:".to_owned());
        let width = case.read.iter().map(|read| read.text.chars().count()).max().unwrap_or(0).min(60);
        for read in &case.read {
            let line = if read.line > 0 { format!("{:>4}  ", read.line) } else { String::new() };
            lines.push(format!("  {line}{:<width$}  {}", read.text, read.value));
        }
    }
    lines
}

fn as_junit(run: &Run) -> String {
    let of_rule = |result: &RuleResult| {
        let class = result.rule.to_string();
        let case = |case: &CaseResult| {
            let what = case.differences.first().map(|difference| difference.what.clone());
            let problem = what.map(|what| junit::Problem::Failure(what, explained(case).join("\n")));
            junit::Case { class: class.clone(), name: case.name.clone(), took: Some(case.took), problem, output: None }
        };
        let missing = |problem: &String| {
            let problem = Some(junit::Problem::Failure(problem.clone(), String::new()));
            junit::Case { class: class.clone(), name: "cases".to_owned(), problem, ..junit::Case::default() }
        };
        let cases = result.cases.iter().map(case).chain(result.problems.iter().map(missing)).collect();
        junit::Suite { name: class.clone(), file: Some(result.file.display().to_string()), cases }
    };
    let of_file = |diagnostic: &Diagnostic| {
        let file = diagnostic.file.display().to_string();
        let problem = Some(junit::Problem::Error(diagnostic.one_line()));
        let case = junit::Case { class: file.clone(), name: "load".to_owned(), problem, ..junit::Case::default() };
        junit::Suite { name: file.clone(), file: Some(file), cases: vec![case] }
    };
    let errors = run.diagnostics.iter().filter(|problem| any_error(std::slice::from_ref(problem)));
    let suites: Vec<junit::Suite> = run.results.iter().map(of_rule).chain(errors.map(of_file)).collect();
    junit::document(&suites)
}

fn github(run: &Run) -> String {
    let mut text = output::annotations(&run.diagnostics);
    for result in &run.results {
        let file = result.tests.as_ref().unwrap_or(&result.file);
        for case in result.cases.iter().filter(|case| !case.differences.is_empty()) {
            let title = format!("{}: {}", result.rule, case.name);
            text.push_str(&output::annotation("error", file, Some(case.line), &title, &explained(case).join("\n")));
        }
        for problem in &result.problems {
            text.push_str(&output::annotation("error", file, None, result.rule.as_str(), problem));
        }
    }
    text
}
