//! Limits how large a script's constants become when Rhai inlines them.
//!
//! Rhai folds constants at compile time: lists and maps of constants, concatenated strings. A constant made of ten
//! copies of another, which is made of ten copies of a third, is a thousand copies of that one. This happens before
//! any call, so no call limit applies. The sizes are therefore added up first, in the syntax tree before folding.

use std::collections::HashMap;

use rhai::{AST, ASTFlags, ASTNode, Expr, Scope, Stmt};

use super::bounds::Weight;

/// Maximum total size of a file's constants, in values and pieces of strings.
const MAX_FOLDED: usize = 4_000_000;
/// Maximum size of one constant: copying it costs a call nothing.
const MAX_ONE: usize = 65_536;
/// Bytes of a string that count as one value.
const PIECE: usize = 16;

/// Whether the constants of a script are too large. `ast` is parsed without optimization; `scope` has the top-level
/// constants, if the script has already run.
pub(in crate::rule) fn is_too_large(ast: &AST, scope: &Scope<'_>) -> bool {
    let mut sizes: HashMap<String, usize> =
        scope.iter_raw().map(|(name, _, value)| (name.to_owned(), Weight::of(value).bytes / PIECE)).collect();
    let mut total: usize = 0;
    if sizes.values().any(|size| *size > MAX_ONE) {
        return true;
    }
    ast.walk(&mut |nodes| {
        match nodes.last() {
            Some(ASTNode::Stmt(Stmt::Var(declaration, flags, _))) if flags.intersects(ASTFlags::CONSTANT) => {
                let size = size(&declaration.1, &sizes);
                total = if size > MAX_ONE { usize::MAX } else { total.saturating_add(size) };
                // If several share a name, the largest counts.
                let known = sizes.entry(declaration.0.name.to_string()).or_default();
                *known = size.max(*known);
            }
            Some(ASTNode::Expr(Expr::Variable(variable, ..))) => {
                total = total.saturating_add(sizes.get(variable.1.as_str()).copied().unwrap_or(0));
            }
            _ => {}
        }
        total <= MAX_FOLDED
    });
    total > MAX_FOLDED
}

/// The size of an expression after every name in it is replaced by its value.
fn size(expression: &Expr, sizes: &HashMap<String, usize>) -> usize {
    // The engine bounds how deep expressions nest.
    let all =
        |parts: &mut dyn Iterator<Item = &Expr>| parts.fold(1_usize, |sum, part| sum.saturating_add(size(part, sizes)));
    match expression {
        Expr::Array(items, _) | Expr::InterpolatedString(items, _) => all(&mut items.iter()),
        Expr::Map(entries, _) => all(&mut entries.0.iter().map(|(_, value)| value)),
        Expr::FnCall(call, _) | Expr::MethodCall(call, _) => all(&mut call.args.iter()),
        Expr::Dot(chain, ..) | Expr::Index(chain, ..) => all(&mut [&chain.lhs, &chain.rhs].into_iter()),
        Expr::And(parts, _) | Expr::Or(parts, _) | Expr::Coalesce(parts, _) => all(&mut parts.iter()),
        Expr::Variable(variable, ..) => sizes.get(variable.1.as_str()).copied().unwrap_or(1),
        Expr::StringConstant(text, _) => 1 + text.len() / PIECE,
        _ => 1,
    }
}
