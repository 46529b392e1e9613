//! Backups from a pool that was imported read-only, as a failing pool is; and of a dataset that
//! vanishes during the run.

use crate::chain::plant_prune_record;
use crate::chains::night;
use crate::failures::for_all;
use crate::interrupted::interrupted_late;
use crate::world::{SNAPSHOT_PREFIX, World, committed, name, now, quick_keys};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::backup::back_up;
use zfs_backup::run::error_chain;
use zfs_backup::run::pool::snapshot::{SnapshotsTaken, take_each_snapshot};
use zfs_backup::zfs::{DatasetType, ZfsErrno, ZfsRead};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_pool_is_backed_up_without_holds_and_bookmarks() {
    let world = World::new();
    world.zfs.set_read_only(true);
    let full = world.back_up().await.manifest;
    world.assert_restores().await;
    world.zfs.set_read_only(false);
    let bookmarks = world.zfs.bookmarks(&world.dataset).unwrap();
    assert!(bookmarks.is_empty(), "{bookmarks:?}");
    night(&world, 1);
    world.zfs.set_read_only(true);
    let run = world.try_back_up_as(RequestedKind::Lifecycle).await;
    let base = committed(run.unwrap()).manifest.base.unwrap();
    assert_eq!(base.backup_id, full.id);
    world.assert_no_holds();
}

/// The holds of before cannot be released while the pool is read-only. They stop nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_upload_is_resumed_or_abandoned_in_a_read_only_pool() {
    for abandon in [false, true] {
        let mut world = World::new();
        interrupted_late(&world).await;
        world.zfs.set_read_only(true);
        if abandon {
            world.settings.split_bytes *= 2;
        }
        world.back_up().await;
        world.assert_restores().await;
        world.zfs.set_read_only(false);
        night(&world, 1);
        let run = world.try_back_up_as(RequestedKind::Lifecycle).await;
        committed(run.unwrap());
        world.assert_no_holds();
    }
}

/// Another host pruned the upload, so its journal is over. The pins stay while the pool is read-only,
/// and with them the journal, without which no later run would release them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruned_upload_leaves_no_hold_after_a_night_in_a_read_only_pool() {
    let world = World::new();
    interrupted_late(&world).await;
    let catalog = world.catalog().await;
    let [attempt] = &catalog.attempts[..] else {
        panic!("one upload is unfinished");
    };
    plant_prune_record(&world, &world.store, &[&attempt.id]);
    world.zfs.set_read_only(true);
    world.back_up().await;
    world.zfs.set_read_only(false);
    night(&world, 1);
    committed(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .unwrap(),
    );
    world.assert_no_holds();
}

#[test]
fn every_dataset_of_a_read_only_pool_reports_that_no_snapshot_can_be_taken() {
    let (keys, writer) = quick_keys();
    let world = World::empty(keys, writer);
    let other = name("tank/other");
    world.zfs.create(&other, DatasetType::Filesystem);
    world.zfs.set_read_only(true);
    let datasets = [&world.dataset, &other].map(|name| world.zfs.dataset(name).unwrap().unwrap());
    let SnapshotsTaken { taken, refused, .. } =
        take_each_snapshot(&world.zfs, &datasets, SNAPSHOT_PREFIX, now());
    assert_eq!((taken.len(), refused.len()), (0, 2));
    for (dataset, error) in refused {
        match &error {
            RunError::Zfs(error) => assert_eq!(error.errno(), Some(ZfsErrno::READ_ONLY)),
            other => panic!("{dataset}: {other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dataset_that_vanishes_during_a_backup_is_named() {
    let (keys, writer) = quick_keys();
    let sample = World::with_keys(keys.clone(), writer.clone());
    let (env, selected) = (sample.env(), sample.selected());
    let before = sample.zfs.calls();
    committed(back_up(&env, &selected, RequestedKind::Full).await.unwrap());
    let calls = 1..=sample.zfs.calls() - before;
    for_all(calls.collect(), |n| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let (env, selected) = (world.env(), world.selected());
            let dataset = world.dataset.clone();
            world
                .zfs
                .before_call(n, move |zfs| zfs.rename(&dataset, &name("tank/elsewhere")));
            if let Err(error) = back_up(&env, &selected, RequestedKind::Full).await {
                let text = error_chain(&error);
                assert!(text.contains("tank/a b"), "call {n}: {text}");
            }
        }
    })
    .await;
}
