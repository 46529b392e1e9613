//! Files that are sent in one request, and the final check of the name after every upload.

use super::Shared;
use super::cause::B2Cause;
use super::client::Retries;
use super::list::live_of;
use super::messages::FileVersion;
use crate::store::adapter::Adapter;
use crate::store::hash::HashKind;
use crate::store::{Evidence, ObjectKey, PutOutcome, StoreError, StoreErrorKind};
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use tokio::time::sleep;

/// The maximum number of attempts of one upload, as in B2's own tools.
pub(super) const UPLOAD_TRIES_MAX: u32 = 5;
/// The maximum number of reads of an object that the store has just accepted.
const CONFIRM_TRIES_MAX: u32 = 3;
/// The characters that B2 accepts unencoded in names; a plus would be read as a space.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

const UPLOAD: &str = "b2_upload_file";
pub(super) const SHA1_HEADER: HeaderName = HeaderName::from_static("x-bz-content-sha1");
const NAME_HEADER: HeaderName = HeaderName::from_static("x-bz-file-name");

/// The description of the sent object that the store should return.
pub(super) struct SentFile {
    pub(super) bytes: u64,
    /// The SHA-1 of the whole object, if B2 computes it too.
    pub(super) sha1: Option<String>,
    /// The file's id, if a response contained it.
    pub(super) id: Option<String>,
}

impl SentFile {
    /// Whether this version has the bytes that were sent: by its id, else by size and SHA-1.
    fn is(&self, file: &FileVersion) -> bool {
        let same_id = self.id.as_deref().is_some_and(|id| file.has_id(id));
        let same_sha1 = self.sha1.is_some() && file.sha1() == self.sha1.as_deref();
        file.content_length == self.bytes && (same_sha1 || (same_id && self.sha1.is_none()))
    }
}

/// Encodes a name for headers and URLs.
pub(super) fn encode_name(name: &str) -> String {
    utf8_percent_encode(name, PLAIN).to_string()
}

/// Makes a header value from text that is always plain ASCII.
pub(super) fn value(text: &str) -> Result<HeaderValue, B2Cause> {
    HeaderValue::from_str(text)
        .map_err(|error| B2Cause::ours(StoreErrorKind::Invalid, error.to_string()))
}

impl Shared {
    pub(super) async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        let Some(found) = self.live("put", key).await? else {
            let evidence = self.send_until_stored(key, bytes).await?;
            return Ok((PutOutcome::Created, evidence));
        };
        self.compare_whole(key, &bytes, found.evidence()).await
    }

    /// Sends until the store has the file. A request whose response was lost may have succeeded, so
    /// the name is checked before the bytes are sent again.
    pub(super) async fn send_until_stored(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<Evidence, StoreError> {
        let hash = HashKind::Sha1.hash_blocking(bytes.clone()).await;
        let mut sent = SentFile {
            bytes: hash.bytes,
            sha1: Some(hash.hex()),
            id: None,
        };
        let mut retries = Retries::new(&self.settings, UPLOAD_TRIES_MAX);
        loop {
            let cause = match self.send_whole(key, &bytes, &sent).await {
                Ok(stored) => {
                    sent.id = stored.file_id;
                    return self.confirm(key, &sent).await;
                }
                Err(cause) => cause,
            };
            let arrived = cause.is_ambiguous()
                && live_of(self.versions("put", key).await?)
                    .iter()
                    .any(|file| sent.is(file));
            if arrived {
                return self.confirm(key, &sent).await;
            }
            if !cause.wants_new_url() || !retries.wait(&cause).await {
                return Err(self.failed("put", UPLOAD, key.as_str(), cause));
            }
            tracing::debug!(%key, %cause, "upload failed; trying another URL");
        }
    }

    async fn send_whole(
        &self,
        key: &ObjectKey,
        bytes: &Bytes,
        sent: &SentFile,
    ) -> Result<FileVersion, B2Cause> {
        let name = self.full_name(key.as_str())?;
        let mut headers = HeaderMap::new();
        headers.insert(NAME_HEADER, value(&encode_name(&name))?);
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        headers.insert(
            SHA1_HEADER,
            value(sent.sha1.as_deref().unwrap_or_default())?,
        );
        self.add_lock(&mut headers)?;
        self.post_bytes(
            &self.upload_urls,
            ("b2_get_upload_url", None),
            headers,
            bytes.clone(),
        )
        .await
    }

    /// Checks the name again after an upload: the file must be there as sent, and must be the only
    /// version.
    pub(super) async fn confirm(
        &self,
        key: &ObjectKey,
        sent: &SentFile,
    ) -> Result<Evidence, StoreError> {
        for attempt in 1..=CONFIRM_TRIES_MAX {
            let live = live_of(self.versions("confirm", key).await?);
            if live.iter().any(|file| sent.is(file)) {
                return self.keep_one_version(key, sent, live).await;
            }
            if attempt < CONFIRM_TRIES_MAX {
                sleep(self.settings.pause_first * attempt).await;
            }
        }
        let sha1 = sent.sha1.as_deref().unwrap_or("of parts");
        let found = self
            .live("confirm", key)
            .await?
            .map_or_else(|| "nothing".to_owned(), |file| describe(&file));
        let text = format!(
            "{} bytes with SHA-1 {sha1} were sent and accepted, but the store has {found}",
            sent.bytes
        );
        Err(self.wrong(StoreErrorKind::Corrupt, "confirm", key.as_str(), text))
    }

    /// Reduces the versions to one. `live` has the newest first, and at least one of them is the
    /// sent file. Of versions with these bytes the oldest is kept. If an older version has other
    /// bytes, it was there first, and ours is deleted.
    async fn keep_one_version(
        &self,
        key: &ObjectKey,
        sent: &SentFile,
        live: Vec<FileVersion>,
    ) -> Result<Evidence, StoreError> {
        let failed = |cause| {
            self.failed(
                "take back a second version of",
                "b2_delete_file_version",
                key.as_str(),
                cause,
            )
        };
        let oldest = live.iter().rposition(|file| sent.is(file)).unwrap_or(0);
        // Large files are ordered by their start and not by their end, so two concurrent uploads
        // cannot know which was first.
        let rivals = if sent.sha1.is_some() {
            &live[oldest + 1..]
        } else {
            &live[..]
        };
        let lost = rivals.iter().any(|file| !sent.is(file));
        for (n, file) in live.iter().enumerate() {
            let ours = sent.id.as_deref().is_some_and(|id| file.has_id(id));
            if lost && ours {
                // If our version stayed, the next attempt would take it for the first one.
                let delete = || async { self.delete_version(file).await.map_err(failed) };
                self.settings.patience.wait_out(delete).await?;
            } else if !lost && n != oldest && sent.is(file) {
                // A second version with the same bytes is harmless; it only uses space.
                if let Err(cause) = self.delete_version(file).await {
                    tracing::debug!(%key, %cause, "a second version with the same bytes stays");
                }
            }
        }
        if lost {
            Err(self.taken("put", key))
        } else {
            self.check_lock(key, live[oldest].evidence())
        }
    }
}

fn describe(file: &FileVersion) -> String {
    format!(
        "{} bytes with SHA-1 {}",
        file.content_length,
        file.sha1().unwrap_or("unknown")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_encoded_as_b2_wants_them() {
        for (name, encoded) in [
            ("tank/@a/x-1_2.3~", "tank/%40a/x-1_2.3~"),
            ("a b+c%20", "a%20b%2Bc%2520"),
            ("ü/\\", "%C3%BC/%5C"),
        ] {
            assert_eq!(encode_name(name), encoded);
        }
    }
}
