//! Backups that follow from others, planted by hand: the objects of a true one under another id,
//! signed anew. Their streams are not incremental; whoever does not open them cannot tell.

use crate::world::{World, key_of};
use jiff::{SignedDuration, Timestamp};
use zfs_backup::manifest::{
    BaseRef, Manifest, PruneRecord, PrunedEntry, Receipt, parse_strict, to_stored_bytes,
};
use zfs_backup::model::{BackupId, BackupKind, Digest, Guid};
use zfs_backup::sign::SignedType;
use zfs_backup::store::ObjectKey;
use zfs_backup::store::memory::MemoryStore;

/// The hash of a manifest as it is stored.
pub(crate) fn manifest_blake3(store: &MemoryStore, manifest: &Manifest) -> Digest {
    Digest::of(&store.object(&key_of(manifest, "manifest.json")).unwrap())
}

/// Plants a backup of the snapshot `number` in the world's store: an incremental on `base`, or a
/// full.
pub(crate) fn plant(
    world: &World,
    from: &Manifest,
    number: u64,
    base: Option<&Manifest>,
) -> Manifest {
    let at: Timestamp =
        from.snapshot.created_at + SignedDuration::from_hours(24 * i64::try_from(number).unwrap());
    let kind = if base.is_some() {
        BackupKind::Incr
    } else {
        BackupKind::Full
    };
    let mut manifest = from.clone();
    manifest.id = BackupId::new(at, kind, Guid(0xb000 + number), number);
    (manifest.kind, manifest.snapshot.guid) = (kind, Guid(0xb000 + number));
    (manifest.snapshot.created_at, manifest.snapshot.createtxg) =
        (at, from.snapshot.createtxg + 10 * number);
    manifest.base = base.map(|base| BaseRef {
        guid: base.snapshot.guid,
        backup_id: base.id.clone(),
        manifest_blake3: manifest_blake3(&world.store, base),
    });
    manifest.chain.full_id =
        base.map_or_else(|| manifest.id.clone(), |base| base.chain.full_id.clone());
    manifest.chain.position = base.map_or(0, |base| base.chain.position + 1);
    plant_as(world, from, &manifest);
    manifest
}

/// The same backup under another id: what a second export of the same snapshot would be.
pub(crate) fn plant_twin(world: &World, from: &Manifest, nonce: u64) -> Manifest {
    let mut manifest = from.clone();
    manifest.id = BackupId::new(
        from.snapshot.created_at,
        from.kind,
        from.snapshot.guid,
        nonce,
    );
    if from.base.is_none() {
        manifest.chain.full_id = manifest.id.clone();
    }
    plant_as(world, from, &manifest);
    manifest
}

/// Copies the objects of a backup under the id of this manifest, and signs them again.
pub(crate) fn plant_as(world: &World, from: &Manifest, manifest: &Manifest) {
    let (old, new) = (key_of(from, ""), key_of(manifest, ""));
    for key in world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&old) && !key.contains("manifest.json"))
    {
        world
            .store
            .plant(&key.replace(&old, &new), world.store.object(key).unwrap());
    }
    let bytes = to_stored_bytes(manifest).unwrap();
    let receipt = world.store.object(&key_of(from, "receipt.json")).unwrap();
    let mut receipt: Receipt = parse_strict(&receipt).unwrap();
    (receipt.id, receipt.manifest_blake3) = (manifest.id.clone(), Digest::of(&bytes));
    world.store.plant(
        &key_of(manifest, "receipt.json"),
        to_stored_bytes(&receipt).unwrap(),
    );
    world.store.plant(&key_of(manifest, "manifest.json"), bytes);
    for (name, signed_type) in [
        ("started.json", SignedType::Started),
        ("RESTORE.txt", SignedType::RestoreText),
        ("receipt.json", SignedType::Receipt),
        ("manifest.json", SignedType::Manifest),
    ] {
        let key = key_of(manifest, name);
        let bytes = world.store.object(&key).unwrap();
        let signature = world
            .writer
            .signing
            .sign(signed_type, &key, &bytes)
            .unwrap();
        world.store.plant(&format!("{key}.minisig"), signature);
    }
}

/// Plants a signed record that a prune deletes these.
pub(crate) fn plant_prune_record(world: &World, store: &MemoryStore, pruned: &[&BackupId]) {
    let key = ObjectKey::prune_record(&world.dataset, "20270101T000000Z", 1);
    let pruned = pruned
        .iter()
        .map(|id| PrunedEntry {
            id: (*id).clone(),
            manifest_blake3: None,
        })
        .collect();
    let record = PruneRecord {
        format: 1,
        object_type: "prune-record".into(),
        dataset: world.dataset.clone(),
        pruned,
        tool_version: "test".into(),
        written_at: crate::world::now(),
        recorded_at: None,
        voids: Vec::new(),
    };
    let bytes = to_stored_bytes(&record).unwrap();
    let signature = world
        .writer
        .signing
        .sign(SignedType::PruneRecord, key.as_str(), &bytes)
        .unwrap();
    store.plant(key.signature().as_str(), signature);
    store.plant(key.as_str(), bytes);
}

/// Signs a manifest and its receipt anew under the same id, as only somebody with the key could.
pub(crate) fn replant(world: &World, manifest: &Manifest) {
    plant_as(world, manifest, manifest);
}
