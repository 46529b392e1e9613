//! [`CrashStore`]: a store whose n-th call never comes back, so that a test can drop the run there
//! as a crash would: nothing that a failing run does in its last moments is done. And it looks at
//! every call before it is made.

use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::backup::{BackupEnv, BackupRun, back_up};
use zfs_backup::run::pool::select::Selected;
use zfs_backup::store::memory::MemoryStore;
use zfs_backup::store::{
    Evidence, ListedObject, ObjectKey, PartWriter, PutOutcome, StoreDelete, StoreError, StoreInfo,
    StoreRead, StoreTraits, StoreWrite, UnfinishedUpload,
};

/// Hears of every call before it is made: what is called, and on which key.
pub(crate) type Watch = Arc<dyn Fn(&str, &str) + Send + Sync>;

/// Where a run is dropped: at the n-th call of the store, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CrashAt {
    /// Before the call has an effect.
    Before(usize),
    /// After its effect, before anybody hears of it.
    After(usize),
}

#[derive(Clone)]
pub(crate) struct CrashStore {
    store: MemoryStore,
    shared: Arc<Shared>,
}

struct Shared {
    calls: AtomicUsize,
    crash: Option<CrashAt>,
    crashed: Notify,
    watch: Watch,
}

impl CrashStore {
    pub(crate) fn new(store: &MemoryStore, crash: Option<CrashAt>, watch: Watch) -> Self {
        let (calls, crashed) = (AtomicUsize::new(0), Notify::new());
        Self {
            store: store.clone(),
            shared: Arc::new(Shared {
                calls,
                crash,
                crashed,
                watch,
            }),
        }
    }

    pub(crate) fn calls(&self) -> usize {
        self.shared.calls.load(Ordering::SeqCst)
    }

    /// Runs a backup until it ends, or drops it at the crash: `None`.
    pub(crate) async fn back_up(
        &self,
        env: BackupEnv,
        selected: Selected,
        requested: RequestedKind,
    ) -> Option<Result<BackupRun, RunError>> {
        let env = BackupEnv {
            store: Arc::new(self.clone()),
            ..env
        };
        let mut run = tokio::spawn(async move { back_up(&env, &selected, requested).await });
        let ended = tokio::select! {
            ended = &mut run => Some(ended.unwrap()),
            () = self.shared.crashed.notified() => None,
        };
        run.abort();
        // The locks go with the run.
        if ended.is_none() {
            assert!(run.await.is_err(), "the run did not crash");
        }
        ended
    }
}

impl Shared {
    async fn call<T>(&self, what: &str, key: &str, work: impl Future<Output = T>) -> T {
        let number = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        (self.watch)(what, key);
        if self.crash == Some(CrashAt::Before(number)) {
            self.stop().await;
        }
        let result = work.await;
        if self.crash == Some(CrashAt::After(number)) {
            self.stop().await;
        }
        result
    }

    async fn stop(&self) {
        self.crashed.notify_one();
        std::future::pending::<()>().await;
    }
}

struct CrashWriter {
    writer: Box<dyn PartWriter>,
    key: String,
    shared: Arc<Shared>,
}

#[async_trait]
impl PartWriter for CrashWriter {
    fn upload_id(&self) -> Option<&str> {
        self.writer.upload_id()
    }

    async fn put_part(&mut self, part: Bytes) -> Result<(), StoreError> {
        self.shared
            .call("part", &self.key, self.writer.put_part(part))
            .await
    }

    async fn finish(self: Box<Self>) -> Result<Evidence, StoreError> {
        let Self {
            writer,
            key,
            shared,
        } = *self;
        shared.call("finish", &key, writer.finish()).await
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        let Self {
            writer,
            key,
            shared,
        } = *self;
        shared.call("abort", &key, writer.abort()).await
    }
}

#[async_trait]
impl StoreInfo for CrashStore {
    fn url(&self) -> &str {
        self.store.url()
    }

    fn known(&self) -> zfs_backup::model::KnownStore {
        self.store.known()
    }

    fn traits(&self) -> &StoreTraits {
        self.store.traits()
    }
}

#[async_trait]
impl StoreRead for CrashStore {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        self.shared
            .call("get", key.as_str(), self.store.get(key, range, limit_bytes))
            .await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        self.shared
            .call("head", key.as_str(), self.store.head(key))
            .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        self.shared
            .call("list", prefix, self.store.list(prefix))
            .await
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        self.shared
            .call("unfinished", prefix, self.store.unfinished(prefix))
            .await
    }
}

#[async_trait]
impl StoreWrite for CrashStore {
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        let writer = self
            .shared
            .call("create", key.as_str(), self.store.create(key))
            .await?;
        Ok(Box::new(CrashWriter {
            writer,
            key: key.to_string(),
            shared: Arc::clone(&self.shared),
        }))
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        self.shared
            .call("put", key.as_str(), self.store.put_new(key, bytes))
            .await
    }
}

#[async_trait]
impl StoreDelete for CrashStore {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        self.shared
            .call("delete", key.as_str(), self.store.delete(key))
            .await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        self.shared
            .call("abort", &upload.key, self.store.abort_unfinished(upload))
            .await
    }
}
