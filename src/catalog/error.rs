//! Why a store's backups of a dataset could not be read.

use crate::manifest::ManifestError;
use crate::state::StateError;
use crate::store::StoreError;

/// Why what a store holds could not be read, or is not what it must be. The text says what was
/// attempted on what; the source says why.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of this host's own state could not be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A stored object is not what it must be: damage or forgery.
    #[error("check {key}")]
    Manifest {
        /// The object.
        key: String,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A stored object is missing or has another size.
    #[error("{key}: {reason}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store has more objects than this program leaves there.
    #[error("{what}")]
    TooMany {
        /// How many of which objects, and where.
        what: String,
        /// What a person can do.
        hint: String,
    },
}

impl CatalogError {
    /// Says what a person can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint.clone(),
            Self::State(error) => error.hint(),
            Self::TooMany { hint, .. } => Some(hint.clone()),
            Self::Manifest { .. } | Self::Damaged { .. } => None,
        }
    }

    /// Returns whether stored data is damaged or forged. What a later version made is neither.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Manifest { source, .. } => source.is_damage(),
            other => matches!(other, Self::Damaged { .. }),
        }
    }
}
