//! Receiving a chain: into a new dataset, onto an existing one that is rolled back to what it has in common with the
//! chain, or on from where an earlier run was interrupted.

use super::leave::{abort_cut, check_own, destroy_begun, leave_half, may_go_on, must_start_over, remove_received};
use super::plain::Entries;
use super::reader::{FailureSlot, RestoreReader, open_resumed};
use super::resume::{FoundStart, find_start};
use super::target::{Begun, RESTORING_PROPERTY, ReceivePlan, check_target};
use super::{PropertyChoice, RestoreBackup, RestoreSet, blocking, open_stream_until, take_failure};
use crate::keyring::KeyFile;
use crate::model::{BackupId, DatasetName, Digest, Guid, SnapshotName};
use crate::run::transfer::Stop;
use crate::run::{RunError, error_chain};
use crate::zfs::{PropertyValue, ReceiveRequest, ResumeToken, UNKNOWN_FEATURE, Zfs, ZfsError};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

/// How a chain is received.
#[derive(Debug, Clone, Default)]
pub struct ReceiveOptions {
    /// Which properties the dataset gets.
    pub properties: PropertyChoice,
    /// Receive onto a dataset that exists: what it has after the newest snapshot in common is lost.
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
    /// None is expected, and none is left: whatever ends the restore, nothing stays.
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
}

/// Receives a chain, unmounted, and checks that the kernel made the very snapshots.
///
/// While several backups are being received the dataset is `readonly=on`: a change between two of them, even of an
/// access time, would make the next one impossible. The last receive sets `readonly=off` and the chosen properties,
/// whichever run comes to it. Where one backup is received, only those are set.
///
/// # Errors
/// [`RunError`]. An interruption, a store that is away or a full pool leave what was received, so that the next run goes
/// on ([`ResumeChoice::GoOn`]); so does any end of a run that went on itself. Else nothing is left behind of a new
/// dataset, and one that was rolled back stays at the last snapshot that was received whole, and readonly if more were
/// to follow.
pub async fn restore_to_dataset(
    set: &RestoreSet,
    keys: &KeyFile,
    zfs: Arc<dyn Zfs>,
    target: &DatasetName,
    options: &ReceiveOptions,
    stop: Stop,
) -> Result<Received, RunError> {
    let plan = check_target(&*zfs, target, set, options)?;
    let names = snapshot_names(target, set, &plan)?;
    let receiving = Receiving { set, plan: &plan, keys, zfs: &zfs, target, options, stop: &stop };
    let mut made = Vec::new();
    let received = async {
        if plan.gives_up {
            receiving.give_up().await?;
        }
        for parent in &plan.parents {
            zfs.create_filesystem(parent, &[("canmount".to_owned(), PropertyValue::Number(0))].into())?;
            made.push(parent.clone());
        }
        receiving.receive_all(&names).await
    };
    match received.await {
        Ok(received) => {
            receiving.end();
            Ok(received)
        }
        Err(error) => {
            receiving.leave(&error, made).await?;
            Err(error)
        }
    }
}

impl Receiving<'_> {
    async fn receive_all(&self, names: &[SnapshotName]) -> Result<Received, RunError> {
        let first = self.plan.skipped;
        let mut received = Received { snapshots: names[first..].to_vec(), streams: Vec::new(), went_on: None };
        for (number, (backup, snapshot)) in self.set.backups.iter().zip(names).enumerate().skip(first) {
            let request = ReceiveRequest {
                target: snapshot.clone(),
                force: self.options.rollback && number == first,
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

    /// Goes on with a receive that was cut; where that cannot be, and it is ours, starts this backup over.
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
        check_own(self.target, self.plan.begun.as_ref(), &why)?;
        tracing::warn!(error = error_chain(&why), "{} cannot go on there, and starts over", backup.manifest.id);
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
        let mut reader = Hashing { inner: reader, hasher: blake3::Hasher::new() };
        let (receiver, asked) = (Arc::clone(self.zfs), request.clone());
        let (result, digest) = blocking(move || {
            let result = receiver.receive(&asked, &mut reader);
            (result, Digest::from(reader.hasher.finalize()))
        })
        .await?;
        match (take_failure(&failure), result) {
            (Some(error), _) => return Err(error),
            (None, Err(error)) if is_new && lacks_feature(&error) => return Err(self.without_feature(backup, &error)?),
            (None, Err(error)) => received_but_for_properties(&**self.zfs, &request.target, backup, error)?,
            (None, Ok(())) => check_received(&**self.zfs, &request.target, backup)?,
        }
        Ok(digest)
    }

    /// Says who sent what this pool or its ZFS cannot take.
    fn without_feature(&self, backup: &RestoreBackup, error: &ZfsError) -> Result<RunError, RunError> {
        let (then, now) = (&backup.manifest.send.zfs_version, self.zfs.module_version()?);
        let pool = self.target.pool();
        Ok(RunError::refused(
            format!("{}; it was sent by ZFS {then}, and this is ZFS {now}", error_chain(error)),
            format!(
                "restore it with an OpenZFS as new as the one that sent it, into a pool with its features: \
                 `zpool upgrade {pool}` enables those that the ZFS here knows"
            ),
        ))
    }

    /// What is set with the receive of one backup.
    fn properties(&self, number: usize) -> BTreeMap<String, PropertyValue> {
        let (first, last) = (self.plan.skipped, self.set.backups.len() - 1);
        let sets_readonly = first < last && !self.plan.keeps_readonly;
        let readonly = sets_readonly || self.plan.begun.as_ref().is_some_and(|begun| begun.readonly);
        let mut properties = BTreeMap::new();
        if number == first && self.options.resume != ResumeChoice::Never {
            let is_new = match &self.plan.begun {
                Some(begun) => begun.is_new,
                None => self.plan.rolled_back_to.is_none() && self.plan.unfinished.is_none(),
            };
            let begun = Begun { id: self.set.newest().manifest.id.to_string(), is_new, readonly };
            properties.insert(RESTORING_PROPERTY.to_owned(), begun.to_value());
        }
        if number == first && sets_readonly {
            properties.insert("readonly".to_owned(), PropertyValue::Number(1));
        }
        if number == last {
            if readonly {
                properties.insert("readonly".to_owned(), PropertyValue::Number(0));
            }
            properties.extend(self.options.properties.resolve(self.set.recorded_properties()));
        }
        properties
    }

    /// All was received: the marks of the restore go.
    fn end(&self) {
        if self.options.resume == ResumeChoice::Never {
            return;
        }
        let inherit = |property: &str| {
            if let Err(error) = self.zfs.inherit_property(self.target, property) {
                let target = self.target;
                tracing::warn!(
                    error = error_chain(&error),
                    "received; one thing is left: zfs inherit {property} {target}"
                );
            }
        };
        // An earlier run came to its end but for this.
        if self.plan.skipped == self.set.backups.len() && self.plan.begun.as_ref().is_some_and(|begun| begun.readonly) {
            inherit("readonly");
        }
        inherit(RESTORING_PROPERTY);
    }

    /// Destroys what an earlier run received.
    async fn give_up(&self) -> Result<(), RunError> {
        let (zfs, target, guids) = (Arc::clone(self.zfs), self.target.clone(), self.guids());
        let is_rollback = self.options.rollback && self.plan.rolled_back_to.is_some();
        tracing::warn!("{target}: what an interrupted restore received is given up");
        let gone = blocking(move || match is_rollback {
            true => abort_cut(&*zfs, &target, |_| true).map(drop),
            false => destroy_begun(&*zfs, &target, &guids),
        });
        Ok(gone.await??)
    }

    fn guids(&self) -> BTreeSet<Guid> {
        self.set.backups.iter().map(|backup| backup.manifest.snapshot.guid).collect()
    }

    /// The end of a restore that failed.
    async fn leave(&self, error: &RunError, made: Vec<DatasetName>) -> Result<(), RunError> {
        let (zfs, target, guids) = (Arc::clone(self.zfs), self.target.clone(), self.guids());
        let is_rollback = self.plan.rolled_back_to.is_some();
        let went_on = self.plan.begun.is_some() || self.plan.unfinished.is_some();
        let stays = self.options.resume != ResumeChoice::Never && (went_on || may_go_on(error));
        let more_follow = self.plan.skipped + 1 < self.set.backups.len();
        blocking(move || {
            if stays {
                return leave_half(&*zfs, &target, &made);
            }
            let removed = match is_rollback {
                true => abort_cut(&*zfs, &target, |token| guids.contains(&token.to_guid)).map(drop),
                false => remove_received(&*zfs, &target, &guids, &made),
            };
            if let Err(error) = removed {
                tracing::warn!(error = error_chain(&error), "{target} is a part of what was to be restored; destroy it");
            }
            if is_rollback && more_follow {
                tracing::warn!(
                    "{target} may have stayed readonly, as it is between two backups: a restore that ends well ends that, \
                     and so does zfs inherit readonly {target}"
                );
            }
        })
        .await
    }
}

/// Where the next receive of this plan would go on, with what it takes; `None` when nothing was interrupted. Only looks.
///
/// # Errors
/// [`RunError::CannotTakeUp`] when it would start over; the others when that cannot be found out.
pub async fn find_interrupted(
    set: &RestoreSet,
    plan: &ReceivePlan,
    keys: &KeyFile,
    stop: &Stop,
) -> Result<Option<WentOn>, RunError> {
    let (Some(token), Some(backup)) = (&plan.unfinished, set.backups.get(plan.skipped)) else { return Ok(None) };
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

fn lacks_feature(error: &ZfsError) -> bool {
    error.errno().is_some_and(|errno| [libc::ENOTSUP, UNKNOWN_FEATURE].contains(&errno.0))
}

/// A property that the kernel refused is no reason to take a received dataset away again.
fn received_but_for_properties(
    zfs: &dyn Zfs,
    snapshot: &SnapshotName,
    backup: &RestoreBackup,
    error: ZfsError,
) -> Result<(), RunError> {
    if !matches!(error, ZfsError::Several { .. }) || check_received(zfs, snapshot, backup).is_err() {
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

/// The snapshots' own names; two of one name, because one was destroyed and taken anew, are told apart by their guids.
fn snapshot_names(target: &DatasetName, set: &RestoreSet, plan: &ReceivePlan) -> Result<Vec<SnapshotName>, RunError> {
    let mut taken: BTreeSet<String> = plan.kept.iter().cloned().collect();
    let mut names = Vec::new();
    for backup in &set.backups {
        let guid = backup.manifest.snapshot.guid;
        let private_name = backup.private.as_ref().and_then(|private| private.snapshot_name.rsplit_once('@'));
        let mut short = private_name.map_or_else(|| format!("restored-{guid}"), |(_, short)| short.to_owned());
        if !taken.insert(short.clone()) {
            short = format!("{short}-{guid}");
        }
        let name = target.snapshot(&short);
        names.push(name.map_err(|error| RunError::refused(error.to_string(), "choose a shorter target"))?);
    }
    Ok(names)
}

fn check_received(zfs: &dyn Zfs, snapshot: &SnapshotName, backup: &RestoreBackup) -> Result<(), RunError> {
    let guid = backup.manifest.snapshot.guid;
    let there = zfs.snapshots(snapshot.dataset())?.iter().any(|other| other.name == *snapshot && other.guid == guid);
    if there {
        return Ok(());
    }
    let reason = format!("the received snapshot does not have the guid {guid}");
    Err(RunError::Damaged { key: snapshot.to_string(), reason })
}
