//! Lint for display names used as keys. They are the same for all events without a name, and so group unrelated events.

use rhai::{AST, ASTNode, Expr, Position, Stmt};

use super::Lint;
use crate::rule::script::library;

/// Functions that return display names, each with the function that returns a key.
const DISPLAY_NAMES: [(&str, &str); 2] = [("actor_name", "actor_key"), ("target_name", "target_key")];

impl Lint<'_> {
    /// Checks `fn dedup`, `fn unique`, and the arguments of functions that keep state.
    pub(super) fn keys(&mut self, ast: &AST) {
        let mut uses: Vec<(&str, &str, Position)> = Vec::new();
        ast.walk(&mut |nodes| {
            if let Some(
                ASTNode::Expr(Expr::MethodCall(call, position) | Expr::FnCall(call, position))
                | ASTNode::Stmt(Stmt::FnCall(call, position)),
            ) = nodes.last()
                && let Some((name, instead)) = DISPLAY_NAMES.iter().find(|(name, _)| *name == call.name.as_str())
                && (nodes.iter().rev().skip(1).any(is_remembering) || self.is_in_key(*position))
            {
                uses.push((name, instead, *position));
            }
            true
        });
        for (name, instead, position) in uses {
            let message =
                format!("`{name}()` is a display name: as a key, it groups unrelated events that have no name");
            self.warn("W211", self.at(position), message, format!("use `{instead}()`"));
        }
    }

    /// Whether a position is in `fn dedup` or `fn unique`.
    fn is_in_key(&self, position: Position) -> bool {
        let before = self.text.get(..self.at(position).start).unwrap_or_default();
        let function = before.rmatch_indices("fn ").map(|(at, found)| before.get(at + found.len()..)).next().flatten();
        function.is_some_and(|rest| ["dedup(", "unique("].iter().any(|name| rest.trim_start().starts_with(name)))
    }
}

/// Whether a node calls a function that keeps state, whose arguments are or may be keys.
fn is_remembering(node: &ASTNode<'_>) -> bool {
    match node {
        ASTNode::Expr(Expr::FnCall(call, _) | Expr::MethodCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _)) => {
            // The value stored with a key may be a display name.
            library::remembers(&call.name) && !["remember", "expect"].contains(&call.name.as_str())
        }
        _ => false,
    }
}
