//! Finds datasets of which a prune would delete nothing, without asking the store.

use super::{PruneEnv, RetentionRules};
use crate::catalog::remembered::{is_recent, pruned_at, read_at, recall};
use crate::catalog::usable::UsableCatalog;
use crate::model::{DatasetName, Guid};
use crate::plan::retention::decide_retention;
use crate::run::RunError;
use crate::state::journal::read_attempts;

/// Returns whether a prune of the dataset would delete nothing, by what this host knows of the
/// store: the rules keep every backup that was there when this host last read it, no upload of this
/// host left anything, and the last prune that read the store is recent. That prune found what this
/// host cannot know: backups of other hosts and remains of uploads.
///
/// # Errors
/// [`RunError`] when this host's files cannot be read.
pub fn deletes_nothing(
    env: &PruneEnv,
    stored: &DatasetName,
    dataset: Guid,
    rules: &RetentionRules,
) -> Result<bool, RunError> {
    let (state_dir, known) = (&env.state_dir, env.store.known());
    let is_recent = |at| is_recent(at, env.now, dataset);
    let times = [
        read_at(state_dir, &known, stored)?,
        pruned_at(state_dir, &known, stored)?,
    ];
    if !times.into_iter().all(|at| at.is_some_and(is_recent))
        || !read_attempts(state_dir, &known, stored)?.is_empty()
    {
        return Ok(false);
    }
    let Some((catalog, 0)) = recall(state_dir, &known, stored, &env.trusted)? else {
        return Ok(false);
    };
    let facts = UsableCatalog::remembered(catalog).facts(None);
    let verdicts = decide_retention(&facts, rules, env.now);
    Ok(verdicts.iter().all(|verdict| verdict.keep))
}
