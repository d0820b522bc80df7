//! Looking over the conditions of exceptions: the same misspelt functions and fields as in rules, which there would only show as an
//! exception that never hides anything.

use super::{Lint, Vocabulary};
use crate::{
    config::diagnostic::Diagnostic,
    rule::{
        manifest::exception::{Exception, ExceptionCondition},
        script::{compiled::CompiledRule, meter::Limits, sandbox},
    },
};

/// What is doubtful about an exception's condition, for one of the rules that it is about.
pub fn lint_exception(exception: &Exception, rule: &CompiledRule, vocabulary: &Vocabulary) -> Vec<Diagnostic> {
    let ExceptionCondition::Expression { text, .. } = &exception.condition else {
        // Slots are held to what rules declare where exceptions are loaded.
        return Vec::new();
    };
    let (mut engine, _) = sandbox::sandbox(&Limits::default());
    engine.set_strict_variables(false);
    engine.set_optimization_level(rhai::OptimizationLevel::None);
    let Ok(ast) = engine.compile_expression(text) else {
        return Vec::new();
    };
    let mut lint =
        Lint { rule, file: &exception.place.file, text: text.as_str().into(), vocabulary, found: Vec::new(), tried: 0 };
    lint.expressions(&ast);
    // Places in the condition are told as that of the exception: its text stands in quotes of TOML.
    let at_exception = |found: Diagnostic| {
        let message = format!("exception `{}`: {}", exception.id, found.message);
        let told = exception.place.warning(found.code, message);
        match found.help {
            Some(help) => told.help(help),
            None => told,
        }
    };
    lint.found.into_iter().map(at_exception).collect()
}
