//! [`collect`]: lists the objects that the present keys signed in one store, before a rotation
//! retires these keys.

use crate::catalog::{get_signed, list_wanted};
use crate::manifest::{
    LARGE_TEXT_BYTES_MAX, MANIFEST_BYTES_MAX, Manifest, PRUNE_RECORD_BYTES_MAX, parse_manifest,
};
use crate::model::{BackupId, DatasetName, Digest};
use crate::run::{RunError, error_chain};
use crate::sign::{Believed, SignedType, TrustedKeys};
use crate::store::key::BackupObject;
use crate::store::{ListedObject, ObjectKey, StoreRead};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Objects fetched at once, of those that are small.
const AT_ONCE: usize = 16;
/// Larger objects are fetched one at a time.
const SMALL_BYTES_MAX: u64 = 1 << 20;

/// The signed objects of one dataset in one store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CollectedDataset {
    /// The store.
    pub store: String,
    /// The dataset.
    pub dataset: DatasetName,
    /// Backups whose manifests verify.
    pub backups: usize,
    /// The newest of them, by its snapshot.
    pub newest: Option<jiff::Timestamp>,
    /// Unfinished uploads. They cannot be resumed with other keys.
    pub unfinished: usize,
    /// Signed objects that do not verify, by key. They stay untrusted after the rotation.
    #[serde(rename = "not_believed")]
    pub untrusted: Vec<String>,
}

impl CollectedDataset {
    fn new(store: &dyn StoreRead, dataset: &DatasetName) -> Self {
        let store = store.url().to_owned();
        let dataset = dataset.clone();
        Self {
            store,
            dataset,
            backups: 0,
            newest: None,
            unfinished: 0,
            untrusted: Vec::new(),
        }
    }
}

/// A signed object as it is listed.
struct Signed {
    key: ObjectKey,
    dataset: DatasetName,
    /// `None` for a prune record.
    backup: Option<(BackupId, BackupObject)>,
    bytes: u64,
}

impl Signed {
    /// Returns the type under which the object is signed, and its most bytes.
    fn signed_as(&self) -> (SignedType, u64) {
        match &self.backup {
            Some((_, BackupObject::Manifest)) => (SignedType::Manifest, MANIFEST_BYTES_MAX),
            Some((_, BackupObject::Started)) => (SignedType::Started, MANIFEST_BYTES_MAX),
            Some(_) => (SignedType::Receipt, LARGE_TEXT_BYTES_MAX),
            None => (SignedType::PruneRecord, PRUNE_RECORD_BYTES_MAX),
        }
    }
}

/// Lists the whole store and adds to `believed` each signed object of a backup and each prune
/// record that verifies. A running upload has put no manifest yet, so no backup may run
/// during the collection.
///
/// # Errors
/// [`RunError::Store`] when anything could not be read: a list with a gap would take trust from
/// good backups.
pub(super) async fn collect(
    store: &dyn StoreRead,
    trusted: &TrustedKeys,
    believed: &mut Believed,
) -> Result<Vec<CollectedDataset>, RunError> {
    let objects = signed_objects(&list_wanted(store, |key| key.ends_with(".json")).await?);
    let mut found = BTreeMap::new();
    for (dataset, count) in count_unfinished(&objects) {
        let of_dataset = found
            .entry(dataset.clone())
            .or_insert_with(|| CollectedDataset::new(store, &dataset));
        of_dataset.unfinished = count;
    }
    let (small, large): (Vec<Signed>, Vec<Signed>) = objects
        .into_iter()
        .partition(|object| object.bytes <= SMALL_BYTES_MAX);
    for (objects, at_once) in [(small, AT_ONCE), (large, 1)] {
        let reads: Vec<_> = objects
            .into_iter()
            .map(|object| async move {
                let (signed_type, limit_bytes) = object.signed_as();
                let read = get_signed(store, &object.key, signed_type, trusted, limit_bytes).await;
                (object, read)
            })
            .collect();
        let mut reads = stream::iter(reads).buffered(at_once);
        while let Some((object, read)) = reads.next().await {
            let dataset = found
                .entry(object.dataset.clone())
                .or_insert_with(|| CollectedDataset::new(store, &object.dataset));
            let read = match read {
                Ok((bytes, signature)) => {
                    add(&object, &bytes, &signature, trusted, believed, dataset)
                }
                Err(error) if error.is_damage() => Err(error_chain(&error)),
                Err(error) => return Err(error.into()),
            };
            if let Err(reason) = read {
                tracing::warn!(store = store.url(), key = %object.key, reason, "does not verify, so it is not on the list");
                dataset.untrusted.push(object.key.to_string());
            }
        }
    }
    Ok(found.into_values().collect())
}

fn signed_objects(listed: &[ListedObject]) -> Vec<Signed> {
    let mut objects = Vec::new();
    for ListedObject { key, bytes, .. } in listed {
        let Some(object_key) = ObjectKey::listed(key) else {
            continue;
        };
        let backup = ObjectKey::parse(key).filter(|parsed| {
            // RESTORE.txt is pinned by the manifest, so it need not be fetched.
            matches!(
                parsed.object,
                BackupObject::Manifest | BackupObject::Receipt | BackupObject::Started
            )
        });
        let record = || {
            key.split_once("/@prune/")
                .filter(|(_, name)| name.ends_with(".json"))?
                .0
                .parse()
                .ok()
        };
        let (dataset, backup) = match backup {
            Some(parsed) => (parsed.dataset, Some((parsed.id, parsed.object))),
            None => match record() {
                Some(dataset) => (dataset, None),
                None => continue,
            },
        };
        objects.push(Signed {
            key: object_key,
            dataset,
            backup,
            bytes: *bytes,
        });
    }
    objects
}

fn count_unfinished(objects: &[Signed]) -> BTreeMap<DatasetName, usize> {
    let ids_with = |wanted: BackupObject| -> BTreeSet<(&DatasetName, &BackupId)> {
        objects
            .iter()
            .filter_map(|object| {
                let (id, kind) = object.backup.as_ref()?;
                (*kind == wanted).then_some((&object.dataset, id))
            })
            .collect()
    };
    let mut counts = BTreeMap::new();
    for (dataset, _) in
        ids_with(BackupObject::Started).difference(&ids_with(BackupObject::Manifest))
    {
        *counts.entry((*dataset).clone()).or_default() += 1;
    }
    counts
}

/// Adds an object that [`get_signed`] has verified.
fn add(
    object: &Signed,
    bytes: &Bytes,
    signature: &Bytes,
    trusted: &TrustedKeys,
    believed: &mut Believed,
    found: &mut CollectedDataset,
) -> Result<(), String> {
    if let Some((id, BackupObject::Manifest)) = &object.backup {
        let manifest: Manifest = parse_manifest(trusted, &object.dataset, id, bytes, signature)
            .map_err(|error| error_chain(&error))?;
        let restore_text = ObjectKey::backup(&object.dataset, id, &BackupObject::RestoreText);
        believed.insert(restore_text.as_str(), manifest.files.restore_text);
        found.backups += 1;
        found.newest = found.newest.max(Some(manifest.snapshot.created_at));
    }
    believed.insert(object.key.as_str(), Digest::of(bytes));
    Ok(())
}
