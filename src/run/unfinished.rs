//! What was begun and not ended in a store: the signed first object of an attempt.

use super::RunError;
use crate::manifest::{MANIFEST_BYTES_MAX, SIGNATURE_BYTES_MAX, Started, parse_started};
use crate::model::{BackupId, DatasetName};
use crate::sign::TrustedKeys;
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, ObjectStore, StoreErrorKind};

/// The first object of an attempt: what it sends and what it follows from. `None` when there is none, such as when a
/// prune or an abort was interrupted.
///
/// # Errors
/// [`RunError::Manifest`] when it is not to be believed, [`RunError::Store`] when it cannot be read.
pub async fn read_started(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    id: &BackupId,
    trusted: &TrustedKeys,
) -> Result<Option<Started>, RunError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Started);
    let mut read = Vec::new();
    for (key, limit_bytes) in [(&key, MANIFEST_BYTES_MAX), (&key.signature(), SIGNATURE_BYTES_MAX)] {
        match store.get(key, None, limit_bytes).await {
            Ok(bytes) => read.push(bytes),
            Err(error) if error.kind == StoreErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
    let started = parse_started(trusted, dataset, id, &read[0], &read[1]);
    started.map(Some).map_err(|source| RunError::Manifest { key: key.to_string(), source })
}
