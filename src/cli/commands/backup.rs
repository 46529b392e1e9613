//! `stream-to-remote` and `export-intermediate`.

mod plan;

#[cfg(test)]
pub(crate) use plan::Estimate;
pub(crate) use plan::{DatasetResult, Plan};

use crate::catalog::list_datasets;
use crate::cli::args::Kind;
use crate::cli::context::{Context, Setup};
use crate::cli::failure::Failure;
use crate::cli::lock::wait_for_others;
use crate::cli::open::access::Access;
use crate::cli::open::identity::known_store;
use crate::cli::open::keys::{ask_passphrase, keys_for_planning, keys_for_writing};
use crate::cli::open::remote::open_zfs;
use crate::cli::open::settings::backup_settings;
use crate::cli::open::{history, kept_config};
use crate::cli::parallel::for_each_dataset;
use crate::cli::screen::output::{Output, Render};
use crate::cli::screen::progress::UploadProgress;
use crate::cli::screen::table::{bytes, tier_words};
use crate::config::{Config, KeySource};
use crate::model::{BackupId, BackupKind, DatasetName, SnapshotName};
use crate::plan::send::{FullReason, RequestedKind, SendPlan};
use crate::run::backup::{
    BackupEnd, BackupEnv, BackupRun, CommittedBackup, OtherStore, PausedUpload, PlannedBackup,
    PlannedResume, SteppedOver, StoreRole, back_up, plan_backup, plan_resumes,
};
use crate::run::clock::note_clock;
use crate::run::copy::sums::write_sums;
use crate::run::identity::refuse_one_place;
use crate::run::keys::{KeyCache, WriterKeys, learn_keys};
use crate::run::pool::inside::refuse_inside;
use crate::run::pool::select::Selected;
use crate::run::transfer::{Stop, TransferPool};
use crate::run::{RunError, error_chain};
use crate::store::{EvidenceTier, ObjectStore, StoreInfo, StoreWrite};
#[cfg(any(test, feature = "testing"))]
use crate::zfs::recorded::RecordedZfs;
use crate::zfs::{Zfs, ZfsRead};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

pub(crate) async fn stream_to_remote(context: &Context, kind: &Kind) -> Result<(), Failure> {
    let setup = context.setup()?;
    let access = Access::to_write(context);
    let store = setup.open(StoreRole::Remote, access).await?;
    let other = open_other(setup, StoreRole::Intermediate, &*store).await?;
    back_up_all(
        context,
        kind,
        &open_source(kind)?,
        Target {
            store,
            role: StoreRole::Remote,
            other,
        },
    )
    .await
}

/// Opens the recorded stream of `--stream-from`, or the kernel's ZFS if there is none.
#[cfg(any(test, feature = "testing"))]
fn open_source(kind: &Kind) -> Result<Arc<dyn Zfs>, Failure> {
    match &kind.stream_from {
        None => open_zfs(),
        Some(file) => Ok(Arc::new(RecordedZfs::open(file)?)),
    }
}

/// Opens the kernel's ZFS.
#[cfg(not(any(test, feature = "testing")))]
fn open_source(_: &Kind) -> Result<Arc<dyn Zfs>, Failure> {
    open_zfs()
}

pub(crate) async fn export_intermediate(context: &Context, kind: &Kind) -> Result<(), Failure> {
    let setup = context.setup()?;
    let access = Access::to_write(context);
    let store = setup.open(StoreRole::Intermediate, access).await?;
    let other = open_other(setup, StoreRole::Remote, &*store).await?;
    let zfs = open_source(kind)?;
    refuse_inside_datasets(context, &setup.config, &*zfs)?;
    let target = Target {
        store: Arc::clone(&store),
        role: StoreRole::Intermediate,
        other,
    };
    let exported = back_up_all(context, kind, &zfs, target).await;
    let summed = write_all_sums(context, &setup.config, &*zfs, &*store).await;
    exported.and(summed)
}

/// Opens the configured store that is not the target, and requires that the two differ. A store
/// that cannot be opened does not stop the run and is not waited for: the remote's last known
/// contents are used.
async fn open_other(
    setup: &Setup,
    role: StoreRole,
    target: &dyn StoreInfo,
) -> Result<Option<OtherStore>, Failure> {
    if known_store(&setup.config, role)?.is_none() {
        return Ok(None);
    }
    let store = match setup.open_dispensable(role, Access::Read).await {
        Err(failure @ Failure::Run(RunError::OnePlace { .. })) => return Err(failure),
        opened => opened
            .map(|store| -> Arc<dyn StoreWrite> { store })
            .map_err(|failure| failure.reason()),
    };
    let known = match &store {
        Ok(store) => Some(store.known()),
        Err(_) => known_store(&setup.config, role)?,
    };
    known
        .iter()
        .try_for_each(|known| refuse_one_place(&target.known(), known))?;
    Ok(known.map(|known| OtherStore { role, known, store }))
}

/// Refuses an intermediate directory inside a dataset that is backed up: each backup would contain
/// the backups before it.
fn refuse_inside_datasets(
    context: &Context,
    config: &Config,
    zfs: &dyn ZfsRead,
) -> Result<(), Failure> {
    let Some(intermediate) = &config.intermediate else {
        return Ok(());
    };
    let datasets: Vec<DatasetName> = context
        .datasets(zfs)?
        .into_iter()
        .map(|selected| selected.dataset.name)
        .collect();
    Ok(refuse_inside(&intermediate.basedir, &datasets)?)
}

/// Writes `B3SUMS` for every backup of the datasets that succeeded, where it is missing.
async fn write_all_sums(
    context: &Context,
    config: &Config,
    zfs: &dyn ZfsRead,
    store: &dyn StoreWrite,
) -> Result<(), Failure> {
    let wanted = config
        .intermediate
        .as_ref()
        .is_some_and(|intermediate| intermediate.checksum);
    if !wanted || context.global.dry_run {
        return Ok(());
    }
    let trusted = keys_for_planning(context.setup()?, store).await?.trusted;
    let done = context.tally().done;
    for Selected { dataset, stored } in context.datasets(zfs)? {
        if done.contains(&dataset.name)
            && let Err(error) = write_sums(store, &stored, &trusted).await
        {
            context.failed(&dataset.name, &Failure::Run(error));
        }
    }
    context.verdict()
}

/// The store for new backups, and the other configured store.
struct Target {
    store: Arc<dyn ObjectStore>,
    role: StoreRole,
    other: Option<OtherStore>,
}

async fn back_up_all(
    context: &Context,
    kind: &Kind,
    zfs: &Arc<dyn Zfs>,
    target: Target,
) -> Result<(), Failure> {
    let output = &context.output;
    let setup = context.setup()?;
    let config = &setup.config;
    let requested = match (kind.full, kind.incremental) {
        (true, _) => RequestedKind::Full,
        (_, true) => RequestedKind::Incremental,
        _ => RequestedKind::Lifecycle,
    };
    let datasets = context.datasets(&**zfs)?;
    if context.global.dry_run {
        return dry_run(context, kind, requested, &target, zfs, &datasets).await;
    }
    learn_keys_of_remote(setup, &target).await?;
    let keys = keys_for_writing(setup, &*target.store).await?;
    let mut backup = backup_env(
        config,
        kind,
        &target,
        zfs,
        keys.clone(),
        context.stop.clone(),
    );
    backup.listed = list_to_skip(config, &target).await;
    let mut results = Vec::new();
    for_each_dataset(
        context,
        &datasets,
        |selected| &selected.dataset.name,
        async |selected| back_up_one(context, config, &backup, selected, requested).await,
        |_, of_dataset| results.extend(of_dataset),
    )
    .await;
    if !results.is_empty() && target.role == StoreRole::Remote {
        kept_config::keep(config, &*target.store, &keys).await;
    }
    if !results.is_empty()
        && let Err(error) = note_clock(&config.state_dir, &*target.store).await
    {
        tracing::debug!("cannot note this host's clock: {}", error_chain(&error));
    }
    output.json(&Backups {
        backups: results,
        failed: context.failed_datasets(),
    });
    context.verdict()
}

/// Lists the datasets of the remote, so that those that did not change cost no request of their
/// own. If the listing fails, each dataset is read instead.
async fn list_to_skip(config: &Config, target: &Target) -> Option<Arc<BTreeSet<DatasetName>>> {
    if target.role != StoreRole::Remote || !config.snapshots.skip_unchanged {
        return None;
    }
    let listed = list_datasets(&*target.store).await;
    let listed = listed.inspect_err(|error| {
        tracing::warn!(
            error = error_chain(error),
            "cannot list the datasets of the remote, so it is read for each dataset"
        );
    });
    Some(Arc::new(listed.ok()?.into_iter().collect()))
}

/// Backs up one dataset, and prints its results.
async fn back_up_one(
    context: &Context,
    config: &Config,
    backup: &BackupEnv,
    selected: &Selected,
    requested: RequestedKind,
) -> Vec<DatasetResult<BackupResult>> {
    let output = &context.output;
    let dataset = &selected.dataset.name;
    let (progress, started) = (
        UploadProgress::new(output, dataset.as_str()),
        Instant::now(),
    );
    let backup = BackupEnv {
        progress: progress.sink(),
        planned: when_planned(output, &progress, dataset),
        ..backup.clone()
    };
    let run = wait_for_others(context, async || {
        back_up(&backup, selected, requested).await
    })
    .await;
    progress.finish();
    let run = run.unwrap_or_else(|error| BackupRun {
        committed: Vec::new(),
        end: Err(error),
    });
    history::backed_up(config, &*backup.store, &selected.stored, &run);
    let committed = run.committed.iter();
    let mut results: Vec<BackupResult> = committed
        .map(|backup| BackupResult::committed(backup, started))
        .collect();
    let mut failure = None;
    match run.end {
        Ok(BackupEnd::UpToDate(id)) if run.committed.is_empty() => {
            results.push(BackupResult::UpToDate { id });
        }
        Ok(BackupEnd::UpToDate(_)) => {}
        Ok(BackupEnd::Unchanged { id, snapshot }) => {
            let snapshot = snapshot.name;
            results.push(BackupResult::Unchanged { id, snapshot });
        }
        Ok(BackupEnd::Paused(paused)) => {
            context.paused(dataset);
            results.push(BackupResult::Paused(paused));
        }
        Err(error) => {
            history::failed(config, &*backup.store, &selected.stored, "backup", &error);
            failure = Some(Failure::Run(error));
        }
    }
    let results = results
        .into_iter()
        .map(|result| output.printed(DatasetResult::new(dataset, result)))
        .collect();
    match failure {
        Some(failure) => context.failed(dataset, &failure),
        None => {
            let stored_bytes = run.committed.iter().map(|backup| backup.stored_bytes);
            context.done(dataset, stored_bytes.sum());
        }
    }
    results
}

/// Returns the receiver of a plan: it passes on the size, and notes a full that nobody asked for.
fn when_planned(
    output: &Arc<Output>,
    progress: &UploadProgress,
    dataset: &DatasetName,
) -> Arc<dyn Fn(&PlannedBackup) + Send + Sync> {
    let (output, progress, dataset) = (Arc::clone(output), progress.clone(), dataset.clone());
    Arc::new(move |planned| {
        progress.expect(planned.estimate_bytes.unwrap_or(0));
        if let SendPlan::Full { why, .. } = &planned.plan
            && !matches!(why, FullReason::Requested | FullReason::First)
        {
            output.note(&format!("{dataset}: a full, not an incremental: {why}"));
        }
    })
}

/// Gets the keys from the remote, when this host has none and starts with an empty intermediate
/// directory.
async fn learn_keys_of_remote(setup: &Setup, target: &Target) -> Result<(), Failure> {
    let Some(OtherStore {
        role: StoreRole::Remote,
        store: remote,
        ..
    }) = &target.other
    else {
        return Ok(());
    };
    let KeySource::Passphrase(source) = &setup.config.keys else {
        return Ok(());
    };
    let remote = remote.as_deref().map_err(String::as_str);
    Ok(learn_keys(
        &*target.store,
        remote,
        &KeyCache::new(&setup.config.state_dir),
        || ask_passphrase(source, &setup.env),
    )
    .await?)
}

fn backup_env(
    config: &Config,
    kind: &Kind,
    target: &Target,
    zfs: &Arc<dyn Zfs>,
    keys: WriterKeys,
    stop: Stop,
) -> BackupEnv {
    // All datasets of the run share one end of the time window.
    let mut settings = backup_settings(config);
    settings.restart = kind.restart;
    BackupEnv {
        zfs: Arc::clone(zfs),
        store: Arc::clone(&target.store),
        role: target.role,
        other: target.other.clone(),
        listed: None,
        pool: TransferPool::default(),
        keys,
        settings,
        now: Timestamp::now,
        planned: Arc::new(|_| {}),
        progress: Arc::new(|_| {}),
        stop,
    }
}

/// Prints the plan of each dataset.
async fn dry_run(
    context: &Context,
    kind: &Kind,
    requested: RequestedKind,
    target: &Target,
    zfs: &Arc<dyn Zfs>,
    datasets: &[Selected],
) -> Result<(), Failure> {
    let setup = context.setup()?;
    let (config, output) = (&setup.config, &context.output);
    let keys = keys_for_planning(setup, &*target.store).await?;
    let backup = backup_env(config, kind, target, zfs, keys, context.stop.clone());
    let mut plans = Vec::new();
    let print = |selected: &Selected, planned: Result<PlannedSteps, RunError>| {
        let dataset = &selected.dataset.name;
        match planned {
            Ok(planned) => plans.extend(print_plan(context, config, dataset, planned)),
            Err(error) => context.failed(dataset, &Failure::Run(error)),
        }
    };
    for_each_dataset(
        context,
        datasets,
        |selected| &selected.dataset.name,
        async |selected| PlannedSteps::plan(&backup, selected, requested).await,
        print,
    )
    .await;
    output.json(&Plans {
        plans,
        failed: context.failed_datasets(),
    });
    context.verdict()
}

/// The steps of a run for one dataset, as a dry run plans them.
struct PlannedSteps {
    resumes: Vec<PlannedResume>,
    /// The backup of the newest snapshot; `None` after a resumed upload, because it depends on what
    /// will be stored by then.
    newest: Option<Result<PlannedBackup, RunError>>,
}

impl PlannedSteps {
    async fn plan(
        backup: &BackupEnv,
        selected: &Selected,
        requested: RequestedKind,
    ) -> Result<Self, RunError> {
        let resumes = plan_resumes(backup, selected, requested).await?;
        let newest = match resumes.iter().any(|resume| resume.resumes_at.is_some()) {
            true => None,
            false => Some(plan_backup(backup, selected, requested).await),
        };
        Ok(Self { resumes, newest })
    }
}

/// Prints the plan of one dataset, and returns it for the document.
fn print_plan(
    context: &Context,
    config: &Config,
    dataset: &DatasetName,
    planned: PlannedSteps,
) -> Vec<DatasetResult<Plan>> {
    let output = &context.output;
    let resume = |resume| {
        let split_bytes = config.split_size.bytes();
        let plan = Plan::Resume {
            resume,
            split_bytes,
        };
        output.printed(DatasetResult::new(dataset, plan))
    };
    let mut plans: Vec<_> = planned.resumes.into_iter().map(resume).collect();
    let newest = match planned.newest {
        None => {
            output.line(format!(
                "{dataset}: then the newest snapshot, if that is another one"
            ));
            context.done(dataset, 0);
            return plans;
        }
        Some(Err(error)) => {
            context.failed(dataset, &Failure::Run(error));
            return plans;
        }
        Some(Ok(newest)) => newest,
    };
    for SteppedOver { snapshot, fault } in &newest.stepped_over {
        let name = snapshot.name.short();
        output.note(&format!(
            "{dataset}: @{name} is unreadable and is stepped over: ZFS cannot read {}",
            fault.object_text()
        ));
    }
    let plan = Plan::new(newest, config);
    plans.push(output.printed(DatasetResult::new(dataset, plan)));
    context.done(dataset, 0);
    plans
}

/// The document of a run.
#[derive(Serialize)]
pub(crate) struct Backups {
    pub(crate) backups: Vec<DatasetResult<BackupResult>>,
    pub(crate) failed: Vec<DatasetName>,
}

/// The document of a dry run.
#[derive(Serialize)]
pub(crate) struct Plans {
    pub(crate) plans: Vec<DatasetResult<Plan>>,
    pub(crate) failed: Vec<DatasetName>,
}

#[derive(Serialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub(crate) enum BackupResult {
    Committed(Committed),
    UpToDate {
        id: BackupId,
    },
    Unchanged {
        id: BackupId,
        snapshot: SnapshotName,
    },
    Paused(PausedUpload),
}

/// A backup that the run committed.
#[derive(Serialize)]
pub(crate) struct Committed {
    pub(crate) id: BackupId,
    pub(crate) kind: BackupKind,
    pub(crate) base: Option<BackupId>,
    pub(crate) stream_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) chunks: usize,
    pub(crate) seconds: f64,
    /// The number of incrementals in the chain up to this backup.
    #[serde(skip)]
    pub(crate) position: u32,
    /// The weakest evidence among the chunks.
    #[serde(skip)]
    pub(crate) tier: Option<EvidenceTier>,
    /// Whether the type of each record of the stream is known.
    #[serde(skip)]
    pub(crate) checked: bool,
}

impl BackupResult {
    fn committed(backup: &CommittedBackup, started: Instant) -> Self {
        let manifest = &backup.manifest;
        Self::Committed(Committed {
            id: manifest.id.clone(),
            kind: manifest.kind,
            base: manifest.base.as_ref().map(|base| base.backup_id.clone()),
            stream_bytes: manifest.stream_bytes,
            stored_bytes: backup.stored_bytes,
            chunks: backup.chunks,
            seconds: started.elapsed().as_secs_f64(),
            position: manifest.chain.position,
            tier: backup.evidence.as_ref().map(|evidence| evidence.tier),
            checked: manifest.send.checked,
        })
    }
}

impl Render for DatasetResult<BackupResult> {
    fn render(&self, output: &Output) {
        let dataset = &self.dataset;
        match &self.result {
            BackupResult::Committed(committed) => render_committed(dataset, committed, output),
            BackupResult::UpToDate { id } => output.line(format!(
                "{dataset}: up to date, {id} holds the newest snapshot"
            )),
            BackupResult::Unchanged { id, snapshot } => output.line(format!(
                "{dataset}: unchanged: {id} already has the state of @{}",
                snapshot.short()
            )),
            BackupResult::Paused(PausedUpload {
                id,
                why,
                chunks,
                stream_bytes,
            }) => {
                output.line(format!("{dataset}: paused, {why}"));
                output.line(format!(
                    "  {id}: {chunks} chunks kept ({}); the next run resumes",
                    bytes(*stream_bytes)
                ));
            }
        }
    }
}

fn render_committed(dataset: &DatasetName, committed: &Committed, output: &Output) {
    let Committed {
        id,
        base,
        stream_bytes,
        stored_bytes,
        chunks,
        seconds,
        position,
        tier,
        ..
    } = committed;
    output.line(format!("{dataset}: committed {id}"));
    if let Some(base) = base {
        output.line(format!("  incremental {position} on {base}"));
    }
    output.line(format!(
        "  {} stream, {} stored in {chunks} chunks, {seconds:.1} s, confirmed by {}",
        bytes(*stream_bytes),
        bytes(*stored_bytes),
        tier.map_or("nothing", tier_words),
    ));
    if !committed.checked {
        output.note("a record of an unknown type was stored; only the END checksum covers it");
    }
}
