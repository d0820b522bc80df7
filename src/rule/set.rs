//! All rules of one load, ready to run: which of them want which event, which listen to which, and what is said of them as a whole.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::model::{
    action::{ActionPatterns, Catalog, ListedAction},
    event::Event,
    legible::Flags,
    name::{RuleId, Sequence, SourceName},
    time::Timestamp,
};
use crate::rule::{
    cycle,
    manifest::{exception::Exception, metadata::Stage},
    script::compiled::{CompiledRule, RuleKind},
};
/// Actions that no rule is to look at, by source.
pub type Ignored = BTreeMap<SourceName, ActionPatterns>;

/// A file that is on disk but not running as it is there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BrokenFile {
    /// The file.
    pub file: PathBuf,
    /// The first thing that is wrong with it.
    pub problem: String,
    /// Whether an earlier version of it runs.
    pub last_good_runs: bool,
}

/// A rule that would flood, and is on trial until a person looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// The rule.
    pub rule: RuleId,
    /// New alerts that it would have raised.
    pub alerts: u64,
    /// Over which time.
    pub since: Duration,
}

/// A rule that ended the whole process, and does not run any more as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The rule.
    pub rule: RuleId,
    /// When that was noticed.
    pub since: Timestamp,
    /// The event that it was evaluated on.
    pub event: Option<Sequence>,
}

/// All rules of one load, ready to run.
#[derive(Debug, Default)]
pub struct RuleSet {
    /// Counts the loads that changed something, from 1.
    pub generation: u64,
    /// Rules that run on events, in the order of their ids.
    pub detections: Vec<Arc<CompiledRule>>,
    /// Rules that run on a timer.
    pub checks: Vec<Arc<CompiledRule>>,
    /// Rules that are switched off.
    pub disabled: Vec<Arc<CompiledRule>>,
    /// Files that are not running as they are.
    pub broken: Vec<BrokenFile>,
    /// Rules that are on trial although they do not say so.
    pub guarded: Vec<Guarded>,
    /// Rules that ended the whole process, and are left out.
    pub ended: Vec<Ended>,
    /// Of the files as they were read: see [`fingerprint_on_disk`](crate::rule::load::files::fingerprint_on_disk).
    pub fingerprint: String,
    /// Where the files are.
    pub roots: Vec<PathBuf>,
    /// Whether files may be links to places outside of them.
    pub follow_links: bool,
    /// What takes matches out of alerting.
    pub exceptions: Vec<Arc<Exception>>,
    /// What organizations say of their actions.
    pub catalog: Arc<Catalog>,
    /// Actions that no rule is to look at, by source.
    pub ignored: Arc<Ignored>,
    /// For each of `detections`, the exceptions that may be about it.
    pub(super) exceptions_of: Vec<Vec<Arc<Exception>>>,
    /// For each of `detections`, the rules that listen to its matches, as indexes, in order.
    pub(super) listeners: Vec<Vec<usize>>,
    /// For each of `detections`, the rules that it listens to, in the same way.
    pub(super) heard: Vec<Vec<usize>>,
    pub(super) dispatch: Dispatch,
}

/// Which rules want which action: looked up once for each action id.
#[derive(Debug, Default)]
pub(super) struct Dispatch {
    exact: HashMap<String, Vec<usize>>,
    globs: GlobSet,
    glob_rules: Vec<usize>,
    every: Vec<usize>,
    /// Of all these, those that want only events that something is unusual about.
    flagged: HashSet<usize>,
}

impl RuleSet {
    /// A set of these rules; all that is not theirs is as in `about`.
    pub(crate) fn new(rules: impl IntoIterator<Item = Arc<CompiledRule>>, about: Self) -> Self {
        let mut set = about;
        for rule in rules {
            match rule.kind {
                _ if !rule.metadata.enabled => set.disabled.push(rule),
                RuleKind::Detection => set.detections.push(rule),
                RuleKind::CheckSource | RuleKind::CheckAgent => set.checks.push(rule),
            }
        }
        for list in [&mut set.detections, &mut set.checks, &mut set.disabled] {
            list.sort_by(|one, other| one.id().cmp(other.id()));
        }
        set.dispatch = Dispatch::new(&set.detections, &set.catalog);
        let about = |rule: &Arc<CompiledRule>| {
            set.exceptions.iter().filter(|exception| exception.is_about(&rule.metadata)).cloned().collect()
        };
        set.exceptions_of = set.detections.iter().map(about).collect();
        let mut listeners = vec![Vec::new(); set.detections.len()];
        let mut heard = vec![Vec::new(); set.detections.len()];
        for (index, (rule, of_rule)) in set.detections.iter().zip(&mut heard).enumerate() {
            if rule.metadata.on.is_none() {
                continue;
            }
            for (other, (found, of_other)) in set.detections.iter().zip(&mut listeners).enumerate() {
                if rule.listens_to(&found.metadata) {
                    of_rule.push(other);
                    of_other.push(index);
                }
            }
        }
        set.listeners = listeners;
        set.heard = heard;
        set
    }

    /// A set of these rules, with nothing said of them.
    pub fn only(rules: impl IntoIterator<Item = Arc<CompiledRule>>, catalog: Arc<Catalog>) -> Arc<Self> {
        Arc::new(Self::new(rules, Self { generation: 1, catalog, ..Self::default() }))
    }

    /// This one of the rules, with what it listens to and the exceptions that are about it.
    pub fn alone(&self, rule: &Arc<CompiledRule>) -> Arc<Self> {
        self.part(std::slice::from_ref(rule))
    }

    /// These of the rules, with what they listen to and the exceptions that are about them.
    pub fn part(&self, rules: &[Arc<CompiledRule>]) -> Arc<Self> {
        let mut wanted: Vec<Arc<CompiledRule>> = rules.iter().flat_map(|rule| self.with_what_it_hears(rule)).collect();
        wanted.sort_by(|one, other| one.id().cmp(other.id()));
        wanted.dedup_by(|one, other| one.id() == other.id());
        Arc::new(Self::new(wanted, self.about()))
    }

    /// The same, with some of the rules on trial.
    pub fn on_trial(&self, guarded: Vec<Guarded>) -> Arc<Self> {
        let rules = self.all().map(|rule| {
            if guarded.iter().all(|guarded| guarded.rule != *rule.id()) {
                return Arc::clone(rule);
            }
            let mut on_trial = CompiledRule::clone(rule);
            on_trial.metadata.stage = Stage::Shadow;
            Arc::new(on_trial)
        });
        let rules: Vec<Arc<CompiledRule>> = rules.collect();
        let mut rules = rules;
        // A listener on trial hears what others on trial find: should that go round, it does not run at all.
        let round = cycle::in_a_circle(&rules);
        for rule in rules.iter_mut().filter(|rule| round.contains(rule.id())) {
            Arc::make_mut(rule).metadata.enabled = false;
        }
        let about = Self {
            broken: self.broken.clone(),
            fingerprint: self.fingerprint.clone(),
            roots: self.roots.clone(),
            follow_links: self.follow_links,
            guarded,
            ..self.about()
        };
        Arc::new(Self::new(rules, about))
    }

    /// The same without rules that ended the process.
    pub fn without(&self, ended: Vec<Ended>) -> Arc<Self> {
        let is_out = |rule: &Arc<CompiledRule>| ended.iter().any(|ended| ended.rule == *rule.id());
        let rules: Vec<Arc<CompiledRule>> = self.all().filter(|rule| !is_out(rule)).cloned().collect();
        let about = Self {
            broken: self.broken.clone(),
            fingerprint: self.fingerprint.clone(),
            roots: self.roots.clone(),
            follow_links: self.follow_links,
            guarded: self.guarded.clone(),
            ended,
            ..self.about()
        };
        Arc::new(Self::new(rules, about))
    }

    /// The same, with more said of actions.
    pub fn with_actions(self: &Arc<Self>, actions: impl IntoIterator<Item = ListedAction>) -> Arc<Self> {
        let mut catalog = Catalog::clone(&self.catalog);
        actions.into_iter().for_each(|action| catalog.add(action));
        if catalog == *self.catalog {
            return Arc::clone(self);
        }
        Arc::new(Self::new(self.all().cloned(), Self { catalog: Arc::new(catalog), ..self.about() }))
    }

    /// What holds for the rules of this set, without them.
    fn about(&self) -> Self {
        Self {
            generation: self.generation,
            exceptions: self.exceptions.clone(),
            catalog: Arc::clone(&self.catalog),
            ignored: Arc::clone(&self.ignored),
            ended: self.ended.clone(),
            ..Self::default()
        }
    }

    /// The detection rules that want events with this action, with or without anything unusual about them, as indexes into
    /// `detections`, in order.
    pub fn wanting(&self, action: &str) -> Vec<usize> {
        let dispatch = &self.dispatch;
        let mut rules = dispatch.every.clone();
        rules.extend(dispatch.exact.get(action).into_iter().flatten());
        rules.extend(dispatch.globs.matches(action).into_iter().filter_map(|index| dispatch.glob_rules.get(index)));
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// Those of them that want events with these flags.
    pub fn wanting_flagged(&self, action: &str, flags: Flags) -> Vec<usize> {
        let mut rules = self.wanting(action);
        if flags.is_empty() {
            rules.retain(|index| !self.dispatch.flagged.contains(index));
        }
        rules
    }

    /// Whether any detection rule wants this event.
    pub fn wants(&self, event: &Event) -> bool {
        !self.wanting_flagged(&event.action, event.flags).is_empty()
    }

    /// The exceptions that may be about the rule at this index of `detections`.
    pub fn exceptions_of(&self, index: usize) -> &[Arc<Exception>] {
        self.exceptions_of.get(index).map_or(&[], Vec::as_slice)
    }

    /// The rules that listen to the matches of the one at this index, as indexes into `detections`.
    pub fn listeners(&self, index: usize) -> &[usize] {
        self.listeners.get(index).map_or(&[], Vec::as_slice)
    }

    /// Whether any rule listens to the matches of the one at this index.
    pub fn is_heard(&self, index: usize) -> bool {
        !self.listeners(index).is_empty()
    }

    /// Divides the rules of `detections` among so many at most: gives the part of each. Rules that listen to each other, or share a
    /// memory, stay together.
    pub fn parts(&self, most: usize) -> Vec<usize> {
        let count = self.detections.len();
        let mut group: Vec<usize> = (0..count).collect();
        let mut join = |one: usize, other: usize| {
            let (Some(&to), Some(&from)) = (group.get(one), group.get(other)) else {
                return;
            };
            group.iter_mut().filter(|group| **group == from).for_each(|group| *group = to);
        };
        for (rule, listeners) in self.listeners.iter().enumerate() {
            listeners.iter().for_each(|listener| join(rule, *listener));
        }
        let sharing: Vec<usize> =
            self.detections.iter().enumerate().filter(|(_, rule)| rule.shares).map(|(index, _)| index).collect();
        for pair in sharing.windows(2) {
            if let [one, other] = pair {
                join(*one, *other);
            }
        }
        // The heaviest group to whoever has least: what remembers is what waits for its turn.
        let mut weights: HashMap<usize, usize> = HashMap::new();
        for (group, rule) in group.iter().zip(&self.detections) {
            *weights.entry(*group).or_default() += if rule.remembers { 100 } else { 1 };
        }
        let mut groups: Vec<(usize, usize)> = weights.into_iter().collect();
        groups.sort_by(|one, other| other.1.cmp(&one.1).then(one.0.cmp(&other.0)));
        let mut loads = vec![0; most.max(1)];
        let mut part_of_group: HashMap<usize, usize> = HashMap::new();
        for (group, weight) in groups {
            let least = loads.iter().enumerate().min_by_key(|(_, load)| **load).map_or(0, |(part, _)| part);
            if let Some(load) = loads.get_mut(least) {
                *load += weight;
            }
            part_of_group.insert(group, least);
        }
        group.iter().map(|group| part_of_group.get(group).copied().unwrap_or(0)).collect()
    }

    /// How far back a rule looks, with all that it listens to.
    pub fn reach(&self, rule: &CompiledRule) -> Duration {
        self.reach_of(rule, &mut HashMap::new())
    }

    /// How far back the rule looks that looks back furthest.
    pub fn longest_reach(&self) -> Duration {
        let mut known = HashMap::new();
        self.detections.iter().map(|rule| self.reach_of(rule, &mut known)).max().unwrap_or_default()
    }

    /// `known` holds what was found out before: rules that listen to each other crosswise have very many ways through each other.
    fn reach_of<'a>(&'a self, rule: &'a CompiledRule, known: &mut HashMap<&'a RuleId, Duration>) -> Duration {
        if let Some(reach) = known.get(rule.id()) {
            return *reach;
        }
        let heard = self.detections.iter().filter(|other| rule.listens_to(&other.metadata));
        // Rules listen in no circle, so this ends.
        let longest = heard.map(|other| self.reach_of(other, known)).max().unwrap_or_default();
        let reach = rule.reach.saturating_add(longest);
        known.insert(rule.id(), reach);
        reach
    }

    /// A rule with all that it listens to, directly and through others.
    pub fn with_what_it_hears(&self, rule: &Arc<CompiledRule>) -> Vec<Arc<CompiledRule>> {
        let hears = |(_, other): &(usize, &Arc<CompiledRule>)| rule.listens_to(&other.metadata);
        let mut seen = vec![false; self.detections.len()];
        // The rule itself may be another version of the one in the set.
        let own = self.detections.iter().position(|other| other.id() == rule.id());
        if let Some(seen) = own.and_then(|own| seen.get_mut(own)) {
            *seen = true;
        }
        let mut next: Vec<usize> = self.detections.iter().enumerate().filter(hears).map(|(index, _)| index).collect();
        let mut wanted = vec![Arc::clone(rule)];
        while let Some(index) = next.pop() {
            if seen.get_mut(index).is_some_and(|seen| !std::mem::replace(seen, true)) {
                wanted.extend(self.detections.get(index).cloned());
                next.extend(self.heard.get(index).into_iter().flatten());
            }
        }
        // In an order of their own, so that versions do not depend on how they were found.
        if let Some((_, heard)) = wanted.split_first_mut() {
            heard.sort_by(|one, other| one.id().cmp(other.id()));
        }
        wanted
    }

    /// Whether a detection rule wants events with this action.
    pub(super) fn is_wanted_by(&self, action: &str, rule: &RuleId) -> bool {
        let wanting = self.wanting(action);
        wanting.into_iter().any(|index| self.detections.get(index).is_some_and(|wanting| wanting.id() == rule))
    }

    /// All rules: detections, checks, and those switched off.
    pub fn all(&self) -> impl Iterator<Item = &Arc<CompiledRule>> {
        self.detections.iter().chain(&self.checks).chain(&self.disabled)
    }
}

impl Dispatch {
    fn new(rules: &[Arc<CompiledRule>], catalog: &Catalog) -> Self {
        let mut dispatch = Self::default();
        let mut globs = GlobSetBuilder::new();
        for (index, rule) in rules.iter().enumerate() {
            if rule.metadata.on.is_some() {
                continue;
            }
            if rule.metadata.flagged {
                dispatch.flagged.insert(index);
            }
            if rule.metadata.wants_every_action() {
                dispatch.every.push(index);
                continue;
            }
            for activity in rule.metadata.activities.iter().flatten() {
                for action in catalog.named(activity) {
                    dispatch.exact.entry(action.to_string()).or_default().push(index);
                }
            }
            for action in rule.metadata.actions.iter().flatten() {
                if !action.contains('*') {
                    dispatch.exact.entry(action.clone()).or_default().push(index);
                } else if let Ok(glob) = GlobBuilder::new(action).literal_separator(false).build() {
                    globs.add(glob);
                    dispatch.glob_rules.push(index);
                }
            }
        }
        // Action patterns hold only letters, digits and `*` (checked when read), which always make a set.
        dispatch.globs = globs.build().unwrap_or_default();
        dispatch
    }
}
