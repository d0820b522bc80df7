//! All rules of one load, ready to run: which rules want which events, and which rules subscribe to which.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use crate::model::pattern;
use globset::GlobSet;

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

/// Actions that rules do not see, by source.
pub type Ignored = BTreeMap<SourceName, ActionPatterns>;

/// A file whose current version on disk is not in use.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BrokenFile {
    /// The file's path.
    pub file: PathBuf,
    /// The first problem found in it.
    pub problem: String,
    /// Whether its last good version is running.
    pub last_good_runs: bool,
}

/// A rule that the new-rule guard moved to shadow mode because it would raise too many alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// The rule's id.
    pub rule: RuleId,
    /// The number of new alerts that it would have raised.
    pub alerts: u64,
    /// The length of the period over which they were counted.
    pub since: Duration,
}

/// A rule that ended the whole process, and is disabled until it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The rule's id.
    pub rule: RuleId,
    /// When the agent detected it.
    pub since: Timestamp,
    /// The event that was being evaluated, if known.
    pub event: Option<Sequence>,
}

/// What describes a load, besides its rules.
#[derive(Debug, Clone, Default)]
pub struct RuleSetContext {
    /// The number of loads that changed something, starting at 1.
    pub generation: u64,
    /// Files whose current version is not in use.
    pub broken: Vec<BrokenFile>,
    /// Rules that the new-rule guard moved to shadow mode.
    pub guarded: Vec<Guarded>,
    /// Rules that ended the whole process, and are left out.
    pub ended: Vec<Ended>,
    /// The fingerprint of the files as they were read; see
    /// [`fingerprint_on_disk`](crate::rule::load::files::fingerprint_on_disk).
    pub fingerprint: String,
    /// The rules directories and single files that were loaded.
    pub roots: Vec<PathBuf>,
    /// Whether symbolic links may lead out of the roots.
    pub follow_links: bool,
    /// Exceptions, which suppress matches.
    pub exceptions: Vec<Arc<Exception>>,
    /// The organizations' actions.
    pub catalog: Arc<Catalog>,
    /// Actions that rules do not see, by source.
    pub ignored: Arc<Ignored>,
}

impl RuleSetContext {
    /// The context of a part of the rules: nothing that is about all files.
    fn of_part(&self) -> Self {
        Self {
            broken: Vec::new(),
            guarded: Vec::new(),
            fingerprint: String::new(),
            roots: Vec::new(),
            follow_links: false,
            ..self.clone()
        }
    }
}

/// All rules of one load, ready to run.
#[derive(Debug, Default)]
pub struct RuleSet {
    /// What describes the load.
    pub context: RuleSetContext,
    /// Rules that run on events, sorted by id.
    pub detections: Vec<Arc<CompiledRule>>,
    /// Rules that run on a timer.
    pub checks: Vec<Arc<CompiledRule>>,
    /// Disabled rules.
    pub disabled: Vec<Arc<CompiledRule>>,
    /// For each of `detections`, the exceptions that may apply to it.
    pub(super) exceptions_of: Vec<Vec<Arc<Exception>>>,
    /// For each of `detections`, the rules that subscribe to its matches, as sorted indexes.
    pub(super) listeners: Vec<Vec<usize>>,
    /// For each of `detections`, the rules that it subscribes to, as sorted indexes.
    pub(super) heard: Vec<Vec<usize>>,
    pub(super) dispatch: Dispatch,
}

/// Which rules want which action. Queried once for each action id.
#[derive(Debug, Default)]
pub(super) struct Dispatch {
    exact: HashMap<String, Vec<usize>>,
    globs: GlobSet,
    glob_rules: Vec<usize>,
    every: Vec<usize>,
    /// The rules among them that want only flagged events.
    flagged: HashSet<usize>,
}

impl RuleSet {
    /// Builds a set of these rules.
    pub(crate) fn new(rules: impl IntoIterator<Item = Arc<CompiledRule>>, context: RuleSetContext) -> Self {
        let mut set = Self { context, ..Self::default() };
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
        set.dispatch = Dispatch::new(&set.detections, &set.context.catalog);
        let exceptions = |rule: &Arc<CompiledRule>| {
            set.context.exceptions.iter().filter(|exception| exception.is_about(&rule.metadata)).cloned().collect()
        };
        set.exceptions_of = set.detections.iter().map(exceptions).collect();
        let mut listeners = vec![Vec::new(); set.detections.len()];
        let mut heard = vec![Vec::new(); set.detections.len()];
        for (index, (rule, of_rule)) in set.detections.iter().zip(&mut heard).enumerate() {
            if rule.metadata.on.is_none() {
                continue;
            }
            for (other_index, (other, of_other)) in set.detections.iter().zip(&mut listeners).enumerate() {
                if rule.listens_to(&other.metadata) {
                    of_rule.push(other_index);
                    of_other.push(index);
                }
            }
        }
        set.listeners = listeners;
        set.heard = heard;
        set
    }

    /// Builds a set of these rules with no other context.
    pub fn only(rules: impl IntoIterator<Item = Arc<CompiledRule>>, catalog: Arc<Catalog>) -> Arc<Self> {
        Arc::new(Self::new(rules, RuleSetContext { generation: 1, catalog, ..RuleSetContext::default() }))
    }

    /// Returns a set of one rule, the rules it subscribes to, and the exceptions that apply to them.
    pub fn alone(&self, rule: &Arc<CompiledRule>) -> Arc<Self> {
        self.part(std::slice::from_ref(rule))
    }

    /// Returns a set of these rules, the rules they subscribe to, and the exceptions that apply to them.
    pub fn part(&self, rules: &[Arc<CompiledRule>]) -> Arc<Self> {
        let mut wanted: Vec<Arc<CompiledRule>> = rules.iter().flat_map(|rule| self.with_what_it_hears(rule)).collect();
        wanted.sort_by(|one, other| one.id().cmp(other.id()));
        wanted.dedup_by(|one, other| one.id() == other.id());
        Arc::new(Self::new(wanted, self.context.of_part()))
    }

    /// Returns the same set with some rules moved to shadow mode.
    pub fn on_trial(&self, guarded: Vec<Guarded>) -> Arc<Self> {
        let rules = self.all().map(|rule| {
            if guarded.iter().all(|guarded| guarded.rule != *rule.id()) {
                return Arc::clone(rule);
            }
            let mut shadow = CompiledRule::clone(rule);
            shadow.metadata.stage = Stage::Shadow;
            Arc::new(shadow)
        });
        let mut rules: Vec<Arc<CompiledRule>> = rules.collect();
        // A subscriber in shadow mode also sees the matches of other rules in shadow mode. If that makes a cycle, it
        // does not run at all.
        let in_cycle = cycle::in_a_circle(&rules);
        for rule in rules.iter_mut().filter(|rule| in_cycle.contains(rule.id())) {
            Arc::make_mut(rule).metadata.enabled = false;
        }
        Arc::new(Self::new(rules, RuleSetContext { guarded, ..self.context.clone() }))
    }

    /// Returns the same set without the rules that ended the process.
    pub fn without(&self, ended: Vec<Ended>) -> Arc<Self> {
        let is_out = |rule: &Arc<CompiledRule>| ended.iter().any(|ended| ended.rule == *rule.id());
        let rules: Vec<Arc<CompiledRule>> = self.all().filter(|rule| !is_out(rule)).cloned().collect();
        Arc::new(Self::new(rules, RuleSetContext { ended, ..self.context.clone() }))
    }

    /// Returns the same set with these actions added to its catalog.
    pub fn with_actions(self: &Arc<Self>, actions: impl IntoIterator<Item = ListedAction>) -> Arc<Self> {
        let mut catalog = Catalog::clone(&self.context.catalog);
        actions.into_iter().for_each(|action| catalog.add(action));
        if catalog == *self.context.catalog {
            return Arc::clone(self);
        }
        Arc::new(Self::new(self.all().cloned(), RuleSetContext { catalog: Arc::new(catalog), ..self.context.clone() }))
    }

    /// Returns the detection rules that want events with this action, flagged or not, as sorted indexes into
    /// `detections`.
    pub fn wanting(&self, action: &str) -> Vec<usize> {
        let dispatch = &self.dispatch;
        let mut rules = dispatch.every.clone();
        rules.extend(dispatch.exact.get(action).into_iter().flatten());
        rules.extend(dispatch.globs.matches(action).into_iter().filter_map(|index| dispatch.glob_rules.get(index)));
        rules.sort_unstable();
        rules.dedup();
        rules
    }

    /// Like [`wanting`](Self::wanting), but leaves out the rules that want only flagged events if `flags` is empty.
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

    /// Returns the exceptions that may apply to the rule at this index of `detections`.
    pub fn exceptions_of(&self, index: usize) -> &[Arc<Exception>] {
        self.exceptions_of.get(index).map_or(&[], Vec::as_slice)
    }

    /// Returns the rules that subscribe to the matches of the rule at this index, as indexes into `detections`.
    pub fn listeners(&self, index: usize) -> &[usize] {
        self.listeners.get(index).map_or(&[], Vec::as_slice)
    }

    /// Whether any rule subscribes to the matches of the rule at this index.
    pub fn is_heard(&self, index: usize) -> bool {
        !self.listeners(index).is_empty()
    }

    /// Divides `detections` into at most `most` parts and returns the part of each rule. Rules that subscribe to each
    /// other, or that share memory, stay in one part.
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
        // Assign the heaviest group to the part with the least load. Rules that keep state weigh most, because they are
        // the ones that have to wait.
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

    /// Returns how far back a rule looks, including the rules it subscribes to.
    pub fn reach(&self, rule: &CompiledRule) -> Duration {
        self.reach_of(rule, &mut HashMap::new())
    }

    /// Returns the longest reach of all detection rules.
    pub fn longest_reach(&self) -> Duration {
        let mut known = HashMap::new();
        self.detections.iter().map(|rule| self.reach_of(rule, &mut known)).max().unwrap_or_default()
    }

    /// `known` caches earlier results, because there can be very many paths through rules that subscribe to each other.
    fn reach_of<'a>(&'a self, rule: &'a CompiledRule, known: &mut HashMap<&'a RuleId, Duration>) -> Duration {
        if let Some(reach) = known.get(rule.id()) {
            return *reach;
        }
        let upstream = self.detections.iter().filter(|other| rule.listens_to(&other.metadata));
        // Subscriptions form no cycle, so this terminates.
        let longest = upstream.map(|other| self.reach_of(other, known)).max().unwrap_or_default();
        let reach = rule.reach.saturating_add(longest);
        known.insert(rule.id(), reach);
        reach
    }

    /// Returns a rule and all rules that it subscribes to, directly or through others.
    pub fn with_what_it_hears(&self, rule: &Arc<CompiledRule>) -> Vec<Arc<CompiledRule>> {
        let is_upstream = |(_, other): &(usize, &Arc<CompiledRule>)| rule.listens_to(&other.metadata);
        let mut seen = vec![false; self.detections.len()];
        // The rule itself may be another version of the one in the set.
        let own = self.detections.iter().position(|other| other.id() == rule.id());
        if let Some(seen) = own.and_then(|own| seen.get_mut(own)) {
            *seen = true;
        }
        let mut next: Vec<usize> =
            self.detections.iter().enumerate().filter(is_upstream).map(|(index, _)| index).collect();
        let mut wanted = vec![Arc::clone(rule)];
        while let Some(index) = next.pop() {
            if seen.get_mut(index).is_some_and(|seen| !std::mem::replace(seen, true)) {
                wanted.extend(self.detections.get(index).cloned());
                next.extend(self.heard.get(index).into_iter().flatten());
            }
        }
        // Sort by id, so that versions do not depend on the order of the search.
        if let Some((_, upstream)) = wanted.split_first_mut() {
            upstream.sort_by(|one, other| one.id().cmp(other.id()));
        }
        wanted
    }

    /// Whether a detection rule wants events with this action.
    pub(super) fn is_wanted_by(&self, action: &str, rule: &RuleId) -> bool {
        let wanting = self.wanting(action);
        wanting.into_iter().any(|index| self.detections.get(index).is_some_and(|wanting| wanting.id() == rule))
    }

    /// Iterates over all rules: detections, checks, and disabled rules.
    pub fn all(&self) -> impl Iterator<Item = &Arc<CompiledRule>> {
        self.detections.iter().chain(&self.checks).chain(&self.disabled)
    }
}

impl Dispatch {
    fn new(rules: &[Arc<CompiledRule>], catalog: &Catalog) -> Self {
        let mut dispatch = Self::default();
        let mut globs = Vec::new();
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
                } else if let Ok(glob) = pattern::glob(action) {
                    globs.push(glob);
                    dispatch.glob_rules.push(index);
                }
            }
        }
        // Action patterns contain only letters, digits and `*` (checked when read), so building the set cannot fail.
        dispatch.globs = pattern::set(globs).unwrap_or_default();
        dispatch
    }
}
