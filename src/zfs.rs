//! ZFS for the rest of the crate: blocking traits, from [`ZfsRead`] to [`Zfs`], with only the
//! operations that `run/` needs. [`RealZfs`] drives `libzfs_core`, opened at run time, and the read ioctls;
//! [`fake::FakeZfs`] keeps pools in memory.

use crate::model::{BookmarkName, DatasetName, Guid, SnapshotName, serialize_as_text};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

/// Filesystem or volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatasetType {
    /// A filesystem.
    Filesystem,
    /// A volume (zvol).
    Volume,
}

/// A property value in the kernel's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PropertyValue {
    /// The value of a number or index property.
    Number(u64),
    /// The value of a string or user property.
    Text(String),
}

/// A property with its source: `None` for statistics, else the dataset it was set on, `$recvd`, or
/// empty for a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// The value.
    pub value: PropertyValue,
    /// The source of the value.
    pub source: Option<String>,
}

/// The state of one dataset when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The dataset's current name; names change, guids do not.
    pub name: DatasetName,
    /// The dataset's guid.
    pub guid: Guid,
    /// Filesystem or volume.
    pub dataset_type: DatasetType,
    /// Whether the dataset is natively encrypted.
    pub encrypted: bool,
    /// Whether the dataset is encrypted and its key is not loaded.
    pub key_unavailable: bool,
    /// The origin snapshot of a clone.
    pub origin: Option<SnapshotName>,
    /// Whether the dataset is in the middle of a receive.
    pub inconsistent: bool,
    /// Whether the dataset came from a redacted stream, so that some of its data was removed.
    pub redacted: bool,
    /// All properties that are not at their default, including user properties.
    pub properties: BTreeMap<String, Property>,
}

impl Dataset {
    /// Returns the value of a number property, or `None` when ZFS does not report it.
    pub fn number(&self, property: &str) -> Option<u64> {
        match self.properties.get(property)?.value {
            PropertyValue::Number(number) => Some(number),
            PropertyValue::Text(_) => None,
        }
    }
}

/// The state of one snapshot when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The snapshot's current name.
    pub name: SnapshotName,
    /// The snapshot's guid, by which incrementals are matched.
    pub guid: Guid,
    /// The transaction group in which the snapshot was taken: the order within a pool.
    pub createtxg: u64,
    /// The time at which the snapshot was taken, in whole seconds.
    pub created_at: Timestamp,
    /// Bytes that the snapshot refers to.
    pub referenced_bytes: u64,
    /// Bytes that destroying the snapshot would free.
    pub used_bytes: u64,
    /// The number of holds on the snapshot.
    pub holds: u64,
    /// The number of clones of the snapshot, including hidden datasets of a receive.
    pub clones: u64,
    /// Whether the snapshot came from a redacted stream, so that some of its data was removed.
    pub redacted: bool,
    /// User properties set on the snapshot itself; inherited ones are not included.
    pub user_properties: BTreeMap<String, String>,
}

/// The state of one bookmark when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bookmark {
    /// The bookmark's name.
    pub name: BookmarkName,
    /// The guid of the bookmarked snapshot.
    pub guid: Guid,
    /// The transaction group of the bookmarked snapshot.
    pub createtxg: u64,
    /// The time at which the bookmarked snapshot was taken.
    pub created_at: Timestamp,
    /// Whether the bookmark has a redaction list (`zfs redact`). A stream from such a bookmark fits
    /// only a copy that was redacted with that list.
    pub redacted: bool,
    /// The guid of the IV set, without which ZFS does not receive a raw incremental from the
    /// bookmark: 0 if the bookmark has none, as those of unencrypted datasets and some that OpenZFS
    /// up to 2.1.5 made. `None` when ZFS does not report it.
    pub ivset_guid: Option<u64>,
}

/// The base of an incremental.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendBase {
    /// A snapshot.
    Snapshot(SnapshotName),
    /// A bookmark.
    Bookmark(BookmarkName),
}

serialize_as_text!(SendBase);

impl fmt::Display for SendBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(name) => write!(f, "@{}", name.short()),
            Self::Bookmark(name) => write!(f, "#{}", name.short()),
        }
    }
}

/// The flags for `lzc_send`; constant within a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SendFlags {
    /// `LZC_SEND_FLAG_RAW`: encrypted blocks are sent as they lie on disk.
    pub raw: bool,
    /// `LZC_SEND_FLAG_COMPRESS`: compressed blocks are sent as they lie on disk.
    pub compressed: bool,
    /// `LZC_SEND_FLAG_EMBED_DATA`.
    pub embedded: bool,
    /// `LZC_SEND_FLAG_LARGE_BLOCK`: always set by this tool, because resuming is only exact with
    /// it.
    pub large_blocks: bool,
}

/// The point from which a send is resumed: the last record that is known to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendResume {
    /// The object number of the record.
    pub object: u64,
    /// The record's offset in bytes.
    pub offset: u64,
}

/// The parameters of one send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendRequest {
    /// The snapshot to send.
    pub snapshot: SnapshotName,
    /// The base of an incremental.
    pub base: Option<SendBase>,
    /// The flags.
    pub flags: SendFlags,
    /// The point to resume from, or `None` to send from the start.
    pub resume: Option<SendResume>,
}

/// A running send: bytes to read, then the verdict. End of file alone never means success.
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

    /// Returns the reader of the stream's bytes, which ends with end of file.
    pub fn reader(&mut self) -> &mut (dyn Read + Send) {
        &mut *self.reader
    }

    /// Closes the read end, which cancels a running producer, and returns the producer's result.
    /// Blocks until the producer has ended.
    ///
    /// # Errors
    /// [`ZfsError`] when the producer failed.
    pub fn finish(self) -> Result<(), ZfsError> {
        drop(self.reader);
        (self.verdict)()
    }
}

/// The parameters of one receive. The reader yields the BEGIN record first. A receive never rolls
/// its target back: a target that changed after the stream's base is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiveRequest {
    /// The snapshot that the receive creates.
    pub target: SnapshotName,
    /// Whether to keep the received data of an interrupted stream, so that the receive can be
    /// resumed.
    pub resumable: bool,
    /// Properties to set on the received dataset (as `zfs receive -o`), with native types.
    pub properties: BTreeMap<String, PropertyValue>,
}

/// A refusal by ZFS, by kind and with its subject. `errno` is the kernel's; numbers from 1024 are
/// ZFS's own.
#[derive(Debug, thiserror::Error)]
pub enum ZfsError {
    /// The library cannot be opened on this host.
    #[error("open libzfs_core: {reason}")]
    Library {
        /// The missing part, in one sentence.
        reason: String,
        /// The packages to install, by distribution.
        hint: String,
    },
    /// `/dev/zfs` cannot be opened: the module is not loaded, or the permission is missing.
    #[error("open /dev/zfs")]
    Device {
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The kernel module is of a series that this tool was never compiled with, so its ioctls may
    /// have another layout.
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
        /// The attempted operation: "snapshot", "send", "receive", "list snapshots of".
        operation: &'static str,
        /// The dataset, snapshot or bookmark.
        subject: String,
        /// The error number.
        #[source]
        source: ZfsErrno,
    },
    /// Several subjects failed in one atomic call, so the call had no effect.
    #[error("{operation}: {}", failures.iter().map(|(name, errno)| format!("{name}: {errno}")).collect::<Vec<_>>().join("; "))]
    Several {
        /// The attempted operation.
        operation: &'static str,
        /// Each failed subject with its error number.
        failures: Vec<(String, ZfsErrno)>,
    },
    /// The operating system refused a resource that a call needs: a pipe, a thread, a file.
    #[error("{operation} {subject}")]
    System {
        /// The attempted operation.
        operation: &'static str,
        /// The dataset, snapshot or bookmark.
        subject: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// A receive failed because its stream could not be read: the fault lies in the source of the
    /// stream and not in ZFS.
    #[error("read the stream for {subject}")]
    Source {
        /// The target of the receive.
        subject: String,
        /// The reader's error, unchanged.
        #[source]
        source: std::io::Error,
    },
    /// The kernel returned data that this tool cannot interpret.
    #[error("read {subject}: {reason}")]
    Malformed {
        /// The subject of the data.
        subject: String,
        /// The fault in the data.
        reason: String,
    },
}

impl ZfsError {
    /// Returns the error number, if this is the failure of a single call.
    pub fn errno(&self) -> Option<ZfsErrno> {
        match self {
            Self::Call { source, .. } => Some(*source),
            _ => None,
        }
    }
}

/// An error number of the kernel or of ZFS, displayed as a sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", errno::sentence(*.0))]
pub struct ZfsErrno(pub i32);

impl ZfsErrno {
    /// EEXIST: the name or tag is taken.
    pub const EXISTS: Self = Self(libc::EEXIST);
    /// EROFS: the pool was imported read-only.
    pub const READ_ONLY: Self = Self(libc::EROFS);
    /// EINTR: the call was interrupted, by a signal or because its reader closed the pipe.
    pub const INTERRUPTED: Self = Self(libc::EINTR);

    /// Returns whether a block of the pool could not be read (EIO), or its checksum does not match
    /// (ECKSUM).
    pub fn is_read_error(self) -> bool {
        matches!(self.0, libc::EIO | libc::EBADE)
    }
}

mod call;
mod core;
mod delegation;
mod errno;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
mod list;
mod mount;
mod nvlist;
mod operations;
mod outcome;
mod real;
mod receive;
#[cfg(any(test, feature = "testing"))]
pub mod recorded;
mod send;
#[rustfmt::skip]
mod sys;
mod token;
mod version;

use call::ZfsCall;

pub use core::is_clock_synchronised;
pub use delegation::{Delegation, Who};
pub use errno::{STREAM_TRUNCATED, UNKNOWN_FEATURE};
pub use mount::{Mount, mounts};
pub use operations::{Zfs, ZfsHost, ZfsRead, ZfsReceive, ZfsSend, ZfsSnapshots};
pub use real::RealZfs;
pub use send::enlarge_pipe;
pub use token::{RESUME_TOKEN_PROPERTY, ResumeToken};
pub use version::{
    ALLOW_VARIABLE, MODULE_VERSION, is_known as is_known_version, is_older as is_older_version,
    known_series,
};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use {list::read_kernel_list, token::token_of_list};
