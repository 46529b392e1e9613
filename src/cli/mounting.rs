//! `restore --mount`: what is said of it, and the order in which a tree is mounted.

use super::Failure;
use super::context::Context;
use super::output::Output;
use crate::model::DatasetName;
use crate::plan::mount::NotMounted;
use crate::run::restore::{Incoming, MountOutlook, foresee_mounts, mount_restored};
use crate::zfs::Zfs;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What is mounted in the end, parents first.
pub(super) struct Mounting {
    /// Each dataset as the store names it, its target, and what will become of it.
    members: Vec<(DatasetName, DatasetName, MountOutlook)>,
    /// Nothing is mounted in the place of these, so nothing is mounted below them: it would lie in their way later.
    blocked: BTreeSet<DatasetName>,
}

impl Mounting {
    /// Before anything is received. `names` are what the store calls each of the incoming, and its target. A descendant
    /// that cannot be mounted is named and the others are; the one at the top must.
    pub(super) fn foresee(
        zfs: &dyn Zfs,
        names: Vec<(DatasetName, DatasetName)>,
        incoming: &[Incoming<'_>],
        output: &Output,
    ) -> Result<Self, Failure> {
        let outlooks = foresee_mounts(zfs, incoming)?;
        let mut mounting = Self { members: Vec::new(), blocked: BTreeSet::new() };
        for ((dataset, target), outlook) in names.into_iter().zip(outlooks) {
            if let MountOutlook::Not(why) = &outlook {
                if mounting.members.is_empty() {
                    return Err(why.refusal(&target).into());
                }
                output.always(&format!("{target} will not be mounted: {why}"));
                if *why == NotMounted::NoKey {
                    mounting.block(&target);
                }
            }
            mounting.members.push((dataset, target, outlook));
        }
        Ok(mounting)
    }

    /// A line of the plan.
    pub(super) fn say(&self, target: &DatasetName, output: &Output) {
        let found = self.members.iter().find(|(_, other, _)| other == target);
        match found.map(|(_, _, outlook)| outlook) {
            Some(MountOutlook::At(place)) => output.line(format!("to mount at: {}", place.display())),
            Some(MountOutlook::There(place)) => output.line(format!("mounted already at: {}", place.display())),
            Some(MountOutlook::Not(_)) | None => {}
        }
    }

    /// It is not there to be mounted.
    pub(super) fn block(&mut self, target: &DatasetName) {
        self.blocked.insert(target.clone());
    }

    /// Mounts all that can be. One that fails does not keep those beside it back.
    pub(super) fn mount_all(mut self, zfs: &dyn Zfs, context: &Context) -> Vec<Value> {
        let (output, mut mounted) = (&context.output, Vec::new());
        for (dataset, target, outlook) in std::mem::take(&mut self.members) {
            if matches!(outlook, MountOutlook::Not(_)) || self.blocked.contains(&target) {
                continue;
            }
            let is_above = |above: &&DatasetName| target.as_str().starts_with(&format!("{above}/"));
            if let Some(above) = self.blocked.iter().find(is_above) {
                output.always(&format!("{target} is not mounted, because {above} is not"));
                continue;
            }
            match mount_restored(zfs, &target) {
                Ok(place) => {
                    output.line(format!("mounted {target} at {}", place.display()));
                    mounted.push(json!({ "dataset": target, "at": place }));
                }
                Err(error) => {
                    context.failed(&dataset, &Failure::Run(error));
                    self.block(&target);
                }
            }
        }
        mounted
    }
}
