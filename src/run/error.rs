//! [`RunError`]: why a command did not do what it was asked.

use crate::catalog::CatalogError;
use crate::keyring::KeyringError;
use crate::manifest::ManifestError;
use crate::model::{BackupId, DatasetName};
use crate::sign::SignatureError;
use crate::state::error::{StateError, full_disk_hint};
use crate::store::StoreError;
use crate::store::key::KEYRING_PREFIX;
use crate::stream::open::OpenError;
use crate::stream::record::StreamError;
use crate::stream::resuming::ResumingError;
use crate::stream::seal::SealError;
use crate::stream::splice::SpliceError;
use crate::zfs::{ALLOW_VARIABLE, MODULE_VERSION, ZfsError};

/// Why a command did not do what it was asked. The text says what was attempted on what; the source
/// says why.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// ZFS refused.
    #[error(transparent)]
    Zfs(#[from] ZfsError),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The stream that came from ZFS is not whole or not sound.
    #[error("check the stream of {snapshot}")]
    Stream {
        /// What was sent.
        snapshot: String,
        /// What is wrong with it.
        #[source]
        source: StreamError,
    },
    /// The stream could not be read from the pipe.
    #[error("read the stream of {subject}")]
    ReadStream {
        /// What was read.
        subject: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A chunk could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A stored object is not what it must be: damage or forgery.
    #[error("check {key}")]
    Manifest {
        /// The object.
        key: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A stored chunk does not open: damage or forgery.
    #[error("open {key}")]
    Chunk {
        /// The object.
        key: String,
        /// What is wrong with it.
        #[source]
        source: OpenError,
    },
    /// A stored object is missing or has another size.
    #[error("{key}: {reason}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The keyring could not be used.
    #[error("use the keyring in {store}")]
    Keyring {
        /// The store.
        store: String,
        /// Why.
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
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of this host's own state could not be used, or another run has its lock.
    #[error(transparent)]
    State(#[from] StateError),
    /// Somebody has the lockfile.
    #[error("{what}")]
    LockedBy {
        /// Who has it, and since when.
        what: String,
        /// What ends it.
        hint: String,
    },
    /// A program of the user failed.
    #[error("run the hook {key} ({program}): {reason}")]
    Hook {
        /// The key that names it.
        key: &'static str,
        /// The program.
        program: String,
        /// How it ended.
        reason: String,
    },
    /// A person or the system asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The dataset does not exist.
    #[error("there is no dataset {dataset}")]
    NoDataset {
        /// Its name.
        dataset: DatasetName,
        /// A dataset with a similar name, if there is one.
        similar: Option<String>,
    },
    /// Two configured places are one store.
    #[error("{one} and {other} are one and the same store: nothing was changed")]
    OnePlace {
        /// The name of one.
        one: String,
        /// The name of the other.
        other: String,
    },
    /// An expected "no" that a person must decide about.
    #[error("{what}")]
    Refused {
        /// What was refused and why.
        what: String,
        /// What a person can do.
        hint: Option<String>,
    },
    /// The hours of uploads are over. No failure: the next run goes on.
    #[error("{id} pauses: {why}")]
    Paused {
        /// The backup that is under way.
        id: BackupId,
        /// Why.
        why: String,
    },
    /// What ZFS sends now does not continue what an interrupted upload stored: nothing can be added
    /// to it.
    #[error("go on with {id}")]
    CannotResume {
        /// The backup.
        id: BackupId,
        /// How it differs.
        #[source]
        source: SpliceError,
    },
    /// The stored stream does not fit what an interrupted restore has received of it.
    #[error("go on with the interrupted restore of {id}")]
    CannotTakeUp {
        /// The backup.
        id: String,
        /// How it does not fit.
        #[source]
        source: ResumingError,
    },
    /// The target of a receive changed meanwhile.
    #[error("{target} was changed while it was being received into: {what}")]
    TargetChanged {
        /// The dataset.
        target: DatasetName,
        /// The difference to the list.
        what: String,
    },
    /// The stream changed between two openings, so a chunk cannot be made again.
    #[error("make chunk {index} of {id} again: the stream is not the same as before")]
    StreamChanged {
        /// The chunk.
        index: u32,
        /// The backup.
        id: BackupId,
    },
}

impl From<CatalogError> for RunError {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Store(error) => Self::Store(error),
            CatalogError::State(error) => Self::State(error),
            CatalogError::Manifest { key, source } => Self::Manifest { key, source },
            CatalogError::Damaged { key, reason } => Self::Damaged { key, reason },
            CatalogError::TooMany { what, hint } => Self::refused(what, hint),
        }
    }
}

impl RunError {
    /// A refusal with a hint.
    pub fn refused(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// Whether stored data is damaged or forged: exit status 4. What a later version made is
    /// neither.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Manifest { source, .. } => source.is_damage(),
            other => matches!(other, Self::Chunk { .. } | Self::Damaged { .. }),
        }
    }

    /// What a person can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { hint, .. } => hint.clone(),
            Self::Store(error) => error.hint.clone(),
            Self::Zfs(ZfsError::Library { hint, .. }) => Some(hint.clone()),
            Self::NoDataset { similar: Some(name), .. } => Some(format!("did you mean {name}?")),
            Self::NoDataset { similar: None, .. } => Some("check main.zfs_fs, and that the pool is imported".into()),
            Self::Keyring { source: KeyringError::WrongPassphrase, .. } => {
                Some("the passphrase must be the one that the keyring was made with; a new keyring is never made beside an existing one".into())
            }
            Self::Zfs(ZfsError::Device { source }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Some("run it as root, or let this user open /dev/zfs, whose mode is 0666 as udev makes it; ZFS itself checks what `zfs allow` gave".into())
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
            Self::Damaged { key, .. } if key.starts_with(KEYRING_PREFIX) && key.contains("/believed-") => Some(format!(
                "delete {key} in the store, with all its versions: the next backup of this host puts the right list there"
            )),
            Self::TargetChanged { .. } => Some(
                "nothing of that was destroyed; keep what you need, then the same command with --force-rollback lists what \
                 would have to go, and resumes"
                    .into(),
            ),
            Self::LockedBy { hint, .. } => Some(hint.clone()),
            _ => None,
        }
    }
}
