//! Storage format, version 1: the objects of one backup, their content, and the checks that a
//! reader must make.
//!
//! # Keys, below the store's prefix
//! ```text
//! @zfs-backup/keys/<tag>/0001.age   keyring: an age identity file with the signing key in comment
//!     lines, sealed with the passphrase; <tag> is 16 hex digits of BLAKE3(recipient)
//! @zfs-backup/store-id   the store's identity: 128 random bits, put first, unsigned
//! @zfs-backup/store-id.claim-<id>   for seconds, in a store without conditional puts: a host's
//!     request for this identity
//! @zfs-backup/keys/<tag>/believed-<blake3>.json   the objects that retired verifying keys are
//!     still trusted for, by folder, name and BLAKE3; pinned by its BLAKE3 in this tag's keyring
//! <dataset>/@prune/believed-<blake3>.list   a copy of that list, below up to three datasets
//! @zfs-backup/keys/<tag>/successor-<tag>-<nonce>.json   a notice that a rotation replaced this
//!     keyring, signed with its key
//! @zfs-backup/config/<time>-<hash>.age   a host's configuration without its secrets, sealed to the
//!     recipients, signed
//! <dataset>/@prune/<time>-<nonce>.json   signed records of the backups that a prune deleted
//! <dataset>/@<id>/started.json        first object of an attempt, signed
//! <dataset>/@<id>/keyring.age         a copy of the keyring; absent in recipients mode
//! <dataset>/@<id>/NNNNNNNN-XXXXXXXX.zfs[.zst].age   sealed chunks: index, nonce of the sealing
//! <dataset>/@<id>/progress-0000.json  signed resume points of an unfinished upload
//! <dataset>/@<id>/chunks-0000.json    lists of at most 10,000 chunks, pinned by the manifest
//! <dataset>/@<id>/private.age         [`Private`], sealed to the recipients
//! <dataset>/@<id>/RESTORE.txt         instructions and commands, signed
//! <dataset>/@<id>/receipt.json        [`Receipt`]: this store's evidence for each object, signed
//! <dataset>/@<id>/manifest.json       [`Manifest`], signed, put last: the commit
//! X.minisig                           the signature of X, stored before X
//! <dataset>/@<id>/B3SUMS   in an intermediate directory, on request: `b3sum -c` reads it; this
//!     program ignores it
//! ```
//!
//! # Rules for readers
//! - A signature is verified over the stored bytes before anything parses them, and its trusted
//!   comment must name the type and the key that was read ([`crate::sign`]).
//! - JSON is parsed strictly: a duplicate key or trailing bytes are refused. A reader ignores
//!   unknown fields, and refuses an unknown `format` and an unknown name in `requires`.
//! - 64-bit numbers are decimal strings, guids 16 and digests 64 hexadecimal digits, times RFC 3339
//!   in UTC.
//! - No path from a file is ever opened: chunk names are parsed, and must be the names of their
//!   index.
//! - A chunk's `head` (age header and payload nonce) is checked before a key is used on it. Anybody
//!   who knows the recipient can seal a chunk, but only the sealer of this chunk can have made
//!   pages that open under this head.
//! - A manifest has the same bytes in every store. The receipt holds what differs between stores.
//!
//! - An absent optional field is null. An evidence tier that a reader does not know counts as the
//!   weakest. A new value of any other name needs a name in `requires`.
//! - A missing or damaged `started.json`, `private.age`, RESTORE.txt or receipt is reported as
//!   damage, and is no reason to refuse a restore: a restore needs only the manifest, the lists and
//!   the chunks.
//! - In a chain each position is its base's plus one, all backups have one `full_id` and one origin
//!   or an adopted one, and a base is pinned by the hash of its manifest. If a base is not in a
//!   store, another verified backup replaces it: one of the same snapshot at the same position over
//!   the same first snapshot, with the same flags, recipients and origin.
//! - `live` in a receipt names every other verified backup of the dataset in that store. A backup
//!   that disappears without a signed prune record is a finding.
//! - Keyrings of one recipient are numbered: `0001.age` is the first, a new passphrase makes the
//!   next. Readers open every keyring that their passphrase opens, including the copies in backups.
//!   After a rotation the newest keyring decides the trust in the older keys: a `# verifying key:`
//!   line trusts a key, and a `# retired key:` line trusts it only for the objects on the lists
//!   that `# believed list:` lines name. No older key signs configurations or progress.
//! - Recipients may be X25519 (`age1...`) in this version; a manifest with others names them in
//!   `requires`.
//!
//! # The domain of trust
//! All hosts under one keyring, or under one list of `verify_keys`, form one domain of trust: each
//! could sign for the others. A backup that is moved from one prefix to another with the same
//! keyring verifies there, under the same dataset name and id.
//!
//! # The threat model
//! The attacker can write, replace and delete everything in the bucket and knows the recipients,
//! but not the passphrase, the identity or the signing key.
//! - The attacker can delete objects, and can bring back an older state. Receipts' `live` lists and
//!   prune records make gaps noticeable. Missing newest backups are noticed only with outside
//!   knowledge: the records of the host that made them, and the time of the newest backup that
//!   restore prints.
//! - The attacker cannot make a restore receive one byte that was not sent.
//! - After a rotation the same holds for an attacker with the older identity and signing key, who
//!   can however read the backups made before.

mod level;
mod limits;
mod parse;
mod progress;
mod restore_text;
mod strict;

pub use limits::{PRUNE_RECORD_BYTES_MAX, chunk_list_bytes_max};
pub(crate) use parse::parse_as;
pub use parse::{
    ManifestError, parse_chunk_list, parse_manifest, parse_prune_record, parse_receipt,
    parse_started,
};
pub(crate) use progress::base64_text;
pub use progress::{ProgressBody, ProgressChunk, begin_from_bytes, parse_progress, seal_progress};
pub use restore_text::{RestoreText, restore_text};
pub use strict::parse_strict;

use crate::model::{BackupId, BackupKind, BackupLevel, DatasetName, Digest, Guid, HostMark};
use crate::store::{Evidence, decimal};
use crate::stream::seal::{ChunkCompression, ChunkHead, SealedChunk};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The only format so far.
pub const FORMAT: u32 = 1;
/// The maximum number of chunks in one list.
pub const CHUNKS_PER_LIST: usize = 10_000;
/// `split_bytes` is a multiple of this many bytes: checksums of the stream run over 32-bit words,
/// and resuming depends on them.
pub const SPLIT_ALIGNMENT: u64 = 4;
/// The maximum number of chunks in a backup. A longer one would need a larger receipt than readers
/// accept.
pub const CHUNKS_MAX: u32 = 500_000;
/// The largest manifest. Manifests are small; a larger one is refused before it is read.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// The largest chunk list. A list of 10,000 chunks has about 5 MiB.
pub const CHUNK_LIST_BYTES_MAX: u64 = 16 << 20;
/// The largest receipt or RESTORE.txt. Both grow with the number of chunks; at 1 GiB a chunk this
/// is enough for half a pebibyte.
pub const LARGE_TEXT_BYTES_MAX: u64 = 256 << 20;
/// The largest `private.age`, which holds properties and is far smaller.
pub const PRIVATE_BYTES_MAX: u64 = 16 << 20;
/// The largest signature. A minisign signature has about 350 bytes, and its comment contains an
/// object key.
pub const SIGNATURE_BYTES_MAX: u64 = 8 * 1024;

/// The snapshot of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// The guid of the snapshot, which names it in streams and does not change with a
    /// rename.
    pub guid: Guid,
    /// The snapshot's transaction group, which orders the backups of one origin.
    #[serde(with = "decimal")]
    pub createtxg: u64,
    /// The time at which the snapshot was taken.
    pub created_at: Timestamp,
}

/// The backup that an incremental is based on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRef {
    /// The guid of the base's snapshot.
    pub guid: Guid,
    /// The id of the base.
    pub backup_id: BackupId,
    /// The hash of the base's manifest.
    pub manifest_blake3: Digest,
}

/// The pool and dataset that were sent. Two hosts under one prefix have different origins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The guid of the dataset, which does not change with a rename.
    pub dataset_guid: Guid,
    /// The guid of the pool, which a send to another pool does not copy.
    pub pool_guid: Guid,
}

/// The place of a backup in its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainPlace {
    /// The id of the full at the start of the chain; a full names itself.
    pub full_id: BackupId,
    /// The position: 0 for the full, then counting up.
    pub position: u32,
    /// Sealed bytes of the chain up to and including this backup.
    #[serde(with = "decimal")]
    pub stored_bytes: u64,
}

/// The parameters of the send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendInfo {
    /// The requested flags, constant within a chain: "raw", "compressed", "embedded",
    /// "large-blocks".
    pub requested: Vec<String>,
    /// The feature flags in the stream's BEGIN record.
    #[serde(with = "decimal")]
    pub feature_flags: u64,
    /// The kernel module's version.
    pub zfs_version: String,
    /// Whether every record's checksum was verified during the send. `false` when a record of an
    /// unknown type was passed through.
    pub checked: bool,
}

/// The compression of chunks before they are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressionName {
    /// The sealed bytes are the stream itself.
    None,
    /// Zstandard, with one frame per chunk.
    Zstd,
}

/// A chunk list, pinned by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkListRef {
    /// The object name of the list.
    pub name: String,
    /// The hash of the list.
    pub blake3: Digest,
    /// The number of chunks in the list.
    pub chunks: u32,
}

/// The small objects of a backup, pinned by their hashes; `None` if the backup has no such object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// The hash of `RESTORE.txt`, the description of a restore by hand.
    #[serde(rename = "RESTORE.txt")]
    pub restore_text: Digest,
    /// The hash of `private.age`, the sealed facts that would reveal content.
    #[serde(rename = "private.age")]
    pub private: Digest,
    /// `keyring.age`; absent in recipients mode.
    #[serde(rename = "keyring.age")]
    pub keyring: Option<Digest>,
    /// An index of the stream's objects; for later versions.
    pub index: Option<Digest>,
}

/// The description of one complete, valid backup. The module's documentation has the rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The storage format: [`FORMAT`].
    pub format: u32,
    /// Features that a reader must know. A reader refuses a manifest with an unknown one, and prune
    /// keeps the backup. No features are defined yet.
    pub requires: Vec<String>,
    /// Always "manifest", so that no other signed object passes for one.
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The id of the backup.
    pub id: BackupId,
    /// Whether the stream is a full or an incremental.
    pub kind: BackupKind,
    /// The snapshot that was sent.
    pub snapshot: SnapshotRef,
    /// The base, present exactly for incrementals.
    pub base: Option<BaseRef>,
    /// The pool and dataset that were sent.
    pub origin: Origin,
    /// The host that committed the backup. Cloned hosts and copied pools have one origin and two
    /// marks. Null in backups of the first builds of version 0.1.
    pub host_mark: Option<HostMark>,
    /// The newest stored backups, of any origin, whose snapshots existed in the pool when this
    /// backup was committed: at most 16 backups on which no other of them is based. Together with
    /// `base` they make a tree of all backups, fulls included, in which a pool that was copied or
    /// rolled back shows as a fork (`plan/timeline.rs`). Null in backups of the first builds of
    /// version 0.1; empty when the pool had none of these snapshots.
    pub previous: Option<Vec<BackupId>>,
    /// The moment of the snapshot: the pool's guid and the transaction group, both in hexadecimal.
    /// All datasets in one atomic snapshot have the same value. Null in backups of the first builds
    /// of version 0.1.
    pub group: Option<String>,
    /// The guid of the clone's origin snapshot, when the dataset was a clone. The stream contains
    /// all data of the clone, and the restored dataset is not a clone. Null in all backups of the
    /// first builds of version 0.1, clones included.
    pub clone_origin_guid: Option<Guid>,
    /// The level: "hourly", "daily", "weekly", "monthly" or "yearly". An incremental with a level
    /// builds on no backup of a shorter level, except where no other base was left. Null where no
    /// levels were configured, and in backups of the first builds of version 0.1. A level that a
    /// reader does not know counts as null: no restore depends on it.
    #[serde(default, with = "level")]
    pub level: Option<BackupLevel>,
    /// The place of the backup in its chain.
    pub chain: ChainPlace,
    /// The parameters of the send.
    pub send: SendInfo,
    /// Bytes of the stream.
    #[serde(with = "decimal")]
    pub stream_bytes: u64,
    /// Bytes of the stream in every chunk but the last.
    #[serde(with = "decimal")]
    pub split_bytes: u64,
    /// The compression of the chunks.
    pub compression: CompressionName,
    /// The recipients that the chunks are sealed to.
    pub recipients: Vec<String>,
    /// The lists of chunks.
    pub chunk_lists: Vec<ChunkListRef>,
    /// The hashes of the backup's small objects.
    pub files: Files,
    /// The version of this program.
    pub tool_version: String,
    /// The time at which the attempt began.
    pub started_at: Timestamp,
    /// The time at which the store confirmed the last chunk.
    pub finished_at: Timestamp,
}

/// The head of a chunk, as a list describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadEntry {
    /// The length of the head.
    pub bytes: u32,
    /// The hash of the head.
    pub blake3: Digest,
}

/// A point at the end of a chunk from which a send can be resumed: the last record, and the state
/// of the stream after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeEntry {
    /// The stream position just after the record.
    #[serde(with = "decimal")]
    pub position: u64,
    /// The ZFS object number of the last record.
    #[serde(with = "decimal")]
    pub object: u64,
    /// The offset of the last record within its object, in bytes.
    #[serde(with = "decimal")]
    pub offset: u64,
    /// The running Fletcher-4 at this position, as four numbers of 16 hexadecimal digits.
    pub fletcher4: [Guid; 4],
    /// The hash of the record.
    pub record_blake3: Digest,
}

/// A chunk, as a list describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEntry {
    /// The object name of the chunk.
    pub name: String,
    /// The index of the chunk, from 0.
    pub index: u32,
    /// Bytes of the stream in the chunk.
    #[serde(with = "decimal")]
    pub stream_bytes: u64,
    /// Bytes of the object.
    #[serde(with = "decimal")]
    pub sealed_bytes: u64,
    /// The hash of the object.
    pub blake3: Digest,
    /// The head of the chunk.
    pub head: HeadEntry,
    /// The resume point at the end of the chunk. Always null in a committed list, because the
    /// position, the checksum and the hash of a plaintext record would reveal content to the store.
    /// The journal of an unfinished upload has it.
    pub resume: Option<ResumeEntry>,
}

impl ChunkEntry {
    /// Returns the sizes and hashes that the opened chunk must have.
    pub fn sealed(&self) -> SealedChunk {
        let head = ChunkHead {
            bytes: self.head.bytes,
            blake3: self.head.blake3,
        };
        SealedChunk {
            stream_bytes: self.stream_bytes,
            sealed_bytes: self.sealed_bytes,
            blake3: self.blake3,
            head,
        }
    }
}

/// A list of chunks: unsigned, pinned by its hash in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkList {
    /// The storage format: [`FORMAT`].
    pub format: u32,
    /// Always "chunks", so that no other object passes for a chunk list.
    #[serde(rename = "type")]
    pub object_type: String,
    /// The chunks, in order.
    pub chunks: Vec<ChunkEntry>,
}

/// The first object of an attempt: the description of the planned backup. Until the attempt ends,
/// this object protects the chain of its base from pruning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// The storage format: [`FORMAT`].
    pub format: u32,
    /// Always "started", so that no other signed object passes for one.
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The id of the planned backup.
    pub id: BackupId,
    /// The snapshot to send.
    pub snapshot: SnapshotRef,
    /// The base of the incremental.
    pub base: Option<BaseRef>,
    /// The pool and dataset to send.
    pub origin: Origin,
    /// The host that began the attempt. Null in attempts of the first builds of version 0.1.
    pub host_mark: Option<HostMark>,
    /// The level of the planned backup, as in the manifest.
    #[serde(default, with = "level")]
    pub level: Option<BackupLevel>,
    /// The requested send flags.
    pub requested: Vec<String>,
    /// Bytes of the stream in every chunk but the last.
    #[serde(with = "decimal")]
    pub split_bytes: u64,
    /// The compression of the chunks.
    pub compression: CompressionName,
    /// The recipients that the chunks are sealed to.
    pub recipients: Vec<String>,
    /// The version of this program.
    pub tool_version: String,
    /// The time at which the attempt began.
    pub started_at: Timestamp,
}

/// The store's own evidence for one object when the object was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptEntry {
    /// The object's name within the backup.
    pub name: String,
    /// The store's evidence for the content.
    pub evidence: Evidence,
}

/// Another backup that was live in the store when the receipt was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveEntry {
    /// The id of the backup.
    pub id: BackupId,
    /// The hash of the backup's manifest.
    pub manifest_blake3: Digest,
}

/// The evidence of one store for one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The storage format: [`FORMAT`].
    pub format: u32,
    /// Always "receipt", so that no other signed object passes for one.
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The id of the backup.
    pub id: BackupId,
    /// The hash of the manifest that this receipt belongs to.
    pub manifest_blake3: Digest,
    /// Every object except the manifest, the receipt and signatures.
    pub objects: Vec<ReceiptEntry>,
    /// The dataset's other backups in this store. A later reader notices a gap by comparing.
    pub live: Vec<LiveEntry>,
    /// The time at which the receipt was written.
    pub written_at: Timestamp,
}

/// A backup that a prune deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedEntry {
    /// The id of the backup.
    pub id: BackupId,
    /// The hash of the backup's manifest; null for an unfinished backup, which had none.
    pub manifest_blake3: Option<Digest>,
}

/// The backups that a prune is about to delete, put before the first deletion, so that a reader can
/// explain the gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneRecord {
    /// The storage format: [`FORMAT`].
    pub format: u32,
    /// Always "prune-record", so that no other signed object passes for one.
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The backups and attempts that this prune deletes.
    pub pruned: Vec<PrunedEntry>,
    /// The version of this program.
    pub tool_version: String,
    /// The time at which the record was written, by the clock of the host that pruned.
    pub written_at: Timestamp,
    /// The time at which the record was put, by the store's clock. Only a record that replaces an
    /// earlier record stores it, with the time of the earlier one. If the field is absent, a reader
    /// fills in the time from the listing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<Timestamp>,
    /// The keys of earlier records that this record replaces. They no longer count, although the
    /// store may have to keep them because they are locked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub voids: Vec<String>,
}

impl PruneRecord {
    /// Returns the time at which the record was put, by the store's clock if that is known.
    pub fn put_at(&self) -> Timestamp {
        self.recorded_at.unwrap_or(self.written_at)
    }
}

/// The progress of an upload, for a resume by another host or after the journal was lost. Fields
/// that would reveal content are sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressObject {
    /// The storage format: [`FORMAT`].
    pub format: u32,
    /// Always "progress", so that no other signed object passes for one.
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The id of the backup.
    pub id: BackupId,
    /// The number in the object's name.
    pub number: u32,
    /// The sealed content in base64: a nonce of 12 bytes, then the JSON of a [`ProgressBody`] under
    /// ChaCha20-Poly1305, whose key is BLAKE3's `derive_key("zfs-backup v1 progress", secret
    /// signing key)` and whose associated data is the object's key. The host that uploads can read
    /// it without the identity.
    pub sealed: String,
    /// The time at which the object was written.
    pub written_at: Timestamp,
}

/// Facts that planning does not need and that the store need not know, sealed to the recipients as
/// `private.age`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// The storage format: [`FORMAT`].
    pub format: u32,
    /// Always "private", so that no other sealed object passes for one.
    #[serde(rename = "type")]
    pub object_type: String,
    /// The id of the backup.
    pub id: BackupId,
    /// The name of the snapshot when it was sent.
    pub snapshot_name: String,
    /// The name of the host.
    pub host: String,
    /// The dataset's own properties, local and received: name to value. Numbers as decimal text.
    pub properties: BTreeMap<String, String>,
    /// The name of the clone's origin snapshot at the time of the send. Absent in backups of
    /// earlier versions.
    #[serde(default)]
    pub clone_origin: Option<String>,
    /// The datasets below this one when the backup began, backed up or not. A restore of the tree
    /// at this moment compares against this list. Absent when the list is not known.
    #[serde(default)]
    pub descendants: Option<Vec<Descendant>>,
    /// The key format and encryption root of a natively encrypted dataset; a restore needs the ZFS
    /// key too.
    pub zfs_key: Option<ZfsKey>,
}

/// A dataset below the dataset of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descendant {
    /// The dataset's name in the pool at that time.
    pub name: String,
    /// The dataset's guid, which stays the same after a rename.
    pub guid: Guid,
}

/// The facts of a dataset's native encryption. Never a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZfsKey {
    /// The dataset that the key belongs to.
    pub encryption_root: Option<String>,
    /// "passphrase", "raw" or "hex".
    pub key_format: Option<String>,
    /// Whether the stream was sent raw. Reading a raw stream needs the ZFS key.
    pub raw: bool,
}

impl From<ChunkCompression> for CompressionName {
    fn from(compression: ChunkCompression) -> Self {
        match compression {
            ChunkCompression::None => Self::None,
            ChunkCompression::Zstd { .. } => Self::Zstd,
        }
    }
}

/// Writes the bytes that are stored and signed: JSON on several lines, because people read
/// manifests too.
///
/// # Errors
/// The types of this module have no errors; serde's signature has one.
pub fn to_stored_bytes<T: Serialize>(object: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec_pretty(object)?;
    bytes.push(b'\n');
    Ok(bytes)
}
