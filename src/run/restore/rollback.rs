//! [`Rollback`]: the list of snapshots and bookmarks to destroy so that a chain can continue from
//! the newest snapshot that a dataset has in common with the chain.
//!
//! The kernel's forced receive destroys at its END everything that is then newer than the base,
//! even a snapshot that was taken hours after the list was shown. So nothing is received with
//! force:
//! - the list is made first, with every obstacle to the rollback;
//! - exactly the list is destroyed, by name and guid, before a byte is fetched;
//! - the dataset is then readonly and rolled back, and any later change stops the receive.

use super::mark::RestoreMark;
use crate::model::{BookmarkName, DatasetName, Guid, SnapshotName};
use crate::run::{RunError, error_chain};
use crate::zfs::{Dataset, PropertyValue, Snapshot, Zfs, ZfsRead, ZfsReceive};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;

/// The list of a rollback: exactly these snapshots and bookmarks are destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rollback {
    /// The dataset's guid.
    #[serde(skip)]
    pub dataset: Guid,
    /// The snapshot that the dataset is rolled back to.
    pub base: SnapshotName,
    /// The guid of the snapshot that the dataset is rolled back to.
    #[serde(skip)]
    pub base_guid: Guid,
    /// The snapshots after it, oldest first.
    pub snapshots: Vec<LostSnapshot>,
    /// Bookmarks of states after it: the kernel refuses a rollback while they exist.
    pub bookmarks: Vec<LostBookmark>,
    /// The bytes written since the newest snapshot; `None` when ZFS does not report them.
    pub written_bytes: Option<u64>,
}

/// A snapshot that the rollback destroys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostSnapshot {
    /// The snapshot's name.
    pub name: SnapshotName,
    /// The snapshot's guid.
    pub guid: Guid,
    /// The time at which it was taken.
    pub created_at: Timestamp,
}

/// A bookmark that the rollback destroys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostBookmark {
    /// The bookmark's name.
    pub name: BookmarkName,
    /// The bookmark's guid.
    pub guid: Guid,
}

impl Rollback {
    /// Lists what the rollback destroys; `newer` are the snapshots after `base`.
    ///
    /// # Errors
    /// [`RunError::Refused`] naming holds and clones that prevent the rollback; [`RunError::Zfs`].
    pub(super) fn plan(
        zfs: &dyn ZfsRead,
        dataset: &Dataset,
        base: &Snapshot,
        newer: &[Snapshot],
    ) -> Result<Self, RunError> {
        refuse_kept(zfs, newer)?;
        let bookmarks = zfs.bookmarks(&dataset.name)?.into_iter();
        let bookmarks = bookmarks.filter(|bookmark| bookmark.createtxg > base.createtxg);
        let lost = |snapshot: &Snapshot| LostSnapshot {
            name: snapshot.name.clone(),
            guid: snapshot.guid,
            created_at: snapshot.created_at,
        };
        Ok(Self {
            dataset: dataset.guid,
            base: base.name.clone(),
            base_guid: base.guid,
            snapshots: newer.iter().map(lost).collect(),
            bookmarks: bookmarks
                .map(|bookmark| LostBookmark {
                    name: bookmark.name,
                    guid: bookmark.guid,
                })
                .collect(),
            written_bytes: written_bytes(dataset),
        })
    }

    /// Makes the same list again from the present state.
    fn plan_again(&self, zfs: &dyn ZfsRead) -> Result<Self, RunError> {
        let name = self.base.dataset();
        let dataset = zfs
            .dataset(name)?
            .filter(|dataset| dataset.guid == self.dataset);
        let dataset = dataset.ok_or_else(|| self.changed("it is another dataset now"))?;
        let snapshots = zfs.snapshots(name)?;
        let at = snapshots
            .iter()
            .position(|snapshot| snapshot.guid == self.base_guid);
        let at = at.ok_or_else(|| self.changed(&format!("{} is gone", self.base)))?;
        Self::plan(zfs, &dataset, &snapshots[at], &snapshots[at + 1..])
    }

    /// Marks the dataset, makes it readonly, destroys the listed snapshots and bookmarks if the
    /// list is still complete, and rolls back.
    ///
    /// # Errors
    /// [`RunError`]. When nothing was destroyed, the dataset is as it was.
    pub(super) fn carry_out(&self, zfs: &dyn Zfs, mark: &RestoreMark) -> Result<(), RunError> {
        // Compared before anything is set, so that an outdated list changes nothing at all.
        if self.plan_again(zfs)? != *self {
            return Err(self.changed("other snapshots, bookmarks or data than were listed"));
        }
        let target = self.base.dataset();
        let before = zfs
            .dataset(target)?
            .ok_or_else(|| self.changed("it is gone"))?;
        let properties: BTreeMap<_, _> = [
            mark.to_property(),
            ("readonly".to_owned(), PropertyValue::Number(1)),
        ]
        .into_iter()
        .collect();
        zfs.set_properties(target, &properties)?;
        match self.destroy_listed(zfs) {
            Ok(()) => Ok(()),
            Err(error) => {
                give_back(zfs, &before, &properties);
                Err(error)
            }
        }
    }

    fn destroy_listed(&self, zfs: &dyn Zfs) -> Result<(), RunError> {
        // The dataset is readonly, so after this comparison only snapshots and bookmarks can still
        // change.
        if self.plan_again(zfs)? != *self {
            return Err(self.changed("other snapshots, bookmarks or data than were listed"));
        }
        for lost in self.snapshots.iter().rev() {
            match zfs.snapshot(&lost.name)? {
                Some(there) if there.guid == lost.guid => {
                    zfs.destroy_snapshots(std::slice::from_ref(&lost.name))?
                }
                Some(_) => {
                    return Err(self.changed(&format!("{} is another snapshot now", lost.name)));
                }
                // A snapshot that is already gone needs no action.
                None => {}
            }
        }
        if !self.bookmarks.is_empty() {
            let there = zfs.bookmarks(self.base.dataset())?;
            for LostBookmark { name, guid } in &self.bookmarks {
                if there
                    .iter()
                    .any(|bookmark| bookmark.name == *name && bookmark.guid == *guid)
                {
                    zfs.destroy_bookmarks(std::slice::from_ref(name))?;
                }
            }
        }
        zfs.roll_back(self.base.dataset(), &self.base)
            .map_err(|error| match error.errno() {
                Some(errno) if errno.0 == libc::EEXIST => {
                    self.changed("a snapshot or a bookmark appeared")
                }
                _ => error.into(),
            })
    }

    fn changed(&self, what: &str) -> RunError {
        let target = self.base.dataset();
        let quoted = shell_words::quote(target.as_str());
        RunError::refused(
            format!("{target} changed after the list of what would be destroyed was made: {what}"),
            format!(
                "run the command again for a new list; to prevent other changes until then: zfs set readonly=on {quoted}"
            ),
        )
    }
}

/// Returns the bytes written since the newest snapshot.
pub(super) fn written_bytes(dataset: &Dataset) -> Option<u64> {
    match dataset.properties.get("written")?.value {
        PropertyValue::Number(bytes) => Some(bytes),
        PropertyValue::Text(_) => None,
    }
}

/// Refuses when holds or clones protect a snapshot, before anything is destroyed.
fn refuse_kept(zfs: &dyn ZfsRead, snapshots: &[Snapshot]) -> Result<(), RunError> {
    let mut commands = Vec::new();
    let mut kept = Vec::new();
    for snapshot in snapshots {
        let name = snapshot.name.to_string();
        let quoted = shell_words::quote(&name);
        if snapshot.holds > 0 {
            for tag in zfs.holds(&snapshot.name)?.keys() {
                let quoted_tag = shell_words::quote(tag);
                commands.push(format!("zfs release {quoted_tag} {quoted}"));
            }
            kept.push(format!("{name} is held"));
        }
        if snapshot.clones > 0 {
            commands.push(format!("zfs get -H -o value clones {quoted}"));
            kept.push(format!("{name} has a clone"));
        }
    }
    if kept.is_empty() {
        return Ok(());
    }
    let what = format!(
        "the rollback would have to destroy protected snapshots: {}",
        kept.join(", ")
    );
    Err(RunError::refused(
        what,
        format!("if it may go: {}", commands.join("; ")),
    ))
}

/// Resets the properties that the restore set to their earlier values.
fn give_back(zfs: &dyn ZfsReceive, before: &Dataset, set: &BTreeMap<String, PropertyValue>) {
    let name = &before.name;
    for property in set.keys() {
        let own = super::mark::own(before, property).map(|own| own.value.clone());
        let undone = match own {
            Some(value) => zfs.set_properties(name, &[(property.clone(), value)].into()),
            None => zfs.inherit_property(name, property),
        };
        if let Err(error) = undone {
            tracing::warn!(
                error = error_chain(&error),
                "cannot reset {property} of {name}, which the restore had set"
            );
        }
    }
}

/// Names a snapshot of the target that is not known by its guid or its short name.
///
/// # Errors
/// [`RunError::Zfs`].
pub(super) fn find_stranger(
    zfs: &dyn ZfsRead,
    target: &DatasetName,
    known: impl Fn(Guid, &str) -> bool,
) -> Result<Option<SnapshotName>, RunError> {
    let mut snapshots = zfs.snapshots(target)?.into_iter();
    let stranger = snapshots.find(|snapshot| !known(snapshot.guid, snapshot.name.short()));
    Ok(stranger.map(|snapshot| snapshot.name))
}
