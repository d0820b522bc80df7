//! Keys: one prefix byte for each kind, and big-endian numbers, so that the order of the bytes is the order of the
//! values.

use crate::model::{
    name::{AlertId, DestinationName, EventId, ExceptionId, RuleId, Sequence, SilenceId, SourceName},
    time::Timestamp,
};

/// The version of the layout.
pub(super) const FORMAT: &[u8] = b"m/format";
/// The number of the next event.
pub(super) const NEXT_SEQUENCE: &[u8] = b"m/next";
/// The number of the last event that was evaluated.
pub(super) const CHECKPOINT: &[u8] = b"m/mark";
/// When the agent was last alive.
pub(super) const ALIVE: &[u8] = b"m/alive";

/// The number of the first event that retention has kept.
pub(super) const FIRST: &[u8] = b"m/first";
/// The number of events that the store has lost.
pub(super) const LOST: &[u8] = b"m/lost";
/// The number of the last logged change of an alert.
pub(super) const LAST_CHANGE: &[u8] = b"m/change";
/// The number of writes.
pub(super) const WRITES: &[u8] = b"m/writes";
/// The numbers of alerts, by status and severity.
pub(super) const ALERT_COUNTS: &[u8] = b"m/alerts";

/// What is known about crashes of the process.
pub(super) const CRASHES: &[u8] = b"f/crashes";

/// Single values, which are not of the kinds below.
pub(super) const META: u8 = b'm';
/// Directories of event blocks, by their first number.
pub(super) const DIRECTORY: u8 = b'd';
/// Chunks of event blocks, by the block's first number and their position.
pub(super) const CHUNK: u8 = b'e';
/// Numbers of events, by source and id.
pub(super) const SEEN: u8 = b'i';
/// Records of sources.
pub(super) const SOURCE: u8 = b'c';
/// Alerts, by id.
pub(super) const ALERT: u8 = b'a';
/// Ids of alerts, by the time they opened.
pub(super) const ALERT_TIME: u8 = b't';
/// Events of alerts, by alert and sequence number.
pub(super) const MATCH: u8 = b'x';
/// Matches suppressed by exceptions, by exception, number and rule.
pub(super) const EXCEPTED: u8 = b'v';
/// Pending deliveries, by destination and in order of creation.
pub(super) const DELIVERY: u8 = b'o';
/// Dead letters, in the same order.
pub(super) const DEAD_LETTER: u8 = b'z';
/// Records of destinations.
pub(super) const DESTINATION: u8 = b'w';
/// References of destinations to alerts, by alert and destination.
pub(super) const REFERENCE: u8 = b'h';
/// Changes of alerts, by number.
pub(super) const CHANGE: u8 = b'l';
/// Numbers of changes, by alert.
pub(super) const CHANGE_OF: u8 = b'k';
/// Silences, by number.
pub(super) const SILENCE: u8 = b'n';
/// Alerts that a silence kept from being delivered, by silence and alert.
pub(super) const SILENCED: u8 = b'y';
/// Ranges of events that are stored but not evaluated: the last number of each range, by the first.
pub(super) const SKIPPED: u8 = b'u';
/// Quarantined entries, in order of arrival.
pub(super) const QUARANTINE: u8 = b'q';
/// Numbers of quarantined entries, by the hash of the entry and the source.
pub(super) const QUARANTINE_SEEN: u8 = b'Q';
/// Times up to which a log was known to be complete, by checkpoint, change and source.
pub(super) const WATERMARK: u8 = b'p';
/// The rules that ran, by checkpoint and change.
pub(super) const RULES: u8 = b'g';
/// Records of actions, by source and id.
pub(super) const ACTION: u8 = b'j';
/// What is known about crashes of the process: one value.
pub(super) const CRASH: u8 = b'f';
/// Detection state, by its name.
pub(super) const STATE: u8 = b's';
/// Pieces of large detection state, by its name and their position.
pub(super) const STATE_PIECE: u8 = b'r';

pub(super) fn directory(first: Sequence) -> Vec<u8> {
    numbered(DIRECTORY, first.0)
}

pub(super) fn chunk(first: Sequence, index: u32) -> Vec<u8> {
    let mut key = numbered(CHUNK, first.0);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// The prefix of all chunks of a block.
pub(super) fn chunks(first: Sequence) -> Vec<u8> {
    numbered(CHUNK, first.0)
}

/// An id is hashed together with its source, because ids may be long and are only looked up as a whole.
pub(super) fn seen(source: &SourceName, id: &EventId) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(source.as_str().len() as u64).to_be_bytes());
    hasher.update(source.as_str().as_bytes());
    hasher.update(id.as_str().as_bytes());
    let mut key = vec![SEEN];
    key.extend(hasher.finalize().as_bytes().iter().take(16));
    key
}

pub(super) fn watermark(checkpoint: Sequence, change: u64, source: &SourceName) -> Vec<u8> {
    let mut key = numbered(WATERMARK, checkpoint.0);
    key.extend_from_slice(&change.to_be_bytes());
    key.extend_from_slice(source.as_str().as_bytes());
    key
}

pub(super) fn rules(checkpoint: Sequence, change: u64) -> Vec<u8> {
    let mut key = numbered(RULES, checkpoint.0);
    key.extend_from_slice(&change.to_be_bytes());
    key
}

pub(super) fn source(source: &SourceName) -> Vec<u8> {
    named(SOURCE, source.as_str())
}

/// The prefix of all actions of a source. The zero byte ends the name, which does not contain one.
pub(super) fn actions(source: &SourceName) -> Vec<u8> {
    let mut key = named(ACTION, source.as_str());
    key.push(0);
    key
}

pub(super) fn action(source: &SourceName, id: &str) -> Vec<u8> {
    let mut key = actions(source);
    key.extend_from_slice(id.as_bytes());
    key
}

/// Returns the source and the id in the key of an action.
pub(super) fn action_parts(key: &[u8]) -> Option<(SourceName, &str)> {
    let (source, id) = std::str::from_utf8(key.get(1..)?).ok()?.split_once('\0')?;
    Some((SourceName::parse(source).ok()?, id))
}

pub(super) fn alert(id: AlertId) -> Vec<u8> {
    let mut key = vec![ALERT];
    key.extend_from_slice(&id.bytes());
    key
}

/// The beginning of the keys of alerts whose id begins with these bytes.
pub(super) fn alerts_beginning(bytes: &[u8]) -> Vec<u8> {
    let mut key = vec![ALERT];
    key.extend_from_slice(bytes);
    key
}

pub(super) fn alert_time(time: Timestamp, id: AlertId) -> Vec<u8> {
    let mut key = vec![ALERT_TIME];
    key.extend_from_slice(&ordered(time.as_millisecond()));
    key.extend_from_slice(&id.bytes());
    key
}

/// The prefix of the keys of alerts that opened at `time`.
pub(super) fn alert_times_from(time: Timestamp) -> Vec<u8> {
    let mut key = vec![ALERT_TIME];
    key.extend_from_slice(&ordered(time.as_millisecond()));
    key
}

pub(super) fn matches(alert: AlertId) -> Vec<u8> {
    let mut key = vec![MATCH];
    key.extend_from_slice(&alert.bytes());
    key
}

pub(super) fn matched(alert: AlertId, sequence: Sequence) -> Vec<u8> {
    let mut key = matches(alert);
    key.extend_from_slice(&sequence.0.to_be_bytes());
    key
}

/// The prefix of all matches that an exception suppressed. The zero byte ends the name, which does not contain one.
pub(super) fn excepted_by(exception: &ExceptionId) -> Vec<u8> {
    let mut key = named(EXCEPTED, exception.as_str());
    key.push(0);
    key
}

pub(super) fn excepted(exception: &ExceptionId, sequence: Sequence, rule: &RuleId) -> Vec<u8> {
    let mut key = excepted_by(exception);
    key.extend_from_slice(&sequence.0.to_be_bytes());
    key.extend_from_slice(rule.as_str().as_bytes());
    key
}

/// The prefix of all deliveries of a destination. The zero byte ends the name, which does not contain control
/// characters.
pub(super) fn deliveries(destination: &DestinationName) -> Vec<u8> {
    let mut key = named(DELIVERY, destination.as_str());
    key.push(0);
    key
}

pub(super) fn delivery(destination: &DestinationName, number: u64) -> Vec<u8> {
    let mut key = deliveries(destination);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The prefix of all dead letters of a destination.
pub(super) fn dead_letters(destination: &DestinationName) -> Vec<u8> {
    let mut key = named(DEAD_LETTER, destination.as_str());
    key.push(0);
    key
}

pub(super) fn dead_letter(destination: &DestinationName, number: u64) -> Vec<u8> {
    let mut key = dead_letters(destination);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn destination(destination: &DestinationName) -> Vec<u8> {
    named(DESTINATION, destination.as_str())
}

/// The prefix of the references of all destinations to an alert.
pub(super) fn references(alert: AlertId) -> Vec<u8> {
    let mut key = vec![REFERENCE];
    key.extend_from_slice(&alert.bytes());
    key
}

pub(super) fn reference(alert: AlertId, destination: &DestinationName) -> Vec<u8> {
    let mut key = references(alert);
    key.extend_from_slice(destination.as_str().as_bytes());
    key
}

pub(super) fn change(number: u64) -> Vec<u8> {
    numbered(CHANGE, number)
}

/// The prefix of the numbers of all changes of an alert.
pub(super) fn changes_of(alert: AlertId) -> Vec<u8> {
    let mut key = vec![CHANGE_OF];
    key.extend_from_slice(&alert.bytes());
    key
}

pub(super) fn change_of(alert: AlertId, number: u64) -> Vec<u8> {
    let mut key = changes_of(alert);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn silence(id: SilenceId) -> Vec<u8> {
    numbered(SILENCE, id.0)
}

/// The prefix of all alerts that a silence kept from being delivered.
pub(super) fn silenced(id: SilenceId) -> Vec<u8> {
    numbered(SILENCED, id.0)
}

pub(super) fn silenced_alert(id: SilenceId, alert: AlertId) -> Vec<u8> {
    let mut key = silenced(id);
    key.extend_from_slice(&alert.bytes());
    key
}

pub(super) fn skipped(first: Sequence) -> Vec<u8> {
    numbered(SKIPPED, first.0)
}

pub(super) fn quarantine_seen(source: &SourceName, hash: &str) -> Vec<u8> {
    let mut key = vec![QUARANTINE_SEEN];
    key.extend_from_slice(hash.as_bytes());
    key.extend_from_slice(source.as_str().as_bytes());
    key
}

pub(super) fn quarantined(number: u64) -> Vec<u8> {
    numbered(QUARANTINE, number)
}

pub(super) fn state(name: &str) -> Vec<u8> {
    named(STATE, name)
}

/// The prefix of all pieces of a state. The name is hashed, because it may be long and is only looked up as a whole.
pub(super) fn state_pieces(name: &str) -> Vec<u8> {
    let mut key = vec![STATE_PIECE];
    key.extend(blake3::hash(name.as_bytes()).as_bytes().iter().take(16));
    key
}

pub(super) fn state_piece(name: &str, index: u32) -> Vec<u8> {
    let mut key = state_pieces(name);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

/// Returns the number at the end of a key.
pub(super) fn number_at_end(key: &[u8]) -> Option<u64> {
    let start = key.len().checked_sub(8)?;
    key.get(start..)?.try_into().ok().map(u64::from_be_bytes)
}

/// Returns the alert id at the end of a key.
pub(super) fn alert_at_end(key: &[u8]) -> Option<AlertId> {
    let start = key.len().checked_sub(16)?;
    key.get(start..)?.try_into().ok().map(AlertId::from_bytes)
}

fn numbered(prefix: u8, number: u64) -> Vec<u8> {
    let mut key = vec![prefix];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

fn named(prefix: u8, name: &str) -> Vec<u8> {
    let mut key = vec![prefix];
    key.extend_from_slice(name.as_bytes());
    key
}

/// Encodes a signed number so that the order of the bytes is the order of the numbers.
fn ordered(number: i64) -> [u8; 8] {
    (number.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::from_millis;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_sort_like_their_values(one: u64, other: u64, early in -1_000_000_000_000_i64..1_000_000_000_000, late in -1_000_000_000_000_i64..1_000_000_000_000) {
            prop_assert_eq!(directory(Sequence(one)).cmp(&directory(Sequence(other))), one.cmp(&other));
            let id = AlertId::from_bytes([7; 16]);
            prop_assert_eq!(
                alert_time(from_millis(early), id).cmp(&alert_time(from_millis(late), id)),
                early.cmp(&late)
            );
            prop_assert_eq!(number_at_end(&quarantined(one)), Some(one));
            prop_assert_eq!(alert_at_end(&alert_time(from_millis(early), id)), Some(id));
        }
    }
}
