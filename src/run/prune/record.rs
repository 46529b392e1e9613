//! Signed prune records: put before anything is deleted, and withdrawn when the backups that they
//! name stay. A record that the store keeps because it is locked is voided by a newer record:
//! otherwise it would still prove a deletion that was not made, and a backup that is lost later
//! would pass for pruned.

use super::PruneEnv;
use super::at_work::OwnRecords;
use super::locks::last_lock;
use crate::manifest::{FORMAT, PRUNE_RECORD_BYTES_MAX, PruneRecord, PrunedEntry, to_stored_bytes};
use crate::model::{BackupId, DatasetName};
use crate::plan::prune::Lock;
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

    /// Deletes the record, or voids it if the store keeps it locked. The caller has deleted none of
    /// the backups that the record names.
    pub(super) async fn withdraw(
        &self,
        env: &PruneEnv,
        dataset: &DatasetName,
    ) -> Result<(), RunError> {
        let content = Content {
            voids: vec![self.key.to_string()],
            ..Content::new(env, Vec::new())
        };
        remove_record(env, dataset, &self.key, content).await
    }
}

/// Puts a record of the backups that are about to be deleted, its signature first.
pub(super) async fn put_record(
    env: &PruneEnv,
    dataset: &DatasetName,
    pruned: Vec<PrunedEntry>,
) -> Result<WrittenRecord, RunError> {
    let content = Content::new(env, pruned);
    put_record_of(env, dataset, content).await
}

/// The statements of a record.
struct Content {
    pruned: Vec<PrunedEntry>,
    written_at: Timestamp,
    recorded_at: Option<Timestamp>,
    voids: Vec<String>,
}

impl Content {
    /// Names these backups from now on.
    fn new(env: &PruneEnv, pruned: Vec<PrunedEntry>) -> Self {
        Self {
            pruned,
            written_at: env.now,
            recorded_at: None,
            voids: Vec::new(),
        }
    }

    /// Replaces the record under `key` and what that record voids.
    fn replacing(key: &ObjectKey, record: &PruneRecord, pruned: Vec<PrunedEntry>) -> Self {
        let mut voids = record.voids.clone();
        voids.push(key.to_string());
        Self {
            pruned,
            written_at: record.written_at,
            recorded_at: record.recorded_at,
            voids,
        }
    }
}

async fn put_record_of(
    env: &PruneEnv,
    dataset: &DatasetName,
    content: Content,
) -> Result<WrittenRecord, RunError> {
    let nonce = getrandom::u64()?;
    let time = content
        .written_at
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string();
    let key = ObjectKey::prune_record(dataset, &time, nonce);
    let record = PruneRecord {
        format: FORMAT,
        object_type: SignedType::PruneRecord.as_str().to_owned(),
        dataset: dataset.clone(),
        pruned: content.pruned,
        tool_version: env!("CARGO_PKG_VERSION").to_owned(),
        written_at: content.written_at,
        recorded_at: content.recorded_at,
        voids: content.voids,
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
        let content = Content::replacing(key, record, rest);
        remove_record(env, dataset, key, content).await?;
    }
    Ok(())
}

/// Deletes a record that `replacement` voids. The replacement is put only if it is needed: if it
/// names backups or voids further records, or if the store keeps the record because it is locked. No
/// reader counts a void record, so that a locked one is reported only once.
async fn remove_record(
    env: &PruneEnv,
    dataset: &DatasetName,
    key: &ObjectKey,
    replacement: Content,
) -> Result<(), RunError> {
    let mut replacement = Some(replacement);
    if let Some(needed) = replacement.take_if(|it| !it.pruned.is_empty() || it.voids.len() > 1) {
        put_record_of(env, dataset, needed).await?;
    }
    let Some(lock) = delete_record(env, key).await? else {
        return Ok(());
    };
    let store = env.store.url();
    match lock {
        Lock::Until(until) => tracing::warn!(
            "{store} keeps the prune record {key}, which is locked until {until}; a newer record voids it"
        ),
        Lock::Unknown(reason) => tracing::warn!(
            "{store} keeps the locked prune record {key}: {reason}; a newer record voids it"
        ),
    }
    if let Some(replacement) = replacement {
        put_record_of(env, dataset, replacement).await?;
    }
    Ok(())
}

/// Deletes a record before its signature: a signature alone says nothing. Returns the lock if the
/// store refuses because the record is locked.
async fn delete_record(env: &PruneEnv, key: &ObjectKey) -> Result<Option<Lock>, RunError> {
    if let Err(refused) = env.store.delete(key).await {
        let found = env.store.head(key).await.ok().flatten();
        let until = found.and_then(|evidence| evidence.locked_until);
        return match last_lock(until.into_iter(), env.now) {
            Some(lock) => Ok(Some(lock)),
            None => Err(refused.into()),
        };
    }
    env.store.delete(&key.signature()).await?;
    Ok(None)
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
