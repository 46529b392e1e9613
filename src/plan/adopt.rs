//! [`find_holdings`]: the backups of a dataset that a person may adopt, and whether the host that
//! made them seems to be active.

use super::BackupFacts;
use super::timeline::{PoolView, Timeline};
use crate::manifest::Origin;
use crate::model::{BackupId, Guid, HostMark};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// An unfinished upload, as its signed first object describes it.
#[derive(Debug, Clone)]
pub struct HeldAttempt {
    /// The id that the backup will have.
    pub id: BackupId,
    /// The dataset and pool that the upload comes from.
    pub origin: Origin,
    /// The host that began the upload.
    pub host: Option<HostMark>,
    /// The time at which its snapshot was taken.
    pub at: Timestamp,
    /// Bytes of its objects.
    pub bytes: u64,
}

/// An origin or time line that can be adopted, as the command line names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// Another dataset, or a dataset in another pool.
    Origin(Origin),
    /// Another time line of the own origin, by its newest backup.
    Line(BackupId),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Origin(Origin {
                dataset_guid,
                pool_guid,
            }) => write!(f, "--origin {dataset_guid}/{pool_guid}"),
            Self::Line(id) => write!(f, "--line {id}"),
        }
    }
}

/// The backups and uploads of another origin or time line under the dataset's name, in all stores
/// together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holding {
    /// The origin or time line.
    #[serde(rename = "line", serialize_with = "line_of")]
    pub holder: Holder,
    /// The dataset and pool that the backups come from.
    pub origin: Origin,
    /// The hosts that made the backups, if their manifests have host marks.
    pub hosts: BTreeSet<HostMark>,
    /// The ids of its backups.
    #[serde(rename = "backups", serialize_with = "count_of")]
    pub ids: BTreeSet<BackupId>,
    /// The number of unfinished uploads.
    #[serde(rename = "unfinished")]
    pub attempts: usize,
    /// Bytes of all objects.
    pub bytes: u64,
    /// The time at which the oldest snapshot was taken.
    pub oldest: Timestamp,
    /// The time at which the newest snapshot was taken.
    pub newest: Timestamp,
    /// Whether the newest snapshot is newer than all that the pool knows: its host may still be
    /// active.
    #[serde(rename = "newer_than_ours")]
    pub is_newer: bool,
}

fn line_of<S: Serializer>(holder: &Holder, serializer: S) -> Result<S::Ok, S::Error> {
    match holder {
        Holder::Origin(_) => serializer.serialize_none(),
        Holder::Line(newest) => serializer.serialize_some(newest),
    }
}

fn count_of<S: Serializer>(ids: &BTreeSet<BackupId>, serializer: S) -> Result<S::Ok, S::Error> {
    ids.len().serialize(serializer)
}

impl Holding {
    fn new(holder: Holder, origin: Origin, at: Timestamp) -> Self {
        let hosts = BTreeSet::new();
        let ids = BTreeSet::new();
        Self {
            holder,
            origin,
            hosts,
            ids,
            attempts: 0,
            bytes: 0,
            oldest: at,
            newest: at,
            is_newer: false,
        }
    }

    fn add(&mut self, at: Timestamp, bytes: u64, host: Option<&HostMark>) {
        (self.oldest, self.newest) = (self.oldest.min(at), self.newest.max(at));
        self.bytes = self.bytes.saturating_add(bytes);
        self.hosts.extend(host.cloned());
    }

    fn add_backup(&mut self, backup: &BackupFacts) {
        self.add(
            backup.snapshot.created_at,
            backup.stored_bytes,
            backup.made.host.as_ref(),
        );
        self.ids.insert(backup.id.clone());
    }

    fn add_attempt(&mut self, attempt: &HeldAttempt) {
        self.add(attempt.at, attempt.bytes, attempt.host.as_ref());
        self.attempts += 1;
    }

    /// Whether `--origin` with these guids selects this holding.
    pub fn is_origin(&self, dataset_guid: Guid, pool_guid: Option<Guid>) -> bool {
        matches!(&self.holder, Holder::Origin(origin)
            if origin.dataset_guid == dataset_guid && pool_guid.is_none_or(|guid| guid == origin.pool_guid))
    }
}

/// Returns the holdings of others: other origins except those in `origins` (the own one and the
/// adopted ones), and other time lines of the own origin, by host. A backup that is in two stores
/// is in `backups` twice.
pub fn find_holdings(
    backups: &[BackupFacts],
    attempts: &[HeldAttempt],
    pool: &PoolView,
    origins: &[Origin],
) -> Vec<Holding> {
    let strays = Timeline::new(backups).strays(pool);
    let mut lines: BTreeMap<Option<&HostMark>, Holding> = BTreeMap::new();
    // The newest comes first, and names the time line.
    for backup in strays.iter().map(|stray| stray.backup) {
        let host = backup.made.host.as_ref();
        let holder = Holder::Line(backup.id.clone());
        let at = backup.snapshot.created_at;
        let line = lines
            .entry(host)
            .or_insert_with(|| Holding::new(holder, backup.origin.clone(), at));
        line.add_backup(backup);
    }
    let mut others: Vec<Holding> = Vec::new();
    for backup in backups
        .iter()
        .filter(|backup| !origins.contains(&backup.origin))
    {
        holding_of(&mut others, &backup.origin, backup.snapshot.created_at).add_backup(backup);
    }
    for attempt in attempts {
        if !origins.contains(&attempt.origin) {
            holding_of(&mut others, &attempt.origin, attempt.at).add_attempt(attempt);
        } else if attempt.origin == pool.origin
            && !pool.known.contains(&attempt.id.snapshot_guid())
            && let Some(line) = lines
                .get_mut(&attempt.host.as_ref())
                .filter(|_| attempt.host.is_some())
        {
            line.add_attempt(attempt);
        }
    }
    let stray: BTreeSet<&BackupId> = strays.iter().map(|stray| &stray.backup.id).collect();
    let is_ours = |backup: &&BackupFacts| {
        let is_of_line = backup.origin == pool.origin && !stray.contains(&backup.id);
        is_of_line || pool.known.contains(&backup.snapshot.guid)
    };
    let ours = backups
        .iter()
        .filter(is_ours)
        .map(|backup| backup.snapshot.created_at)
        .max();
    let mut holdings: Vec<Holding> = others.into_iter().chain(lines.into_values()).collect();
    holdings
        .iter_mut()
        .for_each(|holding| holding.is_newer = ours.is_none_or(|ours| holding.newest > ours));
    holdings
}

fn holding_of<'a>(others: &'a mut Vec<Holding>, origin: &Origin, at: Timestamp) -> &'a mut Holding {
    let place = others
        .iter()
        .position(|other| other.origin == *origin)
        .unwrap_or_else(|| {
            others.push(Holding::new(
                Holder::Origin(origin.clone()),
                origin.clone(),
                at,
            ));
            others.len() - 1
        });
    &mut others[place]
}
