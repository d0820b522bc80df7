//! How large a script's constants become when Rhai puts them in their places.
//!
//! Rhai computes what is constant when it compiles: lists and maps of constants, joined texts. A constant that is made of ten of another,
//! which is made of ten of a third, is a thousand of it: before any call, and under none of its limits. So the sizes are added up
//! first, in the tree that nothing has been computed in.

use std::collections::HashMap;

use rhai::{AST, ASTFlags, ASTNode, Expr, Scope, Stmt};

use super::bounds::Weight;

/// Values, and pieces of texts, that a file's constants may come to in all.
const MAX_FOLDED: usize = 4_000_000;
/// What one constant may come to: a copy of it costs a call nothing.
const MAX_ONE: usize = 65_536;
/// Bytes of a text that count as one value.
const PIECE: usize = 16;

/// Whether the constants of a script, parsed without optimisation, come to more than they may, together with those that it has at
/// its top level once that has run.
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
                // Of several with one name, the largest.
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

/// What an expression comes to where all that it names is put in its place.
fn size(expression: &Expr, sizes: &HashMap<String, usize>) -> usize {
    // Levels of expressions are bounded by the engine.
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
