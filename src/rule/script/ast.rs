//! Helpers for Rhai syntax trees.

use std::sync::Arc;

use rhai::{AST, Module, Stmt};

/// The statements of a function with one parameter, without those of the closures in it.
pub(in crate::rule) fn body(ast: &AST, function: &str) -> Option<Vec<Stmt>> {
    let (_, _, _, _, definition) = ast
        .shared_lib()
        .iter_script_fn_info()
        .find(|(_, _, name, parameters, _)| *name == function && *parameters == 1)?;
    let mut statements = Vec::new();
    // Walk the function alone: closures are separate functions whose statements are within its lines. (The function
    // filter of Rhai 1.27 lets all of them through.)
    let mut module = Module::new();
    module.set_script_fn(Arc::clone(definition));
    let alone = AST::new([], module);
    alone.walk(&mut |nodes| {
        if let [rhai::ASTNode::Stmt(statement)] = nodes {
            statements.push((*statement).clone());
        }
        true
    });
    Some(statements)
}

/// The name of a function's only parameter.
pub(in crate::rule) fn parameter(ast: &AST, function: &str) -> Option<String> {
    let found = ast.iter_functions().find(|found| found.name == function && found.params.len() == 1)?;
    found.params.first().map(|name| (*name).to_owned())
}
