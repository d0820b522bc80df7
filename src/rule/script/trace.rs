//! Tracing a rule's function: an instrumented copy runs and records what each part of it returned. Used by `explain`
//! and for failing tests; normal evaluation is not instrumented and pays nothing.
//!
//! The copy is made in the compiled tree: every field access, call and comparison is wrapped in a call of a function
//! that records the value and passes it on. The function's body then runs as a separate script, with the event as a
//! constant.

use std::{
    panic::AssertUnwindSafe,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rhai::{AST, Dynamic, Engine, Expr, FnCallExpr, Position, Scope, Stmt, StmtBlock};

use crate::rule::{
    manifest::{
        problem::RuleFailure,
        value::{describe, to_json_value},
    },
    script::{ast, call::RuleInput, compiled::CompiledRule, host::Call, memory::Memory, meter::Limits, sandbox},
};

/// Maximum number of notes: a loop would produce them without end.
const MAX_NOTES: usize = 500;
/// Name of the recording function. Rules cannot use it: it is registered with this module's engine only.
const NOTE: &str = "watchbell_note";

/// The value that one part of a function had.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Note {
    /// Line in the rule's file, counted from 1.
    pub line: usize,
    /// Column, in characters, counted from 1.
    pub column: usize,
    /// The part's source text, abbreviated.
    pub text: String,
    /// Its value, formatted for people.
    pub value: String,
    /// Whether the part reads the event, rather than testing a value that was read.
    pub reads: bool,
    /// Whether the value is absent, `()`.
    pub absent: bool,
    /// Whether the value is `false`.
    pub refused: bool,
}

/// The record of one call.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The function's name.
    pub function: String,
    /// The parts' values, in order of evaluation. Each place appears once, with its last value.
    pub notes: Vec<Note>,
    /// The returned value, formatted for people, or the failure.
    pub result: Result<String, RuleFailure>,
    /// The `return` or last expression that decided the result.
    pub decided: Option<Note>,
}

/// Runs instrumented copies of rules.
pub struct Tracer {
    engine: Engine,
    call: Arc<Call>,
    limits: Limits,
    notes: Arc<Mutex<Vec<(usize, Dynamic)>>>,
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Tracer({:?})", self.limits)
    }
}

impl Tracer {
    /// A tracer with `limits` scaled up to leave room for the cost of recording.
    pub fn new(limits: &Limits) -> Self {
        let limits = Limits { operations: limits.operations.saturating_mul(4), time: limits.time.saturating_mul(4) };
        let (mut engine, call) = sandbox::sandbox(&limits);
        let notes: Arc<Mutex<Vec<(usize, Dynamic)>>> = Arc::default();
        let kept = Arc::clone(&notes);
        engine.register_fn(NOTE, move |place: i64, value: Dynamic| -> Dynamic {
            let mut notes = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let (true, Ok(place)) = (notes.len() < MAX_NOTES, usize::try_from(place)) {
                notes.push((place, value.clone()));
            }
            value
        });
        Self { engine, call, limits, notes }
    }

    /// Sets the memory that traced rules read and write; it is empty at first.
    pub fn set_memory(&self, memory: Memory) {
        *self.call.memory() = memory;
    }

    /// Runs a function of a rule on an event. `None` if the rule has no such function.
    pub fn run(&self, rule: &CompiledRule, function: &str, input: &RuleInput<'_>) -> Option<Trace> {
        let mut marker = Marker { template: self.template()?, places: Vec::new() };
        let mut body = ast::body(&rule.ast, function)?;
        marker.statements(&mut body);
        let statements: Vec<Stmt> = imports(&rule.ast).into_iter().chain(body).collect();
        let mut ast = AST::new(statements, rule.ast.shared_lib().clone());
        ast.set_source(rule.file.to_string_lossy().as_ref());
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.call.begin(self.limits.time);
        self.call.set_about(Some(input.about(rule, function)));
        self.call.set_current(Arc::clone(&rule.running));
        let parameter = ast::parameter(&rule.ast, function)?;
        let event = input.value_for(rule);
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let mut scope = Scope::new();
            if rule.imports {
                scope.push_constant("params", rule.metadata.params.clone());
            }
            scope.push_constant(parameter, event);
            self.engine.eval_ast_with_scope::<Dynamic>(&mut scope, &ast)
        }));
        let exceeded = self.call.end();
        let result = match result {
            Ok(Ok(value)) => exceeded.map_or_else(|| Ok(show(&value)), |exceeded| Err(RuleFailure::exceeded(exceeded))),
            Ok(Err(error)) => Err(RuleFailure::of(&error)),
            Err(_) => Err(RuleFailure {
                kind: crate::rule::manifest::problem::FailureKind::Panicked,
                message: format!("internal error while tracing `{function}`; please report this rule"),
            }),
        };
        let recorded = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        let decided = recorded.last().and_then(|(place, value)| marker.note(*place, value));
        let mut notes: Vec<Note> = Vec::new();
        for (place, value) in &recorded {
            if let Some(note) = marker.note(*place, value) {
                // In a loop, the last value wins.
                let same =
                    |other: &Note| (other.line, other.column, &other.text) == (note.line, note.column, &note.text);
                notes.retain(|other| !same(other));
                notes.push(note);
            }
        }
        Some(Trace { function: function.to_owned(), notes, result, decided })
    }

    /// A call of the recording function, to be filled in.
    fn template(&self) -> Option<FnCallExpr> {
        let ast = self.engine.compile(format!("{NOTE}(0, 0)")).ok()?;
        ast.statements().iter().find_map(|statement| match statement {
            Stmt::FnCall(call, _) => Some((**call).clone()),
            Stmt::Expr(expression) => match &**expression {
                Expr::FnCall(call, _) => Some((**call).clone()),
                _ => None,
            },
            _ => None,
        })
    }
}

/// The file's imports, so that the copy sees them as well.
fn imports(ast: &AST) -> Vec<Stmt> {
    ast.statements().iter().filter(|statement| matches!(statement, Stmt::Import(..))).cloned().collect()
}

/// Wraps the parts of a function in calls of the recording function.
struct Marker {
    template: FnCallExpr,
    /// The position, source text and `reads` flag of each numbered place.
    places: Vec<(Position, String, bool)>,
}

impl Marker {
    fn note(&self, place: usize, value: &Dynamic) -> Option<Note> {
        let (position, text, reads) = self.places.get(place)?;
        Some(Note {
            line: position.line().unwrap_or(0),
            column: position.position().unwrap_or(0),
            text: text.clone(),
            value: show(value),
            reads: *reads,
            absent: value.is_unit(),
            refused: value.as_bool() == Ok(false),
        })
    }

    fn statements(&mut self, statements: &mut [Stmt]) {
        for statement in statements {
            self.statement(statement);
        }
    }

    fn block(&mut self, block: &mut StmtBlock) {
        self.statements(block.statements_mut());
    }

    fn statement(&mut self, statement: &mut Stmt) {
        match statement {
            Stmt::If(flow, _) | Stmt::While(flow, _) | Stmt::Do(flow, ..) => {
                self.expression(&mut flow.expr);
                self.block(&mut flow.body);
                self.block(&mut flow.branch);
            }
            Stmt::For(parts, _) => {
                self.expression(&mut parts.2.expr);
                self.block(&mut parts.2.body);
            }
            Stmt::Switch(parts, _) => {
                self.expression(&mut parts.0);
                for case in &mut parts.1.expressions {
                    self.expression(&mut case.lhs);
                    self.expression(&mut case.rhs);
                }
            }
            Stmt::Var(parts, ..) => self.expression(&mut parts.1),
            Stmt::Assignment(parts) => self.expression(&mut parts.1.rhs),
            Stmt::Block(block) => self.block(block),
            Stmt::TryCatch(flow, _) => {
                self.block(&mut flow.body);
                self.block(&mut flow.branch);
            }
            Stmt::FnCall(call, position) => {
                let mut expression = Expr::FnCall(call.clone(), *position);
                self.expression(&mut expression);
                *statement = Stmt::Expr(Box::new(expression));
            }
            Stmt::Expr(expression) => self.expression(expression),
            Stmt::Return(Some(expression), _, position) => {
                let text = format!("return {}", text(expression));
                self.expression(expression);
                self.wrap(expression, *position, text, false);
            }
            _ => {}
        }
    }

    fn expression(&mut self, expression: &mut Expr) {
        let (position, written) = (expression.start_position(), text(expression));
        match expression {
            Expr::And(operands, _) | Expr::Or(operands, _) | Expr::Coalesce(operands, _) => {
                for operand in operands.iter_mut() {
                    self.expression(operand);
                }
            }
            Expr::InterpolatedString(parts, _) | Expr::Array(parts, _) => {
                for part in parts.iter_mut() {
                    self.expression(part);
                }
            }
            Expr::Map(parts, _) => {
                for (_, part) in &mut parts.0 {
                    self.expression(part);
                }
            }
            Expr::Stmt(block) => self.block(block),
            Expr::Dot(parts, ..) | Expr::Index(parts, ..) => {
                if !matches!(parts.lhs, Expr::Variable(..) | Expr::ThisPtr(_)) {
                    self.expression(&mut parts.lhs);
                }
                let reads = !ends_in_call(&parts.rhs);
                self.arguments(&mut parts.rhs);
                self.wrap(expression, position, written, reads);
            }
            Expr::FnCall(call, _) => {
                for argument in &mut call.args {
                    self.expression(argument);
                }
                // A call that sees the caller's variables would see those of the recording function.
                if !call.capture_parent_scope {
                    self.wrap(expression, position, written, false);
                }
            }
            _ => {}
        }
    }

    /// Wraps the arguments of methods and indexes within a chain, but not its steps.
    fn arguments(&mut self, step: &mut Expr) {
        match step {
            Expr::Dot(parts, ..) | Expr::Index(parts, ..) => {
                self.arguments(&mut parts.lhs);
                self.arguments(&mut parts.rhs);
            }
            Expr::MethodCall(call, _) => {
                for argument in &mut call.args {
                    self.expression(argument);
                }
            }
            _ => {}
        }
    }

    fn wrap(&mut self, expression: &mut Expr, position: Position, text: String, reads: bool) {
        let number = self.places.len();
        self.places.push((position, text, reads));
        let mut call = self.template.clone();
        let inner = std::mem::take(expression);
        let place = Expr::IntegerConstant(i64::try_from(number).unwrap_or(i64::MAX), position);
        call.args = [place, inner].into_iter().collect();
        *expression = Expr::FnCall(Box::new(call), position);
    }
}

fn ends_in_call(step: &Expr) -> bool {
    match step {
        Expr::Dot(parts, ..) | Expr::Index(parts, ..) => ends_in_call(&parts.rhs),
        Expr::MethodCall(call, _) => !["get", "all", "targets"].contains(&call.name.as_str()),
        _ => false,
    }
}

/// An expression as source text, abbreviated if it is long.
fn text(expression: &Expr) -> String {
    let list = |items: &mut dyn Iterator<Item = &Expr>| items.map(text).collect::<Vec<_>>().join(", ");
    match expression {
        Expr::Variable(name, ..) => name.1.to_string(),
        Expr::Property(name, _) => name.2.to_string(),
        Expr::Dot(parts, ..) => {
            format!("{}.{}", text(&parts.lhs), text(&parts.rhs))
        }
        Expr::Index(parts, ..) => match &parts.rhs {
            // Rhai stores `a[0].b` as `a` indexed by `0.b`.
            Expr::Dot(inner, ..) => format!("{}[{}].{}", text(&parts.lhs), text(&inner.lhs), text(&inner.rhs)),
            Expr::Index(inner, ..) => format!("{}[{}][{}]", text(&parts.lhs), text(&inner.lhs), text(&inner.rhs)),
            index => format!("{}[{}]", text(&parts.lhs), text(index)),
        },
        Expr::FnCall(call, _) | Expr::MethodCall(call, _) => {
            let operator = call.op_token.is_some();
            match (operator, call.args.as_slice()) {
                (true, [one]) => format!("{}{}", call.name, text(one)),
                (true, [one, other]) => format!("{} {} {}", text(one), call.name, text(other)),
                _ => format!("{}({})", call.name, list(&mut call.args.iter())),
            }
        }
        Expr::And(operands, _) => operands.iter().map(text).collect::<Vec<_>>().join(" && "),
        Expr::Or(operands, _) => operands.iter().map(text).collect::<Vec<_>>().join(" || "),
        Expr::Coalesce(operands, _) => operands.iter().map(text).collect::<Vec<_>>().join(" ?? "),
        Expr::InterpolatedString(..) => "`…`".to_owned(),
        Expr::Array(items, _) => format!("[{}]", list(&mut items.iter())),
        Expr::Map(..) => "#{ … }".to_owned(),
        Expr::Stmt(_) => "{ … }".to_owned(),
        constant => constant.get_literal_value(None).map_or_else(|| "…".to_owned(), |value| show(&value)),
    }
}

/// A value formatted for people, truncated if it is long.
pub(in crate::rule) fn show(value: &Dynamic) -> String {
    let text = if value.is_unit() {
        return "()".to_owned();
    } else if value.is_string() {
        format!("{:?}", value.to_string())
    } else if value.is_map() || value.is_array() || value.is_int() || value.is_float() || value.is_bool() {
        to_json_value(value).to_string()
    } else {
        describe(value)
    };
    match text.char_indices().nth(120) {
        Some((cut, _)) => format!("{}…", text.get(..cut).unwrap_or_default()),
        None => text,
    }
}

/// The source line that a note is about.
pub fn line_of(rule: &CompiledRule, line: usize) -> Option<String> {
    let text = rule.running.resources.imports.text(Path::new(&rule.file))?;
    text.lines().nth(line.checked_sub(1)?).map(|line| line.trim().to_owned())
}
