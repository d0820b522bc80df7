//! Warms up new rules from stored events, on the rules thread, before they see a live event.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{
    crash::{CrashLog, Runner},
    request::Beat,
};
use crate::{
    detect::Detector,
    model::{name::Sequence, time},
    rule::CompiledRule,
    store::{Reader, ScanFilter, StoreError},
};

/// Maximum number of events to read: the newest before the checkpoint. Takes about ten seconds.
const MAX_EVENTS: u64 = 1_000_000;

/// Feeds stored events to the rules that need to learn from them. Their state is stored with the next commit. Ends
/// early, with nothing learned, when the agent stops.
pub(super) fn learn(
    detector: &mut Detector,
    reader: &Reader,
    checkpoint: Sequence,
    beat: &Beat,
    crashes: &Arc<CrashLog>,
    stop: &CancellationToken,
) -> Result<(), StoreError> {
    let Some(mut learning) = detector.learning() else {
        return Ok(());
    };
    let learners: Vec<Arc<CompiledRule>> = detector
        .rules()
        .detections
        .iter()
        .filter(|rule| learning.rules().any(|learner| learner == rule.id()))
        .cloned()
        .collect();
    let noted = crashes.clearing(Runner::Evaluate);
    crashes.rules(Runner::Evaluate, &learners);
    if crashes.suspects_any() {
        learning.set_watch(Some(crashes.watch(Runner::Evaluate, None)));
    }
    let rules: Vec<String> = learning.rules().map(ToString::to_string).collect();
    let rules = rules.join(", ");
    let filter = ScanFilter {
        after: Sequence(checkpoint.0.saturating_sub(MAX_EVENTS)),
        since: Some(time::before(detector.clock(), learning.reach())),
        ..ScanFilter::default()
    };
    let mut events = 0_u64;
    for event in reader.scan_readable(filter) {
        let event = event?;
        if event.sequence > checkpoint {
            break;
        }
        learning.event(&event);
        events += 1;
        beat.beat();
        if stop.is_cancelled() {
            return Ok(());
        }
    }
    drop(noted);
    crashes.cleared(&[], &learners)?;
    detector.learned(&learning);
    let reach = time::show_duration(learning.reach());
    tracing::info!(%rules, events, reach, "stateful rules have learned from stored events");
    Ok(())
}
