//! The traits of ZFS, by what a caller may do: [`ZfsRead`], [`ZfsHost`], [`ZfsSend`],
//! [`ZfsSnapshots`], [`ZfsReceive`], and [`Zfs`] for all of them.
//!
//! All operations block. Implementations may be called from several threads at once. A function
//! takes the weakest trait that it needs; `&dyn Zfs` coerces to each of the others.

use super::{
    Bookmark, Dataset, Delegation, Mount, PropertyValue, ReceiveRequest, SendBase, SendRequest,
    SendStream, Snapshot, ZfsError,
};
use crate::model::{BookmarkName, DatasetName, Guid, SnapshotName};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::io::Read;

/// All ZFS operations of this program.
pub trait Zfs: ZfsHost + ZfsSend + ZfsSnapshots + ZfsReceive {}

impl<Z: ZfsHost + ZfsSend + ZfsSnapshots + ZfsReceive> Zfs for Z {}

/// Reads pools, datasets, snapshots, bookmarks and holds. A function with a `&dyn ZfsRead` changes
/// nothing in a pool.
pub trait ZfsRead: Send + Sync {
    /// Returns the dataset with this name, or `None` if it does not exist. Every other failure is
    /// an error, never `None`.
    ///
    /// # Errors
    /// [`ZfsError`] when the dataset could not be read.
    fn dataset(&self, name: &DatasetName) -> Result<Option<Dataset>, ZfsError>;

    /// Returns the direct children, without hidden ones.
    ///
    /// # Errors
    /// [`ZfsError`] when the children could not be listed.
    fn children(&self, name: &DatasetName) -> Result<Vec<Dataset>, ZfsError>;

    /// Returns the snapshots of one dataset, oldest first by createtxg.
    ///
    /// # Errors
    /// [`ZfsError`] when the snapshots could not be listed.
    fn snapshots(&self, name: &DatasetName) -> Result<Vec<Snapshot>, ZfsError>;

    /// Returns the snapshot with this name, or `None` if it does not exist. Every other failure is
    /// an error, never `None`.
    ///
    /// # Errors
    /// [`ZfsError`] when the snapshot could not be read.
    fn snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ZfsError>;

    /// Returns the bookmarks of one dataset, oldest first by createtxg.
    ///
    /// # Errors
    /// [`ZfsError`] when the bookmarks could not be listed.
    fn bookmarks(&self, name: &DatasetName) -> Result<Vec<Bookmark>, ZfsError>;

    /// Returns the holds on a snapshot: tag and time.
    ///
    /// # Errors
    /// [`ZfsError`] when the holds could not be read.
    fn holds(&self, name: &SnapshotName) -> Result<BTreeMap<String, Timestamp>, ZfsError>;

    /// Returns the guid of an imported pool.
    ///
    /// # Errors
    /// [`ZfsError`] when there is no such pool or it cannot be read.
    fn pool_guid(&self, pool: &str) -> Result<Guid, ZfsError>;
}

/// Reads what belongs to this host and its kernel: mounts, the module and permissions.
pub trait ZfsHost: ZfsRead {
    /// Returns all mounts of this process, of every file system type.
    ///
    /// # Errors
    /// [`ZfsError`] when the table of mounts cannot be read.
    fn mounts(&self) -> Result<Vec<Mount>, ZfsError>;

    /// Returns the version of the kernel module, such as `2.3.2-1`.
    ///
    /// # Errors
    /// [`ZfsError`] when the version cannot be read.
    fn module_version(&self) -> Result<String, ZfsError>;

    /// Returns the permissions that `zfs allow` granted on this dataset and on its ancestors.
    ///
    /// # Errors
    /// [`ZfsError`] when the permissions cannot be read.
    fn delegations(&self, name: &DatasetName) -> Result<Vec<Delegation>, ZfsError>;
}

/// Sends snapshots. A send changes nothing in the pool.
pub trait ZfsSend: ZfsRead {
    /// Estimates the stream's size in bytes. The estimate is never exact.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn send_space(&self, request: &SendRequest) -> Result<u64, ZfsError>;

    /// Starts a send on a thread of its own.
    ///
    /// # Errors
    /// [`ZfsError`] when the send could not be started; [`SendStream::finish`] returns a later
    /// failure.
    fn send(&self, request: &SendRequest) -> Result<SendStream, ZfsError>;
}

/// Takes and destroys snapshots and bookmarks, and holds and releases snapshots.
pub trait ZfsSnapshots: ZfsRead {
    /// Waits until everything that was written to the pool before the call is in a transaction
    /// group on disk. Only that is counted by properties such as `written`.
    ///
    /// # Errors
    /// [`ZfsError::System`] when the kernel refuses, such as for a read-only pool.
    fn sync_pool(&self, pool: &str) -> Result<(), ZfsError>;

    /// Takes all snapshots in one transaction group, or none. All must be in one pool, and at most
    /// one per dataset. The user properties are set on each snapshot itself.
    ///
    /// # Errors
    /// [`ZfsError::Several`] names each refused snapshot.
    fn take_snapshots(
        &self,
        names: &[SnapshotName],
        user_properties: &BTreeMap<String, String>,
    ) -> Result<(), ZfsError>;

    /// Destroys snapshots of one pool; snapshots that do not exist are ignored. Do not rely on
    /// atomicity.
    ///
    /// # Errors
    /// [`ZfsError::Several`] names each snapshot that is held, being sent or cloned.
    fn destroy_snapshots(&self, names: &[SnapshotName]) -> Result<(), ZfsError>;

    /// Puts a persistent hold on a snapshot.
    ///
    /// # Errors
    /// [`ZfsError`]; EEXIST when the snapshot already has a hold with this tag.
    fn hold(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError>;

    /// Releases a hold; a hold that does not exist is ignored.
    ///
    /// # Errors
    /// [`ZfsError`] when the hold could not be released.
    fn release(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError>;

    /// Makes a bookmark of a snapshot or of another bookmark.
    ///
    /// # Errors
    /// [`ZfsError`]; EEXIST when the name is taken.
    fn bookmark(&self, name: &BookmarkName, source: &SendBase) -> Result<(), ZfsError>;

    /// Destroys bookmarks of one pool; bookmarks that do not exist are ignored.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn destroy_bookmarks(&self, names: &[BookmarkName]) -> Result<(), ZfsError>;
}

/// Receives streams, and changes the datasets around a receive.
pub trait ZfsReceive: ZfsRead {
    /// Receives a stream without mounting the dataset. Blocks until the stream is received
    /// completely or refused.
    ///
    /// # Errors
    /// [`ZfsError`]; errno 1040 when the stream was cut.
    fn receive(
        &self,
        request: &ReceiveRequest,
        stream: &mut (dyn Read + Send),
    ) -> Result<(), ZfsError>;

    /// Abandons an interrupted receive: destroys the hidden state of an existing dataset, or the
    /// whole of a new dataset.
    ///
    /// # Errors
    /// [`ZfsError`]; ENOENT when there is no such dataset or state.
    fn abort_receive(&self, name: &DatasetName) -> Result<(), ZfsError>;

    /// Rolls the dataset back to `snapshot`. The dataset must have no newer snapshot and no newer
    /// bookmark: a rollback destroys neither.
    ///
    /// # Errors
    /// [`ZfsError`]; EEXIST when there are newer snapshots or bookmarks, ESRCH when the snapshot is
    /// not the dataset's.
    fn roll_back(&self, name: &DatasetName, snapshot: &SnapshotName) -> Result<(), ZfsError>;

    /// Sets properties on the dataset itself, with native types, as `zfs set`. All are set or none,
    /// if the kernel supports that.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn set_properties(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError>;

    /// Removes a property that was set on the dataset itself, as `zfs inherit`. A property that is
    /// not set is ignored.
    ///
    /// # Errors
    /// [`ZfsError`].
    fn inherit_property(&self, name: &DatasetName, property: &str) -> Result<(), ZfsError>;

    /// Makes a filesystem without mounting it; `properties` have native types.
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
}
