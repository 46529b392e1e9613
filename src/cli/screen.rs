//! What a person or a program sees of a command: results, messages, progress and the log.

pub(crate) mod log;
pub(crate) mod meter;
pub(crate) mod output;
pub(crate) mod progress;
pub(crate) mod table;
