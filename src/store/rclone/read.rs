//! Reads the remote: `lsjson` for listings and single objects, `cat` for their bytes.

use super::cause::RcloneCause;
use super::place::vanished;
use super::process::{self, Call, PARTIAL_SUFFIX};
use super::{RcloneStore, unreadable};
use crate::store::adapter::Adapter;
use crate::store::folders::{Folders, Level, walk};
use crate::store::hash::HashKind;
use crate::store::{
    Evidence, EvidenceTier, ListedObject, ObjectKey, StoreError, StoreErrorKind, UnfinishedUpload,
};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::Duration;

/// The largest output of a listing: about five million objects.
const LISTING_BYTES_MAX: u64 = 1 << 30;
/// The time limit of a listing. With hashes the remote may request every object, or read it if it
/// computes hashes on demand.
const LISTING_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// The maximum number of reads. rclone retries failures before the first byte; a read that breaks
/// off is retried here.
const READ_TRIES_MAX: u32 = 3;

/// An entry of `lsjson`.
#[derive(Deserialize, Debug)]
pub(super) struct LsEntry {
    #[serde(rename = "Path")]
    path: String,
    /// The size; negative if the remote does not know it.
    #[serde(rename = "Size")]
    size: i64,
    #[serde(rename = "ModTime", default)]
    modified: String,
    #[serde(rename = "IsDir")]
    is_folder: bool,
    #[serde(rename = "Hashes", default)]
    hashes: Option<HashMap<String, String>>,
}

impl Adapter for RcloneStore {
    fn url(&self) -> &str {
        &self.url
    }

    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
        _buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        let range = match range {
            Some(range) if range.start < range.end => range,
            other => {
                let bytes = self.find_object("get", key).await?.map(|found| found.bytes);
                match (other, bytes) {
                    (None, Some(bytes)) if bytes > limit_bytes => {
                        let text =
                            format!("it has {bytes} bytes, more than the {limit_bytes} allowed");
                        return Err(self.wrong(StoreErrorKind::Corrupt, "get", key.as_str(), text));
                    }
                    (None, Some(bytes)) if bytes > 0 => 0..bytes,
                    (other, bytes) => {
                        self.check_range(key, &other.unwrap_or(0..0), bytes)?;
                        return Ok(BytesMut::new());
                    }
                }
            }
        };
        let mut tries_left = READ_TRIES_MAX;
        loop {
            tries_left -= 1;
            match self.read_once(key, &range).await {
                Err(error) if error.kind == StoreErrorKind::Unavailable && tries_left > 0 => {
                    tracing::debug!(%key, %error, "reading again");
                }
                ended => return ended.map(BytesMut::from),
            }
        }
    }
}

impl RcloneStore {
    /// Returns the evidence for the object, or `None` if it does not exist and the root folder
    /// does.
    pub(super) async fn find_object(
        &self,
        operation: &str,
        key: &ObjectKey,
    ) -> Result<Option<Evidence>, StoreError> {
        let found = self
            .stat(key.as_str())
            .await
            .map_err(|cause| self.failed(operation, key.as_str(), cause))?;
        match found {
            Some(entry) => self.evidence(key.as_str(), &entry).map(Some),
            None => {
                if !self.buckets {
                    self.demand_same_place(operation).await?;
                }
                Ok(None)
            }
        }
    }

    /// Reads the entry of one file. rclone returns `null` for missing files and for folders.
    async fn stat(&self, key: &str) -> Result<Option<LsEntry>, RcloneCause> {
        let arguments = [
            "lsjson",
            "--stat",
            "--files-only",
            "--no-mimetype",
            "--no-modtime",
        ];
        let mut arguments: Vec<&str> = arguments.to_vec();
        let hash = self.hash.map(hash_flag);
        arguments.extend(hash.iter().flat_map(|flag| ["--hash", flag.as_str()]));
        let ended = self
            .run(&arguments, &[self.settings.place_of(key)], false)
            .await?;
        if let Some(cause) = ended.failure {
            return Err(cause);
        }
        let entry: Option<LsEntry> =
            serde_json::from_slice(&ended.output).map_err(|error| unreadable(&error))?;
        Ok(entry.filter(|entry| !entry.is_folder))
    }

    pub(super) fn evidence(&self, key: &str, entry: &LsEntry) -> Result<Evidence, StoreError> {
        let bytes = u64::try_from(entry.size).map_err(|_| {
            let text = "the remote does not say how long it is";
            self.wrong(StoreErrorKind::Unsupported, "check", key, text)
        })?;
        let hashes = entry.hashes.as_ref();
        let hash = self.hash.and_then(|kind| {
            Some((
                kind,
                hashes?.get(kind.name()).filter(|text| !text.is_empty())?,
            ))
        });
        let tier = hash.map_or(EvidenceTier::SizeOnly, |(kind, _)| kind.tier());
        let checksum = hash.map(|(_, text)| text.to_ascii_lowercase());
        // An MD5 is compared in the same place as S3's ETags.
        let etag = checksum.clone().filter(|_| tier == EvidenceTier::Md5Etag);
        Ok(Evidence {
            checksum,
            etag,
            ..Evidence::of_size(tier, bytes)
        })
    }

    /// Returns the files whose keys begin with `prefix`, by key. Complete, or an error.
    pub(super) async fn entries(
        &self,
        prefix: &str,
        hashes: bool,
    ) -> Result<BTreeMap<String, LsEntry>, StoreError> {
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut arguments = vec!["-R", "--files-only", "--use-server-modtime"];
        let kind = self.hash.filter(|_| hashes).map(hash_flag);
        if let Some(kind) = &kind {
            arguments.extend(["--hash", kind]);
        }
        let entries = self.list_json(prefix, folder, &arguments).await?;
        let files = entries.into_iter().filter(|entry| !entry.is_folder);
        self.below(prefix, folder, files.collect()).await
    }

    /// Lists the folders of keys, level by level.
    pub(super) async fn list_folders_of(
        &self,
        prefix: &str,
        delimiter: char,
    ) -> Result<Vec<String>, StoreError> {
        let list = |above: String| async move {
            let folder = above.trim_end_matches('/');
            let entries = self.list_json(prefix, folder, &["--no-modtime"]).await?;
            let (folders, files): (Vec<_>, Vec<_>) =
                entries.into_iter().partition(|entry| entry.is_folder);
            let files = self.below(&above, folder, files).await?;
            let folders = folders
                .iter()
                .map(|entry| format!("{above}{}/", entry.path));
            let keys = files.into_keys().filter(|key| partial_of(key).is_none());
            Ok(Level {
                folders: folders.collect(),
                keys: keys.collect(),
            })
        };
        let too_many = |text| self.wrong(StoreErrorKind::Corrupt, "list", prefix, text);
        walk(Folders::new(prefix, delimiter), list, too_many).await
    }

    /// Runs `lsjson` on a folder. A missing folder is empty.
    async fn list_json(
        &self,
        prefix: &str,
        folder: &str,
        arguments: &[&str],
    ) -> Result<Vec<LsEntry>, StoreError> {
        let failed = |cause| self.failed("list", prefix, cause);
        let arguments = ["lsjson"].iter().chain(arguments).chain(&["--no-mimetype"]);
        let arguments = arguments.map(|&argument| argument.to_owned()).collect();
        let places = vec![self.settings.place_of(folder)];
        let output_bytes_max = LISTING_BYTES_MAX;
        let limit = LISTING_LIMIT;
        let call = Call {
            arguments,
            places,
            stdin: None,
            output_bytes_max,
            limit,
            quiet: true,
        };
        let ended = process::run(&self.settings, call).await.map_err(failed)?;
        match ended.failure {
            None => {}
            // An empty listing is trusted only if rclone itself reports the missing folder, and
            // only while the root folder exists.
            Some(cause) if cause.is_no_folder() && !folder.is_empty() => {
                self.demand_same_place("list").await?;
                return Ok(Vec::new());
            }
            Some(cause) => return Err(vanished(failed(cause))),
        }
        let entries: Vec<LsEntry> =
            serde_json::from_slice(&ended.output).map_err(|error| failed(unreadable(&error)))?;
        if entries.is_empty() && !self.buckets {
            self.demand_same_place("list").await?;
        }
        Ok(entries)
    }

    async fn below(
        &self,
        prefix: &str,
        folder: &str,
        entries: Vec<LsEntry>,
    ) -> Result<BTreeMap<String, LsEntry>, StoreError> {
        let leaf = folder.rsplit('/').next().unwrap_or_default();
        // rclone lists a file as if it were a folder that contains itself.
        if let [only] = entries.as_slice()
            && !folder.is_empty()
            && only.path == leaf
            && self
                .stat(folder)
                .await
                .map_err(|cause| self.failed("list", prefix, cause))?
                .is_some()
        {
            return Ok(BTreeMap::new());
        }
        let slash = if folder.is_empty() { "" } else { "/" };
        let mut known = BTreeMap::new();
        for entry in entries {
            let key = format!("{folder}{slash}{}", entry.path);
            if !key.starts_with(prefix) {
                continue;
            }
            if known.insert(key.clone(), entry).is_some() {
                let error = self.wrong(
                    StoreErrorKind::Corrupt,
                    "list",
                    &key,
                    "the remote has two files of this name",
                );
                let place = self.settings.place();
                let quoted = shell_words::quote(&place);
                let hint = format!("`rclone dedupe {quoted}` keeps one of them");
                return Err(error.with_hint(hint));
            }
        }
        Ok(known)
    }

    pub(super) async fn list_objects(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let entries = self.entries(prefix, false).await?.into_iter();
        let listed = |(key, entry): (String, LsEntry)| {
            let bytes = self.evidence(&key, &entry)?.bytes;
            Ok(ListedObject {
                key,
                bytes,
                modified_at: entry.modified.parse::<Timestamp>().ok(),
            })
        };
        entries
            .filter(|(key, _)| partial_of(key).is_none())
            .map(listed)
            .collect()
    }

    pub(super) async fn list_partial(
        &self,
        prefix: &str,
    ) -> Result<Vec<UnfinishedUpload>, StoreError> {
        let operation = "list unfinished uploads under";
        let entries = self.entries(prefix, false).await;
        let entries = entries.map_err(|error| StoreError {
            operation: operation.to_owned(),
            ..error
        })?;
        let begun = |(name, entry): (String, LsEntry)| {
            let key = partial_of(&name)?.to_owned();
            Some(UnfinishedUpload {
                key,
                upload_id: name,
                started_at: entry.modified.parse::<Timestamp>().ok(),
            })
        };
        Ok(entries.into_iter().filter_map(begun).collect())
    }

    /// Reads exactly this range. rclone reports success even if the object does not exist, so the
    /// number of bytes decides.
    async fn read_once(&self, key: &ObjectKey, range: &Range<u64>) -> Result<Bytes, StoreError> {
        let len = range.end - range.start;
        // Ranges of chunks are short, so a wait before each of them is smooth enough. `--bwlimit`
        // would limit each process for itself.
        if let Some(limiter) = &self.settings.limiter_down {
            limiter
                .admit(usize::try_from(len).unwrap_or(usize::MAX))
                .await;
        }
        let offset = format!("--offset={}", range.start);
        let count = format!("--count={len}");
        let call = Call {
            arguments: vec!["cat".to_owned(), offset, count],
            places: vec![self.settings.place_of(key.as_str())],
            stdin: None,
            output_bytes_max: len,
            limit: self.settings.call_limit(len),
            quiet: true,
        };
        let ended = process::run(&self.settings, call).await;
        let cause = match ended {
            Ok(ended) if ended.failure.is_none() && ended.output.len() as u64 == len => {
                return Ok(ended.output.into());
            }
            Ok(ended) => ended.failure.unwrap_or_else(|| {
                let text = format!(
                    "{len} bytes were requested, {} received",
                    ended.output.len()
                );
                RcloneCause::ours(StoreErrorKind::Unavailable, text)
            }),
            Err(cause) => cause,
        };
        let bytes = self.find_object("get", key).await?.map(|found| found.bytes);
        self.check_range(key, range, bytes)?;
        Err(self.failed("get", key.as_str(), cause))
    }
}

/// Returns the better of the hashes that a remote has and that can be compared.
pub(super) fn best_hash(names: &[String]) -> Option<HashKind> {
    [HashKind::Sha1, HashKind::Md5]
        .into_iter()
        .find(|kind| names.iter().any(|name| name == kind.name()))
}

fn hash_flag(kind: HashKind) -> String {
    format!("--hash-type={}", kind.name())
}

/// Returns the key of a partial file: `KEY.1a2b3c4d.zb-partial`.
pub(super) fn partial_of(name: &str) -> Option<&str> {
    let (key, nonce) = name.strip_suffix(PARTIAL_SUFFIX)?.rsplit_once('.')?;
    let hex = nonce.len() == 8 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hex && !key.is_empty() && !key.ends_with('/')).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_written_files_are_known_by_their_names() {
        for (name, key) in [
            ("a/b.0a1b2c3d.zb-partial", Some("a/b")),
            ("a/b.age.00000000.zb-partial", Some("a/b.age")),
            ("a/b.zb-partial", None),
            ("a/.0a1b2c3d.zb-partial", None),
            ("a/b.0a1b2c3d.partial", None),
            ("a/b.0a1b2c3.zb-partial", None),
        ] {
            assert_eq!(partial_of(name), key, "{name}");
        }
    }
}
