//! `prune-snapshots`.

use crate::cli::args::PruneByAge;
use crate::cli::context::{Context, Setup};
use crate::cli::failure::{Failure, status};
use crate::cli::lock::wait_for_others;
use crate::cli::open::access::Access;
use crate::cli::open::history;
use crate::cli::open::keys::keys_for_pruning;
use crate::cli::open::remote::{StoreState, open_zfs};
use crate::cli::parallel::for_each_dataset;
use crate::cli::screen::output::{Output, Render};
use crate::cli::screen::table::bytes;
use crate::config::Config;
use crate::plan::snapshots::find_snapshots_doubt;
use crate::run::RunError;
use crate::run::backup::StoreRole;
use crate::run::clock::ClockCheck;
use crate::run::pool::prune_snapshots::{
    SnapshotOutcome, SnapshotStore, SnapshotsEnv, judge_snapshots, prune_snapshots as prune_dataset,
};
use crate::run::pool::select::Selected;
use crate::zfs::Zfs;
use serde::Serialize;
use std::sync::Arc;

/// The name of the command, which `health` uses too.
const STEP: &str = "prune-snapshots";

/// The document of `prune-snapshots`.
#[derive(Serialize)]
pub(crate) struct PrunedSnapshots {
    pub(crate) carried_out: bool,
    pub(crate) snapshots: Vec<PrunedSnapshot>,
}

/// The result for one snapshot.
#[derive(Serialize)]
pub(crate) struct PrunedSnapshot {
    #[serde(flatten)]
    pub(crate) outcome: SnapshotOutcome,
    pub(crate) destroyed: bool,
}

impl PrunedSnapshot {
    fn new(outcome: SnapshotOutcome, carried_out: bool) -> Self {
        let destroyed = carried_out && outcome.verdict.destroy && outcome.refused.is_none();
        Self { outcome, destroyed }
    }
}

impl Render for PrunedSnapshot {
    fn render(&self, output: &Output) {
        let SnapshotOutcome { verdict, refused } = &self.outcome;
        let action = if verdict.destroy { "destroy" } else { "keep" };
        output.line(format!(
            "{action:<7} {:>6} {}",
            bytes(verdict.used_bytes),
            verdict.name
        ));
        output.line(format!("               {}", verdict.reason));
        if let Some(why) = refused {
            output.always(&format!("{} stays: {why}", verdict.name));
        }
    }
}

pub(crate) async fn prune_snapshots(context: &Context, prune: &PruneByAge) -> Result<(), Failure> {
    if context.setup()?.config.snapshots.oldest_days.is_none() {
        context
            .output
            .note("main.oldest_snapshot_days is not set, so no snapshot is destroyed");
        return Ok(());
    }
    prune_snapshots_of(context, open_zfs()?, prune).await
}

/// Does the same as [`prune_snapshots`], with this ZFS.
pub(crate) async fn prune_snapshots_of(
    context: &Context,
    zfs: Arc<dyn Zfs>,
    prune: &PruneByAge,
) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let output = &context.output;
    let Some(oldest_days) = config.snapshots.oldest_days else {
        return Ok(());
    };
    let datasets = context.datasets(&*zfs)?;
    let carry_out = context.carries_out(prune.yes);
    let access = if carry_out {
        Access::Write
    } else {
        Access::Read
    };
    let Some(stores) = open_stores(setup, access, output).await? else {
        for selected in &datasets {
            context.done(&selected.dataset.name, 0);
        }
        return Ok(());
    };
    let Some(store) = stores.last().map(|store| &store.store) else {
        return Ok(());
    };
    let (_, trusted) = keys_for_pruning(setup, &**store).await?;
    let clock = ClockCheck::read(&config.state_dir, prune.clock_is_right)?;
    let env = SnapshotsEnv {
        zfs,
        stores,
        trusted,
        state_dir: config.state_dir.clone(),
        oldest_days,
        levels: config.backup_lifecycle.keep,
        prefix: config.snapshots.prefix.clone(),
        now: clock.reading.wall,
        clock,
    };
    let mut results = Vec::new();
    let work = async |selected: &Selected| {
        if !carry_out {
            return preview(&env, selected).await;
        }
        wait_for_others(context, async || prune_dataset(&env, selected).await).await
    };
    let report =
        |selected: &Selected, outcomes: Result<Vec<SnapshotOutcome>, RunError>| match outcomes {
            Ok(outcomes) => {
                let first = results.len();
                for outcome in outcomes {
                    results.push(output.printed(PrunedSnapshot::new(outcome, carry_out)));
                }
                finish(context, config, selected, &results[first..], carry_out);
            }
            Err(error) => {
                if carry_out {
                    history::prune_failed(config, &selected.stored, STEP, &error);
                }
                context.failed(&selected.dataset.name, &Failure::Run(error));
            }
        };
    for_each_dataset(
        context,
        &datasets,
        |selected| &selected.dataset.name,
        work,
        report,
    )
    .await;
    if !carry_out {
        output.note("nothing was destroyed; -y destroys");
    }
    output.json(&PrunedSnapshots {
        carried_out: carry_out,
        snapshots: results,
    });
    context.verdict()
}

/// Opens every configured store. Returns `None`, with a message, when the remote cannot be reached:
/// what it needs is unknown then.
async fn open_stores(
    setup: &Setup,
    access: Access,
    output: &Output,
) -> Result<Option<Vec<SnapshotStore>>, Failure> {
    let mut stores = Vec::new();
    if setup.config.intermediate.is_some() {
        stores.push(SnapshotStore {
            store: setup.open(StoreRole::Intermediate, access).await?,
            beside_remote: setup.config.remote.is_some(),
        });
    }
    match setup.open_if_reachable(StoreRole::Remote, access).await? {
        StoreState::None => {}
        StoreState::Open(store) => stores.push(SnapshotStore {
            store,
            beside_remote: false,
        }),
        StoreState::Unreachable(failure) => {
            output.always(&format!(
                "the remote cannot be reached, so no snapshot is destroyed: {}",
                failure.reason()
            ));
            return Ok(None);
        }
    }
    Ok(Some(stores))
}

/// Returns the outcomes that a run with -y would have, if ZFS destroys every snapshot.
async fn preview(
    env: &SnapshotsEnv,
    selected: &Selected,
) -> Result<Vec<SnapshotOutcome>, RunError> {
    let mut outcomes = Vec::new();
    for verdict in judge_snapshots(env, selected).await? {
        outcomes.push(SnapshotOutcome {
            verdict,
            refused: None,
        });
    }
    Ok(outcomes)
}

/// Counts a dataset as done, or reports why none of its snapshots is destroyed. With -y the result
/// is saved for `health`.
fn finish(
    context: &Context,
    config: &Config,
    selected: &Selected,
    outcomes: &[PrunedSnapshot],
    carried_out: bool,
) {
    let name = &selected.dataset.name;
    let verdicts: Vec<_> = outcomes
        .iter()
        .map(|pruned| pruned.outcome.verdict.clone())
        .collect();
    let doubt = find_snapshots_doubt(&verdicts, STEP);
    if carried_out {
        let doubt = doubt
            .as_ref()
            .map(|doubt| (format!("no snapshot is destroyed: {}", doubt.what), false));
        history::pruned(config, &selected.stored, STEP, doubt);
    }
    match doubt {
        Some(doubt) => {
            let what = format!("{name}: no snapshot is destroyed: {}", doubt.what);
            context.failed(
                name,
                &Failure::Doubtful {
                    what,
                    hint: doubt.hint,
                    status: status::PARTIAL,
                },
            );
        }
        None => {
            let freed = outcomes.iter().filter(|pruned| pruned.destroyed);
            let freed = freed.map(|pruned| pruned.outcome.verdict.used_bytes);
            context.done(name, freed.sum());
        }
    }
}
