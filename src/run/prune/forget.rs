//! [`forget`]: deletes one backup, or the leftovers of one attempt, that a person named.

use super::PruneEnv;
use super::at_work::OwnRecords;
use super::delete::delete_backup;
use super::record::put_record;
use super::view::{newest_records, read_leftovers};
use crate::catalog::usable::UsableCatalog;
use crate::catalog::{StoredAttempt, StoredBackup, read_catalog, read_prune_records};
use crate::manifest::{PruneRecord, PrunedEntry};
use crate::model::{BackupId, DatasetName, Digest};
use crate::plan::BackupFacts;
use crate::plan::prune::{Leftover, SecondaryBackups, StartedFact, follower, waiting_follower};
use crate::plan::retention::in_order;
use crate::run::RunError;
use crate::state::dataset_lock::lock_dataset;
use crate::state::journal::forget_attempt;
use crate::store::{ObjectKey, StoreRead};
use serde::{Serialize, Serializer};

/// The backup or leftover that is deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forgotten {
    /// The id.
    pub id: BackupId,
    /// The number of its objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The hash of its manifest; `None` when the id is no backup.
    #[serde(rename = "backup", serialize_with = "is_some")]
    pub manifest_blake3: Option<Digest>,
    /// Warnings to show before the deletion, for example that this is the newest usable backup, or
    /// that its manifest exists.
    pub warnings: Vec<String>,
}

fn is_some<S: Serializer>(manifest: &Option<Digest>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(manifest.is_some())
}

/// Returns what forgetting this id would delete. Changes nothing in the store. A remote comes with
/// its intermediate directory: a backup that waits there may build on the backup.
///
/// # Errors
/// [`RunError::Refused`] when the id does not exist, a backup or an attempt may depend on it, or
/// another host may be pruning; [`RunError::Store`].
pub async fn plan_forget(
    env: &PruneEnv,
    dataset: &DatasetName,
    id: &BackupId,
    intermediate: Option<&dyn StoreRead>,
) -> Result<Forgotten, RunError> {
    let store = &*env.store;
    let catalog = read_catalog(store, dataset, &env.trusted).await?;
    let records = read_prune_records(store, dataset, &env.trusted, None).await?;
    let own = OwnRecords::read(env, dataset)?;
    own.note_future(env, &records)?;
    if let Some(other) = own.other_prune(env, &records, &catalog) {
        // Backups that the other prune has yet to delete must not count as kept.
        return Err(RunError::refused(
            format!("{other}; nothing was deleted"),
            other.hint(),
        ));
    }
    let leftovers = read_leftovers(store, &catalog, &env.trusted).await?;
    let seen = UsableCatalog::check(store, catalog).await?;
    // Bases are resolved as in a prune: if a twin replaces the base that a manifest names, the twin
    // is the base.
    let facts = seen.facts(None);
    if let Some(other) = follower(&facts, &leftovers, id) {
        return Err(RunError::refused(
            format!("{other} builds on {id}; nothing was deleted"),
            forget_first(other),
        ));
    }
    if let Some(intermediate) = intermediate {
        check_waiting(env, intermediate, (dataset, id), &facts, &records).await?;
    }
    let backup = seen.catalog.backup(id);
    if backup.is_some() {
        refuse_unknown_bases(&leftovers, id)?;
    }
    let mut attempts = seen.catalog.attempts.iter();
    if let Some(attempt) = attempts.find(|attempt| attempt.id == *id) {
        return Ok(forgotten_attempt(attempt));
    }
    match backup {
        Some(backup) => Ok(forgotten_backup(backup, dataset, &facts)),
        None => Err(RunError::refused(
            format!("{} has nothing of {id} under {dataset}", store.url()),
            "zfs-backup show --include-remote lists what there is",
        )),
    }
}

/// Refuses to forget a backup while the base of another attempt is unknown: it may be the backup.
fn refuse_unknown_bases(leftovers: &[Leftover], id: &BackupId) -> Result<(), RunError> {
    for leftover in leftovers.iter().filter(|leftover| leftover.id != *id) {
        if let StartedFact::Unreadable(unreadable) = &leftover.started {
            let what = format!(
                "the base of {} is unknown: {}",
                leftover.id, unreadable.reason
            );
            return Err(RunError::refused(what, forget_first(&leftover.id)));
        }
    }
    Ok(())
}

/// Describes the leftovers of an attempt, with a warning when it may be a backup.
fn forgotten_attempt(attempt: &StoredAttempt) -> Forgotten {
    let mut warnings = Vec::new();
    if attempt.untrusted.is_some() {
        warnings
            .push("its manifest is invalid or untrusted; an older version may be valid".to_owned());
    } else if attempt.was_committed {
        warnings.push(
            "the signature of its manifest exists: it was a backup, or nearly one".to_owned(),
        );
    }
    Forgotten {
        id: attempt.id.clone(),
        objects: attempt.objects,
        bytes: attempt.bytes,
        manifest_blake3: None,
        warnings,
    }
}

/// Describes a backup, with a warning when it is the newest that can be restored.
fn forgotten_backup(
    backup: &StoredBackup,
    dataset: &DatasetName,
    facts: &[BackupFacts],
) -> Forgotten {
    let id = &backup.manifest.id;
    let newest_usable = in_order(facts)
        .into_iter()
        .rev()
        .find(|other| other.is_usable());
    let mut warnings = Vec::new();
    if newest_usable.is_some_and(|newest| newest.id == *id) {
        let left = facts.iter().filter(|other| other.is_usable()).count() - 1;
        warnings.push(format!(
            "THIS IS THE NEWEST BACKUP OF {dataset} THAT CAN BE RESTORED; {left} older ones would be left"
        ));
    }
    Forgotten {
        id: id.clone(),
        objects: backup.objects.len(),
        bytes: backup.stored_bytes(),
        manifest_blake3: Some(backup.manifest_blake3),
        warnings,
    }
}

/// Refuses to forget a backup that a backup or an attempt in the intermediate directory needs.
async fn check_waiting(
    env: &PruneEnv,
    intermediate: &dyn StoreRead,
    (dataset, id): (&DatasetName, &BackupId),
    remote: &[BackupFacts],
    records: &[(ObjectKey, PruneRecord)],
) -> Result<(), RunError> {
    let catalog = read_catalog(intermediate, dataset, &env.trusted).await?;
    let leftovers = read_leftovers(intermediate, &catalog, &env.trusted).await?;
    let facts = UsableCatalog::check(intermediate, catalog)
        .await?
        .own_facts();
    let waiting = SecondaryBackups {
        facts: &facts,
        leftovers: &leftovers,
    };
    let Some(other) = waiting_follower(waiting, remote, &newest_records(records), id) else {
        return Ok(());
    };
    let what = format!(
        "{other} in {} builds on {id}; nothing was deleted",
        intermediate.url()
    );
    let id = other;
    let hint = format!("zfs-backup forget --intermediate {id} first");
    Err(RunError::refused(what, hint))
}

fn forget_first(id: &BackupId) -> String {
    format!("zfs-backup forget {id} first")
}

/// Puts a signed record, deletes the objects of this id, and removes the id from this host's
/// journal.
///
/// # Errors
/// As for [`plan_forget`]; [`RunError::State`].
pub async fn forget(
    env: &PruneEnv,
    dataset: &DatasetName,
    id: &BackupId,
    intermediate: Option<&dyn StoreRead>,
) -> Result<Forgotten, RunError> {
    let _lock = lock_dataset(&env.state_dir, &env.store.known(), dataset)?;
    let found = plan_forget(env, dataset, id, intermediate).await?;
    let entry = PrunedEntry {
        id: id.clone(),
        manifest_blake3: found.manifest_blake3,
    };
    let record = put_record(env, dataset, vec![entry]).await?;
    // The second reading finds an upload that chose this backup as its base before the record was
    // put.
    if let Err(error) = plan_forget(env, dataset, id, intermediate).await {
        record.withdraw(env, dataset).await?;
        return Err(error);
    }
    delete_backup(env, dataset, id, false).await?;
    forget_attempt(&env.state_dir, &env.store.known(), dataset, id)?;
    Ok(found)
}
