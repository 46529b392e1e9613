//! [`check_target`]: what is in the place that a chain is to be received into, and what that means: a new dataset, one
//! that is rolled back, or what an earlier run left when it was interrupted.
//!
//! A dataset that a restore has begun has the user property [`RESTORING_PROPERTY`], set with the first receive and taken
//! away after the last. It is the proof that what is there is ours: only then is it gone on with without being asked
//! for a rollback, and given up where going on is impossible. It also says whether `readonly` was set by us, so that
//! whichever run ends the restore ends that too.

use super::{ReceiveOptions, ResumeChoice};
use super::{RestoreBackup, RestoreSet, no_pool};
use crate::model::{DatasetName, SnapshotName};
use crate::run::RunError;
use crate::stream::record::feature;
use crate::zfs::{Dataset, Property, PropertyValue, ResumeToken, Snapshot, Zfs};

/// Marks a dataset as being restored: the id of the backup that it will be, `new` if the restore made the dataset, and
/// `readonly` if that was set for the restore.
pub const RESTORING_PROPERTY: &str = "zfs-backup:restoring";

/// What will be received, and onto what.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReceivePlan {
    /// How many backups of the chain are there already: all of them when an earlier run was ended after its last receive.
    pub skipped: usize,
    /// Filesystems that are made first, with `canmount=off`, outermost first.
    pub parents: Vec<DatasetName>,
    /// The snapshot that the dataset is rolled back to; none for a new dataset, or one that an earlier run began.
    pub rolled_back_to: Option<SnapshotName>,
    /// The names of the snapshots that stay.
    pub kept: Vec<String>,
    /// The snapshots that are lost by that, oldest first. What was changed since the newest of them is lost too.
    pub lost: Vec<SnapshotName>,
    /// A receive of the next backup that was cut and can go on.
    pub unfinished: Option<ResumeToken>,
    /// What an earlier run noted on the dataset.
    pub begun: Option<Begun>,
    /// What an earlier run received is destroyed first, as was asked for.
    pub gives_up: bool,
    /// The dataset is readonly by the will of its owner, and stays so.
    pub keeps_readonly: bool,
}

/// The value of [`RESTORING_PROPERTY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begun {
    /// The backup that the chain led to.
    pub id: String,
    /// The dataset was made by the restore: nothing in it is anybody else's.
    pub is_new: bool,
    /// `readonly=on` was set for the restore.
    pub readonly: bool,
}

impl Begun {
    /// As it was set on the dataset itself, not above it.
    pub(super) fn of(dataset: &Dataset) -> Option<Self> {
        let PropertyValue::Text(text) = &own(dataset, RESTORING_PROPERTY)?.value else { return None };
        let (id, flags) = text.split_once(' ').unwrap_or((text, ""));
        let has = |flag: &str| flags.split(' ').any(|other| other == flag);
        Some(Self { id: id.to_owned(), is_new: has("new"), readonly: has("readonly") })
    }

    pub(super) fn to_value(&self) -> PropertyValue {
        let flag = |is_set: bool, flag: &'static str| if is_set { flag } else { "" };
        PropertyValue::Text(format!("{}{}{}", self.id, flag(self.is_new, " new"), flag(self.readonly, " readonly")))
    }
}

fn own<'a>(dataset: &'a Dataset, property: &str) -> Option<&'a Property> {
    dataset.properties.get(property).filter(|property| property.source.as_deref() == Some(dataset.name.as_str()))
}

/// Whether a cut receive is one of this very backup: snapshot, base, and the form that blocks are sent in.
pub(super) fn fits(token: &ResumeToken, backup: &RestoreBackup) -> bool {
    let manifest = &backup.manifest;
    let has = |feature: u64| manifest.send.feature_flags & feature != 0;
    token.to_guid == manifest.snapshot.guid
        && token.from_guid == manifest.base.as_ref().map(|base| base.guid)
        && [token.raw, token.compressed, token.embedded, token.large_blocks]
            == [has(feature::RAW), has(feature::COMPRESSED), has(feature::EMBED_DATA), has(feature::LARGE_BLOCKS)]
}

/// What an interrupted restore, or another receive, has left on a dataset, and what a person can do about it.
///
/// # Errors
/// [`RunError::Zfs`] when its state cannot be read.
pub fn left_half(dataset: &Dataset) -> Result<Option<(String, String)>, RunError> {
    let name = &dataset.name;
    let token = dataset.resume_token()?;
    Ok(match (Begun::of(dataset), token) {
        (Some(begun), _) => Some((
            format!("{name} is half restored, on the way to backup {}", begun.id),
            format!("the same restore into {name} goes on; with --restart it starts over"),
        )),
        (None, Some(token)) => Some((
            format!("{name} has an interrupted receive of {}", token.to_name),
            format!("go on with it, or give it up: zfs receive -A {name}"),
        )),
        (None, None) => None,
    })
}

/// Looks at what is there, without changing anything.
///
/// # Errors
/// [`RunError::Refused`] when the chain cannot go there; [`RunError::Zfs`].
pub fn check_target(
    zfs: &dyn Zfs,
    target: &DatasetName,
    set: &RestoreSet,
    options: &ReceiveOptions,
) -> Result<ReceivePlan, RunError> {
    let Some(dataset) = zfs.dataset(target)? else { return plan_new(zfs, target) };
    if options.resume == ResumeChoice::Never && !options.rollback {
        return Err(exists(target));
    }
    let (token, begun) = (dataset.resume_token()?, Begun::of(&dataset));
    let snapshots = zfs.snapshots(target)?;
    let owner = own(&dataset, "readonly").is_some_and(|readonly| readonly.value == PropertyValue::Number(1));
    let place = Place { target, set, dataset, token, snapshots, keeps_readonly: owner && begun.is_none(), begun };
    match options.resume {
        ResumeChoice::Restart if place.begun.is_some() || place.token.is_some() => place.restart(options.rollback),
        _ if place.dataset.inconsistent => place.go_on_with_first(),
        _ if options.rollback => place.roll_back(),
        _ if place.begun.is_some() => place.go_on(),
        _ => Err(exists(target)),
    }
}

fn plan_new(zfs: &dyn Zfs, target: &DatasetName) -> Result<ReceivePlan, RunError> {
    let mut parents = Vec::new();
    let mut parent = target.parent().ok_or_else(|| {
        RunError::refused(format!("{target} is a pool's name"), "name a dataset inside an imported pool: POOL/NAME")
    })?;
    while zfs.dataset(&parent)?.is_none() {
        let above = parent.parent().ok_or_else(|| no_pool(target))?;
        parents.insert(0, std::mem::replace(&mut parent, above));
    }
    Ok(ReceivePlan { parents, ..ReceivePlan::default() })
}

fn exists(target: &DatasetName) -> RunError {
    let what = format!("{target} exists already, and restoring over a dataset would lose what it holds");
    let hint = "restore into a name that does not exist yet; --force-rollback goes on from the newest snapshot that it \
                has in common with the chain";
    RunError::refused(what, hint)
}

/// A target that exists.
struct Place<'a> {
    target: &'a DatasetName,
    set: &'a RestoreSet,
    dataset: Dataset,
    token: Option<ResumeToken>,
    begun: Option<Begun>,
    snapshots: Vec<Snapshot>,
    keeps_readonly: bool,
}

impl Place<'_> {
    /// The first receive of a new dataset was cut.
    fn go_on_with_first(self) -> Result<ReceivePlan, RunError> {
        if self.token.is_none() {
            let what = format!("{} is in the middle of a receive that cannot go on", self.target);
            return Err(RunError::refused(what, format!("if nobody receives into it: zfs destroy {}", self.target)));
        }
        self.plan(0)
    }

    /// An earlier run received some of the chain.
    fn go_on(self) -> Result<ReceivePlan, RunError> {
        let Some((number, at)) = self.newest_in_common() else {
            let what = format!("{} is the beginning of another restore", self.target);
            return Err(RunError::refused(what, self.advice()));
        };
        if let Some(newer) = self.snapshots.get(at + 1) {
            let what = format!("{} was begun by a restore, and has {} besides", self.target, newer.name);
            return Err(RunError::refused(what, "--force-rollback goes on all the same, and loses it"));
        }
        self.plan(number + 1)
    }

    /// What is there after the newest snapshot in common is lost.
    fn roll_back(self) -> Result<ReceivePlan, RunError> {
        let target = self.target;
        let Some((number, at)) = self.newest_in_common() else {
            let what = format!("{target} has no snapshot of this chain, so nothing can be rolled back to");
            return Err(RunError::refused(what, "restore into a new name, look at it, and then rename the two"));
        };
        let base = self.snapshots[at].name.clone();
        let is_end = number + 1 == self.set.backups.len();
        if is_end && (self.begun.is_none() || at + 1 < self.snapshots.len()) {
            let what = format!("{target} has {base} already, which is what would be restored");
            return Err(RunError::refused(what, format!("to go back to it: zfs rollback -r {base}")));
        }
        let lost = self.snapshots[at + 1..].iter().map(|snapshot| snapshot.name.clone()).collect();
        let rolled_back_to = Some(base).filter(|_| !is_end);
        let plan = self.plan(number + 1)?;
        let kept = plan.kept[..=at].to_vec();
        Ok(ReceivePlan { rolled_back_to, kept, lost, ..plan })
    }

    /// As if nothing had been received, if what was is ours.
    fn restart(self, rollback: bool) -> Result<ReceivePlan, RunError> {
        let fits_any = |token: &ResumeToken| self.set.backups.iter().any(|backup| fits(token, backup));
        if self.begun.is_none() && !self.token.as_ref().is_some_and(fits_any) {
            return Err(self.foreign());
        }
        if rollback && !self.dataset.inconsistent {
            let plan = Self { token: None, ..self }.roll_back()?;
            return Ok(ReceivePlan { gives_up: true, ..plan });
        }
        let guids: Vec<_> = self.set.backups.iter().map(|backup| backup.manifest.snapshot.guid).collect();
        let other = self.snapshots.iter().find(|snapshot| !guids.contains(&snapshot.guid));
        match (&self.begun, other) {
            (Some(begun), None) if begun.is_new => {}
            (None, None) if self.dataset.inconsistent => {}
            (_, Some(other)) => {
                let what = format!("{} is not of this restore alone: it has {}", self.target, other.name);
                return Err(RunError::refused(what, format!("destroy it yourself: zfs destroy -r {}", self.target)));
            }
            _ => return Err(exists(self.target)),
        }
        Ok(ReceivePlan { gives_up: true, ..ReceivePlan::default() })
    }

    fn plan(self, skipped: usize) -> Result<ReceivePlan, RunError> {
        let next = self.set.backups.get(skipped);
        if let Some(token) = &self.token
            && !next.is_some_and(|next| fits(token, next))
        {
            return Err(self.foreign());
        }
        Ok(ReceivePlan {
            skipped,
            kept: self.snapshots.iter().map(|snapshot| snapshot.name.short().to_owned()).collect(),
            unfinished: self.token,
            begun: self.begun,
            keeps_readonly: self.keeps_readonly,
            ..ReceivePlan::default()
        })
    }

    /// The number of the last backup whose snapshot is there, and which that is.
    fn newest_in_common(&self) -> Option<(usize, usize)> {
        let common = |backup: &RestoreBackup| {
            self.snapshots.iter().position(|snapshot| snapshot.guid == backup.manifest.snapshot.guid)
        };
        self.set.backups.iter().enumerate().rev().find_map(|(number, backup)| Some((number, common(backup)?)))
    }

    fn foreign(&self) -> RunError {
        let of = self.token.as_ref().map_or("another backup", |token| &token.to_name);
        let what = format!("{} has an interrupted receive of {of}, which is not what comes next here", self.target);
        RunError::refused(what, self.advice())
    }

    fn advice(&self) -> String {
        match &self.begun {
            Some(begun) => {
                format!("--backup {} goes on with it; --restart destroys it and starts over", begun.id)
            }
            None => format!("`zfs receive -A {}` gives it up, if nobody needs it", self.target),
        }
    }
}
