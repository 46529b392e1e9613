//! Removes the objects that a committed backup does not need: its progress objects, and chunks that
//! were begun and then made again under another name.

use crate::catalog::read_chunks;
use crate::manifest::Manifest;
use crate::run::{RunError, error_chain};
use crate::store::key::{BackupObject, ParsedKey, backup_prefix, object_name};
use crate::store::{ObjectKey, StoreDelete};
use std::collections::BTreeSet;

/// Removes the objects that only a running upload needs. Every commit must end with this call, even
/// a commit that another run began: no later run returns to the backup to remove them. Objects that
/// the manifest names are never touched; `verify-checksums` reports those that cannot be deleted.
pub(in crate::run) async fn tidy(store: &dyn StoreDelete, manifest: &Manifest) {
    if let Err(error) = remove_spare(store, manifest).await {
        tracing::warn!(id = %manifest.id, error = error_chain(&error), "objects that the backup does not need stay");
    }
}

async fn remove_spare(store: &dyn StoreDelete, manifest: &Manifest) -> Result<(), RunError> {
    let Manifest { dataset, id, .. } = manifest;
    let listed = store.list(&backup_prefix(dataset, id)).await?;
    let parsed = listed
        .iter()
        .filter_map(|object| ObjectKey::parse(&object.key));
    let is_spare = |key: &ParsedKey| {
        matches!(
            key.object,
            BackupObject::Chunk { .. } | BackupObject::Progress(_)
        )
    };
    let loose: Vec<ParsedKey> = parsed.filter(is_spare).collect();
    if loose.len() as u64
        == manifest
            .chunk_lists
            .iter()
            .map(|list| u64::from(list.chunks))
            .sum::<u64>()
    {
        return Ok(());
    }
    let named: BTreeSet<String> = read_chunks(store, manifest)
        .await?
        .into_iter()
        .map(|chunk| chunk.name)
        .collect();
    for ParsedKey {
        object, signature, ..
    } in loose
    {
        if !named.contains(&object_name(&object)) {
            let key = ObjectKey::backup(dataset, id, &object);
            store
                .delete(&if signature { key.signature() } else { key })
                .await?;
        }
    }
    Ok(())
}
