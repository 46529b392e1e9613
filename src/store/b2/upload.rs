//! The calls of a large file.

use super::Shared;
use super::cause::B2Cause;
use super::client::{Retries, Session, TRIES_MAX, UrlPool};
use super::messages::{
    ATTEMPT_ENTRY, DECLARED_SHA1_ENTRY, FileVersion, PART_BYTES_ENTRY, StoredPart,
};
use super::put::{SHA1_HEADER, SentFile, UPLOAD_TRIES_MAX, value};
use crate::store::adapter::Adapter;
use crate::store::hash::{HashKind, PartHash};
use crate::store::multipart::MultipartStore;
use crate::store::work::random_u64;
use crate::store::{Evidence, ObjectKey, Patience, StoreError, StoreErrorKind, StoreTraits};
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Semaphore;

const START: &str = "b2_start_large_file";
const PART: &str = "b2_upload_part";
const FINISH: &str = "b2_finish_large_file";
const PART_HEADER: HeaderName = HeaderName::from_static("x-bz-part-number");

/// A large file that was begun.
pub(super) struct LargeFile {
    pub(super) id: String,
    urls: UrlPool,
    /// Whether the file is complete, so that no upload is left to cancel.
    is_complete: AtomicBool,
}

impl AsRef<str> for LargeFile {
    fn as_ref(&self) -> &str {
        &self.id
    }
}

impl MultipartStore for Shared {
    type Upload = LargeFile;
    type Part = PartHash;

    fn traits(&self) -> &StoreTraits {
        &self.traits
    }

    fn places(&self) -> &Arc<Semaphore> {
        &self.places
    }

    fn patience(&self) -> &Patience {
        &self.settings.patience
    }

    async fn begin(&self, key: &ObjectKey) -> Result<LargeFile, StoreError> {
        self.begin_large(key, None).await
    }

    /// Sends one part until the store has it. A repeated part replaces itself, so a retry is always
    /// safe.
    async fn put_part(
        &self,
        key: &ObjectKey,
        large: &LargeFile,
        number: u16,
        part: Bytes,
    ) -> Result<PartHash, StoreError> {
        let operation = format!("upload part {number} of");
        let hash = HashKind::Sha1.hash_blocking(part.clone()).await;
        let bytes = hash.bytes;
        let sha1 = hash.hex();
        let mut retries = Retries::new(&self.settings, UPLOAD_TRIES_MAX);
        loop {
            match self.try_part(large, number, &part, &sha1).await {
                Ok(stored) if stored.content_sha1 == sha1 && stored.content_length == bytes => {
                    return Ok(hash);
                }
                Ok(stored) => {
                    let text = format!(
                        "{bytes} bytes with SHA-1 {sha1} were sent as part {number}, the store has {} with {} as part {}",
                        stored.content_length, stored.content_sha1, stored.part_number
                    );
                    return Err(self.wrong(
                        StoreErrorKind::Corrupt,
                        &operation,
                        key.as_str(),
                        text,
                    ));
                }
                Err(cause) if cause.wants_new_url() && retries.wait(&cause).await => {
                    tracing::debug!(%key, number, %cause, "part failed; trying another URL");
                }
                Err(cause) => return Err(self.failed(&operation, PART, key.as_str(), cause)),
            }
        }
    }

    async fn finish(
        &self,
        key: &ObjectKey,
        large: &LargeFile,
        parts: &[PartHash],
    ) -> Result<Evidence, StoreError> {
        let operation = "complete upload of";
        match self.live(operation, key).await? {
            None => self.finish_large(key, large, parts).await?,
            // An earlier request completed the file, and its response was lost.
            Some(found) if found.has_id(&large.id) => {}
            Some(_) => return Err(self.taken(operation, key)),
        }
        large.is_complete.store(true, Ordering::Relaxed);
        let sent = SentFile {
            bytes: parts.iter().map(|part| part.bytes).sum(),
            sha1: None,
            id: Some(large.id.clone()),
        };
        self.confirm(key, &sent).await
    }

    async fn abort(&self, key: &ObjectKey, large: &LargeFile) -> Result<(), StoreError> {
        if large.is_complete.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.cancel(key.as_str(), &large.id).await
    }

    /// Identical bytes under the key are success: an earlier request may have put them.
    async fn put_whole(&self, key: &ObjectKey, bytes: Bytes) -> Result<Evidence, StoreError> {
        let (_, evidence) = self.put_new(key, bytes).await?;
        Ok(evidence)
    }
}

impl Shared {
    /// Begins a large file. If the response is lost, the file is found again by its random number,
    /// so that no second file is begun.
    pub(super) async fn begin_large(
        &self,
        key: &ObjectKey,
        declared_sha1: Option<&str>,
    ) -> Result<LargeFile, StoreError> {
        let failed = |cause| self.failed("begin upload of", START, key.as_str(), cause);
        let name = self.full_name(key.as_str()).map_err(failed)?;
        let nonce = random_u64()
            .map_err(|error| failed(B2Cause::ours(StoreErrorKind::Invalid, error.to_string())))?;
        let attempt = format!("{nonce:016x}");
        let mut info =
            json!({PART_BYTES_ENTRY: self.settings.part_bytes.to_string(), ATTEMPT_ENTRY: attempt});
        if let Some(sha1) = declared_sha1 {
            info[DECLARED_SHA1_ENTRY] = json!(sha1);
        }
        let retention = self.lock_now();
        let body = |session: &Session| {
            let mut body = json!({
                "bucketId": session.bucket_id,
                "fileName": name,
                "contentType": "application/octet-stream",
                "fileInfo": info,
            });
            if let Some(retention) = &retention {
                body["fileRetention"] = retention.clone();
            }
            body
        };
        let mut retries = Retries::new(&self.settings, TRIES_MAX);
        loop {
            let cause = match self.call_once::<FileVersion>(START, body).await {
                Ok(begun) => return self.large(begun).map_err(failed),
                Err(cause) => cause,
            };
            if cause.is_ambiguous() {
                let list = || async { self.unfinished_files(key.as_str()).await.map_err(failed) };
                let begun = self.settings.patience.wait_out(list).await?;
                if let Some(ours) = begun
                    .into_iter()
                    .find(|file| file.info(ATTEMPT_ENTRY) == Some(&attempt))
                {
                    return self.large(ours).map_err(failed);
                }
            }
            if !cause.is_transient() || !retries.wait(&cause).await {
                return Err(failed(cause));
            }
        }
    }

    fn large(&self, begun: FileVersion) -> Result<LargeFile, B2Cause> {
        let id = begun
            .file_id
            .ok_or_else(|| B2Cause::ours(StoreErrorKind::Unsupported, "it got no file id"))?;
        Ok(LargeFile {
            id,
            urls: UrlPool::default(),
            is_complete: AtomicBool::new(false),
        })
    }

    async fn try_part(
        &self,
        large: &LargeFile,
        number: u16,
        part: &Bytes,
        sha1: &str,
    ) -> Result<StoredPart, B2Cause> {
        let mut headers = HeaderMap::new();
        headers.insert(PART_HEADER, value(&number.to_string())?);
        headers.insert(SHA1_HEADER, value(sha1)?);
        self.post_bytes(
            &large.urls,
            ("b2_get_upload_part_url", Some(&large.id)),
            headers,
            part.clone(),
        )
        .await
    }

    /// Completes the large file. After a lost response, and after an error that may be caused by
    /// our own retry, the listing of the name decides.
    async fn finish_large(
        &self,
        key: &ObjectKey,
        large: &LargeFile,
        parts: &[PartHash],
    ) -> Result<(), StoreError> {
        let operation = "complete upload of";
        let sha1s: Vec<String> = parts.iter().map(PartHash::hex).collect();
        let mut retries = Retries::new(&self.settings, TRIES_MAX);
        loop {
            let body = |_: &Session| json!({"fileId": large.id, "partSha1Array": sha1s});
            let Err(cause) = self.call_once::<FileVersion>(FINISH, body).await else {
                return Ok(());
            };
            let versions = self.versions(operation, key).await?;
            if versions
                .iter()
                .any(|file| file.is_upload() && file.has_id(&large.id))
            {
                return Ok(());
            }
            if !cause.is_transient() || !retries.wait(&cause).await {
                return Err(self.failed(operation, FINISH, key.as_str(), cause));
            }
        }
    }
}
