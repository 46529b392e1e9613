//! Prunes of other hosts that may be running in the same dataset, as their records show.
//!
//! The kernel lock excludes the other runs of this host, but nothing excludes another host from the
//! store. A prune puts a signed record before it deletes. A young record that this host did not
//! put, and that names a backup which still exists, belongs to a prune that is running or has
//! crashed. Until that prune has ended or is too old:
//! - this host deletes nothing, because backups that the other prune will delete must not count as
//!   kept;
//! - the record stays, because an upload that begins now must see that its base is about to be
//!   deleted.

use super::PruneEnv;
use crate::catalog::{Catalog, PRUNE_MAX};
use crate::manifest::PruneRecord;
use crate::model::{BackupId, DatasetName};
use crate::plan::prune::OtherPrune;
use crate::run::RunError;
use crate::state::prune_records::OwnPruneRecords;
use crate::store::ObjectKey;

/// The records that this host put into one store for one dataset.
pub(super) struct OwnRecords(OwnPruneRecords);

impl OwnRecords {
    /// Reads which records this host put.
    ///
    /// # Errors
    /// [`RunError::State`] when that is not known.
    pub(super) fn read(env: &PruneEnv, dataset: &DatasetName) -> Result<Self, RunError> {
        let records = OwnPruneRecords::read(&env.state_dir, &env.store.known(), dataset)?;
        Ok(Self(records))
    }

    /// Notes a record before it is put. On disk when it returns.
    ///
    /// # Errors
    /// [`RunError::State`]; then the record may not be put.
    pub(super) fn note(self, key: &ObjectKey) -> Result<(), RunError> {
        Ok(self.0.note(key.as_str())?)
    }

    /// Whether the prune that put this record may still be running on another host.
    pub(super) fn is_of_other_prune(
        &self,
        env: &PruneEnv,
        (key, record): &(ObjectKey, PruneRecord),
    ) -> bool {
        let recorded_at = record.recorded_at.unwrap_or(record.written_at);
        let is_young = env.now.duration_since(recorded_at) < PRUNE_MAX;
        is_young && !self.0.contains(key.as_str())
    }

    /// Returns the prune of another host that may be running: one of its records names a backup
    /// that still exists.
    pub(super) fn other_prune(
        &self,
        env: &PruneEnv,
        records: &[(ObjectKey, PruneRecord)],
        catalog: &Catalog,
    ) -> Option<OtherPrune> {
        let mut others = records
            .iter()
            .filter(|record| self.is_of_other_prune(env, record));
        let is_there = |id: &&BackupId| catalog.backup(id).is_some();
        others.find_map(|(_, record)| {
            let id = record
                .pruned
                .iter()
                .map(|entry| &entry.id)
                .find(is_there)?
                .clone();
            Some(OtherPrune {
                id,
                at: record.recorded_at.unwrap_or(record.written_at),
            })
        })
    }
}
