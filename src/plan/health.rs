//! [`judge_health`]: decides whether a dataset is backed up as configured. Pure: the facts and the
//! time are arguments.

use jiff::Timestamp;
use serde::Serialize;
use std::time::Duration;

/// The levels of monitoring plugins; the worst is last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// The dataset is backed up as configured.
    Ok,
    /// An administrator should check the dataset.
    Warning,
    /// The state could not be determined. Never treated as OK.
    Unknown,
    /// An administrator must act.
    Critical,
}

impl Level {
    /// Returns the word of monitoring plugins.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Unknown => "UNKNOWN",
            Self::Critical => "CRITICAL",
        }
    }

    /// Returns the exit status of a monitoring plugin.
    pub fn exit_status(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }
}

/// The known facts about one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HealthFacts {
    /// The time of the newest backup's snapshot; `None` if no backup is known.
    pub newest_at: Option<Timestamp>,
    /// The time of the last verification that found no damage.
    pub verified_at: Option<Timestamp>,
    /// The time of the last restore drill.
    pub drilled_at: Option<Timestamp>,
    /// The failed steps that have not succeeded since.
    pub failures: Vec<FailureFact>,
    /// The number of time lines of the dataset's backups.
    pub time_lines: u64,
}

/// A failed step that has not succeeded since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureFact {
    /// The time of the failure.
    pub at: Timestamp,
    /// The name of the command that failed.
    pub step: String,
    /// The text of the error and its causes, on one line.
    pub reason: String,
    /// Whether stored data is damaged.
    pub damage: bool,
}

/// The limits on ages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthLimits {
    /// The limit for the newest backup: an older one is a warning, one more than twice as old is
    /// critical.
    pub age: Duration,
    /// The limit for the last verification: an older one is a warning.
    pub verify: Duration,
    /// The limit for the last drill: an older one is a warning. A dataset without any drill is no
    /// warning.
    pub drill: Duration,
}

/// The result for one dataset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatasetHealth {
    /// The worst level of the findings.
    #[serde(rename = "state")]
    pub level: Level,
    /// The findings, the worst first; empty at [`Level::Ok`].
    pub reasons: Vec<String>,
    /// Whether the newest backup is older than the limit.
    #[serde(skip)]
    pub late: bool,
}

/// The tolerance for clocks. A time further in the future means a wrong clock, so that no age can
/// be trusted.
const CLOCK_SLACK: Duration = Duration::from_secs(24 * 3600);

/// Returns the worst level that the facts give against the limits, with a reason for each
/// finding.
pub fn judge_health(facts: &HealthFacts, limits: &HealthLimits, now: Timestamp) -> DatasetHealth {
    let mut found: Vec<(Level, String)> = Vec::new();
    let mut late = false;
    match facts.newest_at.map(|at| age_of(at, now)) {
        None => found.push((
            Level::Critical,
            "no backup is known on this host".to_owned(),
        )),
        Some(None) => found.push((
            Level::Unknown,
            "its newest backup is from the future: check the clocks".to_owned(),
        )),
        Some(Some(age)) if age > limits.age => {
            late = true;
            let level = if age > limits.age * 2 {
                Level::Critical
            } else {
                Level::Warning
            };
            found.push((
                level,
                format!("{} old (max {})", words(age), words(limits.age)),
            ));
        }
        Some(Some(_)) => {}
    }
    // A dataset without backups has nothing to verify.
    if facts.newest_at.is_some() {
        found.extend(aged(
            "verified",
            facts.verified_at,
            limits.verify,
            now,
            true,
        ));
        found.extend(aged("drilled", facts.drilled_at, limits.drill, now, false));
    }
    if facts.time_lines > 1 {
        let what = format!(
            "backups of {} time lines are stored: `zfs-backup adopt` shows them",
            facts.time_lines
        );
        found.push((Level::Warning, what));
    }
    for failure in &facts.failures {
        let level = if failure.damage {
            Level::Critical
        } else {
            Level::Warning
        };
        let ago = age_of(failure.at, now).map_or_else(
            || "in the future".to_owned(),
            |age| format!("{} ago", words(age)),
        );
        found.push((
            level,
            format!("{} failed {ago}: {}", failure.step, failure.reason),
        ));
    }
    found.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
    let level = found.first().map_or(Level::Ok, |(level, _)| *level);
    DatasetHealth {
        level,
        reasons: found.into_iter().map(|(_, reason)| reason).collect(),
        late,
    }
}

fn aged(
    what: &str,
    at: Option<Timestamp>,
    limit: Duration,
    now: Timestamp,
    needed: bool,
) -> Option<(Level, String)> {
    match at.map(|at| age_of(at, now)) {
        None => needed.then(|| (Level::Warning, format!("never {what}"))),
        Some(None) => Some((
            Level::Unknown,
            format!("{what} in the future: check the clock"),
        )),
        Some(Some(age)) if age > limit => Some((
            Level::Warning,
            format!("{what} {} ago (max {})", words(age), words(limit)),
        )),
        Some(Some(_)) => None,
    }
}

/// Returns the age, or `None` for a time further in the future than the tolerance for clocks.
fn age_of(at: Timestamp, now: Timestamp) -> Option<Duration> {
    let seconds = now.as_second() - at.as_second();
    match u64::try_from(seconds) {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) if seconds.unsigned_abs() <= CLOCK_SLACK.as_secs() => Some(Duration::ZERO),
        Err(_) => None,
    }
}

/// Writes a duration in the largest sufficient unit: hours up to three days, as limits are given.
fn words(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..259_200 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 1_800_000_000;

    fn ago(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(NOW - seconds).unwrap())
    }

    fn judge(
        newest: Option<Timestamp>,
        verified: Option<Timestamp>,
        drilled: Option<Timestamp>,
    ) -> (Level, String) {
        judge_with(HealthFacts {
            newest_at: newest,
            verified_at: verified,
            drilled_at: drilled,
            ..HealthFacts::default()
        })
    }

    fn judge_with(facts: HealthFacts) -> (Level, String) {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let limits = HealthLimits {
            age: hours(26),
            verify: hours(8 * 24),
            drill: hours(90 * 24),
        };
        let health = judge_health(&facts, &limits, Timestamp::from_second(NOW).unwrap());
        (health.level, health.reasons.join("; "))
    }

    #[test]
    fn each_backup_age_has_its_health_level_and_reason() {
        use Level::{Critical, Ok, Unknown, Warning};
        let (fresh, recent, drill) = (ago(6 * HOUR), ago(DAY), ago(12 * DAY));
        for (newest, verified, drilled, level, reasons) in [
            (fresh, recent, drill, Ok, ""),
            (fresh, recent, None, Ok, ""),
            (ago(26 * HOUR), recent, drill, Ok, ""),
            (
                ago(26 * HOUR + 1),
                recent,
                drill,
                Warning,
                "26h old (max 26h)",
            ),
            (ago(50 * HOUR), recent, drill, Warning, "50h old (max 26h)"),
            (
                ago(52 * HOUR + 1),
                recent,
                drill,
                Critical,
                "52h old (max 26h)",
            ),
            (ago(40 * DAY), recent, drill, Critical, "40d old (max 26h)"),
            (
                None,
                recent,
                drill,
                Critical,
                "no backup is known on this host",
            ),
            (
                None,
                None,
                None,
                Critical,
                "no backup is known on this host",
            ),
            (fresh, None, drill, Warning, "never verified"),
            (
                fresh,
                ago(9 * DAY),
                drill,
                Warning,
                "verified 9d ago (max 8d)",
            ),
            (
                fresh,
                recent,
                ago(91 * DAY),
                Warning,
                "drilled 91d ago (max 90d)",
            ),
            (ago(-HOUR), recent, drill, Ok, ""),
            (
                ago(-2 * DAY),
                recent,
                drill,
                Unknown,
                "its newest backup is from the future: check the clocks",
            ),
            (
                fresh,
                ago(-2 * DAY),
                drill,
                Unknown,
                "verified in the future: check the clock",
            ),
            (
                ago(30 * HOUR),
                ago(-2 * DAY),
                drill,
                Unknown,
                "verified in the future: check the clock; 30h old (max 26h)",
            ),
        ] {
            assert_eq!(
                judge(newest, verified, drilled),
                (level, reasons.to_owned()),
                "{newest:?} {verified:?} {drilled:?}"
            );
        }
    }

    #[test]
    fn a_failure_warns_and_damage_is_critical() {
        let failure = |damage| FailureFact {
            at: ago(3 * HOUR).unwrap(),
            step: "verify".into(),
            reason: "B2 401".into(),
            damage,
        };
        for (damage, level) in [(false, Level::Warning), (true, Level::Critical)] {
            let facts = HealthFacts {
                newest_at: ago(HOUR),
                verified_at: ago(HOUR),
                drilled_at: None,
                failures: vec![failure(damage)],
                time_lines: 1,
            };
            assert_eq!(
                judge_with(facts),
                (level, "verify failed 3h ago: B2 401".to_owned())
            );
        }
    }

    #[test]
    fn two_time_lines_are_a_warning() {
        let facts = HealthFacts {
            newest_at: ago(HOUR),
            verified_at: ago(HOUR),
            time_lines: 2,
            ..HealthFacts::default()
        };
        let (level, reasons) = judge_with(facts);
        assert_eq!(
            (level, reasons.contains("2 time lines")),
            (Level::Warning, true),
            "{reasons}"
        );
    }

    #[test]
    fn exit_statuses_are_those_of_monitoring_plugins_and_the_worst_is_the_greatest() {
        let levels = [Level::Ok, Level::Warning, Level::Unknown, Level::Critical];
        assert!(levels.is_sorted());
        assert_eq!(levels.map(Level::exit_status), [0, 1, 3, 2]);
    }
}
