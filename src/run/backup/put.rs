//! Putting the small objects of a backup, and noting what the store said of each.

use super::attempt::Attempt;
use crate::keyring::KEYRING_BYTES_MAX;
use crate::manifest::{
    CHUNK_LIST_BYTES_MAX, LARGE_TEXT_BYTES_MAX, MANIFEST_BYTES_MAX, PRIVATE_BYTES_MAX, ReceiptEntry, to_stored_bytes,
};
use crate::model::Digest;
use crate::run::RunError;
use crate::run::small::put_again;
use crate::sign::SignedType;
use crate::store::key::{BackupObject, object_name};
use crate::store::{ObjectKey, PutOutcome};
use bytes::Bytes;
use std::collections::BTreeMap;

/// What was put so far, for the receipt and the manifest.
#[derive(Default)]
pub(super) struct Written {
    pub(super) receipt: Vec<ReceiptEntry>,
    digests: BTreeMap<BackupObject, Digest>,
}

impl Written {
    pub(super) fn digest(&self, object: &BackupObject) -> Result<Digest, RunError> {
        let missing =
            || RunError::Damaged { key: object_name(object), reason: "it was not put: this is a defect".into() };
        self.digests.get(object).copied().ok_or_else(missing)
    }
}

impl Attempt<'_> {
    /// The signature goes first, so that what it signs is never there without it.
    pub(super) async fn put_signed(
        &self,
        object: BackupObject,
        signed_type: SignedType,
        bytes: Vec<u8>,
        written: &mut Written,
    ) -> Result<(), RunError> {
        let key = ObjectKey::backup(&self.stored, &self.id, &object);
        let signature = self.env.keys.signing.sign(signed_type, key.as_str(), &bytes)?;
        put_again(&*self.env.store, &key.signature(), signature.into()).await?;
        self.put(object, bytes.into(), written).await
    }

    pub(super) async fn put(&self, object: BackupObject, bytes: Bytes, written: &mut Written) -> Result<(), RunError> {
        let key = ObjectKey::backup(&self.stored, &self.id, &object);
        if bytes.len() as u64 > limit_bytes(&object) {
            let what = format!("{key} would have {} bytes, more than any reader takes", bytes.len());
            return Err(RunError::refused(what, "make main.split_size larger, so that there are fewer chunks"));
        }
        let digest = Digest::of(&bytes);
        let (outcome, evidence) = put_again(&*self.env.store, &key, bytes).await?;
        if outcome == PutOutcome::Identical {
            tracing::debug!(%key, "was there already with the same bytes");
        }
        written.receipt.push(ReceiptEntry { name: object_name(&object), evidence });
        written.digests.insert(object, digest);
        Ok(())
    }
}

/// The longest that a reader takes of each kind of small object.
fn limit_bytes(object: &BackupObject) -> u64 {
    match object {
        BackupObject::Manifest | BackupObject::Started | BackupObject::Progress(_) => MANIFEST_BYTES_MAX,
        BackupObject::Keyring => KEYRING_BYTES_MAX,
        BackupObject::ChunkList(_) => CHUNK_LIST_BYTES_MAX,
        BackupObject::Private => PRIVATE_BYTES_MAX,
        BackupObject::RestoreText | BackupObject::Receipt | BackupObject::Chunk { .. } | BackupObject::Sums => {
            LARGE_TEXT_BYTES_MAX
        }
    }
}

pub(super) fn json<T: serde::Serialize>(object: &T) -> Result<Vec<u8>, RunError> {
    to_stored_bytes(object).map_err(|error| RunError::File {
        operation: "write",
        path: "JSON".into(),
        source: std::io::Error::other(error),
    })
}
