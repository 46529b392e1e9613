//! [`BackupId`]: the name of one attempt at one backup, unique for ever.

use super::{Guid, InvalidName};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::fmt;
use std::str::FromStr;

/// The time in an id has sixteen characters: `20261122T212604Z`.
const TIME_FORMAT: &str = "%Y%m%dT%H%M%SZ";

/// Full or incremental.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// A stream without a base.
    Full,
    /// An incremental stream, which builds on a base.
    Incr,
}

impl BackupKind {
    /// The word used in ids and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Incr => "incr",
        }
    }
}

/// `<UTC time of the snapshot>-<full|incr>-<snapshot guid>-<16 random hex>`, as in
/// `20261122T212604Z-full-0123456789abcdef-fedcba9876543210`. Sorts by snapshot time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId {
    text: String,
    kind: BackupKind,
    snapshot_guid: Guid,
}

impl BackupId {
    /// Names a new attempt. `nonce` must be random: it distinguishes two attempts at one snapshot.
    pub fn new(
        snapshot_time: Timestamp,
        kind: BackupKind,
        snapshot_guid: Guid,
        nonce: u64,
    ) -> Self {
        let time = snapshot_time.to_zoned(TimeZone::UTC).strftime(TIME_FORMAT);
        Self {
            text: format!("{time}-{}-{snapshot_guid}-{nonce:016x}", kind.as_str()),
            kind,
            snapshot_guid,
        }
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the time in this id is `snapshot_time`, in whole seconds.
    pub fn is_at(&self, snapshot_time: Timestamp) -> bool {
        self.text.starts_with(
            &snapshot_time
                .to_zoned(TimeZone::UTC)
                .strftime(TIME_FORMAT)
                .to_string(),
        )
    }

    /// Whether the time in this id is later than `time`, in whole seconds.
    pub fn is_after(&self, time: Timestamp) -> bool {
        let time = time
            .to_zoned(TimeZone::UTC)
            .strftime(TIME_FORMAT)
            .to_string();
        self.text
            .get(..time.len())
            .is_some_and(|own| own > time.as_str())
    }

    /// Returns the kind in the id: full or incremental.
    pub fn kind(&self) -> BackupKind {
        self.kind
    }

    /// The guid of the snapshot that was sent.
    pub fn snapshot_guid(&self) -> Guid {
        self.snapshot_guid
    }
}

impl FromStr for BackupId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        parse(text).ok_or_else(|| {
            InvalidName::new(
                "backup id",
                text,
                "expected TIME-full|incr-GUID-NONCE, such as 20261122T212604Z-full-<16 hex>-<16 hex>",
            )
        })
    }
}

fn parse(text: &str) -> Option<BackupId> {
    let mut fields = text.split('-');
    let time = fields.next()?;
    let kind = fields.next()?;
    let guid = fields.next()?;
    let nonce = fields.next()?;
    let kind = match kind {
        "full" => BackupKind::Full,
        "incr" => BackupKind::Incr,
        _ => return None,
    };
    let snapshot_guid = guid.parse().ok()?;
    let _: Guid = nonce.parse().ok()?;
    let parsed = jiff::civil::DateTime::strptime(TIME_FORMAT, time).ok()?;
    let canonical = parsed.strftime(TIME_FORMAT).to_string() == time;
    (fields.next().is_none() && canonical).then(|| BackupId {
        text: text.to_owned(),
        kind,
        snapshot_guid,
    })
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_parses_back_to_itself() {
        let time: Timestamp = "2026-11-22T21:26:04Z".parse().unwrap();
        let id = BackupId::new(time, BackupKind::Incr, Guid(0xabc), 7);
        assert_eq!(
            id.as_str(),
            "20261122T212604Z-incr-0000000000000abc-0000000000000007"
        );
        assert_eq!(id.as_str().parse::<BackupId>(), Ok(id));
    }

    #[test]
    fn malformed_backup_id_is_refused() {
        let good = "20261122T212604Z-full-0123456789abcdef-fedcba9876543210";
        assert!(good.parse::<BackupId>().is_ok());
        for bad in [
            &good[1..],
            &good.replace("full", "fool"),
            &good.to_uppercase(),
            &format!("{good}-x"),
            &format!("{good}/"),
            "../x",
        ] {
            assert!(bad.parse::<BackupId>().is_err(), "{bad}");
        }
    }
}
