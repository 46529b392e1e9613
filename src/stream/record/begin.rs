//! [`BeginRecord`]: the first record of a stream, which describes the stream.

use super::{HEADER_BYTES, RecordHeader, RecordType, StreamFault};
use crate::model::Guid;
use crate::stream::fletcher::ByteOrder;

const MAGIC: u64 = 0x0002_f5ba_cbac;
const NAME_AT: usize = 56;
const PLAIN_STREAM: u64 = 1;

/// Feature flags of streams (`DMU_BACKUP_FEATURE_*`) that this crate reads.
pub mod feature {
    /// Small blocks may come as WRITE_EMBEDDED.
    pub const EMBED_DATA: u64 = 1 << 16;
    /// Blocks above 128 KiB stay whole.
    pub const LARGE_BLOCKS: u64 = 1 << 19;
    /// The stream starts in the middle.
    pub const RESUMING: u64 = 1 << 20;
    /// Blocks come compressed as on disk.
    pub const COMPRESSED: u64 = 1 << 22;
    /// Blocks come as on disk, encryption included.
    pub const RAW: u64 = 1 << 24;
}

/// The type of the dataset that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamDatasetType {
    /// A filesystem.
    Filesystem,
    /// A volume.
    Volume,
    /// A `dmu_objset_type_t` that ZFS does not send today.
    Other(u32),
}

/// The BEGIN record, without its payload (resume point, redaction, wrapped keys), which only the
/// receiving kernel reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BeginRecord {
    /// The byte order of the stream.
    pub order: ByteOrder,
    /// `DMU_BACKUP_FEATURE_*`; see [`feature`].
    pub feature_flags: u64,
    /// The time at which the snapshot was taken, in seconds since 1970.
    pub creation_time: u64,
    /// Filesystem or volume.
    pub dataset_type: StreamDatasetType,
    /// `DRR_FLAG_*`.
    pub flags: u32,
    /// The snapshot.
    pub snapshot_guid: Guid,
    /// The base of an incremental.
    pub base_guid: Option<Guid>,
    /// The snapshot's name at the time, `pool/dataset@snapshot`.
    pub to_name: String,
    /// The length of the payload that follows.
    pub payload_bytes: u32,
}

impl BeginRecord {
    /// Parses the first 312 bytes of a stream. BEGIN has no checksum: the next record's covers it.
    ///
    /// # Errors
    /// [`StreamFault::NotAStream`], [`StreamFault::Compound`], [`StreamFault::Name`],
    /// [`StreamFault::Payload`].
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Result<Self, StreamFault> {
        let little = RecordHeader::new(*bytes, ByteOrder::Little);
        let order = match little.u64(8) {
            MAGIC => ByteOrder::Little,
            swapped if swapped == MAGIC.swap_bytes() => ByteOrder::Big,
            found => return Err(StreamFault::NotAStream { found }),
        };
        let header = RecordHeader::new(*bytes, order);
        if header.record_type() != RecordType::Begin {
            return Err(StreamFault::NotAStream {
                found: little.u64(8),
            });
        }
        let version = header.u64(16);
        if version & 3 != PLAIN_STREAM {
            return Err(StreamFault::Compound { found: version & 3 });
        }
        header.payload_bytes()?;
        let name_bytes = bytes[NAME_AT..]
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or_default();
        let to_name = match std::str::from_utf8(name_bytes) {
            Ok(name) if name.len() < HEADER_BYTES - NAME_AT => name.to_owned(),
            _ => return Err(StreamFault::Name),
        };
        Ok(Self {
            order,
            feature_flags: (version >> 2) & ((1 << 56) - 1),
            creation_time: header.u64(24),
            dataset_type: match header.u32(32) {
                2 => StreamDatasetType::Filesystem,
                3 => StreamDatasetType::Volume,
                other => StreamDatasetType::Other(other),
            },
            flags: header.u32(36),
            snapshot_guid: Guid(header.u64(40)),
            base_guid: Some(header.u64(48)).filter(|guid| *guid != 0).map(Guid),
            to_name,
            payload_bytes: header.u32(4),
        })
    }

    /// Returns the header of this record: the inverse of [`BeginRecord::parse`]. A name that is too
    /// long is cut.
    pub fn header(&self) -> RecordHeader {
        let mut header = RecordHeader::blank(RecordType::Begin, self.order);
        header.set_u32(4, self.payload_bytes);
        header.set_u64(8, MAGIC);
        header.set_u64(16, (self.feature_flags << 2) | PLAIN_STREAM);
        header.set_u64(24, self.creation_time);
        header.set_u32(
            32,
            match self.dataset_type {
                StreamDatasetType::Filesystem => 2,
                StreamDatasetType::Volume => 3,
                StreamDatasetType::Other(other) => other,
            },
        );
        header.set_u32(36, self.flags);
        header.set_u64(40, self.snapshot_guid.0);
        header.set_u64(48, self.base_guid.map_or(0, |guid| guid.0));
        for (at, byte) in (NAME_AT..HEADER_BYTES - 1).zip(self.to_name.bytes()) {
            header.set_u8(at, byte);
        }
        header
    }

    /// Whether a feature flag is set.
    pub fn has(&self, feature: u64) -> bool {
        self.feature_flags & feature != 0
    }
}
