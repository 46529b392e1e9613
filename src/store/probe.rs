//! What a store does, found by trying it ([`StoreProbe`]), and what its bucket says of itself
//! ([`BucketFacts`]).
//!
//! Providers change, and stores that speak the same protocol differ: so nothing here follows from a
//! name. What could not be found out is said as such, and never taken for a yes or a no.

use super::{EvidenceTier, S3Checksum};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// What became of one thing that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ability {
    /// The store does it.
    Works,
    /// The store takes the request and does not do what it asks.
    Ignored,
    /// The store says no.
    Refused,
    /// It could not be found out.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Works => "works",
            Self::Ignored => "ignored",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        })
    }
}

/// What deleting does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deleting {
    /// Objects have no versions: what is deleted is gone.
    Removes,
    /// Objects have versions, and all of them can be deleted.
    RemovesVersions,
    /// Deleting only hides: the bytes stay, and cost, until a lifecycle rule or other credentials
    /// remove them.
    Hides,
    /// These credentials may not delete.
    Refused,
    /// It could not be found out.
    #[serde(other)]
    Unknown,
}

/// What a store was found to do. It is kept for a while; see `run::probe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreProbe {
    /// The strongest word that the store has for the content of an object of several parts.
    pub tier: EvidenceTier,
    /// The checksum to send, where one has to be chosen.
    pub checksum: Option<S3Checksum>,
    /// The checksums that the store checked and kept, of those that were tried.
    #[serde(default)]
    pub kept: Vec<S3Checksum>,
    /// A put that shall not replace anything.
    pub conditional_put: Ability,
    /// The end of an upload that shall not replace anything.
    pub conditional_complete: Ability,
    /// Unfinished uploads are listed.
    pub list_uploads: Ability,
    /// Unfinished uploads are removed.
    pub abort_uploads: Ability,
    /// What deleting does.
    pub deleting: Deleting,
    /// The highest part number that it took, of those that were tried.
    pub parts_max: Option<u32>,
    /// The smallest part that it says it takes (not the last), in bytes.
    pub part_bytes_min: Option<u64>,
    /// How far the store's clock is ahead of this host's, in seconds; negative when it is behind.
    pub clock_ahead_seconds: Option<i64>,
    /// Keys that could not be removed again, below the store's prefix.
    #[serde(default)]
    pub left_behind: Vec<String>,
    /// What the store said to what did not work.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Default for StoreProbe {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            tier: EvidenceTier::Unknown,
            checksum: None,
            kept: Vec::new(),
            conditional_put: Ability::Unknown,
            conditional_complete: Ability::Unknown,
            list_uploads: Ability::Unknown,
            abort_uploads: Ability::Unknown,
            deleting: Deleting::Unknown,
            parts_max: None,
            part_bytes_min: None,
            clock_ahead_seconds: None,
            left_behind: Vec::new(),
            notes: Vec::new(),
        }
    }
}

/// Hears when a store does not do what its probe says, with what it did.
#[derive(Clone)]
pub struct Doubt(Arc<dyn Fn(&str) + Send + Sync>);

impl Doubt {
    /// Calls `hear` for each contradiction; it may be called several times.
    pub fn new(hear: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    pub(crate) fn tell(&self, what: &str) {
        (self.0)(what);
    }
}

impl fmt::Debug for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Doubt")
    }
}

/// What a bucket said when it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told<T> {
    /// This.
    Is(T),
    /// It would not say, or cannot: the reason. Neither a yes nor a no.
    Untold(String),
}

/// Whom object lock is to keep from deleting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockMode {
    /// All without a special permission.
    #[default]
    Governance,
    /// All, the owner of the account too.
    Compliance,
}

impl fmt::Display for LockMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Governance => "governance",
            Self::Compliance => "compliance",
        })
    }
}

/// How long objects are locked, from the time when they are put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectLock {
    /// Days, at least one.
    pub days: u32,
    /// Against whom.
    pub mode: LockMode,
    /// The days cover the longest chain that can come to be, so that no lock ever has to be
    /// extended.
    pub covers_chains: bool,
}

impl ObjectLock {
    /// Until when an object is locked that is put then, in whole seconds. A time beyond what can be
    /// written is the last that can.
    pub fn until(&self, put_at: jiff::Timestamp) -> jiff::Timestamp {
        let seconds = put_at
            .as_second()
            .saturating_add(i64::from(self.days) * 86_400);
        jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX)
    }
}

/// A rule by which the store itself changes or deletes objects, as far as it touches names of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LifecycleRule {
    /// Its name, where it has one.
    pub name: String,
    /// All names that begin so.
    pub prefix: String,
    /// It is for some of those names only (by tag or by size).
    pub partial: bool,
    /// Days after which unfinished uploads are removed.
    pub unfinished_days: Option<u32>,
    /// Days after which hidden or replaced versions are deleted.
    pub hidden_days: Option<u32>,
    /// It deletes or hides what nobody asked to delete: after how long.
    pub expires: Option<String>,
    /// It moves objects into another storage class: which.
    pub moves_to: Option<String>,
}

/// What the bucket says of itself. Nothing of it is kept: it is asked when it is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketFacts {
    /// `private` or `public`, where the store says.
    pub visibility: Told<String>,
    /// Its rules.
    pub lifecycle: Told<Vec<LifecycleRule>>,
    /// Whether objects in it can be locked.
    pub object_lock: Told<bool>,
    /// What these credentials may do, where the store says.
    pub rights: Told<Rights>,
}

/// What credentials may do, as the store says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Each right by the store's own name.
    pub may: Vec<String>,
    /// The buckets that they are for; `None`: all of the account.
    pub buckets: Option<Vec<String>>,
    /// What names must begin with.
    pub prefix: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_of_a_later_version_is_read_as_far_as_it_is_known() {
        let text = r#"{"tier": "quantum", "checksum": "sha256", "conditional_put": "sometimes",
            "conditional_complete": "works", "list_uploads": "refused", "abort_uploads": "ignored",
            "deleting": "evaporates", "parts_max": 10000, "part_bytes_min": null, "clock_ahead_seconds": -3}"#;
        let probe: StoreProbe = serde_json::from_str(text).unwrap();
        assert_eq!(
            (probe.tier, probe.checksum),
            (EvidenceTier::Unknown, Some(S3Checksum::Sha256))
        );
        assert_eq!(
            (probe.conditional_put, probe.deleting),
            (Ability::Unknown, Deleting::Unknown)
        );
        assert_eq!(
            (probe.list_uploads, probe.abort_uploads),
            (Ability::Refused, Ability::Ignored)
        );
        let again: StoreProbe =
            serde_json::from_value(serde_json::to_value(&probe).unwrap()).unwrap();
        assert_eq!(again, probe);
    }

    #[test]
    fn a_lock_lasts_whole_days_and_never_overflows() {
        let lock = ObjectLock {
            days: 30,
            mode: LockMode::default(),
            covers_chains: false,
        };
        let at: jiff::Timestamp = "2026-11-01T10:00:00.5Z".parse().unwrap();
        assert_eq!(lock.until(at).to_string(), "2026-12-01T10:00:00Z");
        assert_eq!(lock.until(jiff::Timestamp::MAX), jiff::Timestamp::MAX);
    }
}
