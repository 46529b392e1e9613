//! [`RecordWriter`]: makes streams as `zfs send` would, for tests, benchmarks and the fake ZFS.

use super::{BeginRecord, RecordHeader, RecordType};
use crate::stream::fletcher::{ByteOrder, Fletcher4};

/// Writes records with their checksums into a buffer. Payloads are padded with zeros to 8 bytes.
#[derive(Debug, Clone)]
pub struct RecordWriter {
    order: ByteOrder,
    snapshot_guid: u64,
    sum: Fletcher4,
    bytes: Vec<u8>,
}

impl RecordWriter {
    /// Starts a stream with BEGIN and its payload; `begin.payload_bytes` is set to fit.
    ///
    /// # Panics
    /// When the payload is longer than 4 GiB.
    pub fn new(begin: &BeginRecord, payload: &[u8]) -> Self {
        let mut writer = Self {
            order: begin.order,
            snapshot_guid: begin.snapshot_guid.0,
            sum: Fletcher4::default(),
            bytes: vec![],
        };
        let padded_bytes = payload.len().next_multiple_of(8);
        let payload_bytes = u32::try_from(padded_bytes).expect("the payload of BEGIN is short");
        let header = BeginRecord {
            payload_bytes,
            ..begin.clone()
        }
        .header();
        writer.sum.absorb(header.bytes().as_chunks().0, begin.order);
        writer.bytes.extend_from_slice(header.bytes());
        writer.payload(payload);
        writer
    }

    /// OBJECT: a dnode and its bonus buffer.
    pub fn object(&mut self, object: u64, bonus: &[u8]) {
        self.put(RecordType::Object, bonus, |header| {
            header.set_u64(8, object);
            header.set_u32(16, 19); // DMU_OT_PLAIN_FILE_CONTENTS
            header.set_u32(20, 44); // DMU_OT_SA
            header.set_u32(24, 128 << 10);
            header.set_u32(28, u32::try_from(bonus.len()).unwrap_or(u32::MAX));
        });
    }

    /// OBJECT of a raw stream, whose bonus buffer has a length of its own.
    pub fn raw_object(&mut self, object: u64, bonus: &[u8]) {
        let padded_bytes = bonus.len().next_multiple_of(8);
        self.put(RecordType::Object, bonus, |header| {
            header.set_u64(8, object);
            header.set_u32(36, u32::try_from(padded_bytes).unwrap_or(u32::MAX));
        });
    }

    /// FREEOBJECTS.
    pub fn free_objects(&mut self, first: u64, count: u64) {
        self.put(RecordType::FreeObjects, &[], |header| {
            header.set_u64(8, first);
            header.set_u64(16, count);
        });
    }

    /// WRITE of a plain block.
    pub fn write(&mut self, object: u64, offset: u64, block: &[u8]) {
        self.put(RecordType::Write, block, |header| {
            header.set_u64(8, object);
            header.set_u64(24, offset);
            header.set_u64(32, block.len().next_multiple_of(8) as u64);
        });
    }

    /// WRITE of a block compressed with LZ4, sent as it lies on disk.
    pub fn write_compressed(&mut self, object: u64, offset: u64, logical_bytes: u64, block: &[u8]) {
        self.put(RecordType::Write, block, |header| {
            header.set_u64(8, object);
            header.set_u64(24, offset);
            header.set_u64(32, logical_bytes);
            header.set_u8(50, 15); // ZIO_COMPRESS_LZ4
            header.set_u64(96, block.len().next_multiple_of(8) as u64);
        });
    }

    /// FREE; `u64::MAX` as length means to the end of the object.
    pub fn free(&mut self, object: u64, offset: u64, length: u64) {
        self.put(RecordType::Free, &[], |header| {
            set_range(header, object, offset, length)
        });
    }

    /// REDACT.
    pub fn redact(&mut self, object: u64, offset: u64, length: u64) {
        self.put(RecordType::Redact, &[], |header| {
            set_range(header, object, offset, length)
        });
    }

    /// WRITE_BYREF, pointing at the same place of the same snapshot.
    pub fn write_by_ref(&mut self, object: u64, offset: u64, length: u64) {
        self.put(RecordType::WriteByRef, &[], |header| {
            set_range(header, object, offset, length)
        });
    }

    /// WRITE_EMBEDDED: `data` is what the block pointer holds, at most 112 bytes in ZFS.
    pub fn write_embedded(&mut self, object: u64, offset: u64, length: u64, data: &[u8]) {
        self.put(RecordType::WriteEmbedded, data, |header| {
            set_range(header, object, offset, length);
            header.set_u32(52, u32::try_from(data.len()).unwrap_or(u32::MAX));
        });
    }

    /// SPILL of a plain block.
    pub fn spill(&mut self, object: u64, block: &[u8]) {
        self.put(RecordType::Spill, block, |header| {
            header.set_u64(8, object);
            header.set_u64(16, block.len().next_multiple_of(8) as u64);
        });
    }

    /// OBJECT_RANGE.
    pub fn object_range(&mut self, first: u64, slots: u64) {
        self.put(RecordType::ObjectRange, &[], |header| {
            header.set_u64(8, first);
            header.set_u64(16, slots);
        });
    }

    /// Writes any record but BEGIN: `fill` sets its fields (the snapshot guid is already set).
    pub fn put(
        &mut self,
        record_type: RecordType,
        payload: &[u8],
        fill: impl FnOnce(&mut RecordHeader),
    ) {
        let mut header = RecordHeader::blank(record_type, self.order);
        if let Some(at) = record_type.guid_at() {
            header.set_u64(at, self.snapshot_guid);
        }
        fill(&mut header);
        header.seal(&mut self.sum);
        self.bytes.extend_from_slice(header.bytes());
        self.payload(payload);
    }

    /// Takes the bytes written so far, so that they can be passed on while more are made.
    pub fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.bytes)
    }

    /// Ends the stream with END, and returns the bytes that were not taken yet.
    pub fn end(mut self) -> Vec<u8> {
        self.put(RecordType::End, &[], |_| ());
        self.bytes
    }

    fn payload(&mut self, payload: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(payload);
        self.bytes
            .resize(start + payload.len().next_multiple_of(8), 0);
        self.sum
            .absorb(self.bytes[start..].as_chunks().0, self.order);
    }
}

fn set_range(header: &mut RecordHeader, object: u64, offset: u64, length: u64) {
    header.set_u64(8, object);
    header.set_u64(16, offset);
    header.set_u64(24, length);
}
