//! Puts small objects with retries: a put that was already done is no error, and a single failure
//! would lose a whole upload. Also their form and the limits of their sizes.

use crate::catalog::read_back::{TRIES_MAX, TRY_PAUSE};
use crate::keyring::KEYRING_BYTES_MAX;
use crate::manifest::{
    CHUNK_LIST_BYTES_MAX, LARGE_TEXT_BYTES_MAX, MANIFEST_BYTES_MAX, PRIVATE_BYTES_MAX,
    to_stored_bytes,
};
use crate::run::{RunError, error_chain};
use crate::store::key::BackupObject;
use crate::store::{Evidence, ObjectKey, PutOutcome, StoreWrite};
use bytes::Bytes;

/// Puts a small object create-only, with retries.
///
/// # Errors
/// [`RunError::Store`], after all tries, or at once for an error that a retry does not help.
pub(in crate::run) async fn put_again(
    store: &dyn StoreWrite,
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

/// Returns the most bytes that a reader accepts for each kind of small object.
pub(in crate::run::commit) fn limit_bytes(object: &BackupObject) -> u64 {
    match object {
        BackupObject::Manifest | BackupObject::Started => MANIFEST_BYTES_MAX,
        BackupObject::Keyring => KEYRING_BYTES_MAX,
        BackupObject::ChunkList(_) => CHUNK_LIST_BYTES_MAX,
        BackupObject::Private => PRIVATE_BYTES_MAX,
        BackupObject::RestoreText
        | BackupObject::Receipt
        | BackupObject::Progress(_)
        | BackupObject::Chunk { .. }
        | BackupObject::Sums => LARGE_TEXT_BYTES_MAX,
    }
}

/// Returns the bytes of a JSON object as it is stored.
pub(in crate::run) fn to_json<T: serde::Serialize>(object: &T) -> Result<Vec<u8>, RunError> {
    to_stored_bytes(object).map_err(|error| RunError::File {
        operation: "write",
        path: "JSON".into(),
        source: std::io::Error::other(error),
    })
}
