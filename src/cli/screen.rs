//! The output of a command, for people and for programs: results, messages, progress and the log.

pub(crate) mod bars;
pub(crate) mod log;
pub(crate) mod meter;
pub(crate) mod output;
pub(crate) mod progress;
pub(crate) mod table;
