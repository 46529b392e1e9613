//! Quantities as users write them: [`Size`], [`Age`], [`TimeLimit`]. Each prints the form that it
//! parses.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// An invalid value: the value, the expected form, and a replacement if one is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?}: expected {expected}")]
pub struct InvalidValue {
    /// The value as given.
    pub value: String,
    /// The form of a valid value.
    pub expected: String,
    /// The remedy.
    pub hint: Option<String>,
}

impl InvalidValue {
    pub(super) fn new(value: &str, expected: impl Into<String>) -> Self {
        Self {
            value: value.to_owned(),
            expected: expected.into(),
            hint: None,
        }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A number of bytes. `K`, `M`, `G`, `T` are binary multiples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

const SIZE_UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];
const SIZE_FORM: &str = "a size such as 1G, 64M or 512K (binary multiples), or a number of bytes";

impl Size {
    /// Returns the number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Returns the bytes as a length in memory. A size that exceeds the address space becomes the
    /// largest length.
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Returns a size of `count` mebibytes.
    pub const fn mebibytes(count: u64) -> Self {
        Self(count << 20)
    }
}

impl FromStr for Size {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, SIZE_FORM);
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[digits.len()..];
        let shift = match unit.to_ascii_uppercase().as_str() {
            "" => 0,
            unit => match SIZE_UNITS.iter().find(|(name, _)| unit.starts_with(*name)) {
                Some((_, shift)) if unit.len() == 1 => *shift,
                Some((name, _)) if matches!(&unit[1..], "B" | "IB") => {
                    return Err(invalid().hint(format!("write \"{digits}{name}\"")));
                }
                _ => return Err(invalid()),
            },
        };
        if let Some((whole, fraction)) = digits.split_once('.') {
            return Err(fraction_hint(invalid(), whole, fraction, shift));
        }
        let count = plain_number(digits).ok_or_else(invalid)?;
        count.checked_mul(1 << shift).map(Self).ok_or_else(invalid)
    }
}

/// Suggests the equal whole number for a fraction such as `1.5G`, which is refused, if there is
/// one.
fn fraction_hint(invalid: InvalidValue, whole: &str, fraction: &str, shift: u32) -> InvalidValue {
    let (Some(whole), Some(part), Some(lower)) = (
        plain_number(whole),
        plain_number(fraction),
        SIZE_UNITS.iter().find(|(_, lower)| lower + 10 == shift),
    ) else {
        return invalid;
    };
    let scale = u32::try_from(fraction.len())
        .ok()
        .and_then(|places| 10u64.checked_pow(places));
    let exact = scale.and_then(|scale| {
        (part * 1024)
            .is_multiple_of(scale)
            .then(|| part * 1024 / scale)
    });
    match exact.zip(whole.checked_mul(1024)) {
        Some((part, whole)) => invalid.hint(format!("write \"{}{}\"", whole + part, lower.0)),
        None => invalid,
    }
}

/// Splits a number from the letter after it: `7d`.
fn count_and_unit(text: &str) -> Option<(u64, char)> {
    let (last, unit) = text.char_indices().next_back()?;
    Some((plain_number(&text[..last])?, unit))
}

/// Parses at most 15 digits, so that sums of such numbers stay within 64 bits.
fn plain_number(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.len() <= 15 && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, shift): &&(char, u32)| self.0 != 0 && self.0.trailing_zeros() >= *shift;
        match SIZE_UNITS.iter().find(fits) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// An age: `1h 7d 1w 6m 1y`, where m is 30 days and y 365. The unit is kept as written, so that a
/// plan can say "6m".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Age {
    count: u32,
    unit: AgeUnit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AgeUnit {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

const AGE_UNITS: [(char, AgeUnit, u64); 5] = [
    ('h', AgeUnit::Hour, 1),
    ('d', AgeUnit::Day, 24),
    ('w', AgeUnit::Week, 7 * 24),
    ('m', AgeUnit::Month, 30 * 24),
    ('y', AgeUnit::Year, 365 * 24),
];
/// The largest age, a hundred years, which keeps sums of times far from overflow.
const AGE_HOURS_MAX: u64 = 100 * 365 * 24;
const AGE_FORM: &str =
    "an age such as 1h, 7d, 1w, 6m or 1y (m = 30 days, y = 365 days), at most 100y";

impl Age {
    /// Returns an age of `count` days.
    #[cfg(any(test, feature = "testing"))]
    pub const fn days(count: u32) -> Self {
        Self {
            count,
            unit: AgeUnit::Day,
        }
    }

    /// Returns the age as a duration.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.hours() * 3600)
    }

    fn hours(self) -> u64 {
        u64::from(self.count) * self.table_row().2
    }

    fn table_row(self) -> (char, AgeUnit, u64) {
        AGE_UNITS[self.unit as usize]
    }
}

impl FromStr for Age {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let age = count_and_unit(text).and_then(|(count, letter)| {
            let mut units = AGE_UNITS.into_iter();
            let (_, unit, _) = units.find(|(name, ..)| *name == letter)?;
            let count = u32::try_from(count).ok()?;
            Some(Self { count, unit })
        });
        age.filter(|age| age.count > 0 && age.hours() <= AGE_HOURS_MAX)
            .ok_or_else(|| InvalidValue::new(text, AGE_FORM))
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, self.table_row().0)
    }
}

/// A time limit: `30s 10m 2h 1d`, where m is a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeLimit(Duration);

const TIME_UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];
const TIME_FORM: &str = "a duration such as 30s, 10m, 2h or 1d (m = minutes), at most 365d";

impl TimeLimit {
    /// Returns a limit of `count` seconds.
    pub const fn seconds(count: u64) -> Self {
        Self(Duration::from_secs(count))
    }

    /// Returns the limit as a duration.
    pub const fn duration(self) -> Duration {
        self.0
    }
}

impl FromStr for TimeLimit {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text == "0" {
            return Ok(Self::seconds(0));
        }
        let total = count_and_unit(text).and_then(|(count, letter)| {
            let mut units = TIME_UNITS.into_iter();
            let (_, seconds) = units.find(|(name, _)| *name == letter)?;
            count.checked_mul(seconds)
        });
        total
            .filter(|total| *total <= 365 * 86_400)
            .map(Self::seconds)
            .ok_or_else(|| InvalidValue::new(text, TIME_FORM))
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_secs();
        let fits = |(_, seconds): &(char, u64)| total != 0 && total.is_multiple_of(*seconds);
        let (unit, seconds) = TIME_UNITS.into_iter().find(fits).unwrap_or(('s', 1));
        write!(f, "{}{unit}", total / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(text: &str) -> Option<u64> {
        text.parse().ok().map(Size::bytes)
    }

    #[test]
    fn sizes_are_binary_multiples() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("65536", Some(65_536)),
            ("512K", Some(512 << 10)),
            ("64M", Some(64 << 20)),
            ("1G", Some(1 << 30)),
            ("1g", Some(1 << 30)),
            ("5T", Some(5 << 40)),
            ("", None),
            ("G", None),
            ("-1G", None),
            ("+1G", None),
            ("1 G", None),
            ("1P", None),
            ("1GB", None),
            ("1.5G", None),
            ("999999999999999T", None),
            ("1é", None),
        ] {
            assert_eq!(size(text), bytes, "{text:?}");
        }
    }

    #[test]
    fn an_almost_valid_size_is_refused_with_its_valid_form() {
        for (text, hint) in [
            ("1GB", Some("write \"1G\"")),
            ("64MiB", Some("write \"64M\"")),
            ("1.5G", Some("write \"1536M\"")),
            ("0.25T", Some("write \"256G\"")),
            ("1.3G", None),
            ("1.99999999999999999999G", None),
            ("lots", None),
        ] {
            assert_eq!(
                text.parse::<Size>().unwrap_err().hint.as_deref(),
                hint,
                "{text:?}"
            );
        }
    }

    #[test]
    fn ages_count_months_as_30_days_and_years_as_365() {
        let hours = |text: &str| text.parse().ok().map(Age::hours);
        for (text, expected) in [
            ("1h", Some(1)),
            ("7d", Some(168)),
            ("1w", Some(168)),
            ("6m", Some(6 * 720)),
            ("1y", Some(8760)),
            ("100y", Some(876_000)),
            ("101y", None),
            ("0d", None),
            ("d", None),
            ("1", None),
            ("1M", None),
            ("-1d", None),
            ("1y6m", None),
            ("1ö", None),
            ("", None),
        ] {
            assert_eq!(hours(text), expected, "{text:?}");
        }
    }

    #[test]
    fn m_is_a_minute_in_a_time_limit() {
        let seconds = |text: &str| {
            text.parse()
                .ok()
                .map(|limit: TimeLimit| limit.duration().as_secs())
        };
        for (text, expected) in [
            ("30s", Some(30)),
            ("10m", Some(600)),
            ("2h", Some(7200)),
            ("1d", Some(86_400)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("366d", None),
            ("10", None),
            ("10min", None),
            ("999999999999999d", None),
        ] {
            assert_eq!(seconds(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_size_prints_what_it_parses(count in 0u64..1024, shift in 0u32..50) {
            let size = Size(count << shift);
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }

        #[test]
        fn an_age_prints_what_it_parses(count in 1u32..99, unit in "[hdwmy]") {
            let text = format!("{count}{unit}");
            prop_assert_eq!(text.parse::<Age>().map(|age| age.to_string()), Ok(text));
        }

        #[test]
        fn a_time_limit_prints_what_it_parses(seconds in 0u64..31_536_000) {
            let limit = TimeLimit::seconds(seconds);
            prop_assert_eq!(limit.to_string().parse(), Ok(limit));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,12}|[0-9.]{0,20}[A-Za-z]{0,3}") {
            let _ = (text.parse::<Size>(), text.parse::<Age>(), text.parse::<TimeLimit>());
        }
    }
}
