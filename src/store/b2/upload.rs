//! [`B2Writer`]: an object in parts, with several in flight; an object that fits into one part is
//! sent in one request.
//!
//! Memory: the parts in flight and the part that the caller fills, so (concurrency + 1) parts.
//! Dropping the writer stops its requests and does nothing more: a large file that was begun stays
//! unfinished until [`Shared::cancel`] or the bucket's lifecycle rule removes it.

use super::Shared;
use super::cause::Cause;
use super::client::{Pauses, Session, TRIES_MAX, UrlPool};
use super::messages::{
    ATTEMPT_ENTRY, DECLARED_SHA1_ENTRY, FileVersion, PART_BYTES_ENTRY, StoredPart,
};
use super::put::{SHA1_HEADER, Sent, UPLOAD_TRIES_MAX, value};
use crate::store::hash::HashKind;
use crate::store::parts::PartSizes;
use crate::store::work::{InFlight, random_u64};
use crate::store::{Evidence, ObjectKey, PartWriter, StoreError, StoreErrorKind};
use async_trait::async_trait;
use bytes::Bytes;
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::json;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// The protocol's limit.
const PARTS_MAX: usize = 10_000;
const START: &str = "b2_start_large_file";
const PART: &str = "b2_upload_part";
const FINISH: &str = "b2_finish_large_file";
const PART_HEADER: HeaderName = HeaderName::from_static("x-bz-part-number");

struct DonePart {
    number: usize,
    bytes: u64,
    sha1: String,
}

/// A large file that was begun.
#[derive(Clone)]
pub(super) struct Large {
    pub(super) id: String,
    urls: Arc<UrlPool>,
}

pub(super) struct B2Writer {
    shared: Arc<Shared>,
    key: ObjectKey,
    /// The SHA-1 of the whole, if it is already known: it is kept with the file.
    declared_sha1: Option<String>,
    sizes: PartSizes,
    /// The first part, with its permit: it is sent alone if no other part follows.
    held: Option<(Bytes, OwnedSemaphorePermit)>,
    large: Option<Large>,
    parts_begun: usize,
    in_flight: InFlight<DonePart, StoreError>,
    given_up: bool,
}

impl B2Writer {
    pub(super) fn new(
        shared: &Arc<Shared>,
        key: &ObjectKey,
        declared_sha1: Option<String>,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            key: key.clone(),
            declared_sha1,
            sizes: PartSizes::new(shared.settings.part_bytes),
            held: None,
            large: None,
            parts_begun: 0,
            in_flight: InFlight::new(shared.settings.concurrency),
            given_up: false,
        }
    }

    fn invalid(&self, text: impl Into<String>) -> StoreError {
        self.shared
            .wrong(StoreErrorKind::Invalid, "upload", self.key.as_str(), text)
    }

    async fn begin_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        if self.given_up {
            return Err(self.invalid("the upload was aborted after an earlier failure"));
        }
        self.sizes
            .accept(part.len())
            .map_err(|text| self.invalid(text))?;
        if part.is_empty() {
            return Ok(());
        }
        if self.parts_begun == PARTS_MAX {
            return Err(self.invalid(format!(
                "an object has at most {PARTS_MAX} parts: choose a larger `part_size`"
            )));
        }
        // The held part keeps its permit: with a concurrency of one, no other part could ever get
        // one.
        if let Some((first, place)) = self.held.take() {
            let large = self
                .shared
                .begin_large(&self.key, self.declared_sha1.as_deref())
                .await?;
            self.large = Some(large.clone());
            self.spawn(large, first, place);
        }
        let place = self.in_flight.place().await?;
        match self.large.clone() {
            None => self.held = Some((part, place)),
            Some(large) => self.spawn(large, part, place),
        }
        Ok(())
    }

    fn spawn(&mut self, large: Large, part: Bytes, place: OwnedSemaphorePermit) {
        self.parts_begun += 1;
        let (shared, key, number) = (Arc::clone(&self.shared), self.key.clone(), self.parts_begun);
        self.in_flight.begin(place, async move {
            shared.send_part(&key, &large, number, part).await
        });
    }

    async fn complete(&mut self) -> Result<Evidence, StoreError> {
        if self.given_up {
            return Err(self.invalid("the upload was aborted after an earlier failure"));
        }
        let Some(large) = self.large.clone() else {
            let whole = self.held.take().map(|(part, _)| part).unwrap_or_default();
            if whole.len() as u64 != self.sizes.bytes() {
                return Err(self.invalid("a part was interrupted and never sent"));
            }
            return self.shared.create_whole(&self.key, whole).await;
        };
        let mut done = self.in_flight.all().await?;
        done.sort_unstable_by_key(|part| part.number);
        let bytes: u64 = done.iter().map(|part| part.bytes).sum();
        if bytes != self.sizes.bytes() {
            return Err(self.invalid("a part was interrupted and never sent"));
        }
        if self
            .shared
            .live("complete upload of", &self.key)
            .await?
            .is_some()
        {
            return Err(self.shared.taken("complete upload of", &self.key));
        }
        self.shared.finish_large(&self.key, &large, &done).await?;
        let sent = Sent {
            bytes,
            sha1: None,
            id: Some(large.id),
        };
        let confirmed = self.shared.confirm(&self.key, &sent).await;
        // The file is complete or was deleted, so no upload is left to abort.
        self.large = None;
        confirmed
    }

    async fn give_up(&mut self) -> Result<(), StoreError> {
        self.given_up = true;
        self.held = None;
        self.in_flight.stop().await;
        match self.large.take() {
            Some(large) => self.shared.cancel(self.key.as_str(), &large.id).await,
            None => Ok(()),
        }
    }
}

#[async_trait]
impl PartWriter for B2Writer {
    fn upload_id(&self) -> Option<&str> {
        self.large.as_ref().map(|large| large.id.as_str())
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let begun = self.begin_part(part).await;
        if begun.is_err() && !self.given_up {
            // The first failure is returned to the caller; `unfinished` finds parts that remain.
            let _ = self.give_up().await;
        }
        begun
    }

    async fn finish(mut self: Box<Self>) -> Result<Evidence, StoreError> {
        let completed = self.complete().await;
        if completed.is_err() && !self.given_up {
            let _ = self.give_up().await;
        }
        completed
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        self.give_up().await
    }
}

impl Shared {
    /// Begins a large file. If the response is lost, the file is found again by its random number,
    /// so that no second file is begun.
    pub(super) async fn begin_large(
        &self,
        key: &ObjectKey,
        declared_sha1: Option<&str>,
    ) -> Result<Large, StoreError> {
        let failed = |cause| self.failed("begin upload of", START, key.as_str(), cause);
        let name = self.full_name(key.as_str()).map_err(failed)?;
        let nonce = random_u64()
            .map_err(|error| failed(Cause::ours(StoreErrorKind::Invalid, error.to_string())))?;
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
        let mut pauses = Pauses::new(&self.settings);
        let mut tries_left = TRIES_MAX;
        loop {
            tries_left -= 1;
            let cause = match self.call_once::<FileVersion>(START, body).await {
                Ok(begun) => return self.large(begun).map_err(failed),
                Err(cause) => cause,
            };
            if cause.is_ambiguous() {
                let begun = self.unfinished_files(key.as_str()).await.map_err(failed)?;
                if let Some(ours) = begun
                    .into_iter()
                    .find(|file| file.info(ATTEMPT_ENTRY) == Some(&attempt))
                {
                    return self.large(ours).map_err(failed);
                }
            }
            if !cause.is_transient() || tries_left == 0 {
                return Err(failed(cause));
            }
            pauses.wait(&cause).await;
        }
    }

    fn large(&self, begun: FileVersion) -> Result<Large, Cause> {
        let id = begun
            .file_id
            .ok_or_else(|| Cause::ours(StoreErrorKind::Unsupported, "it got no file id"))?;
        Ok(Large {
            id,
            urls: Arc::default(),
        })
    }

    /// Sends one part until the store has it. A repeated part replaces itself, so a retry is always
    /// safe.
    async fn send_part(
        &self,
        key: &ObjectKey,
        large: &Large,
        number: usize,
        part: Bytes,
    ) -> Result<DonePart, StoreError> {
        let operation = format!("upload part {number} of");
        let hash = HashKind::Sha1.hash_blocking(part.clone()).await;
        let (bytes, sha1) = (hash.bytes, hash.hex());
        let mut pauses = Pauses::new(&self.settings);
        let mut tries_left = UPLOAD_TRIES_MAX;
        loop {
            tries_left -= 1;
            match self.try_part(large, number, &part, &sha1).await {
                Ok(stored) if stored.content_sha1 == sha1 && stored.content_length == bytes => {
                    return Ok(DonePart {
                        number,
                        bytes,
                        sha1,
                    });
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
                Err(cause) if cause.wants_new_url() && tries_left > 0 => {
                    tracing::debug!(%key, number, %cause, "part failed; trying another URL");
                    pauses.wait(&cause).await;
                }
                Err(cause) => return Err(self.failed(&operation, PART, key.as_str(), cause)),
            }
        }
    }

    async fn try_part(
        &self,
        large: &Large,
        number: usize,
        part: &Bytes,
        sha1: &str,
    ) -> Result<StoredPart, Cause> {
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
        large: &Large,
        parts: &[DonePart],
    ) -> Result<(), StoreError> {
        let operation = "complete upload of";
        let sha1s: Vec<&str> = parts.iter().map(|part| part.sha1.as_str()).collect();
        let mut pauses = Pauses::new(&self.settings);
        let mut tries_left = TRIES_MAX;
        loop {
            tries_left -= 1;
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
            if !cause.is_transient() || tries_left == 0 {
                return Err(self.failed(operation, FINISH, key.as_str(), cause));
            }
            pauses.wait(&cause).await;
        }
    }
}
