//! [`ProduceError`]: the reason why the producer of a transfer stopped.

use super::TransferPlan;
use crate::config::Size;
use crate::manifest::CHUNKS_MAX;
use crate::model::ReadFault;
use crate::plan::chunk_count::split_size_hint;
use crate::run::RunError;
use crate::stream::record::StreamError;
use crate::stream::seal::SealError;
use crate::stream::splice::SpliceError;
use crate::zfs::{ZfsErrno, ZfsError};

/// A failure of the reader or of the threads behind it.
pub(super) enum ProduceError {
    Zfs(ZfsError),
    /// ZFS could not read a block of the snapshot.
    Unreadable(ReadFault, ZfsErrno),
    Read(std::io::Error),
    Stream(StreamError),
    Splice(SpliceError),
    Seal(SealError),
    Changed(u32),
    TooManyChunks,
    Thread(std::io::Error),
    Panicked,
}

impl ProduceError {
    pub(super) fn into_run_error(self, plan: &TransferPlan) -> RunError {
        let snapshot = plan.snapshot.to_string();
        match self {
            Self::Zfs(error) => RunError::Zfs(error),
            Self::Unreadable(fault, source) => RunError::ReadSnapshot {
                snapshot: plan.snapshot.clone(),
                fault,
                source,
            },
            Self::Read(source) => RunError::ReadStream {
                subject: snapshot,
                source,
            },
            Self::Stream(source) => RunError::Stream { snapshot, source },
            // The stream was damaged or cut on its way: another send may arrive whole.
            Self::Splice(SpliceError::Stream(source)) => RunError::Stream { snapshot, source },
            Self::Splice(source) => RunError::CannotResume {
                id: plan.id.clone(),
                source,
            },
            Self::Seal(error) => RunError::Seal(error),
            Self::Changed(index) => RunError::StreamChanged {
                index,
                id: plan.id.clone(),
            },
            Self::TooManyChunks => {
                let split = Size(plan.split_bytes);
                let stored_bytes = plan.split_bytes.saturating_mul(CHUNKS_MAX.into());
                RunError::refused(
                    format!(
                        "the stream of {snapshot} needs more than {CHUNKS_MAX} chunks of {split}, \
                         the value of main.split_size"
                    ),
                    // The length of the rest is unknown: propose room for a stream twice as long.
                    split_size_hint(stored_bytes.saturating_mul(2)),
                )
            }
            Self::Thread(error) => RunError::refused(
                format!("start the threads that seal {snapshot}: {error}"),
                "raise the limit of threads, or run it when this host is less busy",
            ),
            Self::Panicked => {
                RunError::defect(format!("the thread that reads {snapshot} panicked"))
            }
        }
    }
}
