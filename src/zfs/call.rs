//! The attempted operation, for the errors that it may cause.

use super::{ZfsErrno, ZfsError};
use std::fmt::Display;

/// An operation and its subject.
pub(super) struct ZfsCall {
    operation: &'static str,
    subject: String,
}

impl ZfsCall {
    pub(super) fn new(operation: &'static str, subject: impl Display) -> Self {
        Self {
            operation,
            subject: subject.to_string(),
        }
    }

    /// Names an operation on several subjects.
    pub(super) fn on_all<T: Display>(operation: &'static str, subjects: &[T]) -> Self {
        Self {
            operation,
            subject: subjects
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", "),
        }
    }

    /// Whether the kernel refuses the operation in a pool that was imported read-only.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn changes_a_pool(&self) -> bool {
        let changes = [
            "abandon the receive into",
            "bookmark",
            "create",
            "destroy",
            "hold",
            "inherit",
            "receive",
            "release the hold on",
            "roll back to",
            "set properties of",
            "snapshot",
        ];
        changes.contains(&self.operation)
    }

    /// Makes the error for a refusal by ZFS with this error number.
    pub(super) fn refused(&self, errno: i32) -> ZfsError {
        ZfsError::Call {
            operation: self.operation,
            subject: self.subject.clone(),
            source: ZfsErrno(errno),
        }
    }

    /// As [`ZfsCall::refused`], unless the number is 0.
    pub(super) fn verdict(&self, errno: i32) -> Result<(), ZfsError> {
        if errno == 0 {
            Ok(())
        } else {
            Err(self.refused(errno))
        }
    }

    /// Makes the error for several refused subjects, each with its error number.
    pub(super) fn refused_several(&self, failures: Vec<(String, ZfsErrno)>) -> ZfsError {
        ZfsError::Several {
            operation: self.operation,
            failures,
        }
    }

    /// Makes the error for a refusal by the operating system.
    pub(super) fn failed(&self, source: std::io::Error) -> ZfsError {
        ZfsError::System {
            operation: self.operation,
            subject: self.subject.clone(),
            source,
        }
    }

    /// Makes the error for malformed data from the kernel.
    pub(super) fn malformed(&self, reason: impl Display) -> ZfsError {
        ZfsError::Malformed {
            subject: self.subject.clone(),
            reason: reason.to_string(),
        }
    }
}
