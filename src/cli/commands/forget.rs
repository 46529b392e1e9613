//! `forget`: deletes one backup because a person named it.

use crate::cli::args::Forget;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::lock::wait_for_others;
use crate::cli::open::access::Access;
use crate::cli::open::identity::check_other_store;
use crate::cli::open::remote::open_zfs;
use crate::cli::open::settings::prune_env;
use crate::cli::screen::output::{Output, Render};
use crate::cli::screen::table::bytes;
use crate::model::{BackupId, DatasetName};
use crate::run::backup::StoreRole;
use crate::run::clock::ClockCheck;
use crate::run::pool::pins::unpin_if_writable;
use crate::run::prune::{self, Forgotten};
use crate::store::StoreRead;
use crate::store::key::backup_prefix;
use serde::Serialize;
use std::sync::Arc;

/// The result of `forget`.
#[derive(Serialize)]
pub(crate) struct ForgottenBackup<'a> {
    pub(crate) store: &'a str,
    pub(crate) dataset: DatasetName,
    #[serde(flatten)]
    pub(crate) found: Forgotten,
    pub(crate) carried_out: bool,
}

impl Render for ForgottenBackup<'_> {
    fn render(&self, output: &Output) {
        let Self { store, dataset, .. } = self;
        let found = &self.found;
        let verb = if self.carried_out {
            "deleted"
        } else {
            "would delete"
        };
        let what = if found.manifest_blake3.is_some() {
            "backup"
        } else {
            "what is left of"
        };
        output.line(format!("{verb} {what} {}", found.id));
        output.line(format!(
            "  of {dataset} in {store}: {} objects, {}",
            found.objects,
            bytes(found.bytes)
        ));
        found
            .warnings
            .iter()
            .for_each(|warning| output.always(warning));
        if !self.carried_out {
            output.note("nothing was deleted; -y deletes");
        }
    }
}

pub(crate) async fn forget(context: &Context, forget: &Forget) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let carry_out = context.carries_out(forget.yes);
    let access = Access::to_delete(carry_out);
    let store = setup.open(setup.role(forget.intermediate), access).await?;
    let dataset = match &forget.dataset {
        Some(dataset) => dataset.clone(),
        None => find_dataset_of(context, &*store, &forget.id).await?,
    };
    // `forget` selects a backup by its name, never by its age.
    let clock = ClockCheck::read(&config.state_dir, true)?;
    let env = prune_env(context, &store, clock).await?;
    // A backup that waits in the intermediate directory may build on a backup in the remote.
    let intermediate: Option<Arc<dyn StoreRead>> = match (&config.intermediate, &config.remote) {
        (Some(_), Some(_)) if !forget.intermediate => {
            Some(setup.open(StoreRole::Intermediate, Access::Read).await?)
        }
        _ => None,
    };
    let beside = intermediate.as_deref();
    if let Some(other) = beside {
        check_other_store(config, StoreRole::Intermediate, other, access).await?;
    }
    let found = match carry_out {
        true => {
            let forget = async || prune::forget(&env, &dataset, &forget.id, beside).await;
            wait_for_others(context, forget).await?
        }
        false => prune::plan_forget(&env, &dataset, &forget.id, beside).await?,
    };
    if carry_out {
        release(context, &dataset, &forget.id);
    }
    context.output.emit(&ForgottenBackup {
        store: store.url(),
        dataset,
        found,
        carried_out: carry_out,
    });
    Ok(())
}

/// Releases the holds of this upload in the pool. On a host without that pool there is nothing to
/// release; the next prune, which reads the record of deleted backups, releases what fails here.
fn release(context: &Context, stored: &DatasetName, id: &BackupId) {
    if let Err(failure) = unpin(context, stored, id) {
        tracing::warn!(%id, "its holds and bookmarks in the pool were not released: {}", failure.reason());
    }
}

fn unpin(context: &Context, stored: &DatasetName, id: &BackupId) -> Result<(), Failure> {
    let zfs = open_zfs()?;
    for selected in context
        .datasets(&*zfs)?
        .iter()
        .filter(|selected| selected.stored == *stored)
    {
        unpin_if_writable(&*zfs, &selected.dataset.name, |held| held == id)?;
    }
    Ok(())
}

/// Returns the configured dataset that has objects of this id.
async fn find_dataset_of(
    context: &Context,
    store: &dyn StoreRead,
    id: &BackupId,
) -> Result<DatasetName, Failure> {
    for selected in context.datasets(&*open_zfs()?)? {
        if !store
            .list(&backup_prefix(&selected.stored, id))
            .await?
            .is_empty()
        {
            return Ok(selected.stored);
        }
    }
    Err(usage(
        &format!(
            "no configured dataset has anything of {id} in {}",
            store.url()
        ),
        "name the dataset as it is named in the store: --dataset DATASET; or --intermediate",
    ))
}
