//! [`SealError`]: the reason why a chunk could not be sealed.

use super::age_file::AgeError;

/// The reason why a chunk could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// Encryption failed.
    #[error(transparent)]
    Age(#[from] AgeError),
    /// Compression failed.
    #[error("compress the stream")]
    Compress(#[source] std::io::Error),
    /// The parts of a chunk came in another order than they were filled.
    #[error("hash a sealed part: it is not the next one; this is a defect, please report it")]
    Misplaced,
    /// The system has no memory for another part.
    #[error("get memory for a part")]
    Memory(#[source] std::io::Error),
    /// The receiver of the parts has stopped.
    #[error("hand over a sealed part: the upload has stopped")]
    Stopped,
}
