//! Finds the backups that lead to a requested point, and the store from which each of them is read.

use super::{RestoreBackup, RestorePoint, RestoreSet};
use crate::catalog::CatalogError;
use crate::catalog::sealed::open_small;
use crate::catalog::{Catalog, StoredBackup, find_gaps, get_pinned, read_catalog, read_chunks};
use crate::keyring::KeyFile;
use crate::manifest::{Manifest, ManifestError, PRIVATE_BYTES_MAX, Private, parse_as};
use crate::model::{BackupId, DatasetName, Digest};
use crate::plan::BackupFacts;
use crate::plan::restore::plan_restore;
use crate::plan::timeline::Timeline;
use crate::run::keys::foreign_recipient;
use crate::run::{RunError, error_chain};
use crate::sign::SignatureError;
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, StoreRead};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Reads what the stores hold of a dataset, finds the backup and checks its whole chain. `stores`
/// begin with the nearest: each backup comes from the first store that has all of it. A store that
/// cannot be read is named in [`RestoreSet::unasked`]; an error is returned if no store can be
/// read.
///
/// # Errors
/// [`RunError`] naming the object that is missing, damaged or untrusted; nothing was received then.
pub async fn find_restore_set(
    stores: &[Arc<dyn StoreRead>],
    dataset: &DatasetName,
    keys: &KeyFile,
    point: &RestorePoint,
) -> Result<RestoreSet, RunError> {
    let shelves = Shelves::read(stores, dataset, keys).await?;
    let target = shelves.target(keys, point).await?;
    shelves.chain(&target, keys).await
}

/// Finds and checks one backup without the chain before it, for its bare stream.
///
/// # Errors
/// As for [`find_restore_set`].
pub async fn find_restore_backup(
    stores: &[Arc<dyn StoreRead>],
    dataset: &DatasetName,
    keys: &KeyFile,
    id: &BackupId,
) -> Result<RestoreBackup, RunError> {
    let shelves = Shelves::read(stores, dataset, keys).await?;
    let backup = shelves
        .backup(id)
        .ok_or_else(|| shelves.why_none(Some(id)))?;
    shelves.load(&backup.manifest, keys).await
}

/// The catalogs of one dataset in all stores, the nearest first.
pub(super) struct Shelves {
    dataset: DatasetName,
    shelves: Vec<(Arc<dyn StoreRead>, Catalog)>,
    unasked: Vec<String>,
    /// A backup that is sealed to a recipient unknown to our keys, with that recipient: our keys
    /// may be outdated.
    foreign: Option<(BackupId, String)>,
}

impl Shelves {
    pub(super) async fn read(
        stores: &[Arc<dyn StoreRead>],
        dataset: &DatasetName,
        keys: &KeyFile,
    ) -> Result<Self, RunError> {
        let mut shelves = Vec::new();
        let mut unasked = Vec::new();
        let mut first = None;
        for store in stores {
            match read_catalog(&**store, dataset, &keys.trusted).await {
                Ok(catalog) => shelves.push((Arc::clone(store), catalog)),
                Err(error) => {
                    unasked.push(error_chain(&error));
                    first = first.or(Some(error));
                }
            }
        }
        if let (true, Some(error)) = (shelves.is_empty(), first) {
            return Err(error.into());
        }
        let foreign = find_foreign(&shelves, keys).await?;
        Ok(Self {
            dataset: dataset.clone(),
            shelves,
            unasked,
            foreign,
        })
    }

    /// Returns every backup once, as the nearest store lists it.
    pub(super) fn backups(&self) -> impl Iterator<Item = &StoredBackup> {
        let mut seen = BTreeSet::new();
        let all = self
            .shelves
            .iter()
            .flat_map(|(_, catalog)| &catalog.backups);
        all.filter(move |backup| seen.insert(&backup.manifest.id))
    }

    fn backup(&self, id: &BackupId) -> Option<&StoredBackup> {
        self.shelves
            .iter()
            .find_map(|(_, catalog)| catalog.backup(id))
    }

    /// Loads and checks the chain that leads to this backup.
    pub(super) async fn chain(
        &self,
        target: &BackupId,
        keys: &KeyFile,
    ) -> Result<RestoreSet, RunError> {
        let known: Vec<(&Manifest, Digest)> = self
            .backups()
            .map(|backup| (&backup.manifest, backup.manifest_blake3))
            .collect();
        let chain = plan_restore(&known, target).map_err(|gap| {
            RunError::refused(format!("{}: {gap}", self.dataset), "choose an older backup")
        })?;
        let mut backups = Vec::new();
        for manifest in chain {
            backups.push(self.load(manifest, keys).await?);
        }
        Ok(RestoreSet {
            backups,
            unasked: self.unasked.clone(),
        })
    }

    pub(super) async fn target(
        &self,
        keys: &KeyFile,
        point: &RestorePoint,
    ) -> Result<BackupId, RunError> {
        match point {
            RestorePoint::Id(id) => match self.backup(id) {
                Some(backup) => Ok(backup.manifest.id.clone()),
                None => Err(self.why_none(Some(id))),
            },
            RestorePoint::Newest => self.newest(None),
            RestorePoint::At(time) => self.newest(Some(*time)),
            RestorePoint::Snapshot(short) => self.named(keys, short).await,
        }
    }

    /// Returns the newest backup whose snapshot has that short name. Two time lines may have
    /// snapshots with the same name.
    async fn named(&self, keys: &KeyFile, short: &str) -> Result<BackupId, RunError> {
        let dataset = &self.dataset;
        let mut seen = BTreeSet::new();
        let mut named = BTreeSet::new();
        for (store, catalog) in &self.shelves {
            for StoredBackup { manifest, .. } in &catalog.backups {
                if seen.contains(&manifest.id) {
                    continue;
                }
                let private = match read_private(&**store, manifest, keys).await {
                    Ok(private) => private,
                    Err(error) if error.is_damage() => {
                        tracing::warn!(id = %manifest.id, error = error_chain(&error), "its snapshot's name cannot be read");
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                seen.insert(&manifest.id);
                if private
                    .snapshot_name
                    .rsplit_once('@')
                    .is_some_and(|(_, name)| name == short)
                {
                    named.insert(&manifest.id);
                }
            }
        }
        let facts = self.facts();
        let named = facts.iter().filter(|backup| named.contains(&backup.id));
        match self.only_tip(&Timeline::new(&facts), named)? {
            Some(newest) => Ok(newest.id.clone()),
            None => {
                let what = format!("{} has no backup of {dataset}@{short}", self.urls());
                Err(RunError::refused(
                    what,
                    "`zfs-backup show --include-remote` lists what there is",
                ))
            }
        }
    }

    /// Returns the newest of these backups; `None` when there are none.
    ///
    /// # Errors
    /// [`RunError::Refused`] when they are of several time lines or datasets, so that only a person
    /// can choose. Transaction groups of two pools cannot be compared.
    fn only_tip<'a>(
        &self,
        timeline: &Timeline<'a>,
        backups: impl Iterator<Item = &'a BackupFacts>,
    ) -> Result<Option<&'a BackupFacts>, RunError> {
        let dataset = &self.dataset;
        let mut by_origin: BTreeMap<_, Vec<&BackupFacts>> = BTreeMap::new();
        for backup in backups {
            let origin = (backup.origin.dataset_guid, backup.origin.pool_guid);
            by_origin.entry(origin).or_default().push(backup);
        }
        let mut newest: Vec<&BackupFacts> = Vec::new();
        for backups in by_origin.values() {
            newest.extend(
                timeline
                    .newest(backups)
                    .map_err(|candidates| two_lines(dataset, &candidates))?,
            );
        }
        // A dataset that was restored and is in use again has another origin, but continues the
        // time line.
        let ends_all = |tip: &BackupFacts| newest.iter().all(|other| timeline.follows(tip, other));
        match newest.iter().find(|tip| ends_all(tip)) {
            None if !newest.is_empty() => Err(RunError::refused(
                format!(
                    "backups of {} datasets lie under the name {dataset}",
                    newest.len()
                ),
                "choose one with --backup ID; `zfs-backup show --include-remote` lists them",
            )),
            tip => Ok(tip.copied()),
        }
    }

    /// Returns the facts that decisions need of every backup.
    fn facts(&self) -> Vec<BackupFacts> {
        let facts = |backup: &StoredBackup| {
            BackupFacts::new(&backup.manifest, backup.manifest_blake3, 0, None)
        };
        self.backups().map(facts).collect()
    }

    /// Returns the newest of the wanted backups, which are of one origin; `None` when there are
    /// none.
    ///
    /// # Errors
    /// [`RunError::Refused`] with the candidates when they are of two time lines.
    pub(super) fn newest_of(
        &self,
        is_wanted: impl Fn(&Manifest) -> bool,
    ) -> Result<Option<&Manifest>, RunError> {
        let facts = self.facts();
        let is_wanted = |id: &BackupId| {
            self.backup(id)
                .is_some_and(|backup| is_wanted(&backup.manifest))
        };
        let wanted: Vec<&BackupFacts> = facts
            .iter()
            .filter(|backup| is_wanted(&backup.id))
            .collect();
        match Timeline::new(&facts).newest(&wanted) {
            Ok(newest) => Ok(newest
                .and_then(|newest| self.backup(&newest.id))
                .map(|backup| &backup.manifest)),
            Err(candidates) => Err(two_lines(&self.dataset, &candidates)),
        }
    }

    /// Returns the newest backup that is not after `limit`. Refuses when a newer backup is lost,
    /// when our keys may be outdated, or when only a person can choose between time lines: a
    /// restore never falls back silently to an older state.
    fn newest(&self, limit: Option<Timestamp>) -> Result<BackupId, RunError> {
        let dataset = &self.dataset;
        let within = |at: Timestamp| limit.is_none_or(|limit| at <= limit);
        let facts = self.facts();
        let wanted = facts
            .iter()
            .filter(|backup| within(backup.snapshot.created_at));
        let Some(tip) = self.only_tip(&Timeline::new(&facts), wanted)? else {
            return Err(self.none_until(limit));
        };
        let id = &tip.id;
        if let Some((foreign, recipient)) = &self.foreign {
            return Err(RunError::refused(
                format!(
                    "{dataset}: {foreign} is sealed to {recipient}, a key that is not known here: these keys were replaced \
                     and the newest keyring is gone or has another passphrase, or somebody else made that backup. With \
                     old, leaked keys anybody could have made the newest backup"
                ),
                format!(
                    "use the newest passphrase, or --identity with the newest paper copy; \
                     `{}/@{foreign}/keyring.age` may be a copy of the keyring. To restore the \
                     newest backup that these keys signed: --backup {id}",
                    self.dataset
                ),
            ));
        }
        // A lost attempt at the same snapshot is not newer, for example one that failed between the
        // last signature and the manifest. An attempt that is complete in another store is not
        // lost.
        let lost = self
            .shelves
            .iter()
            .flat_map(|(_, catalog)| catalog.lost())
            .map(|attempt| &attempt.id);
        let is_newer = |other: &&BackupId| {
            *other > id
                && other.snapshot_guid() != id.snapshot_guid()
                && self.backup(other).is_none()
                && limit.is_none_or(|limit| !other.is_after(limit))
        };
        match lost.filter(is_newer).max() {
            None => Ok(id.clone()),
            Some(lost) => Err(RunError::refused(
                format!(
                    "{dataset}: {lost} is newer than the newest whole backup, and its manifest is \
                     missing, invalid or untrusted"
                ),
                format!("check it with verify-checksums; to restore the older one: --backup {id}"),
            )),
        }
    }

    fn none_until(&self, limit: Option<Timestamp>) -> RunError {
        let oldest = self
            .backups()
            .map(|backup| backup.manifest.snapshot.created_at)
            .min();
        match (limit, oldest) {
            (Some(limit), Some(oldest)) => RunError::refused(
                format!("{}: no backup is as old as {limit}", self.dataset),
                format!(
                    "the oldest is of {oldest}; `zfs-backup show --include-remote` lists what there is"
                ),
            ),
            _ => self.why_none(None),
        }
    }

    /// Loads one backup with its chunks, from the nearest store that has all of it.
    async fn load(&self, manifest: &Manifest, keys: &KeyFile) -> Result<RestoreBackup, RunError> {
        let mut first = None;
        for (store, catalog) in &self.shelves {
            let Some(there) = catalog
                .backup(&manifest.id)
                .filter(|there| there.manifest == *manifest)
            else {
                continue;
            };
            match load_backup(store, there, keys).await {
                Ok(backup) => return Ok(backup),
                Err(error) => {
                    if self.shelves.len() > 1 {
                        tracing::warn!(id = %manifest.id, store = store.url(), error = error_chain(&error), "incomplete there");
                    }
                    first = first.or(Some(error));
                }
            }
        }
        Err(first.unwrap_or_else(|| self.why_none(Some(&manifest.id))))
    }

    /// Returns the error for a missing backup. A manifest that does not verify is reported as such,
    /// and not as missing.
    fn why_none(&self, id: Option<&BackupId>) -> RunError {
        let dataset = &self.dataset;
        let mut untrusted = self
            .shelves
            .iter()
            .flat_map(|(_, catalog)| catalog.untrusted());
        if let Some((other, error)) = untrusted.find(|(other, _)| id.is_none_or(|id| id == *other))
        {
            return not_believed(dataset, other, error);
        }
        let attempts: usize = self
            .shelves
            .iter()
            .map(|(_, catalog)| catalog.attempts.len())
            .sum();
        let what = match id {
            Some(id) => format!("there is no whole backup {id} of {dataset}"),
            None if attempts > 0 => {
                format!("there is no whole backup of {dataset}, only {attempts} unfinished")
            }
            None => format!("there is no backup of {dataset}"),
        };
        RunError::refused(
            what,
            "check the name, bucket and prefix; `zfs-backup show --include-remote` lists what there is",
        )
    }

    fn urls(&self) -> String {
        self.shelves
            .iter()
            .map(|(store, _)| store.url())
            .collect::<Vec<_>>()
            .join(" and ")
    }
}

/// Finds a manifest that no known key signed and that is sealed to no known recipient.
async fn find_foreign(
    shelves: &[(Arc<dyn StoreRead>, Catalog)],
    keys: &KeyFile,
) -> Result<Option<(BackupId, String)>, RunError> {
    for (store, catalog) in shelves {
        for (id, error) in catalog.untrusted() {
            let CatalogError::Manifest {
                source: ManifestError::Signature(SignatureError::Untrusted { .. }),
                ..
            } = error
            else {
                continue;
            };
            let key = ObjectKey::backup(&catalog.dataset, id, &BackupObject::Manifest);
            if let Some(recipient) = foreign_recipient(&**store, &key, keys).await? {
                return Ok(Some((id.clone(), recipient)));
            }
        }
    }
    Ok(None)
}

async fn load_backup(
    store: &Arc<dyn StoreRead>,
    there: &StoredBackup,
    keys: &KeyFile,
) -> Result<RestoreBackup, RunError> {
    let manifest = &there.manifest;
    let chunks = read_chunks(&**store, manifest).await?;
    if let Some(gap) = find_gaps(there, &chunks).next() {
        return Err(gap.into());
    }
    let private = match read_private(&**store, manifest, keys).await {
        Ok(private) => Some(private),
        Err(error) if error.is_damage() => {
            tracing::warn!(
                error = error_chain(&error),
                "cannot read the snapshot's name and properties; continuing without them, no data \
                 is lost"
            );
            None
        }
        Err(error) => return Err(error),
    };
    Ok(RestoreBackup {
        store: Arc::clone(store),
        manifest: manifest.clone(),
        chunks,
        private,
    })
}

fn candidate_text(backup: &BackupFacts) -> String {
    let host = backup.made.host.as_ref().map_or_else(
        || "a host without a mark".to_owned(),
        |host| format!("host {host}"),
    );
    format!(
        "{} (snapshot of {}, by {host})",
        backup.id, backup.snapshot.created_at
    )
}

/// Returns the error that lists the candidates, between which only a person can choose.
fn two_lines(dataset: &DatasetName, candidates: &[&BackupFacts]) -> RunError {
    let candidates: Vec<String> = candidates
        .iter()
        .map(|backup| candidate_text(backup))
        .collect();
    RunError::refused(
        format!(
            "{dataset}: backups of two time lines are stored (from a cloned machine, a copied pool \
             or a rewound pool); this restore cannot choose between them: {}",
            candidates.join("; ")
        ),
        "choose one with --backup ID",
    )
}

fn not_believed(dataset: &DatasetName, id: &BackupId, error: &CatalogError) -> RunError {
    let key = ObjectKey::backup(dataset, id, &BackupObject::Manifest).to_string();
    let cause = match error {
        CatalogError::Manifest { source, .. } => error_chain(source),
        other => error_chain(other),
    };
    if error.is_damage() {
        let advice = "it was changed, made with other keys, or by somebody else";
        return RunError::Damaged {
            key,
            reason: format!("invalid or untrusted: {cause} ({advice})"),
        };
    }
    RunError::refused(
        format!("{key}: {cause}"),
        "restore it with the version of zfs-backup that made it",
    )
}

async fn read_private(
    store: &dyn StoreRead,
    manifest: &Manifest,
    keys: &KeyFile,
) -> Result<Private, RunError> {
    let key = ObjectKey::backup(&manifest.dataset, &manifest.id, &BackupObject::Private);
    let damaged = |reason: String| RunError::Damaged {
        key: key.to_string(),
        reason,
    };
    let sealed = get_pinned(store, &key, manifest.files.private, PRIVATE_BYTES_MAX).await?;
    let plain = open_small(keys, &sealed, PRIVATE_BYTES_MAX).map_err(|error| {
        RunError::refused(
            format!("open {key}: {error}"),
            "the identity must be one that this backup was sealed to",
        )
    })?;
    let private: Private =
        parse_as(&plain, "private").map_err(|error| damaged(error_chain(&error)))?;
    if private.id == manifest.id {
        Ok(private)
    } else {
        Err(damaged(format!("it is of backup {}", private.id)))
    }
}
