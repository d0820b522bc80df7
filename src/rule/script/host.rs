//! The context of the current call: which rule runs, what the call has used, and what it can access.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use regex::Regex;
use rhai::{Dynamic, EvalAltResult, Position};

use crate::model::{event::Event, name::RuleId};
use crate::rule::{
    manifest::{
        pattern::{BYTES_OF_A_GLOB, Patterns},
        problem::Exceeded,
    },
    script::{
        bounds::Watch,
        import::Constants,
        lists::NamedList,
        memory::{Memory, Moment, Place},
        meter::{Limits, Meter},
        printer::Printer,
        resources::Resources,
    },
};

/// Bytes of text times bytes of a regular expression that one operation pays for.
const STEPS_OF_AN_OPERATION: usize = 256 * 1024;

/// The running rule and what it can access.
#[derive(Debug)]
pub(in crate::rule) struct CurrentRun {
    pub(in crate::rule) rule: RuleId,
    pub(in crate::rule) resources: Arc<Resources>,
    /// Constants that its functions see in addition to their own variables.
    pub(in crate::rule) constants: Arc<Constants>,
}

/// The state that the engine's callbacks share for the current call.
#[derive(Debug)]
pub(in crate::rule) struct Call {
    meter: Meter,
    current: Mutex<Option<Arc<CurrentRun>>>,
    /// The lists used since [`Call::take_lists`] was last called, with their versions.
    lists: Mutex<BTreeMap<String, String>>,
    memory: Mutex<Memory>,
    /// The event of the current call; `None` if it is not about an event.
    about: Mutex<Option<About>>,
    /// What the call captured.
    watch: Mutex<Watch>,
    /// Limits what rules print.
    printer: Mutex<Printer>,
    /// The patterns compiled so far.
    pub(in crate::rule) patterns: Patterns,
}

impl Call {
    pub(in crate::rule) fn new(limits: &Limits) -> Self {
        Self {
            meter: Meter::new(limits),
            current: Mutex::new(None),
            lists: Mutex::default(),
            memory: Mutex::default(),
            about: Mutex::default(),
            watch: Mutex::default(),
            printer: Mutex::default(),
            patterns: Patterns::default(),
        }
    }

    /// Counts one operation.
    pub(in crate::rule) fn operation(&self) -> Option<Exceeded> {
        self.meter.operation()
    }

    /// Begins a call with this time limit and returns its start time. [`Call::end`] ends it.
    pub(in crate::rule) fn begin(&self, limit: Duration) -> Duration {
        self.meter.begin(limit)
    }

    /// Ends a call and clears what it captured. Returns the limit that it exceeded, if any: the call's result must
    /// then be ignored.
    pub(in crate::rule) fn end(&self) -> Option<Exceeded> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).end();
        self.meter.exceeded()
    }

    /// Fails if the call has exceeded its time limit.
    pub(in crate::rule) fn check_time(&self, position: Position) -> Result<(), Box<EvalAltResult>> {
        match self.meter.look_at_clock() {
            Some(exceeded) => Err(EvalAltResult::ErrorTerminated(exceeded.token().into(), position).into()),
            None => Ok(()),
        }
    }

    /// The time since a call that began at `begun`.
    pub(in crate::rule) fn since(&self, begun: Duration) -> Duration {
        self.meter.now().saturating_sub(begun)
    }

    /// Checks a variable that is about to be read.
    pub(in crate::rule) fn read(&self, variable: Option<&mut Dynamic>) -> Result<(), Box<EvalAltResult>> {
        let Some(variable) = variable else {
            return Ok(());
        };
        let operations = self.watch.lock().unwrap_or_else(PoisonError::into_inner).read(variable)?;
        match self.meter.charge(operations) {
            Some(exceeded) => Err(EvalAltResult::ErrorTerminated(exceeded.token().into(), Position::NONE).into()),
            None => Ok(()),
        }
    }

    /// A regular expression to search a text with. In the worst case, a search takes one step for each byte of the
    /// text and each state of the expression. The engine does not count these steps, so they are charged in advance.
    pub(in crate::rule) fn regex(&self, regex: &str, text: &str) -> Result<Regex, String> {
        let (regex, bytes) = self.patterns.regex(regex)?;
        self.charge_search(text, bytes)?;
        Ok(regex)
    }

    /// Whether a glob pattern matches all of a text; charged in the same way.
    pub(in crate::rule) fn glob(&self, pattern: &str, text: &str) -> Result<bool, String> {
        self.charge_search(text, pattern.len().saturating_mul(BYTES_OF_A_GLOB))?;
        self.patterns.glob(pattern, text)
    }

    /// Charges a search of a text with a pattern of this size in bytes.
    pub(in crate::rule) fn charge_search(&self, text: &str, bytes: usize) -> Result<(), String> {
        let operations = text.len().saturating_mul(bytes) / STEPS_OF_AN_OPERATION;
        match self.meter.charge(operations as u64) {
            Some(_) => Err("the string is too long to be searched with this pattern".to_owned()),
            None => Ok(()),
        }
    }

    /// The rule and line to log if the running rule prints this text.
    pub(in crate::rule) fn print(&self, text: &str) -> Option<(String, String)> {
        let rule = self.rule();
        let mut printer = self.printer.lock().unwrap_or_else(PoisonError::into_inner);
        printer.line(&rule, text, self.meter.now()).map(|line| (rule, line))
    }

    pub(in crate::rule) fn set_current(&self, running: Arc<CurrentRun>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
    }

    /// A constant of the file whose code runs (possibly one that the rule imports), or `params`.
    pub(in crate::rule) fn constant(&self, source: Option<&str>, name: &str) -> Option<Dynamic> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let running = current.as_ref()?;
        match source.and_then(|source| running.resources.imports.constants(source)) {
            Some(imported) => imported.get(name).cloned(),
            None => running.constants.get(name).cloned(),
        }
    }

    /// What the running rule can access.
    pub(in crate::rule) fn resources(&self) -> Option<Arc<Resources>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|running| Arc::clone(&running.resources))
    }

    /// A named list; its use is recorded.
    pub(in crate::rule) fn list(&self, name: &str) -> Result<NamedList, String> {
        let resources = self.resources().ok_or("no rule is running")?;
        let list = resources.lists.find(name)?.clone();
        let mut used = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if !used.contains_key(name) {
            used.insert(name.to_owned(), resources.lists.hash(name).unwrap_or_default().to_owned());
        }
        Ok(list)
    }

    /// The memory of all rules.
    pub(in crate::rule) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what the next call is about.
    pub(in crate::rule) fn set_about(&self, about: Option<About>) {
        *self.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
    }

    /// Where and when the running function records.
    pub(in crate::rule) fn remembering(&self) -> Result<Remembering, String> {
        let about = self.about.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let about = about.ok_or("rule memory is only available to functions that take an event")?;
        let rule = self.rule();
        Ok(Remembering { space: rule.clone(), rule, now: about.moment, writes: about.writes, event: about.event })
    }

    /// The lists used since the last call of this function, with their versions.
    pub(in crate::rule) fn take_lists(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut *self.lists.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn rule(&self) -> String {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or_else(String::new, |running| running.rule.to_string())
    }
}

/// What a call is about, for rule memory.
#[derive(Debug, Clone)]
pub(in crate::rule) struct About {
    /// The event's moment.
    pub(in crate::rule) moment: Moment,
    /// Whether the function may write to memory.
    pub(in crate::rule) writes: bool,
    /// The event, if the rule can expect something to follow it.
    pub(in crate::rule) event: Option<Event>,
}

/// Where and when a function records.
#[derive(Debug)]
pub(in crate::rule) struct Remembering {
    /// The rule's own space or a shared one.
    pub(in crate::rule) space: String,
    rule: String,
    /// The event's moment.
    pub(in crate::rule) now: Moment,
    /// Whether the function may write.
    pub(in crate::rule) writes: bool,
    /// The event, if the rule can expect something to follow it.
    pub(in crate::rule) event: Option<Event>,
}

impl Remembering {
    /// The space and the rule whose quota counts.
    pub(in crate::rule) fn place(&self) -> Place<'_> {
        Place { space: &self.space, rule: &self.rule }
    }

    /// The same, in a memory that rules share.
    pub(in crate::rule) fn shared(self, name: &str) -> Self {
        Self { space: format!("common/{name}"), ..self }
    }
}
