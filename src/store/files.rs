//! The directories of a store: creating, locking and replacing them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{StoreError, sled_open};

/// A key and its value.
pub(super) type Pair = (Vec<u8>, Vec<u8>);

/// The number of pairs that are written at a time when a store is created.
const BATCH: usize = 2_000;
/// The number of bytes after which a smaller batch is written.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Creates a new sled database with these pairs, completely and on disk, or not at all. Returns the number of pairs.
pub(super) fn make(path: &Path, pairs: impl Iterator<Item = Result<Pair, StoreError>>) -> Result<u64, StoreError> {
    let directory = |error| StoreError::Directory { path: path.to_owned(), error };
    if path.exists() {
        // Left over from an attempt that did not finish.
        fs::remove_dir_all(path).map_err(directory)?;
    }
    let made = (|| {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().mode(0o700).create(path).map_err(directory)?;
        let db = sled_open(path)?;
        let mut batch = sled::Batch::default();
        let (mut count, mut bytes) = (0_u64, 0);
        for pair in pairs {
            let (key, value) = pair?;
            bytes += key.len() + value.len();
            batch.insert(key, value);
            count += 1;
            if count.is_multiple_of(BATCH as u64) || bytes > BATCH_BYTES {
                db.apply_batch(std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        db.apply_batch(batch)?;
        db.flush()?;
        drop(db);
        super::restrict(path).map_err(directory)?;
        File::open(path.join("db")).and_then(|file| file.sync_all()).map_err(directory)?;
        File::open(path).and_then(|directory| directory.sync_all()).map_err(directory)?;
        Ok(count)
    })();
    if made.is_err() {
        fs::remove_dir_all(path).ok();
    }
    made
}

/// Takes sled's lock on a store, so that it cannot be opened.
pub(super) fn lock(data_dir: &Path, path: &Path) -> Result<File, StoreError> {
    let unusable = |error| StoreError::Directory { path: path.to_owned(), error };
    let file =
        File::options().read(true).write(true).create(true).truncate(false).open(path.join("db")).map_err(unusable)?;
    let began = Instant::now();
    // sled releases a store only some milliseconds after it was closed.
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        if began.elapsed() > super::RELEASE_TIMEOUT {
            return Err(StoreError::Locked { path: path.to_owned(), holder: super::holder(data_dir) });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(file)
}

/// A free path next to the store for something to keep.
pub(super) fn aside(data_dir: &Path, what: &str, stamp: &str) -> PathBuf {
    let mut path = data_dir.join(format!("store.{what}-{stamp}"));
    let mut number = 2;
    while path.exists() {
        path = data_dir.join(format!("store.{what}-{stamp}-{number}"));
        number += 1;
    }
    path
}

/// Exchanges two directories in one step, so that a store exists at any time.
pub(super) fn exchange(one: &Path, other: &Path) -> std::io::Result<()> {
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, one, here, other, rustix::fs::RenameFlags::EXCHANGE)?;
    sync_parent(other)
}

pub(super) fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Replaces the old store by a new one, and moves the old one to `aside`.
pub(super) fn replace(new: &Path, path: &Path, aside: &Path) -> Result<(), StoreError> {
    let unusable = |error| StoreError::Directory { path: path.to_owned(), error };
    exchange(new, path).map_err(unusable)?;
    fs::rename(new, aside).map_err(unusable)
}
