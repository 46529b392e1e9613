//! Lists objects and unfinished uploads, page by page to the end.

use super::Shared;
use crate::model::error_chain;
use crate::store::adapter::Adapter;
use crate::store::folders::{Folders, Level, SLASH, walk};
use crate::store::pages::{Marks, check_count};
use crate::store::{ListedObject, StoreError, StoreErrorKind, UnfinishedUpload};
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{MultipartUpload, Object};
use jiff::Timestamp;
use std::ops::ControlFlow;

/// A page of a listing.
pub(super) struct Page {
    pub(super) objects: Vec<ListedObject>,
    /// The common beginnings of keys, if a delimiter was requested.
    folders: Vec<String>,
}

impl Shared {
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let mut objects = Vec::new();
        self.turn_pages(prefix, None, &mut |page| {
            objects.extend(page.objects);
            check_count(objects.len()).map(ControlFlow::Continue)
        })
        .await?;
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        // An object that is written during the listing may be on two pages.
        objects.dedup_by(|a, b| a.key == b.key);
        Ok(objects)
    }

    /// Lists the folders below `prefix`. Some servers know only the slash as a delimiter, and some
    /// none: those are listed level by level, or whole.
    pub(super) async fn list_folders(
        &self,
        prefix: &str,
        delimiter: char,
    ) -> Result<Vec<String>, StoreError> {
        let unknown = match self.folders_by(prefix, delimiter).await {
            Err(error) if is_refused(&error) => error,
            listed => return listed,
        };
        let why = error_chain(&unknown);
        tracing::debug!(%prefix, %delimiter, why, "the store does not cut a listing at this delimiter");
        if delimiter != SLASH {
            let list = |folder: String| async move { self.level(&folder).await };
            let too_many = |text| self.wrong(StoreErrorKind::Corrupt, "list", prefix, text);
            match walk(Folders::new(prefix, delimiter), list, too_many).await {
                Err(error) if is_refused(&error) => {}
                listed => return listed,
            }
        }
        let mut folders = Folders::new(prefix, delimiter);
        self.turn_pages(prefix, None, &mut |page| {
            let mut keys = page.objects.iter();
            keys.try_for_each(|object| folders.add_key(&object.key))?;
            Ok(ControlFlow::Continue(()))
        })
        .await?;
        Ok(folders.into_vec())
    }

    /// Lists the folders by this delimiter.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unsupported`] when the store names other folders.
    async fn folders_by(&self, prefix: &str, delimiter: char) -> Result<Vec<String>, StoreError> {
        let mut folders = Folders::new(prefix, delimiter);
        let mut odd = None;
        self.turn_pages(prefix, Some(delimiter), &mut |page| {
            odd = page.folders.into_iter().find(|it| !folders.add_named(it));
            let mut keys = page.objects.iter();
            keys.try_for_each(|object| folders.add_key(&object.key))?;
            Ok(continue_unless(odd.is_some()))
        })
        .await?;
        self.refuse_odd(prefix, odd)?;
        Ok(folders.into_vec())
    }

    /// Lists one level of folders.
    ///
    /// # Errors
    /// As for [`Shared::folders_by`].
    async fn level(&self, folder: &str) -> Result<Level, StoreError> {
        let mut folders = Folders::new(folder, SLASH);
        let (mut keys, mut odd) = (Vec::new(), None);
        self.turn_pages(folder, Some(SLASH), &mut |page| {
            odd = page.folders.into_iter().find(|it| !folders.add_named(it));
            keys.extend(page.objects.into_iter().map(|object| object.key));
            check_count(keys.len())?;
            Ok(continue_unless(odd.is_some()))
        })
        .await?;
        self.refuse_odd(folder, odd)?;
        Ok(Level {
            folders: folders.into_vec(),
            keys,
        })
    }

    fn refuse_odd(&self, prefix: &str, odd: Option<String>) -> Result<(), StoreError> {
        let Some(odd) = odd else { return Ok(()) };
        let text = format!("the store lists {odd:?}, which is no folder below {prefix:?}");
        Err(self.wrong(StoreErrorKind::Unsupported, "list", prefix, text))
    }

    /// Passes page after page of the objects under `prefix`, until the end, until `take` breaks, or
    /// until it returns an error as a sentence.
    pub(super) async fn turn_pages(
        &self,
        prefix: &str,
        delimiter: Option<char>,
        take: &mut (dyn FnMut(Page) -> Result<ControlFlow<()>, String> + Send),
    ) -> Result<(), StoreError> {
        let full = format!("{}{prefix}", self.prefix);
        let failed = |text: &str| self.wrong(StoreErrorKind::Corrupt, "list", prefix, text);
        let mut marks = Marks::default();
        let mut token = None;
        loop {
            let call = self
                .client
                .list_objects_v2()
                .bucket(&self.settings.bucket)
                .prefix(&full)
                .set_delimiter(delimiter.map(String::from));
            let call = call.set_continuation_token(token.clone());
            // A long listing waits here, so that it does not begin again.
            let request = || async {
                let page = call.clone().send().await;
                page.map_err(|error| self.failed("list", "ListObjectsV2", prefix, error))
            };
            let page = self.settings.patience.wait_out(request).await?;
            let listed = page
                .contents()
                .iter()
                .filter_map(|object| self.listed(object, &full).transpose());
            let listed = listed.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            let folders = page.common_prefixes().iter();
            let folders = folders.map(|folder| {
                let folder = folder.prefix().unwrap_or_default();
                folder.strip_prefix(&self.prefix)
            });
            let outside = || failed("a folder is outside the requested prefix");
            let folders: Vec<&str> = folders.collect::<Option<_>>().ok_or_else(outside)?;
            let taken = Page {
                objects: listed,
                folders: folders.into_iter().map(str::to_owned).collect(),
            };
            if take(taken).map_err(|text| failed(&text))?.is_break() {
                return Ok(());
            }
            // A token without the flag also means another page: an incomplete listing must not look
            // complete.
            if page.is_truncated() != Some(true) && page.next_continuation_token().is_none() {
                return Ok(());
            }
            token = page.next_continuation_token().map(str::to_owned);
            marks.pass(token.clone()).map_err(failed)?;
        }
    }

    /// Converts an entry; `None` for the entry that consoles create for the folder itself.
    fn listed(&self, object: &Object, full: &str) -> Result<Option<ListedObject>, &'static str> {
        let key = object.key().ok_or("an entry has no key")?;
        if !key.starts_with(full) {
            return Err("an entry is outside the requested prefix");
        }
        let key = &key[self.prefix.len()..];
        let bytes = object
            .size()
            .and_then(|size| u64::try_from(size).ok())
            .ok_or("an entry has no size")?;
        let modified_at = object.last_modified().and_then(timestamp);
        Ok((!key.is_empty()).then(|| ListedObject {
            key: key.to_owned(),
            bytes,
            modified_at,
        }))
    }

    pub(super) async fn unfinished(
        &self,
        prefix: &str,
    ) -> Result<Vec<UnfinishedUpload>, StoreError> {
        let operation = "list unfinished uploads under";
        let full = format!("{}{prefix}", self.prefix);
        let failed = |text: &str| self.wrong(StoreErrorKind::Corrupt, operation, prefix, text);
        let mut uploads = Vec::new();
        let mut marks = Marks::default();
        let mut key = None;
        let mut id = None;
        loop {
            let call = self
                .client
                .list_multipart_uploads()
                .bucket(&self.settings.bucket)
                .prefix(&full);
            let page = call
                .set_key_marker(key.clone())
                .set_upload_id_marker(id.clone())
                .send()
                .await;
            let page = page
                .map_err(|error| self.failed(operation, "ListMultipartUploads", prefix, error))?;
            uploads.extend(
                page.uploads()
                    .iter()
                    .filter_map(|upload| self.begun(upload, &full)),
            );
            if page.is_truncated() != Some(true) {
                break;
            }
            key = page.next_key_marker().map(str::to_owned);
            id = page
                .next_upload_id_marker()
                .filter(|id| !id.is_empty())
                .map(str::to_owned);
            marks
                .pass(key.as_ref().map(|key| format!("{key}\0{id:?}")))
                .map_err(failed)?;
        }
        uploads.sort_unstable_by(|a, b| (&a.key, &a.upload_id).cmp(&(&b.key, &b.upload_id)));
        uploads.dedup();
        Ok(uploads)
    }

    /// Converts an upload under our prefix. Some servers treat the prefix as a folder and list
    /// other uploads too.
    fn begun(&self, upload: &MultipartUpload, full: &str) -> Option<UnfinishedUpload> {
        let key = upload.key().filter(|key| key.starts_with(full))?;
        Some(UnfinishedUpload {
            key: key[self.prefix.len()..].to_owned(),
            upload_id: upload.upload_id()?.to_owned(),
            started_at: upload.initiated().and_then(timestamp),
        })
    }
}

fn continue_unless(stop: bool) -> ControlFlow<()> {
    match stop {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Whether the store answered that it cannot serve such a request.
fn is_refused(error: &StoreError) -> bool {
    matches!(
        error.kind,
        StoreErrorKind::Unsupported | StoreErrorKind::Invalid
    )
}

fn timestamp(time: &DateTime) -> Option<Timestamp> {
    i32::try_from(time.subsec_nanos())
        .ok()
        .and_then(|nanos| Timestamp::new(time.secs(), nanos).ok())
}
