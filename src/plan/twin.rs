//! Twins: backups of the same snapshot, made the same way, under another id. In `zfs receive` one
//! stands for the other: a stream names the guids that it leads from and to, and nothing else of
//! its base.
//!
//! They come about when one snapshot was backed up into the intermediate directory and straight
//! into the remote. What follows from one may then follow from the other in a store that has only
//! that one.

use super::BackupFacts;
use crate::manifest::{Manifest, Origin};
use crate::model::{BackupId, BackupKind, Guid};

/// All that two backups must have in common to stand for each other as a base.
#[derive(Debug, PartialEq, Eq)]
struct Likeness<'a> {
    kind: BackupKind,
    snapshot: Guid,
    /// The snapshot of the full of its chain.
    root: Guid,
    position: u32,
    requested: &'a [String],
    recipients: &'a [String],
    origin: &'a Origin,
}

impl<'a> Likeness<'a> {
    fn of_manifest(manifest: &'a Manifest) -> Self {
        Self {
            kind: manifest.kind,
            snapshot: manifest.snapshot.guid,
            root: manifest.chain.full_id.snapshot_guid(),
            position: manifest.chain.position,
            requested: &manifest.send.requested,
            recipients: &manifest.recipients,
            origin: &manifest.origin,
        }
    }

    fn of_facts(facts: &'a BackupFacts) -> Self {
        Self {
            kind: facts.kind(),
            snapshot: facts.snapshot.guid,
            root: facts.full_id.snapshot_guid(),
            position: facts.position,
            requested: &facts.requested,
            recipients: &facts.recipients,
            origin: &facts.origin,
        }
    }

    /// What the base of a backup like this one is like. Within a chain flags, recipients and origin
    /// are constant, so its child tells all of it.
    fn base(self, base: &BackupId) -> Option<Self> {
        let position = self.position.checked_sub(1)?;
        Some(Self {
            kind: base.kind(),
            snapshot: base.snapshot_guid(),
            position,
            ..self
        })
    }
}

/// Whether `candidate` may be received where `child` demands a base that is not there. The base of
/// the absent one cannot be known; it does not matter to the child, whose stream begins at the
/// candidate's snapshot.
pub fn stands_in_as_base(child: &Manifest, candidate: &Manifest) -> bool {
    let Some(base) = &child.base else {
        return false;
    };
    let wanted = Likeness::of_manifest(child).base(&base.backup_id);
    base.guid == base.backup_id.snapshot_guid() && wanted == Some(Likeness::of_manifest(candidate))
}

/// As [`stands_in_as_base`], over facts. `base` is the base that `child` names.
pub fn facts_stand_in_as_base(
    child: &BackupFacts,
    base: &BackupId,
    candidate: &BackupFacts,
) -> bool {
    Likeness::of_facts(child).base(base) == Some(Likeness::of_facts(candidate))
}

/// Returns the backups that an attempt on this base may follow from: the base itself, or, where
/// that is not here, every backup of the same kind of the same snapshot. An attempt does not say
/// its place in the chain, so more than the twins count: each of them is needed while the attempt
/// is under way.
pub fn attempt_bases<'a>(
    facts: &'a [BackupFacts],
    base: &'a BackupId,
) -> impl Iterator<Item = &'a BackupFacts> {
    let is_here = facts.iter().any(|backup| backup.id == *base);
    facts.iter().filter(move |backup| match is_here {
        true => backup.id == *base,
        false => backup.kind() == base.kind() && backup.snapshot.guid == base.snapshot_guid(),
    })
}

/// Whether two backups under different ids hold the same: snapshot, base snapshot, root of the
/// chain, flags, recipients and origin.
pub fn are_twins(one: &BackupFacts, other: &BackupFacts) -> bool {
    let base = |facts: &BackupFacts| facts.base.as_ref().map(BackupId::snapshot_guid);
    one.id != other.id
        && base(one) == base(other)
        && Likeness::of_facts(one) == Likeness::of_facts(other)
}
