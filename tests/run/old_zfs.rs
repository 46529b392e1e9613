//! Faults of old versions of OpenZFS. ZFS sends raw incrementals from a base without an IV-set guid
//! and does not receive them: no such backup is committed. And ZFS sends other bytes behind embedded
//! blocks each time: a drill does not call that damage.

use crate::world::{World, committed, name, never, noise};
use std::sync::Arc;
use zfs_backup::model::{BackupKind, SnapshotName};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::restore::RestorePoint;
use zfs_backup::run::restore::drill::{Comparison, drill};
use zfs_backup::zfs::{Zfs, ZfsRead, ZfsSnapshots};

/// An encrypted dataset with a full; its snapshot is the base of what follows.
async fn encrypted_world() -> (World, SnapshotName) {
    let world = World::new();
    world.zfs.set_encrypted(&world.dataset, false);
    world.back_up().await;
    let base = world.newest_snapshot();
    (world, base)
}

/// Takes a newer snapshot, and leaves of the base only its bookmark.
fn leave_only_the_bookmark(world: &World, base: &SnapshotName) {
    write_and_snapshot(world, 30);
    world
        .zfs
        .destroy_snapshots(std::slice::from_ref(base))
        .unwrap();
    assert_eq!(world.zfs.bookmarks(&world.dataset).unwrap().len(), 1);
}

fn write_and_snapshot(world: &World, object: u64) {
    world.zfs.write_file(&world.dataset, object, b"more");
    world.snapshot();
}

async fn assert_restores(world: &World) {
    let target = name("tank/restored");
    world.restore_into(&target).await.unwrap();
    let newest = world.newest_snapshot();
    let expected = world.zfs.snapshot_files(&newest).unwrap();
    assert_eq!(world.zfs.files(&target), expected);
}

#[tokio::test]
async fn raw_incremental_from_a_good_bookmark_is_made_and_restores() {
    let (world, base) = encrypted_world().await;
    leave_only_the_bookmark(&world, &base);
    let run = world.try_back_up_as(RequestedKind::Incremental).await;
    assert_eq!(committed(run.unwrap()).manifest.kind, BackupKind::Incr);
    assert_restores(&world).await;
}

#[tokio::test]
async fn bookmark_without_ivset_guid_is_no_base() {
    for is_hidden in [false, true] {
        let (world, base) = encrypted_world().await;
        leave_only_the_bookmark(&world, &base);
        world.zfs.lose_ivsets_of_bookmarks(&world.dataset);
        if is_hidden {
            // Only the first record of the stream shows it.
            world.zfs.hide_ivsets();
        }
        let refused = world.try_back_up_as(RequestedKind::Incremental).await;
        let Err(refused @ RunError::Conflict { .. }) = refused else {
            panic!("{refused:?}");
        };
        let message = refused.to_string();
        assert!(message.contains("only without an IV-set guid"), "{message}");
        let hint = refused.hint();
        assert!(hint.is_some_and(|hint| hint.contains("--full")));
        assert_eq!(world.manifest_keys().len(), 1);
        let run = world.try_back_up_as(RequestedKind::Lifecycle).await;
        assert_eq!(committed(run.unwrap()).manifest.kind, BackupKind::Full);
        world.assert_no_holds();
        assert_restores(&world).await;
    }
}

#[tokio::test]
async fn snapshot_without_ivset_guid_is_no_base() {
    let (world, base) = encrypted_world().await;
    world.zfs.lose_ivset_of(&base);
    write_and_snapshot(&world, 30);
    let run = world.try_back_up_as(RequestedKind::Lifecycle).await;
    assert_eq!(committed(run.unwrap()).manifest.kind, BackupKind::Full);
    assert_restores(&world).await;
}

#[tokio::test]
async fn snapshot_is_a_base_although_its_bookmark_has_no_ivset_guid() {
    let (world, _) = encrypted_world().await;
    write_and_snapshot(&world, 30);
    world.zfs.lose_ivsets_of_bookmarks(&world.dataset);
    let run = world.try_back_up_as(RequestedKind::Incremental).await;
    assert_eq!(committed(run.unwrap()).manifest.kind, BackupKind::Incr);
    assert_restores(&world).await;
}

#[tokio::test]
async fn bookmarks_of_unencrypted_datasets_need_no_ivset_guid() {
    let world = World::new();
    world.back_up().await;
    let base = world.newest_snapshot();
    leave_only_the_bookmark(&world, &base);
    let run = world.try_back_up_as(RequestedKind::Incremental).await;
    assert_eq!(committed(run.unwrap()).manifest.kind, BackupKind::Incr);
}

#[tokio::test]
async fn drill_does_not_call_the_padding_of_embedded_blocks_damage() {
    for (version, is_damage) in [("2.1.7-1", false), ("2.1.8-1", true)] {
        // Two pools whose snapshots have one name and one guid, and other bytes.
        let world = World::new();
        let mut other = World::empty(world.keys.clone(), world.writer.clone());
        other.settings.embedded = true;
        for object in [7, 8, 9, 11] {
            let bytes = noise(object, 100);
            other.zfs.write_file(&other.dataset, object, &bytes);
        }
        other.snapshot();
        world.zfs.set_module_version(version);
        other.zfs.set_module_version(version);
        other.back_up().await;
        let set = other.find(&RestorePoint::Newest).await.unwrap();
        let zfs: Arc<dyn Zfs> = Arc::new(world.zfs.clone());
        let source = world.selected().dataset;
        let parent = name("tank");
        let drilled = drill(
            &set,
            &world.keys,
            &zfs,
            Some(&source),
            &parent,
            None,
            never(),
        )
        .await;
        match drilled {
            Ok(report) => {
                let [Comparison::Not(why)] = &report.compared[..] else {
                    panic!("{:?}", report.compared);
                };
                assert!(!is_damage && why.contains("embedded blocks"), "{why}");
            }
            Err(error) => assert!(is_damage && error.is_damage(), "{error}"),
        }
    }
}
