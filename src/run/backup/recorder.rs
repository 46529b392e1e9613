//! [`Recorder`]: records each step of a transfer in the journal, and at most once a minute in the
//! store, so that a later run can resume the upload after a crash, even without the journal.

use super::BackupEnv;
use crate::manifest::{ProgressBody, ProgressChunk, seal_progress};
use crate::run::commit::put::to_json;
use crate::run::commit::target::CommitTarget;
use crate::run::transfer::{Carried, ConfirmedChunk, TransferLog};
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::journal::log::{AttemptLog, JournalRecord};
use crate::store::key::{BackupObject, parse_object_name};
use crate::stream::record::BeginRecord;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

/// The least time between two progress objects.
const PROGRESS_PAUSE: SignedDuration = SignedDuration::from_mins(1);

/// Writes the journal and the progress objects of one attempt.
pub(super) struct Recorder<'a> {
    env: &'a BackupEnv,
    target: CommitTarget<'a>,
    log: &'a mut AttemptLog,
    /// Whether the journal has the stream's first record.
    knows_begin: bool,
    /// Confirmed chunks that no progress object names yet. A resumed upload begins with all its
    /// chunks, because the interrupted run may have ended before it put its last progress object.
    untold: Vec<ProgressChunk>,
    next_progress: u16,
    last_progress: Timestamp,
    /// The names of the chunks that this run began.
    begun: BTreeSet<String>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(
        env: &'a BackupEnv,
        target: CommitTarget<'a>,
        log: &'a mut AttemptLog,
        carried: &Carried,
        next_progress: u16,
    ) -> Self {
        let last_progress = (env.now)();
        let (knows_begin, untold) = (carried.begin.is_some(), carried.chunks.values());
        let untold = untold.map(ConfirmedChunk::to_progress).collect();
        Self {
            env,
            target,
            log,
            knows_begin,
            untold,
            next_progress,
            last_progress,
            begun: BTreeSet::new(),
        }
    }

    /// Returns whether the store may have objects that a backup of `chunks` chunks does not need.
    pub(super) fn is_untidy(&self, chunks: usize) -> bool {
        self.next_progress > 0 || self.begun.len() != chunks
    }

    /// Returns the names of the chunks that this run began.
    pub(super) fn into_begun(self) -> BTreeSet<String> {
        self.begun
    }

    /// Checks the time limits before each chunk. The first chunk is always sent, so that a backup
    /// of one chunk is never paused.
    fn check_time(&self, name: &str) -> Result<(), RunError> {
        let is_first = matches!(parse_object_name(name), Some(BackupObject::Chunk { index, .. }) if index.get() == 0);
        match self.env.settings.pause_reason_now((self.env.now)()) {
            Some(why) if !is_first => Err(RunError::Paused {
                id: self.target.id.clone(),
                why,
            }),
            _ => Ok(()),
        }
    }

    /// Puts a progress object, unless the last one is too recent. A failure costs nothing else: the
    /// journal has the chunks, and the next progress object names them too.
    async fn tell(&mut self, begin: &BeginRecord) {
        let now = (self.env.now)();
        // Compare the absolute time: a clock that was set back must not stop the progress objects.
        if now.duration_since(self.last_progress).abs() < PROGRESS_PAUSE
            || self.next_progress == u16::MAX
        {
            return;
        }
        self.last_progress = now;
        let body = ProgressBody {
            begin: begin.header().bytes().to_vec(),
            chunks: self.untold.clone(),
        };
        let number = self.next_progress;
        self.next_progress += 1;
        match self.put(number, &body, now).await {
            Ok(()) => self.untold.clear(),
            Err(error) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "the store does not know how far this upload is"
                );
            }
        }
    }

    async fn put(&self, number: u16, body: &ProgressBody, now: Timestamp) -> Result<(), RunError> {
        let CommitTarget {
            store,
            dataset,
            id,
            signing,
            ..
        } = self.target;
        let object = BackupObject::Progress(number);
        let key = self.target.key(&object);
        let unsealed = |source| RunError::Manifest {
            key: key.to_string(),
            source,
        };
        let progress = seal_progress(signing, dataset, id, number, body, now).map_err(unsealed)?;
        let bytes = to_json(&progress)?;
        let signature = signing.sign(SignedType::Progress, key.as_str(), &bytes)?;
        store.put_new(&key.signature(), signature.into()).await?;
        store.put_new(&key, bytes.into()).await?;
        Ok(())
    }
}

#[async_trait]
impl TransferLog for Recorder<'_> {
    fn begins(&mut self, name: &str) -> Result<(), RunError> {
        self.check_time(name)?;
        self.begun.insert(name.to_owned());
        self.log.append(&JournalRecord::Chunk {
            name: name.to_owned(),
        })?;
        Ok(())
    }

    fn opened(&mut self, name: &str, upload_id: &str) -> Result<(), RunError> {
        let (name, upload_id) = (name.to_owned(), upload_id.to_owned());
        self.log.note(&JournalRecord::Upload { name, upload_id })?;
        Ok(())
    }

    async fn confirmed(
        &mut self,
        begin: &BeginRecord,
        chunk: &ConfirmedChunk,
    ) -> Result<(), RunError> {
        if !self.knows_begin {
            self.log.note(&JournalRecord::Stream {
                begin: begin.header().bytes().to_vec(),
            })?;
            self.knows_begin = true;
        }
        let kept = chunk.to_progress();
        self.log
            .append(&JournalRecord::Confirmed(Box::new(kept.clone())))?;
        self.untold.push(kept);
        self.tell(begin).await;
        Ok(())
    }
}
