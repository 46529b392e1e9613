//! A restore destroys nothing that it did not name and did not make: not what another restore
//! received, not what appeared meanwhile, not what is held or cloned; and what restores and drills
//! make is never backed up.

use crate::chains::{Files, chain};
use crate::world::{World, key_of, name, never, noise};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;
use zfs_backup::config::DatasetSelection;
use zfs_backup::manifest::Manifest;
use zfs_backup::model::{DatasetName, SnapshotName};
use zfs_backup::run::pool::select::{BACKUP_PROPERTY, select_datasets};
use zfs_backup::run::restore::drill::{AbandonedScratch, clean_up, drill};
use zfs_backup::run::restore::{
    RESTORING_PROPERTY, ReceiveOptions, RestorePoint, RestoreSet, ResumeChoice, SCRATCH_PROPERTY,
    check_target, lock_target, restore_as_planned, restore_to_dataset,
};
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::state::StateError;
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{
    DatasetType, PropertyValue, SendBase, Zfs, ZfsRead, ZfsReceive, ZfsSend, ZfsSnapshots,
};

const EEXIST: i32 = 17;
const EBUSY: i32 = 16;
const ETXTBSY: i32 = 26;

fn text(value: &str) -> PropertyValue {
    PropertyValue::Text(value.to_owned())
}

fn rollback() -> ReceiveOptions {
    ReceiveOptions {
        rollback: true,
        ..ReceiveOptions::default()
    }
}

async fn restore(
    world: &World,
    set: &RestoreSet,
    target: &DatasetName,
    options: &ReceiveOptions,
) -> Result<Vec<SnapshotName>, RunError> {
    let zfs = Arc::new(world.zfs.clone());
    Ok(
        restore_to_dataset(set, &world.keys, zfs, target, options, never())
            .await?
            .snapshots,
    )
}

fn take(world: &World, dataset: &DatasetName, short: &str) -> SnapshotName {
    let snapshot = dataset.snapshot(short).unwrap();
    world
        .zfs
        .take_snapshots(std::slice::from_ref(&snapshot), &BTreeMap::new())
        .unwrap();
    snapshot
}

fn shorts(world: &World, dataset: &DatasetName) -> Vec<String> {
    world
        .zfs
        .snapshots(dataset)
        .unwrap()
        .iter()
        .map(|snapshot| snapshot.name.short().to_owned())
        .collect()
}

fn property(world: &World, dataset: &DatasetName, property: &str) -> Option<PropertyValue> {
    Some(
        world
            .zfs
            .dataset(dataset)
            .unwrap()?
            .properties
            .get(property)?
            .value
            .clone(),
    )
}

/// The newest backup's chain, and a target that has its first `common` backups and then went its
/// own way.
async fn diverged(
    world: &World,
    incrementals: u64,
    common: usize,
) -> (Vec<(Manifest, Files)>, RestoreSet, DatasetName) {
    let points = chain(world, incrementals).await;
    let target = name("tank/back");
    let older = world
        .find(&RestorePoint::Id(points[common - 1].0.id.clone()))
        .await
        .unwrap();
    restore(world, &older, &target, &ReceiveOptions::default())
        .await
        .unwrap();
    world.zfs.write_file(&target, 500, &noise(77, 9_000));
    take(world, &target, "mine");
    (
        points,
        world.find(&RestorePoint::Newest).await.unwrap(),
        target,
    )
}

/// Lets somebody else restore the same backup into the same name just before the first receive of
/// the loser.
async fn lose_a_race(world: &World, options: &ReceiveOptions) -> (RunError, bool) {
    let target = name("tank/back");
    let loser = world.find(&RestorePoint::Newest).await.unwrap();
    let winner = world.find(&RestorePoint::Newest).await.unwrap();
    let (keys, place, zfs) = (world.keys.clone(), target.clone(), world.zfs.clone());
    let was_there = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&was_there);
    // The loser looks at target and parent, then receives: just before that the winner does all of
    // its work.
    world.zfs.before_call(3, move |_| {
        let work = move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let shared = Arc::new(zfs.clone());
            let options = ReceiveOptions::default();
            let done = restore_to_dataset(&winner, &keys, shared, &place, &options, never());
            runtime.block_on(done).unwrap();
            seen.store(zfs.dataset(&place).unwrap().is_some(), Ordering::SeqCst);
        };
        std::thread::spawn(work).join().unwrap();
    });
    let lost = restore(world, &loser, &target, options).await.unwrap_err();
    (lost, was_there.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_concurrent_restore_keeps_the_data_of_the_other() {
    for resume in [
        ResumeChoice::Resume,
        ResumeChoice::Restart,
        ResumeChoice::Never,
    ] {
        let world = World::new();
        chain(&world, 1).await;
        let (lost, was_there) = lose_a_race(
            &world,
            &ReceiveOptions {
                resume,
                ..ReceiveOptions::default()
            },
        )
        .await;
        assert!(was_there, "the winner had received it whole");
        assert!(
            error_chain(&lost).contains("EEXIST"),
            "{}",
            error_chain(&lost)
        );
        let target = name("tank/back");
        assert_eq!(shorts(&world, &target).len(), 2, "{resume:?}");
        assert_eq!(world.zfs.files(&target), world.zfs.files(&world.dataset));
    }
}

/// A dataset under the target's name without our token stays untouched, whichever error the first
/// receive returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_first_receive_never_destroys_an_unmarked_dataset() {
    for errno in [EEXIST, EBUSY, ETXTBSY, 5, 22] {
        let world = World::new();
        chain(&world, 1).await;
        let set = world.find(&RestorePoint::Newest).await.unwrap();
        let target = name("tank/back");
        let (zfs, place, dataset) = (world.zfs.clone(), target.clone(), world.dataset.clone());
        // A replica of the same dataset comes under the name: it has the very guids of the chain.
        world.zfs.before_call(3, move |_| {
            replicate(&zfs, &dataset, &place);
            zfs.fail_call(1, errno);
        });
        restore(&world, &set, &target, &ReceiveOptions::default())
            .await
            .unwrap_err();
        assert_eq!(shorts(&world, &target).len(), 2, "errno {errno}");
    }
}

/// As `zfs send -R | zfs receive` does it.
fn replicate(zfs: &zfs_backup::zfs::fake::FakeZfs, from: &DatasetName, to: &DatasetName) {
    use zfs_backup::zfs::{ReceiveRequest, SendFlags, SendRequest};
    let flags = SendFlags {
        raw: false,
        compressed: true,
        embedded: false,
        large_blocks: true,
    };
    let mut base = None;
    for snapshot in zfs.snapshots(from).unwrap() {
        let request = SendRequest {
            snapshot: snapshot.name.clone(),
            base: base.take(),
            flags,
            resume: None,
        };
        let mut sending = zfs.send(&request).unwrap();
        let mut bytes = Vec::new();
        sending.reader().read_to_end(&mut bytes).unwrap();
        sending.finish().unwrap();
        let target = to.snapshot(snapshot.name.short()).unwrap();
        let properties = BTreeMap::new();
        let request = ReceiveRequest {
            target,
            resumable: false,
            properties,
        };
        zfs.receive(&request, &mut &bytes[..]).unwrap();
        base = Some(SendBase::Snapshot(snapshot.name));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_restore_keeps_foreign_snapshots_of_its_target() {
    let world = World::new();
    let points = chain(&world, 1).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let target = name("tank/back");
    // The second backup is damaged: the restore fails after it has received the first, and somebody
    // took a snapshot of it.
    let (manifest, _) = &points[1];
    let key = key_of(manifest, &world.chunks(manifest).await[0].name);
    let whole = world.store.object(&key).unwrap();
    assert!(world.store.flip(&key, whole.len() - 20));
    let (zfs, place) = (world.zfs.clone(), target.clone());
    // Target, parent, the first receive, the look at what it made; before the second receive comes
    // the snapshot.
    world.zfs.before_call(5, move |_| {
        zfs.take_snapshots(&[place.snapshot("theirs").unwrap()], &BTreeMap::new())
            .unwrap();
    });
    let failed = restore(&world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap_err();
    assert!(failed.is_damage(), "{}", error_chain(&failed));
    let left = shorts(&world, &target);
    assert_eq!(
        (left.len(), left[1].as_str()),
        (2, "theirs"),
        "all of it stays, or nothing"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_restore_keeps_a_target_with_a_child_bookmark_or_hold() {
    for keeper in ["child", "bookmark", "hold"] {
        let world = World::new();
        let points = chain(&world, 1).await;
        let set = world.find(&RestorePoint::Newest).await.unwrap();
        let target = name("tank/back");
        let (manifest, _) = &points[1];
        let key = key_of(manifest, &world.chunks(manifest).await[0].name);
        let whole = world.store.object(&key).unwrap();
        assert!(world.store.flip(&key, whole.len() - 20));
        let (zfs, place) = (world.zfs.clone(), target.clone());
        world.zfs.before_call(5, move |_| {
            let first = zfs.snapshots(&place).unwrap().remove(0).name;
            match keeper {
                "child" => zfs.create(&name("tank/back/child"), DatasetType::Filesystem),
                "bookmark" => zfs
                    .bookmark(&place.bookmark("b").unwrap(), &SendBase::Snapshot(first))
                    .unwrap(),
                _ => zfs.hold(&first, "keep").unwrap(),
            }
        });
        restore(&world, &set, &target, &ReceiveOptions::default())
            .await
            .unwrap_err();
        assert_eq!(shorts(&world, &target).len(), 1, "{keeper}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mark_of_an_older_build_is_resumed_and_never_destroyed() {
    let world = World::new();
    let points = chain(&world, 1).await;
    let target = name("tank/back");
    let full = world
        .find(&RestorePoint::Id(points[0].0.id.clone()))
        .await
        .unwrap();
    restore(&world, &full, &target, &ReceiveOptions::default())
        .await
        .unwrap();
    world.zfs.set_property(
        &target,
        RESTORING_PROPERTY,
        text(&format!("{} new readonly", points[1].0.id)),
    );
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let restart = ReceiveOptions {
        resume: ResumeChoice::Restart,
        ..ReceiveOptions::default()
    };
    let refused = restore(&world, &set, &target, &restart).await.unwrap_err();
    assert!(refused.to_string().contains("older build"), "{refused}");
    assert!(refused.hint().unwrap().contains("zfs destroy -r tank/back"));
    assert_eq!(shorts(&world, &target).len(), 1);
    assert_eq!(
        restore(&world, &set, &target, &ReceiveOptions::default())
            .await
            .unwrap()
            .len(),
        1
    );
    assert_eq!(property(&world, &target, RESTORING_PROPERTY), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_keeps_a_dataset_that_replaced_the_planned_partial_restore() {
    let world = World::new();
    let points = chain(&world, 1).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let target = name("tank/back");
    let (manifest, _) = &points[1];
    let key = key_of(manifest, &world.chunks(manifest).await[0].name);
    let fault =
        zfs_backup::store::memory::Fault::before(zfs_backup::store::StoreErrorKind::Unavailable);
    world.store.fail(
        fault
            .of(zfs_backup::store::memory::Operation::Get)
            .on(&key)
            .forever(),
    );
    restore(&world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap_err();
    world.store.heal();
    let restart = ReceiveOptions {
        resume: ResumeChoice::Restart,
        ..ReceiveOptions::default()
    };
    let plan = check_target(&world.zfs, &target, &set, &restart).unwrap();
    assert!(plan.gives_up);
    // Another restore has taken its place between the plan and the deed.
    let other = text(&format!(
        "{} new readonly token=00000000000000ff",
        points[1].0.id
    ));
    world.zfs.set_property(&target, RESTORING_PROPERTY, other);
    let zfs = Arc::new(world.zfs.clone());
    let done = restore_as_planned(&set, &world.keys, zfs, &target, &plan, &restart, never()).await;
    assert!(
        done.unwrap_err()
            .to_string()
            .contains("changed after the plan of the restore was shown")
    );
    assert_eq!(shorts(&world, &target).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_destroys_only_listed_snapshots_and_ends_equal_to_the_chain() {
    let world = World::new();
    let (points, set, target) = diverged(&world, 3, 2).await;
    let mark = target.bookmark("of-mine").unwrap();
    world
        .zfs
        .bookmark(&mark, &SendBase::Snapshot(target.snapshot("mine").unwrap()))
        .unwrap();
    world.zfs.write_file(&target, 501, &noise(78, 5_000));
    let plan = check_target(&world.zfs, &target, &set, &rollback()).unwrap();
    let lost = plan.rollback.clone().unwrap();
    let guids: Vec<_> = world
        .zfs
        .snapshots(&target)
        .unwrap()
        .iter()
        .map(|snapshot| snapshot.guid)
        .collect();
    assert_eq!(
        lost.snapshots
            .iter()
            .map(|lost| (lost.name.short(), lost.guid))
            .collect::<Vec<_>>(),
        [("mine", guids[2])]
    );
    assert_eq!((lost.base_guid, lost.bookmarks.len()), (guids[1], 1));
    assert!(lost.written_bytes.unwrap() >= 5_000, "{lost:?}");
    let zfs = Arc::new(world.zfs.clone());
    restore_as_planned(&set, &world.keys, zfs, &target, &plan, &rollback(), never())
        .await
        .unwrap();
    assert!(world.zfs.files(&target) == points[3].1);
    let expected: Vec<_> = points
        .iter()
        .map(|(manifest, _)| manifest.snapshot.guid)
        .collect();
    assert_eq!(
        world
            .zfs
            .snapshots(&target)
            .unwrap()
            .iter()
            .map(|s| s.guid)
            .collect::<Vec<_>>(),
        expected
    );
    assert_eq!(property(&world, &target, RESTORING_PROPERTY), None);
    // The restore of two backups had left it so, and so it is again.
    assert_eq!(
        property(&world, &target, "readonly"),
        Some(PropertyValue::Number(0))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_refuses_if_the_target_changed_after_the_list_was_shown() {
    for change in [
        "a snapshot",
        "data",
        "a bookmark",
        "another snapshot of that name",
    ] {
        for before_the_look in [true, false] {
            let world = World::new();
            let (_, set, target) = diverged(&world, 2, 1).await;
            let plan = check_target(&world.zfs, &target, &set, &rollback()).unwrap();
            let (place, base) = (target.clone(), shorts(&world, &target)[0].clone());
            let happens = move |zfs: &zfs_backup::zfs::fake::FakeZfs| match change {
                "a snapshot" => zfs
                    .take_snapshots(&[place.snapshot("new").unwrap()], &BTreeMap::new())
                    .unwrap(),
                "data" => zfs.write_file(&place, 600, &noise(1, 4_000)),
                "a bookmark" => {
                    let source = SendBase::Snapshot(place.snapshot("mine").unwrap());
                    zfs.bookmark(&place.bookmark("new").unwrap(), &source)
                        .unwrap();
                }
                _ => {
                    let mine = place.snapshot("mine").unwrap();
                    zfs.destroy_snapshots(std::slice::from_ref(&mine)).unwrap();
                    zfs.take_snapshots(&[mine], &BTreeMap::new()).unwrap();
                }
            };
            let again = check_target(&world.zfs, &target, &set, &rollback()).unwrap();
            assert_eq!(plan, again, "a view changes nothing");
            match before_the_look {
                true => happens(&world.zfs),
                // The look has dataset, snapshots and bookmarks; that before the deed too.
                false => world.zfs.before_call(4, happens),
            }
            let zfs = Arc::new(world.zfs.clone());
            let done =
                restore_as_planned(&set, &world.keys, zfs, &target, &plan, &rollback(), never())
                    .await;
            let refused = done.unwrap_err();
            assert!(
                matches!(refused, RunError::Refused { .. }),
                "{change}: {}",
                error_chain(&refused)
            );
            let left = shorts(&world, &target);
            assert!(
                left.contains(&"mine".to_owned()) && left[0] == base,
                "{change}: {left:?}"
            );
            for left in [RESTORING_PROPERTY, "readonly"] {
                assert_eq!(property(&world, &target, left), None, "{change}: {left}");
            }
            assert!(
                world.zfs.files(&target).contains_key(&500),
                "{change}: rolled back"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_that_fails_at_any_call_loses_only_listed_snapshots() {
    let world = World::new();
    let (points, set, target) = diverged(&world, 1, 1).await;
    let mut done = false;
    for n in 1..40 {
        world.zfs.fail_call(n, 5);
        let outcome = restore(&world, &set, &target, &rollback()).await;
        let left = shorts(&world, &target);
        assert!(
            !left.is_empty() && left.iter().all(|short| short != "strange"),
            "call {n}: {left:?}"
        );
        if outcome.is_ok() {
            // Use up the failures that are still scheduled.
            (0..40).for_each(|_| drop(world.zfs.pool_guid("tank")));
            done = true;
            break;
        }
    }
    assert!(done, "no run came to its end");
    assert!(world.zfs.files(&target) == points[1].1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_and_cloned_snapshots_are_named_before_a_byte_is_fetched() {
    let world = World::new();
    let (_, set, target) = diverged(&world, 2, 1).await;
    let mine = target.snapshot("mine").unwrap();
    world.store.clear_events();
    world.zfs.hold(&mine, "keep it").unwrap();
    let held = restore(&world, &set, &target, &rollback())
        .await
        .unwrap_err();
    assert!(
        held.to_string().contains("tank/back@mine is held"),
        "{held}"
    );
    assert!(
        held.hint()
            .unwrap()
            .contains("zfs release 'keep it' tank/back@mine"),
        "{:?}",
        held.hint()
    );
    world.zfs.release(&mine, "keep it").unwrap();
    world
        .zfs
        .clone_snapshot(&mine, &name("tank/clone"))
        .unwrap();
    let cloned = restore(&world, &set, &target, &rollback())
        .await
        .unwrap_err();
    assert!(
        cloned.to_string().contains("tank/back@mine has a clone"),
        "{cloned}"
    );
    assert!(world.store.events().is_empty(), "something was fetched");
    assert_eq!(shorts(&world, &target).len(), 2);
    assert_eq!(property(&world, &target, "readonly"), None);
}

/// The kernel's forced receive would destroy it at the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_stops_at_a_concurrent_change_and_keeps_it() {
    for change in ["a snapshot", "data"] {
        let world = World::new();
        let (points, set, target) = diverged(&world, 1, 1).await;
        let place = target.clone();
        world.zfs.during_next_receive(move |zfs| match change {
            "a snapshot" => zfs
                .take_snapshots(&[place.snapshot("nightly").unwrap()], &BTreeMap::new())
                .unwrap(),
            _ => {
                zfs.set_property(&place, "readonly", PropertyValue::Number(0));
                zfs.write_file(&place, 700, b"theirs");
            }
        });
        let stopped = restore(&world, &set, &target, &rollback())
            .await
            .unwrap_err();
        assert!(
            matches!(stopped, RunError::TargetChanged { .. }),
            "{change}: {}",
            error_chain(&stopped)
        );
        let expected = if change == "data" {
            "its data was changed"
        } else {
            "tank/back@nightly appeared"
        };
        assert!(stopped.to_string().contains(expected), "{stopped}");
        match change {
            "data" => assert_eq!(world.zfs.files(&target)[&700], b"theirs"),
            _ => assert!(shorts(&world, &target).contains(&"nightly".to_owned())),
        }
        // A plain command does not lose it either; the list of the next rollback names it, and what
        // came stays received.
        assert!(
            restore(&world, &set, &target, &ReceiveOptions::default())
                .await
                .is_err()
        );
        let plan = check_target(&world.zfs, &target, &set, &rollback()).unwrap();
        let lost = plan.rollback.as_ref().unwrap();
        assert_eq!(
            (lost.snapshots.len(), lost.written_bytes > Some(0)),
            if change == "data" {
                (0, true)
            } else {
                (1, false)
            }
        );
        let zfs = Arc::new(world.zfs.clone());
        let done = restore_as_planned(&set, &world.keys, zfs, &target, &plan, &rollback(), never())
            .await
            .unwrap();
        assert!(
            done.resumed.is_some(),
            "{change}: all of it was fetched again"
        );
        assert!(world.zfs.files(&target) == points[1].1);
        assert_eq!(property(&world, &target, RESTORING_PROPERTY), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_snapshot_of_a_new_dataset_stops_the_restore_and_is_kept() {
    let world = World::new();
    chain(&world, 1).await;
    let (set, target) = (
        world.find(&RestorePoint::Newest).await.unwrap(),
        name("tank/back"),
    );
    let place = target.clone();
    // In the middle of the second receive.
    world.zfs.before_call(4, |zfs| {
        zfs.during_next_receive(move |zfs| {
            zfs.take_snapshots(&[place.snapshot("nightly").unwrap()], &BTreeMap::new())
                .unwrap();
        });
    });
    let stopped = restore(&world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap_err();
    assert!(
        stopped.to_string().contains("tank/back@nightly appeared"),
        "{}",
        error_chain(&stopped)
    );
    assert_eq!(shorts(&world, &target).len(), 2);
}

#[test]
fn scratch_and_half_restored_datasets_are_never_selected() {
    let (zfs, state) = (FakeZfs::new(), TempDir::new().unwrap());
    for dataset in [
        "tank/x",
        "tank/x/drill",
        "tank/x/drill/below",
        "tank/x/half",
        "tank/x/half/below",
        "tank/x/kept",
    ] {
        zfs.create(&name(dataset), DatasetType::Filesystem);
    }
    zfs.set_property(
        &name("tank/x/half"),
        RESTORING_PROPERTY,
        text("20261122T212604Z-full-0-0 new readonly"),
    );
    zfs.set_property(
        &name("tank/x/drill"),
        SCRATCH_PROPERTY,
        text("0123456789abcdef"),
    );
    let select = |names: &[&str]| {
        let names = names.iter().map(|dataset| name(dataset)).collect();
        let configured = DatasetSelection {
            names,
            recursive: true,
            exclude: Vec::new(),
            store_as: None,
        };
        select_datasets(&zfs, &configured, state.path()).unwrap()
    };
    let found = select(&["tank/x"]);
    let names: Vec<&str> = found
        .selected
        .iter()
        .map(|selected| selected.dataset.name.as_str())
        .collect();
    assert_eq!(names, ["tank/x", "tank/x/kept"]);
    let left_out: Vec<&str> = found
        .left_out
        .iter()
        .map(|left_out| left_out.dataset.name.as_str())
        .collect();
    assert_eq!(left_out, ["tank/x/drill", "tank/x/half"]);
    // By their own names, and below: it is said why.
    for (configured, says) in [
        ("tank/x/drill", "scratch dataset of a drill"),
        ("tank/x/half", "half restored"),
        ("tank/x/half/below", "tank/x/half is half restored"),
    ] {
        let found = select(&[configured]);
        assert!(found.selected.is_empty(), "{configured}");
        assert!(
            found.failed[0].1.to_string().contains(says),
            "{}",
            found.failed[0].1
        );
    }
    // A mark that came with a replica belongs to no drill on this host.
    zfs.set_property(&name("tank/x/kept"), SCRATCH_PROPERTY, text("no token"));
    assert_eq!(select(&["tank/x/kept"]).selected.len(), 1);
}

async fn rehearse(world: &World, locks: &TempDir) -> Result<Option<RunError>, RunError> {
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let zfs: Arc<dyn Zfs> = Arc::new(world.zfs.clone());
    let source = zfs.dataset(&world.dataset).unwrap();
    Ok(drill(
        &set,
        &world.keys,
        &zfs,
        source.as_ref(),
        &name("tank"),
        Some(locks.path()),
        never(),
    )
    .await?
    .left)
}

fn scratch_of(world: &World) -> Option<DatasetName> {
    let children = world.zfs.children(&name("tank")).unwrap();
    children
        .into_iter()
        .map(|child| child.name)
        .find(|name| name.as_str().contains("zfs-backup-drill-"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_reports_a_remaining_scratch_dataset_and_the_next_removes_it() {
    let (world, locks) = (World::new(), TempDir::new().unwrap());
    chain(&world, 1).await;
    assert!(rehearse(&world, &locks).await.unwrap().is_none());
    assert_eq!(scratch_of(&world), None);
    // The snapshots of the scratch dataset cannot be destroyed: one of the last calls fails.
    let calls = |world: &World| world.zfs.calls();
    let before = calls(&world);
    rehearse(&world, &locks).await.unwrap();
    let last = calls(&world) - before;
    world.zfs.fail_call(last - 1, EBUSY);
    let left = rehearse(&world, &locks).await.unwrap().unwrap();
    let scratch = scratch_of(&world).unwrap();
    assert!(left.to_string().contains(scratch.as_str()), "{left}");
    assert_eq!(left.hint().unwrap(), format!("zfs destroy -r {scratch}"));
    // A drill that is at work has it locked.
    let held = lock_target(locks.path(), &scratch).unwrap();
    let found = clean_up(&world.zfs, &name("tank"), Some(locks.path())).unwrap();
    assert!(
        matches!(
            &found[..],
            [AbandonedScratch::Stays(
                _,
                RunError::State(StateError::Locked { .. })
            )]
        ),
        "{found:?}"
    );
    drop(held);
    assert!(matches!(
        &clean_up(&world.zfs, &name("tank"), None).unwrap()[..],
        [AbandonedScratch::Stays(..)]
    ));
    assert!(scratch_of(&world).is_some());
    // Somebody's snapshot on it keeps all of it.
    let theirs = take(&world, &scratch, "theirs");
    let found = clean_up(&world.zfs, &name("tank"), Some(locks.path())).unwrap();
    assert!(
        matches!(&found[..], [AbandonedScratch::Stays(..)]),
        "{found:?}"
    );
    assert_eq!(shorts(&world, &scratch).len(), 3);
    world.zfs.destroy_snapshots(&[theirs]).unwrap();
    let found = clean_up(&world.zfs, &name("tank"), Some(locks.path())).unwrap();
    assert!(
        matches!(&found[..], [AbandonedScratch::Destroyed(_)]),
        "{found:?}"
    );
    assert_eq!(scratch_of(&world), None);
    // A dataset with such a name but no mark is never destroyed.
    world.zfs.create(
        &name("tank/zfs-backup-drill-0badcafe"),
        DatasetType::Filesystem,
    );
    let found = clean_up(&world.zfs, &name("tank"), Some(locks.path())).unwrap();
    assert!(
        matches!(&found[..], [AbandonedScratch::Stays(..)]) && scratch_of(&world).is_some(),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scratch_mark_on_a_dataset_with_another_name_destroys_nothing() {
    let (world, locks) = (World::new(), TempDir::new().unwrap());
    let theirs = name("tank/theirs");
    world.zfs.create(&theirs, DatasetType::Filesystem);
    world.zfs.write_file(&theirs, 5, b"theirs");
    let snapshot = take(&world, &theirs, "KEEP");
    let guid = world.zfs.snapshot(&snapshot).unwrap().unwrap().guid;
    world.zfs.set_property(
        &theirs,
        SCRATCH_PROPERTY,
        text(&format!("0123456789abcdef {guid}")),
    );
    let found = clean_up(&world.zfs, &name("tank"), Some(locks.path())).unwrap();
    let [AbandonedScratch::Stays(stays, error)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!(*stays, theirs);
    assert!(
        error
            .hint()
            .unwrap()
            .contains("zfs inherit zfs-backup:scratch tank/theirs"),
        "{error}"
    );
    assert_eq!(shorts(&world, &theirs), ["KEEP"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modified_scratch_dataset_of_an_earlier_drill_is_kept() {
    let (world, locks) = (World::new(), TempDir::new().unwrap());
    chain(&world, 1).await;
    let calls = world.zfs.calls();
    rehearse(&world, &locks).await.unwrap();
    world.zfs.fail_call(world.zfs.calls() - calls - 1, EBUSY);
    rehearse(&world, &locks).await.unwrap().unwrap();
    let scratch = scratch_of(&world).unwrap();
    world
        .zfs
        .set_property(&scratch, "readonly", PropertyValue::Number(0));
    world
        .zfs
        .write_file(&scratch, 900, b"written after the drill");
    let found = clean_up(&world.zfs, &name("tank"), Some(locks.path())).unwrap();
    let [AbandonedScratch::Stays(_, error)] = &found[..] else {
        panic!("{found:?}")
    };
    assert!(error.to_string().contains("written to it since"), "{error}");
    assert_eq!(shorts(&world, &scratch).len(), 2);
}

/// A complete target whose restore was killed before it removed its mark.
async fn killed_at_the_end(world: &World) -> (RestoreSet, DatasetName) {
    let points = chain(world, 1).await;
    let (set, target) = (
        world.find(&RestorePoint::Newest).await.unwrap(),
        name("tank/back"),
    );
    restore(world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap();
    let mark = format!("{} new readonly token=0123456789abcdef", points[1].0.id);
    world
        .zfs
        .set_property(&target, RESTORING_PROPERTY, text(&mark));
    (set, target)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_destroys_no_data_that_was_written_after_the_restore() {
    let world = World::new();
    let (set, target) = killed_at_the_end(&world).await;
    world.zfs.write_file(&target, 900, b"a month of work");
    let restart = ReceiveOptions {
        resume: ResumeChoice::Restart,
        ..ReceiveOptions::default()
    };
    let refused = restore(&world, &set, &target, &restart).await.unwrap_err();
    assert!(
        refused.to_string().contains("written to it since"),
        "{refused}"
    );
    assert_eq!(
        refused.hint().unwrap(),
        "check its contents; if it may go: zfs destroy -r tank/back"
    );
    assert_eq!(world.zfs.files(&target)[&900], b"a month of work");
    assert_eq!(shorts(&world, &target).len(), 2);
    // A restart that was killed between the snapshots and the dataset can be repeated.
    world.zfs.remove_file(&target, 900);
    let names: Vec<SnapshotName> = world
        .zfs
        .snapshots(&target)
        .unwrap()
        .into_iter()
        .map(|s| s.name)
        .collect();
    world.zfs.destroy_snapshots(&names).unwrap();
    assert_eq!(
        restore(&world, &set, &target, &restart)
            .await
            .unwrap()
            .len(),
        2
    );
    assert_eq!(world.zfs.files(&target), world.zfs.files(&world.dataset));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_restore_ends_despite_a_later_snapshot() {
    let world = World::new();
    let (set, target) = killed_at_the_end(&world).await;
    world.zfs.write_file(&target, 900, b"in use");
    take(&world, &target, "hourly");
    let received = restore(&world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap();
    assert!(received.is_empty());
    assert_eq!(property(&world, &target, RESTORING_PROPERTY), None);
    assert_eq!(shorts(&world, &target).last().unwrap(), "hourly");
    assert_eq!(world.zfs.files(&target)[&900], b"in use");
}

#[test]
fn property_turns_backups_of_a_dataset_and_those_below_on_and_off() {
    let zfs = FakeZfs::new();
    let state = TempDir::new().unwrap();
    for dataset in [
        "tank",
        "tank/a",
        "tank/a/b",
        "tank/a/c",
        "tank/tmp",
        "tank/tmp/x",
        "tank/odd",
    ] {
        zfs.create(&name(dataset), DatasetType::Filesystem);
    }
    for (dataset, value) in [
        ("tank/a", "off"),
        ("tank/a/c", "on"),
        ("tank/tmp/x", "on"),
        ("tank/odd", "yes"),
    ] {
        zfs.set_property(&name(dataset), BACKUP_PROPERTY, text(value));
    }
    let configured = DatasetSelection {
        names: vec![name("tank")],
        recursive: true,
        exclude: vec!["tank/tmp*".to_owned()],
        store_as: None,
    };
    let found = select_datasets(&zfs, &configured, state.path()).unwrap();
    let names: Vec<&str> = found
        .selected
        .iter()
        .map(|selected| selected.dataset.name.as_str())
        .collect();
    assert_eq!(names, ["tank", "tank/a/c", "tank/tmp/x"]);
    let off: Vec<&str> = found
        .turned_off
        .iter()
        .map(|left_out| left_out.dataset.name.as_str())
        .collect();
    assert_eq!(off, ["tank/a", "tank/a/b"]);
    let [(odd, error)] = &found.failed[..] else {
        panic!("{:?}", found.failed);
    };
    assert_eq!(*odd, name("tank/odd"));
    assert_eq!(
        error_chain(error),
        "tank/odd has zfs-backup:backup=yes; expected on or off"
    );
}
