//! [`judge_clock`]: whether this host's clock may decide what is old enough to be deleted.
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
    /// Seconds since the kernel's boot, time asleep included. Setting the time of day does not
    /// change them.
    pub since_boot_seconds: i64,
    /// The kernel's boot; empty when it cannot be read.
    pub boot_id: String,
    /// The kernel reports that NTP or PTP synchronises the clock. Setting the time of day by hand
    /// ends that.
    pub is_synchronised: bool,
}

/// The present time by a store's own clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreClock {
    /// The store, for people.
    pub store: String,
    /// The store's time.
    pub at: Timestamp,
}

/// Everything that is decided from.
#[derive(Debug, Clone, Copy)]
pub struct ClockFacts<'a> {
    /// This host's clocks now.
    pub reading: &'a ClockReading,
    /// The last reading that was confirmed; `None` when there was none.
    pub note: Option<&'a ClockReading>,
    /// The clocks of the stores that have one of their own. A folder has none: this host's clock
    /// dates its files.
    pub stores: &'a [StoreClock],
    /// The time of the newest snapshot or object from before this run; `None` when there is none.
    pub newest_before: Option<Timestamp>,
    /// A person says that the clock is right.
    pub is_vouched: bool,
}

/// How a clock that may be used compares with what else is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockTrust {
    /// Another clock or a person confirms the clock.
    Confirmed,
    /// The clock is behind another time: deleting by it is safe, but it must not be noted.
    Behind,
}

/// Why nothing may be deleted by this host's clock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClockDoubt {
    /// A store's own clock says another time.
    #[error("this host's clock, {now}, is {} ahead of the clock of {store}, {at}", age_words(seconds(*at, *now)))]
    AheadOfStore {
        /// This host's time.
        now: Timestamp,
        /// The store.
        store: String,
        /// The store's time.
        at: Timestamp,
    },
    /// Within one boot the time of day ran faster than the time since boot.
    #[error(
        "this host's clock, {now}, is {} ahead of what it was in an earlier run, plus the time since",
        age_words(seconds(*expected, *now))
    )]
    Jumped {
        /// This host's time.
        now: Timestamp,
        /// The time that an undisturbed clock would show.
        expected: Timestamp,
    },
    /// The host was off, or the clock is wrong; only the clock itself says which.
    #[error("this host's clock, {now}, is {} after the last run, at {last}, and nothing confirms it", age_words(seconds(*last, *now)))]
    Idle {
        /// This host's time.
        now: Timestamp,
        /// The time of the last run.
        last: Timestamp,
    },
    /// No earlier run left a note, and all that is there is old.
    #[error(
        "this host's clock, {now}, is {} after the newest snapshot or object, {newest}, and nothing confirms it",
        age_words(seconds(*newest, *now))
    )]
    Unconfirmed {
        /// This host's time.
        now: Timestamp,
        /// The newest time of before this run.
        newest: Timestamp,
    },
}

impl ClockDoubt {
    /// Returns the remedy for a person. `command` is the command that met the doubt.
    pub fn hint(&self, command: &str) -> String {
        match self {
            Self::AheadOfStore { .. } => {
                "set this host's clock, and keep it by NTP; zfs-backup doctor compares both clocks"
                    .to_owned()
            }
            Self::Jumped { .. } | Self::Idle { .. } | Self::Unconfirmed { .. } => format!(
                "set this host's clock, and keep it by NTP; if it is right: zfs-backup {command} -y --clock-is-right"
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
    // A store's clock is the only one on another machine, so it overrules even a person.
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
    match facts.note {
        Some(note) => judge_by_note(facts.reading, note),
        None => judge_first(facts),
    }
}

fn judge_by_note(reading: &ClockReading, note: &ClockReading) -> Result<ClockTrust, ClockDoubt> {
    let now = reading.wall;
    let same_boot = !reading.boot_id.is_empty()
        && reading.boot_id == note.boot_id
        && reading.since_boot_seconds >= note.since_boot_seconds;
    if !same_boot {
        return match standing(note.wall, now) {
            _ if explains_gap(reading, note.wall) => Ok(ClockTrust::Confirmed),
            Standing::Near => Ok(ClockTrust::Confirmed),
            Standing::Behind => Ok(ClockTrust::Behind),
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
        // The first synchronisation after a boot sets a clock that was wrong. A later jump is none.
        _ if !note.is_synchronised && explains_gap(reading, expected) => Ok(ClockTrust::Confirmed),
        Standing::Behind => Ok(ClockTrust::Behind),
        Standing::Ahead => Err(ClockDoubt::Jumped { now, expected }),
    }
}

fn judge_first(facts: &ClockFacts<'_>) -> Result<ClockTrust, ClockDoubt> {
    let now = facts.reading.wall;
    let Some(newest) = facts
        .newest_before
        .filter(|newest| !explains_gap(facts.reading, *newest))
    else {
        return Ok(ClockTrust::Confirmed);
    };
    match standing(newest, now) {
        Standing::Near => Ok(ClockTrust::Confirmed),
        Standing::Behind => Ok(ClockTrust::Behind),
        Standing::Ahead => Err(ClockDoubt::Unconfirmed { now, newest }),
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

    /// A reading in the boot of that name.
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
    fn a_clock_is_held_against_the_note_of_an_earlier_run() {
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
                newest_before: Some(at(0)),
                is_vouched: false,
            };
            let judged = judge_clock(&facts);
            assert_eq!(word(&judged), expected, "{what}: {judged:?}");
            // A person's word ends each of these doubts.
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
    fn the_clock_of_a_store_decides_alone() {
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
                    is_vouched,
                };
                assert_eq!(word(&judge_clock(&facts)), expected, "{stores:?} {wall}");
            }
        }
    }

    #[test]
    fn without_a_note_the_newest_of_before_is_what_there_is() {
        let table = [
            (None, false, "confirmed"),
            (Some(0), false, "confirmed"),
            (Some(-DAY), false, "confirmed"),
            (Some(-DAY - 1), false, "unconfirmed"),
            (Some(-14 * YEAR), false, "unconfirmed"),
            (Some(-90 * DAY), true, "confirmed"),
            (Some(-14 * YEAR), true, "unconfirmed"),
            (Some(DAY), false, "confirmed"),
            (Some(DAY + 1), false, "behind"),
            (Some(2 * DAY), false, "behind"),
        ];
        for (newest, is_synchronised, expected) in table {
            let reading = reading("a", 0, 1000, is_synchronised);
            let newest_before = newest.map(at);
            let facts = ClockFacts {
                reading: &reading,
                note: None,
                stores: &[],
                newest_before,
                is_vouched: false,
            };
            assert_eq!(word(&judge_clock(&facts)), expected, "{newest:?}");
        }
    }

    #[test]
    fn a_doubt_says_how_far_and_how_to_go_on() {
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
