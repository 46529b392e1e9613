//! Reads the pool's side of a question about backups: the snapshots of them that the pool still
//! knows.

use crate::manifest::Origin;
use crate::model::{DatasetName, KnownStore};
use crate::plan::timeline::PoolView;
use crate::run::RunError;
use crate::state::adoption::adopted_backups;
use crate::zfs::ZfsRead;
use std::path::Path;

/// Reads what the pool knows of the backups of a dataset: its snapshots and bookmarks, and the
/// origins adopted in that store.
///
/// # Errors
/// [`RunError::Zfs`] when the pool cannot be read, [`RunError::State`] when the adoptions cannot be
/// read.
pub fn pool_view(
    zfs: &dyn ZfsRead,
    dataset: &DatasetName,
    (state_dir, store, stored): (&Path, &KnownStore, &DatasetName),
    own: &Origin,
) -> Result<PoolView, RunError> {
    let snapshots = zfs
        .snapshots(dataset)?
        .into_iter()
        .map(|snapshot| snapshot.guid);
    let bookmarks = zfs
        .bookmarks(dataset)?
        .into_iter()
        .map(|bookmark| bookmark.guid);
    let known = snapshots.chain(bookmarks).collect();
    let adopted = adopted_backups(state_dir, store, stored, own)?;
    Ok(PoolView {
        origin: own.clone(),
        known,
        adopted,
    })
}
