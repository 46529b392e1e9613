//! [`MemoryWriter`]: the writer of a large object in memory. Armed failures leave the upload
//! unfinished, as a lost connection would.

use super::{MemoryStore, Operation};
use crate::store::memory::state::CallFailure;
use crate::store::parts::PartSizes;
use crate::store::{Evidence, ObjectKey, PartWriter, StoreError, StoreErrorKind, StoreInfo};
use async_trait::async_trait;
use bytes::Bytes;

pub(super) struct MemoryWriter {
    store: MemoryStore,
    key: ObjectKey,
    upload_id: String,
    sizes: PartSizes,
}

impl MemoryWriter {
    pub(super) fn new(store: MemoryStore, key: ObjectKey, upload_id: String) -> Self {
        let sizes = PartSizes::new(store.traits().part_bytes);
        Self {
            store,
            key,
            upload_id,
            sizes,
        }
    }
}

#[async_trait]
impl PartWriter for MemoryWriter {
    fn upload_id(&self) -> Option<&str> {
        Some(&self.upload_id)
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        let Self {
            store,
            key,
            upload_id,
            sizes,
        } = self;
        store.call(Operation::PutPart, key.as_str(), |state| {
            sizes
                .accept(part.len())
                .map_err(|text| CallFailure::new(StoreErrorKind::Invalid, text))?;
            state.put_part(upload_id, part)
        })
    }

    async fn finish(self: Box<Self>) -> Result<Evidence, StoreError> {
        let Self {
            store,
            key,
            upload_id,
            ..
        } = *self;
        let part_bytes = store.traits().part_bytes as u64;
        let tier = store.shared.tier;
        store.call(Operation::Finish, key.as_str(), |state| {
            state.finish(&upload_id, part_bytes, tier)
        })
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.store
            .call(Operation::Abort, self.key.as_str(), |state| {
                state.uploads.remove(&self.upload_id);
                Ok(())
            })
    }
}
