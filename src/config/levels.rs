//! The levels of `[backup-lifecycle]`: [`KeepLevels`], [`LevelBase`], [`FullEvery`].

use super::units::{Age, InvalidValue};
use crate::model::BackupLevel;
use std::fmt;
use std::str::FromStr;

/// The levels of backups, and how many backups of each level stay: `2y 12m 8w 14d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepLevels {
    /// The number for each level in the order of [`BackupLevel::ALL`]; 0 for a level that is not
    /// configured. At least one is not 0.
    counts: [u32; BackupLevel::ALL.len()],
}

/// The largest number of backups of one level. Higher numbers are typing errors.
const COUNT_MAX: u32 = 100_000;
const LETTERS: [char; BackupLevel::ALL.len()] = ['h', 'd', 'w', 'm', 'y'];
const KEEP_FORM: &str = "numbers with the units y m w d h, each unit at most once and the longest first, such as \"2y 12m 8w 14d\"";

impl KeepLevels {
    /// Returns the configured levels with their numbers, the shortest unit first.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = (BackupLevel, u32)> + use<> {
        BackupLevel::ALL
            .into_iter()
            .zip(self.counts)
            .filter(|(_, count)| *count > 0)
    }

    /// Returns the level with the longest unit.
    pub fn longest(&self) -> BackupLevel {
        self.levels()
            .next_back()
            .map_or(BackupLevel::Yearly, |(level, _)| level)
    }

    /// Returns the level with the shortest unit.
    pub fn shortest(&self) -> BackupLevel {
        self.levels()
            .next()
            .map_or(BackupLevel::Hourly, |(level, _)| level)
    }
}

impl FromStr for KeepLevels {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let invalid = || InvalidValue::new(text, KEEP_FORM);
        let mut counts = [0; LETTERS.len()];
        let mut order = Vec::new();
        for word in text.split_whitespace() {
            let digits = word.trim_end_matches(LETTERS);
            let unit = LETTERS
                .iter()
                .position(|letter| word[digits.len()..] == letter.to_string())
                .ok_or_else(invalid)?;
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            let count: u32 = digits.parse().map_err(|_| invalid())?;
            if !is_number || count > COUNT_MAX {
                return Err(invalid());
            }
            if count == 0 {
                return Err(invalid().hint(format!("leave out \"{word}\"")));
            }
            if counts[unit] > 0 {
                return Err(invalid().hint(format!("write the unit {} once", LETTERS[unit])));
            }
            counts[unit] = count;
            order.push(unit);
        }
        let sorted = Self { counts };
        match order.is_sorted_by(|longer, shorter| longer > shorter) {
            _ if order.is_empty() => Err(invalid()),
            true => Ok(sorted),
            false => Err(invalid().hint(format!("write \"{sorted}\""))),
        }
    }
}

impl fmt::Display for KeepLevels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = self
            .levels()
            .rev()
            .map(|(level, count)| format!("{count}{}", LETTERS[level as usize]));
        f.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}

/// The levels that the base of a backup may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LevelBase {
    /// The newest backup of the same level or a longer one.
    #[default]
    Same,
    /// The newest backup of a longer level.
    Longer,
}

impl LevelBase {
    /// All values.
    pub(super) const ALL: [Self; 2] = [Self::Same, Self::Longer];
}

impl fmt::Display for LevelBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Same => "same",
            Self::Longer => "longer",
        })
    }
}

/// When a new full is made: `90d` or `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FullEvery {
    /// A new full is made when the full of the chain has this age.
    Age(Age),
    /// A new full is made only where no incremental is possible.
    Never,
}

impl FullEvery {
    /// Returns the age; `None` for `never`.
    pub const fn age(self) -> Option<Age> {
        match self {
            Self::Age(age) => Some(age),
            Self::Never => None,
        }
    }
}

impl FromStr for FullEvery {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if text == "never" {
            return Ok(Self::Never);
        }
        text.parse().map(Self::Age).map_err(|error: InvalidValue| {
            let expected = format!("{}, or \"never\"", error.expected);
            InvalidValue { expected, ..error }
        })
    }
}

impl fmt::Display for FullEvery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Age(age) => age.fmt(f),
            Self::Never => f.write_str("never"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keep_has_each_unit_once_and_the_longest_first() {
        let once = |unit: char| Some(format!("write the unit {unit} once"));
        for (text, expected) in [
            ("2y 12m 8w 14d", Ok("2y 12m 8w 14d")),
            ("  7d\t24h ", Ok("7d 24h")),
            ("1y", Ok("1y")),
            ("100000h", Ok("100000h")),
            ("14d 8w", Err(Some("write \"8w 14d\"".to_owned()))),
            ("1w 1w", Err(once('w'))),
            ("2y 0m 14d", Err(Some("leave out \"0m\"".to_owned()))),
            ("", Err(None)),
            ("100001d", Err(None)),
            ("2y12m", Err(None)),
            ("2y, 12m", Err(None)),
            ("y", Err(None)),
            ("12", Err(None)),
            ("+1d", Err(None)),
            ("1D", Err(None)),
            ("1dd", Err(None)),
            ("1ö", Err(None)),
        ] {
            let parsed = text.parse::<KeepLevels>();
            let found = parsed.map(|keep| keep.to_string());
            let found = found.map_err(|error| error.hint);
            assert_eq!(found, expected.map(str::to_owned), "{text:?}");
        }
    }

    #[test]
    fn the_longest_and_the_shortest_level_are_those_of_the_text() {
        let keep: KeepLevels = "12m 8w 14d".parse().unwrap();
        assert_eq!(keep.longest(), BackupLevel::Monthly);
        assert_eq!(keep.shortest(), BackupLevel::Daily);
    }

    #[test]
    fn full_every_is_an_age_or_never() {
        for text in ["90d", "1y", "never"] {
            let parsed: FullEvery = text.parse().unwrap();
            assert_eq!(parsed.to_string(), text);
        }
        let error = "Never".parse::<FullEvery>().unwrap_err();
        assert!(error.expected.ends_with(", or \"never\""), "{error}");
    }

    proptest! {
        #[test]
        fn keep_prints_what_it_parses(counts in proptest::array::uniform5(0u32..200)) {
            prop_assume!(counts.iter().any(|count| *count > 0));
            let keep = KeepLevels { counts };
            prop_assert_eq!(keep.to_string().parse(), Ok(keep));
        }

        #[test]
        fn no_text_makes_keep_panic(text in "\\PC{0,12}|[0-9 hdwmyö]{0,20}") {
            let _ = text.parse::<KeepLevels>();
        }
    }
}
