//! Host functions: what a rule can call beyond Rhai's own standard library. One file a subject.
//!
//! A function is a row of a table: its name, what it takes and gives, what it does, an example, and the code. The engine's
//! registrations, the reference (`docs/rule-language.md`), the editor's definitions (`*.d.rhai`) and the tests of the examples
//! are all made from the rows, so that they cannot drift apart.
//!
//! None of them does I/O or reads a clock. Audit events are ragged, so data of a wrong type is taken as absent, and a function
//! of absent data gives `()`, false, or an empty list. What an author writes (a pattern, a time zone, the name of a list) is
//! held to: a mistake there is an error.

use std::{any::TypeId, sync::Arc};

use rhai::{Array, Dynamic, Engine, EvalAltResult, ImmutableString, Map};

use crate::rule::{
    manifest::value::data,
    script::{host::Call, lists::NamedList},
};

mod absent;
mod convert;
mod event;
mod geo;
mod list;
mod net;
mod reference;
mod state;
mod text;
mod time;

pub(in crate::rule) use event::{EventUse, use_of_event};
pub use reference::{EXAMPLE_EVENT, EXAMPLE_LISTS, definitions, reference};
pub(in crate::rule) use state::NEW_COUNTRY;

/// A parameter of a host function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: &'static str,
    /// What it takes, in the words of the reference.
    pub takes: &'static str,
    /// Whether it may be left out; only the last ones.
    pub optional: bool,
}

/// A host function.
#[derive(Clone, Copy)]
pub struct HostFunction {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub parameters: &'static [Parameter],
    /// What it gives, in the words of the reference.
    pub gives: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Calls, each with what it gives, as expressions about the reference's event.
    pub examples: &'static [(&'static str, &'static str)],
    /// When it throws; empty: never.
    pub errors: &'static str,
    run: fn(&Call, &[&Dynamic]) -> Returned,
}

/// What a function gives, or what the author of the rule did wrong.
type Returned = Result<Dynamic, String>;

/// Functions about one subject.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// Heading in the reference.
    pub title: &'static str,
    /// A few words about it.
    pub about: &'static str,
    /// The functions.
    pub functions: &'static [HostFunction],
}

/// All host functions, by subject, in the order of the reference.
pub const TOPICS: &[Topic] =
    &[event::TOPIC, text::TOPIC, net::TOPIC, time::TOPIC, list::TOPIC, geo::TOPIC, convert::TOPIC, state::TOPIC];

impl std::fmt::Debug for HostFunction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

impl HostFunction {
    /// How few arguments it takes.
    pub fn least(&self) -> usize {
        self.parameters.iter().filter(|parameter| !parameter.optional).count()
    }

    /// Whether it is about what rules remember, and can be called on a memory that rules share.
    pub fn remembers(&self) -> bool {
        remembers(self.name)
    }

    /// Calls it outside of any rule: whether it refuses what it is given.
    pub(in crate::rule) fn attempt(&self, call: &Call, arguments: &[&Dynamic]) -> Result<(), String> {
        (self.run)(call, arguments).map(drop)
    }

    /// Whether it takes so many arguments.
    pub fn takes(&self, arguments: usize) -> bool {
        (self.least()..=self.parameters.len() + usize::from(self.remembers())).contains(&arguments)
    }
}

/// Whether a function of this name is about what rules remember.
pub(in crate::rule) fn remembers(name: &str) -> bool {
    state::TOPIC.functions.iter().any(|function| function.name == name)
}

/// Whether a function of this name looks into address databases.
pub(in crate::rule) fn reads_places(name: &str) -> bool {
    geo::TOPIC.functions.iter().any(|function| function.name == name)
}

/// A parameter that must be given.
const fn needs(name: &'static str, takes: &'static str) -> Parameter {
    Parameter { name, takes, optional: false }
}

/// A parameter that may be left out.
const fn may(name: &'static str, takes: &'static str) -> Parameter {
    Parameter { name, takes, optional: true }
}

/// Registers all host functions with an engine whose calls `call` knows of.
pub(in crate::rule) fn register(engine: &mut Engine, call: &Arc<Call>) {
    absent::register(engine);
    list::register(engine);
    state::register(engine);
    for function in TOPICS.iter().flat_map(|subject| subject.functions) {
        // A call on `common("name")` has that as its first argument.
        let most = function.parameters.len() + usize::from(function.remembers());
        for arguments in function.least()..=most {
            let mut types = vec![TypeId::of::<Dynamic>(); arguments];
            add(engine, call, function, &types);
            // Rhai's own `get` for maps, and `all` for lists, would be preferred to one that takes anything.
            let own = match function.name {
                "get" => TypeId::of::<Map>(),
                "all" => TypeId::of::<Array>(),
                _ => continue,
            };
            types.splice(..2, [own, TypeId::of::<ImmutableString>()]);
            add(engine, call, function, &types);
        }
    }
}

fn add(engine: &mut Engine, call: &Arc<Call>, function: &'static HostFunction, types: &[TypeId]) {
    let call = Arc::clone(call);
    engine.register_raw_fn(function.name, types, move |context, arguments| {
        // One call may do the work of many operations, which the engine counts as one.
        call.check_time(context.call_position())?;
        let given: Vec<&Dynamic> = arguments.iter().map(|argument| &**argument).collect();
        (function.run)(&call, &given).map_err(|problem| {
            let problem = format!("{}: {problem}", function.name);
            EvalAltResult::ErrorRuntime(problem.into(), context.call_position()).into()
        })
    });
}

/// A text that the author of the rule must give. `None` where it is absent data after all.
fn given(value: &Dynamic, what: &str) -> Result<Option<ImmutableString>, String> {
    if value.is_unit() {
        return Ok(None);
    }
    data(value)
        .map(Some)
        .ok_or_else(|| format!("{what} must be a text, found {}", crate::rule::manifest::value::describe(value)))
}

/// An argument that may be left out.
fn argument<'a>(arguments: &'a [&Dynamic], index: usize) -> Option<&'a Dynamic> {
    arguments.get(index).copied()
}

/// An argument that must be there: the registration sees to it.
fn first<'a>(arguments: &'a [&Dynamic], index: usize) -> &'a Dynamic {
    const ABSENT: &Dynamic = &Dynamic::UNIT;
    arguments.get(index).copied().unwrap_or(ABSENT)
}

/// Texts that an author gives to compare with: one text, a list of texts, or a named list.
enum Texts {
    One(ImmutableString),
    Many(Vec<ImmutableString>),
    Named(NamedList),
}

fn texts(value: &Dynamic, what: &str) -> Result<Option<Texts>, String> {
    if value.is_unit() {
        return Ok(None);
    }
    if let Some(text) = data(value) {
        return Ok(Some(Texts::One(text)));
    }
    if let Some(list) = value.read_lock::<NamedList>() {
        return Ok(Some(Texts::Named(list.clone())));
    }
    if let Some(items) = value.read_lock::<Array>() {
        // Items that are no texts, as in a list out of an event, compare with nothing.
        return Ok(Some(Texts::Many(items.iter().filter_map(data).collect())));
    }
    let found = crate::rule::manifest::value::describe(value);
    Err(format!("{what} must be a text, a list of texts, or `list(\"…\")`, found {found}"))
}

/// A value that is absent where the option is.
fn or_unit<T: Into<Dynamic>>(value: Option<T>) -> Dynamic {
    value.map_or(Dynamic::UNIT, Into::into)
}
