//! [`judge_clock`]: decides whether this host's clock may be used to delete backups by age.
//!
//! A clock that is years ahead makes everything look old, so no single clock is trusted. This
//! host's clock is compared with the store's own clock, the notes of earlier runs, the kernel's
//! synchronisation and the newest snapshots. A clock that is behind only deletes less, so it is
//! accepted.

use super::retention::age_words;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// How far a clock may be ahead of another one, in seconds.
pub const AHEAD_SECONDS_MAX: i64 = 24 * 3600;

/// The longest gap, in seconds, that NTP explains by itself: 90 days. A server that serves a wrong
/// year, or a receiver whose week counter rolled over, makes a longer one; then a person decides.
pub const SYNCHRONISED_SECONDS_MAX: i64 = 90 * 24 * 3600;

/// This host's clocks at one moment. The reading of a run whose clock was confirmed is kept as a
/// note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockReading {
    /// The time of day.
    pub wall: Timestamp,
    /// Seconds since the kernel's boot, including time asleep. Setting the time of day does not
    /// change them.
    pub since_boot_seconds: i64,
    /// The id of the kernel's boot; empty when it cannot be read.
    pub boot_id: String,
    /// Whether the kernel reports that NTP or PTP synchronises the clock. Setting the time of day
    /// by hand ends that.
    pub is_synchronised: bool,
}

/// The present time by a store's own clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreClock {
    /// The store, as messages name it.
    pub store: String,
    /// The present time by that clock.
    pub at: Timestamp,
}

/// The facts for the decision.
#[derive(Debug, Clone, Copy)]
pub struct ClockFacts<'a> {
    /// This host's clocks now.
    pub reading: &'a ClockReading,
    /// The last reading that was confirmed; `None` when there was none.
    pub note: Option<&'a ClockReading>,
    /// The clocks of the stores that have a clock of their own. A folder has none: this host's
    /// clock dates its files.
    pub stores: &'a [StoreClock],
    /// The time of the newest snapshot or object from before this run, without those dated after
    /// this clock; `None` if there is none.
    pub newest_before: Option<Timestamp>,
    /// Whether a snapshot or object is dated more than [`AHEAD_SECONDS_MAX`] after this clock.
    /// Either this clock is behind, or an earlier clock was ahead: the date proves neither.
    pub has_future_dates: bool,
    /// Whether a person states that the clock is right.
    pub is_vouched: bool,
}

/// The result of comparing an acceptable clock with the other facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockTrust {
    /// Another clock or a person confirms the clock.
    Confirmed,
    /// The clock is behind another time. Deleting by it is safe, but it must not be noted.
    Behind,
}

/// The reason why this host's clock may not be used to delete anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockDoubt {
    /// A store's own clock shows another time.
    #[error("this host's clock, {now}, is {} ahead of the clock of {store}, {at}", age_words(seconds(*at, *now)))]
    AheadOfStore {
        /// The present time by this host's clock.
        now: Timestamp,
        /// The store, as messages name it.
        store: String,
        /// The present time by the store's clock.
        at: Timestamp,
    },
    /// Within one boot the time of day ran faster than the time since boot.
    #[error(
        "this host's clock, {now}, is {} ahead of what it was in an earlier run plus the time \
         since then",
        age_words(seconds(*expected, *now))
    )]
    Jumped {
        /// The present time by this host's clock.
        now: Timestamp,
        /// The time that an undisturbed clock would show.
        expected: Timestamp,
    },
    /// The host was off, or the clock is wrong; nothing but the clock itself distinguishes the two.
    #[error("this host's clock, {now}, is {} after the last run, at {last}, and nothing confirms it", age_words(seconds(*last, *now)))]
    Idle {
        /// The present time by this host's clock.
        now: Timestamp,
        /// The time of the last run.
        last: Timestamp,
    },
    /// No earlier run left a note, and everything stored is old.
    #[error(
        "this host's clock, {now}, is {} after the newest snapshot or object, {newest}, and nothing confirms it",
        age_words(seconds(*newest, *now))
    )]
    Unconfirmed {
        /// The present time by this host's clock.
        now: Timestamp,
        /// The newest time from before this run.
        newest: Timestamp,
    },
}

impl ClockDoubt {
    /// Returns the remedy. `command` is the command that met the doubt.
    pub fn hint(&self, command: &str) -> String {
        match self {
            Self::AheadOfStore { .. } => {
                "set this host's clock, and synchronise it with NTP; zfs-backup doctor compares \
                 both clocks"
                    .to_owned()
            }
            Self::Jumped { .. } | Self::Idle { .. } | Self::Unconfirmed { .. } => format!(
                "set this host's clock, and synchronise it with NTP; if it is right: zfs-backup \
                 {command} -y --clock-is-right"
            ),
        }
    }
}

/// Decides whether this host's clock may be used to delete by age.
///
/// # Errors
/// [`ClockDoubt`] when the clock is more than [`AHEAD_SECONDS_MAX`] ahead of something, or nothing
/// confirms it.
pub fn judge_clock(facts: &ClockFacts<'_>) -> Result<ClockTrust, ClockDoubt> {
    let now = facts.reading.wall;
    // A store's clock is the only clock on another machine, so it takes precedence even over a
    // person.
    let latest = facts
        .stores
        .iter()
        .max_by_key(|clock| seconds(clock.at, now));
    if let Some(clock) = latest {
        return match standing(clock.at, now) {
            Standing::Ahead => Err(ClockDoubt::AheadOfStore {
                now,
                store: clock.store.clone(),
                at: clock.at,
            }),
            Standing::Near => Ok(ClockTrust::Confirmed),
            Standing::Behind => Ok(ClockTrust::Behind),
        };
    }
    if facts.is_vouched {
        return Ok(ClockTrust::Confirmed);
    }
    match facts.note.map(|note| judge_by_note(facts.reading, note)) {
        // A note dated in the future proves nothing: its clock may have been ahead, and may still
        // be. The older dates decide.
        Some(Ok(ClockTrust::Behind)) => match judge_first(facts)? {
            ClockTrust::Confirmed
                if facts.reading.is_synchronised && facts.newest_before.is_some() =>
            {
                Ok(ClockTrust::Confirmed)
            }
            ClockTrust::Confirmed | ClockTrust::Behind => Ok(ClockTrust::Behind),
        },
        Some(judged) => judged,
        None => judge_first(facts),
    }
}

/// Whether `time` is more than [`AHEAD_SECONDS_MAX`] after `now`.
pub fn is_in_future(time: Timestamp, now: Timestamp) -> bool {
    matches!(standing(time, now), Standing::Behind)
}

fn judge_by_note(reading: &ClockReading, note: &ClockReading) -> Result<ClockTrust, ClockDoubt> {
    let now = reading.wall;
    let same_boot = !reading.boot_id.is_empty()
        && reading.boot_id == note.boot_id
        && reading.since_boot_seconds >= note.since_boot_seconds;
    if !same_boot {
        return match standing(note.wall, now) {
            Standing::Near => Ok(ClockTrust::Confirmed),
            Standing::Behind => Ok(ClockTrust::Behind),
            Standing::Ahead if explains_gap(reading, note.wall) => Ok(ClockTrust::Confirmed),
            Standing::Ahead => Err(ClockDoubt::Idle {
                now,
                last: note.wall,
            }),
        };
    }
    let passed = SignedDuration::from_secs(reading.since_boot_seconds - note.since_boot_seconds);
    let expected = note.wall.saturating_add(passed).unwrap_or(Timestamp::MAX);
    match standing(expected, now) {
        Standing::Near => Ok(ClockTrust::Confirmed),
        Standing::Behind => Ok(ClockTrust::Behind),
        // The first synchronisation after a boot corrects a wrong clock. A later jump has another
        // cause.
        Standing::Ahead if !note.is_synchronised && explains_gap(reading, expected) => {
            Ok(ClockTrust::Confirmed)
        }
        Standing::Ahead => Err(ClockDoubt::Jumped { now, expected }),
    }
}

/// Judges a clock by the dates of snapshots and objects alone.
fn judge_first(facts: &ClockFacts<'_>) -> Result<ClockTrust, ClockDoubt> {
    let now = facts.reading.wall;
    let unless_behind = match facts.has_future_dates && !facts.reading.is_synchronised {
        true => ClockTrust::Behind,
        false => ClockTrust::Confirmed,
    };
    let Some(newest) = facts.newest_before else {
        return Ok(unless_behind);
    };
    match standing(newest, now) {
        Standing::Ahead if !explains_gap(facts.reading, newest) => {
            Err(ClockDoubt::Unconfirmed { now, newest })
        }
        Standing::Ahead | Standing::Near => Ok(unless_behind),
        Standing::Behind => Ok(ClockTrust::Behind),
    }
}

/// Whether NTP synchronises the clock, and the clock is not so far ahead of the reference that NTP
/// itself is in doubt.
fn explains_gap(reading: &ClockReading, reference: Timestamp) -> bool {
    reading.is_synchronised && seconds(reference, reading.wall) <= SYNCHRONISED_SECONDS_MAX
}

enum Standing {
    Behind,
    Near,
    Ahead,
}

fn standing(reference: Timestamp, now: Timestamp) -> Standing {
    match seconds(reference, now) {
        ahead if ahead > AHEAD_SECONDS_MAX => Standing::Ahead,
        ahead if ahead < -AHEAD_SECONDS_MAX => Standing::Behind,
        _ => Standing::Near,
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> i64 {
    to.as_second().saturating_sub(from.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_770_000_000 + second).unwrap()
    }

    /// Returns a reading in the boot with this name.
    fn reading(
        boot: &str,
        wall: i64,
        since_boot_seconds: i64,
        is_synchronised: bool,
    ) -> ClockReading {
        ClockReading {
            wall: at(wall),
            since_boot_seconds,
            boot_id: boot.to_owned(),
            is_synchronised,
        }
    }

    fn word(judged: &Result<ClockTrust, ClockDoubt>) -> &'static str {
        match judged {
            Ok(ClockTrust::Confirmed) => "confirmed",
            Ok(ClockTrust::Behind) => "behind",
            Err(ClockDoubt::AheadOfStore { .. }) => "ahead of store",
            Err(ClockDoubt::Jumped { .. }) => "jumped",
            Err(ClockDoubt::Idle { .. }) => "idle",
            Err(ClockDoubt::Unconfirmed { .. }) => "unconfirmed",
        }
    }

    #[test]
    fn clock_is_compared_with_the_note_of_an_earlier_run() {
        let note = |synchronised| reading("a", 0, 1000, synchronised);
        let free = false;
        let kept = true;
        let table = [
            (
                "a day later in one boot",
                note(free),
                reading("a", DAY, 1000 + DAY, free),
                "confirmed",
            ),
            (
                "a year later in one boot",
                note(free),
                reading("a", YEAR, 1000 + YEAR, free),
                "confirmed",
            ),
            (
                "drift of a day",
                note(free),
                reading("a", 2 * DAY, 1000 + DAY, free),
                "confirmed",
            ),
            (
                "a second more",
                note(free),
                reading("a", 2 * DAY + 1, 1000 + DAY, free),
                "jumped",
            ),
            (
                "set years ahead",
                note(free),
                reading("a", 14 * YEAR, 1000 + DAY, free),
                "jumped",
            ),
            (
                "years ahead by NTP after NTP",
                note(kept),
                reading("a", 14 * YEAR, 1000 + DAY, kept),
                "jumped",
            ),
            (
                "the first NTP of a boot",
                note(free),
                reading("a", 91 * DAY, 1000 + DAY, kept),
                "confirmed",
            ),
            (
                "a wrong year by the first NTP of a boot",
                note(free),
                reading("a", YEAR, 1000 + DAY, kept),
                "jumped",
            ),
            (
                "set back",
                note(free),
                reading("a", -YEAR, 1000 + DAY, free),
                "behind",
            ),
            (
                "another boot, a day later",
                note(free),
                reading("b", DAY, 5, free),
                "confirmed",
            ),
            (
                "another boot, a weekend later",
                note(free),
                reading("b", 3 * DAY, 5, free),
                "idle",
            ),
            (
                "another boot, by NTP",
                note(free),
                reading("b", 3 * DAY, 5, kept),
                "confirmed",
            ),
            (
                "another boot, 90 days by NTP",
                note(kept),
                reading("b", 90 * DAY, 5, kept),
                "confirmed",
            ),
            (
                "another boot, a wrong year by NTP",
                note(kept),
                reading("b", 14 * YEAR, 5, kept),
                "idle",
            ),
            (
                "another boot, earlier",
                note(free),
                reading("b", -YEAR, 5, free),
                "behind",
            ),
            (
                "fewer seconds since the same boot",
                note(free),
                reading("a", 3 * DAY, 5, free),
                "idle",
            ),
            (
                "the same second of the same boot",
                note(free),
                reading("a", 2 * DAY, 1000, free),
                "jumped",
            ),
            (
                "a boot without a name",
                reading("", 0, 5, free),
                reading("", 3 * DAY, 5 + 3 * DAY, free),
                "idle",
            ),
        ];
        for (what, note, reading, expected) in table {
            let facts = ClockFacts {
                reading: &reading,
                note: Some(&note),
                stores: &[],
                newest_before: Some(at(0)).filter(|newest| !is_in_future(*newest, reading.wall)),
                has_future_dates: is_in_future(at(0), reading.wall),
                is_vouched: false,
            };
            let judged = judge_clock(&facts);
            assert_eq!(word(&judged), expected, "{what}: {judged:?}");
            // A person's statement removes each of these doubts.
            assert_eq!(
                word(&judge_clock(&ClockFacts {
                    is_vouched: true,
                    ..facts
                })),
                "confirmed",
                "{what}"
            );
        }
    }

    #[test]
    fn store_clock_overrides_notes_and_confirmation() {
        let store = |wall| StoreClock {
            store: "s3:b".to_owned(),
            at: at(wall),
        };
        let note = reading("a", 0, 1000, true);
        let table = [
            (vec![store(YEAR)], YEAR + HOUR, "confirmed"),
            (vec![store(YEAR)], YEAR + DAY, "confirmed"),
            (vec![store(YEAR)], YEAR + DAY + 1, "ahead of store"),
            (vec![store(YEAR), store(-YEAR)], YEAR, "ahead of store"),
            (vec![store(YEAR)], 0, "behind"),
        ];
        for (stores, wall, expected) in table {
            for (is_vouched, is_synchronised) in [(false, false), (true, false), (false, true)] {
                let reading = reading("a", wall, 1000 + DAY, is_synchronised);
                let (note, newest_before) = (Some(&note), None);
                let facts = ClockFacts {
                    reading: &reading,
                    note,
                    stores: &stores,
                    newest_before,
                    has_future_dates: false,
                    is_vouched,
                };
                assert_eq!(word(&judge_clock(&facts)), expected, "{stores:?} {wall}");
            }
        }
    }

    #[test]
    fn clock_without_a_note_is_compared_with_the_newest_earlier_date() {
        let table = [
            (None, false, "confirmed"),
            (Some(0), false, "confirmed"),
            (Some(-DAY), false, "confirmed"),
            (Some(-DAY - 1), false, "unconfirmed"),
            (Some(-14 * YEAR), false, "unconfirmed"),
            (Some(-90 * DAY), true, "confirmed"),
            (Some(-14 * YEAR), true, "unconfirmed"),
            (Some(DAY), false, "confirmed"),
        ];
        for (newest, is_synchronised, expected) in table {
            let reading = reading("a", 0, 1000, is_synchronised);
            let newest_before = newest.map(at);
            let facts = ClockFacts {
                reading: &reading,
                note: None,
                stores: &[],
                newest_before,
                has_future_dates: false,
                is_vouched: false,
            };
            assert_eq!(word(&judge_clock(&facts)), expected, "{newest:?}");
        }
    }

    #[test]
    fn a_date_in_the_future_does_not_end_the_comparison_with_older_dates() {
        // (the note, newest date that the clock has reached, synchronised, expected)
        let table = [
            (None, None, false, "behind"),
            (None, Some(-HOUR), false, "behind"),
            (None, Some(-10 * YEAR), false, "unconfirmed"),
            (None, Some(-10 * YEAR), true, "unconfirmed"),
            (None, Some(-HOUR), true, "confirmed"),
            (Some(4 * YEAR), None, false, "behind"),
            (Some(4 * YEAR), None, true, "behind"),
            (Some(4 * YEAR), Some(-HOUR), false, "behind"),
            (Some(4 * YEAR), Some(-10 * YEAR), false, "unconfirmed"),
            (Some(4 * YEAR), Some(-10 * YEAR), true, "unconfirmed"),
            (Some(4 * YEAR), Some(-HOUR), true, "confirmed"),
        ];
        for (note, newest, is_synchronised, expected) in table {
            // By a note of another boot and by one of this boot.
            for boot in ["a", "b"] {
                let reading = reading("a", 0, 1000 + DAY, is_synchronised);
                let note = note.map(|wall| super::tests::reading(boot, wall, 1000, false));
                let facts = ClockFacts {
                    reading: &reading,
                    note: note.as_ref(),
                    stores: &[],
                    newest_before: newest.map(at),
                    has_future_dates: true,
                    is_vouched: false,
                };
                let judged = judge_clock(&facts);
                assert_eq!(
                    word(&judged),
                    expected,
                    "{note:?} {newest:?} {is_synchronised}"
                );
            }
        }
    }

    #[test]
    fn clock_doubt_names_the_difference_and_the_remedy() {
        let doubt = ClockDoubt::Jumped {
            now: at(14 * YEAR),
            expected: at(0),
        };
        assert!(doubt.to_string().contains("14y ahead"), "{doubt}");
        assert!(
            doubt
                .hint("prune-remote")
                .contains("zfs-backup prune-remote -y --clock-is-right")
        );
        let doubt = ClockDoubt::AheadOfStore {
            now: at(2 * DAY),
            store: "s3:b".to_owned(),
            at: at(0),
        };
        assert!(
            doubt.to_string().contains("2d ahead of the clock of s3:b"),
            "{doubt}"
        );
        assert!(
            !doubt.hint("prune-remote").contains("--clock-is-right"),
            "a store's clock overrules a person"
        );
    }
}
