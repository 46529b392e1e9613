//! [`Spool`]: adds the parts of [`ObjectStore`] to a store that accepts only complete large objects
//! (native B2 on request, rclone).
//!
//! Parts are written to an unlinked file, so that a crash leaves nothing behind; at the end the
//! store gets the file, which it can read again for every attempt. Each part's CRC64 is kept in
//! memory and verified whenever the part is read back, because a checksum that is computed later
//! would confirm bytes that the spool's disk had damaged.

use super::hash::{HashKind, Hasher, PartHash, crc64};
use super::layer::Layer;
use super::parts::PartSizes;
use super::work::{random_u64, run_blocking};
use super::{Evidence, ObjectKey, ObjectStore, PartWriter, StoreError, StoreErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A store that needs the whole of a large object, or its exact length first.
#[async_trait]
pub trait SpooledStore: ObjectStore {
    /// Puts the object create-only from a spool file, with as many attempts as necessary, and
    /// confirms it as [`PartWriter::finish`] does.
    async fn put_spooled(&self, key: &ObjectKey, file: &SpoolFile) -> Result<Evidence, StoreError>;
}

/// A [`SpooledStore`] with a folder to spool in.
pub struct Spool {
    inner: Arc<dyn SpooledStore>,
    dir: PathBuf,
}

impl Spool {
    /// Spools for `inner` in `dir`, which must exist. The folder needs space for each large object
    /// that is uploaded concurrently.
    pub fn new(inner: Arc<dyn SpooledStore>, dir: PathBuf) -> Self {
        Self { inner, dir }
    }
}

/// The bytes of one large object, on disk in an unlinked file: dropping it frees the space.
pub struct SpoolFile {
    file: Arc<File>,
    dir: PathBuf,
    parts: Vec<SpooledPart>,
}

#[derive(Clone, Copy)]
struct SpooledPart {
    offset: u64,
    bytes: usize,
    crc64: u64,
}

/// A failure of the spool's disk.
#[derive(Debug, thiserror::Error)]
#[error("spool file in {}: {what}", dir.display())]
pub struct SpoolError {
    kind: StoreErrorKind,
    dir: PathBuf,
    what: &'static str,
    #[source]
    source: Option<io::Error>,
}

impl SpoolError {
    fn io(dir: &Path, what: &'static str, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreErrorKind::Full,
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => StoreErrorKind::Invalid,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                StoreErrorKind::Denied
            }
            _ => StoreErrorKind::Unavailable,
        };
        Self {
            kind,
            dir: dir.to_owned(),
            what,
            source: Some(source),
        }
    }

    /// Makes the store's error for putting `key` from this one.
    pub fn in_store(self, key: &ObjectKey, store: &str) -> StoreError {
        let full = self.kind == StoreErrorKind::Full;
        let hint = format!(
            "make room in {}, or set a smaller `split_size`",
            self.dir.display()
        );
        // The disk is this host's own.
        let error = StoreError::new(self.kind, "spool", key.as_str(), store, self);
        let error = error.with_outage(false);
        if full { error.with_hint(hint) } else { error }
    }
}

impl SpoolFile {
    /// Makes an empty file in `dir`. Blocks.
    fn create(dir: &Path) -> Result<Self, SpoolError> {
        let nonce = random_u64().map_err(|error| SpoolError::io(dir, "take a name", error))?;
        let path = dir.join(format!(".zfs-backup-spool-{nonce:016x}"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options
            .open(&path)
            .map_err(|error| SpoolError::io(dir, "create", error))?;
        std::fs::remove_file(&path).map_err(|error| SpoolError::io(dir, "unlink", error))?;
        Ok(Self {
            file: Arc::new(file),
            dir: dir.to_owned(),
            parts: Vec::new(),
        })
    }

    /// Returns the bytes of the whole object.
    pub fn bytes(&self) -> u64 {
        self.parts
            .last()
            .map_or(0, |part| part.offset + part.bytes as u64)
    }

    /// Returns the file itself, for another process to read. Blocks for a moment.
    pub(super) fn share(&self) -> Result<File, SpoolError> {
        self.file
            .try_clone()
            .map_err(|error| SpoolError::io(&self.dir, "share", error))
    }

    /// Returns the number of parts, which have equal length except the last.
    pub fn part_count(&self) -> usize {
        self.parts.len()
    }

    /// Reads one part, counted from 0, as often as the store needs. Fails if the bytes differ from
    /// those written.
    pub async fn read_part(&self, index: usize) -> Result<Bytes, SpoolError> {
        let file = Arc::clone(&self.file);
        let part = self.parts[index];
        let dir = self.dir.clone();
        run_blocking(move || {
            let mut bytes = vec![0; part.bytes];
            file.read_exact_at(&mut bytes, part.offset)
                .map_err(|error| SpoolError::io(&dir, "read", error))?;
            match crc64(&bytes) == part.crc64 {
                true => Ok(Bytes::from(bytes)),
                false => Err(SpoolError {
                    kind: StoreErrorKind::Corrupt,
                    dir,
                    what: "the disk gave back other bytes than were written",
                    source: None,
                }),
            }
        })
        .await
    }

    /// Hashes the whole object, as it is read back: a hash of the bytes before they were written
    /// would not show that the disk has damaged them.
    pub(super) async fn hash(&self, kind: HashKind) -> Result<PartHash, SpoolError> {
        let mut hasher = Hasher::new(kind);
        for index in 0..self.part_count() {
            let part = self.read_part(index).await?;
            hasher = run_blocking(move || {
                hasher.update(&part);
                hasher
            })
            .await;
        }
        Ok(hasher.finish())
    }

    /// Appends the next part.
    async fn append(&mut self, bytes: Bytes) -> Result<(), SpoolError> {
        let file = Arc::clone(&self.file);
        let offset = self.bytes();
        let dir = self.dir.clone();
        let part = run_blocking(move || {
            file.write_all_at(&bytes, offset)
                .map_err(|error| SpoolError::io(&dir, "write", error))?;
            Ok(SpooledPart {
                offset,
                bytes: bytes.len(),
                crc64: crc64(&bytes),
            })
        })
        .await?;
        self.parts.push(part);
        Ok(())
    }
}

struct SpoolWriter {
    inner: Arc<dyn SpooledStore>,
    key: ObjectKey,
    file: SpoolFile,
    sizes: PartSizes,
}

impl SpoolWriter {
    fn invalid(&self, operation: &str, text: impl Into<String>) -> StoreError {
        let kind = StoreErrorKind::Invalid;
        let store = self.inner.url();
        StoreError::new(kind, operation, self.key.as_str(), store, text.into())
    }
}

#[async_trait]
impl PartWriter for SpoolWriter {
    fn upload_id(&self) -> Option<&str> {
        None
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        self.sizes
            .accept(part.len())
            .map_err(|text| self.invalid("spool", text))?;
        if part.is_empty() {
            return Ok(());
        }
        self.file
            .append(part)
            .await
            .map_err(|error| error.in_store(&self.key, self.inner.url()))
    }

    async fn finish(self: Box<Self>) -> Result<Evidence, StoreError> {
        if self.file.bytes() != self.sizes.bytes() {
            return Err(self.invalid("put", "a part was interrupted and never reached the spool"));
        }
        self.inner.put_spooled(&self.key, &self.file).await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl Layer for Spool {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        let url = self.inner.url();
        if self.inner.head(key).await?.is_some() {
            let kind = StoreErrorKind::AlreadyExists;
            let text = "the key is taken";
            return Err(StoreError::new(kind, "spool", key.as_str(), url, text));
        }
        let dir = self.dir.clone();
        let file = run_blocking(move || SpoolFile::create(&dir)).await;
        let file = file.map_err(|error| error.in_store(key, url))?;
        let sizes = PartSizes::new(self.inner.traits().part_bytes);
        Ok(Box::new(SpoolWriter {
            inner: Arc::clone(&self.inner),
            key: key.clone(),
            file,
            sizes,
        }))
    }
}
