//! `verify-checksums`: holds signed manifests against what the store itself reports. Downloads no chunk; the small
//! objects are read, because their hashes are signed and reading them is the better proof.

use super::catalog::{
    StoredBackup, chunk_key, find_gaps, get_needed, get_signed, read_catalog, read_chunks, read_receipt,
};
use super::{RunError, error_chain};
use crate::keyring::{KEYRING_BYTES_MAX, keyring_tag};
use crate::manifest::{
    ChunkEntry, LARGE_TEXT_BYTES_MAX, MANIFEST_BYTES_MAX, Manifest, ManifestError, Receipt, parse_started,
};
use crate::model::{BackupId, DatasetName, Digest};
use crate::sign::{SignedType, TrustedKeys};
use crate::store::key::{BackupObject, SIGNATURE_SUFFIX, backup_prefix, object_name, parse_object_name};
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
    verify_small(store, backup, trusted, report).await?;
    let chunks = damage_or(read_chunks(store, &backup.manifest).await, backup, report)?;
    let receipt = damage_or(read_receipt(store, backup, trusted).await, backup, report)?;
    let Some(chunks) = chunks else { return Ok(()) };
    report.extra.extend(unnamed_objects(backup, &chunks));
    let Some(receipt) = receipt else {
        // Without the store's word at the commit, the listing is what is left.
        for gap in find_gaps(backup, &chunks) {
            damage_or::<()>(Err(gap), backup, report)?;
        }
        return Ok(());
    };
    let mut wanted = wanted_objects(backup, &chunks, &receipt, report);
    wanted.retain(|(key, _)| !report.damage.iter().any(|damage| damage.key == key.as_str()));
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

/// Reads what is small: everything that a person without this tool needs besides the chunks, and the keyring.
async fn verify_small(
    store: &dyn ObjectStore,
    backup: &StoredBackup,
    trusted: &TrustedKeys,
    report: &mut VerifyReport,
) -> Result<(), RunError> {
    let Manifest { dataset, id, files, recipients, .. } = &backup.manifest;
    let key_of = |object| ObjectKey::backup(dataset, id, &object);
    damage_or(check_started(store, backup, trusted).await, backup, report)?;
    let text = key_of(BackupObject::RestoreText);
    damage_or(check_restore_text(store, &text, files.restore_text, trusted).await, backup, report)?;
    let private = key_of(BackupObject::Private);
    damage_or(check_digest(store, &private, LARGE_TEXT_BYTES_MAX, files.private).await, backup, report)?;
    let Some(keyring) = files.keyring else { return Ok(()) };
    let tags = recipients.iter().filter_map(|recipient| Some(keyring_tag(&recipient.parse().ok()?)));
    let main = tags.map(|tag| ObjectKey::keyring(&tag));
    for key in main.chain([key_of(BackupObject::Keyring)]) {
        damage_or(check_digest(store, &key, KEYRING_BYTES_MAX, keyring).await, backup, report)?;
    }
    Ok(())
}

async fn check_started(store: &dyn ObjectStore, backup: &StoredBackup, trusted: &TrustedKeys) -> Result<(), RunError> {
    let Manifest { dataset, id, .. } = &backup.manifest;
    let key = ObjectKey::backup(dataset, id, &BackupObject::Started);
    let (bytes, signature) = get_signed(store, &key, MANIFEST_BYTES_MAX).await?;
    let parsed = parse_started(trusted, dataset, id, &bytes, &signature);
    parsed.map(drop).map_err(|source| RunError::Manifest { key: key.to_string(), source })
}

async fn check_restore_text(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    expected: Digest,
    trusted: &TrustedKeys,
) -> Result<(), RunError> {
    let (bytes, signature) = get_signed(store, key, LARGE_TEXT_BYTES_MAX).await?;
    trusted
        .verify(SignedType::RestoreText, key.as_str(), &bytes, &signature)
        .map_err(ManifestError::from)
        .and_then(|()| same_digest(&bytes, expected))
        .map_err(|source| RunError::Manifest { key: key.to_string(), source })
}

async fn check_digest(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    limit_bytes: u64,
    expected: Digest,
) -> Result<(), RunError> {
    let bytes = get_needed(store, key, limit_bytes).await?;
    same_digest(&bytes, expected).map_err(|source| RunError::Manifest { key: key.to_string(), source })
}

fn same_digest(bytes: &[u8], expected: Digest) -> Result<(), ManifestError> {
    let actual = Digest::of(bytes);
    if actual == expected { Ok(()) } else { Err(ManifestError::Digest { expected, actual }) }
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
    let unnamed =
        backup.objects.keys().filter(|name| !named.contains(name.strip_suffix(SIGNATURE_SUFFIX).unwrap_or(name)));
    unnamed.map(|name| format!("{prefix}{name}")).collect()
}

/// Damage found while reading goes into the report, once for each key; what could not be read at all is an error.
fn damage_or<T>(
    result: Result<T, RunError>,
    backup: &StoredBackup,
    report: &mut VerifyReport,
) -> Result<Option<T>, RunError> {
    let (key, reason) = match result {
        Ok(value) => return Ok(Some(value)),
        Err(RunError::Damaged { key, reason }) => (key, reason),
        Err(RunError::Manifest { key, source }) => (key, error_chain(&source)),
        Err(error) => return Err(error),
    };
    if !report.damage.iter().any(|damage| damage.key == key) {
        report.damage.push(Damage { key, backup: Some(backup.manifest.id.clone()), reason });
    }
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
