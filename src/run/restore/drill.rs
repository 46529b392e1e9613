//! A restore drill: restores a chain into a scratch dataset, checks the result and destroys the
//! dataset again.
//!
//! The kernel checks every record while it receives, and the received snapshots must have the guids
//! of the manifests. If the source still has a snapshot and its base, the drill also hashes the
//! stream that the pool sends now and compares it with the restored stream: both must have the same
//! bytes.

use crate::keyring::KeyFile;
use crate::model::{DatasetName, Digest, Guid};
use crate::plan::space::Fit;
use crate::run::blocking::blocking;
use crate::run::restore::{
    ArrivingDataset, PropertyChoice, ReceiveOptions, ReceivePlan, Received, RestoreBackup,
    RestoreSet, ResumeChoice, SCRATCH_PROPERTY, Scratch, check_allowed, destroy_left_scratch,
    destroy_scratch, judge_fit, lock_target, restore_to_dataset,
};
use crate::run::runner::Runner;
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::stream::record::feature;
use crate::zfs::{
    Dataset, SendBase, SendFlags, SendRequest, Zfs, ZfsError, ZfsHost, ZfsRead, ZfsSend,
    is_older_version,
};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The prefix of the names of scratch datasets.
pub const SCRATCH_PREFIX: &str = "zfs-backup-drill-";
/// The release from which on ZFS sends the same bytes behind an embedded block each time
/// (openzfs/zfs#13778).
pub const EMBEDDED_PADDING_FIXED: [u32; 3] = [2, 1, 8];
/// Bytes of one read from a send stream.
const READ_BYTES: usize = 1 << 20;

/// The result of comparing one restored stream of a chain with the stream that the pool sends now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// Both streams have the same bytes.
    Same,
    /// The streams could not be compared, with the reason.
    Not(String),
}

/// The result of a successful drill.
#[derive(Debug)]
pub struct DrillReport {
    /// A comparison for each backup of the chain.
    pub compared: Vec<Comparison>,
    /// Why the scratch dataset could not be destroyed; `None` when it was destroyed.
    pub left: Option<RunError>,
}

/// A scratch dataset that an earlier drill left, with the result of the clean-up.
#[derive(Debug)]
pub enum AbandonedScratch {
    /// The drill that made it had ended, and the dataset was destroyed.
    Destroyed(DatasetName),
    /// The dataset stays; the error has the reason and the remedy.
    Stays(DatasetName, RunError),
}

/// Destroys the scratch datasets below `parent` whose drills have ended. Such a dataset has the
/// name and the mark of a scratch dataset, is not locked in `locks`, and contains only what the
/// drill received. All others are only reported.
///
/// # Errors
/// [`RunError::Zfs`] when the datasets cannot be listed.
pub fn clean_up(
    zfs: &dyn Zfs,
    parent: &DatasetName,
    locks: Option<&Path>,
) -> Result<Vec<AbandonedScratch>, RunError> {
    find_leftovers(zfs, parent)?
        .into_iter()
        .map(|dataset| Ok(clean_up_one(zfs, dataset, locks)))
        .collect()
}

/// Returns the scratch datasets of drills below `parent`: all that have the mark or the name of
/// one.
///
/// # Errors
/// [`RunError::Zfs`] when the datasets cannot be listed.
pub fn find_leftovers(zfs: &dyn ZfsRead, parent: &DatasetName) -> Result<Vec<Dataset>, RunError> {
    let is_scratch =
        |dataset: &Dataset| Scratch::of(dataset).is_some() || has_scratch_name(dataset);
    Ok(zfs
        .children(parent)?
        .into_iter()
        .filter(is_scratch)
        .collect())
}

fn has_scratch_name(dataset: &Dataset) -> bool {
    dataset
        .name
        .as_str()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .starts_with(SCRATCH_PREFIX)
}

fn clean_up_one(zfs: &dyn Zfs, dataset: Dataset, locks: Option<&Path>) -> AbandonedScratch {
    let name = dataset.name.clone();
    let quoted = shell_words::quote(name.as_str());
    let by_hand = format!("once no drill is running: zfs destroy -r {quoted}");
    let stays = |what: &str| {
        RunError::refused(
            format!("{name} was left by an earlier drill, and stays: {what}"),
            &by_hand,
        )
    };
    let Some(locks) = locks else {
        return AbandonedScratch::Stays(name.clone(), stays("that drill may still be running"));
    };
    let Some(scratch) = Scratch::of(&dataset) else {
        return AbandonedScratch::Stays(
            name.clone(),
            stays("it does not carry the mark of a drill"),
        );
    };
    // The mark alone proves nothing: a user with the permission `userprop` can set it on any
    // dataset, with the guids of its snapshots. An administrator who renames a scratch dataset
    // wants to keep it.
    if !has_scratch_name(&dataset) {
        return AbandonedScratch::Stays(
            name.clone(),
            RunError::refused(
                format!(
                    "{name} carries the mark of a drill, but not the name of a scratch dataset, and stays"
                ),
                format!(
                    "to keep it: zfs inherit {SCRATCH_PROPERTY} {quoted}; if it may go: zfs destroy -r {quoted}"
                ),
            ),
        );
    }
    // The lock is held while the dataset is destroyed, so that no other run can use the dataset.
    let destroyed = lock_target(locks, &name)
        .map_err(RunError::from)
        .and_then(|_lock| destroy_left_scratch(zfs, &name, &scratch.guids));
    match destroyed {
        Ok(()) => AbandonedScratch::Destroyed(name),
        Err(error) => AbandonedScratch::Stays(name, error),
    }
}

/// Restores a chain into a scratch dataset below `parent`, checks it and destroys the scratch
/// dataset again. `source` is the dataset that was backed up, if it is in this pool. The scratch
/// dataset is locked in `locks` during the drill, so that the next drill can see that this one is
/// running.
///
/// # Errors
/// [`RunError`] when the chain does not restore; [`RunError::Damaged`] when a stream differs from
/// the one that the pool sends. The scratch dataset is destroyed then too; a warning names it if
/// that fails.
pub async fn drill(
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: &Arc<dyn Zfs>,
    source: Option<&Dataset>,
    parent: &DatasetName,
    locks: Option<&Path>,
    stop: Stop,
) -> Result<DrillReport, RunError> {
    let (scratch, options) = (scratch_name(parent)?, scratch_options(set)?);
    let _lock = locks
        .map(|locks| lock_target(locks, &scratch))
        .transpose()?;
    let received =
        restore_to_dataset(set, keys, Arc::clone(zfs), &scratch, &options, stop.clone()).await?;
    let compared = match source {
        Some(source) => compare_all(set, &received, zfs, source, &stop).await,
        None => Ok(set
            .backups
            .iter()
            .map(|_| Comparison::Not("the dataset is not in this pool".to_owned()))
            .collect()),
    };
    let guids: BTreeSet<Guid> = set
        .backups
        .iter()
        .map(|backup| backup.manifest.snapshot.guid)
        .collect();
    let left = destroy_scratch(&**zfs, &scratch, &guids)
        .err()
        .map(|error| {
            let what = format!(
                "the scratch dataset {scratch} of this drill stays: {}",
                error_chain(&error)
            );
            let quoted = shell_words::quote(scratch.as_str());
            RunError::refused(what, format!("zfs destroy -r {quoted}"))
        });
    match compared {
        Ok(compared) => Ok(DrillReport { compared, left }),
        Err(error) => {
            if let Some(left) = left {
                tracing::warn!(hint = left.hint(), "{left}");
            }
            Err(error)
        }
    }
}

/// Checks whether this user may do what a drill below `parent` does.
///
/// # Errors
/// [`RunError::Refused`] naming the missing permissions.
pub fn check_drill_allowed(
    zfs: &dyn ZfsHost,
    set: &RestoreSet,
    parent: &DatasetName,
    runner: &Runner,
) -> Result<(), RunError> {
    let (scratch, options) = (scratch_name(parent)?, scratch_options(set)?);
    check_allowed(
        zfs,
        &scratch,
        set,
        &ReceivePlan::default(),
        &options,
        runner,
    )
}

fn scratch_options(set: &RestoreSet) -> Result<ReceiveOptions, RunError> {
    // A receive mounts nothing. These properties also prevent a mount after a reboot. A volume has
    // no mount point; `volmode=none` keeps its device away.
    let is_volume = set
        .newest()
        .private
        .as_ref()
        .is_some_and(|private| private.properties.contains_key("volsize"));
    let kept_away = if is_volume {
        "volmode=none"
    } else {
        "canmount=off"
    };
    let properties = PropertyChoice::new(false, &[kept_away.to_owned()], &[]).map_err(|error| {
        RunError::refused(error.to_string(), "this is a defect: please report it")
    })?;
    // A drill is never resumed, and leaves nothing behind.
    Ok(ReceiveOptions {
        properties,
        rollback: false,
        resume: ResumeChoice::Never,
    })
}

fn scratch_name(parent: &DatasetName) -> Result<DatasetName, RunError> {
    let nonce = getrandom::u32()
        .map_err(|_| RunError::refused("the system gives no random bytes", "check /dev/urandom"))?;
    let name = format!("{parent}/{SCRATCH_PREFIX}{nonce:08x}");
    name.parse().map_err(|_| {
        RunError::refused(
            format!("{name} is too long for a dataset"),
            "choose another --into",
        )
    })
}

/// Judges whether the chain fits below `parent`.
///
/// # Errors
/// [`RunError::Refused`] when `parent` does not exist; [`RunError::Zfs`].
pub fn judge_drill_fit(
    zfs: &dyn ZfsRead,
    set: &RestoreSet,
    parent: &DatasetName,
) -> Result<Fit, RunError> {
    if zfs.dataset(parent)?.is_none() {
        return Err(RunError::refused(
            format!("{parent} does not exist"),
            "choose an existing dataset with --into",
        ));
    }
    let arriving = ArrivingDataset {
        set,
        plan: &ReceivePlan::default(),
        options: &scratch_options(set)?,
    };
    Ok(judge_fit(zfs, parent, &[arriving]))
}

async fn compare_all(
    set: &RestoreSet,
    received: &Received,
    zfs: &Arc<dyn Zfs>,
    source: &Dataset,
    stop: &Stop,
) -> Result<Vec<Comparison>, RunError> {
    let mut compared = Vec::new();
    for (backup, restored) in set.backups.iter().zip(&received.streams) {
        let request = match send_again(&**zfs, source, backup)? {
            Ok(request) => request,
            Err(why) => {
                compared.push(Comparison::Not(why));
                continue;
            }
        };
        let (sender, stopping) = (Arc::clone(zfs), stop.clone());
        let hashed = blocking(move || hash_send(&*sender, &request, &stopping)).await?;
        compared.push(match hashed {
            _ if *stop.borrow() => return Err(RunError::Interrupted),
            Err(error) => Comparison::Not(error_chain(&error)),
            Ok(own) if own == *restored => Comparison::Same,
            Ok(own) => differs(&**zfs, backup, own, *restored)?,
        });
    }
    Ok(compared)
}

/// Judges two streams that differ. Another version of ZFS may send the same snapshot in other
/// records; the same version does not, so a difference is then damage.
fn differs(
    zfs: &dyn ZfsHost,
    backup: &RestoreBackup,
    own: Digest,
    restored: Digest,
) -> Result<Comparison, RunError> {
    let (then, now) = (&backup.manifest.send.zfs_version, zfs.module_version()?);
    if *then != now {
        return Ok(Comparison::Not(format!(
            "sent by ZFS {then}, and this is {now}, which sends another stream"
        )));
    }
    let has_embedded = backup.manifest.send.feature_flags & feature::EMBED_DATA != 0;
    if has_embedded && is_older_version(&now, EMBEDDED_PADDING_FIXED) == Some(true) {
        return Ok(Comparison::Not(format!(
            "the stream may have embedded blocks, and ZFS {now} sends other bytes behind them each time (mended in 2.1.8)"
        )));
    }
    let reason = format!(
        "the restored stream has the BLAKE3 {restored}, and the one that the pool sends now has \
         {own}"
    );
    Err(RunError::Damaged {
        key: backup.manifest.id.to_string(),
        reason,
    })
}

/// Returns the send request that made this backup, or the reason why the pool cannot repeat the
/// send: the snapshot or its base is gone, or the snapshot was renamed.
fn send_again(
    zfs: &dyn ZfsSend,
    source: &Dataset,
    backup: &RestoreBackup,
) -> Result<Result<SendRequest, String>, RunError> {
    let manifest = &backup.manifest;
    let snapshots = zfs.snapshots(&source.name)?;
    let find = |guid: Guid| snapshots.iter().find(|snapshot| snapshot.guid == guid);
    let Some(snapshot) = find(manifest.snapshot.guid) else {
        return Ok(Err("its snapshot is gone from the pool".to_owned()));
    };
    // The stream contains the snapshot's name.
    let name = backup
        .private
        .as_ref()
        .map(|private| private.snapshot_name.as_str());
    if name != Some(snapshot.name.to_string().as_str()) {
        return Ok(Err("its snapshot has another name now".to_owned()));
    }
    let base = match &manifest.base {
        None => None,
        Some(base) => {
            let bookmarks = zfs.bookmarks(&source.name)?;
            let bookmark = bookmarks
                .into_iter()
                .find(|bookmark| bookmark.guid == base.guid && !bookmark.redacted);
            match (find(base.guid), bookmark) {
                (Some(snapshot), _) => Some(SendBase::Snapshot(snapshot.name.clone())),
                (None, Some(bookmark)) => Some(SendBase::Bookmark(bookmark.name)),
                (None, None) => return Ok(Err("its base is gone from the pool".to_owned())),
            }
        }
    };
    let has = |flag: &str| {
        manifest
            .send
            .requested
            .iter()
            .any(|requested| requested == flag)
    };
    let flags = SendFlags {
        raw: has("raw"),
        compressed: has("compressed"),
        embedded: has("embedded"),
        large_blocks: has("large-blocks"),
    };
    Ok(Ok(SendRequest {
        snapshot: snapshot.name.clone(),
        base,
        flags,
        resume: None,
    }))
}

/// Hashes a send stream. Blocking. A stop ends the send early; the digest is then meaningless.
fn hash_send(zfs: &dyn ZfsSend, request: &SendRequest, stop: &Stop) -> Result<Digest, ZfsError> {
    let mut stream = zfs.send(request)?;
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; READ_BYTES]);
    let failed = |source| ZfsError::System {
        operation: "read the stream of",
        subject: request.snapshot.to_string(),
        source,
    };
    loop {
        match stream.reader().read(&mut buffer) {
            Ok(0) => break,
            Ok(bytes) => drop(hasher.update(&buffer[..bytes])),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
        if *stop.borrow() {
            return Ok(Digest::from(hasher.finalize()));
        }
    }
    stream.finish()?;
    Ok(Digest::from(hasher.finalize()))
}
