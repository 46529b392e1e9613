//! `verify-checksums`: holds signed manifests against what the store itself reports. Downloads no
//! chunk, unless asked to read some or all of them.

mod backup;
mod chains;
mod data;

use super::keys::{every_keyring, list_flaws};
use super::{RunError, error_chain};
use crate::catalog::CatalogError;
use crate::catalog::{Catalog, StoredBackup, read_catalog, read_pruned};
use crate::model::{BackupId, DatasetName, Digest};
use crate::sign::TrustedKeys;
use crate::state::history::OwnCommit;
use crate::store::key::{BackupObject, KEYRING_PREFIX, backup_prefix};
use crate::store::{Evidence, EvidenceTier, ObjectKey, ObjectStore};
use backup::{Found, verify_backup};
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use chains::BrokenBackup;
pub use data::{ReadData, ReadReport};

/// Backups looked at at once, each with a few requests under way.
const BACKUPS_MAX: usize = 4;
/// The reason of an object that is not there.
const MISSING: &str = "missing";

/// What was found of one dataset in one store.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Backups whose manifest verifies.
    pub backups: usize,
    /// Objects that are as they were confirmed, by how strong the store's word for them is.
    pub objects: BTreeMap<EvidenceTier, usize>,
    /// Everything that is not as it must be.
    pub damage: Vec<Damage>,
    /// The backups that cannot be restored because of it, and what that costs.
    pub broken: Vec<BrokenBackup>,
    /// Objects that no manifest names: unfinished attempts and unknown keys. Reported, never
    /// damage.
    pub extra: Vec<String>,
    /// Backups that a prune took away while they were looked at.
    pub pruned_meanwhile: Vec<BackupId>,
    /// The newest backup.
    pub newest: Option<BackupId>,
    /// What was downloaded, when that was asked for.
    pub read: Option<ReadReport>,
    /// Backups that receipts saw in this store.
    live: BTreeSet<BackupId>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The object.
    pub key: String,
    /// The backup that it belongs to.
    pub backup: Option<BackupId>,
    /// What is wrong.
    pub reason: String,
    /// The backup cannot be restored because of it. A keyring copy, a receipt or instructions lost
    /// are damage, and no reason to refuse a restore.
    pub breaks: bool,
}

impl Damage {
    fn new(key: String, backup: Option<BackupId>, reason: String) -> Self {
        let needed = |object| {
            matches!(
                object,
                BackupObject::Chunk { .. } | BackupObject::ChunkList(_) | BackupObject::Manifest
            )
        };
        let breaks = ObjectKey::parse(&key).is_some_and(|parsed| needed(parsed.object));
        Self {
            key,
            backup,
            reason,
            breaks,
        }
    }

    /// A backup that is gone as a whole.
    fn of_whole(dataset: &DatasetName, id: &BackupId, reason: String) -> Self {
        Self {
            key: backup_prefix(dataset, id),
            backup: Some(id.clone()),
            reason,
            breaks: true,
        }
    }

    /// The object is not there at all.
    pub fn is_missing(&self) -> bool {
        self.reason.starts_with(MISSING)
    }
}

/// What is asked of a verification beyond what the store reports.
#[derive(Default)]
pub struct VerifyOptions<'a> {
    /// Chunks to download and check.
    pub read: Option<ReadData>,
    /// What the intermediate directory has of the dataset: its manifests are held against those of
    /// the store.
    pub intermediate: Option<&'a Catalog>,
    /// The last backups that this host itself committed to this store: the only word from outside
    /// about the newest.
    pub own_commits: Vec<OwnCommit>,
}

/// Verifies all backups of one dataset against what the store reports.
///
/// # Errors
/// [`RunError`] when something could not be asked; damage is in the report, not an error.
pub async fn verify_dataset(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<VerifyReport, RunError> {
    let (_, _, mut report) = look(store, dataset, trusted, &VerifyOptions::default()).await?;
    report.settle(store, dataset, trusted).await?;
    Ok(report)
}

/// As [`verify_dataset`], with more.
///
/// # Errors
/// As for [`verify_dataset`]; [`RunError::Interrupted`] when a stop was asked for while chunks were
/// read.
pub async fn verify_with(
    store: Arc<dyn ObjectStore>,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
    options: &VerifyOptions<'_>,
) -> Result<VerifyReport, RunError> {
    let (catalog, chunks, mut report) = look(&*store, dataset, trusted, options).await?;
    if let Some(read) = &options.read {
        let (read, damage) =
            data::read_chunks_of(&store, &catalog, chunks, read, &report.damage).await?;
        report.damage.extend(damage);
        report.read = Some(read);
        report.broken = chains::broken(&catalog, &report.damage);
    }
    report.settle(&*store, dataset, trusted).await?;
    Ok(report)
}

type ChunksOf = Vec<Vec<crate::manifest::ChunkEntry>>;

/// Everything but the settling: the catalog, the chunks of each of its backups, and what was found.
async fn look(
    store: &dyn ObjectStore,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
    options: &VerifyOptions<'_>,
) -> Result<(Catalog, ChunksOf, VerifyReport), RunError> {
    let catalog = read_catalog(store, dataset, trusted).await?;
    let newest = catalog.newest().map(|backup| backup.manifest.id.clone());
    let mut report = VerifyReport {
        newest,
        backups: catalog.backups.len(),
        ..Default::default()
    };
    report.attempts(&catalog, options.intermediate);
    report
        .extra
        .extend(catalog.unknown.iter().map(|object| object.key.clone()));
    report.damage.extend(chains::gaps(&catalog));
    // Collected first: a stream that made them as it goes would tie them to its own lifetime.
    let work: Vec<_> = catalog
        .backups
        .iter()
        .map(|backup| verify_backup(store, backup, trusted))
        .collect();
    let mut verified = stream::iter(work).buffered(BACKUPS_MAX);
    let mut chunks = Vec::new();
    while let Some(found) = verified.next().await {
        let Found {
            objects,
            damage,
            extra,
            live,
            chunks: of_backup,
            ..
        } = found?;
        objects
            .into_iter()
            .for_each(|(tier, count)| *report.objects.entry(tier).or_default() += count);
        report.damage.extend(damage);
        report.extra.extend(extra);
        report.live.extend(live);
        chunks.push(of_backup);
    }
    drop(verified);
    report
        .missing_backups(store, trusted, &catalog, &options.own_commits)
        .await?;
    report.keyrings(store, &catalog.backups, trusted).await?;
    report.broken = chains::broken(&catalog, &report.damage);
    Ok((catalog, chunks, report))
}

impl VerifyReport {
    /// Ids without a believed manifest, and manifests that the intermediate directory knows
    /// otherwise.
    fn attempts(&mut self, catalog: &Catalog, intermediate: Option<&Catalog>) {
        let elsewhere = |id: &BackupId| intermediate.and_then(|catalog| catalog.backup(id));
        for attempt in &catalog.attempts {
            let prefix = backup_prefix(&catalog.dataset, &attempt.id);
            let reason = match &attempt.disbelieved {
                Some(CatalogError::Damaged { reason, .. }) if reason == MISSING => {
                    MISSING.to_owned()
                }
                Some(error) => error_chain(error),
                None if attempt.was_committed && !catalog.holds(attempt.id.snapshot_guid()) => {
                    format!("{MISSING}, and its signature is there")
                }
                None => {
                    self.extra.push(format!(
                        "{prefix} ({} objects of an unfinished upload)",
                        attempt.objects
                    ));
                    continue;
                }
            };
            let advice = match elsewhere(&attempt.id) {
                Some(_) => {
                    "; the intermediate directory has it whole: `forget` it here and upload it again"
                }
                None => "",
            };
            let key = format!("{prefix}manifest.json");
            self.damage.push(Damage::new(
                key,
                Some(attempt.id.clone()),
                format!("{reason}{advice}"),
            ));
        }
        for backup in &catalog.backups {
            let id = &backup.manifest.id;
            if elsewhere(id).is_some_and(|other| other.manifest_blake3 != backup.manifest_blake3) {
                let key = format!("{}manifest.json", backup_prefix(&catalog.dataset, id));
                let reason =
                    "the intermediate directory has another manifest under this id".to_owned();
                self.damage.push(Damage::new(key, Some(id.clone()), reason));
            }
        }
    }

    /// A backup that a later receipt saw, or that this host itself committed, that is gone, and
    /// whose deletion no signed record explains.
    async fn missing_backups(
        &mut self,
        store: &dyn ObjectStore,
        trusted: &TrustedKeys,
        catalog: &Catalog,
        own_commits: &[OwnCommit],
    ) -> Result<(), RunError> {
        let is_damaged = |id: &BackupId| {
            self.damage
                .iter()
                .any(|damage| damage.backup.as_ref() == Some(id))
        };
        let is_known = |id: &&BackupId| catalog.backup(id).is_some() || is_damaged(id);
        let seen = self
            .live
            .iter()
            .map(|id| (id, "a later backup saw it here".to_owned()));
        let own = own_commits.iter().map(|own| {
            (
                &own.id,
                format!(
                    "this host stored it here on {}",
                    own.at.strftime("%Y-%m-%d")
                ),
            )
        });
        let missing: BTreeMap<BackupId, String> = own
            .chain(seen)
            .filter(|(id, _)| !is_known(id))
            .map(|(id, why)| (id.clone(), why))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        let pruned = read_pruned(store, &catalog.dataset, trusted).await?;
        for (id, who) in missing.iter().filter(|(id, _)| !pruned.contains(id)) {
            let reason = format!("{who}, it is gone, and no signed prune record says why");
            self.damage
                .push(Damage::of_whole(&catalog.dataset, id, reason));
        }
        Ok(())
    }

    /// The keyring of every backup must lie among the keyrings too: a bare host begins there. So
    /// must the lists of what retired keys are trusted for.
    async fn keyrings(
        &mut self,
        store: &dyn ObjectStore,
        backups: &[StoredBackup],
        trusted: &TrustedKeys,
    ) -> Result<(), RunError> {
        for (key, reason) in list_flaws(store, trusted).await? {
            self.damage.push(Damage::new(key.to_string(), None, reason));
        }
        let needed: BTreeSet<Digest> = backups
            .iter()
            .filter_map(|backup| backup.manifest.files.keyring)
            .collect();
        if needed.is_empty() {
            return Ok(());
        }
        let stored: BTreeSet<Digest> = every_keyring(store)
            .await?
            .iter()
            .map(|keyring| Digest::of(&keyring.bytes))
            .collect();
        for digest in needed.difference(&stored) {
            let reason = format!(
                "none of them is the keyring with BLAKE3 {digest} that backups here are sealed for"
            );
            self.damage
                .push(Damage::new(KEYRING_PREFIX.to_owned(), None, reason));
        }
        Ok(())
    }

    /// Looks again at what seems damaged: a backup whose manifest went away meanwhile was pruned,
    /// if a signed record says so. What is missing of it is no damage then.
    async fn settle(
        &mut self,
        store: &dyn ObjectStore,
        dataset: &DatasetName,
        trusted: &TrustedKeys,
    ) -> Result<(), RunError> {
        let suspects: BTreeSet<BackupId> = self
            .damage
            .iter()
            .filter_map(|damage| damage.backup.clone())
            .collect();
        let mut gone = Vec::new();
        for id in suspects {
            if store
                .head(&ObjectKey::backup(dataset, &id, &BackupObject::Manifest))
                .await?
                .is_none()
            {
                gone.push(id);
            }
        }
        if gone.is_empty() {
            return Ok(());
        }
        let pruned = read_pruned(store, dataset, trusted).await?;
        gone.retain(|id| pruned.contains(id));
        let is_gone = |id: &BackupId| gone.contains(id);
        self.damage
            .retain(|damage| !damage.backup.as_ref().is_some_and(is_gone));
        self.broken.retain(|broken| !is_gone(&broken.id));
        self.pruned_meanwhile = gone;
        Ok(())
    }
}

/// Holds what the store says now against what it said when it confirmed the object. Evidence of the
/// kind that was recorded must still be there and equal: weaker evidence today is damage.
///
/// # Errors
/// What is different, as a sentence.
pub fn compare(recorded: &Evidence, found: Option<&Evidence>) -> Result<EvidenceTier, String> {
    let found = found.ok_or("missing")?;
    if found.bytes != recorded.bytes {
        return Err(format!("has {} bytes, not {}", found.bytes, recorded.bytes));
    }
    let same = |what: &str, before: &Option<String>, now: &Option<String>| match (before, now) {
        (Some(before), Some(now)) if before != now => Err(format!(
            "{what} is {now}, and was {before} when it was confirmed"
        )),
        (Some(_), None) => Err(format!("the store no longer reports its {what}")),
        _ => Ok(()),
    };
    match recorded.tier {
        EvidenceTier::Crc64nvmeFull
        | EvidenceTier::Sha256Composite
        | EvidenceTier::Sha1
        | EvidenceTier::Crc32c => {
            same("checksum", &recorded.checksum, &found.checksum)?;
        }
        EvidenceTier::Md5Etag => same("ETag", &recorded.etag, &found.etag)?,
        EvidenceTier::IdPin => same("id", &recorded.version_id, &found.version_id)?,
        EvidenceTier::SizeOnly | EvidenceTier::ReadBack | EvidenceTier::Unknown => {}
    }
    Ok(recorded.tier)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(tier: EvidenceTier, checksum: Option<&str>) -> Evidence {
        let checksum = checksum.map(str::to_owned);
        Evidence {
            tier,
            bytes: 5,
            checksum,
            etag: None,
            version_id: None,
            part_bytes: None,
            locked_until: None,
        }
    }

    #[test]
    fn evidence_must_still_be_there_and_equal() {
        let recorded = evidence(EvidenceTier::Crc64nvmeFull, Some("a"));
        assert_eq!(
            compare(&recorded, Some(&recorded)),
            Ok(EvidenceTier::Crc64nvmeFull)
        );
        let other = evidence(EvidenceTier::Crc64nvmeFull, Some("b"));
        assert_eq!(
            compare(&recorded, Some(&other)),
            Err("checksum is b, and was a when it was confirmed".into())
        );
        let weaker = evidence(EvidenceTier::SizeOnly, None);
        assert_eq!(
            compare(&recorded, Some(&weaker)),
            Err("the store no longer reports its checksum".into())
        );
        assert_eq!(compare(&recorded, None), Err("missing".into()));
        let longer = Evidence {
            bytes: 6,
            ..recorded.clone()
        };
        assert_eq!(
            compare(&recorded, Some(&longer)),
            Err("has 6 bytes, not 5".into())
        );
    }
}
