//! Detection state: named values that only `detect` understands.
//!
//! The state of a rule may be large. sled writes large nodes to separate files, which it does not sync, so a value is
//! split into pieces like a block of events. Its main entry then has the number of pieces.

use super::{Reader, Store, StoreError, key};

/// The same size as the chunks of a block.
const PIECE_BYTES: usize = 6 * 1024;
/// The first byte of a main entry whose value is in pieces. No value begins with this byte.
const IN_PIECES: u8 = 0xff;

/// Adds a value to a batch, or removes it, together with its pieces.
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
    /// All detection state, as it was written. State with missing pieces is logged and left out: it is better to run a
    /// rule without its state than not to run any rule.
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
                Err(error @ StoreError::Damaged { .. }) => tracing::warn!(%error, "a rule lost its state"),
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    /// Returns the value with this main entry.
    pub(super) fn whole_state(&self, name: &str, main: &[u8]) -> Result<Vec<u8>, StoreError> {
        let Some((&IN_PIECES, count)) = main.split_first() else {
            return Ok(main.to_vec());
        };
        let missing = || StoreError::damaged("rule state", format!("`{name}` has missing pieces"));
        let count = count.try_into().map(u32::from_be_bytes).map_err(|_| missing())?;
        let mut whole = Vec::new();
        for index in 0..count {
            whole.extend_from_slice(&self.tree().get(key::state_piece(name, index))?.ok_or_else(missing)?);
        }
        Ok(whole)
    }
}
