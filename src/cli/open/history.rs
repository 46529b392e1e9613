//! Records of results for `health` and `show`. A record that cannot be written is logged and fails
//! nothing: the backup exists nevertheless.

use crate::catalog::Catalog;
use crate::catalog::remembered::distrust;
use crate::cli::open::identity::known_stores;
use crate::config::Config;
use crate::model::{BackupId, DatasetName, KnownStore};
use crate::plan::health::{FailureFact, HealthFacts, HealthLimits};
use crate::run::backup::{BackupEnd, BackupRun};
use crate::run::copy::CopiedBackup;
use crate::run::verify::VerifyReport;
use crate::run::{RunError, error_chain};
use crate::state::StateError;
use crate::state::history::{
    DatasetHistory, DrillNote, FailureNote, HistoryRecords, OwnCommit, UnchangedNote, VerifyNote,
};
use crate::store::StoreInfo;
use crate::zfs::Snapshot;
use jiff::Timestamp;
use std::time::Duration;

fn records(config: &Config, store: &dyn StoreInfo, stored: &DatasetName) -> HistoryRecords {
    HistoryRecords::new(&config.state_dir, &store.known(), stored)
}

fn warn_if_unsaved(outcome: Result<(), StateError>) {
    if let Err(error) = outcome {
        tracing::warn!(
            "cannot record the result for `health` and `show`: {}",
            error_chain(&error)
        );
    }
}

/// Records the backups of a run, or that there was nothing to back up. A paused upload is neither a
/// backup nor a failure, and the caller records the failure of a run.
pub(crate) fn backed_up(
    config: &Config,
    store: &dyn StoreInfo,
    stored: &DatasetName,
    run: &BackupRun,
) {
    let records = records(config, store, stored);
    for backup in &run.committed {
        warn_if_unsaved(records.note_commit(
            &backup.manifest,
            backup.stored_bytes,
            Timestamp::now(),
        ));
    }
    match &run.end {
        Ok(BackupEnd::UpToDate(_)) if run.committed.is_empty() => {
            warn_if_unsaved(records.note_success("backup"));
        }
        Ok(BackupEnd::Unchanged { id, snapshot }) => {
            warn_if_unsaved(records.note_unchanged(&UnchangedNote {
                id: id.clone(),
                snapshot_at: snapshot.created_at,
                at: Timestamp::now(),
            }));
            warn_if_unsaved(records.note_success("backup"));
        }
        Ok(BackupEnd::UpToDate(_) | BackupEnd::Paused(_)) | Err(_) => {}
    }
}

/// Records that nothing was written to a dataset since this snapshot, for each store whose newest
/// backup has its content.
pub(crate) fn unwritten(config: &Config, stored: &DatasetName, newest: &Snapshot) {
    for store in stores_or_none(config) {
        let records = HistoryRecords::new(&config.state_dir, &store, stored);
        let noted = records.read().and_then(|history| {
            let now = Timestamp::now();
            let has_content = |id: &&BackupId| {
                let unchanged = history.unchanged.as_ref().filter(|note| note.id == **id);
                id.snapshot_guid() == newest.guid
                    || unchanged.is_some_and(|note| note.snapshot_at >= newest.created_at)
            };
            match history.newest().filter(has_content) {
                None => Ok(()),
                Some(id) => records.note_unchanged(&UnchangedNote {
                    id: id.clone(),
                    snapshot_at: now,
                    at: now,
                }),
            }
        });
        warn_if_unsaved(noted);
    }
}

/// Records that backups were copied into a store; `newest` is the last one.
pub(crate) fn copied(
    config: &Config,
    store: &dyn StoreInfo,
    stored: &DatasetName,
    newest: Option<&CopiedBackup>,
) {
    if let Some(newest) = newest {
        let copied = OwnCommit {
            id: newest.id.clone(),
            at: Timestamp::now(),
        };
        warn_if_unsaved(records(config, store, stored).note_copy(&copied));
    }
}

/// Records that a step failed for a dataset. An interruption or a concurrent run is not recorded.
pub(crate) fn failed(
    config: &Config,
    store: &dyn StoreInfo,
    stored: &DatasetName,
    step: &str,
    error: &RunError,
) {
    if matches!(
        error,
        RunError::Interrupted | RunError::State(StateError::Locked { .. })
    ) {
        return;
    }
    let step = step.to_owned();
    let reason = error_chain(error);
    let damage = error.is_damage();
    warn_if_unsaved(records(config, store, stored).note_failure(&FailureNote {
        at: Timestamp::now(),
        step,
        reason,
        damage,
    }));
}

/// Records a verification, with or without damage. A verification that found no backup is a
/// failure.
pub(crate) fn verified(
    config: &Config,
    store: &dyn StoreInfo,
    stored: &DatasetName,
    report: &VerifyReport,
    read_data: Option<&str>,
) {
    let at = Timestamp::now();
    let records = records(config, store, stored);
    if !report.damage.is_empty()
        && let Err(error) = distrust(&config.state_dir, &store.known(), stored)
    {
        tracing::warn!(
            "the next backup may treat the damaged store as intact: {}",
            error_chain(&error)
        );
    }
    let reason = match (report.damage.first(), report.backups) {
        (Some(first), _) => format!(
            "{} objects damaged, first {}: {}",
            report.damage.len(),
            first.key,
            first.reason
        ),
        (None, 0) => "there is no backup".to_owned(),
        (None, backups) => {
            let read_data = read_data.unwrap_or("none").to_owned();
            return warn_if_unsaved(records.note_verify(&VerifyNote {
                at,
                backups: backups as u64,
                read_data,
            }));
        }
    };
    warn_if_unsaved(records.note_failure(&FailureNote {
        at,
        step: "verify".to_owned(),
        reason,
        damage: !report.damage.is_empty(),
    }));
}

/// Records the contents of a store after a listing.
pub(crate) fn seen(config: &Config, store: &dyn StoreInfo, catalog: &Catalog) {
    warn_if_unsaved(
        records(config, store, &catalog.dataset).note_seen(&catalog.seen_note(Timestamp::now())),
    );
}

/// Records a successful drill. A drill is valid for the dataset, whichever store it read, so it is
/// recorded where `health` reads.
pub(crate) fn drilled(config: &Config, stored: &DatasetName, note: &DrillNote) {
    if let Some(records) = first_records(config, stored) {
        warn_if_unsaved(records.note_drill(note));
    }
}

/// Records that a drill failed. An interruption is not recorded.
pub(crate) fn drill_failed(config: &Config, stored: &DatasetName, error: &RunError) {
    if let Some(records) =
        first_records(config, stored).filter(|_| !matches!(error, RunError::Interrupted))
    {
        let step = "drill".to_owned();
        let reason = error_chain(error);
        let damage = error.is_damage();
        warn_if_unsaved(records.note_failure(&FailureNote {
            at: Timestamp::now(),
            step,
            reason,
            damage,
        }));
    }
}

/// Records a prune of a dataset: as a success, or with the doubt (and whether it is damage) because
/// of which nothing was deleted.
pub(crate) fn pruned(
    config: &Config,
    stored: &DatasetName,
    step: &str,
    doubt: Option<(String, bool)>,
) {
    let Some(records) = first_records(config, stored) else {
        return;
    };
    warn_if_unsaved(match doubt {
        None => records.note_success(step),
        Some((reason, damage)) => records.note_failure(&FailureNote {
            at: Timestamp::now(),
            step: step.to_owned(),
            reason,
            damage,
        }),
    });
}

/// Records that a prune of a dataset failed. An interruption or a concurrent run is not recorded.
pub(crate) fn prune_failed(config: &Config, stored: &DatasetName, step: &str, error: &RunError) {
    if !matches!(
        error,
        RunError::Interrupted | RunError::State(StateError::Locked { .. })
    ) {
        pruned(
            config,
            stored,
            step,
            Some((error_chain(error), error.is_damage())),
        );
    }
}

fn first_records(config: &Config, stored: &DatasetName) -> Option<HistoryRecords> {
    let first = stores_or_none(config).into_iter().next()?;
    Some(HistoryRecords::new(&config.state_dir, &first, stored))
}

/// Returns the configured stores; none, with a warning, if their identities cannot be read.
fn stores_or_none(config: &Config) -> Vec<KnownStore> {
    known_stores(config).unwrap_or_else(|error| {
        tracing::warn!(
            "cannot record the result for `health` and `show`: {}",
            error_chain(&error)
        );
        Vec::new()
    })
}

/// Returns the facts by which a dataset is judged.
pub(crate) fn facts_of(record: &DatasetHistory, newest_at: Option<Timestamp>) -> HealthFacts {
    let failure = |failure: &crate::state::history::FailureNote| FailureFact {
        at: failure.at,
        step: failure.step.clone(),
        reason: failure.reason.clone(),
        damage: failure.damage,
    };
    HealthFacts {
        newest_at,
        verified_at: record.verify.as_ref().map(|note| note.at),
        drilled_at: record.drill.as_ref().map(|note| note.at),
        failures: record.failures.iter().map(failure).collect(),
        time_lines: record.seen.as_ref().map_or(0, |seen| seen.time_lines),
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// The limits of `show`, and the defaults of `health`.
pub(crate) const DEFAULT_LIMITS: HealthLimits = HealthLimits {
    age: HOUR.saturating_mul(26),
    verify: HOUR.saturating_mul(8 * 24),
    drill: HOUR.saturating_mul(90 * 24),
};
