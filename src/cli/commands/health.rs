//! `health`: one line for each dataset, from this host's records alone: no network, no passphrase,
//! fast.

use crate::cli::args::Health as HealthArgs;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::datasets::configured_place;
use crate::cli::open::history::facts_of;
use crate::cli::open::identity::known_stores;
use crate::cli::open::remote::open_zfs;
use crate::cli::screen::table::age;
use crate::config::{Config, DatasetSelection};
use crate::model::{DatasetName, KnownStore};
use crate::plan::health::{DatasetHealth, HealthLimits, Level, judge_health};
use crate::run::error_chain;
use crate::run::identity::refuse_one_place;
use crate::run::pool::select::{Selection, select_datasets};
use crate::state::history::{DatasetHistory, HistoryRecords};
use jiff::Timestamp;
use serde::Serialize;

/// The document of `health`.
#[derive(Serialize)]
pub(crate) struct JudgedDatasets {
    pub(crate) format: u32,
    pub(crate) now: Timestamp,
    pub(crate) datasets: Vec<Judged>,
}

/// A dataset with its verdict.
#[derive(Serialize)]
pub(crate) struct Judged {
    pub(crate) dataset: DatasetName,
    /// The record; `None` when it could not be read.
    pub(crate) record: Option<DatasetHistory>,
    #[serde(flatten)]
    pub(crate) health: DatasetHealth,
}

pub(crate) fn health(context: &Context, args: &HealthArgs) -> Result<(), Failure> {
    let limits = HealthLimits {
        age: args.max_age.duration(),
        verify: args.max_verify_age.duration(),
        drill: args.max_drill_age.duration(),
    };
    let output = &*context.output;
    let now = Timestamp::now();
    let judged = context
        .setup()
        .and_then(|setup| judge_all(&setup.config, &limits, now));
    // Monitoring reads 3 as "unknown", and an error in this code must never read as another state.
    let mut judged = judged.map_err(|failure| {
        output.plain(&format!("UNKNOWN {}", failure.reason()));
        Failure::Reported(Level::Unknown.exit_status())
    })?;
    judged.sort_by_key(|judged| std::cmp::Reverse(judged.health.level));
    let worst = judged
        .iter()
        .map(|judged| judged.health.level)
        .max()
        .unwrap_or(Level::Unknown);
    for line in lines(&judged, &limits, now) {
        // `--quiet` is silent only on success.
        match worst == Level::Ok || output.is_json() {
            true => output.line(line),
            false => output.plain(&line),
        }
    }
    output.json(&JudgedDatasets {
        format: 1,
        now,
        datasets: judged,
    });
    if worst == Level::Ok {
        Ok(())
    } else {
        Err(Failure::Reported(worst.exit_status()))
    }
}

fn judge_all(
    config: &Config,
    limits: &HealthLimits,
    now: Timestamp,
) -> Result<Vec<Judged>, Failure> {
    let known = known_stores(config)?;
    if let [one, other] = known.as_slice() {
        refuse_one_place(one, other)?;
    }
    let store = known
        .first()
        .ok_or_else(|| usage("the configuration names no store", "set main.remote"))?;
    let names = stored_names(config)?;
    let judge = |dataset| judge_dataset(dataset, config, store, limits, now);
    Ok(names.into_iter().map(judge).collect())
}

/// Judges a dataset by its record. An unreadable record makes its health unknown.
fn judge_dataset(
    dataset: DatasetName,
    config: &Config,
    store: &KnownStore,
    limits: &HealthLimits,
    now: Timestamp,
) -> Judged {
    match HistoryRecords::new(&config.state_dir, store, &dataset).read() {
        Ok(record) => {
            let health = judge_health(&facts_of(&record, record.newest_at()), limits, now);
            Judged {
                dataset,
                record: Some(record),
                health,
            }
        }
        Err(error) => {
            let health = DatasetHealth {
                level: Level::Unknown,
                reasons: vec![error_chain(&error)],
                late: false,
            };
            Judged {
                dataset,
                record: None,
                health,
            }
        }
    }
}

/// Returns the datasets' names in the store. Without ZFS these are the configured names: datasets
/// below a configured one are known only to ZFS, and the place of a renamed dataset is found only
/// by its guid.
fn stored_names(config: &Config) -> Result<Vec<DatasetName>, Failure> {
    let configured = &config.datasets;
    let zfs = match open_zfs() {
        Ok(zfs) => zfs,
        Err(failure) if configured.recursive => return Err(failure),
        Err(_) => {
            let names = configured.names.iter();
            return Ok(names
                .map(|name| configured_place(configured, name))
                .collect());
        }
    };
    let selection = select_datasets(&*zfs, configured, &config.state_dir)?;
    Ok(names_to_judge(configured, selection))
}

/// Returns the names in the store of the datasets to judge. A half-restored dataset that was backed
/// up before, and a dataset that is missing in the pool, are judged too: their backups grow old.
fn names_to_judge(configured: &DatasetSelection, selection: Selection) -> Vec<DatasetName> {
    let selected = selection.selected.into_iter();
    let left_out = selection.left_out.into_iter();
    let failed = selection.failed.iter();
    selected
        .map(|selected| selected.stored)
        .chain(left_out.filter_map(|left_out| left_out.recorded))
        .chain(failed.map(|(name, _)| configured_place(configured, name)))
        .collect()
}

/// Returns the lines, the worst first, so that the first word is the worst state; performance data
/// is last, after a bar.
fn lines(judged: &[Judged], limits: &HealthLimits, now: Timestamp) -> Vec<String> {
    let mut lines: Vec<String> = judged.iter().map(|judged| line(judged, now)).collect();
    let max = limits.age.as_secs();
    // A quote in a name would end the label; dataset names have none.
    let data: Vec<String> = judged
        .iter()
        .filter_map(|judged| Some((&judged.dataset, judged.record.as_ref()?.newest_at()?)))
        .map(|(dataset, at)| {
            let age = now.as_second() - at.as_second();
            format!("'{dataset}'={age}s;{max};{}", max.saturating_mul(2))
        })
        .collect();
    if !data.is_empty() {
        lines.push(format!("| {}", data.join(" ")));
    }
    lines
}

fn line(judged: &Judged, now: Timestamp) -> String {
    let Judged {
        dataset,
        record,
        health,
    } = judged;
    let ago = |at: Option<Timestamp>| at.map_or_else(|| "never".to_owned(), |at| age(now, at));
    let mut parts = health.reasons.clone();
    if let (Some(record), Level::Ok) = (record, health.level) {
        parts.push(format!("backup {} old", ago(record.newest_at())));
        parts.push(format!(
            "verified {}",
            ago(record.verify.as_ref().map(|note| note.at))
        ));
        parts.push(format!(
            "drill {}",
            ago(record.drill.as_ref().map(|note| note.at))
        ));
    }
    if record
        .as_ref()
        .and_then(|record| record.commit.as_ref())
        .is_some_and(|commit| commit.raw)
    {
        parts.push("raw: its ZFS key must survive too".to_owned());
    }
    // Each dataset has one line, whatever a reason contains; a bar would begin performance data.
    let text = parts.join("; ").replace(['\n', '|'], " ");
    format!("{} {dataset} {text}", health.level.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::open::history::DEFAULT_LIMITS;
    use crate::run::RunError;
    use crate::state::history::{FailureNote, SeenNote, VerifyNote};

    const NOW: i64 = 1_800_000_000;

    fn at(hours_ago: i64) -> Timestamp {
        Timestamp::from_second(NOW - hours_ago * 3600).unwrap()
    }

    fn judged(name: &str, hours: i64, failures: Vec<FailureNote>) -> Judged {
        let record = DatasetHistory {
            seen: Some(SeenNote {
                at: at(1),
                newest: None,
                newest_at: Some(at(hours)),
                chain_position: 0,
                backups: 1,
                total_bytes: 7,
                time_lines: 1,
            }),
            verify: Some(VerifyNote {
                at: at(6),
                backups: 1,
                read_data: "none".into(),
            }),
            failures,
            ..DatasetHistory::default()
        };
        let health = judge_health(
            &facts_of(&record, record.newest_at()),
            &DEFAULT_LIMITS,
            at(0),
        );
        Judged {
            dataset: name.parse().unwrap(),
            record: Some(record),
            health,
        }
    }

    #[test]
    fn health_prints_one_line_per_dataset_worst_first_then_performance_data() {
        let failure = FailureNote {
            at: at(3),
            step: "backup".into(),
            reason: "a|b\nc".into(),
            damage: false,
        };
        let mut all = vec![
            judged("tank/photos", 6, vec![]),
            judged("tank/secret", 50, vec![failure]),
        ];
        all.sort_by_key(|judged| std::cmp::Reverse(judged.health.level));
        insta::assert_snapshot!(lines(&all, &DEFAULT_LIMITS, at(0)).join("\n"), @r"
        WARNING tank/secret 50h old (max 26h); backup failed 3h ago: a b c
        OK tank/photos backup 6h old; verified 6h; drill never
        | 'tank/secret'=180000s;93600;187200 'tank/photos'=21600s;93600;187200
        ");
    }

    #[test]
    fn a_dataset_that_is_missing_in_the_pool_is_judged_by_its_name_in_the_store() {
        let name = |text: &str| text.parse::<DatasetName>().unwrap();
        let configured = DatasetSelection {
            names: vec![name("tank/a")],
            recursive: true,
            exclude: Vec::new(),
            store_as: Some(name("host/a")),
        };
        let failed = |text| {
            (
                name(text),
                RunError::refused("it is missing", "import its pool"),
            )
        };
        let selection = Selection {
            failed: vec![failed("tank/a"), failed("tank/a/below")],
            ..Selection::default()
        };
        assert_eq!(
            names_to_judge(&configured, selection),
            [name("host/a"), name("tank/a/below")]
        );
    }
}
