//! Finds own bookmarks that are no longer needed.

use super::BackupFacts;
use super::levels::base_guids;
use crate::config::KeepLevels;
use crate::model::{BackupId, BookmarkName, Guid};
use crate::zfs::Bookmark;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The prefix of the names of own bookmarks. The guid of the snapshot follows it.
pub const BOOKMARK_PREFIX: &str = "zfs-backup_";

/// The number of newest chains in each store whose bookmarks are kept.
const CHAINS_KEPT: usize = 2;

/// Whether the bookmark has exactly the name that this tool gives, including its own guid.
pub fn is_own(bookmark: &Bookmark) -> bool {
    bookmark
        .name
        .short()
        .strip_prefix(BOOKMARK_PREFIX)
        .and_then(|guid| guid.parse().ok())
        == Some(bookmark.guid)
}

/// The reasons to keep bookmarks.
#[derive(Debug, Default)]
pub struct BookmarkNeeds {
    /// The backups of each configured store.
    pub stores: Vec<Vec<BackupFacts>>,
    /// Snapshots and bases of unfinished uploads.
    pub unfinished: BTreeSet<Guid>,
    /// Snapshots of pruned backups. Together with the snapshots in the stores they are all that
    /// this configuration ever stored. A bookmark of any other snapshot may belong to another
    /// configuration.
    pub pruned: BTreeSet<Guid>,
    /// Snapshots that the stores of other configurations on this host need.
    pub elsewhere: BTreeSet<Guid>,
    /// The configured levels.
    pub levels: Option<KeepLevels>,
}

/// Returns own bookmarks that neither the newest two usable chains of any store (see
/// [`needed_guids`]) nor an unfinished upload needs.
pub fn spent_bookmarks(bookmarks: &[Bookmark], needs: &BookmarkNeeds) -> Vec<BookmarkName> {
    let mut needed: BTreeSet<Guid> = needs.unfinished.union(&needs.elsewhere).copied().collect();
    let mut known = needs.pruned.clone();
    for store in &needs.stores {
        needed.extend(needed_guids(store, needs.levels.as_ref()));
        known.extend(store.iter().map(|backup| backup.snapshot.guid));
    }
    let spent = |bookmark: &&Bookmark| {
        is_own(bookmark) && known.contains(&bookmark.guid) && !needed.contains(&bookmark.guid)
    };
    bookmarks
        .iter()
        .filter(spent)
        .map(|bookmark| bookmark.name.clone())
        .collect()
}

/// Returns the snapshots of usable backups in the newest chains: all of them, or with levels only
/// those on which the next backup of each level can build. If the newest backup is damaged, an older
/// one can be the base. The chain before the newest one counts too: a bookmark costs nothing, and a
/// full that is lost is then no reason for another full.
pub fn needed_guids<'a>(
    store: impl IntoIterator<Item = &'a BackupFacts>,
    keep: Option<&KeepLevels>,
) -> BTreeSet<Guid> {
    let usable: Vec<&BackupFacts> = store
        .into_iter()
        .filter(|backup| backup.is_usable())
        .collect();
    let mut newest: BTreeMap<&BackupId, _> = BTreeMap::new();
    for backup in &usable {
        let at = newest
            .entry(&backup.full_id)
            .or_insert(backup.snapshot.created_at);
        *at = backup.snapshot.created_at.max(*at);
    }
    let mut chains: Vec<_> = newest.into_iter().collect();
    chains.sort_by_key(|(id, at)| Reverse((*at, (*id).clone())));
    let kept: BTreeSet<&BackupId> = chains
        .into_iter()
        .take(CHAINS_KEPT)
        .map(|(id, _)| id)
        .collect();
    if let Some(keep) = keep {
        return base_guids(&usable, &kept, keep);
    }
    let members = usable
        .iter()
        .filter(|backup| kept.contains(&backup.full_id));
    members.map(|backup| backup.snapshot.guid).collect()
}
