//! Reads objects: their existence, the store's evidence for them, and their bytes.

use super::cause::{S3Cause, S3Stage};
use super::{S3Checksum, Shared, leads_here};
use crate::model::error_chain;
use crate::store::adapter::Adapter;
use crate::store::answer::Expected;
use crate::store::key::PROBE_PREFIX;
use crate::store::work::random_u64;
use crate::store::{Evidence, EvidenceTier, Limiter, ObjectKey, StoreError, StoreErrorKind};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTimeFormat};
use aws_sdk_s3::types::{ChecksumMode, ChecksumType, ServerSideEncryption};
use bytes::BytesMut;
use jiff::Timestamp;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

/// The metadata entry that keeps the part size, without which composite checksums cannot be
/// recomputed.
pub(super) const PART_BYTES_ENTRY: &str = "part-bytes";
/// The maximum number of reads of a body. The SDK retries requests, but not responses whose body
/// breaks off.
const BODY_TRIES_MAX: u32 = 4;
const BODY_PAUSE_FIRST: Duration = Duration::from_millis(200);

/// The reason why a body could not be read.
enum Broken {
    /// The connection broke: a retry may succeed.
    Off(String),
    /// The response does not match the request.
    Wrong(String),
}

impl Adapter for Shared {
    fn url(&self) -> &str {
        &self.url
    }

    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
        buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        match range {
            // A Range header cannot express a range of no bytes.
            Some(range) if range.start >= range.end => {
                let bytes = self.head(key).await?.map(|found| found.bytes);
                self.check_range(key, &range, bytes)?;
                Ok(BytesMut::new())
            }
            range => self.get_something(key, range, limit_bytes, buffer).await,
        }
    }
}

impl Shared {
    pub(super) async fn check_bucket(&self) -> Result<(), StoreError> {
        let call = self
            .client
            .list_objects_v2()
            .bucket(&self.settings.bucket)
            .prefix(&self.prefix)
            .max_keys(1);
        call.send()
            .await
            .map_err(|error| self.failed("access", "ListObjectsV2", "", error))?;
        Ok(())
    }

    /// Returns the time by the store's clock: the date of the response about a missing object. A
    /// server on this host, under any name, has no clock but this host's.
    pub(super) async fn clock(&self) -> Result<Option<Timestamp>, StoreError> {
        let endpoint = self.endpoint.clone();
        let leads_here = spawn_blocking(move || leads_here(&endpoint)).await;
        if self.local || leads_here.unwrap_or(false) {
            return Ok(None);
        }
        let failed = |cause| self.failed("read the clock of", "HeadObject", "", cause);
        let nonce = random_u64().map_err(|error| {
            self.wrong(
                StoreErrorKind::Unavailable,
                "name a probe in",
                "",
                error.to_string(),
            )
            .with_outage(false)
        })?;
        let key = format!("{}{PROBE_PREFIX}clock-{nonce:016x}", self.prefix);
        let Err(error) = self
            .client
            .head_object()
            .bucket(&self.settings.bucket)
            .key(key)
            .send()
            .await
        else {
            return Ok(None);
        };
        match S3Cause::from(error) {
            cause
                if matches!(
                    cause.stage,
                    S3Stage::Refused | S3Stage::Reading | S3Stage::Unreadable
                ) =>
            {
                Ok(cause.date())
            }
            cause => Err(failed(cause)),
        }
    }

    pub(super) async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.head_for(key, self.settings.checksum).await
    }

    /// Does the same as `head`, but takes each 404 for a missing object: only where another
    /// request of the same operation shows whether the bucket exists.
    pub(super) async fn head_in_bucket(
        &self,
        key: &ObjectKey,
    ) -> Result<Option<Evidence>, StoreError> {
        match self.find(key, self.settings.checksum).await {
            Ok(found) => Ok(Some(found)),
            Err(cause) if is_missing(&cause) => Ok(None),
            Err(cause) => self.explain_head(key, cause).await,
        }
    }

    /// Returns the evidence for an object that was sent with this checksum.
    pub(super) async fn head_for(
        &self,
        key: &ObjectKey,
        checksum: S3Checksum,
    ) -> Result<Option<Evidence>, StoreError> {
        match self.find(key, checksum).await {
            Ok(found) => Ok(Some(found)),
            Err(cause) => self.explain_head(key, cause).await,
        }
    }

    async fn find(&self, key: &ObjectKey, checksum: S3Checksum) -> Result<Evidence, S3Cause> {
        // B2 and others answer 400 to this header, and have no evidence but the ETag.
        let known =
            checksum != S3Checksum::Md5 && !self.refuses_checksum_mode.load(Ordering::Relaxed);
        let asked = self
            .ask_head(key, known.then_some(ChecksumMode::Enabled))
            .await;
        let cause = match asked {
            Ok(found) => return Ok(found),
            Err(cause) => cause,
        };
        let refused = cause.stage == S3Stage::Refused && matches!(cause.status, Some(400 | 501));
        if !known || !refused {
            return Err(cause);
        }
        let plain = self.ask_head(key, None).await;
        match plain {
            Err(plain) if !is_missing(&plain) => Err(cause),
            plain => {
                self.note_refused_checksum_mode();
                plain
            }
        }
    }

    fn note_refused_checksum_mode(&self) {
        self.refuses_checksum_mode.store(true, Ordering::Relaxed);
        self.contradicts("HEAD is refused when it asks for checksums");
    }

    async fn ask_head(
        &self,
        key: &ObjectKey,
        mode: Option<ChecksumMode>,
    ) -> Result<Evidence, S3Cause> {
        let call = self
            .client
            .head_object()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        let found = call
            .set_checksum_mode(mode)
            .send()
            .await
            .map_err(S3Cause::from)?;
        Ok(self.evidence(&found))
    }

    /// Explains a failed HEAD. Its response has no body with the reason, and a missing bucket has
    /// the same status as a missing object, so another call is made that may return the reason.
    async fn explain_head(
        &self,
        key: &ObjectKey,
        cause: S3Cause,
    ) -> Result<Option<Evidence>, StoreError> {
        if cause.stage == S3Stage::Refused && cause.status.is_some_and(|status| status < 500) {
            let checked = self.check_bucket().await;
            checked.map_err(|error| StoreError {
                operation: "check".to_owned(),
                subject: key.to_string(),
                ..error
            })?;
        }
        if is_missing(&cause) {
            Ok(None)
        } else {
            Err(self.failed("check", "HeadObject", key.as_str(), cause))
        }
    }

    /// Returns the strongest evidence in the response.
    fn evidence(&self, found: &HeadObjectOutput) -> Evidence {
        let etag = found.e_tag().map(|etag| etag.trim_matches('"').to_owned());
        let version_id = found
            .version_id()
            .filter(|id| *id != "null")
            .map(str::to_owned);
        let full = found.checksum_type() != Some(&ChecksumType::Composite);
        let whole = |text: &&str| full && !text.contains('-');
        let crc64 = found.checksum_crc64_nvme().filter(whole);
        let crc32c = found.checksum_crc32_c().filter(whole);
        let md5 = etag
            .as_deref()
            .filter(|etag| is_md5_etag(etag) && has_plain_etag(found));
        let (tier, checksum) = match (crc64, found.checksum_sha256(), crc32c, md5) {
            (Some(crc), _, _, _) => (EvidenceTier::Crc64nvmeFull, Some(crc)),
            (_, Some(sha256), _, _) => (EvidenceTier::Sha256Composite, Some(sha256)),
            (_, _, Some(crc), _) => (EvidenceTier::Crc32c, Some(crc)),
            (_, _, _, Some(md5)) => (EvidenceTier::Md5Etag, Some(md5)),
            _ if version_id.is_some() => (EvidenceTier::IdPin, None),
            _ => (EvidenceTier::SizeOnly, None),
        };
        Evidence {
            tier,
            bytes: found
                .content_length()
                .and_then(|bytes| u64::try_from(bytes).ok())
                .unwrap_or(0),
            checksum: checksum.map(str::to_owned),
            part_bytes: part_bytes(found),
            locked_until: found
                .object_lock_retain_until_date()
                .and_then(|until| until.fmt(DateTimeFormat::DateTime).ok()),
            version_id,
            etag,
        }
    }

    async fn get_something(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
        mut buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        let mut pause = BODY_PAUSE_FIRST;
        let mut tries_left = BODY_TRIES_MAX;
        loop {
            let header = range
                .as_ref()
                .map(|range| format!("bytes={}-{}", range.start, range.end - 1));
            let call = self
                .objects
                .get_object()
                .bucket(&self.settings.bucket)
                .key(self.full_key(key));
            let answer = call.set_range(header).send().await;
            let answer =
                answer.map_err(|error| self.failed("get", "GetObject", key.as_str(), error))?;
            match self
                .read_body(
                    answer,
                    range.as_ref(),
                    limit_bytes,
                    std::mem::take(&mut buffer),
                )
                .await
            {
                Ok(bytes) => return Ok(bytes),
                Err(Broken::Wrong(text)) => {
                    return Err(self.wrong(StoreErrorKind::Corrupt, "get", key.as_str(), text));
                }
                Err(Broken::Off(text)) if tries_left == 1 => {
                    return Err(self.wrong(StoreErrorKind::Unavailable, "get", key.as_str(), text));
                }
                Err(Broken::Off(_)) => sleep(pause).await,
            }
            tries_left -= 1;
            pause *= 2;
        }
    }

    async fn read_body(
        &self,
        answer: GetObjectOutput,
        range: Option<&Range<u64>>,
        limit_bytes: u64,
        buffer: BytesMut,
    ) -> Result<BytesMut, Broken> {
        let length = answer
            .content_length()
            .and_then(|bytes| u64::try_from(bytes).ok());
        let expected = Expected::new(length, answer.content_range(), range, limit_bytes, buffer);
        let expected = expected.map_err(Broken::Wrong)?;
        let announced = expected.bytes();
        let limit = self.settings.receive_limit(expected.bytes());
        let limiter = self.settings.limiter_down.as_deref();
        match timeout(limit, collect(answer.body, expected, limiter)).await {
            Ok(body) => body,
            Err(_) => Err(Broken::Off(format!(
                "{announced} bytes did not come within {} s",
                limit.as_secs()
            ))),
        }
    }
}

/// Whether the ETag can be that of the bytes: with a key of the key service or of the customer it is
/// no MD5, although it looks like one.
fn has_plain_etag(found: &HeadObjectOutput) -> bool {
    let is_kms = matches!(
        found.server_side_encryption(),
        Some(ServerSideEncryption::AwsKms | ServerSideEncryption::AwsKmsDsse)
    );
    !is_kms && found.sse_customer_algorithm().is_none()
}

/// Whether an ETag can be an MD5: 32 hexadecimal digits, optionally followed by the number of
/// parts.
fn is_md5_etag(etag: &str) -> bool {
    let (digest, parts) = etag.split_once('-').unwrap_or((etag, "1"));
    digest.len() == 32
        && digest.bytes().all(|b| b.is_ascii_hexdigit())
        && parts.parse::<u32>().is_ok()
}

async fn collect(
    mut body: ByteStream,
    mut expected: Expected,
    limiter: Option<&Limiter>,
) -> Result<BytesMut, Broken> {
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|error| Broken::Off(error_chain(&error)))?;
        if let Some(limiter) = limiter {
            limiter.admit(piece.len()).await;
        }
        expected.take(&piece).map_err(Broken::Wrong)?;
    }
    expected.finish().map_err(Broken::Off)
}

/// Returns the part size that was recorded when the upload began. Some servers change the case of
/// the entry's name.
fn part_bytes(found: &HeadObjectOutput) -> Option<u64> {
    let entry = found
        .metadata()?
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(PART_BYTES_ENTRY));
    entry.and_then(|(_, value)| value.parse().ok())
}

/// Whether a HEAD found neither the object nor a reason: it or its bucket does not exist.
fn is_missing(cause: &S3Cause) -> bool {
    cause.stage == S3Stage::Refused && cause.status == Some(404)
}
