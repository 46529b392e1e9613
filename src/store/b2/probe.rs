//! Probes this bucket and this key. B2 itself needs no probe: its protocol has one implementation.

use super::Shared;
use super::settings::B2Settings;
use crate::store::adapter::Adapter;
use crate::store::probe::{Ability, Deleting, StoreProbe};
use crate::store::{EvidenceTier, ObjectKey, StoreError, StoreErrorKind};
use bytes::Bytes;
use jiff::Timestamp;

impl Shared {
    /// Puts a file of a few bytes and begins a large one, and removes both, also after an error.
    pub(super) async fn probe(&self, prefix: &str) -> Result<StoreProbe, StoreError> {
        let text = format!("{prefix}small");
        let wrong = || {
            self.wrong(
                StoreErrorKind::Invalid,
                "probe",
                &text,
                "this cannot be a name",
            )
        };
        let key = ObjectKey::listed(&text).ok_or_else(wrong)?;
        let mut found = StoreProbe {
            tier: EvidenceTier::IdPin,
            conditional_put: Ability::Refused,
            conditional_complete: Ability::Refused,
            parts_max: Some(10_000),
            ..StoreProbe::default()
        };
        // The probe's objects are never locked, because locked objects could not be removed.
        let free = self.without_lock()?;
        let tried = free.try_all(&key, &mut found).await;
        if tried.is_err() {
            free.remove_rest(prefix, &key, &mut found).await;
        }
        if let (Err(error), [left, ..]) = (&tried, found.left_behind.as_slice()) {
            tracing::warn!(%error, store = self.url, key = left, "the probe failed and could not remove what it had put");
        }
        tried.map(|()| found)
    }

    fn without_lock(&self) -> Result<Self, StoreError> {
        let settings = B2Settings {
            lock: None,
            ..self.settings.clone()
        };
        Self::new(settings)
    }

    async fn try_all(&self, key: &ObjectKey, found: &mut StoreProbe) -> Result<(), StoreError> {
        let failed = |cause| self.failed("access", "b2_authorize_account", "", cause);
        let session = self.session().await.map_err(failed)?;
        found.part_bytes_min = Some(session.part_bytes_min);
        let now = Timestamp::now();
        self.put_new(key, Bytes::from_static(b"1")).await?;
        let written = self
            .live("probe", key)
            .await?
            .and_then(|file| file.uploaded_at());
        found.clock_ahead_seconds = written.map(|written| written.as_second() - now.as_second());
        let large = self.begin_large(key, None).await?;
        let listed = self
            .unfinished(key.as_str())
            .await?
            .iter()
            .any(|upload| upload.upload_id == large.id);
        found.list_uploads = if listed {
            Ability::Works
        } else {
            Ability::Ignored
        };
        self.cancel(key.as_str(), &large.id).await?;
        found.abort_uploads = Ability::Works;
        self.delete(key).await?;
        found.deleting = match session.may("deleteFiles") {
            true if self.versions("probe", key).await?.is_empty() => Deleting::RemovesVersions,
            true => Deleting::Unknown,
            false => {
                found.left_behind.push(key.to_string());
                Deleting::Hides
            }
        };
        Ok(())
    }

    async fn remove_rest(&self, prefix: &str, key: &ObjectKey, found: &mut StoreProbe) {
        if let Ok(uploads) = self.unfinished(prefix).await {
            for upload in uploads {
                if self.cancel(&upload.key, &upload.upload_id).await.is_err() {
                    found.left_behind.push(upload.key);
                }
            }
        }
        if self.delete(key).await.is_err() {
            found.left_behind.push(key.to_string());
        }
    }
}
