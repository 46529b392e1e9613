//! A bucket whose owner gave it a default retention: objects are locked although the configuration
//! names no lock. A prune waits for the ends of the locks without an error.

use crate::builder::{RESUME_DAYS, Yard};
use crate::prune::{last_chains, two_chains};
use zfs_backup::config::RetentionRules;
use zfs_backup::model::BackupId;
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::store::{LockMode, ObjectKey, ObjectLock, StoreErrorKind, StoreRead};

const DAYS: u32 = 30;

fn set_retention(yard: &Yard) {
    yard.store.set_default_retention(Some(ObjectLock {
        days: DAYS,
        mode: LockMode::Compliance,
        covers_chains: false,
    }));
}

fn reasons(outcome: &zfs_backup::run::prune::PruneOutcome, id: &BackupId) -> String {
    let kept = outcome.view.plan.keep.iter().find(|kept| kept.id == *id);
    let reasons = kept.map(|kept| kept.reasons.iter().map(ToString::to_string).collect());
    reasons.unwrap_or_else(Vec::new).join(", ")
}

#[tokio::test]
async fn prune_waits_for_the_default_retention_of_the_bucket() {
    let mut yard = Yard::new();
    set_retention(&yard);
    let old = yard.chain(2).await;
    yard.chain(2).await;
    for _ in 0..3 {
        let outcome = yard.prune(&last_chains(1)).await;
        assert!(outcome.deleted.is_empty() && outcome.view.plan.doubts.is_empty());
        // The chain began on the first of January, and each backup is locked for 30 days.
        for (id, until) in old.iter().zip(["2026-01-31", "2026-02-01"]) {
            let reasons = reasons(&outcome, id);
            assert!(
                reasons.contains(&format!("locked until {until}")),
                "{reasons}"
            );
        }
        yard.days(1);
    }
    assert!(yard.record_keys().is_empty(), "nothing was planned");
    yard.days(i64::from(DAYS));
    let outcome = yard.prune(&last_chains(1)).await;
    assert_eq!(outcome.deleted, [old[1].clone(), old[0].clone()]);
}

#[tokio::test]
async fn locks_of_manifest_and_receipt_count_although_no_receipt_records_them() {
    for object in ["manifest.json", "receipt.json"] {
        let (mut yard, old, _) = two_chains().await;
        let key = yard.key(&old[2], object);
        let mut evidence = yard
            .store
            .head(&ObjectKey::listed(&key).unwrap())
            .await
            .unwrap()
            .unwrap();
        evidence.locked_until = Some("2026-03-01T00:00:00Z".to_owned());
        yard.store.lie(&key, Some(evidence));
        let outcome = yard.prune(&last_chains(1)).await;
        assert!(outcome.deleted.is_empty(), "{object}");
        let reasons = reasons(&outcome, &old[2]);
        assert!(
            reasons.contains("locked until 2026-03-01T00:00:00Z"),
            "{reasons}"
        );
        yard.days(90);
        assert_eq!(yard.prune(&last_chains(1)).await.deleted.len(), 3);
    }
}

#[tokio::test]
async fn abandoned_upload_waits_for_the_default_retention_of_the_bucket() {
    let (mut yard, _, new) = two_chains().await;
    set_retention(&yard);
    let full = Fault::before(StoreErrorKind::Full);
    yard.store
        .fail(full.of(Operation::PutNew).on("private.age"));
    yard.upload(0, Some(&new[2])).await.unwrap_err();
    yard.store.heal();
    let keep = RetentionRules::default();
    yard.days(i64::from(RESUME_DAYS));
    let outcome = yard.prune(&keep).await;
    assert!(outcome.deleted.is_empty());
    let left = &outcome.view.plan.left_alone[0];
    assert!(left.why.contains("locked until 2026-"), "{}", left.why);
    yard.days(i64::from(DAYS));
    assert_eq!(yard.prune(&keep).await.deleted.len(), 1);
}
