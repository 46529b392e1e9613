//! [`TransferPool`]: what all streams of a run share, so that more datasets at once cost no more
//! memory and no more sealing threads: the part buffers, and the threads that seal them.
//!
//! # Why the streams cannot block each other for ever
//! A buffer is held in three ways:
//! 1. A reader fills it. A reader never waits for a second buffer: it hands a full part over before
//!    it takes the next one ([`crate::stream::fill`]). The bytes of a stream may come at any time
//!    or never: a reader of a stalled pool may keep its buffer for ever.
//! 2. A sealer or a request of the store has it. Neither needs another buffer, and each request has
//!    a time limit, so the buffer returns.
//! 3. The store keeps it until a later part of the object comes ([`StoreTraits::holds_parts`]): one
//!    at most for each stream, whose reader needs another buffer before that part can come.
//!
//! So a stream can progress with one buffer, or with two if the store holds parts, and a stalled one
//! keeps no more than that many. Therefore at most `buffers / need` streams hold buffers at once.
//! The others wait for their turn and hold nothing. If all streams but one are stalled, the last one
//! still finds the buffers that it needs. Buffers are given out in the order of the requests for
//! them, so that a fast stream cannot starve a slow one.

use crate::config::SEALING_THREADS_MAX;
use crate::run::RunError;
use crate::run::transfer::{Stop, stopped};
use crate::store::StoreTraits;
use crate::stream::fill::{FilledPart, SealedPart};
use crate::stream::part::PartPool;
use crate::stream::seal::SealError;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::Builder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The parts that the store does not have in flight: one that is being filled, and one that is being
/// handed over.
const BUFFERS_EXTRA: usize = 2;
/// The capacity of the channels of parts. They hold only handles: no pool has more parts than the 64
/// in flight that a configuration may set and two more.
pub(super) const PARTS_MAX: usize = 64 + BUFFERS_EXTRA;

pub(super) type Sealed = Result<SealedPart, SealError>;

/// A part to be sealed, and the receiver of the result.
pub(super) struct Job {
    pub(super) part: FilledPart,
    pub(super) sealed: SyncSender<Sealed>,
}

/// The shared resources of the streams of a run into one store. Clones share them. They are made
/// with the first stream, for the properties of its store.
#[derive(Clone, Default)]
pub struct TransferPool(Arc<OnceLock<Arc<Shared>>>);

struct Shared {
    parts: PartPool,
    /// The turns of the streams that may hold buffers.
    turns: Arc<Semaphore>,
    /// The number of turns that are taken.
    streams: AtomicUsize,
    /// The way to the sealing threads, which start with the first stream.
    jobs: Mutex<Option<SyncSender<Job>>>,
}

/// The turn of one stream: what it may use until this value is dropped.
pub(super) struct Turn {
    shared: Arc<Shared>,
    _turn: OwnedSemaphorePermit,
}

impl TransferPool {
    /// Waits for the turn of a stream into a store with these properties.
    ///
    /// # Errors
    /// [`RunError::Interrupted`] when a stop is requested first.
    pub(super) async fn turn(
        &self,
        traits: &StoreTraits,
        mut stop: Stop,
    ) -> Result<Turn, RunError> {
        let shared = self.0.get_or_init(|| Arc::new(Shared::new(traits)));
        let turn = Arc::clone(&shared.turns).acquire_owned();
        tokio::select! {
            biased;
            Ok(turn) = turn => {
                shared.streams.fetch_add(1, Ordering::Relaxed);
                Ok(Turn { shared: Arc::clone(shared), _turn: turn })
            }
            () = stopped(&mut stop) => Err(RunError::Interrupted),
        }
    }
}

impl Shared {
    fn new(traits: &StoreTraits) -> Self {
        let buffers = traits.concurrency + BUFFERS_EXTRA;
        let need = if traits.holds_parts { 2 } else { 1 };
        Self {
            parts: PartPool::new(buffers, traits.part_bytes),
            turns: Arc::new(Semaphore::new((buffers / need).max(1))),
            streams: AtomicUsize::new(0),
            jobs: Mutex::default(),
        }
    }
}

impl Turn {
    /// Returns the part buffers.
    pub(super) fn parts(&self) -> &PartPool {
        &self.shared.parts
    }

    /// Returns the way to the sealing threads, and starts them if necessary. They end with the pool.
    pub(super) fn sealers(&self) -> io::Result<SyncSender<Job>> {
        let jobs = &self.shared.jobs;
        let mut jobs = jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = &*jobs {
            return Ok(jobs.clone());
        }
        let (sender, waiting) = sync_channel(PARTS_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        // If a later thread cannot be started, the earlier threads end when the channel closes.
        for number in 0..sealing_threads() {
            let waiting = Arc::clone(&waiting);
            let thread = Builder::new().name(format!("seal-{number}"));
            thread.spawn(move || seal_all(&waiting))?;
        }
        *jobs = Some(sender.clone());
        Ok(sender)
    }

    /// Returns the number of threads with which the stream compresses its next chunk: its share of
    /// those that one stream alone would use.
    pub(super) fn compressing_threads(&self) -> u32 {
        let streams = self.shared.streams.load(Ordering::Relaxed).max(1);
        u32::try_from((sealing_threads() / streams).max(1)).unwrap_or(1)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.shared.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the number of threads that seal on this machine.
fn sealing_threads() -> usize {
    std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(SEALING_THREADS_MAX)
}

/// Seals parts until the pool is gone.
fn seal_all(waiting: &Mutex<Receiver<Job>>) {
    loop {
        let job = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(Job { part, sealed }) = job else {
            return;
        };
        // The receiver is gone if the stream has ended.
        let _ = sealed.send(part.seal().map_err(SealError::from));
    }
}
