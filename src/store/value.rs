//! Values: a version byte, then JSON for what people may want to read, and postcard for what only the program reads.

use serde::{Serialize, de::DeserializeOwned};

use super::{StoreError, frame};

const JSON: u8 = 1;
const POSTCARD: u8 = 2;

pub(super) fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![JSON];
    serde_json::to_writer(&mut bytes, value).map_err(|error| StoreError::damaged("a record", error))?;
    Ok(bytes)
}

pub(super) fn from_json<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    match whole(what, bytes)?.split_first() {
        Some((&JSON, rest)) => serde_json::from_slice(rest).map_err(|error| StoreError::damaged(what, error)),
        _ => Err(StoreError::damaged(what, "unknown encoding version")),
    }
}

pub(super) fn to_postcard<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    postcard::to_extend(value, vec![POSTCARD]).map_err(|error| StoreError::damaged("a record", error))
}

/// Reads a value and returns what follows it.
pub(super) fn from_postcard<'a, T: serde::Deserialize<'a>>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<(T, &'a [u8]), StoreError> {
    match whole(what, bytes)?.split_first() {
        Some((&POSTCARD, rest)) => postcard::take_from_bytes(rest).map_err(|error| StoreError::damaged(what, error)),
        _ => Err(StoreError::damaged(what, "unknown encoding version")),
    }
}

/// Adds a framed value to a batch, so that it can be found without sled.
pub(super) fn put_framed<T: Serialize>(batch: &mut sled::Batch, key: Vec<u8>, value: &T) -> Result<(), StoreError> {
    let bytes = frame::framed(&key, to_json(value)?);
    batch.insert(key, bytes);
    Ok(())
}

/// Returns the value in a frame.
pub(super) fn whole<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], StoreError> {
    frame::unframed(bytes).ok_or_else(|| StoreError::damaged(what, "checksum mismatch"))
}

/// Reads a number of eight bytes.
pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}
