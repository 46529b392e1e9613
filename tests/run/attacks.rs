//! Somebody who can write, replace and delete everything in the bucket and knows the recipient, but
//! has no secret key. Nothing of his reaches the kernel, and what he did is told by the key of the
//! object.

use crate::chunk::seal_chunk;
use crate::world::{World, key_of, name, noise, quick_keys};
use bytes::Bytes;
use std::io::Write;
use zfs_backup::manifest::{Manifest, Private, to_stored_bytes};
use zfs_backup::model::BackupId;
use zfs_backup::run::error_chain;
use zfs_backup::run::restore::RestorePoint;
use zfs_backup::sign::SignedType;
use zfs_backup::store::key::backup_prefix;
use zfs_backup::stream::part::PartPool;
use zfs_backup::stream::seal::ChunkCompression;

async fn world_with_backup() -> (World, Manifest) {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    (world, manifest)
}

fn of_a_newer_snapshot(id: &BackupId) -> BackupId {
    id.to_string()
        .replace("2026", "2027")
        .replace(&id.snapshot_guid().to_string(), "00000000000000aa")
        .parse()
        .unwrap()
}

/// That the manifest under this id is not believed, by anybody who reads.
async fn assert_disbelieved(world: &World, manifest: &Manifest, damage: bool) {
    let key = key_of(manifest, "manifest.json");
    for point in [RestorePoint::Newest, RestorePoint::Id(manifest.id.clone())] {
        let error = world.find(&point).await.err().unwrap();
        assert!(
            error_chain(&error).contains(&key),
            "{}",
            error_chain(&error)
        );
        assert_eq!(error.is_damage(), damage, "{}", error_chain(&error));
    }
    assert_only_disbelieved(world, manifest).await;
    let target = name("tank/back");
    assert!(world.restore_into(&target).await.is_err());
    world.assert_not_received(&target);
}

async fn assert_only_disbelieved(world: &World, manifest: &Manifest) {
    let key = key_of(manifest, "manifest.json");
    let catalog = world.catalog().await;
    assert!(catalog.backup(&manifest.id).is_none());
    assert_eq!(
        catalog.untrusted().map(|(id, _)| id).collect::<Vec<_>>(),
        [&manifest.id]
    );
    let damaged = world.verify().await.damage;
    assert!(
        damaged.iter().any(|damage| damage.key.starts_with(&key)),
        "{damaged:?}"
    );
}

/// That a restore which begins is stopped at this chunk and leaves nothing.
async fn assert_stopped_at(world: &World, key: &str) {
    let target = name("tank/back");
    let error = world.restore_into(&target).await.unwrap_err();
    assert!(
        error.is_damage() && error_chain(&error).contains(key),
        "{}",
        error_chain(&error)
    );
    world.assert_not_received(&target);
    let (written, result) = world.restore().await;
    assert!(result.unwrap_err().is_damage());
    let stream = world.stream();
    assert!(
        written.len() < stream.len() && written == stream[..written.len()],
        "wrong bytes were written"
    );
    let damaged = world.verify().await.damage;
    assert!(
        damaged.iter().any(|damage| damage.key == key),
        "{damaged:?}"
    );
}

fn seal(world: &World, plain: &[u8]) -> Bytes {
    let pool = PartPool::new(64, 16 * 1024);
    let mut parts = Vec::new();
    seal_chunk(
        [plain],
        &world.writer.recipients,
        ChunkCompression::None,
        &pool,
        &mut |part| parts.push(part),
    )
    .unwrap();
    parts.concat().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunk_sealed_by_an_attacker_is_refused() {
    for index in [0, 1, 3] {
        let (world, manifest) = world_with_backup().await;
        let chunk = &world.chunks(&manifest).await[index];
        let key = key_of(&manifest, &chunk.name);
        // Even the true plaintext, sealed anew.
        let start = index * 64 * 1024;
        for plain in [
            noise(9, 64 * 1024),
            world.stream()[start..start + 64 * 1024].to_vec(),
        ] {
            let sealed = seal(&world, &plain);
            assert_eq!(
                sealed.len() as u64,
                chunk.sealed_bytes,
                "the size must not give it away"
            );
            world.store.plant(&key, sealed);
            assert_stopped_at(&world, &key).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_in_another_order_or_of_another_backup_are_refused() {
    let (world, first) = world_with_backup().await;
    let chunks = world.chunks(&first).await;
    let keys = [
        key_of(&first, &chunks[1].name),
        key_of(&first, &chunks[2].name),
    ];
    assert!(world.store.swap(&keys[0], &keys[1]));
    assert_stopped_at(&world, &keys[0]).await;
    assert!(world.store.swap(&keys[0], &keys[1]));
    world.assert_restores().await;

    world.zfs.set_now("2026-02-01T00:00:00Z".parse().unwrap());
    world.snapshot();
    let second = world.back_up().await.manifest;
    let key = key_of(&second, &world.chunks(&second).await[1].name);
    world
        .store
        .plant(&key, world.store.object(&keys[0]).unwrap());
    assert_stopped_at(&world, &key).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_manifest_under_a_newer_name_is_refused() {
    let (world, old) = world_with_backup().await;
    let mut newer = old.clone();
    newer.id = of_a_newer_snapshot(&old.id);
    for object in world
        .store
        .keys()
        .iter()
        .filter_map(|key| key.strip_prefix(&key_of(&old, "")))
    {
        world.store.plant(
            &key_of(&newer, object),
            world.store.object(&key_of(&old, object)).unwrap(),
        );
    }
    assert_only_disbelieved(&world, &newer).await;
    let error = world
        .find(&RestorePoint::Id(newer.id.clone()))
        .await
        .err()
        .unwrap();
    assert!(error.is_damage(), "{error}");
    // Nothing is rolled back silently, and the true one is there for whoever names it.
    let error = world.find(&RestorePoint::Newest).await.err().unwrap();
    assert!(error.to_string().contains(newer.id.as_str()), "{error}");
    assert_eq!(
        world
            .find(&RestorePoint::Id(old.id.clone()))
            .await
            .unwrap()
            .backups[0]
            .manifest
            .id,
        old.id
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_another_dataset_is_refused() {
    let (mut world, manifest) = world_with_backup().await;
    let other = name("tank/other");
    let (from, to) = (key_of(&manifest, ""), backup_prefix(&other, &manifest.id));
    for key in world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&from))
    {
        world
            .store
            .plant(&key.replace(&from, &to), world.store.object(key).unwrap());
    }
    world.dataset = other.clone();
    assert_disbelieved(
        &world,
        &Manifest {
            dataset: other,
            ..manifest
        },
        true,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifest_without_its_own_valid_signature_is_refused() {
    for forgery in [
        "none",
        "another key",
        "the receipt's",
        "of other bytes",
        "changed manifest",
        "not JSON",
    ] {
        let (world, manifest) = world_with_backup().await;
        let (key, receipt) = (
            key_of(&manifest, "manifest.json"),
            key_of(&manifest, "receipt.json"),
        );
        let signature = format!("{key}.minisig");
        let bytes = world.store.object(&key).unwrap();
        let (_, foreign) = quick_keys();
        match forgery {
            "none" => drop(world.store.lose(&signature)),
            "another key" => world.store.plant(
                &signature,
                foreign
                    .signing
                    .sign(SignedType::Manifest, &key, &bytes)
                    .unwrap(),
            ),
            "the receipt's" => {
                world.store.plant(
                    &signature,
                    world.store.object(&format!("{receipt}.minisig")).unwrap(),
                );
                world
                    .store
                    .plant(&key, world.store.object(&receipt).unwrap());
            }
            "of other bytes" => world.store.plant(
                &signature,
                world
                    .writer
                    .signing
                    .sign(SignedType::Manifest, &key, b"{}")
                    .unwrap(),
            ),
            "changed manifest" => {
                let text = String::from_utf8(bytes.to_vec()).unwrap();
                world
                    .store
                    .plant(&key, text.replace("tank/a b", "tank/a c"));
            }
            _ => world.store.plant(&key, &b"{"[..]),
        }
        assert_disbelieved(&world, &manifest, true).await;
    }
}

/// Replaces the manifest by one that we sign truly.
fn sign_anew(world: &World, manifest: &Manifest, change: impl FnOnce(&mut serde_json::Value)) {
    let key = key_of(manifest, "manifest.json");
    let mut json = serde_json::to_value(manifest).unwrap();
    change(&mut json);
    let bytes = to_stored_bytes(&json).unwrap();
    let signature = world
        .writer
        .signing
        .sign(SignedType::Manifest, &key, &bytes)
        .unwrap();
    world.store.plant(&format!("{key}.minisig"), signature);
    world.store.plant(&key, bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_of_a_later_version_is_refused_and_is_no_damage() {
    let (world, manifest) = world_with_backup().await;
    sign_anew(&world, &manifest, |json| json["format"] = 2.into());
    assert_disbelieved(&world, &manifest, false).await;
    sign_anew(&world, &manifest, |json| {
        json["requires"] = serde_json::json!(["moon-phase"])
    });
    assert_disbelieved(&world, &manifest, false).await;
    let error = world.find(&RestorePoint::Newest).await.err().unwrap();
    assert!(
        error_chain(&error).contains("moon-phase"),
        "{}",
        error_chain(&error)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manifest_that_contradicts_itself_is_refused_even_if_it_is_signed() {
    let (world, manifest) = world_with_backup().await;
    type Change = (&'static str, fn(&mut serde_json::Value));
    let changes: [Change; 5] = [
        ("kind", |json| json["kind"] = "incr".into()),
        ("split", |json| json["split_bytes"] = "0".into()),
        ("guid", |json| {
            json["snapshot"]["guid"] = "0000000000000001".into()
        }),
        ("lists", |json| json["chunk_lists"] = serde_json::json!([])),
        ("list name", |json| {
            json["chunk_lists"][0]["name"] = "../chunks-0000.json".into()
        }),
    ];
    for (what, change) in changes {
        sign_anew(&world, &manifest, change);
        println!("{what}");
        assert_disbelieved(&world, &manifest, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_chunk_list_is_refused_and_a_changed_private_file_is_ignored() {
    let target = name("tank/back");
    let (world, manifest) = world_with_backup().await;
    let list = key_of(&manifest, "chunks-0000.json");
    let text = String::from_utf8(world.store.object(&list).unwrap().to_vec()).unwrap();
    let chunks = world.chunks(&manifest).await;
    world.store.plant(
        &list,
        text.replace(&chunks[0].blake3.to_string(), &chunks[1].blake3.to_string()),
    );
    let error = world.restore_into(&target).await.unwrap_err();
    assert!(
        error.is_damage() && error_chain(&error).contains(&list),
        "{}",
        error_chain(&error)
    );
    world.assert_not_received(&target);
    assert!(
        world
            .verify()
            .await
            .damage
            .iter()
            .any(|damage| damage.key == list)
    );

    let (world, manifest) = world_with_backup().await;
    let key = key_of(&manifest, "private.age");
    let forged = Private {
        format: 1,
        object_type: "private".into(),
        id: manifest.id.clone(),
        snapshot_name: "tank/a b@evil".into(),
        host: "evil".into(),
        properties: Default::default(),
        clone_origin: None,
        descendants: None,
        zfs_key: None,
    };
    let recipient = &world.writer.recipients[0] as &dyn age::Recipient;
    let mut sealed = Vec::new();
    let mut writer = age::Encryptor::with_recipients([recipient].into_iter())
        .unwrap()
        .wrap_output(&mut sealed)
        .unwrap();
    writer
        .write_all(&to_stored_bytes(&forged).unwrap())
        .unwrap();
    writer.finish().unwrap();
    world.store.plant(&key, sealed);
    let received = world.restore_into(&target).await.unwrap();
    assert_ne!(received[0].short(), "evil");
    assert_eq!(world.zfs.files(&target), world.zfs.files(&world.dataset));
    assert!(
        world
            .verify()
            .await
            .damage
            .iter()
            .any(|damage| damage.key == key)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn planted_oversized_manifest_does_not_hide_valid_backups() {
    let (world, manifest) = world_with_backup().await;
    let mut monster = manifest.clone();
    monster.id = of_a_newer_snapshot(&manifest.id);
    world
        .store
        .plant(&key_of(&monster, "manifest.json"), vec![b' '; 2 << 20]);
    assert_only_disbelieved(&world, &monster).await;
    let set = world
        .find(&RestorePoint::Id(manifest.id.clone()))
        .await
        .unwrap();
    assert_eq!(set.backups[0].manifest, manifest);
    let error = world.find(&RestorePoint::Newest).await.err().unwrap();
    assert!(error.to_string().contains(monster.id.as_str()), "{error}");
}
