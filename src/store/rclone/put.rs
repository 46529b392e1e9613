//! Puts objects from memory and from a spool, and removes objects. The remote's state afterwards
//! decides the result.

use super::cause::RcloneCause;
use super::process::{self, Call};
use super::read::partial_of;
use super::{ANSWER_BYTES_MAX, RcloneStore};
use crate::store::adapter::Adapter;
use crate::store::hash::HashKind;
use crate::store::work::run_blocking;
use crate::store::{
    Evidence, ObjectKey, PutOutcome, SpoolFile, StoreError, StoreErrorKind, UnfinishedUpload,
};
use bytes::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::time::Duration;
use tokio::sync::MutexGuard;
use tokio::time::sleep;

/// Standard input as a file that rclone can open and read repeatedly, from its beginning.
const SOURCE: &str = "/proc/self/fd/0";
/// The maximum number of reads of an object that the remote has just accepted.
const CONFIRM_TRIES_MAX: u32 = 3;
const CONFIRM_PAUSE: Duration = Duration::from_millis(500);
/// The maximum number of deletions of one name: each may make an older version visible.
const DELETE_TRIES_MAX: u32 = 20;

/// The description of the object that the remote should report.
struct Sent {
    bytes: u64,
    /// The hash of the remote's kind, if it has one.
    hash: Option<String>,
}

impl RcloneStore {
    pub(super) async fn put_bytes(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        let _one = self.lock_name(key).await;
        if let Some(found) = self.find_object("put", key).await? {
            return self.compare_whole(key, &bytes, found).await;
        }
        let (sent, file) = self.prepare(key, bytes.clone()).await?;
        match self.copy_there(key, file, &sent).await {
            Ok(evidence) => Ok((PutOutcome::Created, evidence)),
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => {
                let Some(found) = self.find_object("put", key).await? else {
                    return Err(error);
                };
                self.compare_whole(key, &bytes, found).await
            }
            Err(error) => Err(error),
        }
    }

    pub(super) async fn put_file(
        &self,
        key: &ObjectKey,
        file: &SpoolFile,
    ) -> Result<Evidence, StoreError> {
        let _one = self.lock_name(key).await;
        let found = self.find_object("put", key).await?;
        let failed = |error: crate::store::spool::SpoolError| error.in_store(key, &self.url);
        // The file is read back even if the remote has no hash, because rclone would not notice
        // bytes that the spool's disk has damaged.
        let kind = self.hash.unwrap_or(HashKind::Crc64nvme);
        let hash = file.hash(kind).await.map_err(failed)?;
        let sent = Sent {
            bytes: hash.bytes,
            hash: self.hash.map(|_| hash.hex()),
        };
        if let Some(found) = found {
            // An earlier attempt may have put these bytes; only a hash proves it.
            let is_sent = found.bytes == sent.bytes && sent.hash.is_some();
            return match is_sent && found.checksum == sent.hash {
                true => Ok(found),
                false => Err(self.taken("put", key)),
            };
        }
        self.copy_there(key, file.share().map_err(failed)?, &sent)
            .await
    }

    /// Serialises the puts of one name in this process.
    async fn lock_name(&self, key: &ObjectKey) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let place = usize::try_from(hasher.finish() % self.put_locks.len() as u64).unwrap_or(0);
        self.put_locks[place].lock().await
    }

    /// Returns the bytes as a file in memory, and the description that the remote should report.
    async fn prepare(&self, key: &ObjectKey, bytes: Bytes) -> Result<(Sent, File), StoreError> {
        let kind = self.hash;
        let work = move || -> io::Result<(Sent, File)> {
            let mut file = File::from(memfd_create("zfs-backup", MemfdFlags::CLOEXEC)?);
            file.write_all(&bytes)?;
            Ok((
                Sent {
                    bytes: bytes.len() as u64,
                    hash: kind.map(|kind| kind.hash(&bytes).hex()),
                },
                file,
            ))
        };
        run_blocking(work).await.map_err(|error| {
            let text = format!("a file in memory cannot be made: {error}");
            self.wrong(StoreErrorKind::Unavailable, "put", key.as_str(), text)
                .with_outage(false)
        })
    }

    /// Makes rclone copy the file to a free name, and checks the result.
    async fn copy_there(
        &self,
        key: &ObjectKey,
        file: File,
        sent: &Sent,
    ) -> Result<Evidence, StoreError> {
        // The semaphore is never closed.
        let _place = self.uploads.acquire().await.ok();
        let arguments = [
            "copyto",
            "--copy-links",
            "--ignore-existing",
            "--error-on-no-transfer",
        ];
        let call = Call {
            arguments: arguments.map(str::to_owned).to_vec(),
            places: vec![SOURCE.to_owned(), self.settings.place_of(key.as_str())],
            stdin: Some(file),
            output_bytes_max: ANSWER_BYTES_MAX,
            limit: self.settings.call_limit(sent.bytes),
            quiet: false,
        };
        let failure = match process::run(&self.settings, call).await {
            Ok(ended) => ended.failure,
            Err(cause) => Some(cause),
        };
        if failure.as_ref().is_some_and(RcloneCause::is_taken) {
            return Err(self.taken("put", key));
        }
        self.confirm(key, sent, failure).await
    }

    /// Checks that the remote has what was sent, independent of rclone's result.
    async fn confirm(
        &self,
        key: &ObjectKey,
        sent: &Sent,
        failure: Option<RcloneCause>,
    ) -> Result<Evidence, StoreError> {
        let failed = |cause: RcloneCause| self.failed("put", key.as_str(), cause);
        let mut found = None;
        for attempt in 1..=CONFIRM_TRIES_MAX {
            found = match (self.find_object("confirm", key).await, &failure) {
                (Err(_), Some(cause)) => return Err(failed(cause.clone())),
                (checked, _) => checked?,
            };
            if found.is_some() || failure.is_some() || attempt == CONFIRM_TRIES_MAX {
                break;
            }
            sleep(CONFIRM_PAUSE).await;
        }
        let hash_agrees = found
            .as_ref()
            .and_then(|found| Some(found.checksum.as_ref()? == sent.hash.as_ref()?));
        match (found, failure) {
            (Some(found), None) if found.bytes == sent.bytes && hash_agrees != Some(false) => {
                Ok(found)
            }
            // rclone failed after the bytes had arrived, or an earlier attempt had stored them;
            // only a hash proves that they are these bytes.
            (Some(found), Some(_)) if found.bytes == sent.bytes && hash_agrees == Some(true) => {
                Ok(found)
            }
            (None, Some(cause)) => Err(failed(cause)),
            (found, cause) => Err(self.differs(key, sent, found.as_ref(), cause)),
        }
    }

    fn differs(
        &self,
        key: &ObjectKey,
        sent: &Sent,
        found: Option<&Evidence>,
        cause: Option<RcloneCause>,
    ) -> StoreError {
        let describe = |bytes: u64, hash: Option<&String>| {
            format!(
                "{bytes} bytes with hash {}",
                hash.map_or("unknown", String::as_str)
            )
        };
        let there = found.map_or_else(
            || "nothing".to_owned(),
            |found| describe(found.bytes, found.checksum.as_ref()),
        );
        let said = cause.map_or_else(
            || "rclone reported success".to_owned(),
            |cause| cause.to_string(),
        );
        let was = describe(sent.bytes, sent.hash.as_ref());
        let text = format!("{was} were sent, but the store has {there}; {said}");
        let error = self.wrong(StoreErrorKind::Corrupt, "confirm", key.as_str(), text);
        match found {
            // The object is not deleted, because it is only probably ours.
            Some(_) => {
                let place = self.settings.place_of(key.as_str());
                let quoted = shell_words::quote(&place);
                error.with_hint(format!(
                    "the object in the store is incomplete; check it, then remove it: `rclone deletefile {quoted}`"
                ))
            }
            None => error,
        }
    }

    /// Deletes until the name no longer exists: if versions are kept, an older one becomes visible
    /// each time.
    pub(super) async fn remove(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let _one = self.lock_name(key).await;
        self.remove_name("delete", key).await
    }

    pub(super) async fn remove_partial(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        let operation = "remove unfinished upload of";
        let named = ObjectKey::listed(&upload.upload_id)
            .filter(|name| partial_of(name.as_str()) == Some(&upload.key));
        match named {
            Some(name) => self.remove_name(operation, &name).await,
            None => {
                let text = format!("{:?} is not the name of one", upload.upload_id);
                Err(self.wrong(StoreErrorKind::Invalid, operation, &upload.key, text))
            }
        }
    }

    async fn remove_name(&self, operation: &str, key: &ObjectKey) -> Result<(), StoreError> {
        let failed = |cause| self.failed(operation, key.as_str(), cause);
        for _ in 0..DELETE_TRIES_MAX {
            let places = [self.settings.place_of(key.as_str())];
            let ended = self
                .run(&["deletefile"], &places, true)
                .await
                .map_err(failed)?;
            let failure = ended
                .failure
                .filter(|cause| !cause.is_no_file() && !cause.is_no_folder());
            let left = self.find_object(operation, key).await?;
            match (left, failure) {
                (None, _) => return Ok(()),
                (Some(_), Some(cause)) => return Err(failed(cause)),
                (Some(_), None) => {}
            }
        }
        Err(self.wrong(
            StoreErrorKind::Unavailable,
            operation,
            key.as_str(),
            "it is there again after each deletion",
        ))
    }
}
