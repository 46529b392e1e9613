//! Decisions, pure: no clock, network or disk. Every "no" is data that explains itself.

pub mod adopt;
pub mod bookmarks;
pub mod clock;
pub mod copy;
#[cfg(test)]
mod fixtures;
pub mod health;
pub mod permissions;
pub mod prune;
pub mod restore;
pub mod resume;
pub mod retention;
pub mod sample;
pub mod send;
pub mod snapshots;
pub mod timeline;
pub mod twin;

use crate::manifest::{Manifest, Origin, SnapshotRef};
use crate::model::{BackupId, BackupKind, Digest, HostMark};
use jiff::Timestamp;

/// One whole backup of a store, as far as decisions need it. Ids name it everywhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    /// Its id.
    pub id: BackupId,
    /// The hash of its manifest.
    pub manifest_blake3: Digest,
    /// What it holds.
    pub snapshot: SnapshotRef,
    /// The backup that it follows from in this store, which may be a twin of the one in its
    /// manifest; `None` for a full.
    pub base: Option<BackupId>,
    /// The full of its chain; itself for a full.
    pub full_id: BackupId,
    /// 0 for a full, counting up.
    pub position: u32,
    /// Where it came from.
    pub origin: Origin,
    /// The host that made the backup, and the earlier backups that it knew.
    pub made: Making,
    /// The flags asked of the kernel, constant within a chain.
    pub requested: Vec<String>,
    /// Whom its chunks are sealed to.
    pub recipients: Vec<String>,
    /// Bytes of its stream.
    pub stream_bytes: u64,
    /// Bytes of all its objects, as listed.
    pub stored_bytes: u64,
    /// Why it is not usable: an ancestor or a chunk is missing or has another size. `None` when it
    /// is.
    pub flaw: Option<String>,
}

/// Which host made a backup, when, and what its pool knew of the other backups then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Making {
    /// The host; `None` in old manifests.
    pub host: Option<HostMark>,
    /// The newest backups that its pool knew; `None` in old manifests.
    pub previous: Option<Vec<BackupId>>,
    /// When the attempt began.
    pub started_at: Timestamp,
    /// When its last chunk was confirmed.
    pub finished_at: Timestamp,
    /// A person adopted the backup with its time line. Only its time decides its place among the
    /// others.
    pub adopted: bool,
}

impl Making {
    fn of(manifest: &Manifest) -> Self {
        Self {
            host: manifest.host_mark.clone(),
            previous: manifest.previous.clone(),
            started_at: manifest.started_at,
            finished_at: manifest.finished_at,
            adopted: false,
        }
    }
}

impl BackupFacts {
    /// From a verified manifest, what a listing says of its size, and what is wrong with it or its
    /// ancestors.
    pub fn new(
        manifest: &Manifest,
        manifest_blake3: Digest,
        stored_bytes: u64,
        flaw: Option<String>,
    ) -> Self {
        Self {
            id: manifest.id.clone(),
            manifest_blake3,
            snapshot: manifest.snapshot.clone(),
            base: manifest.base.as_ref().map(|base| base.backup_id.clone()),
            full_id: manifest.chain.full_id.clone(),
            position: manifest.chain.position,
            origin: manifest.origin.clone(),
            made: Making::of(manifest),
            requested: manifest.send.requested.clone(),
            recipients: manifest.recipients.clone(),
            stream_bytes: manifest.stream_bytes,
            stored_bytes,
            flaw,
        }
    }

    /// Full or incremental.
    pub fn kind(&self) -> BackupKind {
        self.id.kind()
    }

    /// It and all its ancestors are there whole.
    pub fn is_usable(&self) -> bool {
        self.flaw.is_none()
    }
}
