//! [`RecordHeader`]: the 312 bytes that open every record, their types, and how many payload bytes
//! follow. Offsets and payload rules are OpenZFS' `dmu_replay_record_t` (`sys/zfs_ioctl.h`,
//! `module/zfs/dmu_send.c`), the same from 2.0 to 2.4. BEGIN, which has no checksum of its own, is
//! read by [`BeginRecord`](super::BeginRecord).

use super::{RecordType, StreamFault};
use crate::stream::fletcher::{ByteOrder, Fletcher4, Fletcher4Feed};

/// The length of every record header.
pub const HEADER_BYTES: usize = 312;

/// The longest payload: the largest block that ZFS has (`SPA_MAXBLOCKSIZE`).
pub const PAYLOAD_BYTES_MAX: u64 = 16 << 20;

/// The offset of the record's own checksum, in all types but BEGIN. The checksum covers the stream
/// up to here.
const CHECKSUM_AT: usize = 280;
/// The offset in END of the sum of everything before it.
const END_SUM_AT: usize = 8;

/// A record header, with the byte order of its fields. The walker, and not this type, checks the
/// content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    bytes: [u8; HEADER_BYTES],
    order: ByteOrder,
}

impl RecordHeader {
    /// Takes a header as it is in the stream.
    pub fn new(bytes: [u8; HEADER_BYTES], order: ByteOrder) -> Self {
        Self { bytes, order }
    }

    /// Makes a header of this type with all fields zero, to be filled and sealed.
    pub fn blank(record_type: RecordType, order: ByteOrder) -> Self {
        let mut header = Self::new([0; HEADER_BYTES], order);
        header.set_u32(0, record_type.number());
        header
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.bytes
    }

    /// Returns the bytes with the checksum set to zero: the content of the record, independent of
    /// its position in the stream.
    pub fn bytes_without_checksum(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = self.bytes;
        bytes[CHECKSUM_AT..].fill(0);
        bytes
    }

    /// The type.
    pub fn record_type(&self) -> RecordType {
        self.u32(0).into()
    }

    /// Returns the guid of the snapshot that the record belongs to, if its type has one.
    pub fn snapshot_guid(&self) -> Option<u64> {
        self.record_type().guid_at().map(|at| self.u64(at))
    }

    /// Returns the object and offset of a block. WRITE and WRITE_EMBEDDED have them; a send can be
    /// resumed at these records.
    pub fn block(&self) -> Option<(u64, u64)> {
        match self.record_type() {
            RecordType::Write => Some((self.u64(8), self.u64(24))),
            RecordType::WriteEmbedded => Some((self.u64(8), self.u64(16))),
            _ => None,
        }
    }

    /// Returns the object that the record belongs to, if it belongs to exactly one.
    pub(super) fn object(&self) -> Option<u64> {
        match self.record_type() {
            RecordType::Object
            | RecordType::Write
            | RecordType::Free
            | RecordType::Spill
            | RecordType::WriteEmbedded => Some(self.u64(8)),
            _ => None,
        }
    }

    /// Returns the number of payload bytes that follow; 0 for unknown types, whose rule is unknown.
    ///
    /// # Errors
    /// [`StreamFault::Payload`] above [`PAYLOAD_BYTES_MAX`], or when not in whole words (ZFS pads
    /// to 8).
    pub fn payload_bytes(&self) -> Result<u64, StreamFault> {
        let bytes = match self.record_type() {
            RecordType::Begin => u64::from(self.u32(4)),
            RecordType::Object => match u64::from(self.u32(36)) {
                0 => u64::from(self.u32(28)).next_multiple_of(8),
                raw_bonus_bytes => raw_bonus_bytes,
            },
            RecordType::Write if self.bytes[50] == 0 => self.u64(32),
            RecordType::Write => self.u64(96),
            RecordType::Spill => match self.u64(40) {
                0 => self.u64(16),
                compressed_bytes => compressed_bytes,
            },
            RecordType::WriteEmbedded => u64::from(self.u32(52)).next_multiple_of(8),
            _ => 0,
        };
        match bytes {
            0..=PAYLOAD_BYTES_MAX if bytes.is_multiple_of(4) => Ok(bytes),
            _ => Err(StreamFault::Payload { bytes }),
        }
    }

    /// Returns the 32-bit field at that offset, from 0.
    pub fn u32(&self, at: usize) -> u32 {
        let mut field = [0; 4];
        field.copy_from_slice(&self.bytes[at..at + 4]);
        match self.order {
            ByteOrder::Little => u32::from_le_bytes(field),
            ByteOrder::Big => u32::from_be_bytes(field),
        }
    }

    /// Returns the 64-bit field at that offset.
    pub fn u64(&self, at: usize) -> u64 {
        let mut field = [0; 8];
        field.copy_from_slice(&self.bytes[at..at + 8]);
        match self.order {
            ByteOrder::Little => u64::from_le_bytes(field),
            ByteOrder::Big => u64::from_be_bytes(field),
        }
    }

    /// Sets the byte at that offset.
    pub fn set_u8(&mut self, at: usize, value: u8) {
        self.bytes[at] = value;
    }

    /// Sets the 32-bit field at that offset.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        self.bytes[at..at + 4].copy_from_slice(&match self.order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        });
    }

    /// Sets the 64-bit field at that offset.
    pub fn set_u64(&mut self, at: usize, value: u64) {
        self.bytes[at..at + 8].copy_from_slice(&match self.order {
            ByteOrder::Little => value.to_le_bytes(),
            ByteOrder::Big => value.to_be_bytes(),
        });
    }

    /// Adds the header to the running sum, and checks its checksum and END's sum of all bytes
    /// before it.
    ///
    /// # Errors
    /// [`StreamFault::Checksum`] or [`StreamFault::EndChecksum`]: these bytes, or earlier ones, are
    /// not the bytes that were sent. A checksum of zero, which `zfs receive` takes for "not set",
    /// is an error too, because `zfs send` sets them all.
    pub(super) fn verify(&self, sum: &mut Fletcher4) -> Result<(), StreamFault> {
        let before = *sum;
        sum.absorb(self.bytes[..CHECKSUM_AT].as_chunks().0, self.order);
        let expected = <[u64; 4]>::from(*sum);
        let found = self.sum_at(CHECKSUM_AT);
        if found != expected {
            return Err(StreamFault::Checksum { expected, found });
        }
        if self.record_type() == RecordType::End {
            let expected = before.into();
            let found = self.sum_at(END_SUM_AT);
            if found != expected {
                return Err(StreamFault::EndChecksum { expected, found });
            }
        }
        sum.absorb(self.bytes[CHECKSUM_AT..].as_chunks().0, self.order);
        Ok(())
    }

    /// Writes the record's checksum (and END's sum) for a stream with this sum so far, and adds the
    /// header to the sum. The caller adds the payload. Not for BEGIN, which has no checksum.
    pub fn seal(&mut self, sum: &mut Fletcher4) {
        if self.record_type() == RecordType::End {
            self.set_sum(END_SUM_AT, *sum);
        }
        sum.absorb(self.bytes[..CHECKSUM_AT].as_chunks().0, self.order);
        self.set_sum(CHECKSUM_AT, *sum);
        sum.absorb(self.bytes[CHECKSUM_AT..].as_chunks().0, self.order);
    }

    /// Returns the header as it appears in another stream, given that stream's running sum, to
    /// which it is added. Records end on whole words, as the walker that read this one checks.
    pub(in crate::stream) fn sealed_into(mut self, stream: &mut Fletcher4Feed) -> Self {
        let mut sum = stream
            .sum()
            .expect("payloads are checked to be whole words");
        self.seal(&mut sum);
        *stream = Fletcher4Feed::new(sum, stream.order());
        self
    }

    /// Returns the stream's sum before this header, computed from the header's own checksum. The
    /// value proves nothing until the next header agrees.
    pub(in crate::stream) fn sum_before(&self) -> Fletcher4 {
        let sum = Fletcher4::from(self.sum_at(CHECKSUM_AT));
        sum.without(self.bytes[..CHECKSUM_AT].as_chunks().0, self.order)
    }

    fn sum_at(&self, at: usize) -> [u64; 4] {
        [0, 8, 16, 24].map(|word| self.u64(at + word))
    }

    fn set_sum(&mut self, at: usize, sum: Fletcher4) {
        for (index, word) in <[u64; 4]>::from(sum).into_iter().enumerate() {
            self.set_u64(at + 8 * index, word);
        }
    }
}
