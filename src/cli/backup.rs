//! `snapshot`, `stream-to-remote`, `export-intermediate`.

use super::args::{Global, Kind};
use super::output::{Output, bytes};
use super::progress::UploadProgress;
use super::wire::{
    backup_settings, keys_for_writing, load_config, open_intermediate, open_remote, open_zfs, status_of,
};
use super::{Failure, wire};
use crate::config::Config;
use crate::model::DatasetName;
use crate::plan::send::RequestedKind;
use crate::run::backup::{BackupEnv, BackupOutcome, CommittedBackup, back_up, estimate_bytes};
use crate::run::snapshot::take_snapshots;
use crate::run::transfer::Stop;
use crate::store::ObjectStore;
use jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;
use std::time::Instant;

pub(super) fn snapshot(global: &Global, output: &Output) -> Result<(), Failure> {
    let (config, _) = load_config(global, output)?;
    let zfs = open_zfs()?;
    if global.dry_run {
        for dataset in &config.datasets.names {
            crate::run::snapshot::find_dataset(&*zfs, dataset)?;
            output.line(format!("would snapshot {dataset}@{}TIME", config.snapshots.prefix));
        }
        return Ok(());
    }
    let taken = take_snapshots(&*zfs, &config.datasets.names, &config.snapshots.prefix, Timestamp::now())?;
    for name in &taken {
        output.line(format!("snapshot {name}"));
    }
    output.json(|| json!({ "snapshots": taken.iter().map(ToString::to_string).collect::<Vec<_>>() }));
    Ok(())
}

pub(super) async fn stream_to_remote(global: &Global, kind: &Kind, output: &Output, stop: Stop) -> Result<(), Failure> {
    let (config, env) = load_config(global, output)?;
    let store = open_remote(&config, &env).await?;
    back_up_all(global, kind, output, stop, &config, &env, store).await
}

pub(super) async fn export_intermediate(
    global: &Global,
    kind: &Kind,
    output: &Output,
    stop: Stop,
) -> Result<(), Failure> {
    let (config, env) = load_config(global, output)?;
    let store = open_intermediate(&config)?;
    back_up_all(global, kind, output, stop, &config, &env, store).await
}

async fn back_up_all(
    global: &Global,
    kind: &Kind,
    output: &Output,
    stop: Stop,
    config: &Config,
    env: &crate::config::Environment,
    store: Arc<dyn ObjectStore>,
) -> Result<(), Failure> {
    let requested = match (kind.full, kind.incremental) {
        (true, _) => RequestedKind::Full,
        (_, true) => RequestedKind::Incremental,
        _ => RequestedKind::Lifecycle,
    };
    let zfs = open_zfs()?;
    if global.dry_run {
        return dry_run(&*zfs, config, output);
    }
    let keys = keys_for_writing(config, env, &*store).await?;
    let (mut failures, mut results) = (Vec::new(), Vec::new());
    for dataset in &config.datasets.names {
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
            Ok(outcome) => results.push(report(dataset, &outcome, started, output)),
            Err(error) => {
                let failure = Failure::Run(error);
                failure.print(output);
                failures.push(failure.status());
                if *stop.borrow() {
                    break;
                }
            }
        }
    }
    output.json(|| json!({ "backups": results, "failed": failures.len() }));
    status_of(&failures, config.datasets.names.len())
}

fn dry_run(zfs: &dyn crate::zfs::Zfs, config: &Config, output: &Output) -> Result<(), Failure> {
    for dataset in &config.datasets.names {
        let estimate = estimate_bytes(zfs, dataset, &wire::backup_settings(config))?;
        let chunks = estimate.div_ceil(config.split_size.bytes()).max(1);
        output.line(format!("{dataset}: would send a full of about {}, {chunks} chunks", bytes(estimate)));
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
