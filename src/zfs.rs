//! ZFS as the rest of the crate sees it: one blocking trait, [`Zfs`], with only what `run/` needs.
//! The real one ([`RealZfs`]) drives `libzfs_core`, opened at run time, and the read ioctls;
//! [`fake::FakeZfs`] keeps pools in memory.

use crate::model::{BookmarkName, DatasetName, Guid, SnapshotName};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::io::Read;

/// Filesystem or volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatasetType {
    /// A filesystem.
    Filesystem,
    /// A volume (zvol).
    Volume,
}

/// A property value as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyValue {
    /// Numbers and index properties.
    Number(u64),
    /// Strings and user properties.
    Text(String),
}

/// A property with where it was set: `None` for statistics, else a dataset name, `$recvd`, or empty
/// for a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// The value.
    pub value: PropertyValue,
    /// The dataset it was set on.
    pub source: Option<String>,
}

/// What one dataset is at the moment of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// Its name now; names change, guids do not.
    pub name: DatasetName,
    /// Its guid.
    pub guid: Guid,
    /// Filesystem or volume.
    pub dataset_type: DatasetType,
    /// Natively encrypted.
    pub encrypted: bool,
    /// Encrypted and the key is not loaded.
    pub key_unavailable: bool,
    /// The snapshot that a clone came from.
    pub origin: Option<SnapshotName>,
    /// In the middle of a receive.
    pub inconsistent: bool,
    /// It came from a redacted stream: some of its data was taken out.
    pub redacted: bool,
    /// All properties that are not at their default, user properties included.
    pub properties: BTreeMap<String, Property>,
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name now.
    pub name: SnapshotName,
    /// Its guid: the identity that incrementals are matched by.
    pub guid: Guid,
    /// The transaction group it was taken in: the order within a pool.
    pub createtxg: u64,
    /// When it was taken, in whole seconds.
    pub created_at: Timestamp,
    /// Bytes that it refers to.
    pub referenced_bytes: u64,
    /// Bytes that destroying it would free.
    pub used_bytes: u64,
    /// How many holds it has.
    pub holds: u64,
    /// How many datasets are clones of it, hidden ones of a receive included.
    pub clones: u64,
    /// It came from a redacted stream: some of its data was taken out.
    pub redacted: bool,
    /// User properties set on the snapshot itself, not inherited.
    pub user_properties: BTreeMap<String, String>,
}

/// One bookmark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookmark {
    /// Its name.
    pub name: BookmarkName,
    /// The guid of the snapshot that it marks.
    pub guid: Guid,
    /// That snapshot's transaction group.
    pub createtxg: u64,
    /// When that snapshot was taken.
    pub created_at: Timestamp,
    /// It has a redaction list (`zfs redact`): a stream from it fits only a copy that was redacted
    /// with that list.
    pub redacted: bool,
}

/// Where an incremental starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendBase {
    /// From a snapshot.
    Snapshot(SnapshotName),
    /// From a bookmark.
    Bookmark(BookmarkName),
}

/// The flags asked of `lzc_send`; constant within a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendFlags {
    /// `LZC_SEND_FLAG_RAW`: encrypted blocks leave as they lie on disk.
    pub raw: bool,
    /// `LZC_SEND_FLAG_COMPRESS`: compressed blocks leave as they lie on disk.
    pub compressed: bool,
    /// `LZC_SEND_FLAG_EMBED_DATA`.
    pub embedded: bool,
    /// `LZC_SEND_FLAG_LARGE_BLOCK`: always on in this tool, because resuming is only exact with it.
    pub large_blocks: bool,
}

/// Where a resumed send takes up: the last record that is known to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendResume {
    /// The object number of that record.
    pub object: u64,
    /// Its offset in bytes.
    pub offset: u64,
}

/// One send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendRequest {
    /// What is sent.
    pub snapshot: SnapshotName,
    /// The base of an incremental.
    pub base: Option<SendBase>,
    /// The flags.
    pub flags: SendFlags,
    /// Take up in the middle.
    pub resume: Option<SendResume>,
}

/// A send under way: bytes to read, then the verdict. End of file alone never means success.
pub struct SendStream {
    reader: Box<dyn Read + Send>,
    verdict: Box<dyn FnOnce() -> Result<(), ZfsError> + Send>,
}

impl SendStream {
    /// Joins a reader with the call that waits for the producer.
    pub fn new(
        reader: Box<dyn Read + Send>,
        verdict: Box<dyn FnOnce() -> Result<(), ZfsError> + Send>,
    ) -> Self {
        Self { reader, verdict }
    }

    /// The bytes, up to the end of file.
    pub fn reader(&mut self) -> &mut (dyn Read + Send) {
        &mut *self.reader
    }

    /// Closes the read end (which cancels a producer still running) and says how the producer
    /// ended. Blocks until it has.
    ///
    /// # Errors
    /// [`ZfsError`] when the producer failed.
    pub fn finish(self) -> Result<(), ZfsError> {
        drop(self.reader);
        (self.verdict)()
    }
}

/// One receive of a stream whose BEGIN record comes first from the reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveRequest {
    /// The snapshot that the stream becomes.
    pub target: SnapshotName,
    /// Roll the target back to the stream's base first, losing what came after.
    pub force: bool,
    /// Keep what was received when the stream is cut, so that it can go on.
    pub resumable: bool,
    /// The origin, when the stream is a clone's.
    pub origin: Option<SnapshotName>,
    /// Properties to set on the received dataset (as `zfs receive -o`); native types.
    pub properties: BTreeMap<String, PropertyValue>,
}

/// What ZFS refused, by kind and with its subject. `errno` is the kernel's, 1024 and above are
/// ZFS's own.
#[derive(Debug, thiserror::Error)]
pub enum ZfsError {
    /// The library cannot be opened here.
    #[error("open libzfs_core: {reason}")]
    Library {
        /// What is missing, in one sentence.
        reason: String,
        /// What to install, by distribution.
        hint: String,
    },
    /// `/dev/zfs` cannot be opened: no module, or no permission.
    #[error("open /dev/zfs")]
    Device {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The kernel module is of a series that this tool was never compiled with: its ioctls may have
    /// another layout.
    #[error(
        "open /dev/zfs: the ZFS kernel module is version {version}, and this tool knows {}",
        version::known_series()
    )]
    Version {
        /// The module's version.
        version: String,
        /// The module's series, which [`ALLOW_VARIABLE`] must name.
        series: String,
    },
    /// A call failed.
    #[error("{operation} {subject}")]
    Call {
        /// What was attempted: "snapshot", "send", "receive", "list snapshots of".
        operation: &'static str,
        /// The dataset, snapshot or bookmark.
        subject: String,
        /// Why.
        #[source]
        source: ZfsErrno,
    },
    /// Several subjects failed in one atomic call, so none was done.
    #[error("{operation}: {}", failures.iter().map(|(name, errno)| format!("{name}: {errno}")).collect::<Vec<_>>().join("; "))]
    Several {
        /// What was attempted.
        operation: &'static str,
        /// Each subject that failed, and why.
        failures: Vec<(String, ZfsErrno)>,
    },
    /// The operating system refused what a call needs: a pipe, a thread, a file of its own.
    #[error("{operation} {subject}")]
    System {
        /// What was attempted.
        operation: &'static str,
        /// The dataset, snapshot or bookmark.
        subject: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A receive failed because the stream given to it could not be read on: the fault lies there,
    /// not with ZFS.
    #[error("read the stream for {subject}")]
    Source {
        /// The snapshot that was being received.
        subject: String,
        /// The reader's error, as it gave it.
        #[source]
        source: std::io::Error,
    },
    /// The kernel gave something that this tool cannot make sense of.
    #[error("read {subject}: {reason}")]
    Malformed {
        /// What was read.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ZfsError {
    /// The error number, when one call failed.
    pub fn errno(&self) -> Option<ZfsErrno> {
        match self {
            Self::Call { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// An error number of the kernel or of ZFS, with its sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", errno::sentence(*.0))]
pub struct ZfsErrno(pub i32);

impl ZfsErrno {
    /// EEXIST: the name or tag is taken.
    pub const EXISTS: Self = Self(libc::EEXIST);
    /// EINTR: the call was interrupted, by a signal or because its reader went away.
    pub const INTERRUPTED: Self = Self(libc::EINTR);
}

/// ZFS, blocking. Implementations may be called from several threads at once.
pub trait Zfs: Send + Sync {
    /// The dataset of that name, or `None` when there is none. Every other failure is an error,
    /// never `None`.
    ///
    /// # Errors
    /// [`ZfsError`] when it could not be found out.
    fn dataset(&self, name: &DatasetName) -> Result<Option<Dataset>, ZfsError>;

    /// The direct children, hidden ones left out.
    ///
    /// # Errors
    /// [`ZfsError`] when they could not be listed.
    fn children(&self, name: &DatasetName) -> Result<Vec<Dataset>, ZfsError>;

    /// The snapshots of one dataset, oldest first by createtxg.
    ///
    /// # Errors
    /// [`ZfsError`] when they could not be listed.
    fn snapshots(&self, name: &DatasetName) -> Result<Vec<Snapshot>, ZfsError>;

    /// The snapshot of that name, or `None` when there is none. Every other failure is an error,
    /// never `None`.
    ///
    /// # Errors
    /// [`ZfsError`] when it could not be found out.
    fn snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ZfsError>;

    /// The bookmarks of one dataset, oldest first by createtxg.
    ///
    /// # Errors
    /// [`ZfsError`] when they could not be listed.
    fn bookmarks(&self, name: &DatasetName) -> Result<Vec<Bookmark>, ZfsError>;

    /// Takes all snapshots in one transaction group, or none. All must be of one pool, at most one
    /// a dataset. The user properties are set on each snapshot itself.
    ///
    /// # Errors
    /// [`ZfsError::Several`] names each that was refused.
    fn take_snapshots(
        &self,
        names: &[SnapshotName],
        user_properties: &BTreeMap<String, String>,
    ) -> Result<(), ZfsError>;

    /// Destroys snapshots of one pool; those that are already gone are no error. Not to be relied
    /// on as atomic.
    ///
    /// # Errors
    /// [`ZfsError::Several`] names each that is held, being sent or cloned.
    fn destroy_snapshots(&self, names: &[SnapshotName]) -> Result<(), ZfsError>;

    /// Puts a persistent hold on a snapshot.
    ///
    /// # Errors
    /// [`ZfsError`]; EEXIST when the tag is there already.
    fn hold(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError>;

    /// Puts a hold that ends with this process or when the guard is dropped.
    ///
    /// # Errors
    /// [`ZfsError`] as for [`Zfs::hold`].
    fn hold_until_dropped(&self, name: &SnapshotName, tag: &str) -> Result<HoldGuard, ZfsError>;

    /// Releases a hold; one that is gone is no error.
    ///
    /// # Errors
    /// [`ZfsError`] when it could not be released.
    fn release(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError>;

    /// The holds on a snapshot: tag and time.
    ///
    /// # Errors
    /// [`ZfsError`] when they could not be read.
    fn holds(&self, name: &SnapshotName) -> Result<BTreeMap<String, Timestamp>, ZfsError>;

    /// Makes a bookmark of a snapshot or of another bookmark.
    ///
    /// # Errors
    /// [`ZfsError`]; EEXIST when the name is taken.
    fn bookmark(&self, name: &BookmarkName, source: &SendBase) -> Result<(), ZfsError>;

    /// Destroys bookmarks of one pool; those that are already gone are no error.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn destroy_bookmarks(&self, names: &[BookmarkName]) -> Result<(), ZfsError>;

    /// An estimate of the stream's bytes. Never exact.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn send_space(&self, request: &SendRequest) -> Result<u64, ZfsError>;

    /// Starts a send on a thread of its own.
    ///
    /// # Errors
    /// [`ZfsError`] when it could not be started; a failure after that comes from
    /// [`SendStream::finish`].
    fn send(&self, request: &SendRequest) -> Result<SendStream, ZfsError>;

    /// Receives a stream, unmounted. Blocks until it is received whole or refused.
    ///
    /// # Errors
    /// [`ZfsError`]; errno 1040 when the stream was cut.
    fn receive(
        &self,
        request: &ReceiveRequest,
        stream: &mut (dyn Read + Send),
    ) -> Result<(), ZfsError>;

    /// Gives up a receive that was cut: the hidden state of a dataset that was there before, or a
    /// new dataset as a whole.
    ///
    /// # Errors
    /// [`ZfsError`]; ENOENT when there is no such dataset or state.
    fn abort_receive(&self, name: &DatasetName) -> Result<(), ZfsError>;

    /// Sets properties on the dataset itself, in native types, as `zfs set`: all or none where the
    /// kernel can.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn set_properties(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError>;

    /// Undoes what was changed since `snapshot`, which must be the newest of the dataset and older
    /// than its bookmarks are: nothing else is destroyed.
    ///
    /// # Errors
    /// [`ZfsError`]; EEXIST when there are newer snapshots or bookmarks, ESRCH when it is not the
    /// dataset's.
    fn roll_back(&self, name: &DatasetName, snapshot: &SnapshotName) -> Result<(), ZfsError>;

    /// Takes away a property that was set on the dataset itself, as `zfs inherit`; one that is not
    /// set is no error.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn inherit_property(&self, name: &DatasetName, property: &str) -> Result<(), ZfsError>;

    /// Makes a filesystem that is not mounted; `properties` in native types.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn create_filesystem(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError>;

    /// Destroys one dataset that has no children and no snapshots.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn destroy_dataset(&self, name: &DatasetName) -> Result<(), ZfsError>;

    /// The guid of an imported pool.
    ///
    /// # Errors
    /// [`ZfsError`] when there is no such pool or it cannot be read.
    fn pool_guid(&self, pool: &str) -> Result<Guid, ZfsError>;

    /// Everything that is mounted for this process, of whatever file system.
    ///
    /// # Errors
    /// [`ZfsError`] when it cannot be read.
    fn mounts(&self) -> Result<Vec<Mount>, ZfsError>;

    /// The version of the kernel module, such as `2.3.2-1`.
    ///
    /// # Errors
    /// [`ZfsError`] when it cannot be read.
    fn module_version(&self) -> Result<String, ZfsError>;

    /// What `zfs allow` gave away on this dataset and on those above it.
    ///
    /// # Errors
    /// [`ZfsError`] when it cannot be read.
    fn delegations(&self, name: &DatasetName) -> Result<Vec<Delegation>, ZfsError>;
}

/// A hold that ends when this is dropped, or with the process.
pub struct HoldGuard {
    _keep: Box<dyn Send>,
}

impl HoldGuard {
    /// Keeps `resource` (an open descriptor, in the real implementation) for as long as the hold
    /// shall last.
    pub fn new(resource: Box<dyn Send>) -> Self {
        Self { _keep: resource }
    }
}

mod attempt;
mod core;
mod delegation;
mod errno;
pub mod fake;
mod list;
mod mount;
mod nvlist;
mod real;
mod receive;
pub mod recorded;
mod send;
#[rustfmt::skip]
mod sys;
mod token;
mod version;

use attempt::Attempt;

pub use core::is_clock_synchronised;
pub use delegation::{Delegation, Who};
pub use errno::{STREAM_TRUNCATED, UNKNOWN_FEATURE};
pub use mount::{Mount, mounts};
pub use real::RealZfs;
pub use send::enlarge_pipe;
pub use token::{RESUME_TOKEN_PROPERTY, ResumeToken};
pub use version::{ALLOW_VARIABLE, MODULE_VERSION, is_known as is_known_version, known_series};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use {list::read_kernel_list, token::token_of_list};
