//! Names for people that are used as keys: where an event names nobody they are all the same, and make one of what is unrelated.

use rhai::{AST, ASTNode, Expr, Position, Stmt};

use super::Lint;
use crate::rule::script::library;

/// Functions that name somebody or something to people, with those that tell them apart.
const NAMES_FOR_PEOPLE: [(&str, &str); 2] = [("actor_name", "actor_key"), ("target_name", "target_key")];

impl Lint<'_> {
    /// Looks at `fn dedup`, `fn unique`, and what is given to functions that remember.
    pub(super) fn keys(&mut self, ast: &AST) {
        let mut found: Vec<(&str, &str, Position)> = Vec::new();
        ast.walk(&mut |nodes| {
            if let Some(
                ASTNode::Expr(Expr::MethodCall(call, position) | Expr::FnCall(call, position))
                | ASTNode::Stmt(Stmt::FnCall(call, position)),
            ) = nodes.last()
                && let Some((name, instead)) = NAMES_FOR_PEOPLE.iter().find(|(name, _)| *name == call.name.as_str())
                && (nodes.iter().rev().skip(1).any(is_remembering) || self.is_in_key(*position))
            {
                found.push((name, instead, *position));
            }
            true
        });
        for (name, instead, position) in found {
            let message =
                format!("`{name}()` is for people: as a key it takes all events that name nobody for the same");
            self.warn("W211", self.at(position), message, format!("use `{instead}()`"));
        }
    }

    /// Whether a place is in `fn dedup` or `fn unique`.
    fn is_in_key(&self, position: Position) -> bool {
        let before = self.text.get(..self.at(position).start).unwrap_or_default();
        let function = before.rmatch_indices("fn ").map(|(at, found)| before.get(at + found.len()..)).next().flatten();
        function.is_some_and(|rest| ["dedup(", "unique("].iter().any(|name| rest.trim_start().starts_with(name)))
    }
}

/// Whether a node calls a function that remembers: what stands in its arguments is a key, or may be.
fn is_remembering(node: &ASTNode<'_>) -> bool {
    match node {
        ASTNode::Expr(Expr::FnCall(call, _) | Expr::MethodCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _)) => {
            // What is kept beside a key may be a name.
            library::remembers(&call.name) && !["remember", "expect"].contains(&call.name.as_str())
        }
        _ => false,
    }
}
