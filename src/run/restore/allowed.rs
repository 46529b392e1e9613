//! Checks whether an ordinary user may restore into a target, before anything is fetched.

use super::{ReceiveOptions, ReceivePlan, RestoreSet, no_pool};
use crate::model::DatasetName;
use crate::plan::permissions::{RestoreNeeds, missing_for_restore};
use crate::run::runner::Runner;
use crate::run::{RunError, error_chain};
use crate::zfs::{ZfsHost, ZfsRead};

/// Checks the delegations of `zfs allow` for everything that a restore will do. The kernel decides
/// in the end: if the delegations cannot be read, a warning is logged and the restore begins.
///
/// # Errors
/// [`RunError::Refused`] naming the missing permissions and the command that grants them;
/// [`RunError::Zfs`] when the existing datasets cannot be read.
pub fn check_allowed(
    zfs: &dyn ZfsHost,
    target: &DatasetName,
    set: &RestoreSet,
    plan: &ReceivePlan,
    options: &ReceiveOptions,
    runner: &Runner,
) -> Result<(), RunError> {
    if runner.privileged {
        return Ok(());
    }
    let above = nearest(zfs, target)?;
    let chosen = options.properties.resolve(set.recorded_properties());
    let needs = RestoreNeeds {
        above: &above,
        is_new: above != *target,
        makes_parents: !plan.parents.is_empty(),
        is_chain: plan.skipped + 1 < set.backups.len(),
        rolls_back: plan.rollback.is_some(),
        properties: chosen.keys().map(String::as_str).collect(),
    };
    let given = match zfs.delegations(&above) {
        Ok(given) => given,
        Err(error) => {
            tracing::warn!(
                error = error_chain(&error),
                "cannot find out the permissions of this user; the kernel decides"
            );
            return Ok(());
        }
    };
    let missing = missing_for_restore(&needs, &given, &runner.identity);
    if missing.is_empty() {
        return Ok(());
    }
    let uid = runner.identity.uid;
    let permissions = missing.join(",");
    let quoted = shell_words::quote(above.as_str());
    Err(RunError::refused(
        format!(
            "restore into {target}: user {uid} lacks {} on {above}",
            missing.join(", ")
        ),
        format!("as root: zfs allow -u {uid} {permissions} {quoted}"),
    ))
}

/// Returns the dataset itself, or its nearest existing ancestor.
pub(super) fn nearest(zfs: &dyn ZfsRead, target: &DatasetName) -> Result<DatasetName, RunError> {
    let mut name = Some(target.clone());
    while let Some(candidate) = name {
        if zfs.dataset(&candidate)?.is_some() {
            return Ok(candidate);
        }
        name = candidate.parent();
    }
    Err(no_pool(target))
}
