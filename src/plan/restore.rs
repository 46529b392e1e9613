//! [`plan_restore`]: which backups, in which order, bring one snapshot back.

use super::twin::stands_in_as_base;
use crate::manifest::{BaseRef, Manifest};
use crate::model::{BackupId, Digest};
use std::collections::BTreeSet;

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

/// The chain that leads to `target`: its full first, then each incremental. Where a base is not there, an identical
/// backup under another id serves ([`crate::plan::twin`]); one that is there and not the one that was built on never
/// does.
///
/// # Errors
/// [`RestoreGap`] naming what is missing.
pub fn plan_restore<'a>(
    backups: &[(&'a Manifest, Digest)],
    target: &BackupId,
) -> Result<Vec<&'a Manifest>, RestoreGap> {
    let (target, _) = find(backups, target).ok_or_else(|| RestoreGap::NoBackup { id: target.clone() })?;
    let mut chain = walk(backups, target, &mut BTreeSet::new())?;
    chain.reverse();
    Ok(chain)
}

fn find<'a>(backups: &[(&'a Manifest, Digest)], id: &BackupId) -> Option<(&'a Manifest, Digest)> {
    backups.iter().find(|(manifest, _)| manifest.id == *id).copied()
}

/// From a backup down to its full. `tried` are twins that lead nowhere, so that each is walked once.
fn walk<'a>(
    backups: &[(&'a Manifest, Digest)],
    from: &'a Manifest,
    tried: &mut BTreeSet<&'a BackupId>,
) -> Result<Vec<&'a Manifest>, RestoreGap> {
    let (mut current, mut chain) = (from, vec![from]);
    // Each backup can occur once; a longer walk would be a circle, which no honest signer makes.
    while let (Some(base), true) = (&current.base, chain.len() <= backups.len()) {
        let stored = find(backups, &base.backup_id);
        if stored.is_none() {
            let twins = backups.iter().map(|(manifest, _)| *manifest);
            for twin in twins.filter(|candidate| stands_in_as_base(current, candidate)) {
                if tried.insert(&twin.id)
                    && let Ok(rest) = walk(backups, twin, tried)
                {
                    chain.extend(rest);
                    return Ok(chain);
                }
            }
        }
        current = check_base(current, base, stored)?;
        chain.push(current);
    }
    if current.base.is_some() {
        return Err(RestoreGap::Circle { id: from.id.clone() });
    }
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

#[cfg(test)]
mod tests;
