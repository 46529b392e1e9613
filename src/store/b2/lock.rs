//! File lock: every file is put with a date until which B2 refuses to delete it, and the date can
//! be moved further into the future.

use super::Shared;
use super::cause::B2Cause;
use super::messages::Ignored;
use super::put::value;
use crate::store::adapter::Adapter;
use crate::store::lock::{check_lock, is_locked_until};
use crate::store::{Evidence, ObjectKey, StoreError, StoreErrorKind};
use jiff::Timestamp;
use reqwest::header::{HeaderMap, HeaderName};
use serde_json::{Value, json};

const UPDATE: &str = "b2_update_file_retention";
const MODE_HEADER: HeaderName = HeaderName::from_static("x-bz-file-retention-mode");
const UNTIL_HEADER: HeaderName =
    HeaderName::from_static("x-bz-file-retention-retain-until-timestamp");
const SWITCH_ON: &str = "the bucket must have Object Lock on, and the application key needs the capabilities \
    readFileRetentions and writeFileRetentions; `zfs-backup doctor` looks at both";

impl Shared {
    /// Returns the lock for a file that is put now.
    pub(super) fn lock_now(&self) -> Option<Value> {
        let lock = self.settings.lock?;
        let until = lock.until(Timestamp::now());
        Some(json!({"mode": lock.mode.to_string(), "retainUntilTimestamp": until.as_millisecond()}))
    }

    pub(super) fn add_lock(&self, headers: &mut HeaderMap) -> Result<(), B2Cause> {
        if let Some(lock) = self.settings.lock {
            headers.insert(MODE_HEADER, value(&lock.mode.to_string())?);
            let until = lock.until(Timestamp::now());
            headers.insert(UNTIL_HEADER, value(&until.as_millisecond().to_string())?);
        }
        Ok(())
    }

    /// Checks that the store reports a lock, if the file was put with one.
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
        let operation = "extend the lock of";
        let failed = |cause| self.failed(operation, UPDATE, key.as_str(), cause);
        let name = self.full_name(key.as_str()).map_err(failed)?;
        let Some(file) = self.live(operation, key).await? else {
            return Err(self.wrong(
                StoreErrorKind::NotFound,
                operation,
                key.as_str(),
                "no such object",
            ));
        };
        if is_locked_until(&file.evidence(), until) {
            return Ok(());
        }
        let mode = self
            .settings
            .lock
            .map(|lock| lock.mode)
            .unwrap_or_default()
            .to_string();
        let retention = json!({"mode": mode, "retainUntilTimestamp": until.as_millisecond()});
        let body = json!({"fileName": name, "fileId": file.file_id, "fileRetention": retention});
        match self.call::<Ignored>(UPDATE, |_| body.clone()).await {
            Ok(Ignored {}) => Ok(()),
            Err(cause) if cause.text.to_ascii_lowercase().contains("lock") => {
                Err(failed(cause).with_hint(SWITCH_ON))
            }
            Err(cause) => Err(failed(cause)),
        }
    }
}
