//! `snapshot`, `stream-to-remote`, `export-intermediate`.

use super::args::Kind;
use super::context::Context;
use super::output::{Output, bytes};
use super::progress::UploadProgress;
use super::wire::{backup_settings, keys_for_writing, open_intermediate, open_remote, open_zfs};
use super::{Failure, wire};
use crate::config::Config;
use crate::model::DatasetName;
use crate::plan::send::RequestedKind;
use crate::run::backup::{BackupEnv, BackupOutcome, CommittedBackup, back_up, estimate_bytes};
use crate::run::inside::refuse_inside;
use crate::run::select::Selected;
use crate::run::snapshot::take_snapshots;
use crate::run::sums::write_sums;
use crate::store::ObjectStore;
use jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

pub(super) fn snapshot(context: &Context) -> Result<(), Failure> {
    let Context { global, output, .. } = context;
    let loaded = context.config()?;
    let config = &loaded.0;
    let zfs = open_zfs()?;
    let datasets: Vec<DatasetName> =
        context.datasets(&*zfs)?.into_iter().map(|selected| selected.dataset.name).collect();
    if global.dry_run {
        for dataset in &datasets {
            output.line(format!("would snapshot {dataset}@{}TIME", config.snapshots.prefix));
        }
        return Ok(());
    }
    let taken = take_snapshots(&*zfs, &datasets, &config.snapshots.prefix, Timestamp::now())?;
    for name in &taken {
        output.line(format!("snapshot {name}"));
        context.done(name.dataset(), 0);
    }
    output.json(|| json!({ "snapshots": taken.iter().map(ToString::to_string).collect::<Vec<_>>() }));
    Ok(())
}

pub(super) async fn stream_to_remote(context: &Context, kind: &Kind) -> Result<(), Failure> {
    let (config, env) = &*context.config()?;
    back_up_all(context, kind, open_remote(config, env).await?).await
}

pub(super) async fn export_intermediate(context: &Context, kind: &Kind) -> Result<(), Failure> {
    let (config, _) = &*context.config()?;
    let store = open_intermediate(config)?;
    refuse_inside_datasets(context, config)?;
    let exported = back_up_all(context, kind, Arc::clone(&store)).await;
    let summed = write_all_sums(context, config, &*store).await;
    exported.and(summed)
}

/// Each backup would hold the ones before.
fn refuse_inside_datasets(context: &Context, config: &Config) -> Result<(), Failure> {
    let Some(intermediate) = &config.intermediate else { return Ok(()) };
    let datasets: Vec<DatasetName> =
        context.datasets(&*open_zfs()?)?.into_iter().map(|selected| selected.dataset.name).collect();
    Ok(refuse_inside(&intermediate.basedir, &datasets)?)
}

/// `B3SUMS` for every backup of the datasets that are done and have none yet.
async fn write_all_sums(context: &Context, config: &Config, store: &dyn ObjectStore) -> Result<(), Failure> {
    let wanted = config.intermediate.as_ref().is_some_and(|intermediate| intermediate.checksum);
    if !wanted || context.global.dry_run {
        return Ok(());
    }
    let (_, env) = &*context.config()?;
    let trusted = keys_for_writing(config, env, store).await?.trusted;
    let done = context.tally().done;
    for Selected { dataset, stored } in context.datasets(&*open_zfs()?)? {
        if done.contains(&dataset.name)
            && let Err(error) = write_sums(store, &stored, &trusted).await
        {
            context.failed(&dataset.name, &Failure::Run(error));
        }
    }
    context.verdict()
}

async fn back_up_all(context: &Context, kind: &Kind, store: Arc<dyn ObjectStore>) -> Result<(), Failure> {
    let Context { global, output, stop, .. } = context;
    let (config, env) = &*context.config()?;
    let requested = match (kind.full, kind.incremental) {
        (true, _) => RequestedKind::Full,
        (_, true) => RequestedKind::Incremental,
        _ => RequestedKind::Lifecycle,
    };
    let zfs = open_zfs()?;
    let datasets = context.datasets(&*zfs)?;
    if global.dry_run {
        return dry_run(&*zfs, config, &datasets, output);
    }
    let keys = keys_for_writing(config, env, &*store).await?;
    let mut results = Vec::new();
    for Selected { dataset, .. } in &datasets {
        let dataset = &dataset.name;
        let estimate = estimate_bytes(&*zfs, dataset, &backup_settings(config)).unwrap_or(0);
        let progress = UploadProgress::new(output, dataset.as_str(), estimate);
        let backup = BackupEnv {
            zfs: Arc::clone(&zfs),
            store: Arc::clone(&store),
            keys: keys.clone(),
            settings: backup_settings(config),
            now: Timestamp::now,
            progress: progress.sink(),
            stop: stop.clone(),
        };
        let started = Instant::now();
        let outcome = back_up(&backup, dataset, requested).await;
        progress.finish();
        match outcome {
            Ok(outcome) => {
                let stored = match &outcome {
                    BackupOutcome::Committed(committed) => committed.stored_bytes,
                    BackupOutcome::UpToDate(_) => 0,
                };
                results.push(report(dataset, &outcome, started, output));
                context.done(dataset, stored);
            }
            Err(error) => {
                context.failed(dataset, &Failure::Run(error));
                if *stop.borrow() {
                    break;
                }
            }
        }
    }
    let failed: Vec<_> = context.tally().failed.into_keys().collect();
    output.json(|| json!({ "backups": results, "failed": failed }));
    context.verdict()
}

fn dry_run(zfs: &dyn crate::zfs::Zfs, config: &Config, datasets: &[Selected], output: &Output) -> Result<(), Failure> {
    for Selected { dataset, .. } in datasets {
        let estimate = estimate_bytes(zfs, &dataset.name, &wire::backup_settings(config))?;
        let chunks = estimate.div_ceil(config.split_size.bytes()).max(1);
        output.line(format!("{}: would send a full of about {}, {chunks} chunks", dataset.name, bytes(estimate)));
    }
    Ok(())
}

fn report(dataset: &DatasetName, outcome: &BackupOutcome, started: Instant, output: &Output) -> serde_json::Value {
    match outcome {
        BackupOutcome::UpToDate(id) => {
            output.line(format!("{dataset}: up to date, {id} holds the newest snapshot"));
            json!({ "dataset": dataset, "result": "up-to-date", "id": id })
        }
        BackupOutcome::Committed(committed) => {
            let CommittedBackup { manifest, stored_bytes, chunks, evidence } = &**committed;
            let seconds = started.elapsed().as_secs_f64();
            output.line(format!("{dataset}: committed {}", manifest.id));
            output.line(format!(
                "  {} stream, {} stored in {chunks} chunks, {seconds:.1} s, confirmed by {}",
                bytes(manifest.stream_bytes),
                bytes(*stored_bytes),
                evidence.as_ref().map_or("nothing", |evidence| super::verify::tier_words(evidence.tier)),
            ));
            if !manifest.send.checked {
                output.note("a record of an unknown type was passed through: checked by END only");
            }
            json!({
                "dataset": dataset, "result": "committed", "id": manifest.id, "stream_bytes": manifest.stream_bytes,
                "stored_bytes": stored_bytes, "chunks": chunks, "seconds": seconds,
            })
        }
    }
}
