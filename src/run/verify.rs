//! `verify-checksums`: holds signed manifests against what the store itself reports. Downloads no chunk.

use super::catalog::{StoredBackup, chunk_key, read_catalog, read_chunks, read_receipt};
use super::{RunError, error_chain};
use crate::manifest::{ChunkEntry, Receipt};
use crate::model::{BackupId, DatasetName};
use crate::sign::TrustedKeys;
use crate::store::key::{BackupObject, backup_prefix, parse_object_name};
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
    let mut report =
        VerifyReport { newest: catalog.newest().map(|backup| backup.manifest.id.clone()), ..Default::default() };
    for (id, error) in catalog.disbelieved() {
        let key = format!("{}manifest.json", backup_prefix(dataset, id));
        report.damage.push(Damage { key, backup: Some(id.clone()), reason: error_chain(error) });
    }
    for attempt in catalog.attempts.iter().filter(|attempt| attempt.disbelieved.is_none()) {
        report.extra.push(format!(
            "{} ({} objects of an unfinished upload)",
            backup_prefix(dataset, &attempt.id),
            attempt.objects
        ));
    }
    report.extra.extend(catalog.unknown.iter().map(|object| object.key.clone()));
    let present: BTreeSet<&BackupId> = catalog.backups.iter().map(|backup| &backup.manifest.id).collect();
    for backup in &catalog.backups {
        report.backups += 1;
        verify_backup(store, backup, trusted, &present, &mut report).await?;
    }
    Ok(report)
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
    let Some(receipt) = damage_or(read_receipt(store, backup, trusted).await, backup, report)? else { return Ok(()) };
    let wanted = wanted_objects(backup, &chunks, &receipt, report);
    let heads = stream::iter(wanted).map(|(key, recorded)| async move { (store.head(&key).await, key, recorded) });
    let mut heads = heads.buffer_unordered(HEADS_MAX);
    while let Some((found, key, recorded)) = heads.next().await {
        match compare(&recorded, found?.as_ref()) {
            Ok(tier) => *report.objects.entry(tier).or_default() += 1,
            Err(reason) => report.damage.push(Damage { key: key.to_string(), backup: Some(id.clone()), reason }),
        }
    }
    Ok(())
}

/// Damage found while reading goes into the report; what could not be read at all is an error, except an object that
/// the listing shows to be gone.
fn damage_or<T>(
    result: Result<T, RunError>,
    backup: &StoredBackup,
    report: &mut VerifyReport,
) -> Result<Option<T>, RunError> {
    let error = match result {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    let missing = matches!(&error, RunError::Store(error) if error.kind == crate::store::StoreErrorKind::NotFound);
    if !missing && !error.is_damage() {
        return Err(error);
    }
    let key = match &error {
        RunError::Manifest { key, .. } => key.clone(),
        RunError::Store(error) => error.subject.clone(),
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
    let small = receipt.objects.iter().filter(|entry| !chunks.iter().any(|chunk| chunk.name == entry.name));
    for entry in small {
        if let Some(object) = parse_object_name(&entry.name)
            .filter(|object| !matches!(object, BackupObject::Chunk { .. } | BackupObject::Progress(_)))
        {
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
        EvidenceTier::SizeOnly | EvidenceTier::ReadBack => {}
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
