//! [`judge_unfinished`]: decides whether an interrupted upload can be resumed.
//!
//! An upload is resumed only if nothing changed: the same snapshot and base by guid, the same
//! origin, flags, chunk size, compression and recipients. The stream itself is verified when it
//! arrives (its first record, the repeated record, the checksum up to the last confirmed chunk).
//! Any difference starts a new upload under a new id: nothing is ever guessed.

use super::BackupFacts;
use super::send::RequestedKind;
use crate::manifest::{CompressionName, Origin, Started};
use crate::model::{BackupId, BackupKind, Guid, ReadFault};
use crate::zfs::{Bookmark, SendBase, Snapshot};
use std::collections::BTreeSet;

/// An upload that was begun and neither committed nor abandoned.
#[derive(Debug, Clone, Copy)]
pub struct UnfinishedFacts<'a> {
    /// The first object of the upload.
    pub started: &'a Started,
    /// The places at which ZFS could not read its snapshot, in the order of the runs.
    pub read_faults: &'a [ReadFault],
    /// The listed keys under its id, without the prefix.
    pub listed: &'a BTreeSet<String>,
    /// The keys that its journal and its progress objects name.
    pub known: &'a BTreeSet<String>,
    /// Whether a manifest of the upload exists or existed, in any version.
    pub has_manifest: bool,
    /// Whether a signed prune record names the upload.
    pub is_pruned: bool,
}

/// The present state of the dataset and the configuration.
#[derive(Debug, Clone, Copy)]
pub struct ResumeFacts<'a> {
    /// The dataset and the pool.
    pub origin: &'a Origin,
    /// All snapshots of the dataset.
    pub snapshots: &'a [Snapshot],
    /// All bookmarks of the dataset.
    pub bookmarks: &'a [Bookmark],
    /// The send flags that a new send would use.
    pub flags: &'a [String],
    /// Bytes of the stream in a chunk.
    pub split_bytes: u64,
    /// The compression that a new send would use.
    pub compression: CompressionName,
    /// The recipients that chunks would be sealed to.
    pub recipients: &'a [String],
    /// The dataset's backups in the target.
    pub target: &'a [BackupFacts],
    /// The dataset's backups in the second store, where bases may be too.
    pub remote: &'a [BackupFacts],
    /// The reason why some backups may not be visible; `None` if all are.
    pub unseen: Option<&'a str>,
}

/// The decision about an unfinished upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeVerdict {
    /// The upload is resumed.
    Resume {
        /// The snapshot, with its present name.
        snapshot: Box<Snapshot>,
        /// The base, as it is in the pool now.
        base: Option<SendBase>,
    },
    /// The upload waits, because its base cannot be seen now.
    Wait {
        /// The reason, as a sentence about the upload.
        why: String,
    },
    /// The upload was a backup once: nothing of it may be changed, and a journal that does not know
    /// this was rolled back.
    Over {
        /// The reason, as a sentence about the upload.
        why: String,
    },
    /// The upload cannot be resumed, now or ever.
    Abandon {
        /// The reason, as a sentence about the upload.
        why: String,
    },
}

/// Whether a run that requests this kind may resume the upload.
pub fn is_asked_for(requested: RequestedKind, id: &BackupId) -> bool {
    match requested {
        RequestedKind::Full => id.kind() == BackupKind::Full,
        RequestedKind::Incremental => id.kind() == BackupKind::Incr,
        RequestedKind::Lifecycle => true,
    }
}

/// Decides about one unfinished upload.
pub fn judge_unfinished(upload: &UnfinishedFacts<'_>, now: &ResumeFacts<'_>) -> ResumeVerdict {
    if upload.has_manifest {
        return ResumeVerdict::Over {
            why: "a manifest of it exists or existed: it was committed".to_owned(),
        };
    }
    if upload.is_pruned {
        return ResumeVerdict::Over {
            why: "a prune record names it".to_owned(),
        };
    }
    let checked = check_store(upload, now).and_then(|()| check_plan(upload.started, now));
    let sources = checked
        .and_then(|()| check_readable(upload))
        .and_then(|()| find_sources(upload, now));
    let (snapshot, base) = match sources {
        Ok(sources) => sources,
        Err(why) => return ResumeVerdict::Abandon { why },
    };
    match (check_base(upload, now), now.unseen) {
        (Ok(()), _) => ResumeVerdict::Resume {
            snapshot: Box::new(snapshot),
            base,
        },
        (Err(why), Some(unseen)) => ResumeVerdict::Wait {
            why: format!("{why}; but {unseen}"),
        },
        (Err(why), None) => ResumeVerdict::Abandon { why },
    }
}

/// Returns the place at which ZFS failed twice to read the snapshot of one upload. One failure may
/// pass, for instance when a disk comes back. A second one at the same place does not: without a
/// repair of the pool, no run gets further.
pub fn unreadable_at(faults: &[ReadFault]) -> Option<ReadFault> {
    let is_repeated = |(index, fault): &(usize, &ReadFault)| {
        let earlier = &faults[..*index];
        earlier.iter().any(|other| other.position == fault.position)
    };
    let mut faults = faults.iter().enumerate();
    faults.find(is_repeated).map(|(_, fault)| *fault)
}

/// Whether a read error shows the place of an unreadable block. A disk that is away fails at once,
/// wherever the send resumes: only a send that got further than `resumed_at`, or one that ends where
/// such a send ended before, shows a place.
pub fn shows_place(earlier: &[ReadFault], fault: ReadFault, resumed_at: u64) -> bool {
    let is_known = || earlier.iter().any(|other| other.position == fault.position);
    fault.position > resumed_at || is_known()
}

fn check_readable(upload: &UnfinishedFacts<'_>) -> Result<(), String> {
    match unreadable_at(upload.read_faults) {
        None => Ok(()),
        Some(fault) => Err(format!("ZFS twice could not read its snapshot {fault}")),
    }
}

/// Checks that the base is stored, complete and unchanged.
fn check_base(upload: &UnfinishedFacts<'_>, now: &ResumeFacts<'_>) -> Result<(), String> {
    let Some(base) = &upload.started.base else {
        return Ok(());
    };
    let is_base = |backup: &&BackupFacts| {
        backup.id == base.backup_id && backup.manifest_blake3 == base.manifest_blake3
    };
    match now
        .target
        .iter()
        .chain(now.remote)
        .find(is_base)
        .map(|stored| &stored.flaw)
    {
        None => Err(format!(
            "{}, which it builds on, is no longer stored",
            base.backup_id
        )),
        Some(Some(flaw)) => Err(format!(
            "{}, which it builds on, is incomplete: {flaw}",
            base.backup_id
        )),
        Some(None) => Ok(()),
    }
}

fn find_sources(
    upload: &UnfinishedFacts<'_>,
    now: &ResumeFacts<'_>,
) -> Result<(Snapshot, Option<SendBase>), String> {
    let guid = upload.started.snapshot.guid;
    let snapshot = now.snapshots.iter().find(|snapshot| snapshot.guid == guid);
    let snapshot =
        snapshot.ok_or_else(|| format!("its snapshot, guid {guid}, is no longer in the pool"))?;
    let Some(base) = &upload.started.base else {
        return Ok((snapshot.clone(), None));
    };
    let local = find_base(base.guid, now);
    let local =
        local.ok_or_else(|| format!("its base, guid {}, is no longer in the pool", base.guid))?;
    Ok((snapshot.clone(), Some(local)))
}

/// Returns the base in the pool: the snapshot itself, otherwise a bookmark of it.
fn find_base(guid: Guid, now: &ResumeFacts<'_>) -> Option<SendBase> {
    let snapshot = now.snapshots.iter().find(|snapshot| snapshot.guid == guid);
    let bookmark = || {
        now.bookmarks
            .iter()
            .find(|bookmark| bookmark.guid == guid && !bookmark.redacted)
    };
    let snapshot = snapshot.map(|snapshot| SendBase::Snapshot(snapshot.name.clone()));
    snapshot.or_else(|| bookmark().map(|bookmark| SendBase::Bookmark(bookmark.name.clone())))
}

/// Checks the store for objects and backups that exclude a resume.
fn check_store(upload: &UnfinishedFacts<'_>, now: &ResumeFacts<'_>) -> Result<(), String> {
    if let Some(stranger) = upload.listed.difference(upload.known).next() {
        return Err(format!(
            "the store holds {stranger}, which this host did not put there"
        ));
    }
    let id = &upload.started.id;
    let holds_it = |backup: &&BackupFacts| {
        // An incremental of the same snapshot does not make a full superfluous.
        let serves = id.kind() == BackupKind::Incr || backup.base.is_none();
        backup.snapshot.guid == id.snapshot_guid() && backup.is_usable() && serves
    };
    match now.target.iter().find(holds_it) {
        Some(other) => Err(format!("{} already stores its snapshot", other.id)),
        None => Ok(()),
    }
}

fn check_plan(started: &Started, now: &ResumeFacts<'_>) -> Result<(), String> {
    let changed = [
        ("the dataset or its pool", started.origin == *now.origin),
        ("the send flags", started.requested == now.flags),
        ("main.split_size", started.split_bytes == now.split_bytes),
        ("send.compression", started.compression == now.compression),
        ("the recipients", started.recipients == now.recipients),
    ];
    match changed.iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(format!("{what} changed since the upload began")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
