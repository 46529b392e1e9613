//! What is made and what is kept: `[backup-lifecycle]` and the two retention sections.

use super::section::Section;
use super::units::{Age, InvalidValue, Size};
use std::fmt;
use std::str::FromStr;

/// A share in whole per cent: `50%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent(pub u32);

/// Which kind of backup is made when no flag says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupLifecycle {
    /// A new full once the incrementals of a chain exceed this share of its full.
    pub full_when_incrementals_exceed: Percent,
    /// A new full once the chain's full is this old.
    pub full_every: Option<Age>,
    /// A new full after that many incrementals.
    pub max_incrementals: Option<u32>,
    /// When a base was lost: up to this estimate a full is made without asking.
    pub auto_full_max: Size,
}

impl Default for BackupLifecycle {
    fn default() -> Self {
        Self {
            full_when_incrementals_exceed: Percent(50),
            full_every: None,
            max_incrementals: None,
            auto_full_max: Size(100 << 30),
        }
    }
}

impl BackupLifecycle {
    pub(super) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            full_when_incrementals_exceed: section
                .parsed("full_when_incrementals_exceed")
                .unwrap_or(default.full_when_incrementals_exceed),
            full_every: section.parsed("full_every"),
            max_incrementals: section.number("max_incrementals", 0..=100_000),
            auto_full_max: section
                .size("auto_full_max", Size(0)..=Size(u64::MAX))
                .unwrap_or(default.auto_full_max),
        }
    }
}

impl FromStr for Percent {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let digits = text
            .strip_suffix('%')
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        let share = digits
            .and_then(|digits| digits.parse().ok())
            .filter(|share| (1..=10_000).contains(share));
        share
            .map(Self)
            .ok_or_else(|| InvalidValue::new(text, "a share such as 50%, from 1% to 10000%"))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// What prune keeps: the union of what each rule keeps. Without any rule everything is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionRules {
    /// `keep-last-chains`: the newest chains, whole.
    pub last_chains: Option<u32>,
    /// `keep-last-full-only`: the fulls of the newest chains.
    pub last_fulls: Option<u32>,
    /// `keep-last-incremental-only`: the newest incrementals of the newest chain, without what they
    /// depend on. Only ever set for an intermediate directory with a remote.
    pub last_incrementals: Option<u32>,
    /// `keep-full-with-age-closest-to`: around each age the fulls on both its sides.
    pub full_ages: Vec<Age>,
    /// `keep-within`: everything that is younger.
    pub within: Option<Age>,
    /// `keep-daily`: the newest of each of so many days.
    pub daily: Option<u32>,
    /// `keep-weekly`.
    pub weekly: Option<u32>,
    /// `keep-monthly`.
    pub monthly: Option<u32>,
    /// `keep-yearly`.
    pub yearly: Option<u32>,
}

/// Which store a set of rules is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RulesFor {
    /// The intermediate directory, with a remote that has the whole chains.
    IntermediateWithRemote,
    /// The intermediate directory, which has the only copy.
    IntermediateAlone,
    /// The remote.
    Remote,
}

/// Counts above this are typing errors.
const COUNT_MAX: u32 = 100_000;

impl RetentionRules {
    /// Whether there is no rule, so that everything is kept.
    pub fn keeps_everything(&self) -> bool {
        *self == Self::default()
    }

    fn keeps_nothing(&self) -> bool {
        let counts = [
            self.last_chains,
            self.last_fulls,
            self.last_incrementals,
            self.daily,
            self.weekly,
            self.monthly,
            self.yearly,
        ];
        counts.into_iter().flatten().all(|count| count == 0)
            && self.full_ages.is_empty()
            && self.within.is_none()
    }

    pub(super) fn read(section: &Section<'_>, rules_for: RulesFor) -> Self {
        let count = |key| section.number(key, 0..=COUNT_MAX);
        let ages = section.list("keep-full-with-age-closest-to");
        let full_ages = ages.and_then(|ages| {
            let expected = "ages such as \"1w\", \"6m\", \"1y\" (m = 30 days, y = 365 days)";
            section.parse_items(
                "keep-full-with-age-closest-to",
                &ages,
                expected,
                str::parse::<Age>,
            )
        });
        let rules = Self {
            last_chains: count("keep-last-chains"),
            last_fulls: count("keep-last-full-only"),
            last_incrementals: count("keep-last-incremental-only"),
            full_ages: full_ages.unwrap_or_default(),
            within: section.parsed("keep-within"),
            daily: count("keep-daily"),
            weekly: count("keep-weekly"),
            monthly: count("keep-monthly"),
            yearly: count("keep-yearly"),
        };
        rules.check(section, rules_for);
        rules
    }

    fn check(&self, section: &Section<'_>, rules_for: RulesFor) {
        let key = "keep-last-incremental-only";
        if section.has(key) && rules_for != RulesFor::IntermediateWithRemote {
            let why = match rules_for {
                RulesFor::Remote => {
                    "an incremental in the remote is worth nothing without what it depends on"
                }
                _ => {
                    "without a remote the intermediate directory has the only copy of what incrementals depend on"
                }
            };
            let message = format!("is only for an intermediate directory with a remote: {why}");
            section.refuse(
                key,
                message,
                Some("use keep-last-chains, or keep-within".to_owned()),
            );
        }
        if section.is_present()
            && !section.key_names().is_empty()
            && !section.has_problems()
            && self.keeps_nothing()
        {
            let hint = "to keep everything remove the section; to keep the newest chain write keep-last-chains = 1";
            section.refuse_section(
                "has rules that keep nothing; expected at least one that keeps",
                Some(hint.into()),
            );
        }
    }
}
