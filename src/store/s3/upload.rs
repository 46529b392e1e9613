//! [`S3Writer`]: a multipart upload, with several parts in flight.
//!
//! Memory: the parts in flight and the part that the caller fills, so (concurrency + 1) parts.
//! Dropping the writer stops its requests and does nothing more: the upload stays unfinished until
//! [`Shared::abort_upload`] or the bucket's lifecycle rule removes it.

use super::cause::Cause;
use super::put::weakened;
use super::read::PART_BYTES_ENTRY;
use super::{S3Checksum, Shared};
use crate::store::hash::{ContentVerdict, ExpectedEvidence, PartHash};
use crate::store::parts::PartSizes;
use crate::store::work::InFlight;
use crate::store::{Evidence, ObjectKey, PartWriter, StoreError, StoreErrorKind};
use async_trait::async_trait;
use aws_sdk_s3::operation::upload_part::UploadPartOutput;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// The protocol's limit.
const PARTS_MAX: usize = 10_000;
/// The time limit for aborting an upload. After it the upload remains for the next clean-up.
const ABORT_LIMIT: Duration = Duration::from_secs(30);
/// The factor for the time limit of a completion: stores may need minutes to assemble a large
/// object.
const COMPLETE_SLACK_FACTOR: u32 = 5;

pub(super) struct DonePart {
    number: i32,
    etag: String,
    hash: PartHash,
}

pub(super) struct S3Writer {
    shared: Arc<Shared>,
    key: ObjectKey,
    upload_id: String,
    sizes: PartSizes,
    parts_begun: usize,
    in_flight: InFlight<DonePart, StoreError>,
    given_up: bool,
}

impl S3Writer {
    pub(super) async fn begin(shared: &Arc<Shared>, key: &ObjectKey) -> Result<Self, StoreError> {
        if shared.head(key).await?.is_some() {
            return Err(shared.taken("begin upload of", key));
        }
        Ok(Self {
            upload_id: shared.begin_upload(key).await?,
            shared: Arc::clone(shared),
            key: key.clone(),
            sizes: PartSizes::new(shared.settings.part_bytes),
            parts_begun: 0,
            in_flight: InFlight::new(shared.settings.concurrency),
            given_up: false,
        })
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
        let place = self.in_flight.place().await?;
        self.parts_begun += 1;
        let number = i32::try_from(self.parts_begun).map_err(|_| self.invalid("too many parts"))?;
        let (shared, key, upload_id) = (
            Arc::clone(&self.shared),
            self.key.clone(),
            self.upload_id.clone(),
        );
        self.in_flight.begin(place, async move {
            shared.send_part(&key, &upload_id, number, part).await
        });
        Ok(())
    }

    async fn complete(&mut self) -> Result<Evidence, StoreError> {
        if self.given_up {
            return Err(self.invalid("the upload was aborted after an earlier failure"));
        }
        let mut done = self.in_flight.all().await?;
        done.sort_unstable_by_key(|part| part.number);
        let hashes: Vec<PartHash> = done.iter().map(|part| part.hash.clone()).collect();
        let sent = ExpectedEvidence::of_parts(self.shared.settings.checksum.kind(), &hashes);
        if sent.bytes != self.sizes.bytes() {
            return Err(self.invalid("a part was interrupted and never sent"));
        }
        if done.is_empty() {
            return self.put_empty().await;
        }
        match self
            .shared
            .complete_upload(&self.key, &self.upload_id, &done, &sent)
            .await
        {
            Ok(()) => self.shared.confirm(&self.key, &sent).await,
            Err(cause) => self.shared.settle(&self.key, cause, &sent).await,
        }
    }

    /// Puts an empty object, which cannot be sent in parts: B2 requires at least one byte in each.
    async fn put_empty(&mut self) -> Result<Evidence, StoreError> {
        self.give_up().await?;
        self.shared
            .put_new(&self.key, Bytes::new())
            .await
            .map(|(_, evidence)| evidence)
    }

    /// Stops all requests, and makes the store discard the parts.
    async fn give_up(&mut self) -> Result<(), StoreError> {
        self.given_up = true;
        self.in_flight.stop().await;
        self.shared
            .abort_upload(self.key.as_str(), &self.upload_id)
            .await
    }
}

#[async_trait]
impl PartWriter for S3Writer {
    fn upload_id(&self) -> Option<&str> {
        Some(&self.upload_id)
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
    pub(super) async fn begin_upload(&self, key: &ObjectKey) -> Result<String, StoreError> {
        let (algorithm, form) = match self.settings.checksum {
            S3Checksum::Crc64nvme => (
                Some(ChecksumAlgorithm::Crc64Nvme),
                Some(ChecksumType::FullObject),
            ),
            S3Checksum::Sha256 => (Some(ChecksumAlgorithm::Sha256), None),
            S3Checksum::Crc32c => (
                Some(ChecksumAlgorithm::Crc32C),
                Some(ChecksumType::FullObject),
            ),
            S3Checksum::Md5 => (None, None),
        };
        let call = self
            .client
            .create_multipart_upload()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        let call = call
            .set_checksum_algorithm(algorithm)
            .set_checksum_type(form);
        let call = call.set_storage_class(self.settings.storage_class.as_deref().map(Into::into));
        let call = self.locked_upload(call);
        let call = call.metadata(PART_BYTES_ENTRY, self.settings.part_bytes.to_string());
        let operation = "begin upload of";
        let begun = call.send().await;
        let begun = begun.map_err(|error| {
            self.failed(operation, "CreateMultipartUpload", key.as_str(), error)
        })?;
        self.saw_bucket();
        let upload_id = begun
            .upload_id()
            .filter(|id| !id.is_empty())
            .map(str::to_owned);
        upload_id.ok_or_else(|| {
            self.wrong(
                StoreErrorKind::Unsupported,
                operation,
                key.as_str(),
                "it got no upload id",
            )
        })
    }

    pub(super) async fn send_part(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        number: i32,
        part: Bytes,
    ) -> Result<DonePart, StoreError> {
        let hash = self.hash(part.clone()).await;
        let call = self
            .client
            .upload_part()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        let call = call.upload_id(upload_id).part_number(number);
        let call = match self.settings.checksum {
            S3Checksum::Crc64nvme => call.checksum_crc64_nvme(hash.base64()),
            S3Checksum::Sha256 => call.checksum_sha256(hash.base64()),
            S3Checksum::Crc32c => call.checksum_crc32_c(hash.base64()),
            S3Checksum::Md5 => call.content_md5(hash.base64()),
        };
        let call = call
            .body(self.body(part))
            .customize()
            .config_override(self.limits_for(hash.bytes));
        let call = if self.unsigned() {
            call.disable_payload_signing()
        } else {
            call
        };
        let operation = format!("upload part {number} of");
        let stored = call
            .send()
            .await
            .map_err(|error| self.failed(&operation, "UploadPart", key.as_str(), error))?;
        match echoed_otherwise(&stored, self.settings.checksum, &hash) {
            None => Ok(DonePart {
                number,
                etag: stored.e_tag().unwrap_or_default().to_owned(),
                hash,
            }),
            Some(echo) => {
                let text = format!("{} was sent, the store got {echo}", hash.base64());
                Err(self.wrong(StoreErrorKind::Corrupt, &operation, key.as_str(), text))
            }
        }
    }

    async fn complete_upload(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        parts: &[DonePart],
        sent: &ExpectedEvidence,
    ) -> Result<(), Cause> {
        let condition = self.complete_condition();
        match self
            .send_complete(key, upload_id, parts, sent, condition.clone())
            .await
        {
            Err(cause)
                if condition.is_some()
                    && self.note_refused_condition(&cause, &self.refuses_complete_condition) =>
            {
                self.send_complete(key, upload_id, parts, sent, None).await
            }
            completed => completed,
        }
    }

    pub(super) async fn send_complete(
        &self,
        key: &ObjectKey,
        upload_id: &str,
        parts: &[DonePart],
        sent: &ExpectedEvidence,
        condition: Option<String>,
    ) -> Result<(), Cause> {
        let kind = self.settings.checksum;
        let list = parts
            .iter()
            .map(|part| completed_part(kind, part))
            .collect();
        let list = CompletedMultipartUpload::builder()
            .set_parts(Some(list))
            .build();
        let call = self
            .client
            .complete_multipart_upload()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        let call = call
            .upload_id(upload_id)
            .multipart_upload(list)
            .set_if_none_match(condition);
        let call = match kind {
            S3Checksum::Crc64nvme => call
                .checksum_type(ChecksumType::FullObject)
                .checksum_crc64_nvme(&sent.checksum),
            S3Checksum::Sha256 => call.checksum_sha256(&sent.checksum),
            S3Checksum::Crc32c => call
                .checksum_type(ChecksumType::FullObject)
                .checksum_crc32_c(&sent.checksum),
            S3Checksum::Md5 => call,
        };
        // Stores that support nothing newer than MD5 may refuse this header too.
        let size = i64::try_from(sent.bytes)
            .ok()
            .filter(|_| kind != S3Checksum::Md5);
        let more_slack = self.settings.attempt_slack * (COMPLETE_SLACK_FACTOR - 1);
        let bytes_of_slack = more_slack
            .as_secs()
            .saturating_mul(self.settings.rate_bytes_min);
        let call = call
            .set_mpu_object_size(size)
            .customize()
            .config_override(self.limits_for(bytes_of_slack));
        call.send().await.map(|_| ()).map_err(Cause::from)
    }

    /// Decides by the store's state after the completion failed, or after its response was lost and
    /// the retry failed.
    async fn settle(
        &self,
        key: &ObjectKey,
        cause: Cause,
        sent: &ExpectedEvidence,
    ) -> Result<Evidence, StoreError> {
        let upload_is_gone = cause.has_code("NoSuchUpload");
        let conflict = cause.kind() == StoreErrorKind::AlreadyExists || cause.status == Some(409);
        let error = self.failed(
            "complete upload of",
            "CompleteMultipartUpload",
            key.as_str(),
            cause,
        );
        if !(upload_is_gone || conflict || error.is_transient()) {
            return Err(error);
        }
        let Some(found) = self.head(key).await? else {
            return Err(error);
        };
        match sent.compare(&found) {
            ContentVerdict::Proven => self.check_lock(key, found),
            // The upload no longer exists, and an object with its key and size does: the upload was
            // completed.
            ContentVerdict::SizeAgrees if upload_is_gone => self.check_lock(key, weakened(found)),
            _ => Err(self.taken("complete upload of", key)),
        }
    }

    /// Aborts within a time limit. A missing upload is ignored.
    pub(super) async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<(), StoreError> {
        let call = self
            .client
            .abort_multipart_upload()
            .bucket(&self.settings.bucket);
        let call = call
            .key(format!("{}{key}", self.prefix))
            .upload_id(upload_id)
            .send();
        let operation = "abort upload of";
        let Ok(aborted) = timeout(ABORT_LIMIT, call).await else {
            let text = format!("no answer within {} s", ABORT_LIMIT.as_secs());
            return Err(self.wrong(StoreErrorKind::Unavailable, operation, key, text));
        };
        match aborted.map_err(Cause::from) {
            Ok(_) => Ok(()),
            Err(cause) if cause.has_code("NoSuchUpload") => Ok(()),
            Err(cause) => Err(self.failed(operation, "AbortMultipartUpload", key, cause)),
        }
    }
}

fn completed_part(kind: S3Checksum, part: &DonePart) -> CompletedPart {
    let entry = CompletedPart::builder()
        .part_number(part.number)
        .e_tag(&part.etag);
    match kind {
        S3Checksum::Crc64nvme => entry.checksum_crc64_nvme(part.hash.base64()),
        S3Checksum::Sha256 => entry.checksum_sha256(part.hash.base64()),
        S3Checksum::Crc32c => entry.checksum_crc32_c(part.hash.base64()),
        S3Checksum::Md5 => entry,
    }
    .build()
}

/// Returns the checksum that the store reports for a part, if it reports one and it differs. The
/// ETag of an encrypted part is not its MD5, so it is no evidence here.
fn echoed_otherwise(
    stored: &UploadPartOutput,
    kind: S3Checksum,
    hash: &PartHash,
) -> Option<String> {
    let echo = match kind {
        S3Checksum::Crc64nvme => stored.checksum_crc64_nvme(),
        S3Checksum::Sha256 => stored.checksum_sha256(),
        S3Checksum::Crc32c => stored.checksum_crc32_c(),
        S3Checksum::Md5 => None,
    };
    echo.filter(|echo| *echo != hash.base64())
        .map(str::to_owned)
}
