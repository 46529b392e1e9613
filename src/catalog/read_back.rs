//! Reads a manifest back after it was put, with retries after failures of the store.

use super::{CatalogError, read_manifest};
use crate::manifest::Manifest;
use crate::model::{BackupId, DatasetName, Digest};
use crate::sign::TrustedKeys;
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, StoreRead};
use std::time::Duration;

/// Number of retries of a put or read of a small object.
pub(crate) const TRIES_MAX: u32 = 3;
/// Pause before a retry, multiplied by the number of the retry.
pub(crate) const TRY_PAUSE: Duration = Duration::from_secs(1);

/// Reads a manifest back in the way in which every reader reads it. Retries, because one failure of
/// the store must not hide that the backup exists.
///
/// # Errors
/// [`CatalogError`] when the manifest is missing or has another hash than `expected`.
pub(crate) async fn read_back(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    id: &BackupId,
    trusted: &TrustedKeys,
    expected: Digest,
) -> Result<Manifest, CatalogError> {
    let mut tries = 1..=TRIES_MAX;
    loop {
        match (
            read_manifest(store, dataset, id, trusted).await,
            tries.next(),
        ) {
            (Ok((manifest, blake3)), _) if blake3 == expected => return Ok(manifest),
            (Ok(_), _) => {
                let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest).to_string();
                let reason =
                    "the bytes that were read back after the commit differ from the written ones"
                        .into();
                return Err(CatalogError::Damaged { key, reason });
            }
            (Err(error), None) => return Err(error),
            (Err(_), Some(number)) => tokio::time::sleep(TRY_PAUSE * number).await,
        }
    }
}
