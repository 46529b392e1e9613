//! [`ObjectLock`]: the time for which a store refuses to delete new objects.

use super::{Evidence, ObjectKey, StoreError, StoreErrorKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The users whom an object lock prevents from deleting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockMode {
    /// All users without a special permission.
    #[default]
    Governance,
    /// All users, including the owner of the account.
    Compliance,
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        })
    }
}

/// The lock of objects from the time they are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// Days, at least one.
    pub days: u32,
    /// The mode of the lock.
    pub mode: LockMode,
    /// Whether the days cover the longest possible chain, so that no lock ever has to be extended.
    pub covers_chains: bool,
}

impl ObjectLock {
    /// Returns the time until which an object put at `put_at` is locked, in whole seconds. A time
    /// beyond the representable range becomes the last representable time.
    pub fn until(&self, put_at: Timestamp) -> Timestamp {
        let seconds = put_at
            .as_second()
            .saturating_add(i64::from(self.days) * 86_400);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    }
}

/// Checks that the store reports a lock for an object that was put with one: some stores accept a
/// lock and ignore it. `switch_on` says how locks are switched on.
pub(super) fn check_lock(
    lock: Option<ObjectLock>,
    key: &ObjectKey,
    found: Evidence,
    store: &str,
    switch_on: &str,
) -> Result<Evidence, StoreError> {
    if lock.is_none() || found.locked_until.is_some() {
        return Ok(found);
    }
    let text = "it was put with a lock, and the store shows none";
    let error = StoreError::new(
        StoreErrorKind::Unsupported,
        "lock",
        key.as_str(),
        store,
        text,
    );
    Err(error.with_hint(format!("{switch_on}; or remove object_lock_days")))
}

/// Whether the store refuses to delete an object at least until `until`.
pub(super) fn is_locked_until(found: &Evidence, until: Timestamp) -> bool {
    let end = found.locked_until.as_deref();
    end.and_then(|text| text.parse::<Timestamp>().ok())
        .is_some_and(|end| end >= until)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_lasts_whole_days_and_never_overflows() {
        let lock = ObjectLock {
            days: 30,
            mode: LockMode::default(),
            covers_chains: false,
        };
        let at: Timestamp = "2026-11-01T10:00:00.5Z".parse().unwrap();
        assert_eq!(lock.until(at).to_string(), "2026-12-01T10:00:00Z");
        assert_eq!(lock.until(Timestamp::MAX), Timestamp::MAX);
    }
}
