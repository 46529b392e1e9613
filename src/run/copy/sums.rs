//! Writes `B3SUMS`: the hashes of all objects of a backup, in its folder of the intermediate
//! directory, so that `b3sum -c B3SUMS` there shows whether the disk still returns what was
//! written.

use crate::catalog::{Catalog, StoredBackup, read_catalog, read_chunks};
use crate::manifest::{ChunkEntry, LARGE_TEXT_BYTES_MAX};
use crate::model::{BackupId, DatasetName, Digest};
use crate::run::RunError;
use crate::run::commit::put::put_again;
use crate::sign::TrustedKeys;
use crate::store::key::{BackupObject, backup_prefix, object_name};
use crate::store::{ObjectKey, StoreRead, StoreWrite};
use std::collections::BTreeMap;

/// Writes the file for every whole backup that has none, including a backup whose run ended just
/// after its commit. Returns the backups that got one.
///
/// # Errors
/// [`RunError`]; the backups themselves are complete.
pub async fn write_sums(
    store: &dyn StoreWrite,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<Vec<BackupId>, RunError> {
    let Catalog { backups, .. } = read_catalog(store, dataset, trusted).await?;
    let mut written = Vec::new();
    for backup in backups.iter().filter(|backup| {
        !backup
            .objects
            .contains_key(&object_name(&BackupObject::Sums))
    }) {
        let chunks = read_chunks(store, &backup.manifest).await?;
        let text = sums_text(store, backup, &chunks).await?;
        let key = ObjectKey::backup(dataset, &backup.manifest.id, &BackupObject::Sums);
        put_again(store, &key, text.into()).await?;
        written.push(backup.manifest.id.clone());
    }
    Ok(written)
}

/// Returns one line for each object. The hashes of chunks come from the signed list, without
/// reading the chunks, so that a chunk which the disk has already lost is found.
async fn sums_text(
    store: &dyn StoreRead,
    backup: &StoredBackup,
    chunks: &[ChunkEntry],
) -> Result<String, RunError> {
    let prefix = backup_prefix(&backup.manifest.dataset, &backup.manifest.id);
    let mut sums: BTreeMap<&str, Digest> = chunks
        .iter()
        .map(|chunk| (chunk.name.as_str(), chunk.blake3))
        .collect();
    for name in backup.objects.keys().filter(|name| is_small(name)) {
        let Some(key) = ObjectKey::listed(&format!("{prefix}{name}")) else {
            continue;
        };
        sums.insert(
            name,
            Digest::of(&store.get(&key, None, LARGE_TEXT_BYTES_MAX).await?),
        );
    }
    Ok(sums
        .into_iter()
        .map(|(name, blake3)| format!("{blake3}  {name}\n"))
        .collect())
}

/// Returns whether an object is read to be hashed: no chunk, progress object, unknown object or
/// `B3SUMS` itself.
fn is_small(name: &str) -> bool {
    use crate::store::key::{SIGNATURE_SUFFIX, parse_object_name};
    let object = parse_object_name(name.strip_suffix(SIGNATURE_SUFFIX).unwrap_or(name));
    !matches!(
        object,
        None | Some(BackupObject::Chunk { .. } | BackupObject::Progress(_) | BackupObject::Sums)
    )
}
