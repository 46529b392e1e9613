//! [`check_target`]: examines the place into which a chain is to be received, and plans
//! accordingly: for a new dataset, for a rollback, or to resume an interrupted restore.
//!
//! A dataset that a restore has begun has a mark ([`Begun`]), which is set with the first receive
//! and removed after the last. Without the mark, only the interrupted first receive of a dataset is
//! resumed, unless a rollback was requested, and nothing is ever destroyed for a restart.

use super::mark::{Begun, RestoreToken, own};
use super::rollback::Rollback;
use super::{PropertyChoice, RestoreBackup, RestoreSet, no_pool};
use crate::model::DatasetName;
use crate::run::RunError;
use crate::stream::record::feature;
use crate::zfs::{Dataset, PropertyValue, ResumeToken, Snapshot, ZfsRead};

/// Settings of a restore.
#[derive(Debug, Clone, Default)]
pub struct ReceiveOptions {
    /// The properties that the dataset gets.
    pub properties: PropertyChoice,
    /// Whether to receive onto a dataset that exists: everything after the newest snapshot in
    /// common is destroyed first.
    pub rollback: bool,
    /// The treatment of an interrupted restore.
    pub resume: ResumeChoice,
}

/// The treatment of an interrupted restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResumeChoice {
    /// Resume it. If this run is interrupted, a later run can resume it too.
    #[default]
    Resume,
    /// Destroy the data that it received, and receive everything again.
    Restart,
    /// Run a drill: the target must not exist, gets the mark of a scratch dataset, and is removed
    /// after any error.
    Never,
}

/// The plan of a receive, with the state of its target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReceivePlan {
    /// The number of backups of the chain that the target already has: all of them when an earlier
    /// run ended after its last receive.
    pub skipped: usize,
    /// Filesystems to make first, with `canmount=off`, outermost first.
    pub parents: Vec<DatasetName>,
    /// The rollback that lets the chain continue; `None` for a new dataset, or one that an earlier
    /// run began.
    pub rollback: Option<Rollback>,
    /// The names of the snapshots that stay.
    pub kept: Vec<String>,
    /// An interrupted receive of the next backup, which can be resumed.
    pub unfinished: Option<ResumeToken>,
    /// The mark of an earlier run on the dataset.
    pub begun: Option<Begun>,
    /// Whether the data of an earlier run is destroyed first, on request.
    pub gives_up: bool,
    /// The token of a dataset that is destroyed as a whole; `None` when only an interrupted receive
    /// is abandoned.
    pub given_up: Option<RestoreToken>,
    /// Whether the owner made the dataset readonly, so that it stays readonly.
    pub keeps_readonly: bool,
    /// Whether the dataset has its own `readonly=off`, which is set again at the end.
    pub was_writable: bool,
}

/// Whether an interrupted receive is of exactly this backup: the same snapshot, base and form of
/// blocks.
pub(super) fn fits(token: &ResumeToken, backup: &RestoreBackup) -> bool {
    let manifest = &backup.manifest;
    let has = |feature: u64| manifest.send.feature_flags & feature != 0;
    token.to_guid == manifest.snapshot.guid
        && token.from_guid == manifest.base.as_ref().map(|base| base.guid)
        && [
            token.raw,
            token.compressed,
            token.embedded,
            token.large_blocks,
        ] == [
            has(feature::RAW),
            has(feature::COMPRESSED),
            has(feature::EMBED_DATA),
            has(feature::LARGE_BLOCKS),
        ]
}

/// Examines the target and plans the receive. Changes nothing.
///
/// # Errors
/// [`RunError::Refused`] when the chain cannot be received there; [`RunError::Zfs`].
pub fn check_target(
    zfs: &dyn ZfsRead,
    target: &DatasetName,
    set: &RestoreSet,
    options: &ReceiveOptions,
) -> Result<ReceivePlan, RunError> {
    let Some(dataset) = zfs.dataset(target)? else {
        return plan_new(zfs, target);
    };
    if options.resume == ResumeChoice::Never && !options.rollback {
        return Err(exists(target));
    }
    let token = dataset.resume_token()?;
    let begun = Begun::of(&dataset);
    let snapshots = zfs.snapshots(target)?;
    let place = ExistingTarget {
        zfs,
        target,
        set,
        dataset,
        token,
        snapshots,
        begun,
    };
    match options.resume {
        ResumeChoice::Restart if place.begun.is_some() || place.token.is_some() => {
            place.restart(options.rollback)
        }
        _ if place.dataset.inconsistent => place.resume_first(),
        _ if options.rollback => place.roll_back(),
        _ if place.begun.is_some() => place.plan_resume(),
        _ => Err(exists(target)),
    }
}

fn plan_new(zfs: &dyn ZfsRead, target: &DatasetName) -> Result<ReceivePlan, RunError> {
    let mut parents = Vec::new();
    let mut parent = target.parent().ok_or_else(|| {
        RunError::refused(
            format!("{target} is a pool's name"),
            "name a dataset inside an imported pool: POOL/NAME",
        )
    })?;
    while zfs.dataset(&parent)?.is_none() {
        let above = parent.parent().ok_or_else(|| no_pool(target))?;
        parents.insert(0, std::mem::replace(&mut parent, above));
    }
    Ok(ReceivePlan {
        parents,
        ..ReceivePlan::default()
    })
}

fn exists(target: &DatasetName) -> RunError {
    let what = format!("{target} exists already, and a restore would overwrite its contents");
    let hint = "restore into a name that does not exist yet; --force-rollback lists what a \
                rollback to the newest snapshot in common with the chain would destroy";
    RunError::refused(what, hint)
}

/// A target that exists.
struct ExistingTarget<'a> {
    zfs: &'a dyn ZfsRead,
    target: &'a DatasetName,
    set: &'a RestoreSet,
    dataset: Dataset,
    token: Option<ResumeToken>,
    begun: Option<Begun>,
    snapshots: Vec<Snapshot>,
}

impl ExistingTarget<'_> {
    /// Plans to resume the interrupted first receive of a dataset.
    fn resume_first(self) -> Result<ReceivePlan, RunError> {
        if self.token.is_none() {
            let what = format!(
                "{} is in the middle of a receive that cannot be resumed",
                self.target
            );
            let quoted = shell_words::quote(self.target.as_str());
            return Err(RunError::refused(
                what,
                format!("if no other process receives into it: zfs destroy {quoted}"),
            ));
        }
        self.plan(0)
    }

    /// Plans to continue after an earlier run that received some of the chain.
    fn plan_resume(self) -> Result<ReceivePlan, RunError> {
        let Some((number, at)) = self.newest_in_common() else {
            let what = format!("{} is part of another, unfinished restore", self.target);
            return Err(RunError::refused(what, self.advice()));
        };
        // After the last receive only the marks are left to remove, and later snapshots do not
        // matter. There may be some: the run that received the chain was killed, and the complete
        // dataset was then in use.
        let is_whole = number + 1 == self.set.backups.len();
        if let Some(newer) = self.snapshots.get(at + 1).filter(|_| !is_whole) {
            let what = format!(
                "{} was begun by a restore, and also has {}",
                self.target, newer.name
            );
            return Err(RunError::refused(
                what,
                "--force-rollback lists what it would destroy to continue",
            ));
        }
        self.plan(number + 1)
    }

    /// Plans a rollback: everything after the newest snapshot in common is lost.
    fn roll_back(self) -> Result<ReceivePlan, RunError> {
        let target = self.target;
        let Some((number, at)) = self.newest_in_common() else {
            let what =
                format!("{target} has no snapshot of this chain, so nothing can be rolled back to");
            return Err(RunError::refused(
                what,
                "restore into a new name, check the result, and then rename both",
            ));
        };
        let base = &self.snapshots[at];
        let is_end = number + 1 == self.set.backups.len();
        if is_end && (self.begun.is_none() || at + 1 < self.snapshots.len()) {
            let what = format!(
                "{target} already has {}, the snapshot to restore",
                base.name
            );
            let name = base.name.to_string();
            let quoted = shell_words::quote(&name);
            return Err(RunError::refused(
                what,
                format!("to roll back to it: zfs rollback -r {quoted}"),
            ));
        }
        let rollback = match is_end {
            true => None,
            false => Some(Rollback::plan(
                self.zfs,
                &self.dataset,
                base,
                &self.snapshots[at + 1..],
            )?),
        };
        let plan = self.plan(number + 1)?;
        let kept = plan.kept[..=at].to_vec();
        Ok(ReceivePlan {
            rollback,
            kept,
            ..plan
        })
    }

    /// Plans to start over, if the received data belongs to this restore.
    fn restart(self, rollback: bool) -> Result<ReceivePlan, RunError> {
        let Some(begun) = &self.begun else {
            return Err(self.foreign());
        };
        if begun.token.is_none() {
            let what = format!(
                "an older build began {}, and its mark does not prove which snapshots are its own",
                self.target
            );
            let quoted = shell_words::quote(self.target.as_str());
            return Err(RunError::refused(
                what,
                format!("resume it without --restart, or: zfs destroy -r {quoted}"),
            ));
        }
        if rollback && !self.dataset.inconsistent {
            let plan = Self {
                token: None,
                ..self
            }
            .roll_back()?;
            return Ok(ReceivePlan {
                gives_up: true,
                ..plan
            });
        }
        if !begun.is_new {
            return Err(exists(self.target));
        }
        let guids: Vec<_> = self
            .set
            .backups
            .iter()
            .map(|backup| backup.manifest.snapshot.guid)
            .collect();
        if let Some(other) = self
            .snapshots
            .iter()
            .find(|snapshot| !guids.contains(&snapshot.guid))
        {
            let what = format!(
                "{} has more than this restore received: {}",
                self.target, other.name
            );
            let quoted = shell_words::quote(self.target.as_str());
            return Err(RunError::refused(
                what,
                format!("destroy it yourself: zfs destroy -r {quoted}"),
            ));
        }
        let token = begun.token;
        Ok(ReceivePlan {
            gives_up: true,
            given_up: token,
            ..ReceivePlan::default()
        })
    }

    fn plan(self, skipped: usize) -> Result<ReceivePlan, RunError> {
        let next = self.set.backups.get(skipped);
        if let Some(token) = &self.token
            && !next.is_some_and(|next| fits(token, next))
        {
            return Err(self.foreign());
        }
        let readonly = own(&self.dataset, "readonly").map(|readonly| readonly.value.clone());
        let is_owners = self.begun.is_none();
        Ok(ReceivePlan {
            skipped,
            kept: self
                .snapshots
                .iter()
                .map(|snapshot| snapshot.name.short().to_owned())
                .collect(),
            unfinished: self.token,
            keeps_readonly: is_owners && readonly == Some(PropertyValue::Number(1)),
            was_writable: is_owners && readonly == Some(PropertyValue::Number(0)),
            begun: self.begun,
            ..ReceivePlan::default()
        })
    }

    /// Returns the number of the last backup whose snapshot the target has, and that snapshot's
    /// index.
    fn newest_in_common(&self) -> Option<(usize, usize)> {
        let common = |backup: &RestoreBackup| {
            self.snapshots
                .iter()
                .position(|snapshot| snapshot.guid == backup.manifest.snapshot.guid)
        };
        self.set
            .backups
            .iter()
            .enumerate()
            .rev()
            .find_map(|(number, backup)| Some((number, common(backup)?)))
    }

    fn foreign(&self) -> RunError {
        let of = self
            .token
            .as_ref()
            .map_or("another backup", |token| &token.to_name);
        let what = format!(
            "{} has an interrupted receive of {of}, which is not the next backup of this restore",
            self.target
        );
        RunError::refused(what, self.advice())
    }

    fn advice(&self) -> String {
        match &self.begun {
            Some(begun) => {
                format!(
                    "--backup {} resumes it; --restart destroys it and starts over",
                    begun.id
                )
            }
            None => {
                let quoted = shell_words::quote(self.target.as_str());
                format!("`zfs receive -A {quoted}` abandons it, if nobody needs it")
            }
        }
    }
}
