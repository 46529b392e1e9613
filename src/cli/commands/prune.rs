//! `prune-intermediate` and `prune-remote`.

pub(crate) mod plan;

use crate::cli::args::PruneByAge;
use crate::cli::commands::prune::plan::{PrunedDataset, plan_lines};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, status};
use crate::cli::lock::wait_for_others;
use crate::cli::open::access::Access;
use crate::cli::open::datasets::origin_of;
use crate::cli::open::history;
use crate::cli::open::identity::check_other_store;
use crate::cli::open::remote::{StoreState, open_zfs};
use crate::cli::open::settings::prune_env;
use crate::cli::parallel::for_each_dataset;
use crate::config::RetentionRules;
use crate::model::DatasetName;
use crate::plan::prune::Doubt;
use crate::run::backup::StoreRole;
use crate::run::clock::ClockCheck;
use crate::run::identity::refuse_one_place;
use crate::run::pool::pins::unpin_if_writable;
use crate::run::pool::select::Selected;
use crate::run::pool::view::pool_view;
use crate::run::prune::{
    PruneEnv, PruneOutcome, PruneTask, PruneView, SecondaryStore, deletes_nothing, prune_dataset,
    read_view,
};
use crate::run::{RunError, error_chain};
use crate::state::adoption::origins_of;
use crate::store::{ObjectStore, StoreInfo};
use crate::zfs::ZfsSnapshots;
use serde::Serialize;
use std::sync::Arc;

/// The most doubts about one dataset that are printed; further doubts are counted.
const DOUBTS_PRINTED_MAX: usize = 10;

pub(crate) async fn prune_remote(context: &Context, prune: &PruneByAge) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let access = Access::to_delete(context.carries_out(prune.yes));
    let store = setup.open(StoreRole::Remote, access).await?;
    let secondary = match &config.intermediate {
        Some(_) => {
            SecondaryStore::Intermediate(setup.open(StoreRole::Intermediate, Access::Read).await?)
        }
        None => SecondaryStore::Nothing,
    };
    refuse_one_place_twice(&*store, &secondary)?;
    if let SecondaryStore::Intermediate(other) = &secondary {
        check_other_store(config, StoreRole::Intermediate, &**other, access).await?;
    }
    let call = PruneCall {
        step: "prune-remote",
        rules: &config.lifecycle_remote,
        prune,
    };
    prune_store(context, &*open_zfs()?, store, secondary, &call).await
}

pub(crate) async fn prune_intermediate(
    context: &Context,
    prune: &PruneByAge,
) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let access = Access::to_delete(context.carries_out(prune.yes));
    let store = setup.open(StoreRole::Intermediate, access).await?;
    let secondary = match setup
        .open_if_reachable(StoreRole::Remote, Access::Read)
        .await?
    {
        StoreState::None => SecondaryStore::Nothing,
        StoreState::Open(remote) => SecondaryStore::Remote(remote),
        StoreState::Unreachable(failure) => {
            context.output.always(&format!(
                "the remote cannot be reached, so everything is kept: {}",
                failure.reason()
            ));
            SecondaryStore::Unreachable
        }
    };
    refuse_one_place_twice(&*store, &secondary)?;
    if let SecondaryStore::Remote(other) = &secondary {
        check_other_store(config, StoreRole::Remote, &**other, access).await?;
    }
    let call = PruneCall {
        step: "prune-intermediate",
        rules: &config.lifecycle_intermediate,
        prune,
    };
    prune_store(context, &*open_zfs()?, store, secondary, &call).await
}

/// Refuses one store under two names, before anything else is read.
fn refuse_one_place_twice(
    store: &dyn StoreInfo,
    secondary: &SecondaryStore,
) -> Result<(), RunError> {
    match secondary {
        SecondaryStore::Remote(other) | SecondaryStore::Intermediate(other) => {
            refuse_one_place(&store.known(), &other.known())
        }
        SecondaryStore::Nothing | SecondaryStore::Unreachable => Ok(()),
    }
}

/// The parts in which the two commands differ.
#[derive(Clone, Copy)]
struct PruneCall<'a> {
    /// The name of the command, which `health` uses too.
    step: &'static str,
    rules: &'a RetentionRules,
    prune: &'a PruneByAge,
}

/// The document of `prune-intermediate` and `prune-remote`.
#[derive(Serialize)]
pub(crate) struct PruneDocument<'a> {
    pub(crate) store: &'a str,
    pub(crate) carried_out: bool,
    pub(crate) datasets: Vec<PrunedDataset>,
    pub(crate) settled: Vec<DatasetName>,
    pub(crate) failed: Vec<DatasetName>,
}

async fn prune_store(
    context: &Context,
    zfs: &dyn ZfsSnapshots,
    store: Arc<dyn ObjectStore>,
    secondary: SecondaryStore,
    call: &PruneCall<'_>,
) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let output = &context.output;
    let PruneCall { step, rules, prune } = *call;
    let datasets = context.datasets(zfs)?;
    let clock = ClockCheck::read(&config.state_dir, prune.clock_is_right)?;
    let env = prune_env(context, &store, clock).await?;
    let carry_out = context.carries_out(prune.yes);
    let (settled, datasets) = set_settled_aside(context, &env, datasets, call)?;
    let mut results = Vec::new();
    let work = async |selected: &Selected| {
        let (env, task) = prune_of(&env, zfs, selected, rules, &secondary)?;
        if !carry_out {
            return read_view(&env, &task).await;
        }
        let pruned = wait_for_others(context, async || prune_dataset(&env, &task).await).await;
        let PruneOutcome { view, deleted } = pruned?;
        // Release also the holds that an interrupted run left here: the record that names its
        // backups still exists.
        unpin_if_writable(zfs, &selected.dataset.name, |id| {
            deleted.contains(id) || view.is_over(id)
        })?;
        Ok(view)
    };
    let report = |selected: &Selected, pruned: Result<PruneView, RunError>| match pruned {
        Ok(view) => {
            output.line(format!("{}:", selected.stored));
            plan_lines(&view, carry_out)
                .iter()
                .for_each(|line| output.line(line));
            finish(context, selected, &view, step, carry_out);
            if carry_out {
                let doubts = &view.plan.doubts;
                let is_damage = doubts.iter().any(Doubt::is_damage);
                let doubt = doubts
                    .first()
                    .map(|doubt| (format!("nothing is deleted: {doubt}"), is_damage));
                history::pruned(config, &selected.stored, step, doubt);
            }
            let stored = selected.stored.clone();
            results.push(PrunedDataset::new(stored, view, step, carry_out));
        }
        Err(error) => {
            if carry_out {
                history::prune_failed(config, &selected.stored, step, &error);
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
        output.note("nothing was deleted; -y deletes");
    }
    output.json(&PruneDocument {
        store: store.url(),
        carried_out: carry_out,
        datasets: results,
        settled,
        failed: context.failed_datasets(),
    });
    context.verdict()
}

/// Sets the datasets aside of which nothing would be deleted by what this host knows, in a step of
/// `perform`: they cost no request. A person who runs the command sees what the store holds.
fn set_settled_aside(
    context: &Context,
    env: &PruneEnv,
    datasets: Vec<Selected>,
    call: &PruneCall<'_>,
) -> Result<(Vec<DatasetName>, Vec<Selected>), Failure> {
    let config = &context.setup()?.config;
    let is_step = context.is_step() && context.carries_out(call.prune.yes);
    let is_settled = |selected: &Selected| {
        is_step
            && deletes_nothing(env, &selected.stored, selected.dataset.guid, call.rules).unwrap_or_else(|error| {
                tracing::debug!(dataset = %selected.stored, error = error_chain(&error), "reading the store, because this host's records of it cannot be read");
                false
            })
    };
    let (settled, unsettled): (Vec<_>, Vec<_>) = datasets.into_iter().partition(is_settled);
    for selected in &settled {
        context
            .output
            .line(format!("{}: nothing to delete", selected.stored));
        context.done(&selected.dataset.name, 0);
        history::pruned(config, &selected.stored, call.step, None);
    }
    let names = settled.into_iter().map(|selected| selected.stored);
    Ok((names.collect(), unsettled))
}

/// Returns the environment and the task for one dataset, with what its pool says about it.
fn prune_of(
    env: &PruneEnv,
    zfs: &dyn ZfsSnapshots,
    selected: &Selected,
    rules: &RetentionRules,
    secondary: &SecondaryStore,
) -> Result<(PruneEnv, PruneTask), RunError> {
    let (known, stored) = (env.store.known(), selected.stored.clone());
    let own = origin_of(zfs, selected)?;
    let origins = origins_of(&env.state_dir, &known, &stored, &own)?;
    let place = (&*env.state_dir, &known, &stored);
    let pool = pool_view(zfs, &selected.dataset.name, place, &own)?;
    let env = PruneEnv {
        pools: [(stored.clone(), pool)].into(),
        ..env.clone()
    };
    let task = PruneTask {
        stored,
        origins,
        rules: rules.clone(),
        secondary: secondary.clone(),
    };
    Ok((env, task))
}

fn finish(context: &Context, selected: &Selected, view: &PruneView, step: &str, carried_out: bool) {
    let name = &selected.dataset.name;
    let Some(first) = view.plan.doubts.first() else {
        context.done(
            name,
            if carried_out {
                view.plan.freed_bytes()
            } else {
                0
            },
        );
        return;
    };
    let status = if view.plan.doubts.iter().any(Doubt::is_damage) {
        status::DAMAGE
    } else {
        status::PARTIAL
    };
    let what = format!("{}: nothing is deleted: {first}", selected.stored);
    context.failed(
        name,
        &Failure::Doubtful {
            what,
            hint: first.hint(step, &selected.stored),
            status,
        },
    );
    let rest = &view.plan.doubts[1..];
    for doubt in rest.iter().take(DOUBTS_PRINTED_MAX) {
        context.output.error_text(
            &format!("{}: {doubt}", selected.stored),
            Some(&doubt.hint(step, &selected.stored)),
        );
    }
    if rest.len() > DOUBTS_PRINTED_MAX {
        let more = rest.len() - DOUBTS_PRINTED_MAX;
        context
            .output
            .always(&format!("{more} more of the kind; --json has all"));
    }
}

#[cfg(test)]
mod tests;
