//! The only bridge between blocking threads and async: ZFS writes the stream on one side, and
//! sealed parts go to the store on the other.
//!
//! ```text
//! producer: read -> parse -> cut -> parts
//! sealers:  seal, hash
//! uploader: create -> put_part -> finish (confirm)
//! ```
//! The stream is read directly into the part buffers. Several threads seal the pages in place, and
//! each part is hashed and handed over in order. The pool of part buffers gives the backpressure;
//! the event channel only passes handles. While chunk n is being confirmed, chunk n+1 is being
//! uploaded. A sealed chunk cannot be made twice, because its key is random. So after a failed
//! upload that can be retried, and after an interrupted run, the source is opened again and the
//! chunk is made again under a new name. The source starts at the last resume point before the
//! first missing chunk. The new stream is joined to what was sent ([`crate::stream::splice`]),
//! confirmed chunks are not sent again, and at the end of each the running checksum must equal the
//! recorded one.

mod pool;
mod produce;
mod produce_error;
mod sealers;

use super::{RunError, error_chain};
use crate::manifest::{ChunkEntry, HeadEntry, ProgressChunk, ResumeEntry};
use crate::model::{BackupId, ChunkIndex, DatasetName, Guid, SnapshotName};
use crate::store::key::{BackupObject, object_name};
use crate::store::{
    Evidence, ObjectKey, PartWriter, StoreError, StoreErrorKind, StoreInfo, StoreWrite,
};
use crate::stream::record::{BeginRecord, ResumePoint, StreamExpectation, StreamSummary};
use crate::stream::seal::{ChunkCompression, SealedChunk};
use crate::zfs::{SendResume, SendStream, ZfsErrno, ZfsError};
use async_trait::async_trait;
use bytes::Bytes;
pub use pool::TransferPool;
use produce::Producer;
use produce_error::ProduceError;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

/// The capacity of the channel from producer to uploader, in events. They are handles only: the
/// pool bounds the memory.
const EVENTS_MAX: usize = 4;
/// The most chunks that are being confirmed while the next one is uploaded.
const CONFIRMING_MAX: usize = 2;
/// The number of times that the source is opened again before the transfer fails.
const REDO_MAX: u32 = 3;
/// The pause before the source is opened again, multiplied by the number of the attempt.
const REDO_PAUSE: std::time::Duration = std::time::Duration::from_secs(2);

/// The source of the stream. It is opened again when a chunk must be made again.
pub trait StreamSource: Send + Sync {
    /// Starts the stream, from its beginning or at a record that was sent before.
    ///
    /// # Errors
    /// [`ZfsError`] when it cannot be started.
    fn open(&self, resume: Option<SendResume>) -> Result<SendStream, ZfsError>;
}

/// The part of the same stream that an earlier run has stored.
#[derive(Debug, Clone, Default)]
pub struct Carried {
    /// The stream's first record; `None` when no chunk was confirmed.
    pub begin: Option<BeginRecord>,
    /// The confirmed chunks, by their index.
    pub chunks: BTreeMap<u32, ConfirmedChunk>,
}

impl Carried {
    /// Returns the position in the stream from which ZFS sends again.
    pub fn resumes_at(&self) -> u64 {
        resume_point(&self.chunks).map_or(0, |point| point.position)
    }
}

/// Records a transfer step by step, so that another run can resume it.
#[async_trait]
pub trait TransferLog: Send {
    /// Records that a chunk is about to be created under this name. On an error the chunk is not
    /// created.
    ///
    /// # Errors
    /// [`RunError`]; the transfer ends with it.
    fn begins(&mut self, name: &str) -> Result<(), RunError>;

    /// Records the upload id that the store gave to the chunk.
    ///
    /// # Errors
    /// As for [`TransferLog::begins`].
    fn opened(&mut self, name: &str, upload_id: &str) -> Result<(), RunError>;

    /// Records that the store confirmed a chunk of the stream that began with `begin`.
    ///
    /// # Errors
    /// As for [`TransferLog::begins`].
    async fn confirmed(
        &mut self,
        begin: &BeginRecord,
        chunk: &ConfirmedChunk,
    ) -> Result<(), RunError>;
}

/// The plan of a transfer: its stream, chunks and recipients.
pub struct TransferPlan {
    /// The dataset's name in the store.
    pub dataset: DatasetName,
    /// The backup.
    pub id: BackupId,
    /// The snapshot's name, for messages.
    pub snapshot: SnapshotName,
    /// The snapshot and base that the stream must have.
    pub expectation: StreamExpectation,
    /// Bytes of stream in every chunk but the last.
    pub split_bytes: u64,
    /// How chunks are compressed.
    pub compression: ChunkCompression,
    /// The recipients that chunks are sealed to.
    pub recipients: Vec<age::x25519::Recipient>,
    /// The buffers and threads that all streams of the run share.
    pub pool: TransferPool,
}

/// The progress of a transfer, reported after every part.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Bytes of stream read so far.
    pub stream_bytes: u64,
    /// Sealed bytes handed to the store so far.
    pub sent_bytes: u64,
    /// Chunks confirmed so far.
    pub chunks_confirmed: u32,
    /// The kernel's estimate of the whole stream in bytes: reported once, at the start of a resumed
    /// upload.
    pub estimate_bytes: Option<u64>,
}

/// Becomes true when a person or the system requests a stop.
pub type Stop = tokio::sync::watch::Receiver<bool>;

/// Receives the progress. It is called often and must return quickly.
pub type ProgressSink = Arc<dyn Fn(Progress) + Send + Sync>;

/// A chunk that the store confirmed.
#[derive(Debug, Clone)]
pub struct ConfirmedChunk {
    /// The chunk's line in the chunk list.
    pub entry: ChunkEntry,
    /// The store's evidence for the chunk.
    pub evidence: Evidence,
    /// The running checksum of the stream at the end of the chunk. If the chunk is made again, it
    /// must end with the same checksum.
    fletcher4: Option<[u64; 4]>,
    /// The point from which a send can be resumed, at or before the end of the chunk.
    point: Option<ResumePoint>,
}

impl ConfirmedChunk {
    /// Converts the chunk to its form in a journal or a progress object.
    pub fn to_progress(&self) -> ProgressChunk {
        let resume = self.point.map(ResumeEntry::from);
        let entry = ChunkEntry {
            resume,
            ..self.entry.clone()
        };
        let end_fletcher4 = self.fletcher4.map(|sum| sum.map(Guid));
        ProgressChunk {
            entry,
            evidence: self.evidence.clone(),
            end_fletcher4,
        }
    }

    /// Converts the chunk from its form in a journal or a progress object.
    pub fn from_progress(kept: ProgressChunk) -> Self {
        let ProgressChunk {
            entry,
            evidence,
            end_fletcher4,
        } = kept;
        let point = entry.resume.as_ref().map(ResumePoint::from);
        let fletcher4 = end_fletcher4.map(|sum| sum.map(|Guid(number)| number));
        // Drop the resume point: in a committed list it would tell the store something about the
        // content.
        Self {
            entry: ChunkEntry {
                resume: None,
                ..entry
            },
            evidence,
            fletcher4,
            point,
        }
    }
}

/// A whole stream in the store that is not committed yet.
#[derive(Debug)]
pub struct Transferred {
    /// All chunks, in order.
    pub chunks: Vec<ConfirmedChunk>,
    /// The summary of the stream.
    pub summary: StreamSummary,
}

enum Event {
    Begin(BackupObject),
    Part(Bytes),
    /// All parts of the chunk are sealed.
    End(Box<SealedEnd>),
}

/// The state of the stream where a chunk ends.
struct Ending {
    begin: Option<BeginRecord>,
    fletcher4: Option<[u64; 4]>,
    point: Option<ResumePoint>,
    position: u64,
}

struct SealedEnd {
    sealed: SealedChunk,
    name: String,
    index: ChunkIndex,
    ending: Ending,
}

/// Streams the source into the store until every chunk is confirmed, the stream is verified up to
/// its END record, and its producer has reported success. Chunks stored before are not sent again.
/// No manifest is written here.
///
/// # Errors
/// [`RunError`]; the stored chunks stay, without a manifest. [`RunError::CannotResume`] and
/// [`RunError::StreamChanged`] when the stored chunks do not belong to the present stream: nothing
/// can be added to them.
pub async fn transfer(
    source: Arc<dyn StreamSource>,
    store: &dyn StoreWrite,
    plan: Arc<TransferPlan>,
    carried: Carried,
    log: &mut dyn TransferLog,
    progress: ProgressSink,
    stop: Stop,
) -> Result<Transferred, RunError> {
    let turn = Arc::new(plan.pool.turn(store.traits(), stop.clone()).await?);
    let Carried {
        mut begin,
        chunks: mut confirmed,
    } = carried;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let skip = confirmed
            .iter()
            .map(|(index, chunk)| (*index, chunk.fletcher4))
            .collect();
        let resume = begin.clone().zip(resume_point(&confirmed));
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let source = Arc::clone(&source);
        let plan_of_producer = Arc::clone(&plan);
        let producer = Producer {
            source,
            plan: plan_of_producer,
            turn: Arc::clone(&turn),
            skip,
            resume,
            events,
        };
        // The runtime's own blocking thread: it lives as long as the stream. Its log lines name the
        // dataset too.
        let span = Span::current();
        let producer = tokio::task::spawn_blocking(move || span.in_scope(|| producer.run()));
        let uploader = Uploader {
            store,
            plan: &plan,
            log: &mut *log,
            confirmed: &mut confirmed,
            begin: &mut begin,
            writer: None,
            confirming: JoinSet::new(),
        };
        let uploaded = uploader.run(receiver, &progress, stop.clone()).await;
        let produced = producer
            .await
            .unwrap_or_else(|_| Err(ProduceError::Panicked));
        match (uploaded, produced) {
            (Ok(()), Ok(summary)) => {
                return Ok(Transferred {
                    chunks: confirmed.into_values().collect(),
                    summary,
                });
            }
            // The producer stops because of the uploader, so the uploader's reason comes first.
            (Err(UploadError::Store(error)), _)
                if attempt <= REDO_MAX && may_work_again(&error) =>
            {
                tracing::warn!(error = %error_chain(&error), attempt, "upload failed; making the unconfirmed chunks again");
                pause_or_stop(REDO_PAUSE * attempt, stop.clone()).await;
            }
            (Err(UploadError::Store(error)), _) => return Err(error.into()),
            (Err(UploadError::Log(error)), _) => return Err(error),
            (Err(UploadError::Stopped), _) => return Err(RunError::Interrupted),
            // The kernel ends a send when its process was stopped and continued (SIGSTOP, a
            // suspended machine).
            (Ok(()), Err(ProduceError::Zfs(error)))
                if attempt <= REDO_MAX && was_interrupted(&error) =>
            {
                tracing::warn!(error = %error_chain(&error), attempt, "the send was interrupted; resuming it");
                pause_or_stop(REDO_PAUSE * attempt, stop.clone()).await;
            }
            (Ok(()), Err(error)) => return Err(error.into_run_error(&plan)),
        }
    }
}

/// Waits for the pause, and not longer than until a stop is requested. The next attempt then sees
/// the request.
async fn pause_or_stop(pause: std::time::Duration, mut stop: Stop) {
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = stopped(&mut stop) => {}
    }
}

/// Returns the point from which the stream is resumed for the first missing chunk: the last resume
/// point of the chunks before it.
fn resume_point(confirmed: &BTreeMap<u32, ConfirmedChunk>) -> Option<ResumePoint> {
    let before = confirmed
        .iter()
        .zip(0..)
        .take_while(|((index, _), expected)| **index == *expected);
    before.filter_map(|((_, chunk), _)| chunk.point).last()
}

/// Returns the bytes of stream in the chunks before the first missing one.
fn kept_bytes(confirmed: &BTreeMap<u32, ConfirmedChunk>) -> u64 {
    let before = confirmed
        .iter()
        .zip(0..)
        .take_while(|((index, _), expected)| **index == *expected);
    before.map(|((_, chunk), _)| chunk.entry.stream_bytes).sum()
}

fn was_interrupted(error: &ZfsError) -> bool {
    error.errno() == Some(ZfsErrno::INTERRUPTED)
}

fn may_work_again(error: &StoreError) -> bool {
    error.is_transient() || error.kind == StoreErrorKind::Corrupt
}

enum UploadError {
    Store(StoreError),
    Log(RunError),
    Stopped,
}

impl From<StoreError> for UploadError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

struct Uploader<'a> {
    store: &'a dyn StoreWrite,
    plan: &'a TransferPlan,
    log: &'a mut dyn TransferLog,
    confirmed: &'a mut BTreeMap<u32, ConfirmedChunk>,
    begin: &'a mut Option<BeginRecord>,
    writer: Option<Box<dyn PartWriter>>,
    confirming: JoinSet<Result<ConfirmedChunk, StoreError>>,
}

impl Uploader<'_> {
    /// Handles events until the producer has no more, then waits for the last confirmations.
    async fn run(
        mut self,
        mut events: mpsc::Receiver<Event>,
        progress: &ProgressSink,
        mut stop: Stop,
    ) -> Result<(), UploadError> {
        let mut state = Progress {
            stream_bytes: kept_bytes(self.confirmed),
            ..Progress::default()
        };
        let taken = async {
            while let Some(event) = events.recv().await {
                self.take(event, &mut state).await?;
                state.chunks_confirmed = u32::try_from(self.confirmed.len()).unwrap_or(u32::MAX);
                progress(state);
            }
            Ok(())
        };
        let mut result = tokio::select! {
            taken = taken => taken,
            () = stopped(&mut stop) => Err(UploadError::Stopped),
        };
        // From now on the producer sees a closed channel and stops.
        drop(events);
        if let Some(unfinished) = self.writer.take()
            && let Err(error) = unfinished.abort().await
        {
            tracing::debug!(error = %error_chain(&error), "abort of an unfinished chunk failed");
        }
        while !self.confirming.is_empty() {
            let joined = self.join_one().await;
            result = result.and(joined);
        }
        result
    }

    async fn take(&mut self, event: Event, state: &mut Progress) -> Result<(), UploadError> {
        match (event, &mut self.writer) {
            (Event::Begin(object), _) => {
                while self.confirming.len() >= CONFIRMING_MAX {
                    self.join_one().await?;
                }
                let name = object_name(&object);
                let key = ObjectKey::backup(&self.plan.dataset, &self.plan.id, &object);
                self.log.begins(&name).map_err(UploadError::Log)?;
                let writer = self.store.create(&key).await?;
                if let Some(upload_id) = writer.upload_id() {
                    self.log
                        .opened(&name, upload_id)
                        .map_err(UploadError::Log)?;
                }
                self.writer = Some(writer);
            }
            (Event::Part(part), Some(writer)) => {
                state.sent_bytes += part.len() as u64;
                writer.put_part(part).await?;
            }
            (Event::End(end), writer) => {
                state.stream_bytes = end.ending.position;
                if self.begin.is_none() {
                    self.begin.clone_from(&end.ending.begin);
                }
                let writer = writer
                    .take()
                    .ok_or_else(|| out_of_order(self.store, self.plan))?;
                self.confirming
                    .spawn(confirm(writer, *end).in_current_span());
            }
            (Event::Part(_), None) => return Err(out_of_order(self.store, self.plan).into()),
        }
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), UploadError> {
        match self.confirming.join_next().await {
            None => Ok(()),
            Some(Ok(Ok(chunk))) => {
                if let Some(begin) = &*self.begin {
                    self.log
                        .confirmed(begin, &chunk)
                        .await
                        .map_err(UploadError::Log)?;
                }
                self.confirmed.insert(chunk.entry.index, chunk);
                Ok(())
            }
            Some(Ok(Err(error))) => Err(error.into()),
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

fn out_of_order(store: &dyn StoreInfo, plan: &TransferPlan) -> StoreError {
    let reason = "a part came without its chunk: this is a defect, please report it";
    StoreError::new(
        StoreErrorKind::Invalid,
        "upload",
        plan.id.as_str(),
        store.url(),
        reason,
    )
}

/// Returns when a stop is requested. Never returns if the sender is gone.
pub(super) async fn stopped(stop: &mut Stop) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn confirm(
    writer: Box<dyn PartWriter>,
    end: SealedEnd,
) -> Result<ConfirmedChunk, StoreError> {
    let evidence = writer.finish().await?;
    let sealed = end.sealed;
    let entry = ChunkEntry {
        name: end.name,
        index: end.index.get(),
        stream_bytes: sealed.stream_bytes,
        sealed_bytes: sealed.sealed_bytes,
        blake3: sealed.blake3,
        head: HeadEntry {
            bytes: sealed.head.bytes,
            blake3: sealed.head.blake3,
        },
        // The resume point is never published: it would tell the store about the content.
        resume: None,
    };
    tracing::debug!(
        chunk = entry.name,
        bytes = entry.sealed_bytes,
        "chunk confirmed"
    );
    Ok(ConfirmedChunk {
        entry,
        evidence,
        fletcher4: end.ending.fletcher4,
        point: end.ending.point,
    })
}
