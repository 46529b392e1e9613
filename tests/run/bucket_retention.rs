//! A bucket whose owner gave it a default retention: objects are locked although the configuration
//! names no lock. A prune waits for the ends of the locks without an error.

use crate::builder::{RESUME_DAYS, Yard};
use crate::prune::{last_chains, two_chains};
use std::collections::BTreeSet;
use zfs_backup::catalog::read_pruned;
use zfs_backup::config::RetentionRules;
use zfs_backup::model::BackupId;
use zfs_backup::run::RunError;
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

/// Puts a prune record that deletes nothing, as an interrupted prune does.
async fn interrupt_a_prune(yard: &Yard) {
    let away = Fault::before(StoreErrorKind::Unavailable);
    yard.store.fail(away.of(Operation::Delete).forever());
    yard.try_prune(0, &last_chains(1)).await.unwrap_err();
    yard.store.heal();
}

/// A bucket whose owner gives it a default retention after a day, and a record that is locked.
async fn yard_with_a_locked_record() -> (Yard, Vec<BackupId>) {
    let (yard, old, _) = two_chains().await;
    set_retention(&yard);
    interrupt_a_prune(&yard).await;
    assert_eq!(yard.record_keys().len(), 1);
    (yard, old)
}

#[tokio::test]
async fn locked_prune_record_of_kept_backups_ends_no_night_and_proves_nothing() {
    let (mut yard, old) = yard_with_a_locked_record().await;
    for _ in 0..3 {
        let outcome = yard.prune(&last_chains(9)).await;
        assert!(outcome.view.plan.doubts.is_empty());
        yard.days(1);
    }
    // The second record voids the first. No night after that adds or deletes anything.
    assert_eq!(yard.record_keys().len(), 2);
    for object in ["manifest.json", "manifest.json.minisig"] {
        assert!(yard.store.lose(&yard.key(&old[2], object)));
    }
    let outcome = yard.prune(&last_chains(1)).await;
    assert!(outcome.deleted.is_empty() && !outcome.view.plan.doubts.is_empty());
    let dataset = &yard.dataset;
    let pruned = read_pruned(&yard.store, dataset, &yard.keys.trusted).await;
    assert_eq!(pruned.unwrap(), BTreeSet::new());
}

#[tokio::test]
async fn void_records_stay_void_when_the_record_that_voids_them_is_replaced() {
    let (yard, old) = yard_with_a_locked_record().await;
    // Only the first backup is deleted. The locked record is replaced by one that names that backup,
    // which a person then puts back.
    let [first, manifest] = ["", "manifest.json"].map(|name| yard.key(&old[2], name));
    let kept: Vec<_> = yard.store.keys();
    let kept = kept.iter().filter(|key| key.starts_with(&first));
    let kept: Vec<_> = kept
        .map(|key| (key.clone(), yard.store.object(key).unwrap()))
        .collect();
    kept.iter().for_each(|(key, _)| {
        yard.store.lose(key);
    });
    assert!(!yard.store.keys().contains(&manifest));
    yard.prune(&last_chains(9)).await;
    let pruned = || read_pruned(&yard.store, &yard.dataset, &yard.keys.trusted);
    assert_eq!(pruned().await.unwrap(), BTreeSet::from([old[2].clone()]));
    kept.into_iter()
        .for_each(|(key, bytes)| yard.store.plant(&key, bytes));
    yard.prune(&last_chains(9)).await;
    assert_eq!(pruned().await.unwrap(), BTreeSet::new());
    yard.assert_restores(old).await;
}

#[tokio::test]
async fn prune_record_that_cannot_be_deleted_and_is_not_locked_is_an_error() {
    let (yard, _, _) = two_chains().await;
    interrupt_a_prune(&yard).await;
    let denied = Fault::before(StoreErrorKind::Denied);
    yard.store.fail(denied.of(Operation::Delete).on("@prune/"));
    let error = yard.try_prune(0, &last_chains(9)).await.unwrap_err();
    assert!(matches!(error, RunError::Store(_)), "{error}");
}
