//! The settings of the bucket: its lifecycle rules, and whether it supports locks.

use super::Shared;
use super::cause::S3Cause;
use crate::store::probe::{BucketFacts, Fact, LifecycleRule};
use aws_sdk_s3::types::{ExpirationStatus, LifecycleRule as S3Rule, ObjectLockEnabled};

/// The suffixes of the names of groups in access lists that contain every user.
const EVERYBODY: [&str; 2] = ["/global/AllUsers", "/global/AuthenticatedUsers"];

impl Shared {
    /// Reads all settings. A setting that the store does not report is marked as such.
    pub(super) async fn bucket_facts(&self) -> BucketFacts {
        BucketFacts {
            visibility: self.visibility().await,
            lifecycle: self.lifecycle().await,
            object_lock: self.lock_of_bucket().await,
            rights: Fact::Unknown("the S3 protocol has no call for it".to_owned()),
        }
    }

    /// Reads the visibility: public by the policy or by the access list; private only if the store
    /// answers both.
    async fn visibility(&self) -> Fact<String> {
        let call = self
            .client
            .get_bucket_policy_status()
            .bucket(&self.settings.bucket);
        let by_policy = match call.send().await.map_err(S3Cause::from) {
            Ok(found) => found.policy_status().and_then(|status| status.is_public()),
            Err(cause) if cause.has_code("NoSuchBucketPolicy") => Some(false),
            Err(cause) => return Fact::Unknown(cause.to_string()),
        };
        if by_policy == Some(true) {
            return Fact::Known("public".to_owned());
        }
        let call = self.client.get_bucket_acl().bucket(&self.settings.bucket);
        let found = match call.send().await.map_err(S3Cause::from) {
            Ok(found) => found,
            Err(cause) => return Fact::Unknown(cause.to_string()),
        };
        let everybody = |uri: &str| EVERYBODY.iter().any(|group| uri.ends_with(group));
        let mut uris = found
            .grants()
            .iter()
            .filter_map(|grant| grant.grantee()?.uri());
        match (by_policy, uris.any(everybody)) {
            (_, true) => Fact::Known("public".to_owned()),
            (Some(false), false) => Fact::Known("private".to_owned()),
            (_, false) => Fact::Unknown("the response does not say".to_owned()),
        }
    }

    async fn lifecycle(&self) -> Fact<Vec<LifecycleRule>> {
        let call = self
            .client
            .get_bucket_lifecycle_configuration()
            .bucket(&self.settings.bucket);
        match call.send().await.map_err(S3Cause::from) {
            Ok(found) => Fact::Known(
                found
                    .rules()
                    .iter()
                    .filter_map(|rule| self.rule(rule))
                    .collect(),
            ),
            Err(cause) if cause.has_code("NoSuchLifecycleConfiguration") => Fact::Known(Vec::new()),
            Err(cause) => Fact::Unknown(cause.to_string()),
        }
    }

    /// Converts a rule, if it is enabled and applies to names below our prefix.
    fn rule(&self, rule: &S3Rule) -> Option<LifecycleRule> {
        let filter = rule.filter();
        let and = filter.and_then(|filter| filter.and());
        #[expect(deprecated, reason = "older rules have their prefix there")]
        let old = rule.prefix();
        let prefix = filter
            .and_then(|filter| filter.prefix())
            .or(and.and_then(|and| and.prefix()))
            .or(old);
        let prefix = prefix.unwrap_or_default().to_owned();
        let touches = self.prefix.starts_with(&prefix) || prefix.starts_with(&self.prefix);
        if *rule.status() != ExpirationStatus::Enabled || !touches {
            return None;
        }
        let by_size = filter.is_some_and(|filter| {
            filter.object_size_greater_than().is_some() || filter.object_size_less_than().is_some()
        });
        let days = |days: Option<i32>| days.and_then(|days| u32::try_from(days).ok());
        let expires = rule
            .expiration()
            .and_then(|end| match (end.days(), end.date()) {
                (Some(days), _) => Some(format!("{days} days")),
                (None, Some(date)) => Some(format!("the date {}", date.secs() / 86_400)),
                // The rule removes only delete markers.
                (None, None) => None,
            });
        let moves = rule
            .transitions()
            .iter()
            .find_map(|step| step.storage_class());
        Some(LifecycleRule {
            name: rule.id().unwrap_or_default().to_owned(),
            prefix,
            partial: by_size
                || and.is_some()
                || filter.is_some_and(|filter| filter.tag().is_some()),
            unfinished_days: days(
                rule.abort_incomplete_multipart_upload()
                    .and_then(|rule| rule.days_after_initiation()),
            ),
            hidden_days: days(
                rule.noncurrent_version_expiration()
                    .and_then(|rule| rule.noncurrent_days()),
            ),
            expires,
            moves_to: moves.map(|class| class.as_str().to_owned()),
        })
    }

    async fn lock_of_bucket(&self) -> Fact<bool> {
        let call = self
            .client
            .get_object_lock_configuration()
            .bucket(&self.settings.bucket);
        match call.send().await.map_err(S3Cause::from) {
            Ok(found) => {
                let enabled = found
                    .object_lock_configuration()
                    .and_then(|lock| lock.object_lock_enabled());
                Fact::Known(enabled == Some(&ObjectLockEnabled::Enabled))
            }
            Err(cause) if cause.has_code("ObjectLockConfigurationNotFoundError") => {
                Fact::Known(false)
            }
            Err(cause) => Fact::Unknown(cause.to_string()),
        }
    }
}
