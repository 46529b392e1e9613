//! Places that hold objects, behind one narrow trait: [`ObjectStore`].
//!
//! Objects are written once. A store is asked for nothing that S3, B2, a folder and memory cannot
//! all do; what they do differently is said by [`StoreTraits`], never guessed from a name.

use crate::model::KnownStore;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

mod answer;
pub mod b2;
mod checksum;
pub mod dir;
mod identified;
pub mod key;
pub mod memory;
mod pace;
mod pages;
mod parts;
pub mod probe;
pub mod proof;
pub mod rclone;
mod renew;
pub mod s3;
pub mod spool;
mod work;

pub use b2::{B2Credentials, B2Settings, B2Store};
pub use dir::DirStore;
pub use identified::IdentifiedStore;
pub use key::ObjectKey;
pub use memory::MemoryStore;
pub use pace::Limiter;
pub use probe::{BucketFacts, Doubt, LockMode, ObjectLock, StoreProbe};
pub use rclone::{RcloneSettings, RcloneStore};
pub use renew::Renew;
pub use s3::{S3Checksum, S3Credentials, S3Settings, S3Store};
pub use spool::{Spool, SpoolFile, SpooledStore};

/// What a store needs in order to take a large object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UploadNeeds {
    /// Parts as they come, the length unknown.
    Parts,
    /// The exact length before the first byte.
    ExactLength,
    /// The whole object, so that it can be read again: it is spooled first.
    Replay,
}

/// What is constant about a store.
#[derive(Debug, Clone)]
pub struct StoreTraits {
    /// What large objects need.
    pub needs: UploadNeeds,
    /// The uniform size of all parts but the last, in bytes.
    pub part_bytes: usize,
    /// How many parts may be under way at once.
    pub concurrency: usize,
    /// Whether a put can be made create-only by the store itself.
    pub conditional_put: bool,
}

/// How strong the store's own word for an object's content is, best first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum EvidenceTier {
    /// CRC64NVME over the whole object, computed by the store.
    Crc64nvmeFull,
    /// SHA-256 of the parts' SHA-256s, computed by the store.
    Sha256Composite,
    /// SHA-1 of the whole object, computed by the store.
    Sha1,
    /// CRC32C over the whole object, computed by the store.
    Crc32c,
    /// The MD5 ETag, by parts or whole.
    Md5Etag,
    /// An immutable version or file id, and the size.
    IdPin,
    /// The size alone.
    SizeOnly,
    /// The file system's bytes themselves: only reading them is evidence.
    ReadBack,
    /// A kind that a later version recorded and this one does not know.
    #[serde(other)]
    Unknown,
}

/// What the store says of one object: what receipts keep and `verify-checksums` compares.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Evidence {
    /// How strong it is.
    pub tier: EvidenceTier,
    /// The object's bytes.
    #[serde(with = "crate::store::decimal")]
    pub bytes: u64,
    /// The checksum as the store writes it (base64 for S3 checksums, hexadecimal for ETags and
    /// SHA-1), if it keeps one.
    pub checksum: Option<String>,
    /// The ETag, without quotes.
    pub etag: Option<String>,
    /// The version id (S3) or file id (B2).
    pub version_id: Option<String>,
    /// The uniform part size, when it was sent in parts: composite checksums depend on it.
    #[serde(with = "crate::store::decimal_or_null", default)]
    pub part_bytes: Option<u64>,
    /// Until when the store refuses to delete it, in RFC 3339.
    pub locked_until: Option<String>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key, below the store's prefix.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// When it was last written, by the store's clock, where the store says.
    pub modified_at: Option<jiff::Timestamp>,
}

/// What a create-only put did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is new.
    Created,
    /// It was there already with the same bytes.
    Identical,
}

/// An upload that was started and neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// The key that it would become.
    pub key: String,
    /// The store's id for it.
    pub upload_id: String,
    /// When it was started, where the store says.
    pub started_at: Option<jiff::Timestamp>,
}

/// The kind of a failure: what callers branch on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No such object or bucket.
    NotFound,
    /// The key is taken, by other bytes.
    AlreadyExists,
    /// Credentials missing, wrong, or without the permission.
    Denied,
    /// The store asks to slow down.
    Throttled,
    /// Network, time-out, or a 5xx that outlasted all tries: trying again later may work.
    Unavailable,
    /// No space left, or a quota.
    Full,
    /// What the store has or says is not what was sent.
    Corrupt,
    /// The store cannot do this.
    Unsupported,
    /// Wrong configuration, or a request that can never work.
    Invalid,
}

/// A failure of a store. The text says what was attempted on which object; the source says why.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", place(subject, store))]
pub struct StoreError {
    /// The kind.
    pub kind: StoreErrorKind,
    /// What was attempted: "put", "upload part 3 of", "head", "list".
    pub operation: String,
    /// The key, or the prefix; empty for the store as a whole.
    pub subject: String,
    /// The store, as [`ObjectStore::url`] names it.
    pub store: String,
    /// What a person can do, where there is something.
    pub hint: Option<String>,
    /// Why, with the provider's request id where it gave one.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

fn place(subject: &str, store: &str) -> String {
    if subject.is_empty() {
        store.to_owned()
    } else {
        format!("{subject} in {store}")
    }
}

impl StoreError {
    /// A failure of `operation` on `subject` in the store named `store`, without a hint.
    pub fn new(
        kind: StoreErrorKind,
        operation: impl Into<String>,
        subject: impl Into<String>,
        store: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            operation: operation.into(),
            subject: subject.into(),
            store: store.into(),
            hint: None,
            source: source.into(),
        }
    }

    /// The same failure with advice for a person.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the same request may work if it is made again.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Throttled | StoreErrorKind::Unavailable
        )
    }
}

/// A large object on its way into the store. Dropping it without [`PartWriter::finish`] leaves at
/// most an unfinished upload behind, never an object.
#[async_trait]
pub trait PartWriter: Send {
    /// The store's id of this upload, where it has one.
    fn upload_id(&self) -> Option<&str>;

    /// Hands over the next part. All parts but the last must have exactly
    /// [`StoreTraits::part_bytes`]. Returns when a place among the parts in flight is free, which
    /// may be before the part is stored; a failure of an earlier part is returned by a later call.
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError>;

    /// Waits for all parts, completes the object, asks the store what it has now and compares that
    /// with what was sent. `Ok` means confirmed by the store. On an error the upload is aborted
    /// (best effort).
    async fn finish(self: Box<Self>) -> Result<Evidence, StoreError>;

    /// Gives the upload up and removes its parts. No object remains.
    async fn abort(self: Box<Self>) -> Result<(), StoreError>;
}

/// Takes the pages of a listing.
pub type PageVisitor<'a> = &'a mut (dyn FnMut(Vec<ListedObject>) -> ControlFlow<()> + Send);

/// A store of objects. All keys are below the store's configured prefix; nothing outside it is
/// touched.
#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// The store for people: `s3:bucket/prefix`, `file:/dir`. Never has a secret in it.
    fn url(&self) -> &str;

    /// Returns the store's identity and URL; the identity names this host's state for the store. An
    /// adapter knows only the URL; [`IdentifiedStore`] knows the stored identity.
    fn known(&self) -> KnownStore {
        KnownStore::of_url(self.url())
    }

    /// What is constant about this store.
    fn traits(&self) -> &StoreTraits;

    /// Begins a large object. Create-only: an existing key fails here or in [`PartWriter::finish`].
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError>;

    /// Puts a small object whole, create-only, and confirms it. Identical bytes under the key are
    /// success; other bytes are [`StoreErrorKind::AlreadyExists`].
    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError>;

    /// Reads an object whole (`None`) or a range of it. A range must lie within the object, else
    /// [`StoreErrorKind::Corrupt`]: fewer bytes than asked are never returned. A whole read is
    /// refused above `limit_bytes` before it fills memory.
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError>;

    /// As [`ObjectStore::get`] of a range, into the memory of a buffer whose content is of no use
    /// any more: to give memory back and have it anew costs the system as much as the bytes do.
    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        drop(buffer);
        let limit_bytes = range.end.saturating_sub(range.start);
        Ok(self.get(key, Some(range), limit_bytes).await?.into())
    }

    /// What the store says of the object, or `None` when there is none. No other failure is ever
    /// `None`.
    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError>;

    /// Whether any version of this key exists, also one that a delete marker or a hide marker
    /// covers, or such a marker alone. A store without versions says what `head` says. Versions
    /// that it does not let us see are [`StoreErrorKind::Denied`], never "no".
    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        Ok(self.head(key).await?.is_some())
    }

    /// What [`ObjectStore::head`] would say of every object under `prefix`, by key, from listings
    /// alone; `None` where only asking for each object tells. A listing that says less than `head`
    /// must not be used here.
    async fn evidence_under(
        &self,
        prefix: &str,
    ) -> Result<Option<BTreeMap<String, Evidence>>, StoreError> {
        let _ = prefix;
        Ok(None)
    }

    /// All objects whose key begins with `prefix` (a string, not a folder; empty for all), in order
    /// of the key. The listing is whole, or it is an error.
    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError>;

    /// Gives all objects whose key begins with `prefix` to `take`, page by page and in no order,
    /// one perhaps twice: for a whole bucket, which may have more than memory holds. Ends early,
    /// without an error, when `take` breaks.
    async fn visit(&self, prefix: &str, take: PageVisitor<'_>) -> Result<(), StoreError> {
        let _ = take(self.list(prefix).await?);
        Ok(())
    }

    /// Whether the store is empty except for its identity, which is stored before anything else.
    async fn is_unused(&self) -> Result<bool, StoreError> {
        let mut unused = true;
        let mut look = |page: Vec<ListedObject>| {
            let is_identity = |object: &ListedObject| object.key.starts_with(key::STORE_ID);
            unused = page.iter().all(is_identity);
            if unused {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        self.visit("", &mut look).await?;
        Ok(unused)
    }

    /// Deletes one object, in all its versions where the store keeps versions. One that is gone is
    /// no error.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// Uploads that were begun under `prefix` and not ended.
    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError>;

    /// Removes an unfinished upload. One that is gone is no error.
    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError>;

    /// Finds out by trying what this store does, with small objects whose keys begin with `prefix`,
    /// and removes them again, also after an error. `None` where there is nothing to find out.
    async fn probe(&self, prefix: &str) -> Result<Option<StoreProbe>, StoreError> {
        let _ = prefix;
        Ok(None)
    }

    /// What the bucket says of itself; `None` where there is no bucket. Changes nothing.
    async fn bucket_facts(&self) -> Result<Option<BucketFacts>, StoreError> {
        Ok(None)
    }

    /// Returns the time by the store's own clock, which dates its objects. `None` when the store
    /// has no clock but this host's (a folder), or does not report it.
    async fn clock(&self) -> Result<Option<jiff::Timestamp>, StoreError> {
        Ok(None)
    }

    /// How long what is put is locked; `None`: not at all.
    fn object_lock(&self) -> Option<ObjectLock> {
        None
    }

    /// Locks an object at least until that time; a lock that lasts longer stays.
    /// [`StoreErrorKind::Unsupported`] where the store cannot.
    async fn extend_lock(&self, key: &ObjectKey, until: jiff::Timestamp) -> Result<(), StoreError> {
        let _ = until;
        let text = "this store has no object lock";
        Err(StoreError::new(
            StoreErrorKind::Unsupported,
            "extend the lock of",
            key.as_str(),
            self.url(),
            text,
        ))
    }
}

/// Where a directory store is.
#[derive(Debug, Clone)]
pub struct DirSettings {
    /// The folder; it must exist.
    pub root: PathBuf,
    /// How many bytes are written between two looks at failures; the directory store has no parts
    /// of its own.
    pub part_bytes: usize,
}

/// 64-bit numbers as decimal strings in JSON, because many readers lose bits above 2^53.
pub(crate) mod decimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let value: u64 = text
            .parse()
            .map_err(|_| D::Error::custom(format!("{text:?} is not a 64-bit number")))?;
        if value.to_string() != text {
            return Err(D::Error::custom(format!(
                "{text:?} is not a plain decimal number"
            )));
        }
        Ok(value)
    }
}

/// As [`decimal`], or null.
pub(crate) mod decimal_or_null {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Decimal(#[serde(with = "super::decimal")] u64);

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<u64>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::decimal::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<u64>, D::Error> {
        Ok(Option::<Decimal>::deserialize(deserializer)?.map(|decimal| decimal.0))
    }
}
