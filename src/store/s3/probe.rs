//! Probes what an S3 store does: small objects below one prefix, and uploads that are aborted
//! again.
//!
//! The probe judges each request by itself: after an error or an unreadable response, the probe
//! notes the reason and continues with the other requests. The probe fails
//! only if the store answers nothing at all, or if not even a plain object can be stored.
//!
//! The order matters: deleting is probed first, with a few bytes. If it does not work, only a few
//! more bytes are put, because they remain; if it works, objects of two parts are sent, since a
//! store may report another checksum for several parts than for one.

use super::fallback::S3Upload;
use super::{NOTHING_THERE, S3Checksum, S3Settings, Shared};
use crate::store::adapter::Adapter;
use crate::store::hash::{ExpectedEvidence, HashKind};
use crate::store::key::PROBE_PREFIX;
use crate::store::multipart::{MultipartStore, MultipartWriter};
use crate::store::probe::{Ability, Deleting, StoreProbe};
use crate::store::{EvidenceTier, ObjectKey, ObjectLock, PartWriter, StoreError, StoreErrorKind};
use bytes::Bytes;
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// The smallest part, except the last, that stores accept.
const PART_BYTES: usize = 5 * 1024 * 1024;
/// The probed part numbers: the protocol's limit, then the limit of some stores.
const PART_NUMBERS: [u16; 2] = [10_000, 1000];
/// The length of the lock of an object. The request must reach the store before its end.
const LOCK_SECONDS: i64 = 10;
/// The time after which that lock has ended, by the clock of the store too.
const LOCK_WAIT: Duration = Duration::from_secs(12);
/// The age from which an object under the prefix is the remains of a killed probe.
const LEFTOVER_SECONDS: i64 = 3600;

/// A probe of a store, with its findings so far.
struct Probing {
    shared: Arc<Shared>,
    prefix: String,
    found: StoreProbe,
    /// The end of the lock of an object.
    unlocked_at: Option<Instant>,
}

pub(super) async fn probe(shared: &Arc<Shared>, prefix: &str) -> Result<StoreProbe, StoreError> {
    let mut probing = Probing {
        shared: Arc::new(plain(shared, S3Checksum::Md5)),
        prefix: prefix.to_owned(),
        found: StoreProbe::default(),
        unlocked_at: None,
    };
    let tried = probing.run(&shared.settings).await;
    // The clean-up also runs after an error, so that nothing remains.
    probing.clean_up().await;
    if let (Err(error), [left, ..]) = (&tried, probing.found.left_behind.as_slice()) {
        tracing::warn!(%error, store = shared.url, key = left, "the probe failed and could not remove what it had put");
    }
    tried.map(|()| probing.found)
}

/// Returns the store for the probe: without a lock, because locked objects could not be removed;
/// with exactly this checksum, because its refusal is a result; and without a condition on the
/// completion of uploads, which is a question of its own.
fn plain(shared: &Shared, checksum: S3Checksum) -> Shared {
    let settings = S3Settings {
        checksum,
        lock: None,
        storage_class: None,
        part_bytes: PART_BYTES,
        concurrency: 1,
        ..shared.settings.clone()
    };
    Shared {
        falls_back: false,
        refuses_complete_condition: AtomicBool::new(true),
        ..shared.with_settings(settings)
    }
}

/// Returns the result of a request that the store refused, or failed to serve.
fn refused_or_unknown(error: &StoreError) -> Ability {
    match error.is_transient() {
        true => Ability::Unknown,
        false => Ability::Refused,
    }
}

impl Probing {
    async fn run(&mut self, settings: &S3Settings) -> Result<(), StoreError> {
        self.try_put_condition().await?;
        self.try_delete().await?;
        if let Some(lock) = settings.lock {
            self.try_lock(lock).await?;
        }
        let large = self.try_checksums(settings.checksum).await?;
        self.try_complete_condition(&large).await?;
        self.try_uploads().await
    }

    fn key(&self, name: &str) -> Result<ObjectKey, StoreError> {
        let text = format!("{}{name}", self.prefix);
        let wrong = || {
            self.shared.wrong(
                StoreErrorKind::Invalid,
                "probe",
                &text,
                "this cannot be a key",
            )
        };
        ObjectKey::listed(&text).ok_or_else(wrong)
    }

    fn note(&mut self, what: &str, said: &dyn std::fmt::Display) {
        self.found.notes.push(format!("{what}: {said}"));
    }

    /// Notes a failure as the answer to one question. Fails if the store does not answer another
    /// request either: the failure is an outage then, and no answer.
    async fn note_failure(&mut self, what: &str, error: &StoreError) -> Result<(), StoreError> {
        if error.is_transient()
            && let Err(outage) = self.shared.check_bucket().await
            && outage.is_transient()
        {
            return Err(outage);
        }
        self.found.uncertain |= error.is_transient();
        self.note(what, &said(error));
        Ok(())
    }

    async fn put(&self, key: &ObjectKey, bytes: &'static [u8]) -> Result<(), StoreError> {
        let shared = &self.shared;
        let bytes = Bytes::from_static(bytes);
        let md5 = S3Checksum::Md5;
        let hash = md5.kind().hash_blocking(bytes.clone()).await;
        let put = shared.send_whole(key, &bytes, md5, &hash, shared.put_condition());
        put.await
            .map_err(|cause| shared.failed("probe", "PutObject", key.as_str(), cause))
    }

    /// Probes create-only puts: the first put must succeed; the second, of other bytes, must be
    /// refused.
    async fn try_put_condition(&mut self) -> Result<(), StoreError> {
        let key = self.key("small")?;
        if let Err(error) = self.put(&key, b"1").await {
            self.shared
                .refuses_put_condition
                .store(true, Ordering::Relaxed);
            // A put that was refused for another reason is refused again.
            self.put(&key, b"1").await?;
            self.note_failure("a create-only put", &error).await?;
            if !self.was_passing(&error).await? {
                self.found.conditional_put = Ability::Refused;
                return Ok(());
            }
        }
        self.found.conditional_put = match self.put(&key, b"2").await {
            Ok(()) => Ability::Ignored,
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => Ability::Works,
            Err(error) => {
                self.note_failure("a second create-only put", &error)
                    .await?;
                match error.kind {
                    StoreErrorKind::Unsupported => Ability::Refused,
                    _ => Ability::Unknown,
                }
            }
        };
        Ok(())
    }

    /// Repeats the create-only put after a failure that may have passed. Returns whether the store
    /// accepts it now.
    async fn was_passing(&self, error: &StoreError) -> Result<bool, StoreError> {
        let refuses = &self.shared.refuses_put_condition;
        refuses.store(false, Ordering::Relaxed);
        let was_passing =
            error.is_transient() && self.put(&self.key("small-again")?, b"1").await.is_ok();
        refuses.store(!was_passing, Ordering::Relaxed);
        Ok(was_passing)
    }

    /// Probes deleting, and reads the store's clock.
    async fn try_delete(&mut self) -> Result<(), StoreError> {
        let key = self.key("small")?;
        let now = Timestamp::now();
        match self.shared.list(&self.prefix).await {
            Ok(listed) => {
                let written = listed
                    .iter()
                    .find(|object| object.key == key.as_str())
                    .and_then(|object| object.modified_at);
                self.found.clock_ahead_seconds =
                    written.map(|written| written.as_second() - now.as_second());
            }
            Err(error) => self.note_failure("a listing", &error).await?,
        }
        match self.deleting(&key).await {
            Ok(deleting) => self.found.deleting = deleting,
            Err(error) => self.note_failure("a delete", &error).await?,
        }
        Ok(())
    }

    async fn deleting(&mut self, key: &ObjectKey) -> Result<Deleting, StoreError> {
        let shared = Arc::clone(&self.shared);
        let has_versions = shared
            .head(key)
            .await?
            .is_some_and(|found| found.version_id.is_some());
        let refusal = match shared.delete(key).await {
            Err(error) if error.is_transient() => return Err(error),
            deleted => deleted.err(),
        };
        let is_there = shared.head_in_bucket(key).await?.is_some();
        let Some(refusal) = refusal else {
            return Ok(match (is_there, has_versions) {
                (false, true) => Deleting::RemovesVersions,
                (false, false) => Deleting::Removes,
                (true, _) => {
                    let text = "the store confirmed the delete, and the object still exists";
                    self.note("a delete", &text);
                    Deleting::Unknown
                }
            });
        };
        self.note("a delete", &said(&refusal));
        Ok(match (is_there, refusal.kind) {
            (false, _) => Deleting::Hides,
            (true, StoreErrorKind::Denied) => Deleting::Refused,
            (true, _) => Deleting::Unknown,
        })
    }

    fn removes(&self) -> bool {
        matches!(
            self.found.deleting,
            Deleting::Removes | Deleting::RemovesVersions
        )
    }

    /// Probes whether an object that is sent in parts is locked: some stores lock only what comes
    /// in one request. The lock ends within seconds, so that the object can be removed.
    async fn try_lock(&mut self, lock: ObjectLock) -> Result<(), StoreError> {
        let key = self.key("locked")?;
        let ahead = self.found.clock_ahead_seconds.unwrap_or(0);
        let until = Timestamp::now().as_second() + ahead + LOCK_SECONDS;
        let locking = Shared {
            lock_until: Timestamp::from_second(until).ok(),
            falls_back: false,
            ..self.shared.with_settings(S3Settings {
                lock: Some(lock),
                ..self.shared.settings.clone()
            })
        };
        let ends_at = Instant::now() + LOCK_WAIT;
        let found = match self.put_small(&locking, &key, None).await {
            Ok(()) => {
                // The store may lock the object and not show the lock.
                self.unlocked_at = Some(ends_at);
                locking.head(&key).await
            }
            Err(error) => Err(error),
        };
        self.found.object_lock = match found {
            Ok(Some(found)) if found.locked_until.is_some() => Ability::Works,
            Ok(_) => Ability::Ignored,
            Err(error) => {
                self.note_failure("an upload with a lock", &error).await?;
                // The end of the lock may have passed before the store saw it.
                if Instant::now() < ends_at {
                    refused_or_unknown(&error)
                } else {
                    Ability::Unknown
                }
            }
        };
        Ok(())
    }

    /// Sends an object of one small part. Aborts the upload after a failure.
    async fn put_small(
        &self,
        shared: &Shared,
        key: &ObjectKey,
        condition: Option<String>,
    ) -> Result<(), StoreError> {
        let upload = shared.begin(key).await?;
        let sent = self.complete_small(shared, key, &upload, condition).await;
        if sent.is_err() {
            // The next step reports an upload that cannot be removed.
            let _ = shared.abort_upload(key.as_str(), upload.as_ref()).await;
        }
        sent
    }

    async fn complete_small(
        &self,
        shared: &Shared,
        key: &ObjectKey,
        upload: &S3Upload,
        condition: Option<String>,
    ) -> Result<(), StoreError> {
        let bytes = Bytes::from_static(b"4");
        let sent = ExpectedEvidence::of_parts(HashKind::Md5, &[HashKind::Md5.hash(&bytes)]);
        let parts = [shared.put_part(key, upload, 1, bytes).await?];
        let completed = shared.send_complete(key, upload.current(), &parts, &sent, condition);
        let api = "CompleteMultipartUpload";
        completed
            .await
            .map_err(|cause| shared.failed("probe", api, key.as_str(), cause))
    }

    /// Sends an object with each checksum, the strongest first, until one is kept, and always with
    /// the configured one. Returns the key of an object that was stored.
    async fn try_checksums(&mut self, configured: S3Checksum) -> Result<ObjectKey, StoreError> {
        let mut stored: Option<(ObjectKey, S3Checksum, EvidenceTier)> = None;
        let mut refused = None;
        for checksum in S3Checksum::ALL {
            if !self.found.kept.is_empty() && checksum != configured {
                continue;
            }
            let key = self.key(&format!("large-{checksum}"))?;
            match self.upload(&key, checksum).await {
                Ok(tier) => {
                    if tier == checksum.tier() {
                        self.found.kept.push(checksum);
                    }
                    // If no checksum is kept, MD5 is chosen, because most stores verify it on
                    // arrival.
                    if self.found.kept.len() <= 1
                        && (tier == checksum.tier() || self.found.kept.is_empty())
                    {
                        stored = Some((key, checksum, tier));
                    }
                }
                Err(error) => {
                    self.note_failure(&format!("{checksum}"), &error).await?;
                    refused = Some(error);
                }
            }
        }
        match (stored, refused) {
            (Some((key, checksum, tier)), _) => {
                (self.found.checksum, self.found.tier) = (Some(checksum), tier);
                Ok(key)
            }
            (None, Some(error)) => Err(error),
            (None, None) => {
                Err(self
                    .shared
                    .wrong(StoreErrorKind::Invalid, "probe", "", "nothing was tried"))
            }
        }
    }

    /// Uploads two parts if they can be removed again, else one of a few bytes.
    async fn upload(
        &self,
        key: &ObjectKey,
        checksum: S3Checksum,
    ) -> Result<EvidenceTier, StoreError> {
        let shared = Arc::new(plain(&self.shared, checksum));
        // No other object can have this key, so nobody needs to check it.
        let upload = shared.begin(key).await?;
        let mut writer = Box::new(MultipartWriter::new(&shared, key, Some(upload)));
        if self.removes() {
            writer.put_part(Bytes::from(vec![0x5a; PART_BYTES])).await?;
        }
        writer.put_part(Bytes::from_static(b"3")).await?;
        writer.finish().await.map(|evidence| evidence.tier)
    }

    /// Probes a create-only completion: uploads to an existing key, to the end.
    async fn try_complete_condition(&mut self, key: &ObjectKey) -> Result<(), StoreError> {
        let condition = Some(NOTHING_THERE.to_owned());
        let completed = self.put_small(&self.shared, key, condition).await;
        self.found.conditional_complete = match completed {
            Ok(()) => Ability::Ignored,
            Err(error) if error.kind == StoreErrorKind::AlreadyExists => Ability::Works,
            Err(error) => {
                self.note_failure("a create-only completion of an upload", &error)
                    .await?;
                refused_or_unknown(&error)
            }
        };
        Ok(())
    }

    /// Probes listing and removing unfinished uploads, and the number of parts they may have.
    async fn try_uploads(&mut self) -> Result<(), StoreError> {
        let key = self.key("unfinished")?;
        let upload = match self.shared.begin(&key).await {
            Ok(upload) => upload,
            Err(error) => return self.note_failure("an unfinished upload", &error).await,
        };
        for number in PART_NUMBERS {
            let part = Bytes::from_static(b"5");
            match self.shared.put_part(&key, &upload, number, part).await {
                Ok(_) => {
                    self.found.parts_max = Some(number.into());
                    break;
                }
                Err(error) => {
                    self.note_failure(&format!("part number {number}"), &error)
                        .await?;
                }
            }
        }
        let upload_id = upload.as_ref();
        self.found.list_uploads = self.lists(upload_id).await?;
        self.found.abort_uploads = match self.shared.abort_upload(key.as_str(), upload_id).await {
            Ok(()) if self.found.list_uploads != Ability::Works => Ability::Works,
            Ok(()) if self.lists(upload_id).await? == Ability::Works => Ability::Ignored,
            Ok(()) => Ability::Works,
            Err(error) => {
                self.note_failure("aborting an upload", &error).await?;
                refused_or_unknown(&error)
            }
        };
        Ok(())
    }

    async fn lists(&mut self, upload_id: &str) -> Result<Ability, StoreError> {
        match self.shared.unfinished(&self.prefix).await {
            Ok(uploads) if uploads.iter().any(|upload| upload.upload_id == upload_id) => {
                Ok(Ability::Works)
            }
            Ok(_) => Ok(Ability::Ignored),
            Err(error) => {
                self.note_failure("listing unfinished uploads", &error)
                    .await?;
                Ok(refused_or_unknown(&error))
            }
        }
    }

    /// Removes the objects of this probe, and the remains of earlier, killed ones. Remaining
    /// objects are reported.
    async fn clean_up(&mut self) {
        if let Some(unlocked_at) = self.unlocked_at.filter(|_| self.removes()) {
            sleep_until(unlocked_at).await;
        }
        let mut left = Vec::new();
        if let Ok(uploads) = self.shared.unfinished(PROBE_PREFIX).await {
            for upload in uploads
                .into_iter()
                .filter(|upload| self.is_rest(&upload.key, upload.started_at))
            {
                if self
                    .shared
                    .abort_upload(&upload.key, &upload.upload_id)
                    .await
                    .is_err()
                {
                    left.push(upload.key);
                }
            }
        }
        match self.shared.list(PROBE_PREFIX).await {
            Ok(listed) => {
                for object in listed
                    .into_iter()
                    .filter(|object| self.is_rest(&object.key, object.modified_at))
                {
                    let Some(key) = ObjectKey::listed(&object.key) else {
                        continue;
                    };
                    if self.shared.delete(&key).await.is_err() {
                        left.push(object.key);
                    }
                }
            }
            Err(_) => left.push(self.prefix.clone()),
        }
        if self.found.deleting == Deleting::Hides {
            // Hidden objects are not listed, but still exist.
            left.push(self.prefix.clone());
        }
        left.sort();
        left.dedup();
        self.found.left_behind = left;
    }

    fn is_rest(&self, key: &str, written_at: Option<Timestamp>) -> bool {
        let old = written_at
            .is_some_and(|at| Timestamp::now().as_second() - at.as_second() > LEFTOVER_SECONDS);
        key.starts_with(&self.prefix) || old
    }
}

/// Returns the store's message, without the attempted operation.
fn said(error: &StoreError) -> String {
    crate::model::error_chain(&*error.source)
}
