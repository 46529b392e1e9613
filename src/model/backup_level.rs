//! [`BackupLevel`]: the unit of time that a backup stands for.

use super::serialize_as_text;
use std::fmt;

/// The level of a backup: `keep` in `[backup-lifecycle]` makes at least one backup of each
/// configured level in each period of its unit. A longer unit is a greater level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackupLevel {
    /// Stands for an hour.
    Hourly,
    /// Stands for a day.
    Daily,
    /// Stands for a week.
    Weekly,
    /// Stands for a month.
    Monthly,
    /// Stands for a year.
    Yearly,
}

impl BackupLevel {
    /// All levels, the shortest unit first.
    pub const ALL: [Self; 5] = [
        Self::Hourly,
        Self::Daily,
        Self::Weekly,
        Self::Monthly,
        Self::Yearly,
    ];

    /// Returns the name of the level.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }

    /// Returns the name of the unit.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Hourly => "hour",
            Self::Daily => "day",
            Self::Weekly => "week",
            Self::Monthly => "month",
            Self::Yearly => "year",
        }
    }

    /// Finds the level with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.as_str() == name)
    }
}

serialize_as_text!(BackupLevel);

impl fmt::Display for BackupLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
