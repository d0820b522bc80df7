//! Selectors of rules: an id, a pattern for ids, a tag, or all rules with a risk.

use globset::GlobMatcher;

use crate::model::name::RuleId;
use crate::rule::manifest::pattern;

/// Selects rules by id, by a pattern for ids, by tag, or by having a risk.
#[derive(Debug, Clone)]
pub struct Selector {
    text: String,
    kind: Selects,
}

#[derive(Debug, Clone)]
enum Selects {
    Id(GlobMatcher),
    Tag(GlobMatcher),
    Risk,
}

impl Selector {
    /// Parses `atlassian.admin.*`, or `tag:privileged-access`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (by_tag, pattern) = text.strip_prefix("tag:").map_or((false, text), |tag| (true, tag));
        if pattern.is_empty() {
            return Err("expected a rule ID, a pattern such as `atlassian.*`, or `tag:NAME`".to_owned());
        }
        let glob = pattern::glob(pattern)?.compile_matcher();
        Ok(Self { text: text.to_owned(), kind: if by_tag { Selects::Tag(glob) } else { Selects::Id(glob) } })
    }

    /// Selects all rules with a risk above 0.
    pub(in crate::rule) fn risk() -> Self {
        Self { text: "risk".to_owned(), kind: Selects::Risk }
    }

    /// Selects the rule with this id.
    pub fn id(id: &RuleId) -> Self {
        // An id contains no characters with a special meaning in patterns.
        Self::parse(id.as_str()).unwrap_or_else(|_| unreachable!("an id is a valid pattern"))
    }

    /// Whether it selects a rule with this id, these tags and this risk.
    pub(in crate::rule) fn fits(&self, id: &RuleId, tags: &[String], risk: u32) -> bool {
        match &self.kind {
            Selects::Id(glob) => glob.is_match(id.as_str()),
            Selects::Tag(glob) => tags.iter().any(|tag| glob.is_match(tag)),
            Selects::Risk => risk > 0,
        }
    }

    /// Returns the selector as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it can select at most one rule.
    pub(in crate::rule) fn is_exact(&self) -> bool {
        matches!(self.kind, Selects::Id(_)) && RuleId::parse(&self.text).is_ok()
    }
}
