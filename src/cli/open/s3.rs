//! Adapts an S3 store to its probe. The probe is read from the cache, or made before a command
//! writes. Explicit settings in the configuration take precedence.

use crate::cli::failure::{Failure, usage};
use crate::config::Config;
use crate::run::error_chain;
pub(crate) use crate::run::identity::Purpose;
use crate::run::probe::probe_store;
use crate::state::probes::{ProbeCache, ProbeNote};
use crate::store::{Doubt, ObjectStore, S3Store};
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Returns the store, set up by its probe. Before a command writes, a store without a fresh probe
/// is probed.
pub(crate) async fn follow(
    config: &Config,
    store: S3Store,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let cache = ProbeCache::new(&config.state_dir, store.url(), store.endpoint());
    let known = cache.load().unwrap_or_else(|error| {
        tracing::warn!(
            "what the store can do is not known: {}",
            error_chain(&error)
        );
        None
    });
    let now = Timestamp::now();
    let note = match known {
        Some(note) if purpose != Purpose::Write || note.is_fresh(now) => Some(note),
        None if purpose != Purpose::Write => None,
        old => try_store(&store, &cache, now).await.or(old),
    };
    let Some(note) = note else {
        return Ok(Arc::new(store));
    };
    if purpose == Purpose::Write {
        check_parts(config, &note)?;
    }
    let store = match config.s3.checksum {
        None => store.with_checksum(note.probe.checksum.unwrap_or_default()),
        Some(given) => {
            if purpose == Purpose::Write
                && !note.probe.kept.is_empty()
                && !note.probe.kept.contains(&given)
            {
                tracing::warn!(
                    "checksum = \"{given}\" is configured, and {} does not keep it; it keeps {}",
                    store.url(),
                    note.probe
                        .kept
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(", ")
                );
            }
            store
        }
    };
    Ok(Arc::new(
        store.following(note.probe, forget_when_wrong(cache)),
    ))
}

/// Probes the store. A failed probe does not stop a backup: the backup itself reports what is
/// wrong.
async fn try_store(store: &S3Store, cache: &ProbeCache, now: Timestamp) -> Option<ProbeNote> {
    let nonce = match getrandom::u64() {
        Ok(nonce) => nonce,
        Err(error) => {
            tracing::warn!("the store is not tried: {error}");
            return None;
        }
    };
    tracing::info!("trying what {} can do (once in 30 days)", store.url());
    match probe_store(store, cache, nonce, now).await {
        Ok(note) => note,
        Err(error) => {
            let error = error_chain(&error);
            tracing::warn!(
                error,
                "what the store can do could not be tried; going on as if it were Amazon's"
            );
            None
        }
    }
}

/// Returns a callback that removes the probe of a store that contradicts it, so that the next
/// command that writes probes the store again.
fn forget_when_wrong(cache: ProbeCache) -> Doubt {
    let said = AtomicBool::new(false);
    Doubt::new(move |what| {
        if said.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            "the store does not do what it was found to do: {what}; the next run tries it again"
        );
        if let Err(error) = cache.forget() {
            tracing::warn!("{}", error_chain(&error));
        }
    })
}

fn check_parts(config: &Config, note: &ProbeNote) -> Result<(), Failure> {
    let parts = config.parts_per_chunk();
    match note.probe.parts_max {
        Some(max) if parts > u64::from(max) => Err(usage(
            &format!(
                "a chunk has up to {parts} parts, and {} takes {max}",
                note.store
            ),
            "raise part_size or lower split_size",
        )),
        _ => Ok(()),
    }
}
