//! Stores of objects, behind narrow traits: [`StoreRead`], [`StoreWrite`], [`StoreDelete`] and, for
//! all of them, [`ObjectStore`].
//!
//! Objects are written once. The traits demand only what S3, B2, a folder and memory can all do.
//! [`StoreTraits`] describes their differences, which are never guessed from a name.

use async_trait::async_trait;
use bytes::Bytes;
use std::path::PathBuf;

mod adapter;
mod answer;
pub mod b2;
pub mod dir;
mod folders;
mod hash;
mod identified;
pub mod key;
mod layer;
mod lock;
#[cfg(any(test, feature = "testing"))]
pub mod memory;
mod multipart;
mod names;
mod object_store;
mod pace;
mod pages;
mod parts;
mod patience;
mod patient;
pub mod probe;
mod proof;
pub mod rclone;
mod renew;
pub mod s3;
pub mod spool;
mod work;

pub use b2::{B2Credentials, B2Settings, B2Store};
pub use dir::DirStore;
pub use hash::ContentVerdict;
pub use identified::IdentifiedStore;
pub use key::ObjectKey;
pub use lock::{LockMode, ObjectLock};
#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryStore;
pub use object_store::{ObjectStore, PageVisitor, StoreDelete, StoreInfo, StoreRead, StoreWrite};
pub use pace::Limiter;
pub use patience::{Patience, PatienceClock};
pub use patient::PatientStore;
pub use probe::{BucketFacts, ProbeDoubt, StoreProbe};
pub use proof::ContentCheck;
pub use rclone::{RcloneSettings, RcloneStore};
pub use renew::Renew;
pub use s3::{
    CustomerKey, S3Checksum, S3Credentials, S3Encryption, S3EncryptionKind, S3Settings, S3Store,
};
pub use spool::{Spool, SpoolFile, SpooledStore};

/// The constant properties of a store.
#[derive(Debug, Clone)]
pub struct StoreTraits {
    /// The uniform size of all parts but the last, in bytes.
    pub part_bytes: usize,
    /// The number of parts that may be in flight at once.
    pub concurrency: usize,
    /// Whether the store itself can make a put create-only.
    pub conditional_put: bool,
    /// Whether a part may wait for later parts of its object before it is sent: in memory, as the
    /// first part does for native B2, or in a spool.
    pub holds_parts: bool,
}

/// The strength of the store's own evidence for an object's content, best first.
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
    /// The store reports only the size, which shows a cut object and no changed byte.
    SizeOnly,
    /// The file system's bytes themselves: only reading them is evidence.
    ReadBack,
    /// A tier that a later version recorded and this version does not know.
    #[serde(other)]
    Unknown,
}

/// The store's evidence for one object, which receipts keep and `verify-checksums` compares.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Evidence {
    /// The strength of the evidence.
    pub tier: EvidenceTier,
    /// The size of the object in bytes.
    #[serde(with = "crate::store::decimal")]
    pub bytes: u64,
    /// The checksum as the store writes it (base64 for S3 checksums, hexadecimal for ETags and
    /// SHA-1), if it keeps one.
    pub checksum: Option<String>,
    /// The ETag, without quotes.
    pub etag: Option<String>,
    /// The version id (S3) or file id (B2).
    pub version_id: Option<String>,
    /// The uniform part size, if the object was sent in parts: composite checksums depend on it.
    #[serde(with = "crate::store::decimal_or_null", default)]
    pub part_bytes: Option<u64>,
    /// The time until which the store refuses to delete the object, in RFC 3339.
    pub locked_until: Option<String>,
}

impl Evidence {
    /// Returns evidence of this size, without any identifier of the content.
    pub fn of_size(tier: EvidenceTier, bytes: u64) -> Self {
        Self {
            tier,
            bytes,
            checksum: None,
            etag: None,
            version_id: None,
            part_bytes: None,
            locked_until: None,
        }
    }
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// The object's key, below the store's prefix.
    pub key: String,
    /// The size of the object in bytes, as the store reports it.
    pub bytes: u64,
    /// The time of the last write, by the store's clock, if the store reports it.
    pub modified_at: Option<jiff::Timestamp>,
}

/// The result of a create-only put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object was created.
    Created,
    /// The object already existed with the same bytes.
    Identical,
}

/// An upload that was started and neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// The key of the object that the upload would create.
    pub key: String,
    /// The store's id of the upload.
    pub upload_id: String,
    /// The time at which the upload was started, if the store reports it.
    pub started_at: Option<jiff::Timestamp>,
}

/// The kind of a failure, on which callers branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// The object does not exist.
    NotFound,
    /// The bucket does not exist, or these credentials do not see it. The error says nothing about
    /// objects: none of them is known to be missing.
    NoBucket,
    /// The key is taken by other bytes.
    AlreadyExists,
    /// Credentials are missing, wrong, or lack the permission.
    Denied,
    /// The store asks to slow down.
    Throttled,
    /// A network failure, a time-out, or a 5xx that outlasted all retries: a later retry may
    /// succeed.
    Unavailable,
    /// No space is left, or a quota is reached.
    Full,
    /// The store has or reports other bytes than were sent.
    Corrupt,
    /// The store cannot do this.
    Unsupported,
    /// The configuration is wrong, or the request can never succeed.
    Invalid,
    /// A stop was requested while the request waited for the store to answer ([`Patience`]).
    Interrupted,
}

/// Whether a wait may help a failed request ([`Patience`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The store was not reached, did not answer, or could not serve any request.
    Helps,
    /// The store answered: only a change of the request or of the object helps.
    IsUseless,
    /// The request waited in vain, or was made after another one had waited in vain, or the store is
    /// gone. It is not repeated.
    IsOver,
}

/// A failure of a store. The text names the attempted operation and the object; the source has the
/// reason.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", place(subject, store))]
pub struct StoreError {
    /// The kind, on which callers branch.
    pub kind: StoreErrorKind,
    /// Whether a wait may help.
    pub wait: Wait,
    /// The attempted operation: "put", "upload part 3 of", "head", "list".
    pub operation: String,
    /// The key, or the prefix; empty for the store as a whole.
    pub subject: String,
    /// The store, as [`StoreInfo::url`] names it.
    pub store: String,
    /// The remedy, if there is one.
    pub hint: Option<String>,
    /// The reason, with the provider's request id if it sent one.
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
    /// Makes the error for a failure of `operation` on `subject` in the store named `store`,
    /// without a hint. A wait helps exactly if the kind is transient.
    pub fn new(
        kind: StoreErrorKind,
        operation: impl Into<String>,
        subject: impl Into<String>,
        store: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let wait = match is_transient(kind) {
            true => Wait::Helps,
            false => Wait::IsUseless,
        };
        Self {
            kind,
            wait,
            operation: operation.into(),
            subject: subject.into(),
            store: store.into(),
            hint: None,
            source: source.into(),
        }
    }

    /// Adds a hint to the failure.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the hint, if there is one.
    #[must_use]
    pub(crate) fn with_hint_of(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Notes whether the failure is an outage of the store, so that a wait helps.
    #[must_use]
    pub(crate) fn with_outage(mut self, is_outage: bool) -> Self {
        if !is_outage {
            self.wait = Wait::IsUseless;
        }
        self
    }

    /// Notes that the store is gone, so that no request is repeated.
    #[must_use]
    pub(crate) fn with_store_gone(mut self) -> Self {
        self.wait = Wait::IsOver;
        self
    }

    /// Whether a retry of the same request may succeed soon.
    pub fn is_transient(&self) -> bool {
        is_transient(self.kind) && self.wait != Wait::IsOver
    }
}

fn is_transient(kind: StoreErrorKind) -> bool {
    matches!(
        kind,
        StoreErrorKind::Throttled | StoreErrorKind::Unavailable
    )
}

/// The writer of a large object. Dropping it without [`PartWriter::finish`] leaves at most an
/// unfinished upload behind, never an object.
#[async_trait]
pub trait PartWriter: Send {
    /// Returns the store's id of this upload, if it has one.
    fn upload_id(&self) -> Option<&str>;

    /// Hands over the next part. All parts but the last must have exactly
    /// [`StoreTraits::part_bytes`]. Returns when the number of parts in flight allows another,
    /// which may be before the part is stored; a later call returns the failure of an earlier part.
    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError>;

    /// Waits for all parts, completes the object, reads the store's evidence for it and compares
    /// that with what was sent. `Ok` means confirmed by the store. On an error the upload is
    /// aborted (best effort).
    async fn finish(self: Box<Self>) -> Result<Evidence, StoreError>;

    /// Aborts the upload and removes its parts. No object remains.
    async fn abort(self: Box<Self>) -> Result<(), StoreError>;
}

/// The settings of a directory store.
#[derive(Debug, Clone)]
pub struct DirSettings {
    /// The folder; it must exist.
    pub root: PathBuf,
    /// The number of bytes that are written between two checks for failures; the directory store
    /// has no parts of its own.
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

/// As [`decimal`], for an optional value: null for `None`.
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
