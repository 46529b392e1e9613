//! Verifies one backup: compares every object that its manifest needs with the store's evidence.

use super::{Damage, compare};
use crate::catalog::{
    StoredBackup, chunk_key, find_gaps, get_pinned, get_signed, read_chunks, read_receipt,
};
use crate::keyring::KEYRING_BYTES_MAX;
use crate::manifest::{ChunkEntry, MANIFEST_BYTES_MAX, Manifest, PRIVATE_BYTES_MAX, Receipt};
use crate::model::{BackupId, Digest};
use crate::run::{RunError, error_chain};
use crate::sign::{SignedType, TrustedKeys};
use crate::store::key::{
    BackupObject, SIGNATURE_SUFFIX, backup_prefix, object_name, parse_object_name,
};
use crate::store::{Evidence, EvidenceTier, ObjectKey, StoreRead};
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};

/// Limit of concurrent HEAD requests for one backup.
const HEADS_MAX: usize = 8;

/// The findings about one backup.
pub(super) struct BackupFindings {
    id: BackupId,
    pub(super) objects: BTreeMap<EvidenceTier, usize>,
    pub(super) damage: Vec<Damage>,
    pub(super) extra: Vec<String>,
    /// The backups that its receipt lists as present in the store at the commit.
    pub(super) live: Vec<BackupId>,
    /// The backup's chunks; empty when a chunk list does not verify.
    pub(super) chunks: Vec<ChunkEntry>,
}

impl BackupFindings {
    fn add(&mut self, key: String, reason: String) {
        self.damage
            .push(Damage::new(key, Some(self.id.clone()), reason));
    }
}

/// Verifies one backup, without a download of chunks.
pub(super) async fn verify_backup(
    store: &dyn StoreRead,
    backup: &StoredBackup,
    trusted: &TrustedKeys,
) -> Result<BackupFindings, RunError> {
    let (objects, damage, extra, live, chunks) = Default::default();
    let mut found = BackupFindings {
        id: backup.manifest.id.clone(),
        objects,
        damage,
        extra,
        live,
        chunks,
    };
    let Some(chunks) = damage_or(
        read_chunks(store, &backup.manifest).await,
        backup,
        &mut found,
    )?
    else {
        return Ok(found);
    };
    verify_small(store, backup, trusted, &mut found).await?;
    found.extra = unnamed_objects(backup, &chunks);
    match damage_or(
        read_receipt(store, backup, trusted).await,
        backup,
        &mut found,
    )? {
        Some(receipt) => verify_evidence(store, backup, &chunks, receipt, &mut found).await?,
        // Without a receipt, the listing is the only evidence of the chunks.
        None => {
            for gap in find_gaps(backup, &chunks) {
                damage_or::<()>(Err(gap), backup, &mut found)?;
            }
        }
    }
    found.chunks = chunks;
    Ok(found)
}

async fn verify_evidence(
    store: &dyn StoreRead,
    backup: &StoredBackup,
    chunks: &[ChunkEntry],
    receipt: Receipt,
    found: &mut BackupFindings,
) -> Result<(), RunError> {
    found.live = receipt.live.iter().map(|entry| entry.id.clone()).collect();
    let mut wanted = wanted_objects(backup, chunks, &receipt, found);
    // An object that is already known to be damaged is not reported twice.
    wanted.retain(|(key, _)| !found.damage.iter().any(|damage| damage.key == key.as_str()));
    // A single listing with the same evidence as a HEAD of each object saves thousands of requests.
    let Manifest { dataset, id, .. } = &backup.manifest;
    let listed = store.evidence_under(&backup_prefix(dataset, id)).await?;
    let listed = listed.as_ref();
    let heads = stream::iter(wanted).map(|(key, recorded)| async move {
        let there = match listed {
            Some(listed) => Ok(listed.get(key.as_str()).cloned()),
            None => store.head(&key).await,
        };
        (there, key, recorded)
    });
    let mut heads = heads.buffered(HEADS_MAX);
    while let Some((there, key, recorded)) = heads.next().await {
        match compare(&recorded, there?.as_ref()) {
            Ok(tier) => *found.objects.entry(tier).or_default() += 1,
            Err(reason) => found.add(key.to_string(), reason),
        }
    }
    Ok(())
}

/// Fetches the small objects that the manifest pins and compares their hashes, and verifies the
/// small objects that are signed.
async fn verify_small(
    store: &dyn StoreRead,
    backup: &StoredBackup,
    trusted: &TrustedKeys,
    found: &mut BackupFindings,
) -> Result<(), RunError> {
    let manifest = &backup.manifest;
    let files = &manifest.files;
    let pinned = [
        (
            BackupObject::Private,
            Some(files.private),
            PRIVATE_BYTES_MAX,
        ),
        (BackupObject::Keyring, files.keyring, KEYRING_BYTES_MAX),
    ];
    for (object, digest, limit_bytes) in pinned {
        let Some(digest) = digest else { continue };
        let key = ObjectKey::backup(&manifest.dataset, &manifest.id, &object);
        damage_or(
            get_pinned(store, &key, digest, limit_bytes).await,
            backup,
            found,
        )?;
    }
    for (object, signed_type, limit_bytes) in [
        (
            BackupObject::RestoreText,
            SignedType::RestoreText,
            manifest.restore_text_bytes_max(),
        ),
        (
            BackupObject::Started,
            SignedType::Started,
            MANIFEST_BYTES_MAX,
        ),
    ] {
        let key = ObjectKey::backup(&manifest.dataset, &manifest.id, &object);
        let read = get_signed(store, &key, signed_type, trusted, limit_bytes).await;
        let Some((bytes, _)) = damage_or(read, backup, found)? else {
            continue;
        };
        if object == BackupObject::RestoreText && Digest::of(&bytes) != files.restore_text {
            let reason = "its BLAKE3 is not the one that the manifest says".to_owned();
            found.add(key.to_string(), reason);
        }
    }
    Ok(())
}

/// Returns the objects that the manifest needs, with their evidence at the commit. A chunk that the
/// receipt does not name is damage. A chunk that only the receipt names does not belong to this
/// backup.
fn wanted_objects(
    backup: &StoredBackup,
    chunks: &[ChunkEntry],
    receipt: &Receipt,
    found: &mut BackupFindings,
) -> Vec<(ObjectKey, Evidence)> {
    let manifest = &backup.manifest;
    let recorded: BTreeMap<&str, &Evidence> = receipt
        .objects
        .iter()
        .map(|entry| (entry.name.as_str(), &entry.evidence))
        .collect();
    let mut wanted = Vec::new();
    let mut damage = |key: String, reason: &str| found.add(key, reason.to_owned());
    for chunk in chunks {
        let Some(key) = chunk_key(manifest, chunk) else {
            continue;
        };
        match recorded.get(chunk.name.as_str()) {
            None => damage(key.to_string(), "the receipt does not name it"),
            Some(evidence) if evidence.bytes != chunk.sealed_bytes => {
                damage(key.to_string(), "receipt and manifest differ in its size")
            }
            Some(evidence) => wanted.push((key, (*evidence).clone())),
        }
    }
    for entry in &receipt.objects {
        let chunk = |object: &BackupObject| {
            matches!(
                object,
                BackupObject::Chunk { .. } | BackupObject::Progress(_)
            )
        };
        if let Some(object) = parse_object_name(&entry.name).filter(|object| !chunk(object)) {
            wanted.push((
                ObjectKey::backup(&manifest.dataset, &manifest.id, &object),
                entry.evidence.clone(),
            ));
        }
    }
    wanted
}

/// Returns the objects under the backup's prefix that do not belong to it, such as chunks that were
/// uploaded again because a reply was lost.
fn unnamed_objects(backup: &StoredBackup, chunks: &[ChunkEntry]) -> Vec<String> {
    let small = [
        BackupObject::Started,
        BackupObject::Keyring,
        BackupObject::Private,
        BackupObject::RestoreText,
        BackupObject::Receipt,
        BackupObject::Manifest,
        BackupObject::Sums,
    ];
    let mut named: BTreeSet<String> = small.iter().map(object_name).collect();
    named.extend(chunks.iter().map(|chunk| chunk.name.clone()));
    named.extend(
        backup
            .manifest
            .chunk_lists
            .iter()
            .map(|list| list.name.clone()),
    );
    let prefix = backup_prefix(&backup.manifest.dataset, &backup.manifest.id);
    let is_named =
        |name: &&String| named.contains(name.strip_suffix(SIGNATURE_SUFFIX).unwrap_or(name));
    backup
        .objects
        .keys()
        .filter(|name| !is_named(name))
        .map(|name| format!("{prefix}{name}"))
        .collect()
}

/// Adds damage, including a missing object, to the findings and returns `None`. Any other failure
/// to read is an error.
fn damage_or<T>(
    result: Result<T, impl Into<RunError>>,
    backup: &StoredBackup,
    found: &mut BackupFindings,
) -> Result<Option<T>, RunError> {
    let error = match result {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error.into(),
    };
    if !error.is_damage() {
        return Err(error);
    }
    let key = match &error {
        RunError::Manifest { key, .. } | RunError::Damaged { key, .. } => key.clone(),
        _ => backup_prefix(&backup.manifest.dataset, &backup.manifest.id),
    };
    found.add(key, error_chain(&error));
    Ok(None)
}
