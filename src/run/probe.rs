//! Probes what a store can do, and saves the result for later runs ([`crate::state::probes`]).

use super::{RunError, error_chain};
use crate::state::probes::{ProbeCache, ProbeNote};
use crate::store::StoreWrite;
use crate::store::key::PROBE_PREFIX;
use jiff::Timestamp;

/// Probes the store, below a prefix that no other run uses (`nonce`), and saves the result. Returns
/// `None` for a store with nothing to probe, such as a folder. A failure to save the result is
/// logged and is no error.
///
/// # Errors
/// [`RunError::Store`] when the probe failed.
pub async fn probe_store(
    store: &dyn StoreWrite,
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
            "the next run will probe the store again: {}",
            error_chain(&error)
        );
    }
    Ok(Some(note))
}
