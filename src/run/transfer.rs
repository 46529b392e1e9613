//! The only bridge between blocking threads and async: the stream comes from ZFS on one side, sealed parts leave to the
//! store on the other.
//!
//! ```text
//! producer thread: read -> parse -> cut -> seal -> parts      uploader: create -> put_part -> finish (confirm)
//! ```
//! Backpressure is the pool of part buffers; the event channel only passes handles. While chunk n is being confirmed,
//! chunk n+1 is going up. A sealed chunk cannot be made twice (its key is random), so when an upload fails for good
//! but may work again, the source is opened anew and the chunk is made again under a new name; chunks that are
//! confirmed are parsed again and not sent again, and the running checksum must be what it was.

use super::{RunError, error_chain};
use crate::manifest::{CHUNKS_MAX, ChunkEntry, HeadEntry};
use crate::model::{BackupId, ChunkIndex, DatasetName};
use crate::store::key::{BackupObject, object_name};
use crate::store::{Evidence, ObjectKey, ObjectStore, PartWriter, StoreError, StoreErrorKind};
use crate::stream::part::PartPool;
use crate::stream::record::{StreamExpectation, StreamParser, StreamSummary};
use crate::stream::seal::{ChunkSealer, Compression, SealError, SealedChunk};
use crate::zfs::{SendStream, ZfsError};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Bytes of one read from the pipe, which is itself this long where the system allows.
const READ_BYTES: usize = 1 << 20;
/// Parts between producer and uploader. Handles only: the pool bounds the memory.
const EVENTS_MAX: usize = 4;
/// Chunks being confirmed while the next one goes up.
const CONFIRMING_MAX: usize = 2;
/// How often the source is opened anew before a failing store is given up.
const REDO_MAX: u32 = 3;
/// Pause before the source is opened anew, times the number of the attempt.
const REDO_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// Where the stream comes from; opened again when a chunk must be made again.
pub trait StreamSource: Send + Sync {
    /// Starts the stream from its beginning.
    ///
    /// # Errors
    /// [`ZfsError`] when it cannot be started.
    fn open(&self) -> Result<SendStream, ZfsError>;
}

/// What is transferred, and how.
pub struct TransferPlan {
    /// The dataset as named in the store.
    pub dataset: DatasetName,
    /// The backup.
    pub id: BackupId,
    /// The snapshot's name for messages.
    pub snapshot: String,
    /// What the stream must be of.
    pub expectation: StreamExpectation,
    /// Bytes of stream in every chunk but the last.
    pub split_bytes: u64,
    /// How chunks are compressed.
    pub compression: Compression,
    /// Whom they are sealed to.
    pub recipients: Vec<age::x25519::Recipient>,
}

/// How far a transfer is; told after every part.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Bytes of stream read so far.
    pub stream_bytes: u64,
    /// Sealed bytes handed to the store so far.
    pub sent_bytes: u64,
    /// Chunks confirmed so far.
    pub chunks_confirmed: u32,
}

/// Becomes true when a person or the system asks to stop.
pub type Stop = tokio::sync::watch::Receiver<bool>;

/// Receives progress; called often, must be quick.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// One chunk that the store confirmed.
#[derive(Debug, Clone)]
pub struct ConfirmedChunk {
    /// Its line in the list.
    pub entry: ChunkEntry,
    /// The store's word for it.
    pub evidence: Evidence,
    /// The running checksum of the stream at its end: the same chunk again must end with the same.
    fletcher4: Option<[u64; 4]>,
}

/// A whole stream in the store, not yet committed.
#[derive(Debug)]
pub struct Transferred {
    /// All chunks, in order.
    pub chunks: Vec<ConfirmedChunk>,
    /// What the stream was.
    pub summary: StreamSummary,
}

enum Event {
    Begin(BackupObject),
    Part(Bytes),
    /// The chunk is sealed whole.
    End(Box<SealedEnd>),
}

struct SealedEnd {
    sealed: SealedChunk,
    name: String,
    index: ChunkIndex,
    ending: Ending,
}

/// Streams the source into the store until every chunk is confirmed, the stream is verified to its END, and its
/// producer has reported success. No manifest is written here.
///
/// # Errors
/// [`RunError`]; whatever was stored stays, without a manifest.
pub async fn transfer(
    source: Arc<dyn StreamSource>,
    store: &dyn ObjectStore,
    plan: Arc<TransferPlan>,
    progress: ProgressSink,
    stop: Stop,
) -> Result<Transferred, RunError> {
    let traits = store.traits();
    // In flight, one being filled, one being handed over.
    let pool = PartPool::new(traits.concurrency + 2, traits.part_bytes);
    let mut confirmed = BTreeMap::new();
    let mut attempt = 0;
    loop {
        attempt += 1;
        let skip = confirmed.iter().map(|(index, chunk): (&u32, &ConfirmedChunk)| (*index, chunk.fletcher4)).collect();
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (source, plan_of_producer) = (Arc::clone(&source), Arc::clone(&plan));
        let producer = Producer { source, plan: plan_of_producer, pool: pool.clone(), skip, events };
        // A blocking thread of the runtime's own: it lives as long as the stream.
        let producer = tokio::task::spawn_blocking(move || producer.run());
        let uploader =
            Uploader { store, plan: &plan, confirmed: &mut confirmed, writer: None, confirming: JoinSet::new() };
        let uploaded = uploader.run(receiver, &progress, stop.clone()).await;
        let produced = producer.await.unwrap_or_else(|_| Err(ProduceError::Panicked));
        match (uploaded, produced) {
            (Ok(()), Ok(summary)) => {
                return Ok(Transferred { chunks: confirmed.into_values().collect(), summary });
            }
            // The producer stops because of the uploader, so the uploader's reason comes first.
            (Err(UploadError::Store(error)), _) if attempt <= REDO_MAX && may_work_again(&error) => {
                tracing::warn!(error = %error_chain(&error), attempt, "upload failed; making the unconfirmed chunks again");
                tokio::time::sleep(REDO_PAUSE * attempt).await;
            }
            (Err(UploadError::Store(error)), _) => return Err(error.into()),
            (Err(UploadError::Stopped), _) => return Err(RunError::Interrupted),
            (Ok(()), Err(error)) => return Err(error.into_run_error(&plan)),
        }
    }
}

fn may_work_again(error: &StoreError) -> bool {
    error.is_transient() || error.kind == StoreErrorKind::Corrupt
}

enum UploadError {
    Store(StoreError),
    Stopped,
}

struct Uploader<'a> {
    store: &'a dyn ObjectStore,
    plan: &'a TransferPlan,
    confirmed: &'a mut BTreeMap<u32, ConfirmedChunk>,
    writer: Option<Box<dyn PartWriter>>,
    confirming: JoinSet<Result<ConfirmedChunk, StoreError>>,
}

impl Uploader<'_> {
    /// Takes events until the producer has no more, then waits for the last confirmations.
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        progress: &ProgressSink,
        mut stop: Stop,
    ) -> Result<(), UploadError> {
        let mut state = Progress::default();
        let taken = async {
            while let Some(event) = events.recv().await {
                self.take(event, &mut state).await?;
                state.chunks_confirmed = u32::try_from(self.confirmed.len()).unwrap_or(u32::MAX);
                progress(state);
            }
            Ok(())
        };
        let mut result = tokio::select! {
            taken = taken => taken.map_err(UploadError::Store),
            () = stopped(&mut stop) => Err(UploadError::Stopped),
        };
        // From here on the producer sees a closed channel and stops.
        drop(events);
        if let Some(unfinished) = self.writer.take()
            && let Err(error) = unfinished.abort().await
        {
            tracing::debug!(error = %error_chain(&error), "abort of an unfinished chunk failed");
        }
        while !self.confirming.is_empty() {
            let joined = self.join_one().await.map_err(UploadError::Store);
            result = result.and(joined);
        }
        result
    }

    async fn take(&mut self, event: Event, state: &mut Progress) -> Result<(), StoreError> {
        match (event, &mut self.writer) {
            (Event::Begin(object), _) => {
                while self.confirming.len() >= CONFIRMING_MAX {
                    self.join_one().await?;
                }
                let key = ObjectKey::backup(&self.plan.dataset, &self.plan.id, &object);
                self.writer = Some(self.store.create(&key).await?);
            }
            (Event::Part(part), Some(writer)) => {
                state.sent_bytes += part.len() as u64;
                writer.put_part(part).await?;
            }
            (Event::End(end), writer) => {
                state.stream_bytes = end.ending.position;
                let writer = writer.take().ok_or_else(|| out_of_order(self.store, self.plan))?;
                self.confirming.spawn(confirm(writer, *end));
            }
            (Event::Part(_), None) => return Err(out_of_order(self.store, self.plan)),
        }
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), StoreError> {
        match self.confirming.join_next().await {
            None => Ok(()),
            Some(Ok(Ok(chunk))) => {
                self.confirmed.insert(chunk.entry.index, chunk);
                Ok(())
            }
            Some(Ok(Err(error))) => Err(error),
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn out_of_order(store: &dyn ObjectStore, plan: &TransferPlan) -> StoreError {
    let reason = "a part came without its chunk: this is a defect, please report it";
    StoreError::new(StoreErrorKind::Invalid, "upload", plan.id.as_str(), store.url(), reason)
}

/// Ends when a stop is asked for; never, when nobody can ask any more.
pub(super) async fn stopped(stop: &mut Stop) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn confirm(writer: Box<dyn PartWriter>, end: SealedEnd) -> Result<ConfirmedChunk, StoreError> {
    let evidence = writer.finish().await?;
    let sealed = end.sealed;
    let entry = ChunkEntry {
        name: end.name,
        index: end.index.get(),
        stream_bytes: sealed.stream_bytes,
        sealed_bytes: sealed.sealed_bytes,
        blake3: sealed.blake3,
        head: HeadEntry { bytes: sealed.head.bytes, blake3: sealed.head.blake3 },
        // Never published: it would tell the store of the content.
        resume: None,
    };
    tracing::debug!(chunk = entry.name, bytes = entry.sealed_bytes, "chunk confirmed");
    Ok(ConfirmedChunk { entry, evidence, fletcher4: end.ending.fletcher4 })
}

struct Producer {
    source: Arc<dyn StreamSource>,
    plan: Arc<TransferPlan>,
    pool: PartPool,
    /// Confirmed chunks, with the running checksum at the end of each.
    skip: BTreeMap<u32, Option<[u64; 4]>>,
    events: mpsc::Sender<Event>,
}

enum ProduceError {
    Zfs(ZfsError),
    Read(std::io::Error),
    Stream(crate::stream::record::StreamError),
    Seal(SealError),
    Changed(u32),
    TooManyChunks,
    Panicked,
}

impl ProduceError {
    fn into_run_error(self, plan: &TransferPlan) -> RunError {
        let snapshot = plan.snapshot.clone();
        match self {
            Self::Zfs(error) => RunError::Zfs(error),
            Self::Read(source) => RunError::ReadStream { subject: snapshot, source },
            Self::Stream(source) => RunError::Stream { snapshot, source },
            Self::Seal(error) => RunError::Seal(error),
            Self::Changed(index) => RunError::StreamChanged { index, id: plan.id.clone() },
            Self::TooManyChunks => RunError::refused(
                format!("the stream of {snapshot} needs more than {CHUNKS_MAX} chunks"),
                "make main.split_size larger",
            ),
            Self::Panicked => RunError::refused(
                format!("the thread that reads {snapshot} panicked"),
                "this is a defect: please report it",
            ),
        }
    }
}

impl Producer {
    fn run(self) -> Result<StreamSummary, ProduceError> {
        let mut stream = self.source.open().map_err(ProduceError::Zfs)?;
        let mut cutter = Cutter::new(&self);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let bytes = match stream.reader().read(&mut buffer) {
                Ok(0) => break,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(ProduceError::Read(error)),
            };
            cutter.write(&buffer[..bytes])?;
        }
        // End of file is not success: the producer's own verdict comes first, then the END record, and only then is
        // the last chunk completed.
        stream.finish().map_err(ProduceError::Zfs)?;
        cutter.finish()
    }

    fn send(&self, event: Event) -> Result<(), ProduceError> {
        self.events.blocking_send(event).map_err(|_| ProduceError::Seal(SealError::Stopped))
    }
}

/// Cuts the stream into chunks of exactly `split_bytes` and seals those that are not confirmed yet.
struct Cutter<'a> {
    producer: &'a Producer,
    parser: StreamParser,
    index: u32,
    chunk_bytes: u64,
    sealing: Option<(ChunkSealer, ChunkIndex, BackupObject)>,
}

/// The state of the stream where a chunk ends.
struct Ending {
    fletcher4: Option<[u64; 4]>,
    position: u64,
}

impl<'a> Cutter<'a> {
    fn new(producer: &'a Producer) -> Self {
        let parser = StreamParser::new(producer.plan.expectation);
        Self { producer, parser, index: 0, chunk_bytes: 0, sealing: None }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ProduceError> {
        let split_bytes = self.producer.plan.split_bytes;
        while !bytes.is_empty() {
            if self.chunk_bytes == split_bytes {
                self.end_chunk()?;
            }
            if self.chunk_bytes == 0 {
                self.begin_chunk()?;
            }
            let room = usize::try_from(split_bytes - self.chunk_bytes).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.parser.feed(now).map_err(ProduceError::Stream)?;
            if let Some((sealer, _, _)) = &mut self.sealing {
                let events = &self.producer.events;
                let sink = &mut |part| events.blocking_send(Event::Part(part)).is_ok();
                sealer.write(now, sink).map_err(ProduceError::Seal)?;
            }
            self.chunk_bytes += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<StreamSummary, ProduceError> {
        let ending = self.ending();
        let parser = std::mem::replace(&mut self.parser, StreamParser::new(self.producer.plan.expectation));
        let summary = parser.finish().map_err(ProduceError::Stream)?;
        self.end_chunk_at(ending)?;
        Ok(summary)
    }

    fn ending(&self) -> Ending {
        let parser = &self.parser;
        Ending { fletcher4: parser.fletcher4(), position: parser.position() }
    }

    fn begin_chunk(&mut self) -> Result<(), ProduceError> {
        if self.producer.skip.contains_key(&self.index) {
            return Ok(());
        }
        let allowed = |index: &ChunkIndex| index.get() < CHUNKS_MAX;
        let index = ChunkIndex::new(self.index).filter(allowed).ok_or(ProduceError::TooManyChunks)?;
        let plan = &self.producer.plan;
        let compressed = plan.compression != Compression::None;
        let nonce =
            getrandom::u32().map_err(|_| ProduceError::Seal(crate::stream::age_file::AgeError::Random.into()))?;
        let object = BackupObject::Chunk { index, nonce, compressed };
        let sealer =
            ChunkSealer::new(&plan.recipients, plan.compression, &self.producer.pool).map_err(ProduceError::Seal)?;
        self.producer.send(Event::Begin(object.clone()))?;
        self.sealing = Some((sealer, index, object));
        Ok(())
    }

    fn end_chunk(&mut self) -> Result<(), ProduceError> {
        self.end_chunk_at(self.ending())
    }

    fn end_chunk_at(&mut self, ending: Ending) -> Result<(), ProduceError> {
        match self.sealing.take() {
            Some((sealer, index, object)) => {
                let events = &self.producer.events;
                let sink = &mut |part| events.blocking_send(Event::Part(part)).is_ok();
                let sealed = sealer.finish(sink).map_err(ProduceError::Seal)?;
                let end = SealedEnd { sealed, name: object_name(&object), index, ending };
                self.producer.send(Event::End(Box::new(end)))?;
            }
            None if self
                .producer
                .skip
                .get(&self.index)
                .is_some_and(|before| before.is_none() || *before != ending.fletcher4) =>
            {
                return Err(ProduceError::Changed(self.index));
            }
            None => {}
        }
        self.index += 1;
        self.chunk_bytes = 0;
        Ok(())
    }
}
