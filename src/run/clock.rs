//! Reads the input of [`crate::plan::clock`]: this host's clocks, the note of the last run that
//! trusted them, and the clocks of the stores.
//!
//! The note is one small file for the whole host, `state_dir/clock.json`. Only a confirmed clock is
//! saved, so that a clock that is wrong for several nights never confirms itself.

use super::RunError;
use crate::plan::clock::{
    ClockDoubt, ClockFacts, ClockReading, ClockTrust, StoreClock, is_in_future, judge_clock,
};
use crate::state::dir::{create_folder, replace_file};
use crate::state::error::{StateError, failed};
use crate::state::process::{HostBoot, process_started};
use crate::store::StoreInfo;
use crate::zfs::is_clock_synchronised;
use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The format of the file. A file with a later format is refused.
const FORMAT: u32 = 1;
/// The kernel reports the start of a process in this fraction of a second, on every architecture
/// that has OpenZFS.
const TICKS_PER_SECOND: u64 = 100;
/// The assumed length of this run when the kernel does not report it: no date within the last day
/// counts as older than the run.
const RUN_SECONDS_UNKNOWN: i64 = 24 * 3600;

/// This host's clock and the evidence for it.
#[derive(Debug, Clone)]
pub struct ClockCheck {
    /// The clocks at the start of the command.
    pub reading: ClockReading,
    /// The last confirmed reading.
    pub note: Option<ClockReading>,
    /// Whether a person says that the clock is right.
    pub is_vouched: bool,
    /// The time in seconds that this process has run. Younger objects have their date from this
    /// clock and confirm nothing.
    pub run_seconds: i64,
}

#[derive(Serialize, Deserialize)]
struct StoredClockNote {
    format: u32,
    clock: ClockReading,
}

impl ClockCheck {
    /// Reads the clocks and the note. If a person vouches for the clock, the note is not needed,
    /// and a damaged one is no error.
    ///
    /// # Errors
    /// [`StateError::File`] naming an existing note that cannot be read or parsed.
    pub fn read(state_dir: &Path, is_vouched: bool) -> Result<Self, StateError> {
        let reading = read_clocks();
        let note = if is_vouched {
            None
        } else {
            read_note(state_dir)?
        };
        let started = process_started(std::process::id())
            .and_then(|ticks| i64::try_from(ticks / TICKS_PER_SECOND).ok());
        let run_seconds = started.map_or(RUN_SECONDS_UNKNOWN, |started| {
            reading.since_boot_seconds.saturating_sub(started).max(0)
        });
        Ok(Self {
            reading,
            note,
            is_vouched,
            run_seconds,
        })
    }

    /// Makes a check that reads `now` from a clock that a person has confirmed.
    #[cfg(any(test, feature = "testing"))]
    pub fn vouched_at(now: Timestamp) -> Self {
        let reading = ClockReading {
            wall: now,
            ..read_clocks()
        };
        Self {
            reading,
            note: None,
            is_vouched: true,
            run_seconds: 0,
        }
    }

    /// Decides whether the clock may be used to delete by age. `times` are the dates of snapshots
    /// and objects.
    ///
    /// # Errors
    /// [`ClockDoubt`] when it may not.
    pub fn judge(
        &self,
        stores: &[StoreClock],
        times: impl IntoIterator<Item = Timestamp>,
    ) -> Result<ClockTrust, ClockDoubt> {
        let begun = self
            .reading
            .wall
            .as_second()
            .saturating_sub(self.run_seconds);
        // Allow one second: the times of snapshots and objects are whole seconds.
        let is_before = |time: &Timestamp| time.as_second() < begun.saturating_sub(1);
        let now = self.reading.wall;
        let (future, reached): (Vec<_>, Vec<_>) =
            times.into_iter().partition(|time| is_in_future(*time, now));
        judge_clock(&ClockFacts {
            reading: &self.reading,
            note: self.note.as_ref(),
            stores,
            newest_before: reached.into_iter().filter(is_before).max(),
            has_future_dates: !future.is_empty(),
            is_vouched: self.is_vouched,
        })
    }

    /// Saves the reading for later runs if it was confirmed.
    ///
    /// # Errors
    /// [`StateError::File`].
    pub fn keep_note(
        &self,
        state_dir: &Path,
        judged: &Result<ClockTrust, ClockDoubt>,
    ) -> Result<(), StateError> {
        if *judged != Ok(ClockTrust::Confirmed) {
            return Ok(());
        }
        let path = note_path(state_dir);
        let write = || -> std::io::Result<()> {
            create_folder(state_dir)?;
            let stored = StoredClockNote {
                format: FORMAT,
                clock: self.reading.clone(),
            };
            replace_file(&path, &serde_json::to_vec_pretty(&stored)?)
        };
        write().map_err(|source| failed("write", &path, source))
    }
}

/// Saves this host's clock after a backup, if the store's clock or the note of an earlier run
/// confirms it. With a recent note, a prune after a reboot needs no confirmation by a person. The
/// first note needs a store with a clock, or a prune, because a backup compares no dates.
///
/// # Errors
/// [`RunError::Store`] when the store could not be read; [`RunError::State`].
pub async fn note_clock(state_dir: &Path, store: &dyn StoreInfo) -> Result<(), RunError> {
    let check = ClockCheck::read(state_dir, false)?;
    let clocks = store_clocks([store]).await?;
    if clocks.is_empty() && check.note.is_none() {
        return Ok(());
    }
    Ok(check.keep_note(state_dir, &check.judge(&clocks, []))?)
}

/// Reads the time of those stores that have a clock of their own.
///
/// # Errors
/// [`RunError::Store`] when a store could not be read.
pub(super) async fn store_clocks<'a>(
    stores: impl IntoIterator<Item = &'a dyn StoreInfo>,
) -> Result<Vec<StoreClock>, RunError> {
    let mut clocks = Vec::new();
    for store in stores {
        let at = store.clock().await?;
        clocks.extend(at.map(|at| StoreClock {
            store: store.url().to_owned(),
            at,
        }));
    }
    Ok(clocks)
}

fn read_clocks() -> ClockReading {
    ClockReading {
        wall: Timestamp::now(),
        since_boot_seconds: clock_gettime(ClockId::Boottime).tv_sec,
        boot_id: HostBoot::current().boot_id,
        is_synchronised: is_clock_synchronised(),
    }
}

fn read_note(state_dir: &Path) -> Result<Option<ClockReading>, StateError> {
    let path = note_path(state_dir);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed("read", &path, source)),
    };
    let wrong = |reason: String| failed("understand", &path, std::io::Error::other(reason));
    let stored: StoredClockNote = serde_json::from_slice(&bytes).map_err(|error| {
        wrong(format!(
            "{error}; if this host's clock is right, --clock-is-right rewrites the note"
        ))
    })?;
    if stored.format != FORMAT {
        return Err(wrong(format!(
            "it has format {}, and this version knows {FORMAT}",
            stored.format
        )));
    }
    Ok(Some(stored.clock))
}

fn note_path(state_dir: &Path) -> PathBuf {
    state_dir.join("clock.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::error_chain;
    use crate::store::StoreTraits;
    use crate::store::memory::MemoryStore;

    #[test]
    fn only_a_confirmed_clock_reading_is_saved_and_read_back() {
        let state = tempfile::tempdir().unwrap();
        let folder = state.path().join("new");
        let check = ClockCheck::read(&folder, false).unwrap();
        assert_eq!(check.note, None);
        assert!(
            check.reading.since_boot_seconds > 0 && !check.reading.boot_id.is_empty(),
            "{:?}",
            check.reading
        );
        assert!(
            check.run_seconds < check.reading.since_boot_seconds,
            "{check:?}"
        );
        let (now, last) = (check.reading.wall, Timestamp::UNIX_EPOCH);
        for judged in [Ok(ClockTrust::Behind), Err(ClockDoubt::Idle { now, last })] {
            check.keep_note(&folder, &judged).unwrap();
            assert_eq!(ClockCheck::read(&folder, false).unwrap().note, None);
        }
        check
            .keep_note(&folder, &Ok(ClockTrust::Confirmed))
            .unwrap();
        let again = ClockCheck::read(&folder, false).unwrap();
        assert_eq!(again.note, Some(check.reading));
        assert_eq!(again.judge(&[], []), Ok(ClockTrust::Confirmed));
    }

    #[tokio::test]
    async fn backup_saves_a_clock_reading_that_store_or_earlier_note_confirms() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path();
        let note = || read_note(state).unwrap();
        let store = MemoryStore::with_traits(StoreTraits {
            part_bytes: 1000,
            concurrency: 1,
            conditional_put: true,
            holds_parts: false,
        });
        note_clock(state, &store).await.unwrap();
        assert_eq!(note(), None, "nothing confirms the clock");
        let days = |days: i64| Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
        for wrong in [days(-400), days(400)] {
            store.set_clock(Some(wrong));
            note_clock(state, &store).await.unwrap();
            assert_eq!(note(), None, "the store's clock differs");
        }
        store.set_clock(Some(Timestamp::now()));
        note_clock(state, &store).await.unwrap();
        let first = note().unwrap();
        store.set_clock(None);
        note_clock(state, &store).await.unwrap();
        let second = note().unwrap();
        assert!(second.wall > first.wall, "the note was not renewed");
    }

    #[test]
    fn invalid_clock_note_is_an_error_until_a_person_confirms_the_clock() {
        let state = tempfile::tempdir().unwrap();
        for wrong in ["", "{", "{\"format\":2,\"clock\":null}"] {
            std::fs::write(note_path(state.path()), wrong).unwrap();
            let error = error_chain(&ClockCheck::read(state.path(), false).unwrap_err());
            assert!(error.contains("clock.json"), "{error}");
        }
        let check = ClockCheck::read(state.path(), true).unwrap();
        check
            .keep_note(state.path(), &check.judge(&[], [Timestamp::UNIX_EPOCH]))
            .unwrap();
        assert!(
            ClockCheck::read(state.path(), false)
                .unwrap()
                .note
                .is_some()
        );
    }

    #[test]
    fn backups_made_by_this_run_do_not_confirm_its_clock() {
        let now: Timestamp = "2040-02-10T00:00:00Z".parse().unwrap();
        let before: Timestamp = "2026-02-09T00:00:00Z".parse().unwrap();
        let reading = ClockReading {
            wall: now,
            since_boot_seconds: 90,
            boot_id: "b".into(),
            is_synchronised: false,
        };
        let check = ClockCheck {
            reading,
            note: None,
            is_vouched: false,
            run_seconds: 60,
        };
        let ago = |seconds: i64| Timestamp::from_second(now.as_second() - seconds).unwrap();
        for made in [ago(0), ago(30), ago(60)] {
            assert_eq!(
                check.judge(&[], [before, made]),
                Err(ClockDoubt::Unconfirmed {
                    now,
                    newest: before
                })
            );
        }
        assert_eq!(
            check.judge(&[], [before, ago(3600)]),
            Ok(ClockTrust::Confirmed)
        );
    }
}
