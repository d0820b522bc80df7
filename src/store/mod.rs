//! The store: events, cursors, alerts, detection state and the outbox, in one sled tree. It is the only module that
//! knows keys and encodings. It applies outcomes without knowing what they mean.
//!
//! Everything that belongs together is one [`sled::Batch`]: a page and its cursor; an evaluated batch with its alerts,
//! state, deliveries and checkpoint. The whole batch is on disk before the call returns: sled's own flush protects it
//! against a crash of the process, and `sync_data` on its file after that against a power failure. (sled 0.34 flushes
//! with `sync_file_range` on Linux, which is not a barrier. Values are kept small, in chunks, so that sled never writes
//! them to separate files, which it does not sync.)

use std::{
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use crate::model::{
    name::{NameError, SourceName},
    time::Timestamp,
};

mod action;
mod alert;
mod backup;
mod block;
mod count;
mod crash;
mod cursor;
mod event;
mod files;
mod frame;
mod key;
mod outbox;
mod packed;
mod quarantine;
mod reader;
mod repair;
mod retention;
mod salvage;
mod silence;
mod state;
mod task;
mod value;
mod verify;
mod written;

pub use alert::{Commit, Excepted, Staged, Writing, hunt_key};
pub use backup::{Restored, restore};
pub use block::ScanFilter;
pub use count::AlertCounts;
pub use crash::{CrashRecord, Suspect, Suspended};
pub use cursor::{ActionList, MAX_CLOCK_SKEW, Refetch, SourceError, SourceRecord};
pub use event::{Appended, Page};
pub use outbox::{Delivery, DestinationRecord, Sent, Together};
pub use packed::{Block, EventHead, SentBlock, Unpacked};
pub use quarantine::Quarantined;
pub use reader::{AlertFilter, Batch, Pending, Reader};
pub use repair::{Compacted, compact, recover};
pub use retention::Removed;
pub use salvage::Recovered;
pub use task::TaskStore;
pub use verify::StoreCheck;
use written::Written;

/// The version of the layout that this program writes. Since version 2, events, alerts and source records are framed.
pub const FORMAT: u32 = 2;
/// The log of a store that was never written to is smaller than this.
const NEW_LOG: u64 = 4 * 1024 * 1024;
/// How long sled may take to release a store that this process has closed.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// sled's default is 1 GiB.
const CACHE_BYTES: u64 = 48 * 1024 * 1024;

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store `{}` is in use by {holder}", path.display())]
    Locked {
        path: PathBuf,
        /// Who has it open, as far as is known.
        holder: String,
    },
    /// A newer version of the program wrote the store.
    #[error("the store `{}` has format {found}, but this version of watchbell supports formats up to {FORMAT}; use the newer version that wrote it", path.display())]
    Newer { path: PathBuf, found: u32 },
    /// The database does not belong to this program.
    #[error("`{}` is a sled database that does not belong to watchbell; choose another `data_dir`", path.display())]
    Foreign { path: PathBuf },
    /// The directory cannot be used.
    #[error("cannot use the data directory `{}`: {error}; check that it exists, its permissions, and free space", path.display())]
    Directory {
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// Reading or writing failed.
    #[error("cannot read or write the store: {0}; check free space and the disk")]
    Disk(#[from] sled::Error),
    /// Syncing failed.
    #[error("cannot sync the store to disk: {0}; check free space and the disk")]
    Sync(std::io::Error),
    /// The stored bytes are not what was written.
    #[error("cannot read {what} in the store: {detail}")]
    Damaged {
        /// What cannot be read.
        what: &'static str,
        detail: String,
    },
    /// An operation panicked.
    #[error("the store operation failed unexpectedly; run `watchbell store verify` to check for damage")]
    Panicked,
    /// The data directory belongs to another user.
    #[error("the data directory `{}` belongs to user {owner}; run this command as that user, for example with `sudo -u '#{owner}'`", path.display())]
    Owner {
        path: PathBuf,
        /// The user id of the owner.
        owner: u32,
    },
    /// sled cannot open the store.
    #[error("the store `{}` is damaged ({detail}); nothing was deleted; run `watchbell store recover` to copy what is readable to a new store and keep this one aside", path.display())]
    Unopenable {
        path: PathBuf,
        /// The error of sled.
        detail: String,
    },
    /// There already is something where a store should be created.
    #[error("`{}` already has a store; move it away, or use `--replace` to keep it aside", .0.display())]
    Occupied(PathBuf),
    /// A backup cannot be read or written.
    #[error("cannot use the backup: {0}")]
    Backup(String),
}

impl StoreError {
    fn damaged(what: &'static str, detail: impl ToString) -> Self {
        Self::Damaged { what, detail: detail.to_string() }
    }
}

impl From<NameError> for StoreError {
    fn from(error: NameError) -> Self {
        Self::damaged("a name", error)
    }
}

/// An open store. Clones are handles on the same store.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: sled::Db,
    tree: sled::Tree,
    /// A separate handle on sled's log, to sync it.
    log: File,
    /// Locked while sequence numbers are assigned, so that those of a page are contiguous and in the order of the
    /// writes.
    appending: Mutex<()>,
    /// Locked while alerts are read, changed and written back. The number of the last logged change, once it is known.
    writing: Mutex<Option<u64>>,
    /// The number of the next delivery: greater than that of all pending and dead ones, so that their order is the
    /// order of their numbers.
    next_delivery: AtomicU64,
    /// The number of writes so far.
    writes: Mutex<u64>,
    /// Every write takes this for reading. Taken for writing, it blocks writes while everything is read as of one
    /// moment.
    gate: RwLock<()>,
    path: PathBuf,
}

impl Store {
    /// Opens the store in `data_dir` and creates both if necessary. Only one process can have it open.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let unusable = |error| StoreError::Directory { path: data_dir.to_owned(), error };
        refuse_as_root(data_dir)?;
        DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(unusable)?;
        let path = data_dir.join("store");
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(unusable)?;
        repair::finish_interrupted(data_dir, &path)?;
        let length = fs::metadata(path.join("db")).map_or(0, |file| file.len());
        let db = match sled_open(&path) {
            Err(sled::Error::Corruption { .. }) => repair::without_snapshots(data_dir, &path)?,
            opened => opened.map_err(|error| open_error(error, data_dir, &path))?,
        };
        if length > NEW_LOG && db.is_empty() {
            // To sled, a log that it cannot read is an empty log.
            return Err(StoreError::Unopenable { path, detail: "its log is unreadable".to_owned() });
        }
        Self::over(db, path)
    }

    /// Opens the store, waiting up to `patience` if another process has it open. sled releases a store only some
    /// milliseconds after it was closed.
    pub fn open_patiently(data_dir: &Path, patience: Duration) -> Result<Self, StoreError> {
        let began = Instant::now();
        loop {
            match Self::open(data_dir) {
                Err(StoreError::Locked { .. }) if began.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                opened => return opened,
            }
        }
    }

    fn over(db: sled::Db, path: PathBuf) -> Result<Self, StoreError> {
        let unusable = |error| StoreError::Directory { path: path.clone(), error };
        let log = File::open(path.join("db")).map_err(unusable)?;
        if let Err(error) = repair::keep_snapshot(&path) {
            tracing::warn!(%error, "cannot keep a copy of the store's snapshot");
        }
        restrict(&path).map_err(unusable)?;
        let tree = (*db).clone();
        let written = Written::next_to(&path);
        if tree.is_empty() && written.is_some_and(|written| written != Written::default()) {
            // To sled, a log that it cannot read is an empty one, also if it is small.
            return Err(StoreError::Unopenable { path, detail: "nothing in its log can be read".to_owned() });
        }
        let next_delivery = AtomicU64::new(outbox::highest_number(&tree)? + 1);
        let writes = tree.get(key::WRITES)?.and_then(|bytes| value::number(&bytes)).unwrap_or(0);
        let store = Self {
            inner: Arc::new(Inner {
                db,
                tree,
                log,
                appending: Mutex::new(()),
                writing: Mutex::new(None),
                next_delivery,
                writes: Mutex::new(writes),
                gate: RwLock::new(()),
                path,
            }),
        };
        store.check_format()?;
        store.look_for_losses(written)?;
        Ok(store)
    }

    /// Returns a reader of the store.
    pub fn reader(&self) -> Reader {
        Reader::new(self.inner.tree.clone())
    }

    /// The size on disk, in bytes.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.inner.db.size_on_disk()?)
    }

    /// Waits until everything written is on disk.
    pub fn flush(&self) -> Result<(), StoreError> {
        // Before the flush: what is written in the meantime need not be on disk with it.
        let written = Written::of(&self.inner.tree)?;
        self.inner.tree.flush()?;
        self.inner.log.sync_data().map_err(StoreError::Sync)?;
        if let Err(error) = written.note(&self.inner.path) {
            tracing::debug!(%error, "cannot record how far the store is written");
        }
        Ok(())
    }

    /// Records that the agent is alive at `now`, so that its next run knows how long it was down. Not flushed: a few
    /// seconds more or less do not matter.
    pub fn set_alive(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        batch.insert(key::ALIVE, now.as_millisecond().to_be_bytes().as_slice());
        self.apply(batch)
    }

    /// Saves the record of a source after a poll without new events. Not flushed: the next page will be.
    pub fn save_source(&self, source: &SourceName, record: &SourceRecord) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        value::put_framed(&mut batch, key::source(source), record)?;
        self.apply(batch)
    }

    /// Waits for running writes to end, and blocks new ones while the guard lives, so that everything is read as of one
    /// moment.
    fn block_writes(&self) -> std::sync::RwLockWriteGuard<'_, ()> {
        self.inner.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree(&self) -> &sled::Tree {
        &self.inner.tree
    }

    /// Writes a batch atomically and waits until it is on disk.
    fn write(&self, batch: sled::Batch) -> Result<(), StoreError> {
        self.apply(batch)?;
        self.flush()
    }

    /// Writes a batch atomically. It is on disk after the next flush.
    fn apply(&self, mut batch: sled::Batch) -> Result<(), StoreError> {
        let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
        // Writes are counted in their order, so that a lost one is noticed.
        let mut writes = self.inner.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let number = writes.saturating_add(1);
        batch.insert(key::WRITES, number.to_be_bytes().as_slice());
        self.tree().apply_batch(batch)?;
        *writes = number;
        Ok(())
    }

    fn lock_appending(&self) -> std::sync::MutexGuard<'_, ()> {
        self.inner.appending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_format(&self) -> Result<(), StoreError> {
        match self.tree().get(key::FORMAT)? {
            Some(bytes) => {
                let found = value::number(&bytes).and_then(|number| u32::try_from(number).ok()).unwrap_or(u32::MAX);
                if found > FORMAT {
                    return Err(StoreError::Newer { path: self.inner.path.clone(), found });
                }
                if found < FORMAT {
                    // Existing data stays readable as it is, but an older program could not read what is written from
                    // now on.
                    let mut batch = sled::Batch::default();
                    batch.insert(key::FORMAT, u64::from(FORMAT).to_be_bytes().as_slice());
                    if let Some(directory) = self.reader().directories().next().transpose()? {
                        batch.insert(key::FIRST, directory.first.0.to_be_bytes().as_slice());
                    }
                    self.write(batch)?;
                }
            }
            None if self.tree().is_empty() => {
                let mut batch = sled::Batch::default();
                batch.insert(key::FIRST, 1_u64.to_be_bytes().as_slice());
                batch.insert(key::FORMAT, u64::from(FORMAT).to_be_bytes().as_slice());
                self.write(batch)?;
            }
            None => {
                return Err(StoreError::Foreign { path: self.inner.path.clone() });
            }
        }
        Ok(())
    }
}

/// Refuses to run as root in another user's data directory, because that user could not open the files that root
/// creates.
fn refuse_as_root(data_dir: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(data_dir).map_or(0, |directory| directory.uid());
    if rustix::process::geteuid().is_root() && owner != 0 {
        return Err(StoreError::Owner { path: data_dir.to_owned(), owner });
    }
    Ok(())
}

/// Opens sled. It panics on some kinds of damage; that is reported as corruption.
fn sled_open(path: &Path) -> sled::Result<sled::Db> {
    let open = || sled::Config::new().path(path).cache_capacity(CACHE_BYTES).open();
    std::panic::catch_unwind(open).unwrap_or(Err(sled::Error::Corruption { at: None, bt: () }))
}

/// The file with the process id of the agent that uses a data directory.
pub fn pid_file(data_dir: &Path) -> PathBuf {
    data_dir.join("agent.pid")
}

fn open_error(error: sled::Error, data_dir: &Path, path: &Path) -> StoreError {
    match error {
        // sled wraps the lock's error in its own text.
        sled::Error::Io(error) if error.to_string().contains("could not acquire lock") => {
            StoreError::Locked { path: path.to_owned(), holder: holder(data_dir) }
        }
        sled::Error::Io(error) => StoreError::Directory { path: path.to_owned(), error },
        other => StoreError::Unopenable { path: path.to_owned(), detail: other.to_string() },
    }
}

/// Who has the store open, as far as is known.
fn holder(data_dir: &Path) -> String {
    let pid = fs::read_to_string(pid_file(data_dir)).ok();
    let pid =
        pid.as_deref().map(str::trim).filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && !pid.is_empty());
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// Sets the mode of files to 0600 and of directories to 0700, whatever the umask was.
fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        let mode = if entry.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(&entry, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
