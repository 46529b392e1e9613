//! Receives a chain: into a new dataset, onto an existing dataset that is rolled back to the newest
//! snapshot in common with the chain, or by resuming an interrupted restore.

use super::allowed::nearest;
use super::leave::{
    abort_cut, check_own, destroy_begun, leave_half, may_resume, must_start_over, remove_received,
};
use super::mark::{
    Begun, PARENT_PROPERTY, RESTORING_PROPERTY, RestoreMark, RestoreToken, parent_properties,
};
use super::rollback::find_stranger;
use super::target::{ReceiveOptions, ReceivePlan, ResumeChoice, check_target};
use super::{RestoreBackup, RestoreSet, open_stream_until, take_failure};
use crate::keyring::KeyFile;
use crate::model::{BackupId, DatasetName, Digest, Guid, SnapshotName};
use crate::run::blocking::blocking;
use crate::run::restore::reading::plain::Entries;
use crate::run::restore::reading::reader::{FailureSlot, RestoreReader, open_resumed};
use crate::run::restore::reading::resume::{FoundStart, find_start};
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::stream::record::feature;
use crate::zfs::{
    Dataset, PropertyValue, ReceiveRequest, ResumeToken, UNKNOWN_FEATURE, Zfs, ZfsErrno, ZfsError,
    ZfsRead,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

/// The result of a restore.
#[derive(Debug)]
pub struct Received {
    /// The received snapshots, in order; empty when an earlier run had received all of them.
    pub snapshots: Vec<SnapshotName>,
    /// The BLAKE3 of each stream, as the receiver got it.
    pub streams: Vec<Digest>,
    /// The point at which an interrupted receive was resumed.
    pub resumed: Option<ResumedReceive>,
}

/// The point at which an interrupted receive was resumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResumedReceive {
    /// The backup.
    pub id: BackupId,
    /// The stream position from which the stream was read.
    pub position: u64,
    /// The length of the whole stream in bytes.
    pub stream_bytes: u64,
    /// The sealed bytes to fetch from that point on, without those of the search for it.
    pub fetch_bytes: u64,
}

/// The context of a restore, which is the same for all backups of a chain.
struct Receiving<'a> {
    set: &'a RestoreSet,
    plan: &'a ReceivePlan,
    keys: &'a KeyFile,
    zfs: &'a Arc<dyn Zfs>,
    target: &'a DatasetName,
    options: &'a ReceiveOptions,
    stop: &'a Stop,
    /// The mark that is put on the target and proves that the target belongs to this restore.
    mark: RestoreMark,
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

/// Receives a chain by a plan that was shown. Mounts nothing, and checks that the kernel made
/// exactly the snapshots of the chain.
///
/// The dataset is `readonly=on` from a rollback on, and while several backups are received: a
/// change between two of them, even of an access time, would make the next receive impossible. The
/// run that ends the restore resets the property. If a single backup is received into a new
/// dataset, only the chosen properties are set. No receive uses force: any other change to the
/// dataset during the restore stops the restore and stays.
///
/// # Errors
/// [`RunError::Refused`] when the plan is out of date. After an interruption, an error of a store,
/// a full pool or a change of the target, the received data stays, so that the next run can resume
/// the restore ([`ResumeChoice::Resume`]). The data also stays after any error of a run that itself
/// resumed one.
/// Otherwise a new dataset is removed, and a dataset that was rolled back stays at the last
/// snapshot that was received completely, and readonly if more were to follow.
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
    if *stop.borrow() {
        return Err(RunError::Interrupted);
    }
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
) -> Result<RestoreMark, RunError> {
    if options.resume == ResumeChoice::Never {
        return RestoreMark::scratch(set);
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
    Ok(RestoreMark::Restoring(begun))
}

impl Receiving<'_> {
    /// Prepares the target for the first receive: abandons an earlier restore, makes the parents,
    /// or rolls back.
    async fn prepare(&self, made: &mut Vec<DatasetName>) -> Result<(), RunError> {
        if self.plan.gives_up {
            self.abandon().await?;
        }
        for parent in &self.plan.parents {
            self.zfs
                .create_filesystem(parent, &parent_properties(self.mark.token()))?;
            made.push(parent.clone());
        }
        if let Some(rollback) = &self.plan.rollback {
            let zfs = Arc::clone(self.zfs);
            let rollback = rollback.clone();
            let mark = self.mark.clone();
            blocking(move || rollback.carry_out(&*zfs, &mark)).await??;
        }
        Ok(())
    }

    async fn receive_all(&self, names: &[SnapshotName]) -> Result<Received, RunError> {
        let first = self.plan.skipped;
        let mut received = Received {
            snapshots: names[first..].to_vec(),
            streams: Vec::new(),
            resumed: None,
        };
        for (number, (backup, snapshot)) in
            self.set.backups.iter().zip(names).enumerate().skip(first)
        {
            let request = ReceiveRequest {
                target: snapshot.clone(),
                resumable: self.options.resume != ResumeChoice::Never,
                properties: self.properties(number),
            };
            let token = self.plan.unfinished.as_ref().filter(|_| number == first);
            let digest = match token {
                None => self.receive(backup, &request, None).await?,
                Some(token) => {
                    let (digest, resumed) = self.resume(backup, &request, token).await?;
                    received.resumed = resumed;
                    digest
                }
            };
            received.streams.push(digest);
        }
        Ok(received)
    }

    /// Resumes an interrupted receive. If that is impossible and the receive belongs to this
    /// restore, starts this backup over.
    async fn resume(
        &self,
        backup: &RestoreBackup,
        request: &ReceiveRequest,
        token: &ResumeToken,
    ) -> Result<(Digest, Option<ResumedReceive>), RunError> {
        let resumed = async {
            let found = find_in(backup, self.keys, token, self.stop).await?;
            tracing::info!(id = %backup.manifest.id, position = found.1.position, "resuming an interrupted receive");
            let reader = open_resumed(backup, &self.keys.identities, &found.0, self.stop.clone());
            Ok((self.receive(backup, request, Some(reader)).await?, found.1))
        };
        let why = match resumed.await {
            Ok((digest, resumed)) => return Ok((digest, Some(resumed))),
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
            "the receive of {} cannot be resumed; it starts over",
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
        let mut reader = HashingReader {
            inner: reader,
            hasher: blake3::Hasher::new(),
        };
        let receiver = Arc::clone(self.zfs);
        let asked = request.clone();
        let (result, digest) = blocking(move || {
            let result = receiver.receive(&asked, &mut reader);
            (result, Digest::from(reader.hasher.finalize()))
        })
        .await?;
        match (take_failure(&failure), result) {
            (Some(error), _) => return Err(error),
            (None, Err(error)) if is_new && self.refuses_embedded(backup, &error)? => {
                return Err(embedded_below_encrypted(backup, &error));
            }
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

    /// Names the change if the kernel found that the target was changed. Returns the kernel's own
    /// error if no change can be found.
    fn name_change(&self, error: ZfsError) -> RunError {
        let is_ours = |dataset: &Dataset| self.mark.is_on(dataset) || !self.mark.is_of_new();
        // If another dataset now has this name, its snapshots explain nothing.
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

    /// Whether ZFS refuses a stream because of its embedded blocks, which it never receives into an
    /// encrypted dataset. The kernel does not say so: EINVAL has other reasons, and ENOTSUP also
    /// means that the pool lacks a feature.
    fn refuses_embedded(&self, backup: &RestoreBackup, error: &ZfsError) -> Result<bool, RunError> {
        const REFUSALS: [i32; 2] = [libc::EINVAL, libc::ENOTSUP];
        let flags = backup.manifest.send.feature_flags;
        let has_embedded = flags & feature::EMBED_DATA != 0 && flags & feature::RAW == 0;
        let is_refusal = |errno: ZfsErrno| REFUSALS.contains(&errno.0);
        if !has_embedded || !error.errno().is_some_and(is_refusal) {
            return Ok(false);
        }
        let above = self.zfs.dataset(&nearest(&**self.zfs, self.target)?)?;
        Ok(above.is_some_and(|above| above.encrypted))
    }

    /// Returns an error with the ZFS versions, for a stream that this pool or its ZFS cannot
    /// receive.
    fn without_feature(
        &self,
        backup: &RestoreBackup,
        error: &ZfsError,
    ) -> Result<RunError, RunError> {
        let then = &backup.manifest.send.zfs_version;
        let now = self.zfs.module_version()?;
        let quoted_pool = shell_words::quote(self.target.pool());
        Ok(RunError::refused(
            format!(
                "{}; it was sent by ZFS {then}, and this is ZFS {now}",
                error_chain(error)
            ),
            format!(
                "restore it with an OpenZFS as new as the one that sent it, into a pool with its features: \
                 `zpool upgrade {quoted_pool}` enables those that the ZFS here knows"
            ),
        ))
    }

    /// Returns the properties to set with the receive of one backup. The kernel sets them when the
    /// receive begins.
    fn properties(&self, number: usize) -> BTreeMap<String, PropertyValue> {
        let first = self.plan.skipped;
        let last = self.set.backups.len() - 1;
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
            RestoreMark::Restoring(begun) => begun.readonly,
            RestoreMark::Scratch(_) => self.set.backups.len() > 1,
        }
    }

    /// Removes the marks of the restore after everything was received. A scratch dataset keeps its
    /// mark until it is destroyed.
    fn end(&self, made: &[DatasetName]) {
        for parent in made {
            warn_if_left(
                parent,
                PARENT_PROPERTY,
                self.zfs.inherit_property(parent, PARENT_PROPERTY),
            );
        }
        let RestoreMark::Restoring(begun) = &self.mark else {
            return;
        };
        // If all backups are skipped, an earlier run received them and ended before this step.
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

    /// Sets `readonly` to the chosen value, or back to its state before the restore.
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

    /// Destroys the data that an earlier run received.
    async fn abandon(&self) -> Result<(), RunError> {
        let zfs = Arc::clone(self.zfs);
        let target = self.target.clone();
        let guids = self.guids();
        let begun = self.plan.begun.as_ref().and_then(|begun| begun.token);
        let whole = self.plan.given_up;
        tracing::warn!("{target}: destroying what an interrupted restore received");
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

    /// Cleans up after a failed restore, or keeps the data that a later run can resume.
    async fn leave(&self, error: &RunError, made: Vec<DatasetName>) -> Result<(), RunError> {
        let zfs = Arc::clone(self.zfs);
        let target = self.target.clone();
        let guids = self.guids();
        let mark = self.mark.clone();
        let is_rollback = self.plan.rollback.is_some();
        let resumed = self.plan.begun.is_some() || self.plan.unfinished.is_some();
        let stays = self.options.resume != ResumeChoice::Never && (resumed || may_resume(error));
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
                let quoted = shell_words::quote(target.as_str());
                tracing::warn!(
                    "{target} stays readonly, and marked as half restored, as it is between two backups: the same \
                     command resumes the restore; to keep the dataset as it is: zfs inherit readonly {quoted}; zfs \
                     inherit {RESTORING_PROPERTY} {quoted}"
                );
            }
        })
        .await
    }
}

/// Returns the point at which the next receive of this plan would resume, and the bytes that it
/// would fetch; `None` when no receive was interrupted. Changes nothing.
///
/// # Errors
/// [`RunError::CannotResumeReceive`] when the receive would start over; other errors when the point cannot
/// be determined.
pub async fn find_interrupted(
    set: &RestoreSet,
    plan: &ReceivePlan,
    keys: &KeyFile,
    stop: &Stop,
) -> Result<Option<ResumedReceive>, RunError> {
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
) -> Result<(FoundStart, ResumedReceive), RunError> {
    let searched = backup.clone();
    let identities = keys.identities.clone();
    let token = token.clone();
    let stop = stop.clone();
    let found = blocking(move || find_start(&searched, &identities, &token, stop)).await??;
    let resumed = ResumedReceive {
        id: backup.manifest.id.clone(),
        position: found.start.from.position,
        stream_bytes: backup.manifest.stream_bytes,
        fetch_bytes: Entries::of(backup).sealed_bytes_from(backup, found.entry),
    };
    Ok((found, resumed))
}

fn embedded_below_encrypted(backup: &RestoreBackup, error: &ZfsError) -> RunError {
    RunError::refused(
        format!(
            "{}: the stream of {} has embedded blocks, which ZFS does not receive into an encrypted dataset",
            error_chain(error),
            backup.manifest.id
        ),
        "restore it to a place that is not below an encrypted dataset; backups that are made with send.embedded = false \
         and without send.raw = \"always\" can be restored here",
    )
}

/// Whether the kernel found the target changed: its data (ETXTBSY), or a snapshot that appeared
/// during the receive (EINVAL at the end).
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

/// Accepts a received dataset although the kernel refused a property: that is no reason to destroy
/// the dataset.
fn received_but_for_properties(
    zfs: &dyn ZfsRead,
    snapshot: &SnapshotName,
    backup: &RestoreBackup,
    error: ZfsError,
) -> Result<(), RunError> {
    if !matches!(error, ZfsError::Several { .. }) || check_received(zfs, snapshot, backup).is_err()
    {
        return Err(error.into());
    }
    tracing::warn!(%snapshot, error = error_chain(&error), "received, except for properties that could not be set");
    Ok(())
}

/// Hashes the bytes that are read through it.
struct HashingReader<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..bytes]);
        Ok(bytes)
    }
}

/// Returns the names of the snapshots to receive: their own names. If a name is already taken,
/// because a snapshot was destroyed and taken again, the guid is appended.
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
    zfs: &dyn ZfsRead,
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

/// Warns that a property of the restore is left when its removal failed.
fn warn_if_left(name: &DatasetName, property: &str, ended: Result<(), ZfsError>) {
    if let Err(error) = ended {
        let quoted = shell_words::quote(name.as_str());
        let quoted_property = shell_words::quote(property);
        tracing::warn!(
            error = error_chain(&error),
            "received; one step remains: zfs inherit {quoted_property} {quoted}"
        );
    }
}
