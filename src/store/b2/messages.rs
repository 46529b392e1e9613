//! B2's responses, with the fields that this program reads.

use super::cause::B2Cause;
use crate::store::{Evidence, EvidenceTier, ListedObject, StoreErrorKind};
use jiff::Timestamp;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The entry of a file's information that keeps the part size, which is needed to recompute part
/// checksums.
pub(super) const PART_BYTES_ENTRY: &str = "part-bytes";
/// The entry by which an upload is found again if its response was lost.
pub(super) const ATTEMPT_ENTRY: &str = "attempt";
/// The entry that B2's own tools use for the SHA-1 of a large file. B2 keeps it and does not check
/// it.
pub(super) const DECLARED_SHA1_ENTRY: &str = "large_file_sha1";
/// The prefix of a SHA-1 that B2 computed but did not compare with the client's.
const UNVERIFIED: &str = "unverified:";

/// The response to `b2_authorize_account`, of API version 3 or 4.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Authorized {
    pub(super) account_id: String,
    pub(super) authorization_token: String,
    api_info: ApiInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApiInfo {
    storage_api: Option<StorageApi>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StorageApi {
    pub(super) api_url: String,
    pub(super) download_url: String,
    pub(super) absolute_minimum_part_size: u64,
    /// Version 4 describes the key's rights here; version 3 has them in the fields below.
    allowed: Option<Allowed>,
    bucket_id: Option<String>,
    bucket_name: Option<String>,
    name_prefix: Option<String>,
    capabilities: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Allowed {
    buckets: Option<Vec<AllowedBucket>>,
    #[serde(default)]
    capabilities: Vec<String>,
    name_prefix: Option<String>,
}

/// A bucket that a restricted key may use. The name is missing if the bucket no longer exists.
#[derive(Deserialize, Clone)]
pub(super) struct AllowedBucket {
    pub(super) id: String,
    pub(super) name: Option<String>,
}

/// The rights of an application key.
#[derive(Clone)]
pub(super) struct KeyRights {
    /// The allowed buckets; `None` means all.
    pub(super) buckets: Option<Vec<AllowedBucket>>,
    pub(super) capabilities: Vec<String>,
    /// The prefix that all names must have.
    pub(super) name_prefix: Option<String>,
}

impl Authorized {
    /// Returns the addresses and the rights of the key. A key without the storage API is for
    /// another service.
    pub(super) fn into_storage(self) -> Result<(String, String, StorageApi, KeyRights), B2Cause> {
        let mut storage = self.api_info.storage_api.ok_or_else(|| {
            B2Cause::ours(
                StoreErrorKind::Denied,
                "this application key is not for B2's storage",
            )
            .with_hint(
                "make an application key for the bucket, with readFiles, writeFiles and listFiles",
            )
        })?;
        let rights = match storage.allowed.take() {
            Some(allowed) => KeyRights {
                buckets: allowed.buckets,
                capabilities: allowed.capabilities,
                name_prefix: allowed.name_prefix,
            },
            None => KeyRights {
                buckets: storage.bucket_id.take().map(|id| {
                    vec![AllowedBucket {
                        id,
                        name: storage.bucket_name.take(),
                    }]
                }),
                capabilities: storage.capabilities.take().unwrap_or_default(),
                name_prefix: storage.name_prefix.take(),
            },
        };
        Ok((self.account_id, self.authorization_token, storage, rights))
    }
}

#[derive(Deserialize)]
pub(super) struct Buckets {
    pub(super) buckets: Vec<Bucket>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bucket {
    pub(super) bucket_id: String,
    pub(super) bucket_name: String,
    pub(super) bucket_type: Option<String>,
    #[serde(default)]
    pub(super) lifecycle_rules: Vec<BucketRule>,
    pub(super) file_lock_configuration: Option<Readable<FileLock>>,
}

/// A lifecycle rule of a bucket. B2 applies one rule to each name: the one with the longest
/// matching prefix.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BucketRule {
    #[serde(default)]
    pub(super) file_name_prefix: String,
    pub(super) days_from_uploading_to_hiding: Option<u32>,
    pub(super) days_from_hiding_to_deleting: Option<u32>,
    pub(super) days_from_starting_to_canceling_unfinished_large_files: Option<u32>,
}

/// A value that needs a capability to be read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Readable<T> {
    pub(super) is_client_authorized_to_read: bool,
    pub(super) value: Option<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileLock {
    #[serde(default)]
    pub(super) is_file_lock_enabled: bool,
}

/// An upload URL, for one upload at a time.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UploadUrl {
    pub(super) upload_url: String,
    pub(super) authorization_token: String,
}

/// A version of a name: a file, a hide marker, or an unfinished large file (`start`).
#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileVersion {
    pub(super) file_id: Option<String>,
    pub(super) file_name: String,
    /// The kind of version. Some calls omit it if it can only be `upload`.
    #[serde(default = "upload")]
    pub(super) action: String,
    #[serde(default)]
    pub(super) content_length: u64,
    pub(super) content_sha1: Option<String>,
    #[serde(default)]
    pub(super) file_info: Option<BTreeMap<String, String>>,
    pub(super) upload_timestamp: Option<i64>,
    file_retention: Option<Retention>,
}

fn upload() -> String {
    "upload".to_owned()
}

#[derive(Deserialize, Clone)]
struct Retention {
    value: Option<RetentionValue>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct RetentionValue {
    retain_until_timestamp: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FileVersions {
    pub(super) files: Vec<FileVersion>,
    pub(super) next_file_name: Option<String>,
    pub(super) next_file_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UnfinishedFiles {
    pub(super) files: Vec<FileVersion>,
    pub(super) next_file_id: Option<String>,
}

/// The response to the upload of a part.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StoredPart {
    pub(super) part_number: u32,
    pub(super) content_length: u64,
    pub(super) content_sha1: String,
}

/// A response whose content is ignored.
#[derive(Deserialize)]
pub(super) struct Ignored {}

impl FileVersion {
    /// Whether the version is a file with bytes; "copy" is one that the store made from another.
    pub(super) fn is_upload(&self) -> bool {
        matches!(self.action.as_str(), "upload" | "copy")
    }

    /// Whether the entry stands for all names that begin like this, in a listing with a delimiter.
    pub(super) fn is_folder(&self) -> bool {
        self.action == "folder"
    }

    pub(super) fn is_hidden_marker(&self) -> bool {
        self.action == "hide"
    }

    pub(super) fn has_id(&self, id: &str) -> bool {
        self.file_id.as_deref() == Some(id)
    }

    pub(super) fn info(&self, entry: &str) -> Option<&str> {
        self.file_info.as_ref()?.get(entry).map(String::as_str)
    }

    /// Returns the SHA-1 that B2 computed over the whole file; a large file has none.
    pub(super) fn sha1(&self) -> Option<&str> {
        let text = self.content_sha1.as_deref()?;
        let text = text.strip_prefix(UNVERIFIED).unwrap_or(text);
        (text.len() == 40).then_some(text)
    }

    pub(super) fn uploaded_at(&self) -> Option<Timestamp> {
        self.upload_timestamp
            .and_then(|millis| Timestamp::from_millisecond(millis).ok())
    }

    /// Returns the file's entry in a listing.
    pub(super) fn listed(&self, key: String) -> ListedObject {
        ListedObject {
            key,
            bytes: self.content_length,
            modified_at: self.uploaded_at(),
        }
    }

    /// Returns the store's evidence. A large file has no SHA-1 computed by B2: its id, whose
    /// content never changes, is then the evidence, and a declared SHA-1 is added for readers of
    /// the whole file.
    pub(super) fn evidence(&self) -> Evidence {
        let (tier, checksum) = match self.sha1() {
            Some(sha1) => (EvidenceTier::Sha1, Some(sha1)),
            None => (EvidenceTier::IdPin, self.info(DECLARED_SHA1_ENTRY)),
        };
        let locked = self
            .file_retention
            .as_ref()
            .and_then(|retention| retention.value.as_ref());
        let locked = locked.and_then(|value| value.retain_until_timestamp);
        Evidence {
            tier,
            bytes: self.content_length,
            checksum: checksum.map(str::to_owned),
            etag: None,
            version_id: self.file_id.clone(),
            part_bytes: self
                .info(PART_BYTES_ENTRY)
                .and_then(|bytes| bytes.parse().ok()),
            locked_until: locked
                .and_then(|millis| Timestamp::from_millisecond(millis).ok())
                .map(|at| at.to_string()),
        }
    }
}

/// Parses bytes as each of the responses.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read_any_answer(bytes: &[u8]) {
    let file = |file: &FileVersion| {
        let evidence = file.evidence();
        let _ = (
            file.is_upload(),
            file.is_hidden_marker(),
            file.uploaded_at(),
        );
        assert!(
            file.sha1()
                .is_none_or(|sha1| evidence.checksum.as_deref() == Some(sha1))
        );
    };
    if let Ok(authorized) = serde_json::from_slice::<Authorized>(bytes) {
        let _ = authorized.into_storage().map_err(|cause| cause.to_string());
    }
    if let Ok(versions) = serde_json::from_slice::<FileVersions>(bytes) {
        versions.files.iter().for_each(file);
        let count = versions.files.len();
        assert!(super::list::live_of(versions.files).len() <= count);
    }
    if let Ok(unfinished) = serde_json::from_slice::<UnfinishedFiles>(bytes) {
        unfinished.files.iter().for_each(file);
    }
    let _ = serde_json::from_slice::<FileVersion>(bytes).map(|version| file(&version));
    let _ = serde_json::from_slice::<Buckets>(bytes);
    let _ = serde_json::from_slice::<UploadUrl>(bytes);
    let _ = serde_json::from_slice::<StoredPart>(bytes);
    let _ = serde_json::from_slice::<Ignored>(bytes);
    for status in [400, 401, 403, 429, 503, 999] {
        let cause = B2Cause::refused(status, bytes, None);
        let _ = (
            cause.kind(),
            cause.hint("b2_upload_file", "https://a"),
            cause.is_transient(),
            cause.to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(text: &str) -> (StorageApi, KeyRights) {
        let authorized: Authorized = serde_json::from_str(text).unwrap();
        let (account, token, storage, rights) = authorized.into_storage().ok().unwrap();
        assert_eq!((account.as_str(), token.as_str()), ("acc", "tok"));
        (storage, rights)
    }

    #[test]
    fn both_shapes_of_an_authorization_are_read() {
        let urls = r#""apiUrl": "https://api5", "downloadUrl": "https://f5", "s3ApiUrl": "https://s3",
            "recommendedPartSize": 100000000, "absoluteMinimumPartSize": 5000000, "infoType": "storageApi""#;
        let whole = |rest: &str| {
            let storage = format!(r#""storageApi": {{{urls}, {rest}}}, "groupsApi": {{}}"#);
            format!(
                r#"{{"accountId": "acc", "authorizationToken": "tok", "apiInfo": {{{storage}}}}}"#
            )
        };
        let (v3, v3_rights) = storage(&whole(
            r#""bucketId": "b1", "bucketName": "one", "namePrefix": "nas/", "capabilities": ["listFiles"]"#,
        ));
        let (v4, v4_rights) = storage(&whole(
            r#""allowed": {"buckets": [{"id": "b1", "name": "one"}, {"id": "b2", "name": null}],
               "capabilities": ["listFiles"], "namePrefix": "nas/"}"#,
        ));
        for (storage, rights, buckets) in [(v3, v3_rights, 1), (v4, v4_rights, 2)] {
            assert_eq!(storage.api_url, "https://api5");
            assert_eq!(storage.absolute_minimum_part_size, 5_000_000);
            let listed = rights.buckets.unwrap();
            assert_eq!(
                (listed.len(), listed[0].name.as_deref()),
                (buckets, Some("one"))
            );
            assert_eq!(
                (rights.capabilities, rights.name_prefix.as_deref()),
                (vec!["listFiles".into()], Some("nas/"))
            );
        }
        let (_, unrestricted) = storage(&whole(
            r#""allowed": {"buckets": null, "capabilities": []}"#,
        ));
        assert!(unrestricted.buckets.is_none());
        let (_, unrestricted) = storage(&whole(
            r#""bucketId": null, "bucketName": null, "capabilities": []"#,
        ));
        assert!(unrestricted.buckets.is_none());
    }

    #[test]
    fn evidence_is_a_sha1_only_where_b2_computed_one() {
        let sha1 = "a".repeat(40);
        for (content, declared, tier, checksum) in [
            (sha1.as_str(), "", EvidenceTier::Sha1, Some(sha1.as_str())),
            (
                &format!("unverified:{sha1}"),
                "",
                EvidenceTier::Sha1,
                Some(sha1.as_str()),
            ),
            ("none", "", EvidenceTier::IdPin, None),
            ("none", "dd", EvidenceTier::IdPin, Some("dd")),
        ] {
            let info = if declared.is_empty() {
                String::new()
            } else {
                format!(r#""large_file_sha1": "{declared}""#)
            };
            let text = format!(
                r#"{{"fileId": "f", "fileName": "n", "action": "upload", "contentLength": 7, "contentSha1": "{content}",
                "fileInfo": {{{info}}}, "uploadTimestamp": 1763000000000,
                "fileRetention": {{"isClientAuthorizedToRead": true, "value": {{"mode": "governance", "retainUntilTimestamp": 1763000001000}}}}}}"#
            );
            let file: FileVersion = serde_json::from_str(&text).unwrap();
            let evidence = file.evidence();
            assert_eq!(
                (evidence.tier, evidence.checksum.as_deref()),
                (tier, checksum),
                "{content}"
            );
            assert_eq!(
                (evidence.bytes, evidence.version_id.as_deref()),
                (7, Some("f"))
            );
            assert_eq!(
                evidence.locked_until.as_deref(),
                Some("2025-11-13T02:13:21Z")
            );
        }
    }
}
