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
//! dataset. A second file, with the suffix `.seen`, notes when this host first saw a record that is
//! dated in the future: by its own date such a record would stay young until that date.

use super::PruneEnv;
use crate::manifest::PruneRecord;
use crate::model::{BackupId, DatasetName};
use crate::plan::clock::is_in_future;
use crate::plan::prune::OtherPrune;
use crate::run::RunError;
use crate::run::catalog::{Catalog, PRUNE_MAX};
use crate::run::identity::state_name;
use crate::run::replace::replace_file;
use crate::store::ObjectKey;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// How many of this host's own records are remembered. Older ones do not matter: no prune of that
/// age is running.
const OWN_RECORDS_MAX: usize = 64;
/// The suffix of the file that notes when records dated in the future were first seen.
const SEEN: &str = "seen";

/// The records that this host put into one store for one dataset, the newest last.
pub(super) struct OwnRecords {
    path: PathBuf,
    keys: Vec<String>,
    /// When this host first saw each record that was dated in the future.
    first_seen: BTreeMap<String, Timestamp>,
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
        let keys = read_lines(&path)?;
        let seen = read_lines(&path.with_extension(SEEN))?;
        let first_seen = seen.iter().filter_map(|line| {
            let (at, key) = line.split_once(' ')?;
            Some((key.to_owned(), at.parse().ok()?))
        });
        let first_seen = first_seen.collect();
        Ok(Self {
            path,
            keys,
            first_seen,
        })
    }

    /// Notes when this host first saw each of these records that is of another host and dated in
    /// the future. Records that are gone are forgotten.
    ///
    /// # Errors
    /// [`RunError::File`]; then such a record counts for longer than two days.
    pub(super) fn note_future(
        &self,
        env: &PruneEnv,
        records: &[(ObjectKey, PruneRecord)],
    ) -> Result<(), RunError> {
        let mut seen = BTreeMap::new();
        for (key, record) in records {
            let known = self.first_seen.get(key.as_str()).copied();
            let is_own = self.keys.iter().any(|own| own == key.as_str());
            if known.is_some() || (!is_own && is_in_future(time_of(record), env.now)) {
                // A note of the future is of a clock that was set back since.
                let first = known.unwrap_or(env.now).min(env.now);
                seen.insert(key.to_string(), first);
            }
        }
        if seen == self.first_seen {
            return Ok(());
        }
        let lines = seen.iter().map(|(key, at)| format!("{at} {key}\n"));
        write_text(&self.path.with_extension(SEEN), &lines.collect::<String>())
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
        write_text(&self.path, &text)
    }

    /// The time at which a record was put, as far as this host can believe it.
    fn put_at(&self, (key, record): &(ObjectKey, PruneRecord)) -> Timestamp {
        let at = time_of(record);
        self.first_seen
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
        is_young && !self.keys.iter().any(|own| own == record.0.as_str())
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
        others.find_map(|known| {
            let (key, record) = known;
            let id = record
                .pruned
                .iter()
                .map(|entry| &entry.id)
                .find(is_there)?
                .clone();
            let (at, put_at) = (time_of(record), self.put_at(known).min(env.now));
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

/// The date of a record: the store's, where it has one.
fn time_of(record: &PruneRecord) -> Timestamp {
    record.recorded_at.unwrap_or(record.written_at)
}

/// The lines of a file; none where there is no file.
fn read_lines(path: &Path) -> Result<Vec<String>, RunError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(ToOwned::to_owned).collect()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(RunError::File {
            operation: "read",
            path: path.display().to_string(),
            source,
        }),
    }
}

fn write_text(path: &Path, text: &str) -> Result<(), RunError> {
    let folder = path.parent().map(PathBuf::from).unwrap_or_default();
    let write = || -> std::io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
        replace_file(path, text.as_bytes())
    };
    write().map_err(|source| RunError::File {
        operation: "write",
        path: path.display().to_string(),
        source,
    })
}
