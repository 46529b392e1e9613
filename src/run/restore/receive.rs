//! Receiving a chain into a new dataset, which is there whole in the end or not at all.

use super::{RestoreBackup, RestoreSet, blocking, open_stream_until, take_failure};
use crate::keyring::KeyFile;
use crate::model::{DatasetName, Guid, SnapshotName};
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::store::ObjectStore;
use crate::zfs::{PropertyValue, ReceiveRequest, Zfs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Receives a chain into a new dataset, unmounted, and checks that the kernel made the very snapshots.
///
/// While several backups are being received the dataset is `readonly=on`: a change between two of them, even of an
/// access time, would make the next one impossible. The last receive sets `readonly=off`. A dataset of one backup gets
/// no property.
///
/// # Errors
/// [`RunError`]; then nothing half-received is left behind, also when a stop was asked for.
pub async fn restore_to_dataset(
    store: Arc<dyn ObjectStore>,
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: Arc<dyn Zfs>,
    target: &DatasetName,
    stop: Stop,
) -> Result<Vec<SnapshotName>, RunError> {
    check_target(&*zfs, target)?;
    let names = snapshot_names(target, set)?;
    match receive_all(store, set, &names, keys, &zfs, &stop).await {
        Ok(()) => Ok(names),
        Err(error) => {
            let (zfs, target) = (Arc::clone(&zfs), target.clone());
            let guids = set.backups.iter().map(|backup| backup.manifest.snapshot.guid).collect();
            blocking(move || remove_received(&*zfs, &target, &guids)).await?;
            Err(error)
        }
    }
}

async fn receive_all(
    store: Arc<dyn ObjectStore>,
    set: &RestoreSet,
    names: &[SnapshotName],
    keys: &KeyFile,
    zfs: &Arc<dyn Zfs>,
    stop: &Stop,
) -> Result<(), RunError> {
    let last = set.backups.len() - 1;
    for (number, (backup, snapshot)) in set.backups.iter().zip(names).enumerate() {
        let (mut reader, failure) = open_stream_until(Arc::clone(&store), backup, &keys.identities, stop.clone());
        let readonly = match number {
            _ if last == 0 => None,
            0 => Some(1),
            number if number == last => Some(0),
            _ => None,
        };
        let properties: BTreeMap<_, _> =
            readonly.map(|on| ("readonly".to_owned(), PropertyValue::Number(on))).into_iter().collect();
        let request =
            ReceiveRequest { target: snapshot.clone(), force: false, resumable: false, origin: None, properties };
        let receiver = Arc::clone(zfs);
        let result = blocking(move || receiver.receive(&request, &mut reader)).await?;
        match (take_failure(&failure), result) {
            (Some(error), _) => return Err(error),
            (None, Err(error)) => return Err(error.into()),
            (None, Ok(())) => check_received(&**zfs, snapshot, backup)?,
        }
    }
    Ok(())
}

/// Takes away what this restore made. The dataset is known to be ours by a snapshot that we received: one that
/// somebody else made under this name meanwhile has none of them, and is not touched.
fn remove_received(zfs: &dyn Zfs, target: &DatasetName, guids: &BTreeSet<Guid>) {
    let remove = || -> Result<(), crate::zfs::ZfsError> {
        if zfs.dataset(target)?.is_none() {
            return Ok(());
        }
        let (ours, others): (Vec<_>, Vec<_>) =
            zfs.snapshots(target)?.into_iter().partition(|snapshot| guids.contains(&snapshot.guid));
        if ours.is_empty() {
            return Ok(());
        }
        zfs.destroy_snapshots(&ours.into_iter().map(|snapshot| snapshot.name).collect::<Vec<_>>())?;
        if others.is_empty() { zfs.destroy_dataset(target) } else { Ok(()) }
    };
    if let Err(error) = remove() {
        tracing::warn!(error = error_chain(&error), "{target} is a part of what was to be restored; destroy it");
    }
}

/// The snapshots' own names; two of one name, because one was destroyed and taken anew, are told apart by their guids.
fn snapshot_names(target: &DatasetName, set: &RestoreSet) -> Result<Vec<SnapshotName>, RunError> {
    let mut taken = BTreeSet::new();
    let mut names = Vec::new();
    for backup in &set.backups {
        let guid = backup.manifest.snapshot.guid;
        let private_name = backup.private.as_ref().and_then(|private| private.snapshot_name.rsplit_once('@'));
        let mut short = private_name.map_or_else(|| format!("restored-{guid}"), |(_, short)| short.to_owned());
        if !taken.insert(short.clone()) {
            short = format!("{short}-{guid}");
        }
        let name = target.snapshot(&short);
        names.push(name.map_err(|error| RunError::refused(error.to_string(), "choose a shorter target"))?);
    }
    Ok(names)
}

fn check_target(zfs: &dyn Zfs, target: &DatasetName) -> Result<(), RunError> {
    if zfs.dataset(target)?.is_some() {
        let what = format!("{target} exists already, and restoring over a dataset would lose what it holds");
        return Err(RunError::refused(what, "restore into a name that does not exist yet"));
    }
    let parent = target.parent().ok_or_else(|| {
        RunError::refused(format!("{target} is a pool's name"), "name a dataset inside an imported pool: POOL/NAME")
    })?;
    match zfs.dataset(&parent)? {
        Some(_) => Ok(()),
        None => Err(RunError::refused(
            format!("{parent}, the parent of {target}, does not exist"),
            "create it, or choose another target",
        )),
    }
}

fn check_received(zfs: &dyn Zfs, snapshot: &SnapshotName, backup: &RestoreBackup) -> Result<(), RunError> {
    let guid = backup.manifest.snapshot.guid;
    let there = zfs.snapshots(snapshot.dataset())?.iter().any(|other| other.name == *snapshot && other.guid == guid);
    if there {
        return Ok(());
    }
    let reason = format!("the received snapshot does not have the guid {guid}");
    Err(RunError::Damaged { key: snapshot.to_string(), reason })
}
