//! [`Adapter`]: the errors and comparisons that S3, B2 and rclone have in common.

use super::{Evidence, ObjectKey, PutOutcome, StoreError, StoreErrorKind};
use bytes::{Bytes, BytesMut};
use std::ops::Range;

/// A store that is reached by requests.
pub(super) trait Adapter: Sync {
    /// Returns the store's name for messages.
    fn url(&self) -> &str;

    /// Reads a whole object (`None`) or a range of it into the memory of a buffer whose content is
    /// no longer needed; see [`super::StoreRead::get`].
    fn get_into(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
        buffer: BytesMut,
    ) -> impl Future<Output = Result<BytesMut, StoreError>> + Send;

    /// Reads as [`Adapter::get_into`] does, into new memory.
    fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> impl Future<Output = Result<Bytes, StoreError>> + Send {
        let read = self.get_into(key, range, limit_bytes, BytesMut::new());
        async move { Ok(read.await?.freeze()) }
    }

    /// Makes the error for a failure that this program found, not the store.
    fn wrong(
        &self,
        kind: StoreErrorKind,
        operation: &str,
        subject: &str,
        text: impl Into<String>,
    ) -> StoreError {
        StoreError::new(kind, operation, subject, self.url(), text.into())
    }

    /// Makes the error for a key that has another object.
    fn taken(&self, operation: &str, key: &ObjectKey) -> StoreError {
        let text = "the key is taken by another object";
        self.wrong(StoreErrorKind::AlreadyExists, operation, key.as_str(), text)
    }

    /// Decides on a put whose key is taken: success if the existing object has the same bytes.
    fn compare_whole(
        &self,
        key: &ObjectKey,
        bytes: &Bytes,
        found: Evidence,
    ) -> impl Future<Output = Result<(PutOutcome, Evidence), StoreError>> + Send {
        async move {
            let len = bytes.len() as u64;
            if found.bytes == len && self.get(key, None, len).await? == *bytes {
                Ok((PutOutcome::Identical, found))
            } else {
                Err(self.taken("put", key))
            }
        }
    }

    /// Checks that a range lies within the object, which has `bytes`, or `None` if there is none.
    fn check_range(
        &self,
        key: &ObjectKey,
        range: &Range<u64>,
        bytes: Option<u64>,
    ) -> Result<(), StoreError> {
        match bytes {
            None => {
                let text = "no such object";
                Err(self.wrong(StoreErrorKind::NotFound, "get", key.as_str(), text))
            }
            Some(bytes) if range.start <= range.end && range.end <= bytes => Ok(()),
            Some(bytes) => {
                let text = format!("bytes {range:?} were requested, the object has {bytes}");
                Err(self.wrong(StoreErrorKind::Corrupt, "get", key.as_str(), text))
            }
        }
    }
}

/// Returns the store's name for messages: `s3:bucket/prefix`.
pub(super) fn bucket_url(protocol: &str, bucket: &str, prefix: &str) -> String {
    match prefix {
        "" => format!("{protocol}:{bucket}"),
        prefix => format!("{protocol}:{bucket}/{prefix}"),
    }
}

/// Returns the beginning of all names below a prefix: with a slash, or empty.
pub(super) fn folder_of(prefix: &str) -> String {
    match prefix {
        "" => String::new(),
        prefix => format!("{prefix}/"),
    }
}
