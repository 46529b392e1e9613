//! [`plan_send`]: which stream a dataset's next backup is.
//!
//! This version makes full backups; incrementals come with chains.

use crate::model::{BackupId, BackupKind, Guid};
use crate::zfs::Snapshot;

/// What the command line asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestedKind {
    /// A full in any case.
    Full,
    /// An incremental or nothing.
    Incremental,
    /// Whatever the lifecycle says.
    Lifecycle,
}

/// A whole backup in the target store, as far as planning needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPoint {
    /// Its id.
    pub id: BackupId,
    /// The snapshot that it holds.
    pub snapshot_guid: Guid,
    /// All its objects and its ancestors' are there at their sizes.
    pub usable: bool,
}

/// What to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendPlan {
    /// A full of this snapshot.
    Full {
        /// The snapshot.
        snapshot: Snapshot,
    },
    /// The snapshot is stored already, whole.
    UpToDate {
        /// The backup that holds it.
        id: BackupId,
    },
}

/// Why there is nothing to send. Each says what is missing on which side.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendConflict {
    /// The dataset has no snapshot that this tool made.
    #[error("the dataset has no snapshot made by zfs-backup ({others} made by others)")]
    NoSnapshot {
        /// Snapshots made by others.
        others: usize,
    },
    /// Asked for an incremental, which this version cannot make. It never makes a full instead.
    #[error("incremental backups come in a later version; nothing was sent")]
    IncrementalNotYet,
}

/// Decides what to send: the newest of `own_snapshots` (oldest first), unless the store holds it whole.
///
/// # Errors
/// [`SendConflict`] when there is nothing to send.
pub fn plan_send(
    own_snapshots: &[Snapshot],
    others: usize,
    stored: &[StoredPoint],
    requested: RequestedKind,
) -> Result<SendPlan, SendConflict> {
    if requested == RequestedKind::Incremental {
        return Err(SendConflict::IncrementalNotYet);
    }
    let snapshot = own_snapshots.last().ok_or(SendConflict::NoSnapshot { others })?;
    let holds_it = |point: &&StoredPoint| {
        let right_kind = requested != RequestedKind::Full || point.id.kind() == BackupKind::Full;
        point.usable && right_kind && point.snapshot_guid == snapshot.guid
    };
    Ok(match stored.iter().find(holds_it) {
        Some(point) => SendPlan::UpToDate { id: point.id.clone() },
        None => SendPlan::Full { snapshot: snapshot.clone() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn snapshot(guid: u64) -> Snapshot {
        Snapshot {
            name: format!("t/a@s{guid}").parse().unwrap(),
            guid: Guid(guid),
            createtxg: guid,
            created_at: Timestamp::UNIX_EPOCH,
            referenced_bytes: 0,
            used_bytes: 0,
            holds: 0,
            user_properties: Default::default(),
        }
    }

    fn point(guid: u64, kind: BackupKind, usable: bool) -> StoredPoint {
        let id = BackupId::new(Timestamp::UNIX_EPOCH, kind, Guid(guid), 1);
        StoredPoint { id, snapshot_guid: Guid(guid), usable }
    }

    #[test]
    fn plan_send_by_table() {
        use BackupKind::{Full, Incr};
        use RequestedKind as R;
        let send = |guid| Ok(SendPlan::Full { snapshot: snapshot(guid) });
        let up_to_date = |guid, kind| Ok(SendPlan::UpToDate { id: point(guid, kind, true).id });
        let cases = [
            (vec![], 0, vec![], R::Full, Err(SendConflict::NoSnapshot { others: 0 })),
            (vec![], 3, vec![], R::Lifecycle, Err(SendConflict::NoSnapshot { others: 3 })),
            (vec![1, 2], 0, vec![], R::Full, send(2)),
            (vec![1, 2], 0, vec![], R::Lifecycle, send(2)),
            (vec![1, 2], 0, vec![point(1, Full, true)], R::Full, send(2)),
            (vec![1, 2], 0, vec![point(2, Full, true)], R::Full, up_to_date(2, Full)),
            (vec![1, 2], 0, vec![point(2, Full, false)], R::Full, send(2)),
            (vec![1, 2], 0, vec![point(2, Incr, true)], R::Full, send(2)),
            (vec![1, 2], 0, vec![point(2, Incr, true)], R::Lifecycle, up_to_date(2, Incr)),
            (vec![1, 2], 0, vec![point(1, Full, true)], R::Incremental, Err(SendConflict::IncrementalNotYet)),
        ];
        for (own, others, stored, requested, expected) in cases {
            let own: Vec<_> = own.into_iter().map(snapshot).collect();
            assert_eq!(plan_send(&own, others, &stored, requested), expected, "{own:?} {stored:?} {requested:?}");
        }
    }
}
