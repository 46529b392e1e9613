//! [`ObjectKey`]: the only place that builds or parses the name of an object.
//!
//! The layout is that of storage format version 1 (see `manifest.rs`). `@` cannot occur in a
//! dataset name, so a listing of `DATASET/@` gives exactly the objects of one dataset, without
//! those of its children.

use crate::model::{BackupId, ChunkIndex, DatasetName, Digest, StoreId};
use jiff::Timestamp;
use std::fmt;

/// The kinds of object that one backup consists of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackupObject {
    /// First object of an attempt.
    Started,
    /// A copy of the keyring.
    Keyring,
    /// A sealed chunk: position, the nonce of this sealing, whether zstd was applied first.
    Chunk {
        /// Position in the backup.
        index: ChunkIndex,
        /// New for every sealing, so that a key never names two contents.
        nonce: u32,
        /// Compressed before it was sealed.
        compressed: bool,
    },
    /// Resume points of an upload under way.
    Progress(u16),
    /// A list of at most 10,000 chunks.
    ChunkList(u16),
    /// What planning does not need.
    Private,
    /// Instructions for people.
    RestoreText,
    /// What this store said of each object.
    Receipt,
    /// Stored last: the commit.
    Manifest,
    /// Hashes of all of them for `b3sum -c`, in a folder that people look into. Of that folder
    /// only: unsigned, written after the commit, never copied.
    Sums,
}

/// The key of one object, below the store's prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey(String);

/// A key of a backup, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedKey {
    /// The dataset, as named in the store.
    pub dataset: DatasetName,
    /// The backup.
    pub id: BackupId,
    /// Which of its objects.
    pub object: BackupObject,
    /// Whether this is the signature of that object.
    pub signature: bool,
}

/// Objects that are signed have their signature beside them under this suffix.
pub const SIGNATURE_SUFFIX: &str = ".minisig";

impl ObjectKey {
    /// An object of a backup.
    pub fn backup(dataset: &DatasetName, id: &BackupId, object: &BackupObject) -> Self {
        Self(format!(
            "{}{}",
            backup_prefix(dataset, id),
            object_name(object)
        ))
    }

    /// The keyring of a recipient: `tag` is the first 16 hexadecimal digits of BLAKE3 of the
    /// recipient.
    pub fn keyring(tag: &str) -> Self {
        Self::keyring_number(tag, 1)
    }

    /// The same keys sealed again: with another passphrase they get the next number.
    pub fn keyring_number(tag: &str, number: u16) -> Self {
        Self(format!("{KEYRING_PREFIX}{tag}/{number:04}.age"))
    }

    /// A signed record of what a prune deleted.
    pub fn prune_record(dataset: &DatasetName, time: &str, nonce: u64) -> Self {
        Self(format!("{dataset}/@prune/{time}-{nonce:016x}.json"))
    }

    /// A configuration, by its time and the first 16 digits of the hash of its sealed bytes.
    pub fn config(written_at: Timestamp, sealed: Digest) -> Self {
        let sealed = sealed.to_string();
        Self(format!(
            "{CONFIG_PREFIX}{}-{}.age",
            written_at.strftime("%Y%m%dT%H%M%SZ"),
            &sealed[..16]
        ))
    }

    /// The object that says which store this is.
    pub fn store_id() -> Self {
        Self(STORE_ID.to_owned())
    }

    /// A claim of a host that this shall be the store's identity.
    pub fn store_id_claim(id: &StoreId) -> Self {
        Self(format!("{STORE_ID_CLAIM_PREFIX}{id}"))
    }

    /// The signature beside this object.
    #[must_use]
    pub fn signature(&self) -> Self {
        Self(format!("{}{SIGNATURE_SUFFIX}", self.0))
    }

    /// A key that was listed, taken as it is. Refuses what no key of ours can look like.
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

    /// Takes a backup's key apart, or `None` if it is not one.
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

/// The key of the store's identity: an object that is there before anything else.
pub const STORE_ID: &str = "@zfs-backup/store-id";

/// The prefix of the claims of hosts that begin at the same time with a store that cannot create
/// objects conditionally. Each host removes its claim when the store has its identity.
pub const STORE_ID_CLAIM_PREFIX: &str = "@zfs-backup/store-id.claim-";

/// The prefix of what a probe of the store tries; nothing stays there.
pub const PROBE_PREFIX: &str = "@zfs-backup/probe/";

/// The prefix of all keyrings.
pub const KEYRING_PREFIX: &str = "@zfs-backup/keys/";

/// The prefix of the configurations that hosts keep here.
pub const CONFIG_PREFIX: &str = "@zfs-backup/config/";

/// The prefix of all objects of a dataset, without those of its children.
pub fn dataset_prefix(dataset: &DatasetName) -> String {
    format!("{dataset}/@")
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

/// The object that a name within a backup stands for; the exact inverse of [`object_name`].
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
    fn names_that_are_not_exactly_ours_are_refused() {
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
