//! Our holds in the pools: the snapshots, the attempts, the times, and which of the holds may be
//! released.
//!
//! A hold of ours has the tag `zfs-backup:<id>`. The hold may be released when no process works on
//! its dataset and its attempt is proved over: by a journal of this host, or by a store that has
//! the backup or the signed record of its deletion. A missing journal proves nothing: the attempt
//! may belong to another host, or to another configuration with its own state folder. In that case
//! a person must name the attempt.

use super::pins::{HOLD_PREFIX, unpin};
use super::select::Selected;
use crate::catalog::{read_catalog, read_pruned};
use crate::model::{BackupId, DatasetName, KnownStore, SnapshotName};
use crate::run::RunError;
use crate::sign::TrustedKeys;
use crate::state::StateError;
use crate::state::dataset_lock::{KernelLock, is_held, is_held_named, lock_dataset};
use crate::state::dir::state_name;
use crate::state::journal::attempts_anywhere;
use crate::store::StoreRead;
use crate::zfs::{ZfsError, ZfsRead, ZfsSnapshots};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// A hold of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OurHold {
    /// The held snapshot.
    pub snapshot: SnapshotName,
    /// The whole tag of the hold.
    pub tag: String,
    /// The attempt that needs the hold.
    #[serde(rename = "backup")]
    pub id: BackupId,
    /// The time when the hold was made.
    pub since: Timestamp,
    /// The bytes that destroying the snapshot would free. A held snapshot cannot be destroyed.
    pub used_bytes: u64,
    /// The number of all holds on the snapshot.
    #[serde(skip)]
    pub holds: u64,
}

/// A hold with the reason why it stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JudgedHold {
    /// The hold.
    #[serde(flatten)]
    pub hold: OurHold,
    /// The reason why the hold stays; `None` when it may be released.
    pub stays: Option<String>,
}

/// A hold with the result of its release; `Ok` for a hold that stays.
pub type ReleasedHold = (JudgedHold, Result<(), ZfsError>);

/// Facts about attempts from outside this host's journals.
#[derive(Debug, Default)]
pub struct KnownAttempts {
    /// The attempts that a store proves over; `None` when no store was read.
    pub over: Option<BTreeSet<BackupId>>,
    /// The attempts whose holds a person wants released.
    pub named: BTreeSet<BackupId>,
}

/// Returns our holds on the snapshots of one dataset, oldest snapshot first. A tag that names no
/// attempt is not ours.
///
/// # Errors
/// [`RunError::Zfs`] when the holds could not be listed.
pub fn our_holds(zfs: &dyn ZfsRead, dataset: &DatasetName) -> Result<Vec<OurHold>, RunError> {
    let mut ours = Vec::new();
    for snapshot in zfs
        .snapshots(dataset)?
        .into_iter()
        .filter(|snapshot| snapshot.holds > 0)
    {
        for (tag, since) in zfs.holds(&snapshot.name)? {
            let Some(id) = tag.strip_prefix(HOLD_PREFIX).and_then(|id| id.parse().ok()) else {
                continue;
            };
            let used_bytes = snapshot.used_bytes;
            let holds = snapshot.holds;
            ours.push(OurHold {
                snapshot: snapshot.name.clone(),
                tag,
                id,
                since,
                used_bytes,
                holds,
            });
        }
    }
    Ok(ours)
}

/// Returns the attempts that this store proves over, because it has the backup or a signed record
/// of its deletion.
///
/// # Errors
/// [`RunError::Store`] when the store could not be read.
pub async fn over_in(
    store: &dyn StoreRead,
    stored: &DatasetName,
    trusted: &TrustedKeys,
    ids: &BTreeSet<BackupId>,
) -> Result<BTreeSet<BackupId>, RunError> {
    let catalog = read_catalog(store, stored, trusted).await?;
    let pruned = read_pruned(store, stored, trusted).await?;
    Ok(ids
        .iter()
        .filter(|id| catalog.backup(id).is_some() || pruned.contains(id))
        .cloned()
        .collect())
}

/// Decides which of our holds on one dataset may be released. Takes no lock, and so never blocks a
/// run: the result is only a plan.
///
/// # Errors
/// [`RunError`] when something could not be read.
pub fn plan_release(
    zfs: &dyn ZfsRead,
    state_dir: &Path,
    stores: &[KnownStore],
    selected: &Selected,
    known: &KnownAttempts,
) -> Result<Vec<JudgedHold>, RunError> {
    let mut running = None;
    for store in stores {
        if is_held(state_dir, store, &selected.stored)? {
            running = Some(at_work(store));
        }
    }
    Judge {
        state_dir,
        stores,
        selected,
        known,
        running,
    }
    .judge_all(zfs)
}

/// Releases those of our holds on one dataset that may be released, and returns the result of each.
/// During the call no run can begin on the dataset in any of the stores.
///
/// # Errors
/// [`RunError`] when something could not be read; then no hold was released.
pub fn release_holds(
    zfs: &dyn ZfsSnapshots,
    state_dir: &Path,
    stores: &[KnownStore],
    selected: &Selected,
    known: &KnownAttempts,
) -> Result<Vec<ReleasedHold>, RunError> {
    let (mut locks, mut running): (Vec<KernelLock>, Option<String>) = (Vec::new(), None);
    for store in stores {
        match lock_dataset(state_dir, store, &selected.stored) {
            Ok(lock) => locks.push(lock),
            Err(StateError::Locked { .. }) => running = Some(at_work(store)),
            Err(other) => return Err(other.into()),
        }
    }
    let judged = Judge {
        state_dir,
        stores,
        selected,
        known,
        running,
    }
    .judge_all(zfs)?;
    let release = |judged: JudgedHold| {
        let outcome = match judged.stays {
            None => zfs.release(&judged.hold.snapshot, &judged.hold.tag),
            Some(_) => Ok(()),
        };
        (judged, outcome)
    };
    let released: Vec<ReleasedHold> = judged.into_iter().map(release).collect();
    let over: BTreeSet<&BackupId> = released
        .iter()
        .filter(|(judged, _)| judged.stays.is_none())
        .map(|(judged, _)| &judged.hold.id)
        .collect();
    if !over.is_empty() {
        // Release the private bookmarks of these attempts too.
        unpin(zfs, &selected.dataset.name, |id| over.contains(id))?;
    }
    drop(locks);
    Ok(released)
}

fn at_work(store: &KnownStore) -> String {
    format!("a run is at work on the dataset in {}", store.url)
}

/// Decides about the holds of one dataset.
struct Judge<'a> {
    state_dir: &'a Path,
    stores: &'a [KnownStore],
    selected: &'a Selected,
    known: &'a KnownAttempts,
    running: Option<String>,
}

impl Judge<'_> {
    fn judge_all(&self, zfs: &dyn ZfsRead) -> Result<Vec<JudgedHold>, RunError> {
        let judge = |hold: OurHold| {
            Ok(JudgedHold {
                stays: self.why_it_stays(&hold.id)?,
                hold,
            })
        };
        our_holds(zfs, &self.selected.dataset.name)?
            .into_iter()
            .map(judge)
            .collect()
    }

    fn why_it_stays(&self, id: &BackupId) -> Result<Option<String>, RunError> {
        if self.running.is_some() {
            return Ok(self.running.clone());
        }
        let attempts = attempts_anywhere(self.state_dir, id)?;
        let is_named = self.known.named.contains(id);
        let release = format!("`zfs-backup holds release --id {id} -y` releases it anyway");
        for attempt in attempts.iter().filter(|attempt| !attempt.is_abandoned) {
            let of = self
                .stores
                .iter()
                .find(|store| state_name(store, &self.selected.stored) == attempt.folder);
            if let Some(store) = of {
                return Ok(Some(format!(
                    "its upload to {} is unfinished: see `forget {id}`",
                    store.url
                )));
            }
            if is_held_named(self.state_dir, &attempt.folder)? {
                return Ok(Some(
                    "a run of another configuration is working on it".to_owned(),
                ));
            }
            if !is_named {
                return Ok(Some(format!(
                    "an unfinished upload of another configuration on this host, or of an earlier version: {release}"
                )));
            }
        }
        if is_named || attempts.iter().any(|attempt| attempt.is_abandoned) {
            return Ok(None);
        }
        Ok(match &self.known.over {
            Some(over) if over.contains(id) => None,
            Some(_) => Some(format!(
                "neither this host nor a configured store knows that its upload is over: {release}"
            )),
            None => Some(
                "this host does not know its upload: `zfs-backup holds release` asks the stores"
                    .to_owned(),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackupKind, Guid};
    use crate::run::pool::snapshot::take_snapshots;
    use crate::state::journal::{AttemptJournal, read_attempts};
    use crate::zfs::DatasetType;
    use crate::zfs::fake::FakeZfs;

    const STORES: [&str; 2] = ["s3:b", "file:/x"];

    fn stores() -> Vec<KnownStore> {
        STORES.map(KnownStore::of_url).to_vec()
    }

    fn nothing_else() -> KnownAttempts {
        KnownAttempts::default()
    }

    /// Returns facts from a store that proves these attempts over.
    fn over(nonces: &[u64]) -> KnownAttempts {
        KnownAttempts {
            over: Some(nonces.iter().map(|nonce| id(*nonce)).collect()),
            ..nothing_else()
        }
    }

    fn id(nonce: u64) -> BackupId {
        BackupId::new(Timestamp::UNIX_EPOCH, BackupKind::Full, Guid(1), nonce)
    }

    /// Returns a dataset with another name in the store, whose snapshot has two holds of ours and
    /// two of others.
    fn world() -> (FakeZfs, Selected) {
        let (zfs, name): (_, DatasetName) = (FakeZfs::new(), "tank/a".parse().unwrap());
        zfs.create(&name, DatasetType::Filesystem);
        let snapshot = take_snapshots(
            &zfs,
            std::slice::from_ref(&name),
            "p_",
            Timestamp::UNIX_EPOCH,
        )
        .unwrap()
        .remove(0);
        let ours = [1, 2].map(|nonce| format!("{HOLD_PREFIX}{}", id(nonce)));
        for tag in [&ours[0], &ours[1], "keep", "zfs-backup:mine"] {
            zfs.hold(&snapshot, tag).unwrap();
        }
        let dataset = zfs.dataset(&name).unwrap().unwrap();
        (
            zfs,
            Selected {
                dataset,
                stored: "other/name".parse().unwrap(),
            },
        )
    }

    fn kept(zfs: &FakeZfs, selected: &Selected) -> Vec<String> {
        let snapshots = zfs.snapshots(&selected.dataset.name).unwrap();
        snapshots
            .iter()
            .flat_map(|snapshot| zfs.holds(&snapshot.name).unwrap().into_keys())
            .collect()
    }

    fn stays(judged: &[JudgedHold]) -> Vec<(BackupId, bool)> {
        judged
            .iter()
            .map(|judged| (judged.hold.id.clone(), judged.stays.is_some()))
            .collect()
    }

    #[test]
    fn only_holds_of_attempts_proved_finished_are_released() {
        let (state, (zfs, selected)) = (tempfile::tempdir().unwrap(), world());
        let plan = |known: &KnownAttempts| {
            stays(&plan_release(&zfs, state.path(), &stores(), &selected, known).unwrap())
        };
        assert_eq!(
            plan(&nothing_else()),
            [(id(1), true), (id(2), true)],
            "no journal is no proof"
        );
        assert_eq!(plan(&over(&[])), [(id(1), true), (id(2), true)]);
        assert_eq!(
            plan(&over(&[1])),
            [(id(1), false), (id(2), true)],
            "a store says so"
        );
        let named = KnownAttempts {
            named: BTreeSet::from([id(2)]),
            ..nothing_else()
        };
        assert_eq!(
            plan(&named),
            [(id(1), true), (id(2), false)],
            "a person says so"
        );
        let given_up =
            AttemptJournal::begin(state.path(), &stores()[0], &selected.stored, &id(1)).unwrap();
        drop(given_up);
        read_attempts(state.path(), &stores()[0], &selected.stored).unwrap()[0]
            .abandon("tired")
            .unwrap();
        let unfinished =
            AttemptJournal::begin(state.path(), &stores()[1], &selected.stored, &id(2)).unwrap();
        unfinished.committing().unwrap();
        assert_eq!(
            plan(&nothing_else()),
            [(id(1), false), (id(2), true)],
            "a journal says so"
        );
        assert_eq!(
            plan(&named),
            [(id(1), false), (id(2), true)],
            "an unfinished upload of this configuration"
        );
        assert_eq!(kept(&zfs, &selected).len(), 4, "a plan changed something");
        let released =
            release_holds(&zfs, state.path(), &stores(), &selected, &nothing_else()).unwrap();
        assert!(released.iter().all(|(_, outcome)| outcome.is_ok()));
        let rest = [
            "keep".to_owned(),
            format!("{HOLD_PREFIX}{}", id(2)),
            format!("{HOLD_PREFIX}mine"),
        ];
        assert_eq!(kept(&zfs, &selected), rest);
    }

    #[test]
    fn hold_of_another_configuration_is_released_only_by_id_and_without_a_run() {
        let (state, (zfs, selected)) = (tempfile::tempdir().unwrap(), world());
        let other = KnownStore::of_url("b2:other/x");
        let _journal =
            AttemptJournal::begin(state.path(), &other, &selected.stored, &id(1)).unwrap();
        let named = KnownAttempts {
            named: BTreeSet::from([id(1)]),
            ..over(&[1])
        };
        let why = |known: &KnownAttempts| {
            plan_release(&zfs, state.path(), &stores(), &selected, known)
                .unwrap()
                .remove(0)
                .stays
        };
        let said = why(&over(&[1])).unwrap();
        assert!(
            said.contains("another configuration") && said.contains(&format!("--id {}", id(1))),
            "{said}"
        );
        let running = lock_dataset(state.path(), &other, &selected.stored).unwrap();
        assert!(why(&named).unwrap().contains("working on"));
        drop(running);
        assert_eq!(why(&named), None);
    }

    #[test]
    fn no_hold_is_released_during_a_run_or_with_an_unreadable_journal() {
        let (state, (zfs, selected)) = (tempfile::tempdir().unwrap(), world());
        for store in STORES {
            let _running =
                lock_dataset(state.path(), &KnownStore::of_url(store), &selected.stored).unwrap();
            for judged in [
                plan_release(&zfs, state.path(), &stores(), &selected, &over(&[1, 2])).unwrap(),
                release_holds(&zfs, state.path(), &stores(), &selected, &over(&[1, 2]))
                    .unwrap()
                    .into_iter()
                    .map(|(j, _)| j)
                    .collect(),
            ] {
                assert!(judged.iter().all(|judged| {
                    judged
                        .stays
                        .as_deref()
                        .is_some_and(|why| why.contains(store))
                }));
            }
        }
        std::fs::write(state.path().join("journal"), "no folder").unwrap();
        assert!(plan_release(&zfs, state.path(), &stores(), &selected, &over(&[1, 2])).is_err());
        assert!(release_holds(&zfs, state.path(), &stores(), &selected, &over(&[1, 2])).is_err());
        assert_eq!(kept(&zfs, &selected).len(), 4);
    }
}
