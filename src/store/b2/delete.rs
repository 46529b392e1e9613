//! Deletes all versions of files, hides them if deleting is not allowed, and cancels large files.

use super::Shared;
use super::cause::B2Cause;
use super::messages::{FileVersion, Ignored};
use crate::store::adapter::Adapter;
use crate::store::multipart::within_abort_limit;
use crate::store::{ObjectKey, StoreError, StoreErrorKind};
use serde_json::json;
use std::sync::atomic::Ordering;

const DELETE: &str = "b2_delete_file_version";
const HIDE: &str = "b2_hide_file";
const CANCEL: &str = "b2_cancel_large_file";

impl Shared {
    /// Deletes the oldest version first: if the deletion is interrupted, the visible version is
    /// still the same.
    pub(super) async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let operation = "delete";
        let versions = self.versions(operation, key).await?;
        let ended: Vec<FileVersion> = versions
            .into_iter()
            .filter(|file| file.is_upload() || file.is_hidden_marker())
            .collect();
        let Some(newest) = ended.first() else {
            return Ok(());
        };
        let session = self
            .session()
            .await
            .map_err(|cause| self.failed(operation, DELETE, key.as_str(), cause))?;
        if !session.may("deleteFiles") {
            return if newest.is_hidden_marker() {
                Ok(())
            } else {
                self.hide(key).await
            };
        }
        for version in ended.iter().rev() {
            self.delete_version(version)
                .await
                .map_err(|cause| self.failed(operation, DELETE, key.as_str(), cause))?;
        }
        Ok(())
    }

    /// Deletes one version. A missing version is ignored.
    pub(super) async fn delete_version(&self, version: &FileVersion) -> Result<(), B2Cause> {
        let body = json!({"fileName": version.file_name, "fileId": version.file_id});
        match self.call::<Ignored>(DELETE, |_| body.clone()).await {
            Ok(Ignored {}) => Ok(()),
            Err(cause) if cause.is_gone() => Ok(()),
            Err(cause) => Err(cause),
        }
    }

    async fn hide(&self, key: &ObjectKey) -> Result<(), StoreError> {
        if !self.warned_of_hiding.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                store = self.url,
                %key,
                "the application key may not delete (deleteFiles): names are hidden instead, and their bytes stay until \
                 a lifecycle rule of the bucket or another key removes them; said once"
            );
        }
        let failed = |cause| self.failed("hide", HIDE, key.as_str(), cause);
        let name = self.full_name(key.as_str()).map_err(failed)?;
        match self
            .call::<Ignored>(
                HIDE,
                |session| json!({"bucketId": session.bucket_id, "fileName": name}),
            )
            .await
        {
            Ok(Ignored {}) => Ok(()),
            Err(cause) if cause.is_gone() || cause.code == "already_hidden" => Ok(()),
            Err(cause) => Err(failed(cause)),
        }
    }

    /// Cancels a large file, within a time limit. A missing file is ignored; a listing shows
    /// whether it is missing, since B2 has no error code for that.
    pub(super) async fn cancel(&self, key: &str, file_id: &str) -> Result<(), StoreError> {
        let operation = "abort upload of";
        within_abort_limit(self.try_cancel(key, file_id))
            .await
            .map_err(|text| self.wrong(StoreErrorKind::Unavailable, operation, key, text))?
            .map_err(|cause| self.failed(operation, CANCEL, key, cause))
    }

    async fn try_cancel(&self, key: &str, file_id: &str) -> Result<(), B2Cause> {
        match self
            .call::<Ignored>(CANCEL, |_| json!({"fileId": file_id}))
            .await
        {
            Ok(Ignored {}) => Ok(()),
            Err(cause) if matches!(cause.status, Some(400 | 404)) => {
                let still_there = self
                    .unfinished_files(key)
                    .await?
                    .iter()
                    .any(|file| file.has_id(file_id));
                if still_there { Err(cause) } else { Ok(()) }
            }
            Err(cause) => Err(cause),
        }
    }
}
