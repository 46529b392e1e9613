//! `--mount`: what is restored is mounted after its last receive, where its properties say, and never over anything.
//!
//! What can be known before is found out before a byte is received: [`foresee_mounts`]. What is done is decided anew from
//! what the dataset then has: [`mount_restored`].

use super::{PropertyChoice, RestoreSet, no_pool};
use crate::model::DatasetName;
use crate::plan::mount::{MountFacts, NotMounted, Properties, plan_mount, properties_below, set_on};
use crate::run::RunError;
use crate::stream::record::feature;
use crate::zfs::{Dataset, DatasetType, Mount, PropertyValue, Zfs};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// One dataset that is going to be received.
pub struct Incoming<'a> {
    /// Where it goes.
    pub target: DatasetName,
    /// The chain.
    pub set: &'a RestoreSet,
    /// What is set on it with the last receive.
    pub properties: &'a PropertyChoice,
}

/// What will become of a dataset when it is mounted after its restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountOutlook {
    /// It will be mounted there.
    At(PathBuf),
    /// It is mounted there already.
    There(PathBuf),
    /// It will not be mounted.
    Not(NotMounted),
}

/// What a dataset is expected to be.
struct Expected {
    properties: Properties,
    is_volume: bool,
    key_is_missing: bool,
}

/// Finds out where each dataset would be mounted, without changing anything; parents must come before children.
///
/// # Errors
/// [`RunError::Refused`] when a place is taken, by what is there or by another of them; the others when that cannot be
/// found out.
pub fn foresee_mounts(zfs: &dyn Zfs, incoming: &[Incoming<'_>]) -> Result<Vec<MountOutlook>, RunError> {
    let mounts = zfs.mounts()?;
    let mut expected: BTreeMap<DatasetName, Expected> = BTreeMap::new();
    let mut places: BTreeMap<PathBuf, &DatasetName> = BTreeMap::new();
    let mut outlooks = Vec::new();
    for Incoming { target, set, properties } in incoming {
        let recorded = set.recorded_properties();
        let is_volume = recorded.contains_key("volsize");
        let raw = set.newest().manifest.send.feature_flags & feature::RAW != 0;
        let found = expect(zfs, target, &properties.resolve(recorded), (is_volume, raw), &expected)?;
        let root = zfs.alternate_root(target.pool())?;
        let outlook = match (mounted_at(&mounts, target), plan_mount(&facts(target, &found, root.as_deref()))) {
            (Some(place), _) => MountOutlook::There(place),
            (None, Err(why)) => MountOutlook::Not(why),
            (None, Ok(plan)) => {
                check_place(target, &plan.place, &mounts)?;
                if let Some(other) = places.insert(plan.place.clone(), target) {
                    let what = format!("{other} and {target} would both be mounted at {}", plan.place.display());
                    return Err(RunError::refused(what, "leave --mount out, or -x mountpoint"));
                }
                MountOutlook::At(plan.place)
            }
        };
        outlooks.push(outlook);
        expected.insert(target.clone(), found);
    }
    Ok(outlooks)
}

fn facts<'a>(name: &'a DatasetName, expected: &'a Expected, root: Option<&'a str>) -> MountFacts<'a> {
    let Expected { properties, is_volume, key_is_missing } = expected;
    MountFacts { name, is_volume: *is_volume, key_is_missing: *key_is_missing, properties, root }
}

/// What a dataset will have: one that is there keeps what it has, a new one inherits from what is above it.
fn expect(
    zfs: &dyn Zfs,
    target: &DatasetName,
    chosen: &BTreeMap<String, PropertyValue>,
    (is_volume, raw): (bool, bool),
    known: &BTreeMap<DatasetName, Expected>,
) -> Result<Expected, RunError> {
    if let Some(dataset) = zfs.dataset(target)? {
        let (is_new, mut found) = (dataset.inconsistent, expected_of(dataset));
        set_on(&mut found.properties, target, chosen);
        found.is_volume |= is_volume;
        // A raw stream brings its key's lock, and never the key.
        found.key_is_missing |= is_new && raw;
        return Ok(found);
    }
    let mut above = target.parent();
    while let Some(parent) = above {
        let there = match known.get(&parent) {
            Some(_) => None,
            None => zfs.dataset(&parent)?.map(expected_of),
        };
        if let Some(Expected { properties, key_is_missing, .. }) = known.get(&parent).or(there.as_ref()) {
            let properties = properties_below((&parent, properties), target, chosen);
            return Ok(Expected { properties, is_volume, key_is_missing: raw || *key_is_missing });
        }
        above = parent.parent();
    }
    Err(no_pool(target))
}

fn expected_of(dataset: Dataset) -> Expected {
    Expected {
        is_volume: dataset.dataset_type == DatasetType::Volume,
        key_is_missing: dataset.encrypted && dataset.key_unavailable,
        properties: dataset.properties,
    }
}

impl NotMounted {
    /// As an error of a restore that was to mount `name`.
    pub fn refusal(&self, name: &DatasetName) -> RunError {
        RunError::refused(format!("{name} would not be mounted: {self}"), self.hint(name))
    }
}

/// Mounts what was restored, and looks that the kernel shows it there. Folders that are missing are made; they go again
/// when it fails. Returns the place, also of what was mounted before.
///
/// # Errors
/// [`RunError`] when it is not mounted; all that was received stays.
pub fn mount_restored(zfs: &dyn Zfs, name: &DatasetName) -> Result<PathBuf, RunError> {
    let mounts = zfs.mounts()?;
    if let Some(place) = mounted_at(&mounts, name) {
        return Ok(place);
    }
    let dataset = zfs.dataset(name)?;
    let dataset = dataset.ok_or_else(|| RunError::NoDataset { dataset: name.clone(), similar: None })?;
    let (found, root) = (expected_of(dataset), zfs.alternate_root(name.pool())?);
    let plan = plan_mount(&facts(name, &found, root.as_deref())).map_err(|why| why.refusal(name))?;
    check_place(name, &plan.place, &mounts)?;
    let mut made = Vec::new();
    let mounted = make_folders(&plan.place, &mut made).and_then(|()| {
        // Links on the way are followed now, so that what is looked at is what is mounted on.
        let place = plan.place.canonicalize().map_err(|source| failed("read", &plan.place, source))?;
        check_place(name, &place, &mounts)?;
        zfs.mount(name, &place, &plan.options)?;
        Ok(place)
    });
    let place = match mounted {
        Ok(place) => place,
        Err(error) => {
            // One that has something in it by now stays.
            made.iter().rev().for_each(|folder| drop(std::fs::remove_dir(folder)));
            return Err(error);
        }
    };
    match mounted_at(&zfs.mounts()?, name) {
        Some(shown) if shown == place => Ok(place),
        shown => {
            let shown = shown.map_or_else(|| "nowhere".to_owned(), |shown| format!("at {}", shown.display()));
            let what = format!("{name} was mounted at {}, and the kernel shows it {shown}", place.display());
            Err(RunError::refused(what, "look at /proc/self/mountinfo; what was received is whole"))
        }
    }
}

fn mounted_at(mounts: &[Mount], name: &DatasetName) -> Option<PathBuf> {
    let mut of_it = mounts.iter().filter(|mount| mount.file_system == "zfs" && mount.source == name.as_str());
    of_it.next().map(|mount| mount.place.clone())
}

fn failed(operation: &'static str, path: &Path, source: std::io::Error) -> RunError {
    RunError::File { operation, path: path.display().to_string(), source }
}

/// That nothing is there, or an empty folder on which nothing is mounted.
fn check_place(name: &DatasetName, place: &Path, mounts: &[Mount]) -> Result<(), RunError> {
    let refuse = |what: String| {
        let hint = "-o mountpoint=/FOLDER gives it another place, or leave --mount out";
        Err(RunError::refused(format!("{name} would be mounted at {}, and {what}", place.display()), hint))
    };
    let kind = match place.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return check_above(place),
        other => other.map_err(|source| failed("look at", place, source))?,
    };
    if !kind.is_dir() {
        return refuse("that is no folder".to_owned());
    }
    let real = place.canonicalize().map_err(|source| failed("look at", place, source))?;
    if let Some(mount) = mounts.iter().find(|mount| mount.place == real) {
        return refuse(format!("{} is mounted there", mount.source));
    }
    match std::fs::read_dir(place).map_err(|source| failed("look at", place, source))?.next() {
        None => Ok(()),
        Some(Ok(_)) => refuse("that folder is not empty".to_owned()),
        Some(Err(source)) => Err(failed("look at", place, source)),
    }
}

/// That the folders on the way can be made: what there is of them is folders.
fn check_above(place: &Path) -> Result<(), RunError> {
    for above in place.ancestors().skip(1) {
        match above.metadata() {
            Ok(kind) if kind.is_dir() => return Ok(()),
            Ok(_) => {
                let what = format!("{} cannot be made: {} is no folder", place.display(), above.display());
                return Err(RunError::refused(what, "-o mountpoint=/FOLDER gives it another place"));
            }
            // A link to nowhere is something, and in the way.
            Err(error) if error.kind() == ErrorKind::NotFound && above.symlink_metadata().is_err() => {}
            Err(source) => return Err(failed("look at", above, source)),
        }
    }
    Ok(())
}

/// Notes each that it made.
fn make_folders(place: &Path, made: &mut Vec<PathBuf>) -> Result<(), RunError> {
    let mut missing: Vec<&Path> = place.ancestors().take_while(|above| !above.exists()).collect();
    while let Some(folder) = missing.pop() {
        match std::fs::create_dir(folder) {
            Ok(()) => made.push(folder.to_owned()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(source) => return Err(failed("make", folder, source)),
        }
    }
    Ok(())
}

/// Where a filesystem has stayed readonly although it is not meant to be: a mount becomes readonly with the property, and
/// stays so when that ends.
///
/// # Errors
/// [`RunError::Zfs`] when that cannot be found out.
pub fn left_readonly(zfs: &dyn Zfs, name: &DatasetName) -> Result<Option<PathBuf>, RunError> {
    let wanted = zfs.dataset(name)?.and_then(|mut dataset| dataset.properties.remove("readonly"));
    if wanted.is_some_and(|readonly| readonly.value == PropertyValue::Number(1)) {
        return Ok(None);
    }
    let mounts = zfs.mounts()?.into_iter();
    let mut stuck = mounts.filter(|mount| mount.file_system == "zfs" && mount.source == name.as_str());
    Ok(stuck.find(|mount| mount.readonly).map(|mount| mount.place))
}
