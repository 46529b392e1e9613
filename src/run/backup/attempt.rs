//! An attempt at one backup: from the holds to the last confirmed chunk, then the commit.

use super::planning::{Base, View, estimate_stream};
use super::recorder::Recorder;
use super::source::{SendSource, send_flags};
use super::unfinished::{ResumableUpload, Unfinished};
use super::{BackupEnv, CommittedBackup};
use crate::catalog::get_pinned;
use crate::catalog::stores::StoresView;
use crate::keyring::KEYRING_BYTES_MAX;
use crate::manifest::{Descendant, ReceiptEntry};
use crate::model::{BackupId, BackupKind, BackupLevel, DatasetName, Digest};
use crate::plan::bookmarks::BOOKMARK_PREFIX;
use crate::plan::chunk_count::check_resumed_chunk_count;
use crate::plan::resume::{shows_place, unreadable_at};
use crate::run::commit::object_lock::extend_keyring;
use crate::run::commit::put::to_json;
use crate::run::commit::target::{CommitError, CommitTarget};
use crate::run::commit::tidy::tidy;
use crate::run::pool::pins::{pin, unpin};
use crate::run::pool::select::Selected;
use crate::run::transfer::{Carried, Progress, TransferPlan, Transferred, transfer};
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::bookmark_notes::BookmarkNotes;
use crate::state::journal::AttemptJournal;
use crate::state::journal::log::{AttemptLog, JournalRecord};
use crate::store::key::{BackupObject, backup_prefix, parse_object_name};
use crate::stream::record::{StreamExpectation, StreamFault};
use crate::zfs::{Dataset, SendBase, SendFlags, SendRequest, Snapshot, ZfsErrno};
use bytes::Bytes;
use futures_util::future::{OptionFuture, join};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An attempt at one backup.
pub(super) struct Attempt<'a> {
    pub(super) env: &'a BackupEnv,
    /// The dataset in the pool.
    pub(super) local: Dataset,
    /// The dataset's name in the store.
    pub(super) stored: DatasetName,
    pub(super) snapshot: Snapshot,
    /// The base of an incremental; `None` for a full.
    pub(super) base: Option<Base>,
    /// The level; `None` where no levels are configured.
    pub(super) level: Option<BackupLevel>,
    pub(super) id: BackupId,
    pub(super) flags: SendFlags,
    pub(super) started_at: Timestamp,
    /// The upload that this attempt resumes; `None` for a new attempt.
    pub(super) unfinished: Option<Unfinished>,
    /// Whether nothing can ever be added to this attempt.
    is_pointless: AtomicBool,
}

/// The state of a running attempt.
pub(super) struct Course {
    pub(super) journal: AttemptJournal,
    pub(super) log: AttemptLog,
    carried: Carried,
    /// The descendants of the dataset when a new attempt began; `None` when they are not known.
    pub(super) descendants: Option<Vec<Descendant>>,
    /// The bytes of `private.age`, after they were made.
    pub(super) private: Option<Vec<u8>>,
    pub(super) keyring: Option<Bytes>,
    started: Vec<u8>,
    next_progress: u16,
    /// The names of the chunks that this run began.
    begun: BTreeSet<String>,
    /// Whether the store may have objects that the backup does not need.
    is_untidy: bool,
}

impl<'a> Attempt<'a> {
    /// Makes a new attempt for a planned backup.
    pub(super) fn new(
        env: &'a BackupEnv,
        selected: &Selected,
        local: &Dataset,
        snapshot: Snapshot,
        (base, level): (Option<Base>, Option<BackupLevel>),
    ) -> Result<Self, RunError> {
        let kind = match base {
            Some(_) => BackupKind::Incr,
            None => BackupKind::Full,
        };
        Ok(Self {
            env,
            local: local.clone(),
            stored: selected.stored.clone(),
            id: new_id(&snapshot, kind)?,
            flags: send_flags(local, &env.settings),
            snapshot,
            base,
            level,
            started_at: (env.now)(),
            unfinished: None,
            is_pointless: AtomicBool::new(false),
        })
    }

    /// Resumes the attempt of an interrupted run.
    pub(super) fn resume(
        env: &'a BackupEnv,
        selected: &Selected,
        view: &View,
        resumable: ResumableUpload,
    ) -> Result<Self, RunError> {
        let ResumableUpload {
            upload,
            snapshot,
            base,
        } = resumable;
        let base = match (base, &upload.started.base) {
            (Some(local), Some(base)) => Some(Base::find(
                &view.stores,
                &base.backup_id,
                base.manifest_blake3,
                local,
            )?),
            _ => None,
        };
        let local = &view.local.dataset;
        Ok(Self {
            env,
            local: local.clone(),
            stored: selected.stored.clone(),
            id: upload.id().clone(),
            flags: send_flags(local, &env.settings),
            snapshot,
            base,
            level: upload.started.level,
            started_at: upload.started.started_at,
            unfinished: Some(upload),
            is_pointless: AtomicBool::new(false),
        })
    }

    /// Returns the backups that a restore needs before this one, the full first.
    pub(super) fn before(&self) -> &[BackupId] {
        self.base.as_ref().map_or(&[], |base| &base.chain)
    }

    /// Makes the backup. A failure before the manifest leaves no backup, and a later run resumes
    /// from the objects that were stored, unless [`Attempt::is_pointless`] returns true.
    pub(super) async fn run(&self, stores: &StoresView) -> Result<CommittedBackup, RunError> {
        self.upload_and_commit(stores)
            .await
            .map_err(|error| self.failed_commit(error))
    }

    async fn upload_and_commit(&self, stores: &StoresView) -> Result<CommittedBackup, CommitError> {
        let mut course = self.open().await?;
        self.pin()?;
        let objects = self.put_start(&course).await?;
        // `started.json` is put before the chain is checked: any prune that begins from now on sees
        // that this chain is needed.
        self.check_chain(stores).await?;
        let transferred = self.transfer(&mut course).await?;
        self.check_listing(&transferred, &course).await?;
        self.bookmark();
        let committed = self
            .commit(stores, transferred, objects, &mut course)
            .await?;
        if course.is_untidy {
            tidy(&*self.env.store, &committed.manifest).await;
        }
        if let Err(error) = course.journal.committed() {
            tracing::warn!(error = %error_chain(&error), "the backup is committed; its journal stays");
        }
        if let Err(error) = unpin(&*self.env.zfs, &self.local.name, |id| *id == self.id) {
            tracing::warn!(error = %error_chain(&error), "the backup is committed; a hold stays until the next run");
        }
        Ok(committed)
    }

    /// Returns whether nothing can ever be added to this attempt. If so, the next attempt gets a
    /// new id.
    pub(super) fn is_pointless(&self) -> bool {
        self.is_pointless.load(Ordering::Relaxed)
    }

    /// Marks this attempt as one to which nothing can ever be added, and returns the error that is
    /// the reason.
    pub(super) fn pointless(&self, error: RunError) -> RunError {
        self.is_pointless.store(true, Ordering::Relaxed);
        error
    }

    /// Returns the error of this attempt for a failed commit. If the store or another host has made
    /// the commit impossible, nothing can be added to the attempt any more.
    fn failed_commit(&self, error: CommitError) -> RunError {
        match error {
            CommitError::Taken(error) => self.pointless(error.into()),
            CommitError::Incomplete(error) => error.into(),
            CommitError::BaseGone { base, reason } => self.base_gone(&base, &reason),
            CommitError::Pruned(id) => {
                let what = format!(
                    "{id} was pruned from {} while it was being uploaded; nothing is committed",
                    self.env.store.url()
                );
                let hint = "run the command again: it begins a new upload";
                self.pointless(RunError::refused(what, hint))
            }
            CommitError::Failed(error) => error,
        }
    }

    /// Returns the place that the backup is committed to.
    pub(super) fn target(&self) -> CommitTarget<'_> {
        CommitTarget {
            store: &*self.env.store,
            dataset: &self.stored,
            id: &self.id,
            signing: &self.env.keys.signing,
            trusted: &self.env.keys.trusted,
            state_dir: &self.env.settings.state_dir,
        }
    }

    /// Opens the journal before anything is put or held, so that the journal names every object and
    /// hold of the attempt.
    async fn open(&self) -> Result<Course, RunError> {
        let Some(upload) = &self.unfinished else {
            return self.open_new().await;
        };
        let (journal, mut log) = match &upload.journal {
            Some(journal) => journal.reopen()?,
            None => self.begin(&upload.started_bytes, upload.keyring)?,
        };
        if upload.from_store && upload.journal.is_some() {
            log.append(&self.plan_record(&upload.started_bytes, upload.keyring)?)?;
        }
        if upload.from_store || upload.from_progress {
            for record in upload.records() {
                log.note(&record)?;
            }
        }
        super::abandon::abort_uploads(self.env, &self.stored, upload).await;
        let carried = upload.carried();
        let (chunks, bytes) = (
            carried.chunks.len(),
            carried
                .chunks
                .values()
                .map(|chunk| chunk.entry.stream_bytes),
        );
        tracing::info!(id = %self.id, chunks, stream_bytes = bytes.sum::<u64>(), "resumes an interrupted upload");
        Ok(Course {
            journal,
            log,
            carried,
            // The descendants from the time when the attempt began are not known any more.
            descendants: None,
            private: upload.private.clone(),
            keyring: self.keyring_of(upload).await?,
            started: upload.started_bytes.clone(),
            next_progress: upload.next_progress,
            begun: BTreeSet::new(),
            is_untidy: true,
        })
    }

    async fn open_new(&self) -> Result<Course, RunError> {
        let prefix = backup_prefix(&self.stored, &self.id);
        if !self.env.store.list(&prefix).await?.is_empty() {
            return Err(RunError::refused(
                format!(
                    "the store already has objects under {prefix}, a name that this run has just made up"
                ),
                "run it again",
            ));
        }
        let keyring = self
            .env
            .keys
            .keyring
            .as_ref()
            .map(|keyring| keyring.bytes.clone());
        let started = to_json(&self.started()?)?;
        let (journal, log) =
            self.begin(&started, keyring.as_ref().map(|bytes| Digest::of(bytes)))?;
        let (carried, private, next_progress) = (Carried::default(), None, 0);
        let (descendants, begun, is_untidy) = (self.descendants(), BTreeSet::new(), false);
        Ok(Course {
            journal,
            log,
            carried,
            descendants,
            private,
            keyring,
            started,
            next_progress,
            begun,
            is_untidy,
        })
    }

    fn begin(
        &self,
        started: &[u8],
        keyring: Option<Digest>,
    ) -> Result<(AttemptJournal, AttemptLog), RunError> {
        let plan = self.plan_record(started, keyring)?;
        let state_dir = &self.env.settings.state_dir;
        let begun = AttemptJournal::begin_logged(
            state_dir,
            &self.env.store.known(),
            &self.stored,
            &self.id,
            &plan,
        )?;
        Ok(begun)
    }

    fn plan_record(
        &self,
        started: &[u8],
        keyring: Option<Digest>,
    ) -> Result<JournalRecord, RunError> {
        let zfs_version = self.env.zfs.module_version()?;
        Ok(JournalRecord::Plan {
            started: started.to_vec(),
            keyring,
            zfs_version,
        })
    }

    /// Returns the keyring that the attempt began with. A keyring cached since may have another
    /// passphrase.
    async fn keyring_of(&self, upload: &Unfinished) -> Result<Option<Bytes>, RunError> {
        let Some(blake3) = upload.keyring else {
            return Ok(None);
        };
        let own = self
            .env
            .keys
            .keyring
            .as_ref()
            .map(|keyring| keyring.bytes.clone());
        if own
            .as_ref()
            .is_some_and(|bytes| Digest::of(bytes) == blake3)
        {
            return Ok(own);
        }
        let there = get_pinned(
            &*self.env.store,
            &self.target().key(&BackupObject::Keyring),
            blake3,
            KEYRING_BYTES_MAX,
        )
        .await;
        match there {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.is_damage() => {
                let what = format!(
                    "the keyring has changed since {} began, and the store no longer has the earlier one",
                    self.id
                );
                Err(self.pointless(RunError::refused(what, "run it again")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Holds the snapshot, and the base if it is a snapshot. Then checks that both names still have
    /// the guids of the plan.
    fn pin(&self) -> Result<(), RunError> {
        let base = self.base.as_ref().map(|base| &base.local);
        pin(&*self.env.zfs, &self.id, &self.snapshot.name, base)?;
        match self.lost()? {
            None => Ok(()),
            Some(name) => Err(RunError::refused(
                format!("{name} was destroyed while it was needed"),
                "run it again",
            )),
        }
    }

    /// Returns the name of the snapshot or of the base if the pool no longer has it with the
    /// planned guid.
    pub(super) fn lost(&self) -> Result<Option<String>, RunError> {
        let name = &self.local.name;
        let snapshots = self.env.zfs.snapshots(name)?;
        if !snapshots
            .iter()
            .any(|other| other.name == self.snapshot.name && other.guid == self.snapshot.guid)
        {
            return Ok(Some(self.snapshot.name.to_string()));
        }
        let Some(base) = &self.base else {
            return Ok(None);
        };
        let guid = base.manifest.snapshot.guid;
        let (there, name) = match &base.local {
            SendBase::Snapshot(base) => (
                snapshots
                    .iter()
                    .any(|other| other.name == *base && other.guid == guid),
                base.to_string(),
            ),
            SendBase::Bookmark(base) => {
                let bookmarks = self.env.zfs.bookmarks(name)?;
                (
                    bookmarks
                        .iter()
                        .any(|other| other.name == *base && other.guid == guid),
                    base.to_string(),
                )
            }
        };
        Ok((!there).then_some(name))
    }

    async fn transfer(&self, course: &mut Course) -> Result<Transferred, RunError> {
        let env = self.env;
        let base = self.base.as_ref().map(|base| base.local.clone());
        let request = SendRequest {
            snapshot: self.snapshot.name.clone(),
            base,
            flags: self.flags,
            resume: None,
        };
        let source = Arc::new(SendSource {
            zfs: env.zfs.clone(),
            request,
        });
        let base_guid = self.base.as_ref().map(|base| base.manifest.snapshot.guid);
        let plan = Arc::new(TransferPlan {
            dataset: self.stored.clone(),
            id: self.id.clone(),
            snapshot: self.snapshot.name.clone(),
            expectation: StreamExpectation {
                snapshot_guid: self.snapshot.guid,
                base_guid,
            },
            split_bytes: env.settings.split_bytes,
            compression: env.settings.compression,
            recipients: env.keys.recipients.clone(),
            pool: env.pool.clone(),
        });
        let (carried, stop) = (std::mem::take(&mut course.carried), env.stop.clone());
        let mut recorder = Recorder::new(
            env,
            self.target(),
            &mut course.log,
            &carried,
            course.next_progress,
        );
        let progress = Arc::clone(&env.progress);
        self.report_resume(&carried, &source.request)?;
        let resumed_at = carried.resumes_at();
        match transfer(
            source,
            &*env.store,
            plan,
            carried,
            &mut recorder,
            progress,
            stop,
        )
        .await
        {
            Ok(transferred) => {
                let is_untidy = recorder.is_untidy(transferred.chunks.len());
                course.begun = recorder.into_begun();
                course.is_untidy |= is_untidy;
                Ok(transferred)
            }
            Err(error @ (RunError::CannotResume { .. } | RunError::StreamChanged { .. })) => {
                Err(self.pointless(error))
            }
            Err(error) if lacks_ivset(&error) => Err(self.pointless(error)),
            Err(error @ RunError::ReadSnapshot { fault, .. }) => {
                let earlier = self.unfinished.as_ref().map(Unfinished::read_faults);
                let mut faults = earlier.unwrap_or_default();
                if shows_place(&faults, fault, resumed_at) {
                    course.log.append(&JournalRecord::ReadFault(fault))?;
                    faults.push(fault);
                }
                match unreadable_at(&faults) {
                    Some(_) => Err(self.pointless(error)),
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Reports the progress and the estimated size of a resumed upload at its start.
    ///
    /// # Errors
    /// [`RunError::Refused`] when the stream has too many chunks for a backup: without this check
    /// every night would continue an upload that cannot end.
    fn report_resume(&self, carried: &Carried, request: &SendRequest) -> Result<(), RunError> {
        if self.unfinished.is_none() {
            return Ok(());
        }
        let estimate_bytes = estimate_stream(&*self.env.zfs, request);
        if let Some(bytes) = estimate_bytes {
            check_resumed_chunk_count(bytes, self.env.settings.split_bytes).map_err(|count| {
                RunError::refused(
                    format!("resume {}: {count}", self.id),
                    format!("{}: the next run begins a new upload", count.hint()),
                )
            })?;
        }
        let chunks_confirmed = u32::try_from(carried.chunks.len()).unwrap_or(u32::MAX);
        let stream_bytes = carried
            .chunks
            .values()
            .map(|chunk| chunk.entry.stream_bytes)
            .sum();
        (self.env.progress)(Progress {
            stream_bytes,
            sent_bytes: 0,
            chunks_confirmed,
            estimate_bytes,
        });
        Ok(())
    }

    /// Checks that the store lists every confirmed chunk. Other objects, such as a chunk whose
    /// confirmation was lost, are left for `verify` to report as extra. A manifest, or a chunk that
    /// neither this run nor an earlier one put, comes from another host that resumes the same
    /// upload, as a clone of this machine does. Each of the two would remove the other's chunks.
    /// Each host puts before it lists, so the host that lists last sees the other's objects.
    async fn check_listing(
        &self,
        transferred: &Transferred,
        course: &Course,
    ) -> Result<(), CommitError> {
        let chunks = || transferred.chunks.iter().map(|chunk| &chunk.entry);
        let listed = self.target().check_listing(chunks()).await?;
        let is_known = |name: &str| {
            let earlier = self
                .unfinished
                .as_ref()
                .is_some_and(|upload| upload.knows(name));
            earlier || course.begun.contains(name) || chunks().any(|chunk| chunk.name == name)
        };
        let is_strange = |name: &&String| match parse_object_name(name) {
            Some(BackupObject::Chunk { .. }) => !is_known(name),
            Some(BackupObject::Manifest) => true,
            _ => false,
        };
        match listed.keys().find(is_strange) {
            None => Ok(()),
            Some(name) => {
                let what = format!(
                    "another host put {}{name} and continues the same upload: is that host a clone?",
                    backup_prefix(&self.stored, &self.id)
                );
                let hint = "nothing is committed, and the next run begins a new upload; give one of the two hosts another prefix";
                Err(self.pointless(RunError::refused(what, hint)).into())
            }
        }
    }

    /// Makes the bookmark from which a later incremental can start when the snapshot is gone. A
    /// missing bookmark costs a later full backup, never this backup.
    fn bookmark(&self) {
        let notes = BookmarkNotes::new(&self.env.settings.state_dir, self.local.guid);
        if let Err(error) = notes.add(&self.env.store.known(), self.snapshot.guid) {
            let error = error_chain(&error);
            tracing::warn!(
                error,
                "other configurations do not know that the bookmark is needed"
            );
        }
        let made = self
            .local
            .name
            .bookmark(&format!("{BOOKMARK_PREFIX}{}", self.snapshot.guid))
            .map(|name| {
                self.env
                    .zfs
                    .bookmark(&name, &SendBase::Snapshot(self.snapshot.name.clone()))
            });
        match made {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.errno() == Some(ZfsErrno::EXISTS) => {}
            // `pin` has already warned that the pool is read-only.
            Ok(Err(error)) if error.errno() == Some(ZfsErrno::READ_ONLY) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, snapshot = %self.snapshot.name, "no bookmark was made")
            }
            Err(error) => tracing::warn!(%error, "no bookmark was made"),
        }
    }

    /// Returns the tags under which the keyring is in the store.
    pub(super) fn keyring_tags(&self) -> Vec<String> {
        self.env
            .keys
            .keyring
            .iter()
            .map(|keyring| keyring.tag.clone())
            .collect()
    }

    /// Puts `started.json` and the keyring, and returns their entries for the receipt.
    async fn put_start(&self, course: &Course) -> Result<Vec<ReceiptEntry>, CommitError> {
        extend_keyring(&*self.env.store, &self.keyring_tags(), (self.env.now)()).await?;
        let target = self.target();
        let started = course.started.clone();
        let keyring = OptionFuture::from(
            course
                .keyring
                .clone()
                .map(|bytes| target.put(&BackupObject::Keyring, bytes)),
        );
        let (started, keyring) = join(
            target.put_signed(&BackupObject::Started, SignedType::Started, started),
            keyring,
        )
        .await;
        let mut objects = vec![started?];
        objects.extend(keyring.transpose()?);
        Ok(objects)
    }
}

/// Whether the stream is a raw incremental that ZFS would not receive.
pub(super) fn lacks_ivset(error: &RunError) -> bool {
    matches!(error, RunError::Stream { source, .. } if source.fault == StreamFault::NoIvSet)
}

/// Returns a new, random id for an attempt.
pub(super) fn new_id(snapshot: &Snapshot, kind: BackupKind) -> Result<BackupId, RunError> {
    let nonce = getrandom::u64()?;
    Ok(BackupId::new(
        snapshot.created_at,
        kind,
        snapshot.guid,
        nonce,
    ))
}
