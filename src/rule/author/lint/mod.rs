//! Lints for rules that compile, but probably do not do what their author meant or are not yet good enough to page
//! someone.
//!
//! All lints are warnings. Doubtful code is found in the syntax tree, and missing information in the metadata.

use std::{collections::HashSet, path::Path, sync::Arc};

use rhai::{AST, ASTNode, Expr, FnCallExpr, Position, Stmt};

use crate::rule::{
    author::test_file::{self, test_file},
    manifest::problem::span,
    script::{
        compiled::{CompiledRule, EXPIRED, OPTIONAL_FUNCTIONS, RuleKind},
        library::TOPICS,
        meter::Limits,
        sandbox,
        vocabulary::Vocabulary,
    },
};
use crate::{
    config::diagnostic::{Diagnostic, nearest},
    model::certainty::Certainty,
};

mod condition;
mod constants;
mod keys;

pub use condition::lint_exception;

/// Functions of Rhai's standard library, as its book lists them. All other calls must be to ours or the rule's own.
const STANDARD: &[&str] = &[
    "abs",
    "acos",
    "acosh",
    "all",
    "append",
    "as_string",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "bits",
    "blob",
    "bytes",
    "call",
    "ceiling",
    "char",
    "chars",
    "chop",
    "clear",
    "contains",
    "cos",
    "cosh",
    "crop",
    "curry",
    "debug",
    "dedup",
    "degrees",
    "drain",
    "end",
    "ends_with",
    "exclusive_end",
    "exp",
    "exclusive",
    "extract",
    "fill_with",
    "filter",
    "find",
    "find_map",
    "floor",
    "Fn",
    "for_each",
    "fraction",
    "get",
    "get_bit",
    "get_bits",
    "hypot",
    "inclusive",
    "index_of",
    "insert",
    "int",
    "is_anonymous",
    "is_def_fn",
    "is_def_var",
    "is_empty",
    "is_even",
    "is_exclusive",
    "is_finite",
    "is_inclusive",
    "is_infinite",
    "is_nan",
    "is_odd",
    "is_shared",
    "is_zero",
    "keys",
    "len",
    "ln",
    "log",
    "make_lower",
    "make_upper",
    "map",
    "max",
    "min",
    "mixin",
    "name",
    "order",
    "order_by",
    "order_desc",
    "pad",
    "parse_float",
    "parse_int",
    "parse_json",
    "pop",
    "print",
    "push",
    "radians",
    "range",
    "reduce",
    "reduce_rev",
    "remove",
    "replace",
    "retain",
    "reverse",
    "round",
    "set",
    "set_bit",
    "set_bits",
    "set_tag",
    "shift",
    "sign",
    "sin",
    "sinh",
    "some",
    "sort",
    "splice",
    "split",
    "split_at",
    "split_rev",
    "sqrt",
    "start",
    "starts_with",
    "step",
    "sub_string",
    "tag",
    "take",
    "tan",
    "tanh",
    "throw",
    "to_array",
    "to_binary",
    "to_char",
    "to_chars",
    "to_debug",
    "to_degrees",
    "to_float",
    "to_hex",
    "to_int",
    "to_json",
    "to_lower",
    "to_octal",
    "to_radians",
    "to_string",
    "to_upper",
    "trim",
    "trim_end",
    "trim_start",
    "truncate",
    "type_of",
    "values",
    "write_utf8",
    "zip",
    "fill",
    "eval",
    "import",
    "is_def",
];

/// Techniques that ATT&CK v19 (April 2026) revoked when it split Defense Evasion, with what replaced them
/// (attack.mitre.org/resources/updates/updates-april-2026).
const REVOKED: &[(&str, &str)] = &[
    ("T1562", "T1685"),
    ("T1562.001", "T1685"),
    ("T1562.002", "T1685.001"),
    ("T1562.004", "T1686"),
    ("T1562.006", "T1685"),
    ("T1562.007", "T1686.001"),
    ("T1562.008", "T1685.002"),
    ("T1562.009", "T1688"),
    ("T1562.010", "T1689"),
    ("T1562.012", "T1685.004"),
    ("T1070.001", "T1685.005"),
    ("T1070.002", "T1685.006"),
    ("T1656", "T1684.001"),
];

/// Maximum number of names of each kind that are checked, and of calls that are tried. No real rule has more.
const MOST_DOUBTS: usize = 200;

/// Returns the warnings about a rule.
pub fn lint(rule: &CompiledRule, vocabulary: &Vocabulary) -> Vec<Diagnostic> {
    let Some(text) = rule.running.resources.imports.text(&rule.file) else {
        // A built-in rule, which tests check.
        return Vec::new();
    };
    let (mut engine, _) = sandbox::sandbox(&Limits::default());
    engine.set_strict_variables(false);
    engine.set_optimization_level(rhai::OptimizationLevel::None);
    let Ok(ast) = engine.compile(&*text) else {
        return Vec::new();
    };
    let mut lint = Lint { rule, file: &rule.file, text, vocabulary, warnings: Vec::new(), tried: 0 };
    lint.metadata();
    lint.functions(&ast);
    lint.expressions(&ast);
    lint.keys(&ast);
    lint.warnings.sort_by_key(|warning| (warning.line, warning.column));
    lint.warnings.dedup();
    lint.warnings
}

struct Lint<'a> {
    rule: &'a CompiledRule,
    file: &'a Path,
    text: Arc<str>,
    vocabulary: &'a Vocabulary,
    warnings: Vec<Diagnostic>,
    /// The number of calls that were tried.
    tried: usize,
}

impl Lint<'_> {
    fn warn(&mut self, code: &'static str, at: std::ops::Range<usize>, message: String, help: impl Into<String>) {
        self.warnings.push(Diagnostic::warning(code, self.file, message).at(&self.text, at).help(help));
    }

    fn at(&self, position: Position) -> std::ops::Range<usize> {
        span(&self.text, position)
    }

    fn metadata(&mut self) {
        let metadata = &self.rule.metadata;
        let head = self.rule.places.whole.clone();
        if self.rule.kind != RuleKind::Detection {
            return;
        }
        if let Err(mut problems) = test_file::text_of(&test_file(self.file)) {
            self.warnings.append(&mut problems);
        }
        if !test_file(self.file).exists() {
            let name = test_file(self.file).file_name().unwrap_or_default().to_string_lossy().into_owned();
            let help = format!(
                "add `{name}` next to the rule; `watchbell rules new --help` shows how to start from a stored event"
            );
            self.warn("W401", head.clone(), "the rule has no tests".to_owned(), help);
        }
        if metadata.runbook.is_none() && !self.rule.has("runbook") {
            let help = "add `runbook: \"…\"`: how to verify the alert, how to undo the change, whom to ask";
            self.warn("W402", head.clone(), "the rule has no runbook".to_owned(), help);
        }
        // `attack: []` states that none applies.
        if metadata.attack.is_empty() && !metadata.declared.iter().any(|key| key == "attack") {
            let help = "add `attack: [\"T1098.003\"]` (attack.mitre.org lists techniques for the Identity Provider and \
                        SaaS platforms), or `attack: []` if none applies";
            self.warn("W403", head.clone(), "the rule has no ATT&CK technique".to_owned(), help);
        }
        for id in metadata.attack.clone() {
            if let Some((_, now)) = REVOKED.iter().find(|(revoked, _)| *revoked == id) {
                let message = format!("`{id}` was revoked in ATT&CK v19");
                self.warn("W404", self.rule.places.text("attack", &id), message, format!("use `{now}` instead"));
            }
            if !is_attack_id(&id) {
                let help = "write a tactic such as `TA0004`, or a technique such as `T1098` or `T1098.003`";
                self.warn("W404", self.rule.places.text("attack", &id), format!("`{id}` is not an ATT&CK ID"), help);
            }
        }
        if !self.rule.has("title") && !self.rule.has("dedup") && metadata.group_by.is_none() {
            let help = "add `fn dedup(event)`, or a `fn title(event)` that names the actor and the target";
            let message =
                "all matches of the rule join one alert, because its title never changes and it has no `fn dedup`";
            self.warn("W405", head, message.to_owned(), help);
        }
        self.actions();
        for field in metadata.group_by.clone().unwrap_or_default() {
            if let Some(doubt) = self.vocabulary.doubt_field(&with_any_index(&field)) {
                let message = format!("`group_by`: no known event has `{field}`");
                self.warn("W407", self.rule.places.text("group_by", &field), message, doubt);
            }
        }
        for (slot, fields) in metadata.exception_slots.clone() {
            for field in fields {
                let path = with_any_index(&field);
                if let Some(doubt) = self.vocabulary.doubt_field(&path) {
                    let message = format!("exception slot `{slot}`: no known event has `{field}`");
                    self.warn("W407", self.rule.places.text("exception_slots", &field), message, doubt);
                }
            }
        }
    }

    /// Unknown actions and activities. A rule that states its `evidence` may include guesses, if some names are known.
    fn actions(&mut self) {
        let metadata = &self.rule.metadata;
        let doubts =
            |names: &Option<Vec<String>>, doubt: &dyn Fn(&str) -> Option<String>| -> Vec<(String, Option<String>)> {
                names.iter().flatten().take(MOST_DOUBTS).map(|name| (name.clone(), doubt(name))).collect()
            };
        let activities = doubts(&metadata.activities, &|name| self.vocabulary.doubt_activity(name));
        let actions = doubts(&metadata.actions, &|action| self.vocabulary.doubt_action(action));
        let any_known = activities.iter().chain(&actions).any(|(_, doubt)| doubt.is_none());
        let assumed = metadata.evidence == Some(Certainty::Assumed);
        let guesses = metadata.evidence.is_some() && any_known;
        for (code, key, what, doubts) in
            [("W408", "activities", "activity", activities), ("W406", "actions", "action", actions)]
        {
            for (name, doubt) in doubts {
                let Some(doubt) = doubt.filter(|doubt| !assumed && (!guesses || doubt.starts_with("did you mean")))
                else {
                    continue;
                };
                let message = format!("unknown {what} `{name}`: the rule may never run");
                self.warn(code, self.rule.places.text(key, &name), message, doubt);
            }
        }
    }

    /// Functions that are never called.
    fn functions(&mut self, ast: &AST) {
        let mut called: HashSet<String> = HashSet::new();
        ast.walk(&mut |nodes| {
            match nodes.last() {
                Some(
                    ASTNode::Expr(Expr::FnCall(call, _) | Expr::MethodCall(call, _))
                    | ASTNode::Stmt(Stmt::FnCall(call, _)),
                ) => {
                    called.insert(call.name.to_string());
                }
                // `Fn("name")`, or a function's name passed to a method.
                Some(ASTNode::Expr(Expr::StringConstant(name, _))) => {
                    called.insert(name.to_string());
                }
                Some(ASTNode::Expr(Expr::Variable(parts, _, _))) => {
                    called.insert(parts.1.to_string());
                }
                _ => {}
            }
            true
        });
        let hooks: Vec<&str> =
            OPTIONAL_FUNCTIONS.iter().copied().chain(["rule", "check", "check_agent", EXPIRED]).collect();
        let unused: Vec<String> = ast
            .iter_functions()
            .filter(|function| {
                !function.name.contains('$') && !hooks.contains(&function.name) && !called.contains(function.name)
            })
            .map(|function| function.name.to_owned())
            .collect();
        for name in unused {
            // A name similar to that of a rule's function was already reported when the file was compiled.
            if nearest(&name, hooks.iter().copied()).is_none() {
                let at = crate::rule::load::compile::function_span(&self.text, &name);
                self.warn("W203", at, format!("`fn {name}` is never called"), "call it or remove it");
            }
        }
    }

    fn expressions(&mut self, ast: &AST) {
        let own: Vec<(String, usize)> =
            ast.iter_functions().map(|function| (function.name.to_owned(), function.params.len())).collect();
        let mut calls: Vec<(FnCallExpr, Position, bool)> = Vec::new();
        let mut chains: Vec<(Expr, Position)> = Vec::new();
        ast.walk(&mut |nodes| {
            let inside_chain = nodes.len() > 1
                && matches!(nodes.get(nodes.len() - 2), Some(ASTNode::Expr(Expr::Dot(..) | Expr::Index(..))));
            match nodes.last() {
                Some(ASTNode::Expr(Expr::FnCall(call, position)) | ASTNode::Stmt(Stmt::FnCall(call, position))) => {
                    calls.push(((**call).clone(), *position, false));
                }
                Some(ASTNode::Expr(Expr::MethodCall(call, position))) => {
                    calls.push(((**call).clone(), *position, true));
                }
                Some(ASTNode::Expr(chain @ (Expr::Dot(..) | Expr::Index(..)))) if !inside_chain => {
                    chains.push(((*chain).clone(), chain.start_position()));
                }
                _ => {}
            }
            true
        });
        for (call, position, method) in &calls {
            self.call(call, *position, *method, &own);
        }
        for (chain, position) in &chains {
            self.chain(chain, *position);
        }
    }

    fn call(&mut self, call: &FnCallExpr, position: Position, method: bool, own: &[(String, usize)]) {
        let name = call.name.as_str();
        if call.op_token.is_some() {
            self.comparison(call, position);
            return;
        }
        if !call.namespace.is_empty() || name.contains('$') || !name.starts_with(|first: char| first.is_alphabetic()) {
            return;
        }
        self.arguments(call, position, method);
        let arguments = call.args.len() + usize::from(method);
        if own.iter().any(|(function, _)| function == name) {
            let counts: Vec<usize> =
                own.iter().filter(|(function, _)| function == name).map(|(_, count)| *count).collect();
            // If a rule's own function is called as a method, its object becomes `this`.
            if !counts.contains(&call.args.len()) && !counts.contains(&arguments) {
                let message = format!("`fn {name}` takes {}, found {}", list(&counts), call.args.len());
                self.warn("W205", self.at(position), message, "the call fails when it is reached");
            }
            return;
        }
        let host = TOPICS.iter().flat_map(|subject| subject.functions).find(|function| function.name == name);
        let standard = STANDARD.contains(&name);
        match host {
            Some(function) if !standard && !function.takes(arguments) => {
                let takes: Vec<&str> = function.parameters.iter().map(|parameter| parameter.name).collect();
                let plural = if arguments == 1 { "" } else { "s" };
                let message = format!("`{name}({})` is called with {arguments} argument{plural}", takes.join(", "));
                self.warn("W205", self.at(position), message, "the call fails when it is reached");
            }
            Some(_) => {}
            None if standard => {}
            None => {
                // Search our own functions first, because they are more likely to be meant.
                let ours = TOPICS.iter().flat_map(|subject| subject.functions).map(|function| function.name);
                let ours = ours.chain(own.iter().map(|(name, _)| name.as_str()));
                if let Some(near) = nearest(name, ours).or_else(|| nearest(name, STANDARD.iter().copied())) {
                    let message = format!("unknown function `{name}`");
                    self.warn("W206", self.at(position), message, format!("did you mean `{near}`?"));
                }
            }
        }
    }

    /// Fields that no known event has.
    fn chain(&mut self, chain: &Expr, position: Position) {
        self.parameter(chain, position);
        let Some(walked) = path(chain) else {
            return;
        };
        // Fields that the event of a rule with `on` has in addition.
        let first = walked.split('.').next().unwrap_or_default();
        if self.rule.metadata.on.is_some() && ["rule", "severity", "key", "title", "risk", "opened"].contains(&first) {
            return;
        }
        if self.rule.expires && ["key", "expected", "since"].contains(&first) {
            return;
        }
        if let Some(doubt) = self.vocabulary.doubt_field(&walked) {
            let message = format!("no known event has `event.{}`", walked.replace("[]", "[…]"));
            self.warn("W207", self.at(position), message, doubt);
        }
    }
}

fn list(counts: &[usize]) -> String {
    let counts: Vec<String> = counts.iter().map(ToString::to_string).collect();
    format!("{} argument{}", counts.join(" or "), if counts.as_slice() == ["1"] { "" } else { "s" })
}

fn is_attack_id(id: &str) -> bool {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(tactic) = id.strip_prefix("TA") {
        return digits(tactic, 4);
    }
    match id.strip_prefix('T').map(|rest| rest.split_once('.').map_or((rest, None), |(one, other)| (one, Some(other))))
    {
        Some((technique, sub)) => digits(technique, 4) && sub.is_none_or(|sub| digits(sub, 3)),
        None => false,
    }
}

/// Turns `a[0].b` into `a[].b`.
fn with_any_index(path: &str) -> String {
    let mut result = String::new();
    let mut inside = false;
    for character in path.chars() {
        match character {
            '[' => {
                inside = true;
                result.push('[');
            }
            ']' => {
                inside = false;
                result.push(']');
            }
            _ if inside => {}
            other => result.push(other),
        }
    }
    result
}

/// Returns the path below `event` that an expression reads.
fn path(expression: &Expr) -> Option<String> {
    let mut walked = String::new();
    path_into(expression, &mut walked)?;
    (!walked.is_empty()).then_some(walked)
}

/// Follows a chain that starts at the variable `event`, as long as it consists of properties, indexes and `targets`.
/// Everything after any other call is ignored.
fn path_into(chain: &Expr, walked: &mut String) -> Option<()> {
    let (Expr::Dot(parts, ..) | Expr::Index(parts, ..)) = chain else {
        return None;
    };
    let Expr::Variable(name, ..) = &parts.lhs else {
        return None;
    };
    if name.1 != "event" {
        return None;
    }
    follow(&parts.rhs, matches!(chain, Expr::Index(..)), walked);
    Some(())
}

/// Appends a step to the path. Returns whether the path may continue after it.
fn follow(step: &Expr, index: bool, walked: &mut String) -> bool {
    match step {
        Expr::Dot(parts, ..) | Expr::Index(parts, ..) => {
            follow(&parts.lhs, index, walked) && follow(&parts.rhs, matches!(step, Expr::Index(..)), walked)
        }
        Expr::Property(name, _) => {
            // Every string and list has these.
            if ["len", "is_empty"].contains(&name.2.as_str()) {
                return false;
            }
            if !walked.is_empty() {
                walked.push('.');
            }
            walked.push_str(&name.2);
            true
        }
        Expr::MethodCall(call, _) => match (call.name.as_str(), call.args.as_slice()) {
            ("targets", _) if walked.is_empty() => {
                walked.push_str("attributes.context");
                true
            }
            ("target", _) if walked.is_empty() => {
                walked.push_str("attributes.context[]");
                true
            }
            ("get" | "has", [Expr::StringConstant(path, _), ..]) if walked.is_empty() => {
                walked.push_str(&with_any_index(path));
                false
            }
            _ => false,
        },
        Expr::StringConstant(key, _) if index => {
            if !walked.is_empty() {
                walked.push('.');
            }
            walked.push_str(key);
            true
        }
        _ if index => {
            walked.push_str("[]");
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attack_ids() {
        for good in ["TA0004", "T1098", "T1098.003"] {
            assert!(is_attack_id(good), "{good}");
        }
        for bad in ["", "T1", "TA4", "T1098.3", "t1098", "T1098.0033", "X"] {
            assert!(!is_attack_id(bad), "{bad}");
        }
    }

    #[test]
    fn indexes_are_any() {
        assert_eq!(with_any_index("a[0].b[12].c"), "a[].b[].c");
    }
}
