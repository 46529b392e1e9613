//! [`ReadFault`]: the place at which ZFS could not read a snapshot that it was sending.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The place at which ZFS could not read a snapshot that it was sending. The kernel ends such a
/// send after the last record that it could read, and does not report the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFault {
    /// The position in the stream at which the send ended, in bytes.
    pub position: u64,
    /// The object of the last record before that position: the block is in this object or in a
    /// later one. `None` when no object was sent.
    pub object: Option<u64>,
    /// A record at most some 32 MiB before that position. `None` when there is no such record, or
    /// the stream is opaque.
    #[serde(default)]
    pub before: Option<RecordPlace>,
}

/// A record that carries data of an object, from which a send can be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordPlace {
    /// The number of the object.
    pub object: u64,
    /// The offset of the data in the object, in bytes.
    pub offset: u64,
}

impl ReadFault {
    /// Returns where the block is, in words that hold for every snapshot that has the block.
    pub fn object_text(self) -> String {
        match self.object {
            Some(object) => format!("object {object} or a later one"),
            None => "its first object".to_owned(),
        }
    }
}

impl fmt::Display for ReadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after byte {} of its stream", self.position)?;
        match self.object {
            Some(object) => write!(f, ", in object {object} or a later one"),
            None => Ok(()),
        }
    }
}
