//! The versions of an object: whether any exist, and the deletion of all of them. On a versioned
//! bucket a plain delete only hides the object, which still costs money.

use super::Shared;
use super::cause::{S3Cause, S3Stage};
use crate::store::adapter::Adapter;
use crate::store::pages::Marks;
use crate::store::{ObjectKey, StoreError, StoreErrorKind};

/// The bucket's response to a request for versions.
enum Versions {
    Listed(Vec<String>),
    /// The store has no versions, or does not let us see them.
    Unknown(S3Cause),
}

/// The effect of a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deleted {
    Gone,
    /// The object stays under a delete marker.
    OnlyHidden,
}

impl Shared {
    pub(super) async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        match self.versions(key).await? {
            // A server may answer with an empty list although the bucket has no versions.
            Versions::Listed(ids) if ids.is_empty() => self.delete_unlisted(key).await,
            Versions::Listed(ids) => {
                for id in ids {
                    self.delete_version(key, Some(id)).await?;
                }
                Ok(())
            }
            Versions::Unknown(cause) => match self.delete_plainly(key).await? {
                Deleted::Gone => Ok(()),
                Deleted::OnlyHidden => Err(self.failed(
                    "delete all versions of",
                    "ListObjectVersions",
                    key.as_str(),
                    cause,
                )),
            },
        }
    }

    /// Checks for versions. A store without versions has none that `head` does not show; a store
    /// that hides them from us may have some.
    pub(super) async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        match self.versions(key).await? {
            Versions::Listed(ids) if !ids.is_empty() => Ok(true),
            Versions::Unknown(cause) if cause.kind() == StoreErrorKind::Denied => Err(self.failed(
                "list versions of",
                "ListObjectVersions",
                key.as_str(),
                cause,
            )),
            Versions::Unknown(cause)
                if cause.stage == S3Stage::Unreadable && !cause.is_object_listing() =>
            {
                // Anybody may have answered, for example a proxy with a page of its own.
                if self.head(key).await?.is_some() {
                    return Ok(true);
                }
                let kind = StoreErrorKind::Denied;
                let text = cause.to_string();
                Err(self.wrong(kind, "list versions of", key.as_str(), text))
            }
            Versions::Listed(_) | Versions::Unknown(_) => Ok(self.head(key).await?.is_some()),
        }
    }

    /// Deletes an object of which the store lists no version, if it exists.
    async fn delete_unlisted(&self, key: &ObjectKey) -> Result<(), StoreError> {
        if self.head(key).await?.is_none() {
            return Ok(());
        }
        match self.delete_plainly(key).await? {
            Deleted::Gone => Ok(()),
            Deleted::OnlyHidden => Err(self.wrong(
                StoreErrorKind::Unsupported,
                "delete",
                key.as_str(),
                "the store listed no version of the object, and hid it instead of deleting it",
            )),
        }
    }

    /// Deletes an object without naming a version, and checks that the store no longer has it.
    async fn delete_plainly(&self, key: &ObjectKey) -> Result<Deleted, StoreError> {
        let deleted = self.delete_version(key, None).await?;
        match self.head_in_bucket(key).await? {
            None => Ok(deleted),
            Some(_) => Err(self.wrong(
                StoreErrorKind::Unsupported,
                "delete",
                key.as_str(),
                "the store answered that the object was deleted, and still has it",
            )),
        }
    }

    /// Deletes one version, or the object.
    async fn delete_version(
        &self,
        key: &ObjectKey,
        version_id: Option<String>,
    ) -> Result<Deleted, StoreError> {
        let named = version_id.is_some();
        let call = self
            .client
            .delete_object()
            .bucket(&self.settings.bucket)
            .key(self.full_key(key));
        match call
            .set_version_id(version_id)
            .send()
            .await
            .map_err(S3Cause::from)
        {
            Ok(deleted) if !named && deleted.delete_marker() == Some(true) => {
                Ok(Deleted::OnlyHidden)
            }
            Ok(_) => Ok(Deleted::Gone),
            Err(cause) if cause.has_code("NoSuchKey") || cause.has_code("NoSuchVersion") => {
                Ok(Deleted::Gone)
            }
            Err(cause) => {
                let api = if named {
                    "DeleteObjectVersion"
                } else {
                    "DeleteObject"
                };
                Err(self.failed("delete", api, key.as_str(), cause))
            }
        }
    }

    /// Returns the ids of all versions and markers of exactly this key.
    async fn versions(&self, key: &ObjectKey) -> Result<Versions, StoreError> {
        let full = self.full_key(key);
        let mut ids = Vec::new();
        let mut marks = Marks::default();
        let mut key_mark = None;
        let mut id_mark = None;
        loop {
            let call = self
                .client
                .list_object_versions()
                .bucket(&self.settings.bucket)
                .prefix(&full);
            let page = call
                .set_key_marker(key_mark.clone())
                .set_version_id_marker(id_mark.clone())
                .send()
                .await;
            let page = match page.map_err(S3Cause::from) {
                Ok(page) => page,
                Err(cause) if is_no_versions(&cause) => return Ok(Versions::Unknown(cause)),
                Err(cause) => {
                    return Err(self.failed(
                        "list versions of",
                        "ListObjectVersions",
                        key.as_str(),
                        cause,
                    ));
                }
            };
            let versions = page
                .versions()
                .iter()
                .map(|version| (version.key(), version.version_id()));
            let markers = page
                .delete_markers()
                .iter()
                .map(|marker| (marker.key(), marker.version_id()));
            let exact = versions
                .chain(markers)
                .filter(|(listed, _)| *listed == Some(&full));
            ids.extend(exact.map(|(_, id)| id.unwrap_or("null").to_owned()));
            // Longer keys with this beginning come after the key itself.
            let beyond = page
                .next_key_marker()
                .is_some_and(|next| next > full.as_str());
            if page.is_truncated() != Some(true) || beyond {
                return Ok(Versions::Listed(ids));
            }
            key_mark = page.next_key_marker().map(str::to_owned);
            id_mark = page.next_version_id_marker().map(str::to_owned);
            let mark = key_mark.as_ref().map(|key| format!("{key}\0{id_mark:?}"));
            let text = |text: &str| {
                self.wrong(
                    StoreErrorKind::Corrupt,
                    "list versions of",
                    key.as_str(),
                    text,
                )
            };
            marks.pass(mark).map_err(text)?;
        }
    }
}

/// Whether the error means that versions cannot be listed here, so that a plain delete must
/// suffice. A server without versions may answer with the list of objects, whose root element is
/// another one, or with a page of its own.
fn is_no_versions(cause: &S3Cause) -> bool {
    cause.stage == S3Stage::Unreadable
        || matches!(
            cause.kind(),
            StoreErrorKind::Unsupported | StoreErrorKind::Denied | StoreErrorKind::Invalid
        )
}
