//! Saying no without running a script: the conditions that a rule begins with, read off its compiled tree and asked of the raw
//! event.
//!
//! Only what is understood completely is asked here (`conditions`), in the order in which the script would ask, and up to the
//! first part that is not understood. Where the script would fail, or anything is in doubt, the answer is "unknown" and the script
//! runs. So a rule is left out exactly where its `fn rule` would have said false. An event's fields are found in one pass over its
//! text, without building anything (`extract`).

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use crate::model::{action::Catalog, legible::Flags, name::SourceName};
use crate::rule::{
    script::{
        conditions::{self, Condition, Truth},
        extract::{Extract, Seen},
    },
    set::RuleSet,
};

/// Which rules are to look at events of one action.
#[derive(Debug)]
pub struct Plan {
    /// Rules that look at each of them.
    always: Vec<usize>,
    /// Rules whose next condition is that a field has one of some values.
    by_value: Vec<ByValue>,
    /// All others.
    others: Vec<Asked>,
    /// Sources whose events no rule looks at.
    ignored: Vec<SourceName>,
    extract: Extract,
}

/// An action, and what is known of it.
struct Action<'a> {
    id: &'a str,
    catalog: &'a Catalog,
}

/// Rules that are found by the value of a field.
#[derive(Debug)]
struct ByValue {
    slot: usize,
    rules: HashMap<Box<str>, Vec<Asked>>,
    /// All of them: where the field is none that can be compared.
    all: Vec<Asked>,
}

/// A rule with what is still to be asked.
#[derive(Debug, Clone)]
struct Asked {
    rule: usize,
    conditions: Arc<[Slotted]>,
}

/// A condition whose fields are places of an [`Extract`].
#[derive(Debug)]
enum Slotted {
    Test(usize, conditions::Test),
    Source(conditions::Test),
    Readable(usize),
    Not(Box<Slotted>),
    /// All of these, where what is true is neutral; one of them, where what is false is.
    Chain {
        neutral: bool,
        parts: Vec<Slotted>,
    },
    Known(bool),
    /// Only the script can tell.
    Unknown,
}

impl Plan {
    /// What is to be asked of events of this action.
    pub fn new(rules: &RuleSet, action: &str) -> Self {
        let mut plan = Self::of(Vec::new(), rules, action);
        for rule in rules.wanting_flagged(action, Flags::default()) {
            let Some(compiled) = rules.detections.get(rule) else {
                continue;
            };
            plan.add(rule, &compiled.conditions.0, &Action { id: action, catalog: &rules.catalog });
        }
        plan
    }

    /// A plan that asks nothing: every rule that wants the action looks at it.
    pub fn unfiltered(rules: &RuleSet, action: &str) -> Self {
        Self::of(rules.wanting_flagged(action, Flags::default()), rules, action)
    }

    /// The plan for events of this action that something is unusual about: it asks nothing, and rules that look at such events only
    /// are among it.
    pub fn of_flagged(rules: &RuleSet, action: &str) -> Self {
        Self::of(rules.wanting(action), rules, action)
    }

    fn of(always: Vec<usize>, rules: &RuleSet, action: &str) -> Self {
        let ignored = rules.ignored.iter().filter(|(_, patterns)| patterns.is_match(action));
        let ignored = ignored.map(|(source, _)| source.clone()).collect();
        Self { always, by_value: Vec::new(), others: Vec::new(), ignored, extract: Extract::default() }
    }

    fn add(&mut self, rule: usize, conditions: &[Condition], action: &Action<'_>) {
        let left = match self.fold(conditions, action, true) {
            // No event of this action can match.
            Slotted::Known(false) => return,
            Slotted::Chain { parts, .. } => parts,
            _ => Vec::new(),
        };
        if left.is_empty() {
            self.always.push(rule);
            return;
        }
        let found = match left.first() {
            Some(Slotted::Test(slot, conditions::Test::OneOf(texts))) => Some((*slot, texts.clone())),
            _ => None,
        };
        let Some((slot, texts)) = found else {
            self.others.push(Asked { rule, conditions: left.into() });
            return;
        };
        let whole = Asked { rule, conditions: left.into() };
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

    /// With fields as places; what follows from the action alone is settled here.
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

    /// Parts that are asked from the left: those that are neutral are left out (what is true, of parts that must all hold; what is false,
    /// of parts one of which must), and nothing is asked behind one that settles it. What could be unknown stands before that, so it
    /// settles nothing ahead of its turn.
    fn fold(&mut self, parts: &[Condition], action: &Action<'_>, neutral: bool) -> Slotted {
        let mut left = Vec::new();
        for part in parts {
            match self.slotted(part, action) {
                Slotted::Known(known) if known == neutral => {}
                Slotted::Known(known) if left.is_empty() => return Slotted::Known(known),
                other => {
                    let settles = matches!(other, Slotted::Known(_));
                    left.push(other);
                    if settles {
                        break;
                    }
                }
            }
        }
        if left.is_empty() { Slotted::Known(neutral) } else { Slotted::Chain { neutral, parts: left } }
    }

    /// Whether no rule looks at events of this action at all.
    pub fn is_empty(&self) -> bool {
        self.always.is_empty() && self.by_value.is_empty() && self.others.is_empty()
    }

    /// The rules that may match events of this action, as indexes into the set's `detections`, in order.
    pub fn rules(&self) -> Vec<usize> {
        let asked = self.by_value.iter().flat_map(|by_value| &by_value.all).chain(&self.others);
        let mut rules: Vec<usize> = self.always.iter().copied().chain(asked.map(|asked| asked.rule)).collect();
        rules.sort_unstable();
        rules
    }

    /// The rules that may match an event of these bytes and this source, as indexes into the set's `detections`, in order. All others
    /// would say false.
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
                // Nothing that is no text is one of some texts.
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

/// As the script does: from the left, and no further than needed.
fn chain(neutral: bool, parts: &[Slotted], seen: &[Seen<'_>], source: &SourceName) -> Truth {
    let usual = if neutral { Truth::True } else { Truth::False };
    parts.iter().map(|part| part.of(seen, source)).find(|answer| *answer != usual).unwrap_or(usual)
}
