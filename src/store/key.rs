//! [`ObjectKey`]: the only place that builds or parses the name of an object.
//!
//! The layout is that of storage format version 1 (see `manifest.rs`). `@` cannot occur in a
//! dataset name, so a listing of `DATASET/@` returns exactly the objects of one dataset, without
//! those of its children.

use crate::model::{BackupId, ChunkIndex, DatasetName, Digest, StoreId};
use jiff::Timestamp;
use std::fmt;

/// The kinds of object that one backup consists of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackupObject {
    /// The first object of an attempt.
    Started,
    /// A copy of the keyring.
    Keyring,
    /// A sealed chunk: position, the nonce of this sealing, whether zstd was applied first.
    Chunk {
        /// Position in the backup.
        index: ChunkIndex,
        /// The nonce, new for every sealing, so that a key never names two contents.
        nonce: u32,
        /// Whether the chunk was compressed before it was sealed.
        compressed: bool,
    },
    /// Resume points of an unfinished upload.
    Progress(u16),
    /// A list of at most 10,000 chunks.
    ChunkList(u16),
    /// Facts that planning does not need.
    Private,
    /// Instructions for restoring by hand.
    RestoreText,
    /// This store's evidence for each object.
    Receipt,
    /// The manifest, stored last: the commit.
    Manifest,
    /// Hashes of all objects for `b3sum -c`, for users who inspect the folder. Part of that folder
    /// only: unsigned, written after the commit, never copied.
    Sums,
}

/// The key of one object, below the store's prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

/// A parsed key of a backup's object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedKey {
    /// The dataset, as named in the store.
    pub dataset: DatasetName,
    /// The id of the backup, complete or not.
    pub id: BackupId,
    /// The object that the last part of the key names.
    pub object: BackupObject,
    /// Whether the key names the signature of that object.
    pub signature: bool,
}

/// The suffix of a signature. A signed object has its signature under its own key with this suffix.
pub const SIGNATURE_SUFFIX: &str = ".minisig";

impl ObjectKey {
    /// Returns the key of an object of a backup.
    pub fn backup(dataset: &DatasetName, id: &BackupId, object: &BackupObject) -> Self {
        Self(format!(
            "{}{}",
            backup_prefix(dataset, id),
            object_name(object)
        ))
    }

    /// Returns the key of a recipient's first keyring: `tag` is the first 16 hexadecimal digits of
    /// BLAKE3 of the recipient.
    pub fn keyring(tag: &str) -> Self {
        Self::keyring_number(tag, 1)
    }

    /// Returns the key of a keyring by its number. The same keys sealed with another passphrase get
    /// the next number.
    pub fn keyring_number(tag: &str, number: u16) -> Self {
        Self(format!("{KEYRING_PREFIX}{tag}/{number:04}.age"))
    }

    /// Returns the key of a signed record of a prune.
    pub fn prune_record(dataset: &DatasetName, time: &str, nonce: u64) -> Self {
        Self(format!("{dataset}/@prune/{time}-{nonce:016x}.json"))
    }

    /// Returns the key of a configuration, from its time and the first 16 digits of the hash of its
    /// sealed bytes.
    pub fn config(written_at: Timestamp, sealed: Digest) -> Self {
        let sealed = sealed.to_string();
        Self(format!(
            "{CONFIG_PREFIX}{}-{}.age",
            written_at.strftime("%Y%m%dT%H%M%SZ"),
            &sealed[..16]
        ))
    }

    /// Returns the key of the store's identity.
    pub fn store_id() -> Self {
        Self(STORE_ID.to_owned())
    }

    /// Returns the key of a host's claim that `id` becomes the store's identity.
    pub fn store_id_claim(id: &StoreId) -> Self {
        Self(format!("{STORE_ID_CLAIM_PREFIX}{id}"))
    }

    /// Returns the key of this object's signature.
    #[must_use]
    pub fn signature(&self) -> Self {
        Self(format!("{}{SIGNATURE_SUFFIX}", self.0))
    }

    /// Accepts a key from a listing. Returns `None` for a key that this program cannot have made.
    pub fn listed(text: &str) -> Option<Self> {
        let safe = !text.is_empty()
            && !text.starts_with('/')
            && !text.bytes().any(|b| b.is_ascii_control() || b == b'\\')
            && text
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..");
        safe.then(|| Self(text.to_owned()))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses a backup's key. Returns `None` for any other key.
    pub fn parse(text: &str) -> Option<ParsedKey> {
        let (dataset, rest) = text.split_once("/@")?;
        let (id, name) = rest.split_once('/')?;
        let (name, signature) = match name.strip_suffix(SIGNATURE_SUFFIX) {
            Some(signed) => (signed, true),
            None => (name, false),
        };
        let object = parse_object_name(name)?;
        Some(ParsedKey {
            dataset: dataset.parse().ok()?,
            id: id.parse().ok()?,
            object,
            signature,
        })
    }
}

/// The key of the store's identity, which is stored before any other object.
pub const STORE_ID: &str = "@zfs-backup/store-id";

/// The prefix of the claims of hosts that concurrently begin with a store that cannot create
/// objects conditionally. Each host removes its claim once the store has its identity.
pub const STORE_ID_CLAIM_PREFIX: &str = "@zfs-backup/store-id.claim-";

/// The prefix of a probe's objects; no object remains there.
pub const PROBE_PREFIX: &str = "@zfs-backup/probe/";

/// The prefix of all keyrings.
pub const KEYRING_PREFIX: &str = "@zfs-backup/keys/";

/// The prefix of the configurations that hosts store.
pub const CONFIG_PREFIX: &str = "@zfs-backup/config/";

/// The prefix of all objects of a dataset, without those of its children.
pub fn dataset_prefix(dataset: &DatasetName) -> String {
    format!("{dataset}/@")
}

/// Returns the dataset of a [`dataset_prefix`]. Such a prefix is all that its keys have in common up
/// to their first `@`, also for a dataset with children.
pub fn dataset_of(prefix: &str) -> Option<DatasetName> {
    prefix.strip_suffix("/@")?.parse().ok()
}

/// The prefix of all objects of one backup.
pub fn backup_prefix(dataset: &DatasetName, id: &BackupId) -> String {
    format!("{dataset}/@{id}/")
}

/// The name of an object within its backup.
pub fn object_name(object: &BackupObject) -> String {
    match object {
        BackupObject::Started => "started.json".to_owned(),
        BackupObject::Keyring => "keyring.age".to_owned(),
        BackupObject::Chunk {
            index,
            nonce,
            compressed,
        } => {
            format!(
                "{index}-{nonce:08x}.zfs{}.age",
                if *compressed { ".zst" } else { "" }
            )
        }
        BackupObject::Progress(n) => format!("progress-{n:04}.json"),
        BackupObject::ChunkList(n) => format!("chunks-{n:04}.json"),
        BackupObject::Private => "private.age".to_owned(),
        BackupObject::RestoreText => "RESTORE.txt".to_owned(),
        BackupObject::Receipt => "receipt.json".to_owned(),
        BackupObject::Manifest => "manifest.json".to_owned(),
        BackupObject::Sums => "B3SUMS".to_owned(),
    }
}

/// Parses the name of an object within its backup; the exact inverse of [`object_name`].
pub fn parse_object_name(name: &str) -> Option<BackupObject> {
    let object = match name {
        "started.json" => BackupObject::Started,
        "keyring.age" => BackupObject::Keyring,
        "private.age" => BackupObject::Private,
        "RESTORE.txt" => BackupObject::RestoreText,
        "receipt.json" => BackupObject::Receipt,
        "manifest.json" => BackupObject::Manifest,
        "B3SUMS" => BackupObject::Sums,
        _ => parse_numbered(name)?,
    };
    (object_name(&object) == name).then_some(object)
}

fn parse_numbered(name: &str) -> Option<BackupObject> {
    if let Some(rest) = name.strip_prefix("progress-") {
        return Some(BackupObject::Progress(
            rest.strip_suffix(".json")?.parse().ok()?,
        ));
    }
    if let Some(rest) = name.strip_prefix("chunks-") {
        return Some(BackupObject::ChunkList(
            rest.strip_suffix(".json")?.parse().ok()?,
        ));
    }
    let (stem, compressed) = match name.strip_suffix(".zfs.zst.age") {
        Some(stem) => (stem, true),
        None => (name.strip_suffix(".zfs.age")?, false),
    };
    let (index, nonce) = stem.split_once('-')?;
    let index = ChunkIndex::new(index.parse().ok()?)?;
    Some(BackupObject::Chunk {
        index,
        nonce: u32::from_str_radix(nonce, 16).ok()?,
        compressed,
    })
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Vec<BackupObject> {
        let index = ChunkIndex::new(12).unwrap();
        vec![
            BackupObject::Started,
            BackupObject::Keyring,
            BackupObject::Chunk {
                index,
                nonce: 0xabcd,
                compressed: false,
            },
            BackupObject::Chunk {
                index,
                nonce: u32::MAX,
                compressed: true,
            },
            BackupObject::Progress(3),
            BackupObject::ChunkList(0),
            BackupObject::Private,
            BackupObject::RestoreText,
            BackupObject::Receipt,
            BackupObject::Manifest,
            BackupObject::Sums,
        ]
    }

    #[test]
    fn every_key_parses_back_to_its_object() {
        let dataset: DatasetName = "tank/a b".parse().unwrap();
        let id: BackupId = "20261122T212604Z-full-0123456789abcdef-fedcba9876543210"
            .parse()
            .unwrap();
        for object in objects() {
            let key = ObjectKey::backup(&dataset, &id, &object);
            let expected = |signature| ParsedKey {
                dataset: dataset.clone(),
                id: id.clone(),
                object: object.clone(),
                signature,
            };
            assert_eq!(ObjectKey::parse(key.as_str()), Some(expected(false)));
            assert_eq!(
                ObjectKey::parse(key.signature().as_str()),
                Some(expected(true))
            );
            assert_eq!(ObjectKey::listed(key.as_str()), Some(key));
        }
    }

    #[test]
    fn malformed_object_names_and_keys_are_refused() {
        for name in [
            "1-0000abcd.zfs.age",
            "00000001-ABCD0000.zfs.age",
            "chunks-1.json",
            "manifest.json ",
            "../manifest.json",
            "x",
        ] {
            assert_eq!(parse_object_name(name), None, "{name}");
        }
        for key in ["", "/a", "a//b", "a/../b", "a/./b", "a\nb", "a\\b"] {
            assert_eq!(ObjectKey::listed(key), None, "{key:?}");
        }
    }
}
