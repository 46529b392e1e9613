//! Reads what a store holds of one dataset: backups, attempts without a verified manifest, and keys
//! that are not of this format.
//!
//! A backup exists only through a manifest that verifies. Other programs lost data by reading an
//! error as "empty". Here every failure to list or fetch is an error, and an id whose manifest does
//! not verify is listed separately.

mod chunks;
mod error;
mod fetch;
pub(crate) mod read_back;
mod records;
pub(crate) mod remembered;
pub(crate) mod sealed;
pub(crate) mod stores;
pub mod usable;

pub use chunks::read_chunks;
pub(crate) use chunks::read_chunks_through;
pub use error::CatalogError;
pub use fetch::get_pinned;
pub(crate) use fetch::{get_signature, get_signed};
pub(crate) use records::PRUNE_MAX;
pub use records::{read_prune_records, read_prune_records_through, read_pruned};

use crate::manifest::{
    ChunkEntry, LiveEntry, MANIFEST_BYTES_MAX, Manifest, ManifestError, Receipt,
    SIGNATURE_BYTES_MAX, Started, parse_manifest, parse_receipt, parse_started,
};
use crate::model::{BackupId, DatasetName, Digest, Guid, error_chain};
use crate::plan::BackupFacts;
use crate::plan::timeline::Timeline;
use crate::sign::{SignedType, TrustedKeys};
use crate::state::history::SeenNote;
use crate::state::manifests::ObjectCache;
use crate::store::key::{BackupObject, ParsedKey, SIGNATURE_SUFFIX, dataset_of, dataset_prefix};
use crate::store::{ListedObject, ObjectKey, StoreRead};
use fetch::get_with_signature;
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

/// Limit of concurrent fetches of manifests.
const MANIFESTS_MAX: usize = 16;
/// Limit of ids of one dataset without a trusted manifest: unfinished uploads, damaged backups, and
/// objects of other writers. An upload that fails every hour leaves one id per run, so this limit
/// is reached after more than a year without a prune. Each id costs a few requests of a few KiB in
/// every run.
const UNTRUSTED_MAX: usize = 10_000;

/// Limit of objects that [`list_wanted`] gathers, about 200 bytes each.
const WANTED_MAX: usize = 5_000_000;

/// Limit of datasets in one store.
const DATASETS_MAX: usize = 100_000;

/// A backup whose manifest verifies.
#[derive(Debug, Clone)]
pub struct StoredBackup {
    /// The verified manifest.
    pub manifest: Manifest,
    /// The hash of the manifest's bytes.
    pub manifest_blake3: Digest,
    /// All its objects as listed, with their sizes in bytes, by name within the backup.
    pub objects: BTreeMap<String, u64>,
    /// The time of its newest object, by the store's clock; `None` if that is unknown.
    pub stored_at: Option<jiff::Timestamp>,
}

/// Objects under an id without a verified manifest.
#[derive(Debug)]
pub struct StoredAttempt {
    /// The id.
    pub id: BackupId,
    /// The number of its objects.
    pub objects: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The time of its newest object, by the store's clock.
    pub newest: Option<jiff::Timestamp>,
    /// Why its manifest does not verify; `None` when there is no manifest.
    pub untrusted: Option<CatalogError>,
    /// Whether the manifest exists, or its signature, which is put just before it: the id was a
    /// backup, or within a request of becoming one.
    pub was_committed: bool,
}

/// The backups, attempts and unknown keys that a store holds of one dataset.
#[derive(Debug)]
pub struct Catalog {
    /// The dataset.
    pub dataset: DatasetName,
    /// Backups, oldest first: by createtxg within an origin.
    pub backups: Vec<StoredBackup>,
    /// Ids without a verified manifest.
    pub attempts: Vec<StoredAttempt>,
    /// Keys under the dataset that are not of this format.
    pub unknown: Vec<ListedObject>,
    /// The time of its newest object of any kind, which is the latest known time of the store's
    /// clock. `None` when the store reports no times.
    pub newest_object_at: Option<jiff::Timestamp>,
}

impl StoredBackup {
    /// Returns the backup as a receipt names it.
    pub(crate) fn live_entry(&self) -> LiveEntry {
        LiveEntry {
            id: self.manifest.id.clone(),
            manifest_blake3: self.manifest_blake3,
        }
    }

    /// Returns the bytes of all its objects, as listed.
    pub fn stored_bytes(&self) -> u64 {
        self.objects
            .values()
            .fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// Returns the dataset and the pool that the backup was made from.
    pub fn origin(&self) -> (Guid, Guid) {
        (
            self.manifest.origin.dataset_guid,
            self.manifest.origin.pool_guid,
        )
    }
}

impl Catalog {
    /// Returns the number of origins, by the guids of dataset and pool, with backups under this
    /// name.
    pub fn origins(&self) -> usize {
        self.backups
            .iter()
            .map(StoredBackup::origin)
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Returns the backups as a receipt names them.
    pub(crate) fn live(&self) -> Vec<LiveEntry> {
        self.backups.iter().map(StoredBackup::live_entry).collect()
    }

    /// Returns ids that have a manifest or its signature and are not verified backups: they were
    /// committed, or within one request of the commit.
    pub fn lost(&self) -> impl Iterator<Item = &StoredAttempt> {
        self.attempts.iter().filter(|attempt| attempt.was_committed)
    }

    /// Whether there is a backup of that snapshot.
    pub fn holds(&self, snapshot: Guid) -> bool {
        self.backups
            .iter()
            .any(|backup| backup.manifest.snapshot.guid == snapshot)
    }

    /// Returns the backup with that id.
    pub fn backup(&self, id: &BackupId) -> Option<&StoredBackup> {
        self.backups.iter().find(|backup| backup.manifest.id == *id)
    }

    /// Returns the newest backup. In doubt, that is the backup with the youngest snapshot by its
    /// time: see [`Catalog::time_lines`].
    pub fn newest(&self) -> Option<&StoredBackup> {
        let facts = self.facts();
        match Timeline::new(&facts).newest(&self.of_newest_origin(&facts)) {
            Ok(newest) => self.backup(&newest?.id),
            Err(candidates) => self.backup(&candidates.first()?.id),
        }
    }

    /// Returns the number of time lines of the newest origin, as far as the store alone shows.
    /// There is more than one after a machine was cloned, or a pool was copied or rewound.
    pub fn time_lines(&self) -> usize {
        let facts = self.facts();
        match Timeline::new(&facts).newest(&self.of_newest_origin(&facts)) {
            Ok(newest) => usize::from(newest.is_some()),
            Err(candidates) => candidates.len(),
        }
    }

    /// Sums up what the store holds, for this host's history.
    pub fn seen_note(&self, now: jiff::Timestamp) -> SeenNote {
        let newest = self.newest().map(|backup| &backup.manifest);
        SeenNote {
            at: now,
            newest: newest.map(|manifest| manifest.id.clone()),
            newest_at: newest.map(|manifest| manifest.snapshot.created_at),
            chain_position: newest.map_or(0, |manifest| manifest.chain.position),
            backups: self.backups.len() as u64,
            total_bytes: self
                .backups
                .iter()
                .fold(0, |sum, backup| sum.saturating_add(backup.stored_bytes())),
            time_lines: self.time_lines() as u64,
        }
    }

    fn facts(&self) -> Vec<BackupFacts> {
        let facts = |backup: &StoredBackup| {
            BackupFacts::new(&backup.manifest, backup.manifest_blake3, 0, None)
        };
        self.backups.iter().map(facts).collect()
    }

    fn of_newest_origin<'a>(&self, facts: &'a [BackupFacts]) -> Vec<&'a BackupFacts> {
        let Some(last) = self.backups.last() else {
            return Vec::new();
        };
        facts
            .iter()
            .filter(|backup| backup.origin == last.manifest.origin)
            .collect()
    }

    /// Returns ids whose manifest does not verify: it is damaged, or another writer made it.
    pub fn untrusted(&self) -> impl Iterator<Item = (&BackupId, &CatalogError)> {
        self.attempts
            .iter()
            .filter_map(|attempt| Some((&attempt.id, attempt.untrusted.as_ref()?)))
    }
}

/// Reads everything that a store holds of one dataset.
///
/// # Errors
/// [`CatalogError::Store`] when a listing or a fetch fails.
pub async fn read_catalog(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<Catalog, CatalogError> {
    read_catalog_through(store, dataset, trusted, &ObjectCache::none()).await
}

/// Does the same as [`read_catalog`], but takes manifests from the cache if they are listed
/// unchanged. Suitable for plans and for display, not for proof: see [`crate::state::manifests`].
///
/// # Errors
/// As for [`read_catalog`].
pub async fn read_catalog_through(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
    cache: &ObjectCache,
) -> Result<Catalog, CatalogError> {
    let listed = store.list(&dataset_prefix(dataset)).await?;
    cache.keep_listed(&listed);
    let newest_object_at = listed.iter().filter_map(|object| object.modified_at).max();
    let mut groups: BTreeMap<BackupId, Vec<(ParsedKey, ListedObject)>> = BTreeMap::new();
    let mut unknown = Vec::new();
    for object in listed {
        match ObjectKey::parse(&object.key).filter(|parsed| parsed.dataset == *dataset) {
            Some(parsed) => groups
                .entry(parsed.id.clone())
                .or_default()
                .push((parsed, object)),
            None if object.key.starts_with(&format!("{dataset}/@prune/")) => {}
            None => unknown.push(object),
        }
    }
    let has_manifest = |objects: &[(ParsedKey, ListedObject)]| {
        objects
            .iter()
            .any(|(key, _)| key.object == BackupObject::Manifest && !key.signature)
    };
    let unfinished = groups
        .values()
        .filter(|objects| !has_manifest(objects))
        .count();
    check_untrusted(store, dataset, unfinished, None)?;
    let (backups, attempts) = (Vec::new(), Vec::new());
    let mut catalog = Catalog {
        dataset: dataset.clone(),
        backups,
        attempts,
        unknown,
        newest_object_at,
    };
    let read = |(id, objects): (BackupId, Vec<(ParsedKey, ListedObject)>)| async move {
        let is_manifest = |key: &ParsedKey, signature| {
            key.object == BackupObject::Manifest && key.signature == signature
        };
        let listed = |signature| {
            objects
                .iter()
                .find(|(key, _)| is_manifest(key, signature))
                .map(|(_, object)| object)
        };
        let believed = match (listed(false), listed(true)) {
            (None, _) => None,
            // A missing signature is damage: it is put before the manifest, and the listing is
            // complete.
            (Some(manifest), None) => Some(Err(CatalogError::Damaged {
                key: format!("{}{SIGNATURE_SUFFIX}", manifest.key),
                reason: "missing".into(),
            })),
            (Some(manifest), Some(signature)) => Some(
                read_manifest_through(store, (dataset, &id), trusted, cache, [manifest, signature])
                    .await,
            ),
        };
        (id, objects, believed)
    };
    let mut groups = stream::iter(groups).map(read).buffered(MANIFESTS_MAX);
    let mut untrusted = unfinished;
    while let Some((id, objects, believed)) = groups.next().await {
        match believed {
            Some(Ok((manifest, manifest_blake3))) => {
                catalog.backups.push(StoredBackup {
                    manifest,
                    manifest_blake3,
                    objects: by_name(&id, dataset, &objects),
                    stored_at: newest_of(&objects),
                });
            }
            Some(Err(error @ (CatalogError::Manifest { .. } | CatalogError::Damaged { .. }))) => {
                untrusted += 1;
                check_untrusted(store, dataset, untrusted, Some(&error))?;
                catalog.attempts.push(attempt(id, &objects, Some(error)));
            }
            Some(Err(other)) => return Err(other),
            None => catalog.attempts.push(attempt(id, &objects, None)),
        }
    }
    sort(&mut catalog.backups);
    Ok(catalog)
}

/// Refuses a dataset with more untrusted ids or records than this program can have left, before all
/// of them are fetched. `last` is the reason why the last one is untrusted.
fn check_untrusted(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    untrusted: usize,
    last: Option<&CatalogError>,
) -> Result<(), CatalogError> {
    if untrusted <= UNTRUSTED_MAX {
        return Ok(());
    }
    let why = last
        .map(|error| format!("; one of them: {}", error_chain(error)))
        .unwrap_or_default();
    let what = format!(
        "{dataset} in {} has more than {UNTRUSTED_MAX} backups and unfinished uploads without a \
         trusted manifest, or as many untrusted prune records: more than this program creates{why}",
        store.url()
    );
    let hint = format!(
        "find out who writes below {dataset}/ there, and remove what is not yours with the tools of the store; if the keys \
         were rotated, check `verify_keys` first"
    );
    Err(CatalogError::TooMany { what, hint })
}

/// Sorts by createtxg within an origin, because clocks can be wrong, and sorts origins by the time
/// of their newest backup.
fn sort(backups: &mut [StoredBackup]) {
    let mut newest: BTreeMap<(Guid, Guid), jiff::Timestamp> = BTreeMap::new();
    for backup in backups.iter() {
        let at = newest
            .entry(backup.origin())
            .or_insert(backup.manifest.snapshot.created_at);
        *at = backup.manifest.snapshot.created_at.max(*at);
    }
    backups.sort_by_key(|backup| {
        let origin = backup.origin();
        (
            newest.get(&origin).copied(),
            origin,
            backup.manifest.snapshot.createtxg,
            backup.manifest.id.clone(),
        )
    });
}

fn by_name(
    id: &BackupId,
    dataset: &DatasetName,
    objects: &[(ParsedKey, ListedObject)],
) -> BTreeMap<String, u64> {
    let prefix = crate::store::key::backup_prefix(dataset, id);
    objects
        .iter()
        .map(|(_, object)| (object.key[prefix.len()..].to_owned(), object.bytes))
        .collect()
}

fn newest_of(objects: &[(ParsedKey, ListedObject)]) -> Option<jiff::Timestamp> {
    objects
        .iter()
        .filter_map(|(_, object)| object.modified_at)
        .max()
}

fn attempt(
    id: BackupId,
    objects: &[(ParsedKey, ListedObject)],
    untrusted: Option<CatalogError>,
) -> StoredAttempt {
    StoredAttempt {
        id,
        objects: objects.len(),
        bytes: objects
            .iter()
            .fold(0, |sum, (_, object)| u64::saturating_add(sum, object.bytes)),
        newest: newest_of(objects),
        untrusted,
        was_committed: objects
            .iter()
            .any(|(key, _)| key.object == BackupObject::Manifest),
    }
}

/// Fetches one manifest and verifies it.
///
/// # Errors
/// [`CatalogError::Manifest`] or [`CatalogError::Damaged`] when it does not verify or is missing;
/// [`CatalogError::Store`] when it cannot be read.
pub async fn read_manifest(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    id: &BackupId,
    trusted: &TrustedKeys,
) -> Result<(Manifest, Digest), CatalogError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest);
    let (bytes, signature) = get_signed(
        store,
        &key,
        SignedType::Manifest,
        trusted,
        MANIFEST_BYTES_MAX,
    )
    .await?;
    parse_fetched(dataset, id, trusted, &bytes, &signature)
}

fn parse_fetched(
    dataset: &DatasetName,
    id: &BackupId,
    trusted: &TrustedKeys,
    bytes: &[u8],
    signature: &[u8],
) -> Result<(Manifest, Digest), CatalogError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest);
    let manifest = parse_manifest(trusted, dataset, id, bytes, signature).map_err(|source| {
        CatalogError::Manifest {
            key: key.to_string(),
            source,
        }
    })?;
    Ok((manifest, Digest::of(bytes)))
}

/// Does the same as [`read_manifest`], but returns the cached manifest if it passes every check. A
/// fetched manifest is cached when it passes. A signature is cached as soon as it is fetched, so
/// that a signature by an untrusted key costs no second request.
async fn read_manifest_through(
    store: &dyn StoreRead,
    (dataset, id): (&DatasetName, &BackupId),
    trusted: &TrustedKeys,
    cache: &ObjectCache,
    listed: [&ListedObject; 2],
) -> Result<(Manifest, Digest), CatalogError> {
    for (object, limit_bytes) in listed
        .into_iter()
        .zip([MANIFEST_BYTES_MAX, SIGNATURE_BYTES_MAX])
    {
        check_listed_size(object, limit_bytes)?;
    }
    let [kept_bytes, kept_signature] = listed.map(|object| cache.get(object));
    if let (Some(bytes), Some(signature)) = (&kept_bytes, &kept_signature)
        && let Ok(kept) = parse_fetched(dataset, id, trusted, bytes, signature)
    {
        return Ok(kept);
    }
    let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest);
    // If the cached manifest fails, its cached signature is as doubtful.
    let (signature, is_kept) = match kept_signature.filter(|_| kept_bytes.is_none()) {
        Some(kept) => (kept, true),
        None => {
            let signature = get_signature(store, &key).await?;
            let is_kept = cache.put_dated(listed[1], &signature);
            (signature, is_kept)
        }
    };
    let signed_type = SignedType::Manifest;
    let bytes = get_with_signature(
        store,
        &key,
        signed_type,
        trusted,
        MANIFEST_BYTES_MAX,
        &signature,
    )
    .await?;
    let fetched = parse_fetched(dataset, id, trusted, &bytes, &signature)?;
    cache.put(listed[0], &bytes);
    if !is_kept {
        cache.put(listed[1], &signature);
    }
    Ok(fetched)
}

/// Refuses an object that is listed as longer than the format allows, before it is fetched.
fn check_listed_size(listed: &ListedObject, limit_bytes: u64) -> Result<(), CatalogError> {
    if listed.bytes <= limit_bytes {
        return Ok(());
    }
    let reason = format!(
        "it has {} bytes, more than the {limit_bytes} allowed",
        listed.bytes
    );
    Err(CatalogError::Damaged {
        key: listed.key.clone(),
        reason,
    })
}

/// Fetches and verifies the receipt of one backup, and checks that it belongs to this manifest.
///
/// # Errors
/// As for [`read_manifest`].
pub async fn read_receipt(
    store: &dyn StoreRead,
    backup: &StoredBackup,
    trusted: &TrustedKeys,
) -> Result<Receipt, CatalogError> {
    let Manifest { dataset, id, .. } = &backup.manifest;
    let key = ObjectKey::backup(dataset, id, &BackupObject::Receipt);
    let disbelieve = |source| CatalogError::Manifest {
        key: key.to_string(),
        source,
    };
    let limit_bytes = backup.manifest.receipt_bytes_max();
    let (bytes, signature) =
        get_signed(store, &key, SignedType::Receipt, trusted, limit_bytes).await?;
    let receipt = parse_receipt(trusted, dataset, id, &bytes, &signature).map_err(disbelieve)?;
    if receipt.manifest_blake3 != backup.manifest_blake3 {
        let (expected, actual) = (backup.manifest_blake3, receipt.manifest_blake3);
        return Err(disbelieve(ManifestError::Digest { expected, actual }));
    }
    Ok(receipt)
}

/// Returns the verified `started.json` of an attempt, or `None` when the object does not exist.
///
/// # Errors
/// [`CatalogError::Manifest`] or [`CatalogError::Damaged`] when it does not verify;
/// [`CatalogError::Store`].
pub async fn read_started(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    id: &BackupId,
    trusted: &TrustedKeys,
) -> Result<Option<Started>, CatalogError> {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Started);
    if store.head(&key).await?.is_none() {
        return Ok(None);
    }
    let (bytes, signature) = get_signed(
        store,
        &key,
        SignedType::Started,
        trusted,
        MANIFEST_BYTES_MAX,
    )
    .await?;
    let started = parse_started(trusted, dataset, id, &bytes, &signature);
    started.map(Some).map_err(|source| CatalogError::Manifest {
        key: key.to_string(),
        source,
    })
}

/// Returns the key of a chunk. The chunk's name was checked when its list was parsed.
pub fn chunk_key(manifest: &Manifest, chunk: &ChunkEntry) -> Option<ObjectKey> {
    let object = crate::store::key::parse_object_name(&chunk.name)?;
    Some(ObjectKey::backup(&manifest.dataset, &manifest.id, &object))
}

/// Returns the chunks that are missing in the listing, or whose listed size differs from the
/// manifest.
pub fn find_gaps<'a>(
    backup: &'a StoredBackup,
    chunks: &'a [ChunkEntry],
) -> impl Iterator<Item = CatalogError> + 'a {
    let prefix = crate::store::key::backup_prefix(&backup.manifest.dataset, &backup.manifest.id);
    find_gaps_in(prefix, &backup.objects, chunks)
}

/// Does the same as [`find_gaps`], for the objects that are listed below `prefix`.
pub(crate) fn find_gaps_in<'c>(
    prefix: String,
    objects: &BTreeMap<String, u64>,
    chunks: impl IntoIterator<Item = &'c ChunkEntry>,
) -> impl Iterator<Item = CatalogError> {
    chunks.into_iter().filter_map(move |chunk| {
        let reason = match objects.get(&chunk.name) {
            None => "missing".to_owned(),
            Some(bytes) if *bytes != chunk.sealed_bytes => {
                format!("has {bytes} bytes, not {}", chunk.sealed_bytes)
            }
            Some(_) => return None,
        };
        Some(CatalogError::Damaged {
            key: format!("{prefix}{}", chunk.name),
            reason,
        })
    })
}

/// Lists the objects of the whole store whose keys are wanted, in order of the key. A whole store
/// has more objects than [`StoreRead::list`] can gather in memory, so the listing is filtered
/// page by page.
///
/// # Errors
/// [`CatalogError::Store`] when the listing fails.
pub(crate) async fn list_wanted(
    store: &dyn StoreRead,
    is_wanted: impl Fn(&str) -> bool + Send + Sync,
) -> Result<Vec<ListedObject>, CatalogError> {
    let mut wanted = Vec::new();
    let mut take = |page: Vec<ListedObject>| {
        wanted.extend(page.into_iter().filter(|object| is_wanted(&object.key)));
        if wanted.len() > WANTED_MAX {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    store.visit("", &mut take).await?;
    if wanted.len() > WANTED_MAX {
        let what = format!(
            "{} has more than {WANTED_MAX} manifests, keyrings and records",
            store.url()
        );
        return Err(CatalogError::TooMany {
            what,
            hint: "find out who writes there, and remove what is not yours".into(),
        });
    }
    wanted.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    // An object that is written during the listing may be on two pages.
    wanted.dedup_by(|a, b| a.key == b.key);
    Ok(wanted)
}

/// Returns every dataset that has an object in the store, also those of other writers.
///
/// # Errors
/// [`CatalogError::Store`] when the listing fails.
pub async fn list_datasets(store: &dyn StoreRead) -> Result<Vec<DatasetName>, CatalogError> {
    let folders = store.list_folders("", '@').await?;
    let names = folders.iter().filter_map(|folder| dataset_of(folder));
    let names: BTreeSet<DatasetName> = names.collect();
    if names.len() > DATASETS_MAX {
        let what = format!(
            "{} has objects of more than {DATASETS_MAX} datasets",
            store.url()
        );
        return Err(CatalogError::TooMany {
            what,
            hint: "find out who writes there; or name the dataset that you want".into(),
        });
    }
    Ok(names.into_iter().collect())
}
