//! `restore -r`: a tree, dataset by dataset.

use super::Failure;
use super::context::Context;
use super::mounting::Mounting;
use super::restore::{Wanted, manifests, print_plan};
use super::wire::{open_zfs, usage};
use crate::keyring::KeyFile;
use crate::model::{DatasetName, InvalidName};
use crate::run::doctor::host::Runner;
use crate::run::restore::{
    Incoming, RESTORING_PROPERTY, ReceiveOptions, RestoreSet, RestoreTree, TreeMember, check_allowed, check_target,
    restore_to_dataset,
};
use serde_json::json;

/// One dataset of a tree, and where it goes.
struct Placed<'a> {
    dataset: &'a DatasetName,
    target: DatasetName,
    set: &'a RestoreSet,
    options: &'a ReceiveOptions,
}

impl<'a> Placed<'a> {
    fn incoming(&self) -> Incoming<'a> {
        Incoming { target: self.target.clone(), set: self.set, properties: &self.options.properties }
    }
}

/// Dataset by dataset, parents first. One that fails does not keep the others back.
pub(super) async fn restore_tree(
    context: &Context,
    tree: RestoreTree,
    target: &DatasetName,
    wanted: &Wanted,
    keys: &KeyFile,
) -> Result<(), Failure> {
    let output = &context.output;
    say_apart(&tree, context);
    let options = &wanted.options;
    let below_root = ReceiveOptions { properties: options.properties.below(), ..options.clone() };
    let mut placed = Vec::new();
    for TreeMember { dataset, below, set, .. } in &tree.members {
        let options = if below.is_empty() { options } else { &below_root };
        placed.push(Placed { dataset, target: place_of(target, below)?, set, options });
    }
    let mut mounting = foresee(wanted, &placed, context)?;
    check_all_allowed(&placed, context)?;
    let mut done = Vec::new();
    for Placed { dataset, target, set, options } in &placed {
        if context.global.dry_run {
            output.line(format!("{target}:"));
            print_plan(set, None, None, output);
            mounting.iter().for_each(|mounting| mounting.say(target, output));
            done.push(json!({ "dataset": dataset, "to": target, "backups": manifests(set) }));
            continue;
        }
        let received = match is_there(set, target)? {
            true => Ok(Vec::new()),
            false => restore_to_dataset(set, keys, open_zfs()?, target, options, context.stop.clone())
                .await
                .map(|received| received.snapshots),
        };
        match received {
            Ok(snapshots) => {
                match snapshots.last() {
                    Some(newest) => output.line(format!("received {newest}")),
                    None => output.line(format!("{target} has that snapshot already")),
                }
                done.push(json!({ "dataset": dataset, "to": target, "received": snapshots }));
                context.done(dataset, 0);
            }
            Err(error) => {
                mounting.iter_mut().for_each(|mounting| mounting.block(target));
                context.failed(dataset, &Failure::Run(error));
            }
        }
        if *context.stop.borrow() {
            break;
        }
    }
    for (dataset, error) in tree.failed {
        context.failed(&dataset, &Failure::Run(error));
    }
    let mounted = match mounting.filter(|_| !context.global.dry_run && !*context.stop.borrow()) {
        Some(mounting) => mounting.mount_all(&*open_zfs()?, context),
        None => Vec::new(),
    };
    output.json(|| {
        let failed: Vec<_> = context.tally().failed.into_keys().collect();
        json!({ "datasets": done, "mounted": mounted, "failed": failed })
    });
    context.verdict()
}

/// An ordinary user hears what is missing before anything is fetched.
fn check_all_allowed(placed: &[Placed<'_>], context: &Context) -> Result<(), Failure> {
    let runner = Runner::current();
    if runner.privileged || context.global.dry_run {
        return Ok(());
    }
    let zfs = open_zfs()?;
    for Placed { target, set, options, .. } in placed {
        if is_there(set, target)? {
            continue;
        }
        // What cannot go there is said when its turn comes.
        let Ok(plan) = check_target(&*zfs, target, set, options) else { continue };
        check_allowed(&*zfs, target, set, &plan, options, &runner)?;
    }
    Ok(())
}

/// What is not of the same moment.
fn say_apart(tree: &RestoreTree, context: &Context) {
    let output = &context.output;
    for TreeMember { dataset, set, .. } in tree.members.iter().filter(|member| !member.same_moment) {
        let at = set.newest().manifest.snapshot.created_at;
        output.always(&format!("{dataset} has no backup of that moment; its newest before is from {at}"));
    }
    for dataset in &tree.younger {
        output.always(&format!("{dataset} has no backup that is as old; it is left out"));
    }
    for (dataset, at) in &tree.gone {
        output.always(&format!(
            "{dataset} was not there at that moment; it is left out (its newest before is from {at})"
        ));
    }
    for name in &tree.unstored {
        output.always(&format!("{name} was there at that moment, and no backup of it was found; it is not restored"));
    }
}

/// Where all will be mounted, if that is wanted; a plan on a host without ZFS goes without.
fn foresee(wanted: &Wanted, placed: &[Placed<'_>], context: &Context) -> Result<Option<Mounting>, Failure> {
    let zfs = match open_zfs() {
        _ if !wanted.mount => return Ok(None),
        Err(_) if context.global.dry_run => return Ok(None),
        opened => opened?,
    };
    let names = placed.iter().map(|placed| (placed.dataset.clone(), placed.target.clone())).collect();
    let incoming: Vec<Incoming<'_>> = placed.iter().map(Placed::incoming).collect();
    Mounting::foresee(&*zfs, names, &incoming, &context.output).map(Some)
}

/// Whether an earlier run of this restore has brought the dataset to its end: its newest snapshot is the one wanted, and
/// nothing waits to be received.
fn is_there(set: &RestoreSet, place: &DatasetName) -> Result<bool, Failure> {
    let zfs = open_zfs()?;
    let Some(dataset) = zfs.dataset(place)? else { return Ok(false) };
    let newest = zfs.snapshots(place)?.pop().map(|snapshot| snapshot.guid);
    let is_marked = dataset.properties.contains_key(RESTORING_PROPERTY) || dataset.resume_token()?.is_some();
    Ok(newest == Some(set.newest().manifest.snapshot.guid) && !is_marked)
}

/// The place of a descendant under `target`.
fn place_of(target: &DatasetName, below: &str) -> Result<DatasetName, Failure> {
    let name = format!("{target}{below}");
    name.parse().map_err(|error: InvalidName| usage(&error.to_string(), "choose a shorter target"))
}
