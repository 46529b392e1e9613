//! [`read_locks`]: the locks of what a plan deletes, so that a prune waits for their ends instead of
//! failing at them.
//!
//! The owner of a bucket can give it a default retention, which locks every object although the
//! configuration names no lock. The manifest and the receipt have no entry in the receipt, are put
//! after all other objects, and are therefore locked longest: the store is asked for their locks.

use super::PruneEnv;
use super::unreadable::unreadable;
use crate::catalog::{Catalog, StoredBackup, read_receipt};
use crate::model::{BackupId, DatasetName};
use crate::plan::prune::{Lock, PrunePlan};
use crate::run::RunError;
use crate::store::ObjectKey;
use crate::store::key::{BackupObject, backup_prefix};
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// Limit of concurrent reads of receipts, which are large.
const LOCKS_MAX: usize = 8;

/// Returns the locks that still hold of the backups and leftovers that the plan deletes.
pub(super) async fn read_locks(
    env: &PruneEnv,
    catalog: &Catalog,
    plan: &PrunePlan,
) -> Result<BTreeMap<BackupId, Lock>, RunError> {
    let doomed = plan
        .delete
        .iter()
        .filter_map(|doomed| catalog.backup(&doomed.id));
    let backups = stream::iter(doomed.collect::<Vec<_>>()).map(|backup| async move {
        let lock = lock_of_backup(env, &catalog.dataset, backup).await?;
        Ok::<_, RunError>((backup.manifest.id.clone(), lock))
    });
    let mut locks: Vec<_> = backups.buffered(LOCKS_MAX).try_collect().await?;
    for leftover in &plan.delete_leftovers {
        let lock = lock_of_leftover(env, &catalog.dataset, &leftover.id).await?;
        locks.push((leftover.id.clone(), lock));
    }
    Ok(locks
        .into_iter()
        .filter_map(|(id, lock)| Some((id, lock?)))
        .collect())
}

/// Returns the lock of a backup that ends last, as the receipt recorded the locks and as the store
/// reports those of manifest and receipt.
async fn lock_of_backup(
    env: &PruneEnv,
    dataset: &DatasetName,
    backup: &StoredBackup,
) -> Result<Option<Lock>, RunError> {
    let [manifest, receipt] = [BackupObject::Manifest, BackupObject::Receipt]
        .map(|object| ObjectKey::backup(dataset, &backup.manifest.id, &object));
    let (recorded, manifest, receipt) = tokio::join!(
        read_receipt(&*env.store, backup, &env.trusted),
        env.store.head(&manifest),
        env.store.head(&receipt),
    );
    let recorded = match recorded {
        Ok(receipt) => receipt.objects,
        Err(error) => return Ok(Some(Lock::Unknown(unreadable(error)?.reason))),
    };
    let recorded = recorded
        .into_iter()
        .filter_map(|entry| entry.evidence.locked_until);
    let asked = [manifest?, receipt?].into_iter().flatten();
    let asked = asked.filter_map(|evidence| evidence.locked_until);
    Ok(last_lock(recorded.chain(asked), env.now))
}

/// Returns the lock of the newest object of a leftover: no other was locked later.
async fn lock_of_leftover(
    env: &PruneEnv,
    dataset: &DatasetName,
    id: &BackupId,
) -> Result<Option<Lock>, RunError> {
    let listed = env.store.list(&backup_prefix(dataset, id)).await?;
    let newest = listed.iter().max_by_key(|object| object.modified_at);
    let Some(key) = newest.and_then(|newest| ObjectKey::listed(&newest.key)) else {
        return Ok(None);
    };
    let found = env.store.head(&key).await?;
    let until = found.and_then(|evidence| evidence.locked_until);
    Ok(last_lock(until.into_iter(), env.now))
}

/// Returns the lock that ends last of those that still hold; a lock with an unreadable end counts as
/// the last.
pub(super) fn last_lock(untils: impl Iterator<Item = String>, now: Timestamp) -> Option<Lock> {
    let mut last: Option<(Timestamp, String)> = None;
    for until in untils {
        let Ok(end) = until.parse::<Timestamp>() else {
            let reason = format!("the lock ends at {until:?}; expected an RFC 3339 time");
            return Some(Lock::Unknown(reason));
        };
        if end > now && last.as_ref().is_none_or(|(latest, _)| end > *latest) {
            last = Some((end, until));
        }
    }
    last.map(|(_, until)| Lock::Until(until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_that_ends_last_is_named_and_expired_locks_are_ignored() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let last = |untils: &[&str]| last_lock(untils.iter().map(ToString::to_string), now);
        let until = |text: &str| Some(Lock::Until(text.to_owned()));
        assert_eq!(last(&[]), None);
        assert_eq!(
            last(&["2026-01-01T23:59:59Z", "2026-01-02T00:00:00Z"]),
            None
        );
        assert_eq!(
            last(&["2026-01-02T00:00:01Z"]),
            until("2026-01-02T00:00:01Z")
        );
        let both = ["2026-03-01T00:00:00Z", "2026-02-01T00:00:00Z"];
        assert_eq!(last(&both), until(both[0]));
        assert!(matches!(
            last(&[both[0], "for ever"]),
            Some(Lock::Unknown(_))
        ));
    }
}
