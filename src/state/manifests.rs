//! [`ObjectCache`]: objects that never change, as they were read, kept in `state_dir`, so that
//! planning on thousands of backups asks a store for the pages of a listing and for nothing that it
//! gave before.
//!
//! # What it is worth
//! Being in the cache makes nothing trusted. A manifest is kept with its signature, and both are
//! verified on each use; a chunk list is compared with the hash in its manifest. An entry that
//! fails is fetched again, so a torn or tampered file costs a request and decides nothing. One
//! exception protects the host from an attacker who fills the store: the cache also keeps
//! signatures of untrusted keys. As long as such a signature is listed with its size and time,
//! neither it nor its object is fetched again. Trust is evaluated on each use. An entry is valid
//! only while a current listing shows its key with the same size and, for signed objects, the same
//! time as when it was read.
//!
//! What it cannot see are bytes that change in the store behind the same size and time. So
//! everything that proves what a store has, or deletes by it, reads the store itself:
//! `verify-checksums`, `restore`, `forget`, `prune-snapshots`, the reading back at a commit, the
//! look at the base just before it, and both readings before a prune deletes anything.
//!
//! # The file
//! One a dataset and store, for us alone to read; all that is in it the store has in plain sight
//! too. A line of JSON says of what it is; then each object has a line and its bytes. It is written
//! at its end only, by one process at a time; what a listing does not have any more is left out
//! when the file is written anew. A crash may cut it: what is behind the cut is fetched again.

use super::dir::state_name;
use super::dir::{create_beside, create_folder, open_or_create};
use crate::manifest::CHUNK_LIST_BYTES_MAX;
use crate::model::{DatasetName, Digest, KnownStore, error_chain};
use crate::store::ListedObject;
use bytes::Bytes;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, remove_file, rename};
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The form of the file. One of another form is written anew.
const FORMAT: u32 = 1;
/// What one dataset may take in one store: manifests and lists of some fifty thousand backups.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// A key has at most 1024 bytes; the rest is numbers and a hash.
const LINE_BYTES_MAX: u64 = 8 << 10;
/// The file is written anew when so much of it, and more than half, is of no use any more.
const DEAD_BYTES_MAX: u64 = 1 << 20;
/// Read at once while the lines are looked through.
const READ_BYTES: usize = 128 << 10;

/// The objects of one dataset in one store that need not be fetched again. It never fails: without
/// it, or where it cannot be written, everything is fetched.
#[derive(Debug, Default)]
pub struct ObjectCache {
    inner: Option<Mutex<CacheFile>>,
}

#[derive(Debug)]
struct CacheFile {
    path: PathBuf,
    file: File,
    heading: Heading,
    /// This process has the lock, and the disk has room.
    writes: bool,
    end: u64,
    dead_bytes: u64,
    entries: BTreeMap<String, Entry>,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Heading {
    format: u32,
    store: String,
    dataset: DatasetName,
}

/// The line before the bytes of an object.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Line {
    key: String,
    bytes: u64,
    modified_at: Option<Timestamp>,
    blake3: Digest,
}

#[derive(Debug, Clone)]
struct Entry {
    bytes: u64,
    modified_at: Option<Timestamp>,
    blake3: Digest,
    /// Where its line begins.
    line_at: u64,
    /// Where its bytes begin.
    body_at: u64,
}

impl Entry {
    /// Its line, its bytes, and the end of the line behind them.
    fn record_bytes(&self) -> u64 {
        self.body_at - self.line_at + self.bytes + 1
    }
}

/// Whether what is read is also kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// It is.
    New,
    /// Nothing on this host is changed.
    Nothing,
}

impl ObjectCache {
    /// Where nothing is kept: everything is fetched.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Opens what is kept of one dataset in one store, or begins it. Another process may be writing
    /// it: then what is there is used, and nothing is added.
    pub fn open(
        state_dir: &Path,
        store: &KnownStore,
        dataset: &DatasetName,
        keeping: Keeping,
    ) -> Self {
        let path = path_of(state_dir, store, dataset);
        let heading = Heading {
            format: FORMAT,
            store: store.id.to_string(),
            dataset: dataset.clone(),
        };
        match CacheFile::open(&path, heading, keeping) {
            Ok(file) => Self {
                inner: Some(Mutex::new(file)),
            },
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::debug!(path = %path.display(), error = error_chain(&error), "what was read is not kept");
                }
                Self::none()
            }
        }
    }

    /// The object's bytes, if they were kept when it was listed so.
    pub(crate) fn get(&self, listed: &ListedObject) -> Option<Bytes> {
        self.lock()?.get(&listed.key, |entry| {
            entry.bytes == listed.bytes && entry.modified_at == listed.modified_at
        })
    }

    /// The object's bytes, if they have this hash.
    pub(crate) fn get_pinned(&self, key: &str, blake3: Digest) -> Option<Bytes> {
        self.lock()?.get(key, |entry| entry.blake3 == blake3)
    }

    /// The object's bytes, however it was listed: for what is checked again wherever it is used.
    pub(crate) fn get_any(&self, key: &str) -> Option<Bytes> {
        self.lock()?.get(key, |_| true)
    }

    /// Keeps the bytes of an object that was listed so and has passed its checks. Of another length
    /// they are not what was listed.
    pub(crate) fn put(&self, listed: &ListedObject, bytes: &[u8]) {
        if let Some(mut file) = self
            .lock()
            .filter(|file| file.writes && listed.bytes == bytes.len() as u64)
        {
            let (key, blake3) = (listed.key.clone(), Digest::of(bytes));
            file.append(
                &Line {
                    key,
                    bytes: listed.bytes,
                    modified_at: listed.modified_at,
                    blake3,
                },
                bytes,
            );
        }
    }

    /// As [`ObjectCache::put`], for bytes that have passed no check yet: only where a change in the
    /// store would change the time that it lists. Returns whether they may be kept so.
    pub(crate) fn put_dated(&self, listed: &ListedObject, bytes: &[u8]) -> bool {
        let is_dated = listed.modified_at.is_some();
        if is_dated {
            self.put(listed, bytes);
        }
        is_dated
    }

    /// Keeps the bytes of an object that is known by its hash alone.
    pub(crate) fn put_pinned(&self, key: &str, blake3: Digest, bytes: &[u8]) {
        if let Some(mut file) = self.lock().filter(|file| file.writes) {
            file.append(
                &Line {
                    key: key.to_owned(),
                    bytes: bytes.len() as u64,
                    modified_at: None,
                    blake3,
                },
                bytes,
            );
        }
    }

    /// Leaves out what a whole listing of the dataset does not have any more. The listing is in
    /// order of the keys.
    pub(crate) fn keep_listed(&self, listed: &[ListedObject]) {
        let Some(mut file) = self.lock() else { return };
        file.retain(|key, entry| {
            let found = listed
                .binary_search_by(|object| object.key.as_str().cmp(key))
                .ok();
            found.is_some_and(|index| listed[index].bytes == entry.bytes)
        });
    }

    fn lock(&self) -> Option<MutexGuard<'_, CacheFile>> {
        Some(
            self.inner
                .as_ref()?
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

pub(crate) fn path_of(state_dir: &Path, store: &KnownStore, dataset: &DatasetName) -> PathBuf {
    state_dir.join("cache").join(state_name(store, dataset))
}

impl CacheFile {
    fn open(path: &Path, heading: Heading, keeping: Keeping) -> Result<Self> {
        let (file, writes) = match keeping {
            Keeping::New => open_locked(path)?,
            Keeping::Nothing => (File::open(path)?, false),
        };
        let (dead_bytes, entries) = (0, BTreeMap::new());
        let mut cache = Self {
            path: path.to_owned(),
            file,
            heading,
            writes,
            end: 0,
            dead_bytes,
            entries,
        };
        cache.read_lines()?;
        if cache.writes {
            // What is behind was cut by a crash, or is of another form.
            cache.file.set_len(cache.end)?;
            if cache.end == 0 {
                cache.end = cache.write_heading(&cache.file)?;
            }
        }
        Ok(cache)
    }

    /// Looks through the lines, up to the first that is not whole.
    fn read_lines(&mut self) -> Result<()> {
        let length = self.file.metadata()?.len();
        let file = self.file.try_clone()?;
        let mut reader = BufReader::with_capacity(READ_BYTES, file);
        let mut text = Vec::new();
        let heading: Option<Heading> = next_line(&mut reader, &mut text)?;
        if heading.as_ref() != Some(&self.heading) {
            return Ok(());
        }
        self.end = text.len() as u64;
        while let Some(Line {
            key,
            bytes,
            modified_at,
            blake3,
        }) = next_line(&mut reader, &mut text)?
        {
            let (line_at, body_at) = (self.end, self.end + text.len() as u64);
            let entry = Entry {
                bytes,
                modified_at,
                blake3,
                line_at,
                body_at,
            };
            let body = i64::try_from(bytes)
                .ok()
                .filter(|_| bytes <= CHUNK_LIST_BYTES_MAX);
            let Some(body) = body.filter(|_| body_at + bytes < length) else {
                break;
            };
            reader.seek_relative(body + 1)?;
            self.end += entry.record_bytes();
            self.insert(key, entry);
        }
        Ok(())
    }

    fn insert(&mut self, key: String, entry: Entry) {
        let before = self.entries.insert(key, entry);
        self.dead_bytes += before.map_or(0, |before| before.record_bytes());
    }

    fn get(&self, key: &str, is_it: impl Fn(&Entry) -> bool) -> Option<Bytes> {
        let entry = self.entries.get(key).filter(|entry| is_it(entry))?;
        let mut body = vec![0; usize::try_from(entry.bytes).ok()?];
        self.file.read_exact_at(&mut body, entry.body_at).ok()?;
        (Digest::of(&body) == entry.blake3).then(|| body.into())
    }

    fn append(&mut self, line: &Line, bytes: &[u8]) {
        if let Err(error) = self.try_append(line, bytes) {
            let path = self.path.display();
            tracing::debug!(%path, error = error_chain(&error), "what is read from here on is not kept");
            self.writes = false;
            // Half a record at the end is passed over by whoever reads it next.
            let _ = self.file.set_len(self.end);
        }
    }

    fn try_append(&mut self, line: &Line, bytes: &[u8]) -> Result<()> {
        let mut record = serde_json::to_vec(line)?;
        record.push(b'\n');
        let (line_at, body_at) = (self.end, self.end + record.len() as u64);
        record.extend_from_slice(bytes);
        record.push(b'\n');
        if self.end + record.len() as u64 > FILE_BYTES_MAX || line.bytes > CHUNK_LIST_BYTES_MAX {
            return Ok(());
        }
        self.file.write_all_at(&record, line_at)?;
        self.end += record.len() as u64;
        let Line {
            bytes,
            modified_at,
            blake3,
            ..
        } = *line;
        self.insert(
            line.key.clone(),
            Entry {
                bytes,
                modified_at,
                blake3,
                line_at,
                body_at,
            },
        );
        Ok(())
    }

    fn retain(&mut self, keep: impl Fn(&str, &Entry) -> bool) {
        let mut dead_bytes = 0;
        self.entries.retain(|key, entry| {
            let keeps = keep(key, entry);
            dead_bytes += if keeps { 0 } else { entry.record_bytes() };
            keeps
        });
        self.dead_bytes += dead_bytes;
        if self.writes
            && self.dead_bytes > DEAD_BYTES_MAX
            && self.dead_bytes > self.end / 2
            && let Err(error) = self.write_anew()
        {
            let path = self.path.display();
            tracing::debug!(%path, error = error_chain(&error), "cannot rewrite the object cache");
        }
    }

    /// The same without what is dead, in a new file, one object at a time in memory. Whoever reads
    /// the old one reads on.
    fn write_anew(&mut self) -> Result<()> {
        let (new, temporary) = create_beside(&self.path)?;
        self.write_into(new, &temporary)
            .inspect_err(|_| drop(remove_file(&temporary)))
    }

    fn write_into(&mut self, new: File, temporary: &Path) -> Result<()> {
        flock(&new, FlockOperation::NonBlockingLockExclusive)?;
        let mut end = self.write_heading(&new)?;
        let mut entries = BTreeMap::new();
        for (key, entry) in &self.entries {
            let mut record = vec![0; usize::try_from(entry.record_bytes()).map_err(Error::other)?];
            self.file.read_exact_at(&mut record, entry.line_at)?;
            new.write_all_at(&record, end)?;
            let body_at = end + (entry.body_at - entry.line_at);
            entries.insert(
                key.clone(),
                Entry {
                    line_at: end,
                    body_at,
                    ..entry.clone()
                },
            );
            end += entry.record_bytes();
        }
        rename(temporary, &self.path)?;
        (self.file, self.entries, self.end, self.dead_bytes) = (new, entries, end, 0);
        Ok(())
    }

    fn write_heading(&self, file: &File) -> Result<u64> {
        let mut line = serde_json::to_vec(&self.heading)?;
        line.push(b'\n');
        file.write_all_at(&line, 0)?;
        Ok(line.len() as u64)
    }
}

/// The file with the lock on it, or without when another process has that.
fn open_locked(path: &Path) -> Result<(File, bool)> {
    /// Another process may write the file anew just then, but not again and again.
    const TRIES: usize = 3;
    let folder = path.parent().unwrap_or(path);
    create_folder(folder)?;
    for _ in 0..TRIES {
        let file = open_or_create(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok((file, false)),
            locked => locked?,
        }
        // The lock of a file that was replaced meanwhile is worth nothing.
        if file.metadata()?.ino() == path.metadata()?.ino() {
            return Ok((file, true));
        }
    }
    Ok((File::open(path)?, false))
}

/// The next line and its text; `None` at the end, and when it is not whole or says something else.
fn next_line<T: for<'de> Deserialize<'de>>(
    reader: &mut impl BufRead,
    text: &mut Vec<u8>,
) -> Result<Option<T>> {
    text.clear();
    reader
        .by_ref()
        .take(LINE_BYTES_MAX)
        .read_until(b'\n', text)?;
    Ok(if text.ends_with(b"\n") {
        serde_json::from_slice(text).ok()
    } else {
        None
    })
}

#[cfg(test)]
mod tests;
