//! `drill`.

use crate::cli::args::{Drill, From};
use crate::cli::commands::restore::space::check_fit;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::history;
use crate::cli::open::identity::known_stores;
use crate::cli::open::reading::open_places;
use crate::cli::open::remote::open_zfs;
use crate::cli::screen::output::{Output, Render};
use crate::cli::screen::table::bytes;
use crate::config::Config;
use crate::model::{BackupId, DatasetName};
use crate::plan::space::Fit;
use crate::run::pool::select::{Selected, select_datasets};
use crate::run::restore::drill::{
    AbandonedScratch, Comparison, check_drill_allowed, clean_up, drill as run_drill,
    find_leftovers, judge_drill_fit,
};
use crate::run::restore::{RestorePoint, RestoreSet, find_restore_set, lock_folder};
use crate::run::runner::Runner;
use crate::run::{RunError, error_chain};
use crate::state::StateError;
use crate::state::history::{DrillNote, HistoryRecords};
use crate::zfs::{Dataset, Zfs};
use jiff::Timestamp;
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// The result of `drill`.
#[derive(Serialize)]
pub(crate) struct Drilled {
    pub(crate) dataset: DatasetName,
    pub(crate) backups: Vec<DrilledBackup>,
    pub(crate) seconds: f64,
    /// The description of the chain.
    #[serde(skip)]
    pub(crate) chain: String,
}

/// The result for one backup of the chain.
#[derive(Serialize)]
pub(crate) struct DrilledBackup {
    pub(crate) id: BackupId,
    pub(crate) store: String,
    pub(crate) same_bytes: bool,
    pub(crate) not_compared: Option<String>,
}

impl Drilled {
    fn new(
        dataset: DatasetName,
        set: &RestoreSet,
        compared: Vec<Comparison>,
        started: Instant,
    ) -> Self {
        let mut backups = Vec::new();
        for (backup, compared) in set.backups.iter().zip(compared) {
            let not_compared = match compared {
                Comparison::Same => None,
                Comparison::Not(why) => Some(why),
            };
            backups.push(DrilledBackup {
                id: backup.manifest.id.clone(),
                store: backup.store.url().to_owned(),
                same_bytes: not_compared.is_none(),
                not_compared,
            });
        }
        Self {
            dataset,
            backups,
            seconds: started.elapsed().as_secs_f64(),
            chain: words_of(set),
        }
    }
}

impl Render for Drilled {
    fn render(&self, output: &Output) {
        let Self {
            dataset,
            backups,
            seconds,
            chain,
        } = self;
        output.line(format!("{dataset}: restored {chain}, {seconds:.1} s"));
        let same = backups.iter().filter(|backup| backup.same_bytes).count();
        let count = backups.len();
        output.line(format!(
            "  every record checked by ZFS, {count} guids right, {same} of {count} streams byte for byte those of the pool"
        ));
        for backup in backups {
            if let Some(why) = &backup.not_compared {
                output.line(format!("  not compared {}:", backup.id));
                output.line(format!("    {why}"));
            }
        }
    }
}

pub(crate) async fn drill(context: &Context, drill: &Drill) -> Result<(), Failure> {
    let output = &context.output;
    let zfs = open_zfs()?;
    let selected = configured_datasets(context, drill, &*zfs)?;
    let stored = dataset_to_drill(context, drill, &selected)?;
    let source = selected
        .iter()
        .find(|selected| selected.stored == stored)
        .map(|selected| &selected.dataset);
    let parent = parent_of_scratch(drill, &stored, source)?;
    let from = if drill.cold {
        Some(From::Remote)
    } else {
        drill.from.clone()
    };
    let places = open_places(context, &drill.source, from.as_ref(), drill.cold).await?;
    let point = drill
        .backup
        .clone()
        .map_or(RestorePoint::Newest, RestorePoint::Id);
    let set = find_restore_set(&places.stores, &stored, &places.keys, &point).await?;
    for why in &set.unasked {
        output.always(&format!("a store could not be asked: {why}"));
    }
    let locks = lock_folder();
    see_to_leftovers(&*zfs, &parent, locks.as_deref(), context)?;
    check_drill_allowed(&*zfs, &set, &parent, &Runner::current())?;
    let fit = judge_drill_fit(&*zfs, &set, &parent)?;
    let fits = check_fit(fit, drill.although_full, context);
    let config = places.setup.as_ref().map(|setup| &setup.config);
    note_refusal(fits, config, &stored)?;
    if context.global.dry_run {
        output.line(format!(
            "{stored}: would restore {} below {parent}",
            words_of(&set)
        ));
        return Ok(());
    }
    output.note(&format!(
        "{stored}: restoring {} below {parent}",
        words_of(&set)
    ));
    let started = Instant::now();
    let report = run_drill(
        &set,
        &places.keys,
        &zfs,
        source,
        &parent,
        locks.as_deref(),
        context.stop.clone(),
    )
    .await;
    if let Some(setup) = places.setup {
        note_drill(&setup.config, &stored, &set, report.as_ref().err());
    }
    let report = report?;
    output.emit(&Drilled::new(stored, &set, report.compared, started));
    // The backup is good, but a person must remove what the drill left: the drill did not succeed.
    report.left.map_or(Ok(()), |left| Err(left.into()))
}

/// Returns the configured datasets of this host; none when the command line names the store, for
/// which no configuration is needed.
fn configured_datasets(
    context: &Context,
    drill: &Drill,
    zfs: &dyn Zfs,
) -> Result<Vec<Selected>, Failure> {
    if drill.source.remote.is_some() {
        return Ok(Vec::new());
    }
    let config = &context.setup()?.config;
    Ok(select_datasets(zfs, &config.datasets, &config.state_dir)?.selected)
}

/// Returns the dataset of the command line, or the configured one that was not drilled for longest.
fn dataset_to_drill(
    context: &Context,
    drill: &Drill,
    selected: &[Selected],
) -> Result<DatasetName, Failure> {
    match &drill.dataset {
        Some(dataset) => Ok(dataset.clone()),
        None if drill.source.remote.is_some() => Err(usage(
            "which dataset?",
            "name it as `show --remote URL` does",
        )),
        None => longest_undrilled(&context.setup()?.config, selected),
    }
}

/// Saves the result of a drill for `show` and `health`.
fn note_drill(config: &Config, stored: &DatasetName, set: &RestoreSet, error: Option<&RunError>) {
    match error {
        Some(error) => history::drill_failed(config, stored, error),
        None => {
            let drilled = DrillNote {
                at: Timestamp::now(),
                id: set.newest().manifest.id.clone(),
            };
            history::drilled(config, stored, &drilled);
        }
    }
}

/// Records a drill that is refused for lack of space: `health` reports it like one that failed.
fn note_refusal(
    fits: Result<Fit, Failure>,
    config: Option<&Config>,
    stored: &DatasetName,
) -> Result<(), Failure> {
    if let (Some(config), Err(Failure::Run(error))) = (config, &fits) {
        history::drill_failed(config, stored, error);
    }
    fits.map(drop)
}

/// Returns the dataset below which the drill makes its scratch dataset.
fn parent_of_scratch(
    drill: &Drill,
    stored: &DatasetName,
    source: Option<&Dataset>,
) -> Result<DatasetName, Failure> {
    match (&drill.into, source) {
        (Some(parent), _) => Ok(parent.clone()),
        (None, Some(source)) => pool_of(&source.name),
        (None, None) => {
            let what = format!(
                "{stored} is in no pool here, so there is no place for the scratch dataset"
            );
            Err(usage(&what, "name one: --into POOL/DATASET"))
        }
    }
}

fn pool_of(dataset: &DatasetName) -> Result<DatasetName, Failure> {
    dataset.pool().parse().map_err(|_| {
        usage(
            &format!("{dataset} is in no pool"),
            "name one: --into POOL/DATASET",
        )
    })
}

/// Returns the configured dataset that was never drilled, or whose last drill is the oldest.
fn longest_undrilled(config: &Config, selected: &[Selected]) -> Result<DatasetName, Failure> {
    let Some(store) = known_stores(config)?.into_iter().next() else {
        return Err(usage(
            "no store is configured",
            "set `remote` or `intermediate_basedir`",
        ));
    };
    let mut oldest: Option<(Option<Timestamp>, &DatasetName)> = None;
    for Selected { stored, .. } in selected {
        let at = HistoryRecords::new(&config.state_dir, &store, stored)
            .read()?
            .drill
            .map(|note| note.at);
        if oldest.is_none_or(|(known, _)| at < known) {
            oldest = Some((at, stored));
        }
    }
    oldest.map(|(_, stored)| stored.clone()).ok_or_else(|| {
        usage(
            "no configured dataset exists on this host",
            "name one: drill DATASET",
        )
    })
}

/// Destroys the scratch datasets that killed drills left, or reports why one stays. With
/// `--dry-run` only lists them.
fn see_to_leftovers(
    zfs: &dyn Zfs,
    parent: &DatasetName,
    locks: Option<&Path>,
    context: &Context,
) -> Result<(), Failure> {
    let output = &context.output;
    if context.global.dry_run {
        for left in find_leftovers(zfs, parent)? {
            output.always(&format!(
                "{} remains of an earlier drill: a drill would destroy it if that drill has ended",
                left.name
            ));
        }
        return Ok(());
    }
    for leftover in clean_up(zfs, parent, locks)? {
        match leftover {
            AbandonedScratch::Destroyed(name) => output.always(&format!(
                "destroyed {name}, which a drill that was killed left"
            )),
            AbandonedScratch::Stays(_, RunError::State(StateError::Locked { holder, .. })) => {
                let process = holder
                    .map(|pid| format!(", process {pid}"))
                    .unwrap_or_default();
                output.note(&format!("another drill is running below {parent}{process}"));
            }
            AbandonedScratch::Stays(_, error) => {
                output.always(&error_chain(&error));
                error
                    .hint()
                    .iter()
                    .for_each(|hint| output.always(&format!("  {hint}")));
            }
        }
    }
    Ok(())
}

/// Describes a chain: `full 20261120T..-full-.. and 3 incrementals, 1.2G`.
fn words_of(set: &RestoreSet) -> String {
    let stored = set
        .backups
        .iter()
        .flat_map(|backup| &backup.chunks)
        .map(|chunk| chunk.sealed_bytes)
        .sum();
    let snapshot = set.newest().manifest.snapshot.created_at;
    let chain = match set.backups.len() - 1 {
        0 => "a full".to_owned(),
        1 => "a full and 1 incremental".to_owned(),
        more => format!("a full and {more} incrementals"),
    };
    format!("{chain} up to {snapshot}, {}", bytes(stored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Global;
    use crate::cli::open::history::{DEFAULT_LIMITS, facts_of};
    use crate::config::Environment;
    use crate::plan::health::judge_health;
    use crate::plan::space::{ArrivingBytes, judge_space};
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    /// Returns a configuration whose remote is a folder.
    fn config(folder: &Path) -> Config {
        let (file, place) = (folder.join("zb.toml"), folder.display());
        let text = format!(
            "[main]\nzfs_fs = \"tank/a\"\nencryption_passphrase = \"x\"\nremote = \"file:{place}/remote\"\n\
             state_dir = \"{place}/state\"\n"
        );
        std::fs::create_dir(folder.join("remote")).unwrap();
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        Config::load(&file, &Environment::current()).unwrap()
    }

    #[test]
    fn drill_that_is_refused_for_space_shows_in_health() {
        let folder = tempfile::tempdir().unwrap();
        let (config, stored) = (config(folder.path()), "tank/a".parse().unwrap());
        let global = Global {
            quiet: true,
            ..Global::default()
        };
        let output = Arc::new(Output::new(&global));
        let stop = tokio::sync::watch::channel(false).1;
        let context = Context::new(global, output, stop, Arc::default());
        let arriving = ArrivingBytes {
            stream_bytes: 2,
            ..ArrivingBytes::default()
        };
        let fit = judge_space("tank/scratch", &[arriving], Some(1));
        let fits = check_fit(fit, false, &context);
        note_refusal(fits, Some(&config), &stored).unwrap_err();
        let store = known_stores(&config).unwrap().remove(0);
        let records = HistoryRecords::new(&config.state_dir, &store, &stored);
        let facts = facts_of(&records.read().unwrap(), None);
        let health = judge_health(&facts, &DEFAULT_LIMITS, Timestamp::now());
        let said = health
            .reasons
            .iter()
            .any(|reason| reason.contains("drill") && reason.contains("tank/scratch has 1 left"));
        assert!(said, "{:?}", health.reasons);
    }
}
