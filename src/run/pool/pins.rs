//! The pins of an unfinished upload in the pool: a persistent hold on its snapshot, and on the base
//! if it is a snapshot, tagged with this tool and the id; or a private bookmark of a base that is a
//! bookmark.
//!
//! The pins are made after the journal says that the attempt begins, and released only when the
//! attempt is known to be over: committed, abandoned, pruned or forgotten. Making and releasing
//! pins can be repeated at any time. A crash between the two leaks nothing, because a later run
//! finds the pins by the id.

use crate::model::{BackupId, BookmarkName, DatasetName, SnapshotName};
use crate::run::RunError;
use crate::zfs::{SendBase, ZfsErrno, ZfsError, ZfsRead, ZfsSnapshots};
use std::collections::BTreeSet;

/// The prefix of the tags of our holds.
pub const HOLD_PREFIX: &str = "zfs-backup:";
/// The prefix of private bookmarks, before the id.
const BASE_PREFIX: &str = "zfs-backup_base_";

fn tag(id: &BackupId) -> String {
    format!("{HOLD_PREFIX}{id}")
}

/// Pins what an upload needs. Existing pins stay as they are. A pool that was imported read-only
/// has no pins, and needs none: nothing can be destroyed in it.
///
/// # Errors
/// [`ZfsError`] when a snapshot could not be held.
pub fn pin(
    zfs: &dyn ZfsSnapshots,
    id: &BackupId,
    snapshot: &SnapshotName,
    base: Option<&SendBase>,
) -> Result<(), ZfsError> {
    let held = |name: &SnapshotName| match zfs.hold(name, &tag(id)) {
        Err(error) if error.errno() == Some(ZfsErrno::EXISTS) => Ok(()),
        result => result,
    };
    match held(snapshot) {
        Err(error) if error.errno() == Some(ZfsErrno::READ_ONLY) => {
            tracing::warn!(
                pool = snapshot.dataset().pool(),
                "the pool was imported read-only: {snapshot} is streamed without a hold, and gets no bookmark"
            );
            return Ok(());
        }
        result => result?,
    }
    match base {
        None => Ok(()),
        Some(SendBase::Snapshot(base)) => held(base),
        Some(source @ SendBase::Bookmark(of)) => {
            let Ok(name) = of.dataset().bookmark(&format!("{BASE_PREFIX}{id}")) else {
                return Ok(());
            };
            match zfs.bookmark(&name, source) {
                // An old pool cannot copy bookmarks; the original bookmark still serves.
                Err(error) if error.errno() != Some(ZfsErrno::EXISTS) => {
                    tracing::warn!(%error, base = %of, "no private bookmark of the base was made");
                }
                _ => {}
            }
            Ok(())
        }
    }
}

/// Returns the attempts for which this dataset has pins.
///
/// # Errors
/// [`RunError::Zfs`] when holds or bookmarks could not be listed.
pub fn pinned(zfs: &dyn ZfsRead, dataset: &DatasetName) -> Result<BTreeSet<BackupId>, RunError> {
    Ok(find(zfs, dataset)?.into_iter().map(|pin| pin.id).collect())
}

/// Releases the pins of attempts that are over. If there are none, the call costs one listing.
///
/// # Errors
/// [`RunError::Zfs`] at the first pin that could not be listed or released; the others stay until
/// the next call.
pub fn unpin(
    zfs: &dyn ZfsSnapshots,
    dataset: &DatasetName,
    is_over: impl Fn(&BackupId) -> bool,
) -> Result<(), RunError> {
    for pin in find(zfs, dataset)?
        .into_iter()
        .filter(|pin| is_over(&pin.id))
    {
        match &pin.on {
            PinnedThing::Snapshot(name) => zfs.release(name, &tag(&pin.id))?,
            PinnedThing::Bookmark(name) => zfs.destroy_bookmarks(std::slice::from_ref(name))?,
        }
        tracing::debug!(id = %pin.id, %dataset, "released a hold or bookmark of an upload that is over");
    }
    Ok(())
}

/// Does the same as [`unpin`]. In a pool that was imported read-only the pins stay until a later
/// run. Returns whether they are gone.
///
/// # Errors
/// As for [`unpin`].
pub fn unpin_if_writable(
    zfs: &dyn ZfsSnapshots,
    dataset: &DatasetName,
    is_over: impl Fn(&BackupId) -> bool,
) -> Result<bool, RunError> {
    match unpin(zfs, dataset, is_over) {
        Err(RunError::Zfs(error)) if error.errno() == Some(ZfsErrno::READ_ONLY) => {
            tracing::warn!(%dataset, "holds of uploads that are over stay: the pool was imported read-only");
            Ok(false)
        }
        result => result.map(|()| true),
    }
}

struct Pin {
    id: BackupId,
    on: PinnedThing,
}

enum PinnedThing {
    Snapshot(SnapshotName),
    Bookmark(BookmarkName),
}

fn find(zfs: &dyn ZfsRead, dataset: &DatasetName) -> Result<Vec<Pin>, RunError> {
    let mut pins = Vec::new();
    for snapshot in zfs
        .snapshots(dataset)?
        .into_iter()
        .filter(|snapshot| snapshot.holds > 0)
    {
        let tags = zfs.holds(&snapshot.name)?.into_keys();
        let ids = tags.filter_map(|tag| tag.strip_prefix(HOLD_PREFIX)?.parse().ok());
        pins.extend(ids.map(|id| Pin {
            id,
            on: PinnedThing::Snapshot(snapshot.name.clone()),
        }));
    }
    for bookmark in zfs.bookmarks(dataset)? {
        let id = bookmark
            .name
            .short()
            .strip_prefix(BASE_PREFIX)
            .and_then(|id| id.parse().ok());
        pins.extend(id.map(|id| Pin {
            id,
            on: PinnedThing::Bookmark(bookmark.name),
        }));
    }
    Ok(pins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{BackupKind, Guid};
    use crate::run::pool::snapshot::take_snapshots;
    use crate::zfs::DatasetType;
    use crate::zfs::fake::FakeZfs;
    use jiff::Timestamp;

    #[test]
    fn pins_are_made_once_and_released_by_backup_id() {
        let (zfs, dataset): (_, DatasetName) = (FakeZfs::new(), "tank/a".parse().unwrap());
        zfs.create(&dataset, DatasetType::Filesystem);
        let take = || {
            take_snapshots(
                &zfs,
                std::slice::from_ref(&dataset),
                "p_",
                Timestamp::UNIX_EPOCH,
            )
            .unwrap()
            .remove(0)
        };
        let (first, second) = (take(), take());
        let mark = dataset.bookmark("mark").unwrap();
        zfs.bookmark(&mark, &SendBase::Snapshot(first.clone()))
            .unwrap();
        let id = |nonce| BackupId::new(Timestamp::UNIX_EPOCH, BackupKind::Incr, Guid(1), nonce);
        for _ in 0..2 {
            pin(
                &zfs,
                &id(1),
                &second,
                Some(&SendBase::Snapshot(first.clone())),
            )
            .unwrap();
            pin(
                &zfs,
                &id(2),
                &second,
                Some(&SendBase::Bookmark(mark.clone())),
            )
            .unwrap();
        }
        zfs.hold(&second, "mine").unwrap();
        assert_eq!(
            pinned(&zfs, &dataset).unwrap(),
            BTreeSet::from([id(1), id(2)])
        );
        let counts = || {
            (
                zfs.holds(&first).unwrap().len(),
                zfs.holds(&second).unwrap().len(),
            )
        };
        assert_eq!(
            (counts(), zfs.bookmarks(&dataset).unwrap().len()),
            ((1, 3), 2)
        );
        unpin(&zfs, &dataset, |over| *over == id(2)).unwrap();
        assert_eq!(
            (counts(), zfs.bookmarks(&dataset).unwrap().len()),
            ((1, 2), 1)
        );
        unpin(&zfs, &dataset, |_| true).unwrap();
        assert_eq!(
            (counts(), zfs.bookmarks(&dataset).unwrap()[0].name.clone()),
            ((0, 1), mark)
        );
    }
}
