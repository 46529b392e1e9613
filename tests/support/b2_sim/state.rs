//! Keys, tokens, buckets and versions, and the rules about names and rights.

use super::http::{Answer, Head};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Clone)]
pub(super) struct Key {
    pub(super) secret: String,
    pub(super) capabilities: Vec<String>,
    /// The names of the allowed buckets; `None` for all.
    pub(super) buckets: Option<Vec<String>>,
    pub(super) prefix: Option<String>,
}

pub(super) struct Bucket {
    pub(super) id: String,
    pub(super) name: String,
    /// Whether files may be locked.
    pub(super) locks: bool,
    pub(super) public: bool,
    pub(super) lifecycle: Value,
    /// Versions by name, newest first.
    pub(super) files: BTreeMap<String, Vec<Version>>,
}

pub(super) struct Part {
    pub(super) data: Vec<u8>,
    pub(super) sha1: String,
    pub(super) timestamp: u64,
}

pub(super) struct Version {
    pub(super) id: String,
    pub(super) name: String,
    /// `upload`, `hide` or `start`.
    pub(super) action: &'static str,
    pub(super) content_type: String,
    /// The reported SHA-1: 40 digits, `none`, or `unverified:` and digits.
    pub(super) sha1: Option<String>,
    pub(super) info: BTreeMap<String, String>,
    pub(super) timestamp: u64,
    pub(super) data: Vec<u8>,
    pub(super) parts: BTreeMap<u32, Part>,
    /// The mode of the lock, and its end in milliseconds.
    pub(super) retention: Option<(String, u64)>,
}

/// An upload token: the file or bucket it is for, the key it belongs to, and whether an upload is
/// running.
pub(super) struct Upload {
    pub(super) key: Key,
    /// The id of a bucket or of a large file.
    pub(super) target: String,
    pub(super) path: String,
    pub(super) busy: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) keys: HashMap<String, Key>,
    pub(super) buckets: Vec<Bucket>,
    pub(super) tokens: HashMap<String, Key>,
    pub(super) expired: BTreeSet<String>,
    pub(super) uploads: HashMap<String, Upload>,
    last_number: u64,
    last_millis: u64,
}

pub(super) fn sha1_hex(bytes: &[u8]) -> String {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes)
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(super) fn bad_request(message: &str) -> Answer {
    Answer::refused(400, "bad_request", message)
}

pub(super) fn unauthorized(message: &str) -> Answer {
    Answer::refused(401, "unauthorized", message)
}

impl State {
    pub(super) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Returns milliseconds that never repeat, so that the order of versions is unambiguous.
    pub(super) fn now(&mut self) -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis();
        self.last_millis = u64::try_from(now).unwrap().max(self.last_millis + 1);
        self.last_millis
    }

    pub(super) fn add_bucket(&mut self, name: &str) {
        let id = format!("bucket{:08x}", self.number());
        self.buckets.push(Bucket {
            id,
            name: name.to_owned(),
            locks: false,
            public: false,
            lifecycle: Value::Array(Vec::new()),
            files: BTreeMap::new(),
        });
    }

    pub(super) fn expire_tokens(&mut self) {
        self.expired
            .extend(self.tokens.drain().map(|(token, _)| token));
        self.expired
            .extend(self.uploads.drain().map(|(token, _)| token));
    }

    /// Returns the key that the request's token belongs to.
    pub(super) fn key_of(&self, head: &Head) -> Result<Key, Answer> {
        let token = head.header("authorization").unwrap_or_default();
        match self.tokens.get(token) {
            Some(key) => Ok(key.clone()),
            None if self.expired.contains(token) => Err(Answer::refused(
                401,
                "expired_auth_token",
                "Authorization token has expired",
            )),
            None => Err(Answer::refused(
                401,
                "bad_auth_token",
                "Invalid authorization token",
            )),
        }
    }

    pub(super) fn bucket_index(&self, id: &str) -> Result<usize, Answer> {
        let found = self.buckets.iter().position(|bucket| bucket.id == id);
        found.ok_or_else(|| {
            Answer::refused(400, "bad_bucket_id", &format!("Bucket {id} does not exist"))
        })
    }

    /// Returns the bucket and the name of a version.
    pub(super) fn find(&self, file_id: &str) -> Option<(usize, String)> {
        self.buckets.iter().enumerate().find_map(|(n, bucket)| {
            let version = bucket
                .files
                .values()
                .flatten()
                .find(|version| version.id == file_id)?;
            Some((n, version.name.clone()))
        })
    }

    pub(super) fn version_mut(&mut self, file_id: &str) -> Option<&mut Version> {
        self.buckets
            .iter_mut()
            .flat_map(|bucket| bucket.files.values_mut().flatten())
            .find(|v| v.id == file_id)
    }

    pub(super) fn version(&self, file_id: &str) -> Option<&Version> {
        self.buckets
            .iter()
            .flat_map(|bucket| bucket.files.values().flatten())
            .find(|v| v.id == file_id)
    }

    /// Adds a version as the newest of its name.
    pub(super) fn add_version(&mut self, bucket: usize, mut version: Version) -> &Version {
        let number = self.number();
        version.id = format!("4_z{}_f{number:016x}", self.buckets[bucket].id);
        version.timestamp = self.now();
        let versions = self.buckets[bucket]
            .files
            .entry(version.name.clone())
            .or_default();
        versions.insert(0, version);
        &versions[0]
    }

    pub(super) fn remove(&mut self, bucket: usize, name: &str, id: &str) {
        let files = &mut self.buckets[bucket].files;
        if let Some(versions) = files.get_mut(name) {
            versions.retain(|version| version.id != id);
            if versions.is_empty() {
                files.remove(name);
            }
        }
    }

    pub(super) fn add_marker(&mut self, bucket: usize, name: &str) -> &Version {
        self.add_version(
            bucket,
            Version {
                action: "hide",
                ..Version::new(name, None, Vec::new())
            },
        )
    }

    pub(super) fn plant(&mut self, name: &str, bytes: &[u8]) {
        self.add_version(0, Version::new(name, Some(sha1_hex(bytes)), bytes.to_vec()));
    }
}

impl Version {
    pub(super) fn new(name: &str, sha1: Option<String>, data: Vec<u8>) -> Self {
        Self {
            id: String::new(),
            name: name.to_owned(),
            action: "upload",
            content_type: "application/octet-stream".to_owned(),
            sha1,
            info: BTreeMap::new(),
            timestamp: 0,
            data,
            parts: BTreeMap::new(),
            retention: None,
        }
    }
}

impl Key {
    /// Refuses a call that the key does not allow in this bucket with this name or prefix.
    pub(super) fn check(
        &self,
        capability: &str,
        bucket: Option<&Bucket>,
        name: Option<&str>,
    ) -> Result<(), Answer> {
        if !self.capabilities.iter().any(|has| has == capability) {
            return Err(unauthorized(&format!("not entitled: {capability}")));
        }
        if let (Some(allowed), Some(bucket)) = (&self.buckets, bucket)
            && !allowed.contains(&bucket.name)
        {
            return Err(unauthorized("not entitled to this bucket"));
        }
        match (&self.prefix, name) {
            (Some(prefix), Some(name)) if !name.starts_with(prefix.as_str()) => {
                Err(unauthorized("not entitled to names like this"))
            }
            _ => Ok(()),
        }
    }
}

/// Checks B2's rules for locks: the bucket must have file lock enabled, the key must be allowed to
/// lock, and the time must be in the future.
pub(super) fn check_retention(
    key: &Key,
    bucket: &Bucket,
    mode: &str,
    until: Option<u64>,
) -> Result<(String, u64), Answer> {
    key.check("writeFileRetentions", Some(bucket), None)?;
    if !bucket.locks {
        return Err(bad_request("The bucket does not have Object Lock enabled"));
    }
    let now = u64::try_from(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis(),
    )
    .unwrap();
    match until.filter(|until| *until > now && ["governance", "compliance"].contains(&mode)) {
        Some(until) => Ok((mode.to_owned(), until)),
        None => Err(bad_request("bad file retention")),
    }
}

/// B2's rules for names of files.
pub(super) fn check_name(name: &str) -> Result<(), Answer> {
    let bad = name.is_empty()
        || name.len() > 1024
        || name.starts_with('/')
        || name.ends_with('/')
        || name.contains("//")
        || name.bytes().any(|byte| byte < 32 || byte == 127);
    if bad {
        Err(bad_request(&format!(
            "File names must not look like {name:?}"
        )))
    } else {
        Ok(())
    }
}

/// B2's rules for the information kept with a file.
pub(super) fn check_info(info: &BTreeMap<String, String>) -> Result<(), Answer> {
    let bytes: usize = info
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let plain = |name: &String| {
        (1..=50).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
    };
    match info.len() <= 10 && bytes <= 7000 && info.keys().all(plain) {
        true => Ok(()),
        false => Err(bad_request("bad file info")),
    }
}
