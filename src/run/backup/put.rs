//! Puts the small objects of a backup and records the store's evidence for each.

use super::attempt::Attempt;
use crate::keyring::KEYRING_BYTES_MAX;
use crate::manifest::{
    CHUNK_LIST_BYTES_MAX, LARGE_TEXT_BYTES_MAX, MANIFEST_BYTES_MAX, PRIVATE_BYTES_MAX,
    ReceiptEntry, SIGNATURE_BYTES_MAX, to_stored_bytes,
};
use crate::model::Digest;
use crate::run::RunError;
use crate::run::commit::put::put_again;
use crate::sign::SignedType;
use crate::store::key::{BackupObject, object_name};
use crate::store::{Evidence, ObjectKey, PutOutcome, StoreErrorKind};
use bytes::Bytes;
use std::collections::BTreeMap;

/// The objects put so far, for the receipt and the manifest.
#[derive(Default)]
pub(super) struct Written {
    pub(super) receipt: Vec<ReceiptEntry>,
    digests: BTreeMap<BackupObject, Digest>,
}

/// An object that was put and confirmed.
pub(super) struct Put {
    object: BackupObject,
    digest: Digest,
    evidence: Evidence,
}

impl Written {
    pub(super) fn note(&mut self, put: Put) {
        self.receipt.push(ReceiptEntry {
            name: object_name(&put.object),
            evidence: put.evidence,
        });
        self.digests.insert(put.object, put.digest);
    }

    pub(super) fn digest(&self, object: &BackupObject) -> Result<Digest, RunError> {
        let missing = || RunError::Damaged {
            key: object_name(object),
            reason: "it was not put: this is a defect".into(),
        };
        self.digests.get(object).copied().ok_or_else(missing)
    }
}

impl Attempt<'_> {
    /// Puts an object and its signature, the signature first, so that the object is never stored
    /// without one. Signatures differ each time: a stored signature from an interrupted run stays
    /// if it is ours and of exactly these bytes.
    pub(super) async fn put_signed(
        &self,
        object: BackupObject,
        signed_type: SignedType,
        bytes: Vec<u8>,
    ) -> Result<Put, RunError> {
        let key = self.key(&object);
        let signature = self
            .env
            .keys
            .signing
            .sign(signed_type, key.as_str(), &bytes)?;
        match put_again(&*self.env.store, &key.signature(), signature.into()).await {
            Err(RunError::Store(error)) if error.kind == StoreErrorKind::AlreadyExists => {
                let there = self
                    .env
                    .store
                    .get(&key.signature(), None, SIGNATURE_BYTES_MAX)
                    .await?;
                if self
                    .env
                    .keys
                    .trusted
                    .verify(signed_type, key.as_str(), &bytes, &there)
                    .is_err()
                {
                    return Err(self.pointless(error.into()));
                }
            }
            result => drop(result?),
        }
        self.put(object, bytes.into()).await
    }

    /// Does the same as [`Attempt::put_signed`], with a signature that was made and recorded
    /// before.
    pub(super) async fn put_both(
        &self,
        object: BackupObject,
        bytes: &[u8],
        signature: &[u8],
    ) -> Result<Put, RunError> {
        let signature = Bytes::copy_from_slice(signature);
        put_again(&*self.env.store, &self.key(&object).signature(), signature).await?;
        self.put(object, Bytes::copy_from_slice(bytes)).await
    }

    pub(super) async fn put(&self, object: BackupObject, bytes: Bytes) -> Result<Put, RunError> {
        let key = self.key(&object);
        if bytes.len() as u64 > limit_bytes(&object) {
            let what = format!(
                "{key} would have {} bytes, more than any reader takes",
                bytes.len()
            );
            return Err(RunError::refused(
                what,
                "make main.split_size larger, so that there are fewer chunks",
            ));
        }
        let digest = Digest::of(&bytes);
        let (outcome, evidence) = match put_again(&*self.env.store, &key, bytes).await {
            // The store has other bytes under a name of this attempt: nothing more can be added to
            // the attempt.
            Err(RunError::Store(error)) if error.kind == StoreErrorKind::AlreadyExists => {
                return Err(self.pointless(error.into()));
            }
            result => result?,
        };
        if outcome == PutOutcome::Identical {
            tracing::debug!(%key, "was there already with the same bytes");
        }
        Ok(Put {
            object,
            digest,
            evidence,
        })
    }

    pub(super) fn key(&self, object: &BackupObject) -> ObjectKey {
        ObjectKey::backup(&self.stored, &self.id, object)
    }
}

/// Returns the most bytes that a reader accepts for each kind of small object.
fn limit_bytes(object: &BackupObject) -> u64 {
    match object {
        BackupObject::Manifest | BackupObject::Started => MANIFEST_BYTES_MAX,
        BackupObject::Keyring => KEYRING_BYTES_MAX,
        BackupObject::ChunkList(_) => CHUNK_LIST_BYTES_MAX,
        BackupObject::Private => PRIVATE_BYTES_MAX,
        BackupObject::RestoreText
        | BackupObject::Receipt
        | BackupObject::Progress(_)
        | BackupObject::Chunk { .. }
        | BackupObject::Sums => LARGE_TEXT_BYTES_MAX,
    }
}

pub(super) fn json<T: serde::Serialize>(object: &T) -> Result<Vec<u8>, RunError> {
    to_stored_bytes(object).map_err(|error| RunError::File {
        operation: "write",
        path: "JSON".into(),
        source: std::io::Error::other(error),
    })
}
