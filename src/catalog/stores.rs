//! [`StoresView`]: the backups of one dataset in the target of a new backup, and in the remote if
//! bases may be there.

use super::StoredBackup;
use super::usable::UsableCatalog;
use crate::model::{BackupId, Digest};
use crate::plan::BackupFacts;
use crate::store::{StoreError, StoreErrorKind, StoreRead};
use std::sync::Arc;

/// The backups of one dataset in the target, and in the remote where bases may be.
pub(crate) struct StoresView {
    /// The target.
    pub(crate) target: UsableCatalog,
    /// The remote, if the target is the intermediate directory.
    pub(crate) remote: RemoteView,
    /// Why there may be backups that could not be read or verified.
    pub(crate) unseen: Option<String>,
}

/// The other store, as far as bases may be in it.
pub(crate) enum RemoteView {
    /// No base may be in another store.
    None,
    /// The remote and its backups, as just read.
    Current(Arc<dyn StoreRead>, UsableCatalog),
    /// The remote could not be reached: its backups as they were last read.
    Remembered(UsableCatalog),
}

impl RemoteView {
    pub(crate) fn usable(&self) -> Option<&UsableCatalog> {
        match self {
            Self::None => None,
            Self::Current(_, usable) | Self::Remembered(usable) => Some(usable),
        }
    }
}

impl StoresView {
    pub(crate) fn target_facts(&self) -> Vec<BackupFacts> {
        self.target.facts(self.remote.usable())
    }

    pub(crate) fn remote_facts(&self) -> Vec<BackupFacts> {
        self.remote
            .usable()
            .map(|remote| remote.facts(Some(&self.target)))
            .unwrap_or_default()
    }

    /// Returns a verified backup from either store, by id and hash of the manifest.
    pub(crate) fn stored(&self, id: &BackupId, manifest_blake3: Digest) -> Option<&StoredBackup> {
        let stores = [Some(&self.target), self.remote.usable()]
            .into_iter()
            .flatten();
        let mut backups = stores.filter_map(|usable| usable.catalog.backup(id));
        backups.find(|backup| backup.manifest_blake3 == manifest_blake3)
    }
}

/// Returns whether an error means that the store may exist and is only out of our reach.
pub(crate) fn is_out_of_reach(error: &StoreError) -> bool {
    matches!(
        error.kind,
        StoreErrorKind::Unavailable | StoreErrorKind::Throttled | StoreErrorKind::Denied
    )
}
