//! Identities of the stores that the configured names lead to. Every store that is opened is
//! checked by this module before anything uses it together with the state of this host.

use crate::cli::failure::Failure;
use crate::cli::open::access::Access;
use crate::cli::open::{b2, rclone};
use crate::config::{Config, Remote};
use crate::model::{DatasetName, KnownStore};
use crate::run::RunError;
use crate::run::backup::StoreRole;
use crate::run::identity::{
    Purpose, StorePlace, check_place, identify, known_at, refuse_one_place,
};
use crate::store::{ObjectStore, StoreRead};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

/// Returns the configured place, with all settings that decide where it leads; `None` when none is
/// configured.
pub(crate) fn place_of(config: &Config, role: StoreRole) -> Option<StorePlace> {
    let intermediate = config.intermediate.as_ref().map(|place| Remote::File {
        dir: place.basedir.clone(),
    });
    let (remote, option) = match role {
        StoreRole::Remote => (config.remote.clone()?, ""),
        StoreRole::Intermediate => (intermediate?, " --intermediate"),
    };
    let words = |words: [&Option<String>; 3]| {
        words
            .map(|word| word.as_deref().unwrap_or_default())
            .join(" ")
    };
    let endpoint = match &remote {
        Remote::S3 { .. } => words([&config.s3.endpoint, &config.s3.region, &config.s3.profile]),
        Remote::B2 { bucket, prefix } => b2::endpoint(bucket, prefix),
        Remote::Rclone { .. } => rclone::conf_of(config).display().to_string(),
        Remote::File { .. } => String::new(),
    };
    Some(StorePlace {
        url: remote.to_string(),
        endpoint,
        option,
    })
}

/// Returns the configured store as this host last found it, without a request to it.
pub(crate) fn known_store(
    config: &Config,
    role: StoreRole,
) -> Result<Option<KnownStore>, RunError> {
    place_of(config, role)
        .map(|place| known_at(&config.state_dir, &place))
        .transpose()
}

/// Returns every configured store as this host last found it: the remote, then the intermediate
/// directory.
pub(crate) fn known_stores(config: &Config) -> Result<Vec<KnownStore>, RunError> {
    let known = [StoreRole::Remote, StoreRole::Intermediate].map(|role| known_store(config, role));
    known.into_iter().filter_map(Result::transpose).collect()
}

/// Identifies an opened store and returns it with its identity.
pub(crate) async fn identified(
    config: &Config,
    role: StoreRole,
    store: Arc<dyn ObjectStore>,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let Some(place) = place_of(config, role) else {
        return Ok(store);
    };
    if purpose != Purpose::Restore {
        refuse_one_folder(config)?;
    }
    Ok(identify(
        &config.state_dir,
        &place,
        store,
        purpose,
        &stored_names(config),
    )
    .await?)
}

/// Checks the identities of the configured stores, and fails when they make backups impossible.
pub(crate) async fn check_identities(
    config: &Config,
    stores: &[(StoreRole, &dyn StoreRead)],
) -> Result<(), RunError> {
    refuse_one_folder(config)?;
    let mut found: Vec<KnownStore> = Vec::new();
    for (role, store) in stores {
        let Some(place) = place_of(config, *role) else {
            continue;
        };
        let known = check_place(&config.state_dir, &place, *store).await?;
        found
            .iter()
            .try_for_each(|other| refuse_one_place(other, &known))?;
        found.push(known);
    }
    Ok(())
}

/// Refuses to delete from one store because of the contents of another store, unless the other one
/// is still the same store. The empty mount point of a missing disk looks like a store without
/// exports that build on a backup. Changes nothing.
pub(crate) async fn check_other_store(
    config: &Config,
    role: StoreRole,
    other: &dyn StoreRead,
    access: Access,
) -> Result<(), RunError> {
    match access {
        Access::Write | Access::Delete => check_identities(config, &[(role, other)]).await,
        Access::Read | Access::PlanDelete | Access::Restore => Ok(()),
    }
}

/// Returns the configured store as this host last found it, and the reason why the store that is at
/// its place now is another one. `None` for a store that this host has never used.
pub(crate) async fn expected_identity(
    config: &Config,
    role: StoreRole,
    store: &dyn StoreRead,
) -> Result<Option<(KnownStore, Option<RunError>)>, RunError> {
    let Some(place) = place_of(config, role) else {
        return Ok(None);
    };
    let known = known_at(&config.state_dir, &place)?;
    if !known.id.is_random() {
        return Ok(None);
    }
    match check_place(&config.state_dir, &place, store).await {
        Ok(_) => Ok(Some((known, None))),
        Err(error @ RunError::WrongStore { .. }) => Ok(Some((known, Some(error)))),
        Err(error) => Err(error),
    }
}

/// Refuses one folder under two names, even before the folder has an identity.
fn refuse_one_folder(config: &Config) -> Result<(), RunError> {
    let (Some(Remote::File { dir }), Some(intermediate)) = (&config.remote, &config.intermediate)
    else {
        return Ok(());
    };
    let inode = |dir: &Path| dir.metadata().map(|facts| (facts.dev(), facts.ino()));
    match (inode(dir), inode(&intermediate.basedir)) {
        (Ok(one), Ok(other)) if one == other => {
            let file = |dir: &Path| format!("file:{}", dir.display());
            Err(RunError::OnePlace {
                one: file(dir),
                other: file(&intermediate.basedir),
            })
        }
        // The code that opens a missing folder reports it.
        _ => Ok(()),
    }
}

/// Returns the names in the store that the configuration itself has.
pub(crate) fn stored_names(config: &Config) -> Vec<DatasetName> {
    config
        .datasets
        .names
        .iter()
        .chain(&config.datasets.store_as)
        .cloned()
        .collect()
}
