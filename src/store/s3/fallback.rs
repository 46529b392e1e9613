//! Falls back to MD5 when the store refuses the checksum of an upload.
//!
//! A server may answer 400, 500 or 501 to every part that carries one of the newer checksums. An
//! upload there would fail night after night, so a refused part is sent again with a Content-MD5, which
//! every server knows and checks on arrival; the ETag is then the evidence. Only the first parts of
//! an upload can fall back: the bytes of a stored part are no longer in memory.
//!
//! A passing failure must not change the checksum: the store must accept the part with MD5, and then
//! refuse it [`REFUSALS_MIN`] times more with the checksum.

use super::cause::{S3Cause, S3Stage};
use super::{S3Checksum, Shared};
use crate::model::error_chain;
use crate::store::hash::{ExpectedEvidence, PartHash};
use crate::store::{ObjectKey, StoreError, StoreErrorKind};
use bytes::Bytes;
use std::error::Error;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock, PoisonError};
use tokio::time::sleep;

/// The number of refusals, after the store accepted MD5, that show that the checksum is the reason.
/// The SDK does not retry each of them: a process has a limited number of retries.
const REFUSALS_MIN: u32 = 3;

/// A part that the store has.
pub(super) struct S3Part {
    pub(super) number: u16,
    pub(super) etag: String,
    pub(super) hash: PartHash,
}

/// An upload that the store began, and the checksum of all its parts.
pub(super) struct BegunUpload {
    pub(super) id: String,
    pub(super) checksum: S3Checksum,
}

/// The upload of one object, which may be replaced once, before it has a part.
pub(super) struct S3Upload {
    first: BegunUpload,
    replacement: OnceLock<BegunUpload>,
    /// Whether the first upload has a part.
    has_part: Mutex<bool>,
    /// Held while a replacement is tried.
    trial: tokio::sync::Mutex<()>,
}

impl AsRef<str> for S3Upload {
    fn as_ref(&self) -> &str {
        &self.current().id
    }
}

impl S3Upload {
    pub(super) fn new(first: BegunUpload) -> Self {
        Self {
            first,
            replacement: OnceLock::new(),
            has_part: Mutex::new(false),
            trial: tokio::sync::Mutex::new(()),
        }
    }

    /// Returns the upload that the parts belong to.
    pub(super) fn current(&self) -> &BegunUpload {
        self.replacement.get().unwrap_or(&self.first)
    }

    fn is_replaced(&self) -> bool {
        self.replacement.get().is_some()
    }

    /// Notes that the store has a part of the first upload. Returns false if that upload was
    /// replaced meanwhile, so that the part is lost.
    fn note_part(&self) -> bool {
        let mut has_part = self.has_part.lock().unwrap_or_else(PoisonError::into_inner);
        *has_part |= !self.is_replaced();
        *has_part
    }

    fn has_part(&self) -> bool {
        *self.has_part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the first upload. Returns the replacement if the first upload has a part.
    fn replace(&self, replacement: BegunUpload) -> Result<(), BegunUpload> {
        let has_part = self.has_part.lock().unwrap_or_else(PoisonError::into_inner);
        if *has_part {
            return Err(replacement);
        }
        self.replacement.set(replacement)
    }
}

impl Shared {
    /// Returns the checksum for the next upload.
    pub(super) fn checksum(&self) -> S3Checksum {
        match self.refuses_checksum.load(Ordering::Relaxed) {
            true => S3Checksum::Md5,
            false => self.settings.checksum,
        }
    }

    pub(super) async fn begin_or_fall_back(
        &self,
        key: &ObjectKey,
    ) -> Result<BegunUpload, StoreError> {
        let checksum = self.checksum();
        let error = match self.send_begin(key, checksum).await {
            Err(error) if self.may_refuse_checksum(checksum, &error) => error,
            begun => return begun,
        };
        let Ok(plain) = self.send_begin(key, S3Checksum::Md5).await else {
            return Err(error);
        };
        let again = self.try_again(|| self.send_begin(key, checksum));
        if let Ok(begun) = again.await {
            self.discard(key, &plain).await;
            return Ok(begun);
        }
        self.fall_back("uploads", checksum, &error);
        Ok(plain)
    }

    /// Sends a part, and sends it again if the upload was replaced meanwhile.
    pub(super) async fn put_part_or_fall_back(
        &self,
        key: &ObjectKey,
        upload: &S3Upload,
        number: u16,
        part: Bytes,
    ) -> Result<S3Part, StoreError> {
        if !upload.is_replaced() {
            let sent = self.send_part(key, &upload.first, number, part.clone());
            match sent.await {
                Ok(stored) if upload.note_part() => return Ok(stored),
                Err(error) if !upload.is_replaced() => {
                    let sent = self.try_replacement(key, upload, number, &part, error);
                    if let Some(stored) = sent.await? {
                        return Ok(stored);
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
        self.send_part(key, upload.current(), number, part).await
    }

    /// Finds out whether the checksum is the reason why a part was refused with `error`, and if so
    /// replaces the upload. Returns `None` if the part must be sent to the replacement.
    async fn try_replacement(
        &self,
        key: &ObjectKey,
        upload: &S3Upload,
        number: u16,
        part: &Bytes,
        error: StoreError,
    ) -> Result<Option<S3Part>, StoreError> {
        let first = &upload.first;
        if !self.may_refuse_checksum(first.checksum, &error) {
            return Err(error);
        }
        let _turn = upload.trial.lock().await;
        if upload.is_replaced() {
            return Ok(None);
        }
        if upload.has_part() {
            return Err(error);
        }
        let Ok(plain) = self.send_begin(key, S3Checksum::Md5).await else {
            return Err(error);
        };
        let stored = self.send_part(key, &plain, number, part.clone()).await;
        let send_again = || self.send_part(key, first, number, part.clone());
        let again = match &stored {
            Ok(_) => self.try_again(send_again).await,
            Err(_) => Err(error),
        };
        match (stored, again) {
            (Ok(stored), Err(error)) => {
                if let Err(plain) = upload.replace(plain) {
                    self.discard(key, &plain).await;
                    return Err(error);
                }
                self.discard(key, first).await;
                self.fall_back("parts", first.checksum, &error);
                Ok(Some(stored))
            }
            (_, again) => {
                // Either the failure has passed, or the checksum is not the reason for it.
                self.discard(key, &plain).await;
                let stored = again?;
                upload.note_part();
                Ok(Some(stored))
            }
        }
    }

    /// Sends a refused request until the store accepts it, but at most [`REFUSALS_MIN`] times.
    async fn try_again<T, F>(&self, send: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        for _ in 1..REFUSALS_MIN {
            if let Ok(accepted) = send().await {
                return Ok(accepted);
            }
            sleep(self.settings.pause_first).await;
        }
        send().await
    }

    /// Puts an object with MD5 after the store refused it with another checksum. Returns `None` if
    /// the checksum is not the reason.
    pub(super) async fn put_or_fall_back(
        &self,
        key: &ObjectKey,
        bytes: &Bytes,
        checksum: S3Checksum,
        cause: &S3Cause,
    ) -> Option<ExpectedEvidence> {
        if !self.may_fall_back(checksum, cause) {
            return None;
        }
        let md5 = S3Checksum::Md5;
        let hash = md5.kind().hash_blocking(bytes.clone()).await;
        let put = self.send_whole(key, bytes, md5, &hash, self.put_condition());
        put.await.ok()?;
        if cause.is_outage() {
            // An object cannot be put twice, so this may have been a passing failure.
            tracing::warn!(
                "{} refused {key} with the checksum {checksum} and stored it with md5: {cause}",
                self.url
            );
        } else {
            self.fall_back("objects", checksum, cause);
        }
        Some(ExpectedEvidence::of_whole(&hash))
    }

    /// Sends MD5 from now on, and reports it.
    fn fall_back(&self, what: &str, checksum: S3Checksum, reason: &(dyn Error + 'static)) {
        if self.refuses_checksum.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(
            "{} refuses {what} with the checksum {checksum} ({}) and accepts them with md5, which this run now uses; \
             run `zfs-backup doctor` to test which checksums the store keeps",
            self.url,
            error_chain(reason)
        );
        if self.is_expected_to_keep(checksum) {
            self.contradicts(&format!("{what} with the checksum {checksum} are refused"));
        }
    }

    fn may_refuse_checksum(&self, checksum: S3Checksum, error: &StoreError) -> bool {
        let cause = error.source.downcast_ref::<S3Cause>();
        cause.is_some_and(|cause| self.may_fall_back(checksum, cause))
    }

    fn may_fall_back(&self, checksum: S3Checksum, cause: &S3Cause) -> bool {
        self.falls_back && checksum != S3Checksum::Md5 && may_be_about_a_checksum(cause)
    }

    /// Removes an upload that is not used. A failure leaves it to the next clean-up.
    async fn discard(&self, key: &ObjectKey, upload: &BegunUpload) {
        if let Err(error) = self.abort_upload(key.as_str(), &upload.id).await {
            tracing::debug!(error = %error_chain(&error), "an unused upload remains");
        }
    }
}

/// Whether a request may have been refused because of its checksum. Stores report this in many ways,
/// but not as a missing right or object, as a conflict (409), or as a request to wait (429, 503). A
/// checksum that does not match shows damaged bytes: another checksum of them would hide that.
fn may_be_about_a_checksum(cause: &S3Cause) -> bool {
    cause.stage == S3Stage::Refused
        && cause.status != Some(409)
        && match cause.kind() {
            StoreErrorKind::Unsupported | StoreErrorKind::Invalid => true,
            StoreErrorKind::Unavailable => matches!(cause.status, Some(500 | 502)),
            _ => false,
        }
}
