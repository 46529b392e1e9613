//! More chunks than a backup may have: the plan refuses such a stream, before anything is stored,
//! with the `split_size` that would do.

use crate::interrupted::interrupted_late;
use crate::world::{SPLIT_BYTES, World, committed};
use jiff::SignedDuration;
use zfs_backup::manifest::CHUNKS_MAX;
use zfs_backup::plan::send::{RequestedKind, SendConflict};
use zfs_backup::run::RunError;
use zfs_backup::run::backup::plan_backup;

/// More stream than a backup has room for.
const TOO_LONG: u64 = SPLIT_BYTES * CHUNKS_MAX as u64 + 1;

fn assert_names_the_split_size(error: &RunError) {
    let RunError::Conflict { conflict, hint, .. } = error else {
        panic!("{error}");
    };
    assert!(matches!(conflict, SendConflict::TooManyChunks(_)));
    assert!(error.to_string().contains("main.split_size is \"64K\""));
    assert!(hint.contains("split_size = \"1M\""), "{hint}");
}

#[tokio::test]
async fn a_stream_with_too_many_chunks_is_refused_before_anything_is_stored() {
    let world = World::new();
    world.zfs.set_estimate(TOO_LONG);
    let before = world.store.keys();
    let error = plan_backup(&world.env(), &world.selected(), RequestedKind::Full).await;
    assert_names_the_split_size(&error.unwrap_err());
    assert_names_the_split_size(&world.try_back_up().await.unwrap_err());
    assert_eq!(world.store.keys(), before);
    world.assert_no_holds();
    // An estimate that fits does not stop the backup.
    world.zfs.set_estimate(TOO_LONG / 2);
    committed(world.try_back_up().await.unwrap());
}

#[tokio::test]
async fn an_incremental_with_too_many_chunks_is_refused_too() {
    let world = World::new();
    world.back_up().await;
    world.zfs.write_file(&world.dataset, 30, b"more");
    world.snapshot();
    world.zfs.set_estimate(TOO_LONG);
    let error = world.try_back_up_as(RequestedKind::Incremental).await;
    assert_names_the_split_size(&error.unwrap_err());
}

#[tokio::test]
async fn a_due_full_with_too_many_chunks_becomes_an_incremental() {
    let mut world = World::new();
    let base = world.back_up().await.manifest.id;
    world.zfs.write_file(&world.dataset, 30, b"more");
    world.snapshot();
    world.settings.lifecycle.full_age_max = Some(SignedDuration::from_secs(1));
    world.zfs.set_full_estimate(TOO_LONG);
    let night = world.try_back_up_as(RequestedKind::Lifecycle).await;
    let backup = committed(night.unwrap());
    assert_eq!(backup.manifest.base.unwrap().backup_id, base);
}

#[tokio::test]
async fn an_unfinished_upload_with_too_many_chunks_is_not_continued() {
    let world = World::new();
    interrupted_late(&world).await;
    world.zfs.set_estimate(TOO_LONG);
    let error = world.try_back_up().await.unwrap_err();
    let hint = error.hint().unwrap();
    assert!(error.to_string().contains("main.split_size is"), "{error}");
    assert!(hint.contains("split_size = \"1M\""), "{hint}");
}
