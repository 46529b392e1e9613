//! Takes snapshots: one atomic call for each pool, each snapshot marked as ours, with the user's
//! hooks before and after.

use crate::config::Hooks;
use crate::model::{DatasetName, Guid, SnapshotName};
use crate::run::hooks::{HookCall, RunningHook, run_hook};
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::zfs::{Dataset, Snapshot, ZfsErrno, ZfsError, ZfsRead, ZfsSnapshots};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, BTreeSet};

/// The user property that marks a snapshot as ours. The value has the guids of the datasets that
/// were snapshotted together. A snapshot is ours only if its own dataset's guid is in the value, so
/// that a replica elsewhere is not.
pub const ORIGIN_PROPERTY: &str = "zfs-backup:origin";

/// ZFS keeps user property values of up to 8 KiB; a guid takes 17 bytes.
const GUIDS_PER_PROPERTY: usize = 400;

/// The form of the time in the name of our own snapshots; each 0 stands for a digit.
const TIME_SHAPE: &str = "00000000T000000Z";

/// The most suffixes that are tried for a name; more runs do not fit into a second.
const SUFFIXES_MAX: u32 = 100;

/// Returns whether this tool took the snapshot of this dataset: by its name, which is `prefix` and
/// a time, and by its mark. A mark alone does not count: any user with the permission `userprop`
/// can set it on any snapshot.
pub fn is_own(snapshot: &Snapshot, dataset_guid: Guid, prefix: &str) -> bool {
    has_own_name(snapshot, prefix) && is_marked(snapshot, dataset_guid)
}

/// Returns whether the name has the form that [`take_each_snapshot`] gives with this prefix.
pub fn has_own_name(snapshot: &Snapshot, prefix: &str) -> bool {
    let Some(rest) = snapshot.name.short().strip_prefix(prefix) else {
        return false;
    };
    let (time, suffix) = rest
        .split_once('-')
        .map_or((rest, None), |(time, suffix)| (time, Some(suffix)));
    let is_time = time.len() == TIME_SHAPE.len()
        && time
            .bytes()
            .zip(TIME_SHAPE.bytes())
            .all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                shape => byte == shape,
            });
    let is_suffix = |suffix: &str| {
        (1..=2).contains(&suffix.len()) && suffix.bytes().all(|byte| byte.is_ascii_digit())
    };
    is_time && suffix.is_none_or(is_suffix)
}

/// Returns whether the snapshot has our mark with the guid of this dataset. The property counts
/// only if it was set on the snapshot itself: a received property came with a replica, and an
/// inherited property belongs to the dataset.
pub fn is_marked(snapshot: &Snapshot, dataset_guid: Guid) -> bool {
    let own = dataset_guid.to_string();
    let is_ours = |name: &str| {
        let rest = name.strip_prefix(ORIGIN_PROPERTY);
        rest.is_some_and(|rest| {
            rest.is_empty()
                || rest
                    .strip_prefix('-')
                    .is_some_and(|n| n.parse::<u32>().is_ok())
        })
    };
    let marks = snapshot
        .user_properties
        .iter()
        .filter(|(name, _)| is_ours(name));
    marks
        .flat_map(|(_, value)| value.split(' '))
        .any(|guid| guid == own)
}

/// The result of taking snapshots.
#[derive(Debug, Default)]
pub struct SnapshotsTaken {
    /// The snapshots, pool by pool.
    pub taken: Vec<SnapshotName>,
    /// The datasets without a new snapshot, because nothing was written since their newest one,
    /// which is this.
    pub unchanged: Vec<Snapshot>,
    /// The datasets without a snapshot, and why.
    pub refused: Vec<(DatasetName, RunError)>,
    /// The errors of hooks. If `pre_snapshot` is one of them, no snapshot was taken.
    pub hook_errors: Vec<RunError>,
}

/// Takes one snapshot of each dataset, atomically within each pool. Returns the names, pool by
/// pool.
///
/// # Errors
/// [`RunError::NoDataset`] before anything is taken; otherwise the first refusal. Other datasets
/// may have a snapshot in that case.
#[cfg(any(test, feature = "testing"))]
pub fn take_snapshots(
    zfs: &dyn ZfsSnapshots,
    datasets: &[DatasetName],
    prefix: &str,
    now: Timestamp,
) -> Result<Vec<SnapshotName>, RunError> {
    let datasets = datasets
        .iter()
        .map(|name| find_dataset(zfs, name))
        .collect::<Result<Vec<_>, _>>()?;
    let SnapshotsTaken { taken, refused, .. } = take_each_snapshot(zfs, &datasets, prefix, now);
    refused
        .into_iter()
        .next()
        .map_or(Ok(taken), |(_, error)| Err(error))
}

/// Takes one snapshot of each dataset: one atomic call for each pool, repeated without the datasets
/// that refuse (because they are in the middle of a receive, or at a limit). Pools do not depend on
/// each other. Blocks the thread.
pub fn take_each_snapshot(
    zfs: &dyn ZfsSnapshots,
    datasets: &[Dataset],
    prefix: &str,
    now: Timestamp,
) -> SnapshotsTaken {
    let time = now
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let mut outcome = SnapshotsTaken::default();
    for pool in pools(datasets) {
        let members = datasets
            .iter()
            .filter(|dataset| dataset.name.pool() == pool)
            .collect();
        take_in_pool(zfs, members, &format!("{prefix}{time}"), &mut outcome);
    }
    outcome
}

/// The input of [`snapshot_between_hooks`].
pub struct SnapshotRun<'a> {
    /// ZFS.
    pub zfs: &'a dyn ZfsSnapshots,
    /// The datasets to snapshot; they exist.
    pub datasets: &'a [Dataset],
    /// The prefix of the names.
    pub prefix: &'a str,
    /// Whether to take snapshots of datasets to which nothing was written since their newest own
    /// one.
    pub of_unchanged: bool,
    /// The clock, read after `pre_snapshot` has exited.
    pub now: fn() -> Timestamp,
    /// `pre_snapshot` and `post_snapshot`.
    pub hooks: &'a Hooks,
    /// The variables for both hooks.
    pub variables: Vec<(&'static str, String)>,
    /// Becomes true to request a stop, which ends a running `pre_snapshot`.
    pub stop: &'a Stop,
    /// The handle to kill the running hook.
    pub running: &'a RunningHook,
}

/// Runs `pre_snapshot`, takes the snapshots unless the hook failed, and runs `post_snapshot`
/// whenever `pre_snapshot` was started, so that a paused database continues.
/// `ZFS_BACKUP_EXIT_STATUS` tells `post_snapshot` whether everything succeeded.
pub async fn snapshot_between_hooks(run: &SnapshotRun<'_>) -> SnapshotsTaken {
    let mut outcome = SnapshotsTaken::default();
    if let Some(command) = &run.hooks.pre_snapshot {
        let time_max = run.hooks.timeout;
        let variables = run.variables.clone();
        let call = HookCall {
            key: "main.pre_snapshot",
            command,
            time_max,
            variables,
            input: None,
        };
        outcome
            .hook_errors
            .extend(run_hook(&call, Some(run.stop), run.running).await.err());
    }
    if outcome.hook_errors.is_empty() {
        let (changed, unchanged) = divide_by_change(run);
        outcome = SnapshotsTaken {
            unchanged,
            ..take_each_snapshot(run.zfs, &changed, run.prefix, (run.now)())
        };
    }
    if let Some(command) = &run.hooks.post_snapshot {
        let status = u8::from(!outcome.hook_errors.is_empty() || !outcome.refused.is_empty());
        let mut variables = run.variables.clone();
        variables.push(("ZFS_BACKUP_EXIT_STATUS", status.to_string()));
        let call = HookCall {
            key: "main.post_snapshot",
            command,
            time_max: run.hooks.timeout,
            variables,
            input: None,
        };
        // A request to stop does not end this hook: a database that was paused must continue.
        outcome
            .hook_errors
            .extend(run_hook(&call, None, run.running).await.err());
    }
    outcome
}

/// Divides the datasets into those that need a new snapshot, and the newest own snapshots of the
/// others.
fn divide_by_change(run: &SnapshotRun<'_>) -> (Vec<Dataset>, Vec<Snapshot>) {
    let (mut changed, mut unchanged) = (Vec::new(), Vec::new());
    // What was written a moment ago counts only when it is on disk.
    let is_synced = |pool: &str| {
        let synced = run.zfs.sync_pool(pool);
        synced
            .inspect_err(|error| {
                tracing::warn!(
                    error = error_chain(error),
                    "each dataset gets a snapshot, because it is not known which changed"
                );
            })
            .is_ok()
    };
    let synced: BTreeSet<&str> = if run.of_unchanged {
        BTreeSet::new()
    } else {
        pools(run.datasets)
            .into_iter()
            .filter(|pool| is_synced(pool))
            .collect()
    };
    for dataset in run.datasets {
        let newest = Some(dataset)
            .filter(|dataset| synced.contains(dataset.name.pool()))
            .and_then(|dataset| newest_if_unchanged(run, dataset));
        match newest {
            Some(newest) => unchanged.push(newest),
            None => changed.push(dataset.clone()),
        }
    }
    (changed, unchanged)
}

/// Returns the newest snapshot if it is ours and nothing was written since. If ZFS cannot tell, a
/// snapshot is taken; and of an encrypted dataset always, because a new key is stored only with a
/// backup, and writes nothing.
fn newest_if_unchanged(run: &SnapshotRun<'_>, dataset: &Dataset) -> Option<Snapshot> {
    if dataset.encrypted {
        return None;
    }
    let newest = run.zfs.snapshots(&dataset.name).ok()?.pop()?;
    let now = run.zfs.dataset(&dataset.name).ok()??;
    let is_unchanged = now.guid == dataset.guid && now.number("written") == Some(0);
    (is_unchanged && is_own(&newest, dataset.guid, run.prefix)).then_some(newest)
}

fn pools(datasets: &[Dataset]) -> BTreeSet<&str> {
    datasets.iter().map(|dataset| dataset.name.pool()).collect()
}

fn take_in_pool(
    zfs: &dyn ZfsSnapshots,
    mut members: Vec<&Dataset>,
    name: &str,
    outcome: &mut SnapshotsTaken,
) {
    // Two runs within a second choose the same name: the later run adds a suffix.
    let mut suffix = 0;
    while !members.is_empty() && suffix < SUFFIXES_MAX {
        let short = if suffix == 0 {
            name.to_owned()
        } else {
            format!("{name}-{suffix}")
        };
        let names: Vec<SnapshotName> = drop_refused(&mut members, outcome, |dataset| {
            let named = dataset.name.snapshot(&short);
            named.map_err(|error| {
                RunError::refused(error.to_string(), "make main.snapshot_prefix shorter")
            })
        });
        if names.is_empty() {
            return;
        }
        let error = match zfs.take_snapshots(&names, &origin_properties(&members)) {
            Ok(()) => return outcome.taken.extend(names),
            Err(error) => error,
        };
        if is_taken(&error) {
            suffix += 1;
            continue;
        }
        let count = members.len();
        drop_culprits(zfs, &mut members, error, outcome);
        debug_assert!(members.len() < count, "each round leaves fewer");
    }
    for dataset in members {
        let what = format!(
            "{}: a hundred snapshots named {name} exist already",
            dataset.name
        );
        outcome.refused.push((
            dataset.name.clone(),
            RunError::refused(what, "wait a second"),
        ));
    }
}

/// Drops the datasets that an error names, or those that no longer exist. If that drops none, drops
/// all.
fn drop_culprits(
    zfs: &dyn ZfsRead,
    members: &mut Vec<&Dataset>,
    error: ZfsError,
    outcome: &mut SnapshotsTaken,
) {
    let before = members.len();
    if let ZfsError::Several {
        operation,
        failures,
    } = &error
    {
        drop_refused(members, outcome, |dataset| {
            let of_dataset = |(name, _): &&(String, ZfsErrno)| {
                name.rsplit_once('@')
                    .is_some_and(|(parent, _)| parent == dataset.name.as_str())
            };
            // A taken name is no refusal: the next round uses another one.
            match failures
                .iter()
                .find(of_dataset)
                .filter(|(_, errno)| *errno != ZfsErrno::EXISTS)
            {
                None => Ok(()),
                Some((name, errno)) => Err(ZfsError::Call {
                    operation,
                    subject: name.clone(),
                    source: *errno,
                }
                .into()),
            }
        });
    } else {
        // ZFS checks permissions before it names a dataset: a dataset that no longer exists fails
        // the whole call.
        drop_refused(members, outcome, |dataset| {
            find_dataset(zfs, &dataset.name).map(drop)
        });
    }
    if members.len() == before {
        let errno = error.errno();
        let text = error_chain(&error);
        let mut first = Some(RunError::from(error));
        for dataset in members.drain(..) {
            let shared = || match errno {
                Some(source) => RunError::Zfs(ZfsError::Call {
                    operation: "snapshot",
                    subject: dataset.name.to_string(),
                    source,
                }),
                None => RunError::refused_without_hint(format!("{}: {text}", dataset.name)),
            };
            outcome
                .refused
                .push((dataset.name.clone(), first.take().unwrap_or_else(shared)));
        }
    }
}

/// Keeps the datasets for which `check` succeeds, and returns its values. Records the others as
/// refused.
fn drop_refused<T>(
    members: &mut Vec<&Dataset>,
    outcome: &mut SnapshotsTaken,
    check: impl Fn(&Dataset) -> Result<T, RunError>,
) -> Vec<T> {
    let mut kept = Vec::new();
    members.retain(|dataset| match check(dataset) {
        Ok(value) => {
            kept.push(value);
            true
        }
        Err(error) => {
            outcome.refused.push((dataset.name.clone(), error));
            false
        }
    });
    kept
}

fn is_taken(error: &ZfsError) -> bool {
    match error {
        ZfsError::Several { failures, .. } => {
            failures.iter().all(|(_, errno)| *errno == ZfsErrno::EXISTS)
        }
        other => other.errno() == Some(ZfsErrno::EXISTS),
    }
}

fn origin_properties(members: &[&Dataset]) -> BTreeMap<String, String> {
    let guids: Vec<String> = members
        .iter()
        .map(|dataset| dataset.guid.to_string())
        .collect();
    let name = |number: usize| {
        if number == 0 {
            ORIGIN_PROPERTY.to_owned()
        } else {
            format!("{ORIGIN_PROPERTY}-{number}")
        }
    };
    guids
        .chunks(GUIDS_PER_PROPERTY)
        .enumerate()
        .map(|(number, guids)| (name(number), guids.join(" ")))
        .collect()
}

/// Finds a dataset. The error for a missing one names a dataset with a similar name.
///
/// # Errors
/// [`RunError::NoDataset`]; [`RunError::Zfs`] when the dataset could not be read.
pub fn find_dataset(zfs: &dyn ZfsRead, name: &DatasetName) -> Result<Dataset, RunError> {
    if let Some(dataset) = zfs.dataset(name)? {
        return Ok(dataset);
    }
    // The siblings only serve the hint; a failure to list them must not hide the error.
    let siblings = name
        .parent()
        .and_then(|parent| zfs.children(&parent).ok())
        .unwrap_or_default();
    let distance =
        |other: &Dataset| strsim::damerau_levenshtein(other.name.as_str(), name.as_str());
    let similar = siblings
        .iter()
        .min_by_key(|other| distance(other))
        .filter(|other| distance(other) <= 3);
    Err(RunError::NoDataset {
        dataset: name.clone(),
        similar: similar.map(|dataset| dataset.name.to_string()),
    })
}
