//! The periods of the UTC calendar that the levels of backups stand for.

use crate::model::BackupLevel;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Returns the period of the UTC calendar in which a time lies: the year, and the number of the
/// period in that year.
pub(super) fn period_of(level: BackupLevel, at: Timestamp) -> (i16, i16) {
    let time = at.to_zoned(TimeZone::UTC).datetime();
    let date = time.date();
    match level {
        BackupLevel::Hourly => (
            date.year(),
            date.day_of_year() * 24 + i16::from(time.hour()),
        ),
        BackupLevel::Daily => (date.year(), date.day_of_year()),
        BackupLevel::Weekly => (
            date.iso_week_date().year(),
            i16::from(date.iso_week_date().week()),
        ),
        BackupLevel::Monthly => (date.year(), i16::from(date.month())),
        BackupLevel::Yearly => (date.year(), 0),
    }
}

/// Returns the period in words: `2026`, `2026-11`, `week 2026-W48`, `2026-11-30`.
pub(super) fn period_text(level: BackupLevel, at: Timestamp) -> String {
    let form = match level {
        BackupLevel::Hourly => "%Y-%m-%d, hour %H",
        BackupLevel::Daily => "%Y-%m-%d",
        BackupLevel::Weekly => "week %G-W%V",
        BackupLevel::Monthly => "%Y-%m",
        BackupLevel::Yearly => "%Y",
    };
    at.to_zoned(TimeZone::UTC).strftime(form).to_string()
}
