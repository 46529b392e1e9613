//! Deleting commands must never follow a wrong clock, take a foreign snapshot for their own, miss a
//! backup that builds on another, or stop for ever because of one object that anybody can plant.

use crate::chain::{plant, plant_prune_record, plant_twin};
use crate::chains::{night, nightly};
use crate::prune::Hooked;
use crate::upload::{Pair, reasons};
use crate::world::{SNAPSHOT_PREFIX, World, key_of, never, now};
use jiff::{SignedDuration, Timestamp};
use std::sync::Arc;
use zfs_backup::catalog::read_catalog;
use zfs_backup::config::{Age, RetentionRules};
use zfs_backup::manifest::{Manifest, PruneRecord, PrunedEntry, to_stored_bytes};
use zfs_backup::model::{BackupId, BackupKind, Guid, SnapshotName};
use zfs_backup::plan::clock::{ClockReading, ClockTrust};
use zfs_backup::plan::prune::Doubt;
use zfs_backup::plan::restore::plan_restore;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::plan::snapshots::{SnapshotReason, SnapshotVerdict, find_snapshots_doubt};
use zfs_backup::run::backup::{BackupEnv, back_up};
use zfs_backup::run::clock::ClockCheck;
use zfs_backup::run::copy::UploadEnv;
use zfs_backup::run::pool::pins::HOLD_PREFIX;
use zfs_backup::run::pool::prune_snapshots::{
    SnapshotStore, SnapshotsEnv, judge_snapshots, prune_snapshots,
};
use zfs_backup::run::prune::{PruneEnv, PruneTask, SecondaryStore, forget, prune_dataset};
use zfs_backup::sign::SignedType;
use zfs_backup::state::journal::AttemptJournal;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{ObjectKey, StoreErrorKind, StoreInfo, StoreRead, StoreWrite};
use zfs_backup::zfs::{ZfsRead, ZfsSnapshots};

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// A clock at this time, without NTP, of a host that made no note yet.
fn alone_at(now: Timestamp) -> ClockCheck {
    let reading = ClockReading {
        wall: now,
        since_boot_seconds: 1000,
        boot_id: "a".into(),
        is_synchronised: false,
    };
    ClockCheck {
        reading,
        note: None,
        is_vouched: false,
        run_seconds: 60,
    }
}

async fn world_of_nights(count: u64) -> World {
    let world = World::new();
    for number in 0..count {
        night(&world, number);
        nightly(&world).await;
    }
    world
}

fn snapshots_env(world: &World, now: Timestamp, clock: ClockCheck) -> SnapshotsEnv {
    SnapshotsEnv {
        zfs: Arc::new(world.zfs.clone()),
        stores: vec![SnapshotStore {
            store: world.shared_store(),
            beside_remote: false,
        }],
        trusted: world.keys.trusted.clone(),
        state_dir: world.settings.state_dir.clone(),
        oldest_days: 120,
        levels: None,
        prefix: SNAPSHOT_PREFIX.into(),
        now,
        clock,
    }
}

async fn verdicts(world: &World, now: Timestamp, clock: ClockCheck) -> Vec<SnapshotVerdict> {
    judge_snapshots(&snapshots_env(world, now, clock), &world.selected())
        .await
        .unwrap()
}

fn doomed(verdicts: &[SnapshotVerdict]) -> Vec<&SnapshotName> {
    verdicts
        .iter()
        .filter(|verdict| verdict.destroy)
        .map(|verdict| &verdict.name)
        .collect()
}

fn task(world: &World, from: &Manifest, rules: &RetentionRules) -> PruneTask {
    PruneTask {
        stored: world.dataset.clone(),
        origins: vec![from.origin.clone()],
        rules: rules.clone(),
        secondary: SecondaryStore::Nothing,
    }
}

/// A remote that has a child and, in place of its base, a twin of that.
async fn child_of_a_twin() -> (Pair, Manifest, Manifest) {
    let world = World::new();
    let full = world.back_up().await.manifest;
    night(&world, 1);
    let child = nightly(&world).await.manifest;
    assert_eq!(
        child.base.as_ref().map(|base| &base.backup_id),
        Some(&full.id)
    );
    let twin = plant_twin(&world, &full, 0x77);
    let pair = Pair::new(world);
    for key in pair
        .world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&key_of(&twin, "")))
    {
        pair.remote
            .plant(key, pair.world.store.object(key).unwrap());
        pair.world.store.lose(key);
    }
    (pair, twin, child)
}

async fn is_restorable(pair: &Pair, id: &BackupId) -> bool {
    let catalog = read_catalog(&pair.remote, &pair.world.dataset, &pair.world.keys.trusted)
        .await
        .unwrap();
    let known: Vec<_> = catalog
        .backups
        .iter()
        .map(|backup| (&backup.manifest, backup.manifest_blake3))
        .collect();
    plan_restore(&known, id).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forget_refuses_a_twin_that_is_the_base_of_a_backup() {
    let (pair, twin, child) = child_of_a_twin().await;
    pair.try_upload().await.unwrap();
    assert!(is_restorable(&pair, &child.id).await);
    let env = PruneEnv {
        store: Arc::new(pair.remote.clone()),
        ..pair.world.prune_env(now())
    };
    let before = pair.remote.keys();
    let refused = forget(&env, &pair.world.dataset, &twin.id, None)
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains(&format!("{} builds on {}", child.id, twin.id)),
        "{refused}"
    );
    assert!(
        refused
            .hint()
            .unwrap()
            .contains(&format!("zfs-backup forget {}", child.id)),
        "{refused:?}"
    );
    assert_eq!(pair.remote.keys(), before);
    assert!(is_restorable(&pair, &child.id).await);
    forget(&env, &pair.world.dataset, &child.id, None)
        .await
        .unwrap();
    forget(&env, &pair.world.dataset, &twin.id, None)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forget_refuses_a_twin_that_an_unfinished_copy_needs_as_base() {
    let (pair, twin, child) = child_of_a_twin().await;
    pair.remote.fail(
        Fault::before(StoreErrorKind::Full)
            .of(Operation::Create)
            .forever(),
    );
    pair.try_upload().await.unwrap();
    pair.remote.heal();
    let unfinished = key_of(&child, "started.json");
    assert!(pair.remote.object(&unfinished).is_some() && pair.manifests_in_remote() == 1);
    let env = PruneEnv {
        store: Arc::new(pair.remote.clone()),
        ..pair.world.prune_env(now())
    };
    let refused = forget(&env, &pair.world.dataset, &twin.id, None)
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains(&format!("{} builds on {}", child.id, twin.id)),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_years_ahead_destroys_no_snapshot() {
    let world = world_of_nights(4).await;
    let ahead = time("2040-02-10T00:00:00Z");
    // The store's clock says so, even against a person's word.
    world.store.set_clock(Some(time("2026-02-10T00:00:00Z")));
    for clock in [alone_at(ahead), ClockCheck::vouched_at(ahead)] {
        let found = verdicts(&world, ahead, clock.clone()).await;
        assert_eq!(doomed(&found), Vec::<&SnapshotName>::new());
        let doubt = find_snapshots_doubt(&found, "prune-snapshots").unwrap();
        assert!(
            doubt.what.contains("14y") && doubt.what.contains("ahead of the clock of memory:"),
            "{doubt:?}"
        );
        let outcomes = prune_snapshots(&snapshots_env(&world, ahead, clock), &world.selected())
            .await
            .unwrap();
        assert!(outcomes.iter().all(|outcome| !outcome.verdict.destroy));
        assert!(
            !world.settings.state_dir.join("clock.json").exists(),
            "a doubtful clock is noted"
        );
    }
    // Without a clock in the store the newest snapshot says so.
    world.store.set_host_clock(ahead);
    let found = verdicts(&world, ahead, alone_at(ahead)).await;
    let doubt = find_snapshots_doubt(&found, "prune-snapshots").unwrap();
    assert!(
        doubt.what.contains("after the newest snapshot") && doomed(&found).is_empty(),
        "{doubt:?}"
    );
    assert!(
        doubt
            .hint
            .contains("zfs-backup prune-snapshots -y --clock-is-right"),
        "{doubt:?}"
    );
    assert!(doomed(&verdicts(&world, ahead, ClockCheck::vouched_at(ahead)).await).len() >= 3);
    // If nothing would be destroyed, the clock does not matter.
    let young = SnapshotsEnv {
        oldest_days: 36_500,
        ..snapshots_env(&world, ahead, alone_at(ahead))
    };
    let found = judge_snapshots(&young, &world.selected()).await.unwrap();
    assert_eq!(find_snapshots_doubt(&found, "prune-snapshots"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_of_a_folder_store_is_judged_by_saved_clock_readings() {
    let world = World::new();
    let first = world.back_up().await.manifest;
    for number in 1..4 {
        plant(&world, &first, number, None);
    }
    let rules = RetentionRules {
        within: Some(Age::days(90)),
        ..Default::default()
    };
    let prune = async |at: &str, clock: ClockCheck| {
        let at = time(at);
        world.store.set_host_clock(at);
        let clock = ClockCheck {
            reading: ClockReading {
                wall: at,
                ..clock.reading
            },
            ..clock
        };
        let env = PruneEnv {
            clock,
            ..world.prune_env(at)
        };
        prune_dataset(&env, &task(&world, &first, &rules))
            .await
            .unwrap()
    };
    let state_dir = &world.settings.state_dir;
    let begun = alone_at(time("2026-01-04T12:00:00Z"));
    let done = prune("2026-01-04T12:00:00Z", begun).await;
    assert_eq!(
        (done.deleted.len(), done.view.clock.clone()),
        (0, Ok(ClockTrust::Confirmed))
    );
    let note = ClockCheck::read(state_dir, false).unwrap().note.unwrap();
    assert_eq!(note.wall, time("2026-01-04T12:00:00Z"));

    // A day after the note by the time since boot, and 14 years after it by the time of day.
    let jumped = ClockCheck {
        reading: ClockReading {
            since_boot_seconds: 1000 + 86_400,
            ..note.clone()
        },
        note: Some(note.clone()),
        ..alone_at(note.wall)
    };
    for _ in 0..2 {
        let done = prune("2040-01-20T00:00:00Z", jumped.clone()).await;
        assert!(
            matches!(&done.view.plan.doubts[..], [Doubt::Clock(_)]),
            "{:?}",
            done.view.plan.doubts
        );
        assert!(done.deleted.is_empty() && !done.view.plan.doubts[0].is_damage());
        assert_eq!(
            ClockCheck::read(state_dir, false).unwrap().note,
            Some(note.clone()),
            "it confirms itself"
        );
    }
    // The host was off for half a year: nothing confirms its clock but a person, once.
    let off = ClockCheck {
        reading: ClockReading {
            boot_id: "b".into(),
            since_boot_seconds: 60,
            ..note.clone()
        },
        ..jumped
    };
    let done = prune("2026-07-20T00:00:00Z", off.clone()).await;
    assert!(
        done.deleted.is_empty()
            && done.view.plan.doubts[0]
                .to_string()
                .contains("after the last run")
    );
    assert!(
        done.view.plan.doubts[0]
            .hint("prune-remote", &world.dataset)
            .contains("prune-remote -y --clock-is-right")
    );
    let done = prune(
        "2026-07-20T00:00:00Z",
        ClockCheck {
            is_vouched: true,
            ..off.clone()
        },
    )
    .await;
    assert_eq!((done.deleted.len(), done.view.plan.doubts.len()), (3, 0));
    let note = ClockCheck::read(state_dir, false).unwrap().note;
    assert_eq!(note.clone().unwrap().wall, time("2026-07-20T00:00:00Z"));
    let next = ClockReading {
        since_boot_seconds: 60 + 86_400,
        ..off.reading.clone()
    };
    let done = prune(
        "2026-07-21T00:00:00Z",
        ClockCheck {
            reading: next,
            note,
            ..off
        },
    )
    .await;
    assert_eq!(
        (done.view.clock, done.view.plan.doubts.len()),
        (Ok(ClockTrust::Confirmed), 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_remotes_clock_decides_for_the_intermediate_directory_too() {
    let world = World::new();
    let first = world.back_up().await.manifest;
    plant(&world, &first, 1, None);
    let ahead = time("2040-01-20T00:00:00Z");
    world.store.set_host_clock(ahead);
    let remote = MemoryStore::with_traits(world.store.traits().clone());
    for key in world.store.keys() {
        remote.plant(&key, world.store.object(&key).unwrap());
    }
    let rules = RetentionRules {
        last_fulls: Some(1),
        ..Default::default()
    };
    for (at, deleted) in [("2026-02-10T00:00:00Z", 0), ("2040-01-19T23:00:00Z", 1)] {
        remote.set_clock(Some(time(at)));
        let secondary = SecondaryStore::Remote(Arc::new(remote.clone()));
        let env = PruneEnv {
            clock: alone_at(ahead),
            ..world.prune_env(ahead)
        };
        let done = prune_dataset(
            &env,
            &PruneTask {
                secondary,
                ..task(&world, &first, &rules)
            },
        )
        .await
        .unwrap();
        assert_eq!(
            done.deleted.len(),
            deleted,
            "{at}: {:?}",
            done.view.plan.doubts
        );
        assert_eq!(done.view.plan.doubts.len(), 1 - deleted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_uploads_are_kept_while_the_clock_is_doubtful() {
    let world = World::new();
    let first = world.back_up().await.manifest;
    let ahead = time("2040-01-20T00:00:00Z");
    let probe = ObjectKey::listed("@zfs-backup/probe/0000000000000001/parts").unwrap();
    world.store.set_host_clock(time("2026-01-06T00:00:00Z"));
    drop(world.store.create(&probe).await.unwrap());
    world.store.set_host_clock(ahead);
    // An object of tonight, so that the folder's newest time is tonight's too.
    world
        .store
        .plant(&format!("{}/note", world.dataset), &b"x"[..]);
    let prune = async |clock: ClockCheck| {
        let env = PruneEnv {
            clock,
            ..world.prune_env(ahead)
        };
        prune_dataset(&env, &task(&world, &first, &RetentionRules::default()))
            .await
            .unwrap();
        world.store.unfinished("").await.unwrap().len()
    };
    assert_eq!(prune(alone_at(ahead)).await, 1);
    assert_eq!(prune(ClockCheck::vouched_at(ahead)).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshot_with_the_user_property_but_another_name_is_not_own() {
    let world = world_of_nights(2).await;
    let guid = world.zfs.dataset(&world.dataset).unwrap().unwrap().guid;
    let names = [
        "before-the-migration-KEEP",
        "zfs-backup_before-the-migration",
        "zfs-backup_20260101T000000Z-",
        "zfs-backup_20260101T000000Z-100",
        "zfs-backup_20260101T000000Z-x",
        "zfs-backup_20260101T000000Z.KEEP",
        "zfs-backup_2026-0101T00000Z",
        "zfs-backup_20260101t000000z",
        "old-prefix_20260101T000000Z",
    ];
    let mark = [("zfs-backup:origin".to_owned(), guid.to_string())].into();
    for short in names {
        world
            .zfs
            .take_snapshots(&[world.dataset.snapshot(short).unwrap()], &mark)
            .unwrap();
    }
    // The name of ours with the guid of another dataset, as on a replica.
    let replica = world
        .dataset
        .snapshot("zfs-backup_20260101T000000Z")
        .unwrap();
    let other = [("zfs-backup:origin".to_owned(), Guid(guid.0 + 1).to_string())].into();
    world
        .zfs
        .take_snapshots(std::slice::from_ref(&replica), &other)
        .unwrap();
    // A backup uses none of these snapshots, although each is newer than the stored ones.
    let outcome = world
        .try_back_up_as(RequestedKind::Lifecycle)
        .await
        .unwrap();
    assert!(crate::world::up_to_date(&outcome).is_some(), "{outcome:?}");
    let later = time("2026-12-08T00:00:00Z");
    let found = verdicts(&world, later, ClockCheck::vouched_at(later)).await;
    assert_eq!(doomed(&found).len(), 3, "the own ones go: {found:?}");
    for short in names {
        let verdict = found
            .iter()
            .find(|verdict| verdict.name.short() == short)
            .unwrap();
        assert_eq!(
            verdict.reason,
            SnapshotReason::NotOurName {
                prefix: SNAPSHOT_PREFIX.into()
            },
            "{short}"
        );
        assert!(
            !verdict.destroy
                && verdict
                    .reason
                    .to_string()
                    .contains("its name is not zfs-backup_TIME")
        );
    }
    assert!(found.iter().all(|verdict| verdict.name != replica));
    assert_eq!(find_snapshots_doubt(&found, "prune-snapshots"), None);
    // Under another prefix the own ones of before stay, and are named.
    let env = SnapshotsEnv {
        prefix: "new_".into(),
        ..snapshots_env(&world, later, ClockCheck::vouched_at(later))
    };
    let found = judge_snapshots(&env, &world.selected()).await.unwrap();
    assert!(
        doomed(&found).is_empty() && found.len() == names.len() + 3,
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_object_does_not_prevent_snapshot_pruning() {
    let world = world_of_nights(4).await;
    let later = time("2026-12-08T00:00:00Z");
    let view = async || verdicts(&world, later, ClockCheck::vouched_at(later)).await;
    let before = view().await;
    assert!(doomed(&before).len() >= 3, "{before:?}");
    let id = BackupId::new(now(), BackupKind::Incr, Guid(0xdead), 1);
    let prefix = format!("{}/@{id}", world.dataset);
    for object in [
        "00000000-00000000.zfs.age",
        "started.json.minisig",
        "started.json",
    ] {
        world.store.plant(&format!("{prefix}/{object}"), &b"x"[..]);
        world.store.clear_events();
        assert_eq!(view().await, before, "{object}");
        let fetched = world
            .store
            .events()
            .into_iter()
            .any(|event| event.key.starts_with(&prefix));
        assert!(!fetched, "what nobody here knows is not even fetched");
    }

    // An attempt that this host's journal knows may need any of them, while its first object does
    // not say which.
    let (state_dir, place) = (&world.settings.state_dir, world.store.known());
    let journal = AttemptJournal::begin(state_dir, &place, &world.dataset, &id).unwrap();
    let found = view().await;
    assert!(doomed(&found).is_empty() && !found.is_empty());
    let doubt = find_snapshots_doubt(&found, "prune-snapshots").unwrap();
    assert!(
        doubt.what.contains(id.as_str()) && doubt.hint.contains(&format!("zfs-backup forget {id}")),
        "{doubt:?}"
    );
    // Also one that was about to commit.
    journal.committing().unwrap();
    assert!(find_snapshots_doubt(&view().await, "prune-snapshots").is_some());

    // With its hold in the pool all that it needs is held.
    let held = &world.zfs.snapshots(&world.dataset).unwrap()[0].name;
    world.zfs.hold(held, &format!("{HOLD_PREFIX}{id}")).unwrap();
    let found = view().await;
    assert_eq!(find_snapshots_doubt(&found, "prune-snapshots"), None);
    let free: Vec<_> = doomed(&before)
        .into_iter()
        .filter(|name| *name != held)
        .collect();
    assert_eq!(doomed(&found), free);
}

/// Puts a signed record that a prune deletes a backup, as another host would.
fn pruner(world: &World) -> impl Fn(&MemoryStore, &BackupId) + Send + Sync + use<> {
    let (signing, dataset) = (world.writer.signing.clone(), world.dataset.clone());
    move |store, id| {
        let key = ObjectKey::prune_record(&dataset, "20260101T000000Z", 7);
        let record = PruneRecord {
            format: 1,
            object_type: "prune-record".into(),
            dataset: dataset.clone(),
            pruned: vec![PrunedEntry {
                id: id.clone(),
                manifest_blake3: None,
            }],
            tool_version: "test".into(),
            written_at: now(),
            recorded_at: None,
            voids: Vec::new(),
        };
        let bytes = to_stored_bytes(&record).unwrap();
        let signature = signing
            .sign(SignedType::PruneRecord, key.as_str(), &bytes)
            .unwrap();
        store.plant(key.signature().as_str(), signature);
        store.plant(key.as_str(), bytes);
    }
}

/// A store in which another host prunes each upload just before its commit.
fn pruned_before_its_commit(world: &World, store: &MemoryStore) -> Arc<Hooked> {
    let (prune, inner) = (pruner(world), store.clone());
    Arc::new(Hooked::new(store, move |operation, key| {
        if operation == Operation::PutNew && key.ends_with("RESTORE.txt") {
            prune(&inner, &ObjectKey::parse(key).unwrap().id);
        }
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_pruned_during_its_upload_is_not_committed() {
    let world = World::new();
    let full = world.back_up().await.manifest;
    let pair = Pair::new(world);
    pair.remote.set_clock(Some(now()));
    let env = UploadEnv {
        to: pruned_before_its_commit(&pair.world, &pair.remote),
        ..pair.env(never())
    };
    let report = pair.upload_with(&env, true, &[]).await.unwrap();
    assert!(
        reasons(&report)[0].contains(&format!("{} was pruned from memory:", full.id)),
        "{:?}",
        reasons(&report)
    );
    assert_eq!((pair.manifests_in_remote(), report.copied.len()), (0, 0));
    // The other host may still be deleting, and after that a prune deletes the rest.
    let refused = async |hours: i64, expected: &str| {
        pair.remote
            .set_clock(Some(now() + SignedDuration::from_hours(hours)));
        let report = pair
            .upload_with(&pair.env(never()), true, &[])
            .await
            .unwrap();
        let reasons = reasons(&report);
        assert!(reasons[0].contains(expected), "{reasons:?}");
        assert_eq!((pair.manifests_in_remote(), report.copied.len()), (0, 0));
    };
    refused(47, "another host pruned").await;
    refused(49, "a prune deletes them as the rest of that backup").await;
    let env = PruneEnv {
        store: Arc::new(pair.remote.clone()),
        state_dir: pair.state.path().to_owned(),
        ..pair.world.prune_env(now() + SignedDuration::from_hours(49))
    };
    let rest = prune_dataset(&env, &task(&pair.world, &full, &RetentionRules::default()))
        .await
        .unwrap();
    assert_eq!(rest.deleted, std::slice::from_ref(&full.id));
    // Asked for, the copy is made.
    pair.remote
        .set_clock(Some(now() + SignedDuration::from_hours(50)));
    let report = pair
        .upload_with(&pair.env(never()), true, &[])
        .await
        .unwrap();
    assert_eq!(
        (pair.manifests_in_remote(), report.copied.len()),
        (1, 1),
        "{:?}",
        reasons(&report)
    );
}

/// Another host has deleted the manifest of a backup and continues with its chunks, while this host
/// copies the backup again. The copy would find all chunks stored, and commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_that_another_host_is_deleting_is_not_copied_again() {
    let world = World::new();
    let full = world.back_up().await.manifest;
    let pair = Pair::new(world);
    pair.upload().await;
    pruner(&pair.world)(&pair.remote, &full.id);
    pair.remote.lose(&key_of(&full, "manifest.json"));
    let report = pair
        .upload_with(&pair.env(never()), true, &[])
        .await
        .unwrap();
    assert_eq!((pair.manifests_in_remote(), report.copied.len()), (0, 0));
    let expected = format!("another host pruned {} from memory:", full.id);
    assert!(
        reasons(&report)[0].contains(&expected),
        "{:?}",
        reasons(&report)
    );
}

/// Puts these objects at the moment when a prune puts its record.
fn appearing_after_the_first_reading(
    store: &MemoryStore,
    keys: impl Fn(&str) -> bool,
) -> Arc<Hooked> {
    let hidden: Vec<_> = store
        .keys()
        .into_iter()
        .filter(|key| keys(key))
        .map(|key| (key.clone(), store.object(&key).unwrap()))
        .collect();
    for (key, _) in &hidden {
        store.lose(key);
    }
    let inner = store.clone();
    Arc::new(Hooked::new(store, move |operation, key| {
        if operation == Operation::PutNew && key.contains("/@prune/") && key.ends_with(".json") {
            for (key, bytes) in &hidden {
                inner.plant(key, bytes.clone());
            }
        }
    }))
}

/// Another host stores an incremental on a base that the prune is about to delete. The rules would
/// delete both; but the prune deletes only what it planned, and the incremental would stay alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_that_appears_between_the_readings_of_a_prune_keeps_its_base() {
    let world = World::new();
    let full = world.back_up().await.manifest;
    let base = plant(&world, &full, 1, None);
    let appears = plant(&world, &full, 2, Some(&base));
    plant(&world, &full, 3, None);
    let rules = RetentionRules {
        last_chains: Some(1),
        ..Default::default()
    };
    let before = world.store.keys();
    let id = appears.id.to_string();
    let env = PruneEnv {
        store: appearing_after_the_first_reading(&world.store, |key| key.contains(&id)),
        ..world.prune_env(now() + SignedDuration::from_hours(100))
    };
    let error = prune_dataset(&env, &task(&world, &full, &rules))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("{id} would now be deleted too")),
        "{error}"
    );
    assert_eq!(world.store.keys(), before);
    let env = world.prune_env(now() + SignedDuration::from_hours(100));
    let done = prune_dataset(&env, &task(&world, &full, &rules))
        .await
        .unwrap();
    assert_eq!(
        done.deleted,
        [&full.id, &appears.id, &base.id].map(Clone::clone)
    );
}

/// The record that a prune puts names what it is about to delete. It is no proof for the same prune
/// that objects which were put meanwhile may go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prune_takes_no_proof_from_its_own_record() {
    let world = World::new();
    world.store.set_clock(Some(now()));
    let full = world.back_up().await.manifest;
    let pruned = plant(&world, &full, 1, None);
    for object in [
        "manifest.json",
        "manifest.json.minisig",
        "started.json",
        "started.json.minisig",
    ] {
        world.store.lose(&key_of(&pruned, object));
    }
    plant_prune_record(&world, &world.store, &[&pruned.id]);
    // Three days later another host copies it again.
    let later = now() + SignedDuration::from_hours(72);
    world.store.set_clock(Some(later));
    let id = pruned.id.to_string();
    let is_newer = |key: &str| key.contains(&id) && key.ends_with("private.age");
    let env = PruneEnv {
        store: appearing_after_the_first_reading(&world.store, is_newer),
        ..world.prune_env(later)
    };
    let error = prune_dataset(&env, &task(&world, &full, &RetentionRules::default()))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("{id} must now be kept")),
        "{error}"
    );
    let left = world.store.keys();
    assert_eq!(left.iter().filter(|key| is_newer(key)).count(), 1);
    assert_eq!(
        left.iter().filter(|key| key.contains("/@prune/")).count(),
        2
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_pruned_during_its_upload_is_not_committed_and_not_resumed() {
    let world = World::new();
    let env = BackupEnv {
        store: pruned_before_its_commit(&world, &world.store),
        ..world.env()
    };
    let error = back_up(&env, &world.selected(), RequestedKind::Full)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("was pruned from memory: while it was being uploaded"),
        "{error}"
    );
    assert_eq!(world.manifest_keys(), Vec::<String>::new());
    world.assert_no_holds();
    let committed = world.back_up().await;
    assert!(!error.to_string().contains(committed.manifest.id.as_str()));
    world.assert_restores().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_newer_than_the_prune_record_by_store_clock_are_kept() {
    let world = World::new();
    let full = world.back_up().await.manifest;
    let again = plant(&world, &full, 1, None);
    // The pruning host's clock is 17 hours ahead of the store's: its record says a time that is
    // still to come there.
    world.store.set_clock(Some(time("2026-01-01T10:00:00Z")));
    plant_prune_record(&world, &world.store, &[&full.id, &again.id]);
    // An hour later somebody copies the pruned backup again.
    world.store.set_clock(Some(time("2026-01-01T11:00:00Z")));
    plant(&world, &full, 1, None);
    for object in [
        "manifest.json",
        "manifest.json.minisig",
        "started.json",
        "started.json.minisig",
    ] {
        world.store.lose(&key_of(&again, object));
    }
    let there: Vec<_> = world
        .store
        .keys()
        .into_iter()
        .filter(|key| key.contains(again.id.as_str()))
        .collect();
    let prune = async |store_time: &str| {
        world.store.set_clock(Some(time(store_time)));
        let env = world.prune_env(time(store_time) + SignedDuration::from_hours(17));
        let done = prune_dataset(&env, &task(&world, &full, &RetentionRules::default()))
            .await
            .unwrap();
        assert!(done.deleted.is_empty(), "{:?}", done.deleted);
        let left = &done.view.plan.left_alone;
        assert!(
            left[0].id == again.id && left[0].why.contains("newer objects exist"),
            "{left:?}"
        );
        assert!(there.iter().all(|key| world.store.object(key).is_some()));
    };
    // The record may be of a prune that is running on another host, so it stays for two days. Then
    // it names a backup that stays, so the record is rewritten; the new one proves no more than the
    // old one.
    let records = || {
        world
            .store
            .keys()
            .into_iter()
            .filter(|key| key.contains("/@prune/"))
            .collect::<Vec<_>>()
    };
    let before = records();
    prune("2026-01-01T12:00:00Z").await;
    assert_eq!(
        records(),
        before,
        "the record of another host's prune is gone"
    );
    prune("2026-01-04T12:00:00Z").await;
    assert_ne!(records(), before, "it was not written anew");
    prune("2026-01-04T13:00:00Z").await;
}
