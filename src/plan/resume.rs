//! [`judge_unfinished`]: whether an interrupted upload can go on, and if not, why.
//!
//! An upload goes on only as what it began as: the same snapshot and base by guid, the same origin,
//! flags, chunk size, compression and recipients. What the stream itself says is checked when it
//! comes (its first record, the record that is sent again, the checksum up to the last confirmed
//! chunk). On any difference a new upload begins under a new id: nothing is ever guessed.

use super::BackupFacts;
use super::send::RequestedKind;
use crate::manifest::{CompressionName, Origin, Started};
use crate::model::{BackupId, BackupKind, Guid};
use crate::zfs::{Bookmark, SendBase, Snapshot};
use std::collections::BTreeSet;

/// An upload that was begun and neither committed nor given up.
#[derive(Debug, Clone, Copy)]
pub struct UnfinishedFacts<'a> {
    /// What it began as.
    pub started: &'a Started,
    /// The keys under its id, as listed, without the prefix.
    pub listed: &'a BTreeSet<String>,
    /// Those that its journal and its progress objects name.
    pub known: &'a BTreeSet<String>,
    /// A manifest of it exists or existed, in any version.
    pub has_manifest: bool,
    /// A signed prune record names it.
    pub is_pruned: bool,
}

/// What the dataset and the configuration are now.
#[derive(Debug, Clone, Copy)]
pub struct ResumeFacts<'a> {
    /// The dataset and the pool.
    pub origin: &'a Origin,
    /// All snapshots of the dataset.
    pub snapshots: &'a [Snapshot],
    /// All its bookmarks.
    pub bookmarks: &'a [Bookmark],
    /// The flags that would be asked of the kernel.
    pub flags: &'a [String],
    /// Bytes of stream in a chunk.
    pub split_bytes: u64,
    /// Compression before sealing.
    pub compression: CompressionName,
    /// Whom chunks would be sealed to.
    pub recipients: &'a [String],
    /// The dataset's backups in the target.
    pub target: &'a [BackupFacts],
    /// Its backups where bases may lie besides.
    pub beside: &'a [BackupFacts],
    /// Why there may be backups that could not be seen.
    pub unseen: Option<&'a str>,
}

/// What becomes of an unfinished upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeVerdict {
    /// It goes on.
    GoOn {
        /// The snapshot, as it is named now.
        snapshot: Box<Snapshot>,
        /// The base, as it is in the pool now.
        base: Option<SendBase>,
    },
    /// Not now: what it builds on cannot be seen.
    Wait {
        /// Why, as a sentence about it.
        why: String,
    },
    /// It was a backup once: nothing of it may be touched, and the journal that does not know it
    /// was rolled back.
    Over {
        /// Why, as a sentence about it.
        why: String,
    },
    /// It cannot go on, now or ever.
    GiveUp {
        /// Why, as a sentence about it.
        why: String,
    },
}

/// Whether a run that was asked for this kind goes on with that upload.
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
    let sources = checked.and_then(|()| find_sources(upload, now));
    let (snapshot, base) = match sources {
        Ok(sources) => sources,
        Err(why) => return ResumeVerdict::GiveUp { why },
    };
    match (check_base(upload, now), now.unseen) {
        (Ok(()), _) => ResumeVerdict::GoOn {
            snapshot: Box::new(snapshot),
            base,
        },
        (Err(why), Some(unseen)) => ResumeVerdict::Wait {
            why: format!("{why}; but {unseen}"),
        },
        (Err(why), None) => ResumeVerdict::GiveUp { why },
    }
}

/// The base is stored, whole, and the same.
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
        .chain(now.beside)
        .find(is_base)
        .map(|stored| &stored.flaw)
    {
        None => Err(format!(
            "{}, which it follows from, is no longer stored",
            base.backup_id
        )),
        Some(Some(flaw)) => Err(format!(
            "{}, which it follows from, is not whole: {flaw}",
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

/// The snapshot itself, else a bookmark of it.
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

/// What the store says against it.
fn check_store(upload: &UnfinishedFacts<'_>, now: &ResumeFacts<'_>) -> Result<(), String> {
    if let Some(stranger) = upload.listed.difference(upload.known).next() {
        return Err(format!(
            "the store holds {stranger}, which this host did not put there"
        ));
    }
    let id = &upload.started.id;
    let holds_it = |backup: &&BackupFacts| {
        // An incremental of the same snapshot makes no full needless.
        let serves = id.kind() == BackupKind::Incr || backup.base.is_none();
        backup.snapshot.guid == id.snapshot_guid() && backup.is_usable() && serves
    };
    match now.target.iter().find(holds_it) {
        Some(other) => Err(format!("{} holds its snapshot already", other.id)),
        None => Ok(()),
    }
}

fn check_plan(started: &Started, now: &ResumeFacts<'_>) -> Result<(), String> {
    let changed = [
        ("the dataset or its pool", started.origin == *now.origin),
        ("the send flags", started.requested == now.flags),
        ("main.split_size", started.split_bytes == now.split_bytes),
        ("send.compression", started.compression == now.compression),
        ("whom it is sealed to", started.recipients == now.recipients),
    ];
    match changed.iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(format!("{what} changed since it began")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
