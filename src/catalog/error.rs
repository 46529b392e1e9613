//! Errors of reading a store's backups of a dataset.

use crate::manifest::ManifestError;
use crate::state::StateError;
use crate::store::StoreError;

/// Why stored objects could not be read, or do not verify. The text names the attempted action and
/// its object; the source gives the cause.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The request to the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of this host's own state could not be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A stored object does not verify: it is damaged or forged, or a later version made it.
    #[error("check {key}")]
    Manifest {
        /// The key of the object.
        key: String,
        /// The fault.
        #[source]
        source: ManifestError,
    },
    /// A stored object is missing, too long, or has other bytes or another size than its manifest
    /// says.
    #[error("{key}: {reason}")]
    Damaged {
        /// The key of the object.
        key: String,
        /// The fault.
        reason: String,
    },
    /// The store has more objects than this program can have left there.
    #[error("{what}")]
    TooMany {
        /// The number and kind of the objects, and the store.
        what: String,
        /// The advice to the user.
        hint: String,
    },
}

impl CatalogError {
    /// Returns whether stored data is damaged or forged. An object that a later version made is
    /// neither.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Manifest { source, .. } => source.is_damage(),
            other => matches!(other, Self::Damaged { .. }),
        }
    }
}
