//! Tests the memory against a model that never forgets, and its quota.

use super::*;
use proptest::prelude::*;

const WINDOW: i64 = 50;
const R: Place<'static> = Place { space: "r", rule: "r" };

/// One operation on a memory.
#[derive(Debug, Clone)]
struct Step {
    time: i64,
    key: u8,
    value: u8,
}

/// Some in order, some late by any number of windows.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let late = prop_oneof![4 => 0_i64..WINDOW, 2 => 0_i64..3 * WINDOW, 1 => 0_i64..20 * WINDOW];
    prop::collection::vec((late, 0_u8..3, 0_u8..4), 1..80).prop_map(|steps| {
        let step = |(index, (late, key, value)): (usize, (i64, u8, u8))| Step {
            time: i64::try_from(index).unwrap() * 10 - late,
            key,
            value,
        };
        steps.into_iter().enumerate().map(step).collect()
    })
}

/// The plainest definition: everything that was ever recorded, filtered by the rule in the module's documentation.
struct Model<'a> {
    steps: &'a [Step],
}

impl<'a> Model<'a> {
    /// The latest time up to a step.
    fn clock(&self, index: usize) -> i64 {
        self.steps[..=index].iter().map(|step| step.time).max().unwrap().max(0)
    }

    /// What was recorded before a step, and counts at it.
    fn noted(&self, index: usize, kept_for: i64) -> impl Iterator<Item = &'a Step> {
        let clock = self.clock(index);
        self.taken(index, kept_for).into_iter().filter(move |step| step.time + kept_for >= clock)
    }

    /// What arrived in time to be recorded under the key of a step, before it.
    fn taken(&self, index: usize, kept_for: i64) -> Vec<&'a Step> {
        let before = self.steps[..index].iter().enumerate();
        let taken = before.filter(|(at, step)| step.time + kept_for >= self.clock(*at));
        taken.map(|(_, step)| step).filter(|step| step.key == self.steps[index].key).collect()
    }

    /// The same, including the step itself.
    fn noted_with(&self, index: usize, kept_for: i64) -> Vec<&'a Step> {
        let own = Some(&self.steps[index]).filter(|step| step.time + kept_for >= self.clock(index));
        self.noted(index, kept_for).chain(own).collect()
    }
}

proptest! {
    #[test]
    fn agrees_with_a_model_that_never_forgets(steps in steps(), restart in 0_usize..80) {
        let model = Model { steps: &steps };
        let mut memory = Memory::new(Quota::default());
        let mut stored: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (index, step) in steps.iter().enumerate() {
            if index == restart {
                // As after a restart: restore what was stored.
                memory = Memory::new(Quota::default());
                for (name, bytes) in &stored {
                    memory.restore(name, bytes);
                }
            }
            let now = (step.time, index as u64 + 1);
            memory.advance(model.clock(index));
            let (key, value) = (step.key.to_string(), step.value.to_string());
            let before = model.noted_with(index, 2 * WINDOW);
            let inside: Vec<&&Step> =
                before.iter().filter(|other| other.time <= step.time && other.time > step.time - WINDOW).collect();
            prop_assert_eq!(memory.count(R, &key, now, WINDOW, true), inside.len());
            let values: BTreeSet<u8> = inside.iter().map(|other| other.value).collect();
            prop_assert_eq!(memory.distinct(R, &key, Some(&value), now, WINDOW, true), values.len());
            // Only the newest sighting counts.
            let last = model.noted(index, 2 * WINDOW).filter(|other| other.value == step.value).map(|other| other.time).max();
            let new = last.is_none_or(|last| (step.time - last).abs() >= WINDOW);
            prop_assert_eq!(memory.see(R, &key, &value, now, WINDOW, true).0, new);
            // Marks of a name at or before now.
            let newest = before.iter().filter(|other| other.value == 1 && other.time <= step.time && other.time > step.time - WINDOW).map(|other| other.time).max();
            if step.value == 1 {
                memory.mark(R, &key, "one", now, WINDOW);
            }
            prop_assert_eq!(memory.marked("r", &key, "one", now, now, WINDOW).map(|moment| moment.0), newest);
            // The last stored value, if its lifetime has not ended by the event's time.
            let written = model.taken(index, 2 * WINDOW).pop();
            let written = written.filter(|other| other.time + 2 * WINDOW >= model.clock(index));
            let written = written.filter(|other| step.time < other.time + WINDOW).map(|other| other.value.to_string());
            prop_assert_eq!(memory.recall("r", &key, now), written.as_deref());
            memory.remember(R, &key, value.clone(), now, WINDOW);
            for (name, bytes) in memory.take_changes() {
                match bytes {
                    Some(bytes) => drop(stored.insert(name, bytes)),
                    None => drop(stored.remove(&name)),
                }
            }
        }
        // What is stored is what is in memory.
        let mut again = Memory::new(Quota::default());
        for (name, bytes) in &stored {
            again.restore(name, bytes);
        }
        prop_assert_eq!(again.list(), memory.list());
        prop_assert_eq!(again.size("r"), memory.size("r"));
    }
}

#[test]
fn a_quota_counts_all_that_a_rule_causes_to_be_kept() {
    let mut memory = Memory::new(Quota { keys: 10, bytes: 10_000 });
    let other = Place { space: "common/c7", rule: "other" };
    memory.count(other, "theirs", (0, 1), 1_000, true);
    for number in 0..100_i64 {
        let space = format!("common/c{number}");
        memory.remember(Place { space: &space, rule: "r" }, "k", "1".to_owned(), (number, 1), 1_000);
    }
    assert_eq!(memory.size("r").0, 10);
    assert_eq!(memory.list().len(), 11);
    // Nothing of the other rules was evicted for it.
    assert_eq!(memory.count(other, "theirs", (1, 2), 1_000, false), 1);
    assert_eq!(memory.take_overflowed().into_iter().collect::<Vec<_>>(), ["r"]);
}

#[test]
fn what_an_earlier_version_stored_is_read() {
    let entry = Entry { content: Content::Since(5), expires: i64::MAX };
    let bytes = postcard::to_extend(&("learning/x", &entry), vec![WITHOUT_RULE]).unwrap();
    let mut memory = Memory::new(Quota::default());
    memory.restore(&name_of("a.rule", "learning/x"), &bytes);
    assert_eq!(memory.learning_since(Place { space: "a.rule", rule: "a.rule" }, "x", (9, 1), true), 5);
    assert_eq!(memory.size("a.rule").0, 1);
}

#[test]
fn a_space_is_bounded_and_says_so() {
    let mut memory = Memory::new(Quota { keys: 10, bytes: 10_000 });
    for number in 0..100_u64 {
        memory.count(R, &number.to_string(), (i64::try_from(number).unwrap(), number), 1_000, true);
    }
    let (keys, bytes, evicted) = memory.size("r");
    assert_eq!((keys, evicted), (10, 90));
    assert!(bytes < 1_000);
    assert_eq!(memory.take_overflowed().into_iter().collect::<Vec<_>>(), ["r"]);
    // The newest are still there.
    assert_eq!(memory.count(R, "99", (100, 100), 1_000, false), 1);
    assert_eq!(memory.count(R, "1", (100, 100), 1_000, false), 0);
}

#[test]
fn notes_end_when_they_should() {
    let mut memory = Memory::new(Quota::default());
    memory.remember(R, "k", "5".to_owned(), (0, 1), 100);
    assert_eq!(memory.recall("r", "k", (99, 2)), Some("5"));
    assert_eq!(memory.recall("r", "k", (100, 2)), None);
    assert_eq!(memory.recall("other", "k", (1, 2)), None);
    memory.forget("r", "k");
    assert_eq!(memory.recall("r", "k", (1, 2)), None);
    assert_eq!(memory.clear("r"), 0);
}

#[test]
fn keys_and_names_are_held_apart() {
    let mut memory = Memory::new(Quota::default());
    memory.mark(R, "b/c", "a", (0, 1), 100);
    assert!(memory.is_marked("r", "b/c", "a", (1, 2)));
    assert!(!memory.is_marked("r", "c", "a/b", (1, 2)) && !memory.is_marked("r", "b/c", "a", (100, 2)));
}
