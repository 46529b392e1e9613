//! Small objects, put or read more than once if the store is not well: a put that was done already
//! is no error, and a whole upload hangs on it.

use super::catalog::read_manifest;
use super::{RunError, error_chain};
use crate::manifest::Manifest;
use crate::model::{BackupId, DatasetName, Digest};
use crate::sign::TrustedKeys;
use crate::store::key::BackupObject;
use crate::store::{Evidence, ObjectKey, ObjectStore, PutOutcome};
use bytes::Bytes;
use std::time::Duration;

/// How often a small object is put or read again.
pub(super) const TRIES_MAX: u32 = 3;
/// Pause before that, times the number of the try.
pub(super) const TRY_PAUSE: Duration = Duration::from_secs(1);

/// Puts a small object create-only.
///
/// # Errors
/// [`RunError::Store`], after all tries or when another would not help.
pub(super) async fn put_again(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    bytes: Bytes,
) -> Result<(PutOutcome, Evidence), RunError> {
    let mut tries = 1..=TRIES_MAX;
    loop {
        match (store.put_new(key, bytes.clone()).await, tries.next()) {
            (Ok(done), _) => return Ok(done),
            (Err(error), Some(number)) if error.is_transient() => {
                tracing::warn!(error = %error_chain(&error), number, "put failed; trying again");
                tokio::time::sleep(TRY_PAUSE * number).await;
            }
            (Err(error), _) => return Err(error.into()),
        }
    }
}

/// Reads a manifest back as everybody will. One failure of the store must not hide that the backup
/// is there.
///
/// # Errors
/// [`RunError`] when it is not there or not what was written.
pub(super) async fn read_back(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    id: &BackupId,
    trusted: &TrustedKeys,
    expected: Digest,
) -> Result<Manifest, RunError> {
    let mut tries = 1..=TRIES_MAX;
    loop {
        match (
            read_manifest(store, dataset, id, trusted).await,
            tries.next(),
        ) {
            (Ok((manifest, blake3)), _) if blake3 == expected => return Ok(manifest),
            (Ok(_), _) => {
                let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest).to_string();
                let reason = "read back after the commit, it is not what was written".into();
                return Err(RunError::Damaged { key, reason });
            }
            (Err(error), None) => return Err(error),
            (Err(_), Some(number)) => tokio::time::sleep(TRY_PAUSE * number).await,
        }
    }
}
