//! The settings of the bucket and the rights of the application key.

use super::Shared;
use super::messages::{Bucket, BucketRule};
use crate::store::StoreError;
use crate::store::probe::{BucketFacts, Fact, LifecycleRule, Rights};

impl Shared {
    pub(super) async fn bucket_facts(&self) -> Result<BucketFacts, StoreError> {
        let failed = |cause| self.failed("access", "b2_list_buckets", "", cause);
        let session = self.session().await.map_err(failed)?;
        let rights = Rights {
            may: session.rights.capabilities.clone(),
            buckets: session.rights.buckets.as_ref().map(|buckets| {
                buckets
                    .iter()
                    .map(|bucket| bucket.name.clone().unwrap_or_else(|| bucket.id.clone()))
                    .collect()
            }),
            prefix: session.rights.name_prefix.clone(),
        };
        if !session.may("listBuckets") {
            return Ok(unknown_facts(
                "the application key lacks listBuckets".to_owned(),
                rights,
            ));
        }
        let bucket = self
            .with_session(|session| async move { self.look_up_bucket(&session).await })
            .await;
        match bucket {
            Ok(bucket) => Ok(BucketFacts {
                visibility: visibility(&bucket),
                object_lock: object_lock(&bucket),
                lifecycle: Fact::Known(
                    bucket
                        .lifecycle_rules
                        .iter()
                        .filter_map(|rule| self.rule(rule))
                        .collect(),
                ),
                rights: Fact::Known(rights),
            }),
            Err(cause) if cause.is_transient() => Err(failed(cause)),
            Err(cause) => Ok(unknown_facts(cause.to_string(), rights)),
        }
    }

    /// Converts a rule, if it applies to names below our prefix.
    fn rule(&self, rule: &BucketRule) -> Option<LifecycleRule> {
        let prefix = &rule.file_name_prefix;
        let touches = self.prefix.starts_with(prefix) || prefix.starts_with(&self.prefix);
        touches.then(|| LifecycleRule {
            name: String::new(),
            prefix: prefix.clone(),
            partial: false,
            unfinished_days: rule.days_from_starting_to_canceling_unfinished_large_files,
            hidden_days: rule.days_from_hiding_to_deleting,
            expires: rule
                .days_from_uploading_to_hiding
                .map(|days| format!("{days} days")),
            moves_to: None,
        })
    }
}

fn unknown_facts(why: String, rights: Rights) -> BucketFacts {
    BucketFacts {
        visibility: Fact::Unknown(why.clone()),
        lifecycle: Fact::Unknown(why.clone()),
        object_lock: Fact::Unknown(why),
        rights: Fact::Known(rights),
    }
}

fn visibility(bucket: &Bucket) -> Fact<String> {
    match bucket.bucket_type.as_deref() {
        Some("allPrivate") => Fact::Known("private".to_owned()),
        Some("allPublic") => Fact::Known("public".to_owned()),
        Some(other) => Fact::Known(other.to_owned()),
        None => Fact::Unknown("B2 does not say".to_owned()),
    }
}

fn object_lock(bucket: &Bucket) -> Fact<bool> {
    match &bucket.file_lock_configuration {
        Some(lock) if lock.is_client_authorized_to_read => Fact::Known(
            lock.value
                .as_ref()
                .is_some_and(|lock| lock.is_file_lock_enabled),
        ),
        _ => Fact::Unknown("the application key lacks readBucketRetentions".to_owned()),
    }
}
