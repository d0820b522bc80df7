//! What ends the whole process is remembered, so that it cannot do so again and again.
//!
//! Rules are bounded, but no list of bounds is complete, and what overflows the stack or exhausts memory cannot be caught. So what
//! runs is noted in small files, one for each thread that runs rules: which event is evaluated, which file is loaded, which rules are
//! tried. The system keeps what was written when the process dies. The next process finds the note: what stood in it is suspected, and
//! is run once more, alone, with a note of its own. Should the process die again, the suspect is suspended until its file changes,
//! and a health alert says so.

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

/// Who runs rules, each on a thread of its own at a time.
#[derive(Debug, Clone, Copy)]
pub(super) enum Runner {
    /// Evaluates events, and lets rules learn.
    Evaluate,
    /// Loads files.
    Load,
    /// Tries rules before they run.
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

/// What is running.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Note {
    event: Option<Sequence>,
    suspects: Vec<Suspect>,
}

/// Notes what runs, and keeps what is known of earlier deaths of the process.
#[derive(Debug)]
pub(super) struct CrashLog {
    store: Store,
    notes: Vec<Option<File>>,
    record: Mutex<CrashRecord>,
    /// Held by the hunt that runs: all hunts share one note.
    hunting: Mutex<()>,
}

/// Clears a note when what it is about has ended, however it did.
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
    /// Takes up the notes that the process before this one left, if it died.
    pub(super) fn open(data_dir: &Path, store: &Store, now: Timestamp) -> Result<Self, StoreError> {
        let directory = data_dir.join("running");
        if let Err(error) = fs::create_dir_all(&directory) {
            tracing::warn!(%error, "what runs cannot be noted: a rule that ends the process would do so again");
        }
        let mut record = store.reader().crashes()?;
        let before = record.clone();
        let notes = Runner::ALL.into_iter().filter_map(|runner| read(&directory.join(runner.file())));
        let notes: Vec<Note> = notes.collect();
        // Of several threads only one ended the process: the one whose suspect was there before, if that is one only.
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
                "the agent died while this ran"
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
            file.inspect_err(|error| tracing::warn!(%error, path = %path.display(), "cannot note what runs")).ok()
        };
        let notes = Runner::ALL.into_iter().map(open).collect();
        Ok(Self { store: store.clone(), notes, record: Mutex::new(record), hunting: Mutex::new(()) })
    }

    /// Clears the note of a runner at the end of a scope. What fails there, or is stopped, did not end the process.
    pub(super) fn clearing(&self, runner: Runner) -> Clearing<'_> {
        Clearing { log: self, runner }
    }

    /// Waits until no other hunt runs.
    pub(super) fn hunting(&self) -> MutexGuard<'_, ()> {
        self.hunting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an event is evaluated.
    pub(super) fn event(&self, event: Sequence) {
        self.note(Runner::Evaluate, &Note { event: Some(event), suspects: Vec::new() });
    }

    /// Notes that some rules run.
    pub(super) fn rules<'a>(&self, runner: Runner, rules: impl IntoIterator<Item = &'a Arc<CompiledRule>>) {
        let suspects = rules.into_iter().map(|rule| of_rule(rule.id(), &rule.hash)).collect();
        self.note(runner, &Note { event: None, suspects });
    }

    /// Notes each rule before it is called: for what is suspected.
    pub(super) fn watch(self: &Arc<Self>, runner: Runner, event: Option<Sequence>) -> CallWatch {
        let log = Arc::clone(self);
        Arc::new(move |rule, hash| log.note(runner, &Note { event, suspects: vec![of_rule(rule, hash)] }))
    }

    /// Notes each file before it is loaded, and refuses those that are suspended.
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

    /// Notes that nothing runs.
    fn clear(&self, runner: Runner) {
        if let Some(Some(file)) = self.notes.get(runner as usize) {
            file.set_len(0).ok();
        }
    }

    /// Whether an event was being evaluated when the process died.
    pub(super) fn is_suspect_event(&self, event: Sequence) -> bool {
        self.record().events.contains(&event)
    }

    /// Whether anything is suspected of having ended the process.
    pub(super) fn suspects_any(&self) -> bool {
        !self.record().suspects.is_empty()
    }

    /// Whether a rule is suspected.
    pub(super) fn is_suspect(&self, rule: &CompiledRule) -> bool {
        self.record().suspects.contains(&of_rule(rule.id(), &rule.hash))
    }

    /// Takes note that events, and whatever else has been run since, did no harm.
    pub(super) fn cleared(&self, events: &[Sequence], rules: &[Arc<CompiledRule>]) -> Result<(), StoreError> {
        let mut record = self.record();
        let before = record.clone();
        record.events.retain(|event| !events.contains(event));
        record.suspects.retain(|suspect| !rules.iter().any(|rule| *suspect == of_rule(rule.id(), &rule.hash)));
        if *record == before { Ok(()) } else { self.store.save_crashes(&record) }
    }

    /// Takes note that all files were loaded.
    pub(super) fn loaded(&self) -> Result<(), StoreError> {
        let mut record = self.record();
        let before = record.suspects.len();
        record.suspects.retain(|suspect| !matches!(suspect, Suspect::File { .. }));
        if record.suspects.len() == before { Ok(()) } else { self.store.save_crashes(&record) }
    }

    /// The rules without those that are suspended.
    pub(super) fn without_suspended(&self, rules: &Arc<RuleSet>) -> Arc<RuleSet> {
        let mut record = self.record();
        let before = record.clone();
        record.suspects.retain(|suspect| match suspect {
            Suspect::Rule { rule, hash } => rules.all().any(|now| now.id() == rule && now.hash == *hash),
            Suspect::File { .. } => true,
        });
        // Once its file has changed, a rule is as any other.
        record.suspended.retain(|suspended| match &suspended.suspect {
            Suspect::Rule { rule, hash } => !rules.all().any(|now| now.id() == rule && now.hash != *hash),
            Suspect::File { .. } => true,
        });
        if *record != before
            && let Err(error) = self.store.save_crashes(&record)
        {
            tracing::error!(%error, "could not record that a rule is no longer suspected or suspended");
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
        // One write: it is there as a whole, or not at all. The length goes first, as what stood there may be longer.
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

/// The note that a process left; none where nothing ran.
fn read(file: &Path) -> Option<Note> {
    let bytes = fs::read(file).ok()?;
    let (length, rest) = bytes.split_at_checked(8)?;
    let length: usize = std::str::from_utf8(length).ok()?.trim().parse().ok()?;
    serde_json::from_slice(rest.get(..length)?).ok()
}

/// Deaths after which a suspect is suspended although others ran as well each time.
const TOO_OFTEN: usize = 3;

/// What follows from a note: one that was alone, and suspected before, is suspended.
fn judge(record: &mut CrashRecord, note: Note, alone: bool, now: Timestamp) {
    let again = note.event.is_some_and(|event| record.events.contains(&event));
    match <[Suspect; 1]>::try_from(note.suspects) {
        Ok([suspect])
            if alone && (again || record.suspects.contains(&suspect))
                || record.suspects.iter().filter(|other| **other == suspect).count() >= TOO_OFTEN =>
        {
            record.suspects.retain(|other| *other != suspect);
            record.suspended.retain(|other| !is_same(&other.suspect, &suspect));
            record.suspended.push(Suspended { suspect, since: now, event: note.event });
        }
        suspects => {
            // As often as they are suspected.
            record.suspects.extend(suspects.map_or_else(|many| many, |one| one.into()));
        }
    }
    if let Some(event) = note.event.filter(|event| !record.events.contains(event)) {
        record.events.push(event);
    }
}

/// Whether two are of the same rule or file, in whichever version.
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
        // Together with others, and then alone.
        judge(&mut record, Note { event: None, suspects: vec![rule("c.d"), rule("e.f")] }, true, now);
        assert_eq!((record.suspects.len(), record.suspended.len()), (2, 1));
        alone(&mut record, None, "e.f");
        assert_eq!(record.suspended[1].suspect, rule("e.f"));
        // Alone, but for the first time: whatever ended the process may have come from elsewhere.
        alone(&mut record, None, "g.h");
        assert_eq!(record.suspended.len(), 2);
        // With others at the same time it takes longer.
        for death in 0..4 {
            assert_eq!(record.suspended.len(), 2, "{death}");
            judge(&mut record, Note { event: None, suspects: vec![rule("i.j")] }, false, now);
        }
        assert_eq!(record.suspended.len(), 3);
    }
}
