//! [`Believed`]: the exact objects for which retired verifying keys stay trusted, collected when
//! the keys were rotated.
//!
//! An attacker with a leaked signing key can sign anything at any later time, but cannot make other
//! bytes with a listed BLAKE3. A list of hashes therefore separates "made before the rotation" from
//! "made by an attacker". Keyrings pin the list by its own BLAKE3.

use crate::model::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

const FORMAT: u32 = 1;
const TYPE: &str = "believed";

/// Hashes by folder and object name: `tank/a/@ID` has `manifest.json`, `tank/a/@prune` its records.
/// A name has several hashes if stores differ, for example in receipts.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Believed(BTreeMap<String, BTreeMap<String, Vec<Digest>>>);

#[derive(Serialize, Deserialize)]
struct StoredList<T> {
    format: u32,
    requires: Vec<String>,
    #[serde(rename = "type")]
    object_type: String,
    folders: T,
}

impl Believed {
    /// Adds one object by its key.
    pub fn insert(&mut self, key: &str, blake3: Digest) {
        let Some((folder, name)) = key.rsplit_once('/') else {
            return;
        };
        let digests = self
            .0
            .entry(folder.to_owned())
            .or_default()
            .entry(name.to_owned())
            .or_default();
        if let Err(at) = digests.binary_search(&blake3) {
            digests.insert(at, blake3);
        }
    }

    /// Adds all objects of `other`.
    pub fn extend(&mut self, other: &Self) {
        for (folder, names) in &other.0 {
            for (name, digests) in names {
                digests
                    .iter()
                    .for_each(|digest| self.insert(&format!("{folder}/{name}"), *digest));
            }
        }
    }

    /// Whether the object with this key and hash is listed.
    pub fn contains(&self, key: &str, blake3: Digest) -> bool {
        let digests = key
            .rsplit_once('/')
            .and_then(|(folder, name)| self.0.get(folder)?.get(name));
        digests.is_some_and(|digests| digests.contains(&blake3))
    }

    /// Whether an object with this key is listed, with any hash.
    pub fn names(&self, key: &str) -> bool {
        key.rsplit_once('/')
            .and_then(|(folder, name)| self.0.get(folder)?.get(name))
            .is_some()
    }

    /// Writes the stored form. Equal lists have equal bytes.
    ///
    /// # Errors
    /// This type has no error; serde's signature has one.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let stored = StoredList {
            format: FORMAT,
            requires: Vec::new(),
            object_type: TYPE.to_owned(),
            folders: &self.0,
        };
        let mut bytes = serde_json::to_vec(&stored)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads the stored form. The caller has compared the BLAKE3 of the bytes with the hash in a
    /// keyring.
    ///
    /// # Errors
    /// A sentence naming the fault: the bytes are no JSON of this type, or have a later format.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let stored: StoredList<BTreeMap<String, BTreeMap<String, Vec<Digest>>>> =
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        match (
            stored.format == FORMAT && stored.object_type == TYPE,
            stored.requires.is_empty(),
        ) {
            (true, true) => Ok(Self(stored.folders)),
            (false, _) => Err(format!("expected type {TYPE:?} of format {FORMAT}")),
            (_, false) => Err(format!(
                "it requires {:?}, which this version does not know",
                stored.requires
            )),
        }
    }
}

impl fmt::Debug for Believed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Believed({} folders)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_list_round_trips_and_matches_key_and_content() {
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        let mut list = Believed::default();
        list.insert("tank/a/@x/receipt.json", two);
        list.insert("tank/a/@x/receipt.json", one);
        list.insert("tank/a/@x/receipt.json", one);
        let mut other = Believed::default();
        other.insert("tank/a/@x/manifest.json", one);
        list.extend(&other);
        let bytes = list.to_bytes().unwrap();
        let read = Believed::parse(&bytes).unwrap();
        assert_eq!((&read, read.to_bytes().unwrap()), (&list, bytes));
        assert!(
            read.contains("tank/a/@x/receipt.json", one)
                && read.contains("tank/a/@x/receipt.json", two)
        );
        assert!(
            !read.contains("tank/a/@x/manifest.json", two),
            "another content"
        );
        assert!(
            !read.contains("tank/b/@x/manifest.json", one),
            "another place"
        );
    }

    #[test]
    fn a_list_of_a_later_format_is_refused() {
        for bytes in [
            &br#"{"format":2,"requires":[],"type":"believed","folders":{}}"#[..],
            br#"{"format":1,"requires":["x"],"type":"believed","folders":{}}"#,
            br#"{"format":1,"requires":[],"type":"receipt","folders":{}}"#,
            b"[]",
        ] {
            assert!(
                Believed::parse(bytes).is_err(),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}
