//! [`ObjectCache`]: objects that never change, cached in `state_dir`, so that planning on thousands
//! of backups requests only the pages of a listing from a store, and no object a second time.
//!
//! # Trust
//! A cached object is not trusted because it is cached. A manifest is kept with its signature, and
//! both are verified on each use; a chunk list is compared with the hash in its manifest. An entry
//! that fails is fetched again, so a torn or tampered file costs a request and decides nothing. One
//! exception protects the host from an attacker who fills the store: the cache also keeps
//! signatures of untrusted keys. As long as such a signature is listed with its size and time,
//! neither it nor its object is fetched again. Trust is evaluated on each use. An entry is valid
//! only while a current listing shows its key with the same size and, for signed objects, the same
//! time as when it was read.
//!
//! The cache cannot notice bytes that change in the store while size and time stay the same. So
//! every operation that proves the content of a store, or deletes by it, reads the store itself:
//! `verify-checksums`, `restore`, `forget`, `prune-snapshots`, the verification at a commit, the
//! check of the base just before it, and both readings before a prune deletes anything.
//!
//! # The file
//! Each dataset and store has one file, which only its owner can read; all of its content is in
//! plain sight in the store too. The first line is JSON and names the format, store and dataset;
//! then each object has a line and its bytes. One process at a time appends to the file. Objects
//! that are no longer listed are left out when the file is rewritten. A crash may cut the file:
//! objects behind the cut are fetched again.

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

/// The format of the file. A file of another format is rewritten.
const FORMAT: u32 = 1;
/// The largest file of one dataset in one store: manifests and lists of some fifty thousand
/// backups.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// The most bytes of a line. A key has at most 1024 bytes; the rest is numbers and a hash.
const LINE_BYTES_MAX: u64 = 8 << 10;
/// The file is rewritten when more than this many bytes, and more than half of the file, are
/// unused.
const DEAD_BYTES_MAX: u64 = 1 << 20;
/// The size of each read while the lines are scanned.
const READ_BYTES: usize = 128 << 10;

/// The cached objects of one dataset in one store, which need not be fetched again. The cache never
/// fails: without it, or where it cannot be written, every object is fetched.
#[derive(Debug, Default)]
pub struct ObjectCache {
    inner: Option<Mutex<CacheFile>>,
}

#[derive(Debug)]
struct CacheFile {
    path: PathBuf,
    file: File,
    heading: Heading,
    /// Whether this process has the lock and no write has failed.
    writes: bool,
    end: u64,
    dead_bytes: u64,
    entries: BTreeMap<String, CacheEntry>,
}

/// The first line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Heading {
    format: u32,
    store: String,
    dataset: DatasetName,
}

/// The line before the bytes of an object.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct CacheLine {
    key: String,
    bytes: u64,
    modified_at: Option<Timestamp>,
    blake3: Digest,
}

#[derive(Debug, Clone)]
struct CacheEntry {
    bytes: u64,
    modified_at: Option<Timestamp>,
    blake3: Digest,
    /// The offset of the object's line.
    line_at: u64,
    /// The offset of the object's bytes.
    body_at: u64,
}

impl CacheEntry {
    /// Returns the length of the line, the bytes, and the line feed behind them.
    fn record_bytes(&self) -> u64 {
        self.body_at - self.line_at + self.bytes + 1
    }
}

/// Whether objects that are read are added to the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// ReadWrite objects are added.
    ReadWrite,
    /// No file on this host is changed (`--dry-run`).
    ReadOnly,
}

impl ObjectCache {
    /// Returns a cache without a file: every object is fetched.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Opens the cache of one dataset in one store, or creates it. While another process writes it,
    /// its content is used and nothing is added.
    pub fn open(
        state_dir: &Path,
        store: &KnownStore,
        dataset: &DatasetName,
        keeping: CacheMode,
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
                    tracing::debug!(path = %path.display(), error = error_chain(&error), "cannot open the object cache; continuing without it");
                }
                Self::none()
            }
        }
    }

    /// Returns the object's bytes, if they were cached with the size and time that are listed now.
    pub(crate) fn get(&self, listed: &ListedObject) -> Option<Bytes> {
        self.lock()?.get(&listed.key, |entry| {
            entry.bytes == listed.bytes && entry.modified_at == listed.modified_at
        })
    }

    /// Returns the object's bytes, if they have this hash.
    pub(crate) fn get_pinned(&self, key: &str, blake3: Digest) -> Option<Bytes> {
        self.lock()?.get(key, |entry| entry.blake3 == blake3)
    }

    /// Returns the object's bytes, whatever its listing: for objects that are verified on each use.
    pub(crate) fn get_any(&self, key: &str) -> Option<Bytes> {
        self.lock()?.get(key, |_| true)
    }

    /// Adds the bytes of an object that was listed like this and has passed its checks. Bytes of
    /// another length are not the listed object and are not added.
    pub(crate) fn put(&self, listed: &ListedObject, bytes: &[u8]) {
        if let Some(mut file) = self
            .lock()
            .filter(|file| file.writes && listed.bytes == bytes.len() as u64)
        {
            let key = listed.key.clone();
            let blake3 = Digest::of(bytes);
            file.append(
                &CacheLine {
                    key,
                    bytes: listed.bytes,
                    modified_at: listed.modified_at,
                    blake3,
                },
                bytes,
            );
        }
    }

    /// Does the same as [`ObjectCache::put`], for bytes that no check has passed yet: only where
    /// the store lists a time, which a change of the object would change. Returns whether the store
    /// lists one.
    pub(crate) fn put_dated(&self, listed: &ListedObject, bytes: &[u8]) -> bool {
        let is_dated = listed.modified_at.is_some();
        if is_dated {
            self.put(listed, bytes);
        }
        is_dated
    }

    /// Adds the bytes of an object that is known by its hash alone.
    pub(crate) fn put_pinned(&self, key: &str, blake3: Digest, bytes: &[u8]) {
        if let Some(mut file) = self.lock().filter(|file| file.writes) {
            file.append(
                &CacheLine {
                    key: key.to_owned(),
                    bytes: bytes.len() as u64,
                    modified_at: None,
                    blake3,
                },
                bytes,
            );
        }
    }

    /// Removes objects that a complete listing of the dataset does not have with the same size. The
    /// listing is in the order of the keys.
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
    fn open(path: &Path, heading: Heading, keeping: CacheMode) -> Result<Self> {
        let (file, writes) = match keeping {
            CacheMode::ReadWrite => open_locked(path)?,
            CacheMode::ReadOnly => (File::open(path)?, false),
        };
        let dead_bytes = 0;
        let entries = BTreeMap::new();
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
            // The bytes behind this offset were cut by a crash or have another format.
            cache.file.set_len(cache.end)?;
            if cache.end == 0 {
                cache.end = cache.write_heading(&cache.file)?;
            }
        }
        Ok(cache)
    }

    /// Scans the lines, up to the first incomplete one.
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
        while let Some(CacheLine {
            key,
            bytes,
            modified_at,
            blake3,
        }) = next_line(&mut reader, &mut text)?
        {
            let line_at = self.end;
            let body_at = self.end + text.len() as u64;
            let entry = CacheEntry {
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

    fn insert(&mut self, key: String, entry: CacheEntry) {
        let before = self.entries.insert(key, entry);
        self.dead_bytes += before.map_or(0, |before| before.record_bytes());
    }

    fn get(&self, key: &str, is_it: impl Fn(&CacheEntry) -> bool) -> Option<Bytes> {
        let entry = self.entries.get(key).filter(|entry| is_it(entry))?;
        let mut body = vec![0; usize::try_from(entry.bytes).ok()?];
        self.file.read_exact_at(&mut body, entry.body_at).ok()?;
        (Digest::of(&body) == entry.blake3).then(|| body.into())
    }

    fn append(&mut self, line: &CacheLine, bytes: &[u8]) {
        if let Err(error) = self.try_append(line, bytes) {
            let path = self.path.display();
            tracing::debug!(%path, error = error_chain(&error), "cannot write the object cache; nothing more is cached");
            self.writes = false;
            // The error does not matter: the next reader ignores an incomplete record at the end.
            let _ = self.file.set_len(self.end);
        }
    }

    fn try_append(&mut self, line: &CacheLine, bytes: &[u8]) -> Result<()> {
        let mut record = serde_json::to_vec(line)?;
        record.push(b'\n');
        let line_at = self.end;
        let body_at = self.end + record.len() as u64;
        record.extend_from_slice(bytes);
        record.push(b'\n');
        if self.end + record.len() as u64 > FILE_BYTES_MAX || line.bytes > CHUNK_LIST_BYTES_MAX {
            return Ok(());
        }
        self.file.write_all_at(&record, line_at)?;
        self.end += record.len() as u64;
        let CacheLine {
            bytes,
            modified_at,
            blake3,
            ..
        } = *line;
        self.insert(
            line.key.clone(),
            CacheEntry {
                bytes,
                modified_at,
                blake3,
                line_at,
                body_at,
            },
        );
        Ok(())
    }

    fn retain(&mut self, keep: impl Fn(&str, &CacheEntry) -> bool) {
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

    /// Rewrites the cache without unused bytes into a new file, with one object at a time in
    /// memory. A process that reads the old file continues to read it.
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
                CacheEntry {
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

/// Opens the file and locks it. The flag is false when another process has the lock.
fn open_locked(path: &Path) -> Result<(File, bool)> {
    /// Limit of attempts. Another process may rewrite the file at that moment, but not repeatedly.
    const TRIES: usize = 3;
    let folder = path.parent().unwrap_or(path);
    create_folder(folder)?;
    for _ in 0..TRIES {
        let file = open_or_create(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok((file, false)),
            locked => locked?,
        }
        // The lock on a file that was replaced in the meantime has no effect.
        if file.metadata()?.ino() == path.metadata()?.ino() {
            return Ok((file, true));
        }
    }
    Ok((File::open(path)?, false))
}

/// Returns the next line and fills `text` with it; `None` at the end, and when the line is
/// incomplete or has other content.
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
