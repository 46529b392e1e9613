//! Rates of an upload and their text. Pure: the clock is an argument.

use crate::cli::screen::table::{WIDTH, bytes};
use std::collections::VecDeque;
use std::time::Duration;

/// The time over which the recent rate is measured. A shorter time would make the rate jump with
/// every part, a longer one would hide a dead connection.
const RECENT: Duration = Duration::from_secs(30);
/// The time between two samples: 30 of them, and the one before, are enough for [`RECENT`].
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// The rates of one upload, in bytes per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    /// The rate over the last half minute.
    pub(crate) recent: u64,
    /// The rate since the start.
    pub(crate) average: u64,
}

/// The measurement of one upload.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    samples: VecDeque<(Duration, u64)>,
    /// Bytes that were sent before a chunk had to be made again and the count restarted.
    earlier_bytes: u64,
    /// The last count.
    bytes: u64,
}

impl Meter {
    /// Returns the rates, `elapsed` after the start and after `sent_bytes`. A count that is smaller
    /// than the one before has restarted.
    pub(crate) fn update(&mut self, elapsed: Duration, sent_bytes: u64) -> Rates {
        if sent_bytes < self.bytes {
            self.earlier_bytes += self.bytes;
        }
        self.bytes = sent_bytes;
        let sent = self.earlier_bytes + sent_bytes;
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| elapsed.saturating_sub(*at) >= RECENT)
        {
            self.samples.pop_front();
        }
        let (at, before) = self.samples.front().copied().unwrap_or_default();
        if self
            .samples
            .back()
            .is_none_or(|(at, _)| elapsed.saturating_sub(*at) >= SAMPLE_EVERY)
        {
            self.samples.push_back((elapsed, sent));
        }
        Rates {
            recent: per_second(sent - before, elapsed.saturating_sub(at)),
            average: per_second(sent, elapsed),
        }
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    if milliseconds == 0 {
        0
    } else {
        u64::try_from(u128::from(bytes) * 1000 / u128::from(milliseconds)).unwrap_or(u64::MAX)
    }
}

/// The progress of an upload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MeterReading {
    /// Bytes sent so far.
    pub(crate) sent_bytes: u64,
    /// The estimate of all bytes; 0 when there is none. It is never exact.
    pub(crate) total_bytes: u64,
    /// The rates of the upload.
    pub(crate) rates: Rates,
    /// The number of the chunk in flight, from 1.
    pub(crate) chunk: u32,
}

/// Returns one line of at most 80 characters: name, progress, rates, remaining time, and the chunk
/// in flight.
pub(crate) fn progress_line(name: &str, step: &MeterReading) -> String {
    let MeterReading {
        sent_bytes,
        total_bytes,
        rates,
        chunk,
    } = *step;
    let speed = format!("{}/s (avg {}/s)", bytes(rates.recent), bytes(rates.average));
    let how_far = match total_bytes {
        0 => format!("{} {speed}", bytes(sent_bytes)),
        total => {
            // The total grows with the count when the estimate was too low, and the percentage
            // stays below 100 until the end.
            let total = total.max(sent_bytes);
            let percent = (u128::from(sent_bytes) * 100 / u128::from(total)).min(99);
            let left = left(total - sent_bytes, rates);
            format!(
                "{}/{} {percent}% {speed} left {left}",
                bytes(sent_bytes),
                bytes(total)
            )
        }
    };
    let rest = format!(" {how_far}  chunk {chunk}");
    format!(
        "{}{rest}",
        shortened(name, WIDTH.saturating_sub(rest.chars().count()))
    )
}

/// Returns the remaining time by the recent rate, or `-` while no bytes move.
fn left(bytes: u64, rates: Rates) -> String {
    match bytes.checked_div(rates.recent) {
        None => "-".to_owned(),
        Some(seconds @ 0..60) => format!("{seconds}s"),
        Some(seconds @ 60..3600) => format!("{}m", seconds / 60),
        Some(seconds @ 3600..172_800) => format!("{}h", seconds / 3600),
        Some(seconds) => format!("{}d", seconds / 86_400),
    }
}

/// Cuts the beginning of a long name, because the end of a name says more.
fn shortened(name: &str, width: usize) -> String {
    let count = name.chars().count();
    if count <= width {
        return name.to_owned();
    }
    let kept: String = name.chars().skip(count + 2 - width.max(2)).collect();
    format!("..{kept}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    #[test]
    fn recent_rate_drops_to_zero_while_average_rate_is_kept() {
        let mut meter = Meter::default();
        let at = |seconds| Duration::from_secs(seconds);
        assert_eq!(meter.update(at(0), 0), Rates::default());
        let mut rates = Rates::default();
        for second in 1..=100 {
            rates = meter.update(at(second), second * 10 * M);
        }
        assert_eq!(
            rates,
            Rates {
                recent: 10 * M,
                average: 10 * M
            }
        );
        for second in 101..=150 {
            rates = meter.update(at(second), 1000 * M);
        }
        assert_eq!(rates.recent, 0, "a line that died");
        assert_eq!(rates.average, 1000 * M / 150);
        assert!(meter.samples.len() <= 32, "{}", meter.samples.len());
    }

    #[test]
    fn decreasing_byte_count_does_not_make_a_negative_rate() {
        let mut meter = Meter::default();
        meter.update(Duration::from_secs(10), 100 * M);
        let rates = meter.update(Duration::from_secs(20), 50 * M);
        assert_eq!(rates.average, 150 * M / 20);
    }

    #[test]
    fn progress_line_fits_80_columns_and_never_reaches_100_percent() {
        let step = |sent_bytes, total_bytes, rate, chunk| MeterReading {
            sent_bytes,
            total_bytes,
            rates: Rates {
                recent: rate,
                average: rate,
            },
            chunk,
        };
        let cases = [
            (
                "tank/media",
                step(412 << 30, 1000 << 30, 5 * M, 413),
                "tank/media 412G/1000G 41% 5.00M/s (avg 5.00M/s) left 33h  chunk 413",
            ),
            (
                "tank/a",
                step(0, 0, 0, 1),
                "tank/a 0 0/s (avg 0/s)  chunk 1",
            ),
            (
                "tank/a",
                step(10 * M, 5 * M, 0, 2),
                "tank/a 10.0M/10.0M 99% 0/s (avg 0/s) left -  chunk 2",
            ),
        ];
        for (name, step, line) in cases {
            assert_eq!(progress_line(name, &step), line);
        }
        let long = progress_line(
            &"x".repeat(200),
            &step(u64::MAX, u64::MAX, u64::MAX, u32::MAX),
        );
        assert!(
            long.chars().count() <= 80 && long.starts_with("..x"),
            "{long}"
        );
    }
}
