//! `verify-checksums` beyond single objects: what damage costs, prunes under way, twins, and
//! reading the data.

use crate::chain::{manifest_blake3, plant, plant_prune_record, plant_twin};
use crate::world::{World, key_of, never};
use std::sync::Arc;
use tokio::sync::Semaphore;
use zfs_backup::keyring::KeyFile;
use zfs_backup::manifest::Manifest;
use zfs_backup::plan::sample::ReadShare;
use zfs_backup::run::RunError;
use zfs_backup::run::transfer::Stop;
use zfs_backup::run::verify::{ReadData, ReadReport, VerifyOptions, VerifyReport, verify_with};
use zfs_backup::store::ObjectKey;
use zfs_backup::store::key::BackupObject;
use zfs_backup::store::memory::Operation;

async fn world_with_backup() -> (World, Manifest) {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    (world, manifest)
}

fn lose_all(world: &World, manifest: &Manifest) {
    for key in world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&key_of(manifest, "")))
    {
        world.store.lose(key);
    }
}

fn read(share: ReadShare, keys: Option<&KeyFile>, stop: Stop) -> VerifyOptions<'static> {
    let read = ReadData {
        one_reader: Arc::new(Semaphore::new(1)),
        share,
        day: 0,
        seed: 1,
        keys: keys.cloned(),
        stop,
    };
    VerifyOptions {
        read: Some(read),
        ..Default::default()
    }
}

async fn verify_reading(world: &World, share: ReadShare, keys: Option<&KeyFile>) -> VerifyReport {
    let options = read(share, keys, never());
    verify_with(
        Arc::new(world.store.clone()),
        &world.dataset,
        &world.keys.trusted,
        &options,
    )
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_report_names_dependents_and_the_restorable_range() {
    let (world, full) = world_with_backup().await;
    let first = plant(&world, &full, 1, Some(&full));
    let second = plant(&world, &full, 2, Some(&first));
    let third = plant(&world, &full, 3, Some(&second));
    let other = plant(&world, &full, 4, None);
    let report = world.verify().await;
    assert_eq!(
        (report.damage, report.broken, report.backups),
        (vec![], vec![], 5)
    );
    let chunk = key_of(&second, &world.chunks(&second).await[1].name);
    assert!(world.store.lose(&chunk));
    let report = world.verify().await;
    assert_eq!(report.damage.len(), 1);
    assert!(
        report.damage[0].key == chunk && report.damage[0].breaks && report.damage[0].is_missing()
    );
    let [broken] = &report.broken[..] else {
        panic!("{:?}", report.broken)
    };
    assert_eq!(
        (&broken.id, broken.snapshot),
        (&second.id, second.snapshot.guid)
    );
    assert_eq!(broken.dependents, std::slice::from_ref(&third.id));
    assert_eq!(broken.restorable_up_to, Some(first.id.clone()));
    assert_eq!(broken.restorable_again_from, Some(other.id.clone()));

    // Damage that no restore minds breaks nothing.
    let (world, full) = world_with_backup().await;
    assert!(world.store.lose(&key_of(&full, "private.age")));
    let report = world.verify().await;
    assert!(report.damage.len() == 1 && !report.damage[0].breaks && report.broken.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_base_is_reported_once_and_is_no_damage_if_a_twin_replaces_it() {
    let (world, full) = world_with_backup().await;
    let base = plant(&world, &full, 1, None);
    let first = plant(&world, &full, 2, Some(&base));
    let second = plant(&world, &full, 3, Some(&first));
    let twin = plant_twin(&world, &base, 0x99);
    lose_all(&world, &base);
    let report = world.verify().await;
    assert_eq!((&report.damage[..], &report.broken[..]), (&[][..], &[][..]));
    lose_all(&world, &twin);
    let report = world.verify().await;
    let [damage] = &report.damage[..] else {
        panic!("{:?}", report.damage)
    };
    assert!(
        damage.is_missing()
            && damage.key == key_of(&base, "")
            && damage.reason.contains(first.id.as_str())
    );
    let [broken] = &report.broken[..] else {
        panic!("{:?}", report.broken)
    };
    assert_eq!(broken.dependents, [first.id.clone(), second.id.clone()]);
    assert_eq!(broken.restorable_up_to, Some(full.id.clone()));

    // Another backup of the base's snapshot that cannot take its place does not hide the gap, even
    // if the signature of the base's manifest is still there.
    let (world, full) = world_with_backup().await;
    let base = plant(&world, &full, 1, Some(&full));
    let child = plant(&world, &full, 2, Some(&base));
    plant(&world, &full, 1, None);
    let manifest = ObjectKey::backup(&base.dataset, &base.id, &BackupObject::Manifest);
    assert!(world.store.lose(manifest.as_str()));
    let report = world.verify().await;
    assert!(
        report.damage.iter().any(|damage| damage.is_missing()),
        "{:?}",
        report.damage
    );
    assert!(
        report
            .broken
            .iter()
            .any(|broken| broken.dependents.contains(&child.id)),
        "{:?}",
        report.broken
    );

    // A base that is there and is another is damage of what was built on it.
    let (world, full) = world_with_backup().await;
    let child = plant(&world, &full, 1, Some(&full));
    let before = manifest_blake3(&world.store, &full);
    crate::chain::replant(
        &world,
        &Manifest {
            tool_version: "another".into(),
            ..full.clone()
        },
    );
    assert_ne!(manifest_blake3(&world.store, &full), before);
    let report = world.verify().await;
    assert!(
        report
            .damage
            .iter()
            .any(|damage| damage.key == key_of(&child, "")),
        "{:?}",
        report.damage
    );
    assert!(report.broken.iter().any(|broken| broken.id == child.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_pruned_during_verification_is_not_damage() {
    let (world, full) = world_with_backup().await;
    let pruned = plant(&world, &full, 1, None);
    // As a prune does: the record, then the manifest, then the rest; it has come half-way.
    assert!(world.store.lose(&key_of(&pruned, "manifest.json")));
    let chunk = world.chunks(&full).await[0].name.clone();
    assert!(world.store.lose(&key_of(&pruned, &chunk)));
    let report = world.verify().await;
    assert_eq!(
        report.damage.len(),
        1,
        "without a record it is damage: {:?}",
        report.damage
    );
    plant_prune_record(&world, &world.store, &[&pruned.id]);
    let report = world.verify().await;
    assert_eq!((report.damage, report.broken), (vec![], vec![]));
    assert_eq!(report.pruned_meanwhile, std::slice::from_ref(&pruned.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_lost_a_chunk_is_damage_although_a_record_names_it() {
    let (world, full) = world_with_backup().await;
    plant_prune_record(&world, &world.store, &[&full.id]);
    let chunk = world.chunks(&full).await[0].name.clone();
    assert!(world.store.lose(&key_of(&full, &chunk)));
    let report = world.verify().await;
    assert_eq!(
        report.damage.len(),
        1,
        "its manifest is there, so it claims to be whole"
    );
    assert_eq!(report.pruned_meanwhile, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_the_data_finds_rot_that_the_store_does_not_report() {
    let (world, full) = world_with_backup().await;
    let chunks = world.chunks(&full).await;
    let bytes = chunks.iter().map(|chunk| chunk.sealed_bytes).sum();
    let whole = |streams| {
        Some(ReadReport {
            chunks: chunks.len(),
            bytes,
            streams,
        })
    };
    assert_eq!(
        verify_reading(&world, ReadShare::All, None).await.read,
        whole(0)
    );
    assert_eq!(
        verify_reading(&world, ReadShare::All, Some(&world.keys))
            .await
            .read,
        whole(1)
    );
    // A key for something else opens nothing and finds no damage.
    let stranger = KeyFile::generate().unwrap();
    let report = verify_reading(&world, ReadShare::All, Some(&stranger)).await;
    assert_eq!((report.read, report.damage), (whole(0), vec![]));

    let key = key_of(&full, &chunks[2].name);
    assert!(world.store.flip(&key, 30_000));
    assert_eq!(world.verify().await.damage, []);
    for keys in [None, Some(&world.keys)] {
        let report = verify_reading(&world, ReadShare::All, keys).await;
        let damaged: Vec<&str> = report
            .damage
            .iter()
            .map(|damage| damage.key.as_str())
            .collect();
        assert_eq!(damaged, [&key]);
        assert_eq!(report.broken.len(), 1);
        assert_eq!(report.read.unwrap().streams, 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rotten_chunk_is_named_also_when_the_first_stops_the_stream() {
    let (world, full) = world_with_backup().await;
    let chunks = world.chunks(&full).await;
    let keys: Vec<String> = [1, 3]
        .map(|index: usize| key_of(&full, &chunks[index].name))
        .into();
    for key in &keys {
        assert!(world.store.flip(key, 1000));
    }
    let report = verify_reading(&world, ReadShare::All, Some(&world.keys)).await;
    let mut damaged: Vec<&String> = report.damage.iter().map(|damage| &damage.key).collect();
    damaged.sort();
    assert_eq!(damaged, keys.iter().collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turn_sampling_downloads_every_chunk_once_per_round() {
    let (world, full) = world_with_backup().await;
    let chunks = world.chunks(&full).await;
    let mut read_chunks = 0;
    for day in 100..103 {
        world.store.clear_events();
        let options = VerifyOptions {
            read: Some(ReadData {
                one_reader: Arc::new(Semaphore::new(1)),
                share: ReadShare::Turn(3),
                day,
                seed: day,
                keys: None,
                stop: never(),
            }),
            ..Default::default()
        };
        let store = Arc::new(world.store.clone());
        let report = verify_with(store, &world.dataset, &world.keys.trusted, &options)
            .await
            .unwrap();
        let gets = world.store.events().into_iter();
        let gets = gets
            .filter(|event| event.operation == Operation::Get && event.key.ends_with(".zfs.age"))
            .count();
        assert_eq!(report.read.as_ref().map(|read| read.chunks), Some(gets));
        read_chunks += gets;
    }
    assert_eq!(read_chunks, chunks.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verification_with_read_data_stops_on_request() {
    let (world, _) = world_with_backup().await;
    for keys in [None, Some(&world.keys)] {
        let (asker, stop) = tokio::sync::watch::channel(false);
        asker.send_replace(true);
        let options = read(ReadShare::All, keys, stop);
        let store = Arc::new(world.store.clone());
        let outcome = verify_with(store, &world.dataset, &world.keys.trusted, &options).await;
        assert!(matches!(outcome, Err(RunError::Interrupted)), "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_compares_manifests_of_intermediate_directory_and_store() {
    let (world, full) = world_with_backup().await;
    let directory = world.catalog().await;
    let options = VerifyOptions {
        intermediate: Some(&directory),
        ..Default::default()
    };
    let store = || Arc::new(world.store.clone());
    let verify = || async {
        verify_with(store(), &world.dataset, &world.keys.trusted, &options)
            .await
            .unwrap()
    };
    assert_eq!(verify().await.damage, []);
    crate::chain::replant(
        &world,
        &Manifest {
            tool_version: "another".into(),
            ..full.clone()
        },
    );
    let key = key_of(&full, "manifest.json");
    assert!(
        world.verify().await.damage.is_empty(),
        "by itself it is a good backup"
    );
    assert!(
        verify()
            .await
            .damage
            .iter()
            .any(|damage| damage.key == key && damage.reason.contains("another manifest"))
    );
    assert!(world.store.lose(&key));
    let report = verify().await;
    assert!(
        report.damage[0].key == key
            && report.damage[0]
                .reason
                .contains("the intermediate directory has it whole")
    );
}
