//! [`MultipartWriter`]: writes a large object in parts, with several in flight, to a store that
//! takes parts by requests ([`MultipartStore`]).
//!
//! All writers of a store share the limit on the number of parts in flight. A part that waits for
//! later parts of its object has no place in flight, so that it never blocks another writer.
//!
//! Memory: the parts in flight, and for each writer the part that it holds and the one that waits
//! for a place.
//! Dropping the writer stops its requests and does nothing more: an upload that was begun stays
//! unfinished until it is aborted or the bucket's lifecycle rule removes it.

use super::adapter::Adapter;
use super::parts::PartSizes;
use super::work::InFlight;
use super::{Evidence, ObjectKey, PartWriter, Patience, StoreError, StoreErrorKind, StoreTraits};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The largest number of parts of one object, in the protocols of S3 and of B2.
pub(super) const PARTS_MAX: u16 = 10_000;
/// The time limit for aborting an upload. After it the upload remains for the next clean-up.
const ABORT_LIMIT: Duration = Duration::from_secs(30);

/// The requests of one upload. Each retries on its own for seconds, and [`MultipartWriter`] repeats
/// it while the store does not answer: a repeated request finds what an earlier one did whose
/// response was lost.
pub(super) trait MultipartStore: Adapter + Send + Sync + 'static {
    /// An upload that was begun; its text is the store's id of the upload.
    type Upload: AsRef<str> + Send + Sync;
    /// The store's description of a stored part, needed to complete the object.
    type Part: Send + Sync + 'static;

    fn traits(&self) -> &StoreTraits;

    /// Returns the places of the parts in flight, as many as the store's concurrency.
    fn places(&self) -> &Arc<Semaphore>;

    /// Returns the patience with which requests are repeated.
    fn patience(&self) -> &Patience;

    /// Begins an upload of one object, to which parts are added.
    fn begin(
        &self,
        key: &ObjectKey,
    ) -> impl Future<Output = Result<Self::Upload, StoreError>> + Send;

    /// Stores a part, counted from 1, and compares what the store reports with what was sent.
    fn put_part(
        &self,
        key: &ObjectKey,
        upload: &Self::Upload,
        number: u16,
        part: Bytes,
    ) -> impl Future<Output = Result<Self::Part, StoreError>> + Send;

    /// Completes the object from all its parts, in order, and confirms it.
    fn finish(
        &self,
        key: &ObjectKey,
        upload: &Self::Upload,
        parts: &[Self::Part],
    ) -> impl Future<Output = Result<Evidence, StoreError>> + Send;

    /// Removes the upload and its parts, unless the object is complete.
    fn abort(
        &self,
        key: &ObjectKey,
        upload: &Self::Upload,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Puts and confirms an object that is not sent in parts, because it is empty or because no
    /// upload was begun for its only part.
    fn put_whole(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> impl Future<Output = Result<Evidence, StoreError>> + Send;
}

/// Waits for an abort within its time limit. The error is a sentence.
pub(super) async fn within_abort_limit<T>(abort: impl Future<Output = T>) -> Result<T, String> {
    timeout(ABORT_LIMIT, abort)
        .await
        .map_err(|_| format!("no answer within {} s", ABORT_LIMIT.as_secs()))
}

/// The writer of one object.
pub(super) struct MultipartWriter<S: MultipartStore> {
    store: Arc<S>,
    key: ObjectKey,
    sizes: PartSizes,
    upload: Option<Arc<S::Upload>>,
    /// The first part while no upload was begun: it is sent alone if no other part follows.
    held: Option<Bytes>,
    parts_begun: u16,
    in_flight: InFlight<SentPart<S::Part>, StoreError>,
    is_aborted: bool,
}

struct SentPart<P> {
    number: u16,
    bytes: u64,
    part: P,
}

impl<S: MultipartStore> MultipartWriter<S> {
    /// Makes the writer of an upload. Without one, an upload is begun when a second part follows.
    pub(super) fn new(store: &Arc<S>, key: &ObjectKey, upload: Option<S::Upload>) -> Self {
        let traits = store.traits();
        Self {
            sizes: PartSizes::new(traits.part_bytes),
            in_flight: InFlight::new(store.places()),
            store: Arc::clone(store),
            key: key.clone(),
            upload: upload.map(Arc::new),
            held: None,
            parts_begun: 0,
            is_aborted: false,
        }
    }

    fn invalid(&self, text: impl Into<String>) -> StoreError {
        let kind = StoreErrorKind::Invalid;
        self.store.wrong(kind, "upload", self.key.as_str(), text)
    }

    fn check_not_aborted(&self) -> Result<(), StoreError> {
        if self.is_aborted {
            return Err(self.invalid("the upload was aborted after an earlier failure"));
        }
        Ok(())
    }

    async fn begin_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        self.check_not_aborted()?;
        self.sizes
            .accept(part.len())
            .map_err(|text| self.invalid(text))?;
        if part.is_empty() {
            return Ok(());
        }
        if self.parts_begun == PARTS_MAX {
            return Err(self.invalid(format!(
                "an object has at most {PARTS_MAX} parts: choose a larger `part_size`"
            )));
        }
        if let Some(first) = self.held.take() {
            let patience = self.store.patience();
            let upload = patience.wait_out(|| self.store.begin(&self.key)).await?;
            self.upload = Some(Arc::new(upload));
            self.send(first).await?;
        }
        match self.upload {
            None => self.held = Some(part),
            Some(_) => self.send(part).await?,
        }
        Ok(())
    }

    /// Waits for a place in flight, and starts to send a part of the upload.
    async fn send(&mut self, part: Bytes) -> Result<(), StoreError> {
        let Some(upload) = self.upload.clone() else {
            return Err(self.invalid("the upload was not begun"));
        };
        let place = self.in_flight.place().await?;
        self.parts_begun += 1;
        let number = self.parts_begun;
        let store = Arc::clone(&self.store);
        let key = self.key.clone();
        self.in_flight.begin(place, async move {
            let bytes = part.len() as u64;
            let patience = store.patience();
            let part = patience
                .wait_out(|| store.put_part(&key, &upload, number, part.clone()))
                .await?;
            Ok(SentPart {
                number,
                bytes,
                part,
            })
        });
        Ok(())
    }

    async fn complete(&mut self) -> Result<Evidence, StoreError> {
        self.check_not_aborted()?;
        let Some(upload) = self.upload.clone() else {
            let whole = self.held.take().unwrap_or_default();
            self.check_sent(whole.len() as u64)?;
            return self.put_whole(whole).await;
        };
        let mut stored = self.in_flight.all().await?;
        stored.sort_unstable_by_key(|part| part.number);
        self.check_sent(stored.iter().map(|part| part.bytes).sum())?;
        if stored.is_empty() {
            // An empty object cannot be sent in parts: B2 requires at least one byte in each.
            self.give_up().await?;
            return self.put_whole(Bytes::new()).await;
        }
        let parts: Vec<_> = stored.into_iter().map(|stored| stored.part).collect();
        let patience = self.store.patience();
        patience
            .wait_out(|| self.store.finish(&self.key, &upload, &parts))
            .await
    }

    async fn put_whole(&mut self, bytes: Bytes) -> Result<Evidence, StoreError> {
        let _place = self.in_flight.place().await?;
        let patience = self.store.patience();
        patience
            .wait_out(|| self.store.put_whole(&self.key, bytes.clone()))
            .await
    }

    /// Checks that every accepted byte was sent: a caller may have dropped a call of `put_part`.
    fn check_sent(&self, bytes: u64) -> Result<(), StoreError> {
        if bytes != self.sizes.bytes() {
            return Err(self.invalid("a part was interrupted and never sent"));
        }
        Ok(())
    }

    /// Stops all requests, and makes the store discard the parts, unless it does not answer anyway.
    async fn give_up(&mut self) -> Result<(), StoreError> {
        self.is_aborted = true;
        self.held = None;
        self.in_flight.stop().await;
        if let Some(upload) = &self.upload {
            if self.store.patience().is_store_silent() {
                let kind = StoreErrorKind::Unavailable;
                let key = self.key.as_str();
                let text = "the store does not answer";
                return Err(self.store.wrong(kind, "abort upload of", key, text));
            }
            self.store.abort(&self.key, upload).await?;
            self.upload = None;
        }
        Ok(())
    }

    /// Aborts the upload after a failure. The first failure is returned to the caller; `unfinished`
    /// finds parts that remain.
    async fn give_up_after<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_err() && !self.is_aborted {
            let _ = self.give_up().await;
        }
        result
    }
}

#[async_trait]
impl<S: MultipartStore> PartWriter for MultipartWriter<S> {
    fn upload_id(&self) -> Option<&str> {
        self.upload.as_deref().map(AsRef::as_ref)
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let begun = self.begin_part(part).await;
        self.give_up_after(begun).await
    }

    async fn finish(mut self: Box<Self>) -> Result<Evidence, StoreError> {
        let completed = self.complete().await;
        self.give_up_after(completed).await
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        self.give_up().await
    }
}
