//! Snapshots that ZFS cannot read: the first night keeps the upload, the second night steps over
//! the snapshot and backs up the newest one, and nothing holds the unreadable snapshot any more.

use crate::world::{World, committed, name, noise, now, quick_keys, up_to_date};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, Ordering};
use zfs_backup::config::RetentionRules;
use zfs_backup::manifest::Origin;
use zfs_backup::model::{BackupId, ReadFault, SnapshotName};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::backup::{BackupEnv, BackupRun, back_up, plan_backup, plan_resumes};
use zfs_backup::run::prune::{PruneTask, SecondaryStore, prune_dataset};
use zfs_backup::zfs::{ZfsRead, ZfsSnapshots};

/// The damaged file: several chunks, of which the fault leaves some.
const BAD: u64 = 50;
const BAD_BYTES: usize = 300_000;
/// The place of the damage in the file, in its 45th block.
const BAD_OFFSET: usize = 180_224;

/// Adds the damaged file to the dataset and takes a snapshot of it.
fn damaged_snapshot(world: &World) -> SnapshotName {
    let noise = noise(50, BAD_BYTES);
    world.zfs.write_file(&world.dataset, BAD, &noise);
    world.zfs.damage_block(&world.dataset, BAD, BAD_OFFSET);
    world.snapshot();
    world.newest_snapshot()
}

/// Replaces the damaged file and takes a snapshot without the damage.
fn mended_snapshot(world: &World) -> SnapshotName {
    world.zfs.remove_file(&world.dataset, BAD);
    world.snapshot();
    world.newest_snapshot()
}

async fn run(world: &World) -> Result<BackupRun, RunError> {
    world.try_back_up_as(RequestedKind::Lifecycle).await
}

/// Returns the place of the read error with which a night ended.
async fn failed_night(world: &World, of: &SnapshotName) -> ReadFault {
    match run(world).await.unwrap_err() {
        RunError::ReadSnapshot {
            snapshot, fault, ..
        } => {
            assert_eq!(snapshot, *of);
            fault
        }
        other => panic!("{other}"),
    }
}

fn holds(world: &World, snapshot: &SnapshotName) -> usize {
    world.zfs.holds(snapshot).unwrap().len()
}

/// Checks that the newest backup has the files of the newest snapshot.
async fn assert_newest_restores(world: &World) {
    let target = name("tank/restored");
    world.restore_into(&target).await.unwrap();
    let newest = world.newest_snapshot();
    let expected = world.zfs.snapshot_files(&newest).unwrap();
    assert_eq!(world.zfs.files(&target), expected);
}

/// Prunes the store this many days after `begun`, and returns the deleted ids.
async fn prune(world: &World, begun: Timestamp, days: i64) -> BTreeSet<BackupId> {
    let now = begun + SignedDuration::from_hours(days * 24);
    world.store.set_clock(Some(now));
    let origin = Origin {
        dataset_guid: world.selected().dataset.guid,
        pool_guid: world.zfs.pool_guid("tank").unwrap(),
    };
    let task = PruneTask {
        stored: world.dataset.clone(),
        origins: vec![origin],
        rules: RetentionRules::default(),
        secondary: SecondaryStore::Nothing,
    };
    let outcome = prune_dataset(&world.prune_env(now), &task).await.unwrap();
    outcome.deleted.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_read_error_at_one_place_steps_over_the_snapshot() {
    let world = World::new();
    let begun: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
    world.store.set_clock(Some(begun));
    let base = world.back_up().await.manifest;
    let first = world.newest_snapshot();
    let bad = damaged_snapshot(&world);
    let fault = failed_night(&world, &bad).await;
    assert_eq!(fault.object, Some(BAD));
    assert!(fault.position > BAD_OFFSET as u64, "{fault}");
    assert_eq!((holds(&world, &bad), holds(&world, &first)), (1, 1));
    let [attempt] = &plan_resumes(&world.env(), &world.selected(), RequestedKind::Lifecycle)
        .await
        .unwrap()[..]
    else {
        panic!("one upload is unfinished");
    };
    assert!(attempt.chunks > 0);

    let mended = mended_snapshot(&world);
    let night = run(&world).await.unwrap();
    let end = night.end.unwrap_err();
    let [committed] = &night.committed[..] else {
        panic!("one backup is committed");
    };
    assert_eq!(committed.manifest.base.as_ref().unwrap().backup_id, base.id);
    let RunError::SteppedOver {
        snapshot,
        fault: again,
        newest,
    } = &end
    else {
        panic!("{end}");
    };
    assert_eq!(
        (snapshot, again, newest.as_ref()),
        (&bad, &fault, Some(&committed.manifest.id))
    );
    let hint = end.hint().unwrap();
    for command in [
        "`zpool status -v tank`".to_owned(),
        format!("`zfs destroy '{bad}'`"),
    ] {
        assert!(hint.contains(&command), "{hint}");
    }
    world.assert_no_holds();
    world.zfs.destroy_snapshots(&[bad]).unwrap();
    assert_eq!(mended, world.newest_snapshot());
    assert_newest_restores(&world).await;

    assert!(up_to_date(&run(&world).await.unwrap()).is_some());
    assert_eq!(prune(&world, begun, 13).await, BTreeSet::new());
    assert_eq!(
        prune(&world, begun, 15).await,
        BTreeSet::from([attempt.id.clone()])
    );
    assert_eq!(world.verify().await.extra, [""; 0]);
}

/// A clock that moves a second each time it is read.
fn counting() -> Timestamp {
    now() + SignedDuration::from_secs(READINGS.fetch_add(1, Ordering::SeqCst))
}

static READINGS: AtomicI64 = AtomicI64::new(0);

/// The upload that takes the place of the unreadable one pauses: with one of these time limits, the
/// time ends after the read error and before the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stepped_over_snapshot_is_reported_by_a_run_that_pauses() {
    for seconds in 1..100 {
        let mut world = World::new();
        world.back_up().await;
        let bad = damaged_snapshot(&world);
        failed_night(&world, &bad).await;
        // The newer snapshot makes several chunks.
        let more = noise(60, BAD_BYTES);
        world.zfs.write_file(&world.dataset, BAD + 1, &more);
        mended_snapshot(&world);
        world.settings.until = Some(now() + SignedDuration::from_secs(seconds));
        READINGS.store(0, Ordering::SeqCst);
        let env = BackupEnv {
            now: counting,
            ..world.env()
        };
        let night = back_up(&env, &world.selected(), RequestedKind::Lifecycle).await;
        let Err(end @ RunError::SteppedOver { newest: None, .. }) = night.unwrap().end else {
            continue;
        };
        assert!(end.to_string().contains(&bad.to_string()), "{end}");
        assert!(
            end.to_string().ends_with("no newer snapshot is stored yet"),
            "{end}"
        );
        world.settings.until = None;
        committed(run(&world).await.unwrap());
        assert_newest_restores(&world).await;
        return;
    }
    panic!("no run paused after the read error");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_snapshots_with_the_same_damage_are_stepped_over_until_one_is_readable() {
    let world = World::new();
    world.back_up().await;
    let bad = damaged_snapshot(&world);
    failed_night(&world, &bad).await;
    world.snapshot();
    let worse = world.newest_snapshot();
    let stored = world.store.keys();
    for _ in 0..2 {
        let night = run(&world).await.unwrap();
        assert_eq!(night.committed.len(), 0);
        match night.end.unwrap_err() {
            RunError::SteppedOver { snapshot, .. } => assert_eq!(snapshot, worse),
            other => panic!("{other}"),
        }
        world.assert_no_holds();
    }
    assert_eq!(
        world.store.keys(),
        stored,
        "nothing of the newer snapshot is uploaded"
    );
    mended_snapshot(&world);
    committed(run(&world).await.unwrap());
    world.assert_no_holds();
    assert_newest_restores(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_full_is_of_an_older_snapshot_if_the_newer_ones_are_unreadable() {
    let (keys, writer) = quick_keys();
    let world = World::empty(keys, writer);
    world.snapshot();
    let good = world.newest_snapshot();
    let bad = damaged_snapshot(&world);
    failed_night(&world, &bad).await;
    for number in 0..3 {
        world
            .zfs
            .write_file(&world.dataset, 60 + number, &noise(60, 9000));
        world.snapshot();
    }
    let newest = world.newest_snapshot();
    let night = run(&world).await.unwrap();
    let [backup] = &night.committed[..] else {
        panic!("one backup is committed");
    };
    assert_eq!(
        backup.manifest.snapshot.guid,
        world.zfs.snapshot(&good).unwrap().unwrap().guid
    );
    match night.end.unwrap_err() {
        RunError::SteppedOver { snapshot, .. } => assert_eq!(snapshot, newest),
        other => panic!("{other}"),
    }
    world.assert_no_holds();
}

/// A run tries 32 snapshots, and none of them is uploaded up to the unreadable block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_ends_after_many_unreadable_snapshots() {
    let (keys, writer) = quick_keys();
    let world = World::empty(keys, writer);
    let bad = damaged_snapshot(&world);
    failed_night(&world, &bad).await;
    for _ in 0..40 {
        world.snapshot();
    }
    let night = run(&world).await;
    assert!(matches!(
        night,
        Err(RunError::SteppedOver { newest: None, .. })
    ));
    let unfinished = plan_resumes(&world.env(), &world.selected(), RequestedKind::Lifecycle).await;
    assert_eq!(unfinished.unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_first_full_is_stepped_over_and_tried_again_with_restart() {
    let (keys, writer) = quick_keys();
    let mut world = World::empty(keys, writer);
    let bad = damaged_snapshot(&world);
    failed_night(&world, &bad).await;
    for _ in 0..2 {
        match run(&world).await.unwrap_err() {
            RunError::SteppedOver {
                snapshot, newest, ..
            } => assert_eq!((snapshot, newest), (bad.clone(), None)),
            other => panic!("{other}"),
        }
        world.assert_no_holds();
    }
    let planned = plan_backup(&world.env(), &world.selected(), RequestedKind::Lifecycle).await;
    assert!(matches!(planned, Err(RunError::SteppedOver { .. })));
    world.zfs.repair_blocks();
    world.settings.restart = true;
    committed(run(&world).await.unwrap());
    world.settings.restart = false;
    assert!(up_to_date(&run(&world).await.unwrap()).is_some());
    assert_newest_restores(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_snapshot_is_backed_up_while_the_newest_is_unreadable() {
    let world = World::new();
    let stored = world.back_up().await.manifest.id;
    let bad = damaged_snapshot(&world);
    failed_night(&world, &bad).await;
    for _ in 0..2 {
        let night = run(&world).await.unwrap();
        assert_eq!(night.committed.len(), 0);
        match night.end.unwrap_err() {
            RunError::SteppedOver {
                snapshot, newest, ..
            } => assert_eq!((snapshot, newest), (bad.clone(), Some(stored.clone()))),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_is_resumed_when_its_snapshot_becomes_readable_or_fails_elsewhere() {
    let world = World::new();
    world.back_up().await;
    let bad = damaged_snapshot(&world);
    let first = failed_night(&world, &bad).await;
    world.zfs.repair_blocks();
    world
        .zfs
        .damage_block(&world.dataset, BAD, BAD_OFFSET + 65_536);
    let second = failed_night(&world, &bad).await;
    assert!(second.position > first.position, "{first} {second}");
    let resumed = plan_resumes(&world.env(), &world.selected(), RequestedKind::Lifecycle)
        .await
        .unwrap();
    world.zfs.repair_blocks();
    let backup = committed(run(&world).await.unwrap());
    assert_eq!(backup.manifest.id, resumed[0].id);
    world.assert_no_holds();
    assert_newest_restores(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incremental_is_sent_when_a_due_full_cannot_be_read() {
    let mut world = World::new();
    let base = world.back_up().await.manifest;
    world.zfs.damage_block(&world.dataset, 8, 8192);
    world.zfs.write_file(&world.dataset, 60, &noise(60, 9000));
    world.snapshot();
    world.settings.lifecycle.full_age_max = Some(SignedDuration::from_secs(1));
    let night = run(&world).await.unwrap();
    let [incremental] = &night.committed[..] else {
        panic!("one backup is committed");
    };
    let of_base = incremental.manifest.base.as_ref().unwrap();
    assert_eq!(of_base.backup_id, base.id);
    let end = night.end.unwrap_err();
    assert!(matches!(end, RunError::ReadSnapshot { .. }), "{end}");
    assert_newest_restores(&world).await;
}
