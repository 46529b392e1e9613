//! The hours and the speed of uploads: [`BandwidthSchedule`], [`Window`]. Times are local times of
//! day.

use super::units::{InvalidValue, Size};
use jiff::civil::Time;
use std::fmt;
use std::str::FromStr;

/// Bytes per second of all uploads together, by time of day: `20M`, or `08:00,512K 19:00,off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BandwidthSchedule {
    /// The start of each limit and the limit, in order of time; `None` is no limit. Never empty.
    steps: Vec<(Time, Option<Size>)>,
}

const BANDWIDTH_FORM: &str =
    "bytes per second such as 20M, or times with limits such as \"08:00,512K 19:00,20M\"";
/// The lowest limit. Below it a part of 16 MiB takes longer than stores keep a connection open.
const RATE_MIN: Size = Size(1 << 10);

impl BandwidthSchedule {
    /// Returns the limit at a time of day. Before the first step of a day the last step of the
    /// previous day applies.
    pub fn at(&self, time: Time) -> Option<Size> {
        let current = self
            .steps
            .iter()
            .rev()
            .find(|(from, _)| *from <= time)
            .or(self.steps.last());
        current.and_then(|(_, limit)| *limit)
    }

    /// Returns the value for rclone's `--bwlimit`: uploads only, in bytes.
    pub fn for_rclone(&self) -> String {
        let limit = |limit: &Option<Size>| {
            limit.map_or_else(|| "off".to_owned(), |limit| format!("{}B", limit.bytes()))
        };
        let step = |(from, rate): &(Time, Option<Size>)| {
            format!("{},{}:off", hour_minute(*from), limit(rate))
        };
        match self.steps.as_slice() {
            [(_, rate)] => format!("{}:off", limit(rate)),
            steps => steps.iter().map(step).collect::<Vec<_>>().join(" "),
        }
    }

    /// Returns the slowest limit of the day, or `None` without a limit at any hour.
    pub fn slowest(&self) -> Option<Size> {
        self.steps.iter().filter_map(|(_, limit)| *limit).min()
    }
}

impl FromStr for BandwidthSchedule {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, BANDWIDTH_FORM);
        if !text.contains(',') {
            return Ok(Self {
                steps: vec![(Time::midnight(), rate(text).ok_or_else(invalid)?)],
            });
        }
        let steps: Option<Vec<_>> = text
            .split_whitespace()
            .map(|step| {
                step.split_once(',')
                    .and_then(|(from, limit)| Some((time(from)?, rate(limit)?)))
            })
            .collect();
        let steps = steps.ok_or_else(invalid)?;
        if !steps.is_sorted_by(|(earlier, _), (later, _)| earlier < later) {
            return Err(InvalidValue::new(
                text,
                "times in ascending order, each once",
            ));
        }
        Ok(Self { steps })
    }
}

impl fmt::Display for BandwidthSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |limit: &Option<Size>| {
            limit.map_or_else(|| "off".to_owned(), |limit| limit.to_string())
        };
        match self.steps.as_slice() {
            [(from, limit)] if *from == Time::midnight() => f.write_str(&shown(limit)),
            steps => {
                let steps: Vec<String> = steps
                    .iter()
                    .map(|(from, limit)| format!("{},{}", hour_minute(*from), shown(limit)))
                    .collect();
                f.write_str(&steps.join(" "))
            }
        }
    }
}

fn rate(text: &str) -> Option<Option<Size>> {
    if text == "off" {
        return Some(None);
    }
    text.parse().ok().filter(|rate| *rate >= RATE_MIN).map(Some)
}

fn time(text: &str) -> Option<Time> {
    let digits = |part: &str| (part.len() == 2).then(|| part.parse::<i8>().ok()).flatten();
    let (hour, minute) = text.split_once(':')?;
    Time::new(digits(hour)?, digits(minute)?, 0, 0).ok()
}

fn hour_minute(time: Time) -> String {
    format!("{:02}:{:02}", time.hour(), time.minute())
}

/// The hours in which a long upload may run: `23:00-07:00`. The range may include midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The start of the range, included.
    pub from: Time,
    /// The end of the range, not included.
    pub to: Time,
}

impl Window {
    /// Whether the time of day lies in the range.
    pub fn contains(&self, time: Time) -> bool {
        if self.from <= self.to {
            self.from <= time && time < self.to
        } else {
            self.from <= time || time < self.to
        }
    }
}

impl FromStr for Window {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let parsed = text.split_once('-').and_then(|(from, to)| {
            Some(Self {
                from: time(from)?,
                to: time(to)?,
            })
        });
        parsed
            .filter(|window| window.from != window.to)
            .ok_or_else(|| {
                InvalidValue::new(text, "two different times of day such as \"23:00-07:00\"")
            })
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", hour_minute(self.from), hour_minute(self.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hour: i8, minute: i8) -> Time {
        Time::new(hour, minute, 0, 0).unwrap()
    }

    #[test]
    fn schedules_print_what_they_parse() {
        for (text, good) in [
            ("20M", true),
            ("off", true),
            ("08:00,512K 19:00,20M", true),
            ("08:00,512K 23:00,off", true),
            ("00:00,1M 12:00,2M", true),
            ("", false),
            ("0", false),
            ("512", false),
            ("8:00,1M", false),
            ("24:00,1M", false),
            ("19:00,1M 08:00,2M", false),
            ("08:00,1M 08:00,2M", false),
            ("08:00,", false),
            ("1M 08:00,2M", false),
        ] {
            let parsed = text.parse::<BandwidthSchedule>();
            assert_eq!(parsed.is_ok(), good, "{text:?}");
            assert!(
                parsed.is_err()
                    || parsed.map(|schedule| schedule.to_string()).as_deref() == Ok(text)
            );
        }
    }

    #[test]
    fn the_last_limit_of_the_day_holds_through_the_night() {
        let schedule: BandwidthSchedule = "08:00,512K 19:00,20M".parse().unwrap();
        assert_eq!(schedule.at(at(3, 0)), Some(Size::mebibytes(20)));
        assert_eq!(schedule.at(at(8, 0)), Some(Size(512 << 10)));
        assert_eq!(schedule.at(at(18, 59)), Some(Size(512 << 10)));
        assert_eq!(schedule.slowest(), Some(Size(512 << 10)));
    }

    #[test]
    fn rclone_gets_the_same_limits_for_uploads() {
        for (text, expected) in [
            ("20M", "20971520B:off"),
            ("off", "off:off"),
            ("08:00,512K 19:00,off", "08:00,524288B:off 19:00,off:off"),
        ] {
            assert_eq!(
                text.parse::<BandwidthSchedule>().unwrap().for_rclone(),
                expected
            );
        }
    }

    #[test]
    fn a_window_may_pass_midnight() {
        let night: Window = "23:00-07:00".parse().unwrap();
        let day: Window = "09:30-17:00".parse().unwrap();
        for (window, time, inside) in [
            (night, at(23, 0), true),
            (night, at(6, 59), true),
            (night, at(7, 0), false),
            (night, at(12, 0), false),
            (day, at(9, 30), true),
            (day, at(17, 0), false),
        ] {
            assert_eq!(window.contains(time), inside, "{window} {time}");
        }
        for text in ["", "23:00", "07:00-07:00", "23-07", "25:00-07:00"] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }
}
