//! `verify-checksums`.

use crate::catalog::{Catalog, list_datasets, read_catalog};
use crate::cli::args::Verify;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, status};
use crate::cli::open::access::Access;
use crate::cli::open::datasets::{NamedDataset, datasets_to_read};
use crate::cli::open::history;
use crate::cli::open::identity::expected_identity;
use crate::cli::open::reading::{ReadSide, key_file, open_for_reading, trusted_keys};
use crate::cli::open::remote::open_zfs;
use crate::cli::parallel::for_each_dataset;
use crate::cli::screen::output::{Output, Render};
use crate::cli::screen::table::{bytes, tier_words};
use crate::keyring::KeyFile;
use crate::model::{BackupId, BackupKind, DatasetName, Guid, KnownStore};
use crate::plan::sample::ReadShare;
use crate::run::RunError;
use crate::run::backup::StoreRole;
use crate::run::identity::refuse_one_place;
use crate::run::verify::{
    BrokenBackup, Damage, ReadData, VerifyOptions, VerifyReport, verify_with,
};
use crate::sign::TrustedKeys;
use crate::state::history::{HistoryRecords, OwnCommit};
use crate::store::EvidenceTier;
use crate::store::key::{BackupObject, ObjectKey, STORE_ID};
use crate::zfs::Zfs;
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::mem::take;
use std::sync::Arc;
use tokio::sync::Semaphore;

const SECONDS_PER_DAY: i64 = 86_400;

pub(crate) async fn verify(context: &Context, verify: &Verify) -> Result<(), Failure> {
    let output = &context.output;
    let side = open_for_reading(context, &verify.source, verify.intermediate).await?;
    let trusted = trusted_keys(&side, &verify.source).await?;
    let expected = expected_store(&side, verify).await?;
    let datasets = datasets(&side, verify).await?;
    let opening = match &verify.read_data {
        Some(_) => opening_keys(&side, verify, output).await,
        None => None,
    };
    let mut datasets_verified = Vec::new();
    let other_store = expected.as_ref().and_then(|(_, flaw)| flaw.as_ref());
    if let Some(flaw) = other_store {
        output.error_text(
            &format!("DAMAGED {STORE_ID}: {flaw}"),
            flaw.hint().as_deref(),
        );
    }
    let one_reader = Arc::new(Semaphore::new(1));
    let verification = DatasetVerification {
        side: &side,
        verify,
        trusted: &trusted,
        known: expected.as_ref().map(|(known, _)| known),
        opening,
        one_reader,
    };
    for_each_dataset(
        context,
        &datasets,
        |named| &named.in_pool,
        async |named| verification.run(context, named).await,
        |_, verified| datasets_verified.extend(verified),
    )
    .await;
    output.json(&Verification {
        store: side.store.url().to_owned(),
        other_store: other_store.map(ToString::to_string),
        datasets: datasets_verified,
    });
    match (context.verdict(), other_store) {
        (Ok(()), Some(_)) => Err(Failure::Reported(status::DAMAGE)),
        (Err(failure), Some(_)) => {
            let worst = status::worst(failure.status(), status::DAMAGE);
            Err(Failure::Reported(worst))
        }
        (verdict, None) => verdict,
    }
}

/// The input that the verifications of all datasets share.
struct DatasetVerification<'a> {
    side: &'a ReadSide<'a>,
    verify: &'a Verify,
    trusted: &'a TrustedKeys,
    known: Option<&'a KnownStore>,
    opening: Option<KeyFile>,
    one_reader: Arc<Semaphore>,
}

impl DatasetVerification<'_> {
    /// Verifies one dataset, and prints the result. A dataset whose check fails must not hide the
    /// results of the others.
    async fn run(&self, context: &Context, named: &NamedDataset) -> Option<VerifiedDataset> {
        match self.verify(context, named).await {
            Ok(verified) => {
                let verified = context.output.printed(verified);
                match verified.flaw() {
                    Some((status, reason)) => context.reported(&named.in_pool, status, reason),
                    None => context.done(&named.in_pool, 0),
                }
                Some(verified)
            }
            Err(failure) => {
                context.failed(&named.in_pool, &failure);
                None
            }
        }
    }

    async fn verify(
        &self,
        context: &Context,
        named: &NamedDataset,
    ) -> Result<VerifiedDataset, Failure> {
        let (side, verify, output) = (self.side, self.verify, &context.output);
        let intermediate = intermediate_catalog(side, verify, named, self.trusted, output).await;
        let read = match verify.read_data {
            Some(share) => Some(self.read_data(share, context)?),
            None => None,
        };
        let own_commits = own_commits(side, self.known, named).unwrap_or_else(|failure| {
            context.failed(&named.in_pool, &failure);
            Vec::new()
        });
        let options = VerifyOptions {
            read,
            intermediate: intermediate.as_ref(),
            own_commits,
        };
        let store = Arc::clone(&side.store);
        let report = verify_with(store, &named.stored, self.trusted, &options).await;
        if let Some(setup) = side.setup {
            let (config, store) = (&setup.config, &*side.store);
            match &report {
                Ok(report) => {
                    let share = verify.read_data.as_ref().map(ToString::to_string);
                    history::verified(config, store, &named.stored, report, share.as_deref());
                }
                Err(error) => history::failed(config, store, &named.stored, "verify", error),
            }
        }
        let report = report?;
        let sources = sources_here(side, named, &report);
        let url = side.store.url();
        Ok(VerifiedDataset::new(named, report, &sources, url))
    }

    fn read_data(&self, share: ReadShare, context: &Context) -> Result<ReadData, Failure> {
        let seed = getrandom::u64().map_err(RunError::from)?;
        let day = u64::try_from(Timestamp::now().as_second() / SECONDS_PER_DAY).unwrap_or(0);
        Ok(ReadData {
            share,
            day,
            seed,
            keys: self.opening.clone(),
            one_reader: Arc::clone(&self.one_reader),
            stop: context.stop.clone(),
        })
    }
}

async fn datasets(side: &ReadSide<'_>, verify: &Verify) -> Result<Vec<NamedDataset>, Failure> {
    let named = |stored: &crate::model::DatasetName| NamedDataset {
        in_pool: stored.clone(),
        stored: stored.clone(),
    };
    Ok(match (verify.datasets.is_empty(), side.setup) {
        (false, _) => verify.datasets.iter().map(named).collect(),
        (true, Some(setup)) => datasets_to_read(&setup.config, &*side.store).await?,
        (true, None) => list_datasets(&*side.store)
            .await?
            .iter()
            .map(named)
            .collect(),
    })
}

/// Returns the store that this host expects at the verified place, and the reason why the store at
/// the place is another one. Without this check, somebody who replaces the identity of a store
/// would hide the backups that this host stored there.
async fn expected_store(
    side: &ReadSide<'_>,
    verify: &Verify,
) -> Result<Option<(KnownStore, Option<RunError>)>, Failure> {
    let Some(setup) = side.setup else {
        return Ok(None);
    };
    let role = setup.role(verify.intermediate);
    Ok(expected_identity(&setup.config, role, &*side.store).await?)
}

/// Returns the newest backups that this host itself stored at the place: in the store that answers
/// now, and in the store that this host knows for the place.
fn own_commits(
    side: &ReadSide<'_>,
    known: Option<&KnownStore>,
    named: &NamedDataset,
) -> Result<Vec<OwnCommit>, Failure> {
    let Some(setup) = side.setup else {
        return Ok(Vec::new());
    };
    let state_dir = &setup.config.state_dir;
    let found = side.store.known();
    let mut commits = HistoryRecords::new(state_dir, &found, &named.stored).own_commits()?;
    if let Some(known) = known.filter(|known| known.id != found.id) {
        commits.extend(HistoryRecords::new(state_dir, known, &named.stored).own_commits()?);
    }
    Ok(commits)
}

/// Returns the keys that open backups, if this host has them. A host that only makes backups has
/// none, which is no error.
async fn opening_keys(side: &ReadSide<'_>, verify: &Verify, output: &Output) -> Option<KeyFile> {
    match key_file(side, &verify.source).await {
        Ok(file) => Some(file),
        Err(failure) => {
            output.note(&format!(
                "the data is hashed but not decrypted, because there is no key: {}",
                failure.reason()
            ));
            None
        }
    }
}

/// Returns the contents of the intermediate directory for the dataset, when the remote is verified
/// and there is a directory. They are additional evidence: without them the remote is verified
/// nevertheless.
async fn intermediate_catalog(
    side: &ReadSide<'_>,
    verify: &Verify,
    named: &NamedDataset,
    trusted: &TrustedKeys,
    output: &Output,
) -> Option<Catalog> {
    let setup = side.setup?;
    let config = &setup.config;
    if verify.intermediate || config.intermediate.is_none() || config.remote.is_none() {
        return None;
    }
    let read = async {
        let store = setup.open(StoreRole::Intermediate, Access::Read).await?;
        refuse_one_place(&side.store.known(), &store.known())?;
        Ok::<_, Failure>(read_catalog(&*store, &named.stored, trusted).await?)
    };
    match read.await {
        Ok(catalog) => Some(catalog),
        Err(failure) => {
            output.note(&format!(
                "the intermediate directory was not compared: {}",
                failure.reason()
            ));
            None
        }
    }
}

/// Returns whether the snapshot of each broken backup still exists at the source; `None` where the
/// pool cannot be read.
fn sources_here(
    side: &ReadSide<'_>,
    named: &NamedDataset,
    report: &VerifyReport,
) -> BTreeMap<BackupId, bool> {
    if report.broken.is_empty() {
        return BTreeMap::new();
    }
    let Some(guids) = guids_in_pool(side, named) else {
        return BTreeMap::new();
    };
    report
        .broken
        .iter()
        .map(|broken| (broken.id.clone(), guids.contains(&broken.snapshot)))
        .collect()
}

/// Returns the guids of the dataset's snapshots, or `None` where the pool cannot be read.
fn guids_in_pool(side: &ReadSide<'_>, named: &NamedDataset) -> Option<Vec<Guid>> {
    side.setup?;
    let zfs: Arc<dyn Zfs> = open_zfs().ok()?;
    zfs.dataset(&named.in_pool).ok()??;
    let snapshots = zfs.snapshots(&named.in_pool).ok()?;
    Some(snapshots.iter().map(|snapshot| snapshot.guid).collect())
}

/// The document of `verify-checksums`.
#[derive(Serialize)]
pub(crate) struct Verification {
    pub(crate) store: String,
    pub(crate) other_store: Option<String>,
    pub(crate) datasets: Vec<VerifiedDataset>,
}

/// The result for one dataset.
#[derive(Serialize)]
pub(crate) struct VerifiedDataset {
    pub(crate) dataset: DatasetName,
    #[serde(flatten)]
    pub(crate) report: VerifyReport,
    #[serde(serialize_with = "by_tier_words")]
    pub(crate) objects: BTreeMap<EvidenceTier, usize>,
    pub(crate) damage: Vec<DamagedObject>,
    pub(crate) broken: Vec<UnrestorableBackup>,
    #[serde(skip)]
    pub(crate) store: String,
}

#[derive(Serialize)]
pub(crate) struct DamagedObject {
    #[serde(flatten)]
    pub(crate) damage: Damage,
    pub(crate) chunk: Option<u32>,
    pub(crate) missing: bool,
}

#[derive(Serialize)]
pub(crate) struct UnrestorableBackup {
    #[serde(flatten)]
    pub(crate) broken: BrokenBackup,
    pub(crate) source_snapshot_here: Option<bool>,
}

fn by_tier_words<S: Serializer>(
    objects: &BTreeMap<EvidenceTier, usize>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        objects
            .iter()
            .map(|(tier, count)| (tier_words(*tier), count)),
    )
}

impl VerifiedDataset {
    fn new(
        named: &NamedDataset,
        mut report: VerifyReport,
        sources: &BTreeMap<BackupId, bool>,
        store: &str,
    ) -> Self {
        let damage = take(&mut report.damage).into_iter();
        let damage = damage.map(|damage| DamagedObject {
            chunk: chunk_of(&damage.key),
            missing: damage.is_missing(),
            damage,
        });
        let broken = take(&mut report.broken).into_iter();
        let broken = broken.map(|broken| UnrestorableBackup {
            source_snapshot_here: sources.get(&broken.id).copied(),
            broken,
        });
        Self {
            dataset: named.stored.clone(),
            objects: take(&mut report.objects),
            damage: damage.collect(),
            broken: broken.collect(),
            report,
            store: store.to_owned(),
        }
    }

    /// Returns the exit status that the dataset gives the command, and the reason. Damage is a
    /// failure, and so is a dataset without a backup: a wiped store is not a good one.
    fn flaw(&self) -> Option<(u8, String)> {
        if !self.damage.is_empty() {
            let reason = format!("{} objects are damaged or missing", self.damage.len());
            return Some((status::DAMAGE, reason));
        }
        (self.report.backups == 0).then(|| (status::FAILED, "there is no backup".to_owned()))
    }
}

impl Render for VerifiedDataset {
    fn render(&self, output: &Output) {
        let dataset = &self.dataset;
        if self.report.backups == 0 && self.damage.is_empty() {
            output.error_text(&format!("{dataset}: no backup in {}", self.store), None);
        } else {
            output.line(format!(
                "{dataset}: {} backups, {}",
                self.report.backups,
                counts(self)
            ));
        }
        for (tier, count) in &self.objects {
            output.line(format!("  {count} by {}", tier_words(*tier)));
        }
        if let Some(read) = &self.report.read {
            let walked = if read.streams > 0 {
                format!(", {} backups opened whole", read.streams)
            } else {
                String::new()
            };
            output.line(format!(
                "  read {} in {} chunks{walked}",
                bytes(read.bytes),
                read.chunks
            ));
        }
        self.render_damage(output);
        for id in &self.report.pruned_meanwhile {
            output.line(format!("  {id} was pruned during the verification"));
        }
        if let Some(newest) = &self.report.newest {
            output.line(format!("  newest {newest}"));
        }
        for key in &self.report.extra {
            output.line(format!("  extra {}", key.replace('\n', "\\n")));
        }
    }
}

impl VerifiedDataset {
    /// Prints the damage, also with `--quiet`: damage is the reason to run this command.
    fn render_damage(&self, output: &Output) {
        for DamagedObject { damage, .. } in &self.damage {
            output.error_text(&format!("DAMAGED {}: {}", damage.key, damage.reason), None);
        }
        for UnrestorableBackup {
            broken,
            source_snapshot_here,
        } in &self.broken
        {
            let what = format!(
                "{} {} is broken{}",
                self.dataset,
                words_of(&broken.id),
                dependents(broken)
            );
            let text = restorable(broken);
            let hint = match source_snapshot_here {
                Some(true) => {
                    format!("{text}. Its source snapshot is still here: run --full now")
                }
                Some(false) => format!("{text}. Its source snapshot is gone"),
                None => text,
            };
            output.error_text(&what, Some(&hint));
        }
    }
}

/// Describes the counts: `10163 by provider hash, 40 by id and size only, 1 MISSING, 2 DAMAGED`.
fn counts(report: &VerifiedDataset) -> String {
    let mut by_strength: BTreeMap<Strength, usize> = BTreeMap::new();
    for (tier, count) in &report.objects {
        *by_strength.entry(strength(*tier)).or_default() += count;
    }
    let missing = report.damage.iter().filter(|damage| damage.missing).count();
    let damaged = report.damage.len() - missing;
    let mut words: Vec<String> = by_strength
        .iter()
        .map(|(strength, count)| format!("{count} by {}", strength.words()))
        .collect();
    words.extend((missing > 0).then(|| format!("{missing} MISSING")));
    words.push(match damaged {
        0 if missing > 0 => return words.join(", "),
        0 => "0 damaged".to_owned(),
        _ => format!("{damaged} DAMAGED"),
    });
    words.join(", ")
}

fn dependents(broken: &BrokenBackup) -> String {
    match broken.dependents.len() {
        0 => "; no other backup depends on it".to_owned(),
        1 => "; 1 later backup depends on it".to_owned(),
        count => format!("; {count} later backups depend on it"),
    }
}

fn restorable(broken: &BrokenBackup) -> String {
    let day = |id: &BackupId| words_of(id);
    match (&broken.restorable_up_to, &broken.restorable_again_from) {
        (Some(before), Some(after)) => format!(
            "restorable up to {}, and again from {}",
            day(before),
            day(after)
        ),
        (Some(before), None) => format!("restorable up to {}", day(before)),
        (None, Some(after)) => format!("restorable only from {}", day(after)),
        (None, None) => "nothing of this dataset can be restored from this store".to_owned(),
    }
}

/// Describes a backup: `incr 2026-11-03`. The time of an id is its snapshot's.
fn words_of(id: &BackupId) -> String {
    let kind = if id.kind() == BackupKind::Full {
        "full"
    } else {
        "incr"
    };
    let digits = id.as_str().as_bytes();
    let part = |range: std::ops::Range<usize>| String::from_utf8_lossy(&digits[range]).into_owned();
    format!("{kind} {}-{}-{}", part(0..4), part(4..6), part(6..8))
}

/// Returns the chunk that a key names, for programs.
fn chunk_of(key: &str) -> Option<u32> {
    match ObjectKey::parse(key)?.object {
        BackupObject::Chunk { index, .. } => Some(index.get()),
        _ => None,
    }
}

/// The strength of evidence, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Strength {
    /// The store computed a hash of the content.
    Provider,
    /// The record of the commit names an object that cannot be replaced unnoticed.
    Recorded,
    /// The object has the expected size; nothing else is known.
    None,
}

impl Strength {
    fn words(self) -> &'static str {
        match self {
            Self::Provider => "provider hash",
            Self::Recorded => "id and size only",
            Self::None => "size only",
        }
    }
}

fn strength(tier: EvidenceTier) -> Strength {
    match tier {
        EvidenceTier::Crc64nvmeFull
        | EvidenceTier::Sha256Composite
        | EvidenceTier::Sha1
        | EvidenceTier::Crc32c
        | EvidenceTier::Md5Etag => Strength::Provider,
        EvidenceTier::IdPin => Strength::Recorded,
        EvidenceTier::SizeOnly | EvidenceTier::ReadBack | EvidenceTier::Unknown => Strength::None,
    }
}
