//! [`Steps`]: carries out the steps of a backup run, each on a new view of the stores and the pool.

use super::abandon::{abandon, abandon_id, keep_resumable, settle};
use super::attempt::{Attempt, lacks_ivset};
use super::planning::{Base, View, decide, remember_remote, unreadable_snapshots};
use super::readable::read_at_faults;
use super::recommit::{end_commits, has_interrupted_commits};
use super::release::release_bookmarks;
use super::source::{SendSource, send_flags};
use super::unchanged::plan;
use super::unfinished::{ResumableUpload, judge_all};
use super::{BackupEnv, CommittedBackup, PlannedBackup, SteppedOver};
use crate::model::{BackupId, BackupKind, Guid, ReadFault};
use crate::plan::next_step::{RunFacts, Step, next_step};
use crate::plan::send::{RequestedKind, SendPlan};
use crate::run::pool::select::Selected;
use crate::run::{RunError, error_chain};
use crate::state::manifests::CacheMode;
use crate::state::stored_name::record_place;
use crate::zfs::{SendRequest, Snapshot};
use std::collections::{BTreeMap, BTreeSet};

/// How many unreadable snapshots a run finds before it ends. Each costs a read of a disk that may be
/// failing, which can take half a minute.
const CHECKED_MAX: usize = 32;

/// A backup run of one dataset.
pub(super) struct Steps<'a> {
    pub(super) env: &'a BackupEnv,
    pub(super) selected: &'a Selected,
    pub(super) requested: RequestedKind,
    /// The backups that the run has committed so far.
    pub(super) committed: Vec<CommittedBackup>,
    pub(super) has_tried_commits: bool,
    pub(super) has_restarted: bool,
    pub(super) has_overtaken: bool,
    /// Whether a snapshot or a base was destroyed since the last commit, and the run planned again.
    pub(super) has_replanned: bool,
    /// The error of a full that ZFS could not read. The run ends with it after an incremental of the
    /// newest snapshot, which reads only new blocks.
    pub(super) read_error: Option<RunError>,
    /// The snapshots that ZFS cannot read where it could not read others.
    pub(super) unreadable: BTreeMap<Guid, ReadFault>,
    /// The unreadable snapshots that this run does not back up, by transaction group.
    pub(super) stepped_over: BTreeMap<u64, SteppedOver>,
    /// The bases whose raw incrementals ZFS would not receive, as their streams showed.
    pub(super) unfit_bases: BTreeSet<Guid>,
    /// The newest snapshot, if nothing was written since the backup with which the run ends.
    pub(super) unchanged: Option<Snapshot>,
}

impl Steps<'_> {
    /// Takes steps until the newest snapshot is stored, and returns its backup.
    ///
    /// # Errors
    /// [`RunError::Paused`] when the hours of uploads are over, or another [`RunError`].
    pub(super) async fn run(&mut self) -> Result<BackupId, RunError> {
        let (env, selected) = (self.env, self.selected);
        let listed_at = (env.now)();
        let mut view = View::read(env, selected, CacheMode::ReadWrite).await?;
        remember_remote(env, &selected.stored, &view.stores, listed_at).await;
        settle(env, selected, &view.stores).await?;
        loop {
            if let Some(id) = self.step(&view).await? {
                return Ok(id);
            }
            view = View::read(env, selected, CacheMode::ReadWrite).await?;
            view.local.set_aside_bases(&self.unfit_bases);
        }
    }

    /// Takes one step. Returns the backup of the newest snapshot if the run is complete.
    async fn step(&mut self, view: &View) -> Result<Option<BackupId>, RunError> {
        let (env, selected) = (self.env, self.selected);
        let has_interrupted_commits =
            !self.has_tried_commits && has_interrupted_commits(env, selected)?;
        let mut unfinished = Vec::new();
        if !has_interrupted_commits && !self.has_restarted {
            let judged = judge_all(env, selected, view, self.requested).await?;
            unfinished = keep_resumable(env, selected, judged).await?;
        }
        let first = unfinished.first().map(|first| first.upload.id());
        let may_overtake = self.requested == RequestedKind::Lifecycle
            && first.is_some_and(|id| id.kind() == BackupKind::Full);
        let paused = first
            .zip(env.settings.pause_reason_now((env.now)()))
            .map(|(id, why)| RunError::Paused {
                id: id.clone(),
                why,
            });
        let step = next_step(&RunFacts {
            requested: self.requested,
            has_interrupted_commits,
            unfinished: first.map(BackupId::kind),
            restart: env.settings.restart,
            can_send_incremental: may_overtake && can_send_incremental(env, view)?,
            has_overtaken: self.has_overtaken,
            must_pause: paused.is_some(),
            has_committed_full: self
                .committed
                .iter()
                .any(|backup| backup.manifest.base.is_none()),
        });
        if step != Step::Overtake
            && let Some(error) = self.read_error.take()
        {
            return Err(error);
        }
        match step {
            Step::EndCommits => {
                self.has_tried_commits = true;
                end_commits(env, selected, &view.stores, &mut self.committed).await?;
            }
            Step::Abandon => {
                self.has_restarted = true;
                for ResumableUpload { upload, .. } in &unfinished {
                    abandon(env, selected, upload, "a restart was asked for").await?;
                }
            }
            Step::Overtake => {
                let sent = self.send_newest(view, RequestedKind::Incremental).await?;
                self.has_overtaken = sent.is_some();
            }
            Step::Pause => return paused.map_or(Ok(None), Err),
            Step::Resume => {
                if let Some(first) = unfinished.into_iter().next() {
                    self.resume(view, first).await?;
                }
            }
            Step::BackUpNewest(requested) => return self.send_newest(view, requested).await,
        }
        Ok(None)
    }

    /// Resumes an upload. If the stream is no longer the same, abandons the upload, so that a later
    /// step begins a new one.
    async fn resume(&mut self, view: &View, upload: ResumableUpload) -> Result<(), RunError> {
        let (env, selected) = (self.env, self.selected);
        let attempt = Attempt::resume(env, selected, view, upload)?;
        match attempt.run(&view.stores).await {
            Ok(committed) => self.add(view, committed).await,
            Err(error) if attempt.is_pointless() || has_lost(&attempt) => {
                let why = error_chain(&error);
                tracing::warn!(id = %attempt.id, "abandoning an unfinished upload and beginning a new one: {why}");
                abandon_id(env, selected, &attempt.id, &why)?;
                self.note_unfit_base(&attempt, &error);
                if let RunError::ReadSnapshot { fault, .. } = &error {
                    self.step_over(&attempt.snapshot, *fault);
                }
                if *env.stop.borrow() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Backs up the newest snapshot, if no store has it. Returns its backup, or `None` when the
    /// snapshot or the base was destroyed during the run, so that the run must plan again.
    async fn send_newest(
        &mut self,
        view: &View,
        requested: RequestedKind,
    ) -> Result<Option<BackupId>, RunError> {
        let (env, selected) = (self.env, self.selected);
        let planned = self.plan_readable(view, requested).await?;
        for SteppedOver { snapshot, fault } in &planned.stepped_over {
            self.step_over(snapshot, *fault);
        }
        let (snapshot, base, level) = match &planned.plan {
            SendPlan::UpToDate { id } => return Ok(Some(id.clone())),
            SendPlan::Unchanged { snapshot, id } => {
                self.unchanged = Some(snapshot.clone());
                return Ok(Some(id.clone()));
            }
            SendPlan::Full {
                snapshot, level, ..
            } => (snapshot, None, *level),
            SendPlan::Incremental {
                snapshot,
                base,
                backup,
                level,
            } => {
                let blake3 = backup.manifest_blake3;
                let base = Base::find(&view.stores, &backup.id, blake3, base.clone())?;
                (snapshot, Some(base), *level)
            }
        };
        let local = &view.local.dataset;
        record_place(&env.settings.state_dir, local.guid, &selected.stored)?;
        (env.planned)(&planned);
        let attempt = Attempt::new(env, selected, local, snapshot.clone(), (base, level))?;
        let error = match attempt.run(&view.stores).await {
            Ok(committed) => {
                self.add(view, committed).await;
                return Ok(Some(attempt.id));
            }
            Err(error) => error,
        };
        if matches!(error, RunError::ReadSnapshot { .. })
            && attempt.base.is_none()
            && requested == RequestedKind::Lifecycle
            && can_send_incremental(env, view)?
        {
            self.read_error = Some(error);
            return Ok(None);
        }
        let is_lost = has_lost(&attempt);
        if attempt.is_pointless() || is_lost {
            abandon_id(env, selected, &attempt.id, &error_chain(&error))?;
        }
        if self.note_unfit_base(&attempt, &error) && !*env.stop.borrow() {
            tracing::warn!(
                error = error_chain(&error),
                "ZFS would refuse an incremental from this base; planning again without the base"
            );
            return Ok(None);
        }
        if self.has_replanned || *env.stop.borrow() || !is_lost {
            return Err(error);
        }
        tracing::warn!(
            error = error_chain(&error),
            "the snapshot or the base was destroyed during the backup; planning again"
        );
        self.has_replanned = true;
        Ok(None)
    }

    /// Plans the backup of the newest snapshot that ZFS can read where it could not read others. If
    /// that were not tried, every newer snapshot with the same unreadable block would be uploaded up
    /// to that block.
    async fn plan_readable(
        &mut self,
        view: &View,
        requested: RequestedKind,
    ) -> Result<PlannedBackup, RunError> {
        let known = unreadable_snapshots(self.env, &view.stores)?;
        loop {
            let mut unreadable = known.clone();
            unreadable.extend(&self.unreadable);
            let planned = plan(self.env, view, requested, &unreadable).await?;
            let (snapshot, base) = match &planned.plan {
                SendPlan::UpToDate { .. } | SendPlan::Unchanged { .. } => return Ok(planned),
                SendPlan::Full { snapshot, .. } => (snapshot, None),
                SendPlan::Incremental { snapshot, base, .. } => (snapshot, Some(base.clone())),
            };
            let source = SendSource {
                zfs: self.env.zfs.clone(),
                request: SendRequest {
                    snapshot: snapshot.name.clone(),
                    base,
                    flags: send_flags(&view.local.dataset, &self.env.settings),
                    resume: None,
                },
            };
            let faults = known.values().copied().collect();
            let Some(fault) = read_at_faults(source, faults, self.env.stop.clone()).await? else {
                return Ok(planned);
            };
            tracing::warn!(snapshot = %snapshot.name, "is stepped over: it has a block that ZFS cannot read in another snapshot");
            self.unreadable.insert(snapshot.guid, fault);
            if self.unreadable.len() == CHECKED_MAX {
                let snapshot = snapshot.clone();
                return Err(SteppedOver { snapshot, fault }.into_error(None));
            }
        }
    }

    /// Notes the base if ZFS would not receive a raw incremental from it. Returns whether it is a
    /// new one.
    fn note_unfit_base(&mut self, attempt: &Attempt<'_>, error: &RunError) -> bool {
        let base = attempt.base.as_ref().filter(|_| lacks_ivset(error));
        base.is_some_and(|base| self.unfit_bases.insert(base.manifest.snapshot.guid))
    }

    fn step_over(&mut self, snapshot: &Snapshot, fault: ReadFault) {
        let snapshot = snapshot.clone();
        let stepped_over = SteppedOver { snapshot, fault };
        self.stepped_over
            .insert(stepped_over.snapshot.createtxg, stepped_over);
    }

    async fn add(&mut self, view: &View, committed: CommittedBackup) {
        release_bookmarks(self.env, self.selected, &view.stores, &committed.manifest).await;
        self.committed.push(committed);
        self.has_replanned = false;
    }
}

fn can_send_incremental(env: &BackupEnv, view: &View) -> Result<bool, RunError> {
    let unreadable = unreadable_snapshots(env, &view.stores)?;
    match decide(env, view, RequestedKind::Incremental, &unreadable) {
        Ok(planned) => Ok(matches!(planned.plan, SendPlan::Incremental { .. })),
        Err(RunError::Conflict { .. } | RunError::SteppedOver { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether the snapshot or the base is known to be gone. Only that is a reason to plan
/// again.
fn has_lost(attempt: &Attempt<'_>) -> bool {
    matches!(attempt.lost(), Ok(Some(_)))
}
