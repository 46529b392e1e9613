//! Checks that the root folder of a remote is there, and is still the one of the store.

use super::cause::RcloneCause;
use super::process::Ended;
use super::{RcloneStore, unreadable};
use crate::store::{StoreError, StoreErrorKind};
use serde::Deserialize;
use std::sync::atomic::Ordering;

/// The folder of the store's identity, in the root.
const IDENTITY_FOLDER: &str = "@zfs-backup";
const VANISHED_HINT: &str =
    "bring that folder back, such as by mounting its file system, and run the same command again";

/// An entry of `lsjson`, as far as the check needs it.
#[derive(Deserialize)]
struct RootEntry {
    #[serde(rename = "Path")]
    path: String,
    #[serde(rename = "IsDir")]
    is_folder: bool,
}

impl RcloneStore {
    /// Fails unless the configured bucket or folder exists.
    pub(super) async fn demand_place(&self, operation: &str) -> Result<(), StoreError> {
        let arguments = ["lsjson", "--no-modtime", "--no-mimetype"];
        let listed = self.run(&arguments, &[self.settings.place()], true).await;
        let cause = match listed {
            Ok(Ended {
                failure: None,
                output,
            }) => return self.demand_identity(operation, &output),
            Ok(Ended {
                failure: Some(cause),
                ..
            })
            | Err(cause) => cause,
        };
        let missing = cause.is_no_folder();
        let error = self.failed(operation, "", cause);
        let place = self.settings.place();
        let quoted = shell_words::quote(&place);
        let hint = format!("mount its file system, or create it: `rclone mkdir {quoted}`");
        Err(if missing {
            error.with_hint(hint)
        } else {
            error
        })
    }

    /// Fails if the folder of the store's identity was in the root and is not in this listing.
    fn demand_identity(&self, operation: &str, listing: &[u8]) -> Result<(), StoreError> {
        let failed = |cause| self.failed(operation, "", cause);
        let entries: Vec<RootEntry> =
            serde_json::from_slice(listing).map_err(|error| failed(unreadable(&error)))?;
        if entries
            .iter()
            .any(|entry| entry.is_folder && entry.path == IDENTITY_FOLDER)
        {
            self.has_identity.store(true, Ordering::Relaxed);
        } else if !self.buckets && self.has_identity.load(Ordering::Relaxed) {
            let text = format!(
                "the folder no longer contains {IDENTITY_FOLDER}: was its file system unmounted, or the folder replaced?"
            );
            return Err(failed(RcloneCause::ours(StoreErrorKind::Unavailable, text))
                .with_store_gone()
                .with_hint(VANISHED_HINT));
        }
        Ok(())
    }

    /// Fails unless the root folder is still the one of this store. Its objects are then not known
    /// to be missing: the error is never [`StoreErrorKind::NotFound`].
    pub(super) async fn demand_same_place(&self, operation: &str) -> Result<(), StoreError> {
        self.demand_place(operation).await.map_err(vanished)
    }
}

/// Turns "not found" of the root folder into an error that says nothing about objects.
pub(super) fn vanished(error: StoreError) -> StoreError {
    match error.kind {
        StoreErrorKind::NotFound => StoreError {
            kind: StoreErrorKind::Unavailable,
            ..error
        }
        .with_store_gone()
        .with_hint(VANISHED_HINT),
        _ => error,
    }
}
