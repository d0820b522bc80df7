//! Lints for constants in a rule: comparisons that are never true, arguments that are always invalid, and unknown
//! parameters.

use rhai::{Array, Dynamic, Expr, FnCallExpr, Position};

use super::{Lint, MOST_DOUBTS, path};
use crate::{
    config::diagnostic::{nearest, suggest},
    model::time,
    rule::{
        manifest::pattern,
        script::{library::TOPICS, meter::Limits, sandbox, vocabulary::Vocabulary},
    },
};

impl Lint<'_> {
    /// Constant arguments that a host function always rejects. The function is called with the constants, and with a
    /// placeholder for the value that comes from the event.
    pub(super) fn arguments(&mut self, call: &FnCallExpr, position: Position, method: bool) {
        let host = TOPICS.iter().flat_map(|subject| subject.functions).find(|function| function.name == call.name);
        let Some(function) = host.filter(|function| !function.errors.is_empty()) else {
            return;
        };
        let object = method.then_some(None);
        let given: Vec<Option<Dynamic>> = object.into_iter().chain(call.args.iter().map(constant)).collect();
        if !function.takes(given.len()) {
            return;
        }
        // `common("name").count(…)` passes the shared memory first.
        let shared = given.len().saturating_sub(function.parameters.len());
        for (parameter, value) in function.parameters.iter().zip(given.iter().skip(shared)) {
            let Some(value) = value.as_ref().filter(|_| parameter.takes == "duration") else {
                continue;
            };
            let text = value.clone().into_string().ok();
            if text.is_none_or(|text| time::parse_duration(&text).is_err()) {
                let name = parameter.name;
                let message = format!("`{value}` is not a duration: `{}` expects one as `{name}`", call.name);
                self.warn("W210", self.at(position), message, "write a duration such as `90s`, `10m` or `7d`");
                return;
            }
        }
        // The first argument comes from the event, the others from the author.
        let (Some(first), [_, own @ ..]) = (function.parameters.first(), given.as_slice()) else {
            return;
        };
        let anything = match first.name {
            "text" => "x",
            "ip" => "192.0.2.1",
            "time" => "2026-01-01T12:00:00Z",
            _ => return,
        };
        let Some(own) = own.iter().cloned().collect::<Option<Vec<Dynamic>>>().filter(|own| !own.is_empty()) else {
            return;
        };
        self.tried += 1;
        if self.tried > MOST_DOUBTS {
            return;
        }
        let (_, host) = sandbox::sandbox(&Limits::default());
        let anything = Dynamic::from(anything.to_owned());
        let arguments: Vec<&Dynamic> = std::iter::once(&anything).chain(&own).collect();
        if let Err(reason) = function.attempt(&host, &arguments) {
            let help = format!("the call fails on every event: {}", function.errors);
            self.warn("W210", self.at(position), format!("`{}`: {reason}", call.name), help);
        }
    }

    /// Parameters that the rule does not have. At run time they are silently absent.
    pub(super) fn parameter(&mut self, chain: &Expr, position: Position) {
        let Expr::Dot(parts, ..) = chain else {
            return;
        };
        let step = match &parts.rhs {
            Expr::Dot(inner, ..) | Expr::Index(inner, ..) => &inner.lhs,
            step => step,
        };
        let (Expr::Variable(name, ..), Expr::Property(property, _)) = (&parts.lhs, step) else {
            return;
        };
        let known = &self.rule.metadata.params;
        if name.1 != "params" || known.contains_key(property.2.as_str()) {
            return;
        }
        let help = if known.is_empty() {
            format!("add `params: #{{ {}: … }}` to `RULE`", property.2)
        } else {
            suggest(&property.2, known.keys().map(|key| key.as_str()))
        };
        self.warn("W209", self.at(position), format!("the rule has no parameter `{}`", property.2), help);
    }

    /// Comparisons that are never or always true.
    pub(super) fn comparison(&mut self, call: &FnCallExpr, position: Position) {
        let (true, [one, other]) = (call.name == "==" || call.name == "!=", call.args.as_slice()) else {
            return;
        };
        let always = if call.name == "==" { "never" } else { "always" };
        for (side, constant) in [(one, other), (other, one)] {
            let at = self.at(constant.start_position());
            let at = if at.is_empty() { self.at(position) } else { at };
            if let Expr::StringConstant(text, _) = constant {
                match last_call(side) {
                    Some("to_lower") if text.chars().any(char::is_uppercase) => {
                        let message = format!("this is {always} true: a lower-case string cannot equal `{text}`");
                        self.warn("W208", at, message, format!("write `{}`", text.to_lowercase()));
                        continue;
                    }
                    Some("to_upper") if text.chars().any(char::is_lowercase) => {
                        let message = format!("this is {always} true: an upper-case string cannot equal `{text}`");
                        self.warn("W208", at, message, format!("write `{}`", text.to_uppercase()));
                        continue;
                    }
                    _ => {}
                }
            }
            let Some(path) = path(side) else {
                continue;
            };
            match constant {
                Expr::StringConstant(action, _) if ["action", "attributes.action"].contains(&path.as_str()) => {
                    // With `activities`, the action ids depend on the organization.
                    let (Some(actions), None) = (self.rule.metadata.actions.clone(), &self.rule.metadata.activities)
                    else {
                        continue;
                    };
                    let wanted = |pattern: &String| {
                        pattern::glob(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(&**action))
                    };
                    if !actions.iter().any(wanted) {
                        let message = format!(
                            "this is {always} true: the rule runs only on {}, not on `{action}`",
                            actions.iter().map(|action| format!("`{action}`")).collect::<Vec<_>>().join(", ")
                        );
                        let near = nearest(action, actions.iter().map(String::as_str));
                        let help = near.map_or_else(
                            || format!("add `{action}` to `actions`"),
                            |near| format!("did you mean `{near}`?"),
                        );
                        self.warn("W208", at, message, help);
                    }
                }
                Expr::IntegerConstant(..) | Expr::FloatConstant(..) | Expr::BoolConstant(..)
                    if Vocabulary::is_text(&path) =>
                {
                    let message = format!("this is {always} true: `event.{path}` is a string");
                    self.warn("W208", at, message, "compare it with a string");
                }
                _ => {}
            }
        }
    }
}

/// Returns the value of an expression that does not depend on the event.
fn constant(expression: &Expr) -> Option<Dynamic> {
    match expression {
        Expr::StringConstant(text, _) => Some(Dynamic::from(text.clone())),
        Expr::IntegerConstant(number, _) => Some(Dynamic::from(*number)),
        Expr::BoolConstant(value, _) => Some(Dynamic::from(*value)),
        Expr::Array(items, _) => items.iter().map(constant).collect::<Option<Array>>().map(Dynamic::from),
        _ => None,
    }
}

/// Returns the name of the method that a chain ends with.
fn last_call(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Dot(parts, ..) | Expr::Index(parts, ..) => last_call(&parts.rhs),
        Expr::MethodCall(call, _) => Some(call.name.as_str()),
        _ => None,
    }
}
