//! Replays on all cores, with the same result as a replay that goes from event to event.
//!
//! There are two kinds of work, on the same threads. *Preparing* a block: unpack it, and run the rules whose verdict
//! depends on the event alone. Any thread prepares any block. *Deciding*: apply the verdicts, in the order of events,
//! to windows, state and open alerts. Rules that are independent of each other are decided separately, each part by one
//! thread at a time. A window of blocks bounds the memory used.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::Receiver,
    },
    time::Duration,
};

use super::{
    Replay, Report,
    report::{Costs, Part},
};
use crate::{
    detect::{Preparer, Settings, Verdict},
    model::{
        alert::LoggedChange,
        event::Event,
        legible::Flags,
        name::SourceName,
        outcome::LoggedWatermark,
        time::{self, Timestamp},
    },
    rule::{RuleSet, stack},
    store::{Block, StoreError, Unpacked},
};

/// The number of blocks in memory for each thread.
const WINDOW: usize = 4;

/// The options of a replay.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Events before this time are not reported.
    pub since: Option<Timestamp>,
    /// How long before `since` the warm-up of rules begins.
    pub warm_up: Duration,
    /// Events at or after this time are left out.
    pub until: Option<Timestamp>,
    /// Only events whose action matches.
    pub action: Option<globset::GlobMatcher>,
    /// Only events of this source.
    pub source: Option<SourceName>,
    /// What users did with alerts in the meantime: see [`Replay::with_changes`].
    pub changes: Vec<LoggedChange>,
    /// See [`Replay::with_watermarks`].
    pub watermarks: Vec<LoggedWatermark>,
    /// The number of threads.
    pub threads: usize,
}

/// A rule set that runs over the events; several can run at once.
#[derive(Debug, Default)]
pub struct Side {
    /// The rules.
    pub rules: Arc<RuleSet>,
    /// The same rules, loaded again: threads with their own rules do not wait for each other's counters.
    pub copies: Vec<Arc<RuleSet>>,
}

impl Side {
    /// The rule set for a thread.
    fn rules_of(&self, thread: usize) -> Arc<RuleSet> {
        let hashes = |set: &RuleSet| set.detections.iter().map(|rule| rule.hash.clone()).collect::<Vec<_>>();
        let same = |copy: &&Arc<RuleSet>| hashes(copy) == hashes(&self.rules);
        Arc::clone(self.copies.get(thread).filter(same).unwrap_or(&self.rules))
    }

    fn costs(&self) -> Costs {
        Costs::of(self.copies.iter().chain([&self.rules]).map(|set| &**set))
    }
}

/// The progress of a replay, and whether it should end early. Shared with the code that displays it.
#[derive(Debug, Default)]
pub struct ReplayProgress {
    events: AtomicU64,
    stopped: AtomicBool,
    done: AtomicBool,
}

impl ReplayProgress {
    /// Signals that the replay has ended.
    pub fn done(&self) {
        self.done.store(true, Ordering::Relaxed);
    }

    /// Returns true if the replay has ended.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// The number of events processed so far.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Requests the replay to end early, with the results so far.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// Returns true if the replay should end early.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// A block with the verdicts that could be found ahead.
#[derive(Debug)]
struct Prepared {
    block: Option<Unpacked>,
    /// Which of its events match the options of the replay; absent if all do.
    wanted: Option<Vec<bool>>,
    /// For each side, the events with something to decide, in order.
    sides: Vec<Vec<Spoken>>,
    unreadable: u64,
}

/// An event with verdicts of rules.
#[derive(Debug)]
struct Spoken {
    /// The position in the block.
    place: usize,
    event: Event,
    /// The verdicts, with the index of the rule.
    verdicts: Vec<(usize, Verdict)>,
}

/// The state that the threads share.
struct Board {
    /// The number of the next block.
    next: u64,
    /// A thread is waiting for the next block.
    receiving: bool,
    ended: bool,
    preparing: usize,
    unreadable: u64,
    ready: BTreeMap<u64, Arc<Prepared>>,
    parts: Vec<Deciding>,
}

/// A part of the rules of a side, and its position.
struct Deciding {
    side: usize,
    /// The number of the part.
    part: usize,
    /// Absent while a thread works on it.
    replay: Option<Box<Replay>>,
    /// The number of the block to decide next.
    next: u64,
}

/// The next work of a thread.
enum Work {
    Receive,
    Decide { index: usize, side: usize, part: usize, replay: Box<Replay>, prepared: Arc<Prepared> },
    End,
}

/// What all threads share.
struct Shared<'a> {
    board: Mutex<Board>,
    changed: Condvar,
    feed: Mutex<Receiver<Block>>,
    /// The number of blocks that may be in memory.
    window: usize,
    /// For each side, the part that decides each rule.
    part_of: Vec<Vec<usize>>,
    run: &'a Run,
    progress: &'a ReplayProgress,
}

/// Runs rules over the blocks from `feed` until it ends.
pub fn run(
    rules: &Arc<RuleSet>,
    settings: &Settings,
    run: &Run,
    feed: Receiver<Block>,
    progress: &ReplayProgress,
) -> Report {
    let side = Side { rules: Arc::clone(rules), copies: Vec::new() };
    run_sides(&[side], settings, run, feed, progress).pop().unwrap_or_default()
}

/// Runs several rule sets over the same blocks in one pass. Returns a report for each.
pub fn run_sides(
    sides: &[Side],
    settings: &Settings,
    run: &Run,
    feed: Receiver<Block>,
    progress: &ReplayProgress,
) -> Vec<Report> {
    let threads = run.threads.max(1);
    let part_of: Vec<Vec<usize>> = sides.iter().map(|side| side.rules.parts(threads)).collect();
    let begin = |side: usize, part: usize, rules: &Arc<RuleSet>| {
        let replay = Replay::new(Arc::clone(rules), settings.clone())
            .since(run.since)
            .with_changes(run.changes.clone())
            .with_watermarks(run.watermarks.clone());
        Deciding { side, part, replay: Some(Box::new(replay)), next: 0 }
    };
    let mut parts = Vec::new();
    for (number, (side, part_of)) in sides.iter().zip(&part_of).enumerate() {
        let count = part_of.iter().max().map_or(1, |last| last + 1);
        parts.extend((0..count).map(|part| begin(number, part, &side.rules)));
    }
    let costs: Vec<Costs> = sides.iter().map(Side::costs).collect();
    let board =
        Board { next: 0, receiving: false, ended: false, preparing: 0, unreadable: 0, ready: BTreeMap::new(), parts };
    let shared = Shared {
        board: Mutex::new(board),
        changed: Condvar::new(),
        feed: Mutex::new(feed),
        window: WINDOW * threads,
        part_of,
        run,
        progress,
    };
    std::thread::scope(|scope| {
        for number in 0..threads {
            let shared = &shared;
            let own: Vec<Arc<RuleSet>> = sides.iter().map(|side| side.rules_of(number)).collect();
            let builder = stack::thread(&format!("replay-{number}"));
            let prepare = move || own.into_iter().map(|rules| Preparer::new(rules, settings)).collect();
            let spawned = builder.spawn_scoped(scope, move || shared.work(prepare()));
            if let Err(error) = spawned {
                tracing::warn!(%error, "cannot start a replay thread; the others do its work");
            }
        }
    });
    let board = shared.board.into_inner().unwrap_or_else(PoisonError::into_inner);
    let whole = run.until.is_none() && !progress.is_stopped();
    let mut finished: Vec<Vec<Part>> = sides.iter().map(|_| Vec::new()).collect();
    for part in board.parts {
        if let (Some(mut replay), Some(finished)) = (part.replay, finished.get_mut(part.side)) {
            if whole {
                replay.follow_all();
            }
            finished.push(replay.into_part());
        }
    }
    let reports = finished.into_iter().zip(sides).zip(costs).map(|((parts, side), before)| {
        let mut report = Part::join(parts);
        report.unreadable = board.unreadable;
        report.interrupted = progress.is_stopped();
        side.costs().report(&before, &mut report);
        report
    });
    reports.collect()
}

impl Shared<'_> {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self, mut preparers: Vec<Preparer>) {
        loop {
            match self.next() {
                Work::End => return,
                Work::Receive => {
                    let block = self.receive();
                    let mut board = self.board();
                    board.receiving = false;
                    let Some(block) = block else {
                        board.ended = true;
                        self.changed.notify_all();
                        continue;
                    };
                    let number = board.next;
                    board.next += 1;
                    board.preparing += 1;
                    self.changed.notify_all();
                    drop(board);
                    let prepared = Arc::new(self.prepare(&mut preparers, block));
                    let mut board = self.board();
                    board.preparing -= 1;
                    board.unreadable += prepared.unreadable;
                    board.ready.insert(number, prepared);
                    self.changed.notify_all();
                }
                Work::Decide { index, side, part, mut replay, prepared } => {
                    self.decide(side, part, &mut replay, &prepared);
                    let mut board = self.board();
                    if let Some(part) = board.parts.get_mut(index) {
                        part.replay = Some(replay);
                        part.next += 1;
                    }
                    let first = board.parts.iter().map(|part| part.next).min().unwrap_or(0);
                    board.ready = board.ready.split_off(&first);
                    self.changed.notify_all();
                }
            }
        }
    }

    /// Waits for the next work. Decisions have priority because they free memory.
    fn next(&self) -> Work {
        let mut board = self.board();
        loop {
            let Board { ready, parts, .. } = &mut *board;
            for (index, part) in parts.iter_mut().enumerate() {
                if part.replay.is_some()
                    && let Some(prepared) = ready.get(&part.next)
                    && let Some(replay) = part.replay.take()
                {
                    let (side, number) = (part.side, part.part);
                    return Work::Decide { index, side, part: number, replay, prepared: Arc::clone(prepared) };
                }
            }
            let done = |part: &Deciding| part.next == board.next;
            if board.ended && board.preparing == 0 && board.parts.iter().all(done) {
                return Work::End;
            }
            if !board.ended && !board.receiving && board.ready.len() + board.preparing < self.window {
                board.receiving = true;
                return Work::Receive;
            }
            board = self.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn receive(&self) -> Option<Block> {
        if self.progress.is_stopped() {
            return None;
        }
        self.feed.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    fn prepare(&self, preparers: &mut [Preparer], block: Block) -> Prepared {
        let sides = preparers.iter().map(|_| Vec::new()).collect();
        let mut prepared = Prepared { block: None, wanted: None, sides, unreadable: 0 };
        let mut block = match block.unpack() {
            Ok(block) => block,
            Err(error) => {
                tracing::warn!(%error, "cannot read a block of events");
                prepared.unreadable = 1;
                return prepared;
            }
        };
        self.progress.events.fetch_add(block.len() as u64, Ordering::Relaxed);
        let begin = self.run.since.map(|since| time::before(since, self.run.warm_up));
        if begin.is_some() || self.run.until.is_some() || self.run.source.is_some() || self.run.action.is_some() {
            let wanted = block.heads().map(|head| {
                begin.is_none_or(|begin| head.time >= begin)
                    && self.run.until.is_none_or(|until| head.time < until)
                    && self.run.action.as_ref().is_none_or(|glob| glob.is_match(&**head.action))
                    && self.run.source.as_ref().is_none_or(|source| head.source == source)
            });
            let wanted: Vec<bool> = wanted.collect();
            if !wanted.contains(&true) {
                prepared.wanted = Some(Vec::new());
                return prepared;
            }
            prepared.wanted = Some(wanted);
        }
        let mut wanted = |action: &Arc<str>, flags| preparers.iter_mut().any(|preparer| preparer.wants(action, flags));
        let looked_at: Vec<Arc<str>> =
            block.actions().into_iter().filter(|action| wanted(action, Flags::default())).collect();
        let heads = block.heads().enumerate().filter(|(place, _)| prepared.wants(*place));
        // Flagged events are rare.
        let heads: Vec<(usize, Head)> = heads
            .filter(|(_, head)| match head.flags.is_empty() {
                true => looked_at.contains(head.action),
                false => wanted(head.action, head.flags),
            })
            .map(|(place, head)| {
                (place, Head { action: Arc::clone(head.action), flags: head.flags, source: head.source.clone() })
            })
            .collect();
        if !heads.is_empty() {
            for (place, head) in heads {
                if let Err(error) = prepared.event(&mut block, preparers, place, &head) {
                    if prepared.unreadable == 0 {
                        tracing::warn!(%error, "cannot read events");
                    }
                    prepared.unreadable += 1;
                }
            }
        }
        prepared.block = Some(block);
        prepared
    }

    fn decide(&self, side: usize, part: usize, replay: &mut Replay, prepared: &Prepared) {
        let (Some(block), Some(events), Some(part_of)) =
            (&prepared.block, prepared.sides.get(side), self.part_of.get(side))
        else {
            return;
        };
        let mut events = events.iter().peekable();
        for (place, head) in block.heads().enumerate() {
            let spoken = events.next_if(|next| next.place == place);
            if !prepared.wants(place) {
                continue;
            }
            let own = spoken.and_then(|Spoken { event, verdicts, .. }| {
                let own = |(rule, _): &&(usize, Verdict)| part_of.get(*rule) == Some(&part);
                let verdicts: Vec<(usize, Verdict)> = verdicts.iter().filter(own).cloned().collect();
                (!verdicts.is_empty()).then_some((event, verdicts))
            });
            replay.step(head, own);
        }
    }
}

/// The fields of an event that decide which rules evaluate it.
struct Head {
    action: Arc<str>,
    flags: Flags,
    source: SourceName,
}

impl Prepared {
    fn wants(&self, place: usize) -> bool {
        self.wanted.as_ref().is_none_or(|wanted| wanted.get(place).copied().unwrap_or(false))
    }

    /// Runs the rules of all sides on an event. Most events are excluded by their bytes and are never decoded.
    fn event(
        &mut self,
        block: &mut Unpacked,
        preparers: &mut [Preparer],
        place: usize,
        head: &Head,
    ) -> Result<(), StoreError> {
        for (side, preparer) in self.sides.iter_mut().zip(preparers) {
            let candidates = preparer.candidates(&head.action, head.flags, &head.source, block.raw(place)?);
            if candidates.is_empty() {
                continue;
            }
            let event = block.event(place)?;
            let verdicts = preparer.prepare(&event, candidates);
            if !verdicts.is_empty() {
                side.push(Spoken { place, event, verdicts });
            }
        }
        Ok(())
    }
}
