//! Chains: what incrementals build on, what they refuse to build on, and that every point of a
//! chain comes back.

use crate::failures::{EIO, for_all};
use crate::world::{World, committed, key_of, name, never, noise, quick_keys, up_to_date};
use std::collections::BTreeMap;
use std::sync::Arc;
use zfs_backup::config::{DatasetSelection, SnapshotSource};
use zfs_backup::manifest::Manifest;
use zfs_backup::model::{BackupKind, DatasetName, SnapshotName};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupRun, CommittedBackup, back_up, plan_backup};
use zfs_backup::run::pool::select::{Selected, select_datasets};
use zfs_backup::run::restore::{
    ReceiveOptions, RestorePoint, find_restore_backup, restore_to_dataset, restore_to_writer,
};
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::store::StoreErrorKind;
use zfs_backup::store::memory::Fault;
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{
    PropertyValue, SendBase, SendFlags, SendRequest, ZfsRead, ZfsReceive, ZfsSend, ZfsSnapshots,
};

const FLAGS: SendFlags = SendFlags {
    raw: false,
    compressed: true,
    embedded: false,
    large_blocks: true,
};

pub(crate) type Files = BTreeMap<u64, Vec<u8>>;

/// Another night: files change, a snapshot is taken.
pub(crate) fn night(world: &World, number: u64) -> SnapshotName {
    let at = jiff::Timestamp::from_second(1_770_000_000 + i64::try_from(number).unwrap() * 86_400)
        .unwrap();
    world.zfs.set_now(at);
    world
        .zfs
        .write_file(&world.dataset, 100 + number, &noise(number, 20_000));
    world
        .zfs
        .write_file(&world.dataset, 7, &noise(1000 + number, 3_000));
    if number.is_multiple_of(2) {
        world.zfs.remove_file(&world.dataset, 99 + number);
    }
    world.snapshot();
    world.newest_snapshot()
}

pub(crate) async fn nightly(world: &World) -> CommittedBackup {
    committed(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .unwrap(),
    )
}

/// A chain of a full and that many incrementals, with the files at each point.
pub(crate) async fn chain(world: &World, incrementals: u64) -> Vec<(Manifest, Files)> {
    let mut points = vec![(
        nightly(world).await.manifest,
        world.zfs.files(&world.dataset),
    )];
    for number in 1..=incrementals {
        night(world, number);
        points.push((
            nightly(world).await.manifest,
            world.zfs.files(&world.dataset),
        ));
    }
    points
}

fn kinds(points: &[(Manifest, Files)]) -> Vec<BackupKind> {
    points.iter().map(|(manifest, _)| manifest.kind).collect()
}

/// Restores that very backup with its chain, and holds the files against those.
pub(crate) async fn assert_comes_back(world: &World, manifest: &Manifest, files: &Files) {
    let target = name(&format!("tank/back-{}", manifest.id.snapshot_guid()));
    let set = world
        .find(&RestorePoint::Id(manifest.id.clone()))
        .await
        .unwrap();
    let zfs = Arc::new(world.zfs.clone());
    let received = restore_to_dataset(
        &set,
        &world.keys,
        zfs,
        &target,
        &ReceiveOptions::default(),
        never(),
    )
    .await
    .unwrap()
    .snapshots;
    assert_eq!(received.len(), manifest.chain.position as usize + 1);
    assert!(
        world.zfs.files(&target) == *files,
        "{} came back with other files",
        manifest.id
    );
    let newest = world.zfs.snapshots(&target).unwrap().pop().unwrap();
    assert_eq!(newest.guid, manifest.snapshot.guid);
    world.zfs.destroy_snapshots(&received).unwrap();
    world.zfs.destroy_dataset(&target).unwrap();
}

async fn bare_stream(world: &World, manifest: &Manifest) -> Vec<u8> {
    let backup = find_restore_backup(
        &[world.shared_store()],
        &world.dataset,
        &world.keys,
        &manifest.id,
    )
    .await
    .unwrap();
    let output = crate::world::SharedBytes::default();
    let to = Box::new(output.clone());
    restore_to_writer(&backup, &world.keys, to).await.unwrap();
    output.take()
}

fn sent(world: &World, snapshot: &SnapshotName, base: SendBase) -> Vec<u8> {
    let request = SendRequest {
        snapshot: snapshot.clone(),
        base: Some(base),
        flags: FLAGS,
        resume: None,
    };
    let mut sending = world.zfs.send(&request).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(sending.reader(), &mut bytes).unwrap();
    sending.finish().unwrap();
    bytes
}

fn files_below(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .flat_map(|path| {
            if path.is_dir() {
                files_below(&path)
            } else {
                vec![path]
            }
        })
        .collect();
    files.sort();
    files
}

pub(crate) fn bookmarks(world: &World) -> Vec<String> {
    let bookmarks = world.zfs.bookmarks(&world.dataset).unwrap();
    bookmarks
        .iter()
        .map(|bookmark| bookmark.name.short().to_owned())
        .collect()
}

pub(crate) fn bookmark_of(manifest: &Manifest) -> String {
    format!("zfs-backup_{}", manifest.snapshot.guid)
}

fn destroy_bookmark(world: &World, manifest: &Manifest) {
    let bookmark = world.dataset.bookmark(&bookmark_of(manifest)).unwrap();
    world.zfs.destroy_bookmarks(&[bookmark]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_backup_of_a_chain_is_restored_byte_for_byte() {
    let world = World::new();
    let points = chain(&world, 4).await;
    use BackupKind::{Full, Incr};
    assert_eq!(kinds(&points), [Full, Incr, Incr, Incr, Incr]);
    let catalog = world.catalog().await;
    assert_eq!(catalog.backups.len(), 5);
    for (position, pair) in points.windows(2).enumerate() {
        let ((base, _), (next, _)) = (&pair[0], &pair[1]);
        let reference = next.base.as_ref().unwrap();
        assert_eq!(
            (&reference.backup_id, reference.guid),
            (&base.id, base.snapshot.guid)
        );
        assert_eq!(
            reference.manifest_blake3,
            catalog.backup(&base.id).unwrap().manifest_blake3
        );
        assert_eq!(
            (next.chain.position as usize, &next.chain.full_id),
            (position + 1, &points[0].0.id)
        );
        let own: u64 = world
            .chunks(next)
            .await
            .iter()
            .map(|chunk| chunk.sealed_bytes)
            .sum();
        assert_eq!(next.chain.stored_bytes, base.chain.stored_bytes + own);
        let snapshots = world.zfs.snapshots(&world.dataset).unwrap();
        let of = |manifest: &Manifest| {
            snapshots
                .iter()
                .find(|snapshot| snapshot.guid == manifest.snapshot.guid)
                .unwrap()
                .name
                .clone()
        };
        assert!(
            bare_stream(&world, next).await
                == sent(&world, &of(next), SendBase::Snapshot(of(base)))
        );
    }
    for (manifest, files) in &points {
        assert_comes_back(&world, manifest, files).await;
    }
    world.assert_no_holds();
    assert_eq!(world.verify().await.damage, []);
    let again = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap();
    assert_eq!(up_to_date(&again), Some(&points[4].0.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_is_readonly_while_it_is_received_and_writable_after() {
    let world = World::new();
    chain(&world, 2).await;
    let target = name("tank/back");
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    // The looks at target and parent, then receive and look three times; what is asked here counts
    // as a call too.
    for n in [5, 8] {
        let (seen, target) = (Arc::clone(&seen), target.clone());
        world.zfs.before_call(n, move |zfs| {
            seen.lock().unwrap().push(readonly_of(zfs, &target))
        });
    }
    world.restore_into(&target).await.unwrap();
    seen.lock().unwrap().push(readonly_of(&world.zfs, &target));
    assert_eq!(
        *seen.lock().unwrap(),
        [Some(1), Some(1), Some(0)].map(|on| on.map(PropertyValue::Number))
    );
    let alone = name("tank/alone");
    let set = world
        .find(&RestorePoint::Id(
            world.catalog().await.backups[0].manifest.id.clone(),
        ))
        .await
        .unwrap();
    let zfs = Arc::new(world.zfs.clone());
    restore_to_dataset(
        &set,
        &world.keys,
        zfs,
        &alone,
        &ReceiveOptions::default(),
        never(),
    )
    .await
    .unwrap();
    assert_eq!(readonly_of(&world.zfs, &alone), None);
}

fn readonly_of(zfs: &FakeZfs, dataset: &DatasetName) -> Option<PropertyValue> {
    Some(
        zfs.dataset(dataset)
            .unwrap()?
            .properties
            .get("readonly")?
            .value
            .clone(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_chain_restore_leaves_nothing_and_a_stopped_one_resumes() {
    let world = World::new();
    let points = chain(&world, 2).await;
    let target = name("tank/back");
    for number in [0, 1, 2] {
        let (manifest, _) = &points[number];
        let key = key_of(manifest, &world.chunks(manifest).await[0].name);
        let whole = world.store.object(&key).unwrap();
        assert!(world.store.flip(&key, whole.len() - 20));
        let error = world.restore_into(&target).await.unwrap_err();
        assert!(
            error.is_damage() && error_chain(&error).contains(&key),
            "{}",
            error_chain(&error)
        );
        world.assert_not_received(&target);
        world.store.plant(&key, whole);
    }
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let (asker, stop) = tokio::sync::watch::channel(false);
    asker.send_replace(true);
    let zfs = Arc::new(world.zfs.clone());
    let stopped = restore_to_dataset(
        &set,
        &world.keys,
        zfs,
        &target,
        &ReceiveOptions::default(),
        stop,
    )
    .await;
    assert!(matches!(stopped, Err(RunError::Interrupted)), "{stopped:?}");
    world.restore_into(&target).await.unwrap();
    assert!(world.zfs.files(&target) == points[2].1);
    let received: Vec<_> = world
        .zfs
        .snapshots(&target)
        .unwrap()
        .into_iter()
        .map(|snapshot| snapshot.name)
        .collect();
    world.zfs.destroy_snapshots(&received).unwrap();
    world.zfs.destroy_dataset(&target).unwrap();
    // Each call of ZFS fails once.
    for n in 1..=20 {
        world.zfs.fail_call(n, EIO);
        match world.restore_into(&target).await {
            Err(_) => world.assert_not_received(&target),
            // There were not so many calls.
            Ok(_) => {
                assert!(n > 8, "call {n} failed and nobody noticed");
                return;
            }
        }
    }
    panic!("it goes on failing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dataset_created_concurrently_at_the_target_is_not_touched() {
    let world = World::new();
    chain(&world, 1).await;
    let target = name("tank/back");
    let theirs = target.clone();
    // After the look at the target and its parent comes the first receive.
    world.zfs.before_call(3, move |zfs| {
        zfs.create(&theirs, zfs_backup::zfs::DatasetType::Filesystem);
        zfs.write_file(&theirs, 5, b"theirs");
    });
    assert!(world.restore_into(&target).await.is_err());
    assert_eq!(world.zfs.files(&target)[&5], b"theirs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookmark_is_a_base_when_its_snapshot_is_gone() {
    let world = World::new();
    let mut points = chain(&world, 1).await;
    world
        .zfs
        .destroy_snapshots(&[world.newest_snapshot()])
        .unwrap();
    night(&world, 2);
    points.push((
        nightly(&world).await.manifest,
        world.zfs.files(&world.dataset),
    ));
    let last = &points[2].0;
    assert_eq!(last.base.as_ref().unwrap().backup_id, points[1].0.id);
    let bookmark = SendBase::Bookmark(world.dataset.bookmark(&bookmark_of(&points[1].0)).unwrap());
    assert!(bare_stream(&world, last).await == sent(&world, &world.newest_snapshot(), bookmark));
    for (manifest, files) in &points {
        assert_comes_back(&world, manifest, files).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chain_continues_from_the_remaining_base_after_a_rollback() {
    let world = World::new();
    let before = world.zfs.files(&world.dataset);
    let mut points = chain(&world, 2).await;
    // As `zfs rollback -r` to the full: what is newer goes, bookmarks too.
    for _ in 0..2 {
        world
            .zfs
            .destroy_snapshots(&[world.newest_snapshot()])
            .unwrap();
    }
    points[1..]
        .iter()
        .for_each(|(manifest, _)| destroy_bookmark(&world, manifest));
    for object in world
        .zfs
        .files(&world.dataset)
        .into_keys()
        .filter(|object| !before.contains_key(object))
    {
        world.zfs.remove_file(&world.dataset, object);
    }
    before
        .iter()
        .for_each(|(object, bytes)| world.zfs.write_file(&world.dataset, *object, bytes));
    night(&world, 5);
    points.push((
        nightly(&world).await.manifest,
        world.zfs.files(&world.dataset),
    ));
    let base = points[3].0.base.as_ref().unwrap();
    assert_eq!(
        (&base.backup_id, points[3].0.chain.position),
        (&points[0].0.id, 1)
    );
    for (manifest, files) in &points {
        assert_comes_back(&world, manifest, files).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_dataset_keeps_its_place_and_its_chain() {
    let mut world = World::new();
    let stored = world.dataset.clone();
    let mut points = chain(&world, 1).await;
    let renamed = name("tank/pictures");
    world.zfs.rename(&stored, &renamed);
    world.dataset = renamed.clone();
    night(&world, 2);
    let selection = |names: &[&DatasetName], store_as: Option<&str>| DatasetSelection {
        names: names.iter().map(|name| (*name).clone()).collect(),
        recursive: false,
        exclude: vec![],
        store_as: store_as.map(name),
    };
    let select = |selection: &DatasetSelection| {
        select_datasets(&world.zfs, selection, &world.settings.state_dir).unwrap()
    };
    let selected: Selected = select(&selection(&[&renamed], None)).selected.remove(0);
    assert_eq!(
        (&selected.dataset.name, &selected.stored),
        (&renamed, &stored)
    );
    let elsewhere = select(&selection(&[&renamed], Some("elsewhere")))
        .selected
        .remove(0);
    assert_eq!(elsewhere.stored, name("elsewhere"), "store_as wins");

    let outcome = back_up(&world.env(), &selected, RequestedKind::Incremental)
        .await
        .unwrap();
    points.push((committed(outcome).manifest, world.zfs.files(&renamed)));
    assert_eq!(points[2].0.dataset, stored);
    world.dataset = stored.clone();
    for (manifest, files) in &points {
        assert_comes_back(&world, manifest, files).await;
    }

    // A new dataset under the old name does not mix its backups with those; one that is missing is
    // told by name.
    world
        .zfs
        .create(&stored, zfs_backup::zfs::DatasetType::Filesystem);
    let missing = name("tank/missing");
    let selection = select_datasets(
        &world.zfs,
        &selection(&[&stored, &missing, &renamed], None),
        &world.settings.state_dir,
    );
    let selection = selection.unwrap();
    assert_eq!(selection.selected.len(), 1);
    assert_eq!(selection.selected[0].dataset.name, renamed);
    let failed: Vec<_> = selection
        .failed
        .iter()
        .map(|(name, error)| (name, error.to_string()))
        .collect();
    assert!(
        failed
            .iter()
            .any(|(name, error)| **name == missing && error.contains("there is no dataset"))
    );
    assert!(
        failed.iter().any(
            |(name, error)| **name == stored && error.contains("tank/pictures has its backups")
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_snapshot_of_a_reused_name_is_distinguished_by_guid() {
    let mut world = World::new();
    world.settings.source = SnapshotSource::Matching("daily*".into());
    let daily = world.dataset.snapshot("daily").unwrap();
    let take = |world: &World| {
        world
            .zfs
            .take_snapshots(std::slice::from_ref(&daily), &BTreeMap::new())
            .unwrap()
    };
    take(&world);
    let mut points = vec![(
        nightly(&world).await.manifest,
        world.zfs.files(&world.dataset),
    )];
    world
        .zfs
        .destroy_snapshots(std::slice::from_ref(&daily))
        .unwrap();
    world.zfs.write_file(&world.dataset, 55, &noise(55, 9_000));
    take(&world);
    points.push((
        nightly(&world).await.manifest,
        world.zfs.files(&world.dataset),
    ));
    assert_eq!(
        points[1].0.base.as_ref().unwrap().guid,
        points[0].0.snapshot.guid
    );
    assert_ne!(points[1].0.snapshot.guid, points[0].0.snapshot.guid);
    for (manifest, files) in &points {
        assert_comes_back(&world, manifest, files).await;
    }
    let received = world.restore_into(&name("tank/back")).await.unwrap();
    assert_eq!(received[0].short(), "daily");
    assert_eq!(
        received[1].short(),
        format!("daily-{}", points[1].0.snapshot.guid)
    );

    // Without its bookmark nothing ties the new one to the old one, whatever its name.
    world
        .zfs
        .destroy_snapshots(std::slice::from_ref(&daily))
        .unwrap();
    points
        .iter()
        .for_each(|(manifest, _)| destroy_bookmark(&world, manifest));
    take(&world);
    let refused = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("neither snapshot nor bookmark"),
        "{refused}"
    );
    assert_eq!(nightly(&world).await.manifest.kind, BackupKind::Full);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_destroyed_at_any_zfs_call_never_causes_a_wrong_backup() {
    let (keys, writer) = quick_keys();
    let calls = {
        let world = World::with_keys(keys.clone(), writer.clone());
        chain(&world, 1).await;
        night(&world, 2);
        let before = world.zfs.calls();
        nightly(&world).await;
        world.zfs.calls() - before
    };
    assert!(calls > 8);
    let cases = (1..=calls).flat_map(|n| [(n, false), (n, true)]);
    for_all(cases.collect(), |(n, bookmark_too)| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let mut points = chain(&world, 1).await;
            let base = points[1].0.clone();
            let base_name = world.newest_snapshot();
            night(&world, 2);
            let (env, selected) = (world.env(), world.selected());
            let dataset = world.dataset.clone();
            let bookmark = dataset.bookmark(&bookmark_of(&base)).unwrap();
            world.zfs.before_call(n, move |zfs| {
                // Held or being sent, it stays.
                let _ = zfs.destroy_snapshots(&[base_name]);
                if bookmark_too {
                    zfs.destroy_bookmarks(&[bookmark]).unwrap();
                }
            });
            let backup = committed(
                back_up(&env, &selected, RequestedKind::Lifecycle)
                    .await
                    .unwrap(),
            );
            points.push((backup.manifest, world.zfs.files(&world.dataset)));
            world.assert_no_holds();
            for (manifest, files) in &points {
                assert_comes_back(&world, manifest, files).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incremental_with_a_destroyed_base_is_refused_and_never_made_full() {
    let world = World::new();
    let points = chain(&world, 0).await;
    let base_name = world.newest_snapshot();
    night(&world, 1);
    let (env, selected) = (world.env(), world.selected());
    let bookmark = world.dataset.bookmark(&bookmark_of(&points[0].0)).unwrap();
    // The dataset, its snapshots and bookmarks, and two estimates come before the holds.
    world.zfs.before_call(6, move |zfs| {
        zfs.destroy_snapshots(&[base_name]).unwrap();
        zfs.destroy_bookmarks(&[bookmark]).unwrap();
    });
    let refused = back_up(&env, &selected, RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("neither snapshot nor bookmark"),
        "{refused}"
    );
    assert!(refused.hint().unwrap().contains("stream-to-remote --full"));
    assert_eq!(world.catalog().await.backups.len(), 1);
    world.assert_no_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_with_a_lost_chunk_is_not_used_as_base() {
    let world = World::new();
    let mut points = chain(&world, 2).await;
    let (damaged, _) = points[1].clone();
    let key = key_of(&damaged, &world.chunks(&damaged).await[0].name);
    let lost = world.store.object(&key).unwrap();
    world.store.lose(&key);
    night(&world, 3);
    let (keys, state) = (world.store.keys(), files_below(&world.settings.state_dir));
    let planned = plan_backup(&world.env(), &world.selected(), RequestedKind::Lifecycle)
        .await
        .unwrap();
    assert_eq!(
        (world.store.keys(), files_below(&world.settings.state_dir)),
        (keys, state),
        "a plan changed something"
    );
    // The full is whole: it is the newest that can be built on.
    let after = nightly(&world).await.manifest;
    assert_eq!(
        after.base.as_ref().unwrap().backup_id,
        points[0].0.id,
        "{planned:?}"
    );
    points.push((after, world.zfs.files(&world.dataset)));
    let full_chunk = key_of(&points[0].0, &world.chunks(&points[0].0).await[1].name);
    let full_lost = world.store.object(&full_chunk).unwrap();
    assert!(world.store.cut(&full_chunk, 100));
    night(&world, 4);
    let refused = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains(&full_chunk), "{refused}");
    let again = nightly(&world).await.manifest;
    assert_eq!(again.kind, BackupKind::Full);
    points.push((again, world.zfs.files(&world.dataset)));
    world.store.plant(&key, lost);
    world.store.plant(&full_chunk, full_lost);
    for (manifest, files) in &points {
        assert_comes_back(&world, manifest, files).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_base_above_the_limit_is_refused_until_a_full_is_accepted() {
    let mut world = World::new();
    let points = chain(&world, 0).await;
    world.settings.lifecycle.auto_full_bytes_max = 1000;
    world
        .zfs
        .destroy_snapshots(&[world.newest_snapshot()])
        .unwrap();
    destroy_bookmark(&world, &points[0].0);
    night(&world, 1);
    let before = world.store.keys();
    let refused = world
        .try_back_up_as(RequestedKind::Lifecycle)
        .await
        .unwrap_err();
    let text = refused.to_string();
    assert!(
        text.contains("a full would send") && text.contains(&points[0].0.snapshot.guid.to_string()),
        "{text}"
    );
    assert!(
        refused
            .hint()
            .unwrap()
            .contains("zfs-backup stream-to-remote --full")
    );
    assert_eq!(world.store.keys(), before, "a refusal stored something");
    world.back_up().await;
    night(&world, 2);
    assert_eq!(nightly(&world).await.manifest.kind, BackupKind::Incr);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_flags_or_recipients_start_a_new_chain() {
    let mut world = World::new();
    chain(&world, 1).await;
    world.settings.compressed = false;
    night(&world, 2);
    let refused = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("other flags"), "{refused}");
    let with_flags = nightly(&world).await.manifest;
    assert_eq!(with_flags.kind, BackupKind::Full);
    night(&world, 3);
    assert_eq!(nightly(&world).await.manifest.chain.full_id, with_flags.id);
    world
        .writer
        .recipients
        .push(age::x25519::Identity::generate().to_public());
    night(&world, 4);
    let refused = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("other recipients"),
        "{refused}"
    );
    let with_recipients = nightly(&world).await.manifest;
    assert_eq!(with_recipients.kind, BackupKind::Full);
    night(&world, 5);
    let last = nightly(&world).await.manifest;
    assert_eq!(last.chain.full_id, with_recipients.id);
    assert_comes_back(&world, &last, &world.zfs.files(&world.dataset)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_builds_only_on_snapshots_that_it_has() {
    let world = World::new();
    let points = chain(&world, 1).await;
    let first = world.newest_snapshot();
    let stream = world.stream();
    // Another pool under the same name in the store, with nothing in common.
    let stranger = name("other/data");
    world
        .zfs
        .create(&stranger, zfs_backup::zfs::DatasetType::Filesystem);
    world.zfs.write_file(&stranger, 3, b"theirs");
    zfs_backup::run::pool::snapshot::take_snapshots(
        &world.zfs,
        std::slice::from_ref(&stranger),
        "zfs-backup_",
        crate::world::now(),
    )
    .unwrap();
    let of = |dataset: &DatasetName| Selected {
        dataset: world.zfs.dataset(dataset).unwrap().unwrap(),
        stored: world.dataset.clone(),
    };
    let refused = back_up(&world.env(), &of(&stranger), RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("neither snapshot nor bookmark"),
        "{refused}"
    );
    let theirs = committed(
        back_up(&world.env(), &of(&stranger), RequestedKind::Lifecycle)
            .await
            .unwrap(),
    )
    .manifest;
    assert_eq!(theirs.kind, BackupKind::Full);
    assert_ne!(theirs.origin, points[0].0.origin);

    // A replica has the snapshot by its guid, and may go on.
    let replica = name("other/replica");
    let target = replica.snapshot(first.short()).unwrap();
    let request = zfs_backup::zfs::ReceiveRequest {
        target,
        resumable: false,
        properties: Default::default(),
    };
    world.zfs.receive(&request, &mut &stream[..]).unwrap();
    world.zfs.write_file(&replica, 88, &noise(88, 5_000));
    zfs_backup::run::pool::snapshot::take_snapshots(
        &world.zfs,
        std::slice::from_ref(&replica),
        "zfs-backup_",
        "2027-01-01T00:00:00Z".parse().unwrap(),
    )
    .unwrap();
    let next = committed(
        back_up(&world.env(), &of(&replica), RequestedKind::Incremental)
            .await
            .unwrap(),
    )
    .manifest;
    assert_eq!(next.base.as_ref().unwrap().backup_id, points[1].0.id);
    assert_comes_back(&world, &next, &world.zfs.files(&replica)).await;
    // And the first host goes on with its own.
    night(&world, 7);
    let own = nightly(&world).await.manifest;
    assert_eq!(own.base.as_ref().unwrap().backup_id, points[1].0.id);
    assert_comes_back(&world, &own, &world.zfs.files(&world.dataset)).await;
}

/// What must hold after a run with a fault: the chain before it is whole, and there is one backup
/// more or none.
async fn assert_chain_or_one_more(
    world: &World,
    outcome: Result<BackupRun, RunError>,
    points: &[(Manifest, Files)],
) {
    world.store.heal();
    world.assert_pins_are_known();
    let there = world.catalog().await.backups.len();
    let files = world.zfs.files(&world.dataset);
    match outcome {
        Ok(outcome) => {
            assert_eq!(there, points.len() + 1);
            assert_comes_back(world, &committed(outcome).manifest, &files).await;
            // What could not be released then is released now.
            world
                .try_back_up_as(RequestedKind::Lifecycle)
                .await
                .unwrap();
        }
        Err(error) => {
            let text = error_chain(&error);
            assert!(
                text.contains("tank") || text.contains("the module's version"),
                "names nothing: {text}"
            );
            assert_eq!(there, points.len(), "a failed run left a backup: {text}");
            let next = nightly(world).await.manifest;
            assert_comes_back(world, &next, &files).await;
        }
    }
    world.assert_no_holds();
    for (manifest, files) in points {
        assert_comes_back(world, manifest, files).await;
    }
    assert_eq!(world.verify().await.damage, []);
}

/// So that every call of the planning is made, and can fail.
fn forget_what_was_read(world: &World) {
    std::fs::remove_dir_all(world.settings.state_dir.join("cache")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_failed_call_of_an_incremental_leaves_a_complete_backup_or_none() {
    let (keys, writer) = quick_keys();
    let (store_calls, zfs_calls) = {
        let world = World::with_keys(keys.clone(), writer.clone());
        chain(&world, 1).await;
        night(&world, 2);
        let (env, selected) = (world.env(), world.selected());
        forget_what_was_read(&world);
        let before = (world.store.events().len(), world.zfs.calls());
        back_up(&env, &selected, RequestedKind::Incremental)
            .await
            .unwrap();
        (
            world.store.events().len() - before.0,
            world.zfs.calls() - before.1,
        )
    };
    assert!(
        store_calls > 30 && zfs_calls > 8,
        "{store_calls} {zfs_calls}"
    );
    let kinds = [
        StoreErrorKind::Unavailable,
        StoreErrorKind::Denied,
        StoreErrorKind::NotFound,
    ];
    let faults = (1..=store_calls)
        .flat_map(|n| kinds.map(|kind| [Fault::before(kind).nth(n), Fault::after(kind).nth(n)]));
    let faults = faults.flatten().map(Ok).chain((1..=zfs_calls).map(Err));
    for_all(faults.collect(), |fault: Result<Fault, u64>| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let points = chain(&world, 1).await;
            night(&world, 2);
            let (env, selected) = (world.env(), world.selected());
            forget_what_was_read(&world);
            match fault {
                Ok(fault) => world.store.fail(fault),
                Err(n) => world.zfs.fail_call(n, EIO),
            }
            let outcome = back_up(&env, &selected, RequestedKind::Incremental).await;
            assert_chain_or_one_more(&world, outcome, &points).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn base_pruned_concurrently_by_another_host_stops_the_commit() {
    for (what, object) in [
        ("chain", "CHUNK"),
        ("base", "manifest.json"),
        ("base", "manifest.json.minisig"),
    ] {
        let world = World::new();
        let points = chain(&world, 1).await;
        night(&world, 2);
        let victim = if what == "chain" {
            &points[0].0
        } else {
            &points[1].0
        };
        let object = if object == "CHUNK" {
            world.chunks(victim).await[0].name.clone()
        } else {
            object.to_owned()
        };
        let key = key_of(victim, &object);
        let mut env = world.env();
        let (store, lost) = (world.store.clone(), key.clone());
        if what == "chain" {
            // Between the plan and `started.json`.
            env.planned = Arc::new(move |_| {
                store.lose(&lost);
            });
        } else {
            env.progress = Arc::new(move |_| {
                store.lose(&lost);
            });
        }
        let error = back_up(&env, &world.selected(), RequestedKind::Lifecycle)
            .await
            .unwrap_err();
        let text = error_chain(&error);
        assert!(
            text.contains("no longer whole") && text.contains(points[1].0.id.as_str()),
            "{text}"
        );
        let manifests = world.manifest_keys();
        assert!(manifests.iter().all(|key| {
            points
                .iter()
                .any(|(old, _)| *key == key_of(old, "manifest.json"))
        }));
        world.assert_no_holds();
        let next = nightly(&world).await.manifest;
        assert_comes_back(&world, &next, &world.zfs.files(&world.dataset)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_instructions_of_a_chain_name_every_step_in_order() {
    let world = World::new();
    let points = chain(&world, 2).await;
    let target = name("tank/by-hand");
    for (number, (manifest, files)) in points.iter().enumerate() {
        let folder = crate::instructions::fetch(&world, manifest);
        let text = std::fs::read_to_string(folder.path().join("RESTORE.txt")).unwrap();
        let steps: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("| zfs receive -u POOL/NEW") && line.contains("(cd "))
            .collect();
        let ids = points[..=number].iter().map(|(manifest, _)| &manifest.id);
        let expected: Vec<String> = match number {
            0 => vec![],
            _ => ids
                .map(|id| format!("#      (cd {id} && sh RESTORE.txt) | zfs receive -u POOL/NEW"))
                .collect(),
        };
        assert_eq!(steps, expected);
        let output = crate::instructions::run(folder.path(), "sh", &["RESTORE.txt"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let request = zfs_backup::zfs::ReceiveRequest {
            target: target.snapshot(&format!("s{number}")).unwrap(),
            resumable: false,
            properties: Default::default(),
        };
        world
            .zfs
            .receive(&request, &mut &output.stdout[..])
            .unwrap();
        assert!(world.zfs.files(&target) == *files);
    }
}
