//! [`PatientStore`]: a store whose requests wait while it does not answer.

use super::layer::Layer;
use super::{ObjectKey, ObjectStore, PartWriter, Patience, StoreError};
use async_trait::async_trait;
use std::sync::Arc;

/// A store that is used with patience. The writers of large objects wait by themselves
/// (`multipart`), because only they can repeat a part.
pub struct PatientStore {
    inner: Arc<dyn ObjectStore>,
    patience: Arc<Patience>,
}

impl PatientStore {
    /// Wraps the store with this patience.
    pub fn new(inner: Arc<dyn ObjectStore>, patience: Arc<Patience>) -> Self {
        Self { inner, patience }
    }
}

#[async_trait]
impl Layer for PatientStore {
    fn inner(&self) -> &dyn ObjectStore {
        &*self.inner
    }

    fn patience(&self) -> &Patience {
        &self.patience
    }

    /// Waits like the other methods. A store may begin an object without a request, so success does
    /// not prove that the store answers.
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        self.patience.repeat(|| self.inner.create(key)).await
    }
}
