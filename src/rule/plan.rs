//! The prefilter: ruling out rules without running their scripts. The conditions at the start of a rule are read from
//! its compiled syntax tree and evaluated on the raw event.
//!
//! Only conditions that are understood completely are evaluated here (`conditions`), in the script's own order, up to
//! the first one that is not understood. If the script would fail, or in any doubt, the answer is "unknown" and the
//! script runs. So a rule is skipped only if its `fn rule` would have returned false. The event's fields are extracted
//! in one pass over its text, without building a tree (`extract`).

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use crate::model::{action::Catalog, legible::Flags, name::SourceName};
use crate::rule::{
    script::{
        conditions::{self, Condition, Truth},
        extract::{Extract, Seen},
    },
    set::RuleSet,
};

/// The rules to evaluate on events of one action.
#[derive(Debug)]
pub struct Plan {
    /// Rules to evaluate on every event.
    always: Vec<usize>,
    /// Rules whose first open condition compares a field with a set of strings.
    by_value: Vec<ByValue>,
    /// All other rules.
    others: Vec<Asked>,
    /// Sources for which this action is ignored.
    ignored: Vec<SourceName>,
    extract: Extract,
}

/// An action and the catalog that describes it.
struct Action<'a> {
    id: &'a str,
    catalog: &'a Catalog,
}

/// Rules indexed by the value of a field.
#[derive(Debug)]
struct ByValue {
    slot: usize,
    rules: HashMap<Box<str>, Vec<Asked>>,
    /// All of these rules, for events whose field cannot be compared here.
    all: Vec<Asked>,
}

/// A rule and its open conditions.
#[derive(Debug, Clone)]
struct Asked {
    rule: usize,
    conditions: Arc<[Slotted]>,
}

/// A condition whose fields are slots of an [`Extract`].
#[derive(Debug)]
enum Slotted {
    Test(usize, conditions::Test),
    Source(conditions::Test),
    Readable(usize),
    Not(Box<Slotted>),
    /// A conjunction if `neutral` is true, a disjunction if it is false.
    Chain {
        neutral: bool,
        parts: Vec<Slotted>,
    },
    Known(bool),
    /// Only the script can decide.
    Unknown,
}

impl Plan {
    /// Builds the plan for events of this action.
    pub fn new(rules: &RuleSet, action: &str) -> Self {
        let mut plan = Self::of(Vec::new(), rules, action);
        for rule in rules.wanting_flagged(action, Flags::default()) {
            let Some(compiled) = rules.detections.get(rule) else {
                continue;
            };
            plan.add(rule, &compiled.conditions.0, &Action { id: action, catalog: &rules.context.catalog });
        }
        plan
    }

    /// Builds a plan without conditions: every rule that wants the action is evaluated.
    pub fn unfiltered(rules: &RuleSet, action: &str) -> Self {
        Self::of(rules.wanting_flagged(action, Flags::default()), rules, action)
    }

    /// Builds the plan for flagged events of this action. It has no conditions and includes the rules that want only
    /// flagged events.
    pub fn of_flagged(rules: &RuleSet, action: &str) -> Self {
        Self::of(rules.wanting(action), rules, action)
    }

    fn of(always: Vec<usize>, rules: &RuleSet, action: &str) -> Self {
        let ignored = rules.context.ignored.iter().filter(|(_, patterns)| patterns.is_match(action));
        let ignored = ignored.map(|(source, _)| source.clone()).collect();
        Self { always, by_value: Vec::new(), others: Vec::new(), ignored, extract: Extract::default() }
    }

    fn add(&mut self, rule: usize, conditions: &[Condition], action: &Action<'_>) {
        let open = match self.fold(conditions, action, true) {
            // No event of this action can match.
            Slotted::Known(false) => return,
            Slotted::Chain { parts, .. } => parts,
            _ => Vec::new(),
        };
        if open.is_empty() {
            self.always.push(rule);
            return;
        }
        let first = match open.first() {
            Some(Slotted::Test(slot, conditions::Test::OneOf(texts))) => Some((*slot, texts.clone())),
            _ => None,
        };
        let Some((slot, texts)) = first else {
            self.others.push(Asked { rule, conditions: open.into() });
            return;
        };
        let whole = Asked { rule, conditions: open.into() };
        let by_value = match self.by_value.iter_mut().position(|by_value| by_value.slot == slot) {
            Some(index) => self.by_value.get_mut(index),
            None => {
                self.by_value.push(ByValue { slot, rules: HashMap::new(), all: Vec::new() });
                self.by_value.last_mut()
            }
        };
        if let Some(by_value) = by_value {
            for text in texts.iter() {
                by_value.rules.entry(text.clone()).or_default().push(whole.clone());
            }
            by_value.all.push(whole);
        }
    }

    /// Replaces fields by slots and decides every condition that depends only on the action.
    fn slotted(&mut self, condition: &Condition, action: &Action<'_>) -> Slotted {
        use conditions::Field;
        let settled = |test: &conditions::Test, seen: Option<&str>| match test
            .of(&seen.map_or(Seen::Absent, |text| Seen::Text(Cow::Borrowed(text))))
        {
            Truth::True => Slotted::Known(true),
            Truth::False => Slotted::Known(false),
            Truth::Unknown => Slotted::Unknown,
        };
        match condition {
            Condition::Known(known) => Slotted::Known(*known),
            Condition::Test(Field::Action, test) => settled(test, Some(action.id)),
            Condition::Test(Field::Activity, test) => settled(test, action.catalog.name(action.id)),
            Condition::Test(Field::Category, test) => settled(test, Some(action.catalog.category(action.id).as_str())),
            Condition::Test(Field::Source, test) => Slotted::Source(test.clone()),
            Condition::Test(Field::Raw(path), test) => Slotted::Test(self.extract.slot(path), test.clone()),
            Condition::Readable(Field::Raw(path)) => Slotted::Readable(self.extract.slot(path)),
            Condition::Readable(Field::Action | Field::Activity | Field::Category | Field::Source) => {
                Slotted::Known(true)
            }
            Condition::Not(inner) => match self.slotted(inner, action) {
                Slotted::Known(known) => Slotted::Known(!known),
                other => Slotted::Not(Box::new(other)),
            },
            Condition::All(parts) => self.fold(parts, action, true),
            Condition::Any(parts) => self.fold(parts, action, false),
        }
    }

    /// Folds parts that the script evaluates from left to right. Neutral parts (true in a conjunction, false in a
    /// disjunction) are dropped, and so is everything after a part that decides the result. Parts that may be unknown
    /// are kept in front of it, so the order of evaluation does not change.
    fn fold(&mut self, parts: &[Condition], action: &Action<'_>, neutral: bool) -> Slotted {
        let mut open = Vec::new();
        for part in parts {
            match self.slotted(part, action) {
                Slotted::Known(known) if known == neutral => {}
                Slotted::Known(known) if open.is_empty() => return Slotted::Known(known),
                other => {
                    let decides = matches!(other, Slotted::Known(_));
                    open.push(other);
                    if decides {
                        break;
                    }
                }
            }
        }
        if open.is_empty() { Slotted::Known(neutral) } else { Slotted::Chain { neutral, parts: open } }
    }

    /// Whether no rule wants events of this action.
    pub fn is_empty(&self) -> bool {
        self.always.is_empty() && self.by_value.is_empty() && self.others.is_empty()
    }

    /// Returns the rules that may match events of this action, as sorted indexes into the set's `detections`.
    pub fn rules(&self) -> Vec<usize> {
        let asked = self.by_value.iter().flat_map(|by_value| &by_value.all).chain(&self.others);
        let mut rules: Vec<usize> = self.always.iter().copied().chain(asked.map(|asked| asked.rule)).collect();
        rules.sort_unstable();
        rules
    }

    /// Returns the rules that may match this raw event of this source, as sorted indexes into the set's `detections`.
    /// All other rules would return false.
    pub fn candidates(&self, raw: &str, source: &SourceName) -> Vec<usize> {
        if self.ignored.contains(source) {
            return Vec::new();
        }
        let mut candidates = self.always.clone();
        if self.by_value.is_empty() && self.others.is_empty() {
            return candidates;
        }
        let seen = self.extract.read(raw);
        let mut ask = |asked: &Asked| {
            if chain(true, &asked.conditions, &seen, source) != Truth::False {
                candidates.push(asked.rule);
            }
        };
        for by_value in &self.by_value {
            match seen.get(by_value.slot) {
                Some(Seen::Text(text)) => by_value.rules.get(&**text).into_iter().flatten().for_each(&mut ask),
                // Only a string can equal one of the strings.
                Some(Seen::Absent | Seen::Bool(_) | Seen::Int(_)) => {}
                Some(Seen::Other | Seen::Trouble) | None => by_value.all.iter().for_each(&mut ask),
            }
        }
        self.others.iter().for_each(&mut ask);
        candidates.sort_unstable();
        candidates
    }
}

impl Slotted {
    fn of(&self, seen: &[Seen<'_>], source: &SourceName) -> Truth {
        match self {
            Self::Known(true) => Truth::True,
            Self::Known(false) => Truth::False,
            Self::Test(slot, test) => seen.get(*slot).map_or(Truth::Unknown, |seen| test.of(seen)),
            Self::Source(test) => test.of(&Seen::Text(Cow::Borrowed(source.as_str()))),
            Self::Readable(slot) => match seen.get(*slot) {
                None | Some(Seen::Trouble) => Truth::Unknown,
                Some(_) => Truth::True,
            },
            Self::Not(inner) => match inner.of(seen, source) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                Truth::Unknown => Truth::Unknown,
            },
            Self::Chain { neutral, parts } => chain(*neutral, parts, seen, source),
            Self::Unknown => Truth::Unknown,
        }
    }
}

/// Evaluates the parts as the script does: from left to right, stopping at the first that decides.
fn chain(neutral: bool, parts: &[Slotted], seen: &[Seen<'_>], source: &SourceName) -> Truth {
    let neutral = if neutral { Truth::True } else { Truth::False };
    parts.iter().map(|part| part.of(seen, source)).find(|answer| *answer != neutral).unwrap_or(neutral)
}
