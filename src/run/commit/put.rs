//! Puts small objects with retries: a put that was already done is no error, and a single failure
//! would lose a whole upload.

use crate::catalog::read_back::{TRIES_MAX, TRY_PAUSE};
use crate::run::{RunError, error_chain};
use crate::store::{Evidence, ObjectKey, ObjectStore, PutOutcome};
use bytes::Bytes;

/// Puts a small object create-only, with retries.
///
/// # Errors
/// [`RunError::Store`], after all tries, or at once for an error that a retry does not help.
pub(in crate::run) async fn put_again(
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
