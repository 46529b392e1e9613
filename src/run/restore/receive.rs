//! Receiving a chain: into a new dataset, onto an existing one that is rolled back to what it has
//! in common with the chain, or on from where an earlier run was interrupted.

use super::leave::{
    abort_cut, check_own, destroy_begun, leave_half, may_go_on, must_start_over, remove_received,
};
use super::mark::{
    Begun, Mark, PARENT_PROPERTY, RESTORING_PROPERTY, RestoreToken, parent_properties,
};
use super::rollback::find_stranger;
use super::target::{ReceivePlan, check_target};
use super::{PropertyChoice, RestoreBackup, RestoreSet, blocking, open_stream_until, take_failure};
use crate::keyring::KeyFile;
use crate::model::{BackupId, DatasetName, Digest, Guid, SnapshotName};
use crate::run::restore::reading::plain::Entries;
use crate::run::restore::reading::reader::{FailureSlot, RestoreReader, open_resumed};
use crate::run::restore::reading::resume::{FoundStart, find_start};
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::zfs::{
    Dataset, PropertyValue, ReceiveRequest, ResumeToken, UNKNOWN_FEATURE, Zfs, ZfsError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

/// How a chain is received.
#[derive(Debug, Clone, Default)]
pub struct ReceiveOptions {
    /// Which properties the dataset gets.
    pub properties: PropertyChoice,
    /// Receive onto a dataset that exists: what it has after the newest snapshot in common is
    /// destroyed first.
    pub rollback: bool,
    /// What becomes of a restore that was interrupted.
    pub resume: ResumeChoice,
}

/// What becomes of a restore that was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResumeChoice {
    /// It goes on; one that is interrupted now can go on later.
    #[default]
    GoOn,
    /// What it received is destroyed, and all is received anew.
    Restart,
    /// A rehearsal: the dataset gets the mark of a scratch dataset, none is expected, and whatever
    /// ends the restore with an error, nothing stays.
    Never,
}

/// What was received.
#[derive(Debug)]
pub struct Received {
    /// The snapshots, in order; none when an earlier run had received them all.
    pub snapshots: Vec<SnapshotName>,
    /// BLAKE3 of each one's stream, as the receiver got it.
    pub streams: Vec<Digest>,
    /// Where an interrupted receive went on.
    pub went_on: Option<WentOn>,
}

/// Where an interrupted receive went on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WentOn {
    /// The backup.
    pub id: BackupId,
    /// From this stream position on it was read.
    pub position: u64,
    /// Of so many bytes.
    pub stream_bytes: u64,
    /// What is fetched for it, but for the search: sealed bytes.
    pub fetch_bytes: u64,
}

/// What does not change from one backup of a chain to the next.
struct Receiving<'a> {
    set: &'a RestoreSet,
    plan: &'a ReceivePlan,
    keys: &'a KeyFile,
    zfs: &'a Arc<dyn Zfs>,
    target: &'a DatasetName,
    options: &'a ReceiveOptions,
    stop: &'a Stop,
    /// The mark that is put on the target and proves that the target is ours.
    mark: Mark,
}

/// Receives a chain as [`check_target`] plans it now; see [`restore_as_planned`].
///
/// # Errors
/// As for [`check_target`] and [`restore_as_planned`].
pub async fn restore_to_dataset(
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: Arc<dyn Zfs>,
    target: &DatasetName,
    options: &ReceiveOptions,
    stop: Stop,
) -> Result<Received, RunError> {
    let plan = check_target(&*zfs, target, set, options)?;
    carry_out(set, keys, zfs, target, &plan, options, stop).await
}

/// Receives a chain by a plan that was shown, unmounted, and checks that the kernel made exactly
/// its snapshots.
///
/// While several backups are being received, and from a rollback on, the dataset is `readonly=on`:
/// a change between two of them, even of an access time, would make the next one impossible. The
/// end of the restore ends that, whichever run comes to it. Where one backup is received into a new
/// dataset, only the chosen properties are set. Nothing is received with force: any other change to
/// the dataset meanwhile stops the restore and stays.
///
/// # Errors
/// [`RunError::Refused`] when the plan is no longer what would be done. An interruption, a store
/// that is away or a full pool leave what was received, so that the next run resumes it
/// ([`ResumeChoice::GoOn`]); so does any end of a run that resumed one itself. Else nothing is left
/// behind of a new dataset, and one that was rolled back stays at the last snapshot that was
/// received whole, and readonly if more were to follow.
pub async fn restore_as_planned(
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: Arc<dyn Zfs>,
    target: &DatasetName,
    plan: &ReceivePlan,
    options: &ReceiveOptions,
    stop: Stop,
) -> Result<Received, RunError> {
    if check_target(&*zfs, target, set, options)? != *plan {
        let what = format!("{target} changed after the plan of the restore was shown");
        return Err(RunError::refused(
            what,
            "run the command again: it shows the new plan",
        ));
    }
    carry_out(set, keys, zfs, target, plan, options, stop).await
}

async fn carry_out(
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: Arc<dyn Zfs>,
    target: &DatasetName,
    plan: &ReceivePlan,
    options: &ReceiveOptions,
    stop: Stop,
) -> Result<Received, RunError> {
    let names = snapshot_names(target, set, plan)?;
    let mark = mark_of(set, plan, options)?;
    let receiving = Receiving {
        set,
        plan,
        keys,
        zfs: &zfs,
        target,
        options,
        stop: &stop,
        mark,
    };
    let mut made = Vec::new();
    let received = async {
        receiving.prepare(&mut made).await?;
        receiving.receive_all(&names).await
    };
    match received.await {
        Ok(received) => {
            receiving.end(&made);
            Ok(received)
        }
        Err(error) => {
            receiving.leave(&error, made).await?;
            Err(error)
        }
    }
}

/// Returns the mark that proves that the target belongs to this restore. A resumed target keeps its
/// mark.
fn mark_of(
    set: &RestoreSet,
    plan: &ReceivePlan,
    options: &ReceiveOptions,
) -> Result<Mark, RunError> {
    if options.resume == ResumeChoice::Never {
        return Mark::scratch(set);
    }
    let is_chain = plan.skipped + 1 < set.backups.len();
    let sets_readonly = !plan.keeps_readonly && (plan.rollback.is_some() || is_chain);
    let id = set.newest().manifest.id.to_string();
    let begun = match &plan.begun {
        Some(begun) => Begun {
            id,
            readonly: begun.readonly || sets_readonly,
            ..begun.clone()
        },
        None => Begun {
            id,
            is_new: plan.rollback.is_none() && plan.unfinished.is_none(),
            readonly: sets_readonly,
            was_writable: plan.was_writable,
            token: Some(RestoreToken::random()?),
        },
    };
    Ok(Mark::Restoring(begun))
}

impl Receiving<'_> {
    /// Does everything that comes before the first receive: abandons an earlier restore, makes the
    /// parents, or rolls back.
    async fn prepare(&self, made: &mut Vec<DatasetName>) -> Result<(), RunError> {
        if self.plan.gives_up {
            self.give_up().await?;
        }
        for parent in &self.plan.parents {
            self.zfs
                .create_filesystem(parent, &parent_properties(self.mark.token()))?;
            made.push(parent.clone());
        }
        if let Some(rollback) = &self.plan.rollback {
            let (zfs, rollback, mark) = (Arc::clone(self.zfs), rollback.clone(), self.mark.clone());
            blocking(move || rollback.carry_out(&*zfs, &mark)).await??;
        }
        Ok(())
    }

    async fn receive_all(&self, names: &[SnapshotName]) -> Result<Received, RunError> {
        let first = self.plan.skipped;
        let mut received = Received {
            snapshots: names[first..].to_vec(),
            streams: Vec::new(),
            went_on: None,
        };
        for (number, (backup, snapshot)) in
            self.set.backups.iter().zip(names).enumerate().skip(first)
        {
            let request = ReceiveRequest {
                target: snapshot.clone(),
                force: false,
                resumable: self.options.resume != ResumeChoice::Never,
                origin: None,
                properties: self.properties(number),
            };
            let token = self.plan.unfinished.as_ref().filter(|_| number == first);
            let digest = match token {
                None => self.receive(backup, &request, None).await?,
                Some(token) => {
                    let (digest, went_on) = self.take_up(backup, &request, token).await?;
                    received.went_on = went_on;
                    digest
                }
            };
            received.streams.push(digest);
        }
        Ok(received)
    }

    /// Goes on with a receive that was cut; where that cannot be, and it is ours, starts this
    /// backup over.
    async fn take_up(
        &self,
        backup: &RestoreBackup,
        request: &ReceiveRequest,
        token: &ResumeToken,
    ) -> Result<(Digest, Option<WentOn>), RunError> {
        let went_on = async {
            let found = find_in(backup, self.keys, token, self.stop).await?;
            tracing::info!(id = %backup.manifest.id, position = found.1.position, "going on with an interrupted receive");
            let reader = open_resumed(backup, &self.keys.identities, &found.0, self.stop.clone());
            Ok((self.receive(backup, request, Some(reader)).await?, found.1))
        };
        let why = match went_on.await {
            Ok((digest, went_on)) => return Ok((digest, Some(went_on))),
            Err(error) if must_start_over(&error) => error,
            Err(error) => return Err(error),
        };
        check_own(
            &**self.zfs,
            self.target,
            self.plan.begun.as_ref().and_then(|begun| begun.token),
            &why,
        )?;
        tracing::warn!(
            error = error_chain(&why),
            "{} cannot go on there, and starts over",
            backup.manifest.id
        );
        self.zfs.abort_receive(self.target)?;
        Ok((self.receive(backup, request, None).await?, None))
    }

    async fn receive(
        &self,
        backup: &RestoreBackup,
        request: &ReceiveRequest,
        resumed: Option<(RestoreReader, FailureSlot)>,
    ) -> Result<Digest, RunError> {
        let is_new = resumed.is_none();
        let whole = || open_stream_until(backup, &self.keys.identities, self.stop.clone());
        let (reader, failure) = resumed.unwrap_or_else(whole);
        let mut reader = Hashing {
            inner: reader,
            hasher: blake3::Hasher::new(),
        };
        let (receiver, asked) = (Arc::clone(self.zfs), request.clone());
        let (result, digest) = blocking(move || {
            let result = receiver.receive(&asked, &mut reader);
            (result, Digest::from(reader.hasher.finalize()))
        })
        .await?;
        match (take_failure(&failure), result) {
            (Some(error), _) => return Err(error),
            (None, Err(error)) if is_new && lacks_feature(&error) => {
                return Err(self.without_feature(backup, &error)?);
            }
            (None, Err(error)) if was_changed(&error) => return Err(self.name_change(error)),
            (None, Err(error)) => {
                received_but_for_properties(&**self.zfs, &request.target, backup, error)?
            }
            (None, Ok(())) => check_received(&**self.zfs, &request.target, backup)?,
        }
        Ok(digest)
    }

    /// Says what came in between, where the kernel found the target changed; its own error where
    /// nothing is to be seen.
    fn name_change(&self, error: ZfsError) -> RunError {
        let is_ours = |dataset: &Dataset| self.mark.is_on(dataset) || !self.mark.is_of_new();
        // Another's dataset has come under this name: then the snapshots there say nothing.
        if !self
            .zfs
            .dataset(self.target)
            .is_ok_and(|found| found.as_ref().is_some_and(is_ours))
        {
            return error.into();
        }
        let guids = self.guids();
        let known = |guid: Guid, short: &str| {
            guids.contains(&guid) || self.plan.kept.iter().any(|kept| kept == short)
        };
        let what = match find_stranger(&**self.zfs, self.target, known) {
            Ok(Some(stranger)) => format!("{stranger} appeared"),
            _ if error.errno().is_some_and(|errno| errno.0 == libc::ETXTBSY) => {
                "its data was changed".to_owned()
            }
            _ => return error.into(),
        };
        RunError::TargetChanged {
            target: self.target.clone(),
            what,
        }
    }

    /// Says who sent what this pool or its ZFS cannot take.
    fn without_feature(
        &self,
        backup: &RestoreBackup,
        error: &ZfsError,
    ) -> Result<RunError, RunError> {
        let (then, now) = (
            &backup.manifest.send.zfs_version,
            self.zfs.module_version()?,
        );
        let pool = self.target.pool();
        Ok(RunError::refused(
            format!(
                "{}; it was sent by ZFS {then}, and this is ZFS {now}",
                error_chain(error)
            ),
            format!(
                "restore it with an OpenZFS as new as the one that sent it, into a pool with its features: \
                 `zpool upgrade {pool}` enables those that the ZFS here knows"
            ),
        ))
    }

    /// Returns the properties to set with the receive of one backup. The kernel sets them when the
    /// receive begins.
    fn properties(&self, number: usize) -> BTreeMap<String, PropertyValue> {
        let (first, last) = (self.plan.skipped, self.set.backups.len() - 1);
        let mut properties = BTreeMap::new();
        if number == last {
            // A new dataset is not mounted, so nothing writes into it. An existing dataset stays
            // readonly until the end.
            if self.sets_readonly() && self.mark.is_of_new() {
                properties.insert("readonly".to_owned(), PropertyValue::Number(0));
            }
            properties.extend(
                self.options
                    .properties
                    .resolve(self.set.recorded_properties()),
            );
            if !self.mark.is_of_new() {
                properties.remove("readonly");
            }
        } else if number == first && self.sets_readonly() {
            properties.insert("readonly".to_owned(), PropertyValue::Number(1));
        }
        if number == first {
            properties.extend([self.mark.to_property()]);
        }
        properties
    }

    /// Whether `readonly=on` is set for the restore, by this run or by an earlier one.
    fn sets_readonly(&self) -> bool {
        match &self.mark {
            Mark::Restoring(begun) => begun.readonly,
            Mark::Scratch(_) => self.set.backups.len() > 1,
        }
    }

    /// All was received: the marks of the restore go. A scratch dataset keeps its own until it is
    /// destroyed.
    fn end(&self, made: &[DatasetName]) {
        let warn_if_left = |name: &DatasetName, property: &str, ended: Result<(), ZfsError>| {
            if let Err(error) = ended {
                let name = shell_words::quote(name.as_str());
                tracing::warn!(
                    error = error_chain(&error),
                    "received; one step remains: zfs inherit {property} {name}"
                );
            }
        };
        for parent in made {
            warn_if_left(
                parent,
                PARENT_PROPERTY,
                self.zfs.inherit_property(parent, PARENT_PROPERTY),
            );
        }
        let Mark::Restoring(begun) = &self.mark else {
            return;
        };
        // An earlier run came to its end but for this.
        let is_whole = self.plan.skipped == self.set.backups.len();
        if begun.readonly && (is_whole || !begun.is_new) {
            warn_if_left(self.target, "readonly", self.end_readonly(begun));
        }
        warn_if_left(
            self.target,
            RESTORING_PROPERTY,
            self.zfs.inherit_property(self.target, RESTORING_PROPERTY),
        );
    }

    /// Gives back what `readonly` was, or what was chosen.
    fn end_readonly(&self, begun: &Begun) -> Result<(), ZfsError> {
        let chosen = self
            .options
            .properties
            .resolve(self.set.recorded_properties())
            .remove("readonly");
        match chosen.or(begun.was_writable.then_some(PropertyValue::Number(0))) {
            Some(value) => self
                .zfs
                .set_properties(self.target, &[("readonly".to_owned(), value)].into()),
            None => self.zfs.inherit_property(self.target, "readonly"),
        }
    }

    /// Destroys what an earlier run received.
    async fn give_up(&self) -> Result<(), RunError> {
        let (zfs, target, guids) = (Arc::clone(self.zfs), self.target.clone(), self.guids());
        let begun = self.plan.begun.as_ref().and_then(|begun| begun.token);
        let whole = self.plan.given_up;
        tracing::warn!("{target}: what an interrupted restore received is given up");
        let gone = blocking(move || match whole {
            Some(token) => destroy_begun(&*zfs, &target, token, &guids),
            None => Ok(abort_cut(&*zfs, &target, begun, |_| true)?),
        });
        gone.await?
    }

    fn guids(&self) -> BTreeSet<Guid> {
        self.set
            .backups
            .iter()
            .map(|backup| backup.manifest.snapshot.guid)
            .collect()
    }

    /// The end of a restore that failed.
    async fn leave(&self, error: &RunError, made: Vec<DatasetName>) -> Result<(), RunError> {
        let (zfs, target, guids, mark) = (
            Arc::clone(self.zfs),
            self.target.clone(),
            self.guids(),
            self.mark.clone(),
        );
        let is_rollback = self.plan.rollback.is_some();
        let went_on = self.plan.begun.is_some() || self.plan.unfinished.is_some();
        let stays = self.options.resume != ResumeChoice::Never && (went_on || may_go_on(error));
        blocking(move || {
            if stays {
                return leave_half(&*zfs, &target, &mark, &made);
            }
            let removed = match is_rollback {
                true => {
                    let token = mark.token();
                    let aborted = abort_cut(&*zfs, &target, token, |cut| guids.contains(&cut.to_guid));
                    aborted.map_err(RunError::from)
                }
                false => remove_received(&*zfs, &target, &mark, &guids, &made),
            };
            let hint = removed.as_ref().err().and_then(RunError::hint).unwrap_or_default();
            if let Err(error) = removed {
                tracing::warn!(error = error_chain(&error), hint, "part of the failed restore stays");
            }
            if is_rollback && zfs.dataset(&target).ok().flatten().is_some_and(|dataset| mark.is_on(&dataset)) {
                let name = shell_words::quote(target.as_str());
                tracing::warn!(
                    "{target} stays readonly, and marked as half restored, as it is between two backups: the same \
                     command resumes the restore; to keep the dataset as it is: zfs inherit readonly {name}; zfs \
                     inherit {RESTORING_PROPERTY} {name}"
                );
            }
        })
        .await
    }
}

/// Where the next receive of this plan would go on, with what it takes; `None` when nothing was
/// interrupted. Only looks.
///
/// # Errors
/// [`RunError::CannotTakeUp`] when it would start over; the others when that cannot be found out.
pub async fn find_interrupted(
    set: &RestoreSet,
    plan: &ReceivePlan,
    keys: &KeyFile,
    stop: &Stop,
) -> Result<Option<WentOn>, RunError> {
    let (Some(token), Some(backup)) = (&plan.unfinished, set.backups.get(plan.skipped)) else {
        return Ok(None);
    };
    Ok(Some(find_in(backup, keys, token, stop).await?.1))
}

async fn find_in(
    backup: &RestoreBackup,
    keys: &KeyFile,
    token: &ResumeToken,
    stop: &Stop,
) -> Result<(FoundStart, WentOn), RunError> {
    let (searched, identities) = (backup.clone(), keys.identities.clone());
    let (token, stop) = (token.clone(), stop.clone());
    let found = blocking(move || find_start(&searched, &identities, &token, stop)).await??;
    let went_on = WentOn {
        id: backup.manifest.id.clone(),
        position: found.start.from.position,
        stream_bytes: backup.manifest.stream_bytes,
        fetch_bytes: Entries::of(backup).sealed_bytes_from(backup, found.entry),
    };
    Ok((found, went_on))
}

/// Whether the kernel found the target changed: its data (ETXTBSY), or a snapshot that came in
/// between (EINVAL at the end).
fn was_changed(error: &ZfsError) -> bool {
    error
        .errno()
        .is_some_and(|errno| [libc::EINVAL, libc::ETXTBSY].contains(&errno.0))
}

fn lacks_feature(error: &ZfsError) -> bool {
    error
        .errno()
        .is_some_and(|errno| [libc::ENOTSUP, UNKNOWN_FEATURE].contains(&errno.0))
}

/// A property that the kernel refused is no reason to take a received dataset away again.
fn received_but_for_properties(
    zfs: &dyn Zfs,
    snapshot: &SnapshotName,
    backup: &RestoreBackup,
    error: ZfsError,
) -> Result<(), RunError> {
    if !matches!(error, ZfsError::Several { .. }) || check_received(zfs, snapshot, backup).is_err()
    {
        return Err(error.into());
    }
    tracing::warn!(%snapshot, error = error_chain(&error), "received, but for properties that could not be set");
    Ok(())
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..bytes]);
        Ok(bytes)
    }
}

/// The snapshots' own names; two of one name, because one was destroyed and taken anew, are told
/// apart by their guids.
fn snapshot_names(
    target: &DatasetName,
    set: &RestoreSet,
    plan: &ReceivePlan,
) -> Result<Vec<SnapshotName>, RunError> {
    let mut taken: BTreeSet<String> = plan.kept.iter().cloned().collect();
    let mut names = Vec::new();
    for backup in &set.backups {
        let guid = backup.manifest.snapshot.guid;
        let private_name = backup
            .private
            .as_ref()
            .and_then(|private| private.snapshot_name.rsplit_once('@'));
        let mut short =
            private_name.map_or_else(|| format!("restored-{guid}"), |(_, short)| short.to_owned());
        if !taken.insert(short.clone()) {
            short = format!("{short}-{guid}");
        }
        let name = target.snapshot(&short);
        names.push(
            name.map_err(|error| RunError::refused(error.to_string(), "choose a shorter target"))?,
        );
    }
    Ok(names)
}

fn check_received(
    zfs: &dyn Zfs,
    snapshot: &SnapshotName,
    backup: &RestoreBackup,
) -> Result<(), RunError> {
    let guid = backup.manifest.snapshot.guid;
    let there = zfs
        .snapshots(snapshot.dataset())?
        .iter()
        .any(|other| other.name == *snapshot && other.guid == guid);
    if there {
        return Ok(());
    }
    let reason = format!("the received snapshot does not have the guid {guid}");
    Err(RunError::Damaged {
        key: snapshot.to_string(),
        reason,
    })
}
