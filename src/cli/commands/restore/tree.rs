//! `restore -r`: restores a tree, one dataset after the other.

use crate::cli::args::Restore;
use crate::cli::commands::restore::space::check_fit;
use crate::cli::commands::restore::{PlannedRestore, lock, say_visible};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::remote::open_zfs;
use crate::cli::screen::output::Output;
use crate::keyring::KeyFile;
use crate::model::{DatasetName, InvalidName, SnapshotName};
use crate::plan::space::Fit;
use crate::run::RunError;
use crate::run::restore::{
    ArrivingDataset, ReceiveOptions, RestoreSet, RestoreTree, TreeMember, check_allowed,
    check_target, is_makeshift, judge_fit, restore_to_dataset,
};
use crate::run::runner::Runner;
use crate::zfs::Zfs;
use serde::Serialize;
use std::sync::Arc;

/// A dataset of a tree, with its target.
struct Placed<'a> {
    dataset: &'a DatasetName,
    target: DatasetName,
    set: &'a RestoreSet,
    options: &'a ReceiveOptions,
}

impl Placed<'_> {
    fn result<'p>(
        &'p self,
        plan: Option<PlannedRestore<'p>>,
        received: Option<Vec<SnapshotName>>,
    ) -> MemberResult<'p> {
        MemberResult {
            dataset: self.dataset,
            to: &self.target,
            plan,
            received,
        }
    }
}

/// The document of `restore -r`.
#[derive(Serialize)]
pub(crate) struct TreeResult<'a> {
    pub(crate) datasets: Vec<MemberResult<'a>>,
    /// The space for all datasets together; only of a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) space: Option<Fit>,
    pub(crate) to_mount: Vec<String>,
    pub(crate) failed: Vec<DatasetName>,
}

/// The result for one dataset: its plan with `--dry-run`, else the received snapshots.
#[derive(Serialize)]
pub(crate) struct MemberResult<'a> {
    pub(crate) dataset: &'a DatasetName,
    pub(crate) to: &'a DatasetName,
    #[serde(flatten)]
    pub(crate) plan: Option<PlannedRestore<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) received: Option<Vec<SnapshotName>>,
}

/// Restores the datasets one after the other, parents first. A dataset that fails does not block
/// the others.
pub(crate) async fn restore_tree(
    context: &Context,
    restore: &Restore,
    tree: RestoreTree,
    target: &DatasetName,
    options: &ReceiveOptions,
    keys: &KeyFile,
) -> Result<(), Failure> {
    let output = &context.output;
    say_apart(&tree, context);
    let below_root = ReceiveOptions {
        properties: options.properties.below(),
        ..options.clone()
    };
    let placed = place_members(&tree.members, target, options, &below_root)?;
    // The lock of the root covers all datasets below it.
    let _lock = if context.global.dry_run {
        None
    } else {
        lock(target)?
    };
    check_all_allowed(&placed, context)?;
    let space = check_all_fit(&placed, target, restore, context)?;
    let mut done = Vec::new();
    let mut received_all = Vec::new();
    for place in &placed {
        if context.global.dry_run {
            output.line(format!("{}:", place.target));
            let plan = output.printed(PlannedRestore::new(place.set, None, None));
            done.push(place.result(Some(plan), None));
            continue;
        }
        let received = if is_there(place.set, &place.target)? {
            Ok(Vec::new())
        } else {
            restore_member(place, open_zfs()?, keys, context).await
        };
        match received {
            Ok(snapshots) => {
                match snapshots.last() {
                    Some(newest) => output.line(format!("received {newest}")),
                    None => output.line(format!("{} has that snapshot already", place.target)),
                }
                done.push(place.result(None, Some(snapshots)));
                context.done(place.dataset, 0);
                received_all.push(&place.target);
            }
            Err(error) => context.failed(place.dataset, &Failure::Run(error)),
        }
        if *context.stop.borrow() {
            break;
        }
    }
    for (dataset, error) in tree.failed {
        context.failed(&dataset, &Failure::Run(error));
    }
    output.json(&TreeResult {
        datasets: done,
        space: space.filter(|_| context.global.dry_run),
        to_mount: say_all_visible(&received_all, output)?,
        failed: context.failed_datasets(),
    });
    context.verdict()
}

/// Gives each dataset of a tree its target below `target`, and its options.
fn place_members<'a>(
    members: &'a [TreeMember],
    target: &DatasetName,
    of_root: &'a ReceiveOptions,
    below_root: &'a ReceiveOptions,
) -> Result<Vec<Placed<'a>>, Failure> {
    let mut placed = Vec::new();
    for member in members {
        placed.push(Placed {
            dataset: &member.dataset,
            target: place_of(target, &member.below)?,
            set: &member.set,
            options: if member.below.is_empty() {
                of_root
            } else {
                below_root
            },
        });
    }
    Ok(placed)
}

/// Restores one dataset of a tree. Returns the received snapshots.
async fn restore_member(
    place: &Placed<'_>,
    zfs: Arc<dyn Zfs>,
    keys: &KeyFile,
    context: &Context,
) -> Result<Vec<SnapshotName>, RunError> {
    let stop = context.stop.clone();
    let received =
        restore_to_dataset(place.set, keys, zfs, &place.target, place.options, stop).await?;
    Ok(received.snapshots)
}

/// Prints the commands that make the restored datasets visible, and returns them.
fn say_all_visible(targets: &[&DatasetName], output: &Output) -> Result<Vec<String>, Failure> {
    let mut commands = Vec::new();
    if targets.is_empty() {
        return Ok(commands);
    }
    let zfs = open_zfs()?;
    for target in targets {
        commands.extend(say_visible(&*zfs, target, output).commands);
    }
    Ok(commands)
}

/// Fails before anything is fetched when an ordinary user lacks permissions.
fn check_all_allowed(placed: &[Placed<'_>], context: &Context) -> Result<(), Failure> {
    let runner = Runner::current();
    if runner.privileged || context.global.dry_run {
        return Ok(());
    }
    let zfs = open_zfs()?;
    for Placed {
        target,
        set,
        options,
        ..
    } in placed
    {
        if is_there(set, target)? {
            continue;
        }
        // A dataset that cannot be received here is reported in its turn.
        let Ok(plan) = check_target(&*zfs, target, set, options) else {
            continue;
        };
        check_allowed(&*zfs, target, set, &plan, options, &runner)?;
    }
    Ok(())
}

/// Compares the sum of all datasets with the space that is left, before anything is fetched.
fn check_all_fit(
    placed: &[Placed<'_>],
    root: &DatasetName,
    restore: &Restore,
    context: &Context,
) -> Result<Option<Fit>, Failure> {
    // Without ZFS, as on another host, a dry run still shows the contents of the store.
    let zfs = match open_zfs() {
        Err(_) if context.global.dry_run => return Ok(None),
        opened => opened?,
    };
    let mut plans = Vec::new();
    for place in placed {
        // A dataset that cannot be received here is reported in its turn.
        if let Ok(plan) = check_target(&*zfs, &place.target, place.set, place.options)
            && !is_there(place.set, &place.target)?
        {
            plans.push((place, plan));
        }
    }
    let arriving: Vec<ArrivingDataset<'_>> = plans
        .iter()
        .map(|(place, plan)| ArrivingDataset {
            set: place.set,
            plan,
            options: place.options,
        })
        .collect();
    let fit = judge_fit(&*zfs, root, &arriving);
    check_fit(fit, restore.although_full, context).map(Some)
}

/// Reports which datasets are not of the same moment.
fn say_apart(tree: &RestoreTree, context: &Context) {
    let output = &context.output;
    for TreeMember { dataset, set, .. } in tree.members.iter().filter(|member| !member.same_moment)
    {
        let at = set.newest().manifest.snapshot.created_at;
        output.always(&format!(
            "{dataset} has no backup of that moment; its newest earlier one is from {at}"
        ));
    }
    for dataset in &tree.younger {
        output.always(&format!(
            "{dataset} has no backup from before that moment; it is left out"
        ));
    }
    for (dataset, at) in &tree.gone {
        output.always(&format!(
            "{dataset} did not exist at that moment; it is left out (its newest earlier backup is from {at})"
        ));
    }
    for name in &tree.unstored {
        output.always(&format!(
            "{name} existed at that moment, but no backup of it was found; it is not restored"
        ));
    }
}

/// Returns whether an earlier run of this restore has completed the dataset: its newest snapshot is
/// the wanted one, and no receive is unfinished.
fn is_there(set: &RestoreSet, place: &DatasetName) -> Result<bool, Failure> {
    let zfs = open_zfs()?;
    let Some(dataset) = zfs.dataset(place)? else {
        return Ok(false);
    };
    let newest = zfs.snapshots(place)?.pop().map(|snapshot| snapshot.guid);
    // Check only the mark of the dataset itself: below a half-restored root every dataset inherits
    // that root's mark.
    let is_marked = is_makeshift(&dataset).is_some() || dataset.resume_token()?.is_some();
    Ok(newest == Some(set.newest().manifest.snapshot.guid) && !is_marked)
}

/// Returns the place of a descendant under `target`.
fn place_of(target: &DatasetName, below: &str) -> Result<DatasetName, Failure> {
    let name = format!("{target}{below}");
    name.parse()
        .map_err(|error: InvalidName| usage(&error.to_string(), "choose a shorter target"))
}
