//! [`Spool`]: adds the parts of [`ObjectStore`] to a store that accepts only complete large objects
//! (native B2 on request, rclone).
//!
//! Parts are written to an unlinked file, so that a crash leaves nothing behind; at the end the
//! store gets the file, which it can read again for every attempt. Each part's CRC64 is kept in
//! memory and verified whenever the part is read back, because a checksum that is computed later
//! would confirm bytes that the spool's disk had damaged.

use super::checksum::WholeCrc;
use super::parts::PartSizes;
use super::work::{random_u64, run_blocking};
use super::{
    BucketFacts, Evidence, ListedObject, ObjectKey, ObjectLock, ObjectStore, PageVisitor,
    PartWriter, PutOutcome, StoreError, StoreErrorKind, StoreProbe, StoreTraits, UnfinishedUpload,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
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
        let error = StoreError::new(self.kind, "spool", key.as_str(), store, self);
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
        let (file, part, dir) = (Arc::clone(&self.file), self.parts[index], self.dir.clone());
        run_blocking(move || {
            let mut bytes = vec![0; part.bytes];
            file.read_exact_at(&mut bytes, part.offset)
                .map_err(|error| SpoolError::io(&dir, "read", error))?;
            match WholeCrc::Crc64nvme.of(&bytes) == part.crc64 {
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

    /// Appends the next part.
    async fn append(&mut self, bytes: Bytes) -> Result<(), SpoolError> {
        let (file, offset, dir) = (Arc::clone(&self.file), self.bytes(), self.dir.clone());
        let part = run_blocking(move || {
            file.write_all_at(&bytes, offset)
                .map_err(|error| SpoolError::io(&dir, "write", error))?;
            Ok(SpooledPart {
                offset,
                bytes: bytes.len(),
                crc64: WholeCrc::Crc64nvme.of(&bytes),
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

#[async_trait]
impl PartWriter for SpoolWriter {
    fn upload_id(&self) -> Option<&str> {
        None
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        self.sizes.accept(part.len()).map_err(|text| {
            StoreError::new(
                StoreErrorKind::Invalid,
                "spool",
                self.key.as_str(),
                self.inner.url(),
                text,
            )
        })?;
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
            let text = "a part was interrupted and never reached the spool";
            return Err(StoreError::new(
                StoreErrorKind::Invalid,
                "put",
                self.key.as_str(),
                self.inner.url(),
                text,
            ));
        }
        self.inner.put_spooled(&self.key, &self.file).await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for Spool {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn known(&self) -> crate::model::KnownStore {
        self.inner.known()
    }

    fn traits(&self) -> &StoreTraits {
        self.inner.traits()
    }

    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        if self.inner.head(key).await?.is_some() {
            let text = "the key is taken";
            return Err(StoreError::new(
                StoreErrorKind::AlreadyExists,
                "spool",
                key.as_str(),
                self.url(),
                text,
            ));
        }
        let dir = self.dir.clone();
        let file = run_blocking(move || SpoolFile::create(&dir)).await;
        let file = file.map_err(|error| error.in_store(key, self.url()))?;
        let sizes = PartSizes::new(self.traits().part_bytes);
        Ok(Box::new(SpoolWriter {
            inner: Arc::clone(&self.inner),
            key: key.clone(),
            file,
            sizes,
        }))
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        self.inner.put_new(key, bytes).await
    }

    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        self.inner.get(key, range, limit_bytes).await
    }

    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        self.inner.get_into(key, range, buffer).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.inner.head(key).await
    }

    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        self.inner.any_version(key).await
    }

    async fn evidence_under(
        &self,
        prefix: &str,
    ) -> Result<Option<BTreeMap<String, Evidence>>, StoreError> {
        self.inner.evidence_under(prefix).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.inner.list(prefix).await
    }

    async fn visit(&self, prefix: &str, take: PageVisitor<'_>) -> Result<(), StoreError> {
        self.inner.visit(prefix, take).await
    }

    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.inner.unfinished(prefix).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.inner.abort_unfinished(upload).await
    }

    async fn probe(&self, prefix: &str) -> Result<Option<StoreProbe>, StoreError> {
        self.inner.probe(prefix).await
    }

    async fn bucket_facts(&self) -> Result<Option<BucketFacts>, StoreError> {
        self.inner.bucket_facts().await
    }

    async fn clock(&self) -> Result<Option<jiff::Timestamp>, StoreError> {
        self.inner.clock().await
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.inner.object_lock()
    }

    async fn extend_lock(&self, key: &ObjectKey, until: jiff::Timestamp) -> Result<(), StoreError> {
        self.inner.extend_lock(key, until).await
    }
}
