//! The parts that every commit needs, whichever operation makes it: small objects that are put with
//! retries, locks that last as long as the backup, the check that no prune deletes the base, and the
//! removal of objects that only the upload needed.

pub(in crate::run) mod doomed;
pub(in crate::run) mod object_lock;
pub(in crate::run) mod put;
pub(in crate::run) mod tidy;
