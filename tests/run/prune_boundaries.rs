//! Prunes at the boundaries: of locks, of ages, of what another store needs, and of a store that is
//! slow or changes meanwhile.

use crate::builder::{RESUME_DAYS, Yard, hours};
use crate::prune::{Hooked, last_chains, two_chains};
use crate::world::{memory_store, never};
use bytes::Bytes;
use std::collections::BTreeSet;
use std::sync::Arc;
use zfs_backup::config::RetentionRules;
use zfs_backup::model::BackupId;
use zfs_backup::run::prune::{SecondaryStore, forget, plan_forget, prune_dataset};
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::store::{LockMode, ObjectKey, ObjectLock, StoreErrorKind, StoreRead, StoreWrite};

/// `started.json` says what an attempt is, so it goes when all else is gone, whatever takes long.
#[tokio::test]
async fn slow_deletes_end_before_the_next_kind_of_object_is_deleted() {
    let (yard, old, _) = two_chains().await;
    yard.store.clear_events();
    let env = yard.env(0, Arc::new(Hooked::new(&yard.store, |_, _| {})), never());
    prune_dataset(&env, &yard.task(&last_chains(1), SecondaryStore::Nothing))
        .await
        .unwrap();
    let prefix = yard.key(&old[1], "");
    let names: Vec<String> = yard
        .store
        .events()
        .into_iter()
        .filter(|event| event.operation == Operation::Delete)
        .filter_map(|event| Some(event.to_string().split_once(&prefix)?.1.to_owned()))
        .collect();
    assert_eq!(
        names[names.len() - 2..],
        ["started.json", "started.json.minisig"]
    );
}

#[tokio::test]
async fn locked_backup_is_not_pruned_until_its_object_lock_ends() {
    let mut yard = Yard::new();
    let lock = ObjectLock {
        days: 30,
        mode: LockMode::Compliance,
        covers_chains: false,
    };
    yard.store.set_lock(Some(lock), true);
    let old = yard.chain(2).await;
    yard.chain(1).await;
    let before = yard.store.keys();
    let outcome = yard.prune(&last_chains(1)).await;
    assert_eq!(outcome.deleted, []);
    let kept = &outcome.view.plan.keep[0];
    assert_eq!(kept.id, old[0]);
    assert!(
        kept.reasons[0]
            .to_string()
            .starts_with("locked until 2026-01-31"),
        "{kept:?}"
    );
    assert_eq!(yard.store.keys(), before);
    yard.days(40);
    assert_eq!(yard.prune(&last_chains(1)).await.deleted.len(), 2);
}

#[tokio::test]
async fn prune_of_the_remote_keeps_the_chain_of_an_uncopied_export() {
    let (mut yard, old, _) = two_chains().await;
    let intermediate = memory_store(64 * 1024);
    intermediate.set_clock(Some(yard.clock));
    let catalog = zfs_backup::catalog::read_catalog(&yard.store, &yard.dataset, &yard.keys.trusted)
        .await
        .unwrap();
    let child = yard
        .export(&intermediate, catalog.backup(&old[2]).cloned())
        .await;
    let env = yard.env(0, Arc::new(yard.store.clone()), never());
    let secondary = SecondaryStore::Intermediate(Arc::new(intermediate));
    let outcome = prune_dataset(&env, &yard.task(&last_chains(1), secondary))
        .await
        .unwrap();
    assert_eq!(outcome.deleted, []);
    let why = outcome.view.plan.keep[0].reasons[0].to_string();
    assert!(why.contains(child.as_str()), "{why}");
}

#[tokio::test]
async fn prune_works_without_listing_of_open_uploads_and_fails_if_unreachable() {
    for (kind, deleted) in [
        (StoreErrorKind::Unsupported, Some(3)),
        (StoreErrorKind::Unavailable, None),
    ] {
        let (yard, ..) = two_chains().await;
        yard.store
            .fail(Fault::before(kind).of(Operation::Unfinished).forever());
        let outcome = yard.try_prune(0, &last_chains(1)).await;
        let found = outcome.ok().map(|outcome| outcome.deleted.len());
        assert_eq!(found, deleted, "{kind:?}");
    }
}

/// The same boundary as for a store that tells its clock: a day.
#[tokio::test]
async fn clock_one_day_ahead_of_the_store_does_not_stop_a_prune() {
    let (mut yard, old, _) = two_chains().await;
    yard.hosts[0].1 = hours(24);
    let silent = Arc::new(Hooked::new(&yard.store, |_, _| {}));
    let env = yard.env(0, silent, never());
    let outcome = prune_dataset(&env, &yard.task(&last_chains(1), SecondaryStore::Nothing))
        .await
        .unwrap();
    assert_eq!(outcome.deleted.len(), old.len());
}

#[tokio::test]
async fn manifest_put_while_its_leftover_is_deleted_is_kept() {
    let (yard, old, _) = two_chains().await;
    let manifest = yard.key(&old[2], "manifest.json");
    let bytes = yard.store.object(&manifest).unwrap();
    // A prune that was interrupted after it deleted the manifest.
    yard.store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::Delete)
            .on("manifest.json.minisig"),
    );
    yard.try_prune(0, &last_chains(1)).await.unwrap_err();
    yard.store.heal();
    assert!(yard.store.object(&manifest).is_none());
    // The next prune has looked for the manifest when another host puts it.
    let (inner, key) = (yard.store.clone(), manifest.clone());
    let store = Hooked::new(&yard.store, move |operation, deleted| {
        if operation == Operation::Delete && deleted == format!("{key}.minisig") {
            inner.plant(&key, bytes.clone());
        }
    });
    let env = yard.env(0, Arc::new(store), never());
    prune_dataset(&env, &yard.task(&last_chains(1), SecondaryStore::Nothing))
        .await
        .unwrap();
    assert!(yard.store.object(&manifest).is_some());
}

#[tokio::test]
async fn open_upload_of_a_resumable_attempt_is_kept() {
    let (mut yard, ..) = two_chains().await;
    yard.store.fail(
        Fault::before(StoreErrorKind::Full)
            .of(Operation::PutNew)
            .on("RESTORE"),
    );
    yard.upload(0, None).await.unwrap_err();
    yard.store.heal();
    let attempt = yard
        .ids()
        .into_iter()
        .find(|id| id.snapshot_guid().0 == 7)
        .unwrap();
    let chunk = |n| {
        let object = zfs_backup::store::key::BackupObject::Chunk {
            index: zfs_backup::model::ChunkIndex::new(n).unwrap(),
            nonce: 77,
            compressed: false,
        };
        ObjectKey::backup(&yard.dataset, &attempt, &object)
    };
    drop(yard.store.create(&chunk(8)).await.unwrap());
    let newer = chunk(9);
    yard.days(i64::from(RESUME_DAYS) + 1);
    yard.store.plant(newer.as_str(), Bytes::from_static(b"x"));
    yard.put(None).await;
    let outcome = yard.prune(&RetentionRules::default()).await;
    assert_eq!(outcome.view.plan.left_alone[0].id, attempt);
    assert_eq!(yard.store.unfinished("").await.unwrap().len(), 1);
}

#[tokio::test]
async fn forget_refuses_a_backup_while_the_base_of_an_attempt_is_unknown() {
    let (mut yard, old, _) = two_chains().await;
    yard.store.fail(
        Fault::before(StoreErrorKind::Full)
            .of(Operation::PutNew)
            .on("receipt.json")
            .forever(),
    );
    yard.upload(0, None).await.unwrap_err();
    yard.store.heal();
    let all: BTreeSet<BackupId> = yard.ids();
    let attempt = all.iter().find(|id| id.snapshot_guid().0 == 7).unwrap();
    assert!(yard.store.flip(&yard.key(attempt, "started.json"), 40));
    let env = yard.env(0, Arc::new(yard.store.clone()), never());
    let error = forget(&env, &yard.dataset, &old[2], None)
        .await
        .unwrap_err();
    let what = format!("the base of {attempt} is unknown");
    assert!(error.to_string().contains(&what), "{error}");
    assert!(yard.ids().contains(&old[2]));
    // What the attempt left can be forgotten, with another such attempt beside it.
    yard.store.fail(
        Fault::before(StoreErrorKind::Full)
            .of(Operation::PutNew)
            .on("receipt.json")
            .forever(),
    );
    yard.upload(0, None).await.unwrap_err();
    yard.store.heal();
    let second = yard
        .ids()
        .into_iter()
        .find(|id| id.snapshot_guid().0 == 8)
        .unwrap();
    let signature = yard.key(&second, "manifest.json.minisig");
    yard.store.plant(&signature, Bytes::from_static(b"x"));
    let env = yard.env(0, Arc::new(yard.store.clone()), never());
    let found = plan_forget(&env, &yard.dataset, &second, None)
        .await
        .unwrap();
    assert!(
        matches!(&found.warnings[..], [warning] if warning.contains("the signature of its manifest exists")),
        "{found:?}"
    );
    yard.store.plant(
        &yard.key(&second, "manifest.json"),
        Bytes::from_static(b"x"),
    );
    let found = plan_forget(&env, &yard.dataset, &second, None)
        .await
        .unwrap();
    assert!(
        matches!(&found.warnings[..], [warning] if warning.contains("is invalid or untrusted")),
        "{found:?}"
    );
    forget(&env, &yard.dataset, attempt, None).await.unwrap();
    forget(&env, &yard.dataset, &old[2], None).await.unwrap();
}
