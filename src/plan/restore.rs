//! [`plan_restore`]: the backups that restore one snapshot, in order. [`Bases`]: the same for all
//! backups at once.

use super::twin::stands_in_as_base;
use crate::manifest::{BaseRef, Manifest};
use crate::model::{BackupId, Digest};
use std::collections::BTreeMap;

/// A chain that cannot be followed to its full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreGap {
    /// The requested backup is not in the store.
    #[error("the store has no whole backup {id}")]
    NoBackup {
        /// The id of the backup.
        id: BackupId,
    },
    /// A base is not in the store.
    #[error("{of} builds on {missing}, which the store does not have")]
    MissingBase {
        /// The backup that needs it.
        of: BackupId,
        /// The base, as the manifest names it.
        missing: BackupId,
    },
    /// The store has the base with another manifest than the one that the backup is based on.
    #[error("{of} builds on {base}, whose manifest is not the one that it was built on")]
    ChangedBase {
        /// The backup that needs it.
        of: BackupId,
        /// The base, which has the expected id and another manifest.
        base: BackupId,
    },
}

/// Returns the chain that leads to `target`: its full first, then each incremental. If a base is
/// missing, an identical backup under another id replaces it ([`crate::plan::twin`]). An existing
/// base with another manifest is never replaced.
///
/// # Errors
/// [`RestoreGap`] naming the missing backup.
pub fn plan_restore<'a>(
    backups: &[(&'a Manifest, Digest)],
    target: &BackupId,
) -> Result<Vec<&'a Manifest>, RestoreGap> {
    Bases::find(backups.iter().copied()).chain(target)
}

/// The base of each backup, found for all of them in one pass.
pub struct Bases<'a> {
    known: BTreeMap<&'a BackupId, (&'a Manifest, Digest)>,
    /// By id: the base, `None` for a full; or the first gap below the backup.
    found: BTreeMap<&'a BackupId, Result<Option<&'a Manifest>, RestoreGap>>,
}

impl<'a> Bases<'a> {
    /// Finds all bases. Of two backups with one id, as two stores have them, the first counts.
    pub fn find(backups: impl IntoIterator<Item = (&'a Manifest, Digest)>) -> Self {
        let mut known = BTreeMap::new();
        for (manifest, blake3) in backups {
            known.entry(&manifest.id).or_insert((manifest, blake3));
        }
        let mut bases = Self {
            known,
            found: BTreeMap::new(),
        };
        // A base has the previous position, so it is found first, and circles are impossible.
        for manifest in bases.in_order() {
            let base = bases.base_of(manifest);
            bases.found.insert(&manifest.id, base);
        }
        bases
    }

    /// Returns all backups, bases before the backups that follow from them.
    pub fn in_order(&self) -> Vec<&'a Manifest> {
        let mut manifests: Vec<&Manifest> =
            self.known.values().map(|(manifest, _)| *manifest).collect();
        manifests.sort_by_key(|manifest| manifest.chain.position);
        manifests
    }

    /// Returns the base of a backup, `None` for a full.
    ///
    /// # Errors
    /// [`RestoreGap`]: the first gap between the backup and its full, or no such backup.
    pub fn base(&self, id: &BackupId) -> Result<Option<&'a Manifest>, RestoreGap> {
        self.found
            .get(id)
            .cloned()
            .unwrap_or_else(|| Err(RestoreGap::NoBackup { id: id.clone() }))
    }

    /// Returns the chain that leads to a backup, its full first.
    ///
    /// # Errors
    /// As for [`Bases::base`].
    pub fn chain(&self, id: &BackupId) -> Result<Vec<&'a Manifest>, RestoreGap> {
        let mut base = self.base(id)?;
        let mut chain: Vec<&Manifest> = self
            .known
            .get(id)
            .map(|(manifest, _)| *manifest)
            .into_iter()
            .collect();
        while let Some(manifest) = base {
            chain.push(manifest);
            base = self.base(&manifest.id)?;
        }
        chain.reverse();
        Ok(chain)
    }

    fn base_of(&self, of: &'a Manifest) -> Result<Option<&'a Manifest>, RestoreGap> {
        let Some(base) = &of.base else {
            return Ok(None);
        };
        let named = match self.known.get(&base.backup_id) {
            Some((manifest, blake3)) => check_base(of, base, manifest, *blake3)?,
            None => {
                let twins = self.known.values().map(|(manifest, _)| *manifest);
                let is_whole = |twin: &&Manifest| matches!(self.found.get(&twin.id), Some(Ok(_)));
                let mut twins = twins
                    .filter(|candidate| stands_in_as_base(of, candidate))
                    .filter(is_whole);
                let missing = || RestoreGap::MissingBase {
                    of: of.id.clone(),
                    missing: base.backup_id.clone(),
                };
                twins.next().ok_or_else(missing)?
            }
        };
        self.base(&named.id).map(|_| Some(named))
    }
}

/// Checks that the named base is the one that the backup is based on: same chain, previous
/// position.
fn check_base<'a>(
    of: &Manifest,
    base: &BaseRef,
    manifest: &'a Manifest,
    blake3: Digest,
) -> Result<&'a Manifest, RestoreGap> {
    let place = &of.chain;
    let before = &manifest.chain;
    let follows =
        before.full_id == place.full_id && before.position.checked_add(1) == Some(place.position);
    if blake3 != base.manifest_blake3 || manifest.snapshot.guid != base.guid || !follows {
        return Err(RestoreGap::ChangedBase {
            of: of.id.clone(),
            base: base.backup_id.clone(),
        });
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests;
