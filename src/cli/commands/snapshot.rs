//! `snapshot`.

use crate::cli::context::Context;
use crate::cli::failure::{Failure, status};
use crate::cli::open::history;
use crate::cli::open::remote::open_zfs;
use crate::config::SnapshotSource;
use crate::model::{DatasetName, SnapshotName};
use crate::run::RunError;
use crate::run::pool::select::Selected;
use crate::run::pool::snapshot::{SnapshotRun, SnapshotsTaken, snapshot_between_hooks};
use crate::zfs::{Dataset, Snapshot, ZfsErrno};
use jiff::Timestamp;
use serde::Serialize;

/// The document of `snapshot`.
#[derive(Default, Serialize)]
pub(crate) struct Snapshots {
    pub(crate) snapshots: Vec<SnapshotName>,
    pub(crate) failed: Vec<DatasetName>,
}

pub(crate) async fn snapshot(context: &Context) -> Result<(), Failure> {
    let output = &context.output;
    let config = &context.setup()?.config;
    if let SnapshotSource::Matching(glob) = &config.snapshots.source {
        output.line(format!(
            "no snapshot is taken: main.use_snapshots = {glob:?} uses those of another tool"
        ));
        output.json(&Snapshots::default());
        return Ok(());
    }
    let zfs = open_zfs()?;
    let selected = context.datasets(&*zfs)?;
    let datasets: Vec<Dataset> = selected
        .iter()
        .map(|selected| selected.dataset.clone())
        .collect();
    if context.global.dry_run {
        for dataset in &datasets {
            output.line(format!(
                "would snapshot {}@{}TIME",
                dataset.name, config.snapshots.prefix
            ));
        }
        return Ok(());
    }
    let mut variables = context.hook_variables(config);
    let names: Vec<String> = datasets
        .iter()
        .map(|dataset| dataset.name.to_string())
        .collect();
    variables.push((
        "ZFS_BACKUP_DATASET",
        names.first().cloned().unwrap_or_default(),
    ));
    variables.push(("ZFS_BACKUP_DATASETS", names.join("\n")));
    let run = SnapshotRun {
        zfs: &*zfs,
        datasets: &datasets,
        prefix: &config.snapshots.prefix,
        // Only the commit of a new backup extends the locks of the earlier ones.
        of_unchanged: config.snapshots.of_unchanged || config.object_lock().is_some(),
        now: Timestamp::now,
        hooks: &config.hooks,
        variables,
        stop: &context.stop,
        running: &context.leftovers.hook,
    };
    let outcome = snapshot_between_hooks(&run).await;
    for Selected { dataset, stored } in &selected {
        let of_dataset = |newest: &&Snapshot| *newest.name.dataset() == dataset.name;
        if let Some(newest) = outcome.unchanged.iter().find(of_dataset) {
            history::unwritten(config, stored, newest);
        }
    }
    report(context, outcome)
}

fn report(context: &Context, outcome: SnapshotsTaken) -> Result<(), Failure> {
    let SnapshotsTaken {
        taken,
        unchanged,
        refused,
        hook_errors,
    } = outcome;
    for name in &taken {
        context.output.line(format!("snapshot {name}"));
        context.done(name.dataset(), 0);
    }
    for newest in unchanged {
        let dataset = newest.name.dataset();
        context.output.line(format!(
            "{dataset}: nothing was written since {}",
            newest.name
        ));
        context.done(dataset, 0);
    }
    for (dataset, error) in refused {
        match &error {
            // The next steps back up the snapshots that the pool has.
            RunError::Zfs(error)
                if context.is_step() && error.errno() == Some(ZfsErrno::READ_ONLY) =>
            {
                context.output.always(&format!(
                    "{dataset}: no snapshot is taken, because the pool was imported read-only; existing snapshots are backed up"
                ));
            }
            _ => context.failed(&dataset, &Failure::Run(error)),
        }
    }
    context.output.json(&Snapshots {
        snapshots: taken,
        failed: context.failed_datasets(),
    });
    let mut worst = context
        .verdict()
        .map_or_else(|failure| failure.status(), |()| status::DONE);
    for failure in hook_errors.into_iter().map(Failure::Run) {
        failure.print(&context.output);
        worst = status::worst(worst, failure.status());
    }
    if worst == status::DONE {
        Ok(())
    } else {
        Err(Failure::Reported(worst))
    }
}
