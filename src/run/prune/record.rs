//! Signed prune records: put before anything is deleted, and withdrawn when the backups that they
//! name stay.

use super::PruneEnv;
use super::at_work::OwnRecords;
use crate::manifest::{FORMAT, PRUNE_RECORD_BYTES_MAX, PruneRecord, PrunedEntry, to_stored_bytes};
use crate::model::{BackupId, DatasetName};
use crate::run::RunError;
use crate::sign::SignedType;
use crate::store::ObjectKey;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::BTreeSet;

/// A record that this run put.
pub(super) struct WrittenRecord {
    key: ObjectKey,
}

impl WrittenRecord {
    /// Returns the key of the record.
    pub(super) fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// Deletes the record. The caller has deleted none of the backups that the record names.
    pub(super) async fn withdraw(&self, env: &PruneEnv) -> Result<(), RunError> {
        delete_record(env, &self.key).await
    }
}

/// Puts a record of the backups that are about to be deleted, its signature first.
pub(super) async fn put_record(
    env: &PruneEnv,
    dataset: &DatasetName,
    pruned: Vec<PrunedEntry>,
) -> Result<WrittenRecord, RunError> {
    put_record_of(env, dataset, pruned, (env.now, None)).await
}

async fn put_record_of(
    env: &PruneEnv,
    dataset: &DatasetName,
    pruned: Vec<PrunedEntry>,
    (written_at, recorded_at): (Timestamp, Option<Timestamp>),
) -> Result<WrittenRecord, RunError> {
    let nonce = getrandom::u64()?;
    let time = written_at
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let key = ObjectKey::prune_record(dataset, &time, nonce);
    let record = PruneRecord {
        format: FORMAT,
        object_type: SignedType::PruneRecord.as_str().to_owned(),
        dataset: dataset.clone(),
        pruned,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        written_at,
        recorded_at,
    };
    let bytes = to_stored_bytes(&record).map_err(|error| RunError::File {
        operation: "write",
        path: key.to_string(),
        source: std::io::Error::other(error),
    })?;
    if bytes.len() as u64 > PRUNE_RECORD_BYTES_MAX {
        let what = format!(
            "the record of {} deletions of {dataset} is longer than readers accept",
            record.pruned.len()
        );
        return Err(RunError::refused(
            what,
            "keep more for now: raise a `keep-` rule, prune, and lower it again",
        ));
    }
    let signature = env
        .signing
        .sign(SignedType::PruneRecord, key.as_str(), &bytes)?;
    OwnRecords::read(env, dataset)?.note(&key)?;
    env.store
        .put_new(&key.signature(), signature.into())
        .await?;
    env.store.put_new(&key, bytes.into()).await?;
    Ok(WrittenRecord { key })
}

/// Removes backups that stay from all records, because a record counts as proof of a deletion. Such
/// backups remain after an interrupted prune or a changed plan. The other backups in such a record
/// are first written to a new record with the old times: objects that were put after the first
/// record must not pass for older than the new one. The record of a prune that may be running on
/// another host stays.
pub(super) async fn void_records(
    env: &PruneEnv,
    dataset: &DatasetName,
    records: &[(ObjectKey, PruneRecord)],
    stay: &BTreeSet<&BackupId>,
) -> Result<(), RunError> {
    let own = OwnRecords::read(env, dataset)?;
    for (key, record) in records
        .iter()
        .filter(|record| !own.is_of_other_prune(env, record))
    {
        let rest: Vec<PrunedEntry> = record
            .pruned
            .iter()
            .filter(|entry| !stay.contains(&entry.id))
            .cloned()
            .collect();
        if rest.len() == record.pruned.len() {
            continue;
        }
        if !rest.is_empty() {
            put_record_of(env, dataset, rest, (record.written_at, record.recorded_at)).await?;
        }
        delete_record(env, key).await?;
    }
    Ok(())
}

/// Deletes a record before its signature: a signature alone says nothing.
async fn delete_record(env: &PruneEnv, key: &ObjectKey) -> Result<(), RunError> {
    env.store.delete(key).await?;
    Ok(env.store.delete(&key.signature()).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::clock::ClockCheck;
    use crate::sign::{SigningKey, TrustedKeys};
    use crate::store::memory::MemoryStore;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[tokio::test]
    async fn prune_record_longer_than_the_limit_is_refused_before_it_is_put() {
        let (store, state) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let signing = SigningKey::generate().unwrap();
        let now = Timestamp::UNIX_EPOCH;
        let env = PruneEnv {
            store: Arc::new(store.clone()),
            trusted: TrustedKeys::new(vec![signing.verifying_key().clone()]),
            signing,
            state_dir: state.path().to_owned(),
            resume_days: 3,
            pools: BTreeMap::new(),
            now,
            clock: ClockCheck::vouched_at(now),
            stop: tokio::sync::watch::channel(false).1,
        };
        let entry = PrunedEntry {
            id: "20260101T000000Z-full-00000000000000ff-00000000000000ff"
                .parse()
                .unwrap(),
            manifest_blake3: None,
        };
        let entry_bytes = serde_json::to_vec(&entry).unwrap().len();
        let count = usize::try_from(PRUNE_RECORD_BYTES_MAX).unwrap() / entry_bytes + 1;
        let dataset = "tank/a".parse().unwrap();
        let put = put_record(&env, &dataset, vec![entry; count]).await;
        let error = put.err().expect("the record is longer than the limit");
        assert!(
            error.to_string().contains("is longer than readers accept"),
            "{error}"
        );
        assert_eq!(store.keys(), [""; 0]);
    }
}
