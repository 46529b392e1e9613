//! Restores that are interrupted go on where they stopped: whatever was received is not fetched
//! again, the end is the same, and nothing that is not ours is given up.

use crate::chains::{Files, chain, night, nightly};
use crate::world::{World, key_of, name, never, noise};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use zfs_backup::config::RawMode;
use zfs_backup::manifest::Manifest;
use zfs_backup::model::{DatasetName, SnapshotName};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::restore::{
    RESTORING_PROPERTY, ReceiveOptions, Received, RestorePoint, RestoreSet, ResumeChoice,
    check_target, find_interrupted, restore_to_dataset, restore_to_writer,
};
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::store::StoreErrorKind;
use zfs_backup::store::memory::{Fault, Operation, Outcome};
use zfs_backup::stream::seal::ChunkCompression;
use zfs_backup::zfs::{
    DatasetType, PropertyValue, ReceiveRequest, STREAM_TRUNCATED, ZfsRead, ZfsReceive, ZfsSnapshots,
};

const EINVAL: i32 = 22;

async fn restore(
    world: &World,
    target: &DatasetName,
    options: &ReceiveOptions,
) -> Result<Received, RunError> {
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    restore_to_dataset(
        &set,
        &world.keys,
        Arc::new(world.zfs.clone()),
        target,
        options,
        never(),
    )
    .await
}

async fn go_on(world: &World, target: &DatasetName) -> Result<Received, RunError> {
    restore(world, target, &ReceiveOptions::default()).await
}

fn restart() -> ReceiveOptions {
    ReceiveOptions {
        resume: ResumeChoice::Restart,
        ..ReceiveOptions::default()
    }
}

fn rollback() -> ReceiveOptions {
    ReceiveOptions {
        rollback: true,
        ..ReceiveOptions::default()
    }
}

fn property(world: &World, target: &DatasetName, property: &str) -> Option<PropertyValue> {
    Some(
        world
            .zfs
            .dataset(target)
            .unwrap()?
            .properties
            .get(property)?
            .value
            .clone(),
    )
}

fn guids(world: &World, target: &DatasetName) -> Vec<zfs_backup::model::Guid> {
    world
        .zfs
        .snapshots(target)
        .unwrap()
        .iter()
        .map(|snapshot| snapshot.guid)
        .collect()
}

/// That it is there whole, and nothing of the restore is left on it.
#[track_caller]
fn assert_whole(world: &World, target: &DatasetName, points: &[(Manifest, Files)]) {
    assert!(
        world.zfs.files(target) == points.last().unwrap().1,
        "{target} has other files"
    );
    let expected: Vec<_> = points
        .iter()
        .map(|(manifest, _)| manifest.snapshot.guid)
        .collect();
    assert_eq!(guids(world, target), expected);
    assert_eq!(property(world, target, RESTORING_PROPERTY), None);
    assert_ne!(
        property(world, target, "readonly"),
        Some(PropertyValue::Number(1))
    );
    assert!(world.zfs.receive_point(target).is_none());
}

fn destroy(world: &World, target: &DatasetName) {
    let names: Vec<SnapshotName> = world
        .zfs
        .snapshots(target)
        .unwrap()
        .into_iter()
        .map(|s| s.name)
        .collect();
    world.zfs.destroy_snapshots(&names).unwrap();
    world.zfs.destroy_dataset(target).unwrap();
}

async fn stream_of(world: &World, set: &RestoreSet, number: usize) -> Vec<u8> {
    let output = crate::world::SharedBytes::default();
    restore_to_writer(&set.backups[number], &world.keys, Box::new(output.clone()))
        .await
        .unwrap();
    output.take()
}

/// A chain of a full and so many incrementals, what a restore of its newest needs, and the stream
/// of each.
async fn chain_and_streams(
    world: &World,
    incrementals: u64,
) -> (Vec<(Manifest, Files)>, RestoreSet, Vec<Vec<u8>>) {
    let points = chain(world, incrementals).await;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let mut streams = Vec::new();
    for number in 0..points.len() {
        streams.push(stream_of(world, &set, number).await);
    }
    (points, set, streams)
}

/// What a kernel that lost its reader at that byte has: the earlier backups whole, this one cut,
/// marked as ours or not.
fn cut(world: &World, target: &DatasetName, streams: &[Vec<u8>], at: usize, mark: Option<&str>) {
    let mut properties = BTreeMap::new();
    properties.extend(mark.map(|mark| {
        (
            RESTORING_PROPERTY.to_owned(),
            PropertyValue::Text(mark.to_owned()),
        )
    }));
    for (number, stream) in streams.iter().enumerate() {
        let snapshot = target.snapshot(&format!("cut-{number}")).unwrap();
        let properties = properties.clone();
        let request = ReceiveRequest {
            target: snapshot,
            resumable: true,
            properties,
        };
        if number + 1 < streams.len() {
            world.zfs.receive(&request, &mut &stream[..]).unwrap();
        } else {
            let error = world.zfs.receive(&request, &mut &stream[..at]).unwrap_err();
            assert_eq!(error.errno().unwrap().0, STREAM_TRUNCATED);
        }
    }
}

/// Worlds whose streams differ in what a point may be and in how chunks are entered.
fn worlds() -> Vec<(&'static str, World)> {
    let plain = World::new();
    let mut compressed = World::new();
    compressed.settings.compression = ChunkCompression::Zstd {
        level: 1,
        long: None,
    };
    let objects = World::new();
    objects.zfs.set_points_at_objects();
    let mut raw = World::new();
    raw.zfs.set_encrypted(&raw.dataset, false);
    raw.settings.raw = RawMode::Auto;
    vec![
        ("plain", plain),
        ("compressed", compressed),
        ("points at objects", objects),
        ("raw", raw),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restore_cut_at_any_byte_resumes_to_the_same_result() {
    for (what, world) in worlds() {
        let (points, _, streams) = chain_and_streams(&world, 1).await;
        let mark = format!("{} new readonly token=0123456789abcdef", points[1].0.id);
        let target = name("tank/back");
        for number in [0, 1] {
            let length = streams[number].len();
            let begin = streams[number].as_slice();
            // A raw stream has the key data after its first header.
            let payload_bytes = u32::from_le_bytes(begin[4..8].try_into().unwrap());
            let first = 312 + payload_bytes as usize;
            let steps = (first..length).step_by(if number == 0 { 11_003 } else { 2_003 });
            for at in steps.chain([length - 313, length - 312, length - 1]) {
                cut(&world, &target, &streams[..=number], at, Some(&mark));
                let point = world.zfs.receive_point(&target).unwrap();
                let received = go_on(&world, &target).await;
                let received = received.unwrap_or_else(|error| {
                    panic!("{what} {number} {at}: {}", error_chain(&error))
                });
                assert!(
                    received.resumed.is_some(),
                    "{what}: backup {number} cut at {at} of {length}, at {point:?}"
                );
                assert_eq!(received.snapshots.len(), 2 - number);
                assert_whole(&world, &target, &points);
                destroy(&world, &target);
            }
        }
    }
}

/// A store that is away, chunk by chunk: the first run leaves what it has, the second does not
/// fetch it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_restore_does_not_fetch_received_chunks_again() {
    let mut world = World::new();
    world.settings.split_bytes = 64 * 1024;
    world
        .zfs
        .write_file(&world.dataset, 20, &noise(20, 900_000));
    world
        .zfs
        .write_file(&world.dataset, 21, &noise(21, 2_200_000));
    world.snapshot();
    let points = chain(&world, 0).await;
    let manifest = &points[0].0;
    let chunks = world.chunks(manifest).await;
    assert!(chunks.len() > 50);
    let target = name("tank/back");
    let gone = chunks.len() - 5;
    world.store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::Get)
            .on(&key_of(manifest, &chunks[gone].name))
            .forever(),
    );
    let error = go_on(&world, &target).await.unwrap_err();
    assert!(matches!(error, RunError::Store(_)), "{error}");
    assert!(world.zfs.receive_point(&target).unwrap().object == 21);
    let mark = property(&world, &target, RESTORING_PROPERTY);
    let Some(PropertyValue::Text(mark)) = mark else {
        panic!("{mark:?}")
    };
    assert!(
        mark.starts_with(&format!("{} new token=", manifest.id)),
        "{mark}"
    );
    // The store is still away: what is there stays.
    go_on(&world, &target).await.unwrap_err();
    assert!(world.zfs.receive_point(&target).unwrap().object == 21);

    world.store.heal();
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let plan = check_target(&world.zfs, &target, &set, &ReceiveOptions::default()).unwrap();
    let calls = world.zfs.calls();
    let found = find_interrupted(&set, &plan, &world.keys, &never())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        world.zfs.calls(),
        calls,
        "a look at the store asks nothing of the pool"
    );
    assert_eq!(found.id, manifest.id);
    let sealed: u64 = chunks.iter().map(|chunk| chunk.sealed_bytes).sum();
    assert!(
        found.fetch_bytes * 6 < sealed && found.fetch_bytes > 4 * 64 * 1024,
        "{found:?} of {sealed}"
    );
    world.store.clear_events();
    let received = go_on(&world, &target).await.unwrap();
    assert_eq!(received.resumed, Some(found));
    assert_whole(&world, &target, &points);
    let fetched: BTreeSet<usize> = (0..chunks.len())
        .filter(|index| {
            let key = key_of(manifest, &chunks[*index].name);
            world.store.events().iter().any(|event| {
                event.operation == Operation::Get
                    && event.key == key
                    && event.outcome == Outcome::Done
            })
        })
        .collect();
    // BEGIN, the looks, OBJECT with what is read ahead of it, and the rest.
    assert!(fetched.contains(&0) && (gone..chunks.len()).all(|index| fetched.contains(&index)));
    assert!(
        fetched.len() < 26,
        "{} of {} chunks: {fetched:?}",
        fetched.len(),
        chunks.len()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chain_restore_resumes_between_backups_and_ends_writable() {
    let world = World::new();
    let points = chain(&world, 3).await;
    for number in 0..4 {
        let target = name(&format!("tank/made/back-{number}"));
        let manifest = &points[number].0;
        let key = key_of(manifest, &world.chunks(manifest).await[0].name);
        world.store.fail(
            Fault::before(StoreErrorKind::Unavailable)
                .of(Operation::Get)
                .on(&key)
                .forever(),
        );
        go_on(&world, &target).await.unwrap_err();
        world.store.heal();
        // Nothing of the first: nothing stays. Else what was received stays, readonly, and ours.
        if number == 0 {
            assert!(world.zfs.dataset(&name("tank/made")).unwrap().is_none());
        } else {
            assert_eq!(guids(&world, &target).len(), number);
            assert_eq!(
                property(&world, &target, "readonly"),
                Some(PropertyValue::Number(1))
            );
        }
        world.store.clear_events();
        let received = go_on(&world, &target).await.unwrap();
        assert_eq!(received.snapshots.len(), 4 - number);
        assert_whole(&world, &target, &points);
        for (done, (manifest, _)) in points[..number].iter().enumerate() {
            let chunks = key_of(manifest, "0000");
            let again = world
                .store
                .events()
                .iter()
                .any(|event| event.key.starts_with(&chunks));
            assert!(!again, "backup {done} was fetched again");
        }
    }
}

/// An end of the process after the last receive, before its marks are taken away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fully_received_restore_only_removes_its_marks() {
    let world = World::new();
    let points = chain(&world, 1).await;
    let target = name("tank/back");
    go_on(&world, &target).await.unwrap();
    let mark = PropertyValue::Text(format!(
        "{} new readonly token=0123456789abcdef",
        points[1].0.id
    ));
    world.zfs.set_property(&target, RESTORING_PROPERTY, mark);
    world
        .zfs
        .set_property(&target, "readonly", PropertyValue::Number(1));
    let received = go_on(&world, &target).await.unwrap();
    assert!(received.snapshots.is_empty());
    assert_whole(&world, &target, &points);
    let again = go_on(&world, &target).await.unwrap_err();
    assert!(again.to_string().contains("exists already"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_rollback_with_one_backup_left_ends_its_readonly() {
    let world = World::new();
    let points = chain(&world, 2).await;
    let target = name("tank/back");
    let oldest = world
        .find(&RestorePoint::Id(points[0].0.id.clone()))
        .await
        .unwrap();
    let zfs = Arc::new(world.zfs.clone());
    restore_to_dataset(
        &oldest,
        &world.keys,
        zfs,
        &target,
        &ReceiveOptions::default(),
        never(),
    )
    .await
    .unwrap();
    world.zfs.write_file(&target, 500, &noise(77, 9_000));
    world
        .zfs
        .take_snapshots(&[target.snapshot("mine").unwrap()], &BTreeMap::new())
        .unwrap();
    let (manifest, _) = &points[2];
    let key = key_of(manifest, &world.chunks(manifest).await[0].name);
    let whole = world.store.object(&key).unwrap();
    assert!(world.store.flip(&key, whole.len() - 20));
    assert!(
        restore(&world, &target, &rollback())
            .await
            .unwrap_err()
            .is_damage()
    );
    assert_eq!(guids(&world, &target).len(), 2);
    assert_eq!(
        property(&world, &target, "readonly"),
        Some(PropertyValue::Number(1))
    );
    assert!(
        world.zfs.receive_point(&target).is_none(),
        "a damaged backup was half kept"
    );
    world.store.plant(&key, whole);
    restore(&world, &target, &rollback()).await.unwrap();
    assert_whole(&world, &target, &points);
    // What its owner made readonly stays so.
    destroy(&world, &target);
    let zfs = Arc::new(world.zfs.clone());
    restore_to_dataset(
        &oldest,
        &world.keys,
        zfs,
        &target,
        &ReceiveOptions::default(),
        never(),
    )
    .await
    .unwrap();
    world
        .zfs
        .set_property(&target, "readonly", PropertyValue::Number(1));
    restore(&world, &target, &rollback()).await.unwrap();
    assert_eq!(
        property(&world, &target, "readonly"),
        Some(PropertyValue::Number(1))
    );
    assert_eq!(guids(&world, &target).len(), 3);
}

/// Onto a dataset that was there the kernel puts back what was set before, so that nothing marks
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_rollback_resumes_only_with_force_rollback() {
    let world = World::new();
    let (points, _, streams) = chain_and_streams(&world, 1).await;
    let target = name("tank/back");
    cut(&world, &target, &streams, streams[1].len() / 2, None);
    let refused = go_on(&world, &target).await.unwrap_err();
    assert!(refused.to_string().contains("exists already"), "{refused}");
    assert!(world.zfs.receive_point(&target).is_some());
    let received = restore(&world, &target, &rollback()).await.unwrap();
    assert!(received.resumed.is_some());
    assert_whole(&world, &target, &points);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_abandons_only_the_own_partial_restore() {
    let world = World::new();
    let (points, set, streams) = chain_and_streams(&world, 1).await;
    let mark = format!("{} new readonly token=0123456789abcdef", points[1].0.id);
    let target = name("tank/back");
    for number in [0, 1] {
        cut(
            &world,
            &target,
            &streams[..=number],
            streams[number].len() / 2,
            Some(&mark),
        );
        let plan = check_target(&world.zfs, &target, &set, &restart()).unwrap();
        assert!(plan.gives_up && plan.skipped == 0 && plan.unfinished.is_none());
        let received = restore(&world, &target, &restart()).await.unwrap();
        assert_eq!((received.snapshots.len(), received.resumed), (2, None));
        assert_whole(&world, &target, &points);
        destroy(&world, &target);
    }
    // Begun by us onto a dataset that was somebody's: nothing of it is destroyed.
    cut(
        &world,
        &target,
        &streams,
        streams[1].len() / 2,
        Some(&format!(
            "{} readonly token=0123456789abcdef",
            points[1].0.id
        )),
    );
    restore(&world, &target, &restart()).await.unwrap_err();
    assert!(world.zfs.receive_point(&target).is_some() && guids(&world, &target).len() == 1);
    // Somebody took a snapshot of it meanwhile.
    let other = name("tank/other");
    cut(&world, &other, &streams, streams[1].len() / 2, Some(&mark));
    world
        .zfs
        .take_snapshots(&[other.snapshot("mine").unwrap()], &BTreeMap::new())
        .unwrap();
    let refused = restore(&world, &other, &restart()).await.unwrap_err();
    assert!(error_chain(&refused).contains("@mine"), "{refused}");
    assert_eq!(guids(&world, &other).len(), 2);
    let refused = go_on(&world, &other).await.unwrap_err();
    assert!(error_chain(&refused).contains("@mine"), "{refused}");
    // A plain dataset is never destroyed.
    let plain = name("tank/plain");
    world.zfs.create(&plain, DatasetType::Filesystem);
    world.zfs.write_file(&plain, 5, b"theirs");
    restore(&world, &plain, &restart()).await.unwrap_err();
    assert_eq!(world.zfs.files(&plain)[&5], b"theirs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partial_receive_of_another_stream_is_reported_and_not_touched() {
    let mut world = World::new();
    let (points, _, streams) = chain_and_streams(&world, 1).await;
    let target = name("tank/back");
    cut(&world, &target, &streams[..1], streams[0].len() / 2, None);
    // The same snapshot with other flags is another stream; so is another chain.
    world.settings.compressed = false;
    night(&world, 5);
    let other =
        crate::world::committed(world.try_back_up_as(RequestedKind::Full).await.unwrap()).manifest;
    for options in [ReceiveOptions::default(), rollback(), restart()] {
        let refused = restore(&world, &target, &options).await.unwrap_err();
        let text = format!("{} {}", error_chain(&refused), refused.hint().unwrap());
        assert!(
            text.contains("tank/a b@") && text.contains("zfs receive -A tank/back"),
            "{text}"
        );
        assert!(world.zfs.receive_point(&target).is_some());
    }
    // One that is ours says which backup it is of.
    world.zfs.abort_receive(&target).unwrap();
    cut(
        &world,
        &target,
        &streams[..1],
        streams[0].len() / 2,
        Some(&format!("{} new token=0123456789abcdef", points[1].0.id)),
    );
    let refused = go_on(&world, &target).await.unwrap_err();
    assert!(
        refused
            .hint()
            .unwrap()
            .contains(&format!("--backup {}", points[1].0.id)),
        "{refused}"
    );
    let received = restore(&world, &target, &restart()).await.unwrap();
    assert_eq!(received.snapshots.len(), 1);
    assert_eq!(guids(&world, &target), [other.snapshot.guid]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_resume_restarts_the_receive_only_with_the_own_mark() {
    let world = World::new();
    let (points, _, streams) = chain_and_streams(&world, 1).await;
    let target = name("tank/back");
    let mark = format!("{} new readonly token=0123456789abcdef", points[1].0.id);
    for number in [0, 1] {
        for (mark, starts_over) in [(Some(mark.as_str()), true), (None, false)] {
            if number == 1 && !starts_over {
                continue;
            }
            cut(
                &world,
                &target,
                &streams[..=number],
                streams[number].len() / 2,
                mark,
            );
            // Two looks at the target come before the receive.
            world.zfs.fail_call(3, EINVAL);
            let received = go_on(&world, &target).await;
            if starts_over {
                let received = received.unwrap();
                assert_eq!(
                    (received.snapshots.len(), received.resumed),
                    (2 - number, None)
                );
                assert_whole(&world, &target, &points);
                destroy(&world, &target);
            } else {
                let refused = received.unwrap_err();
                assert!(
                    refused.hint().unwrap().contains("zfs receive -A tank/back"),
                    "{refused}"
                );
                assert!(world.zfs.receive_point(&target).is_some());
                world.zfs.abort_receive(&target).unwrap();
            }
        }
    }
}

/// Damage in what is still to come keeps what came before: it was authentic.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_found_by_a_resumed_restore_keeps_the_received_data() {
    let world = World::new();
    let (points, _, streams) = chain_and_streams(&world, 0).await;
    let target = name("tank/back");
    cut(
        &world,
        &target,
        &streams,
        streams[0].len() / 2,
        Some(&format!("{} new token=0123456789abcdef", points[0].0.id)),
    );
    let manifest = &points[0].0;
    let last = world.chunks(manifest).await.pop().unwrap();
    let key = key_of(manifest, &last.name);
    let whole = world.store.object(&key).unwrap();
    assert!(world.store.flip(&key, whole.len() - 20));
    let error = go_on(&world, &target).await.unwrap_err();
    assert!(
        error.is_damage() && error_chain(&error).contains(&key),
        "{}",
        error_chain(&error)
    );
    assert!(world.zfs.receive_point(&target).is_some());
    world.store.plant(&key, whole);
    assert!(go_on(&world, &target).await.unwrap().resumed.is_some());
    assert_whole(&world, &target, &points);
}

/// Every call of ZFS and of the store fails once in a run that goes on: the next one ends in the
/// same all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_restore_that_fails_at_any_call_can_be_resumed_again() {
    let world = World::new();
    let (points, set, streams) = chain_and_streams(&world, 1).await;
    let mark = format!("{} new readonly token=0123456789abcdef", points[1].0.id);
    let target = name("tank/back");
    for n in 1..=14 {
        for of_store in [false, true] {
            cut(
                &world,
                &target,
                &streams[..1],
                streams[0].len() * 2 / 3,
                Some(&mark),
            );
            if of_store {
                let fault = Fault::before(StoreErrorKind::Unavailable)
                    .of(Operation::Get)
                    .nth(n);
                world.store.fail(fault);
            } else {
                world.zfs.fail_call(n as u64, 5);
            }
            let (zfs, options) = (Arc::new(world.zfs.clone()), ReceiveOptions::default());
            let failed = restore_to_dataset(&set, &world.keys, zfs, &target, &options, never())
                .await
                .is_err();
            world.store.heal();
            // What was to fail later fails nobody.
            (0..20).for_each(|_| drop(world.zfs.pool_guid("tank")));
            if failed || property(&world, &target, RESTORING_PROPERTY).is_some() {
                go_on(&world, &target).await.unwrap();
            }
            assert_whole(&world, &target, &points);
            destroy(&world, &target);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_restore_also_receives_a_backup_made_since() {
    let world = World::new();
    let (mut points, _, streams) = chain_and_streams(&world, 0).await;
    let target = name("tank/back");
    cut(
        &world,
        &target,
        &streams,
        streams[0].len() / 2,
        Some(&format!("{} new token=0123456789abcdef", points[0].0.id)),
    );
    night(&world, 1);
    points.push((
        nightly(&world).await.manifest,
        world.zfs.files(&world.dataset),
    ));
    let received = go_on(&world, &target).await.unwrap();
    assert!(received.resumed.is_some() && received.snapshots.len() == 2);
    assert_whole(&world, &target, &points);
}
