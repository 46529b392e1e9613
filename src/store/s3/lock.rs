//! Object lock: every object is put with a date until which the store refuses to delete it, and the
//! date can be moved further into the future. The confirmation of the object detects a store that
//! accepts the header and does not lock.

use super::Shared;
use super::cause::S3Cause;
use crate::store::lock::{check_lock, is_locked_until};
use crate::store::{Evidence, LockMode, ObjectKey, StoreError, StoreErrorKind};
use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, ObjectLockRetention, ObjectLockRetentionMode};
use jiff::Timestamp;

const SWITCH_ON: &str = "the bucket must have object lock on (it can only be given when the bucket is made, or by the \
    provider's support), and these credentials need s3:PutObjectRetention and s3:GetObjectRetention; \
    `zfs-backup doctor` looks at both";

impl Shared {
    /// Returns the lock for an object that is put now.
    fn lock_now(&self) -> Option<(ObjectLockMode, DateTime)> {
        let lock = self.settings.lock?;
        let mode = match lock.mode {
            LockMode::Governance => ObjectLockMode::Governance,
            LockMode::Compliance => ObjectLockMode::Compliance,
        };
        let until = self
            .lock_until
            .unwrap_or_else(|| lock.until(Timestamp::now()));
        Some((mode, DateTime::from_secs(until.as_second())))
    }

    pub(super) fn locked_put(&self, call: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        match self.lock_now() {
            None => call,
            Some((mode, until)) => call
                .object_lock_mode(mode)
                .object_lock_retain_until_date(until),
        }
    }

    pub(super) fn locked_upload(
        &self,
        call: CreateMultipartUploadFluentBuilder,
    ) -> CreateMultipartUploadFluentBuilder {
        match self.lock_now() {
            None => call,
            Some((mode, until)) => call
                .object_lock_mode(mode)
                .object_lock_retain_until_date(until),
        }
    }

    /// Checks that the store reports a lock, if the object was put with one.
    pub(super) fn check_lock(
        &self,
        key: &ObjectKey,
        found: Evidence,
    ) -> Result<Evidence, StoreError> {
        check_lock(self.settings.lock, key, found, &self.url, SWITCH_ON)
    }

    pub(super) async fn extend_lock(
        &self,
        key: &ObjectKey,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        let mode = match self.settings.lock.map(|lock| lock.mode).unwrap_or_default() {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let until_date = DateTime::from_secs(until.as_second());
        let retention = ObjectLockRetention::builder()
            .mode(mode)
            .retain_until_date(until_date)
            .build();
        let call = self
            .client
            .put_object_retention()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        // A store must refuse to shorten a lock, so the refusal is accepted if the existing lock
        // lasts longer.
        let Err(error) = call.retention(retention).send().await else {
            return Ok(());
        };
        let cause = S3Cause::from(error);
        if matches!(
            cause.kind(),
            StoreErrorKind::Denied | StoreErrorKind::Invalid
        ) && let Some(found) = self.head(key).await?
            && is_locked_until(&found, until)
        {
            return Ok(());
        }
        let off = cause.text.to_ascii_lowercase().contains("lock");
        let error = self.failed(
            "extend the lock of",
            "PutObjectRetention",
            key.as_str(),
            cause,
        );
        Err(if off {
            error.with_hint(SWITCH_ON)
        } else {
            error
        })
    }
}
