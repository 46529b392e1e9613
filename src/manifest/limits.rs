//! Maximum lengths of the objects of one backup. A reader refuses longer objects before they fill
//! its memory.

use super::{CHUNK_LIST_BYTES_MAX, LARGE_TEXT_BYTES_MAX, Manifest};

/// Room for all of an object except its list: names of datasets, hashes, times, the prose of
/// RESTORE.txt.
const FRAME_BYTES_MAX: u64 = 64 << 10;
/// A line of a chunk list: a name of at most 35 bytes, two hashes and four numbers, about 530 bytes
/// with the field names.
const CHUNK_ENTRY_BYTES_MAX: u64 = 1 << 10;
/// Room for one object in a receipt: its name, a checksum, and an ETag and a version id of at most
/// 1,024 bytes each.
const RECEIPT_ENTRY_BYTES_MAX: u64 = 3 << 10;
/// A backup in a receipt's `live` list or in a prune record: an id and a hash, about 200 bytes with
/// the field names.
const BACKUP_ENTRY_BYTES_MAX: u64 = 256;
/// A line of RESTORE.txt for one chunk: a word, a hash and a name, 110 bytes.
const COMMAND_BYTES_MAX: u64 = 128;
/// The lines of RESTORE.txt for one backup of the chain: its id five times, and the dataset.
const MEMBER_BYTES_MAX: u64 = 1 << 10;
/// More backups than one dataset has in one store: one an hour for more than five years.
const BACKUPS_MAX: u64 = 50_000;
/// The maximum number of small objects of a backup in its receipt.
const SMALL_OBJECTS_MAX: u64 = 64;

/// The length of the longest prune record, which names every backup that a dataset can have.
pub const PRUNE_RECORD_BYTES_MAX: u64 = FRAME_BYTES_MAX + BACKUPS_MAX * BACKUP_ENTRY_BYTES_MAX;

/// Returns the length of the longest list of this many chunks.
pub fn chunk_list_bytes_max(chunks: u32) -> u64 {
    (FRAME_BYTES_MAX + u64::from(chunks) * CHUNK_ENTRY_BYTES_MAX).min(CHUNK_LIST_BYTES_MAX)
}

impl Manifest {
    /// Returns the number of chunks in all lists.
    fn chunks(&self) -> u64 {
        self.chunk_lists
            .iter()
            .map(|list| u64::from(list.chunks))
            .sum()
    }

    /// Returns the length of the longest receipt of this backup.
    pub fn receipt_bytes_max(&self) -> u64 {
        let lists = self.chunk_lists.len() as u64;
        let objects = self
            .chunks()
            .saturating_add(lists + SMALL_OBJECTS_MAX)
            .saturating_mul(RECEIPT_ENTRY_BYTES_MAX);
        let live = BACKUPS_MAX * BACKUP_ENTRY_BYTES_MAX;
        objects
            .saturating_add(FRAME_BYTES_MAX + live)
            .min(LARGE_TEXT_BYTES_MAX)
    }

    /// Returns the length of the longest RESTORE.txt of this backup.
    pub fn restore_text_bytes_max(&self) -> u64 {
        let commands = self.chunks().saturating_mul(COMMAND_BYTES_MAX);
        let members = (u64::from(self.chain.position) + 1) * MEMBER_BYTES_MAX;
        commands
            .saturating_add(FRAME_BYTES_MAX + members)
            .min(LARGE_TEXT_BYTES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{
        CHUNKS_MAX, CHUNKS_PER_LIST, ChunkEntry, HeadEntry, LiveEntry, PrunedEntry, ReceiptEntry,
    };
    use crate::model::{BackupId, BackupKind, Digest, Guid};
    use crate::store::{Evidence, EvidenceTier};
    use jiff::Timestamp;

    fn bytes_of<T: serde::Serialize>(value: &T) -> u64 {
        crate::manifest::to_stored_bytes(value).unwrap().len() as u64
    }

    #[test]
    fn longest_manifest_entries_fit_their_byte_limits() {
        let digest = Digest::of(b"");
        let name = format!("{:08}-ffffffff.zfs.zst.age", CHUNKS_MAX - 1);
        let head = HeadEntry {
            bytes: u32::MAX,
            blake3: digest,
        };
        let (index, stream_bytes, sealed_bytes) = (CHUNKS_MAX - 1, u64::MAX, u64::MAX);
        let resume = None;
        let chunk = ChunkEntry {
            name: name.clone(),
            index,
            stream_bytes,
            sealed_bytes,
            blake3: digest,
            head,
            resume,
        };
        assert!(
            bytes_of(&chunk) < CHUNK_ENTRY_BYTES_MAX,
            "{}",
            bytes_of(&chunk)
        );
        let long = Some("x".repeat(1024));
        let evidence = Evidence {
            tier: EvidenceTier::Sha256Composite,
            bytes: u64::MAX,
            checksum: Some("x".repeat(88)),
            etag: Some("x".repeat(100)),
            version_id: long,
            part_bytes: Some(u64::MAX),
            locked_until: Some(Timestamp::MAX.to_string()),
        };
        let entry = ReceiptEntry { name, evidence };
        assert!(
            bytes_of(&entry) < RECEIPT_ENTRY_BYTES_MAX,
            "{}",
            bytes_of(&entry)
        );
        let id = BackupId::new(Timestamp::MAX, BackupKind::Incr, Guid(u64::MAX), u64::MAX);
        let live = LiveEntry {
            id: id.clone(),
            manifest_blake3: digest,
        };
        assert!(
            bytes_of(&live) < BACKUP_ENTRY_BYTES_MAX,
            "{}",
            bytes_of(&live)
        );
        let pruned = PrunedEntry {
            id,
            manifest_blake3: Some(digest),
        };
        assert!(
            bytes_of(&pruned) < BACKUP_ENTRY_BYTES_MAX,
            "{}",
            bytes_of(&pruned)
        );
    }

    #[test]
    fn chunk_list_byte_limit_grows_with_the_number_of_chunks() {
        let full = chunk_list_bytes_max(u32::try_from(CHUNKS_PER_LIST).unwrap());
        assert!(full < CHUNK_LIST_BYTES_MAX, "{full}");
        assert!(chunk_list_bytes_max(1) < 1 << 17);
        assert_eq!(chunk_list_bytes_max(u32::MAX), CHUNK_LIST_BYTES_MAX);
    }
}
