//! Ways back: from several stores at once, to a time, onto a dataset that exists, a whole tree, and
//! drills.

use crate::chains::{assert_comes_back, chain, night, nightly};
use crate::world::{World, committed, key_of, memory_store, name, never, noise, now};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zfs_backup::config::RawMode;
use zfs_backup::manifest::Manifest;
use zfs_backup::model::DatasetName;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::back_up;
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::run::restore::drill::{Comparison, DrillReport, drill};
use zfs_backup::run::restore::{
    PropertyChoice, ReceiveOptions, RestorePoint, RestoreSet, RestoreTree, check_target,
    find_restore_set, find_restore_tree, restore_to_dataset,
};
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{StoreErrorKind, StoreRead};
use zfs_backup::zfs::{DatasetType, PropertyValue, Zfs, ZfsRead, ZfsReceive, ZfsSnapshots};

/// A second store with all that the world's has.
fn copy_of(store: &MemoryStore) -> MemoryStore {
    let copy = memory_store(1024);
    store
        .keys()
        .into_iter()
        .for_each(|key| copy.plant(&key, store.object(&key).unwrap()));
    copy
}

async fn find(
    world: &World,
    stores: &[&MemoryStore],
    point: &RestorePoint,
) -> Result<RestoreSet, RunError> {
    let stores: Vec<Arc<dyn StoreRead>> = stores
        .iter()
        .map(|store| Arc::new((*store).clone()) as _)
        .collect();
    find_restore_set(&stores, &world.dataset, &world.keys, point).await
}

async fn receive(
    world: &World,
    set: &RestoreSet,
    target: &DatasetName,
    options: &ReceiveOptions,
) -> Result<Vec<String>, RunError> {
    let received = restore_to_dataset(
        set,
        &world.keys,
        Arc::new(world.zfs.clone()),
        target,
        options,
        never(),
    )
    .await?;
    Ok(received
        .snapshots
        .iter()
        .map(|snapshot| snapshot.short().to_owned())
        .collect())
}

/// Whether chunks of this backup were read from that store.
fn was_read(store: &MemoryStore, manifest: &Manifest) -> bool {
    let prefix = key_of(manifest, "0000");
    store
        .events()
        .iter()
        .any(|event| event.operation == Operation::Get && event.key.starts_with(&prefix))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_backup_comes_from_the_nearest_store_that_has_it_whole() {
    let world = World::new();
    let points = chain(&world, 3).await;
    let near = copy_of(&world.store);
    // Near: the full was pruned, a chunk of the first incremental was lost, the second is whole,
    // the third is not there.
    let chunk = world.chunks(&points[1].0).await[0].name.clone();
    for key in near.keys() {
        let gone = key.starts_with(&key_of(&points[0].0, ""))
            || key.starts_with(&key_of(&points[3].0, ""));
        if gone || key == key_of(&points[1].0, &chunk) {
            assert!(near.lose(&key));
        }
    }
    let set = find(&world, &[&near, &world.store], &RestorePoint::Newest)
        .await
        .unwrap();
    assert_eq!(set.backups.len(), 4);
    assert!(set.unasked.is_empty());
    [&near, &world.store]
        .iter()
        .for_each(|store| store.clear_events());
    let target = name("tank/back");
    receive(&world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap();
    assert!(world.zfs.files(&target) == points[3].1);
    for (number, (manifest, _)) in points.iter().enumerate() {
        assert_eq!(
            (was_read(&near, manifest), was_read(&world.store, manifest)),
            (number == 2, number != 2),
            "{number}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreachable_store_is_listed_and_is_an_error_if_no_other_answers() {
    let world = World::new();
    chain(&world, 1).await;
    let near = copy_of(&world.store);
    world.store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::List)
            .forever(),
    );
    let set = find(&world, &[&near, &world.store], &RestorePoint::Newest)
        .await
        .unwrap();
    assert_eq!((set.backups.len(), set.unasked.len()), (2, 1));
    near.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::List)
            .forever(),
    );
    let error = find(&world, &[&near, &world.store], &RestorePoint::Newest)
        .await
        .err()
        .unwrap();
    assert!(
        matches!(&error, RunError::Store(error) if error.kind == StoreErrorKind::Denied),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_lost_in_one_store_is_found_in_the_other() {
    let world = World::new();
    let points = chain(&world, 1).await;
    let near = copy_of(&world.store);
    assert!(near.lose(&key_of(&points[1].0, "manifest.json")));
    // Alone it would silently go back a night.
    let error = find(&world, &[&near], &RestorePoint::Newest)
        .await
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("is newer than the newest whole backup"),
        "{error}"
    );
    let set = find(&world, &[&near, &world.store], &RestorePoint::Newest)
        .await
        .unwrap();
    assert_eq!(set.newest().manifest.id, points[1].0.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restore_time_selects_the_newest_backup_not_after_it() {
    let world = World::empty_with_nights(3).await;
    let backups = world.catalog().await.backups;
    let at = |number: usize| backups[number].manifest.snapshot.created_at;
    let id = |number: usize| backups[number].manifest.id.clone();
    let hour = jiff::SignedDuration::from_hours(1);
    for (time, expected) in [
        (at(0), 0),
        (at(1) - hour, 0),
        (at(1), 1),
        (at(1) + hour, 1),
        (at(2) + hour, 2),
    ] {
        let set = world.find(&RestorePoint::At(time)).await.unwrap();
        assert_eq!(set.newest().manifest.id, id(expected), "{time}");
    }
    let error = world
        .find(&RestorePoint::At(at(0) - hour))
        .await
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("no backup is as old as"),
        "{error}"
    );
    assert!(
        error.hint().unwrap().contains("the oldest is of"),
        "{error:?}"
    );
    // One whose manifest is gone is not stepped over in silence, unless it is after that time.
    assert!(
        world
            .store
            .lose(&key_of(&backups[1].manifest, "manifest.json"))
    );
    assert!(world.find(&RestorePoint::At(at(1) + hour)).await.is_err());
    assert_eq!(
        world
            .find(&RestorePoint::At(at(1) - hour))
            .await
            .unwrap()
            .newest()
            .manifest
            .id,
        id(0)
    );
}

impl World {
    /// A chain with a day between the snapshots.
    async fn empty_with_nights(nights: u64) -> Self {
        let world = World::new();
        for number in 0..nights {
            let later =
                now() + jiff::SignedDuration::from_hours(24 * i64::try_from(number + 1).unwrap());
            world.zfs.set_now(later);
            night(&world, number);
            nightly(&world).await;
        }
        world
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_keeps_common_snapshots_and_lists_the_destroyed_ones() {
    let world = World::new();
    let points = chain(&world, 3).await;
    let target = name("tank/back");
    let second = world
        .find(&RestorePoint::Id(points[1].0.id.clone()))
        .await
        .unwrap();
    receive(&world, &second, &target, &ReceiveOptions::default())
        .await
        .unwrap();
    // The target goes its own way, with a name that the chain needs too.
    let (set, zfs) = (world.find(&RestorePoint::Newest).await.unwrap(), &world.zfs);
    let third = set.backups[2]
        .private
        .as_ref()
        .unwrap()
        .snapshot_name
        .rsplit_once('@')
        .unwrap()
        .1
        .to_owned();
    zfs.write_file(&target, 500, &noise(77, 9_000));
    for short in ["mine", &third] {
        zfs.take_snapshots(&[target.snapshot(short).unwrap()], &BTreeMap::new())
            .unwrap();
    }
    let refused = receive(&world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap_err();
    assert!(
        refused.hint().unwrap().contains("--force-rollback"),
        "{refused}"
    );
    assert_eq!(zfs.snapshots(&target).unwrap().len(), 4);

    let rollback = ReceiveOptions {
        rollback: true,
        ..ReceiveOptions::default()
    };
    let plan = check_target(zfs, &target, &set, &rollback).unwrap();
    let lost = plan.rollback.as_ref().unwrap();
    assert_eq!(
        (plan.skipped, lost.snapshots.len(), lost.written_bytes),
        (2, 2, Some(0))
    );
    assert_eq!(lost.snapshots[0].name.short(), "mine");
    // A stream that fails half-way loses what was announced, and nothing of what is in common.
    let (manifest, _) = &points[3];
    let key = key_of(manifest, &world.chunks(manifest).await[0].name);
    let whole = world.store.object(&key).unwrap();
    assert!(world.store.flip(&key, whole.len() - 20));
    receive(&world, &set, &target, &rollback).await.unwrap_err();
    let left: Vec<_> = zfs
        .snapshots(&target)
        .unwrap()
        .iter()
        .map(|snapshot| snapshot.guid)
        .collect();
    assert_eq!(
        left,
        points[..3]
            .iter()
            .map(|(manifest, _)| manifest.snapshot.guid)
            .collect::<Vec<_>>()
    );
    world.store.plant(&key, whole);
    receive(&world, &set, &target, &rollback).await.unwrap();
    assert!(zfs.files(&target) == points[3].1);

    let there = receive(&world, &set, &target, &rollback).await.unwrap_err();
    assert!(there.to_string().contains("already"), "{there}");
    let other = name("tank/other");
    zfs.create(&other, DatasetType::Filesystem);
    let refused = receive(&world, &set, &other, &rollback).await.unwrap_err();
    assert!(
        refused.to_string().contains("no snapshot of this chain"),
        "{refused}"
    );
    assert!(zfs.dataset(&other).unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_parents_are_created_and_destroyed_if_the_restore_fails() {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    let (target, set) = (
        name("tank/old/pictures/back"),
        world.find(&RestorePoint::Newest).await.unwrap(),
    );
    let key = key_of(&manifest, &world.chunks(&manifest).await[1].name);
    let whole = world.store.object(&key).unwrap();
    assert!(world.store.flip(&key, whole.len() - 20));
    receive(&world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap_err();
    assert!(world.zfs.dataset(&name("tank/old")).unwrap().is_none());
    world.store.plant(&key, whole);
    receive(&world, &set, &target, &ReceiveOptions::default())
        .await
        .unwrap();
    let made = world
        .zfs
        .dataset(&name("tank/old/pictures"))
        .unwrap()
        .unwrap();
    assert_eq!(made.properties["canmount"].value, PropertyValue::Number(0));
    let refused = receive(
        &world,
        &set,
        &name("nopool/back"),
        &ReceiveOptions::default(),
    )
    .await
    .unwrap_err();
    assert!(
        refused.to_string().contains("there is no pool nopool"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recorded_properties_are_set_when_they_are_asked_for() {
    let world = World::new();
    for (property, value) in [
        ("compression", PropertyValue::Number(15)),
        ("mountpoint", PropertyValue::Text("/home".into())),
        ("org.example:note", PropertyValue::Text("7".into())),
    ] {
        world.zfs.set_property(&world.dataset, property, value);
    }
    chain(&world, 1).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let value = |target: &DatasetName, property: &str| {
        world
            .zfs
            .dataset(target)
            .unwrap()
            .unwrap()
            .properties
            .get(property)
            .map(|property| property.value.clone())
    };
    let (plain, with) = (name("tank/plain"), name("tank/with"));
    receive(&world, &set, &plain, &ReceiveOptions::default())
        .await
        .unwrap();
    assert_eq!(value(&plain, "mountpoint"), None);
    let properties =
        PropertyChoice::new(true, &["atime=off".to_owned()], &["compression".to_owned()]).unwrap();
    receive(
        &world,
        &set,
        &with,
        &ReceiveOptions {
            properties,
            ..ReceiveOptions::default()
        },
    )
    .await
    .unwrap();
    assert_eq!(
        value(&with, "mountpoint"),
        Some(PropertyValue::Text("/home".into()))
    );
    assert_eq!(
        value(&with, "canmount"),
        Some(PropertyValue::Number(2)),
        "it must not mount over /home"
    );
    assert_eq!(
        value(&with, "org.example:note"),
        Some(PropertyValue::Text("7".into()))
    );
    assert_eq!(value(&with, "atime"), Some(PropertyValue::Number(0)));
    assert_eq!(value(&with, "compression"), None);
}

/// Backs datasets up of which one atomic snapshot was taken.
async fn back_up_together(world: &World, datasets: &[&str], failing: &[&str]) {
    let names: Vec<DatasetName> = datasets.iter().map(|dataset| name(dataset)).collect();
    take_snapshots(&world.zfs, &names, "zfs-backup_", now()).unwrap();
    for dataset in names
        .into_iter()
        .filter(|dataset| !failing.contains(&dataset.as_str()))
    {
        let selected = Selected {
            dataset: world.zfs.dataset(&dataset).unwrap().unwrap(),
            stored: dataset,
        };
        committed(
            back_up(&world.env(), &selected, RequestedKind::Lifecycle)
                .await
                .unwrap(),
        );
    }
}

/// The same for datasets that the store has under other names: each with that name.
async fn back_up_as(world: &World, datasets: &[(&String, &String)]) {
    let names: Vec<DatasetName> = datasets.iter().map(|(dataset, _)| name(dataset)).collect();
    take_snapshots(&world.zfs, &names, "zfs-backup_", now()).unwrap();
    for (dataset, stored) in datasets {
        let selected = Selected {
            dataset: world.zfs.dataset(&name(dataset)).unwrap().unwrap(),
            stored: name(stored),
        };
        committed(
            back_up(&world.env(), &selected, RequestedKind::Lifecycle)
                .await
                .unwrap(),
        );
    }
}

fn members(tree: &RestoreTree) -> Vec<(&str, &str, bool)> {
    tree.members
        .iter()
        .map(|member| {
            (
                member.dataset.as_str(),
                member.below.as_str(),
                member.same_moment,
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tree_restore_selects_one_transaction_group_for_all_datasets() {
    let world = World::new();
    let root = world.dataset.as_str().to_owned();
    let child = |short: &str| format!("{root}/{short}");
    let (one, two, late, stray) = (
        child("one"),
        child("one/two"),
        child("late"),
        "tank/a bc".to_owned(),
    );
    for (number, dataset) in [&one, &two, &late, &stray].iter().enumerate() {
        world.zfs.create(&name(dataset), DatasetType::Filesystem);
        world
            .zfs
            .write_file(&name(dataset), 7, &noise(number as u64, 5_000));
    }
    back_up_together(&world, &[&root, &one, &two, &stray], &[]).await;
    let files = |dataset: &str| world.zfs.files(&name(dataset));
    let first: Vec<_> = [&root, &one, &two]
        .iter()
        .map(|dataset| files(dataset))
        .collect();
    [&root, &one, &two]
        .iter()
        .for_each(|dataset| world.zfs.write_file(&name(dataset), 8, &noise(9, 5_000)));
    // The second night fails for the innermost; the third is for the others only.
    back_up_together(&world, &[&root, &one, &two, &late], &[&two]).await;
    world.zfs.write_file(&name(&one), 9, &noise(10, 5_000));
    back_up_together(&world, &[&one, &late], &[]).await;

    let stores: [Arc<dyn StoreRead>; 1] = [world.shared_store()];
    let tree = find_restore_tree(&stores, &name(&root), &world.keys, &RestorePoint::Newest)
        .await
        .unwrap();
    let found: Vec<_> = tree
        .members
        .iter()
        .map(|member| (member.dataset.as_str(), member.same_moment))
        .collect();
    assert_eq!(
        found,
        [
            (root.as_str(), true),
            (&late, true),
            (&one, true),
            (&two, false)
        ]
    );
    assert!(tree.younger.is_empty() && tree.failed.is_empty());
    let groups = tree
        .members
        .iter()
        .map(|member| member.set.newest().manifest.group.clone());
    assert_eq!(groups.collect::<BTreeSet<_>>().len(), 2, "two moments");

    let oldest = world.catalog().await.backups[0].manifest.clone();
    let point = RestorePoint::Id(oldest.id.clone());
    let tree = find_restore_tree(&stores, &name(&root), &world.keys, &point)
        .await
        .unwrap();
    assert_eq!(tree.younger, [name(&late)]);
    for (member, expected) in tree.members.iter().zip(&first) {
        assert!(member.same_moment, "{}", member.dataset);
        assert!(
            oldest.group.is_some() && member.set.newest().manifest.group == oldest.group,
            "{}",
            member.dataset
        );
        let target = name(&member.dataset.as_str().replace(&root, "tank/back"));
        receive(&world, &member.set, &target, &ReceiveOptions::default())
            .await
            .unwrap();
        assert!(world.zfs.files(&target) == *expected, "{target}");
    }
    assert!(
        world
            .zfs
            .dataset(&name("tank/back/one/two"))
            .unwrap()
            .is_some()
    );

    // One that is gone by then is left out; one that was renamed has its name of then; one that has
    // no backup of that moment and was there comes as it was before.
    let (renamed, gone) = (child("moved"), child("late"));
    world.zfs.rename(&name(&one), &name(&renamed));
    world
        .zfs
        .rename(&name(&two), &name(&format!("{renamed}/two")));
    let snapshots = world.zfs.snapshots(&name(&gone)).unwrap();
    for snapshot in &snapshots {
        for tag in world.zfs.holds(&snapshot.name).unwrap().keys() {
            world.zfs.release(&snapshot.name, tag).unwrap();
        }
    }
    world
        .zfs
        .destroy_snapshots(
            &snapshots
                .into_iter()
                .map(|snapshot| snapshot.name)
                .collect::<Vec<_>>(),
        )
        .unwrap();
    world.zfs.destroy_dataset(&name(&gone)).unwrap();
    back_up_as(&world, &[(&root, &root), (&renamed, &one)]).await;
    let tree = find_restore_tree(&stores, &name(&root), &world.keys, &RestorePoint::Newest)
        .await
        .unwrap();
    let expected = [
        (root.as_str(), "", true),
        (&one, "/moved", true),
        (&two, "/moved/two", false),
    ];
    assert_eq!(members(&tree), expected);
    assert_eq!(
        tree.gone
            .iter()
            .map(|(dataset, _)| dataset.as_str())
            .collect::<Vec<_>>(),
        [gone.as_str()]
    );
    // The moment before is as it was.
    let then = find_restore_tree(&stores, &name(&root), &world.keys, &point)
        .await
        .unwrap();
    let below: Vec<_> = then
        .members
        .iter()
        .map(|member| member.below.as_str())
        .collect();
    assert_eq!(below, ["", "/one", "/one/two"]);

    // One that was moved into the tree is stored under its old name; one that was never backed up
    // is named.
    let (moved_in, unstored) = (child("stray"), child("unstored"));
    world.zfs.rename(&name(&stray), &name(&moved_in));
    world.zfs.create(&name(&unstored), DatasetType::Filesystem);
    back_up_as(&world, &[(&root, &root), (&moved_in, &stray)]).await;
    let tree = find_restore_tree(&stores, &name(&root), &world.keys, &RestorePoint::Newest)
        .await
        .unwrap();
    let expected = [
        (root.as_str(), "", true),
        (&one, "/moved", false),
        (&two, "/moved/two", false),
        (&stray, "/stray", true),
    ];
    assert_eq!(members(&tree), expected);
    assert_eq!(tree.unstored, [unstored]);
    // One moves away and another takes its name: what is stored under that name does not come in
    // its place.
    let away = "tank/away".to_owned();
    world.zfs.rename(&name(&renamed), &name(&away));
    world.zfs.rename(&name(&moved_in), &name(&one));
    back_up_as(&world, &[(&root, &root), (&one, &stray), (&away, &one)]).await;
    let tree = find_restore_tree(&stores, &name(&root), &world.keys, &RestorePoint::Newest)
        .await
        .unwrap();
    assert_eq!(
        members(&tree),
        [(root.as_str(), "", true), (&stray, "/one", true)]
    );
    let gone: Vec<_> = tree
        .gone
        .iter()
        .map(|(dataset, _)| dataset.as_str())
        .collect();
    assert_eq!(gone, [child("late").as_str(), &one, &two]);
    assert!(
        tree.failed.is_empty() && tree.unstored.len() == 1,
        "{:?}",
        tree.unstored
    );

    // It was not in the tree before.
    let then = find_restore_tree(&stores, &name(&root), &world.keys, &point)
        .await
        .unwrap();
    assert!(
        then.members
            .iter()
            .all(|member| member.dataset.as_str() != stray)
            && then.unstored.is_empty()
    );

    // One that is damaged is named, and the others are found.
    let damaged = world
        .store
        .keys()
        .into_iter()
        .find(|key| key.starts_with(&two) && key.contains("chunks-0000"));
    assert!(world.store.flip(&damaged.unwrap(), 30));
    let tree = find_restore_tree(&stores, &name(&root), &world.keys, &point)
        .await
        .unwrap();
    assert_eq!((tree.members.len(), tree.failed.len()), (2, 1));
    assert_eq!(tree.failed[0].0, name(&two));
}

async fn try_drill(world: &World, zfs: &Arc<dyn Zfs>) -> Result<DrillReport, RunError> {
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let source = zfs.dataset(&world.dataset).unwrap();
    drill(
        &set,
        &world.keys,
        zfs,
        source.as_ref(),
        &name("tank"),
        None,
        never(),
    )
    .await
}

fn datasets(world: &World) -> Vec<String> {
    world
        .zfs
        .children(&name("tank"))
        .unwrap()
        .into_iter()
        .map(|dataset| dataset.name.to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_restores_compares_and_leaves_nothing() {
    for raw in [RawMode::Never, RawMode::Auto] {
        let mut world = World::new();
        world.settings.raw = raw;
        chain(&world, 2).await;
        let zfs: Arc<dyn Zfs> = Arc::new(world.zfs.clone());
        let report = try_drill(&world, &zfs).await.unwrap();
        assert_eq!(
            report.compared,
            [Comparison::Same, Comparison::Same, Comparison::Same]
        );
        assert_eq!(datasets(&world), ["tank/a b"]);
        // The base of the second is left as a bookmark only; the first has gone.
        let snapshots = world.zfs.snapshots(&world.dataset).unwrap();
        world
            .zfs
            .destroy_snapshots(&[snapshots[0].name.clone()])
            .unwrap();
        let report = try_drill(&world, &zfs).await.unwrap();
        assert!(
            matches!(&report.compared[0], Comparison::Not(why) if why.contains("is gone from the pool"))
        );
        assert_eq!(report.compared[1..], [Comparison::Same, Comparison::Same]);
        world.assert_no_holds();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_detects_a_stream_that_differs_from_the_pool() {
    // Two pools whose snapshots have one name and one guid, and other files.
    let world = World::new();
    let other = World::empty(world.keys.clone(), world.writer.clone());
    for (object, bytes) in [
        (7, noise(4711, 150_000)),
        (8, noise(2, 100_001)),
        (9, noise(3, 900)),
        (11, noise(4, 4)),
    ] {
        other.zfs.write_file(&other.dataset, object, &bytes);
    }
    other.snapshot();
    let (manifest, files) = chain(&other, 0).await.remove(0);
    let guid = world.zfs.snapshots(&world.dataset).unwrap()[0].guid;
    assert_eq!(manifest.snapshot.guid, guid, "the tale of this test");
    let set = other.find(&RestorePoint::Newest).await.unwrap();
    let (zfs, source): (Arc<dyn Zfs>, _) = (Arc::new(world.zfs.clone()), world.selected().dataset);
    let rehearse = async || {
        drill(
            &set,
            &world.keys,
            &zfs,
            Some(&source),
            &name("tank"),
            None,
            never(),
        )
        .await
    };
    let error = rehearse().await.unwrap_err();
    assert!(
        error.is_damage() && error.to_string().contains(manifest.id.as_str()),
        "{error}"
    );
    assert_eq!(datasets(&world), ["tank/a b"]);
    // Another version of ZFS may send it otherwise: no alarm, and no claim.
    world.zfs.set_module_version("9.9.9-1");
    assert!(
        matches!(&rehearse().await.unwrap().compared[..], [Comparison::Not(why)] if why.contains("9.9.9-1"))
    );
    assert_comes_back(&other, &manifest, &files).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drill_failed_at_any_call_leaves_no_unreported_scratch_dataset() {
    const EIO: i32 = 5;
    let world = World::new();
    let points = chain(&world, 1).await;
    let zfs: Arc<dyn Zfs> = Arc::new(world.zfs.clone());
    let key = key_of(&points[1].0, &world.chunks(&points[1].0).await[0].name);
    let whole = world.store.object(&key).unwrap();
    assert!(world.store.flip(&key, whole.len() - 20));
    let error = try_drill(&world, &zfs).await.unwrap_err();
    assert!(
        error.is_damage() && error_chain(&error).contains(&key),
        "{}",
        error_chain(&error)
    );
    assert_eq!(datasets(&world), ["tank/a b"]);
    world.store.plant(&key, whole);
    let before = world.zfs.calls();
    try_drill(&world, &zfs).await.unwrap();
    let calls = world.zfs.calls() - before;
    let mut failed = 0;
    for n in 2..=calls {
        world.zfs.fail_call(n, EIO);
        let result = try_drill(&world, &zfs).await;
        failed += usize::from(result.is_err());
        // What the failing call was to destroy is named in a warning and stays; all else is gone.
        for left in datasets(&world)
            .into_iter()
            .filter(|dataset| dataset != "tank/a b")
        {
            let left = name(&left);
            let snapshots = world.zfs.snapshots(&left).unwrap();
            world
                .zfs
                .destroy_snapshots(&snapshots.into_iter().map(|s| s.name).collect::<Vec<_>>())
                .unwrap();
            world.zfs.destroy_dataset(&left).unwrap();
            // The look at all of it, and the two destroys.
            assert!(
                n > calls - 6 || result.is_err(),
                "call {n} of {calls} left {left}"
            );
            assert!(
                result.as_ref().map_or(true, |report| report.left.is_some()),
                "{left} stays, and nobody says so"
            );
        }
    }
    assert!(failed > 8, "{failed} of {calls}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_dataset_continues_its_line_unless_its_source_continues_too() {
    let world = World::new();
    world.back_up().await;
    let target = name("tank/again");
    world.restore_into(&target).await.unwrap();
    let later = |hours: i64| now() + jiff::SignedDuration::from_hours(hours);
    let go_on = async |dataset: &DatasetName, hours: i64| {
        world.zfs.write_file(
            dataset,
            40 + u64::try_from(hours).unwrap(),
            &noise(40, 10_000),
        );
        take_snapshots(
            &world.zfs,
            std::slice::from_ref(dataset),
            "zfs-backup_",
            later(hours),
        )
        .unwrap();
        let dataset = world.zfs.dataset(dataset).unwrap().unwrap();
        let selected = Selected {
            dataset,
            stored: world.dataset.clone(),
        };
        committed(
            back_up(&world.env(), &selected, RequestedKind::Incremental)
                .await
                .unwrap(),
        )
        .manifest
        .id
    };
    let id = go_on(&target, 1).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    assert_eq!(
        (set.newest().manifest.id.clone(), set.backups.len()),
        (id, 2)
    );
    // The one that it was restored from was not gone after all.
    go_on(&world.dataset, 2).await;
    let error = world.find(&RestorePoint::Newest).await.err().unwrap();
    assert!(
        error
            .to_string()
            .contains("backups of 2 datasets lie under the name"),
        "{error}"
    );
}

/// The kernel answers EINVAL or ENOTSUP, and does not say which of the two reasons it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_blocks_and_missing_features_have_hints_of_their_own() {
    const ENOTSUP: i32 = 95;
    let mut world = World::new();
    world.settings.embedded = true;
    world.back_up().await;
    let secret = name("tank/secret");
    world.zfs.create(&secret, DatasetType::Filesystem);
    world.zfs.set_encrypted(&secret, false);
    let below = name("tank/secret/a");
    let refused = world.restore_into(&below).await.unwrap_err();
    let (text, hint) = (error_chain(&refused), refused.hint().unwrap());
    assert!(text.contains("embedded blocks"), "{text}");
    assert!(hint.contains("send.embedded = false"), "{hint}");
    world.assert_not_received(&below);
    let before = world.zfs.calls();
    world.restore_into(&name("tank/plain")).await.unwrap();
    let mut hints = Vec::new();
    for n in 1..=world.zfs.calls() - before {
        world.zfs.fail_call(n, ENOTSUP);
        let restored = world.restore_into(&name(&format!("tank/plain{n}"))).await;
        hints.extend(restored.err().and_then(|error| error.hint()));
    }
    assert!(
        hints
            .iter()
            .any(|hint| hint.contains("`zpool upgrade tank`")),
        "{hints:?}"
    );
}
