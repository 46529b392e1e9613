//! What happens when nothing goes wrong, and in which order.

use crate::world::{World, is_put, key_of, name, noise, now, quick_keys, up_to_date};
use proptest::prelude::*;
use std::io::Read;
use zfs_backup::manifest::{Private, Receipt, parse_strict};
use zfs_backup::model::Digest;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::back_up;
use zfs_backup::run::restore::RestorePoint;
use zfs_backup::store::memory::{Operation, Outcome};
use zfs_backup::stream::seal::ChunkCompression;

fn open_with_age(sealed: &[u8], identity: &age::x25519::Identity) -> Vec<u8> {
    let decryptor = age::Decryptor::new(sealed).unwrap();
    let mut plain = Vec::new();
    decryptor
        .decrypt(std::iter::once(identity as &dyn age::Identity))
        .unwrap()
        .read_to_end(&mut plain)
        .unwrap();
    plain
}

/// Backs up, and holds everything that is stored against what it must be.
async fn assert_whole_round(world: &World) {
    let backup = world.back_up().await;
    let manifest = &backup.manifest;
    world.assert_no_holds();
    let stream = world.stream();
    assert_eq!(manifest.stream_bytes, stream.len() as u64);
    assert!(manifest.send.checked);

    let catalog = world.catalog().await;
    assert_eq!(
        (
            catalog.backups.len(),
            catalog.attempts.len(),
            catalog.unknown.len()
        ),
        (1, 0, 0)
    );
    assert_eq!(catalog.backups[0].manifest, *manifest);

    let chunks = world.chunks(manifest).await;
    assert!(chunks.len() >= 4, "{} chunks test nothing", chunks.len());
    assert_eq!(backup.chunks, chunks.len());
    let mut plain = Vec::new();
    for chunk in &chunks {
        let sealed = world.store.object(&key_of(manifest, &chunk.name)).unwrap();
        assert_eq!(
            (Digest::of(&sealed), sealed.len() as u64),
            (chunk.blake3, chunk.sealed_bytes)
        );
        let opened = open_with_age(&sealed, &world.keys.identities[0]);
        match world.settings.compression {
            ChunkCompression::None => plain.extend(opened),
            ChunkCompression::Zstd { .. } => plain.extend(zstd::decode_all(&opened[..]).unwrap()),
        }
    }
    assert!(
        plain == stream,
        "the chunks opened by the age crate are not the stream"
    );

    let stored = |object: &str| world.store.object(&key_of(manifest, object));
    assert_eq!(
        stored("RESTORE.txt").map(|bytes| Digest::of(&bytes)),
        Some(manifest.files.restore_text)
    );
    assert_eq!(
        stored("private.age").map(|bytes| Digest::of(&bytes)),
        Some(manifest.files.private)
    );
    assert_eq!(
        stored("keyring.age").map(|bytes| Digest::of(&bytes)),
        manifest.files.keyring
    );
    let private = open_with_age(&stored("private.age").unwrap(), &world.keys.identities[0]);
    let private: Private = parse_strict(&private).unwrap();
    assert_eq!(private.snapshot_name, world.newest_snapshot().to_string());
    assert_receipt_names_everything(world, manifest);

    let report = world.verify().await;
    assert_eq!(
        (report.backups, &report.damage, &report.extra),
        (1, &vec![], &vec![])
    );
    world.assert_restores().await;
    let target = name("tank/back");
    world.restore_into(&target).await.unwrap();
    assert_eq!(world.zfs.files(&target), world.zfs.files(&world.dataset));

    let again = world.try_back_up().await.unwrap();
    assert_eq!(up_to_date(&again), Some(&manifest.id));
}

fn assert_receipt_names_everything(world: &World, manifest: &zfs_backup::manifest::Manifest) {
    let receipt: Receipt = parse_strict(
        &world
            .store
            .object(&key_of(manifest, "receipt.json"))
            .unwrap(),
    )
    .unwrap();
    let mut named: Vec<String> = receipt
        .objects
        .iter()
        .map(|entry| key_of(manifest, &entry.name))
        .collect();
    named.sort();
    let unnamed = ["manifest.json", "receipt.json"];
    let prefix = key_of(manifest, "");
    let mut there = world.store.keys();
    there.retain(|key| key.starts_with(&prefix) && !key.ends_with(".minisig"));
    there.retain(|key| !unnamed.iter().any(|name| key.ends_with(name)));
    assert_eq!(named, there);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_stored_whole_and_restores_to_the_same_bytes_and_files() {
    assert_whole_round(&World::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compressed_backup_restores_to_the_same_bytes_and_files() {
    let mut world = World::new();
    world.settings.compression = ChunkCompression::Zstd {
        level: 3,
        long: None,
    };
    assert_whole_round(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_without_a_keyring_opens_for_each_of_its_recipients() {
    let mut world = World::new();
    let second = age::x25519::Identity::generate();
    world.writer.keyring = None;
    world.writer.recipients.push(second.to_public());
    assert_whole_round(&world).await;
    world.keys.identities = vec![second];
    world.assert_restores().await;
    assert!(
        !world
            .store
            .keys()
            .iter()
            .any(|key| key.ends_with("keyring.age"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_snapshot_stays_restorable_by_name_and_by_id() {
    let world = World::new();
    let first = (
        world.newest_snapshot(),
        world.stream(),
        world.back_up().await,
    );
    world.zfs.set_now("2026-01-05T00:00:00Z".parse().unwrap());
    world.zfs.write_file(&world.dataset, 8, &noise(5, 70_000));
    world.snapshot();
    let second = world.back_up().await;
    assert_eq!(
        world.catalog().await.newest().unwrap().manifest.id,
        second.manifest.id
    );
    world.assert_restores().await;
    for point in [
        RestorePoint::Snapshot(first.0.short().into()),
        RestorePoint::Id(first.2.manifest.id.clone()),
    ] {
        let set = world.find(&point).await.unwrap();
        assert_eq!(set.backups[0].manifest.id, first.2.manifest.id);
        assert_eq!(set.backups[0].manifest.stream_bytes, first.1.len() as u64);
    }
    let receipt: Receipt = parse_strict(
        &world
            .store
            .object(&key_of(&second.manifest, "receipt.json"))
            .unwrap(),
    )
    .unwrap();
    assert_eq!(
        receipt.live.iter().map(|live| &live.id).collect::<Vec<_>>(),
        [&first.2.manifest.id]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_incremental_is_refused_rather_than_made_full() {
    let world = World::new();
    let error = back_up(&world.env(), &world.selected(), RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("tank/a b"), "{error}");
    assert!(
        !world
            .store
            .events()
            .iter()
            .any(|event| is_put(event.operation))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_dataset_is_reported_with_a_similar_name() {
    let world = World::new();
    let mut selected = world.selected();
    selected.dataset.name = name("tank/a c");
    let error = back_up(&world.env(), &selected, RequestedKind::Full)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("tank/a c"), "{error}");
    assert_eq!(error.hint().as_deref(), Some("did you mean tank/a b?"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifest_is_put_last_and_only_after_every_chunk_was_confirmed() {
    let world = World::new();
    let backup = world.back_up().await;
    let puts: Vec<(Operation, String)> = world
        .store
        .events()
        .into_iter()
        .inspect(|event| assert_eq!(event.outcome, Outcome::Done, "{event}"))
        .filter(|event| is_put(event.operation))
        .map(|event| (event.operation, event.key))
        .collect();
    let at = |operation, key: &str| {
        let found = puts
            .iter()
            .position(|put| *put == (operation, key.to_owned()));
        found.unwrap_or_else(|| panic!("no {operation:?} of {key}"))
    };
    let small = |object: &str| at(Operation::PutNew, &key_of(&backup.manifest, object));
    assert_eq!(
        (small("started.json.minisig"), small("started.json")),
        (0, 1)
    );
    for signed in ["RESTORE.txt", "receipt.json", "manifest.json"] {
        assert!(
            small(&format!("{signed}.minisig")) < small(signed),
            "{signed}"
        );
    }
    let chunks = world.chunks(&backup.manifest).await;
    let confirmed = chunks
        .iter()
        .map(|chunk| at(Operation::Finish, &key_of(&backup.manifest, &chunk.name)));
    let last_confirmed = confirmed.max().unwrap();
    for after in [
        "RESTORE.txt.minisig",
        "private.age",
        "chunks-0000.json",
        "receipt.json.minisig",
    ] {
        assert!(last_confirmed < small(after), "{after}");
    }
    assert!(small("receipt.json") < small("manifest.json.minisig"));
    assert_eq!(small("manifest.json"), puts.len() - 1);
    let events = world.store.events();
    let last = events
        .iter()
        .rposition(|event| is_put(event.operation))
        .unwrap();
    let read_back = events[last..]
        .iter()
        .filter(|event| event.operation == Operation::Get);
    assert!(read_back.count() >= 2, "the manifest was not read back");
}

#[derive(Debug, Clone)]
struct Shape {
    files: Vec<(u64, usize, bool)>,
    split_pages: u64,
    part_kib: usize,
    compression: ChunkCompression,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let file = (
        1u64..40,
        prop_oneof![Just(0usize), 1usize..5000, 5000usize..120_000],
        any::<bool>(),
    );
    let compression = prop_oneof![
        Just(ChunkCompression::None),
        Just(ChunkCompression::Zstd {
            level: 1,
            long: None
        })
    ];
    let shape = (
        prop::collection::vec(file, 0..6),
        1u64..40,
        1usize..40,
        compression,
    );
    shape.prop_map(|(files, split_pages, part_kib, compression)| Shape {
        files,
        split_pages,
        part_kib,
        compression,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn restored_stream_equals_the_sent_stream_for_any_files_and_sizes(shape in shapes()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (keys, writer) = quick_keys();
        let mut world = World::empty(keys, writer);
        world.store = crate::world::memory_store(shape.part_kib * 1024);
        crate::world::plant_keyring(&world.store, &world.writer);
        world.settings.split_bytes = shape.split_pages * 4096;
        world.settings.compression = shape.compression;
        for (object, bytes, random) in &shape.files {
            let data = if *random { noise(*object, *bytes) } else { vec![3; *bytes] };
            world.zfs.write_file(&world.dataset, *object, &data);
        }
        world.snapshot();
        runtime.block_on(async {
            let backup = world.back_up().await;
            world.assert_restores().await;
            assert_eq!(world.verify().await.damage, []);
            assert_eq!(backup.manifest.finished_at, now());
            world.restore_into(&name("tank/back")).await.unwrap();
        });
        prop_assert_eq!(world.zfs.files(&name("tank/back")), world.zfs.files(&world.dataset));
    }
}
