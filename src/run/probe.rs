//! Tries what a store can do, and keeps the result for later runs ([`crate::state::probes`]).

use super::{RunError, error_chain};
use crate::state::probes::{ProbeCache, ProbeNote};
use crate::store::ObjectStore;
use crate::store::key::PROBE_PREFIX;
use jiff::Timestamp;

/// Tries the store, below a prefix that nobody else uses (`nonce`), and remembers what was found.
/// `None` where there is nothing to find out, as with a folder. A record that cannot be written is
/// said and fails nothing.
///
/// # Errors
/// [`RunError::Store`] when it could not be found out.
pub async fn probe_store(
    store: &dyn ObjectStore,
    cache: &ProbeCache,
    nonce: u64,
    now: Timestamp,
) -> Result<Option<ProbeNote>, RunError> {
    let Some(probe) = store.probe(&format!("{PROBE_PREFIX}{nonce:016x}/")).await? else {
        return Ok(None);
    };
    let note = cache.note(probe, now);
    if let Err(error) = cache.save(&note) {
        tracing::warn!(
            "the store will be tried again by the next run: {}",
            error_chain(&error)
        );
    }
    Ok(Some(note))
}
