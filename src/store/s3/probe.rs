//! Probes what an S3 store does: small objects below one prefix, and uploads that are aborted
//! again.
//!
//! The order matters: deleting is probed first, with a few bytes. If it does not work, only a few
//! more bytes are put, because they remain; if it works, objects of two parts are sent, since a
//! store may report another checksum for several parts than for one.

use super::cause::Cause;
use super::upload;
use super::{S3Checksum, S3Settings, Shared};
use crate::store::adapter::Adapter;
use crate::store::hash::{ExpectedEvidence, HashKind};
use crate::store::key::PROBE_PREFIX;
use crate::store::multipart::MultipartStore;
use crate::store::probe::{Ability, Deleting, StoreProbe};
use crate::store::{EvidenceTier, ObjectKey, PartWriter, StoreError, StoreErrorKind};
use bytes::Bytes;
use jiff::Timestamp;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The smallest part, except the last, that stores accept.
const PART_BYTES: usize = 5 * 1024 * 1024;
/// The probed part numbers: the protocol's limit, then the limit of some stores.
const PART_NUMBERS: [u16; 2] = [10_000, 1000];
/// The age from which an object under the prefix is the remains of a killed probe.
const LEFTOVER_SECONDS: i64 = 3600;

/// A running probe.
struct Probing {
    shared: Arc<Shared>,
    prefix: String,
    found: StoreProbe,
}

pub(super) async fn probe(shared: &Arc<Shared>, prefix: &str) -> Result<StoreProbe, StoreError> {
    let mut probing = Probing {
        shared: Arc::new(plain(shared, S3Checksum::Md5)),
        prefix: prefix.to_owned(),
        found: StoreProbe::default(),
    };
    let tried = probing.run(shared.settings.checksum).await;
    // The clean-up also runs after an error, so that nothing remains.
    probing.clean_up().await;
    if let (Err(error), [left, ..]) = (&tried, probing.found.left_behind.as_slice()) {
        tracing::warn!(%error, store = shared.url, key = left, "the probe failed and could not remove what it had put");
    }
    tried.map(|()| probing.found)
}

/// Returns the store for the probe: without a lock, because locked objects could not be removed,
/// and with exactly this checksum, because its refusal is a result.
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
        ..shared.with_settings(settings)
    }
}

impl Probing {
    async fn run(&mut self, configured: S3Checksum) -> Result<(), StoreError> {
        self.try_put_condition().await?;
        self.try_delete().await?;
        let large = self.try_checksums(configured).await?;
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

    /// Returns the cause as the result of a probe, or fails the whole probe if the store is
    /// temporarily unavailable.
    fn refusal(&self, api: &str, key: &ObjectKey, cause: Cause) -> Result<Cause, StoreError> {
        let passing = matches!(
            cause.kind(),
            StoreErrorKind::Unavailable | StoreErrorKind::Throttled
        );
        // 501 means "not implemented": a result, not a failure.
        if passing && !cause.is_not_implemented() && cause.status != Some(409) {
            return Err(self.shared.failed("probe", api, key.as_str(), cause));
        }
        Ok(cause)
    }

    async fn put(&self, key: &ObjectKey, bytes: &'static [u8]) -> Result<(), Cause> {
        let bytes = Bytes::from_static(bytes);
        let md5 = S3Checksum::Md5;
        let hash = md5.kind().hash_blocking(bytes.clone()).await;
        self.shared
            .send_whole(key, &bytes, md5, &hash, self.shared.put_condition())
            .await
    }

    /// Probes create-only puts: the first put must succeed; the second, of other bytes, must be
    /// refused.
    async fn try_put_condition(&mut self) -> Result<(), StoreError> {
        let key = self.key("small")?;
        if let Err(cause) = self.put(&key, b"1").await {
            let cause = self.refusal("PutObject", &key, cause)?;
            self.shared
                .refuses_put_condition
                .store(true, Ordering::Relaxed);
            // A put that was refused for another reason is refused again.
            self.put(&key, b"1").await.map_err(|cause| {
                self.shared
                    .failed("probe", "PutObject", key.as_str(), cause)
            })?;
            self.found.conditional_put = Ability::Refused;
            self.note("a create-only put", &cause);
            return Ok(());
        }
        self.found.conditional_put = match self.put(&key, b"2").await {
            Ok(()) => Ability::Ignored,
            Err(cause) => match self.refusal("PutObject", &key, cause)? {
                cause if cause.kind() == StoreErrorKind::AlreadyExists => Ability::Works,
                cause if cause.is_not_implemented() => Ability::Refused,
                cause => {
                    self.note("a second create-only put", &cause);
                    Ability::Unknown
                }
            },
        };
        Ok(())
    }

    /// Probes deleting, and reads the store's clock.
    async fn try_delete(&mut self) -> Result<(), StoreError> {
        let key = self.key("small")?;
        let now = Timestamp::now();
        let listed = self.shared.list(&self.prefix).await?;
        let written = listed
            .iter()
            .find(|object| object.key == key.as_str())
            .and_then(|object| object.modified_at);
        self.found.clock_ahead_seconds =
            written.map(|written| written.as_second() - now.as_second());
        let has_versions = self
            .shared
            .head(&key)
            .await?
            .is_some_and(|found| found.version_id.is_some());
        self.found.deleting = match self.shared.delete(&key).await {
            Ok(()) if self.shared.head(&key).await?.is_some() => {
                self.note(
                    "a delete",
                    &"it was said to be done, and the object is still there",
                );
                Deleting::Unknown
            }
            Ok(()) if has_versions => Deleting::RemovesVersions,
            Ok(()) => Deleting::Removes,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                let hidden = self.shared.head(&key).await?.is_none();
                self.note("a delete", &said(&error));
                if hidden {
                    Deleting::Hides
                } else {
                    Deleting::Refused
                }
            }
        };
        Ok(())
    }

    fn removes(&self) -> bool {
        matches!(
            self.found.deleting,
            Deleting::Removes | Deleting::RemovesVersions
        )
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
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => {
                    self.note(&format!("{checksum}"), &said(&error));
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
        let mut writer = Box::new(upload::create(&shared, key).await?);
        if self.removes() {
            writer.put_part(Bytes::from(vec![0x5a; PART_BYTES])).await?;
        }
        writer.put_part(Bytes::from_static(b"3")).await?;
        writer.finish().await.map(|evidence| evidence.tier)
    }

    /// Probes a create-only completion: uploads to an existing key, to the end.
    async fn try_complete_condition(&mut self, key: &ObjectKey) -> Result<(), StoreError> {
        let upload = self.shared.begin(key).await?;
        let part = self
            .shared
            .put_part(key, &upload, 1, Bytes::from_static(b"4"))
            .await?;
        let sent = ExpectedEvidence::of_parts(HashKind::Md5, &[HashKind::Md5.hash(b"4")]);
        let completed = self
            .shared
            .send_complete(key, upload.current(), &[part], &sent, Some("*".to_owned()))
            .await;
        self.found.conditional_complete = match completed {
            Ok(()) => Ability::Ignored,
            Err(cause) => match self.refusal("CompleteMultipartUpload", key, cause)? {
                cause if cause.kind() == StoreErrorKind::AlreadyExists => Ability::Works,
                cause => {
                    self.note("a create-only completion of an upload", &cause);
                    Ability::Refused
                }
            },
        };
        if self.found.conditional_complete != Ability::Ignored {
            // The next step reports an upload that cannot be removed.
            let _ = self
                .shared
                .abort_upload(key.as_str(), upload.as_ref())
                .await;
        }
        Ok(())
    }

    /// Probes listing and removing unfinished uploads, and the number of parts they may have.
    async fn try_uploads(&mut self) -> Result<(), StoreError> {
        let key = self.key("unfinished")?;
        let upload = self.shared.begin(&key).await?;
        for number in PART_NUMBERS {
            match self
                .shared
                .put_part(&key, &upload, number, Bytes::from_static(b"5"))
                .await
            {
                Ok(_) => {
                    self.found.parts_max = Some(number.into());
                    break;
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(error) => self.note(&format!("part number {number}"), &said(&error)),
            }
        }
        let upload_id = upload.as_ref();
        self.found.list_uploads = self.lists(upload_id).await?;
        self.found.abort_uploads = match self.shared.abort_upload(key.as_str(), upload_id).await {
            Ok(()) if self.found.list_uploads != Ability::Works => Ability::Works,
            Ok(()) if self.lists(upload_id).await? == Ability::Works => Ability::Ignored,
            Ok(()) => Ability::Works,
            Err(error) if error.is_transient() => return Err(error),
            Err(error) => {
                self.note("aborting an upload", &said(&error));
                Ability::Refused
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
            Err(error) if error.is_transient() => Err(error),
            Err(error) => {
                self.note("listing unfinished uploads", &said(&error));
                Ok(Ability::Refused)
            }
        }
    }

    /// Removes the objects of this probe, and the remains of earlier, killed ones. Remaining
    /// objects are reported.
    async fn clean_up(&mut self) {
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
    crate::store::work::chain_text(&*error.source)
}
