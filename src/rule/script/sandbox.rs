//! The sandbox: a Rhai engine with limits, and without clock, files, `eval` or `sleep`.
//!
//! The budget of a call is counted in operations, which are the same on every machine, so that a replay fails where
//! the live run did. The wall-clock limit is a safety net for what operations do not cover. Each thread that runs
//! rules has its own engine; compiled rules are shared.

use std::sync::Arc;

use rhai::packages::{Package, StandardPackage};
use rhai::{Dynamic, Engine, EvalAltResult, Module, ModuleResolver, OptimizationLevel, Position, Shared, Token};

use crate::rule::script::{
    bounds::{MAX_ITEMS, MAX_STRING},
    host::Call,
    library,
    meter::Limits,
    natives::{self, CURRIED},
};

/// Maximum number of variables at a time. With `MAX_STRING` and `MAX_CALL_LEVELS`, this limits the memory of a call
/// to a few hundred megabytes, which operations and time keep realistic rules from reaching.
const MAX_VARIABLES: usize = 64;
/// Maximum depth of function calls. Rhai recurses on the machine's stack: see
/// [`STACK`](crate::rule::script::stack::STACK).
const MAX_CALL_LEVELS: usize = 24;
/// Maximum nesting of expressions, at top level and inside functions.
const MAX_EXPRESSION_DEPTH: usize = 48;

/// A thread's engine, and the handle that its callbacks share.
pub(in crate::rule) fn sandbox(limits: &Limits) -> (Engine, Arc<Call>) {
    let call = Arc::new(Call::new(limits));
    let mut engine = Engine::new_raw();
    engine.register_global_module(StandardPackage::new().as_shared_module());
    engine.set_optimization_level(OptimizationLevel::Simple);
    engine.set_strict_variables(true);
    engine.set_max_call_levels(MAX_CALL_LEVELS);
    engine.set_max_variables(MAX_VARIABLES);
    engine.set_max_string_size(MAX_STRING);
    engine.set_max_array_size(MAX_ITEMS);
    engine.set_max_map_size(MAX_ITEMS);
    engine.set_max_modules(16);
    engine.set_max_functions(500);
    engine.set_max_expr_depths(MAX_EXPRESSION_DEPTH, MAX_EXPRESSION_DEPTH);
    engine.disable_symbol("eval");
    // `this` is not a variable, so no callback of Rhai sees how large it grows.
    engine.disable_symbol("this");
    // Rhai copies curried values with each copy of the function, outside all limits. A limited replacement has
    // another name.
    #[expect(deprecated, reason = "marked as volatile, not deprecated, by Rhai's author")]
    engine.on_parse_token(|token, _, _| match token {
        Token::Reserved(word) if *word == "curry" => Token::Identifier(Box::new(CURRIED.into())),
        other => other,
    });
    let watched = Arc::clone(&call);
    engine.on_progress(move |_| watched.operation().map(|exceeded| Dynamic::from(exceeded.token())));
    // Rhai inlines constants when it compiles, except where a method is called on them (`LIMITS.contains(x)`).
    // Functions see only their own variables, so those places get the constant here. A name with an index is a local
    // variable.
    let constants = Arc::clone(&call);
    #[expect(deprecated, reason = "marked as volatile, not deprecated, by Rhai's author")]
    engine.on_var(move |name, index, mut context| {
        if index == 0
            && let Some(constant) = constants.constant(context.source(), name)
        {
            return Ok(Some(constant));
        }
        constants.read(context.scope_mut().get_mut(name)).map(|()| None)
    });
    let printing = Arc::clone(&call);
    engine.on_print(move |text| {
        if let Some((rule, line)) = printing.print(text) {
            tracing::info!(rule, "print: {line}");
        }
    });
    let debugging = Arc::clone(&call);
    engine.on_debug(move |text, _, position| {
        if let Some((rule, line)) = debugging.print(text) {
            tracing::debug!(rule, line = position.line(), "debug: {line}");
        }
    });
    engine.set_module_resolver(CurrentImports(Arc::clone(&call)));
    natives::register(&mut engine);
    library::register(&mut engine, &call);
    (engine, call)
}

/// Resolves `import` to the files of the running rule.
struct CurrentImports(Arc<Call>);

impl ModuleResolver for CurrentImports {
    fn resolve(
        &self,
        engine: &Engine,
        source: Option<&str>,
        path: &str,
        position: Position,
    ) -> Result<Shared<Module>, Box<EvalAltResult>> {
        match self.0.resources() {
            Some(resources) => resources.imports.resolve(engine, source, path, position),
            None => Err(EvalAltResult::ErrorModuleNotFound(path.to_owned(), position).into()),
        }
    }
}
