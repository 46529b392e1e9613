//! What is being attempted, for the errors that may come of it.

use super::{ZfsErrno, ZfsError};
use std::fmt::Display;

/// An operation and its subject.
pub(super) struct Attempt {
    operation: &'static str,
    subject: String,
}

impl Attempt {
    pub(super) fn new(operation: &'static str, subject: impl Display) -> Self {
        Self {
            operation,
            subject: subject.to_string(),
        }
    }

    /// On all of several subjects.
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

    /// ZFS refused, with that error number.
    pub(super) fn refused(&self, errno: i32) -> ZfsError {
        ZfsError::Call {
            operation: self.operation,
            subject: self.subject.clone(),
            source: ZfsErrno(errno),
        }
    }

    /// As [`Attempt::refused`], unless the number is 0.
    pub(super) fn verdict(&self, errno: i32) -> Result<(), ZfsError> {
        if errno == 0 {
            Ok(())
        } else {
            Err(self.refused(errno))
        }
    }

    /// Several subjects were refused, each for its reason.
    pub(super) fn refused_several(&self, failures: Vec<(String, ZfsErrno)>) -> ZfsError {
        ZfsError::Several {
            operation: self.operation,
            failures,
        }
    }

    /// The operating system refused.
    pub(super) fn failed(&self, source: std::io::Error) -> ZfsError {
        ZfsError::System {
            operation: self.operation,
            subject: self.subject.clone(),
            source,
        }
    }

    /// The answer makes no sense.
    pub(super) fn malformed(&self, reason: impl Display) -> ZfsError {
        ZfsError::Malformed {
            subject: self.subject.clone(),
            reason: reason.to_string(),
        }
    }
}
