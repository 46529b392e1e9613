//! Snapshots that need no backup, because nothing was written since the newest one, and how little
//! they ask of the store.

use crate::cached::prune_task;
use crate::world::{LIFECYCLE, World, all_committed, name, noise, now, quick_keys};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::sync::Arc;
use zfs_backup::config::{RawMode, RetentionRules};
use zfs_backup::model::{BackupId, BackupKind};
use zfs_backup::plan::send::{LifecycleRules, RequestedKind, SendPlan};
use zfs_backup::run::RunError;
use zfs_backup::run::backup::{BackupEnd, BackupEnv, BackupRun, back_up, plan_backup};
use zfs_backup::run::prune::{PruneEnv, PruneTask, deletes_nothing, forget, prune_dataset};
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::store::{LockMode, ObjectLock, StoreErrorKind};
use zfs_backup::zfs::{PropertyValue, ZfsSnapshots};

/// A dataset with one backup.
async fn backed_up() -> (World, BackupId) {
    let mut world = World::new();
    world.settings.skip_unchanged = true;
    let run = world
        .try_back_up_as(RequestedKind::Lifecycle)
        .await
        .unwrap();
    let id = all_committed(run).remove(0).manifest.id;
    (world, id)
}

async fn run(env: &BackupEnv, world: &World) -> Result<BackupRun, RunError> {
    back_up(env, &world.selected(), RequestedKind::Lifecycle).await
}

/// Describes the end of a run: `unchanged`, `up to date`, `full` or `incr`.
fn words(run: &BackupRun, before: &BackupId) -> &'static str {
    match (&run.end, run.committed.first()) {
        (Ok(BackupEnd::Unchanged { id, .. }), None) => {
            assert_eq!(id, before);
            "unchanged"
        }
        (Ok(BackupEnd::UpToDate(_)), None) => "up to date",
        (Ok(BackupEnd::UpToDate(_)), Some(backup)) => match backup.manifest.id.kind() {
            BackupKind::Full => "full",
            BackupKind::Incr => "incr",
        },
        other => panic!("{other:?}"),
    }
}

/// Makes the next night of a dataset with one backup, and returns how it ends.
async fn next_night(change: impl AsyncFnOnce(&mut World)) -> &'static str {
    let (mut world, id) = backed_up().await;
    change(&mut world).await;
    world.snapshot();
    let run = run(&world.env(), &world).await.unwrap();
    words(&run, &id)
}

#[tokio::test]
async fn snapshot_without_a_write_needs_no_backup_and_the_next_write_builds_on_the_base() {
    let (world, id) = backed_up().await;
    let stored = world.store.keys();
    for _ in 0..3 {
        let snapshot = world.snapshot();
        let run = run(&world.env(), &world).await.unwrap();
        let Ok(BackupEnd::Unchanged {
            snapshot: found, ..
        }) = &run.end
        else {
            panic!("{run:?}");
        };
        assert_eq!(found.name, snapshot);
    }
    assert_eq!(world.store.keys(), stored);
    world.zfs.write_file(&world.dataset, 9, b"new");
    world.snapshot();
    let next = all_committed(run(&world.env(), &world).await.unwrap());
    assert_eq!(next[0].manifest.base.as_ref().unwrap().backup_id, id);
    let target = name("tank/restored");
    world.restore_into(&target).await.unwrap();
    assert_eq!(world.zfs.files(&target), world.zfs.files(&world.dataset));
}

#[tokio::test]
async fn what_counts_as_a_change() {
    let nothing = next_night(async |_| {}).await;
    assert_eq!(nothing, "unchanged");
    let only_a_bookmark_is_left = next_night(async |world| {
        let snapshot = world.newest_snapshot();
        world.zfs.destroy_snapshots(&[snapshot]).unwrap();
    });
    assert_eq!(only_a_bookmark_is_left.await, "unchanged");
    let due_full = next_night(async |world| {
        world.settings.lifecycle = LifecycleRules {
            incrementals_max: Some(0),
            ..LIFECYCLE
        };
    });
    assert_eq!(due_full.await, "unchanged");
    let removed = next_night(async |world| world.zfs.remove_file(&world.dataset, 8)).await;
    assert_eq!(removed, "incr");
    let property = next_night(async |world| {
        let value = PropertyValue::Text("zstd".into());
        world.zfs.set_property(&world.dataset, "compression", value);
    });
    assert_eq!(property.await, "incr");
    let flags = next_night(async |world| world.settings.compressed = false).await;
    assert_eq!(flags, "full");
    let recipients = next_night(async |world| {
        let (_, other) = quick_keys();
        world.writer.recipients.extend(other.recipients);
    });
    assert_eq!(recipients.await, "full");
    let raw = next_night(async |world| world.settings.raw = RawMode::Always).await;
    assert_eq!(raw, "full");
    let turned_off = next_night(async |world| world.settings.skip_unchanged = false).await;
    assert_eq!(turned_off, "incr");
    let records_lost = next_night(async |world| {
        std::fs::remove_dir_all(world.settings.state_dir.join("records")).unwrap();
    });
    assert_eq!(records_lost.await, "incr");
    let estimate_lies = next_night(async |world| {
        world.zfs.write_file(&world.dataset, 9, b"new");
        world.zfs.set_estimate(0);
    });
    assert_eq!(estimate_lies.await, "incr");
}

#[tokio::test]
async fn a_request_for_a_kind_is_carried_out_without_a_change() {
    for (requested, kind) in [
        (RequestedKind::Incremental, BackupKind::Incr),
        (RequestedKind::Full, BackupKind::Full),
    ] {
        let (world, _) = backed_up().await;
        world.snapshot();
        let made = all_committed(world.try_back_up_as(requested).await.unwrap());
        assert_eq!(made[0].manifest.id.kind(), kind);
    }
}

#[tokio::test]
async fn raw_streams_are_always_backed_up_because_the_key_may_have_changed() {
    let mut world = World::new();
    world.settings.skip_unchanged = true;
    world.zfs.set_encrypted(&world.dataset, false);
    world.snapshot();
    for kind in [BackupKind::Full, BackupKind::Incr] {
        let run = world.try_back_up_as(RequestedKind::Lifecycle).await;
        assert_eq!(all_committed(run.unwrap())[0].manifest.id.kind(), kind);
        world.snapshot();
    }
}

#[tokio::test]
async fn dry_run_says_unchanged_and_changes_nothing() {
    let (world, id) = backed_up().await;
    world.snapshot();
    let (env, selected) = (world.env(), world.selected());
    let planned = plan_backup(&env, &selected, RequestedKind::Lifecycle)
        .await
        .unwrap();
    let SendPlan::Unchanged { id: found, .. } = planned.plan else {
        panic!("{planned:?}");
    };
    assert_eq!(found, id);
}

/// An environment in which the store's list of datasets is known.
fn listing(world: &World) -> BackupEnv {
    BackupEnv {
        listed: Some(Arc::new(BTreeSet::from([world.dataset.clone()]))),
        ..world.env()
    }
}

/// Returns how the night ends, and how many calls it makes to the store.
async fn calls_of(env: &BackupEnv, world: &World, before: &BackupId) -> (&'static str, usize) {
    world.store.clear_events();
    let run = run(env, world).await.unwrap();
    (words(&run, before), world.store.events().len())
}

#[tokio::test]
async fn unchanged_dataset_costs_no_request() {
    let (world, id) = backed_up().await;
    let env = listing(&world);
    assert_eq!(calls_of(&env, &world, &id).await, ("up to date", 0));
    world.snapshot();
    assert_eq!(calls_of(&env, &world, &id).await, ("unchanged", 0));
    world.zfs.write_file(&world.dataset, 9, b"new");
    world.snapshot();
    let (end, calls) = calls_of(&env, &world, &id).await;
    assert_eq!(end, "incr");
    assert!(calls > 0);
    // The commit is remembered too.
    assert_eq!(calls_of(&env, &world, &id).await, ("up to date", 0));
}

#[tokio::test]
async fn the_store_is_read_whenever_its_memory_may_be_wrong() {
    type Change = fn(&World, &mut BackupEnv);
    let cases: [(&str, Change); 6] = [
        ("nobody listed the datasets", |_, env| env.listed = None),
        ("the dataset is not listed", |_, env| {
            env.listed = Some(Arc::default())
        }),
        ("a week has passed", |_, env| {
            env.now = || now() + SignedDuration::from_hours(7 * 24)
        }),
        ("the clock went back", |_, env| {
            env.now = || now() - SignedDuration::from_secs(1)
        }),
        ("the time of the reading is lost", |world, _| {
            let folder = std::fs::read_dir(world.settings.state_dir.join("remote")).unwrap();
            for folder in folder {
                std::fs::remove_file(folder.unwrap().path().join("read-at")).unwrap();
            }
        }),
        ("a manifest in the memory is damaged", |world, _| {
            let folder = std::fs::read_dir(world.settings.state_dir.join("remote")).unwrap();
            for file in folder.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap())
            {
                let path = file.unwrap().path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "json")
                {
                    std::fs::write(path, b"{}").unwrap();
                }
            }
        }),
    ];
    for (case, change) in cases {
        let (world, id) = backed_up().await;
        world.snapshot();
        let mut env = listing(&world);
        change(&world, &mut env);
        let (end, calls) = calls_of(&env, &world, &id).await;
        assert_eq!(end, "unchanged", "{case}");
        assert!(calls > 0, "{case}");
    }
}

#[tokio::test]
async fn unfinished_upload_is_resumed_although_nothing_changed_since() {
    let (world, id) = backed_up().await;
    let env = listing(&world);
    world.zfs.write_file(&world.dataset, 9, &noise(9, 200_000));
    world.snapshot();
    let refused = Fault::before(StoreErrorKind::Denied).of(Operation::Finish);
    world.store.fail(refused);
    run(&env, &world).await.unwrap_err();
    let (end, _) = calls_of(&env, &world, &id).await;
    assert_eq!(end, "incr");
}

#[tokio::test]
async fn forgotten_backup_is_made_again_the_next_night() {
    let (world, id) = backed_up().await;
    let env = world.prune_env(now());
    forget(&env, &world.dataset, &id, None).await.unwrap();
    world.snapshot();
    let run = run(&listing(&world), &world).await.unwrap();
    assert_eq!(words(&run, &id), "full");
}

/// Whether a prune with these rules would need the store.
fn is_settled(world: &World, env: &PruneEnv, rules: &RetentionRules) -> bool {
    world.store.clear_events();
    let guid = world.selected().dataset.guid;
    let settled = deletes_nothing(env, &world.dataset, guid, rules).unwrap();
    assert!(world.store.events().is_empty());
    settled
}

#[tokio::test]
async fn prune_asks_nothing_while_the_rules_keep_all_that_is_remembered() {
    let (world, _) = backed_up().await;
    let one_chain = RetentionRules {
        last_chains: Some(1),
        ..RetentionRules::default()
    };
    let env = world.prune_env(now());
    assert!(!is_settled(&world, &env, &one_chain), "never pruned");
    let task = PruneTask {
        rules: one_chain.clone(),
        ..prune_task(&world)
    };
    prune_dataset(&env, &task).await.unwrap();
    assert!(is_settled(&world, &env, &one_chain));
    let in_a_week = world.prune_env(now() + SignedDuration::from_hours(7 * 24));
    assert!(!is_settled(&world, &in_a_week, &one_chain));
    let yesterday = world.prune_env(now() - SignedDuration::from_hours(24));
    assert!(!is_settled(&world, &yesterday, &one_chain));

    // A second chain: the first is deleted, and until the store is read again nothing is known.
    world.snapshot();
    world.try_back_up_as(RequestedKind::Full).await.unwrap();
    assert!(!is_settled(&world, &env, &one_chain));
    assert!(is_settled(&world, &env, &RetentionRules::default()));
    assert_eq!(prune_dataset(&env, &task).await.unwrap().deleted.len(), 1);
    assert!(!is_settled(&world, &env, &one_chain));
    run(&world.env(), &world).await.unwrap();
    assert!(is_settled(&world, &env, &one_chain));

    // An unfinished upload of this host may have left something.
    world.zfs.write_file(&world.dataset, 9, b"new");
    world.snapshot();
    let refused = Fault::before(StoreErrorKind::Denied).of(Operation::Finish);
    world.store.fail(refused);
    run(&world.env(), &world).await.unwrap_err();
    assert!(!is_settled(&world, &env, &one_chain));
}

#[tokio::test]
async fn backup_is_made_in_time_to_extend_the_locks_of_the_chain() {
    let lock = ObjectLock {
        days: 30,
        mode: LockMode::Governance,
        covers_chains: false,
    };
    type Clock = fn() -> Timestamp;
    let nights: [(Clock, &str); 3] = [
        (now, "unchanged"),
        (|| now() + SignedDuration::from_hours(14 * 24), "unchanged"),
        (|| now() + SignedDuration::from_hours(15 * 24), "incr"),
    ];
    for (night, expected) in nights {
        let (world, id) = backed_up().await;
        world.store.set_lock(Some(lock), true);
        world.snapshot();
        let env = BackupEnv {
            now: night,
            ..listing(&world)
        };
        assert_eq!(words(&run(&env, &world).await.unwrap(), &id), expected);
    }
}

#[tokio::test]
async fn failed_prune_is_repeated_by_the_next_and_not_taken_for_done() {
    let (world, _) = backed_up().await;
    let one_chain = RetentionRules {
        last_chains: Some(1),
        ..RetentionRules::default()
    };
    let env = world.prune_env(now());
    let task = PruneTask {
        rules: one_chain.clone(),
        ..prune_task(&world)
    };
    prune_dataset(&env, &task).await.unwrap();
    assert!(is_settled(&world, &env, &one_chain));
    world.snapshot();
    world.try_back_up_as(RequestedKind::Full).await.unwrap();
    let stays = Fault::before(StoreErrorKind::Denied).of(Operation::Delete);
    world.store.fail(stays.on("receipt.json").forever());
    prune_dataset(&env, &task).await.unwrap_err();
    world.store.heal();
    run(&world.env(), &world).await.unwrap();
    assert!(!is_settled(&world, &env, &one_chain));
}
