//! Detection state: bytes under names, which mean something to `detect` only.
//!
//! What a rule remembers may be large. sled writes large nodes to files of their own, which it does not sync, so a value is cut
//! into pieces like a block of events is. Its main entry then says how many there are.

use super::{Reader, Store, StoreError, key};

/// As the chunks of a block.
const PIECE_BYTES: usize = 6 * 1024;
/// The first byte of a main entry whose value is in pieces. No value begins with it.
const IN_PIECES: u8 = 0xff;

/// Puts a value into a batch, or takes it away, with whatever pieces it had.
pub(super) fn write(
    store: &Store,
    batch: &mut sled::Batch,
    name: &str,
    bytes: Option<&[u8]>,
) -> Result<(), StoreError> {
    for piece in store.tree().scan_prefix(key::state_pieces(name)).keys() {
        batch.remove(piece?);
    }
    match bytes {
        None => batch.remove(key::state(name)),
        Some(bytes) if bytes.len() <= PIECE_BYTES => batch.insert(key::state(name), bytes),
        Some(bytes) => {
            let mut count = 0_u32;
            for piece in bytes.chunks(PIECE_BYTES) {
                batch.insert(key::state_piece(name, count), piece);
                count += 1;
            }
            let mut main = vec![IN_PIECES];
            main.extend_from_slice(&count.to_be_bytes());
            batch.insert(key::state(name), main);
        }
    }
    Ok(())
}

impl Reader {
    /// All detection state, as it was handed in. What has lost pieces is told and left out: a rule that forgets something is better than
    /// none that runs.
    pub fn state(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.state_beginning("")
    }

    /// The detection state whose names begin so.
    pub fn state_beginning(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let mut entries = Vec::new();
        for item in self.tree().scan_prefix(key::state(prefix)) {
            let (key, bytes) = item?;
            let name = String::from_utf8_lossy(key.get(1..).unwrap_or_default()).into_owned();
            match self.whole_state(&name, &bytes) {
                Ok(bytes) => entries.push((name, bytes)),
                Err(error @ StoreError::Damaged { .. }) => tracing::warn!(%error, "a rule forgets what it remembered"),
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// The value whose main entry this is.
    pub(super) fn whole_state(&self, name: &str, main: &[u8]) -> Result<Vec<u8>, StoreError> {
        let Some((&IN_PIECES, count)) = main.split_first() else {
            return Ok(main.to_vec());
        };
        let missing = || StoreError::damaged("what rules remember", format!("pieces of `{name}` are missing"));
        let count = count.try_into().map(u32::from_be_bytes).map_err(|_| missing())?;
        let mut whole = Vec::new();
        for index in 0..count {
            whole.extend_from_slice(&self.tree().get(key::state_piece(name, index))?.ok_or_else(missing)?);
        }
        Ok(whole)
    }
}
