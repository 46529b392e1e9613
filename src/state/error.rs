//! Errors of this host's own files.

use std::io::{Error, ErrorKind};
use std::path::Path;

/// A file below `state_dir`, a lock or the lockfile could not be used. The text names the operation
/// and the file; the source has the cause.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file could not be read or written.
    #[error("{operation} {path}")]
    File {
        /// "read", "write", "lock".
        operation: &'static str,
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: Error,
    },
    /// Another run has the kernel lock.
    #[error("{subject} is being worked on by another run{}", holder.map(|pid| format!(", process {pid}")).unwrap_or_default())]
    Locked {
        /// The locked object, as the message names it.
        subject: String,
        /// The process that has the lock, where the kernel or the lock file names it.
        holder: Option<u32>,
    },
    /// The file of this host's id has other content than an id.
    #[error("{path}: 16 lower-case hexadecimal digits and a newline were expected")]
    HostId {
        /// The file.
        path: String,
    },
    /// The lockfile was made and removed repeatedly while this process tried to use it.
    #[error("the lockfile {path} keeps appearing and disappearing")]
    LockfileChanges {
        /// The lockfile.
        path: String,
    },
    /// Another program holds a kernel lock on the lockfile.
    #[error(
        "lock the lockfile {path}: another process has held a kernel lock on it for {seconds} s, and zfs-backup never \
         holds one for longer than a moment"
    )]
    LockfileBusy {
        /// The lockfile.
        path: String,
        /// Seconds that this process waited.
        seconds: u64,
    },
    /// The system has no random bytes for an unpredictable name.
    #[error("the system gives no random bytes")]
    NoRandomBytes,
}

impl StateError {
    /// Returns advice for the person who reads the error, if there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File { path, source, .. } => full_disk_hint(path, source),
            Self::Locked { .. } => Some("wait until it has ended".into()),
            Self::HostId { path } => Some(format!(
                "if nothing else is wrong there: rm {}; the next backup makes a new one",
                shell_words::quote(path)
            )),
            Self::LockfileChanges { .. } => Some("find out which programs use it".into()),
            Self::LockfileBusy { path, .. } => Some(format!(
                "`fuser -v {}` names the process; end it",
                shell_words::quote(path)
            )),
            Self::NoRandomBytes => Some("check /dev/urandom".into()),
        }
    }
}

/// Returns advice when a file could not be written because its file system is full; `None` for any
/// other failure.
pub(crate) fn full_disk_hint(path: &str, source: &Error) -> Option<String> {
    matches!(
        source.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
    .then(|| {
        format!(
            "make room on the file system of {path}; confirmed chunks are kept, and the next run \
             resumes"
        )
    })
}

/// Names the operation and the file that an error of the file system belongs to.
pub(crate) fn failed(operation: &'static str, path: &Path, source: Error) -> StateError {
    StateError::File {
        operation,
        path: path.display().to_string(),
        source,
    }
}
