//! Finds what a script does, and what it reads besides its event, in its syntax tree and those of the files it
//! imports.
//!
//! A rule's version and schedule depend on this, so a miss would give wrong results: if the tree is not conclusive,
//! the rule counts as reading it. Most reads are visible as a call (`list("vips")`). The organization's catalog of
//! actions, however, is visible in the event itself, as `event.activity` and `event.category`. The event is therefore
//! followed through the script: a rule that only uses other fields does not read the catalog, and one that passes the
//! whole event to something unknown does.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rhai::{AST, ASTNode, Array, Dynamic, Expr, FnCallExpr, ImmutableString, Map, Stmt};

use crate::model::time;
use crate::rule::{
    manifest::{
        metadata::Metadata,
        reads::{ReadLists, Reads},
    },
    script::{
        compiled::OPTIONAL_FUNCTIONS,
        library::{self, EventUse},
    },
};

/// The facts about one script.
#[derive(Default)]
pub(in crate::rule) struct Scanned {
    /// Whether it assigns to a property or an index.
    pub(in crate::rule) assigns: bool,
    /// Whether it calls memory functions.
    pub(in crate::rule) remembers: bool,
    /// Whether it calls `common`.
    pub(in crate::rule) shares: bool,
    /// The longest duration in it.
    pub(in crate::rule) reach: Duration,
    /// The paths that it imports, as far as they are literals.
    pub(in crate::rule) imports: Vec<String>,
    /// Whether it imports a path that is computed at run time, which could be any.
    pub(in crate::rule) imports_any: bool,
}

/// Scans one script.
pub(in crate::rule) fn scan(ast: &AST) -> Scanned {
    let mut scanned = Scanned::default();
    ast.walk(&mut |nodes| {
        match nodes.last() {
            Some(ASTNode::Expr(Expr::StringConstant(text, _))) => {
                scanned.reach = scanned.reach.max(span(text).unwrap_or_default());
            }
            Some(ASTNode::Expr(Expr::DynamicConstant(value, _))) => scanned.reach = scanned.reach.max(longest(value)),
            Some(ASTNode::Stmt(Stmt::Assignment(assignment))) => {
                scanned.assigns |= !matches!(assignment.1.lhs, Expr::Variable(..));
            }
            Some(ASTNode::Stmt(Stmt::Import(import, _))) => match &import.0 {
                Expr::StringConstant(path, _) => scanned.imports.push(path.to_string()),
                // Assume the worst.
                _ => {
                    scanned.imports_any = true;
                    scanned.assigns = true;
                    scanned.remembers = true;
                    scanned.shares = true;
                }
            },
            _ => {}
        }
        if let Some(call) = nodes.last().and_then(call) {
            match pointed_at(call) {
                Some(Some(function)) => scanned.calls(function),
                Some(None) => {
                    scanned.remembers = true;
                    scanned.shares = true;
                    scanned.reach = scanned.reach.max(library::NEW_COUNTRY);
                }
                None => scanned.calls(&call.name),
            }
        }
        true
    });
    scanned
}

impl Scanned {
    fn calls(&mut self, function: &str) {
        self.remembers |= library::remembers(function);
        self.shares |= function == "common";
        if function == "new_country" {
            self.reach = self.reach.max(library::NEW_COUNTRY);
        }
    }
}

/// A duration as rules write it, at most a year: nothing looks back further.
pub(in crate::rule) fn span(text: &str) -> Option<Duration> {
    time::parse_duration(text).ok().map(|duration| duration.min(Duration::from_secs(366 * 86_400)))
}

/// The longest duration in a constant.
fn longest(value: &Dynamic) -> Duration {
    if let Some(text) = value.read_lock::<ImmutableString>() {
        return span(&text).unwrap_or_default();
    }
    if let Some(map) = value.read_lock::<Map>() {
        return map.values().map(longest).max().unwrap_or_default();
    }
    value.read_lock::<Array>().and_then(|items| items.iter().map(longest).max()).unwrap_or_default()
}

/// The position of a script's first call of a function.
pub(in crate::rule) fn called(ast: &AST, function: &str) -> Option<rhai::Position> {
    let mut at = None;
    ast.walk(&mut |nodes| {
        let found = match nodes.last() {
            Some(ASTNode::Expr(Expr::FnCall(call, position))) if call.name == function => Some(*position),
            Some(ASTNode::Stmt(Stmt::FnCall(call, position))) if call.name == function => Some(*position),
            _ => None,
        };
        at = at.or(found);
        at.is_none()
    });
    at
}

/// The named lists that a script uses, as far as their names are literals.
pub(in crate::rule) fn lists(ast: &AST) -> Vec<(String, rhai::Position)> {
    let mut found = Vec::new();
    ast.walk(&mut |nodes| {
        if let Some(ASTNode::Expr(Expr::FnCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _))) = nodes.last()
            && LIST_FUNCTIONS.contains(&call.name.as_str())
            && let Some(Expr::StringConstant(name, position)) = call.args.first()
        {
            found.push((name.to_string(), *position));
        }
        true
    });
    found
}

/// Functions that read named lists.
const LIST_FUNCTIONS: [&str; 2] = ["list", "lookup"];

/// Functions of Rhai that reveal nothing about the values in a map.
const KEYS_ONLY: [&str; 5] = ["keys", "len", "is_empty", "contains", "type_of"];

/// What a rule reads. Its own script comes first, then its imports.
pub(in crate::rule) fn of_rule(scripts: &[&AST], metadata: &Metadata) -> Reads {
    let mut reads = of_scripts(scripts);
    let slots = metadata.exception_slots.values().flatten();
    reads.catalog |= metadata.group_by.iter().flatten().chain(slots).any(|path| leads_to_catalog(path));
    reads
}

/// What the condition of an exception reads.
pub(in crate::rule) fn of_condition(condition: &AST) -> Reads {
    of_scripts(&[condition])
}

fn of_scripts(scripts: &[&AST]) -> Reads {
    let mut following = Following::new(scripts);
    loop {
        let known = following.events.len();
        scripts.iter().for_each(|script| following.script(script));
        // Each round may find more names for the event.
        if following.events.len() == known {
            return following.reads;
        }
    }
}

/// Follows the event through scripts, by the names of the variables that may have it.
struct Following {
    events: BTreeSet<String>,
    /// The parameters of all functions in the scripts, by name and number of parameters.
    functions: BTreeMap<(String, usize), BTreeSet<Vec<String>>>,
    reads: Reads,
}

impl Following {
    fn new(scripts: &[&AST]) -> Self {
        let mut events = BTreeSet::from(["event".to_owned()]);
        let mut functions: BTreeMap<_, BTreeSet<Vec<String>>> = BTreeMap::new();
        for function in scripts.iter().flat_map(|script| script.iter_functions()) {
            let parameters: Vec<String> = function.params.iter().map(|name| (*name).to_owned()).collect();
            // The host calls these, with the event as the last argument.
            if ["rule", crate::rule::script::compiled::EXPIRED].contains(&function.name)
                || OPTIONAL_FUNCTIONS.contains(&function.name)
            {
                events.extend(parameters.last().cloned());
            }
            functions.entry((function.name.to_owned(), parameters.len())).or_default().insert(parameters);
        }
        Self { events, functions, reads: Reads::default() }
    }

    fn script(&mut self, script: &AST) {
        script.walk(&mut |nodes| {
            // The contents of `RULE` are checked as metadata.
            if let Some(ASTNode::Stmt(Stmt::Var(declaration, ..))) = nodes.first()
                && declaration.0.name == "RULE"
            {
                return true;
            }
            self.node(nodes);
            true
        });
    }

    fn node(&mut self, nodes: &[ASTNode<'_>]) {
        let parent = nodes.len().checked_sub(2).and_then(|index| nodes.get(index));
        match nodes.last() {
            Some(ASTNode::Expr(Expr::Property(property, _))) => self.reads.catalog |= leads_to_catalog(&property.2),
            Some(ASTNode::Expr(Expr::StringConstant(text, _))) => self.reads.catalog |= leads_to_catalog(text),
            Some(ASTNode::Expr(Expr::DynamicConstant(value, _))) => self.reads.catalog |= holds_path_to_catalog(value),
            Some(ASTNode::Expr(variable @ Expr::Variable(..))) if self.may_be_event(variable) => {
                self.reads.catalog |= !is_known_use(variable, parent);
            }
            Some(ASTNode::Stmt(Stmt::Import(import, _))) if !matches!(import.0, Expr::StringConstant(..)) => {
                self.reads = Reads { lists: ReadLists::Any, catalog: true, geo: true };
            }
            _ => {}
        }
        if let Some(call) = nodes.last().and_then(call) {
            self.call(call, matches!(nodes.last(), Some(ASTNode::Expr(Expr::MethodCall(..)))));
        }
        if let Some(ASTNode::Expr(Expr::Dot(chain, ..) | Expr::Index(chain, ..))) = nodes.last()
            && self.may_be_event(&chain.lhs)
        {
            self.first_step(matches!(nodes.last(), Some(ASTNode::Expr(Expr::Index(..)))), &chain.rhs);
        }
    }

    /// Checks which part of the event a script uses.
    fn first_step(&mut self, is_index: bool, rest: &Expr) {
        let (step, next) = match rest {
            Expr::Dot(chain, ..) | Expr::Index(chain, ..) => (&chain.lhs, Some(&chain.rhs)),
            step => (step, None),
        };
        match step {
            // Properties and constants are checked as separate nodes; here, a constant only names a field.
            Expr::Property(..) if !is_index => {}
            Expr::StringConstant(..) if is_index && !next.is_some_and(begins_with_a_call) => {}
            Expr::MethodCall(call, _) => self.hand_over(call, None),
            _ => self.reads.catalog = true,
        }
    }

    fn call(&mut self, call: &FnCallExpr, is_method: bool) {
        let (function, is_call) = match pointed_at(call) {
            Some(Some(function)) => (function, false),
            Some(None) => {
                self.reads = Reads { lists: ReadLists::Any, catalog: true, geo: true };
                return;
            }
            None => (call.name.as_str(), true),
        };
        if LIST_FUNCTIONS.contains(&function) {
            let name = match call.args.first() {
                Some(Expr::StringConstant(name, _)) if is_call && !is_method => Some(name.as_str()),
                _ => None,
            };
            self.reads.lists.add(name);
        }
        self.reads.geo |= library::reads_places(function);
        self.reads.catalog |= library::use_of_event(function) == Some(EventUse::Catalog);
        if is_call && !is_method {
            for index in 0..call.args.len() {
                if call.args.get(index).is_some_and(|argument| self.may_be_event(argument)) {
                    self.hand_over(call, Some(index));
                }
            }
        }
    }

    /// Checks a call that receives the event, as an argument or as the receiver of a method.
    fn hand_over(&mut self, call: &FnCallExpr, argument: Option<usize>) {
        let arguments = call.args.len();
        if let (Some(index), Some(functions)) = (argument, self.functions.get(&(call.name.to_string(), arguments))) {
            let names: Vec<String> = functions.iter().filter_map(|parameters| parameters.get(index)).cloned().collect();
            self.events.extend(names);
            return;
        }
        let is_harmless = match library::use_of_event(&call.name) {
            Some(EventUse::Fields) => true,
            // The path itself is checked as a constant.
            Some(EventUse::Paths) => {
                let path = argument.map_or(Some(0), |index| (index == 0).then_some(1));
                matches!(path.and_then(|index| call.args.get(index)), Some(Expr::StringConstant(..)))
            }
            Some(EventUse::Catalog) => false,
            // A closure that uses the event receives it under the same name.
            None => call.name == "curry" || KEYS_ONLY.contains(&call.name.as_str()),
        };
        self.reads.catalog |= !is_harmless;
    }

    fn may_be_event(&self, expression: &Expr) -> bool {
        matches!(expression, Expr::Variable(variable, ..) if self.events.contains(variable.1.as_str()))
    }
}

/// Whether a variable starts a path or is an argument: those uses are checked where they occur. Other uses are not
/// followed.
fn is_known_use(variable: &Expr, parent: Option<&ASTNode<'_>>) -> bool {
    match parent {
        Some(ASTNode::Expr(Expr::Dot(chain, ..) | Expr::Index(chain, ..))) => {
            std::ptr::eq(&raw const chain.lhs, variable)
        }
        Some(ASTNode::Expr(Expr::FnCall(..)) | ASTNode::Stmt(Stmt::FnCall(..))) => true,
        _ => false,
    }
}

fn begins_with_a_call(rest: &Expr) -> bool {
    match rest {
        Expr::Dot(chain, ..) | Expr::Index(chain, ..) => begins_with_a_call(&chain.lhs),
        Expr::MethodCall(..) => true,
        _ => false,
    }
}

/// Whether a path starts with a field that comes from the catalog of actions.
fn leads_to_catalog(path: &str) -> bool {
    let first = path.split(['.', '[']).next().unwrap_or(path).trim();
    ["activity", "category"].contains(&first)
}

fn holds_path_to_catalog(value: &Dynamic) -> bool {
    if let Some(text) = value.read_lock::<ImmutableString>() {
        return leads_to_catalog(&text);
    }
    if let Some(map) = value.read_lock::<Map>() {
        return map.values().any(holds_path_to_catalog);
    }
    value.read_lock::<Array>().is_some_and(|items| items.iter().any(holds_path_to_catalog))
}

fn call<'a>(node: &ASTNode<'a>) -> Option<&'a FnCallExpr> {
    match node {
        ASTNode::Expr(Expr::FnCall(call, _) | Expr::MethodCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _)) => {
            Some(call)
        }
        _ => None,
    }
}

/// For `Fn("name")`: the name, or `Some(None)` if it is computed at run time.
fn pointed_at(call: &FnCallExpr) -> Option<Option<&str>> {
    if call.name != "Fn" {
        return None;
    }
    Some(match call.args.first() {
        Some(Expr::StringConstant(name, _)) => Some(name),
        _ => None,
    })
}
