//! Lifecycle settings: when fulls are made (`[backup-lifecycle]`), and which backups are kept (the
//! two retention sections).

use super::document::Document;
use super::form;
use super::levels::{FullEvery, KeepLevels, LevelBase};
use super::problem::Problem;
use super::units::{Age, InvalidValue, Size};
use super::visitor::KeyVisitor;
use crate::model::BackupLevel;
use std::fmt;
use std::str::FromStr;

/// A share in whole percent: `50%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percent(pub u32);

/// The rules that choose between full and incremental when no flag does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupLifecycle {
    /// The share of the full's size; once the incrementals of a chain exceed it, a new full is
    /// made.
    pub full_when_incrementals_exceed: Percent,
    /// The levels of backups, and how many of each stay; `None` without levels.
    pub keep: Option<KeepLevels>,
    /// The levels that the base of a backup may have; `None` for the default.
    pub level_base: Option<LevelBase>,
    /// When a new full is made. With levels, `None` means: in each period of the longest unit.
    pub full_every: Option<FullEvery>,
    /// The number of incrementals after which a new full is made.
    pub max_incrementals: Option<u32>,
    /// The estimated size up to which a full is made without asking after a base was lost.
    pub auto_full_max: Size,
}

impl Default for BackupLifecycle {
    fn default() -> Self {
        Self {
            full_when_incrementals_exceed: Percent(50),
            keep: None,
            level_base: None,
            full_every: None,
            max_incrementals: None,
            auto_full_max: Size(100 << 30),
        }
    }
}

impl BackupLifecycle {
    pub(super) fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        visitor.key("keep", &mut self.keep, form::parsed());
        let bases = form::word_of(LevelBase::ALL, "\"same\" or \"longer\"");
        visitor.key("level_base", &mut self.level_base, bases);
        let share = &mut self.full_when_incrementals_exceed;
        visitor.with_default("full_when_incrementals_exceed", share, form::parsed());
        visitor.key("full_every", &mut self.full_every, form::parsed());
        let count = form::number(0..=COUNT_MAX);
        visitor.key("max_incrementals", &mut self.max_incrementals, count);
        let size = form::size(Size(0)..=Size(u64::MAX));
        visitor.with_default("auto_full_max", &mut self.auto_full_max, size);
    }
}

impl BackupLifecycle {
    /// Returns the time in seconds after which no more incrementals are added to a chain; `None`
    /// without a limit.
    pub(super) fn chain_seconds_max(&self) -> Option<u64> {
        match (self.full_every, self.keep) {
            (Some(every), _) => every.age().map(|age| age.duration().as_secs()),
            (None, Some(keep)) => Some(seconds_max(keep.longest())),
            (None, None) => None,
        }
    }
}

/// Returns the length of the longest period of a level.
const fn seconds_max(level: BackupLevel) -> u64 {
    const HOUR: u64 = 3600;
    match level {
        BackupLevel::Hourly => HOUR,
        BackupLevel::Daily => 24 * HOUR,
        BackupLevel::Weekly => 7 * 24 * HOUR,
        BackupLevel::Monthly => 31 * 24 * HOUR,
        BackupLevel::Yearly => 366 * 24 * HOUR,
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

/// The retention rules. Prune keeps the union of the backups that each rule keeps. Without rules
/// everything is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RetentionRules {
    /// `keep-last-chains`: the newest chains, complete.
    pub last_chains: Option<u32>,
    /// `keep-last-full-only`: the fulls of the newest chains.
    pub last_fulls: Option<u32>,
    /// `keep-last-incremental-only`: the newest incrementals of the newest chain, without the
    /// backups that they depend on. Only ever set for an intermediate directory with a remote.
    pub last_incrementals: Option<u32>,
    /// `keep-full-with-age-closest-to`: for each age the fulls nearest to it on both sides.
    pub full_ages: Vec<Age>,
    /// `keep-within`: everything younger than this age.
    pub within: Option<Age>,
    /// `keep-daily`: the newest backup of each day, for this many days.
    pub daily: Option<u32>,
    /// `keep-weekly`.
    pub weekly: Option<u32>,
    /// `keep-monthly`.
    pub monthly: Option<u32>,
    /// `keep-yearly`.
    pub yearly: Option<u32>,
    /// `keep` of `[backup-lifecycle]`: for each level the newest backups of its periods.
    pub levels: Option<KeepLevels>,
    /// `keep_at_least`: the age since a backup was stored, before which it is not deleted. Deletes
    /// and keeps nothing by itself.
    pub at_least: Option<Age>,
}

/// The store that a set of rules is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RulesFor {
    /// The intermediate directory of a configuration whose remote has the complete chains.
    IntermediateWithRemote,
    /// The intermediate directory of a configuration without a remote, which has the only copy.
    IntermediateAlone,
    /// The remote.
    Remote,
}

/// The largest count. Higher counts are typing errors.
const COUNT_MAX: u32 = 100_000;
const LAST_INCREMENTALS: &str = "keep-last-incremental-only";

impl RetentionRules {
    /// Whether there is no rule, so that everything is kept.
    pub fn keeps_everything(&self) -> bool {
        let rules = Self {
            at_least: None,
            ..self.clone()
        };
        rules == Self::default()
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
            && self.levels.is_none()
    }

    pub(super) fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        let count = || form::number(0..=COUNT_MAX);
        visitor.key("keep-last-chains", &mut self.last_chains, count());
        visitor.key("keep-last-full-only", &mut self.last_fulls, count());
        visitor.key(LAST_INCREMENTALS, &mut self.last_incrementals, count());
        let expected = "ages such as \"1w\", \"6m\", \"1y\" (m = 30 days, y = 365 days)";
        let ages = form::list(expected, str::parse, Age::to_string);
        visitor.list("keep-full-with-age-closest-to", &mut self.full_ages, ages);
        visitor.key("keep-within", &mut self.within, form::parsed());
        visitor.key("keep-daily", &mut self.daily, count());
        visitor.key("keep-weekly", &mut self.weekly, count());
        visitor.key("keep-monthly", &mut self.monthly, count());
        visitor.key("keep-yearly", &mut self.yearly, count());
        visitor.key("keep_at_least", &mut self.at_least, form::parsed());
    }

    /// Checks the rules of a section.
    pub(super) fn check(&self, file: &Document<'_>, section: &str, rules_for: RulesFor) {
        let key = format!("{section}.{LAST_INCREMENTALS}");
        let reason = match rules_for {
            RulesFor::IntermediateWithRemote => None,
            RulesFor::Remote => {
                Some("an incremental in the remote is worth nothing without what it depends on")
            }
            RulesFor::IntermediateAlone => Some(
                "without a remote the intermediate directory has the only copy of what incrementals depend on",
            ),
        };
        if let Some(reason) = reason.filter(|_| file.has(&key)) {
            let message = format!("is only for an intermediate directory with a remote: {reason}");
            let problem = Problem::new(message).hint("use keep-last-chains, or keep-within");
            file.refuse(&key, problem);
        }
        if file.key_names(section).next().is_some()
            && !file.has_refused(&format!("{section}."))
            && self.keeps_nothing()
            && !self.keeps_everything()
        {
            let problem =
                Problem::new("has rules that keep nothing; expected at least one that keeps");
            let hint = "to keep everything remove the section; to keep the newest chain write keep-last-chains = 1";
            file.refuse(&format!("[{section}]"), problem.hint(hint));
        }
    }
}
