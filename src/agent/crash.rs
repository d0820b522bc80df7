//! Remembers which rules crash the process, so that none does so repeatedly.
//!
//! Rules are bounded, but no list of bounds is complete, and a stack overflow or exhausted memory cannot be caught. So
//! each thread that runs rules notes in a small file what it runs: the event being evaluated, the file being loaded, or
//! the rules being replayed. The operating system keeps what was written when the process dies. The next process reads
//! the notes: what they name becomes a suspect, and is run once more, alone, with its own note. If the process dies
//! again, the suspect is suspended until its file changes, and a health alert says so.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    model::{
        name::{RuleId, Sequence},
        time::Timestamp,
    },
    rule::{CallWatch, CompiledRule, Ended, LoadWatch, RuleSet},
    store::{CrashRecord, Store, StoreError, Suspect, Suspended},
};

/// The parts of the agent that run rules. Each runs on its own thread, one at a time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Runner {
    /// Evaluates events, and warms up rules.
    Evaluate,
    /// Loads rule files.
    Load,
    /// Replays new rules before they run.
    Guard,
    /// Runs new rules over stored events.
    RetroHunt,
    /// Runs check rules.
    Check,
}

impl Runner {
    const ALL: [Self; 5] = [Self::Evaluate, Self::Load, Self::Guard, Self::RetroHunt, Self::Check];

    fn file(self) -> &'static str {
        match self {
            Self::Evaluate => "evaluate",
            Self::Load => "load",
            Self::Guard => "guard",
            Self::RetroHunt => "hunt",
            Self::Check => "check",
        }
    }
}

/// What a thread is running.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Note {
    event: Option<Sequence>,
    suspects: Vec<Suspect>,
}

/// Notes what is running, and keeps the record of earlier crashes.
#[derive(Debug)]
pub(super) struct CrashLog {
    store: Store,
    notes: Vec<Option<File>>,
    record: Mutex<CrashRecord>,
    /// Locked by the running retro-hunt: all of them share one note.
    hunting: Mutex<()>,
}

/// Clears a runner's note when dropped, however the scope ends.
#[derive(Debug)]
#[must_use = "the note is cleared when this is dropped"]
pub(super) struct Clearing<'a> {
    log: &'a CrashLog,
    runner: Runner,
}

impl Drop for Clearing<'_> {
    fn drop(&mut self) {
        self.log.clear(self.runner);
    }
}

impl CrashLog {
    /// Reads the notes that the previous process left behind if it died, and updates the crash record.
    pub(super) fn open(data_dir: &Path, store: &Store, now: Timestamp) -> Result<Self, StoreError> {
        let directory = data_dir.join("running");
        if let Err(error) = fs::create_dir_all(&directory) {
            tracing::warn!(%error, "cannot create the crash notes: a rule could crash the agent repeatedly");
        }
        let mut record = store.reader().crashes()?;
        let before = record.clone();
        let notes = Runner::ALL.into_iter().filter_map(|runner| read(&directory.join(runner.file())));
        let notes: Vec<Note> = notes.collect();
        // Only one of several threads caused the crash: the one whose suspect was suspected before, if exactly one was.
        let was_suspected = |note: &Note| match note.suspects.as_slice() {
            [suspect] => {
                before.suspects.contains(suspect) || note.event.is_some_and(|event| before.events.contains(&event))
            }
            _ => false,
        };
        let suspected = notes.iter().filter(|note| was_suspected(note)).count();
        let several = notes.len() > 1;
        for note in notes {
            let alone = !several || (suspected == 1 && was_suspected(&note));
            tracing::error!(
                event = note.event.map(|event| event.0),
                suspects = ?note.suspects.iter().map(describe).collect::<Vec<_>>(),
                "the agent crashed while running this"
            );
            judge(&mut record, note, alone, now);
        }
        if record != before {
            store.save_crashes(&record)?;
        }
        let open = |runner: Runner| {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(directory.join(runner.file()));
            let path = directory.join(runner.file());
            file.inspect_err(|error| tracing::warn!(%error, path = %path.display(), "cannot open a crash note")).ok()
        };
        let notes = Runner::ALL.into_iter().map(open).collect();
        Ok(Self { store: store.clone(), notes, record: Mutex::new(record), hunting: Mutex::new(()) })
    }

    /// Clears the note of a runner at the end of a scope. An error or a stop in the scope is not a crash.
    pub(super) fn clearing(&self, runner: Runner) -> Clearing<'_> {
        Clearing { log: self, runner }
    }

    /// Waits until no other retro-hunt is running.
    pub(super) fn hunting(&self) -> MutexGuard<'_, ()> {
        self.hunting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an event is being evaluated.
    pub(super) fn event(&self, event: Sequence) {
        self.note(Runner::Evaluate, &Note { event: Some(event), suspects: Vec::new() });
    }

    /// Notes that rules are running.
    pub(super) fn rules<'a>(&self, runner: Runner, rules: impl IntoIterator<Item = &'a Arc<CompiledRule>>) {
        let suspects = rules.into_iter().map(|rule| of_rule(rule.id(), &rule.hash)).collect();
        self.note(runner, &Note { event: None, suspects });
    }

    /// Notes each rule before it is called. Used for suspects.
    pub(super) fn watch(self: &Arc<Self>, runner: Runner, event: Option<Sequence>) -> CallWatch {
        let log = Arc::clone(self);
        Arc::new(move |rule, hash| log.note(runner, &Note { event, suspects: vec![of_rule(rule, hash)] }))
    }

    /// Notes each file before it is loaded, and refuses suspended files.
    pub(super) fn watch_loading(self: &Arc<Self>) -> LoadWatch {
        let log = Arc::clone(self);
        Box::new(move |loading| {
            let Some((file, hash)) = loading else {
                log.clear(Runner::Load);
                return true;
            };
            let suspect = Suspect::File { file: file.to_owned(), hash: hash.to_owned() };
            if log.record().suspended.iter().any(|suspended| suspended.suspect == suspect) {
                return false;
            }
            log.note(Runner::Load, &Note { event: None, suspects: vec![suspect] });
            true
        })
    }

    fn clear(&self, runner: Runner) {
        if let Some(Some(file)) = self.notes.get(runner as usize) {
            file.set_len(0).ok();
        }
    }

    /// True if the event was being evaluated in an earlier crash.
    pub(super) fn is_suspect_event(&self, event: Sequence) -> bool {
        self.record().events.contains(&event)
    }

    /// True if any rule or file is suspected of having crashed the process.
    pub(super) fn suspects_any(&self) -> bool {
        !self.record().suspects.is_empty()
    }

    pub(super) fn is_suspect(&self, rule: &CompiledRule) -> bool {
        self.record().suspects.contains(&of_rule(rule.id(), &rule.hash))
    }

    /// Removes events and rules that ran without a crash from the suspects.
    pub(super) fn cleared(&self, events: &[Sequence], rules: &[Arc<CompiledRule>]) -> Result<(), StoreError> {
        let mut record = self.record();
        let before = record.clone();
        record.events.retain(|event| !events.contains(event));
        record.suspects.retain(|suspect| !rules.iter().any(|rule| *suspect == of_rule(rule.id(), &rule.hash)));
        if *record == before { Ok(()) } else { self.store.save_crashes(&record) }
    }

    /// Removes all files from the suspects, after a complete load.
    pub(super) fn loaded(&self) -> Result<(), StoreError> {
        let mut record = self.record();
        let before = record.suspects.len();
        record.suspects.retain(|suspect| !matches!(suspect, Suspect::File { .. }));
        if record.suspects.len() == before { Ok(()) } else { self.store.save_crashes(&record) }
    }

    /// Returns the rules without the suspended ones.
    pub(super) fn without_suspended(&self, rules: &Arc<RuleSet>) -> Arc<RuleSet> {
        let mut record = self.record();
        let before = record.clone();
        record.suspects.retain(|suspect| match suspect {
            Suspect::Rule { rule, hash } => rules.all().any(|now| now.id() == rule && now.hash == *hash),
            Suspect::File { .. } => true,
        });
        // Changing a rule's file lifts its suspension.
        record.suspended.retain(|suspended| match &suspended.suspect {
            Suspect::Rule { rule, hash } => !rules.all().any(|now| now.id() == rule && now.hash != *hash),
            Suspect::File { .. } => true,
        });
        if *record != before
            && let Err(error) = self.store.save_crashes(&record)
        {
            tracing::error!(%error, "cannot record that a rule is no longer suspected or suspended");
        }
        let ended = record.suspended.iter().filter_map(|suspended| match &suspended.suspect {
            Suspect::Rule { rule, hash } => rules
                .all()
                .any(|running| running.id() == rule && running.hash == *hash)
                .then(|| Ended { rule: rule.clone(), since: suspended.since, event: suspended.event }),
            Suspect::File { .. } => None,
        });
        let ended: Vec<Ended> = ended.collect();
        if ended.is_empty() { Arc::clone(rules) } else { rules.without(ended) }
    }

    fn note(&self, runner: Runner, note: &Note) {
        // One write, so that the note is complete or absent. The length comes first because the previous content may be
        // longer.
        if let (Some(Some(file)), Ok(text)) = (self.notes.get(runner as usize), serde_json::to_vec(note)) {
            let mut bytes = format!("{:>8}", text.len()).into_bytes();
            bytes.extend(text);
            file.write_all_at(&bytes, 0).ok();
        }
    }

    fn record(&self) -> MutexGuard<'_, CrashRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the note that a process left; `None` if nothing was running.
fn read(file: &Path) -> Option<Note> {
    let bytes = fs::read(file).ok()?;
    let (length, rest) = bytes.split_at_checked(8)?;
    let length: usize = std::str::from_utf8(length).ok()?.trim().parse().ok()?;
    serde_json::from_slice(rest.get(..length)?).ok()
}

/// Crashes after which a suspect is suspended even if it never ran alone.
const MAX_CRASHES: usize = 3;

/// Updates the record from a note: a suspect that ran alone and was suspected before is suspended.
fn judge(record: &mut CrashRecord, note: Note, alone: bool, now: Timestamp) {
    let again = note.event.is_some_and(|event| record.events.contains(&event));
    match <[Suspect; 1]>::try_from(note.suspects) {
        Ok([suspect])
            if alone && (again || record.suspects.contains(&suspect))
                || record.suspects.iter().filter(|other| **other == suspect).count() >= MAX_CRASHES =>
        {
            record.suspects.retain(|other| *other != suspect);
            record.suspended.retain(|other| !is_same(&other.suspect, &suspect));
            record.suspended.push(Suspended { suspect, since: now, event: note.event });
        }
        suspects => {
            // Duplicates are kept: they count how often something was suspected.
            record.suspects.extend(suspects.map_or_else(|many| many, |one| one.into()));
        }
    }
    if let Some(event) = note.event.filter(|event| !record.events.contains(event)) {
        record.events.push(event);
    }
}

/// True if both are the same rule or file, in any version.
fn is_same(one: &Suspect, other: &Suspect) -> bool {
    match (one, other) {
        (Suspect::Rule { rule, .. }, Suspect::Rule { rule: other, .. }) => rule == other,
        (Suspect::File { file, .. }, Suspect::File { file: other, .. }) => file == other,
        _ => false,
    }
}

fn of_rule(rule: &RuleId, hash: &str) -> Suspect {
    Suspect::Rule { rule: rule.clone(), hash: hash.to_owned() }
}

fn describe(suspect: &Suspect) -> String {
    match suspect {
        Suspect::Rule { rule, .. } => rule.to_string(),
        Suspect::File { file, .. } => file.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time;

    fn rule(id: &str) -> Suspect {
        of_rule(&RuleId::parse(id).unwrap(), "h")
    }

    #[test]
    fn the_second_death_alone_suspends() {
        let (mut record, now) = (CrashRecord::default(), time::from_millis(0));
        let alone = |record: &mut CrashRecord, event, id| {
            judge(record, Note { event, suspects: vec![rule(id)] }, true, now);
        };
        judge(&mut record, Note { event: Some(Sequence(7)), suspects: Vec::new() }, true, now);
        assert_eq!((record.events.as_slice(), record.suspended.len()), ([Sequence(7)].as_slice(), 0));
        alone(&mut record, Some(Sequence(7)), "a.b");
        assert_eq!(record.suspended.len(), 1);
        // First together with others, then alone.
        judge(&mut record, Note { event: None, suspects: vec![rule("c.d"), rule("e.f")] }, true, now);
        assert_eq!((record.suspects.len(), record.suspended.len()), (2, 1));
        alone(&mut record, None, "e.f");
        assert_eq!(record.suspended[1].suspect, rule("e.f"));
        // Alone, but for the first time: the crash may have another cause.
        alone(&mut record, None, "g.h");
        assert_eq!(record.suspended.len(), 2);
        // Never alone: it takes more crashes.
        for death in 0..4 {
            assert_eq!(record.suspended.len(), 2, "{death}");
            judge(&mut record, Note { event: None, suspects: vec![rule("i.j")] }, false, now);
        }
        assert_eq!(record.suspended.len(), 3);
    }
}
