//! Object lock of a chain: the ancestors of a backup, and the keyring that opens it, must be locked
//! as long as the backup is. Each commit extends their locks, so that a chain in use never has a
//! full whose lock has ended.
//!
//! A prune needs no knowledge of this: the lock of an ancestor lasts as long as that of its longest
//! locked descendant, and descendants are deleted before ancestors.

use super::target::CommitTarget;
use crate::manifest::ReceiptEntry;
use crate::model::BackupId;
use crate::run::RunError;
use crate::store::key::{KEYRING_PREFIX, backup_prefix};
use crate::store::{ObjectKey, StoreErrorKind, StoreRead, StoreWrite};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};

/// The most locks that are extended concurrently.
const AT_ONCE: usize = 8;
/// The most that the lock ends of one backup's own objects may differ before they are extended: an
/// upload of some hours is left alone, an upload that took days or weeks is not.
const APART_MAX: SignedDuration = SignedDuration::from_hours(24);

/// Extends the locks of the keyrings with these tags to the lock that an object put now would get.
/// A store that cannot do so is found before anything is sent.
pub(in crate::run) async fn extend_keyring(
    store: &dyn StoreWrite,
    tags: &[String],
    now: Timestamp,
) -> Result<(), RunError> {
    let Some(lock) = store.object_lock() else {
        return Ok(());
    };
    extend_all(store, keyrings(store, tags).await?, lock.until(now)).await
}

impl CommitTarget<'_> {
    /// Extends the locks of the backup's ancestors, of the keyrings with these tags and of its own
    /// earlier objects to the last lock end among `own`, the objects of the backup. An ancestor
    /// that is not in this store has no lock here.
    ///
    /// # Errors
    /// [`RunError`] when the store cannot extend locks, or fails.
    pub(in crate::run) async fn extend_locks(
        &self,
        ancestors: &[BackupId],
        keyring_tags: &[String],
        own: &[ReceiptEntry],
    ) -> Result<(), RunError> {
        if self.store.object_lock().is_none() {
            return Ok(());
        }
        let mut ends = Vec::with_capacity(own.len());
        for entry in own {
            let Some(text) = &entry.evidence.locked_until else {
                continue;
            };
            let end = text.parse::<Timestamp>().map_err(|_| RunError::Damaged {
                key: format!("{}{}", backup_prefix(self.dataset, self.id), entry.name),
                reason: format!(
                    "{} says that it is locked until {text:?}, which is no time",
                    self.store.url()
                ),
            })?;
            ends.push(end);
        }
        let (Some(first), Some(until)) = (ends.iter().min(), ends.iter().max()) else {
            return Ok(());
        };
        // The listing includes the signatures, which no receipt names.
        let own = (until.duration_since(*first) > APART_MAX).then_some(self.id);
        let mut keys = keyrings(self.store, keyring_tags).await?;
        for id in ancestors.iter().chain(own) {
            let listed = self.store.list(&backup_prefix(self.dataset, id)).await?;
            keys.extend(
                listed
                    .iter()
                    .filter_map(|object| ObjectKey::listed(&object.key)),
            );
        }
        extend_all(self.store, keys, *until).await
    }
}

async fn keyrings(store: &dyn StoreRead, tags: &[String]) -> Result<Vec<ObjectKey>, RunError> {
    let mut keys = Vec::new();
    for tag in tags {
        let listed = store.list(&format!("{KEYRING_PREFIX}{tag}/")).await?;
        keys.extend(
            listed
                .iter()
                .filter_map(|object| ObjectKey::listed(&object.key)),
        );
    }
    Ok(keys)
}

async fn extend_all(
    store: &dyn StoreWrite,
    keys: Vec<ObjectKey>,
    until: Timestamp,
) -> Result<(), RunError> {
    let extended =
        stream::iter(keys).map(|key| async move { store.extend_lock(&key, until).await });
    let extended: Result<Vec<()>, _> = extended.buffer_unordered(AT_ONCE).try_collect().await;
    let Err(error) = extended else { return Ok(()) };
    let covers = store.object_lock().is_some_and(|lock| lock.covers_chains);
    match error.kind {
        StoreErrorKind::Unsupported if covers => {
            tracing::debug!(
                store = store.url(),
                "locks cannot be extended here; the days cover every chain"
            );
            Ok(())
        }
        StoreErrorKind::Unsupported => Err(RunError::refused(
            format!(
                "{} cannot extend locks, and object_lock_days does not cover the longest chain",
                store.url()
            ),
            "set backup-lifecycle.full_every (or keep), and object_lock_days to at least as long; or remove object_lock_days",
        )),
        _ => Err(error.into()),
    }
}
