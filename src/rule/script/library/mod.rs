//! Host functions: what a rule can call beyond Rhai's standard library. One file per topic.
//!
//! A function is a row of a table: its name, parameters, result, description, examples and code. The engine's
//! registrations, the reference (`docs/rule-language.md`), the editor definitions (`*.d.rhai`) and the tests of the
//! examples are all generated from the rows, so they cannot drift apart.
//!
//! Host functions do no I/O and read no clock. Audit events are ragged: data of the wrong type counts as absent, and
//! for absent data a function returns `()`, false, or an empty list. Whatever the author writes (a pattern, a time
//! zone, the name of a list) is checked: a mistake there is an error.

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
    /// The parameter's name.
    pub name: &'static str,
    /// The accepted types, as written in the reference.
    pub takes: &'static str,
    /// Whether it may be omitted; only trailing parameters can be optional.
    pub optional: bool,
}

/// A host function, with its documentation.
#[derive(Clone, Copy)]
pub struct HostFunction {
    /// The function's name.
    pub name: &'static str,
    /// The parameters, in order.
    pub parameters: &'static [Parameter],
    /// The result, as written in the reference.
    pub gives: &'static str,
    /// What the function does, in imperative sentences.
    pub about: &'static str,
    /// Example calls on the reference's event, each with its result.
    pub examples: &'static [(&'static str, &'static str)],
    /// When the function throws, as a clause after "if"; empty if never.
    pub errors: &'static str,
    run: fn(&Call, &[&Dynamic]) -> Returned,
}

/// A function's result, or the mistake of the rule's author.
type Returned = Result<Dynamic, String>;

/// A group of functions with a section in the reference.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// The section's heading.
    pub title: &'static str,
    /// The section's introduction.
    pub about: &'static str,
    /// The functions of this topic.
    pub functions: &'static [HostFunction],
}

/// All host functions by topic, in the order of the reference.
pub const TOPICS: &[Topic] =
    &[event::TOPIC, text::TOPIC, net::TOPIC, time::TOPIC, list::TOPIC, geo::TOPIC, convert::TOPIC, state::TOPIC];

impl std::fmt::Debug for HostFunction {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

impl HostFunction {
    /// The minimum number of arguments.
    pub fn least(&self) -> usize {
        self.parameters.iter().filter(|parameter| !parameter.optional).count()
    }

    /// Whether it uses rule memory, and so can be called on a shared memory.
    pub fn remembers(&self) -> bool {
        remembers(self.name)
    }

    /// Calls it outside any rule, to check whether it accepts these arguments.
    pub(in crate::rule) fn attempt(&self, call: &Call, arguments: &[&Dynamic]) -> Result<(), String> {
        (self.run)(call, arguments).map(drop)
    }

    /// Whether it accepts this number of arguments.
    pub fn takes(&self, arguments: usize) -> bool {
        (self.least()..=self.parameters.len() + usize::from(self.remembers())).contains(&arguments)
    }
}

/// Whether a function of this name uses rule memory.
pub(in crate::rule) fn remembers(name: &str) -> bool {
    state::TOPIC.functions.iter().any(|function| function.name == name)
}

/// Whether a function of this name reads address databases.
pub(in crate::rule) fn reads_places(name: &str) -> bool {
    geo::TOPIC.functions.iter().any(|function| function.name == name)
}

/// A required parameter.
const fn needs(name: &'static str, takes: &'static str) -> Parameter {
    Parameter { name, takes, optional: false }
}

/// An optional parameter.
const fn may(name: &'static str, takes: &'static str) -> Parameter {
    Parameter { name, takes, optional: true }
}

/// Registers all host functions with an engine; they use `call` as their context.
pub(in crate::rule) fn register(engine: &mut Engine, call: &Arc<Call>) {
    absent::register(engine);
    list::register(engine);
    state::register(engine);
    for function in TOPICS.iter().flat_map(|subject| subject.functions) {
        // A call on `common("name")` has that as an additional first argument.
        let most = function.parameters.len() + usize::from(function.remembers());
        for arguments in function.least()..=most {
            let mut types = vec![TypeId::of::<Dynamic>(); arguments];
            add(engine, call, function, &types);
            // Rhai would prefer its own `get` for maps and `all` for lists to a function that takes any type.
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
        // One call may do the work of many operations, but the engine counts it as one.
        call.check_time(context.call_position())?;
        let given: Vec<&Dynamic> = arguments.iter().map(|argument| &**argument).collect();
        (function.run)(&call, &given).map_err(|problem| {
            let problem = format!("{}: {problem}", function.name);
            EvalAltResult::ErrorRuntime(problem.into(), context.call_position()).into()
        })
    });
}

/// A string that the rule's author must pass. `None` if the argument is absent data.
fn given(value: &Dynamic, what: &str) -> Result<Option<ImmutableString>, String> {
    if value.is_unit() {
        return Ok(None);
    }
    data(value)
        .map(Some)
        .ok_or_else(|| format!("{what} must be a string, found {}", crate::rule::manifest::value::describe(value)))
}

/// An optional argument.
fn argument<'a>(arguments: &'a [&Dynamic], index: usize) -> Option<&'a Dynamic> {
    arguments.get(index).copied()
}

/// A required argument: registration guarantees that it is there.
fn first<'a>(arguments: &'a [&Dynamic], index: usize) -> &'a Dynamic {
    const ABSENT: &Dynamic = &Dynamic::UNIT;
    arguments.get(index).copied().unwrap_or(ABSENT)
}

/// The strings to compare with: one string, a list of strings, or a named list.
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
        // Items that are not strings, as in a list from an event, never match.
        return Ok(Some(Texts::Many(items.iter().filter_map(data).collect())));
    }
    let found = crate::rule::manifest::value::describe(value);
    Err(format!("{what} must be a string, a list of strings, or `list(\"…\")`, found {found}"))
}

/// Converts `None` to `()`.
fn or_unit<T: Into<Dynamic>>(value: Option<T>) -> Dynamic {
    value.map_or(Dynamic::UNIT, Into::into)
}
