//! [`Scheduler`]: runs several operations at once on one thread and decides which of them makes its
//! next call of a store. The same schedule gives the same order of calls, so a failure can be
//! repeated.
//!
//! An operation is started, or gets one call, and then runs until it waits for its next call.
//! Meanwhile all others stand still. [`GatedStore`] is the store that each operation gets.

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use zfs_backup::store::memory::{MemoryStore, Operation};
use zfs_backup::store::{
    Evidence, ListedObject, ObjectKey, PartWriter, PutOutcome, StoreDelete, StoreError,
    StoreErrorKind, StoreInfo, StoreRead, StoreTraits, StoreWrite, UnfinishedUpload,
};

/// An operation that neither ends nor calls a store for so long is stuck. The longest pause of a
/// retry is 6 s.
const STUCK: Duration = Duration::from_secs(300);

/// The mishap of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mishap {
    /// The process is killed after this many calls.
    Killed(usize),
    /// From that call on the stores refuse it.
    Refused(usize),
    /// The call with this number does its work, but its reply is an error.
    ReplyLost(usize),
}

/// The order of calls: which operation makes how many of the next ones. The rest follows, one
/// operation after the other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Schedule {
    pub(crate) segments: Vec<(usize, usize)>,
    /// By operation.
    pub(crate) mishaps: BTreeMap<usize, Mishap>,
}

/// An operation of a race.
pub(crate) type Racer<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// Lets operations wait for their turn.
#[derive(Default)]
pub(crate) struct Scheduler {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// No race is under way: every call is made at once.
    is_open: bool,
    waiting: Vec<Waiting>,
    ids_given: u64,
    /// Chunks that each operation has begun and not completed.
    open_chunks: BTreeMap<usize, usize>,
    calls: BTreeMap<usize, usize>,
    mishaps: BTreeMap<usize, Mishap>,
    driver: Option<Waker>,
    trace: Vec<String>,
}

struct Waiting {
    id: u64,
    actor: usize,
    operation: Operation,
    is_granted: bool,
    waker: Waker,
}

/// The outcome of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Works,
    Refused,
    ReplyLost,
}

impl State {
    /// A transfer completes a chunk while it creates the next one, in an order that depends on
    /// threads. Here the two always run one after the other.
    fn may_go(&self, call: &Waiting) -> bool {
        let has_open_chunk = self
            .open_chunks
            .get(&call.actor)
            .is_some_and(|open| *open > 0);
        !call.is_granted && (call.operation != Operation::Create || !has_open_chunk)
    }

    fn is_settled(&self, actor: usize) -> bool {
        let mut calls = self.waiting.iter().filter(|call| call.actor == actor);
        !calls.clone().any(|call| call.is_granted) && calls.any(|call| self.may_go(call))
    }

    fn wake_driver(&self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    fn fate(&mut self, actor: usize) -> Fate {
        let calls = self.calls.entry(actor).or_default();
        *calls += 1;
        match self.mishaps.get(&actor) {
            Some(Mishap::Refused(n)) if *calls >= *n => Fate::Refused,
            Some(Mishap::ReplyLost(n)) if *calls == *n => Fate::ReplyLost,
            _ => Fate::Works,
        }
    }
}

impl Scheduler {
    /// Without a race: every call is made at once.
    pub(crate) fn new() -> Arc<Self> {
        let scheduler = Self::default();
        scheduler.state().is_open = true;
        Arc::new(scheduler)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The calls of the last race in their order.
    pub(crate) fn trace(&self) -> Vec<String> {
        self.state().trace.clone()
    }

    /// Runs all operations to their ends. Returns what each of them returned, `None` for one that
    /// was killed. `before_call` hears which operation goes next.
    pub(crate) async fn race<T>(
        &self,
        racers: Vec<Racer<'_, T>>,
        schedule: &Schedule,
        mut before_call: impl FnMut(usize),
    ) -> Vec<Option<T>> {
        {
            // Continue the ids: a call left from an earlier race must not be taken for a call of
            // this one.
            let (mut state, mishaps) = (self.state(), schedule.mishaps.clone());
            *state = State {
                mishaps,
                ids_given: state.ids_given,
                ..State::default()
            };
        }
        let count = racers.len();
        let mut lanes: Vec<Lane<'_, T>> = racers.into_iter().map(Lane::new).collect();
        let segments = schedule
            .segments
            .iter()
            .map(|(actor, calls)| (actor % count.max(1), *calls));
        for (actor, calls) in segments.chain((0..count).map(|actor| (actor, usize::MAX))) {
            for _ in 0..calls {
                if lanes[actor].racer.is_none() {
                    break;
                }
                before_call(actor);
                self.step(actor, &mut lanes[actor]).await;
            }
        }
        // Tasks of operations that were killed end.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        self.state().is_open = true;
        lanes.into_iter().map(|lane| lane.outcome).collect()
    }

    /// Starts an operation, or lets it make one call, and waits until it ends or waits for its next
    /// call.
    async fn step<T>(&self, actor: usize, lane: &mut Lane<'_, T>) {
        if lane.is_started {
            self.grant(actor);
        }
        lane.is_started = true;
        let Some(racer) = &mut lane.racer else { return };
        let settled = poll_fn(|context| {
            self.state().driver = Some(context.waker().clone());
            match racer.as_mut().poll(context) {
                Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
                Poll::Pending if self.state().is_settled(actor) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        });
        let settled = tokio::time::timeout(STUCK, settled).await;
        let settled =
            settled.unwrap_or_else(|_| panic!("operation {actor} is stuck: {:#?}", self.trace()));
        let is_killed = {
            let state = self.state();
            let calls = state.calls.get(&actor).copied().unwrap_or(0);
            matches!(state.mishaps.get(&actor), Some(Mishap::Killed(n)) if calls >= *n)
        };
        match settled {
            Some(outcome) => (lane.outcome, lane.racer) = (Some(outcome), None),
            None if is_killed => {
                lane.racer = None;
                self.state().trace.push(format!("{actor} is killed"));
            }
            None => {}
        }
    }

    /// The oldest call of the operation that may go.
    fn grant(&self, actor: usize) {
        let mut state = self.state();
        let next = state
            .waiting
            .iter()
            .position(|call| call.actor == actor && state.may_go(call));
        if let Some(next) = next {
            state.waiting[next].is_granted = true;
            state.waiting[next].waker.wake_by_ref();
        }
    }

    fn turn(&self, actor: usize, operation: Operation, text: String) -> Turn<'_> {
        Turn {
            scheduler: self,
            actor,
            operation,
            text,
            id: None,
        }
    }
}

struct Lane<'a, T> {
    racer: Option<Racer<'a, T>>,
    is_started: bool,
    outcome: Option<T>,
}

impl<'a, T> Lane<'a, T> {
    fn new(racer: Racer<'a, T>) -> Self {
        Self {
            racer: Some(racer),
            is_started: false,
            outcome: None,
        }
    }
}

/// Ends when the call may be made.
struct Turn<'a> {
    scheduler: &'a Scheduler,
    actor: usize,
    operation: Operation,
    text: String,
    id: Option<u64>,
}

impl Future for Turn<'_> {
    type Output = Fate;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Fate> {
        let scheduler = self.scheduler;
        let mut state = scheduler.state();
        if state.is_open {
            return Poll::Ready(Fate::Works);
        }
        let Some(id) = self.id else {
            state.ids_given += 1;
            let id = state.ids_given;
            let (actor, operation, waker) = (self.actor, self.operation, context.waker().clone());
            state.waiting.push(Waiting {
                id,
                actor,
                operation,
                is_granted: false,
                waker,
            });
            state.wake_driver();
            drop(state);
            self.id = Some(id);
            return Poll::Pending;
        };
        let Some(place) = state.waiting.iter().position(|call| call.id == id) else {
            return Poll::Ready(Fate::Works);
        };
        if !state.waiting[place].is_granted {
            state.waiting[place].waker = context.waker().clone();
            return Poll::Pending;
        }
        state.waiting.remove(place);
        let fate = state.fate(self.actor);
        let end = if fate == Fate::Works {
            String::new()
        } else {
            format!(" ({fate:?})")
        };
        state
            .trace
            .push(format!("{} {}{end}", self.actor, self.text));
        state.wake_driver();
        Poll::Ready(fate)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.scheduler.state().waiting.retain(|call| call.id != id);
        }
    }
}

/// Observes every change in a store.
pub(crate) trait Watch: Send + Sync {
    /// An object was put. It has a new date only if it is new: a put of the bytes that the store has
    /// already changes nothing.
    fn put(&self, store: &GatedStore, key: &str, is_new: bool);
    /// An object, which may be gone already, is about to be deleted.
    fn deleting(&self, store: &GatedStore, key: &str);
}

/// A store in memory as one operation sees it: each call waits for its turn.
#[derive(Clone)]
pub(crate) struct GatedStore {
    pub(crate) inner: MemoryStore,
    /// The operation that has it.
    pub(crate) actor: usize,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(crate) watch: Arc<dyn Watch>,
    /// Which store, as URL.
    pub(crate) url: String,
    pub(crate) traits: StoreTraits,
}

impl GatedStore {
    async fn call<T>(
        &self,
        operation: Operation,
        key: &str,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        match self
            .scheduler
            .turn(
                self.actor,
                operation,
                format!("{operation:?} {} {key}", self.url),
            )
            .await
        {
            Fate::Works => work.await,
            Fate::Refused => Err(self.error(
                StoreErrorKind::Denied,
                operation,
                key,
                "a test refused this call",
            )),
            Fate::ReplyLost => {
                work.await?;
                Err(self.error(
                    StoreErrorKind::Denied,
                    operation,
                    key,
                    "a test lost this reply",
                ))
            }
        }
    }

    fn error(
        &self,
        kind: StoreErrorKind,
        operation: Operation,
        key: &str,
        why: &str,
    ) -> StoreError {
        StoreError::new(kind, format!("{operation:?}"), key, &self.url, why)
    }

    fn is_create_only(&self) -> bool {
        self.traits.conditional_put
    }

    /// Puts like a store without conditions: asks for the name, puts the object even if the name
    /// exists by now, then asks the store what it has.
    async fn put_unconditionally(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        let taken = || {
            self.error(
                StoreErrorKind::AlreadyExists,
                Operation::PutNew,
                key.as_str(),
                "the key is taken",
            )
        };
        let found = self
            .call(Operation::Head, key.as_str(), self.inner.head(key))
            .await?;
        if let Some(found) = found {
            let same = self
                .inner
                .object(key.as_str())
                .is_some_and(|there| there == bytes);
            return if same {
                Ok((PutOutcome::Identical, found))
            } else {
                Err(taken())
            };
        }
        let put = async {
            self.inner.plant(key.as_str(), bytes.clone());
            self.watch.put(self, key.as_str(), true);
            Ok(())
        };
        self.call(Operation::PutNew, key.as_str(), put).await?;
        let found = self
            .call(Operation::Head, key.as_str(), self.inner.head(key))
            .await?;
        match found {
            Some(found)
                if self
                    .inner
                    .object(key.as_str())
                    .is_some_and(|there| there == bytes) =>
            {
                Ok((PutOutcome::Created, found))
            }
            _ => Err(self.error(
                StoreErrorKind::Corrupt,
                Operation::Head,
                key.as_str(),
                "it is not what was put",
            )),
        }
    }

    fn note_open_chunk(&self, change: isize) {
        let mut state = self.scheduler.state();
        let open = state.open_chunks.entry(self.actor).or_default();
        *open = open.saturating_add_signed(change);
        state.wake_driver();
    }
}

#[async_trait]
impl StoreInfo for GatedStore {
    fn url(&self) -> &str {
        &self.url
    }

    fn traits(&self) -> &StoreTraits {
        &self.traits
    }

    async fn clock(&self) -> Result<Option<Timestamp>, StoreError> {
        self.call(Operation::Head, "the clock", self.inner.clock())
            .await
    }
}

#[async_trait]
impl StoreRead for GatedStore {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        self.call(
            Operation::Get,
            key.as_str(),
            self.inner.get(key, range, limit_bytes),
        )
        .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.call(Operation::Head, key.as_str(), self.inner.head(key))
            .await
    }

    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        self.call(
            Operation::AnyVersion,
            key.as_str(),
            self.inner.any_version(key),
        )
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.call(Operation::List, prefix, self.inner.list(prefix))
            .await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.call(Operation::Unfinished, prefix, self.inner.unfinished(prefix))
            .await
    }
}

#[async_trait]
impl StoreWrite for GatedStore {
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        let writer = self
            .call(Operation::Create, key.as_str(), self.inner.create(key))
            .await?;
        // A chunk counts as open only after the call: if its reply is lost, nobody can complete it.
        self.note_open_chunk(1);
        let inner = Some(writer);
        Ok(Box::new(GatedWriter {
            store: self.clone(),
            key: key.clone(),
            inner,
        }))
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        if !self.is_create_only() {
            return self.put_unconditionally(key, bytes).await;
        }
        let put = async {
            let (outcome, evidence) = self.inner.put_new(key, bytes).await?;
            self.watch
                .put(self, key.as_str(), outcome == PutOutcome::Created);
            Ok((outcome, evidence))
        };
        self.call(Operation::PutNew, key.as_str(), put).await
    }
}

#[async_trait]
impl StoreDelete for GatedStore {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        let delete = async {
            self.watch.deleting(self, key.as_str());
            self.inner.delete(key).await
        };
        self.call(Operation::Delete, key.as_str(), delete).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        let abort = async {
            self.watch.deleting(self, &upload.key);
            self.inner.abort_unfinished(upload).await
        };
        self.call(Operation::AbortUnfinished, &upload.key, abort)
            .await
    }
}

/// A chunk on its way.
struct GatedWriter {
    store: GatedStore,
    key: ObjectKey,
    /// `None` once the write was completed or aborted.
    inner: Option<Box<dyn PartWriter>>,
}

impl GatedWriter {
    fn close(&mut self) -> Option<Box<dyn PartWriter>> {
        let inner = self.inner.take();
        if inner.is_some() {
            self.store.note_open_chunk(-1);
        }
        inner
    }
}

#[async_trait]
impl PartWriter for GatedWriter {
    fn upload_id(&self) -> Option<&str> {
        self.inner.as_ref()?.upload_id()
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let Self { store, key, inner } = self;
        let Some(inner) = inner else { return Ok(()) };
        store
            .call(Operation::PutPart, key.as_str(), inner.put_part(part))
            .await
    }

    async fn finish(mut self: Box<Self>) -> Result<Evidence, StoreError> {
        let (store, key) = (self.store.clone(), self.key.clone());
        let writer = &mut self;
        let finish = async {
            let Some(inner) = writer.close() else {
                return Err(store.error(
                    StoreErrorKind::Invalid,
                    Operation::Finish,
                    key.as_str(),
                    "it was completed",
                ));
            };
            if !store.is_create_only() {
                store.inner.lose(key.as_str());
            }
            let evidence = inner.finish().await?;
            store.watch.put(&store, key.as_str(), true);
            Ok(evidence)
        };
        store.call(Operation::Finish, key.as_str(), finish).await
    }

    async fn abort(mut self: Box<Self>) -> Result<(), StoreError> {
        let (store, key) = (self.store.clone(), self.key.clone());
        let writer = &mut self;
        let abort = async {
            match writer.close() {
                Some(inner) => inner.abort().await,
                None => Ok(()),
            }
        };
        store.call(Operation::Abort, key.as_str(), abort).await
    }
}

impl Drop for GatedWriter {
    fn drop(&mut self) {
        self.close();
    }
}
