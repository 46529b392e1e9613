//! What a store holds of one dataset: whole backups, attempts that never became one, and what nobody knows.
//!
//! A backup exists only through a manifest that verifies. Reading an error as "empty" is how others lost data: every
//! failure to list or fetch is an error here, and an object that cannot be believed is kept apart by name.

use super::{RunError, error_chain};
use crate::manifest::{
    CHUNK_LIST_BYTES_MAX, ChunkEntry, LARGE_TEXT_BYTES_MAX, MANIFEST_BYTES_MAX, Manifest, ManifestError, Receipt,
    SIGNATURE_BYTES_MAX, parse_chunk_list, parse_manifest, parse_receipt,
};
use crate::model::{BackupId, DatasetName, Digest};
use crate::sign::TrustedKeys;
use crate::store::key::{BackupObject, ParsedKey, dataset_prefix, object_name};
use crate::store::{ListedObject, ObjectKey, ObjectStore, StoreError, StoreErrorKind};
use bytes::Bytes;
use std::collections::BTreeMap;

/// One backup whose manifest verifies.
#[derive(Debug, Clone)]
pub struct StoredBackup {
    /// The verified manifest.
    pub manifest: Manifest,
    /// The hash of the manifest's bytes.
    pub manifest_blake3: Digest,
    /// All its objects as listed, by name within the backup.
    pub objects: BTreeMap<String, u64>,
}

/// Objects under an id without a believable manifest.
#[derive(Debug)]
pub struct Attempt {
    /// The id.
    pub id: BackupId,
    /// How many objects there are.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Its newest object, by the store's clock.
    pub newest: Option<jiff::Timestamp>,
    /// Why its manifest is not believed; `None` when there is none.
    pub disbelieved: Option<RunError>,
}

/// What a store holds of one dataset.
#[derive(Debug)]
pub struct Catalog {
    /// The dataset.
    pub dataset: DatasetName,
    /// Whole backups, oldest first by snapshot time.
    pub backups: Vec<StoredBackup>,
    /// Ids without a believable manifest.
    pub attempts: Vec<Attempt>,
    /// Keys under the dataset that are not of this format.
    pub unknown: Vec<ListedObject>,
}

impl Catalog {
    /// The backup with that id.
    pub fn backup(&self, id: &BackupId) -> Option<&StoredBackup> {
        self.backups.iter().find(|backup| backup.manifest.id == *id)
    }

    /// The newest backup.
    pub fn newest(&self) -> Option<&StoredBackup> {
        self.backups.last()
    }

    /// Ids whose manifest is there and not believed: damage, or somebody else's.
    pub fn disbelieved(&self) -> impl Iterator<Item = (&BackupId, &RunError)> {
        self.attempts.iter().filter_map(|attempt| Some((&attempt.id, attempt.disbelieved.as_ref()?)))
    }
}

/// Reads all that a store holds of one dataset.
///
/// # Errors
/// [`RunError::Store`] when a listing or a fetch fails.
pub async fn read_catalog(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<Catalog, RunError> {
    let listed = store.list(&dataset_prefix(dataset)).await?;
    let mut groups: BTreeMap<BackupId, Vec<(ParsedKey, ListedObject)>> = BTreeMap::new();
    let mut unknown = Vec::new();
    for object in listed {
        match ObjectKey::parse(&object.key).filter(|parsed| parsed.dataset == *dataset) {
            Some(parsed) => groups.entry(parsed.id.clone()).or_default().push((parsed, object)),
            None if object.key.starts_with(&format!("{dataset}/@prune/")) => {}
            None => unknown.push(object),
        }
    }
    let mut catalog = Catalog { dataset: dataset.clone(), backups: Vec::new(), attempts: Vec::new(), unknown };
    for (id, objects) in groups {
        let committed = objects.iter().any(|(key, _)| key.object == BackupObject::Manifest && !key.signature);
        let believed = if committed { Some(read_manifest(store, dataset, &id, trusted).await) } else { None };
        match believed {
            Some(Ok((manifest, manifest_blake3))) => {
                catalog.backups.push(StoredBackup {
                    manifest,
                    manifest_blake3,
                    objects: by_name(&id, dataset, &objects),
                });
            }
            Some(Err(error @ (RunError::Manifest { .. } | RunError::Damaged { .. }))) => {
                catalog.attempts.push(attempt(id, &objects, Some(error)));
            }
            Some(Err(other)) => return Err(other),
            None => catalog.attempts.push(attempt(id, &objects, None)),
        }
    }
    catalog.backups.sort_by(|a, b| order(&a.manifest).cmp(&order(&b.manifest)));
    Ok(catalog)
}

fn order(manifest: &Manifest) -> (jiff::Timestamp, u64, &BackupId) {
    (manifest.snapshot.created_at, manifest.snapshot.createtxg, &manifest.id)
}

fn by_name(id: &BackupId, dataset: &DatasetName, objects: &[(ParsedKey, ListedObject)]) -> BTreeMap<String, u64> {
    let prefix = crate::store::key::backup_prefix(dataset, id);
    objects.iter().map(|(_, object)| (object.key[prefix.len()..].to_owned(), object.bytes)).collect()
}

fn attempt(id: BackupId, objects: &[(ParsedKey, ListedObject)], disbelieved: Option<RunError>) -> Attempt {
    Attempt {
        id,
        objects: objects.len(),
        bytes: objects.iter().map(|(_, object)| object.bytes).sum(),
        newest: objects.iter().filter_map(|(_, object)| object.modified_at).max(),
        disbelieved,
    }
}

/// What a failure to fetch an object that must be there means: one that is gone, or longer than it may be, is damage.
pub(super) fn explain_fetch(key: &ObjectKey, error: StoreError) -> RunError {
    let reason = match error.kind {
        StoreErrorKind::NotFound => "missing".to_owned(),
        StoreErrorKind::Corrupt => error_chain(&*error.source),
        _ => return error.into(),
    };
    RunError::Damaged { key: key.to_string(), reason }
}

/// Fetches an object that must be there.
pub(super) async fn get_needed(store: &dyn ObjectStore, key: &ObjectKey, limit_bytes: u64) -> Result<Bytes, RunError> {
    store.get(key, None, limit_bytes).await.map_err(|error| explain_fetch(key, error))
}

/// Fetches a signed object and its signature.
pub(super) async fn get_signed(
    store: &dyn ObjectStore,
    key: &ObjectKey,
    limit_bytes: u64,
) -> Result<(Bytes, Bytes), RunError> {
    let bytes = get_needed(store, key, limit_bytes).await?;
    Ok((bytes, get_needed(store, &key.signature(), SIGNATURE_BYTES_MAX).await?))
}

/// Fetches one manifest and checks it.
///
/// # Errors
/// [`RunError::Manifest`] when it is not to be believed, [`RunError::Store`] when it cannot be read.
pub async fn read_manifest(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    id: &BackupId,
    trusted: &TrustedKeys,
) -> Result<(Manifest, Digest), RunError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest);
    let (bytes, signature) = get_signed(store, &key, MANIFEST_BYTES_MAX).await?;
    let manifest = parse_manifest(trusted, dataset, id, &bytes, &signature)
        .map_err(|source| RunError::Manifest { key: key.to_string(), source })?;
    Ok((manifest, Digest::of(&bytes)))
}

/// Fetches the receipt of one backup and checks it, also that it belongs to this manifest.
///
/// # Errors
/// As for [`read_manifest`].
pub async fn read_receipt(
    store: &dyn ObjectStore,
    backup: &StoredBackup,
    trusted: &TrustedKeys,
) -> Result<Receipt, RunError> {
    let Manifest { dataset, id, .. } = &backup.manifest;
    let key = ObjectKey::backup(dataset, id, &BackupObject::Receipt);
    let disbelieve = |source| RunError::Manifest { key: key.to_string(), source };
    let (bytes, signature) = get_signed(store, &key, LARGE_TEXT_BYTES_MAX).await?;
    let receipt = parse_receipt(trusted, dataset, id, &bytes, &signature).map_err(disbelieve)?;
    if receipt.manifest_blake3 != backup.manifest_blake3 {
        let (expected, actual) = (backup.manifest_blake3, receipt.manifest_blake3);
        return Err(disbelieve(ManifestError::Digest { expected, actual }));
    }
    Ok(receipt)
}

/// Fetches all chunk entries of a backup, each list checked against the hash in the manifest.
///
/// # Errors
/// [`RunError::Manifest`] naming the list; [`RunError::Store`].
pub async fn read_chunks(store: &dyn ObjectStore, manifest: &Manifest) -> Result<Vec<ChunkEntry>, RunError> {
    let mut chunks = Vec::new();
    for number in 0..manifest.chunk_lists.len() {
        let list = BackupObject::ChunkList(u16::try_from(number).unwrap_or(u16::MAX));
        let key = ObjectKey::backup(&manifest.dataset, &manifest.id, &list);
        let bytes = get_needed(store, &key, CHUNK_LIST_BYTES_MAX).await?;
        let entries = parse_chunk_list(manifest, number, &bytes)
            .map_err(|source| RunError::Manifest { key: key.to_string(), source })?;
        chunks.extend(entries);
    }
    Ok(chunks)
}

/// The key of a chunk. Its name was checked when its list was parsed.
pub fn chunk_key(manifest: &Manifest, chunk: &ChunkEntry) -> Option<ObjectKey> {
    let object = crate::store::key::parse_object_name(&chunk.name)?;
    Some(ObjectKey::backup(&manifest.dataset, &manifest.id, &object))
}

/// What a restore needs and a listing shows to be missing or to have another size than the manifest says.
pub fn find_gaps(backup: &StoredBackup, chunks: &[ChunkEntry]) -> impl Iterator<Item = RunError> {
    let prefix = crate::store::key::backup_prefix(&backup.manifest.dataset, &backup.manifest.id);
    let private = [(object_name(&BackupObject::Private), None)];
    let needed = chunks.iter().map(|chunk| (chunk.name.clone(), Some(chunk.sealed_bytes))).chain(private);
    needed.filter_map(move |(name, sealed_bytes)| {
        let reason = match (backup.objects.get(&name), sealed_bytes) {
            (None, _) => "missing".to_owned(),
            (Some(bytes), Some(expected)) if *bytes != expected => format!("has {bytes} bytes, not {expected}"),
            (Some(_), _) => return None,
        };
        Some(RunError::Damaged { key: format!("{prefix}{name}"), reason })
    })
}

/// Every dataset that has an object in the store, whether or not it is ours.
///
/// # Errors
/// [`RunError::Store`] when the listing fails.
pub async fn list_datasets(store: &dyn ObjectStore) -> Result<Vec<DatasetName>, RunError> {
    let listed = store.list("").await?;
    let names: std::collections::BTreeSet<DatasetName> =
        listed.iter().filter_map(|object| object.key.split_once("/@")?.0.parse().ok()).collect();
    Ok(names.into_iter().collect())
}
