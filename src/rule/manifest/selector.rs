//! What means some of the rules: an id, a pattern for ids, a tag, or those that give risk.

use globset::GlobMatcher;

use crate::model::name::RuleId;
use crate::rule::manifest::pattern;

/// Rules by id, by a pattern for ids, by tag, or those that give risk.
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
    /// Reads `atlassian.admin.*`, or `tag:privileged-access`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (by_tag, pattern) = text.strip_prefix("tag:").map_or((false, text), |tag| (true, tag));
        if pattern.is_empty() {
            return Err("write a rule's id, a pattern such as `atlassian.*`, or `tag:NAME`".to_owned());
        }
        let glob = pattern::glob(pattern)?.compile_matcher();
        Ok(Self { text: text.to_owned(), kind: if by_tag { Selects::Tag(glob) } else { Selects::Id(glob) } })
    }

    /// All rules that give risk.
    pub(in crate::rule) fn risk() -> Self {
        Self { text: "risk".to_owned(), kind: Selects::Risk }
    }

    /// The rule of this id.
    pub fn id(id: &RuleId) -> Self {
        // An id holds nothing that a pattern would take otherwise.
        Self::parse(id.as_str()).unwrap_or_else(|_| unreachable!("an id is a pattern of itself"))
    }

    /// Whether a rule with this id, these tags and this risk is meant.
    pub(in crate::rule) fn fits(&self, id: &RuleId, tags: &[String], risk: u32) -> bool {
        match &self.kind {
            Selects::Id(glob) => glob.is_match(id.as_str()),
            Selects::Tag(glob) => tags.iter().any(|tag| glob.is_match(tag)),
            Selects::Risk => risk > 0,
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it can mean one rule only.
    pub(in crate::rule) fn is_exact(&self) -> bool {
        matches!(self.kind, Selects::Id(_)) && RuleId::parse(&self.text).is_ok()
    }
}
