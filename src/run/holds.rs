//! What we hold in the pools: which snapshots, for which attempt, since when; and which of that may go.
//!
//! A hold of ours has the tag `zfs-backup:<id>`. It may go when nobody works on its dataset and no journal of this host
//! says that its attempt is not over: then nothing will ever ask for that snapshot under that id again.

use super::RunError;
use super::journal::{read_attempts, unended};
use super::lock::{KernelLock, is_held, lock_dataset};
use super::pins::unpin;
use super::select::Selected;
use crate::model::{BackupId, DatasetName, SnapshotName};
use crate::zfs::{Zfs, ZfsError};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::Path;

/// What the tags of our holds begin with.
pub const HOLD_PREFIX: &str = "zfs-backup:";

/// One hold of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurHold {
    /// The snapshot that it keeps.
    pub snapshot: SnapshotName,
    /// The whole tag.
    pub tag: String,
    /// The attempt that it is for; `None` when the tag names none.
    pub id: Option<BackupId>,
    /// Since when.
    pub since: Timestamp,
    /// Bytes that destroying the snapshot would free, which nothing can do while it is held.
    pub used_bytes: u64,
    /// How many holds the snapshot has in all.
    pub holds: u64,
}

/// One hold with the reason why it stays; `None` when it may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedHold {
    /// The hold.
    pub hold: OurHold,
    /// Why it stays.
    pub stays: Option<String>,
}

/// A hold with what releasing it gave; `Ok` for one that stays.
pub type ReleasedHold = (JudgedHold, Result<(), ZfsError>);

/// Our holds on the snapshots of one dataset, oldest snapshot first.
///
/// # Errors
/// [`RunError::Zfs`] when they could not be listed.
pub fn our_holds(zfs: &dyn Zfs, dataset: &DatasetName) -> Result<Vec<OurHold>, RunError> {
    let mut ours = Vec::new();
    for snapshot in zfs.snapshots(dataset)?.into_iter().filter(|snapshot| snapshot.holds > 0) {
        for (tag, since) in zfs.holds(&snapshot.name)? {
            let Some(id) = tag.strip_prefix(HOLD_PREFIX).map(|id| id.parse().ok()) else { continue };
            let (used_bytes, holds) = (snapshot.used_bytes, snapshot.holds);
            ours.push(OurHold { snapshot: snapshot.name.clone(), tag, id, since, used_bytes, holds });
        }
    }
    Ok(ours)
}

/// Which of our holds on one dataset may go. Takes no lock, so that it is never in the way of a run: for a plan only.
///
/// # Errors
/// [`RunError`] when something could not be found out.
pub fn plan_release(
    zfs: &dyn Zfs,
    state_dir: &Path,
    store_urls: &[String],
    selected: &Selected,
) -> Result<Vec<JudgedHold>, RunError> {
    let mut running = None;
    for store_url in store_urls {
        if is_held(state_dir, store_url, &selected.stored)? {
            running = Some(at_work(store_url));
        }
    }
    judge(zfs, state_dir, store_urls, selected, running.as_deref())
}

/// Releases those of our holds on one dataset that may go, each with its outcome. While it works no run can begin on
/// the dataset in any of the stores.
///
/// # Errors
/// [`RunError`] when something could not be found out; then nothing was released.
pub fn release_holds(
    zfs: &dyn Zfs,
    state_dir: &Path,
    store_urls: &[String],
    selected: &Selected,
) -> Result<Vec<ReleasedHold>, RunError> {
    let (mut locks, mut running): (Vec<KernelLock>, Option<String>) = (Vec::new(), None);
    for store_url in store_urls {
        match lock_dataset(state_dir, store_url, &selected.stored) {
            Ok(lock) => locks.push(lock),
            Err(RunError::Locked { .. }) => running = Some(at_work(store_url)),
            Err(other) => return Err(other),
        }
    }
    let judged = judge(zfs, state_dir, store_urls, selected, running.as_deref())?;
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
        .filter_map(|(judged, _)| judged.hold.id.as_ref())
        .collect();
    if !over.is_empty() {
        // Their private bookmarks go too.
        unpin(zfs, &selected.dataset.name, |id| over.contains(id))?;
    }
    drop(locks);
    Ok(released)
}

fn at_work(store_url: &str) -> String {
    format!("a run is at work on the dataset in {store_url}")
}

fn judge(
    zfs: &dyn Zfs,
    state_dir: &Path,
    store_urls: &[String],
    selected: &Selected,
    running: Option<&str>,
) -> Result<Vec<JudgedHold>, RunError> {
    let mut unfinished = Vec::new();
    for store_url in store_urls {
        let given_up: BTreeSet<BackupId> = read_attempts(state_dir, store_url, &selected.stored)?
            .into_iter()
            .filter_map(|attempt| attempt.is_given_up().then_some(attempt.id))
            .collect();
        let ids = unended(state_dir, store_url, &selected.stored)?;
        let alive = ids.into_iter().filter(|id| !given_up.contains(id));
        unfinished.extend(alive.map(|id| (id, store_url.as_str())));
    }
    let judged = our_holds(zfs, &selected.dataset.name)?.into_iter().map(|hold| {
        let attempt = unfinished.iter().find(|(id, _)| Some(id) == hold.id.as_ref());
        let of_attempt = attempt.map(|(id, store)| format!("its upload to {store} is unfinished: see `forget {id}`"));
        JudgedHold { stays: running.map(str::to_owned).or(of_attempt), hold }
    });
    Ok(judged.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackupKind, Guid};
    use crate::run::journal::AttemptJournal;
    use crate::run::snapshot::take_snapshots;
    use crate::zfs::DatasetType;
    use crate::zfs::fake::FakeZfs;

    const STORES: [&str; 2] = ["s3:b", "file:/x"];

    fn stores() -> Vec<String> {
        STORES.map(str::to_owned).to_vec()
    }

    fn id(nonce: u64) -> BackupId {
        BackupId::new(Timestamp::UNIX_EPOCH, BackupKind::Full, Guid(1), nonce)
    }

    /// A dataset, under another name in the store, whose snapshot is held by us twice and by somebody else.
    fn world() -> (FakeZfs, Selected) {
        let (zfs, name): (_, DatasetName) = (FakeZfs::new(), "tank/a".parse().unwrap());
        zfs.create(&name, DatasetType::Filesystem);
        let snapshot =
            take_snapshots(&zfs, std::slice::from_ref(&name), "p_", Timestamp::UNIX_EPOCH).unwrap().remove(0);
        for tag in [&format!("{HOLD_PREFIX}{}", id(1)), &format!("{HOLD_PREFIX}{}", id(2)), "keep"] {
            zfs.hold(&snapshot, tag).unwrap();
        }
        let dataset = zfs.dataset(&name).unwrap().unwrap();
        (zfs, Selected { dataset, stored: "other/name".parse().unwrap() })
    }

    fn kept(zfs: &FakeZfs, selected: &Selected) -> Vec<String> {
        let snapshots = zfs.snapshots(&selected.dataset.name).unwrap();
        snapshots.iter().flat_map(|snapshot| zfs.holds(&snapshot.name).unwrap().into_keys()).collect()
    }

    #[test]
    fn only_holds_of_attempts_that_are_over_go() {
        let (state, (zfs, selected)) = (tempfile::tempdir().unwrap(), world());
        let journal = AttemptJournal::begin(state.path(), STORES[1], &selected.stored, &id(2)).unwrap();
        journal.committing().unwrap();
        let planned = plan_release(&zfs, state.path(), &stores(), &selected).unwrap();
        let stays: Vec<_> = planned.iter().map(|judged| (judged.hold.id.clone(), judged.stays.is_some())).collect();
        assert_eq!(stays, [(Some(id(1)), false), (Some(id(2)), true)]);
        assert_eq!(kept(&zfs, &selected).len(), 3, "a plan changed something");
        let released = release_holds(&zfs, state.path(), &stores(), &selected).unwrap();
        assert!(released.iter().all(|(_, outcome)| outcome.is_ok()));
        assert_eq!(kept(&zfs, &selected), ["keep".to_owned(), format!("{HOLD_PREFIX}{}", id(2))]);
    }

    #[test]
    fn nothing_goes_while_a_run_is_at_work_in_any_store_or_when_a_journal_cannot_be_read() {
        let (state, (zfs, selected)) = (tempfile::tempdir().unwrap(), world());
        for store in STORES {
            let _running = lock_dataset(state.path(), store, &selected.stored).unwrap();
            for judged in [
                plan_release(&zfs, state.path(), &stores(), &selected).unwrap(),
                release_holds(&zfs, state.path(), &stores(), &selected).unwrap().into_iter().map(|(j, _)| j).collect(),
            ] {
                assert!(judged.iter().all(|judged| judged.stays.as_deref().is_some_and(|why| why.contains(store))));
            }
        }
        std::fs::write(state.path().join("journal"), "no folder").unwrap();
        assert!(plan_release(&zfs, state.path(), &stores(), &selected).is_err());
        assert!(release_holds(&zfs, state.path(), &stores(), &selected).is_err());
        assert_eq!(kept(&zfs, &selected).len(), 3);
    }
}
