//! `stream-to-remote` and `export-intermediate`.

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
use crate::cli::screen::output::Output;
use crate::cli::screen::progress::UploadProgress;
use crate::cli::screen::table::{bytes, tier_words};
use crate::config::{Config, KeySource};
use crate::model::{BackupId, DatasetName};
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
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::store::ObjectStore;
#[cfg(any(test, feature = "testing"))]
use crate::zfs::recorded::RecordedZfs;
use crate::zfs::{SendBase, Zfs};
use jiff::Timestamp;
use serde_json::json;
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
/// that cannot be opened does not stop the run: the remote's last known contents are used.
async fn open_other(
    setup: &Setup,
    role: StoreRole,
    target: &dyn ObjectStore,
) -> Result<Option<OtherStore>, Failure> {
    if known_store(&setup.config, role)?.is_none() {
        return Ok(None);
    }
    let store = match setup.open(role, Access::Read).await {
        Err(failure @ Failure::Run(RunError::OnePlace { .. })) => return Err(failure),
        opened => opened.map_err(|failure| failure.reason()),
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
    zfs: &dyn Zfs,
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
    zfs: &dyn Zfs,
    store: &dyn ObjectStore,
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
    let Context { output, stop, .. } = context;
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
    // All datasets of the run share one end of the time window.
    let until = backup_settings(config).until;
    let mut results = Vec::new();
    for selected in &datasets {
        let dataset = &selected.dataset.name;
        let progress = UploadProgress::new(output, dataset.as_str());
        let shown = (progress.clone(), Arc::clone(output), dataset.clone());
        let planned = move |planned: &PlannedBackup| {
            let (progress, output, dataset) = &shown;
            progress.expect(planned.estimate_bytes.unwrap_or(0));
            if let SendPlan::Full { why, .. } = &planned.plan
                && !matches!(why, FullReason::Requested | FullReason::First)
            {
                output.note(&format!("{dataset}: a full, not an incremental: {why}"));
            }
        };
        let mut backup = backup_env(config, kind, &target, zfs, keys.clone(), stop.clone());
        (backup.progress, backup.planned) = (progress.sink(), Arc::new(planned));
        backup.settings.until = until;
        let started = Instant::now();
        let run = wait_for_others(context, async || {
            back_up(&backup, selected, requested).await
        })
        .await;
        progress.finish();
        let run = run.unwrap_or_else(|error| BackupRun {
            committed: Vec::new(),
            end: Err(error),
        });
        history::backed_up(config, &*target.store, &selected.stored, &run);
        for backup in &run.committed {
            results.push(report_backup(dataset, backup, started, output));
        }
        match &run.end {
            Ok(BackupEnd::UpToDate(id)) if run.committed.is_empty() => {
                results.push(report_up_to_date(dataset, id, output));
            }
            Ok(BackupEnd::UpToDate(_)) => {}
            Ok(BackupEnd::Paused(paused)) => {
                context.paused(dataset);
                results.push(report_paused(dataset, paused, output));
            }
            Err(error) => {
                history::failed(config, &*target.store, &selected.stored, "backup", error);
            }
        }
        match run.end {
            Ok(_) => context.done(
                dataset,
                run.committed.iter().map(|backup| backup.stored_bytes).sum(),
            ),
            Err(error) => {
                context.failed(dataset, &Failure::Run(error));
                if *stop.borrow() {
                    break;
                }
            }
        }
    }
    if !results.is_empty() && target.role == StoreRole::Remote {
        kept_config::keep(config, &*target.store, &keys).await;
    }
    if !results.is_empty()
        && let Err(error) = note_clock(&config.state_dir, &*target.store).await
    {
        tracing::debug!("cannot note this host's clock: {}", error_chain(&error));
    }
    let failed: Vec<_> = context.tally().failed.into_keys().collect();
    output.json(|| json!({ "backups": results, "failed": failed }));
    context.verdict()
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
    let mut settings = backup_settings(config);
    settings.restart = kind.restart;
    BackupEnv {
        zfs: Arc::clone(zfs),
        store: Arc::clone(&target.store),
        role: target.role,
        other: target.other.clone(),
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
    let config = &setup.config;
    let keys = keys_for_planning(setup, &*target.store).await?;
    let backup = backup_env(config, kind, target, zfs, keys, context.stop.clone());
    let mut plans = Vec::new();
    for selected in datasets {
        let dataset = &selected.dataset.name;
        let resumes = match plan_resumes(&backup, selected, requested).await {
            Ok(resumes) => resumes,
            Err(error) => {
                context.failed(dataset, &Failure::Run(error));
                continue;
            }
        };
        for resume in &resumes {
            print_resume(dataset, resume, config, &context.output);
            plans.push(resume_json(dataset, resume, config));
        }
        if resumes.iter().any(|resume| resume.resumes_at.is_some()) {
            // The later steps depend on what will be stored by then.
            context.output.line(format!(
                "{dataset}: then the newest snapshot, if that is another one"
            ));
            context.done(dataset, 0);
            continue;
        }
        match plan_backup(&backup, selected, requested).await {
            Ok(planned) => {
                for SteppedOver { snapshot, fault } in &planned.stepped_over {
                    let name = snapshot.name.short();
                    context.output.note(&format!(
                        "{dataset}: @{name} is unreadable and is stepped over: twice ZFS could not read it {fault}"
                    ));
                }
                print_plan(dataset, &planned, config, &context.output);
                plans.push(plan_json(dataset, &planned, config));
                context.done(dataset, 0);
            }
            Err(error) => context.failed(dataset, &Failure::Run(error)),
        }
    }
    let failed: Vec<_> = context.tally().failed.into_keys().collect();
    context
        .output
        .json(|| json!({ "plans": plans, "failed": failed }));
    context.verdict()
}

fn chunks_of(planned: &PlannedBackup, config: &Config) -> Option<u64> {
    planned
        .estimate_bytes
        .map(|estimate| estimate.div_ceil(config.split_size.bytes()).max(1))
}

fn print_plan(dataset: &DatasetName, planned: &PlannedBackup, config: &Config, output: &Output) {
    let size = match (planned.estimate_bytes, chunks_of(planned, config)) {
        (Some(estimate), Some(chunks)) => format!("about {}, {chunks} chunks", bytes(estimate)),
        _ => "size not known".to_owned(),
    };
    output.line(match &planned.plan {
        SendPlan::UpToDate { id } => {
            format!("{dataset}: up to date, {id} holds the newest snapshot")
        }
        SendPlan::Full { snapshot, why } => format!(
            "{dataset} FULL ({why}) of @{}: {size}",
            snapshot.name.short()
        ),
        SendPlan::Incremental {
            snapshot,
            base,
            backup,
        } => format!(
            "{dataset} incremental of @{}: {size}\n  from {} ({})\n  on {}",
            snapshot.name.short(),
            base_text(base),
            backup.snapshot.created_at.strftime("%Y-%m-%d"),
            backup.id
        ),
    });
}

fn print_resume(dataset: &DatasetName, resume: &PlannedResume, config: &Config, output: &Output) {
    let PlannedResume {
        id,
        chunks,
        stream_bytes,
        resumes_at,
        why_not,
    } = resume;
    let kept = format!("{chunks} chunks ({}) are confirmed", bytes(*stream_bytes));
    match (resumes_at, why_not) {
        (Some(position), _) => {
            output.line(format!("{dataset} resumes {id}"));
            let next = position / config.split_size.bytes();
            output.line(format!(
                "  {kept}; ZFS is read again from {}, in chunk {next}",
                bytes(*position)
            ));
        }
        (None, why) => {
            output.line(format!(
                "{dataset} does not resume {id}: {}",
                why.as_deref().unwrap_or("for an unknown reason")
            ));
            output.line(format!("  {kept}"));
        }
    }
}

fn resume_json(
    dataset: &DatasetName,
    resume: &PlannedResume,
    config: &Config,
) -> serde_json::Value {
    let PlannedResume {
        id,
        chunks,
        stream_bytes,
        resumes_at,
        why_not,
    } = resume;
    json!({
        "dataset": dataset, "plan": "resume", "id": id, "chunks": chunks, "stream_bytes": stream_bytes,
        "resumes_at": resumes_at, "split_bytes": config.split_size.bytes(), "why_not": why_not,
    })
}

fn base_text(base: &SendBase) -> String {
    match base {
        SendBase::Snapshot(name) => format!("@{}", name.short()),
        SendBase::Bookmark(name) => format!("#{}", name.short()),
    }
}

fn plan_json(dataset: &DatasetName, planned: &PlannedBackup, config: &Config) -> serde_json::Value {
    let size = json!({ "bytes": planned.estimate_bytes, "chunks": chunks_of(planned, config) });
    match &planned.plan {
        SendPlan::UpToDate { id } => json!({ "dataset": dataset, "plan": "up-to-date", "id": id }),
        SendPlan::Full { snapshot, why } => json!({
            "dataset": dataset, "plan": "full", "snapshot": snapshot.name, "why": why.to_string(), "estimate": size,
        }),
        SendPlan::Incremental {
            snapshot,
            base,
            backup,
        } => json!({
            "dataset": dataset, "plan": "incremental", "snapshot": snapshot.name, "base": base_text(base),
            "base_backup": backup.id, "estimate": size,
        }),
    }
}

fn report_up_to_date(dataset: &DatasetName, id: &BackupId, output: &Output) -> serde_json::Value {
    output.line(format!(
        "{dataset}: up to date, {id} holds the newest snapshot"
    ));
    json!({ "dataset": dataset, "result": "up-to-date", "id": id })
}

fn report_paused(
    dataset: &DatasetName,
    paused: &PausedUpload,
    output: &Output,
) -> serde_json::Value {
    let PausedUpload {
        id,
        why,
        chunks,
        stream_bytes,
    } = paused;
    output.line(format!("{dataset}: paused, {why}"));
    output.line(format!(
        "  {id}: {chunks} chunks kept ({}); the next run resumes",
        bytes(*stream_bytes)
    ));
    json!({
        "dataset": dataset, "result": "paused", "id": id, "why": why, "chunks": chunks,
        "stream_bytes": stream_bytes,
    })
}

fn report_backup(
    dataset: &DatasetName,
    committed: &CommittedBackup,
    started: Instant,
    output: &Output,
) -> serde_json::Value {
    let CommittedBackup {
        manifest,
        stored_bytes,
        chunks,
        evidence,
    } = committed;
    let seconds = started.elapsed().as_secs_f64();
    let base = manifest.base.as_ref().map(|base| &base.backup_id);
    output.line(format!("{dataset}: committed {}", manifest.id));
    if let Some(base) = base {
        output.line(format!(
            "  incremental {} on {base}",
            manifest.chain.position
        ));
    }
    output.line(format!(
        "  {} stream, {} stored in {chunks} chunks, {seconds:.1} s, confirmed by {}",
        bytes(manifest.stream_bytes),
        bytes(*stored_bytes),
        evidence
            .as_ref()
            .map_or("nothing", |evidence| { tier_words(evidence.tier) }),
    ));
    if !manifest.send.checked {
        output.note("a record of an unknown type was stored; only the END checksum covers it");
    }
    json!({
        "dataset": dataset, "result": "committed", "id": manifest.id, "kind": manifest.kind, "base": base,
        "stream_bytes": manifest.stream_bytes, "stored_bytes": stored_bytes, "chunks": chunks,
        "seconds": seconds,
    })
}
