//! The conditions that `fn rule` starts with, as far as they can be evaluated without running the script.
//!
//! Supported are comparisons of event fields with constants, membership in lists of strings, `starts_with`,
//! `ends_with` and `contains`, the host functions `glob` and `same`, presence, and `!`, `&&`, `||` of these; also
//! early returns (`if … { return false; }`) and local names for fields. Reading stops at the first construct that is
//! not supported.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use globset::GlobMatcher;
use rhai::{AST, Array, Dynamic, Expr, FnCallExpr, ImmutableString, Map, Stmt};

use crate::rule::{
    manifest::pattern,
    script::{
        ast,
        extract::{Key, Path, Seen},
        import::Constants,
    },
};

/// The outcome of a condition for an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::rule) enum Truth {
    True,
    False,
    /// Only the script can decide.
    Unknown,
}

/// A field of the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::rule) enum Field {
    Action,
    /// The action's display name, from the organization's catalog.
    Activity,
    Category,
    Source,
    Raw(Path),
}

/// A test of a field's value.
#[derive(Debug, Clone)]
pub(in crate::rule) enum Test {
    Equals(Constant),
    OneOf(Arc<BTreeSet<Box<str>>>),
    StartsWith(Box<str>),
    EndsWith(Box<str>),
    Contains(Box<str>),
    Glob(GlobMatcher),
    /// Equal in any letter case; stored in lower case.
    Same(Arc<BTreeSet<String>>),
    /// The field itself is `true`.
    Holds,
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::rule) enum Constant {
    Absent,
    Bool(bool),
    Int(i64),
}

/// The conditions that a rule starts with, in order.
#[derive(Debug, Clone, Default)]
pub(in crate::rule) struct Conditions(pub(in crate::rule) Vec<Condition>);

#[derive(Debug, Clone)]
pub(in crate::rule) enum Condition {
    Test(Field, Test),
    /// The field can be read without an error; otherwise the script fails.
    Readable(Field),
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Known(bool),
}

impl Test {
    /// The result that the script would get, if that is certain.
    pub(in crate::rule) fn of(&self, seen: &Seen<'_>) -> Truth {
        if matches!(seen, Seen::Trouble) {
            return Truth::Unknown;
        }
        let truth = |value: bool| if value { Truth::True } else { Truth::False };
        // Strings are tested, absent values never match, and for anything else the script raises an error.
        let on_text = |test: &dyn Fn(&str) -> bool| match seen {
            Seen::Text(text) => truth(test(text)),
            Seen::Absent => Truth::False,
            _ => Truth::Unknown,
        };
        match self {
            Self::Equals(constant) => match (constant, seen) {
                (_, Seen::Other) => Truth::Unknown,
                (Constant::Absent, Seen::Absent) => Truth::True,
                (Constant::Bool(wanted), Seen::Bool(found)) => truth(wanted == found),
                (Constant::Int(wanted), Seen::Int(found)) => truth(wanted == found),
                _ => Truth::False,
            },
            Self::OneOf(texts) => match seen {
                Seen::Text(text) => truth(texts.contains(&**text)),
                Seen::Other => Truth::Unknown,
                _ => Truth::False,
            },
            Self::StartsWith(part) => on_text(&|text| text.starts_with(&**part)),
            Self::EndsWith(part) => on_text(&|text| text.ends_with(&**part)),
            Self::Contains(part) => on_text(&|text| text.contains(&**part)),
            // Host functions treat anything but a string as absent.
            Self::Glob(glob) => truth(matches!(seen, Seen::Text(text) if glob.is_match(&**text))),
            Self::Same(texts) => truth(matches!(seen, Seen::Text(text) if texts.contains(&text.to_lowercase()))),
            Self::Holds => match seen {
                Seen::Bool(value) => truth(*value),
                _ => Truth::Unknown,
            },
        }
    }
}

/// The meaning of a local name.
#[derive(Debug, Clone)]
enum Bound {
    /// A path in the event.
    Path(Vec<Key>),
    /// A value computed from it.
    Unknown,
}

struct Reading<'a> {
    constants: &'a Constants,
    /// Local names of the function.
    names: HashMap<String, Bound>,
    /// Functions of the file, which take precedence over host functions.
    own: BTreeSet<(String, usize)>,
    found: Vec<Condition>,
}

/// Reads the conditions that `fn rule` starts with from a compiled file.
pub(in crate::rule) fn conditions(ast: &AST, constants: &Constants) -> Conditions {
    let (Some(parameter), Some(statements)) = (ast::parameter(ast, "rule"), ast::body(ast, "rule")) else {
        return Conditions::default();
    };
    let own = ast.iter_functions().map(|function| (function.name.to_owned(), function.params.len())).collect();
    let mut names = HashMap::new();
    names.insert(parameter, Bound::Path(Vec::new()));
    let mut reading = Reading { constants, names, own, found: Vec::new() };
    reading.statements(&statements);
    Conditions(reading.found)
}

impl Reading<'_> {
    fn statements(&mut self, statements: &[Stmt]) {
        for (index, statement) in statements.iter().enumerate() {
            let last = index + 1 == statements.len();
            match statement {
                Stmt::Noop(_) => {}
                Stmt::Var(declaration, ..) => {
                    let (name, value, _) = &**declaration;
                    let Some(bound) = self.bind(value) else {
                        return;
                    };
                    self.names.insert(name.name.to_string(), bound);
                }
                Stmt::If(flow, _) if returns_false(flow.body.statements(), last) => {
                    let Some(condition) = self.condition(&flow.expr) else {
                        return;
                    };
                    self.found.push(Condition::Not(Box::new(condition)));
                    if !flow.branch.statements().is_empty() {
                        if last {
                            self.statements(flow.branch.statements());
                        }
                        return;
                    }
                }
                Stmt::If(flow, _) if last && returns_false(flow.branch.statements(), last) => {
                    let whole = self.conjunction(&flow.expr);
                    if whole {
                        self.statements(flow.body.statements());
                    }
                    return;
                }
                Stmt::Expr(expression) if last => {
                    self.conjunction(expression);
                    return;
                }
                // Rhai has a separate statement kind for a bare function call.
                Stmt::FnCall(call, _) if last => {
                    self.found.extend(self.call(call));
                    return;
                }
                Stmt::Return(Some(expression), ..) => {
                    self.conjunction(expression);
                    return;
                }
                _ => return,
            }
        }
    }

    /// Adds the parts of a conjunction in order; returns whether all of them are supported.
    fn conjunction(&mut self, expression: &Expr) -> bool {
        if let Expr::And(parts, _) = expression {
            return parts.iter().all(|part| self.conjunction(part));
        }
        match self.condition(expression) {
            Some(condition) => {
                self.found.push(condition);
                true
            }
            None => false,
        }
    }

    /// The meaning of a name bound here. `None` if computing the value may fail or have an effect.
    fn bind(&mut self, value: &Expr) -> Option<Bound> {
        if constant_of(value).is_some() {
            return Some(Bound::Unknown);
        }
        if let Some((path, None)) = self.chain(value) {
            // Following it may fail, so it must not be skipped.
            self.found.push(Condition::Readable(field(&path)?));
            return Some(Bound::Path(path));
        }
        // Host functions that never fail, whatever the data.
        let (arguments, call) = match value {
            Expr::FnCall(call, _) => (call.args.len(), &**call),
            _ => {
                let (path, call) = self.walk(value, true)?;
                let call = call?;
                self.found
                    .push(Condition::Readable(field(&path).or_else(|| path.is_empty().then_some(Field::Action))?));
                (call.args.len() + 1, call)
            }
        };
        let harmless = ["domain", "targets", "actor_name", "site", "defang"].contains(&call.name.as_str());
        if !harmless || self.own.contains(&(call.name.to_string(), arguments)) || !call.namespace.is_empty() {
            return None;
        }
        for argument in &call.args {
            if constant_of(argument).is_none() {
                let (path, None) = self.chain(argument)? else {
                    return None;
                };
                if !path.is_empty() {
                    self.found.push(Condition::Readable(field(&path)?));
                }
            }
        }
        Some(Bound::Unknown)
    }

    fn condition(&self, expression: &Expr) -> Option<Condition> {
        match expression {
            Expr::BoolConstant(value, _) => Some(Condition::Known(*value)),
            Expr::And(parts, _) => {
                parts.iter().map(|part| self.condition(part)).collect::<Option<_>>().map(Condition::All)
            }
            Expr::Or(parts, _) => {
                parts.iter().map(|part| self.condition(part)).collect::<Option<_>>().map(Condition::Any)
            }
            Expr::FnCall(call, _) => self.call(call),
            _ => {
                let (path, call) = self.chain(expression)?;
                match call {
                    None => Some(Condition::Test(field(&path)?, Test::Holds)),
                    Some(call) => self.method(&path, call),
                }
            }
        }
    }

    fn call(&self, call: &FnCallExpr) -> Option<Condition> {
        if !call.namespace.is_empty() {
            return None;
        }
        match (call.name.as_str(), call.args.as_slice()) {
            ("!", [inner]) => Some(Condition::Not(Box::new(self.condition(inner)?))),
            ("==", [one, other]) => self.equals(one, other),
            ("!=", [one, other]) => Some(Condition::Not(Box::new(self.equals(one, other)?))),
            // `x in list`
            ("contains", [list, item]) if !self.own.contains(&("contains".to_owned(), 2)) => {
                let texts = texts(&self.constant(list)?)?;
                Some(Condition::Test(self.field(item)?, Test::OneOf(texts)))
            }
            (name, [value, given]) if !self.own.contains(&(name.to_owned(), 2)) => {
                Some(Condition::Test(self.field(value)?, self.host(name, given)?))
            }
            _ => None,
        }
    }

    fn method(&self, path: &[Key], call: &FnCallExpr) -> Option<Condition> {
        let [given] = call.args.as_slice() else {
            return None;
        };
        let name = call.name.as_str();
        if self.own.contains(&(name.to_owned(), 2)) || self.own.contains(&(name.to_owned(), 1)) {
            return None;
        }
        let text = || Some(text(&self.constant(given)?)?.as_str().into());
        let test = match name {
            "starts_with" => Test::StartsWith(text()?),
            "ends_with" => Test::EndsWith(text()?),
            "contains" => Test::Contains(text()?),
            _ => self.host(name, given)?,
        };
        Some(Condition::Test(field(path)?, test))
    }

    /// A test by a host function with a constant argument.
    fn host(&self, name: &str, given: &Expr) -> Option<Test> {
        let given = self.constant(given)?;
        match name {
            "glob" => Some(Test::Glob(pattern::glob(text(&given)?.as_str()).ok()?.compile_matcher())),
            "same" => {
                let texts = match text(&given) {
                    Some(text) => std::iter::once(text.to_lowercase()).collect(),
                    None => texts(&given)?.iter().map(|text| text.to_lowercase()).collect(),
                };
                Some(Test::Same(Arc::new(texts)))
            }
            _ => None,
        }
    }

    fn equals(&self, one: &Expr, other: &Expr) -> Option<Condition> {
        let (field, constant) = match (self.field(one), self.constant(other)) {
            (Some(field), Some(constant)) => (field, constant),
            _ => (self.field(other)?, self.constant(one)?),
        };
        let test = if let Some(text) = text(&constant) {
            Test::OneOf(Arc::new(std::iter::once(text.as_str().into()).collect()))
        } else if constant.is_unit() {
            Test::Equals(Constant::Absent)
        } else if let Ok(value) = constant.as_bool() {
            Test::Equals(Constant::Bool(value))
        } else {
            Test::Equals(Constant::Int(constant.as_int().ok()?))
        };
        Some(Condition::Test(field, test))
    }

    fn field(&self, expression: &Expr) -> Option<Field> {
        match self.chain(expression)? {
            (path, None) => field(&path),
            (_, Some(_)) => None,
        }
    }

    /// A constant: a literal, a constant of the file, or a parameter of the rule.
    fn constant(&self, expression: &Expr) -> Option<Dynamic> {
        if let Some(constant) = constant_of(expression) {
            return Some(constant);
        }
        match expression {
            Expr::Variable(name, ..) if name.2.is_empty() && !self.names.contains_key(name.1.as_str()) => {
                self.constants.get(name.1.as_str()).map(Dynamic::flatten_clone)
            }
            // `params.name`
            Expr::Dot(parts, ..) => {
                let (Expr::Variable(name, ..), Expr::Property(property, _)) = (&parts.lhs, &parts.rhs) else {
                    return None;
                };
                if !name.2.is_empty() || self.names.contains_key(name.1.as_str()) {
                    return None;
                }
                let map = self.constants.get(name.1.as_str())?.read_lock::<Map>()?.get(property.2.as_str())?.clone();
                Some(map)
            }
            _ => None,
        }
    }

    /// A path that starts at the event or at a name bound to part of it, and the method called at its end.
    fn chain<'e>(&self, expression: &'e Expr) -> Option<(Vec<Key>, Option<&'e FnCallExpr>)> {
        self.walk(expression, false)
    }

    /// Like [`Self::chain`]; with `picked`, an item of the method's result may be picked.
    fn walk<'e>(&self, expression: &'e Expr, picked: bool) -> Option<(Vec<Key>, Option<&'e FnCallExpr>)> {
        let (root, rest, index) = match expression {
            Expr::Variable(name, ..) => (name, None, false),
            Expr::Dot(parts, ..) | Expr::Index(parts, ..) => match &parts.lhs {
                Expr::Variable(name, ..) => (name, Some(&parts.rhs), matches!(expression, Expr::Index(..))),
                _ => return None,
            },
            _ => return None,
        };
        let Some(Bound::Path(begin)) = self.names.get(root.1.as_str()) else {
            return None;
        };
        let mut path = begin.clone();
        let mut method = None;
        if let Some(rest) = rest {
            steps(rest, index, picked, &mut path, &mut method)?;
        }
        Some((path, method))
    }
}

/// Follows a chain; `None` if it is not supported.
fn steps<'e>(
    step: &'e Expr,
    index: bool,
    picked: bool,
    path: &mut Vec<Key>,
    method: &mut Option<&'e FnCallExpr>,
) -> Option<()> {
    if let Some(method) = method
        && !matches!(step, Expr::Dot(..) | Expr::Index(..))
    {
        // Nothing else may be applied to a method's result: it could fail.
        let item = picked && index && method.name == "targets" && matches!(step, Expr::IntegerConstant(..));
        return item.then_some(());
    }
    match step {
        Expr::Dot(parts, ..) | Expr::Index(parts, ..) => {
            steps(&parts.lhs, index, picked, path, method)?;
            steps(&parts.rhs, matches!(step, Expr::Index(..)), picked, path, method)
        }
        Expr::Property(name, _) if !index && !["len", "is_empty"].contains(&name.2.as_str()) => {
            path.push(Key::Name(name.2.as_str().into()));
            Some(())
        }
        Expr::StringConstant(name, _) if index => {
            path.push(Key::Name(name.as_str().into()));
            Some(())
        }
        Expr::IntegerConstant(number, _) if index => {
            path.push(Key::Item(usize::try_from(*number).ok()?));
            Some(())
        }
        Expr::MethodCall(call, _) if !index && call.namespace.is_empty() => {
            *method = Some(call);
            Some(())
        }
        _ => None,
    }
}

/// The JSON location of a path in the view that scripts see.
fn field(path: &[Key]) -> Option<Field> {
    let Key::Name(first) = path.first()? else {
        return None;
    };
    let under = |before: &[&str], rest: &[Key], lenient: usize, only_text: bool| {
        let names = before.iter().map(|name| Key::Name((*name).into()));
        Some(Field::Raw(Path { keys: names.chain(rest.iter().cloned()).collect(), lenient, only_text }))
    };
    let rest = path.get(1..).unwrap_or_default();
    match (&**first, rest) {
        ("action", []) => Some(Field::Action),
        ("activity", []) => Some(Field::Activity),
        ("category", []) => Some(Field::Category),
        ("source", []) => Some(Field::Source),
        ("action" | "activity" | "category" | "source" | "time" | "geo" | "ip", _) => match (&**first, rest) {
            ("ip", []) => under(&["attributes", "location", "ip"], &[], 2, false),
            ("geo", [Key::Name(name)]) => match &**name {
                "country" => under(&["attributes", "location", "countryName"], &[], 2, true),
                "city" => under(&["attributes", "location", "city"], &[], 2, true),
                "region" => under(&["attributes", "location", "regionName"], &[], 2, true),
                _ => None,
            },
            _ => None,
        },
        ("actor", rest) => under(&["attributes", "actor"], rest, 1, false),
        // Only the view knows which entry `target` is; `flags` and `id` come from the agent, whatever the event has
        // under these names.
        ("target" | "flags" | "id", _) => None,
        _ => under(&[], path, 0, false),
    }
}

/// Whether a block does nothing but return false.
fn returns_false(statements: &[Stmt], last: bool) -> bool {
    match statements {
        [Stmt::Return(Some(answer), ..)] => matches!(**answer, Expr::BoolConstant(false, _)),
        // The last expression is the result.
        [Stmt::Expr(answer)] => last && matches!(**answer, Expr::BoolConstant(false, _)),
        _ => false,
    }
}

fn constant_of(expression: &Expr) -> Option<Dynamic> {
    match expression {
        Expr::StringConstant(text, _) => Some(text.clone().into()),
        Expr::BoolConstant(value, _) => Some((*value).into()),
        Expr::IntegerConstant(value, _) => Some((*value).into()),
        Expr::Unit(_) => Some(Dynamic::UNIT),
        Expr::DynamicConstant(value, _) => Some((**value).clone()),
        Expr::Array(items, _) => items.iter().map(constant_of).collect::<Option<Array>>().map(Dynamic::from_array),
        _ => None,
    }
}

fn text(value: &Dynamic) -> Option<ImmutableString> {
    value.read_lock::<ImmutableString>().map(|text| text.clone())
}

/// A list that contains only strings.
fn texts(value: &Dynamic) -> Option<Arc<BTreeSet<Box<str>>>> {
    let items = value.read_lock::<Array>()?;
    items.iter().map(|item| text(item).map(|text| text.as_str().into())).collect::<Option<_>>().map(Arc::new)
}
