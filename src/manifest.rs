//! Storage format, version 1: the objects of one backup, what is in them, and what a reader must
//! check.
//!
//! # Keys, below the store's prefix
//! ```text
//! @zfs-backup/keys/<tag>/0001.age     keyring: an age identity file with the signing key in comment lines, sealed with
//!                                     the passphrase; <tag> is 16 hex digits of BLAKE3(recipient)
//! @zfs-backup/store-id                which store this is: 128 random bits, put before anything else, not signed
//! @zfs-backup/store-id.claim-<id>     for seconds, in a store without conditional puts: a host asks for this identity
//! @zfs-backup/keys/<tag>/believed-<blake3>.json   the objects that retired verifying keys are still trusted for, by
//!                                     folder, name and BLAKE3; pinned by its own BLAKE3 in the keyring of this tag
//! <dataset>/@prune/believed-<blake3>.list   a copy of that list, below up to three datasets
//! @zfs-backup/keys/<tag>/successor-<tag>-<nonce>.json   that a rotation replaced this keyring, signed with its key
//! @zfs-backup/config/<time>-<hash>.age   a host's configuration without its secrets, sealed to the recipients, signed
//! <dataset>/@prune/<time>-<nonce>.json   signed records of what a prune deleted
//! <dataset>/@<id>/started.json        first object of an attempt, signed
//! <dataset>/@<id>/keyring.age         a copy of the keyring; absent in recipients mode
//! <dataset>/@<id>/NNNNNNNN-XXXXXXXX.zfs[.zst].age   sealed chunks: index, nonce of the sealing
//! <dataset>/@<id>/progress-0000.json  signed resume points of an upload under way
//! <dataset>/@<id>/chunks-0000.json    lists of at most 10,000 chunks, each pinned by BLAKE3 in the manifest
//! <dataset>/@<id>/private.age         [`Private`], sealed to the recipients
//! <dataset>/@<id>/RESTORE.txt         instructions and commands, signed
//! <dataset>/@<id>/receipt.json        [`Receipt`]: what this store said of each object, signed
//! <dataset>/@<id>/manifest.json       [`Manifest`], signed, stored last: its presence is the commit
//! X.minisig                           the signature of X, stored before X
//! <dataset>/@<id>/B3SUMS              in an intermediate directory, if asked for: `b3sum -c` reads it; means nothing to us
//! ```
//!
//! # Rules for readers
//! - A signature is checked over the stored bytes before anything parses them, and its trusted
//!   comment must name the type and the key that was read ([`crate::sign`]).
//! - JSON is parsed strictly: a duplicate key or trailing bytes are refused. A reader ignores
//!   fields that it does not know, refuses a `format` that it does not know, and refuses a name in
//!   `requires` that it does not know.
//! - 64-bit numbers are decimal strings, guids 16 and digests 64 hexadecimal digits, times RFC 3339
//!   in UTC.
//! - Nothing is ever opened by a path out of a file: chunk names are parsed, and must be those of
//!   their index.
//! - A chunk's `head` (age header and payload nonce) is checked before a key touches it: anybody
//!   who knows the recipient can seal a chunk, but only the sealer of this one can have made pages
//!   that open under this head.
//! - A manifest is the same bytes in every store. What differs by store is in the receipt.
//!
//! - An absent optional field is null. An evidence tier that a reader does not know counts as the
//!   weakest. A new value of any other name needs a name in `requires`.
//! - A `started.json`, `private.age`, RESTORE.txt or receipt that is missing or damaged is damage,
//!   and no reason to refuse a restore: it needs manifest, lists and chunks only.
//! - In a chain each position is its base's plus one, all have one `full_id` and one origin or an
//!   adopted one, and a base is pinned by the hash of its manifest. Where a base is not in a store,
//!   a believed backup of the same snapshot at the same position over the same first snapshot, with
//!   the same flags, recipients and origin, serves in its place.
//! - `live` in a receipt names every other believed backup of the dataset in that store. One that
//!   is gone without a signed prune record is a finding.
//! - Keyrings of one recipient are numbered: `0001.age` is the first, a new passphrase makes the
//!   next. Readers open all that their passphrase opens, the copies beside backups too. Of rotated
//!   keys the newest says what the older ones are worth: a `# verifying key:` line trusts a key, a
//!   `# retired key:` line trusts it for the objects on the lists that `# believed list:` lines
//!   name, and for nothing else. No older key signs configurations or progress.
//! - Recipients may be X25519 (`age1...`) in this version; a manifest with others names them in
//!   `requires`.
//!
//! # What is one domain of trust
//! Everything under one keyring, or under one list of `verify_keys`: its hosts could sign for each
//! other, and a backup moved from one prefix to another with the same keyring verifies there, under
//! the same dataset name and id.
//!
//! # The threat that this is made for
//! Somebody who can write, replace and delete everything in the bucket and knows the recipients,
//! but not the passphrase, the identity or the signing key. What he can do: delete, and bring back
//! an older state (receipts' `live` lists and prune records make gaps noticeable; missing newest
//! backups need outside knowledge: the records of the host that made them, and the newest backup's
//! time that restore prints). What he cannot do: make a restore receive one byte that was not sent.
//! After a rotation the same holds for somebody who has the older identity and signing key, but he
//! can read the backups made before.

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

use crate::model::{BackupId, BackupKind, DatasetName, Digest, Guid, HostMark};
use crate::store::{Evidence, decimal};
use crate::stream::seal::{ChunkHead, Compression, SealedChunk};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The only format there is.
pub const FORMAT: u32 = 1;
/// Most chunks in one list.
pub const CHUNKS_PER_LIST: usize = 10_000;
/// `split_bytes` is a multiple of this: checksums of the stream run over 32-bit words, and resuming
/// depends on them.
pub const SPLIT_ALIGNMENT: u64 = 4;
/// Most chunks in a backup: more would make a receipt that no reader takes.
pub const CHUNKS_MAX: u32 = 500_000;
/// Manifests are small; a larger one is refused before it is read.
pub const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// The largest list of 10,000 chunks has about 5 MiB.
pub const CHUNK_LIST_BYTES_MAX: u64 = 16 << 20;
/// Receipts and RESTORE.txt grow with the chunks: at 1 GiB a chunk this is enough for half a
/// pebibyte.
pub const LARGE_TEXT_BYTES_MAX: u64 = 256 << 20;
/// `private.age` holds properties: far less.
pub const PRIVATE_BYTES_MAX: u64 = 16 << 20;
/// A minisign signature has about 350 bytes, and its comment a key.
pub const SIGNATURE_BYTES_MAX: u64 = 8 * 1024;

/// The snapshot that a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRef {
    /// Its guid.
    pub guid: Guid,
    /// Its transaction group, which orders the backups of one origin.
    #[serde(with = "decimal")]
    pub createtxg: u64,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// The backup that an incremental follows from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRef {
    /// The guid of its snapshot.
    pub guid: Guid,
    /// Its id.
    pub backup_id: BackupId,
    /// The hash of its manifest.
    pub manifest_blake3: Digest,
}

/// Where the data came from: two hosts under one prefix are told apart by this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The dataset's guid.
    pub dataset_guid: Guid,
    /// The pool's guid.
    pub pool_guid: Guid,
}

/// The place of a backup in its chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainPlace {
    /// The full that the chain begins with; the backup itself for a full.
    pub full_id: BackupId,
    /// 0 for the full, counting up.
    pub position: u32,
    /// Sealed bytes of the chain up to and with this backup.
    #[serde(with = "decimal")]
    pub stored_bytes: u64,
}

/// How the stream was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendInfo {
    /// The flags asked for, constant within a chain: "raw", "compressed", "embedded",
    /// "large-blocks".
    pub requested: Vec<String>,
    /// The feature flags in the stream's BEGIN record.
    #[serde(with = "decimal")]
    pub feature_flags: u64,
    /// The kernel module's version.
    pub zfs_version: String,
    /// Every record's checksum was verified on the way. `false` when a record of an unknown type
    /// was passed through.
    pub checked: bool,
}

/// How chunks are compressed before they are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressionName {
    /// Not at all.
    None,
    /// One zstd frame a chunk.
    Zstd,
}

/// One list of chunks, pinned by its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkListRef {
    /// Its object name.
    pub name: String,
    /// Its hash.
    pub blake3: Digest,
    /// How many chunks are in it.
    pub chunks: u32,
}

/// The small objects of a backup, pinned by their hashes; `None` where there is no such object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// `RESTORE.txt`
    #[serde(rename = "RESTORE.txt")]
    pub restore_text: Digest,
    /// `private.age`
    #[serde(rename = "private.age")]
    pub private: Digest,
    /// `keyring.age`; absent in recipients mode.
    #[serde(rename = "keyring.age")]
    pub keyring: Option<Digest>,
    /// An index of the stream's objects; for later versions.
    pub index: Option<Digest>,
}

/// The description of one whole, valid backup. See the module's documentation for the rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Features that a reader must know, else it refuses and prune keeps. None exist yet.
    pub requires: Vec<String>,
    /// Always "manifest".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The backup.
    pub id: BackupId,
    /// Full or incremental.
    pub kind: BackupKind,
    /// What it holds.
    pub snapshot: SnapshotRef,
    /// What it follows from; present exactly for incrementals.
    pub base: Option<BaseRef>,
    /// Where it came from.
    pub origin: Origin,
    /// The host that committed it. Hosts that were cloned, and pools that were copied, have one
    /// origin and two marks. Null in what the first builds of version 0.1 made.
    pub host_mark: Option<HostMark>,
    /// The newest stored backups, of whatever origin, whose snapshots the pool knew when this
    /// backup was committed: those that no other one of them follows from, at most 16. With `base`
    /// they make a tree of all backups, fulls included, in which a pool that was copied or rewound
    /// shows as a fork (`plan/timeline.rs`). Null in what the first builds of version 0.1 made;
    /// empty when the pool knew none.
    pub previous: Option<Vec<BackupId>>,
    /// The moment of its snapshot: the pool's guid and the transaction group, both in hexadecimal.
    /// All datasets of which one atomic snapshot was taken have the same. Null in what the first
    /// builds of version 0.1 made.
    pub group: Option<String>,
    /// The snapshot that a clone came from, when the dataset was one. The stream has all of its
    /// data all the same, and what is restored from it is no clone. Null in what the first builds
    /// of version 0.1 made, whatever it was.
    pub clone_origin_guid: Option<Guid>,
    /// Its place in its chain.
    pub chain: ChainPlace,
    /// How the stream was made.
    pub send: SendInfo,
    /// Bytes of the stream.
    #[serde(with = "decimal")]
    pub stream_bytes: u64,
    /// Bytes of stream in every chunk but the last.
    #[serde(with = "decimal")]
    pub split_bytes: u64,
    /// How chunks are compressed.
    pub compression: CompressionName,
    /// Whom the chunks are sealed to.
    pub recipients: Vec<String>,
    /// The lists of chunks.
    pub chunk_lists: Vec<ChunkListRef>,
    /// The small objects.
    pub files: Files,
    /// The version of this program.
    pub tool_version: String,
    /// When the attempt began.
    pub started_at: Timestamp,
    /// When the last chunk was confirmed.
    pub finished_at: Timestamp,
}

/// The head of a chunk in a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadEntry {
    /// Its length.
    pub bytes: u32,
    /// Its hash.
    pub blake3: Digest,
}

/// Where a send can take up again at the end of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeEntry {
    /// The stream position just after the record.
    #[serde(with = "decimal")]
    pub position: u64,
    /// The record's object.
    #[serde(with = "decimal")]
    pub object: u64,
    /// The record's offset.
    #[serde(with = "decimal")]
    pub offset: u64,
    /// The running Fletcher-4 there, as four numbers of 16 hexadecimal digits.
    pub fletcher4: [Guid; 4],
    /// The hash of the record.
    pub record_blake3: Digest,
}

/// One chunk in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkEntry {
    /// Its object name.
    pub name: String,
    /// Its position, from 0.
    pub index: u32,
    /// Bytes of stream in it.
    #[serde(with = "decimal")]
    pub stream_bytes: u64,
    /// Bytes of the object.
    #[serde(with = "decimal")]
    pub sealed_bytes: u64,
    /// The hash of the object.
    pub blake3: Digest,
    /// Its head.
    pub head: HeadEntry,
    /// Where the send can take up at its end. Always null in a committed list: the position, the
    /// checksum and the hash of a plaintext record would tell the store of the content. The journal
    /// of an upload under way has it.
    pub resume: Option<ResumeEntry>,
}

impl ChunkEntry {
    /// What opening it must find.
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
    /// [`FORMAT`].
    pub format: u32,
    /// Always "chunks".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The chunks, in order.
    pub chunks: Vec<ChunkEntry>,
}

/// The first object of an attempt: what it is going to be. Pins the chain of its base until it
/// ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// [`FORMAT`].
    pub format: u32,
    /// Always "started".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The backup that it may become.
    pub id: BackupId,
    /// What it sends.
    pub snapshot: SnapshotRef,
    /// What it follows from.
    pub base: Option<BaseRef>,
    /// Where it comes from.
    pub origin: Origin,
    /// The host that began it. Null in what the first builds of version 0.1 made.
    pub host_mark: Option<HostMark>,
    /// The flags asked for.
    pub requested: Vec<String>,
    /// Bytes of stream in every chunk but the last.
    #[serde(with = "decimal")]
    pub split_bytes: u64,
    /// How chunks are compressed.
    pub compression: CompressionName,
    /// Whom they are sealed to.
    pub recipients: Vec<String>,
    /// The version of this program.
    pub tool_version: String,
    /// When it began.
    pub started_at: Timestamp,
}

/// What the store itself said of one object when it was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptEntry {
    /// The object's name within the backup.
    pub name: String,
    /// The store's word for its content.
    pub evidence: Evidence,
}

/// Another backup that was live in the store at the time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveEntry {
    /// Its id.
    pub id: BackupId,
    /// The hash of its manifest.
    pub manifest_blake3: Digest,
}

/// The evidence of one store for one backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`FORMAT`].
    pub format: u32,
    /// Always "receipt".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The backup.
    pub id: BackupId,
    /// The hash of the manifest that this belongs to.
    pub manifest_blake3: Digest,
    /// Every object but the manifest, the receipt and signatures.
    pub objects: Vec<ReceiptEntry>,
    /// The dataset's other backups in this store: a gap later is noticed by this.
    pub live: Vec<LiveEntry>,
    /// When it was written.
    pub written_at: Timestamp,
}

/// One backup that a prune deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedEntry {
    /// Its id.
    pub id: BackupId,
    /// The hash of its manifest; null for an attempt that never had one.
    pub manifest_blake3: Option<Digest>,
}

/// What a prune is about to delete: put before the first deletion, so that a gap has its reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneRecord {
    /// [`FORMAT`].
    pub format: u32,
    /// Always "prune-record".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// What is deleted.
    pub pruned: Vec<PrunedEntry>,
    /// The version of this program.
    pub tool_version: String,
    /// When it was written, by the clock of the host that pruned.
    pub written_at: Timestamp,
    /// When it was put, by the store's clock. Only a record that replaces another one holds it: the
    /// time of that one. A reader fills in the time of the listing where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<Timestamp>,
}

/// How far an upload is, for another host or a lost journal. What would tell of the content is
/// sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// [`FORMAT`].
    pub format: u32,
    /// Always "progress".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The backup.
    pub id: BackupId,
    /// The number in the object's name.
    pub number: u32,
    /// In base64: a nonce of 12 bytes, then the JSON of a [`ProgressBody`] under ChaCha20-Poly1305,
    /// whose key is BLAKE3's `derive_key("zfs-backup v1 progress", secret signing key)` and whose
    /// associated data is the object's key. The host that uploads can read it without the identity.
    pub sealed: String,
    /// When it was written.
    pub written_at: Timestamp,
}

/// What planning does not need and the store need not know; sealed to the recipients as
/// `private.age`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Private {
    /// [`FORMAT`].
    pub format: u32,
    /// Always "private".
    #[serde(rename = "type")]
    pub object_type: String,
    /// The backup.
    pub id: BackupId,
    /// The name of the snapshot when it was sent.
    pub snapshot_name: String,
    /// The host.
    pub host: String,
    /// The dataset's own properties, local and received: name to value. Numbers as decimal text.
    pub properties: BTreeMap<String, String>,
    /// The name of the snapshot that a clone came from, when it was sent. Absent before it was
    /// recorded.
    #[serde(default)]
    pub clone_origin: Option<String>,
    /// The datasets that were below this one when the backup began, whatever of them is backed up:
    /// a restore of the tree at this moment knows by it what there was. Absent when that is not
    /// known.
    #[serde(default)]
    pub descendants: Option<Vec<Descendant>>,
    /// For natively encrypted datasets: key format and encryption root; the ZFS key must survive
    /// too.
    pub zfs_key: Option<ZfsKey>,
}

/// A dataset below the one that a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descendant {
    /// Its name in the pool then.
    pub name: String,
    /// Its guid, which no rename changes.
    pub guid: Guid,
}

/// What is known of a dataset's native encryption. Never a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZfsKey {
    /// The dataset that the key belongs to.
    pub encryption_root: Option<String>,
    /// "passphrase", "raw" or "hex".
    pub key_format: Option<String>,
    /// The stream was sent raw: it cannot be read without that key.
    pub raw: bool,
}

impl From<Compression> for CompressionName {
    fn from(compression: Compression) -> Self {
        match compression {
            Compression::None => Self::None,
            Compression::Zstd { .. } => Self::Zstd,
        }
    }
}

/// The bytes that are stored and signed: JSON on several lines, because people read manifests too.
///
/// # Errors
/// None for the types of this module; serde's signature has one.
pub fn to_stored_bytes<T: Serialize>(object: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut bytes = serde_json::to_vec_pretty(object)?;
    bytes.push(b'\n');
    Ok(bytes)
}
