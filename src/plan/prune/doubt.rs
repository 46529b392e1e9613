//! [`Doubt`]: the reason why nothing of a dataset is deleted. Deletion is safe only if all stored
//! objects are understood.

use super::{
    DoomedLeftover, Keeping, Leftover, OtherPrune, PruneInput, SecondaryFacts, StartedFact,
};
use crate::manifest::Origin;
use crate::model::{BackupId, BackupKind, DatasetName, Guid, HostMark};
use crate::plan::clock::{AHEAD_SECONDS_MAX, ClockDoubt};
use crate::plan::timeline::{Stray, Timeline};
use jiff::Timestamp;
use std::collections::BTreeSet;

/// The reason why nothing of a dataset is deleted. The text says what was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// The store has backups of another dataset, or of the same name in another pool.
    #[error(
        "{} has backups of another origin: dataset guid {dataset_guid} in pool guid {pool_guid}",
        id
    )]
    OtherOrigin {
        /// The id of such a backup.
        id: BackupId,
        /// The guid of the other dataset.
        dataset_guid: Guid,
        /// The guid of its pool.
        pool_guid: Guid,
    },
    /// Backups of the own origin are from a pool on another time line.
    #[error(
        "{id}{} belongs to another time line of this dataset (from a cloned machine, a copied pool \
         or a rewound pool): {why}",
        host_words(host.as_ref())
    )]
    OtherLine {
        /// The newest of these backups that one host made.
        id: BackupId,
        /// The other host's mark.
        host: Option<HostMark>,
        /// The evidence, in words for the screen.
        why: String,
    },
    /// A manifest exists and is invalid or untrusted.
    #[error("the manifest of {id} is invalid or untrusted: {reason}")]
    ManifestUnreadable {
        /// The backup with that manifest.
        id: BackupId,
        /// The text of the error and its causes, on one line.
        reason: String,
        /// Whether the reason is damage or forgery.
        damage: bool,
    },
    /// A manifest's signature, or a hidden version of a manifest, exists and the manifest does not.
    #[error("the manifest of {id} is missing, and its signature or a hidden version of it exists")]
    ManifestLost {
        /// The backup whose manifest is missing.
        id: BackupId,
        /// Whether no other backup holds its snapshot.
        damage: bool,
    },
    /// The newest receipt lists a backup that no longer exists.
    #[error(
        "the receipt of {seen_by} lists {id}, which no longer exists, and no signed prune record explains it"
    )]
    Gone {
        /// The backup that the receipt lists.
        id: BackupId,
        /// The backup of the receipt.
        seen_by: BackupId,
    },
    /// The newest receipt is invalid or untrusted.
    #[error("the receipt of {id} is invalid or untrusted: {reason}")]
    ReceiptUnreadable {
        /// The backup with that receipt.
        id: BackupId,
        /// The text of the error and its causes, on one line.
        reason: String,
        /// Whether the reason is damage or forgery.
        damage: bool,
    },
    /// A backup that is to be kept cannot be restored.
    #[error("{id} must be kept but is not usable: {reason}")]
    NotUsable {
        /// The backup that must be kept.
        id: BackupId,
        /// The flaw of the backup or of an ancestor.
        reason: String,
    },
    /// The store has backups, and none of them can be restored.
    #[error("none of the {count} backups is usable")]
    NoneUsable {
        /// The number of backups.
        count: usize,
    },
    /// A snapshot's time lies in the future.
    #[error("{id} is of {at}, more than a day ahead of {clock}, {now}")]
    Ahead {
        /// The backup of that snapshot.
        id: BackupId,
        /// The time of its snapshot.
        at: Timestamp,
        /// The clock that the snapshot is compared with, as messages name it.
        clock: &'static str,
        /// The time on that clock.
        now: Timestamp,
    },
    /// Two snapshots of one origin contradict each other.
    #[error(
        "the snapshot of {earlier} has a lower transaction group than that of {later}, but a later \
         time"
    )]
    Order {
        /// The backup with the smaller createtxg.
        earlier: BackupId,
        /// The backup with the larger createtxg and the earlier time.
        later: BackupId,
    },
    /// The base of an unfinished upload is unknown, so every backup may be needed.
    #[error("the base of the unfinished upload {id} is unknown: {reason}")]
    UploadUnreadable {
        /// The id of the unfinished upload.
        id: BackupId,
        /// The text of the error and its causes, on one line.
        reason: String,
        /// Whether the reason is damage or forgery.
        damage: bool,
    },
    /// The age rules cannot use this host's clock.
    #[error(transparent)]
    Clock(ClockDoubt),
    /// Another host may be deleting.
    #[error(transparent)]
    OtherPrune(OtherPrune),
}

impl Doubt {
    /// Whether the doubt is damage: exit status 4, otherwise 3.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::ManifestUnreadable { damage, .. }
            | Self::ManifestLost { damage, .. }
            | Self::ReceiptUnreadable { damage, .. }
            | Self::UploadUnreadable { damage, .. } => *damage,
            Self::Gone { .. } | Self::NotUsable { .. } | Self::NoneUsable { .. } => true,
            Self::OtherOrigin { .. }
            | Self::OtherLine { .. }
            | Self::Ahead { .. }
            | Self::Order { .. }
            | Self::Clock(_)
            | Self::OtherPrune(_) => false,
        }
    }

    /// Returns the remedy for the dataset with this name in the store. `command` is the command
    /// that prunes.
    pub fn hint(&self, command: &str, stored: &DatasetName) -> String {
        match self {
            Self::OtherOrigin {
                dataset_guid,
                pool_guid,
                ..
            } => {
                let adopt = adopt_command(stored, &format!("--origin {dataset_guid}/{pool_guid}"));
                format!(
                    "if this dataset replaces that one: {adopt}; if two hosts write here by \
                     mistake, give one of them another prefix"
                )
            }
            Self::OtherLine { id, .. } => {
                let adopt = adopt_command(stored, &format!("--line {id}"));
                format!(
                    "if two hosts write here, give one of them another prefix; if that time line \
                     is abandoned, or its snapshots and bookmarks were destroyed here: {adopt}"
                )
            }
            Self::ManifestUnreadable {
                id, damage: false, ..
            } => {
                format!("use the version of this program that made {id}")
            }
            Self::ManifestUnreadable { id, .. } | Self::ManifestLost { id, .. } => {
                format!(
                    "restore the object (from an older version or another copy); if it is lost: zfs-backup forget {id}"
                )
            }
            Self::Gone { .. } => {
                "find out who deletes objects there; the next backup's receipt records the store as it is then"
                    .to_owned()
            }
            Self::ReceiptUnreadable { .. } => {
                "zfs-backup verify-checksums; the next backup has a new receipt".to_owned()
            }
            Self::NotUsable { id, .. } => {
                format!(
                    "zfs-backup verify-checksums; if it is lost: zfs-backup forget {id}, after the \
                     backups that build on it"
                )
            }
            Self::NoneUsable { .. } => {
                "zfs-backup verify-checksums; make a new full first".to_owned()
            }
            Self::Ahead { id, .. } => {
                format!("set the clock; if the snapshot's time is wrong: zfs-backup forget {id}")
            }
            Self::Order { later: id, .. } => {
                format!(
                    "a clock was wrong when one of them was taken; zfs-backup forget {id} ends the contradiction"
                )
            }
            Self::UploadUnreadable { id, .. } => {
                format!("if that upload is over: zfs-backup forget {id}")
            }
            Self::Clock(doubt) => doubt.hint(command),
            Self::OtherPrune(other) => other.hint(),
        }
    }
}

/// Writes ` by host MARK`, if the host is known.
fn host_words(host: Option<&HostMark>) -> String {
    host.map(|host| format!(" by host {host}"))
        .unwrap_or_default()
}

/// Returns the command that adopts what `option` chooses.
pub fn adopt_command(stored: &DatasetName, option: &str) -> String {
    let quoted = shell_words::quote(stored.as_str());
    format!("zfs-backup adopt {quoted} {option} -y")
}

/// Returns all doubts about the dataset, in the order in which a person should check them.
pub(super) fn find_doubts(
    input: &PruneInput<'_>,
    delete_leftovers: &[DoomedLeftover],
    keeping: &Keeping<'_>,
) -> Vec<Doubt> {
    let mut doubts = Vec::new();
    other_origins(input, &mut doubts);
    let strays = other_lines(input, &mut doubts);
    lost_manifests(input, delete_leftovers, &mut doubts);
    gaps(input, &mut doubts);
    times(input, &mut doubts);
    order(input, &strays, &mut doubts);
    uploads(input, delete_leftovers, &mut doubts);
    unusable(input, keeping, &mut doubts);
    doubts
}

fn other_origins(input: &PruneInput<'_>, doubts: &mut Vec<Doubt>) {
    let backups = input
        .facts
        .iter()
        .map(|backup| (&backup.id, &backup.origin));
    let attempts = input
        .leftovers
        .iter()
        .filter_map(|leftover| match &leftover.started {
            StartedFact::Signed { origin, .. } => Some((&leftover.id, origin)),
            StartedFact::Absent | StartedFact::Unreadable(_) => None,
        });
    let mut seen: Vec<&Origin> = Vec::new();
    for (id, origin) in backups.chain(attempts) {
        if !input.origins.contains(origin) && !seen.contains(&origin) {
            seen.push(origin);
            let Origin {
                dataset_guid,
                pool_guid,
            } = origin.clone();
            doubts.push(Doubt::OtherOrigin {
                id: id.clone(),
                dataset_guid,
                pool_guid,
            });
        }
    }
}

/// Adds one doubt for each host whose backups are not of this pool's time line. Returns all of
/// those backups. A backup in the second store may be the link between two that are here.
fn other_lines<'a>(input: &PruneInput<'a>, doubts: &mut Vec<Doubt>) -> BTreeSet<&'a BackupId> {
    let Some(pool) = input.pool else {
        return BTreeSet::new();
    };
    let here: BTreeSet<&BackupId> = input.facts.iter().map(|backup| &backup.id).collect();
    let elsewhere = match input.secondary {
        SecondaryFacts::Remote { facts, .. } => facts,
        SecondaryFacts::Nothing | SecondaryFacts::Unreachable => input.waiting,
    };
    let links = elsewhere.iter().filter(|backup| !here.contains(&backup.id));
    let mut strays = Timeline::new(input.facts.iter().chain(links)).strays(pool);
    strays.retain(|stray| here.contains(&stray.backup.id));
    let mut hosts = BTreeSet::new();
    for Stray { backup, why } in &strays {
        let host = &backup.made.host;
        if hosts.insert(host) {
            doubts.push(Doubt::OtherLine {
                id: backup.id.clone(),
                host: host.clone(),
                why: why.to_string(),
            });
        }
    }
    strays.iter().map(|stray| &stray.backup.id).collect()
}

fn lost_manifests(
    input: &PruneInput<'_>,
    delete_leftovers: &[DoomedLeftover],
    doubts: &mut Vec<Doubt>,
) {
    let explained = |leftover: &Leftover| {
        input.pruned.contains_key(&leftover.id)
            || delete_leftovers
                .iter()
                .any(|doomed| doomed.id == leftover.id)
    };
    for leftover in input.leftovers {
        let id = leftover.id.clone();
        if let Some(unreadable) = leftover.untrusted.clone() {
            doubts.push(Doubt::ManifestUnreadable {
                id,
                reason: unreadable.reason,
                damage: unreadable.damage,
            });
        } else if leftover.was_committed && !explained(leftover) {
            let held = input
                .facts
                .iter()
                .any(|backup| backup.snapshot.guid == id.snapshot_guid());
            doubts.push(Doubt::ManifestLost { id, damage: !held });
        }
    }
}

fn gaps(input: &PruneInput<'_>, doubts: &mut Vec<Doubt>) {
    let Some(live) = input.live else { return };
    let present: BTreeSet<&BackupId> = input.facts.iter().map(|backup| &backup.id).collect();
    match &live.ids {
        Ok(ids) => {
            let gone = ids
                .iter()
                .filter(|id| !present.contains(id) && !input.pruned.contains_key(id));
            doubts.extend(gone.map(|id| Doubt::Gone {
                id: id.clone(),
                seen_by: live.of.clone(),
            }));
        }
        Err(unreadable) => doubts.push(Doubt::ReceiptUnreadable {
            id: live.of.clone(),
            reason: unreadable.reason.clone(),
            damage: unreadable.damage,
        }),
    }
}

fn times(input: &PruneInput<'_>, doubts: &mut Vec<Doubt>) {
    let clocks = [
        (Some(input.now), "this host's clock"),
        (input.store_clock, "the store's clock"),
    ];
    for backup in input.facts {
        let at = backup.snapshot.created_at;
        let ahead =
            |now: &Timestamp| at.as_second().saturating_sub(now.as_second()) > AHEAD_SECONDS_MAX;
        let found = clocks
            .iter()
            .find_map(|(now, clock)| Some((now.filter(ahead)?, *clock)));
        if let Some((now, clock)) = found {
            doubts.push(Doubt::Ahead {
                id: backup.id.clone(),
                at,
                clock,
                now,
            });
        }
    }
}

/// Checks that transaction groups and times increase together, as they do within one time line.
/// Backups of other or adopted time lines are left out of the comparison.
fn order(input: &PruneInput<'_>, strays: &BTreeSet<&BackupId>, doubts: &mut Vec<Doubt>) {
    let mut ordered: Vec<_> = input
        .facts
        .iter()
        .filter(|backup| !backup.made.adopted)
        .collect();
    ordered.retain(|backup| !strays.contains(&backup.id));
    let key = |origin: &Origin| (origin.dataset_guid, origin.pool_guid);
    ordered.sort_by_key(|backup| {
        (
            key(&backup.origin),
            backup.snapshot.createtxg,
            backup.snapshot.created_at,
        )
    });
    for pair in ordered.windows(2) {
        let earlier = &pair[0];
        let later = &pair[1];
        let same_txg = earlier.snapshot.createtxg == later.snapshot.createtxg;
        let contradict = match same_txg {
            true => earlier.snapshot.created_at != later.snapshot.created_at,
            false => earlier.snapshot.created_at > later.snapshot.created_at,
        };
        if earlier.origin == later.origin && contradict {
            doubts.push(Doubt::Order {
                earlier: earlier.id.clone(),
                later: later.id.clone(),
            });
        }
    }
}

fn uploads(input: &PruneInput<'_>, delete_leftovers: &[DoomedLeftover], doubts: &mut Vec<Doubt>) {
    for leftover in input.leftovers.iter().chain(input.waiting_attempts) {
        if delete_leftovers
            .iter()
            .any(|doomed| doomed.id == leftover.id)
        {
            continue;
        }
        let id = leftover.id.clone();
        match &leftover.started {
            StartedFact::Unreadable(unreadable) => doubts.push(Doubt::UploadUnreadable {
                id,
                reason: unreadable.reason.clone(),
                damage: unreadable.damage,
            }),
            StartedFact::Absent if id.kind() == BackupKind::Incr => {
                let reason = "its started.json is missing".to_owned();
                doubts.push(Doubt::UploadUnreadable {
                    id,
                    reason,
                    damage: false,
                });
            }
            StartedFact::Absent | StartedFact::Signed { .. } => {}
        }
    }
}

fn unusable(input: &PruneInput<'_>, keeping: &Keeping<'_>, doubts: &mut Vec<Doubt>) {
    if input.secondary == SecondaryFacts::Unreachable {
        return;
    }
    for backup in keeping
        .ordered
        .iter()
        .filter(|backup| keeping.keeps(&backup.id))
    {
        if let Some(reason) = keeping.flaw(backup) {
            doubts.push(Doubt::NotUsable {
                id: backup.id.clone(),
                reason,
            });
        }
    }
    let count = input.facts.len();
    let said = doubts
        .iter()
        .any(|doubt| matches!(doubt, Doubt::NotUsable { .. }));
    if !said
        && input.secondary == SecondaryFacts::Nothing
        && count > 0
        && !input.facts.iter().any(super::BackupFacts::is_usable)
    {
        doubts.push(Doubt::NoneUsable { count });
    }
}
