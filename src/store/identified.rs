//! [`IdentifiedStore`]: a store together with its stored identity.

use super::ObjectStore;
use super::layer::Layer;
use crate::model::{KnownStore, StoreId};
use std::sync::Arc;

/// A store whose identity was read. All methods except [`StoreInfo::known`](super::StoreInfo::known) are the store's own.
pub struct IdentifiedStore {
    inner: Arc<dyn ObjectStore>,
    known: KnownStore,
}

impl IdentifiedStore {
    /// Wraps the store with this identity.
    pub fn new(inner: Arc<dyn ObjectStore>, id: StoreId) -> Self {
        let known = KnownStore {
            id,
            url: inner.url().to_owned(),
        };
        Self { inner, known }
    }
}

impl Layer for IdentifiedStore {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    fn known(&self) -> KnownStore {
        self.known.clone()
    }
}
