//! `verify-checksums`: compares signed manifests with what the store itself reports. Downloads no
//! chunk, unless asked to read some or all of them.

mod backup;
mod chains;
mod data;
mod evidence;

use super::keys::{every_keyring, list_flaws};
use super::{RunError, error_chain};
use crate::catalog::CatalogError;
use crate::catalog::{Catalog, StoredBackup, read_catalog, read_pruned};
use crate::model::{BackupId, DatasetName, Digest};
use crate::sign::TrustedKeys;
use crate::state::history::OwnCommit;
use crate::store::key::{BackupObject, KEYRING_PREFIX, backup_prefix};
use crate::store::{EvidenceTier, ObjectKey, StoreRead};
use backup::{BackupFindings, verify_backup};
use futures_util::{StreamExt, stream};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use chains::BrokenBackup;
pub use data::{ReadData, ReadReport};
pub use evidence::compare;

/// The most backups that are checked concurrently, each with a few requests in flight.
const BACKUPS_MAX: usize = 4;
/// The reason that is given for a missing object.
const MISSING: &str = "missing";

/// The result for one dataset in one store.
#[derive(Debug, Default, Serialize)]
pub struct VerifyReport {
    /// The number of backups whose manifest verifies.
    pub backups: usize,
    /// The number of objects that are as confirmed, by the strength of the store's evidence.
    #[serde(skip)]
    pub objects: BTreeMap<EvidenceTier, usize>,
    /// All findings of damage.
    #[serde(skip)]
    pub damage: Vec<Damage>,
    /// The backups that the damage makes impossible to restore, and what that costs.
    #[serde(skip)]
    pub broken: Vec<BrokenBackup>,
    /// Objects that no manifest names: unfinished attempts and unknown keys. They are reported, and
    /// are never damage.
    pub extra: Vec<String>,
    /// Backups that were pruned during the verification.
    pub pruned_meanwhile: Vec<BackupId>,
    /// The newest backup.
    pub newest: Option<BackupId>,
    /// The result of the downloads, if any were requested.
    pub read: Option<ReadReport>,
    /// Backups that receipts name as present in this store.
    #[serde(skip)]
    live: BTreeSet<BackupId>,
}

/// A finding of damage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The key of the object.
    pub key: String,
    /// The backup that it belongs to.
    pub backup: Option<BackupId>,
    /// The fault.
    pub reason: String,
    /// Whether the fault makes the backup impossible to restore. The loss of a keyring copy, a
    /// receipt or instructions is damage, but no reason to refuse a restore.
    #[serde(rename = "breaks_restore")]
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

    /// Returns the damage of a backup that is gone as a whole.
    fn of_whole(dataset: &DatasetName, id: &BackupId, reason: String) -> Self {
        Self {
            key: backup_prefix(dataset, id),
            backup: Some(id.clone()),
            reason,
            breaks: true,
        }
    }

    /// Returns whether the object is missing.
    pub fn is_missing(&self) -> bool {
        self.reason.starts_with(MISSING)
    }
}

/// The checks of a verification beyond what the store reports.
#[derive(Default)]
pub struct VerifyOptions<'a> {
    /// Chunks to download and check.
    pub read: Option<ReadData>,
    /// The dataset's backups in the intermediate directory: their manifests are compared with those
    /// of the store.
    pub intermediate: Option<&'a Catalog>,
    /// The last backups that this host committed to this store. Only these are evidence from
    /// outside the store about its newest backups.
    pub own_commits: Vec<OwnCommit>,
}

/// Verifies all backups of one dataset against what the store reports, for tests.
///
/// # Errors
/// As for [`verify_with`].
#[cfg(any(test, feature = "testing"))]
pub async fn verify_dataset(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
) -> Result<VerifyReport, RunError> {
    let (_, _, mut report) =
        read_for_verify(store, dataset, trusted, &VerifyOptions::default()).await?;
    report.settle(store, dataset, trusted).await?;
    Ok(report)
}

/// Verifies all backups of one dataset against what the store reports, with the checks of `options`
/// in addition.
///
/// # Errors
/// [`RunError`] when something could not be read; [`RunError::Interrupted`] when a stop was
/// requested while chunks were read. Damage is in the report, not an error.
pub async fn verify_with(
    store: Arc<dyn StoreRead>,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
    options: &VerifyOptions<'_>,
) -> Result<VerifyReport, RunError> {
    let (catalog, chunks, mut report) = read_for_verify(&*store, dataset, trusted, options).await?;
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

/// Makes all checks except the second check of damage (`settle`). Returns the catalog, the chunks
/// of each backup, and the findings.
async fn read_for_verify(
    store: &dyn StoreRead,
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
    let gaps = chains::gaps(&catalog, &report.damage);
    report.damage.extend(gaps);
    // Collect the futures first: a lazy stream would tie them to its own lifetime.
    let work: Vec<_> = catalog
        .backups
        .iter()
        .map(|backup| verify_backup(store, backup, trusted))
        .collect();
    let mut verified = stream::iter(work).buffered(BACKUPS_MAX);
    let mut chunks = Vec::new();
    while let Some(found) = verified.next().await {
        let BackupFindings {
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
    /// Reports ids without a verified manifest, and manifests that differ from those in the
    /// intermediate directory.
    fn attempts(&mut self, catalog: &Catalog, intermediate: Option<&Catalog>) {
        let elsewhere = |id: &BackupId| intermediate.and_then(|catalog| catalog.backup(id));
        for attempt in &catalog.attempts {
            let prefix = backup_prefix(&catalog.dataset, &attempt.id);
            let reason = match &attempt.untrusted {
                Some(CatalogError::Damaged { reason, .. }) if reason == MISSING => {
                    MISSING.to_owned()
                }
                Some(error) => error_chain(error),
                None if attempt.was_committed && !catalog.holds(attempt.id.snapshot_guid()) => {
                    format!("{MISSING}, but its signature exists")
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

    /// Reports backups that are gone although a later receipt names them or this host committed
    /// them, and whose deletion no signed record explains.
    async fn missing_backups(
        &mut self,
        store: &dyn StoreRead,
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
            let reason = format!("{who}, it is gone, and no signed prune record explains it");
            self.damage
                .push(Damage::of_whole(&catalog.dataset, id, reason));
        }
        Ok(())
    }

    /// Checks that the keyring of every backup is also among the keyrings, because a restore on a
    /// bare host begins there, and so are the lists of what retired keys are trusted for.
    async fn keyrings(
        &mut self,
        store: &dyn StoreRead,
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

    /// Checks the apparent damage again. If the manifest of a backup disappeared in the meantime
    /// and a signed record says that it was pruned, its missing objects are no damage.
    async fn settle(
        &mut self,
        store: &dyn StoreRead,
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
