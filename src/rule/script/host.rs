//! What the host knows of the call that goes on: who runs, what the call has used, and what it can reach.

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

/// Bytes of a text, times bytes of a regular expression, that cost one operation to search.
const STEPS_OF_AN_OPERATION: usize = 256 * 1024;

/// Who is running, with what it can reach.
#[derive(Debug)]
pub(in crate::rule) struct CurrentRun {
    pub(in crate::rule) rule: RuleId,
    pub(in crate::rule) resources: Arc<Resources>,
    /// What its functions see beside their own variables.
    pub(in crate::rule) constants: Arc<Constants>,
}

/// What the engine's callbacks know of the call that is going on.
#[derive(Debug)]
pub(in crate::rule) struct Call {
    /// What it has used.
    meter: Meter,
    /// Who is running, with what it can reach.
    current: Mutex<Option<Arc<CurrentRun>>>,
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

    /// Counts an operation.
    pub(in crate::rule) fn operation(&self) -> Option<Exceeded> {
        self.meter.operation()
    }

    /// Begins a call that may take so long; returns when that was. [`Call::end`] ends it.
    pub(in crate::rule) fn begin(&self, limit: Duration) -> Duration {
        self.meter.begin(limit)
    }

    /// Ends a call: nothing of what it captured is left behind. Gives the limit that it exceeded, if it did: what it returned does not
    /// count then.
    pub(in crate::rule) fn end(&self) -> Option<Exceeded> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).end();
        self.meter.exceeded()
    }

    /// An error if the call has taken longer than it may.
    pub(in crate::rule) fn check_time(&self, position: Position) -> Result<(), Box<EvalAltResult>> {
        match self.meter.look_at_clock() {
            Some(exceeded) => Err(EvalAltResult::ErrorTerminated(exceeded.token().into(), position).into()),
            None => Ok(()),
        }
    }

    /// How long the call has taken that began then.
    pub(in crate::rule) fn since(&self, begun: Duration) -> Duration {
        self.meter.now().saturating_sub(begun)
    }

    /// Looks at a variable that is about to be read.
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

    /// A regular expression that a text is searched with. In the worst case that takes a step for each byte of the text and each state
    /// of the expression, which nobody counts meanwhile: it is charged before.
    pub(in crate::rule) fn regex(&self, regex: &str, text: &str) -> Result<Regex, String> {
        let (regex, bytes) = self.patterns.regex(regex)?;
        self.charge_search(text, bytes)?;
        Ok(regex)
    }

    /// Whether all of a text is as a pattern says; charged in the same way.
    pub(in crate::rule) fn glob(&self, pattern: &str, text: &str) -> Result<bool, String> {
        self.charge_search(text, pattern.len().saturating_mul(BYTES_OF_A_GLOB))?;
        self.patterns.glob(pattern, text)
    }

    /// Charges a search of a text with a pattern that takes so many bytes.
    pub(in crate::rule) fn charge_search(&self, text: &str, bytes: usize) -> Result<(), String> {
        let operations = text.len().saturating_mul(bytes) / STEPS_OF_AN_OPERATION;
        match self.meter.charge(operations as u64) {
            Some(_) => Err("searching a text of this length with such a pattern takes too long".to_owned()),
            None => Ok(()),
        }
    }

    /// What is to be logged of a line that the running rule prints.
    pub(in crate::rule) fn print(&self, text: &str) -> Option<(String, String)> {
        let rule = self.rule();
        let mut printer = self.printer.lock().unwrap_or_else(PoisonError::into_inner);
        printer.line(&rule, text, self.meter.now()).map(|line| (rule, line))
    }

    pub(in crate::rule) fn set_current(&self, running: Arc<CurrentRun>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
    }

    /// A constant of the file whose code runs, which may be one that the rule imports; or `params`.
    pub(in crate::rule) fn constant(&self, source: Option<&str>, name: &str) -> Option<Dynamic> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let running = current.as_ref()?;
        match source.and_then(|source| running.resources.imports.constants(source)) {
            Some(imported) => imported.get(name).cloned(),
            None => running.constants.get(name).cloned(),
        }
    }

    /// What the running rule can reach.
    pub(in crate::rule) fn resources(&self) -> Option<Arc<Resources>> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|running| Arc::clone(&running.resources))
    }

    /// A named list, noted as used.
    pub(in crate::rule) fn list(&self, name: &str) -> Result<NamedList, String> {
        let resources = self.resources().ok_or("no rule is running")?;
        let list = resources.lists.find(name)?.clone();
        let mut used = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if !used.contains_key(name) {
            used.insert(name.to_owned(), resources.lists.hash(name).unwrap_or_default().to_owned());
        }
        Ok(list)
    }

    /// What rules remember.
    pub(in crate::rule) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the next call is about.
    pub(in crate::rule) fn set_about(&self, about: Option<About>) {
        *self.about.lock().unwrap_or_else(PoisonError::into_inner) = about;
    }

    /// Where and when the running function remembers.
    pub(in crate::rule) fn remembering(&self) -> Result<Remembering, String> {
        let about = self.about.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let about = about.ok_or("only the functions of a rule that looks at events can remember")?;
        let rule = self.rule();
        Ok(Remembering { space: rule.clone(), rule, now: about.moment, writes: about.writes, event: about.event })
    }

    /// The lists that were looked into since this was last asked, with their versions.
    pub(in crate::rule) fn take_lists(&self) -> BTreeMap<String, String> {
        std::mem::take(&mut *self.lists.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn rule(&self) -> String {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map_or_else(String::new, |running| running.rule.to_string())
    }
}

/// What a call is about, as far as memory is concerned.
#[derive(Debug, Clone)]
pub(in crate::rule) struct About {
    /// When the event happened.
    pub(in crate::rule) moment: Moment,
    /// Whether the function may write to the memory.
    pub(in crate::rule) writes: bool,
    /// The event itself, where the rule can expect something to follow it.
    pub(in crate::rule) event: Option<Event>,
}

/// Where and when a function remembers.
#[derive(Debug)]
pub(in crate::rule) struct Remembering {
    /// The rule, or what several share.
    pub(in crate::rule) space: String,
    rule: String,
    /// The event.
    pub(in crate::rule) now: Moment,
    /// Whether it may write.
    pub(in crate::rule) writes: bool,
    /// The event, where the rule can expect something to follow it.
    pub(in crate::rule) event: Option<Event>,
}

impl Remembering {
    /// Where it is noted, and by which rule.
    pub(in crate::rule) fn place(&self) -> Place<'_> {
        Place { space: &self.space, rule: &self.rule }
    }

    /// The same in a memory that rules share.
    pub(in crate::rule) fn shared(self, name: &str) -> Self {
        Self { space: format!("common/{name}"), ..self }
    }
}
