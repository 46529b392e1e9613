//! [`Layer`]: a store around another one.

use super::{
    BucketFacts, Evidence, ListedObject, ObjectKey, ObjectLock, ObjectStore, PageVisitor,
    PartWriter, Patience, PutOutcome, StoreDelete, StoreError, StoreInfo, StoreProbe, StoreRead,
    StoreTraits, StoreWrite, UnfinishedUpload,
};
use crate::model::KnownStore;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::LazyLock;

static NEVER: LazyLock<Patience> = LazyLock::new(Patience::never);

/// A store around another one. It may change the methods of this trait; all other methods of
/// [`ObjectStore`] are the inner store's, repeated with the layer's patience. The methods for
/// `doctor` are not repeated: they report what the store answers now.
#[async_trait]
pub(super) trait Layer: Send + Sync {
    fn inner(&self) -> &dyn ObjectStore;

    /// Returns the patience with which the methods that send requests are repeated.
    fn patience(&self) -> &Patience {
        &NEVER
    }

    fn known(&self) -> KnownStore {
        self.inner().known()
    }

    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        self.inner().create(key).await
    }
}

#[async_trait]
impl<L: Layer> StoreInfo for L {
    fn url(&self) -> &str {
        self.inner().url()
    }

    fn known(&self) -> KnownStore {
        Layer::known(self)
    }

    fn traits(&self) -> &StoreTraits {
        self.inner().traits()
    }

    async fn bucket_facts(&self) -> Result<Option<BucketFacts>, StoreError> {
        self.inner().bucket_facts().await
    }

    async fn clock(&self) -> Result<Option<jiff::Timestamp>, StoreError> {
        self.patience().repeat(|| self.inner().clock()).await
    }

    fn object_lock(&self) -> Option<ObjectLock> {
        self.inner().object_lock()
    }
}

#[async_trait]
impl<L: Layer> StoreRead for L {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        self.patience()
            .wait_out(|| self.inner().get(key, range.clone(), limit_bytes))
            .await
    }

    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        mut buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        self.patience()
            .wait_out(|| {
                let buffer = std::mem::take(&mut buffer);
                self.inner().get_into(key, range.clone(), buffer)
            })
            .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.patience().wait_out(|| self.inner().head(key)).await
    }

    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        self.patience()
            .wait_out(|| self.inner().any_version(key))
            .await
    }

    async fn evidence_under(
        &self,
        prefix: &str,
    ) -> Result<Option<BTreeMap<String, Evidence>>, StoreError> {
        self.patience()
            .wait_out(|| self.inner().evidence_under(prefix))
            .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.patience().wait_out(|| self.inner().list(prefix)).await
    }

    async fn visit(&self, prefix: &str, take: PageVisitor<'_>) -> Result<(), StoreError> {
        let mut attempts = self.patience().begin();
        let mut pages = 0;
        loop {
            let mut take = |page| {
                pages += 1;
                take(page)
            };
            match self.inner().visit(prefix, &mut take).await {
                // A second pass would show the first pages twice.
                Err(error) if pages == 0 => attempts.wait_after(error).await?,
                visited => return visited,
            }
        }
    }

    async fn list_folders(&self, prefix: &str, delimiter: char) -> Result<Vec<String>, StoreError> {
        self.patience()
            .wait_out(|| self.inner().list_folders(prefix, delimiter))
            .await
    }

    async fn is_unused(&self) -> Result<bool, StoreError> {
        self.patience().wait_out(|| self.inner().is_unused()).await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.patience()
            .wait_out(|| self.inner().unfinished(prefix))
            .await
    }
}

#[async_trait]
impl<L: Layer> StoreWrite for L {
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        Layer::create(self, key).await
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        self.patience()
            .wait_out(|| self.inner().put_new(key, bytes.clone()))
            .await
    }

    async fn probe(&self, prefix: &str) -> Result<Option<StoreProbe>, StoreError> {
        self.inner().probe(prefix).await
    }

    async fn check_names(&self, prefix: &str) -> Result<(), StoreError> {
        self.inner().check_names(prefix).await
    }

    async fn extend_lock(&self, key: &ObjectKey, until: jiff::Timestamp) -> Result<(), StoreError> {
        self.patience()
            .wait_out(|| self.inner().extend_lock(key, until))
            .await
    }
}

#[async_trait]
impl<L: Layer> StoreDelete for L {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.patience().wait_out(|| self.inner().delete(key)).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.patience()
            .wait_out(|| self.inner().abort_unfinished(upload))
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The methods in the bodies of all traits or impls whose first line begins with `begin`.
    fn methods<'a>(source: &'a str, begin: &str) -> BTreeSet<&'a str> {
        let bodies = source.split(begin).skip(1);
        let lines = bodies.flat_map(|body| body.split("\n}\n").next().unwrap().lines());
        lines
            .filter_map(|line| {
                let line = line.trim_start_matches("    ");
                let rest = line.strip_prefix("async ").unwrap_or(line);
                rest.strip_prefix("fn ")?.split('(').next()
            })
            .collect()
    }

    /// A default method that is not forwarded would silently do less than the store can.
    #[test]
    fn every_method_of_a_store_is_passed_on() {
        let wanted = methods(include_str!("object_store.rs"), "\npub trait Store");
        assert!(wanted.len() > 15 && wanted.contains("clock"), "{wanted:?}");
        let forwarded = methods(include_str!("layer.rs"), "\nimpl<L: Layer> Store");
        assert_eq!(forwarded, wanted);
    }
}
