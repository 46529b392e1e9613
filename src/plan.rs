//! Pure decisions: no clock, network or disk. Every "no" is data that explains itself.

pub mod adopt;
pub mod bookmarks;
pub mod chunk_count;
pub mod clock;
pub mod copy;
#[cfg(test)]
mod fixtures;
pub mod health;
pub mod levels;
pub mod next_step;
mod period;
pub mod permissions;
pub mod prune;
pub mod restore;
pub mod resume;
pub mod retention;
pub mod sample;
pub mod send;
pub mod snapshots;
pub mod space;
pub mod timeline;
pub mod twin;

use crate::manifest::{Manifest, Origin, SnapshotRef};
use crate::model::{BackupId, BackupKind, BackupLevel, Digest, HostMark};
use jiff::Timestamp;

/// A complete backup of a store, as far as decisions need it. Decisions refer to it by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    /// The id of the backup.
    pub id: BackupId,
    /// The hash of the manifest.
    pub manifest_blake3: Digest,
    /// The snapshot of the backup.
    pub snapshot: SnapshotRef,
    /// The base of the backup in this store, which may be a twin of the base in its manifest;
    /// `None` for a full.
    pub base: Option<BackupId>,
    /// The full of the chain; the backup itself for a full.
    pub full_id: BackupId,
    /// The position in the chain: 0 for a full, then counting up.
    pub position: u32,
    /// The dataset and pool that were sent.
    pub origin: Origin,
    /// The host that made the backup, and the earlier backups that it knew.
    pub made: Making,
    /// The requested send flags, constant within a chain.
    pub requested: Vec<String>,
    /// The recipients that the chunks are sealed to.
    pub recipients: Vec<String>,
    /// Bytes of its stream.
    pub stream_bytes: u64,
    /// Bytes of all its objects, as listed.
    pub stored_bytes: u64,
    /// The reason why the backup is not usable: an ancestor or a chunk is missing or has another
    /// size. `None` if it is usable.
    pub flaw: Option<String>,
}

/// The circumstances of a backup: the host, the times, and the earlier backups that its pool knew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Making {
    /// The host; `None` in old manifests.
    pub host: Option<HostMark>,
    /// The newest backups that its pool knew; `None` in old manifests.
    pub previous: Option<Vec<BackupId>>,
    /// The time at which the attempt began.
    pub started_at: Timestamp,
    /// The time at which the store confirmed the last chunk.
    pub finished_at: Timestamp,
    /// The time of its manifest in the store, by the store's clock; `None` if that is unknown.
    pub stored_at: Option<Timestamp>,
    /// The level in its manifest; `None` without one.
    pub level: Option<BackupLevel>,
    /// Whether a person adopted the backup with its time line. The order among the other backups
    /// then depends on its time only.
    pub adopted: bool,
}

impl Making {
    fn of(manifest: &Manifest) -> Self {
        Self {
            host: manifest.host_mark.clone(),
            previous: manifest.previous.clone(),
            started_at: manifest.started_at,
            finished_at: manifest.finished_at,
            stored_at: None,
            level: manifest.level,
            adopted: false,
        }
    }
}

impl BackupFacts {
    /// Takes the facts from a verified manifest, the size from a listing, and the flaw of the
    /// backup or its ancestors.
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

    /// Returns the kind: full or incremental.
    pub fn kind(&self) -> BackupKind {
        self.id.kind()
    }

    /// Whether the backup and all its ancestors are complete.
    pub fn is_usable(&self) -> bool {
        self.flaw.is_none()
    }
}
