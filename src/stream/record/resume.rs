//! [`ResumePoint`]: where a send can be taken up again; and which records are worth hashing for it.

use super::walk::Payload;
use super::{HEADER_BYTES, RecordHeader};
use crate::model::Digest;
use crate::stream::fletcher::Fletcher4;

/// One WRITE or WRITE_EMBEDDED record, wholly in the stream: `lzc_send_resume` sends it again, then
/// all that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResumePoint {
    /// The stream position just after the record.
    pub position: u64,
    /// The object it writes to.
    pub object: u64,
    /// The offset it writes at.
    pub offset: u64,
    /// The stream's Fletcher-4 state just after the record.
    pub fletcher4: [u64; 4],
    /// The record: header with its checksum (bytes 280..312) zeroed, then payload.
    pub record_blake3: Digest,
}

/// A record is hashed at least this often, wherever boundaries lie, so that a stretch of metadata
/// without WRITE records before a boundary sets a resume back by no more than this. At 128 KiB
/// records it hashes 0.4 % of the stream.
const SPARSE_STEP_BYTES: u64 = 32 << 20;

/// How near a boundary every record is hashed, at least: a run of small files and their dnodes.
const WINDOW_BYTES_MIN: u64 = 1 << 20;

/// Hashes the records that may be the last block before a chunk boundary, and keeps the newest.
///
/// Which it will be shows only after the fact, and hashing all would hash the stream twice. So a
/// block record is hashed when it ends before the noted boundary by no more than two of the largest
/// records seen so far (1 MiB at least), or when none was hashed for 32 MiB. In the rare case that
/// the last one was not (larger than all before it, or far from the boundary) an older one stands:
/// as good a point, merely earlier.
#[derive(Debug, Default)]
pub(super) struct ResumeTracker {
    boundary: Option<u64>,
    largest_record_bytes: u64,
    hashed_end: u64,
    hashing: Option<Hashing>,
    point: Option<ResumePoint>,
}

#[derive(Debug)]
struct Hashing {
    end: u64,
    object: u64,
    offset: u64,
    hasher: blake3::Hasher,
}

impl ResumeTracker {
    /// Taken up at a point.
    pub(super) fn resume(point: ResumePoint) -> Self {
        Self {
            hashed_end: point.position,
            point: Some(point),
            ..Self::default()
        }
    }

    /// The stream position that the next chunk ends at.
    pub(super) fn note_boundary_at(&mut self, position: u64) {
        self.boundary = Some(position);
    }

    /// The newest hashed record that is complete.
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
            self.hashing = Some(Hashing {
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
        if let Some(Hashing {
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
