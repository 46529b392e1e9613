//! `forget` and `adopt`: what only a person may decide.

use super::Failure;
use super::args::{Adopt, Forget};
use super::context::Context;
use super::follow::Purpose;
use super::lock::wait_for_others;
use super::output::bytes;
use super::prune::{origin_of, prune_env};
use super::wire::{keys_for_pruning, open_intermediate, open_remote, open_remote_to_delete, open_zfs, usage};
use crate::config::{Config, Environment};
use crate::manifest::Origin;
use crate::model::{BackupId, DatasetName};
use crate::run::adopt::{adopt as adopt_origins, origins_of};
use crate::run::catalog::{read_catalog, read_started};
use crate::run::clock::ClockCheck;
use crate::run::pins::unpin;
use crate::run::prune::{forget_beside, look_at_beside};
use crate::store::ObjectStore;
use crate::store::key::backup_prefix;
use serde_json::json;
use std::sync::Arc;

pub(super) async fn forget(context: &Context, forget: &Forget) -> Result<(), Failure> {
    let (config, env) = &*context.config()?;
    let output = &context.output;
    let carry_out = forget.yes && !context.global.dry_run;
    let purpose = if carry_out { Purpose::Write } else { Purpose::Read };
    let store = match forget.intermediate || config.remote.is_none() {
        true => open_intermediate(config, purpose).await?,
        false => open_remote_to_delete(config, env, purpose).await?,
    };
    let dataset = match &forget.dataset {
        Some(dataset) => dataset.clone(),
        None => find_dataset_of(context, &*store, &forget.id).await?,
    };
    // Forgetting goes by a name, never by an age.
    let clock = ClockCheck::read(&config.state_dir, true)?;
    let env = prune_env(context, config, env, &store, clock).await?;
    // What waits in the intermediate directory may build on a backup in the remote.
    let intermediate = match (&config.intermediate, &config.remote) {
        (Some(_), Some(_)) if !forget.intermediate => Some(open_intermediate(config, Purpose::Read).await?),
        _ => None,
    };
    let beside = intermediate.as_deref();
    let found = match carry_out {
        true => {
            let forget = async || forget_beside(&env, &dataset, &forget.id, beside).await;
            wait_for_others(context, forget).await?
        }
        false => look_at_beside(&env, &dataset, &forget.id, beside).await?,
    };
    if carry_out {
        release(context, &dataset, &forget.id);
    }
    let verb = if carry_out { "deleted" } else { "would delete" };
    let what = if found.manifest_blake3.is_some() { "backup" } else { "what is left of" };
    output.line(format!("{verb} {what} {}", found.id));
    output.line(format!("  of {dataset} in {}: {} objects, {}", store.url(), found.objects, bytes(found.bytes)));
    found.warnings.iter().for_each(|warning| output.always(warning));
    if !carry_out {
        output.note("nothing was deleted; -y deletes");
    }
    output.json(|| {
        json!({
            "store": store.url(), "dataset": dataset, "id": found.id, "objects": found.objects, "bytes": found.bytes,
            "backup": found.manifest_blake3.is_some(), "warnings": found.warnings, "carried_out": carry_out,
        })
    });
    Ok(())
}

/// Lets go what an upload of this id kept in the pool. On a host without that pool there is nothing to let go; what
/// fails is done by the next prune, which reads the record of what was deleted.
fn release(context: &Context, stored: &DatasetName, id: &BackupId) {
    let release = || -> Result<(), Failure> {
        let zfs = open_zfs()?;
        for selected in context.datasets(&*zfs)?.iter().filter(|selected| selected.stored == *stored) {
            unpin(&*zfs, &selected.dataset.name, |held| held == id)?;
        }
        Ok(())
    };
    if let Err(failure) = release() {
        tracing::warn!(%id, "what it kept in the pool was not released: {}", failure.reason());
    }
}

/// The configured dataset that has objects of this id.
async fn find_dataset_of(context: &Context, store: &dyn ObjectStore, id: &BackupId) -> Result<DatasetName, Failure> {
    for selected in context.datasets(&*open_zfs()?)? {
        if !store.list(&backup_prefix(&selected.stored, id)).await?.is_empty() {
            return Ok(selected.stored);
        }
    }
    Err(usage(
        &format!("no configured dataset has anything of {id} in {}", store.url()),
        "name the dataset as it is named in the store: --dataset DATASET; or --intermediate",
    ))
}

pub(super) async fn adopt(context: &Context, adopt: &Adopt) -> Result<(), Failure> {
    let (config, env) = &*context.config()?;
    let output = &context.output;
    let zfs = open_zfs()?;
    let datasets = context.datasets(&*zfs)?;
    let Some(selected) = datasets.iter().find(|selected| selected.stored == adopt.dataset) else {
        let what = format!("{} is no dataset of this configuration", adopt.dataset);
        return Err(usage(&what, "name it as it is named in the store (main.store_as)"));
    };
    let own = origin_of(&*zfs, selected)?;
    let stores = configured_stores(config, env).await?;
    let mut others: Vec<(Origin, usize)> = Vec::new();
    for store in &stores {
        let known = origins_of(&config.state_dir, &store.known(), &selected.stored, &own)?;
        for origin in origins_in(config, env, store, &selected.stored).await? {
            match others.iter_mut().find(|(other, _)| *other == origin) {
                Some((_, count)) => *count += 1,
                None if !known.contains(&origin) => others.push((origin, 1)),
                None => {}
            }
        }
    }
    let carry_out = adopt.yes && !context.global.dry_run;
    if others.is_empty() {
        output.line(format!("{}: there is no other origin to take over", selected.stored));
    }
    for (origin, count) in &others {
        let verb = if carry_out { "takes over" } else { "would take over" };
        output.line(format!("{} {verb} {count} backups and attempts", selected.stored));
        output.line(format!("  of dataset guid {} in pool guid {}", origin.dataset_guid, origin.pool_guid));
    }
    if carry_out && !others.is_empty() {
        let origins: Vec<Origin> = others.iter().map(|(origin, _)| origin.clone()).collect();
        for store in &stores {
            adopt_origins(&config.state_dir, &store.known(), &selected.stored, &own, &origins)?;
        }
    } else if !others.is_empty() {
        output.note(
            "from then on pruning deletes their backups by the rules too; if another host still makes them, do not",
        );
        output.note("nothing was taken over; -y does it");
    }
    output.json(|| {
        let others: Vec<_> =
            others.iter().map(|(origin, count)| json!({ "origin": origin, "backups": count })).collect();
        json!({ "dataset": selected.stored, "own": own, "others": others, "carried_out": carry_out })
    });
    Ok(())
}

async fn configured_stores(config: &Config, env: &Environment) -> Result<Vec<Arc<dyn ObjectStore>>, Failure> {
    let mut stores = Vec::new();
    if config.intermediate.is_some() {
        stores.push(open_intermediate(config, Purpose::Read).await?);
    }
    if config.remote.is_some() {
        stores.push(open_remote(config, env).await?);
    }
    Ok(stores)
}

/// The origin of each backup and attempt there. What cannot be believed has none.
async fn origins_in(
    config: &Config,
    env: &Environment,
    store: &Arc<dyn ObjectStore>,
    stored: &DatasetName,
) -> Result<Vec<Origin>, Failure> {
    let (_, trusted) = keys_for_pruning(config, env, store).await?;
    let catalog = read_catalog(&**store, stored, &trusted).await?;
    let mut origins: Vec<Origin> = catalog.backups.iter().map(|backup| backup.manifest.origin.clone()).collect();
    for attempt in &catalog.attempts {
        match read_started(&**store, stored, &attempt.id, &trusted).await {
            Ok(started) => origins.extend(started.map(|started| started.origin)),
            Err(error) if error.is_damage() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(origins)
}
