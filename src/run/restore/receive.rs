//! Receiving a chain: into a new dataset, which is there whole in the end or not at all, or onto an existing one that is
//! rolled back to what it has in common with the chain.

use super::{PropertyChoice, RestoreBackup, RestoreSet, blocking, open_stream_until, take_failure};
use crate::keyring::KeyFile;
use crate::model::{DatasetName, Digest, Guid, SnapshotName};
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::zfs::{PropertyValue, ReceiveRequest, Zfs, ZfsError};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

/// How a chain is received.
#[derive(Debug, Clone, Default)]
pub struct ReceiveOptions {
    /// Which properties the dataset gets.
    pub properties: PropertyChoice,
    /// Receive onto a dataset that exists: what it has after the newest snapshot in common is lost.
    pub rollback: bool,
}

/// What will be received, and onto what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivePlan {
    /// How many backups of the chain are there already.
    pub skipped: usize,
    /// Filesystems that are made first, with `canmount=off`, outermost first.
    pub parents: Vec<DatasetName>,
    /// The snapshot that the dataset is rolled back to; none for a new dataset.
    pub rolled_back_to: Option<SnapshotName>,
    /// The names of the snapshots that stay.
    pub kept: Vec<String>,
    /// The snapshots that are lost by that, oldest first. What was changed since the newest of them is lost too.
    pub lost: Vec<SnapshotName>,
}

/// What was received.
#[derive(Debug)]
pub struct Received {
    /// The snapshots, in order.
    pub snapshots: Vec<SnapshotName>,
    /// BLAKE3 of each one's stream.
    pub streams: Vec<Digest>,
}

/// Looks at what is there, without changing anything.
///
/// # Errors
/// [`RunError::Refused`] when the chain cannot go there; [`RunError::Zfs`].
pub fn check_target(
    zfs: &dyn Zfs,
    target: &DatasetName,
    set: &RestoreSet,
    rollback: bool,
) -> Result<ReceivePlan, RunError> {
    if zfs.dataset(target)?.is_some() {
        return check_existing(zfs, target, set, rollback);
    }
    let mut parents = Vec::new();
    let mut parent = target.parent().ok_or_else(|| {
        RunError::refused(format!("{target} is a pool's name"), "name a dataset inside an imported pool: POOL/NAME")
    })?;
    while zfs.dataset(&parent)?.is_none() {
        let above = parent.parent().ok_or_else(|| {
            RunError::refused(format!("there is no pool {parent}"), "import it, or choose another target")
        })?;
        parents.insert(0, std::mem::replace(&mut parent, above));
    }
    Ok(ReceivePlan { skipped: 0, parents, rolled_back_to: None, kept: Vec::new(), lost: Vec::new() })
}

fn check_existing(
    zfs: &dyn Zfs,
    target: &DatasetName,
    set: &RestoreSet,
    rollback: bool,
) -> Result<ReceivePlan, RunError> {
    if !rollback {
        let what = format!("{target} exists already, and restoring over a dataset would lose what it holds");
        let hint = "restore into a name that does not exist yet; --force-rollback goes on from the newest snapshot that \
                    it has in common with the chain";
        return Err(RunError::refused(what, hint));
    }
    let there = zfs.snapshots(target)?;
    let common = |backup: &RestoreBackup| there.iter().position(|s| s.guid == backup.manifest.snapshot.guid);
    let found = set.backups.iter().enumerate().rev().find_map(|(number, backup)| Some((number, common(backup)?)));
    let Some((number, at)) = found else {
        let what = format!("{target} has no snapshot of this chain, so nothing can be rolled back to");
        return Err(RunError::refused(what, "restore into a new name, look at it, and then rename the two"));
    };
    let base = there[at].name.clone();
    if number + 1 == set.backups.len() {
        let what = format!("{target} has {base} already, which is what would be restored");
        return Err(RunError::refused(what, format!("to go back to it: zfs rollback -r {base}")));
    }
    let (kept, lost) = there.split_at(at + 1);
    Ok(ReceivePlan {
        skipped: number + 1,
        parents: Vec::new(),
        rolled_back_to: Some(base),
        kept: kept.iter().map(|snapshot| snapshot.name.short().to_owned()).collect(),
        lost: lost.iter().map(|snapshot| snapshot.name.clone()).collect(),
    })
}

/// Receives a chain, unmounted, and checks that the kernel made the very snapshots.
///
/// While several backups are being received the dataset is `readonly=on`: a change between two of them, even of an
/// access time, would make the next one impossible. The last receive sets `readonly=off` and the chosen properties. Where
/// one backup is received, only those are set.
///
/// # Errors
/// [`RunError`]; then nothing half-received is left behind of a new dataset, also when a stop was asked for. One that
/// was rolled back stays at the last snapshot that was received whole, and readonly if more were to follow.
pub async fn restore_to_dataset(
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: Arc<dyn Zfs>,
    target: &DatasetName,
    options: &ReceiveOptions,
    stop: Stop,
) -> Result<Received, RunError> {
    let plan = check_target(&*zfs, target, set, options.rollback)?;
    let names = snapshot_names(target, set, &plan)?;
    let mut made = Vec::new();
    let received = async {
        for parent in &plan.parents {
            zfs.create_filesystem(parent, &[("canmount".to_owned(), PropertyValue::Number(0))].into())?;
            made.push(parent.clone());
        }
        receive_all(set, &names, &plan, keys, &zfs, options, &stop).await
    };
    match received.await {
        Ok(streams) => Ok(Received { snapshots: names[plan.skipped..].to_vec(), streams }),
        Err(error) if plan.rolled_back_to.is_some() => {
            if plan.skipped + 1 < set.backups.len() {
                tracing::warn!(
                    "{target} may have stayed readonly, as it is between two backups: zfs inherit readonly {target}"
                );
            }
            Err(error)
        }
        Err(error) => {
            let (zfs, target) = (Arc::clone(&zfs), target.clone());
            let guids = set.backups.iter().map(|backup| backup.manifest.snapshot.guid).collect();
            blocking(move || remove_received(&*zfs, &target, &guids, &made)).await?;
            Err(error)
        }
    }
}

async fn receive_all(
    set: &RestoreSet,
    names: &[SnapshotName],
    plan: &ReceivePlan,
    keys: &KeyFile,
    zfs: &Arc<dyn Zfs>,
    options: &ReceiveOptions,
    stop: &Stop,
) -> Result<Vec<Digest>, RunError> {
    let last = set.backups.len() - 1;
    let several = plan.skipped < last;
    let mut streams = Vec::new();
    for (number, (backup, snapshot)) in set.backups.iter().zip(names).enumerate().skip(plan.skipped) {
        let mut properties = BTreeMap::new();
        if number == plan.skipped && several {
            properties.insert("readonly".to_owned(), PropertyValue::Number(1));
        }
        if number == last {
            if several {
                properties.insert("readonly".to_owned(), PropertyValue::Number(0));
            }
            let recorded = backup.private.as_ref().map(|private| &private.properties);
            properties.extend(options.properties.resolve(recorded.unwrap_or(&BTreeMap::new())));
        }
        let force = options.rollback && number == plan.skipped;
        let request = ReceiveRequest { target: snapshot.clone(), force, resumable: false, origin: None, properties };
        let (reader, failure) = open_stream_until(backup, &keys.identities, stop.clone());
        let mut reader = Hashing { inner: reader, hasher: blake3::Hasher::new() };
        let receiver = Arc::clone(zfs);
        let (result, digest) = blocking(move || {
            let result = receiver.receive(&request, &mut reader);
            (result, Digest::from(reader.hasher.finalize()))
        })
        .await?;
        match (take_failure(&failure), result) {
            (Some(error), _) => return Err(error),
            (None, Err(error)) => received_but_for_properties(&**zfs, snapshot, backup, error)?,
            (None, Ok(())) => check_received(&**zfs, snapshot, backup)?,
        }
        streams.push(digest);
    }
    Ok(streams)
}

/// A property that the kernel refused is no reason to take a received dataset away again.
fn received_but_for_properties(
    zfs: &dyn Zfs,
    snapshot: &SnapshotName,
    backup: &RestoreBackup,
    error: ZfsError,
) -> Result<(), RunError> {
    if !matches!(error, ZfsError::Several { .. }) || check_received(zfs, snapshot, backup).is_err() {
        return Err(error.into());
    }
    tracing::warn!(%snapshot, error = error_chain(&error), "received, but for properties that could not be set");
    Ok(())
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..bytes]);
        Ok(bytes)
    }
}

/// Takes away what this restore made. The dataset is known to be ours by a snapshot that we received: one that
/// somebody else made under this name meanwhile has none of them, and is not touched.
fn remove_received(zfs: &dyn Zfs, target: &DatasetName, guids: &BTreeSet<Guid>, made: &[DatasetName]) {
    let remove = || -> Result<(), ZfsError> {
        if zfs.dataset(target)?.is_some() {
            let (ours, others): (Vec<_>, Vec<_>) =
                zfs.snapshots(target)?.into_iter().partition(|snapshot| guids.contains(&snapshot.guid));
            if ours.is_empty() {
                return Ok(());
            }
            zfs.destroy_snapshots(&ours.into_iter().map(|snapshot| snapshot.name).collect::<Vec<_>>())?;
            if !others.is_empty() {
                return Ok(());
            }
            zfs.destroy_dataset(target)?;
        }
        // One that has anything in it by now is not destroyed.
        made.iter().rev().try_for_each(|parent| zfs.destroy_dataset(parent))
    };
    if let Err(error) = remove() {
        tracing::warn!(error = error_chain(&error), "{target} is a part of what was to be restored; destroy it");
    }
}

/// Destroys a dataset that was received whole for a rehearsal: its snapshots and itself, if it has nothing else.
///
/// # Errors
/// [`ZfsError`] naming what stays.
pub(in crate::run) fn destroy_received(
    zfs: &dyn Zfs,
    target: &DatasetName,
    received: &[SnapshotName],
) -> Result<(), ZfsError> {
    zfs.destroy_snapshots(received)?;
    zfs.destroy_dataset(target)
}

/// The snapshots' own names; two of one name, because one was destroyed and taken anew, are told apart by their guids.
fn snapshot_names(target: &DatasetName, set: &RestoreSet, plan: &ReceivePlan) -> Result<Vec<SnapshotName>, RunError> {
    let mut taken: BTreeSet<String> = plan.kept.iter().cloned().collect();
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

fn check_received(zfs: &dyn Zfs, snapshot: &SnapshotName, backup: &RestoreBackup) -> Result<(), RunError> {
    let guid = backup.manifest.snapshot.guid;
    let there = zfs.snapshots(snapshot.dataset())?.iter().any(|other| other.name == *snapshot && other.guid == guid);
    if there {
        return Ok(());
    }
    let reason = format!("the received snapshot does not have the guid {guid}");
    Err(RunError::Damaged { key: snapshot.to_string(), reason })
}
