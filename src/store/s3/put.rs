//! Puts small objects, and confirms every upload.

use super::cause::S3Cause;
use super::{S3Checksum, Shared};
use crate::store::adapter::Adapter;
use crate::store::hash::{ContentVerdict, ExpectedEvidence, PartHash};
use crate::store::{Evidence, EvidenceTier, ObjectKey, PutOutcome, StoreError, StoreErrorKind};
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use bytes::Bytes;
use std::time::Duration;
use tokio::time::sleep;

/// The maximum number of attempts of a create-only put that collides with others (409) or had its
/// condition refused.
const PUT_TRIES_MAX: u32 = 4;
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// The maximum number of reads of an object that the store has just accepted. AWS is consistent at
/// once; other stores may not be.
const CONFIRM_TRIES_MAX: u32 = 3;
const CONFIRM_PAUSE: Duration = Duration::from_millis(500);

impl Shared {
    /// Puts an object in one request, create-only as far as the store supports it. The key is
    /// checked first, unless the probe found that the store refuses to replace objects: the put
    /// itself is then the check, which saves a round trip.
    pub(super) async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        let checksum = self.checksum();
        let hash = checksum.kind().hash_blocking(bytes.clone()).await;
        let sent = ExpectedEvidence::of_whole(&hash);
        let mut tries_left = PUT_TRIES_MAX;
        let mut is_checked = false;
        loop {
            let condition = self.put_condition();
            let asks = condition.is_some() && self.was_found_to_refuse_replacing();
            if !asks && !is_checked {
                if let Some(found) = self.head_in_bucket(key).await? {
                    return self.compare_whole(key, &bytes, found).await;
                }
                is_checked = true;
            }
            let conditional = condition.is_some();
            let put = self.send_whole(key, &bytes, checksum, &hash, condition);
            let Err(cause) = put.await else {
                let found = self.confirm(key, &sent, checksum).await?;
                return Ok((PutOutcome::Created, found));
            };
            tries_left -= 1;
            // 412 may be the result of our own retry, if the first response was lost.
            if cause.kind() == StoreErrorKind::AlreadyExists
                && let Some(found) = self.head(key).await?
            {
                return self.compare_whole(key, &bytes, found).await;
            }
            let refused =
                conditional && self.note_refused_condition(&cause, &self.refuses_put_condition);
            if !(refused || cause.status == Some(409)) || tries_left == 0 {
                let Some(sent) = self.put_or_fall_back(key, &bytes, checksum, &cause).await else {
                    return Err(self.failed("put", "PutObject", key.as_str(), cause));
                };
                let found = self.confirm(key, &sent, S3Checksum::Md5).await?;
                return Ok((PutOutcome::Created, found));
            }
            sleep(CONFLICT_PAUSE).await;
        }
    }

    pub(super) async fn send_whole(
        &self,
        key: &ObjectKey,
        bytes: &Bytes,
        checksum: S3Checksum,
        hash: &PartHash,
        condition: Option<String>,
    ) -> Result<(), S3Cause> {
        let call = self
            .client
            .put_object()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        let call = call
            .set_if_none_match(condition)
            .body(self.body(bytes.clone()));
        let call = self.locked_put(call);
        let call = with_checksum(call, checksum, hash).customize();
        let call = call.config_override(self.limits_for(bytes.len() as u64));
        let call = if self.unsigned() {
            call.disable_payload_signing()
        } else {
            call
        };
        call.send().await.map(drop).map_err(S3Cause::from)
    }

    /// Reads the store's evidence for the object, and compares it with what was sent with this
    /// checksum.
    pub(super) async fn confirm(
        &self,
        key: &ObjectKey,
        sent: &ExpectedEvidence,
        checksum: S3Checksum,
    ) -> Result<Evidence, StoreError> {
        let mut found = None;
        for attempt in 1..=CONFIRM_TRIES_MAX {
            found = self.head_for(key, checksum).await?;
            if found.is_some() || attempt == CONFIRM_TRIES_MAX {
                break;
            }
            sleep(CONFIRM_PAUSE).await;
        }
        match found.map(|found| (sent.compare(&found), found)) {
            Some((ContentVerdict::Proven, found)) => self.check_lock(key, found),
            Some((ContentVerdict::SizeAgrees, found)) => {
                self.note_weak_evidence(checksum);
                self.check_lock(key, weakened(found))
            }
            other => {
                let found =
                    other.map_or_else(|| "nothing".to_owned(), |(_, found)| describe(&found));
                let sent = format!("{} bytes with checksum {}", sent.bytes, sent.checksum);
                let text = format!("{sent} were sent and accepted, but the store has {found}");
                Err(self.wrong(StoreErrorKind::Corrupt, "confirm", key.as_str(), text))
            }
        }
    }
}

fn describe(found: &Evidence) -> String {
    format!(
        "{} bytes with checksum {}",
        found.bytes,
        found.checksum.as_deref().unwrap_or("unknown")
    )
}

/// Returns the evidence without a checksum that could not be compared.
pub(super) fn weakened(found: Evidence) -> Evidence {
    let tier = if found.version_id.is_some() {
        EvidenceTier::IdPin
    } else {
        EvidenceTier::SizeOnly
    };
    Evidence {
        tier,
        checksum: None,
        ..found
    }
}

fn with_checksum(
    call: PutObjectFluentBuilder,
    kind: S3Checksum,
    hash: &PartHash,
) -> PutObjectFluentBuilder {
    match kind {
        S3Checksum::Crc64nvme => call.checksum_crc64_nvme(hash.base64()),
        S3Checksum::Sha256 => call.checksum_sha256(hash.base64()),
        S3Checksum::Crc32c => call.checksum_crc32_c(hash.base64()),
        S3Checksum::Md5 => call.content_md5(hash.base64()),
    }
}
