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
use crate::plan::clock::is_in_future;
use crate::plan::prune::OtherPrune;
use crate::run::RunError;
use crate::state::prune_records::OwnPruneRecords;
use crate::store::ObjectKey;
use jiff::Timestamp;
use std::collections::BTreeMap;

/// The records that this host put into one store for one dataset.
pub(super) struct OwnRecords(OwnPruneRecords);

impl OwnRecords {
    /// Reads which records this host put.
    ///
    /// # Errors
    /// [`RunError::State`] when this host's notes cannot be read.
    pub(super) fn read(env: &PruneEnv, dataset: &DatasetName) -> Result<Self, RunError> {
        let records = OwnPruneRecords::read(&env.state_dir, &env.store.known(), dataset)?;
        Ok(Self(records))
    }

    /// Notes when this host first saw each record of another host that is dated in the future.
    /// Drops the notes of records that no longer exist.
    ///
    /// # Errors
    /// [`RunError::State`]; such a record then blocks prunes for longer than two days.
    pub(super) fn note_future(
        &self,
        env: &PruneEnv,
        records: &[(ObjectKey, PruneRecord)],
    ) -> Result<(), RunError> {
        let mut seen = BTreeMap::new();
        for (key, record) in records {
            let known = self.0.first_seen().get(key.as_str()).copied();
            let is_own = self.0.contains(key.as_str());
            if known.is_some() || (!is_own && is_in_future(record.put_at(), env.now)) {
                // A note dated in the future comes from a clock that has been set back since.
                let first = known.unwrap_or(env.now).min(env.now);
                seen.insert(key.to_string(), first);
            }
        }
        Ok(self.0.note_first_seen(&seen)?)
    }

    /// Notes a record before it is put. The note is on disk when this function returns.
    ///
    /// # Errors
    /// [`RunError::State`]; the record must not be put then.
    pub(super) fn note(self, key: &ObjectKey) -> Result<(), RunError> {
        Ok(self.0.note(key.as_str())?)
    }

    /// The time at which a record was put, as far as this host can trust it.
    fn put_at(&self, (key, record): &(ObjectKey, PruneRecord)) -> Timestamp {
        let at = record.put_at();
        self.0
            .first_seen()
            .get(key.as_str())
            .map_or(at, |seen| at.min(*seen))
    }

    /// Whether the prune that put this record may still be running on another host.
    pub(super) fn is_of_other_prune(
        &self,
        env: &PruneEnv,
        record: &(ObjectKey, PruneRecord),
    ) -> bool {
        let is_young = env.now.duration_since(self.put_at(record)) < PRUNE_MAX;
        is_young && !self.0.contains(record.0.as_str())
    }

    /// Returns the prune of another host that may be running, if one of its records names a backup
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
        others.find_map(|known| {
            let (key, record) = known;
            let id = record
                .pruned
                .iter()
                .map(|entry| &entry.id)
                .find(is_there)?
                .clone();
            let at = record.put_at();
            let put_at = self.put_at(known).min(env.now);
            Some(OtherPrune {
                id,
                at,
                record: key.to_string(),
                is_in_future: is_in_future(at, env.now),
                until: put_at.saturating_add(PRUNE_MAX).unwrap_or(Timestamp::MAX),
            })
        })
    }
}
