//! [`read_chunks`]: the chunk lists of a backup, which its manifest pins.

use super::fetch::get_checked;
use super::{CatalogError, StoredBackup};
use crate::manifest::{ChunkEntry, Manifest, chunk_list_bytes_max, parse_chunk_list};
use crate::state::manifests::ObjectCache;
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, StoreRead};
use bytes::Bytes;

/// Fetches all chunk entries of a backup, and checks each list against its hash in the manifest.
///
/// # Errors
/// [`CatalogError::Manifest`] naming the list; [`CatalogError::Store`].
pub async fn read_chunks(
    store: &dyn StoreRead,
    manifest: &Manifest,
) -> Result<Vec<ChunkEntry>, CatalogError> {
    let mut chunks = Vec::new();
    for number in 0..manifest.chunk_lists.len() {
        chunks.extend(fetch_list(store, manifest, number).await?.1);
    }
    Ok(chunks)
}

/// Does the same as [`read_chunks`], but takes a list from the cache if the cached list has the
/// hash in the manifest and the listed size.
///
/// # Errors
/// As for [`read_chunks`].
pub(crate) async fn read_chunks_through(
    store: &dyn StoreRead,
    backup: &StoredBackup,
    cache: &ObjectCache,
) -> Result<Vec<ChunkEntry>, CatalogError> {
    let manifest = &backup.manifest;
    let mut chunks = Vec::new();
    for (number, list) in manifest.chunk_lists.iter().enumerate() {
        let key = list_key(manifest, number);
        let is_listed =
            |bytes: &Bytes| backup.objects.get(&list.name) == Some(&(bytes.len() as u64));
        let kept = cache
            .get_pinned(key.as_str(), list.blake3)
            .filter(is_listed);
        match kept.and_then(|bytes| parse_chunk_list(manifest, number, &bytes).ok()) {
            Some(entries) => chunks.extend(entries),
            None => {
                let (bytes, entries) = fetch_list(store, manifest, number).await?;
                cache.put_pinned(key.as_str(), list.blake3, &bytes);
                chunks.extend(entries);
            }
        }
    }
    Ok(chunks)
}

fn list_key(manifest: &Manifest, number: usize) -> ObjectKey {
    let list = BackupObject::ChunkList(u16::try_from(number).unwrap_or(u16::MAX));
    ObjectKey::backup(&manifest.dataset, &manifest.id, &list)
}

async fn fetch_list(
    store: &dyn StoreRead,
    manifest: &Manifest,
    number: usize,
) -> Result<(Bytes, Vec<ChunkEntry>), CatalogError> {
    let key = list_key(manifest, number);
    let limit_bytes = chunk_list_bytes_max(
        manifest
            .chunk_lists
            .get(number)
            .map_or(0, |list| list.chunks),
    );
    let parse = |bytes: &Bytes| {
        parse_chunk_list(manifest, number, bytes).map_err(|source| CatalogError::Manifest {
            key: key.to_string(),
            source,
        })
    };
    get_checked(store, &key, limit_bytes, parse).await
}
