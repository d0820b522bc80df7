//! Compiling a rule file: parse it, run its top level once, read `RULE`, check the functions, and compile again with
//! the constants known.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rhai::{AST, ASTNode, Dynamic, Engine, Expr, ImmutableString, Map, OptimizationLevel, Scope, Stmt};

use crate::rule::{
    manifest::{
        metadata::{self, MOST_PROBLEMS, Metadata, Places},
        overrides::{self, Overrides, RuleOverride},
        problem,
    },
    script::{
        bounds::{MAX_DEPTH, Weight},
        compiled::{CompiledRule, EXPIRED, OPTIONAL_FUNCTIONS, RuleKind},
        conditions::{self, Conditions},
        cost::Cost,
        fold,
        host::{Call, CurrentRun},
        import::Constants,
        meter::Limits,
        resources::Resources,
        sandbox,
        scan::{self, Scanned, called, lists, scan, span},
        view,
    },
    version,
};
use crate::{
    config::diagnostic::{Diagnostic, any_error, nearest},
    model::{name::RuleId, time},
};

/// The result of compiling a file.
pub(in crate::rule) enum Compiled {
    Rule(Box<CompiledRule>),
    /// A file without `RULE`, for other files to import.
    LibraryFile,
    /// A file with errors.
    Broken,
}

/// Compiles rule files. Each load uses one compiler; files do not affect each other.
pub(in crate::rule) struct Compiler {
    engine: Engine,
    call: Arc<Call>,
    resources: Arc<Resources>,
    /// Parsed imports, or `None` for a file that did not parse.
    parsed: HashMap<PathBuf, Option<Arc<(Scanned, AST)>>>,
}

/// Time limit for running a file's top level. The configured limits for calls do not apply to it.
const LOAD_TIME: Duration = Duration::from_secs(1);

/// Maximum number of variables and constants in a file, far more than any real rule has.
const MAX_DECLARATIONS: usize = 2_000;

impl Compiler {
    pub(in crate::rule) fn new(resources: Arc<Resources>) -> Self {
        let (engine, call) = sandbox::sandbox(&Limits::default());
        Self { engine, call, resources, parsed: HashMap::new() }
    }

    /// Returns the engine, for compiling expressions other than rules.
    pub(in crate::rule) fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    /// Compiles one file and applies the overrides that select its rule.
    pub(in crate::rule) fn compile(
        &mut self,
        file: &Path,
        text: &Arc<str>,
        overrides: &Overrides,
    ) -> (Compiled, Vec<Diagnostic>) {
        // For each name that it reads, Rhai searches all variables.
        let words = text.split(|character: char| !character.is_alphanumeric() && character != '_');
        if words.filter(|word| ["let", "const"].contains(word)).count() > MAX_DECLARATIONS {
            let message = format!("the file has more than {MAX_DECLARATIONS} variables and constants");
            return (Compiled::Broken, vec![Diagnostic::error("E218", file, message)]);
        }
        // The first pass is unoptimized, to keep the literal's positions, and lenient, because `params` is unknown.
        self.engine.set_optimization_level(OptimizationLevel::None);
        self.engine.set_strict_variables(false);
        let parsed = self.engine.compile(text);
        self.engine.set_optimization_level(OptimizationLevel::Simple);
        let first = match parsed {
            Ok(ast) if fold::is_too_large(&ast, &Scope::new()) => {
                return (Compiled::Broken, vec![constants_too_large(file)]);
            }
            Ok(ast) if !declares_rule(&ast) => return library_file(&ast, file, text),
            Ok(ast) => ast,
            Err(error) => return (Compiled::Broken, vec![problem::parse_error(&error, file, text)]),
        };
        match self.rule(file, text, first, overrides) {
            Ok((rule, warnings)) => (Compiled::Rule(Box::new(rule)), warnings),
            Err(diagnostics) => (Compiled::Broken, diagnostics),
        }
    }

    fn rule(
        &mut self,
        file: &Path,
        text: &Arc<str>,
        first: AST,
        overrides: &Overrides,
    ) -> Result<(CompiledRule, Vec<Diagnostic>), Vec<Diagnostic>> {
        let one = |diagnostic| vec![diagnostic];
        let places = places(&first, text);

        self.call.begin(LOAD_TIME);
        let resources = Arc::clone(&self.resources);
        self.call.set_current(Arc::new(CurrentRun { rule: placeholder_id(), resources, constants: Arc::default() }));
        let mut run = first.clone();
        run.set_source(file.to_string_lossy().as_ref());
        let mut scope = Scope::new();
        let ran = self.engine.run_ast_with_scope(&mut scope, &run);
        self.call.end();
        ran.map_err(|error| one(problem::load_error(&error, file, text)))?;
        if let Some((name, ..)) = scope.iter_raw().find(|(_, _, value)| Weight::of(value).check().is_err()) {
            let message = format!("`{name}` is too large or nests more than {MAX_DEPTH} levels deep");
            return Err(one(Diagnostic::error("E218", file, message).at(text, declared(&first, text, name))));
        }
        let Some(map) = scope.get_value::<Map>("RULE") else {
            let help = "write `const RULE = #{ id: \"…\", title: \"…\", severity: \"…\" };`";
            return Err(one(Diagnostic::error("E205", file, "`RULE` must be a map").at(text, places.whole).help(help)));
        };
        let (metadata, mut diagnostics) = metadata::read(&map, &places, file, text);
        let (kind, functions) = match functions(&first, file, text, &places) {
            (Some(kind), functions, mut problems) => {
                diagnostics.append(&mut problems);
                (kind, functions)
            }
            (None, _, mut problems) => {
                diagnostics.append(&mut problems);
                return Err(diagnostics);
            }
        };
        let Some(mut metadata) = metadata else {
            return Err(diagnostics);
        };
        let changes: Vec<&RuleOverride> =
            overrides.iter().filter(|change| change.selector.selects(&metadata)).collect();
        diagnostics.append(&mut overrides::apply(&mut metadata, &changes));

        // Functions may use the file's own constants and `params`.
        let mut constants = Scope::new();
        let mut known = Constants::new();
        known.insert("params".to_owned(), view::share(metadata.params.clone().into()));
        constants.push_constant("params", metadata.params.clone());
        for (name, _, mut value) in scope.iter() {
            if name == "RULE" {
                value = effective(&map, &metadata);
            }
            known.insert(name.to_owned(), view::share(value.clone()));
            constants.push_constant(name.to_owned(), value);
        }
        if fold::is_too_large(&first, &constants) {
            diagnostics.push(constants_too_large(file));
            return Err(diagnostics);
        }
        self.engine.set_strict_variables(true);
        let mut ast = self.engine.compile_with_scope(&constants, text).map_err(|error| {
            let mut all = diagnostics.clone();
            all.push(problem::parse_error(&error, file, text));
            all
        })?;
        ast.set_source(file.to_string_lossy().as_ref());
        if let Some(position) = called(&first, "expect")
            && !functions.iter().any(|function| function == EXPIRED)
        {
            let message = "the rule calls `expect` but has no `fn expired(key, event)`";
            let help = "add `fn expired(key, event) { true }`, which returns true if a missed deadline is a match";
            diagnostics
                .push(Diagnostic::error("E216", file, message).at(text, problem::span(text, position)).help(help));
        }
        let unknown = lists(&first)
            .into_iter()
            .filter_map(|(name, position)| Some((self.resources.lists.find(&name).err()?, position)));
        for (problem, position) in unknown.take(MOST_PROBLEMS) {
            diagnostics.push(Diagnostic::error("E212", file, problem).at(text, problem::span(text, position)));
        }
        if any_error(&diagnostics) {
            return Err(diagnostics);
        }
        // The functions of a library use its constants, which are not known here.
        self.engine.set_strict_variables(false);
        let traits = self.traits(&first, file);
        let given = metadata
            .params
            .values()
            .filter_map(|value| value.read_lock::<ImmutableString>().and_then(|text| span(&text)));
        let reach = given.max().unwrap_or_default().max(traits.reach).max(metadata.dedup_period).max(metadata.window);
        let hash = version::of_content(text, &traits.texts, &metadata).to_string();
        let scripts: Vec<&AST> = std::iter::once(&first).chain(traits.scripts.iter().map(|parsed| &parsed.1)).collect();
        let reads = scan::of_rule(&scripts, &metadata);
        // A rule with `on` runs on matches, not on raw events.
        let conditions =
            if metadata.on.is_some() { Conditions::default() } else { conditions::conditions(&ast, &known) };
        let running = CurrentRun {
            rule: metadata.id.clone(),
            resources: Arc::clone(&self.resources),
            constants: Arc::new(known),
        };
        let rule = CompiledRule {
            running: Arc::new(running),
            conditions,
            reads,
            metadata,
            kind,
            file: file.to_owned(),
            hash,
            ast,
            places,
            remembers: traits.remembers,
            shares: traits.shares,
            reach,
            expires: functions.iter().any(|function| function == EXPIRED),
            assigns_properties: traits.assigns,
            imports: !traits.texts.is_empty(),
            functions,
            cost: Cost::default(),
        };
        Ok((rule, diagnostics))
    }

    /// Collects the traits of a file and all files that it imports, directly or not.
    fn traits(&mut self, ast: &AST, file: &Path) -> Traits {
        let Scanned { assigns, remembers, shares, reach, imports, imports_any } = scan(ast);
        let mut traits = Traits { assigns, remembers, shares, reach, ..Traits::default() };
        let mut seen: Vec<PathBuf> = Vec::new();
        let mut pending: Vec<(PathBuf, String)> = imports.into_iter().map(|path| (file.to_owned(), path)).collect();
        if imports_any {
            traits.texts.extend(self.resources.imports.texts().cloned());
        }
        while let Some((from, path)) = pending.pop() {
            let Some(import) = self.resources.imports.find(Some(&from.to_string_lossy()), &path).cloned() else {
                continue;
            };
            if seen.contains(&import) {
                continue;
            }
            seen.push(import.clone());
            if let Some(text) = self.resources.imports.text(&import)
                && let Some(parsed) = self.parsed(&import, &text)
            {
                let scanned = &parsed.0;
                traits.assigns |= scanned.assigns;
                traits.remembers |= scanned.remembers;
                traits.shares |= scanned.shares;
                traits.reach = traits.reach.max(scanned.reach);
                if scanned.imports_any {
                    traits.texts.extend(self.resources.imports.texts().cloned());
                }
                pending.extend(scanned.imports.iter().map(|path| (import.clone(), path.clone())));
                traits.texts.push(text);
                traits.scripts.push(parsed);
            }
        }
        traits
    }

    fn parsed(&mut self, file: &Path, text: &str) -> Option<Arc<(Scanned, AST)>> {
        if let Some(parsed) = self.parsed.get(file) {
            return parsed.clone();
        }
        self.engine.set_optimization_level(OptimizationLevel::None);
        let ast = self.engine.compile(text).ok();
        self.engine.set_optimization_level(OptimizationLevel::Simple);
        let parsed = ast.map(|ast| Arc::new((scan(&ast), ast)));
        self.parsed.insert(file.to_owned(), parsed.clone());
        parsed
    }
}

fn constants_too_large(file: &Path) -> Diagnostic {
    let message = "the file's constants are too large, because Rhai copies each constant to every place that names it";
    Diagnostic::error("E218", file, message)
}

/// Returns `RULE` as the functions see it: with the overrides applied, so that titles show the effective values.
fn effective(map: &Map, metadata: &Metadata) -> Dynamic {
    let mut map = map.clone();
    let duration = |duration: Duration| Dynamic::from(time::show_duration(duration));
    map.insert("threshold".into(), i64::from(metadata.threshold).into());
    map.insert("window".into(), duration(metadata.window));
    map.insert("dedup_period".into(), duration(metadata.dedup_period));
    map.insert("severity".into(), metadata.severity.as_str().into());
    map.into()
}

/// Whether a file declares `RULE`. All other files are libraries.
fn declares_rule(ast: &AST) -> bool {
    ast.statements().iter().any(|statement| match statement {
        Stmt::Var(declaration, ..) => declaration.0.name == "RULE",
        _ => false,
    })
}

/// Handles a file without `RULE`: a library, unless it was probably meant to be a rule.
fn library_file(ast: &AST, file: &Path, text: &Arc<str>) -> (Compiled, Vec<Diagnostic>) {
    let mut functions = ast.iter_functions();
    if let Some(function) = functions
        .find(|function| function.params.len() == 1 && ["rule", "check", "check_agent"].contains(&function.name))
    {
        let message = format!("the file has `fn {}` but no `const RULE`", function.name);
        let help = "write `const RULE = #{ id: \"…\", title: \"…\", severity: \"…\" };`";
        let at = function_span(text, function.name);
        return (Compiled::Broken, vec![Diagnostic::error("E211", file, message).at(text, at).help(help)]);
    }
    let has_constants = ast.statements().iter().any(|statement| matches!(statement, Stmt::Var(..)));
    let useless = ast.iter_functions().next().is_none() && !has_constants;
    let warning = || Diagnostic::warning("W202", file, "the file is not a rule and has nothing to import");
    (Compiled::LibraryFile, if useless { vec![warning()] } else { Vec::new() })
}

/// Properties of a file and all files that it imports.
#[derive(Default)]
struct Traits {
    /// The texts of all imported files.
    texts: Vec<Arc<str>>,
    /// The imported files, parsed.
    scripts: Vec<Arc<(Scanned, AST)>>,
    assigns: bool,
    remembers: bool,
    shares: bool,
    reach: Duration,
}

/// Finds the spans of `RULE` and its keys.
fn places(ast: &AST, text: &str) -> Places {
    let mut places = Places { whole: 0..0, ..Places::default() };
    for statement in ast.statements() {
        let Stmt::Var(declaration, _, _) = statement else {
            continue;
        };
        if declaration.0.name.as_str() != "RULE" {
            continue;
        }
        places.whole = problem::span(text, declaration.0.pos);
        if let Expr::Map(entries, _) = &declaration.1 {
            for (key, value) in &entries.0 {
                let spans = (problem::span(text, key.pos), problem::span(text, value.start_position()));
                places.keys.insert(key.name.to_string(), spans);
                let mut texts = Vec::new();
                value.walk(&mut Vec::new(), &mut |nodes| {
                    if let Some(ASTNode::Expr(Expr::StringConstant(written, position))) = nodes.last() {
                        texts.push((written.to_string(), problem::span(text, *position)));
                    }
                    true
                });
                places.texts.insert(key.name.to_string(), texts);
            }
        }
    }
    places
}

/// Determines the kind of rule from its functions. Returns the kind, the optional functions, and all problems.
fn functions(
    ast: &AST,
    file: &Path,
    text: &Arc<str>,
    places: &Places,
) -> (Option<RuleKind>, Vec<String>, Vec<Diagnostic>) {
    let mut diagnostics = Vec::new();
    let mut names = Vec::new();
    let mut kinds = Vec::new();
    for function in ast.iter_functions() {
        let at = function_span(text, function.name);
        let kind = match function.name {
            "rule" => Some(RuleKind::Detection),
            "check" => Some(RuleKind::CheckSource),
            "check_agent" => Some(RuleKind::CheckAgent),
            _ => None,
        };
        let (wanted, shape) = if function.name == EXPIRED { (2, "2 parameters") } else { (1, "1 parameter") };
        let ours = kind.is_some() || function.name == EXPIRED || OPTIONAL_FUNCTIONS.contains(&function.name);
        if ours && function.params.len() != wanted {
            let name = function.name;
            let message = format!("`fn {name}` must have {shape}, found {}", function.params.len());
            let parameters = if wanted == 2 { "key, event" } else { "event" };
            let help = format!("write `fn {name}({parameters})`");
            diagnostics.push(Diagnostic::error("E207", file, message).at(text, at).help(help));
            continue;
        }
        if let Some(kind) = kind {
            kinds.push(kind);
        } else if ours {
            names.push(function.name.to_owned());
        } else if function.params.len() == 1
            && let Some(near) = nearest(function.name, OPTIONAL_FUNCTIONS.iter().copied().chain(["rule"]))
            && !text.replace(&format!("fn {}(", function.name), "").contains(&format!("{}(", function.name))
        {
            let message = format!("`fn {}` is never called", function.name);
            let help = format!("did you mean `fn {near}`?");
            diagnostics.push(Diagnostic::warning("W201", file, message).at(text, at).help(help));
        }
    }
    let kind = match kinds.as_slice() {
        [kind] => Some(*kind),
        [] => {
            let all: Vec<&str> = ast.iter_functions().map(|function| function.name).collect();
            let near = all.iter().find(|name| nearest(name, ["rule", "check", "check_agent"]).is_some());
            let help = near.map_or_else(
                || "add `fn rule(event) { … }`, which returns true for the events to alert on".to_owned(),
                |near| {
                    format!(
                        "did you mean `fn {}` instead of `fn {near}`?",
                        nearest(near, ["rule", "check", "check_agent"]).unwrap_or("rule")
                    )
                },
            );
            if !any_error(&diagnostics) {
                diagnostics.push(
                    Diagnostic::error("E206", file, "the file has `RULE` but no `fn rule(event)`")
                        .at(text, places.whole.clone())
                        .help(help),
                );
            }
            None
        }
        _ => {
            let message = "a file must have only one of `fn rule`, `fn check` and `fn check_agent`";
            let help = "move the others to files of their own, each with its own `RULE`";
            diagnostics.push(Diagnostic::error("E208", file, message).at(text, places.whole.clone()).help(help));
            None
        }
    };
    (kind, names, diagnostics)
}

pub(in crate::rule) fn function_span(text: &str, name: &str) -> std::ops::Range<usize> {
    let span = text.match_indices("fn ").find_map(|(index, _)| {
        let rest = text.get(index + 3..)?;
        let start = index + 3 + (rest.len() - rest.trim_start().len());
        text.get(start..)?.starts_with(name).then_some(start..start + name.len())
    });
    span.unwrap_or(0..0)
}

/// Returns the span where a variable or constant of the top level is first declared.
fn declared(ast: &AST, text: &str, wanted: &str) -> std::ops::Range<usize> {
    let position = ast.statements().iter().find_map(|statement| match statement {
        Stmt::Var(parts, ..) if parts.0.name == wanted => Some(parts.0.pos),
        _ => None,
    });
    position.map_or(0..0, |position| problem::span(text, position))
}

fn placeholder_id() -> RuleId {
    RuleId::parse("rule.loading").unwrap_or_else(|_| unreachable!("a constant dotted name"))
}
