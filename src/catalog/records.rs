//! Reads signed prune records, which prove that missing backups were deleted on purpose.

use super::check_untrusted;
use super::fetch::{get_signature, get_with_signature};
use crate::catalog::CatalogError;
use crate::manifest::{ManifestError, PRUNE_RECORD_BYTES_MAX, PruneRecord, parse_prune_record};
use crate::model::{BackupId, DatasetName, error_chain};
use crate::sign::{SignedType, TrustedKeys};
use crate::state::manifests::ObjectCache;
use crate::store::key::SIGNATURE_SUFFIX;
use crate::store::{ListedObject, ObjectKey, StoreRead};
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};

/// Limit of a prune's duration, including differences between clocks.
pub(crate) const PRUNE_MAX: jiff::SignedDuration = jiff::SignedDuration::from_hours(48);
/// Limit of concurrent fetches of records.
const RECORDS_MAX: usize = 16;

/// Returns the ids whose deletion a signed prune record explains. Untrusted records do not count.
///
/// # Errors
/// [`CatalogError::Store`] when a listing or a fetch fails.
pub async fn read_pruned(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<BTreeSet<BackupId>, CatalogError> {
    let records = read_prune_records(store, dataset, trusted, None).await?;
    Ok(records
        .into_iter()
        .flat_map(|(_, record)| record.pruned)
        .map(|entry| entry.id)
        .collect())
}

/// Returns the signed prune records of one dataset with their keys, in order, without those written
/// before `since` and those that another record voids. An untrusted record is left out with a
/// warning. Each record has its time by the store's clock, if the store reports one.
///
/// # Errors
/// [`CatalogError::Store`] when a listing or a fetch fails.
pub async fn read_prune_records(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
    since: Option<jiff::Timestamp>,
) -> Result<Vec<(ObjectKey, PruneRecord)>, CatalogError> {
    read_prune_records_through(store, dataset, trusted, since, &ObjectCache::none()).await
}

/// Does the same as [`read_prune_records`], but takes records from the cache if they are listed
/// unchanged. A signed record stays valid, and a withdrawn one is no longer listed.
///
/// # Errors
/// As for [`read_prune_records`].
pub async fn read_prune_records_through(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
    since: Option<jiff::Timestamp>,
    cache: &ObjectCache,
) -> Result<Vec<(ObjectKey, PruneRecord)>, CatalogError> {
    let prefix = format!("{dataset}/@prune/");
    // The name of a record begins with its time, so that old records need not be fetched.
    let oldest = since.map(|since| format!("{prefix}{}", since.strftime("%Y%m%dT%H%M%SZ")));
    let listed = store.list(&prefix).await?;
    let by_key: BTreeMap<&str, &ListedObject> = listed
        .iter()
        .map(|object| (object.key.as_str(), object))
        .collect();
    let wanted = listed
        .iter()
        .filter(|object| oldest.as_ref().is_none_or(|oldest| object.key >= *oldest));
    let keys = wanted.filter_map(|object| {
        ObjectKey::listed(&object.key).filter(|key| key.as_str().ends_with(".json"))
    });
    // Collected first: a stream that made the futures lazily would tie them to its own lifetime.
    let reads: Vec<_> = keys
        .map(|key| {
            let signature = format!("{key}{SIGNATURE_SUFFIX}");
            let pair = by_key
                .get(key.as_str())
                .copied()
                .zip(by_key.get(signature.as_str()).copied());
            let modified_at = by_key
                .get(key.as_str())
                .and_then(|object| object.modified_at);
            async move {
                let record = read_record(store, dataset, trusted, cache, &key, pair).await;
                (
                    key,
                    record.map(|record| PruneRecord {
                        recorded_at: record.recorded_at.or(modified_at),
                        ..record
                    }),
                )
            }
        })
        .collect();
    let mut reads = stream::iter(reads).buffered(RECORDS_MAX);
    let mut records = Vec::new();
    let mut untrusted = 0;
    while let Some((key, record)) = reads.next().await {
        match record {
            Ok(record) => records.push((key, record)),
            Err(error) if matches!(error, CatalogError::Manifest { .. }) || error.is_damage() => {
                untrusted += 1;
                check_untrusted(store, dataset, untrusted, Some(&error))?;
                tracing::warn!(%key, error = error_chain(&error), "ignoring an invalid or untrusted prune record");
            }
            Err(error) => return Err(error),
        }
    }
    // A void record may itself be void: what it voids stays void.
    let void: BTreeSet<String> = records
        .iter()
        .flat_map(|(_, record)| record.voids.iter().cloned())
        .collect();
    records.retain(|(key, _)| !void.contains(key.as_str()));
    Ok(records)
}

async fn read_record(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
    cache: &ObjectCache,
    key: &ObjectKey,
    listed: Option<(&ListedObject, &ListedObject)>,
) -> Result<PruneRecord, CatalogError> {
    // A missing signature is damage: it is put before the record, and the listing is complete.
    let Some((listed, listed_signature)) = listed else {
        return Err(CatalogError::Damaged {
            key: key.signature().to_string(),
            reason: "missing".into(),
        });
    };
    let parse = |bytes: &[u8], signature: &[u8]| -> Result<PruneRecord, ManifestError> {
        parse_prune_record(trusted, dataset, key.as_str(), bytes, signature)
    };
    let kept_bytes = cache.get(listed);
    let kept_signature = cache.get(listed_signature);
    if let (Some(bytes), Some(signature)) = (&kept_bytes, &kept_signature)
        && let Ok(record) = parse(bytes, signature)
    {
        return Ok(record);
    }
    // If the cached record fails, its cached signature is as doubtful.
    let (signature, is_kept) = match kept_signature.filter(|_| kept_bytes.is_none()) {
        Some(kept) => (kept, true),
        None => {
            let signature = get_signature(store, key).await?;
            let is_kept = cache.put_dated(listed_signature, &signature);
            (signature, is_kept)
        }
    };
    let signed_type = SignedType::PruneRecord;
    let limit_bytes = PRUNE_RECORD_BYTES_MAX;
    let bytes =
        get_with_signature(store, key, signed_type, trusted, limit_bytes, &signature).await?;
    let record = parse(&bytes, &signature).map_err(|source| CatalogError::Manifest {
        key: key.to_string(),
        source,
    })?;
    cache.put(listed, &bytes);
    if !is_kept {
        cache.put(listed_signature, &signature);
    }
    Ok(record)
}
