//! Positions in the middle of a stored stream: where a record begins, and which record it is.
//! `scout` finds them, and `gather` extracts records from them on.

mod gather;
mod scout;

pub use gather::{GATHERED_BYTES_MAX, Gather, GatheredRecord, Wanted};
pub use scout::Scout;

use super::fletcher::{ByteOrder, Fletcher4Feed};
use super::record::{RecordHeader, RecordType};

/// A position between two records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boundary {
    /// The stream position.
    pub position: u64,
    /// The stream's sum up to the position.
    pub fletcher4: [u64; 4],
}

/// Returns the boundary after BEGIN and its payload, which are passed completely.
pub fn boundary_after_begin(order: ByteOrder, begin: &[u8]) -> Boundary {
    let mut sum = Fletcher4Feed::new(Default::default(), order);
    sum.feed(begin);
    let fletcher4 = sum.sum().unwrap_or_default().into();
    Boundary {
        position: begin.len() as u64,
        fletcher4,
    }
}

/// The position of a record in the order of every stream: by object, and within an object the
/// blocks by offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamPlace {
    /// The object, or the first of a range.
    pub object: u64,
    /// The record's rank within the object.
    pub within: Within,
}

/// The order of records within an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Within {
    /// OBJECT_RANGE, before the first object of its range.
    Range,
    /// OBJECT.
    Object,
    /// A block at that offset.
    Block(u64),
}

impl StreamPlace {
    /// Returns the place of an OBJECT_RANGE, OBJECT or block. The other records have no place in
    /// this order.
    pub fn of(header: &RecordHeader) -> Option<Self> {
        match (header.record_type(), header.block()) {
            (_, Some((object, offset))) => Some(Self {
                object,
                within: Within::Block(offset),
            }),
            (RecordType::Object, _) => Some(Self {
                object: header.u64(8),
                within: Within::Object,
            }),
            (RecordType::ObjectRange, _) => Some(Self {
                object: header.u64(8),
                within: Within::Range,
            }),
            _ => None,
        }
    }
}
