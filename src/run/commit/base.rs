//! [`CommitTarget::check_base`]: checks just before a commit that the base of an incremental is
//! still stored.

use super::target::{CommitError, CommitTarget};
use crate::catalog::read_back::{TRIES_MAX, TRY_PAUSE};
use crate::catalog::stores::{RemoteView, is_out_of_reach};
use crate::catalog::{CatalogError, read_manifest};
use crate::model::{BackupId, Digest};
use crate::run::error_chain;
use crate::store::{StoreError, StoreRead};

impl CommitTarget<'_> {
    /// Checks that the base's manifest is still stored unchanged, in the target or in the remote. A
    /// prune deletes descendants before ancestors, so it deletes the base before any other member
    /// of the chain: the base stands for its whole chain.
    ///
    /// # Errors
    /// [`CommitError::BaseGone`]; [`CommitError::Failed`] when a store failed.
    pub(in crate::run) async fn check_base(
        &self,
        base: &BackupId,
        manifest_blake3: Digest,
        remote: &RemoteView,
    ) -> Result<(), CommitError> {
        let in_target = self.read_base(self.store, base).await?;
        let found = match (in_target, remote) {
            (Ok(found), _) if found == manifest_blake3 => return Ok(()),
            // The remote is out of reach, and it held the base when it was last read.
            (_, RemoteView::Remembered(usable)) if usable.catalog.backup(base).is_some() => {
                return Ok(());
            }
            (found, RemoteView::None | RemoteView::Remembered(_)) => found,
            (_, RemoteView::Current(store, _)) => match self.read_base(&**store, base).await {
                Ok(found) => found,
                Err(error) if is_out_of_reach(&error) => {
                    tracing::warn!(error = error_chain(&error), %base, "the remote went out of reach; going on");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            },
        };
        let reason = match found {
            Ok(found) if found == manifest_blake3 => return Ok(()),
            Ok(_) => "its manifest is another one now".to_owned(),
            Err(reason) => reason,
        };
        Err(CommitError::BaseGone {
            base: base.clone(),
            reason,
        })
    }

    /// Returns the digest of a verified manifest, or the reason why the manifest is missing or
    /// invalid. Retries transient failures of the store, so that one of them does not lose an
    /// upload.
    async fn read_base(
        &self,
        store: &dyn StoreRead,
        id: &BackupId,
    ) -> Result<Result<Digest, String>, StoreError> {
        let mut tries = 1..=TRIES_MAX;
        loop {
            match (
                read_manifest(store, self.dataset, id, self.trusted).await,
                tries.next(),
            ) {
                (Ok((_, blake3)), _) => return Ok(Ok(blake3)),
                (Err(CatalogError::Store(error)), Some(number)) if error.is_transient() => {
                    tracing::warn!(
                        error = error_chain(&error),
                        number,
                        "read failed; trying again"
                    );
                    tokio::time::sleep(TRY_PAUSE * number).await;
                }
                (Err(CatalogError::Store(error)), _) => return Err(error),
                (Err(error), _) => return Ok(Err(error_chain(&error))),
            }
        }
    }
}
