//! Abandons uploads that no run resumes: releases their holds and bookmarks in the pool, aborts
//! their multipart uploads in the store, and records in the journal that a prune may delete their
//! objects.

use super::BackupEnv;
use super::unfinished::{ResumableUpload, Unfinished};
use crate::catalog::stores::StoresView;
use crate::manifest::Origin;
use crate::model::{BackupId, DatasetName};
use crate::plan::resume::ResumeVerdict;
use crate::run::commit::tidy::tidy;
use crate::run::pool::pins::unpin_if_writable;
use crate::run::pool::select::Selected;
use crate::run::{RunError, error_chain};
use crate::state::journal::log::JournalRecord;
use crate::state::journal::{AttemptJournal, forget_attempt, read_attempts};
use crate::store::key::backup_prefix;
use crate::store::{StoreErrorKind, UnfinishedUpload};
use std::collections::BTreeSet;

/// Returns the uploads to resume: incrementals before fulls, then the upload with the most chunks
/// first. The others wait, are abandoned, or lose their journal.
///
/// # Errors
/// [`RunError`] when a journal cannot be written or removed, or the pool not released.
pub(super) async fn keep_resumable(
    env: &BackupEnv,
    selected: &Selected,
    judged: Vec<(Unfinished, ResumeVerdict)>,
) -> Result<Vec<ResumableUpload>, RunError> {
    let mut resumable = Vec::new();
    for (upload, verdict) in judged {
        let id = upload.id();
        match verdict {
            ResumeVerdict::Resume { snapshot, base } => resumable.push(ResumableUpload {
                upload,
                snapshot: *snapshot,
                base,
            }),
            ResumeVerdict::Wait { why } => {
                tracing::warn!(%id, "an unfinished upload waits: {why}")
            }
            ResumeVerdict::Over { why } => {
                tracing::warn!(%id, "the journal of an upload is forgotten: {why}");
                // Without the journal no run would release the pins.
                if unpin_if_writable(&*env.zfs, &selected.dataset.name, |over| over == id)? {
                    let (state_dir, known) = (&env.settings.state_dir, env.store.known());
                    forget_attempt(state_dir, &known, &selected.stored, id)?;
                }
            }
            ResumeVerdict::Abandon { why } => abandon(env, selected, &upload, &why).await?,
        }
    }
    resumable.sort_by_key(|resumable| resumable.upload.order());
    Ok(resumable)
}

/// Abandons an unfinished upload: aborts its multipart uploads, releases what it keeps in the pool,
/// and marks it in the journal. The stored objects stay until a prune, which the journal allows to
/// delete them.
///
/// # Errors
/// [`RunError`] when the journal cannot be written or the pool not released: the next run tries
/// again.
pub(super) async fn abandon(
    env: &BackupEnv,
    selected: &Selected,
    upload: &Unfinished,
    why: &str,
) -> Result<(), RunError> {
    let id = upload.id();
    tracing::warn!(%id, "abandoning an unfinished upload and beginning a new one: {why}");
    abort_uploads(env, &selected.stored, upload).await;
    if upload.journal.is_none() {
        match is_provably_ours(env, selected, upload)? {
            true => note_abandoned(env, &selected.stored, upload, why)?,
            false => tracing::warn!("`zfs-backup forget {id}` deletes what it stored"),
        }
    }
    abandon_id(env, selected, id, why)
}

/// Returns whether the upload is of exactly this dataset in this pool.
fn is_provably_ours(
    env: &BackupEnv,
    selected: &Selected,
    upload: &Unfinished,
) -> Result<bool, RunError> {
    let pool_guid = env.zfs.pool_guid(selected.dataset.name.pool())?;
    Ok(upload.started.origin
        == Origin {
            dataset_guid: selected.dataset.guid,
            pool_guid,
        })
}

/// Writes a journal that marks an attempt as abandoned, for an attempt that was found only in the
/// store, so that a prune can delete its objects. The proof: the first object is signed, the
/// attempt is of this dataset in this pool, the pool holds its snapshot, and the store has no
/// manifest of it in any version. When this key may not list versions, only the visible object is
/// checked; a prune asks for the versions again, and refuses when it may not list them either. For
/// any other attempt this host cannot prove that it is over.
fn note_abandoned(
    env: &BackupEnv,
    stored: &DatasetName,
    upload: &Unfinished,
    why: &str,
) -> Result<(), RunError> {
    let zfs_version = env.zfs.module_version()?;
    let plan = JournalRecord::Plan {
        started: upload.started_bytes.clone(),
        keyring: upload.keyring,
        zfs_version,
    };
    let (state_dir, known) = (&env.settings.state_dir, env.store.known());
    let (_, mut log) = AttemptJournal::begin_logged(state_dir, &known, stored, upload.id(), &plan)?;
    log.append(&JournalRecord::Abandoned {
        why: why.to_owned(),
    })?;
    Ok(())
}

/// Does the same as [`abandon`] for an attempt whose multipart uploads were aborted already.
pub(super) fn abandon_id(
    env: &BackupEnv,
    selected: &Selected,
    id: &BackupId,
    why: &str,
) -> Result<(), RunError> {
    let attempts = read_attempts(
        &env.settings.state_dir,
        &env.store.known(),
        &selected.stored,
    )?;
    if let Some(attempt) = attempts.iter().find(|attempt| attempt.id == *id) {
        attempt.abandon(why)?;
    }
    unpin_if_writable(&*env.zfs, &selected.dataset.name, |over| over == id)?;
    Ok(())
}

/// Releases what interrupted runs left in the pool for attempts that are over: committed, or
/// abandoned by the journal. For a committed backup, also removes the journal and the objects that
/// only the upload needed: its run may have ended before it removed them.
///
/// # Errors
/// [`RunError`] when the journals cannot be read, or something cannot be released or removed.
pub(super) async fn settle(
    env: &BackupEnv,
    selected: &Selected,
    stores: &StoresView,
) -> Result<(), RunError> {
    let state_dir = &env.settings.state_dir;
    let attempts = read_attempts(state_dir, &env.store.known(), &selected.stored)?;
    let is_committed = |id: &BackupId| stores.target.catalog.backup(id).is_some();
    for attempt in &attempts {
        let Some(backup) = stores.target.catalog.backup(&attempt.id) else {
            continue;
        };
        tidy(&*env.store, &backup.manifest).await;
        forget_attempt(state_dir, &env.store.known(), &selected.stored, &attempt.id)?;
    }
    let given_up: BTreeSet<&BackupId> = attempts
        .iter()
        .filter(|attempt| attempt.is_abandoned())
        .map(|attempt| &attempt.id)
        .collect();
    unpin_if_writable(&*env.zfs, &selected.dataset.name, |id| {
        given_up.contains(id) || is_committed(id)
    })?;
    Ok(())
}

/// Aborts the multipart uploads of an attempt's chunks, both those that the journal names and those
/// that the store lists. A multipart upload that cannot be aborted stays, and costs storage, until
/// the store or a prune removes it.
pub(super) async fn abort_uploads(env: &BackupEnv, stored: &DatasetName, upload: &Unfinished) {
    let prefix = backup_prefix(stored, upload.id());
    let mut uploads: Vec<UnfinishedUpload> = match env.store.unfinished(&prefix).await {
        Ok(uploads) => uploads,
        Err(error) => {
            if error.kind != StoreErrorKind::Unsupported {
                tracing::debug!(
                    error = error_chain(&error),
                    "unfinished uploads cannot be listed"
                );
            }
            Vec::new()
        }
    };
    for (name, upload_id) in upload.unconfirmed() {
        let Some(upload_id) = upload_id else { continue };
        if !uploads.iter().any(|listed| listed.upload_id == *upload_id) {
            let (key, upload_id) = (format!("{prefix}{name}"), upload_id.clone());
            uploads.push(UnfinishedUpload {
                key,
                upload_id,
                started_at: None,
            });
        }
    }
    for unfinished in uploads {
        if let Err(error) = env.store.abort_unfinished(&unfinished).await {
            tracing::warn!(
                key = unfinished.key,
                error = error_chain(&error),
                "an interrupted upload was not removed"
            );
        }
    }
}
