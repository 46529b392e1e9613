//! What each commit needs, whichever operation makes it: small objects that are put until they are
//! there, locks that last as long as the backup, and the clearing of an upload that never became
//! one.

pub(in crate::run) mod object_lock;
pub(in crate::run) mod put;
pub(in crate::run) mod tidy;
