//! Memory: events, cursors, alerts, detection state and the outbox, in one sled tree. The only place that knows keys and
//! encodings; it applies outcomes and understands none.
//!
//! Everything that belongs together is one [`sled::Batch`]: a page and the cursor behind it; an evaluated batch with its
//! alerts, state, deliveries and checkpoint. A batch is on disk, whole, before the call returns: sled's own flush makes it safe
//! against the death of the process, and `sync_data` on its file after that against the loss of power. (sled 0.34 flushes with
//! `sync_file_range` on Linux, which is no barrier. Values are kept small, in chunks, so that sled never writes them to files
//! of their own, which it does not sync.)

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
pub use cursor::{ActionList, Refetch, SourceError, SourceRecord};
pub use event::{Appended, Page};
pub use outbox::{Delivery, DestinationRecord, Together};
pub use packed::{Block, EventHead, SentBlock, Unpacked};
pub use quarantine::Quarantined;
pub use reader::{AlertFilter, Batch, Pending, Reader};
pub use repair::{Compacted, compact, recover};
pub use retention::Removed;
pub use salvage::Recovered;
pub use task::TaskStore;
pub use verify::StoreCheck;
use written::Written;

/// The version of the layout that this program writes. 2: events, alerts and sources' records are framed.
pub const FORMAT: u32 = 2;
/// The log of a store that nothing was ever written to is smaller.
const NEW_LOG: u64 = 4 * 1024 * 1024;
/// How long sled may take to let go of a store that this process has closed.
const LETTING_GO: Duration = Duration::from_secs(2);
/// sled's default is 1 GiB.
const CACHE_BYTES: u64 = 48 * 1024 * 1024;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("the store `{}` is in use by {holder}", path.display())]
    Locked {
        /// The store.
        path: PathBuf,
        /// Who holds it, as far as is known.
        holder: String,
    },
    /// A newer program wrote it.
    #[error("the store `{}` has format {found}, this program knows formats up to {FORMAT}: use the newer watchbell that wrote it", path.display())]
    Newer {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Something else is there.
    #[error("`{}` is a sled database, but not one of watchbell's: choose another `data_dir`", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The directory cannot be used.
    #[error("the data directory `{}` cannot be used: {error}: check that it exists, its permissions, and free space", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Reading or writing failed.
    #[error("the store cannot be read or written: {0}: check free space and the disk")]
    Disk(#[from] sled::Error),
    /// Syncing failed.
    #[error("the store cannot be synced to disk: {0}: check free space and the disk")]
    Sync(std::io::Error),
    /// Bytes that are not what was written.
    #[error("the store holds {what} that cannot be read: {detail}")]
    Damaged {
        /// What it is.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// Something failed while it was read or written.
    #[error("the store could not be used: `watchbell store verify` says whether it is damaged")]
    Panicked,
    /// It is another user's.
    #[error("the data directory `{}` belongs to user {owner}: run this as that user, such as with `sudo -u '#{owner}'`", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// sled does not open it any more.
    #[error("the store `{}` is damaged ({detail}): nothing was deleted; `watchbell store recover` saves what can be read into a new store and keeps this one aside", path.display())]
    Unopenable {
        /// The store.
        path: PathBuf,
        /// What sled said.
        detail: String,
    },
    /// Something stands where a store should be made.
    #[error("there is a store in `{}` already: move it away, or say `--replace`, which keeps it aside", .0.display())]
    Occupied(PathBuf),
    /// A backup cannot be read or written.
    #[error("the backup cannot be used: {0}")]
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

/// The open store. Cloning gives another handle on the same one.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: sled::Db,
    tree: sled::Tree,
    /// Our own handle on sled's log, to sync it.
    log: File,
    /// Held while sequence numbers are given out, so that a page's are contiguous and in the order of the writes.
    appending: Mutex<()>,
    /// Held while alerts are read, changed and written back. The number of the last logged change, once it is known.
    writing: Mutex<Option<u64>>,
    /// The number of the next delivery: above all that are pending or were given up, so that their order is that of their numbers.
    next_delivery: AtomicU64,
    /// Passed by every write; closed while everything is read as of one moment.
    gate: RwLock<()>,
    path: PathBuf,
}

impl Store {
    /// Opens the store in `data_dir`, making both if need be. Only one process can have it open.
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
            // To sled, a log that it cannot read is an empty one.
            return Err(StoreError::Unopenable { path, detail: "nothing in its log can be read".to_owned() });
        }
        Self::over(db, path)
    }

    /// Opens the store, waiting up to `patience` for whoever has it open. sled itself lets go of a store only some
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
            tracing::warn!(%error, "no copy of the store's snapshot could be kept");
        }
        restrict(&path).map_err(unusable)?;
        let tree = (*db).clone();
        let next_delivery = AtomicU64::new(outbox::highest_number(&tree)? + 1);
        let store = Self {
            inner: Arc::new(Inner {
                db,
                tree,
                log,
                appending: Mutex::new(()),
                writing: Mutex::new(None),
                next_delivery,
                gate: RwLock::new(()),
                path,
            }),
        };
        store.check_format()?;
        store.look_for_losses()?;
        Ok(store)
    }

    /// The read-only face.
    pub fn reader(&self) -> Reader {
        Reader::new(self.inner.tree.clone())
    }

    /// Size on disk, in bytes.
    pub fn size_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.inner.db.size_on_disk()?)
    }

    /// Waits until everything written is on disk.
    pub fn flush(&self) -> Result<(), StoreError> {
        // Before the flush: what is written meanwhile need not be on disk with it.
        let written = Written::of(&self.inner.tree)?;
        self.inner.tree.flush()?;
        self.inner.log.sync_data().map_err(StoreError::Sync)?;
        if let Err(error) = written.note(&self.inner.path) {
            tracing::debug!(%error, "how far the store is written cannot be noted beside it");
        }
        Ok(())
    }

    /// Notes that the agent is alive at `now`, so that the next one knows for how long there was none. Not flushed: a few
    /// seconds more or less do not matter.
    pub fn set_alive(&self, now: Timestamp) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        batch.insert(key::ALIVE, now.as_millisecond().to_be_bytes().as_slice());
        self.apply(batch)
    }

    /// Saves what is known of a source after a poll that brought nothing. Not flushed: the next page will be.
    pub fn save_source(&self, source: &SourceName, record: &SourceRecord) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        value::put_framed(&mut batch, key::source(source), record)?;
        self.apply(batch)
    }

    /// Waits until no write is under way, and lets none begin while the guard lives: everything read is of one moment.
    fn stand_still(&self) -> std::sync::RwLockWriteGuard<'_, ()> {
        self.inner.gate.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn tree(&self) -> &sled::Tree {
        &self.inner.tree
    }

    /// Writes a batch, whole, and waits until it is on disk.
    fn write(&self, batch: sled::Batch) -> Result<(), StoreError> {
        self.apply(batch)?;
        self.flush()
    }

    /// Writes a batch, whole. The next flush makes it safe.
    fn apply(&self, batch: sled::Batch) -> Result<(), StoreError> {
        let _gate = self.inner.gate.read().unwrap_or_else(PoisonError::into_inner);
        Ok(self.tree().apply_batch(batch)?)
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
                    // What is there is read as it is; what is written from now on, an older program would not read.
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

/// What root leaves in another user's store, that user cannot open.
fn refuse_as_root(data_dir: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(data_dir).map_or(0, |directory| directory.uid());
    if rustix::process::geteuid().is_root() && owner != 0 {
        return Err(StoreError::Owner { path: data_dir.to_owned(), owner });
    }
    Ok(())
}

/// Opens sled. It panics on some kinds of damage, which is damage to us.
fn sled_open(path: &Path) -> sled::Result<sled::Db> {
    let open = || sled::Config::new().path(path).cache_capacity(CACHE_BYTES).open();
    std::panic::catch_unwind(open).unwrap_or(Err(sled::Error::Corruption { at: None, bt: () }))
}

/// The file that names the process that runs on a data directory.
pub fn pid_file(data_dir: &Path) -> PathBuf {
    data_dir.join("agent.pid")
}

fn open_error(error: sled::Error, data_dir: &Path, path: &Path) -> StoreError {
    match error {
        // sled wraps the lock's error into a text of its own.
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

/// Files 0600 and directories 0700, whatever the umask was.
fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        let mode = if entry.is_dir() { 0o700 } else { 0o600 };
        fs::set_permissions(&entry, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}
