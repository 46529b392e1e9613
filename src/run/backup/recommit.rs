//! Finishes interrupted commits: a journal in the state `committing` has the exact bytes of receipt
//! and manifest, and they are put again, even if the newest snapshot is another one now.

use super::abandon::abandon_id;
use super::{BackupEnv, CommittedBackup, StoreRole};
use crate::catalog::read_chunks;
use crate::catalog::stores::StoresView;
use crate::manifest::{Manifest, ManifestError, parse_manifest};
use crate::run::commit::target::{CommitError, CommitTarget};
use crate::run::commit::tidy::tidy;
use crate::run::pool::pins::unpin_if_writable;
use crate::run::pool::select::Selected;
use crate::run::{RunError, error_chain};
use crate::state::journal::log::{CommitBytes, JournalRecord};
use crate::state::journal::{JournaledAttempt, forget_attempt, read_attempts};
use crate::store::Evidence;
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

/// Returns whether the journals have interrupted commits.
///
/// # Errors
/// [`RunError::State`] when the journals cannot be read.
pub(super) fn has_interrupted_commits(
    env: &BackupEnv,
    selected: &Selected,
) -> Result<bool, RunError> {
    Ok(read_committing(env, selected)?
        .iter()
        .any(|attempt| commit_bytes(attempt).is_some()))
}

fn read_committing(
    env: &BackupEnv,
    selected: &Selected,
) -> Result<Vec<JournaledAttempt>, RunError> {
    let (state_dir, known) = (&env.settings.state_dir, env.store.known());
    let mut attempts = read_attempts(state_dir, &known, &selected.stored)?;
    attempts.retain(|attempt| attempt.committing && !attempt.is_abandoned());
    Ok(attempts)
}

/// Finishes the commits that interrupted runs left in this store, and adds them to `committed`.
///
/// # Errors
/// [`RunError`] when the store failed: the next run tries again.
pub(super) async fn end_commits(
    env: &BackupEnv,
    selected: &Selected,
    stores: &StoresView,
    committed: &mut Vec<CommittedBackup>,
) -> Result<(), RunError> {
    for attempt in &read_committing(env, selected)? {
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
                unpin_if_writable(&*env.zfs, &selected.dataset.name, |id| *id == attempt.id)?;
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
    Ok(())
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
    let target = CommitTarget {
        store,
        dataset: stored,
        id,
        signing: &env.keys.signing,
        trusted,
        state_dir: &env.settings.state_dir,
    };
    let manifest = match recommit(&target, stores, &manifest, bytes).await {
        Ok(manifest) => manifest,
        Err(error) => return end_of(error, stores.unseen.as_deref()),
    };
    if env.role == StoreRole::Remote {
        target.remember(bytes);
    }
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
    })))
}

/// Returns the end of a commit that failed, or the error after which a later run tries again.
fn end_of(error: CommitError, unseen: Option<&str>) -> Result<RecommitEnd, RunError> {
    let why = match (error, unseen) {
        (CommitError::BaseGone { base, .. }, Some(unseen)) => {
            let why = format!("{base} is not usable: {unseen}");
            return Ok(RecommitEnd::Waits(why));
        }
        (CommitError::BaseGone { base, .. }, None) => {
            format!("its base {base} is no longer stored")
        }
        (CommitError::Taken(error), _) => error_chain(&error),
        (CommitError::Incomplete(error), _) => error_chain(&error),
        (CommitError::Pruned(_), _) => "a prune record names it".to_owned(),
        (CommitError::Failed(error), _) => return Err(error),
    };
    Ok(RecommitEnd::Impossible(why))
}

fn unusable(error: &ManifestError) -> String {
    format!(
        "the manifest in its journal is not to be used: {}",
        error_chain(error)
    )
}

/// Checks that nothing has happened since that contradicts the manifest (a lost chunk, a lost base,
/// a prune), and commits.
async fn recommit(
    target: &CommitTarget<'_>,
    stores: &StoresView,
    manifest: &Manifest,
    bytes: &CommitBytes,
) -> Result<Manifest, CommitError> {
    let chunks = match read_chunks(target.store, manifest).await {
        Err(error) if error.is_damage() => return Err(CommitError::Incomplete(error)),
        read => read?,
    };
    target.check_listing(&chunks).await?;
    if let Some(base) = &manifest.base {
        target
            .check_base(&base.backup_id, base.manifest_blake3, &stores.remote)
            .await?;
    }
    // The journal is committing already.
    target
        .commit(bytes, &BTreeMap::new(), &[target.id], || Ok(()))
        .await
}
