//! Backups of the store in one file: every key and value, compressed, with a checksum at the end.
//!
//! A backup is of one moment: writes wait while it is made. It is first written to a file next to the store, at the
//! speed of the disk, so that a slow receiver does not block writes.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use super::{
    Store, StoreError,
    files::{self, Pair, aside, lock, make},
};

const MAGIC: &[u8] = b"watchbell backup 1\n";
/// The length that marks the end of the pairs.
const END: u32 = u32::MAX;
/// Values have a few kilobytes; detection state may have more.
const MAX_LENGTH: u32 = 256 * 1024 * 1024;
const PIECE: usize = 48 * 1024;
/// The result of a restore.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Restored {
    /// The number of keys and values.
    pub entries: u64,
    /// The path of the previous store, if there was one.
    pub kept: Option<PathBuf>,
}

fn unusable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Backup(error.to_string())
}

/// Hashes the bytes that pass through.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

impl Store {
    /// Makes a backup and passes it to `take` in pieces, until that returns false.
    pub fn backup(&self, take: &mut dyn FnMut(&[u8]) -> bool) -> Result<u64, StoreError> {
        let parent = self.inner.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::tempfile_in(parent).map_err(unusable)?;
        let entries = {
            let _guard = self.block_writes();
            self.write_copy(&mut file)?
        };
        file.seek(SeekFrom::Start(0)).map_err(unusable)?;
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece).map_err(unusable)?;
            if read == 0 || !take(piece.get(..read).unwrap_or_default()) {
                return Ok(entries);
            }
        }
    }

    fn write_copy(&self, file: &mut File) -> Result<u64, StoreError> {
        file.write_all(MAGIC).map_err(unusable)?;
        let encoder = zstd::stream::Encoder::new(file, 1).map_err(unusable)?;
        let mut output = Hashing { inner: encoder, hasher: blake3::Hasher::new() };
        let mut entries = 0_u64;
        for item in self.tree() {
            let (key, value) = item?;
            for part in [&key, &value] {
                let length = u32::try_from(part.len()).map_err(unusable)?;
                output.write_all(&length.to_be_bytes()).map_err(unusable)?;
            }
            output.write_all(&key).and_then(|()| output.write_all(&value)).map_err(unusable)?;
            entries += 1;
        }
        output.write_all(&END.to_be_bytes()).map_err(unusable)?;
        output.write_all(&entries.to_be_bytes()).map_err(unusable)?;
        let hash = output.hasher.finalize();
        let mut encoder = output.inner;
        encoder.write_all(hash.as_bytes()).map_err(unusable)?;
        encoder.finish().map_err(unusable)?;
        Ok(entries)
    }
}

/// The pairs of a backup, in order. The last item is an error if the backup is incomplete.
struct Pairs<R: Read> {
    input: Hashing<R>,
    count: u64,
    is_done: bool,
}

impl<R: Read> Pairs<R> {
    fn next_pair(&mut self) -> Result<Option<Pair>, StoreError> {
        let length = self.number()?;
        if length == END {
            let mut count = [0; 8];
            self.input.read_exact(&mut count).map_err(unusable)?;
            let hash = self.input.hasher.finalize();
            let mut stored = [0; 32];
            self.input.read_exact(&mut stored).map_err(unusable)?;
            if u64::from_be_bytes(count) != self.count || stored != *hash.as_bytes() {
                return Err(unusable("checksum mismatch"));
            }
            return Ok(None);
        }
        let value_length = self.number()?;
        if length > MAX_LENGTH || value_length > MAX_LENGTH {
            return Err(unusable("it is damaged"));
        }
        let mut key = vec![0; length as usize];
        let mut value = vec![0; value_length as usize];
        self.input.read_exact(&mut key).and_then(|()| self.input.read_exact(&mut value)).map_err(unusable)?;
        self.count += 1;
        Ok(Some((key, value)))
    }

    fn number(&mut self) -> Result<u32, StoreError> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes).map_err(unusable)?;
        Ok(u32::from_be_bytes(bytes))
    }
}

impl<R: Read> Iterator for Pairs<R> {
    type Item = Result<Pair, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let pair = self.next_pair().transpose();
        self.is_done = !matches!(pair, Some(Ok(_)));
        pair
    }
}

/// Creates the store in `data_dir` from a backup. With `replace`, an existing store is kept aside under a name with
/// `stamp`; without, it is left unchanged and the restore fails. Nothing changes unless the whole backup is readable.
pub fn restore(file: &Path, data_dir: &Path, replace: bool, stamp: &str) -> Result<Restored, StoreError> {
    let directory = |error| StoreError::Directory { path: data_dir.to_owned(), error };
    let path = data_dir.join("store");
    super::refuse_as_root(data_dir)?;
    let occupied = path.exists();
    if occupied && !replace {
        return Err(StoreError::Occupied(data_dir.to_owned()));
    }
    // Held until the new store is in place, so that no agent can start on the old one in the meantime.
    let lock = if occupied { Some(lock(data_dir, &path)?) } else { None };
    let mut input =
        BufReader::new(File::open(file).map_err(|error| unusable(format!("`{}`: {error}", file.display())))?);
    let mut magic = [0; MAGIC.len()];
    if input.read_exact(&mut magic).is_err() || magic != *MAGIC {
        return Err(unusable(format!("`{}` is not a watchbell backup", file.display())));
    }
    {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(directory)?;
    }
    let decoder = zstd::stream::Decoder::with_buffer(input).map_err(unusable)?;
    let pairs = Pairs { input: Hashing { inner: decoder, hasher: blake3::Hasher::new() }, count: 0, is_done: false };
    let new = data_dir.join("store.new");
    let mut format = None;
    let pairs = pairs.inspect(|pair| {
        if let Ok((name, bytes)) = pair
            && name == super::key::FORMAT
        {
            format = super::value::number(bytes).and_then(|number| u32::try_from(number).ok());
        }
    });
    let entries = make(&new, pairs)?;
    let problem = match format {
        Some(found) if found > super::FORMAT => Some(StoreError::Newer { path: file.to_owned(), found }),
        Some(_) => None,
        None => Some(unusable("it does not contain a watchbell store")),
    };
    if let Some(problem) = problem {
        fs::remove_dir_all(&new).map_err(directory)?;
        return Err(problem);
    }
    let kept = occupied.then(|| aside(data_dir, "replaced", stamp));
    match &kept {
        Some(kept) => files::replace(&new, &path, kept)?,
        None => fs::rename(&new, &path).map_err(directory)?,
    }
    drop(lock);
    // This checks the format, and the store is ready.
    Store::open_patiently(data_dir, super::RELEASE_TIMEOUT)?;
    Ok(Restored { entries, kept })
}
