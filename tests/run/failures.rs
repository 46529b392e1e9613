//! Every call fails once, before its effect and after it; sends are cut, lie and flip. What follows
//! is a whole backup or none, and the next run on a healed host succeeds.

use crate::world::{World, never, quick_keys};
use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use zfs_backup::model::{BookmarkName, DatasetName, Guid, SnapshotName};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupRun, back_up};
use zfs_backup::run::restore::RestorePoint;
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::store::StoreErrorKind;
use zfs_backup::store::memory::{Fault, Operation, Outcome};
use zfs_backup::zfs::fake::{FakeZfs, SendFault};
use zfs_backup::zfs::{
    Bookmark, Dataset, Delegation, Mount, PropertyValue, ReceiveRequest, SendBase, SendRequest,
    SendStream, Snapshot, ZfsError, ZfsHost, ZfsRead, ZfsReceive, ZfsSend, ZfsSnapshots,
};

pub(crate) const EIO: i32 = 5;

/// What must hold after a run that something went wrong in; `Err` names what does not.
async fn assert_whole_or_none(world: &World, outcome: Result<BackupRun, RunError>) {
    world.store.heal();
    world.assert_pins_are_known();
    match outcome {
        Ok(outcome) => {
            drop(crate::world::committed(outcome));
            // What could not be released then is released now.
            world.try_back_up().await.unwrap();
        }
        Err(error) => {
            let text = error_chain(&error);
            assert!(
                text.contains("tank") || text.contains("the module's version"),
                "names nothing: {text}"
            );
            assert_eq!(
                world.manifest_keys(),
                [""; 0],
                "a failed run left a manifest: {text}"
            );
            assert!(world.catalog().await.backups.is_empty());
            let refusal = world
                .find(&RestorePoint::Newest)
                .await
                .err()
                .unwrap()
                .to_string();
            assert!(refusal.contains("there is no"), "{refusal}");
            world.back_up().await;
        }
    }
    world.assert_no_holds();
    assert_eq!(world.catalog().await.backups.len(), 1);
    world.assert_restores().await;
    assert_eq!(world.verify().await.damage, []);
}

/// Runs all cases, some at once, because a run that makes chunks again sleeps. Panics name the
/// case.
pub(crate) async fn for_all<C, F>(cases: Vec<C>, run: impl Fn(C) -> F)
where
    C: std::fmt::Debug,
    F: Future<Output = ()> + Send + 'static,
{
    let (room, mut running, mut names) = (
        Arc::new(Semaphore::new(100)),
        JoinSet::new(),
        BTreeMap::new(),
    );
    for case in cases {
        let (name, room) = (format!("{case:?}"), Arc::clone(&room));
        let work = run(case);
        let handle = running.spawn(async move {
            let _place = room.acquire().await.unwrap();
            work.await;
        });
        names.insert(handle.id().to_string(), name);
    }
    let mut failed = Vec::new();
    while let Some(joined) = running.join_next().await {
        if let Err(error) = joined {
            let id = error.id().to_string();
            let panic = error.into_panic();
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            failed.push(format!("{}: {text}", names[&id]));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of the cases failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_failed_store_call_leaves_a_complete_backup_or_none() {
    let (keys, writer) = quick_keys();
    let clean = World::with_keys(keys.clone(), writer.clone());
    clean.back_up().await;
    let kinds = [
        StoreErrorKind::Unavailable,
        StoreErrorKind::Corrupt,
        StoreErrorKind::Denied,
        StoreErrorKind::NotFound,
        StoreErrorKind::Full,
    ];
    let calls = 1..=clean.store.events().len();
    assert!(calls.clone().count() > 40);
    let faults = calls
        .flat_map(|n| kinds.map(|kind| [Fault::before(kind).nth(n), Fault::after(kind).nth(n)]));
    for_all(faults.flatten().collect(), |fault| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            world.store.fail(fault);
            let outcome = world.try_back_up().await;
            assert_whole_or_none(&world, outcome).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_whose_reply_was_lost_is_a_committed_backup() {
    for kind in [StoreErrorKind::Unavailable, StoreErrorKind::Denied] {
        let world = World::new();
        world.store.fail(
            Fault::after(kind)
                .of(Operation::PutNew)
                .on("manifest.json")
                .nth(2),
        );
        world.back_up().await;
        world.assert_restores().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn temporary_failure_of_a_small_object_does_not_abort_the_upload() {
    let (keys, writer) = quick_keys();
    let objects = [
        "started.json",
        "keyring.age",
        "RESTORE.txt",
        "private.age",
        "chunks-0000.json",
        "receipt.json",
    ];
    let faults = objects.into_iter().flat_map(|object| {
        let of = |fault: Fault| fault.of(Operation::PutNew).on(object);
        [
            of(Fault::before(StoreErrorKind::Throttled)),
            of(Fault::after(StoreErrorKind::Unavailable)),
        ]
    });
    for_all(faults.collect(), |fault| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            world.store.fail(fault);
            world.back_up().await;
            world.assert_restores().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_that_are_confirmed_are_not_sent_again() {
    let world = World::new();
    for n in [9, 17] {
        world.store.fail(
            Fault::before(StoreErrorKind::Unavailable)
                .of(Operation::PutPart)
                .nth(n),
        );
    }
    let backup = world.back_up().await;
    for chunk in world.chunks(&backup.manifest).await {
        let of_index = |key: &str| key.contains(&format!("/{:08}-", chunk.index));
        let finished = world.store.events().into_iter().filter(|event| {
            event.operation == Operation::Finish
                && event.outcome == Outcome::Done
                && of_index(&event.key)
        });
        assert_eq!(finished.count(), 1, "chunk {}", chunk.index);
    }
    world.assert_restores().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permanent_store_failure_is_reported_with_the_chunk_name() {
    let (keys, writer) = quick_keys();
    let operations = [Operation::Create, Operation::PutPart, Operation::Finish];
    for_all(operations.to_vec(), |operation| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            world.store.fail(
                Fault::before(StoreErrorKind::Unavailable)
                    .of(operation)
                    .nth(2)
                    .forever(),
            );
            let outcome = world.try_back_up().await;
            let text = error_chain(outcome.as_ref().unwrap_err());
            assert!(text.contains(".zfs.age"), "{text}");
            assert_whole_or_none(&world, outcome).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_failed_zfs_call_leaves_a_complete_backup_or_none() {
    let (keys, writer) = quick_keys();
    let clean = World::with_keys(keys.clone(), writer.clone());
    let (env, selected, before) = (clean.env(), clean.selected(), clean.zfs.calls());
    back_up(&env, &selected, RequestedKind::Full).await.unwrap();
    let calls = 1..=clean.zfs.calls() - before;
    assert!(calls.clone().count() >= 6);
    for_all(calls.collect(), |n| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let (env, selected) = (world.env(), world.selected());
            world.zfs.fail_call(n, EIO);
            let outcome = back_up(&env, &selected, RequestedKind::Full).await;
            assert_whole_or_none(&world, outcome).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_send_that_is_cut_or_fails_at_its_end_is_never_a_backup() {
    let (keys, writer) = quick_keys();
    let whole = World::with_keys(keys.clone(), writer.clone())
        .stream()
        .len();
    let split = 64 * 1024;
    let cuts = [
        0,
        1,
        311,
        312,
        5000,
        split - 1,
        split,
        split + 1,
        2 * split,
        whole - 313,
        whole - 312,
        whole - 1,
    ];
    let faults = cuts
        .into_iter()
        .flat_map(|at| [(at, 0), (at, EIO)])
        .chain([(whole, EIO), (whole + 9, EIO)]);
    for_all(faults.collect(), |(after_bytes, errno)| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            world.zfs.fail_next_send(SendFault { after_bytes, errno });
            let outcome = world.try_back_up().await;
            let text = error_chain(outcome.as_ref().unwrap_err());
            assert!(text.contains("tank/a b@"), "{text}");
            assert_whole_or_none(&world, outcome).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_the_stream_is_never_a_backup() {
    let (keys, writer) = quick_keys();
    let whole = World::with_keys(keys.clone(), writer.clone())
        .stream()
        .len();
    // All of the first record and the last two, and places between.
    let places = (0..312)
        .step_by(24)
        .chain((312..whole - 624).step_by(whole / 30))
        .chain((whole - 624..whole).step_by(8));
    for_all(places.collect(), |at| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let env = world.env_with(Arc::new(flipped(&world.zfs, at)), never());
            let outcome = back_up(&env, &world.selected(), RequestedKind::Full).await;
            let text = error_chain(outcome.as_ref().unwrap_err());
            assert!(text.contains("tank/a b@"), "{text}");
            assert_whole_or_none(&world, outcome).await;
        }
    })
    .await;
}

/// ZFS whose sends have one bit flipped.
fn flipped(zfs: &FakeZfs, at: usize) -> ThroughSend {
    let through = move |mut sending: SendStream| {
        let mut bytes = Vec::new();
        sending.reader().read_to_end(&mut bytes).unwrap();
        bytes[at] ^= 4;
        SendStream::new(
            Box::new(std::io::Cursor::new(bytes)),
            Box::new(move || sending.finish()),
        )
    };
    ThroughSend {
        zfs: zfs.clone(),
        through: Box::new(through),
    }
}

/// ZFS whose sends go through something.
pub(crate) struct ThroughSend {
    pub(crate) zfs: FakeZfs,
    pub(crate) through: Box<dyn Fn(SendStream) -> SendStream + Send + Sync>,
}

impl ZfsRead for ThroughSend {
    fn dataset(&self, name: &DatasetName) -> Result<Option<Dataset>, ZfsError> {
        self.zfs.dataset(name)
    }

    fn children(&self, name: &DatasetName) -> Result<Vec<Dataset>, ZfsError> {
        self.zfs.children(name)
    }

    fn snapshots(&self, name: &DatasetName) -> Result<Vec<Snapshot>, ZfsError> {
        self.zfs.snapshots(name)
    }

    fn snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ZfsError> {
        self.zfs.snapshot(name)
    }

    fn bookmarks(&self, name: &DatasetName) -> Result<Vec<Bookmark>, ZfsError> {
        self.zfs.bookmarks(name)
    }

    fn holds(&self, name: &SnapshotName) -> Result<BTreeMap<String, jiff::Timestamp>, ZfsError> {
        self.zfs.holds(name)
    }

    fn pool_guid(&self, pool: &str) -> Result<Guid, ZfsError> {
        self.zfs.pool_guid(pool)
    }
}

impl ZfsHost for ThroughSend {
    fn mounts(&self) -> Result<Vec<Mount>, ZfsError> {
        self.zfs.mounts()
    }

    fn module_version(&self) -> Result<String, ZfsError> {
        self.zfs.module_version()
    }

    fn delegations(&self, name: &DatasetName) -> Result<Vec<Delegation>, ZfsError> {
        self.zfs.delegations(name)
    }
}

impl ZfsSend for ThroughSend {
    fn send(&self, request: &SendRequest) -> Result<SendStream, ZfsError> {
        Ok((self.through)(self.zfs.send(request)?))
    }

    fn send_space(&self, request: &SendRequest) -> Result<u64, ZfsError> {
        self.zfs.send_space(request)
    }
}

impl ZfsSnapshots for ThroughSend {
    fn sync_pool(&self, pool: &str) -> Result<(), ZfsError> {
        self.zfs.sync_pool(pool)
    }

    fn take_snapshots(
        &self,
        names: &[SnapshotName],
        properties: &BTreeMap<String, String>,
    ) -> Result<(), ZfsError> {
        self.zfs.take_snapshots(names, properties)
    }

    fn destroy_snapshots(&self, names: &[SnapshotName]) -> Result<(), ZfsError> {
        self.zfs.destroy_snapshots(names)
    }

    fn hold(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError> {
        self.zfs.hold(name, tag)
    }

    fn release(&self, name: &SnapshotName, tag: &str) -> Result<(), ZfsError> {
        self.zfs.release(name, tag)
    }

    fn bookmark(&self, name: &BookmarkName, source: &SendBase) -> Result<(), ZfsError> {
        self.zfs.bookmark(name, source)
    }

    fn destroy_bookmarks(&self, names: &[BookmarkName]) -> Result<(), ZfsError> {
        self.zfs.destroy_bookmarks(names)
    }
}

impl ZfsReceive for ThroughSend {
    fn receive(
        &self,
        request: &ReceiveRequest,
        stream: &mut (dyn Read + Send),
    ) -> Result<(), ZfsError> {
        self.zfs.receive(request, stream)
    }

    fn create_filesystem(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError> {
        self.zfs.create_filesystem(name, properties)
    }

    fn destroy_dataset(&self, name: &DatasetName) -> Result<(), ZfsError> {
        self.zfs.destroy_dataset(name)
    }

    fn abort_receive(&self, name: &DatasetName) -> Result<(), ZfsError> {
        self.zfs.abort_receive(name)
    }

    fn inherit_property(&self, name: &DatasetName, property: &str) -> Result<(), ZfsError> {
        self.zfs.inherit_property(name, property)
    }

    fn set_properties(
        &self,
        name: &DatasetName,
        properties: &BTreeMap<String, PropertyValue>,
    ) -> Result<(), ZfsError> {
        self.zfs.set_properties(name, properties)
    }

    fn roll_back(&self, name: &DatasetName, snapshot: &SnapshotName) -> Result<(), ZfsError> {
        self.zfs.roll_back(name, snapshot)
    }
}
