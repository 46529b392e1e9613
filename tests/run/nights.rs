//! Nights in the order of the example sequence - export, prune the intermediate directory, copy,
//! prune the remote - when the copy fails; and the snapshots that are destroyed between.

use crate::builder::Yard;
use crate::world::{SNAPSHOT_PREFIX, World, memory_store, never, now};
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::catalog::{StoredBackup, read_catalog};
use zfs_backup::config::RetentionRules;
use zfs_backup::model::BackupId;
use zfs_backup::plan::copy::doomed;
use zfs_backup::run::clock::ClockCheck;
use zfs_backup::run::copy::{CopyPool, UploadEnv, UploadRules, upload_dataset};
use zfs_backup::run::pool::prune_snapshots::{SnapshotStore, SnapshotsEnv, prune_snapshots};
use zfs_backup::run::prune::{SecondaryStore, prune_dataset};
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::state::StateError;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{StoreErrorKind, StoreInfo};
use zfs_backup::zfs::{SendBase, ZfsRead, ZfsSnapshots};

/// The intermediate directory and the remote of one host.
struct Host {
    yard: Yard,
    here: MemoryStore,
    remote: MemoryStore,
    exported: Vec<BackupId>,
    /// The state folder of the copies: both stores have one name, and one folder would mix their
    /// journals.
    copies: TempDir,
}

fn remote_rules() -> RetentionRules {
    RetentionRules {
        last_chains: Some(1),
        last_fulls: Some(3),
        ..Default::default()
    }
}

impl Host {
    fn new() -> Self {
        let yard = Yard::new();
        let (here, remote) = (yard.store.clone(), memory_store(64 * 1024));
        Self {
            yard,
            here,
            remote,
            exported: Vec::new(),
            copies: TempDir::new().unwrap(),
        }
    }

    async fn backups(&self, store: &MemoryStore) -> Vec<StoredBackup> {
        read_catalog(store, &self.yard.dataset, &self.yard.keys.trusted)
            .await
            .unwrap()
            .backups
    }

    /// The newest of both stores is the base of the next one.
    async fn export(&mut self, full: bool) {
        let mut backups = self.backups(&self.here.clone()).await;
        backups.extend(self.backups(&self.remote.clone()).await);
        let newest = backups
            .into_iter()
            .max_by_key(|backup| backup.manifest.snapshot.createtxg);
        let here = self.here.clone();
        let id = self.yard.export(&here, newest.filter(|_| !full)).await;
        self.exported.push(id);
    }

    async fn prune_intermediate(&self) -> usize {
        let rules = RetentionRules {
            last_fulls: Some(1),
            last_incrementals: Some(1),
            ..Default::default()
        };
        let env = self.yard.env(0, Arc::new(self.here.clone()), never());
        let task = self.yard.task(
            &rules,
            SecondaryStore::Remote(Arc::new(self.remote.clone())),
        );
        let outcome = prune_dataset(&env, &task).await.unwrap();
        assert_eq!(outcome.view.plan.doubts, []);
        outcome.deleted.len()
    }

    async fn prune_remote(&self) -> usize {
        let env = self.yard.env(0, Arc::new(self.remote.clone()), never());
        let task = self.yard.task(
            &remote_rules(),
            SecondaryStore::Intermediate(Arc::new(self.here.clone())),
        );
        let outcome = prune_dataset(&env, &task).await.unwrap();
        assert_eq!(outcome.view.plan.doubts, []);
        outcome.deleted.len()
    }

    /// `upload-intermediate-to-remote`, by the remote's rules.
    async fn copy(&self) -> Result<(), String> {
        let env = UploadEnv {
            pool: CopyPool::default(),
            from: Arc::new(self.here.clone()),
            to: Arc::new(self.remote.clone()),
            keys: self.yard.writer.clone(),
            state_dir: self.copies.path().to_owned(),
            now,
            progress: Arc::new(|_| Arc::new(|_| {})),
            stop: never(),
        };
        let clock = self.yard.clock;
        let would_be_pruned =
            |remote: &[_], local: &[_]| doomed(remote, local, &remote_rules(), clock);
        let rules = UploadRules {
            all: false,
            would_be_pruned: &would_be_pruned,
        };
        let report = upload_dataset(&env, &self.yard.dataset, &rules)
            .await
            .map_err(|error| error_chain(&error))?;
        match report.failed.first() {
            Some((id, error)) => Err(format!("{id}: {}", error_chain(error))),
            None => Ok(()),
        }
    }

    /// Every backup ever made that the remote's rules keep comes back from both stores together.
    async fn assert_all_restore(&mut self, ids: &[BackupId]) {
        let both = memory_store(1024);
        for store in [&self.here, &self.remote] {
            store
                .keys()
                .into_iter()
                .for_each(|key| both.plant(&key, store.object(&key).unwrap()));
        }
        let here = std::mem::replace(&mut self.yard.store, both);
        self.yard.assert_restores(ids.iter().cloned()).await;
        self.yard.store = here;
    }

    fn next_day(&mut self) {
        self.yard.days(1);
        self.remote.set_clock(Some(self.yard.clock));
    }
}

#[tokio::test]
async fn three_nights_of_failed_uploads_lose_no_backup() {
    // Where in the copy each night fails: at once, in the middle of a backup, just before a
    // manifest.
    use Operation::{Create, PutNew};
    for failing in [
        [(PutNew, ""), (PutNew, ""), (PutNew, "")],
        [
            (PutNew, "private"),
            (Create, "00000001"),
            (PutNew, "manifest.json"),
        ],
        [
            (PutNew, "manifest.json.minisig"),
            (PutNew, "receipt"),
            (PutNew, "started"),
        ],
    ] {
        let mut host = Host::new();
        for night in 0..3 {
            host.next_day();
            host.export(night == 0).await;
            host.prune_intermediate().await;
            host.copy().await.unwrap();
            host.prune_remote().await;
        }
        for (operation, part) in failing {
            host.next_day();
            host.export(false).await;
            host.prune_intermediate().await;
            host.remote.fail(
                Fault::before(StoreErrorKind::Full)
                    .of(operation)
                    .on(part)
                    .forever(),
            );
            // The failed step stops the sequence: the remote is not pruned.
            let failure = host.copy().await.unwrap_err();
            assert!(failure.contains("a test ordered this failure"), "{failure}");
            host.remote.heal();
            let ids = host.exported.clone();
            host.assert_all_restore(&ids).await;
        }
        host.next_day();
        host.export(false).await;
        host.prune_intermediate().await;
        host.copy().await.unwrap();
        assert_eq!(host.prune_remote().await, 0, "the newest chain is whole");
        let ids = host.exported.clone();
        assert_eq!(host.backups(&host.remote.clone()).await.len(), ids.len());
        host.assert_all_restore(&ids).await;
        // The night after all is well the intermediate directory is small again.
        host.next_day();
        host.export(false).await;
        assert!(host.prune_intermediate().await > 0);
        let ids = host.exported.clone();
        host.assert_all_restore(&ids).await;
    }
}

#[tokio::test]
async fn new_chain_prunes_the_old_one_except_its_full() {
    let mut host = Host::new();
    for night in 0..8 {
        host.next_day();
        host.export(night % 4 == 0).await;
        host.prune_intermediate().await;
        host.copy().await.unwrap();
        host.prune_remote().await;
    }
    let left: Vec<BackupId> = host
        .backups(&host.remote.clone())
        .await
        .into_iter()
        .map(|backup| backup.manifest.id)
        .collect();
    let expected: Vec<BackupId> = host
        .exported
        .iter()
        .enumerate()
        .filter(|(n, _)| *n == 0 || *n >= 4)
        .map(|(_, id)| id.clone())
        .collect();
    assert_eq!(left, expected);
    host.assert_all_restore(&expected).await;
}

fn snapshots_env(world: &World, oldest_days: u32) -> SnapshotsEnv {
    SnapshotsEnv {
        zfs: Arc::new(world.zfs.clone()),
        stores: vec![SnapshotStore {
            store: world.shared_store(),
            beside_remote: false,
        }],
        trusted: world.keys.trusted.clone(),
        state_dir: world.settings.state_dir.clone(),
        oldest_days,
        levels: None,
        prefix: SNAPSHOT_PREFIX.into(),
        now: crate::builder::later(now(), 200 * 86_400),
        clock: ClockCheck::vouched_at(crate::builder::later(now(), 200 * 86_400)),
    }
}

fn shorts(world: &World) -> Vec<String> {
    world
        .zfs
        .snapshots(&world.dataset)
        .unwrap()
        .iter()
        .map(|snapshot| snapshot.name.short().to_owned())
        .collect()
}

async fn destroy(world: &World, oldest_days: u32) -> Result<Vec<Option<String>>, RunError> {
    let outcomes = prune_snapshots(&snapshots_env(world, oldest_days), &world.selected()).await?;
    Ok(outcomes
        .into_iter()
        .map(|outcome| outcome.refused)
        .collect())
}

#[tokio::test]
async fn only_own_old_snapshots_are_destroyed() {
    let world = World::new();
    let others = world.dataset.snapshot("autosnap_2020").unwrap();
    world
        .zfs
        .take_snapshots(std::slice::from_ref(&others), &Default::default())
        .unwrap();
    // The name alone makes none of ours.
    let alike = world
        .dataset
        .snapshot("zfs-backup_20200101T000000Z")
        .unwrap();
    world
        .zfs
        .take_snapshots(std::slice::from_ref(&alike), &Default::default())
        .unwrap();
    let own = world.newest_own();
    // The newest, and not stored: it stays, however old.
    destroy(&world, 120).await.unwrap();
    assert_eq!(shorts(&world).len(), 3);
    world.back_up().await;
    destroy(&world, 300).await.unwrap();
    assert_eq!(shorts(&world).len(), 3, "young");
    destroy(&world, 120).await.unwrap();
    assert_eq!(
        shorts(&world),
        ["autosnap_2020", "zfs-backup_20200101T000000Z"]
    );
    assert!(!shorts(&world).contains(&own));
}

#[tokio::test]
async fn without_its_bookmark_the_base_of_the_next_incremental_stays() {
    let world = World::new();
    world.back_up().await;
    let bookmarks: Vec<_> = world
        .zfs
        .bookmarks(&world.dataset)
        .unwrap()
        .into_iter()
        .map(|bookmark| bookmark.name)
        .collect();
    assert_eq!(bookmarks.len(), 1);
    world.zfs.destroy_bookmarks(&bookmarks).unwrap();
    for days in [0, 120] {
        destroy(&world, days).await.unwrap();
        assert_eq!(shorts(&world).len(), 1, "{days}");
    }
    world
        .zfs
        .bookmark(&bookmarks[0], &SendBase::Snapshot(world.newest_snapshot()))
        .unwrap();
    destroy(&world, 0).await.unwrap();
    assert_eq!(shorts(&world).len(), 0);
}

#[tokio::test]
async fn held_and_cloned_snapshots_are_kept_and_others_destroyed() {
    let world = World::new();
    for _ in 0..3 {
        world.snapshot();
    }
    world.back_up().await;
    let all = world.zfs.snapshots(&world.dataset).unwrap();
    world.zfs.hold(&all[0].name, "mine").unwrap();
    world
        .zfs
        .clone_snapshot(&all[1].name, &crate::world::name("tank/clone"))
        .unwrap();
    let refused = destroy(&world, 120).await.unwrap();
    assert_eq!(
        refused.iter().filter(|refused| refused.is_some()).count(),
        1,
        "{refused:?}"
    );
    assert!(
        refused[1].as_ref().unwrap().contains(all[1].name.short()),
        "{refused:?}"
    );
    assert_eq!(shorts(&world), [all[0].name.short(), all[1].name.short()]);
}

#[tokio::test]
async fn a_store_that_cannot_be_read_keeps_every_snapshot() {
    let world = World::new();
    world.back_up().await;
    for (operation, part) in [
        (Operation::List, ""),
        (Operation::Get, "manifest.json"),
        (Operation::Get, "chunks-"),
    ] {
        world.store.fail(
            Fault::before(StoreErrorKind::Unavailable)
                .of(operation)
                .on(part),
        );
        destroy(&world, 0).await.unwrap_err();
        world.store.heal();
        assert_eq!(shorts(&world).len(), 1, "{operation:?} {part}");
    }
    let (env, chosen) = (snapshots_env(&world, 300), world.selected());
    let calls = world.zfs.calls();
    prune_snapshots(&env, &chosen).await.unwrap();
    let calls = world.zfs.calls() - calls;
    assert!(calls >= 2, "{calls}");
    for n in 1..=calls {
        world.zfs.fail_call(n, 5);
        prune_snapshots(&env, &chosen).await.unwrap_err();
        assert_eq!(shorts(&world).len(), 1, "{n}");
    }
}

#[tokio::test]
async fn an_unfinished_upload_keeps_its_snapshot() {
    let world = World::new();
    world.store.fail(
        Fault::before(StoreErrorKind::Full)
            .of(Operation::PutNew)
            .on("RESTORE"),
    );
    world.try_back_up().await.unwrap_err();
    world.store.heal();
    let unfinished = shorts(&world);
    world.snapshot();
    destroy(&world, 120).await.unwrap();
    assert!(
        shorts(&world).contains(&unfinished[0]),
        "the one that was being uploaded is gone"
    );
    world.back_up().await;
    destroy(&world, 120).await.unwrap();
    assert!(
        !shorts(&world).contains(&unfinished[0]),
        "the one that was uploaded stays"
    );
    let _held = zfs_backup::state::dataset_lock::lock_dataset(
        &world.settings.state_dir,
        &world.store.known(),
        &world.dataset,
    )
    .unwrap();
    assert!(matches!(
        destroy(&world, 120).await,
        Err(RunError::State(StateError::Locked { .. }))
    ));
}

impl World {
    fn newest_own(&self) -> String {
        let guid = self.zfs.dataset(&self.dataset).unwrap().unwrap().guid;
        let own = self.zfs.snapshots(&self.dataset).unwrap();
        own.into_iter()
            .rfind(|snapshot| {
                zfs_backup::run::pool::snapshot::is_own(snapshot, guid, SNAPSHOT_PREFIX)
            })
            .map(|snapshot| snapshot.name.short().to_owned())
            .unwrap()
    }
}
