//! Reads a stored stream back: fetches the chunks, opens them, and continues where an interrupted
//! receive stopped.

pub(super) mod plain;
pub(super) mod reader;
pub(super) mod resume;
