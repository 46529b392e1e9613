//! Finishes interrupted commits: a journal in the state `committing` has the exact bytes of receipt
//! and manifest, and they are put again, even if the newest snapshot is another one now.

use super::abandon::abandon_id;
use super::planning::remember_commit;
use super::{BackupEnv, CommittedBackup};
use crate::catalog::read_back::read_back;
use crate::catalog::stores::StoresView;
use crate::catalog::{StoredBackup, find_gaps, read_chunks, read_pruned};
use crate::manifest::{Manifest, ManifestError, parse_manifest};
use crate::model::{BackupId, DatasetName, Digest};
use crate::run::commit::put::put_again;
use crate::run::commit::tidy::tidy;
use crate::run::pool::pins::unpin;
use crate::run::pool::select::Selected;
use crate::run::{RunError, error_chain};
use crate::state::journal::log::{CommitBytes, JournalRecord};
use crate::state::journal::{JournaledAttempt, forget_attempt, read_attempts};
use crate::store::key::{BackupObject, backup_prefix};
use crate::store::{Evidence, ObjectKey, StoreErrorKind};
use std::collections::BTreeMap;

/// The result of finishing an interrupted commit.
enum RecommitEnd {
    /// The backup is committed.
    Committed(Box<CommittedBackup>),
    /// The commit can never succeed, for this reason.
    Impossible(String),
    /// The base was not found, and not all backups could be read: a later run tries again.
    Waits(String),
}

/// Finishes the commits that interrupted runs left in this store.
///
/// # Errors
/// [`RunError`] when the store failed: the next run tries again.
pub(super) async fn end_commits(
    env: &BackupEnv,
    selected: &Selected,
    stores: &StoresView,
) -> Result<Vec<CommittedBackup>, RunError> {
    let attempts = read_attempts(
        &env.settings.state_dir,
        &env.store.known(),
        &selected.stored,
    )?;
    let mut committed = Vec::new();
    for attempt in attempts
        .iter()
        .filter(|attempt| attempt.committing && !attempt.is_abandoned())
    {
        // The journal of a copy from another store has no commit bytes: the next copy resumes it.
        let Some(bytes) = commit_bytes(attempt) else {
            continue;
        };
        match end_commit(env, selected, stores, attempt, bytes).await? {
            RecommitEnd::Committed(backup) => {
                tidy(&*env.store, &backup.manifest).await;
                forget_attempt(
                    &env.settings.state_dir,
                    &env.store.known(),
                    &selected.stored,
                    &attempt.id,
                )?;
                unpin(&*env.zfs, &selected.dataset.name, |id| *id == attempt.id)?;
                committed.push(*backup);
            }
            RecommitEnd::Impossible(why) => {
                tracing::warn!(id = %attempt.id, "an interrupted commit cannot be ended: {why}");
                abandon_id(env, selected, &attempt.id, &why)?;
            }
            RecommitEnd::Waits(why) => {
                tracing::warn!(id = %attempt.id, "an interrupted commit waits: {why}")
            }
        }
    }
    Ok(committed)
}

fn commit_bytes(attempt: &JournaledAttempt) -> Option<&CommitBytes> {
    attempt
        .records()
        .iter()
        .rev()
        .find_map(|record| match record {
            JournalRecord::Commit(bytes) => Some(&**bytes),
            _ => None,
        })
}

async fn end_commit(
    env: &BackupEnv,
    selected: &Selected,
    stores: &StoresView,
    attempt: &JournaledAttempt,
    bytes: &CommitBytes,
) -> Result<RecommitEnd, RunError> {
    let (store, stored, id) = (&*env.store, &selected.stored, &attempt.id);
    let trusted = &env.keys.trusted;
    let parsed = parse_manifest(
        trusted,
        stored,
        id,
        &bytes.manifest,
        &bytes.manifest_signature,
    );
    let manifest = match parsed {
        Ok(manifest) => manifest,
        Err(error) => return Ok(RecommitEnd::Impossible(unusable(&error))),
    };
    if let Some(ended) = check(env, stores, &manifest).await? {
        return Ok(ended);
    }
    match put_all(env, stored, id, bytes).await {
        Err(RunError::Store(error)) if error.kind == StoreErrorKind::AlreadyExists => {
            return Ok(RecommitEnd::Impossible(error_chain(&error)));
        }
        result => result?,
    }
    let manifest = read_back(store, stored, id, trusted, Digest::of(&bytes.manifest)).await?;
    remember_commit(env, stored, id, bytes);
    let chunks = manifest
        .chunk_lists
        .iter()
        .map(|list| list.chunks as usize)
        .sum();
    let confirmed = || {
        attempt.records().iter().filter_map(|record| match record {
            JournalRecord::Confirmed(chunk) => Some(&**chunk),
            _ => None,
        })
    };
    let evidence: Option<Evidence> = confirmed()
        .map(|chunk| &chunk.evidence)
        .max_by_key(|evidence| evidence.tier)
        .cloned();
    let sizes: BTreeMap<u32, u64> = confirmed()
        .map(|chunk| (chunk.entry.index, chunk.entry.sealed_bytes))
        .collect();
    tracing::info!(%id, "an interrupted commit was ended");
    let stored_bytes = sizes.values().sum();
    Ok(RecommitEnd::Committed(Box::new(CommittedBackup {
        manifest,
        stored_bytes,
        chunks,
        evidence,
        before: Vec::new(),
    })))
}

fn unusable(error: &ManifestError) -> String {
    format!(
        "the manifest in its journal is not to be used: {}",
        error_chain(error)
    )
}

/// Checks that nothing has happened since that contradicts the manifest: a prune, a lost chunk, a
/// lost base.
async fn check(
    env: &BackupEnv,
    stores: &StoresView,
    manifest: &Manifest,
) -> Result<Option<RecommitEnd>, RunError> {
    let (store, Manifest { dataset, id, .. }) = (&*env.store, manifest);
    let impossible = |why: String| Ok(Some(RecommitEnd::Impossible(why)));
    if read_pruned(store, dataset, &env.keys.trusted)
        .await?
        .contains(id)
    {
        return impossible("a prune record names it".to_owned());
    }
    let prefix = backup_prefix(dataset, id);
    let listed = store.list(&prefix).await?;
    let objects = listed
        .into_iter()
        .map(|object| (object.key[prefix.len()..].to_owned(), object.bytes))
        .collect();
    let chunks = match read_chunks(store, manifest).await {
        Ok(chunks) => chunks,
        Err(error) if error.is_damage() => return impossible(error_chain(&error)),
        Err(error) => return Err(error.into()),
    };
    let listed = StoredBackup {
        manifest: manifest.clone(),
        manifest_blake3: Digest::of(b""),
        objects,
    };
    if let Some(gap) = find_gaps(&listed, &chunks).next() {
        return impossible(error_chain(&gap));
    }
    let Some(base) = &manifest.base else {
        return Ok(None);
    };
    match (
        stores.stored(&base.backup_id, base.manifest_blake3),
        &stores.unseen,
    ) {
        (Some(_), _) => Ok(None),
        (None, Some(unseen)) => Ok(Some(RecommitEnd::Waits(format!(
            "{} is not usable: {unseen}",
            base.backup_id
        )))),
        (None, None) => impossible(format!(
            "{}, which it follows from, is no longer stored",
            base.backup_id
        )),
    }
}

async fn put_all(
    env: &BackupEnv,
    stored: &DatasetName,
    id: &BackupId,
    bytes: &CommitBytes,
) -> Result<(), RunError> {
    let CommitBytes {
        receipt,
        receipt_signature,
        manifest,
        manifest_signature,
    } = bytes.clone();
    let pairs = [
        (BackupObject::Receipt, receipt, receipt_signature),
        (BackupObject::Manifest, manifest, manifest_signature),
    ];
    for (object, bytes, signature) in pairs {
        let key = ObjectKey::backup(stored, id, &object);
        put_again(&*env.store, &key.signature(), signature.into()).await?;
        put_again(&*env.store, &key, bytes.into()).await?;
    }
    Ok(())
}
