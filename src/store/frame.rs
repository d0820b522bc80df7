//! Frames: values that can be found in sled's file without sled.
//!
//! sled rejects a file when its records are no longer consistent, and everything else in the file is lost with them.
//! Events, alerts and source records therefore have a magic number, their key, their length and a checksum, and
//! [`carve`] finds them byte by byte.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::files::Pair;

/// The version byte of a framed value, and the mark of a frame: unlikely anywhere else.
const MAGIC: &[u8] = b"\x03wbF1";
/// Magic number, length of the key, length of the value, checksum.
const HEAD: usize = MAGIC.len() + 2 + 4 + 8;
/// Longer values are not framed: chunks have 6 KiB, alerts rarely more than 64 KiB.
const MAX_VALUE: usize = 8 * 1024 * 1024;
/// The number of bytes of a file that are read at a time.
const WINDOW: usize = 16 * 1024 * 1024;

/// Puts a value in a frame.
pub(super) fn framed(key: &[u8], value: Vec<u8>) -> Vec<u8> {
    let (Ok(key_length), Ok(value_length)) = (u16::try_from(key.len()), u32::try_from(value.len())) else {
        return value;
    };
    if value.len() > MAX_VALUE {
        return value;
    }
    let mut bytes = Vec::with_capacity(HEAD + key.len() + value.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&key_length.to_be_bytes());
    bytes.extend_from_slice(&value_length.to_be_bytes());
    bytes.extend_from_slice(&checksum(key, &value));
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&value);
    bytes
}

/// Returns the value in a frame, or the bytes themselves if they are not framed; `None` if the frame is damaged.
pub(super) fn unframed(bytes: &[u8]) -> Option<&[u8]> {
    if !bytes.starts_with(MAGIC) {
        return Some(bytes);
    }
    read(bytes).map(|(_, value, _)| value)
}

/// Returns the key, the value and the length of the frame at the beginning of the bytes.
fn read(bytes: &[u8]) -> Option<(&[u8], &[u8], usize)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (key_length, rest) = rest.split_at_checked(2)?;
    let (value_length, rest) = rest.split_at_checked(4)?;
    let (sum, rest) = rest.split_at_checked(8)?;
    let key_length = usize::from(u16::from_be_bytes(key_length.try_into().ok()?));
    let value_length = u32::from_be_bytes(value_length.try_into().ok()?) as usize;
    let (key, rest) = rest.split_at_checked(key_length)?;
    let value = rest.get(..value_length)?;
    (checksum(key, value) == sum).then_some((key, value, HEAD + key_length + value_length))
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(value);
    let mut sum = [0; 8];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

/// Returns all intact frames of a file, in the order of the file. The same key may occur several times.
pub(super) fn carve(file: &Path) -> io::Result<Vec<Pair>> {
    let mut input = File::open(file)?;
    let mut pairs: Vec<Pair> = Vec::new();
    let mut window: Vec<u8> = Vec::new();
    loop {
        let before = window.len();
        (&mut input).take(WINDOW as u64).read_to_end(&mut window)?;
        let is_last = window.len() == before;
        let mut at = 0;
        while let Some(start) = find(window.get(at..).unwrap_or_default()).map(|offset| at + offset) {
            let rest = window.get(start..).unwrap_or_default();
            // A frame this close to the end is read with the next window.
            if !is_last && rest.len() < HEAD + usize::from(u16::MAX) + MAX_VALUE && rest.len() < window.len() {
                at = start;
                break;
            }
            match read(rest) {
                Some((key, value, length)) => {
                    pairs.push((key.to_vec(), value.to_vec()));
                    at = start + length;
                }
                None => at = start + 1,
            }
        }
        if is_last {
            return Ok(pairs);
        }
        // A magic number may span the border of two windows.
        let keep = if find(window.get(at..).unwrap_or_default()).is_some() {
            at
        } else {
            window.len().saturating_sub(MAGIC.len()).max(at)
        };
        window.drain(..keep);
    }
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|window| window == MAGIC)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_found_among_other_bytes(
            values in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..20), prop::collection::vec(any::<u8>(), 0..200), prop::collection::vec(any::<u8>(), 0..50)), 0..20),
            flipped in any::<prop::sample::Index>(),
        ) {
            let mut bytes = Vec::new();
            let mut frames = Vec::new();
            for (key, value, between) in &values {
                bytes.extend_from_slice(between);
                bytes.extend_from_slice(MAGIC.get(..3).unwrap());
                let frame = framed(key, value.clone());
                prop_assert_eq!(unframed(&frame), Some(value.as_slice()));
                frames.push(bytes.len()..bytes.len() + frame.len());
                bytes.extend_from_slice(&frame);
            }
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("db");
            std::fs::write(&file, &bytes).unwrap();
            let pairs: Vec<Pair> = values.iter().map(|(key, value, _)| (key.clone(), value.clone())).collect();
            prop_assert_eq!(&carve(&file).unwrap(), &pairs);
            // One flipped bit destroys only the frame that contains it, and does not produce another frame.
            if !bytes.is_empty() {
                let at = flipped.index(bytes.len());
                bytes[at] ^= 1;
                std::fs::write(&file, &bytes).unwrap();
                let left: Vec<Pair> = pairs.iter().zip(&frames).filter(|(_, frame)| !frame.contains(&at)).map(|(pair, _)| pair.clone()).collect();
                prop_assert_eq!(carve(&file).unwrap(), left);
            }
        }
    }
}
