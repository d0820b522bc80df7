//! Lints for the conditions of exceptions. They find the same misspelled functions and fields as in rules; without
//! them, the exception would just never suppress anything.

use super::{Lint, Vocabulary};
use crate::{
    config::diagnostic::Diagnostic,
    rule::{
        manifest::exception::{Exception, ExceptionCondition},
        script::{compiled::CompiledRule, meter::Limits, sandbox},
    },
};

/// Returns the warnings about an exception's condition, for one of the rules that it applies to.
pub fn lint_exception(exception: &Exception, rule: &CompiledRule, vocabulary: &Vocabulary) -> Vec<Diagnostic> {
    let ExceptionCondition::Expression { text, .. } = &exception.condition else {
        // Slots are checked against the rules' declarations when exceptions are loaded.
        return Vec::new();
    };
    let (mut engine, _) = sandbox::sandbox(&Limits::default());
    engine.set_strict_variables(false);
    engine.set_optimization_level(rhai::OptimizationLevel::None);
    let Ok(ast) = engine.compile_expression(text) else {
        return Vec::new();
    };
    let mut lint = Lint {
        rule,
        file: &exception.place.file,
        text: text.as_str().into(),
        vocabulary,
        warnings: Vec::new(),
        tried: 0,
    };
    lint.expressions(&ast);
    // Report the place of the exception: the condition is a TOML string, so its own positions do not fit the file.
    let at_exception = |diagnostic: Diagnostic| {
        let message = format!("exception `{}`: {}", exception.id, diagnostic.message);
        let warning = exception.place.warning(diagnostic.code, message);
        match diagnostic.help {
            Some(help) => warning.help(help),
            None => warning,
        }
    };
    lint.warnings.into_iter().map(at_exception).collect()
}
