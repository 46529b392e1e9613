//! [`plan_restore`]: which backups, in which order, bring one snapshot back.

use crate::manifest::{BaseRef, Manifest};
use crate::model::{BackupId, Digest};

/// A chain that cannot be walked to its full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreGap {
    /// The backup asked for is not in the store.
    #[error("the store has no whole backup {id}")]
    NoBackup {
        /// Its id.
        id: BackupId,
    },
    /// A base is not in the store.
    #[error("{of} follows from {missing}, which the store does not have")]
    MissingBase {
        /// The backup that needs it.
        of: BackupId,
        /// The backup that is not there.
        missing: BackupId,
    },
    /// The bases lead back to themselves.
    #[error("the chain of {id} has no full at its start")]
    Circle {
        /// The backup asked for.
        id: BackupId,
    },
    /// A base is there with another manifest than the one that was built on.
    #[error("{of} follows from {base}, whose manifest is not the one that it was built on")]
    ChangedBase {
        /// The backup that needs it.
        of: BackupId,
        /// The base.
        base: BackupId,
    },
}

/// The chain that leads to `target`: its full first, then each incremental.
///
/// # Errors
/// [`RestoreGap`] naming what is missing.
pub fn plan_restore<'a>(
    backups: &[(&'a Manifest, Digest)],
    target: &BackupId,
) -> Result<Vec<&'a Manifest>, RestoreGap> {
    let find = |id: &BackupId| backups.iter().find(|(manifest, _)| manifest.id == *id);
    let &(mut current, _) = find(target).ok_or_else(|| RestoreGap::NoBackup { id: target.clone() })?;
    let mut chain = vec![current];
    // Each backup can occur once; a longer walk would be a circle, which no honest signer makes.
    while let (Some(base), true) = (&current.base, chain.len() <= backups.len()) {
        current = check_base(current, base, find(&base.backup_id).copied())?;
        chain.push(current);
    }
    if current.base.is_some() {
        return Err(RestoreGap::Circle { id: target.clone() });
    }
    chain.reverse();
    Ok(chain)
}

/// The base of a backup, if it is there and the one that was built on: of one chain, one place before it.
///
/// # Errors
/// [`RestoreGap::MissingBase`] or [`RestoreGap::ChangedBase`].
pub fn check_base<'a>(
    of: &Manifest,
    base: &BaseRef,
    stored: Option<(&'a Manifest, Digest)>,
) -> Result<&'a Manifest, RestoreGap> {
    let missing = || RestoreGap::MissingBase { of: of.id.clone(), missing: base.backup_id.clone() };
    let (manifest, blake3) = stored.ok_or_else(missing)?;
    let (place, before) = (&of.chain, &manifest.chain);
    let follows = before.full_id == place.full_id && before.position.checked_add(1) == Some(place.position);
    if blake3 != base.manifest_blake3 || manifest.snapshot.guid != base.guid || !follows {
        return Err(RestoreGap::ChangedBase { of: of.id.clone(), base: base.backup_id.clone() });
    }
    Ok(manifest)
}
