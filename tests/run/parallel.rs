//! Several datasets at once: their streams share one small pool of part buffers, and their first
//! backups share an empty store.

use crate::b2_sim::{B2Sim, SimOptions};
use crate::world::{PART_BYTES, SPLIT_BYTES, World, committed, name, never, noise, now};
use async_trait::async_trait;
use futures_util::future::join_all;
use std::io::Read;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zfs_backup::catalog::read_catalog;
use zfs_backup::model::{BackupId, BackupKind, DatasetName, SnapshotName};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::backup::back_up;
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::run::transfer::{
    Carried, ConfirmedChunk, StreamSource, TransferLog, TransferPlan, TransferPool, transfer,
};
use zfs_backup::run::verify::verify_dataset;
use zfs_backup::store::memory::MemoryStore;
use zfs_backup::store::{B2Settings, B2Store, ObjectStore, StoreTraits};
use zfs_backup::stream::record::{BeginRecord, StreamExpectation};
use zfs_backup::stream::seal::ChunkCompression;
use zfs_backup::zfs::{DatasetType, SendResume, SendStream, Snapshot, ZfsError, ZfsRead};

/// How long anything here may take before the test fails rather than hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// The bytes that a stalled stream has sent before it stalls: in the second part.
const STALLS_AFTER: usize = PART_BYTES + PART_BYTES / 2;

/// A stream that comes in small pieces, and may stall.
struct SlowSource {
    bytes: Arc<Vec<u8>>,
    /// Ends the stall, if the stream has one.
    stall: Mutex<Option<Receiver<()>>>,
}

struct SlowReader {
    bytes: Arc<Vec<u8>>,
    at: usize,
    stall: Option<Receiver<()>>,
}

impl StreamSource for SlowSource {
    fn open(&self, _: Option<SendResume>) -> Result<SendStream, ZfsError> {
        let reader = SlowReader {
            bytes: Arc::clone(&self.bytes),
            at: 0,
            stall: self.stall.lock().unwrap().take(),
        };
        Ok(SendStream::new(Box::new(reader), Box::new(|| Ok(()))))
    }
}

impl Read for SlowReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        std::thread::sleep(Duration::from_micros(500));
        if self.at >= STALLS_AFTER
            && let Some(stall) = self.stall.take()
        {
            let _ = stall.recv();
        }
        let rest = &self.bytes[self.at..];
        let bytes = rest.len().min(buffer.len()).min(5000);
        buffer[..bytes].copy_from_slice(&rest[..bytes]);
        self.at += bytes;
        Ok(bytes)
    }
}

struct NoLog;

#[async_trait]
impl TransferLog for NoLog {
    fn begins(&mut self, _: &str) -> Result<(), RunError> {
        Ok(())
    }

    fn opened(&mut self, _: &str, _: &str) -> Result<(), RunError> {
        Ok(())
    }

    async fn confirmed(&mut self, _: &BeginRecord, _: &ConfirmedChunk) -> Result<(), RunError> {
        Ok(())
    }
}

fn plan(world: &World, snapshot: &Snapshot, number: u64, pool: &TransferPool) -> TransferPlan {
    TransferPlan {
        dataset: name(&format!("tank/{number}")),
        id: BackupId::new(snapshot.created_at, BackupKind::Full, snapshot.guid, number),
        snapshot: snapshot.name.clone(),
        expectation: StreamExpectation {
            snapshot_guid: snapshot.guid,
            base_guid: None,
        },
        split_bytes: SPLIT_BYTES,
        compression: ChunkCompression::None,
        recipients: world.writer.recipients.clone(),
        pool: pool.clone(),
    }
}

/// Sends so many streams through one pool, of which the first ones stall. The others must end while
/// these are stalled, and these when the stall ends.
async fn send_all(store: Arc<dyn ObjectStore>, streams: u64, stalled: u64) {
    let world = World::new();
    let snapshot = world.zfs.snapshots(&world.dataset).unwrap().remove(0);
    let (pool, bytes) = (TransferPool::default(), Arc::new(world.stream()));
    let (mut sent, mut releases): (JoinSet<u64>, Vec<Sender<()>>) = Default::default();
    for number in 0..streams {
        let mut stall = None;
        if number < stalled {
            let (release, wait) = channel();
            releases.push(release);
            stall = Some(wait);
        }
        let source = Arc::new(SlowSource {
            bytes: Arc::clone(&bytes),
            stall: Mutex::new(stall),
        });
        let store = Arc::clone(&store);
        let plan = Arc::new(plan(&world, &snapshot, number, &pool));
        sent.spawn(async move {
            let (carried, progress) = (Carried::default(), Arc::new(|_| {}));
            let mut log = NoLog;
            let done = transfer(source, &*store, plan, carried, &mut log, progress, never());
            assert_eq!(done.await.unwrap().chunks.len(), 5);
            number
        });
        // The stalled streams have their turn before the others.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for _ in stalled..streams {
        let number = timeout(PATIENCE, sent.join_next()).await;
        let number = number.expect("a stalled stream blocks the others");
        assert!(number.unwrap().unwrap() >= stalled);
    }
    drop(releases);
    for _ in 0..stalled {
        let ended = timeout(PATIENCE, sent.join_next()).await;
        ended.expect("a stream does not end").unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_streams_do_not_block_others_that_share_few_part_buffers() {
    for (concurrency, streams, stalled) in [(1, 6, 2), (2, 9, 3)] {
        let store = MemoryStore::with_traits(StoreTraits {
            part_bytes: PART_BYTES,
            concurrency,
            conditional_put: true,
            holds_parts: false,
        });
        send_all(Arc::new(store), streams, stalled).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_stream_does_not_block_others_in_a_store_that_holds_first_parts() {
    for (concurrency, stalled) in [(1, 0), (2, 1), (4, 2)] {
        let sim = B2Sim::start_with(SimOptions {
            part_bytes_min: PART_BYTES,
            ..SimOptions::default()
        });
        let settings = B2Settings {
            concurrency,
            ..sim.settings()
        };
        send_all(Arc::new(B2Store::new(settings).unwrap()), 6, stalled).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_backups_of_many_datasets_of_an_empty_store_are_made_at_once() {
    let world = World::new();
    let names: Vec<DatasetName> = (0..12).map(|n| name(&format!("tank/many/{n}"))).collect();
    for (seed, dataset) in (0..).zip(&names) {
        world.zfs.create(dataset, DatasetType::Filesystem);
        world.zfs.write_file(dataset, 7, &noise(seed, 100_000));
    }
    let taken: Vec<SnapshotName> =
        take_snapshots(&world.zfs, &names, crate::world::SNAPSHOT_PREFIX, now()).unwrap();
    assert_eq!(taken.len(), names.len());
    let env = world.env();
    let first = names.iter().map(async |dataset| {
        let selected = Selected {
            dataset: world.zfs.dataset(dataset).unwrap().unwrap(),
            stored: dataset.clone(),
        };
        committed(
            back_up(&env, &selected, RequestedKind::Lifecycle)
                .await
                .unwrap(),
        )
    });
    let made = join_all(first).await;
    for (dataset, backup) in names.iter().zip(&made) {
        let catalog = read_catalog(&world.store, dataset, &world.keys.trusted)
            .await
            .unwrap();
        assert_eq!((catalog.backups.len(), catalog.attempts.len()), (1, 0));
        assert_eq!(catalog.backups[0].manifest.id, backup.manifest.id);
        let report = verify_dataset(&world.store, dataset, &world.keys.trusted)
            .await
            .unwrap();
        assert_eq!(
            (report.backups, report.damage, report.extra),
            (1, vec![], vec![])
        );
    }
}
