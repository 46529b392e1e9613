//! The behaviour of a store, found by a probe ([`StoreProbe`]), and the settings of its bucket
//! ([`BucketFacts`]).
//!
//! Providers change, and stores with the same protocol differ, so nothing here is derived from a
//! name. A fact that could not be determined is reported as unknown, and never taken for a yes or a
//! no.

use super::{EvidenceTier, S3Checksum};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The result of probing one ability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ability {
    /// The store has the ability.
    Works,
    /// The store accepts the request and does not do what it asks.
    Ignored,
    /// The store refuses the request.
    Refused,
    /// The ability could not be determined.
    #[default]
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

/// The effect of deleting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deleting {
    /// Objects have no versions: a deleted object is removed.
    Removes,
    /// Objects have versions, and all of them can be deleted.
    RemovesVersions,
    /// Deleting only hides: the bytes remain, and cost money, until a lifecycle rule or other
    /// credentials remove them.
    Hides,
    /// The credentials lack the permission to delete.
    Refused,
    /// The effect could not be determined.
    #[serde(other)]
    Unknown,
}

/// The result of a probe. It is cached for a while; see `run::probe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreProbe {
    /// The strongest evidence that the store has for the content of an object of several parts.
    pub tier: EvidenceTier,
    /// The checksum to send, if one has to be chosen.
    pub checksum: Option<S3Checksum>,
    /// The probed checksums that the store verified and kept.
    #[serde(default)]
    pub kept: Vec<S3Checksum>,
    /// The result of a create-only put.
    pub conditional_put: Ability,
    /// The result of a create-only completion of an upload.
    pub conditional_complete: Ability,
    /// Whether unfinished uploads are listed.
    pub list_uploads: Ability,
    /// Whether unfinished uploads are removed.
    pub abort_uploads: Ability,
    /// The effect of deleting.
    pub deleting: Deleting,
    /// Whether an object that is sent in parts with a lock is locked; unknown also if no lock is
    /// configured.
    #[serde(default)]
    pub object_lock: Ability,
    /// The highest probed part number that the store accepted.
    pub parts_max: Option<u32>,
    /// The smallest part size (except the last part) that the store reports, in bytes.
    pub part_bytes_min: Option<u64>,
    /// The seconds by which the store's clock is ahead of this host's; negative if it is behind.
    pub clock_ahead_seconds: Option<i64>,
    /// Keys that could not be removed, below the store's prefix.
    #[serde(default)]
    pub left_behind: Vec<String>,
    /// Whether an answer is a failure that may pass, such as HTTP status 500. Such a probe is
    /// repeated sooner.
    #[serde(default)]
    pub uncertain: bool,
    /// The store's messages about what did not work.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Default for StoreProbe {
    /// Returns a probe with all abilities unknown.
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
            object_lock: Ability::Unknown,
            parts_max: None,
            part_bytes_min: None,
            clock_ahead_seconds: None,
            left_behind: Vec::new(),
            uncertain: false,
            notes: Vec::new(),
        }
    }
}

/// A callback for contradictions between a store and its probe.
#[derive(Clone)]
pub struct ProbeDoubt(Arc<dyn Fn(&str) + Send + Sync>);

impl ProbeDoubt {
    /// Calls `hear` for each contradiction, possibly several times.
    pub fn new(hear: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    pub(crate) fn tell(&self, what: &str) {
        (self.0)(what);
    }
}

impl fmt::Debug for ProbeDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeDoubt")
    }
}

/// A setting of the bucket, if it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact<T> {
    /// The setting, as the store reports it.
    Known(T),
    /// The bucket does not or cannot report the setting, for this reason. Neither a yes nor a no.
    Unknown(String),
}

/// A rule by which the store itself changes or deletes objects, if it applies to names of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LifecycleRule {
    /// The name of the rule, if it has one.
    pub name: String,
    /// The prefix of the names that the rule applies to.
    pub prefix: String,
    /// Whether the rule applies to some of those names only (by tag or by size).
    pub partial: bool,
    /// Days after which unfinished uploads are removed.
    pub unfinished_days: Option<u32>,
    /// Days after which hidden or replaced versions are deleted.
    pub hidden_days: Option<u32>,
    /// The age at which the rule deletes or hides live objects, if it does.
    pub expires: Option<String>,
    /// The storage class into which the rule moves objects, if it does.
    pub moves_to: Option<String>,
}

/// The settings of the bucket. They are not cached: the store is asked each time they are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketFacts {
    /// `private` or `public`, if the store reports it.
    pub visibility: Fact<String>,
    /// The lifecycle rules of the bucket.
    pub lifecycle: Fact<Vec<LifecycleRule>>,
    /// Whether objects in the bucket can be locked.
    pub object_lock: Fact<bool>,
    /// The rights of the credentials, if the store reports them.
    pub rights: Fact<Rights>,
}

/// The rights of credentials, as the store reports them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Each right by the store's own name.
    pub may: Vec<String>,
    /// The buckets that the credentials are for; `None` means all of the account.
    pub buckets: Option<Vec<String>>,
    /// The prefix that names must have.
    pub prefix: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_of_a_later_version_is_read_with_unknown_values() {
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
}
