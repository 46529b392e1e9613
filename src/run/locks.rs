//! Object lock of a chain: what a backup follows from must be locked as long as the backup is, and so must the keyring
//! that opens it. Each commit sees to that, so that a chain in use never has a full whose lock is over.
//!
//! A prune need not know of it: the lock of an ancestor lasts as long as that of its longest locked descendant, and
//! ancestors go after descendants.

use super::RunError;
use crate::manifest::ReceiptEntry;
use crate::model::{BackupId, DatasetName};
use crate::store::key::{KEYRING_PREFIX, backup_prefix};
use crate::store::{ObjectKey, ObjectStore, StoreErrorKind};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

/// Locks that are extended at once.
const AT_ONCE: usize = 8;

/// Extends the locks of keyrings with these tags to what an object would get that is put now: a store that cannot is
/// found out before anything is sent.
pub(super) async fn extend_keyring(store: &dyn ObjectStore, tags: &[String], now: Timestamp) -> Result<(), RunError> {
    let Some(lock) = store.object_lock() else { return Ok(()) };
    extend_all(store, keyrings(store, tags).await?, lock.until(now)).await
}

/// Extends the locks of the ancestors of a backup, and of its keyrings, to its own: to the first that ends of `own`.
/// An ancestor that is not in this store has no lock here.
pub(super) async fn extend_chain(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    ancestors: &[BackupId],
    tags: &[String],
    own: &[ReceiptEntry],
) -> Result<(), RunError> {
    if store.object_lock().is_none() {
        return Ok(());
    }
    let ends = own.iter().filter_map(|entry| entry.evidence.locked_until.as_deref());
    let ends = ends.map(|text| text.parse::<Timestamp>().map_err(|_| text.to_owned()));
    let ends: Result<Vec<Timestamp>, String> = ends.collect();
    let ends = ends.map_err(|text| RunError::Damaged {
        key: store.url().to_owned(),
        reason: format!("it says that an object is locked until {text:?}, which is no time"),
    })?;
    let Some(until) = ends.into_iter().min() else { return Ok(()) };
    let mut keys = keyrings(store, tags).await?;
    for id in ancestors {
        let listed = store.list(&backup_prefix(dataset, id)).await?;
        keys.extend(listed.iter().filter_map(|object| ObjectKey::listed(&object.key)));
    }
    extend_all(store, keys, until).await
}

async fn keyrings(store: &dyn ObjectStore, tags: &[String]) -> Result<Vec<ObjectKey>, RunError> {
    let mut keys = Vec::new();
    for tag in tags {
        let listed = store.list(&format!("{KEYRING_PREFIX}{tag}/")).await?;
        keys.extend(listed.iter().filter_map(|object| ObjectKey::listed(&object.key)));
    }
    Ok(keys)
}

async fn extend_all(store: &dyn ObjectStore, keys: Vec<ObjectKey>, until: Timestamp) -> Result<(), RunError> {
    let extended = stream::iter(keys).map(|key| async move { store.extend_lock(&key, until).await });
    let extended: Result<Vec<()>, _> = extended.buffer_unordered(AT_ONCE).try_collect().await;
    let Err(error) = extended else { return Ok(()) };
    let covers = store.object_lock().is_some_and(|lock| lock.covers_chains);
    match error.kind {
        StoreErrorKind::Unsupported if covers => {
            tracing::debug!(store = store.url(), "locks cannot be extended here; the days cover every chain");
            Ok(())
        }
        StoreErrorKind::Unsupported => Err(RunError::refused(
            format!("{} cannot extend locks, and object_lock_days does not cover the longest chain", store.url()),
            "set backup-lifecycle.full_every, and object_lock_days to at least as long; or remove object_lock_days",
        )),
        _ => Err(error.into()),
    }
}
