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
//!
//! `state_dir/prune-records` names the records that this host put, a file for each store and
//! dataset.

use super::PruneEnv;
use crate::manifest::PruneRecord;
use crate::model::{BackupId, DatasetName};
use crate::plan::prune::OtherPrune;
use crate::run::RunError;
use crate::run::catalog::{Catalog, PRUNE_MAX};
use crate::run::identity::state_name;
use crate::run::replace::replace_file;
use crate::store::ObjectKey;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

/// How many of this host's own records are remembered. Older ones do not matter: no prune of that
/// age is running.
const OWN_RECORDS_MAX: usize = 64;

/// The records that this host put into one store for one dataset, the newest last.
pub(super) struct OwnRecords {
    path: PathBuf,
    keys: Vec<String>,
}

impl OwnRecords {
    /// Reads which records this host put.
    ///
    /// # Errors
    /// [`RunError::File`] when that is not known.
    pub(super) fn read(env: &PruneEnv, dataset: &DatasetName) -> Result<Self, RunError> {
        let path = env
            .state_dir
            .join("prune-records")
            .join(state_name(&env.store.known(), dataset));
        let keys = match std::fs::read_to_string(&path) {
            Ok(text) => text.lines().map(ToOwned::to_owned).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(source) => {
                return Err(RunError::File {
                    operation: "read",
                    path: path.display().to_string(),
                    source,
                });
            }
        };
        Ok(Self { path, keys })
    }

    /// Notes a record before it is put. On disk when it returns.
    ///
    /// # Errors
    /// [`RunError::File`]; then the record may not be put.
    pub(super) fn note(mut self, key: &ObjectKey) -> Result<(), RunError> {
        self.keys.push(key.to_string());
        let first = self.keys.len().saturating_sub(OWN_RECORDS_MAX);
        let mut text = self.keys[first..].join("\n");
        text.push('\n');
        let folder = self.path.parent().map(PathBuf::from).unwrap_or_default();
        let write = || -> std::io::Result<()> {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
            replace_file(&self.path, text.as_bytes())
        };
        let path = self.path.display().to_string();
        write().map_err(|source| RunError::File {
            operation: "write",
            path,
            source,
        })
    }

    /// Whether the prune that put this record may still be running on another host.
    pub(super) fn is_of_other_prune(
        &self,
        env: &PruneEnv,
        (key, record): &(ObjectKey, PruneRecord),
    ) -> bool {
        let recorded_at = record.recorded_at.unwrap_or(record.written_at);
        let is_young = env.now.duration_since(recorded_at) < PRUNE_MAX;
        is_young && !self.keys.iter().any(|own| own == key.as_str())
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
