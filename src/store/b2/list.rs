//! Lists versions, live objects, and unfinished large files.

use super::Shared;
use super::cause::B2Cause;
use super::client::Session;
use super::messages::{FileVersion, FileVersions, UnfinishedFiles};
use crate::store::folders::Folders;
use crate::store::pages::{Marks, check_count};
use crate::store::{ObjectKey, PageVisitor, StoreError, StoreErrorKind, UnfinishedUpload};
use serde_json::json;
use std::collections::BTreeMap;

/// The largest page; B2 counts each thousand entries as one call.
const PAGE_MAX: usize = 10_000;
/// The page size for the versions of one name, which are few; longer names with the same beginning
/// may follow.
const VERSIONS_PAGE: usize = 100;
/// The largest page of unfinished files that B2 returns.
const UNFINISHED_PAGE: usize = 100;

const LIST: &str = "b2_list_file_versions";
const LIST_NAMES: &str = "b2_list_file_names";

/// The pages to request.
#[derive(Clone, Copy)]
struct PageRequest<'a> {
    api: &'static str,
    /// The beginning of all names, with the prefix of the store.
    full: &'a str,
    page_max: usize,
    delimiter: Option<char>,
}

impl<'a> PageRequest<'a> {
    fn versions(full: &'a str, page_max: usize) -> Self {
        Self {
            api: LIST,
            full,
            page_max,
            delimiter: None,
        }
    }
}

impl Shared {
    /// Returns all versions of exactly this key, newest first: files, hide markers, and unfinished
    /// large files.
    pub(super) async fn versions(
        &self,
        operation: &str,
        key: &ObjectKey,
    ) -> Result<Vec<FileVersion>, StoreError> {
        let failed = |cause| self.failed(operation, LIST, key.as_str(), cause);
        let name = self.full_name(key.as_str()).map_err(failed)?;
        let mut versions = Vec::new();
        let mut counted = Ok(());
        let exact = |file: &FileVersion| file.file_name == name;
        let request = PageRequest::versions(&name, VERSIONS_PAGE);
        self.turn_pages(request, failed, |files| {
            let beyond = files.iter().any(|file| !exact(file));
            versions.extend(files.into_iter().filter(exact));
            counted = check_count(versions.len());
            !beyond && counted.is_ok()
        })
        .await?;
        counted.map_err(|text| failed(B2Cause::ours(StoreErrorKind::Corrupt, text)))?;
        Ok(versions)
    }

    /// Returns the live version of a key, or `None` if it does not exist or is hidden.
    pub(super) async fn live(
        &self,
        operation: &str,
        key: &ObjectKey,
    ) -> Result<Option<FileVersion>, StoreError> {
        Ok(live_of(self.versions(operation, key).await?)
            .into_iter()
            .next())
    }

    /// Returns the live versions of all keys under `prefix`.
    pub(super) async fn live_under(
        &self,
        prefix: &str,
    ) -> Result<BTreeMap<String, FileVersion>, StoreError> {
        let full = format!("{}{prefix}", self.prefix);
        let mut newest: BTreeMap<String, FileVersion> = BTreeMap::new();
        let mut counted = Ok(());
        let failed = |cause| self.failed("list", LIST, prefix, cause);
        let request = PageRequest::versions(&full, PAGE_MAX);
        let turned = self.turn_pages(request, failed, |files| {
            for file in files
                .into_iter()
                .filter(|file| file.is_upload() || file.is_hidden_marker())
            {
                newest
                    .entry(file.file_name[self.prefix.len()..].to_owned())
                    .or_insert(file);
            }
            counted = check_count(newest.len());
            counted.is_ok()
        });
        turned.await?;
        counted.map_err(|text| failed(B2Cause::ours(StoreErrorKind::Corrupt, text)))?;
        newest.retain(|key, file| !key.is_empty() && file.is_upload());
        Ok(newest)
    }

    /// Passes page after page of the live objects under `prefix`. B2 lists versions by name, the
    /// newest of each first.
    pub(super) async fn visit_live(
        &self,
        prefix: &str,
        take: PageVisitor<'_>,
    ) -> Result<(), StoreError> {
        let full = format!("{}{prefix}", self.prefix);
        let mut last_name = String::new();
        let failed = |cause| self.failed("list", LIST, prefix, cause);
        let request = PageRequest::versions(&full, PAGE_MAX);
        let turned = self.turn_pages(request, failed, |files| {
            let mut page = Vec::new();
            for file in files
                .into_iter()
                .filter(|file| file.is_upload() || file.is_hidden_marker())
            {
                let is_newest = file.file_name != last_name;
                last_name.clone_from(&file.file_name);
                let key = &file.file_name[self.prefix.len()..];
                if is_newest && file.is_upload() && !key.is_empty() {
                    page.push(file.listed(key.to_owned()));
                }
            }
            take(page).is_continue()
        });
        turned.await
    }

    /// Lists the folders below `prefix` by the names of live files. A name of a folder that is not
    /// one is an error: B2 knows every delimiter.
    pub(super) async fn list_folders(
        &self,
        prefix: &str,
        delimiter: char,
    ) -> Result<Vec<String>, StoreError> {
        let full = format!("{}{prefix}", self.prefix);
        let failed = |cause| self.failed("list", LIST_NAMES, prefix, cause);
        let mut folders = Folders::new(prefix, delimiter);
        let mut checked = Ok(());
        let request = PageRequest {
            api: LIST_NAMES,
            full: &full,
            page_max: PAGE_MAX,
            delimiter: Some(delimiter),
        };
        let turned = self.turn_pages(request, failed, |files| {
            checked = files.iter().try_for_each(|file| {
                let key = &file.file_name[self.prefix.len()..];
                match file.is_folder() {
                    true if folders.add_named(key) => Ok(()),
                    true => Err(format!("{key:?} is not a folder below {prefix:?}")),
                    false => folders.add_key(key),
                }
            });
            checked.is_ok()
        });
        turned.await?;
        checked.map_err(|text| failed(B2Cause::ours(StoreErrorKind::Corrupt, text)))?;
        Ok(folders.into_vec())
    }

    /// Passes page after page of the requested entries, until the end or until
    /// `take` returns false. A long listing waits here while B2 does not answer, so that it does not
    /// begin again.
    async fn turn_pages(
        &self,
        request: PageRequest<'_>,
        failed: impl Fn(B2Cause) -> StoreError,
        mut take: impl FnMut(Vec<FileVersion>) -> bool,
    ) -> Result<(), StoreError> {
        let PageRequest {
            api,
            full,
            page_max,
            delimiter,
        } = request;
        let corrupt = |text: &str| failed(B2Cause::ours(StoreErrorKind::Corrupt, text));
        let mut marks = Marks::default();
        let (mut name, mut id): (Option<String>, Option<String>) = (None, None);
        loop {
            let body = |session: &Session| {
                let mut body = json!({"bucketId": session.bucket_id, "prefix": full, "maxFileCount": page_max});
                if let Some(name) = &name {
                    body["startFileName"] = json!(name);
                }
                if let Some(id) = &id {
                    body["startFileId"] = json!(id);
                }
                if let Some(delimiter) = delimiter {
                    body["delimiter"] = json!(delimiter);
                }
                body
            };
            let request = || async { self.call(api, &body).await.map_err(&failed) };
            let page: FileVersions = self.settings.patience.wait_out(request).await?;
            if page
                .files
                .iter()
                .any(|file| !file.file_name.starts_with(full))
            {
                return Err(corrupt("an entry is outside the requested prefix"));
            }
            let more = take(page.files);
            let Some(next) = page.next_file_name.filter(|_| more) else {
                return Ok(());
            };
            marks
                .pass(Some(format!("{next}\0{:?}", page.next_file_id)))
                .map_err(corrupt)?;
            (name, id) = (Some(next), page.next_file_id);
        }
    }

    pub(super) async fn unfinished(
        &self,
        prefix: &str,
    ) -> Result<Vec<UnfinishedUpload>, StoreError> {
        let begun = self.unfinished_files(prefix).await;
        let begun = begun.map_err(|cause| {
            self.failed(
                "list unfinished uploads under",
                LIST_UNFINISHED,
                prefix,
                cause,
            )
        })?;
        let upload = |file: FileVersion| {
            let key = file.file_name[self.prefix.len()..].to_owned();
            let started_at = file.uploaded_at();
            Some(UnfinishedUpload {
                key,
                upload_id: file.file_id?,
                started_at,
            })
        };
        let mut uploads: Vec<UnfinishedUpload> = begun.into_iter().filter_map(upload).collect();
        uploads.sort_unstable_by(|a, b| (&a.key, &a.upload_id).cmp(&(&b.key, &b.upload_id)));
        uploads.dedup();
        Ok(uploads)
    }

    /// Returns the unfinished large files under a prefix.
    pub(super) async fn unfinished_files(&self, prefix: &str) -> Result<Vec<FileVersion>, B2Cause> {
        let full = format!("{}{prefix}", self.prefix);
        let mut marks = Marks::default();
        let mut files = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let body = |session: &Session| {
                let mut body =
                    json!({"bucketId": session.bucket_id, "maxFileCount": UNFINISHED_PAGE});
                // An empty prefix is omitted: not every server accepts it.
                if !full.is_empty() {
                    body["namePrefix"] = json!(full);
                }
                if let Some(id) = &next {
                    body["startFileId"] = json!(id);
                }
                body
            };
            let page: UnfinishedFiles = self.call(LIST_UNFINISHED, body).await?;
            files.extend(
                page.files
                    .into_iter()
                    .filter(|file| file.file_name.starts_with(&full)),
            );
            let Some(id) = page.next_file_id else {
                return Ok(files);
            };
            marks
                .pass(Some(id.clone()))
                .map_err(|text| B2Cause::ours(StoreErrorKind::Corrupt, text))?;
            next = Some(id);
        }
    }
}

const LIST_UNFINISHED: &str = "b2_list_unfinished_large_files";

/// Returns the files among the versions of one name that no hide marker covers, newest first.
/// Readers get the first one; each older one becomes visible when the newer one is deleted.
pub(super) fn live_of(versions: Vec<FileVersion>) -> Vec<FileVersion> {
    versions
        .into_iter()
        .take_while(|file| !file.is_hidden_marker())
        .filter(FileVersion::is_upload)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_below_a_hide_marker_is_not_live() {
        for (actions, live) in [
            (&[][..], &[][..]),
            (&["upload"], &[0][..]),
            (&["upload", "upload"], &[0, 1]),
            (&["hide", "upload"], &[]),
            (&["upload", "hide", "upload"], &[0]),
            (&["start", "upload", "start"], &[1]),
            (&["start", "hide", "upload"], &[]),
        ] {
            let version = |(n, action): (usize, &&str)| -> FileVersion {
                serde_json::from_value(
                    json!({"fileId": n.to_string(), "fileName": "x", "action": action}),
                )
                .unwrap()
            };
            let found = live_of(actions.iter().enumerate().map(version).collect());
            let ids: Vec<String> = found.into_iter().filter_map(|file| file.file_id).collect();
            assert_eq!(
                ids,
                live.iter().map(usize::to_string).collect::<Vec<_>>(),
                "{actions:?}"
            );
        }
    }
}
