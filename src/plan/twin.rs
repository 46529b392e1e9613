//! Twins: backups of the same snapshot, made in the same way, under different ids. In `zfs receive`
//! one can replace the other: a stream names the guids of its snapshot and its base, and no other
//! fact about its base.
//!
//! Twins arise when one snapshot is backed up into the intermediate directory and directly into the
//! remote. An incremental of one may then follow from the other in a store that has only the other.

use super::BackupFacts;
use crate::manifest::{Manifest, Origin};
use crate::model::{BackupId, BackupKind, Guid};

/// The facts that two backups must share to replace each other as a base.
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

    /// Returns the likeness of the base of a backup like this one. Flags, recipients and origin are
    /// constant within a chain, so the child determines all of it.
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

/// Whether `candidate` may be received in place of the missing base of `child`. The base of the
/// missing backup is unknown; it does not matter to the child, whose stream begins at the
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

/// Returns the backups that an attempt on this base may follow from: the base itself or, if it is
/// not here, every backup of the same kind of the same snapshot. An attempt does not record its
/// position in the chain, so more backups than the twins count: each of them is needed while the
/// attempt is unfinished.
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

/// Whether two backups under different ids have equal content: snapshot, base snapshot, root of the
/// chain, flags, recipients and origin.
pub fn are_twins(one: &BackupFacts, other: &BackupFacts) -> bool {
    let base = |facts: &BackupFacts| facts.base.as_ref().map(BackupId::snapshot_guid);
    one.id != other.id
        && base(one) == base(other)
        && Likeness::of_facts(one) == Likeness::of_facts(other)
}
