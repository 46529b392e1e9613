//! [`FakeZfs`]: ZFS in memory, for tests. The fake behaves like the kernel: guids, transaction
//! groups, holds and bookmarks follow the kernel's rules, sends are real and valid streams (always
//! the same for the same history), receives make the kernel's checks. Faults can be injected: into
//! the n-th call, into a stream after N bytes, into a verdict.
//!
//! The double does not simulate quotas and space (a test sets what is available), files in mounted
//! filesystems, the effect of delegations, and the cipher of encrypted datasets (a raw stream holds their bytes
//! in clear).

mod content;
mod encryption;
mod receive;
mod space;
mod state;
mod stream;

use super::call::ZfsCall;
use super::{
    Bookmark, Dataset, DatasetType, Delegation, Mount, Property, PropertyValue, ReceiveRequest,
    SendBase, SendRequest, SendResume, SendStream, Snapshot, ZfsError, ZfsHost, ZfsRead,
    ZfsReceive, ZfsSend, ZfsSnapshots,
};
use crate::model::{BookmarkName, DatasetName, Guid, SnapshotName};
use content::Content;
use jiff::Timestamp;
use receive::Incoming;
use state::State;
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stream::{
    FEATURE_COMPRESSED, FEATURE_EMBED_DATA, FEATURE_LARGE_BLOCKS, FEATURE_LZ4, FEATURE_RAW,
    FakeStream, IvSets, Written,
};

/// The initial clock, unless a test sets another: 2026-01-01 00:00 UTC.
const FIRST_SECOND: i64 = 1_767_225_600;

/// Pools in memory. Clones are handles to the same pools.
#[derive(Clone)]
pub struct FakeZfs {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    state: State,
    module_version: String,
    delegations: Vec<Delegation>,
    mounts: Vec<Mount>,
    calls: u64,
    failing: BTreeMap<u64, i32>,
    happening: BTreeMap<u64, Happening>,
    during_receive: Option<Happening>,
    send_fault: Option<SendFault>,
    is_read_only: bool,
}

/// A concurrent change to the pools by somebody else.
type Happening = Box<dyn FnOnce(&FakeZfs) + Send>;

/// The fault of one send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendFault {
    /// The reader ends after this many bytes, or with the stream if that is shorter.
    pub after_bytes: usize,
    /// The verdict's error number; 0 reports success although the stream was cut.
    pub errno: i32,
}

impl Default for FakeZfs {
    fn default() -> Self {
        Self::new()
    }
}

/// Operations with which a test changes the pools and injects faults.
impl FakeZfs {
    /// Rewinds the pools to the state at which `checkpoint` was copied, as an import with
    /// `--rewind-to-checkpoint` does: transaction groups count from there again, and the clock
    /// continues.
    pub fn rewind_to(&self, checkpoint: &Self) {
        let then = checkpoint.lock().state.copy();
        let state = &mut self.lock().state;
        let now = state.now;
        *state = then;
        state.now = now;
    }

    /// Makes a fake without pools.
    pub fn new() -> Self {
        let now = Timestamp::from_second(FIRST_SECOND).unwrap_or(Timestamp::UNIX_EPOCH);
        let shared = Shared {
            state: State::new(now),
            module_version: "2.3.2-1".to_owned(),
            delegations: Vec::new(),
            mounts: Vec::new(),
            calls: 0,
            failing: BTreeMap::new(),
            happening: BTreeMap::new(),
            during_receive: None,
            send_fault: None,
            is_read_only: false,
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    /// Copies all pools, as a cloned virtual machine has them: existing guids are equal, new ones
    /// differ from those of the original. Injected faults are not copied.
    #[must_use]
    pub fn copy_pools(&self) -> Self {
        let copy = Self::new();
        {
            let original = self.lock();
            let mut shared = copy.lock();
            shared.state = original.state.copy();
            shared.module_version.clone_from(&original.module_version);
        }
        copy
    }

    /// Makes a dataset and its missing ancestors, including the pool. An existing dataset stays as
    /// it is.
    pub fn create(&self, name: &DatasetName, dataset_type: DatasetType) {
        if let Some(parent) = name.parent() {
            self.create(&parent, DatasetType::Filesystem);
        }
        // The only remaining error is that the dataset exists.
        let _ = self.lock().state.create(name, dataset_type).map(drop);
    }

    /// Replaces a file of an existing dataset. Unchanged blocks of 4,096 bytes are not in the next
    /// incremental. No effect while the dataset is readonly, as on a mounted one.
    pub fn write_file(&self, dataset: &DatasetName, object: u64, bytes: &[u8]) {
        self.change(dataset, |content, txg| {
            content.write(object, bytes.to_vec(), txg)
        });
    }

    /// Makes a block of an existing file unreadable: a send of any snapshot that has the block, and
    /// must send it, ends with EIO before the block. A block that is written later is readable.
    pub fn damage_block(&self, dataset: &DatasetName, object: u64, offset: usize) {
        let state = &mut self.lock().state;
        let index = offset / content::BLOCK_BYTES;
        let found = state.get(dataset).ok();
        let file = found.and_then(|dataset| dataset.content.file(object));
        if let Some(birth) = file.and_then(|file| file.birth(index)) {
            state.damaged.insert((object, index, birth));
        }
    }

    /// Makes all blocks readable again, as when a device comes back.
    pub fn repair_blocks(&self) {
        self.lock().state.damaged.clear();
    }

    /// Removes a file of a dataset, if the file exists.
    pub fn remove_file(&self, dataset: &DatasetName, object: u64) {
        self.change(dataset, |content, txg| content.remove(object, txg));
    }

    fn change(&self, dataset: &DatasetName, change: impl FnOnce(&mut Content, u64)) {
        let mut shared = self.lock();
        let txg = shared.state.next_txg();
        if shared.state.is_readonly(dataset) {
            return;
        }
        if let Ok(dataset) = shared.state.get_mut(dataset) {
            change(&mut dataset.content, txg);
        }
    }

    /// Returns the files of a dataset; empty if the dataset does not exist.
    pub fn files(&self, dataset: &DatasetName) -> BTreeMap<u64, Vec<u8>> {
        self.lock()
            .state
            .get(dataset)
            .map(|dataset| dataset.content.to_files())
            .unwrap_or_default()
    }

    /// Returns the files of a snapshot, if the snapshot exists.
    pub fn snapshot_files(&self, snapshot: &SnapshotName) -> Option<BTreeMap<u64, Vec<u8>>> {
        self.lock()
            .state
            .snapshot(snapshot)
            .map(|snapshot| snapshot.content.to_files())
    }

    /// Returns the resume point of an interrupted receive into this dataset.
    pub fn receive_point(&self, dataset: &DatasetName) -> Option<SendResume> {
        self.lock()
            .state
            .get(dataset)
            .ok()?
            .partial
            .as_ref()
            .map(|partial| partial.point)
    }

    /// Makes a received OBJECT advance the resume point of an interrupted receive too, as OpenZFS
    /// does from 2.2.4 on. Earlier versions advance the point only for blocks.
    pub fn set_points_at_objects(&self) {
        self.lock().state.points_at_objects = true;
    }

    /// Sets a property of an existing dataset. Descendants inherit user properties.
    pub fn set_property(&self, dataset: &DatasetName, name: &str, value: PropertyValue) {
        if let Ok(found) = self.lock().state.get_mut(dataset) {
            let property = Property {
                value,
                source: Some(dataset.to_string()),
            };
            found.properties.insert(name.to_owned(), property);
        }
    }

    /// Marks an existing dataset as received from a redacted stream.
    pub fn set_redacted(&self, dataset: &DatasetName) {
        if let Ok(dataset) = self.lock().state.get_mut(dataset) {
            dataset.redacted = true;
        }
    }

    /// Gives all bookmarks of a dataset a redaction list, as `zfs redact` makes them.
    pub fn redact_bookmarks(&self, dataset: &DatasetName) {
        if let Ok(dataset) = self.lock().state.get_mut(dataset) {
            dataset
                .bookmarks
                .values_mut()
                .for_each(|bookmark| bookmark.redacted = true);
        }
    }

    /// Makes a dataset that shares a snapshot's files, as `zfs clone` does.
    ///
    /// # Errors
    /// [`ZfsError::Call`] when the snapshot does not exist or the name is taken.
    pub fn clone_snapshot(
        &self,
        snapshot: &SnapshotName,
        name: &DatasetName,
    ) -> Result<(), ZfsError> {
        let call = ZfsCall::new("clone", snapshot);
        let state = &mut self.lock().state;
        let content = state
            .snapshot(snapshot)
            .map(|snapshot| Content::clone(&snapshot.content));
        let content = content.ok_or_else(|| call.refused(libc::ENOENT))?;
        let made = state
            .create(name, DatasetType::Filesystem)
            .map_err(|errno| call.refused(errno))?;
        (made.content, made.origin) = (content, Some(snapshot.clone()));
        Ok(())
    }

    /// Renames a dataset; guids stay.
    pub fn rename(&self, from: &DatasetName, to: &DatasetName) {
        let state = &mut self.lock().state;
        if let Some(dataset) = state.datasets.remove(from.as_str()) {
            state.datasets.insert(to.to_string(), dataset);
        }
    }

    /// Imports all pools again, read-only or not.
    pub fn set_read_only(&self, is_read_only: bool) {
        self.lock().is_read_only = is_read_only;
    }

    /// Sets the clock that new snapshots and holds are stamped with.
    pub fn set_now(&self, now: Timestamp) {
        self.lock().state.now = now;
    }

    /// Sets the result of [`ZfsHost::module_version`].
    pub fn set_module_version(&self, version: &str) {
        version.clone_into(&mut self.lock().module_version);
    }

    /// Records a delegation of `zfs allow`. The fake never refuses a call for a missing permission.
    pub fn allow(&self, delegation: Delegation) {
        self.lock().delegations.push(delegation);
    }

    /// Adds a line to the table of mounts.
    pub fn add_mount(&self, mount: Mount) {
        self.lock().mounts.push(mount);
    }

    /// Returns the number of calls of the trait.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Makes the n-th call of the trait from now on (1 is the next) fail without effect.
    pub fn fail_call(&self, n: u64, errno: i32) {
        let mut shared = self.lock();
        let at = shared.calls + n;
        shared.failing.insert(at, errno);
    }

    /// Runs `what` just before the n-th call of the trait from now on (1 is the next).
    pub fn before_call(&self, n: u64, what: impl FnOnce(&Self) + Send + 'static) {
        let mut shared = self.lock();
        let at = shared.calls + n;
        shared.happening.insert(at, Box::new(what));
    }

    /// Runs `what` in the middle of the next receive, after the kernel has let it begin.
    pub fn during_next_receive(&self, what: impl FnOnce(&Self) + Send + 'static) {
        self.lock().during_receive = Some(Box::new(what));
    }

    /// Injects a fault into the next send.
    pub fn fail_next_send(&self, fault: SendFault) {
        self.lock().send_fault = Some(fault);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one call of the trait, and fails it if a fault was injected.
    fn call(&self, call: &ZfsCall) -> Result<MutexGuard<'_, Shared>, ZfsError> {
        let mut shared = self.lock();
        let next = shared.calls + 1;
        if let Some(happening) = shared.happening.remove(&next) {
            drop(shared);
            happening(self);
            shared = self.lock();
        }
        shared.calls += 1;
        let number = shared.calls;
        match shared.failing.remove(&number) {
            Some(errno) => Err(call.refused(errno)),
            None if shared.is_read_only && call.changes_a_pool() => Err(call.refused(libc::EROFS)),
            None => Ok(shared),
        }
    }
}

/// The bytes of one send. The snapshot cannot be destroyed while this value lives.
struct Sending {
    bytes: std::io::Cursor<Vec<u8>>,
    exhausted: Arc<AtomicBool>,
    _snapshot: Arc<Content>,
}

impl Read for Sending {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.bytes.read(buffer)?;
        if self.bytes.position() == self.bytes.get_ref().len() as u64 {
            self.exhausted.store(true, Ordering::Release);
        }
        Ok(read)
    }
}

/// Returns the stream of a request, and the content of the snapshot, which the send holds.
fn stream_of(state: &State, request: &SendRequest) -> Result<(Written, Arc<Content>), i32> {
    let base = state.base(request)?;
    let snapshot = state.snapshot(&request.snapshot).ok_or(libc::ENOENT)?;
    let dataset = state.get(request.snapshot.dataset())?;
    let raw = request.flags.raw && dataset.encrypted;
    if dataset.encrypted && dataset.key_unavailable && !raw {
        return Err(libc::EACCES);
    }
    let features = [
        (
            request.flags.compressed || request.flags.raw,
            FEATURE_COMPRESSED | FEATURE_LZ4,
        ),
        (
            request.flags.large_blocks || request.flags.raw,
            FEATURE_LARGE_BLOCKS,
        ),
        (raw, FEATURE_RAW),
        (
            (request.flags.embedded || request.flags.raw) && !raw,
            FEATURE_EMBED_DATA,
        ),
    ];
    let source = FakeStream {
        name: request.snapshot.to_string(),
        to_guid: snapshot.guid,
        from_guid: base.as_ref().map_or(0, |base| base.guid),
        from_txg: base.as_ref().map_or(0, |base| base.txg),
        created: snapshot.created,
        dataset_type: dataset.dataset_type,
        is_clone: base.as_ref().is_some_and(|base| base.is_of_origin),
        features: features
            .iter()
            .filter(|(on, _)| *on)
            .fold(0, |bits, (_, bit)| bits | bit),
        content: &snapshot.content,
        damaged: &state.damaged,
        resume: request.resume,
        ivsets: raw.then(|| IvSets {
            from: base.as_ref().map_or(0, |base| base.ivset_guid),
            to: state.ivset_guid(snapshot.guid),
        }),
    };
    let written = stream::write_stream(&source).ok_or(libc::ENOENT)?;
    Ok((written, Arc::clone(&snapshot.content)))
}

impl ZfsRead for FakeZfs {
    fn pool_guid(&self, pool: &str) -> Result<Guid, ZfsError> {
        let call = ZfsCall::new("read pool", pool);
        drop(self.call(&call)?);
        Ok(Guid(u64::from_le_bytes(
            *blake3::hash(pool.as_bytes())
                .as_bytes()
                .first_chunk()
                .unwrap_or(&[0; 8]),
        )))
    }

    fn dataset(&self, name: &DatasetName) -> Result<Option<Dataset>, ZfsError> {
        Ok(self
            .call(&ZfsCall::new("read", name))?
            .state
            .to_dataset(name)
            .ok())
    }

    fn children(&self, name: &DatasetName) -> Result<Vec<Dataset>, ZfsError> {
        let call = ZfsCall::new("list the children of", name);
        let state = &self.call(&call)?.state;
        let children = state.get(name).map(|_| state.children(name));
        children
            .and_then(|children| {
                children
                    .iter()
                    .map(|child| state.to_dataset(child))
                    .collect()
            })
            .map_err(|errno| call.refused(errno))
    }

    fn snapshots(&self, name: &DatasetName) -> Result<Vec<Snapshot>, ZfsError> {
        let call = ZfsCall::new("list the snapshots of", name);
        self.call(&call)?
            .state
            .to_snapshots(name)
            .map_err(|errno| call.refused(errno))
    }

    fn snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ZfsError> {
        let shared = self.call(&ZfsCall::new("read", name))?;
        let Ok(snapshots) = shared.state.to_snapshots(name.dataset()) else {
            return Ok(None);
        };
        Ok(snapshots
            .into_iter()
            .find(|snapshot| snapshot.name == *name))
    }

    fn bookmarks(&self, name: &DatasetName) -> Result<Vec<Bookmark>, ZfsError> {
        let call = ZfsCall::new("list the bookmarks of", name);
        self.call(&call)?
            .state
            .to_bookmarks(name)
            .map_err(|errno| call.refused(errno))
    }

    fn holds(&self, name: &SnapshotName) -> Result<BTreeMap<String, Timestamp>, ZfsError> {
        let call = ZfsCall::new("list the holds of", name);
        let shared = self.call(&call)?;
        let snapshot = shared
            .state
            .snapshot(name)
            .ok_or_else(|| call.refused(libc::ENOENT))?;
        Ok(snapshot.holds.clone())
    }
}

impl ZfsHost for FakeZfs {
    fn module_version(&self) -> Result<String, ZfsError> {
        Ok(self
            .call(&ZfsCall::new("read", "the module's version"))?
            .module_version
            .clone())
    }

    fn mounts(&self) -> Result<Vec<Mount>, ZfsError> {
        Ok(self
            .call(&ZfsCall::new("read", "the table of mounts"))?
            .mounts
            .clone())
    }

    fn delegations(&self, name: &DatasetName) -> Result<Vec<Delegation>, ZfsError> {
        let shared = self.call(&ZfsCall::new("read the permissions on", name))?;
        let is_above =
            |on: &DatasetName| name == on || name.as_str().starts_with(&format!("{on}/"));
        Ok(shared
            .delegations
            .iter()
            .filter(|given| is_above(&given.on))
            .cloned()
            .collect())
    }
}

impl ZfsSend for FakeZfs {
    fn send_space(&self, request: &SendRequest) -> Result<u64, ZfsError> {
        let call = ZfsCall::new("estimate the stream of", &request.snapshot);
        let state = &self.call(&call)?.state;
        let of_full = state.full_estimate_bytes.filter(|_| request.base.is_none());
        let estimate = of_full.or(state.estimate_bytes);
        let (stream, _) = stream_of(state, request).map_err(|errno| call.refused(errno))?;
        Ok(estimate.unwrap_or(stream.bytes.len() as u64))
    }

    fn send(&self, request: &SendRequest) -> Result<SendStream, ZfsError> {
        let call = ZfsCall::new("send", &request.snapshot);
        let mut shared = self.call(&call)?;
        let fault = shared.send_fault.take();
        let (Written { mut bytes, is_cut }, snapshot) = match stream_of(&shared.state, request) {
            Ok(found) => found,
            // As in the kernel: the reader ends at once, and the verdict has the error number.
            Err(errno) => {
                let verdict = move || Err(call.refused(errno));
                return Ok(SendStream::new(
                    Box::new(std::io::empty()),
                    Box::new(verdict),
                ));
            }
        };
        if let Some(fault) = fault {
            bytes.truncate(fault.after_bytes);
        }
        let exhausted = Arc::new(AtomicBool::new(bytes.is_empty()));
        let reader = Sending {
            bytes: std::io::Cursor::new(bytes),
            exhausted: Arc::clone(&exhausted),
            _snapshot: snapshot,
        };
        let verdict = move || match fault {
            _ if !exhausted.load(Ordering::Acquire) => Err(call.refused(libc::EINTR)),
            Some(fault) => call.verdict(fault.errno),
            None if is_cut => Err(call.refused(libc::EIO)),
            None => Ok(()),
        };
        Ok(SendStream::new(Box::new(reader), Box::new(verdict)))
    }
}

impl ZfsSnapshots for FakeZfs {
    fn sync_pool(&self, pool: &str) -> Result<(), ZfsError> {
        drop(self.call(&ZfsCall::new("sync", pool))?);
        Ok(())
    }

    fn take_snapshots(
        &self,
        names: &[SnapshotName],
        user_properties: &BTreeMap<String, String>,
    ) -> Result<(), ZfsError> {
        let call = ZfsCall::on_all("snapshot", names);
        self.call(&call)?
            .state
            .take_snapshots(names, user_properties)
            .map_err(|refused| match refused {
                Ok(failures) => call.refused_several(failures),
                Err(errno) => call.refused(errno),
            })
    }

    fn destroy_snapshots(&self, names: &[SnapshotName]) -> Result<(), ZfsError> {
        let call = ZfsCall::on_all("destroy", names);
        let failures = self.call(&call)?.state.destroy_snapshots(names);
        if failures.is_empty() {
            Ok(())
        } else {
            Err(call.refused_several(failures))
        }
    }

    fn hold(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError> {
        let call = ZfsCall::new("hold", name);
        self.call(&call)?
            .state
            .hold(name, tag)
            .map_err(|errno| call.refused(errno))
    }

    fn release(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError> {
        let mut shared = self.call(&ZfsCall::new("release the hold on", name))?;
        if let Some(snapshot) = shared.state.snapshot_mut(name) {
            snapshot.holds.remove(tag);
        }
        Ok(())
    }

    fn bookmark(&self, name: &BookmarkName, source: &SendBase) -> Result<(), ZfsError> {
        let call = ZfsCall::new("bookmark", name);
        self.call(&call)?
            .state
            .bookmark(name, source)
            .map_err(|errno| call.refused(errno))
    }

    fn destroy_bookmarks(&self, names: &[BookmarkName]) -> Result<(), ZfsError> {
        let mut shared = self.call(&ZfsCall::on_all("destroy", names))?;
        for name in names {
            if let Ok(dataset) = shared.state.get_mut(name.dataset()) {
                dataset.bookmarks.remove(name.short());
            }
        }
        Ok(())
    }
}

impl ZfsReceive for FakeZfs {
    fn receive(
        &self,
        request: &ReceiveRequest,
        stream: &mut (dyn Read + Send),
    ) -> Result<(), ZfsError> {
        drop(self.call(&ZfsCall::new("receive", &request.target))?);
        let mut incoming = Incoming::open(request, stream)?;
        let mut target = incoming.start(&mut self.lock().state)?;
        let happening = self.lock().during_receive.take();
        happening.into_iter().for_each(|happening| happening(self));
        let applied = incoming.apply(&mut target);
        incoming.finish(&mut self.lock().state, target, applied)
    }

    fn create_filesystem(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError> {
        let call = ZfsCall::new("create", name);
        let mut shared = self.call(&call)?;
        let made = shared
            .state
            .create(name, DatasetType::Filesystem)
            .map_err(|errno| call.refused(errno))?;
        for (key, value) in properties {
            let property = Property {
                value: value.clone(),
                source: Some(name.to_string()),
            };
            made.properties.insert(key.clone(), property);
        }
        Ok(())
    }

    fn destroy_dataset(&self, name: &DatasetName) -> Result<(), ZfsError> {
        let call = ZfsCall::new("destroy", name);
        self.call(&call)?
            .state
            .destroy(name)
            .map_err(|errno| call.refused(errno))
    }

    fn abort_receive(&self, name: &DatasetName) -> Result<(), ZfsError> {
        let call = ZfsCall::new("abandon the receive into", name);
        self.call(&call)?
            .state
            .abort_receive(name)
            .map_err(|errno| call.refused(errno))
    }

    fn set_properties(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError> {
        let call = ZfsCall::new("set properties of", name);
        let mut shared = self.call(&call)?;
        let dataset = shared
            .state
            .get_mut(name)
            .map_err(|errno| call.refused(errno))?;
        for (key, value) in properties {
            let property = Property {
                value: value.clone(),
                source: Some(name.to_string()),
            };
            dataset.properties.insert(key.clone(), property);
        }
        Ok(())
    }

    fn roll_back(&self, name: &DatasetName, snapshot: &SnapshotName) -> Result<(), ZfsError> {
        let call = ZfsCall::new("roll back to", snapshot);
        self.call(&call)?
            .state
            .roll_back(name, snapshot)
            .map_err(|errno| call.refused(errno))
    }

    fn inherit_property(&self, name: &DatasetName, property: &str) -> Result<(), ZfsError> {
        let call = ZfsCall::new("inherit", format_args!("{property} of {name}"));
        let mut shared = self.call(&call)?;
        let dataset = shared
            .state
            .get_mut(name)
            .map_err(|errno| call.refused(errno))?;
        dataset.properties.remove(property);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
