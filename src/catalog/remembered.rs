//! The remote as last read: its manifests with their signatures, saved in `state_dir` for planning
//! while the remote is offline. Every reading verifies them again.

use crate::catalog::CatalogError;
use crate::catalog::{Catalog, StoredBackup, get_pinned, get_signature};
use crate::manifest::{MANIFEST_BYTES_MAX, parse_manifest};
use crate::model::{BackupId, DatasetName, Digest, Guid, KnownStore, error_chain};
use crate::sign::TrustedKeys;
use crate::state::manifests::{CacheMode, ObjectCache};
use crate::state::remembered::{ManifestPart, MemoryTime, RememberedManifests};
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, StoreRead};
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;
use std::path::Path;

/// The bounds of the age at which the saved manifests no longer replace a request to the store.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(7 * 24);
const AGE_MIN: SignedDuration = SignedDuration::from_hours(4 * 24);

/// Saves the manifests of these backups, and removes all others. Fetches only manifests that are
/// neither saved nor cached. `listed_at` is the time of the listing, by a caller that holds the
/// dataset's lock for this store; without it the memory never stands for a request, because another
/// run may have deleted backups in the meantime.
///
/// # Errors
/// [`CatalogError`]; the saved manifests may then be out of date, but are never wrong.
pub(crate) async fn remember(
    state_dir: &Path,
    store: &dyn StoreRead,
    dataset: &DatasetName,
    whole: &[&StoredBackup],
    listed_at: Option<Timestamp>,
) -> Result<(), CatalogError> {
    let files = RememberedManifests::new(state_dir, &store.known(), dataset);
    files.create()?;
    files.clear_time(MemoryTime::Read)?;
    let wanted: BTreeSet<&BackupId> = whole.iter().map(|backup| &backup.manifest.id).collect();
    for id in files.ids()?.iter().filter(|id| !wanted.contains(id)) {
        files.remove(id)?;
    }
    let cache = ObjectCache::open(state_dir, &store.known(), dataset, CacheMode::ReadOnly);
    for backup in whole {
        let id = &backup.manifest.id;
        let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest);
        let kept = files.read(id, ManifestPart::Manifest)?;
        let signed = files.is_there(id, ManifestPart::Signature);
        if signed && kept.is_some_and(|bytes| Digest::of(&bytes) == backup.manifest_blake3) {
            continue;
        }
        let manifest = cache.get_pinned(key.as_str(), backup.manifest_blake3);
        let (manifest, signature) = match manifest.zip(cache.get_any(key.signature().as_str())) {
            Some(pair) => pair,
            None => (
                get_pinned(store, &key, backup.manifest_blake3, MANIFEST_BYTES_MAX).await?,
                get_signature(store, &key).await?,
            ),
        };
        files.write(id, ManifestPart::Signature, &signature)?;
        files.write(id, ManifestPart::Manifest, &manifest)?;
    }
    match listed_at {
        Some(listed_at) => files.note_time(MemoryTime::Read, listed_at)?,
        None => files.clear_time(MemoryTime::Read)?,
    }
    Ok(())
}

/// Returns when this host last read the store's backups of the dataset; `None` if that is not
/// known.
///
/// # Errors
/// [`CatalogError::State`].
pub(crate) fn read_at(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<Option<Timestamp>, CatalogError> {
    Ok(RememberedManifests::new(state_dir, store, dataset).time(MemoryTime::Read)?)
}

/// Returns when this host last pruned the dataset in the store; `None` if that is not known.
///
/// # Errors
/// [`CatalogError::State`].
pub(crate) fn pruned_at(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<Option<Timestamp>, CatalogError> {
    Ok(RememberedManifests::new(state_dir, store, dataset).time(MemoryTime::Pruned)?)
}

/// Records that a prune read the store and left nothing to delete. Does nothing for a store whose
/// backups are not remembered.
///
/// # Errors
/// [`CatalogError::State`].
pub(crate) fn note_pruned_at(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
    at: Timestamp,
) -> Result<(), CatalogError> {
    let files = RememberedManifests::new(state_dir, store, dataset);
    if files.exist()? {
        files.note_time(MemoryTime::Pruned, at)?;
    }
    Ok(())
}

/// Removes the time of the last prune, so that the next one reads the store unless this one succeeds.
///
/// # Errors
/// [`CatalogError::State`].
pub(crate) fn clear_pruned_at(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<(), CatalogError> {
    Ok(RememberedManifests::new(state_dir, store, dataset).clear_time(MemoryTime::Pruned)?)
}

/// Returns whether a time is so recent that what was saved then may replace a request. Each
/// dataset has its own limit, so that one night does not read all of them. A time in the future
/// shows that a clock was wrong, and is not recent.
pub(crate) fn is_recent(at: Timestamp, now: Timestamp, dataset: Guid) -> bool {
    (SignedDuration::ZERO..=age_max(dataset)).contains(&now.duration_since(at))
}

fn age_max(dataset: Guid) -> SignedDuration {
    let spread = AGE_MAX - AGE_MIN;
    let seconds = dataset.0 % u64::try_from(spread.as_secs()).unwrap_or(1);
    AGE_MIN + SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0))
}

/// Makes the next backup read the store, because its backups of the dataset are no longer what this
/// host remembers.
///
/// # Errors
/// [`CatalogError::State`].
pub(crate) fn distrust(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
) -> Result<(), CatalogError> {
    Ok(RememberedManifests::new(state_dir, store, dataset).clear_time(MemoryTime::Read)?)
}

/// Saves the manifest of a backup that this host has just committed to the store, so that a plan
/// made while the remote is offline can build on this backup. Does nothing for a store that was
/// never read: this one backup must not count as everything that the store holds.
///
/// # Errors
/// As for [`remember`].
pub(crate) fn remember_commit(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
    id: &BackupId,
    (manifest, signature): (&[u8], &[u8]),
) -> Result<(), CatalogError> {
    let files = RememberedManifests::new(state_dir, store, dataset);
    if files.exist()? {
        files.write(id, ManifestPart::Signature, signature)?;
        files.write(id, ManifestPart::Manifest, manifest)?;
    }
    Ok(())
}

/// Returns the backups that were complete when this store was last read, or `None` if it was never
/// read. Manifests that do not verify are left out; the second value is their number.
///
/// # Errors
/// [`CatalogError::State`] when the saved manifests cannot be read: an error never means "no
/// backups".
pub(crate) fn recall(
    state_dir: &Path,
    store: &KnownStore,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<Option<(Catalog, usize)>, CatalogError> {
    let files = RememberedManifests::new(state_dir, store, dataset);
    if !files.exist()? {
        return Ok(None);
    }
    let mut backups = Vec::new();
    let mut untrusted = 0;
    for id in files.ids()? {
        let bytes = files.read(&id, ManifestPart::Manifest)?.unwrap_or_default();
        let signature = files
            .read(&id, ManifestPart::Signature)?
            .unwrap_or_default();
        match parse_manifest(trusted, dataset, &id, &bytes, &signature) {
            Ok(manifest) => {
                let manifest_blake3 = Digest::of(&bytes);
                let objects = Default::default();
                backups.push(StoredBackup {
                    manifest,
                    manifest_blake3,
                    objects,
                    stored_at: None,
                });
            }
            Err(error) => {
                tracing::warn!(%id, error = error_chain(&error), "ignoring a cached manifest that is invalid or untrusted");
                untrusted += 1;
            }
        }
    }
    let catalog = Catalog {
        dataset: dataset.clone(),
        backups,
        attempts: Vec::new(),
        unknown: Vec::new(),
        newest_object_at: None,
    };
    Ok(Some((catalog, untrusted)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_for_days_and_never_from_the_future() {
        let now: Timestamp = "2026-03-10T02:00:00Z".parse().expect("a time");
        let ago = |hours| now - SignedDuration::from_hours(hours);
        for dataset in [0, 1, u64::MAX, 1 << 40].map(Guid) {
            assert!((AGE_MIN..AGE_MAX).contains(&age_max(dataset)));
            assert!(is_recent(now, now, dataset));
            assert!(is_recent(ago(4 * 24), now, dataset));
            assert!(!is_recent(ago(7 * 24), now, dataset));
            assert!(!is_recent(ago(-1), now, dataset));
        }
    }
}
