//! The requests of a multipart upload.

use super::cause::S3Cause;
use super::fallback::{BegunUpload, S3Part, S3Upload};
use super::put::weakened;
use super::read::PART_BYTES_ENTRY;
use super::{S3Checksum, Shared};
use crate::store::adapter::Adapter;
use crate::store::hash::{ContentVerdict, ExpectedEvidence, PartHash};
use crate::store::multipart::{MultipartStore, MultipartWriter, within_abort_limit};
use crate::store::probe::Ability;
use crate::store::{
    Evidence, ObjectKey, Patience, StoreError, StoreErrorKind, StoreProbe, StoreTraits,
};
use aws_sdk_s3::operation::upload_part::UploadPartOutput;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// The factor for the time limit of a completion: stores may need minutes to assemble a large
/// object.
const COMPLETE_SLACK_FACTOR: u32 = 5;

/// Begins an upload if the key is free. Its size does not matter.
pub(super) async fn create(
    shared: &Arc<Shared>,
    key: &ObjectKey,
) -> Result<MultipartWriter<Shared>, StoreError> {
    if shared.head_in_bucket(key).await?.is_some() {
        return Err(shared.taken("begin upload of", key));
    }
    let upload_id = shared.begin(key).await?;
    Ok(MultipartWriter::new(shared, key, Some(upload_id)))
}

impl MultipartStore for Shared {
    type Upload = S3Upload;
    type Part = S3Part;

    fn traits(&self) -> &StoreTraits {
        &self.traits
    }

    fn places(&self) -> &Arc<Semaphore> {
        &self.places
    }

    fn patience(&self) -> &Patience {
        &self.settings.patience
    }

    async fn begin(&self, key: &ObjectKey) -> Result<S3Upload, StoreError> {
        Ok(S3Upload::new(self.begin_or_fall_back(key).await?))
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &S3Upload,
        number: u16,
        part: Bytes,
    ) -> Result<S3Part, StoreError> {
        self.put_part_or_fall_back(key, upload, number, part).await
    }

    async fn finish(
        &self,
        key: &ObjectKey,
        upload: &S3Upload,
        parts: &[S3Part],
    ) -> Result<Evidence, StoreError> {
        let begun = upload.current();
        let hashes: Vec<PartHash> = parts.iter().map(|part| part.hash.clone()).collect();
        let sent = ExpectedEvidence::of_parts(begun.checksum.kind(), &hashes);
        match self.complete_upload(key, begun, parts, &sent).await {
            Ok(()) => self.confirm(key, &sent, begun.checksum).await,
            Err(cause) => self.resolve_completion(key, begun, cause, &sent).await,
        }
    }

    async fn abort(&self, key: &ObjectKey, upload: &S3Upload) -> Result<(), StoreError> {
        self.abort_upload(key.as_str(), upload.as_ref()).await
    }

    async fn put_whole(&self, key: &ObjectKey, bytes: Bytes) -> Result<Evidence, StoreError> {
        let (_, evidence) = self.put_new(key, bytes).await?;
        Ok(evidence)
    }
}

impl Shared {
    /// Begins an upload whose parts carry this checksum.
    pub(super) async fn send_begin(
        &self,
        key: &ObjectKey,
        checksum: S3Checksum,
    ) -> Result<BegunUpload, StoreError> {
        let (algorithm, form) = match checksum {
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
        let id = begun
            .upload_id()
            .filter(|id| !id.is_empty())
            .map(str::to_owned);
        let id = id.ok_or_else(|| {
            self.wrong(
                StoreErrorKind::Unsupported,
                operation,
                key.as_str(),
                "it got no upload id",
            )
        })?;
        Ok(BegunUpload { id, checksum })
    }

    /// Sends a part with the checksum of its upload.
    pub(super) async fn send_part(
        &self,
        key: &ObjectKey,
        begun: &BegunUpload,
        number: u16,
        part: Bytes,
    ) -> Result<S3Part, StoreError> {
        let hash = begun.checksum.kind().hash_blocking(part.clone()).await;
        let call = self
            .client
            .upload_part()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        let call = call.upload_id(&begun.id).part_number(number.into());
        let call = match begun.checksum {
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
        match echoed_otherwise(&stored, begun.checksum, &hash) {
            None => Ok(S3Part {
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
        begun: &BegunUpload,
        parts: &[S3Part],
        sent: &ExpectedEvidence,
    ) -> Result<(), S3Cause> {
        let condition = self.complete_condition();
        match self
            .send_complete(key, begun, parts, sent, condition.clone())
            .await
        {
            Err(cause)
                if condition.is_some()
                    && self.note_refused_condition(&cause, &self.refuses_complete_condition) =>
            {
                self.send_complete(key, begun, parts, sent, None).await
            }
            completed => completed,
        }
    }

    pub(super) async fn send_complete(
        &self,
        key: &ObjectKey,
        begun: &BegunUpload,
        parts: &[S3Part],
        sent: &ExpectedEvidence,
        condition: Option<String>,
    ) -> Result<(), S3Cause> {
        let kind = begun.checksum;
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
            .upload_id(&begun.id)
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
        call.send().await.map(|_| ()).map_err(S3Cause::from)
    }

    /// Decides by the store's state after the completion failed, or after its response was lost and
    /// the retry failed.
    async fn resolve_completion(
        &self,
        key: &ObjectKey,
        begun: &BegunUpload,
        cause: S3Cause,
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
        let Some(found) = self.head_for(key, begun.checksum).await? else {
            return Err(error);
        };
        match sent.compare(&found) {
            ContentVerdict::Proven => self.check_lock(key, found),
            // The upload no longer exists, and an object with its key and size does: the upload was
            // completed.
            ContentVerdict::SizeAgrees
                if upload_is_gone || self.is_over(key, &begun.id).await? =>
            {
                self.check_lock(key, weakened(found))
            }
            _ => Err(self.taken("complete upload of", key)),
        }
    }

    /// Whether a store that is known to list uploads no longer lists this one.
    async fn is_over(&self, key: &ObjectKey, upload_id: &str) -> Result<bool, StoreError> {
        let lists = |(probe, _): &(StoreProbe, _)| probe.list_uploads == Ability::Works;
        if !self.expected.as_ref().is_some_and(lists) {
            return Ok(false);
        }
        match self.unfinished(key.as_str()).await {
            Ok(uploads) => Ok(!uploads.iter().any(|upload| upload.upload_id == upload_id)),
            Err(error) if error.is_transient() => Err(error),
            Err(_) => Ok(false),
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
        let aborted = within_abort_limit(call)
            .await
            .map_err(|text| self.wrong(StoreErrorKind::Unavailable, operation, key, text))?;
        match aborted.map_err(S3Cause::from) {
            Ok(_) => Ok(()),
            Err(cause) if cause.has_code("NoSuchUpload") => Ok(()),
            Err(cause) => Err(self.failed(operation, "AbortMultipartUpload", key, cause)),
        }
    }
}

fn completed_part(kind: S3Checksum, part: &S3Part) -> CompletedPart {
    let entry = CompletedPart::builder()
        .part_number(part.number.into())
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
