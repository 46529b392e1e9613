//! Context of one command, or of one step of `perform`: options, configuration, and a tally of the
//! result of each dataset.

use crate::cli::args::{Command, Global};
use crate::cli::failure::{Failure, status};
use crate::cli::screen::output::Output;
use crate::config::{self, Config, Environment, Pace, TimeLimit};
use crate::model::DatasetName;
use crate::run::RunError;
use crate::run::hooks::RunningHook;
use crate::run::pool::select::{LeftOut, Selected, Selection, select_datasets};
use crate::run::transfer::Stop;
use crate::state::StateError;
use crate::state::lockfile::{HeldLock, LockHolder};
use crate::state::process::host_name;
use crate::store::Patience;
use crate::zfs::ZfsRead;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// How long a command may take to end by itself after a request to stop.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// The context of a command.
pub(crate) struct Context {
    /// The options before the command.
    pub(crate) global: Global,
    /// The output for results.
    pub(crate) output: Arc<Output>,
    /// Becomes true when the run must stop.
    pub(crate) stop: Stop,
    /// Resources that must not outlive this process.
    pub(crate) leftovers: Arc<Leftovers>,
    /// The key of the step of `perform`, when the command is one.
    step: Option<String>,
    /// Whether the command waits for stores without `--retry-for`.
    waits_for_stores: bool,
    setup: Arc<OnceLock<Setup>>,
    /// Datasets that failed in an earlier step of this run; they are skipped.
    skip: BTreeSet<DatasetName>,
    tally: Mutex<Tally>,
}

/// The results of the datasets that a command worked on, by their names in the pool.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct Tally {
    /// Datasets that succeeded or had nothing to do.
    pub(crate) done: BTreeSet<DatasetName>,
    /// Datasets that failed, with the status and the reason of each.
    #[serde(serialize_with = "failures")]
    pub(crate) failed: BTreeMap<DatasetName, (u8, String)>,
    /// Datasets in `done` whose upload waits for a later run.
    pub(crate) paused: BTreeSet<DatasetName>,
    /// Datasets that were skipped because an earlier step failed for them.
    pub(crate) skipped: BTreeSet<DatasetName>,
    /// Bytes stored or deleted.
    pub(crate) bytes: u64,
    /// Whether a request to stop came before every dataset was worked on.
    #[serde(skip)]
    pub(crate) is_incomplete: bool,
}

fn failures<S: Serializer>(
    failed: &BTreeMap<DatasetName, (u8, String)>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct FailedDataset<'a> {
        dataset: &'a DatasetName,
        exit_status: u8,
        error: &'a str,
    }
    serializer.collect_seq(
        failed
            .iter()
            .map(|(dataset, (exit_status, error))| FailedDataset {
                dataset,
                exit_status: *exit_status,
                error,
            }),
    )
}

impl Context {
    pub(crate) fn new(
        global: Global,
        output: Arc<Output>,
        stop: Stop,
        leftovers: Arc<Leftovers>,
    ) -> Self {
        Self {
            global,
            output,
            stop,
            leftovers,
            step: None,
            waits_for_stores: false,
            setup: Arc::default(),
            skip: BTreeSet::new(),
            tally: Mutex::default(),
        }
    }

    /// Makes the command wait while a store does not answer.
    pub(crate) fn waiting_for_stores(self) -> Self {
        Self {
            waits_for_stores: true,
            ..self
        }
    }

    /// Returns the context of one step of this run, without the datasets that failed before.
    pub(crate) fn step(
        &self,
        name: &str,
        global: Global,
        output: Arc<Output>,
        skip: BTreeSet<DatasetName>,
    ) -> Self {
        Self {
            global,
            output,
            stop: self.stop.clone(),
            leftovers: Arc::clone(&self.leftovers),
            step: Some(name.to_owned()),
            waits_for_stores: self.waits_for_stores,
            setup: Arc::clone(&self.setup),
            skip,
            tally: Mutex::default(),
        }
    }

    /// Returns whether this is a step of `perform`.
    pub(crate) fn is_step(&self) -> bool {
        self.step.is_some()
    }

    /// Returns the environment variables of every hook.
    pub(crate) fn hook_variables(&self, config: &Config) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("ZFS_BACKUP_HOST", host_name()),
            ("ZFS_BACKUP_CONFIG", config.file.display().to_string()),
        ];
        variables.extend(self.step.clone().map(|step| ("ZFS_BACKUP_STEP", step)));
        variables
    }

    /// Returns the configuration, which is read once.
    pub(crate) fn setup(&self) -> Result<&Setup, Failure> {
        if let Some(setup) = self.setup.get() {
            return Ok(setup);
        }
        let mut setup = Setup::load(&self.global, &self.output)?;
        setup.patience = self.new_patience(setup.config.pace.retry_for);
        Ok(self.setup.get_or_init(|| setup))
    }

    /// Returns the patience for a store that the command line names.
    pub(crate) fn patience_with_named_store(&self) -> Arc<Patience> {
        self.new_patience(Pace::default().retry_for)
    }

    fn new_patience(&self, configured: TimeLimit) -> Arc<Patience> {
        let default = self.waits_for_stores.then_some(configured);
        let limit = self.global.retry_for.or(default);
        let limit = limit.map(TimeLimit::duration).unwrap_or_default();
        Arc::new(Patience::new(limit, self.stop.clone()))
    }

    /// Returns whether a command does what it plans: only with `-y`, and not with `--dry-run`.
    pub(crate) fn carries_out(&self, yes: bool) -> bool {
        yes && !self.global.dry_run
    }

    /// Returns the datasets to work on: the configured ones, except those that failed earlier in
    /// this run. A missing dataset counts as failed and does not block the others.
    pub(crate) fn datasets(&self, zfs: &dyn ZfsRead) -> Result<Vec<Selected>, Failure> {
        let config = &self.setup()?.config;
        let Selection {
            selected,
            failed,
            left_out,
            turned_off,
        } = select_datasets(zfs, &config.datasets, &config.state_dir)?;
        for LeftOut {
            dataset,
            why,
            recorded,
        } in &left_out
        {
            match recorded {
                // An earlier run backed this dataset up, so report that its backups have stopped.
                Some(_) => self.output.always(&format!("{why}, and is skipped")),
                None => tracing::info!(dataset = %dataset.name, "left out: {why}"),
            }
        }
        for LeftOut { why, recorded, .. } in &turned_off {
            match recorded {
                Some(_) => self
                    .output
                    .note(&format!("{why}, and is no longer backed up")),
                None => tracing::info!("left out: {why}"),
            }
        }
        for (dataset, error) in failed
            .into_iter()
            .filter(|(dataset, _)| !self.skip.contains(dataset))
        {
            self.failed(&dataset, &Failure::Run(error));
        }
        let (skipped, wanted): (Vec<_>, Vec<_>) = selected
            .into_iter()
            .partition(|selected| self.skip.contains(&selected.dataset.name));
        self.with_tally(|tally| {
            tally
                .skipped
                .extend(skipped.into_iter().map(|selected| selected.dataset.name))
        });
        Ok(wanted)
    }

    /// Returns whether this dataset failed earlier in this run. Records a dataset that did as
    /// skipped.
    pub(crate) fn skips(&self, dataset: &DatasetName) -> bool {
        let skipped = self.skip.contains(dataset);
        if skipped {
            self.with_tally(|tally| tally.skipped.insert(dataset.clone()));
        }
        skipped
    }

    /// Returns the number of datasets to work on at once. Without a configuration the default
    /// applies.
    pub(crate) fn parallel_datasets(&self) -> usize {
        let configured = || {
            self.setup
                .get()
                .map(|setup| setup.config.pace.parallel_datasets)
        };
        let default = || Pace::default().parallel_datasets;
        let count = self.global.parallel_datasets.or_else(configured);
        count.unwrap_or_else(default) as usize
    }

    /// Records that a dataset was not worked on because of a request to stop.
    pub(crate) fn left_undone(&self) {
        self.with_tally(|tally| tally.is_incomplete = true);
    }

    /// Adds bytes that were stored or deleted for a dataset that is not done nevertheless.
    pub(crate) fn moved(&self, bytes: u64) {
        self.with_tally(|tally| tally.bytes = tally.bytes.saturating_add(bytes));
    }

    /// Records that a dataset is done.
    pub(crate) fn done(&self, dataset: &DatasetName, bytes: u64) {
        self.with_tally(|tally| {
            tally.done.insert(dataset.clone());
            tally.bytes = tally.bytes.saturating_add(bytes);
        });
    }

    /// Records that an upload waits for a later run. The dataset is done for this run.
    pub(crate) fn paused(&self, dataset: &DatasetName) {
        self.with_tally(|tally| tally.paused.insert(dataset.clone()));
    }

    /// Prints why a dataset failed, and records it. The command continues with the other datasets.
    pub(crate) fn failed(&self, dataset: &DatasetName, failure: &Failure) {
        failure.print(&self.output);
        self.reported(dataset, failure.status(), failure.reason());
    }

    /// Records that a dataset failed, after the command has printed why.
    pub(crate) fn reported(&self, dataset: &DatasetName, status: u8, reason: String) {
        self.with_tally(|tally| tally.failed.insert(dataset.clone(), (status, reason)));
    }

    /// Returns the results of the datasets so far.
    pub(crate) fn tally(&self) -> Tally {
        self.with_tally(|tally| tally.clone())
    }

    /// Returns the datasets that failed so far.
    pub(crate) fn failed_datasets(&self) -> Vec<DatasetName> {
        self.with_tally(|tally| tally.failed.keys().cloned().collect())
    }

    /// Returns the result of a command that worked on several datasets: 3 when some failed and the
    /// rest was done, else the most serious status.
    pub(crate) fn verdict(&self) -> Result<(), Failure> {
        let tally = self.tally();
        if tally.failed.is_empty() {
            return match tally.is_incomplete {
                true => Err(Failure::Run(RunError::Interrupted)),
                false => Ok(()),
            };
        }
        let least = match tally.is_incomplete {
            true => status::INTERRUPTED,
            false => status::DONE,
        };
        let worst = tally
            .failed
            .values()
            .map(|(status, _)| *status)
            .fold(least, status::worst);
        let may_be_partial = matches!(worst, status::FAILED | status::PARTIAL | status::USAGE);
        let partial = may_be_partial && !tally.done.is_empty();
        Err(Failure::Reported(if partial {
            status::PARTIAL
        } else {
            worst
        }))
    }

    /// Returns the result of a command's work. [`GRACE`] after a request to stop, the work is simply
    /// dropped, except for commands that can leave something behind: these end by themselves.
    pub(crate) async fn end_after_stop(
        &self,
        command: &Command,
        work: impl Future<Output = Result<(), Failure>>,
    ) -> Result<(), Failure> {
        let mut stop = self.stop.clone();
        let stopped = async {
            if stop.wait_for(|stop| *stop).await.is_err() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            result = work => result,
            () = stopped, if !command.ends_by_itself() => Err(Failure::Run(RunError::Interrupted)),
        }
    }

    fn with_tally<T>(&self, work: impl FnOnce(&mut Tally) -> T) -> T {
        work(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The configuration of this host, and the environment in which it was read.
pub(crate) struct Setup {
    pub(crate) config: Config,
    pub(crate) env: Environment,
    /// The patience with the remote, which all steps of a run share.
    pub(crate) patience: Arc<Patience>,
}

impl Setup {
    /// Loads the configuration and prints its notices. Stores are not waited for.
    pub(crate) fn load(global: &Global, output: &Output) -> Result<Self, Failure> {
        let env = Environment::current();
        let file = global
            .config
            .clone()
            .unwrap_or_else(|| config::default_config_file(&env));
        let config = Config::load(&file, &env)?;
        for notice in config.notices() {
            output.note(&notice.to_string());
        }
        let patience = Arc::new(Patience::never());
        Ok(Self {
            config,
            env,
            patience,
        })
    }
}

/// Resources that must not outlive this process: the lock of its run, and the running hook. All
/// steps of a run share them with the code that ends the process at once.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// The running hook.
    pub(crate) hook: RunningHook,
    lock: Mutex<Option<HeldLock>>,
}

impl Leftovers {
    /// Keeps the lock of this run until it is released.
    pub(crate) fn keep_lock(&self, lock: HeldLock) {
        *self.lock() = Some(lock);
    }

    /// Returns whether that holder is this run.
    pub(crate) fn has_lock_of(&self, holder: &LockHolder) -> bool {
        self.lock().as_ref().is_some_and(|lock| lock.is_of(holder))
    }

    /// Removes the lock of this run. Returns whether it was still there; `None` when this run has
    /// none.
    pub(crate) fn release_lock(&self) -> Result<Option<bool>, StateError> {
        let lock = self.lock().take();
        lock.map(HeldLock::release).transpose()
    }

    /// Kills the hook and removes the lock, because the process ends at once.
    pub(crate) fn end(&self) {
        self.hook.kill();
        // Dropping the lock removes its file.
        drop(self.lock().take());
    }

    fn lock(&self) -> MutexGuard<'_, Option<HeldLock>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::zfs::DatasetType;
    use crate::zfs::fake::FakeZfs;
    use std::os::unix::fs::PermissionsExt;

    fn name(text: &str) -> DatasetName {
        text.parse().unwrap()
    }

    /// Returns a context with a configuration of three datasets.
    fn context(folder: &std::path::Path) -> Context {
        let file = folder.join("zb.toml");
        let text = "[main]\nzfs_fs = [\"t/a\", \"t/b\", \"t/c\"]\nencryption_passphrase = \"x\"\nremote = \"file:/x\"\n";
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let global = Global {
            config: Some(file),
            ..Global::default()
        };
        let output = Arc::new(Output::new(&Global {
            quiet: true,
            ..Global::default()
        }));
        Context::new(
            global,
            output,
            tokio::sync::watch::channel(false).1,
            Arc::default(),
        )
    }

    #[test]
    fn datasets_that_failed_in_one_step_are_left_out_of_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let (run, zfs) = (context(folder.path()), FakeZfs::new());
        ["t/a", "t/b", "t/c"]
            .iter()
            .for_each(|dataset| zfs.create(&name(dataset), DatasetType::Filesystem));
        let first = run.step(
            "step01",
            run.global.clone(),
            Arc::clone(&run.output),
            BTreeSet::new(),
        );
        assert_eq!(first.datasets(&zfs).unwrap().len(), 3);
        first.done(&name("t/a"), 7);
        first.failed(&name("t/b"), &Failure::Run(RunError::Interrupted));
        let skip: BTreeSet<_> = first.tally().failed.into_keys().collect();
        let second = run.step(
            "step02",
            run.global.clone(),
            Arc::clone(&run.output),
            skip.clone(),
        );
        let names: Vec<_> = second
            .datasets(&zfs)
            .unwrap()
            .into_iter()
            .map(|selected| selected.dataset.name)
            .collect();
        assert_eq!(names, [name("t/a"), name("t/c")]);
        assert_eq!(second.tally().skipped, skip);
        assert!(
            second.tally().failed.is_empty() && second.tally().done.is_empty(),
            "each step counts anew"
        );
    }

    #[test]
    fn exit_status_of_several_datasets_is_the_worst_of_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || Failure::Run(RunError::refused("x", "y"));
        let damaged = || {
            Failure::Run(RunError::Damaged {
                key: "k".into(),
                reason: "r".into(),
            })
        };
        let cases: [(bool, Vec<Failure>, u8); 6] = [
            (true, vec![], 0),
            (true, vec![refused()], 3),
            (false, vec![refused()], 1),
            (true, vec![refused(), damaged()], 4),
            (
                false,
                vec![Failure::Run(RunError::Interrupted), damaged()],
                130,
            ),
            (false, vec![Failure::Reported(3), Failure::Reported(2)], 3),
        ];
        for (index, (done, failures, expected)) in cases.into_iter().enumerate() {
            let context = context(folder.path());
            if done {
                context.done(&name("t/done"), 0);
            }
            for (number, failure) in failures.iter().enumerate() {
                context.failed(&name(&format!("t/{number}")), failure);
            }
            let status = context
                .verdict()
                .map_or_else(|failure| failure.status(), |()| 0);
            assert_eq!(status, expected, "case {index}");
        }
    }
}
