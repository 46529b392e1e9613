//! The commit of a backup, whichever operation makes it. [`target`] has the order of writes; the
//! other files are its parts: the check of the base and of prunes that may delete it, object locks,
//! puts with retries, and the removal of objects that only the upload needed.

mod base;
pub(in crate::run) mod doomed;
pub(in crate::run) mod object_lock;
pub(in crate::run) mod put;
pub(in crate::run) mod target;
pub(in crate::run) mod tidy;
