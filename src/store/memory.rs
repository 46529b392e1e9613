//! [`MemoryStore`]: a test double that behaves like S3, records every call, and fails on demand.
//!
//! Create-only puts, parts and unfinished uploads are as in S3. Like S3, the store reports the
//! checksum that it computed when an object was stored: bytes that rot later
//! ([`MemoryStore::flip`]) do not change the result of [`StoreRead::head`].

mod fault;
mod state;
mod writer;

pub use fault::{Fault, Operation, Outcome, StoreEvent};

use super::{
    Evidence, EvidenceTier, ListedObject, ObjectKey, ObjectLock, PageVisitor, PartWriter,
    PutOutcome, SpoolFile, SpooledStore, StoreDelete, StoreError, StoreErrorKind, StoreInfo,
    StoreRead, StoreTraits, StoreWrite, UnfinishedUpload,
};
use crate::model::{KnownStore, StoreId};
use async_trait::async_trait;
use bytes::Bytes;
use fault::{Fate, next_fate};
use jiff::Timestamp;
use state::{Away, CallFailure, State};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use writer::MemoryWriter;

/// The part size, small so that tests cut their objects into several parts without much data.
const PART_BYTES: usize = 64 * 1024;
const CONCURRENCY: usize = 4;

/// Objects in memory. Clones share them, so that a test keeps access to a store that it has passed
/// on.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    url: String,
    id: StoreId,
    traits: StoreTraits,
    tier: EvidenceTier,
    state: Mutex<State>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// Makes an empty store that takes parts of 64 KiB and reports CRC64NVME.
    pub fn new() -> Self {
        Self::with_traits(StoreTraits {
            part_bytes: PART_BYTES,
            concurrency: CONCURRENCY,
            conditional_put: true,
            holds_parts: false,
        })
    }

    /// Makes an empty store with these traits.
    pub fn with_traits(traits: StoreTraits) -> Self {
        Self::with_tier(traits, EvidenceTier::Crc64nvmeFull)
    }

    /// Makes an empty store with evidence of this tier: CRC64NVME, or only version ids, or only
    /// sizes.
    pub fn with_tier(traits: StoreTraits, tier: EvidenceTier) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let url = "memory:".to_owned();
        let id = StoreId::from_random(MADE.fetch_add(1, Ordering::Relaxed).into());
        Self {
            shared: Arc::new(Shared {
                url,
                id,
                traits,
                tier,
                state: Mutex::default(),
            }),
        }
    }

    /// All calls so far, in order.
    pub fn events(&self) -> Vec<StoreEvent> {
        self.state().events.clone()
    }

    /// Clears the recorded calls.
    pub fn clear_events(&self) {
        self.state().events.clear();
    }

    /// Arms a failure. Several may be armed; each counts calls on its own, and the one armed first
    /// takes precedence.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Makes each call fail as unavailable, without an effect, for which the rule returns true.
    pub fn set_away(&self, rule: impl Fn(Operation, &str) -> bool + Send + 'static) {
        self.state().away = Some(Box::new(rule));
    }

    /// Disarms all failures, and ends an outage.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.away = None;
    }

    /// Sets the time of objects and uploads from now on; `None` returns to the real clock.
    pub fn set_clock(&self, now: Option<Timestamp>) {
        self.state().clock = now;
    }

    /// As [`MemoryStore::set_clock`], for a store that is dated by the host's clock and has no
    /// clock of its own, like a folder.
    pub fn set_host_clock(&self, now: Timestamp) {
        let mut state = self.state();
        (state.clock, state.has_host_clock) = (Some(now), true);
    }

    /// Locks every object that is put from now on. `extends` says whether the store can also extend
    /// locks later.
    pub fn set_lock(&self, lock: Option<ObjectLock>, extends: bool) {
        let mut state = self.state();
        state.lock = lock;
        state.cannot_extend_locks = !extends;
    }

    /// Locks every object that is put from now on, like a bucket with a default retention: the
    /// settings of the store name no lock.
    pub fn set_default_retention(&self, retention: Option<ObjectLock>) {
        self.state().default_retention = retention;
    }

    /// Sets the most entries of a page of a listing. A failure is armed for a whole listing, and
    /// each page is recorded as a call of its own.
    pub fn set_page_entries(&self, entries: usize) {
        self.state().page_entries = entries.max(1);
    }

    /// Makes the store one that takes large objects only whole: `create` is refused from now on, and
    /// [`SpooledStore::put_spooled`] works.
    pub fn take_no_parts(&self) {
        self.state().takes_no_parts = true;
    }

    /// The bytes under a key, without a call being recorded.
    pub fn object(&self, key: &str) -> Option<Bytes> {
        self.state()
            .objects
            .get(key)
            .map(|object| object.bytes.clone())
    }

    /// All keys, in order, without a call being recorded.
    pub fn keys(&self) -> Vec<String> {
        self.state().objects.keys().cloned().collect()
    }

    /// Stores an object as anybody with the credentials could, replacing an existing one. Its
    /// evidence is updated.
    pub fn plant(&self, key: &str, bytes: impl Into<Bytes>) {
        self.state()
            .store(key, bytes.into(), None, self.shared.tier);
    }

    /// Removes an object as anybody with the credentials could. Returns whether it existed.
    pub fn lose(&self, key: &str) -> bool {
        self.state().objects.remove(key).is_some()
    }

    /// Puts a delete marker over an object, as anybody with the credentials could on a bucket with
    /// versions. Returns whether it existed.
    pub fn hide(&self, key: &str) -> bool {
        let mut state = self.state();
        let Some(hidden) = state.objects.remove(key) else {
            return false;
        };
        state.hidden.insert(key.to_owned(), hidden.bytes);
        true
    }

    /// Removes the delete markers.
    pub fn unhide(&self) {
        let hidden = std::mem::take(&mut self.state().hidden);
        for (key, bytes) in hidden {
            self.plant(&key, bytes);
        }
    }

    /// Cuts an object to its first `bytes` bytes. The reported size is updated. Returns whether the
    /// object was longer.
    pub fn cut(&self, key: &str, bytes: usize) -> bool {
        let short = self
            .object(key)
            .filter(|whole| whole.len() > bytes)
            .map(|whole| whole.slice(..bytes));
        short.map(|short| self.plant(key, short)).is_some()
    }

    /// Flips one bit of the byte at `offset`, like bit rot: the reported checksum stays the old
    /// one. Returns whether the byte exists.
    pub fn flip(&self, key: &str, offset: usize) -> bool {
        self.state().flip(key, offset)
    }

    /// Swaps two objects with their evidence. Returns whether both exist.
    pub fn swap(&self, one: &str, other: &str) -> bool {
        self.state().swap(one, other)
    }

    /// Reports this evidence for the key from now on: false evidence, or (`None`) a missing object.
    pub fn lie(&self, key: &str, evidence: Option<Evidence>) {
        self.state().lies.insert(key.to_owned(), evidence);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out one call: records it and applies armed failures.
    fn call<T>(
        &self,
        operation: Operation,
        key: &str,
        effect: impl FnOnce(&mut State) -> Result<T, CallFailure>,
    ) -> Result<T, StoreError> {
        let mut state = self.state();
        let is_away = |away: &Away| away(operation, key);
        let fate = match state.away.as_ref().is_some_and(is_away) {
            true => Fate::FailsBefore(StoreErrorKind::Unavailable),
            false => next_fate(&mut state.faults, operation, key),
        };
        let (outcome, result) = match fate {
            Fate::FailsBefore(kind) => (Outcome::Failed(kind), Err(CallFailure::ordered(kind))),
            fate => match (effect(&mut state), fate) {
                (Ok(_), Fate::FailsAfter(kind)) => {
                    (Outcome::ReplyLost(kind), Err(CallFailure::ordered(kind)))
                }
                (Ok(value), _) => (Outcome::Done, Ok(value)),
                (Err(failure), _) => (Outcome::Failed(failure.kind), Err(failure)),
            },
        };
        state.events.push(StoreEvent {
            operation,
            key: key.to_owned(),
            outcome,
        });
        result.map_err(|CallFailure { kind, text }| {
            StoreError::new(kind, operation.words(), key, &self.shared.url, text)
        })
    }

    /// Records the second and later pages of a listing with that many entries.
    fn record_pages(&self, operation: Operation, key: &str, entries: usize) {
        let mut state = self.state();
        for _ in 1..entries.div_ceil(state.page_entries) {
            state.events.push(StoreEvent {
                operation,
                key: key.to_owned(),
                outcome: Outcome::Done,
            });
        }
    }

    fn demand(&self, wanted: bool, text: &str) -> Result<(), CallFailure> {
        if wanted {
            Ok(())
        } else {
            Err(CallFailure::new(StoreErrorKind::Unsupported, text))
        }
    }
}

#[async_trait]
impl StoreInfo for MemoryStore {
    fn url(&self) -> &str {
        &self.shared.url
    }

    fn known(&self) -> KnownStore {
        KnownStore {
            id: self.shared.id.clone(),
            url: self.shared.url.clone(),
        }
    }

    fn traits(&self) -> &StoreTraits {
        &self.shared.traits
    }

    async fn clock(&self) -> Result<Option<Timestamp>, StoreError> {
        let state = self.state();
        Ok(state.clock.filter(|_| !state.has_host_clock))
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.state().lock
    }
}

#[async_trait]
impl StoreRead for MemoryStore {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        self.call(Operation::Get, key.as_str(), |state| {
            state.get(key.as_str(), range, limit_bytes)
        })
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.call(Operation::Head, key.as_str(), |state| {
            Ok(state.head(key.as_str()))
        })
    }

    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        self.call(Operation::AnyVersion, key.as_str(), |state| {
            Ok(state.hidden.contains_key(key.as_str()) || state.head(key.as_str()).is_some())
        })
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        let listed = self.call(Operation::List, prefix, |state| Ok(state.list(prefix)))?;
        self.record_pages(Operation::List, prefix, listed.len());
        Ok(listed)
    }

    async fn visit(&self, prefix: &str, take: PageVisitor<'_>) -> Result<(), StoreError> {
        let mut last = None;
        loop {
            let page = self.call(Operation::List, prefix, |state| {
                Ok(state.page(prefix, last.as_deref()))
            })?;
            let is_full = page.len() == self.state().page_entries;
            last = page.last().map(|object| object.key.clone());
            if take(page).is_break() || !is_full {
                return Ok(());
            }
        }
    }

    async fn list_folders(&self, prefix: &str, delimiter: char) -> Result<Vec<String>, StoreError> {
        let (folders, entries) = self.call(Operation::ListFolders, prefix, |state| {
            Ok(state.list_folders(prefix, delimiter))
        })?;
        self.record_pages(Operation::ListFolders, prefix, entries);
        Ok(folders)
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.call(Operation::Unfinished, prefix, |state| {
            Ok(state.unfinished(prefix))
        })
    }
}

#[async_trait]
impl StoreWrite for MemoryStore {
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        let upload_id = self.call(Operation::Create, key.as_str(), |state| {
            self.demand(
                !state.takes_no_parts,
                "this store takes no parts: spool them",
            )?;
            state.begin(key.as_str())
        })?;
        Ok(Box::new(MemoryWriter::new(
            self.clone(),
            key.clone(),
            upload_id,
        )))
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        self.call(Operation::PutNew, key.as_str(), |state| {
            state.put_new(key.as_str(), bytes, self.shared.tier)
        })
    }

    async fn extend_lock(&self, key: &ObjectKey, until: Timestamp) -> Result<(), StoreError> {
        self.call(Operation::ExtendLock, key.as_str(), |state| {
            state.extend_lock(key.as_str(), until)
        })
    }
}

#[async_trait]
impl StoreDelete for MemoryStore {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.call(Operation::Delete, key.as_str(), |state| {
            state.delete(key.as_str())
        })
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.call(Operation::AbortUnfinished, &upload.key, |state| {
            state.uploads.remove(&upload.upload_id);
            Ok(())
        })
    }
}

#[async_trait]
impl SpooledStore for MemoryStore {
    async fn put_spooled(&self, key: &ObjectKey, file: &SpoolFile) -> Result<Evidence, StoreError> {
        let mut whole = Vec::new();
        for index in 0..file.part_count() {
            let part = file.read_part(index).await;
            whole.extend_from_slice(&part.map_err(|error| error.in_store(key, &self.shared.url))?);
        }
        self.call(Operation::PutSpooled, key.as_str(), |state| {
            self.demand(
                state.takes_no_parts,
                "this store takes parts: spool nothing",
            )?;
            state.commit(key.as_str(), whole.into(), None, self.shared.tier)
        })
    }
}
