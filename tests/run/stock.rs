//! A pool and a store after many nights: so many snapshots, and a backup of each of the newest of
//! them.

use crate::world::{World, key_of, quick_keys};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use zfs_backup::manifest::{BaseRef, Manifest, Receipt, parse_strict, to_stored_bytes};
use zfs_backup::model::{BackupId, BackupKind, Digest};
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::sign::SignedType;
use zfs_backup::zfs::{Snapshot, ZfsRead};

/// Backups in one chain.
const IN_CHAIN: usize = 50;
/// Objects of a backup that are fetched to plan on it: the manifest, its signature, its chunk list.
pub(crate) const READ_OF_EACH: usize = 3;

/// A world whose pool has so many own snapshots, an hour apart, and whose store has whole backups
/// of the newest of them, in chains.
pub(crate) async fn stocked(snapshots: usize, backups: usize) -> World {
    let (keys, writer) = quick_keys();
    let world = World::empty(keys, writer);
    world.zfs.write_file(&world.dataset, 7, b"five");
    let begin: Timestamp = "2024-01-01T00:00:00Z".parse().unwrap();
    for number in 0..snapshots {
        let at = begin + SignedDuration::from_hours(i64::try_from(number).unwrap());
        world.zfs.set_now(at);
        take_snapshots(
            &world.zfs,
            std::slice::from_ref(&world.dataset),
            "zfs-backup_",
            at,
        )
        .unwrap();
    }
    world.store.set_clock(Some(
        begin + SignedDuration::from_hours(i64::try_from(snapshots).unwrap()),
    ));
    let template = world.back_up().await.manifest;
    let all = world.zfs.snapshots(&world.dataset).unwrap();
    plant(&world, &template, &all[snapshots - backups..]);
    world
}

/// Plants a backup of each snapshot: the objects of the template under another id, with a manifest
/// of its own. The template is of the last snapshot, and is replaced.
fn plant(world: &World, template: &Manifest, snapshots: &[Snapshot]) {
    let prefix = key_of(template, "");
    let keys = world
        .store
        .keys()
        .into_iter()
        .filter(|key| key.starts_with(&prefix));
    let taken = keys.map(|key| {
        let bytes = world.store.object(&key).unwrap();
        world.store.lose(&key);
        (key[prefix.len()..].to_owned(), bytes)
    });
    let objects: Vec<(String, Bytes)> = taken.collect();
    let receipt = &objects
        .iter()
        .find(|(name, _)| name == "receipt.json")
        .unwrap()
        .1;
    let receipt: Receipt = parse_strict(receipt).unwrap();
    let mut base: Option<(Manifest, Digest)> = None;
    for (number, snapshot) in snapshots.iter().enumerate() {
        let manifest = follow(
            template,
            snapshot,
            base.take().filter(|_| !number.is_multiple_of(IN_CHAIN)),
        );
        for (name, bytes) in &objects {
            world.store.plant(&key_of(&manifest, name), bytes.clone());
        }
        let bytes = to_stored_bytes(&manifest).unwrap();
        let blake3 = Digest::of(&bytes);
        let receipt = Receipt {
            id: manifest.id.clone(),
            manifest_blake3: blake3,
            live: Vec::new(),
            ..receipt.clone()
        };
        let receipt = to_stored_bytes(&receipt).unwrap();
        for (name, signed_type, bytes) in [
            ("receipt.json", SignedType::Receipt, receipt),
            ("manifest.json", SignedType::Manifest, bytes),
        ] {
            let key = key_of(&manifest, name);
            let signature = world
                .writer
                .signing
                .sign(signed_type, &key, &bytes)
                .unwrap();
            world.store.plant(&format!("{key}.minisig"), signature);
            world.store.plant(&key, bytes);
        }
        base = Some((manifest, blake3));
    }
}

fn follow(template: &Manifest, snapshot: &Snapshot, base: Option<(Manifest, Digest)>) -> Manifest {
    let kind = if base.is_some() {
        BackupKind::Incr
    } else {
        BackupKind::Full
    };
    let mut manifest = template.clone();
    manifest.id = BackupId::new(snapshot.created_at, kind, snapshot.guid, snapshot.createtxg);
    manifest.kind = kind;
    manifest.snapshot.guid = snapshot.guid;
    (manifest.snapshot.createtxg, manifest.snapshot.created_at) =
        (snapshot.createtxg, snapshot.created_at);
    manifest.chain.full_id = manifest.id.clone();
    if let Some((base, manifest_blake3)) = base {
        manifest.chain.full_id = base.chain.full_id.clone();
        manifest.chain.position = base.chain.position + 1;
        manifest.chain.stored_bytes += base.chain.stored_bytes;
        let (guid, backup_id) = (base.snapshot.guid, base.id);
        manifest.base = Some(BaseRef {
            guid,
            backup_id,
            manifest_blake3,
        });
    }
    manifest
}
