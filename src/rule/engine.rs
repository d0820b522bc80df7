//! The sandbox: a Rhai engine with limits, without clock, files, `eval` or `sleep`.
//!
//! The budget of a call is counted in operations, which is the same on every machine, so that a replay fails where the live
//! run did. The wall-clock limit behind it is a safety net for what operations do not see. Each thread that runs rules has an
//! engine of its own; compiled rules are shared.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rhai::packages::{Package, StandardPackage};
use rhai::{Dynamic, Engine, EvalAltResult, Module, ModuleResolver, OptimizationLevel, Position, Shared, Token};

use super::{
    bounds::{MAX_ITEMS, MAX_STRING, Watch},
    library::{self, NamedList},
    memory::{Memory, Moment, Place},
    meter::{Limits, Meter},
    natives::{self, CURRIED},
    pattern::Patterns,
    printer::Printer,
    problem::Exceeded,
    resources::Resources,
};
use crate::{event::Event, name::RuleId};

/// Variables at a time. With `MAX_STRING` and `MAX_CALL_LEVELS` it bounds the memory of a call to some hundred megabytes,
/// which the operations and the time allow nobody to reach in earnest.
const MAX_VARIABLES: usize = 64;
/// Functions inside functions. Rhai recurses on the machine's stack: see [`STACK`](super::stack::STACK).
const MAX_CALL_LEVELS: usize = 24;
/// Nesting of expressions, at top level and inside functions.
const MAX_EXPRESSION_DEPTH: usize = 48;

/// The constants that functions see, by name: those of the file, and `params`.
pub(super) type Constants = BTreeMap<String, Dynamic>;

/// Who is running, with what it can reach.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) rule: RuleId,
    pub(super) resources: Arc<Resources>,
    /// What its functions see beside their own variables.
    pub(super) constants: Arc<Constants>,
}

/// What the engine's callbacks know of the call that is going on.
#[derive(Debug)]
pub(super) struct Call {
    /// What it has used.
    meter: Meter,
    /// Who is running, with what it can reach.
    current: Mutex<Option<Arc<Running>>>,
    /// The lists that were looked into, with their versions, since it was last asked.
    lists: Mutex<BTreeMap<String, String>>,
    /// What rules remember.
    memory: Mutex<Memory>,
    /// The event of the call that goes on; none outside of events.
    about: Mutex<Option<About>>,
    /// What it captured.
    watch: Mutex<Watch>,
    /// What rules print.
    printer: Mutex<Printer>,
    /// Patterns that were compiled so far.
    pub(super) patterns: Patterns,
}

impl Call {
    /// Begins a call that may take so long; returns when that was. [`Call::end`] ends it.
    pub(super) fn begin(&self, limit: Duration) -> Duration {
        self.meter.begin(limit)
    }

    /// Ends a call: nothing of what it captured is left behind. Gives the limit that it exceeded, if it did: what it returned does not
    /// count then.
    pub(super) fn end(&self) -> Option<Exceeded> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).end();
        self.meter.exceeded()
    }

    /// An error if the call has taken longer than it may.
    pub(super) fn check_time(&self, position: Position) -> Result<(), Box<EvalAltResult>> {
        match self.meter.look_at_clock() {
            Some(exceeded) => Err(EvalAltResult::ErrorTerminated(exceeded.token().into(), position).into()),
            None => Ok(()),
        }
    }

    /// How long the call has taken that began then.
    pub(super) fn since(&self, begun: Duration) -> Duration {
        self.meter.now().saturating_sub(begun)
    }

    /// Looks at a variable that is about to be read.
    fn read(&self, variable: Option<&mut Dynamic>) -> Result<(), Box<EvalAltResult>> {
        let Some(variable) = variable else {
            return Ok(());
        };
        let operations = self.watch.lock().unwrap_or_else(PoisonError::into_inner).read(variable)?;
        match self.meter.charge(operations) {
            Some(exceeded) => Err(EvalAltResult::ErrorTerminated(exceeded.token().into(), Position::NONE).into()),
            None => Ok(()),
        }
    }

    /// What is to be logged of a line that the running rule prints.
    fn print(&self, text: &str) -> Option<(String, String)> {
        let rule = self.rule();
        let mut printer = self.printer.lock().unwrap_or_else(PoisonError::into_inner);
        printer.line(&rule, text, self.meter.now()).map(|line| (rule, line))
    }

    pub(super) fn set_current(&self, running: Arc<Running>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
    }

    /// A constant of the file whose code runs, which may be one that the rule imports; or `params`.
    fn constant(&self, source: Option<&str>, name: &str) -> Option<Dynamic> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let running = current.as_ref()?;
        match source.and_then(|source| running.resources.imports.constants(source)) {
            Some(imported) => imported.get(name).cloned(),
            None => running.constants.get(name).cloned(),
        }
    }

    /// What the running rule can reach.
    pub(super) fn resources(&self) -> Option<Arc<Resources>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|running| Arc::clone(&running.resources))
    }

    /// A named list, noted as used.
    pub(super) fn list(&self, name: &str) -> Result<NamedList, String> {
        let resources = self.resources().ok_or("no rule is running")?;
        let list = resources.lists.find(name)?.clone();
        let mut used = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if !used.contains_key(name) {
            used.insert(name.to_owned(), resources.lists.hash(name).unwrap_or_default().to_owned());
        }
        Ok(list)
    }

    /// What rules remember.
    pub(super) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the next call is about.
    pub(super) fn set_about(&self, about: Option<About>) {
        *self.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
    }

    /// Where and when the running function remembers.
    pub(super) fn remembering(&self) -> Result<Remembering, String> {
        let about = self.about.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let about = about.ok_or("only the functions of a rule that looks at events can remember")?;
        let rule = self.rule();
        Ok(Remembering { space: rule.clone(), rule, now: about.moment, writes: about.writes, event: about.event })
    }

    /// The lists that were looked into since this was last asked, with their versions.
    pub(super) fn take_lists(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut *self.lists.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn rule(&self) -> String {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or_else(String::new, |running| running.rule.to_string())
    }
}

/// What a call is about, as far as memory is concerned.
#[derive(Debug, Clone)]
pub(super) struct About {
    /// When the event happened.
    pub(super) moment: Moment,
    /// Whether the function may write to the memory.
    pub(super) writes: bool,
    /// The event itself, where the rule can expect something to follow it.
    pub(super) event: Option<Event>,
}

/// Where and when a function remembers.
#[derive(Debug)]
pub(super) struct Remembering {
    /// The rule, or what several share.
    pub(super) space: String,
    rule: String,
    /// The event.
    pub(super) now: Moment,
    /// Whether it may write.
    pub(super) writes: bool,
    /// The event, where the rule can expect something to follow it.
    pub(super) event: Option<Event>,
}

impl Remembering {
    /// Where it is noted, and by which rule.
    pub(super) fn place(&self) -> Place<'_> {
        Place { space: &self.space, rule: &self.rule }
    }

    /// The same in a memory that rules share.
    pub(super) fn shared(self, name: &str) -> Self {
        Self { space: format!("common/{name}"), ..self }
    }
}

/// The engine of a thread, and the handle to what its callbacks read.
pub(super) fn sandbox(limits: &Limits) -> (Engine, Arc<Call>) {
    let call = Arc::new(Call {
        meter: Meter::new(limits),
        current: Mutex::new(None),
        lists: Mutex::default(),
        memory: Mutex::default(),
        about: Mutex::default(),
        watch: Mutex::default(),
        printer: Mutex::default(),
        patterns: Patterns::default(),
    });
    let mut engine = Engine::new_raw();
    engine.register_global_module(StandardPackage::new().as_shared_module());
    engine.set_optimization_level(OptimizationLevel::Simple);
    engine.set_strict_variables(true);
    engine.set_max_call_levels(MAX_CALL_LEVELS);
    engine.set_max_variables(MAX_VARIABLES);
    engine.set_max_string_size(MAX_STRING);
    engine.set_max_array_size(MAX_ITEMS);
    engine.set_max_map_size(MAX_ITEMS);
    engine.set_max_modules(16);
    engine.set_max_functions(500);
    engine.set_max_expr_depths(MAX_EXPRESSION_DEPTH, MAX_EXPRESSION_DEPTH);
    engine.disable_symbol("eval");
    // It is no variable, so that no callback of Rhai's sees what it grows to.
    engine.disable_symbol("this");
    // What Rhai curries is copied with each copy of the function, in none of its limits: there is a bounded one under another name.
    #[expect(deprecated, reason = "not deprecated, says its author, but may change")]
    engine.on_parse_token(|token, _, _| match token {
        Token::Reserved(word) if *word == "curry" => Token::Identifier(Box::new(CURRIED.into())),
        other => other,
    });
    let watched = Arc::clone(&call);
    engine.on_progress(move |_| watched.meter.operation().map(|exceeded| Dynamic::from(exceeded.token())));
    // Rhai puts constants in their places when it compiles, except where something is asked of them (`LIMITS.contains(x)`), and
    // functions see no variables but their own: those places ask here. What has an index is a function's own variable.
    let constants = Arc::clone(&call);
    #[expect(deprecated, reason = "not deprecated, says its author, but may change")]
    engine.on_var(move |name, index, mut context| {
        if index == 0
            && let Some(constant) = constants.constant(context.source(), name)
        {
            return Ok(Some(constant));
        }
        constants.read(context.scope_mut().get_mut(name)).map(|()| None)
    });
    let printing = Arc::clone(&call);
    engine.on_print(move |text| {
        if let Some((rule, line)) = printing.print(text) {
            tracing::info!(rule, "print: {line}");
        }
    });
    let debugging = Arc::clone(&call);
    engine.on_debug(move |text, _, position| {
        if let Some((rule, line)) = debugging.print(text) {
            tracing::debug!(rule, line = position.line(), "debug: {line}");
        }
    });
    engine.set_module_resolver(CurrentImports(Arc::clone(&call)));
    natives::register(&mut engine);
    library::register(&mut engine, &call);
    (engine, call)
}

/// Resolves `import` to the files of the rule that is being called.
struct CurrentImports(Arc<Call>);

impl ModuleResolver for CurrentImports {
    fn resolve(
        &self,
        engine: &Engine,
        source: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Shared<Module>, Box<EvalAltResult>> {
        match self.0.resources() {
            Some(resources) => resources.imports.resolve(engine, source, path, position),
            None => Err(EvalAltResult::ErrorModuleNotFound(path.to_owned(), position).into()),
        }
    }
}
