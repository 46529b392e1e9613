//! The threads between the reader and the uploads: they seal parts in parallel, and hand them over
//! in the order of the stream.
//!
//! ```text
//! reader --(jobs)--> sealers            one part each, sealed and hashed; at most four at once,
//!                                       which all streams of the run share
//!        --(steps, in order)--> hasher  awaits each part in turn, joins its hashes, hands it over
//! ```
//! Every part comes from the pool and returns to it after it was sent, so the pool bounds the parts
//! in flight here too. When the uploader stops, the hasher ends, and then the reader's next step
//! fails.

use super::pool::{Job, PARTS_MAX, Sealed};
use super::produce_error::ProduceError;
use super::{Ending, Event, SealedEnd};
use crate::model::ChunkIndex;
use crate::store::key::{BackupObject, object_name};
use crate::stream::fill::FilledPart;
use crate::stream::seal::{ChunkHasher, FilledChunk, SealError};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;
use tokio::sync::mpsc::Sender;

/// The steps of the chunks, in order.
enum SealStep {
    Begin(BackupObject),
    Part(Receiver<Sealed>),
    End(Box<EndOfChunk>),
}

pub(super) struct EndOfChunk {
    pub(super) filled: FilledChunk,
    pub(super) object: BackupObject,
    pub(super) index: ChunkIndex,
    pub(super) ending: Ending,
}

/// The reader's side of the channels.
pub(super) struct SealLine {
    jobs: SyncSender<Job>,
    steps: SyncSender<SealStep>,
}

impl SealLine {
    /// Begins a chunk.
    pub(super) fn begin(&self, object: BackupObject) -> Result<(), SealError> {
        self.step(SealStep::Begin(object))
    }

    /// Hands over a part to be sealed and sent.
    pub(super) fn part(&self, part: FilledPart) -> Result<(), SealError> {
        let (sealed, receiver) = sync_channel(1);
        self.step(SealStep::Part(receiver))?;
        self.jobs
            .send(Job { part, sealed })
            .map_err(|_| SealError::Stopped)
    }

    /// Ends the chunk, after all its parts.
    pub(super) fn end(&self, end: EndOfChunk) -> Result<(), SealError> {
        self.step(SealStep::End(Box::new(end)))
    }

    fn step(&self, step: SealStep) -> Result<(), SealError> {
        self.steps.send(step).map_err(|_| SealError::Stopped)
    }
}

/// Runs `work`, whose parts go to the uploader. Returns when all parts are handed over or the
/// uploader has stopped.
pub(super) fn with_sealers<T>(
    jobs: SyncSender<Job>,
    events: &Sender<Event>,
    work: impl FnOnce(&SealLine) -> Result<T, ProduceError>,
) -> Result<T, ProduceError> {
    let (steps, ordered) = sync_channel(PARTS_MAX);
    std::thread::scope(|scope| {
        let line = SealLine { jobs, steps };
        // The hasher owns its channel: when it ends, the reader's next step fails and the waiting
        // parts return to the pool.
        let hasher = Builder::new()
            .name("hash".to_owned())
            .spawn_scoped(scope, move || hand_over_all(ordered, events))
            .map_err(ProduceError::Thread)?;
        let worked = work(&line);
        drop(line);
        let handed = hasher.join().unwrap_or_else(|panic| resume_unwind(panic));
        match (worked, handed) {
            // The reader stopped because of the hasher, so the hasher's reason comes first.
            (Err(ProduceError::Seal(SealError::Stopped)) | Ok(_), Err(error)) => {
                Err(ProduceError::Seal(error))
            }
            (worked, _) => worked,
        }
    })
}

/// Handles the steps in order until there are no more.
fn hand_over_all(steps: Receiver<SealStep>, events: &Sender<Event>) -> Result<(), SealError> {
    let mut hasher = ChunkHasher::default();
    for step in steps {
        let event = match step {
            SealStep::Begin(object) => {
                hasher = ChunkHasher::default();
                Event::Begin(object)
            }
            SealStep::Part(sealed) => {
                let part = sealed.recv().map_err(|_| SealError::Stopped)??;
                Event::Part(hasher.take(part)?.freeze())
            }
            SealStep::End(end) => {
                let EndOfChunk {
                    filled,
                    object,
                    index,
                    ending,
                } = *end;
                let sealed = std::mem::take(&mut hasher).finish(filled);
                Event::End(Box::new(SealedEnd {
                    sealed,
                    name: object_name(&object),
                    index,
                    ending,
                }))
            }
        };
        events
            .blocking_send(event)
            .map_err(|_| SealError::Stopped)?;
    }
    Ok(())
}
