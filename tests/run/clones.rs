//! Datasets that stand on others: clones, which are backed up whole and noted as such, and redacted
//! ones, which are not.

use crate::chains::{chain, night, nightly};
use crate::world::{World, committed, name, never, noise};
use std::sync::Arc;
use zfs_backup::model::BackupKind;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::back_up;
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::run::restore::{
    ReceiveOptions, RestorePoint, find_restore_set, restore_to_dataset,
};
use zfs_backup::zfs::{DatasetType, ZfsRead, ZfsSnapshots};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_is_a_full_of_its_own_with_its_origin_noted() {
    let world = World::new();
    chain(&world, 1).await;
    let (origin, clone) = (world.newest_snapshot(), name("tank/clone"));
    world.zfs.clone_snapshot(&origin, &clone).unwrap();
    world.zfs.write_file(&clone, 500, &noise(5, 9_000));
    let guid = world
        .zfs
        .snapshots(&world.dataset)
        .unwrap()
        .pop()
        .unwrap()
        .guid;
    let backed_up = async |hours: i64| {
        let at = jiff::Timestamp::from_second(1_780_000_000 + hours * 3_600).unwrap();
        world.zfs.set_now(at);
        world
            .zfs
            .write_file(&clone, 501, &noise(u64::try_from(hours).unwrap(), 5_000));
        take_snapshots(&world.zfs, std::slice::from_ref(&clone), "zfs-backup_", at).unwrap();
        let selected = Selected {
            dataset: world.zfs.dataset(&clone).unwrap().unwrap(),
            stored: clone.clone(),
        };
        committed(
            back_up(&world.env(), &selected, RequestedKind::Lifecycle)
                .await
                .unwrap(),
        )
        .manifest
    };
    let full = backed_up(1).await;
    assert_eq!(
        (full.kind, full.clone_origin_guid),
        (BackupKind::Full, Some(guid)),
        "the origin is backed up, and no base"
    );
    let next = backed_up(2).await;
    assert_eq!(
        (next.kind, next.clone_origin_guid),
        (BackupKind::Incr, Some(guid))
    );
    let set = find_restore_set(
        &[world.shared_store()],
        &clone,
        &world.keys,
        &RestorePoint::Newest,
    )
    .await
    .unwrap();
    let noted = set.newest().private.as_ref().unwrap().clone_origin.clone();
    assert_eq!(noted, Some(origin.to_string()));
    // What comes back is whole without the origin, and is no clone.
    let (files, target) = (world.zfs.files(&clone), name("other/back"));
    world.zfs.create(&name("other"), DatasetType::Filesystem);
    let options = ReceiveOptions::default();
    restore_to_dataset(
        &set,
        &world.keys,
        Arc::new(world.zfs.clone()),
        &target,
        &options,
        never(),
    )
    .await
    .unwrap();
    assert!(world.zfs.files(&target) == files);
    assert_eq!(world.zfs.dataset(&target).unwrap().unwrap().origin, None);
    // What is no clone has no origin.
    let plain = world.find(&RestorePoint::Newest).await.unwrap();
    assert_eq!(plain.newest().manifest.clone_origin_guid, None);
    assert_eq!(plain.newest().private.as_ref().unwrap().clone_origin, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redacted_snapshot_and_redaction_bookmark_as_base_are_refused() {
    let world = World::new();
    let first = nightly(&world).await;
    let snapshot = world.newest_snapshot();
    world.zfs.redact_bookmarks(&world.dataset);
    for tag in world.zfs.holds(&snapshot).unwrap().keys() {
        world.zfs.release(&snapshot, tag).unwrap();
    }
    world.zfs.destroy_snapshots(&[snapshot]).unwrap();
    assert_eq!(
        world.zfs.bookmarks(&world.dataset).unwrap()[0].guid,
        first.manifest.snapshot.guid
    );
    night(&world, 1);
    let error = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("only a bookmark with a redaction list"),
        "{error}"
    );
    let full = nightly(&world).await.manifest;
    assert_eq!(full.kind, BackupKind::Full);

    world.zfs.set_redacted(&world.dataset);
    night(&world, 2);
    let before = world.store.keys();
    let error = world
        .try_back_up_as(RequestedKind::Lifecycle)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("tank/a b@") && error.to_string().contains("is redacted"),
        "{error}"
    );
    assert_eq!(world.store.keys(), before, "nothing was begun");
    world.assert_no_holds();
}
