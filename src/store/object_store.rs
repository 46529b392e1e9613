//! The traits of a store, by what a caller may do: [`StoreInfo`], [`StoreRead`], [`StoreWrite`],
//! [`StoreDelete`], and [`ObjectStore`] for all of them.
//!
//! A function takes the weakest trait that it needs, so that its signature shows what it can change.
//! `&dyn ObjectStore` coerces to each of the others.

use super::{
    BucketFacts, Evidence, ListedObject, ObjectKey, ObjectLock, PartWriter, PutOutcome, StoreError,
    StoreErrorKind, StoreProbe, StoreTraits, UnfinishedUpload, folders::Folders, key,
};
use crate::model::KnownStore;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

/// A store of objects. All keys are below the store's configured prefix; no method changes anything
/// outside it.
pub trait ObjectStore: StoreWrite + StoreDelete {}

impl<S: StoreWrite + StoreDelete> ObjectStore for S {}

/// Describes a store: its names, its settings and its clock. No method changes anything.
#[async_trait]
pub trait StoreInfo: Send + Sync {
    /// Returns the store's name for messages: `s3:bucket/prefix`, `file:/dir`. The name never
    /// contains a secret.
    fn url(&self) -> &str;

    /// Returns the store's identity and URL; the identity names this host's state for the store. An
    /// adapter knows only the URL; [`IdentifiedStore`](super::IdentifiedStore) knows the stored identity.
    fn known(&self) -> KnownStore {
        KnownStore::of_url(self.url())
    }

    /// Returns the constant properties of this store.
    fn traits(&self) -> &StoreTraits;

    /// Returns the lock for new objects; `None` without a lock.
    fn object_lock(&self) -> Option<ObjectLock> {
        None
    }

    /// Returns the time by the store's own clock, which dates its objects. `None` if the store has
    /// no clock but this host's (a folder), or does not report it.
    async fn clock(&self) -> Result<Option<jiff::Timestamp>, StoreError> {
        Ok(None)
    }

    /// Returns the bucket's own settings; `None` if the store has no bucket. Changes nothing.
    async fn bucket_facts(&self) -> Result<Option<BucketFacts>, StoreError> {
        Ok(None)
    }
}

/// Reads and lists objects. A function with a `&dyn StoreRead` can neither write nor delete.
#[async_trait]
pub trait StoreRead: StoreInfo {
    /// Reads a whole object (`None`) or a range of it. A range must lie within the object, else
    /// [`StoreErrorKind::Corrupt`]: fewer bytes than requested are never returned. A whole read is
    /// refused above `limit_bytes` before it fills memory.
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError>;

    /// Reads a range as [`StoreRead::get`] does, into the memory of a buffer whose content is no
    /// longer needed: freeing memory and allocating it again costs the system as much as copying
    /// the bytes.
    async fn get_into(
        &self,
        key: &ObjectKey,
        range: Range<u64>,
        buffer: BytesMut,
    ) -> Result<BytesMut, StoreError> {
        drop(buffer);
        let limit_bytes = range.end.saturating_sub(range.start);
        Ok(self.get(key, Some(range), limit_bytes).await?.into())
    }

    /// Returns the store's evidence for the object, or `None` if the object does not exist. No
    /// other failure is ever `None`.
    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError>;

    /// Whether any version of this key exists, including a version behind a delete marker or a hide
    /// marker, or such a marker alone. A store without versions returns the result of `head`.
    /// Versions that the store does not let us see are [`StoreErrorKind::Denied`], never "no".
    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        Ok(self.head(key).await?.is_some())
    }

    /// Returns the result of [`StoreRead::head`] for every object under `prefix`, by key, from
    /// listings alone; `None` if each object must be requested. A listing with less evidence than
    /// `head` must not be used here.
    async fn evidence_under(
        &self,
        prefix: &str,
    ) -> Result<Option<BTreeMap<String, Evidence>>, StoreError> {
        let _ = prefix;
        Ok(None)
    }

    /// Lists all objects whose key begins with `prefix` (a string, not a folder; empty for all), in
    /// order of the key. The listing is complete, or it is an error.
    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError>;

    /// Passes all objects whose key begins with `prefix` to `take`, page by page and in no order,
    /// possibly with duplicates: for a whole bucket, which may have more objects than fit into
    /// memory. Ends early, without an error, when `take` breaks.
    async fn visit(&self, prefix: &str, take: PageVisitor<'_>) -> Result<(), StoreError> {
        let _ = take(self.list(prefix).await?);
        Ok(())
    }

    /// Lists the beginnings of all keys under `prefix` up to and with the first `delimiter` behind
    /// it, in order: with a slash, the folders directly below. Keys without the delimiter are left
    /// out. The listing is complete, or it is an error. A folder may be empty where folders exist
    /// by themselves.
    async fn list_folders(&self, prefix: &str, delimiter: char) -> Result<Vec<String>, StoreError> {
        let mut folders = Folders::new(prefix, delimiter);
        let mut counted = Ok(());
        let mut take = |page: Vec<ListedObject>| {
            counted = page
                .iter()
                .try_for_each(|object| folders.add_key(&object.key));
            match counted {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        self.visit(prefix, &mut take).await?;
        counted.map_err(|text| {
            StoreError::new(StoreErrorKind::Corrupt, "list", prefix, self.url(), text)
        })?;
        Ok(folders.into_vec())
    }

    /// Whether the store is empty except for its identity, which is stored before any other object.
    async fn is_unused(&self) -> Result<bool, StoreError> {
        let mut unused = true;
        let mut look = |page: Vec<ListedObject>| {
            let is_identity = |object: &ListedObject| object.key.starts_with(key::STORE_ID);
            unused = page.iter().all(is_identity);
            if unused {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        self.visit("", &mut look).await?;
        Ok(unused)
    }

    /// Lists the uploads under `prefix` that were begun and not ended.
    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError>;
}

/// Creates objects and locks them. A function with a `&dyn StoreWrite` can delete no object.
#[async_trait]
pub trait StoreWrite: StoreRead {
    /// Begins a large object. Create-only: an existing key fails here or in [`PartWriter::finish`].
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError>;

    /// Puts a complete small object, create-only, and confirms it. Identical bytes under the key
    /// are success; other bytes are [`StoreErrorKind::AlreadyExists`].
    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError>;

    /// Locks an object at least until that time; a longer lock stays.
    /// [`StoreErrorKind::Unsupported`] if the store cannot extend locks.
    async fn extend_lock(&self, key: &ObjectKey, until: jiff::Timestamp) -> Result<(), StoreError> {
        let _ = until;
        let text = "this store has no object lock";
        Err(StoreError::new(
            StoreErrorKind::Unsupported,
            "extend the lock of",
            key.as_str(),
            self.url(),
            text,
        ))
    }

    /// Probes what this store does, with small objects whose keys begin with `prefix`, and removes
    /// them again, also after an error. `None` if the store needs no probe.
    async fn probe(&self, prefix: &str) -> Result<Option<StoreProbe>, StoreError> {
        let _ = prefix;
        Ok(None)
    }

    /// Checks with a few small objects, which it removes again, whether the store keeps keys apart
    /// that differ in case only, and returns keys unchanged. Buckets do; a folder may not.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unsupported`] for a store that does not.
    async fn check_names(&self, prefix: &str) -> Result<(), StoreError> {
        let _ = prefix;
        Ok(())
    }
}

/// Removes objects and unfinished uploads. A function with a `&dyn StoreDelete` creates nothing.
#[async_trait]
pub trait StoreDelete: StoreRead {
    /// Deletes one object, in all its versions if the store keeps versions. A missing object is
    /// ignored.
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError>;

    /// Removes an unfinished upload. A missing upload is ignored.
    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError>;
}

/// A callback for the pages of a listing.
pub type PageVisitor<'a> = &'a mut (dyn FnMut(Vec<ListedObject>) -> ControlFlow<()> + Send);
