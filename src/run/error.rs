//! [`RunError`]: why a command did not complete.

use crate::catalog::CatalogError;
use crate::keyring::KeyringError;
use crate::manifest::ManifestError;
use crate::model::{BackupId, DatasetName, ReadFault, SnapshotName};
use crate::plan::send::SendConflict;
use crate::sign::SignatureError;
use crate::state::error::{StateError, full_disk_hint};
use crate::store::{StoreError, StoreErrorKind};
use crate::stream::open::OpenError;
use crate::stream::record::StreamError;
use crate::stream::resuming::ResumingError;
use crate::stream::seal::SealError;
use crate::stream::splice::SpliceError;
use crate::zfs::{ALLOW_VARIABLE, MODULE_VERSION, ZfsErrno, ZfsError};

/// Why a command did not complete. The text names the attempted action and its object; the source
/// is the cause.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// ZFS reported an error.
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    /// The store refused or failed.
    #[error(transparent)]
    Store(StoreError),
    /// ZFS could not read a block of the snapshot while it sent it. The next run tries again.
    #[error("send {snapshot}: ZFS cannot read it {fault}")]
    ReadSnapshot {
        /// The snapshot.
        snapshot: SnapshotName,
        /// The place.
        fault: ReadFault,
        /// The error of the send.
        source: ZfsErrno,
    },
    /// A snapshot is stepped over: ZFS twice could not read it, or an older one, at the same place.
    #[error(
        "{snapshot} is unreadable and is stepped over: ZFS cannot read {}; {}",
        fault.object_text(),
        match newest {
            Some(newest) => format!("the newest readable snapshot is stored as {newest}"),
            None => "no newer snapshot is stored yet".to_owned(),
        }
    )]
    SteppedOver {
        /// The snapshot.
        snapshot: SnapshotName,
        /// The place.
        fault: ReadFault,
        /// The backup of the newest snapshot that ZFS can read, if it is stored.
        newest: Option<BackupId>,
    },
    /// The stream from ZFS is incomplete or invalid.
    #[error("check the stream of {snapshot}")]
    Stream {
        /// The snapshot that was sent.
        snapshot: String,
        /// The fault in the stream.
        #[source]
        source: StreamError,
    },
    /// The stream could not be read from the pipe.
    #[error("read the stream of {subject}")]
    ReadStream {
        /// The subject of the stream.
        subject: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A chunk could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A stored object is damaged or forged.
    #[error("check {key}")]
    Manifest {
        /// The key of the object.
        key: String,
        /// The fault in the object.
        #[source]
        source: ManifestError,
    },
    /// A stored chunk cannot be opened: it is damaged or forged.
    #[error("open {key}")]
    Chunk {
        /// The key of the chunk.
        key: String,
        /// The fault in the chunk.
        #[source]
        source: OpenError,
    },
    /// A stored object is missing or has another size.
    #[error("{key}: {reason}")]
    Damaged {
        /// The key of the object.
        key: String,
        /// The fault in the object.
        reason: String,
    },
    /// The store has other bytes in the place of a list that the keyring pins.
    #[error("{key}: {reason}")]
    WrongTrustedList {
        /// The key of the list.
        key: String,
        /// The difference.
        reason: &'static str,
    },
    /// The keyring could not be used.
    #[error("use the keyring in {store}")]
    Keyring {
        /// The URL of the store.
        store: String,
        /// The cause.
        #[source]
        source: KeyringError,
    },
    /// A key could not be used.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// A local file could not be read or written.
    #[error("{operation} {path}")]
    File {
        /// "read", "write", "lock".
        operation: &'static str,
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file of this host's own state could not be used, or another run has its lock.
    #[error(transparent)]
    State(#[from] StateError),
    /// Another process or host has the lockfile.
    #[error("{what}")]
    LockedBy {
        /// The holder of the lockfile, and since when.
        what: String,
        /// The action that ends the lock.
        hint: String,
    },
    /// A hook of the user failed.
    #[error("run the hook {key} ({program}): {reason}")]
    Hook {
        /// The configuration key of the hook.
        key: &'static str,
        /// The program.
        program: String,
        /// How the program ended, or why it could not be started.
        reason: String,
    },
    /// A person or the system requested a stop.
    #[error("interrupted")]
    Interrupted,
    /// The dataset does not exist.
    #[error("there is no dataset {dataset}")]
    NoDataset {
        /// The dataset's name.
        dataset: DatasetName,
        /// A dataset with a similar name, if there is one.
        similar: Option<String>,
    },
    /// Two configured places are the same store.
    #[error("{one} and {other} are one and the same store: nothing was changed")]
    OnePlace {
        /// The name of the first place.
        one: String,
        /// The name of the second place.
        other: String,
    },
    /// The store at a configured place has another identity than before, or an unusable one.
    #[error("{what}")]
    WrongStore {
        /// The place, and the difference.
        what: String,
        /// The action that a person can take.
        hint: String,
    },
    /// A small object was sealed to other keys, or its seal is damaged.
    #[error("open {key}: {reason}")]
    SealedToOthers {
        /// The key of the object.
        key: String,
        /// The reason of the age library.
        reason: String,
    },
    /// The program has a defect, such as a thread that panicked.
    #[error("{what}")]
    Defect {
        /// The event that cannot happen in a program without defects.
        what: String,
    },
    /// The kernel gives no random bytes.
    #[error("the system gives no random bytes")]
    NoRandomBytes,
    /// An expected "no" that a person must decide about. No caller branches on it: a refusal that
    /// decides something has a variant of its own.
    #[error("{what}")]
    Refused {
        /// The refused action and the reason.
        what: String,
        /// The action that a person can take.
        hint: Option<String>,
    },
    /// Nothing can be sent.
    #[error("{dataset}: {conflict}")]
    Conflict {
        /// The dataset.
        dataset: DatasetName,
        /// The reason why nothing can be sent.
        conflict: SendConflict,
        /// The action that a person can take.
        hint: String,
    },
    /// The hours of uploads are over. Not a failure: the next run resumes the upload.
    #[error("{id} pauses: {why}")]
    Paused {
        /// The backup that is being made.
        id: BackupId,
        /// The reason for the pause.
        why: String,
    },
    /// ZFS now sends another stream than the one that an interrupted upload stored: nothing can be
    /// added to that upload.
    #[error("resume {id}")]
    CannotResume {
        /// The backup.
        id: BackupId,
        /// The difference.
        #[source]
        source: SpliceError,
    },
    /// The stored stream does not fit the part that an interrupted restore has received.
    #[error("resume the interrupted restore of {id}")]
    CannotResumeReceive {
        /// The backup.
        id: String,
        /// The difference.
        #[source]
        source: ResumingError,
    },
    /// The target of a receive changed during the receive.
    #[error("{target} was changed while it was being received into: {what}")]
    TargetChanged {
        /// The target dataset.
        target: DatasetName,
        /// The difference from the list.
        what: String,
    },
    /// The stream changed between two sends, so a chunk cannot be made again.
    #[error(
        "make chunk {index} of {id} again: the stream differs from the one that was sent before"
    )]
    StreamChanged {
        /// The index of the chunk.
        index: u32,
        /// The backup.
        id: BackupId,
    },
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Interrupted => Self::Interrupted,
            _ => Self::Store(error),
        }
    }
}

impl From<getrandom::Error> for RunError {
    fn from(_: getrandom::Error) -> Self {
        Self::NoRandomBytes
    }
}

impl From<CatalogError> for RunError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Store(error) => error.into(),
            CatalogError::State(error) => Self::State(error),
            CatalogError::Manifest { key, source } => Self::Manifest { key, source },
            CatalogError::Damaged { key, reason } => Self::Damaged { key, reason },
            CatalogError::TooMany { what, hint } => Self::refused(what, hint),
        }
    }
}

impl RunError {
    /// Returns a refusal with a hint.
    pub fn refused(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// Returns a refusal after which a person has nothing to do.
    pub(in crate::run) fn refused_without_hint(what: String) -> Self {
        Self::Refused { what, hint: None }
    }

    /// Returns the error of a program with a defect.
    pub(in crate::run) fn defect(what: impl Into<String>) -> Self {
        Self::Defect { what: what.into() }
    }

    /// Returns whether stored data is damaged or forged: exit status 4. Objects of a later version
    /// count as neither.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Manifest { source, .. } => source.is_damage(),
            other => matches!(
                other,
                Self::Chunk { .. } | Self::Damaged { .. } | Self::WrongTrustedList { .. }
            ),
        }
    }

    /// Returns the action that a person can take, if there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { hint, .. } => hint.clone(),
            Self::Defect { .. } => Some("this is a defect: please report it".into()),
            Self::NoRandomBytes => Some("check /dev/urandom".into()),
            Self::Store(error) => error.hint.clone(),
            Self::Zfs(ZfsError::Library { hint, .. }) => Some(hint.clone()),
            Self::ReadSnapshot { snapshot, .. } => Some(format!(
                "{}; the next run resumes the upload, and if it fails at the same place, that run steps over the snapshot and backs up a newer one",
                damaged_files_hint(snapshot)
            )),
            Self::SteppedOver { snapshot, .. } => Some(stepped_over_hint(snapshot)),
            Self::NoDataset { similar: Some(name), .. } => Some(format!("did you mean {name}?")),
            Self::NoDataset { similar: None, .. } => Some("check main.zfs_fs, and that the pool is imported".into()),
            Self::Keyring { source: KeyringError::WrongPassphrase, .. } => {
                Some("the passphrase must be the one that the keyring was made with; no new keyring is made while the store has one".into())
            }
            Self::Zfs(ZfsError::Device { source }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Some("run it as root, or let this user open /dev/zfs (udev gives it mode 0666); \
                      ZFS itself checks the permissions of `zfs allow`".into())
            }
            Self::Zfs(ZfsError::Device { .. }) => {
                Some("load the kernel module (`modprobe zfs`); inside a container /dev/zfs must be passed in".into())
            }
            Self::Zfs(ZfsError::Version { series, .. }) => {
                Some(format!("use a zfs-backup that knows it; to try this one all the same, run it as `env {ALLOW_VARIABLE}={} zfs-backup ...`", shell_words::quote(series)))
            }
            Self::Zfs(ZfsError::System { subject, .. }) if subject == MODULE_VERSION => {
                Some("where /sys is not mounted, as in a bare chroot: `mount -t sysfs sysfs /sys`".into())
            }
            Self::Zfs(error) => error.permissions_lacking().map(|permissions| {
                format!("as root: `zfs allow -u USER {permissions} DATASET`; on the dataset or on one above it")
            }),
            Self::File { path, source, .. } => full_disk_hint(path, source),
            Self::State(error) => error.hint(),
            Self::OnePlace { .. } => Some(
                "a link, a bind mount, a network mount or an rclone alias leads from one to the other: give remote and intermediate_basedir places of their own. If one is a copy that another program made, delete @zfs-backup/store-id in the copy, and run `zfs-backup accept-store` for it".into(),
            ),
            Self::WrongTrustedList { key, .. } => Some(format!(
                "delete {key} in the store, with all its versions: the next backup of this host puts the right list there"
            )),
            Self::TargetChanged { .. } => Some(
                "nothing of that was destroyed; save what you need, then run the same command with \
                 --force-rollback: it lists what it must destroy, and resumes"
                    .into(),
            ),
            Self::LockedBy { hint, .. }
            | Self::Conflict { hint, .. }
            | Self::WrongStore { hint, .. } => Some(hint.clone()),
            _ => None,
        }
    }
}

/// Returns the command that lists the damaged files of a snapshot's pool.
fn damaged_files_hint(snapshot: &SnapshotName) -> String {
    let quoted_pool = shell_words::quote(snapshot.dataset().pool());
    format!(
        "`zpool status -v {quoted_pool}` lists the damaged files (in a filesystem, the object is the inode number of the file)"
    )
}

fn stepped_over_hint(snapshot: &SnapshotName) -> String {
    let name = snapshot.to_string();
    let quoted = shell_words::quote(&name);
    format!(
        "{}; repair the pool, or delete or replace those files: the next snapshot without them is backed up. \
         Nothing of this program holds the unreadable snapshot any more: `zfs destroy {quoted}` removes it. \
         To leave the dataset out, add it to main.exclude",
        damaged_files_hint(snapshot)
    )
}
