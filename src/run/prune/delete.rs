//! Deletes one backup or leftover, in an order in which a crash cannot leave a backup with holes.

use super::{PruneEnv, PruneTask, PruneView};
use crate::catalog::remembered::distrust;
use crate::model::{BackupId, DatasetName};
use crate::run::RunError;
use crate::store::key::{BackupObject, PROBE_PREFIX, ParsedKey, backup_prefix, dataset_prefix};
use crate::store::{ObjectKey, StoreErrorKind, UnfinishedUpload};
use futures_util::{StreamExt, stream};

/// Limit of concurrent deletions, for objects whose order does not matter.
const DELETES_MAX: usize = 16;

/// Deletes all objects of one id. The manifest and its signature go first, so that the id is no
/// backup from then on. The receipt, the chunks and the rest follow. `started.json` and its
/// signature go last, so that a remainder can still be identified. Objects under the id that are
/// not of this format stay. With `leftover`, the function refuses when there is a manifest.
pub(super) async fn delete_backup(
    env: &PruneEnv,
    dataset: &DatasetName,
    id: &BackupId,
    leftover: bool,
) -> Result<(), RunError> {
    let store = &*env.store;
    distrust(&env.state_dir, &store.known(), dataset)?;
    let manifest = ObjectKey::backup(dataset, id, &BackupObject::Manifest);
    if leftover {
        if store.head(&manifest).await?.is_some() {
            let what = format!("{manifest} exists now; nothing of {id} was deleted");
            return Err(RunError::refused(what, "run it again"));
        }
    } else {
        store.delete(&manifest).await?;
    }
    let mut parsed = list_objects(env, dataset, id).await?;
    if !leftover {
        // The backup stays whole as long as the store keeps the manifest.
        check_gone(env, dataset, id, &parsed, |key| {
            key.object == BackupObject::Manifest && !key.signature
        })?;
    }
    store.delete(&manifest.signature()).await?;
    parsed.retain(|key| key.object != BackupObject::Manifest);
    parsed.sort_by_key(|key| (rank(&key.object), key.signature));
    for same in
        parsed.chunk_by(|a, b| (rank(&a.object), a.signature) == (rank(&b.object), b.signature))
    {
        let keys = same.iter().map(|parsed| full_key(dataset, id, parsed));
        let mut deletions = stream::iter(keys)
            .map(|key| async move { store.delete(&key).await })
            .buffer_unordered(DELETES_MAX);
        while let Some(deleted) = deletions.next().await {
            deleted?;
        }
    }
    let left = list_objects(env, dataset, id).await?;
    check_gone(env, dataset, id, &left, |key| {
        parsed.contains(key) || (key.object == BackupObject::Manifest && key.signature)
    })
}

/// Lists the objects of an id that are of this format.
async fn list_objects(
    env: &PruneEnv,
    dataset: &DatasetName,
    id: &BackupId,
) -> Result<Vec<ParsedKey>, RunError> {
    let listed = env.store.list(&backup_prefix(dataset, id)).await?;
    Ok(listed
        .iter()
        .filter_map(|object| ObjectKey::parse(&object.key))
        .filter(|key| key.dataset == *dataset && key.id == *id)
        .collect())
}

/// Checks that none of the listed objects is one that was deleted. A store may answer that it
/// deleted an object and keep it.
fn check_gone(
    env: &PruneEnv,
    dataset: &DatasetName,
    id: &BackupId,
    listed: &[ParsedKey],
    was_deleted: impl Fn(&ParsedKey) -> bool,
) -> Result<(), RunError> {
    let Some(left) = listed.iter().find(|key| was_deleted(key)) else {
        return Ok(());
    };
    let key = full_key(dataset, id, left);
    let url = env.store.url();
    Err(RunError::refused(
        format!("{url} answered that {key} was deleted, and still lists it"),
        "`zfs-backup doctor` tests what the store can delete; then run this again",
    ))
}

fn full_key(dataset: &DatasetName, id: &BackupId, parsed: &ParsedKey) -> ObjectKey {
    let key = ObjectKey::backup(dataset, id, &parsed.object);
    if parsed.signature {
        key.signature()
    } else {
        key
    }
}

fn rank(object: &BackupObject) -> u8 {
    match object {
        BackupObject::Manifest => 0,
        BackupObject::Receipt => 1,
        BackupObject::Chunk { .. } => 2,
        BackupObject::Started => 4,
        _ => 3,
    }
}

/// Aborts unfinished uploads under ids that are proved dead, and those of a store probe that was
/// killed. Otherwise the store keeps their parts, and charges for them, for ever. An upload of
/// unknown age, or younger than `resume_days`, stays; all uploads stay while this host's clock is
/// doubtful.
pub(super) async fn remove_dead_uploads(
    env: &PruneEnv,
    task: &PruneTask,
    view: &PruneView,
) -> Result<(), RunError> {
    let dataset = &task.stored;
    let of_dead = |upload: &UnfinishedUpload| {
        ObjectKey::parse(&upload.key)
            .is_some_and(|key| key.dataset == *dataset && is_dead(view, &key.id))
    };
    let mut uploads = unfinished(env, &dataset_prefix(dataset)).await?;
    uploads.retain(of_dead);
    // No upload of a probe is needed once the probe has ended, with success or without.
    uploads.extend(unfinished(env, PROBE_PREFIX).await?);
    // Takes the earlier of this host's time and the newest date that the store gave, so that
    // neither clock can make an upload look too old.
    let Some(now) = view
        .catalog
        .newest_object_at
        .map(|store| store.min(env.now))
    else {
        return Ok(());
    };
    let is_abandoned = |upload: &UnfinishedUpload| {
        upload.started_at.is_some_and(|started| {
            now.as_second().saturating_sub(started.as_second())
                >= i64::from(env.resume_days) * 86_400
        })
    };
    uploads.retain(is_abandoned);
    if uploads.is_empty() {
        return Ok(());
    }
    let times = view.facts.iter().map(|backup| backup.snapshot.created_at);
    if let Err(doubt) = env
        .clock
        .judge(&env.store_clocks(&task.secondary).await?, times)
    {
        tracing::warn!(
            "{} unfinished uploads of {dataset} stay: {doubt}",
            uploads.len()
        );
        return Ok(());
    }
    for upload in uploads {
        env.store.abort_unfinished(&upload).await?;
    }
    Ok(())
}

async fn unfinished(env: &PruneEnv, prefix: &str) -> Result<Vec<UnfinishedUpload>, RunError> {
    match env.store.unfinished(prefix).await {
        Err(error) if error.kind == StoreErrorKind::Unsupported => Ok(Vec::new()),
        uploads => Ok(uploads?),
    }
}

fn is_dead(view: &PruneView, id: &BackupId) -> bool {
    if view.plan.doomed_ids().contains(id) {
        return true;
    }
    let proved = view.pruned.contains_key(id) || view.never_committing.contains(id);
    let stays =
        view.catalog.backup(id).is_some() || view.plan.left_alone.iter().any(|left| left.id == *id);
    proved && !stays
}
