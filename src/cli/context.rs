//! What one command, or one step of `perform`, works with: options, configuration, and a tally of what became of each
//! dataset.

use super::args::Global;
use super::output::Output;
use super::wire::load_config;
use super::{Failure, status};
use crate::config::{Config, Environment};
use crate::model::DatasetName;
use crate::run::select::{Selected, Selection, select_datasets};
use crate::run::transfer::Stop;
use crate::zfs::Zfs;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// What the commands get.
pub(super) struct Context {
    /// The options before the command.
    pub(super) global: Global,
    /// Where results go.
    pub(super) output: Arc<Output>,
    /// Becomes true when the run shall stop.
    pub(super) stop: Stop,
    loaded: OnceLock<Arc<(Config, Environment)>>,
    /// Datasets that failed in an earlier step of this run: they are left out.
    skip: BTreeSet<DatasetName>,
    tally: Mutex<Tally>,
}

/// What became of the datasets that a command worked on, by their names in the pool.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    /// Done, or nothing to do.
    pub(super) done: BTreeSet<DatasetName>,
    /// Failed, with the status of each and the reason.
    pub(super) failed: BTreeMap<DatasetName, (u8, String)>,
    /// Left out because an earlier step failed for them.
    pub(super) skipped: BTreeSet<DatasetName>,
    /// Bytes stored or deleted.
    pub(super) bytes: u64,
}

impl Context {
    pub(super) fn new(global: Global, output: Arc<Output>, stop: Stop) -> Self {
        let (loaded, skip, tally) = (OnceLock::new(), BTreeSet::new(), Mutex::default());
        Self { global, output, stop, loaded, skip, tally }
    }

    /// The configuration, read once.
    pub(super) fn config(&self) -> Result<Arc<(Config, Environment)>, Failure> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(Arc::clone(loaded));
        }
        let loaded = Arc::new(load_config(&self.global, &self.output)?);
        Ok(Arc::clone(self.loaded.get_or_init(|| loaded)))
    }

    /// The datasets to work on: those configured, but for those that failed earlier in this run. One that is missing has
    /// failed, and does not keep the others back.
    pub(super) fn datasets(&self, zfs: &dyn Zfs) -> Result<Vec<Selected>, Failure> {
        let config = &self.config()?.0;
        let Selection { selected, failed } = select_datasets(zfs, &config.datasets, &config.state_dir)?;
        for (dataset, error) in failed.into_iter().filter(|(dataset, _)| !self.skip.contains(dataset)) {
            self.failed(&dataset, &Failure::Run(error));
        }
        let (skipped, wanted): (Vec<_>, Vec<_>) =
            selected.into_iter().partition(|selected| self.skip.contains(&selected.dataset.name));
        self.with_tally(|tally| tally.skipped.extend(skipped.into_iter().map(|selected| selected.dataset.name)));
        Ok(wanted)
    }

    /// A dataset is done.
    pub(super) fn done(&self, dataset: &DatasetName, bytes: u64) {
        self.with_tally(|tally| {
            tally.done.insert(dataset.clone());
            tally.bytes = tally.bytes.saturating_add(bytes);
        });
    }

    /// A dataset failed: said at once, and the others go on.
    pub(super) fn failed(&self, dataset: &DatasetName, failure: &Failure) {
        failure.print(&self.output);
        let reason = failure.reason();
        self.with_tally(|tally| tally.failed.insert(dataset.clone(), (failure.status(), reason)));
    }

    /// What became of the datasets so far.
    pub(super) fn tally(&self) -> Tally {
        self.with_tally(|tally| tally.clone())
    }

    /// The end of a command that worked on several datasets: 3 when some failed and the rest was done, else the worst.
    pub(super) fn verdict(&self) -> Result<(), Failure> {
        let tally = self.tally();
        let Some(worst) = tally.failed.values().map(|(status, _)| *status).max() else { return Ok(()) };
        let partial = !tally.done.is_empty() && worst <= status::PARTIAL;
        Err(Failure::Reported(if partial { status::PARTIAL } else { worst }))
    }

    fn with_tally<T>(&self, work: impl FnOnce(&mut Tally) -> T) -> T {
        work(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
