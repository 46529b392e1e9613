//! Objects that are there and do not verify: a fact for the plan, unlike a store that fails.

use crate::catalog::CatalogError;
use crate::plan::prune::Unreadable;
use crate::run::{RunError, error_chain};

pub(super) fn describe(error: &CatalogError) -> Unreadable {
    Unreadable {
        reason: error_chain(error),
        damage: error.is_damage(),
    }
}

/// Converts the error of an object that is there and does not verify. Any other error is returned.
pub(super) fn unreadable(error: CatalogError) -> Result<Unreadable, RunError> {
    match &error {
        CatalogError::Manifest { .. } | CatalogError::Damaged { .. } => Ok(describe(&error)),
        _ => Err(error.into()),
    }
}
