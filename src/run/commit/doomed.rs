//! [`find_doomed`]: the backups that a prune of another host may be deleting, so that no upload
//! builds on them or puts them again.

pub(in crate::run) use crate::catalog::PRUNE_MAX;
use crate::catalog::read_prune_records_through;
use crate::manifest::PruneRecord;
use crate::model::{BackupId, DatasetName};
use crate::run::RunError;
use crate::sign::TrustedKeys;
use crate::state::manifests::{CacheMode, ObjectCache};
use crate::state::prune_records::OwnPruneRecords;
use crate::store::{ObjectKey, StoreRead};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::path::Path;

/// The dataset, keys and clock with which an upload reads the prune records of a store.
pub(in crate::run) struct RecordsOf<'a> {
    pub(in crate::run) dataset: &'a DatasetName,
    pub(in crate::run) trusted: &'a TrustedKeys,
    pub(in crate::run) state_dir: &'a Path,
    /// The present time by this host's clock.
    pub(in crate::run) now: Timestamp,
    /// Whether the dataset's lock excludes the prunes of this host in that store.
    pub(in crate::run) is_locked: bool,
}

/// Returns those of `ids` that a prune may be deleting from the store. A prune puts its record
/// before its last check for `started.json`. An upload that calls this function after it put
/// `started.json` therefore sees the record, or the prune sees the upload.
///
/// A record older than [`PRUNE_MAX`] belongs to a prune that failed, and does not tell what still
/// exists. The store's own clock measures its age: the clock of the host that put it may be wrong
/// by years, and so may this host's. Only a store without a clock has nothing but their dates.
///
/// # Errors
/// [`RunError::Store`] when the records or the store's clock cannot be read; [`RunError::State`].
pub(in crate::run) async fn find_doomed(
    store: &dyn StoreRead,
    of: &RecordsOf<'_>,
    ids: &BTreeSet<&BackupId>,
) -> Result<BTreeSet<BackupId>, RunError> {
    let cache = ObjectCache::open(
        of.state_dir,
        &store.known(),
        of.dataset,
        CacheMode::ReadWrite,
    );
    let records = read_prune_records_through(store, of.dataset, of.trusted, None, &cache).await?;
    let own = OwnPruneRecords::read(of.state_dir, &store.known(), of.dataset)?;
    let is_over = |key: &ObjectKey| of.is_locked && own.contains(key.as_str());
    let is_named = |record: &PruneRecord| record.pruned.iter().any(|entry| ids.contains(&entry.id));
    let named: Vec<PruneRecord> = records
        .into_iter()
        .filter(|(key, record)| !is_over(key) && is_named(record))
        .map(|(_, record)| record)
        .collect();
    if named.is_empty() {
        return Ok(BTreeSet::new());
    }
    let now = store.clock().await?.unwrap_or(of.now);
    let is_young = |record: &PruneRecord| now.duration_since(record.put_at()) < PRUNE_MAX;
    let doomed = named
        .into_iter()
        .filter(is_young)
        .flat_map(|record| record.pruned)
        .map(|entry| entry.id);
    Ok(doomed.filter(|id| ids.contains(id)).collect())
}
