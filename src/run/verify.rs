//! `verify-checksums`: holds signed manifests against what the store itself reports. Downloads no chunk.

use super::catalog::{
    StoredBackup, chunk_key, find_gaps, get_pinned, get_signed_as, read_catalog, read_chunks, read_pruned, read_receipt,
};
use super::keys::stored_keyrings;
use super::{RunError, error_chain};
use crate::keyring::KEYRING_BYTES_MAX;
use crate::manifest::{ChunkEntry, PRIVATE_BYTES_MAX, Receipt};
use crate::model::{BackupId, DatasetName, Digest};
use crate::sign::{SignedType, TrustedKeys};
use crate::store::key::{
    BackupObject, KEYRING_PREFIX, SIGNATURE_SUFFIX, backup_prefix, object_name, parse_object_name,
};
use crate::store::{Evidence, EvidenceTier, ObjectKey, ObjectStore};
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};

/// HEADs under way at once.
const HEADS_MAX: usize = 16;

/// What was found of one dataset in one store.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Backups whose manifest verifies.
    pub backups: usize,
    /// Objects that are as they were confirmed, by how strong the store's word for them is.
    pub objects: BTreeMap<EvidenceTier, usize>,
    /// Everything that is not as it must be.
    pub damage: Vec<Damage>,
    /// Objects that no manifest names: unfinished attempts and unknown keys. Reported, never damage.
    pub extra: Vec<String>,
    /// The newest backup.
    pub newest: Option<BackupId>,
    /// Backups that receipts saw in this store.
    live: BTreeSet<BackupId>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The object.
    pub key: String,
    /// The backup that it belongs to.
    pub backup: Option<BackupId>,
    /// What is wrong.
    pub reason: String,
}

/// Verifies all backups of one dataset.
///
/// # Errors
/// [`RunError`] when something could not be asked; damage is in the report, not an error.
pub async fn verify_dataset(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<VerifyReport, RunError> {
    let catalog = read_catalog(store, dataset, trusted).await?;
    let newest = catalog.newest().map(|backup| backup.manifest.id.clone());
    let mut report = VerifyReport { newest, ..Default::default() };
    for attempt in &catalog.attempts {
        let prefix = backup_prefix(dataset, &attempt.id);
        let found = |reason| Damage { key: format!("{prefix}manifest.json"), backup: Some(attempt.id.clone()), reason };
        match &attempt.disbelieved {
            Some(error) => report.damage.push(found(error_chain(error))),
            None if attempt.was_committed && !catalog.holds(attempt.id.snapshot_guid()) => {
                report.damage.push(found("missing, and its signature is there".to_owned()))
            }
            None => report.extra.push(format!("{prefix} ({} objects of an unfinished upload)", attempt.objects)),
        }
    }
    report.extra.extend(catalog.unknown.iter().map(|object| object.key.clone()));
    let present: BTreeSet<&BackupId> = catalog.backups.iter().map(|backup| &backup.manifest.id).collect();
    for backup in &catalog.backups {
        report.backups += 1;
        verify_backup(store, backup, trusted, &present, &mut report).await?;
    }
    report.gaps(store, dataset, trusted, &present).await?;
    report.keyrings(store, &catalog.backups).await?;
    Ok(report)
}

impl VerifyReport {
    /// A backup that a later receipt saw, that is gone, and whose deletion no signed record explains.
    async fn gaps(
        &mut self,
        store: &dyn ObjectStore,
        dataset: &DatasetName,
        trusted: &TrustedKeys,
        present: &BTreeSet<&BackupId>,
    ) -> Result<(), RunError> {
        let known = |id: &BackupId, report: &Self| {
            present.contains(id) || report.damage.iter().any(|damage| damage.backup.as_ref() == Some(id))
        };
        let missing: Vec<BackupId> = self.live.iter().filter(|id| !known(id, self)).cloned().collect();
        if missing.is_empty() {
            return Ok(());
        }
        let pruned = read_pruned(store, dataset, trusted).await?;
        for id in missing.into_iter().filter(|id| !pruned.contains(id)) {
            let reason = "a later backup saw it here, it is gone, and no signed prune record says why".to_owned();
            self.damage.push(Damage { key: backup_prefix(dataset, &id), backup: Some(id), reason });
        }
        Ok(())
    }

    /// The keyring of every backup must lie among the keyrings too: a bare host begins there.
    async fn keyrings(&mut self, store: &dyn ObjectStore, backups: &[StoredBackup]) -> Result<(), RunError> {
        let needed: BTreeSet<Digest> = backups.iter().filter_map(|backup| backup.manifest.files.keyring).collect();
        if needed.is_empty() {
            return Ok(());
        }
        let stored: BTreeSet<Digest> =
            stored_keyrings(store).await?.iter().map(|keyring| Digest::of(&keyring.bytes)).collect();
        for digest in needed.difference(&stored) {
            let reason = format!("none of them is the keyring with BLAKE3 {digest} that backups here are sealed for");
            self.damage.push(Damage { key: KEYRING_PREFIX.to_owned(), backup: None, reason });
        }
        Ok(())
    }
}

/// The small objects that the manifest pins, read and hashed; and the signatures that must lie beside their objects.
async fn verify_small(
    store: &dyn ObjectStore,
    backup: &StoredBackup,
    trusted: &TrustedKeys,
    report: &mut VerifyReport,
) -> Result<(), RunError> {
    let manifest = &backup.manifest;
    let files = &manifest.files;
    let pinned = [
        (BackupObject::Private, Some(files.private), PRIVATE_BYTES_MAX),
        (BackupObject::Keyring, files.keyring, KEYRING_BYTES_MAX),
    ];
    for (object, digest, limit_bytes) in pinned {
        let Some(digest) = digest else { continue };
        let key = ObjectKey::backup(&manifest.dataset, &manifest.id, &object);
        damage_or(get_pinned(store, &key, digest, limit_bytes).await, backup, report)?;
    }
    for (object, signed_type) in
        [(BackupObject::RestoreText, SignedType::RestoreText), (BackupObject::Started, SignedType::Started)]
    {
        let key = ObjectKey::backup(&manifest.dataset, &manifest.id, &object);
        let Some(bytes) = damage_or(get_signed_as(store, &key, signed_type, trusted).await, backup, report)? else {
            continue;
        };
        if object == BackupObject::RestoreText && Digest::of(&bytes) != files.restore_text {
            let reason = "its BLAKE3 is not the one that the manifest says".to_owned();
            report.damage.push(Damage { key: key.to_string(), backup: Some(manifest.id.clone()), reason });
        }
    }
    Ok(())
}

async fn verify_backup(
    store: &dyn ObjectStore,
    backup: &StoredBackup,
    trusted: &TrustedKeys,
    present: &BTreeSet<&BackupId>,
    report: &mut VerifyReport,
) -> Result<(), RunError> {
    let id = &backup.manifest.id;
    if let Some(base) = backup.manifest.base.as_ref().filter(|base| !present.contains(&base.backup_id)) {
        let key = backup_prefix(&backup.manifest.dataset, &base.backup_id);
        report.damage.push(Damage {
            key,
            backup: Some(id.clone()),
            reason: "the base of this backup is missing".into(),
        });
    }
    let Some(chunks) = damage_or(read_chunks(store, &backup.manifest).await, backup, report)? else { return Ok(()) };
    verify_small(store, backup, trusted, report).await?;
    report.extra.extend(unnamed_objects(backup, &chunks));
    let Some(receipt) = damage_or(read_receipt(store, backup, trusted).await, backup, report)? else {
        // Without the store's word at the commit, the listing is what is left.
        for gap in find_gaps(backup, &chunks) {
            damage_or::<()>(Err(gap), backup, report)?;
        }
        return Ok(());
    };
    report.live.extend(receipt.live.iter().map(|entry| entry.id.clone()));
    let mut wanted = wanted_objects(backup, &chunks, &receipt, report);
    // What is known to be damaged is said once.
    wanted.retain(|(key, _)| !report.damage.iter().any(|damage| damage.key == key.as_str()));
    // Where one listing says as much as asking for each object, thousands of calls are saved.
    let listed = store.evidence_under(&backup_prefix(&backup.manifest.dataset, id)).await?;
    let listed = listed.as_ref();
    let heads = stream::iter(wanted).map(|(key, recorded)| async move {
        let found = match listed {
            Some(listed) => Ok(listed.get(key.as_str()).cloned()),
            None => store.head(&key).await,
        };
        (found, key, recorded)
    });
    let mut heads = heads.buffer_unordered(HEADS_MAX);
    while let Some((found, key, recorded)) = heads.next().await {
        match compare(&recorded, found?.as_ref()) {
            Ok(tier) => *report.objects.entry(tier).or_default() += 1,
            Err(reason) => report.damage.push(Damage { key: key.to_string(), backup: Some(id.clone()), reason }),
        }
    }
    Ok(())
}

/// Objects under the backup that are not of it, such as chunks that were made again because a reply was lost.
fn unnamed_objects(backup: &StoredBackup, chunks: &[ChunkEntry]) -> Vec<String> {
    let small = [
        BackupObject::Started,
        BackupObject::Keyring,
        BackupObject::Private,
        BackupObject::RestoreText,
        BackupObject::Receipt,
        BackupObject::Manifest,
    ];
    let mut named: BTreeSet<String> = small.iter().map(object_name).collect();
    named.extend(chunks.iter().map(|chunk| chunk.name.clone()));
    named.extend(backup.manifest.chunk_lists.iter().map(|list| list.name.clone()));
    let prefix = backup_prefix(&backup.manifest.dataset, &backup.manifest.id);
    let is_named = |name: &&String| named.contains(name.strip_suffix(SIGNATURE_SUFFIX).unwrap_or(name));
    backup.objects.keys().filter(|name| !is_named(name)).map(|name| format!("{prefix}{name}")).collect()
}

/// Damage found while reading, a missing object included, goes into the report; what could not be asked is an error.
fn damage_or<T>(
    result: Result<T, RunError>,
    backup: &StoredBackup,
    report: &mut VerifyReport,
) -> Result<Option<T>, RunError> {
    let error = match result {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    if !error.is_damage() {
        return Err(error);
    }
    let key = match &error {
        RunError::Manifest { key, .. } | RunError::Damaged { key, .. } => key.clone(),
        _ => backup_prefix(&backup.manifest.dataset, &backup.manifest.id),
    };
    report.damage.push(Damage { key, backup: Some(backup.manifest.id.clone()), reason: error_chain(&error) });
    Ok(None)
}

/// Every object that the manifest needs, with what the store said of it at the commit. The receipt must name each of
/// them; what it names beyond is not of this backup.
fn wanted_objects(
    backup: &StoredBackup,
    chunks: &[ChunkEntry],
    receipt: &Receipt,
    report: &mut VerifyReport,
) -> Vec<(ObjectKey, Evidence)> {
    let manifest = &backup.manifest;
    let recorded: BTreeMap<&str, &Evidence> =
        receipt.objects.iter().map(|entry| (entry.name.as_str(), &entry.evidence)).collect();
    let mut wanted = Vec::new();
    let mut damage = |key: String, reason: &str| {
        report.damage.push(Damage { key, backup: Some(manifest.id.clone()), reason: reason.to_owned() });
    };
    for chunk in chunks {
        let Some(key) = chunk_key(manifest, chunk) else { continue };
        match recorded.get(chunk.name.as_str()) {
            None => damage(key.to_string(), "the receipt does not name it"),
            Some(evidence) if evidence.bytes != chunk.sealed_bytes => {
                damage(key.to_string(), "receipt and manifest differ in its size")
            }
            Some(evidence) => wanted.push((key, (*evidence).clone())),
        }
    }
    for entry in &receipt.objects {
        let chunk = |object: &BackupObject| matches!(object, BackupObject::Chunk { .. } | BackupObject::Progress(_));
        if let Some(object) = parse_object_name(&entry.name).filter(|object| !chunk(object)) {
            wanted.push((ObjectKey::backup(&manifest.dataset, &manifest.id, &object), entry.evidence.clone()));
        }
    }
    wanted
}

/// Holds what the store says now against what it said when it confirmed the object. Evidence of the kind that was
/// recorded must still be there and equal: weaker evidence today is damage.
///
/// # Errors
/// What is different, as a sentence.
pub fn compare(recorded: &Evidence, found: Option<&Evidence>) -> Result<EvidenceTier, String> {
    let found = found.ok_or("missing")?;
    if found.bytes != recorded.bytes {
        return Err(format!("has {} bytes, not {}", found.bytes, recorded.bytes));
    }
    let same = |what: &str, before: &Option<String>, now: &Option<String>| match (before, now) {
        (Some(before), Some(now)) if before != now => {
            Err(format!("{what} is {now}, and was {before} when it was confirmed"))
        }
        (Some(_), None) => Err(format!("the store no longer reports its {what}")),
        _ => Ok(()),
    };
    match recorded.tier {
        EvidenceTier::Crc64nvmeFull | EvidenceTier::Sha256Composite | EvidenceTier::Sha1 | EvidenceTier::Crc32c => {
            same("checksum", &recorded.checksum, &found.checksum)?;
        }
        EvidenceTier::Md5Etag => same("ETag", &recorded.etag, &found.etag)?,
        EvidenceTier::IdPin => same("id", &recorded.version_id, &found.version_id)?,
        EvidenceTier::SizeOnly | EvidenceTier::ReadBack | EvidenceTier::Unknown => {}
    }
    Ok(recorded.tier)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(tier: EvidenceTier, checksum: Option<&str>) -> Evidence {
        let checksum = checksum.map(str::to_owned);
        Evidence { tier, bytes: 5, checksum, etag: None, version_id: None, part_bytes: None, locked_until: None }
    }

    #[test]
    fn evidence_must_still_be_there_and_equal() {
        let recorded = evidence(EvidenceTier::Crc64nvmeFull, Some("a"));
        assert_eq!(compare(&recorded, Some(&recorded)), Ok(EvidenceTier::Crc64nvmeFull));
        let other = evidence(EvidenceTier::Crc64nvmeFull, Some("b"));
        assert_eq!(compare(&recorded, Some(&other)), Err("checksum is b, and was a when it was confirmed".into()));
        let weaker = evidence(EvidenceTier::SizeOnly, None);
        assert_eq!(compare(&recorded, Some(&weaker)), Err("the store no longer reports its checksum".into()));
        assert_eq!(compare(&recorded, None), Err("missing".into()));
        let longer = Evidence { bytes: 6, ..recorded.clone() };
        assert_eq!(compare(&recorded, Some(&longer)), Err("has 6 bytes, not 5".into()));
    }
}
