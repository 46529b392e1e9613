//! [`ResumePoint`]: a point from which a send can be resumed; and the choice of the records that
//! are hashed for it.

use super::walk::Payload;
use super::{HEADER_BYTES, RecordHeader};
use crate::model::Digest;
use crate::stream::fletcher::Fletcher4;

/// A WRITE or WRITE_EMBEDDED record, completely in the stream: `lzc_send_resume` sends it again,
/// followed by the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// The stream position just after the record.
    pub position: u64,
    /// The object that the record writes to.
    pub object: u64,
    /// The offset that the record writes at.
    pub offset: u64,
    /// The stream's Fletcher-4 state just after the record.
    pub fletcher4: [u64; 4],
    /// The hash of the record: header with its checksum (bytes 280..312) zeroed, then payload.
    pub record_blake3: Digest,
}

/// The longest distance between hashed records, independent of boundaries, so that a stretch of
/// metadata without WRITE records before a boundary sets a resume back by no more than this. With
/// records of 128 KiB it hashes 0.4 % of the stream.
const SPARSE_STEP_BYTES: u64 = 32 << 20;

/// The shortest distance before a boundary within which every record is hashed: a run of small
/// files and their dnodes.
const WINDOW_BYTES_MIN: u64 = 1 << 20;

/// Hashes the records that may be the last block before a chunk boundary, and keeps the newest.
///
/// The last block is known only afterwards, and hashing all blocks would hash the stream twice. A
/// block record is therefore hashed when it ends before the noted boundary by at most two of the
/// largest records seen so far (at least 1 MiB), or when none was hashed for 32 MiB. In the rare
/// case that the last block was not hashed (larger than all before it, or far from the boundary),
/// an older one is kept: a valid point, only earlier.
#[derive(Debug, Clone, Default)]
pub(super) struct ResumeTracker {
    boundary: Option<u64>,
    largest_record_bytes: u64,
    hashed_end: u64,
    hashing: Option<PartialRecordHash>,
    point: Option<ResumePoint>,
}

#[derive(Debug, Clone)]
struct PartialRecordHash {
    end: u64,
    object: u64,
    offset: u64,
    hasher: blake3::Hasher,
}

impl ResumeTracker {
    /// Makes a tracker that continues at a point.
    pub(super) fn resume(point: ResumePoint) -> Self {
        Self {
            hashed_end: point.position,
            point: Some(point),
            ..Self::default()
        }
    }

    /// Sets the stream position at which the next chunk ends.
    pub(super) fn note_boundary_at(&mut self, position: u64) {
        self.boundary = Some(position);
    }

    /// Returns the newest hashed record that is complete.
    pub(super) fn point(&self) -> Option<ResumePoint> {
        self.point
    }

    pub(super) fn header(&mut self, header: &RecordHeader, payload: Payload) {
        let Some((object, offset)) = header.block() else {
            return;
        };
        let end = payload.position + payload.bytes;
        self.largest_record_bytes = self
            .largest_record_bytes
            .max(payload.bytes + HEADER_BYTES as u64);
        let window_bytes = WINDOW_BYTES_MIN.max(2 * self.largest_record_bytes);
        let near = self
            .boundary
            .is_some_and(|boundary| end <= boundary && boundary - end <= window_bytes);
        if near || end - self.hashed_end >= SPARSE_STEP_BYTES {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&header.bytes_without_checksum());
            self.hashing = Some(PartialRecordHash {
                end,
                object,
                offset,
                hasher,
            });
        }
    }

    pub(super) fn payload(&mut self, bytes: &[u8]) {
        if let Some(hashing) = &mut self.hashing {
            hashing.hasher.update(bytes);
        }
    }

    pub(super) fn record_end(&mut self, sum: Fletcher4) {
        if let Some(PartialRecordHash {
            end,
            object,
            offset,
            hasher,
        }) = self.hashing.take()
        {
            self.hashed_end = end;
            self.point = Some(ResumePoint {
                position: end,
                object,
                offset,
                fletcher4: sum.into(),
                record_blake3: hasher.finalize().into(),
            });
        }
    }
}
