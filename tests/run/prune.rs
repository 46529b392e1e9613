//! Pruning against stores that fail, change, lie about what they list, and are used by another host
//! meanwhile.

use crate::builder::{RESUME_DAYS, Yard, at, hours, ids_in};
use crate::world::{World, memory_store, never};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use zfs_backup::config::{Age, RetentionRules};
use zfs_backup::model::BackupId;
use zfs_backup::plan::prune::Proof;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::prune::{PruneEnv, SecondaryStore, forget, plan_forget, prune_dataset};
use zfs_backup::state::StateError;
use zfs_backup::state::journal::AttemptJournal;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{
    Evidence, ListedObject, ObjectKey, PartWriter, PutOutcome, StoreDelete, StoreError,
    StoreErrorKind, StoreInfo, StoreRead, StoreTraits, StoreWrite, UnfinishedUpload,
};

pub(crate) fn last_chains(count: u32) -> RetentionRules {
    RetentionRules {
        last_chains: Some(count),
        ..Default::default()
    }
}

/// Two chains of three; then the rules keep the second.
pub(crate) async fn two_chains() -> (Yard, Vec<BackupId>, Vec<BackupId>) {
    chains(3, 3).await
}

async fn chains(old: usize, new: usize) -> (Yard, Vec<BackupId>, Vec<BackupId>) {
    let mut yard = Yard::new();
    let old = yard.chain(old).await;
    let new = yard.chain(new).await;
    (yard, old, new)
}

#[tokio::test]
async fn prune_deletes_objects_in_an_order_that_leaves_no_incomplete_backup() {
    let (yard, old, new) = two_chains().await;
    yard.store.clear_events();
    let outcome = yard.prune(&last_chains(1)).await;
    assert_eq!(
        outcome.deleted,
        [old[2].clone(), old[1].clone(), old[0].clone()]
    );
    assert_eq!(yard.ids(), new.iter().cloned().collect());
    yard.assert_restores(new).await;

    let changes = |event: &zfs_backup::store::memory::StoreEvent| {
        matches!(event.operation, Operation::PutNew | Operation::Delete)
    };
    let events: Vec<String> = yard
        .store
        .events()
        .into_iter()
        .filter(changes)
        .map(|event| event.to_string())
        .collect();
    assert!(
        events[0].starts_with("PutNew tank/a/@prune/") && events[0].ends_with(".json.minisig"),
        "{}",
        events[0]
    );
    assert!(
        events[1].starts_with("PutNew tank/a/@prune/") && events[1].ends_with(".json"),
        "{}",
        events[1]
    );
    let of = |id: &BackupId| -> Vec<String> {
        let prefix = yard.key(id, "");
        events
            .iter()
            .filter_map(|event| Some(event.split_once(&prefix)?.1.to_owned()))
            .collect()
    };
    let names = of(&old[1]);
    let place = |name: &str| {
        names
            .iter()
            .position(|found| found == name)
            .unwrap_or_else(|| panic!("{name}: {names:?}"))
    };
    let chunk = names
        .iter()
        .position(|name| name.ends_with(".zfs.age"))
        .unwrap();
    assert_eq!(
        (place("manifest.json"), place("manifest.json.minisig")),
        (0, 1)
    );
    assert!(place("receipt.json") < chunk && chunk < place("private.age"));
    assert_eq!(
        names[names.len() - 2..],
        ["started.json", "started.json.minisig"]
    );
    let first = |id: &BackupId| {
        events
            .iter()
            .position(|event| event.contains(&yard.key(id, "")))
            .unwrap()
    };
    assert!(first(&old[2]) < first(&old[1]) && first(&old[1]) < first(&old[0]));
}

#[tokio::test]
async fn prune_record_names_each_deleted_backup_with_its_manifest_digest() {
    let (yard, old, _) = two_chains().await;
    yard.prune(&last_chains(1)).await;
    let keys = yard.record_keys();
    let text = String::from_utf8(yard.store.object(&keys[0]).unwrap().to_vec()).unwrap();
    assert_eq!(keys.len(), 1);
    assert!(old.iter().all(|id| text.contains(id.as_str())), "{text}");
    assert!(!text.contains("null"), "{text}");
    // A gap that a record explains is none.
    assert_eq!(yard.read_view(&last_chains(1)).await.plan.doubts, []);
    let report =
        zfs_backup::run::verify::verify_dataset(&yard.store, &yard.dataset, &yard.keys.trusted)
            .await
            .unwrap();
    assert!(
        !report
            .damage
            .iter()
            .any(|damage| damage.reason.contains("no signed prune record")),
        "{:?}",
        report.damage
    );
}

#[tokio::test]
async fn reading_the_prune_view_changes_nothing() {
    let (yard, old, _) = two_chains().await;
    let before = yard.store.keys();
    let view = yard.read_view(&last_chains(1)).await;
    assert_eq!(view.plan.delete.len(), 3);
    assert!(view.is_over(&old[0]));
    let unknown = "20260101T000000Z-full-00000000000000ff-00000000000000ff";
    assert!(!view.is_over(&unknown.parse().unwrap()));
    assert_eq!(yard.store.keys(), before);
}

/// Every store call of a prune fails, before and after its effect, and goes on failing. Whatever is
/// kept restores; the next prune ends where an uninterrupted one does.
#[tokio::test]
async fn prune_failed_at_any_store_call_is_completed_by_the_next() {
    let (yard, ..) = chains(2, 1).await;
    yard.store.clear_events();
    yard.prune(&last_chains(1)).await;
    let (calls, end) = (yard.store.events().len(), yard.keys_but_records().len());
    assert!(calls > 40, "{calls}");
    for n in 1..=calls {
        for fault in [
            Fault::before(StoreErrorKind::Unavailable),
            Fault::after(StoreErrorKind::Denied),
        ] {
            let (yard, old, new) = chains(2, 1).await;
            yard.store.fail(fault.clone().nth(n).forever());
            let first = yard.try_prune(0, &last_chains(1)).await;
            yard.store.heal();
            assert!(
                first.is_err(),
                "call {n} failed and nobody noticed: {fault:?}"
            );
            yard.assert_restores(new.clone()).await;
            // What is left of the old chain is whole from its full on.
            let catalog =
                zfs_backup::catalog::read_catalog(&yard.store, &yard.dataset, &yard.keys.trusted)
                    .await
                    .unwrap();
            let left: Vec<BackupId> = old
                .iter()
                .filter(|id| catalog.backup(id).is_some())
                .cloned()
                .collect();
            assert_eq!(left[..], old[..left.len()], "call {n}");
            yard.assert_restores(left).await;
            let second = yard.try_prune(0, &last_chains(1)).await.unwrap();
            assert_eq!(second.view.plan.doubts, [], "call {n}: {fault:?}");
            assert_eq!(
                yard.ids(),
                new.iter().cloned().collect(),
                "call {n}: {fault:?}"
            );
            assert_eq!(yard.keys_but_records().len(), end, "call {n}");
            yard.assert_restores(new).await;
        }
    }
}

#[tokio::test]
async fn a_prune_stops_between_backups() {
    let (yard, old, new) = two_chains().await;
    let (sender, stop) = tokio::sync::watch::channel(false);
    // The order to stop comes while the first backup is being deleted.
    let store = Hooked::new(&yard.store, move |operation, key| {
        if operation == Operation::Delete && key.contains("manifest.json") {
            sender.send_replace(true);
        }
    });
    let env = yard.env(0, Arc::new(store), stop);
    let error = prune_dataset(&env, &yard.task(&last_chains(1), SecondaryStore::Nothing))
        .await
        .unwrap_err();
    assert!(matches!(error, RunError::Interrupted));
    let left: BTreeSet<BackupId> = old[..2].iter().chain(&new).cloned().collect();
    assert_eq!(
        yard.ids(),
        left,
        "the first is gone whole, the others are there whole"
    );
    yard.assert_restores(left).await;
}

#[tokio::test]
async fn prune_is_refused_while_another_run_locks_the_dataset() {
    let (yard, ..) = two_chains().await;
    let _held = zfs_backup::state::dataset_lock::lock_dataset(
        yard.state(0),
        &yard.store.known(),
        &yard.dataset,
    )
    .unwrap();
    assert!(matches!(
        yard.try_prune(0, &last_chains(1)).await,
        Err(RunError::State(StateError::Locked { .. }))
    ));
}

#[tokio::test]
async fn unreadable_object_stops_the_prune_before_any_deletion() {
    for (operation, part) in [
        (Operation::List, "tank/a/@"),
        (Operation::List, "@prune/"),
        (Operation::Get, "manifest.json"),
        (Operation::Get, "manifest.json.minisig"),
        (Operation::Get, "chunks-0000.json"),
        (Operation::Get, "receipt.json"),
        (Operation::Head, "started.json"),
    ] {
        for kind in [
            StoreErrorKind::Unavailable,
            StoreErrorKind::Denied,
            StoreErrorKind::Throttled,
        ] {
            let (mut yard, ..) = two_chains().await;
            // An attempt, so that there is a started.json to read.
            yard.store.fail(
                Fault::before(StoreErrorKind::Full)
                    .of(Operation::PutNew)
                    .on("RESTORE"),
            );
            yard.upload(0, None).await.unwrap_err();
            let before = yard.store.keys();
            yard.store.fail(Fault::before(kind).of(operation).on(part));
            let error = yard.try_prune(0, &last_chains(1)).await.unwrap_err();
            assert!(
                matches!(error, RunError::Store(_)),
                "{operation:?} {part}: {error:?}"
            );
            assert_eq!(yard.store.keys(), before, "{operation:?} {part}");
        }
    }
}

#[tokio::test]
async fn a_manifest_that_is_damaged_forged_or_hidden_keeps_everything() {
    type Harm = fn(&Yard, &BackupId);
    let harms: [(&str, Harm); 6] = [
        ("flipped", |yard, id| {
            assert!(yard.store.flip(&yard.key(id, "manifest.json"), 40))
        }),
        ("cut", |yard, id| {
            assert!(yard.store.cut(&yard.key(id, "manifest.json"), 40))
        }),
        ("its signature lost", |yard, id| {
            assert!(yard.store.lose(&yard.key(id, "manifest.json.minisig")))
        }),
        ("hidden", |yard, id| {
            assert!(yard.store.lose(&yard.key(id, "manifest.json")))
        }),
        ("hidden with its signature", |yard, id| {
            assert!(yard.store.lose(&yard.key(id, "manifest.json")));
            assert!(yard.store.lose(&yard.key(id, "manifest.json.minisig")));
        }),
        ("somebody else's", |yard, id| {
            let (other, _) = crate::world::quick_keys();
            let key = yard.key(id, "manifest.json");
            let bytes = yard.store.object(&key).unwrap();
            let signing = other.signing_key().unwrap();
            let signature = signing
                .sign(zfs_backup::sign::SignedType::Manifest, &key, &bytes)
                .unwrap();
            yard.store.plant(&format!("{key}.minisig"), signature);
        }),
    ];
    for (what, harm) in harms {
        for victim in 0..6 {
            let (yard, old, new) = two_chains().await;
            let all: Vec<BackupId> = old.iter().chain(&new).cloned().collect();
            // The newest without a trace of its manifest is an attempt that pins its chain; nothing
            // else can tell.
            let traceless = what == "hidden with its signature" && victim == 5;
            harm(&yard, &all[victim]);
            let before = yard.keys_but_records();
            let outcome = yard.prune(&last_chains(1)).await;
            if !traceless {
                assert!(!outcome.view.plan.doubts.is_empty(), "{what}, {victim}");
                assert_eq!(yard.keys_but_records(), before, "{what}, {victim}");
            }
            assert!(yard.ids().contains(&all[victim]), "{what}, {victim}");
        }
    }
}

#[tokio::test]
async fn failed_upload_is_pruned_only_when_proved_abandoned() {
    let (mut yard, _, new) = two_chains().await;
    yard.store.fail(
        Fault::before(StoreErrorKind::Full)
            .of(Operation::PutNew)
            .on("private.age"),
    );
    yard.upload(0, Some(&new[2])).await.unwrap_err();
    yard.store.heal();
    let attempt = yard
        .ids()
        .into_iter()
        .find(|id| !new.contains(id) && id.snapshot_guid().0 == 7)
        .unwrap();
    let keep = RetentionRules::default();
    for day in 0..i64::from(RESUME_DAYS) {
        assert!(yard.prune(&keep).await.deleted.is_empty(), "day {day}");
        yard.days(1);
    }
    // A host that did not begin it has no proof.
    assert!(yard.try_prune(1, &keep).await.unwrap().deleted.is_empty());
    let outcome = yard.prune(&keep).await;
    assert_eq!(outcome.view.plan.delete_leftovers[0].proof, Proof::Journal);
    assert_eq!(outcome.deleted, std::slice::from_ref(&attempt));
    assert!(!yard.ids().contains(&attempt));
    let known = zfs_backup::state::journal::never_committing(
        yard.state(0),
        &yard.store.known(),
        &yard.dataset,
    )
    .unwrap();
    assert!(known.is_empty(), "the journal forgets it");
}

#[tokio::test]
async fn attempt_that_began_its_commit_is_never_pruned_as_abandoned() {
    for object in [
        "receipt.json.minisig",
        "receipt.json",
        "manifest.json.minisig",
        "manifest.json",
    ] {
        let (mut yard, ..) = two_chains().await;
        yard.store.fail(
            Fault::before(StoreErrorKind::Full)
                .of(Operation::PutNew)
                .on(object)
                .forever(),
        );
        yard.upload(0, None).await.unwrap_err();
        yard.store.heal();
        yard.days(100);
        let before = yard.keys_but_records();
        let outcome = yard.prune(&RetentionRules::default()).await;
        assert!(outcome.deleted.is_empty(), "{object}");
        assert_eq!(yard.keys_but_records(), before);
    }
}

#[tokio::test]
async fn rolled_back_journal_is_no_proof_against_a_hidden_manifest() {
    let (mut yard, _, new) = two_chains().await;
    let newest = new.last().unwrap();
    // What the state folder said before the commit, and a manifest that somebody put delete markers
    // over.
    drop(AttemptJournal::begin(yard.state(0), &yard.store.known(), &yard.dataset, newest).unwrap());
    for name in ["manifest.json", "manifest.json.minisig"] {
        assert!(yard.store.hide(&yard.key(newest, name)));
    }
    yard.days(100);
    let before = yard.keys_but_records();
    let keep = RetentionRules::default();
    let outcome = yard.prune(&keep).await;
    let doubts: Vec<String> = outcome
        .view
        .plan
        .doubts
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        doubts
            .iter()
            .any(|doubt| doubt.contains("a hidden version of it exists")),
        "{doubts:?}"
    );
    // A store that does not let us see is no proof either.
    let denied = Fault::before(StoreErrorKind::Denied)
        .of(Operation::AnyVersion)
        .forever();
    yard.store.fail(denied);
    let outcome = yard.prune(&keep).await;
    let left = outcome
        .view
        .plan
        .left_alone
        .iter()
        .find(|left| left.id == *newest)
        .unwrap();
    assert!(
        left.why
            .contains("hidden versions of its manifest cannot be excluded"),
        "{}",
        left.why
    );
    yard.store.heal();
    let away = Fault::before(StoreErrorKind::Unavailable)
        .of(Operation::AnyVersion)
        .forever();
    yard.store.fail(away);
    let error = yard.try_prune(0, &keep).await.unwrap_err();
    assert!(matches!(error, RunError::Store(_)), "{error:?}");
    yard.store.heal();
    assert_eq!(yard.keys_but_records(), before);
    yard.store.unhide();
    assert_eq!(
        yard.not_restorable([newest.clone()].into_iter()).await,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn clock_ahead_of_the_store_stops_every_deletion() {
    let (mut yard, ..) = two_chains().await;
    let within = RetentionRules {
        within: Some(Age::days(30)),
        ..Default::default()
    };
    yard.hosts[0].1 = hours(24 * 365);
    let before = yard.store.keys();
    let outcome = yard.try_prune(0, &within).await.unwrap();
    let doubts: Vec<String> = outcome
        .view
        .plan
        .doubts
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        doubts
            .iter()
            .any(|doubt| doubt.contains("is 1y ahead of the clock of memory:")),
        "{doubts:?}"
    );
    assert_eq!(yard.store.keys(), before, "a record was put");
    // A store that does not tell its clock dates the record by it.
    let silent = Arc::new(Hooked::new(&yard.store, |_, _| {}));
    let env = yard.env(0, silent, never());
    let error = prune_dataset(&env, &yard.task(&within, SecondaryStore::Nothing))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("this host's clock is 1y ahead of the store's"),
        "{error}"
    );
    assert_eq!(yard.store.keys(), before, "the record is withdrawn");
    // A clock that is behind is told by the snapshots.
    yard.hosts[0].1 = -hours(24 * 365);
    let outcome = yard.prune(&last_chains(1)).await;
    assert!(outcome.deleted.is_empty() && !outcome.view.plan.doubts.is_empty());
}

#[tokio::test]
async fn open_uploads_of_abandoned_attempts_are_removed_and_others_kept() {
    let (mut yard, old, new) = two_chains().await;
    let dataset = yard.dataset.clone();
    let chunk = |id: &BackupId, n: u32| {
        let index = zfs_backup::model::ChunkIndex::new(n).unwrap();
        let object = zfs_backup::store::key::BackupObject::Chunk {
            index,
            nonce: 77,
            compressed: false,
        };
        ObjectKey::backup(&dataset, id, &object)
    };
    let other: BackupId = "20260101T000000Z-full-00000000000000ff-00000000000000ff"
        .parse()
        .unwrap();
    let foreign = ObjectKey::listed("elsewhere/x").unwrap();
    let probe =
        |nonce| ObjectKey::listed(&format!("@zfs-backup/probe/{nonce:016x}/parts")).unwrap();
    for key in [
        chunk(&old[0], 9),
        chunk(&new[0], 9),
        chunk(&other, 9),
        foreign,
        probe(1),
    ] {
        drop(yard.store.create(&key).await.unwrap());
    }
    let left = |yard: &Yard| {
        let uploads = futures_util::FutureExt::now_or_never(yard.store.unfinished(""))
            .unwrap()
            .unwrap();
        uploads
            .into_iter()
            .map(|upload| upload.key)
            .collect::<Vec<_>>()
    };
    // Too young.
    yard.prune(&last_chains(1)).await;
    assert_eq!(left(&yard).len(), 5);
    yard.days(i64::from(RESUME_DAYS) - 1);
    yard.put(None).await;
    yard.prune(&last_chains(9)).await;
    assert_eq!(left(&yard).len(), 5);
    yard.days(1);
    // A probe that may be under way.
    drop(yard.store.create(&probe(2)).await.unwrap());
    yard.put(None).await;
    yard.prune(&last_chains(9)).await;
    let kept: Vec<String> = [chunk(&new[0], 9), chunk(&other, 9)]
        .iter()
        .map(ToString::to_string)
        .chain(["elsewhere/x".to_owned(), probe(2).to_string()])
        .collect();
    let mut found = left(&yard);
    found.sort();
    let mut kept = kept;
    kept.sort();
    assert_eq!(found, kept);
}

#[tokio::test]
async fn prune_record_of_a_kept_backup_is_withdrawn() {
    let (yard, old, new) = two_chains().await;
    // A prune that fails before it deletes anything leaves its record.
    yard.store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::Delete)
            .forever(),
    );
    yard.try_prune(0, &last_chains(1)).await.unwrap_err();
    yard.store.heal();
    assert_eq!(yard.record_keys().len(), 1);
    // Now somebody wants all of them; and then a manifest is hidden. The record would be proof that
    // it was deleted.
    yard.prune(&last_chains(9)).await;
    assert_eq!(yard.record_keys(), [""; 0]);
    for object in ["manifest.json", "manifest.json.minisig"] {
        assert!(yard.store.lose(&yard.key(&old[2], object)));
    }
    let outcome = yard.prune(&last_chains(1)).await;
    assert!(outcome.deleted.is_empty() && !outcome.view.plan.doubts.is_empty());
    yard.assert_restores(new).await;
}

#[tokio::test]
async fn partly_withdrawn_prune_record_keeps_its_other_backups() {
    let (yard, old, new) = two_chains().await;
    // Interrupted after the first backup.
    yard.store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::Delete)
            .on(old[1].as_str())
            .forever(),
    );
    yard.try_prune(0, &last_chains(1)).await.unwrap_err();
    yard.store.heal();
    yard.prune(&last_chains(9)).await;
    let text =
        String::from_utf8(yard.store.object(&yard.record_keys()[0]).unwrap().to_vec()).unwrap();
    assert!(
        text.contains(old[2].as_str()) && !text.contains(old[1].as_str()),
        "{text}"
    );
    yard.assert_restores(old[..2].iter().chain(&new).cloned())
        .await;
}

/// A store may answer that it deleted an object and keep it. The chunks of a backup stay as long as
/// its manifest is there, and the prune does not report a backup as deleted that is still there.
#[tokio::test]
async fn object_that_stays_after_its_deletion_stops_the_prune() {
    for object in [
        "manifest.json",
        "manifest.json.minisig",
        "RESTORE.txt",
        "started.json",
    ] {
        let (yard, old, _) = two_chains().await;
        let (all, kept) = (yard.ids(), yard.key(&old[2], object));
        let store = Hooked::new(&yard.store, |_, _| {});
        store.undeleted.lock().unwrap().insert(kept.clone());
        let task = yard.task(&last_chains(1), SecondaryStore::Nothing);
        let error = prune_dataset(&yard.env(0, Arc::new(store), never()), &task)
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains(&kept) && error.to_string().contains("still lists it"),
            "{error}"
        );
        if object == "manifest.json" {
            yard.assert_restores(old.clone()).await;
        }
        assert_eq!(yard.ids(), all, "no other backup was touched");
        // The next prune completes it.
        let done = yard.prune(&last_chains(1)).await;
        assert!(yard.ids().is_disjoint(&old.iter().cloned().collect()));
        assert!(done.deleted.contains(&old[0]));
    }
}

/// At every call of a prune another host begins to build on a backup that goes. Either the prune
/// sees it and stops, or the other sees the record and does not go on.
#[tokio::test]
async fn concurrent_upload_of_another_host_never_uses_a_pruned_base() {
    let (mut resumed, mut stopped) = (0, 0);
    for n in 1.. {
        let (yard, old, new) = two_chains().await;
        let yard = Arc::new(Mutex::new(yard));
        let (store, env, task) = {
            let yard = yard.lock().unwrap();
            (
                yard.store.clone(),
                yard.env(0, Arc::new(yard.store.clone()), never()),
                yard.task(&last_chains(1), SecondaryStore::Nothing),
            )
        };
        let (calls, result) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(None)));
        let hook = {
            let (yard, result, calls, base) = (
                Arc::clone(&yard),
                Arc::clone(&result),
                Arc::clone(&calls),
                old[2].clone(),
            );
            move |_: Operation, _: &str| {
                *calls.lock().unwrap() += 1;
                if *calls.lock().unwrap() == n {
                    // All calls of this store are done at once, so the whole upload fits between
                    // two of the prune's.
                    let mut yard = yard.lock().unwrap();
                    let upload = futures_util::FutureExt::now_or_never(Box::pin(
                        yard.upload(1, Some(&base)),
                    ));
                    *result.lock().unwrap() = upload;
                }
            }
        };
        let hooked = Hooked::new(&store, hook);
        let pruned = prune_dataset(
            &PruneEnv {
                store: Arc::new(hooked),
                ..env
            },
            &task,
        )
        .await;
        if *calls.lock().unwrap() < n {
            break;
        }
        // The hook is gone with its store, so this is the last hand on it.
        let yard = Arc::into_inner(yard).unwrap().into_inner().unwrap();
        let uploaded = result.lock().unwrap().take().unwrap();
        match uploaded {
            Ok(id) => {
                resumed += 1;
                // Seen from the beginning it makes its chain the newest; seen later it stops the
                // prune.
                let deleted = pruned.map_or_else(|_| Vec::new(), |outcome| outcome.deleted);
                assert!(
                    deleted.iter().all(|gone| new.contains(gone)),
                    "call {n}: {deleted:?}"
                );
                assert!(deleted.is_empty() || n < 10, "call {n}: {deleted:?}");
                let all = old
                    .iter()
                    .chain(&new)
                    .chain([&id])
                    .filter(|id| !deleted.contains(id));
                yard.assert_restores(all.cloned()).await;
            }
            Err(error) => {
                stopped += 1;
                let text = error.to_string();
                assert!(text.contains("base"), "{text}");
                yard.assert_restores(new).await;
            }
        }
    }
    assert!(
        resumed > 5 && stopped > 5,
        "{resumed} went on, {stopped} stopped"
    );
}

#[tokio::test]
async fn prune_intermediate_asks_the_remote_for_each_backup() {
    let (mut yard, old, new) = two_chains().await;
    let (here, remote) = (yard.store.clone(), memory_store(64 * 1024));
    remote.set_clock(Some(yard.clock));
    for key in here.keys() {
        remote.plant(&key, here.object(&key).unwrap());
    }
    let rules = RetentionRules {
        last_fulls: Some(1),
        last_incrementals: Some(1),
        ..Default::default()
    };
    let prune = async |yard: &Yard, secondary| {
        prune_dataset(
            &yard.env(0, Arc::new(here.clone()), never()),
            &yard.task(&rules, secondary),
        )
        .await
    };
    let secondary = |remote: &MemoryStore| SecondaryStore::Remote(Arc::new(remote.clone()));
    // A night in which nothing reached the remote, and a listing that fails.
    let fresh = yard.put(Some(&new[2])).await;
    let all = yard.ids();
    assert!(
        prune(&yard, SecondaryStore::Unreachable)
            .await
            .unwrap()
            .deleted
            .is_empty()
    );
    remote.fail(Fault::before(StoreErrorKind::Unavailable).of(Operation::List));
    prune(&yard, secondary(&remote)).await.unwrap_err();
    assert!(
        prune(&yard, secondary(&memory_store(1024)))
            .await
            .unwrap()
            .deleted
            .is_empty()
    );
    assert_eq!(yard.ids(), all);
    // A backup that the remote has with a hole stays here.
    let hole = remote
        .keys()
        .into_iter()
        .find(|key| key.contains(old[1].as_str()) && key.ends_with(".zfs.age"))
        .unwrap();
    remote.lose(&hole);
    let outcome = prune(&yard, secondary(&remote)).await.unwrap();
    assert_eq!(outcome.view.plan.doubts, []);
    let left: BTreeSet<BackupId> = [&old[1], &old[2], &new[0], &fresh]
        .into_iter()
        .cloned()
        .collect();
    assert_eq!(yard.ids(), left);
    // Both together have everything.
    for key in here
        .keys()
        .into_iter()
        .filter(|key| !key.contains("@prune"))
    {
        remote.plant(&key, here.object(&key).unwrap());
    }
    yard.store = remote;
    yard.assert_restores(all).await;
}

#[tokio::test]
async fn forget_deletes_only_a_backup_without_descendants() {
    let (mut yard, old, new) = two_chains().await;
    let env = |yard: &Yard| yard.env(0, Arc::new(yard.store.clone()), never());
    for id in [&old[0], &old[1], &new[0]] {
        let error = forget(&env(&yard), &yard.dataset, id, None)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("builds on"), "{error}");
        assert!(error.hint().unwrap().contains("forget"), "{error:?}");
    }
    assert_eq!(yard.record_keys(), [""; 0]);
    let found = forget(&env(&yard), &yard.dataset, &old[2], None)
        .await
        .unwrap();
    assert_eq!(
        (found.warnings.len(), found.manifest_blake3.is_some()),
        (0, true)
    );
    assert!(!yard.ids().contains(&old[2]));
    // The newest is said to be that.
    let newest = plan_forget(&env(&yard), &yard.dataset, &new[2], None)
        .await
        .unwrap();
    assert!(newest.warnings[0].contains("NEWEST"), "{newest:?}");
    assert!(
        newest.warnings[0].contains("4 older ones would be left"),
        "{newest:?}"
    );
    forget(&env(&yard), &yard.dataset, &new[2], None)
        .await
        .unwrap();
    yard.assert_restores([&old[..2], &new[..2]].concat()).await;
    assert_eq!(
        yard.read_view(&last_chains(1)).await.plan.doubts,
        [],
        "records explain the gaps"
    );
    let error = forget(&env(&yard), &yard.dataset, &new[2], None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("has nothing of"), "{error}");
    // An attempt that builds on a backup keeps it; what is left of it goes by name.
    yard.store.fail(
        Fault::before(StoreErrorKind::Full)
            .of(Operation::PutNew)
            .on("RESTORE"),
    );
    yard.upload(0, Some(&new[1])).await.unwrap_err();
    yard.store.heal();
    forget(&env(&yard), &yard.dataset, &new[1], None)
        .await
        .unwrap_err();
    let attempt = yard
        .ids()
        .into_iter()
        .find(|id| id.snapshot_guid().0 == 7)
        .unwrap();
    let found = forget(&env(&yard), &yard.dataset, &attempt, None)
        .await
        .unwrap();
    assert_eq!(found.manifest_blake3, None);
    assert!(!yard.ids().contains(&attempt));
    let journal = zfs_backup::state::journal::never_committing(
        yard.state(0),
        &yard.store.known(),
        &yard.dataset,
    )
    .unwrap();
    assert!(journal.is_empty());
    forget(&env(&yard), &yard.dataset, &new[1], None)
        .await
        .unwrap();
}

/// The other half of what a prune relies on: a real run does not build on what a fresh record
/// names.
#[tokio::test]
async fn incremental_on_a_base_in_a_recent_prune_record_is_refused() {
    let world = World::new();
    let full = world.back_up().await.manifest;
    world.zfs.write_file(&world.dataset, 20, b"more");
    world.snapshot();
    let mut env = world.prune_env(crate::world::now());
    let interrupted = async |env: &PruneEnv| {
        world.store.fail(
            Fault::before(StoreErrorKind::Unavailable)
                .of(Operation::Delete)
                .forever(),
        );
        forget(env, &world.dataset, &full.id, None)
            .await
            .unwrap_err();
        world.store.heal();
    };
    // A record of long ago was left by a prune that failed; the backup is there.
    env.now = crate::builder::later(crate::world::now(), -hours(50));
    world.store.set_clock(Some(env.now));
    interrupted(&env).await;
    world.store.set_clock(Some(crate::world::now()));
    let first = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap();
    let first = crate::world::committed(first).manifest;
    assert_eq!(first.chain.full_id, full.id);
    world.zfs.write_file(&world.dataset, 20, b"and more");
    world.snapshot();
    env.now = crate::world::now();
    world.store.fail(
        Fault::before(StoreErrorKind::Unavailable)
            .of(Operation::Delete)
            .forever(),
    );
    forget(&env, &world.dataset, &first.id, None)
        .await
        .unwrap_err();
    world.store.heal();
    let error = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("a prune is deleting {}", first.id)),
        "{error}"
    );
    assert_eq!(world.catalog().await.backups.len(), 2);
}

/// The clock of the host that deletes may be days behind, and that of the uploading host years
/// ahead. The store's own clock shows that the record is young.
#[tokio::test]
async fn the_age_of_a_prune_record_is_that_of_the_store_s_clock() {
    let world = World::new();
    let full = world.back_up().await.manifest;
    world.zfs.write_file(&world.dataset, 20, b"more");
    world.snapshot();
    let clock = crate::world::now();
    for behind in [50, 24 * 9000] {
        world.store.set_clock(Some(clock));
        let env = world.prune_env(crate::builder::later(clock, -hours(behind)));
        world.store.fail(
            Fault::before(StoreErrorKind::Unavailable)
                .of(Operation::Delete)
                .forever(),
        );
        forget(&env, &world.dataset, &full.id, None)
            .await
            .unwrap_err();
        world.store.heal();
        world
            .store
            .set_clock(Some(crate::builder::later(clock, hours(48) - 1)));
        let error = world
            .try_back_up_as(RequestedKind::Incremental)
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("a prune is deleting {}", full.id)),
            "{behind} hours behind: {error}"
        );
    }
    world
        .store
        .set_clock(Some(crate::builder::later(clock, hours(49))));
    let next = world
        .try_back_up_as(RequestedKind::Incremental)
        .await
        .unwrap();
    assert_eq!(
        crate::world::committed(next).manifest.chain.full_id,
        full.id
    );
}

#[tokio::test]
async fn foreign_objects_are_never_touched() {
    let (yard, old, _) = two_chains().await;
    let foreign = [
        "tank/a/x".to_owned(),
        "tank/a/@notes.txt".to_owned(),
        "tank/a/child/@x/manifest.json".to_owned(),
        "tank/ab/@x".to_owned(),
        yard.key(&old[0], "README"),
        format!("tank/a/b/@{}/manifest.json", old[0]),
        "tank/a/@prune/readme.txt".to_owned(),
    ];
    for key in &foreign {
        yard.store.plant(key, b"mine".to_vec());
    }
    yard.prune(&last_chains(1)).await;
    let keys = yard.store.keys();
    for key in &foreign {
        assert!(keys.contains(key), "{key}");
    }
    assert!(!ids_in(&yard.store).contains(&old[1]));
}

#[test]
fn times_of_tests_parse() {
    assert_eq!(at("2026-01-01T00:00:00Z").as_second() % 3600, 0);
}

type Hook = Box<dyn Fn(Operation, &str) + Send + Sync>;

/// A store before each of whose calls something happens. A deletion of anything but `started.json`
/// takes a moment.
pub(crate) struct Hooked {
    inner: MemoryStore,
    hook: Hook,
    /// Keys that listings leave out, although they are there.
    pub(crate) unlisted: Mutex<BTreeSet<String>>,
    /// Keys whose deletion the store reports and does not make.
    pub(crate) undeleted: Mutex<BTreeSet<String>>,
}

impl Hooked {
    pub(crate) fn new(
        inner: &MemoryStore,
        hook: impl Fn(Operation, &str) + Send + Sync + 'static,
    ) -> Self {
        Self {
            inner: inner.clone(),
            hook: Box::new(hook),
            unlisted: Mutex::default(),
            undeleted: Mutex::default(),
        }
    }
}

#[async_trait]
impl StoreInfo for Hooked {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn known(&self) -> zfs_backup::model::KnownStore {
        self.inner.known()
    }

    fn traits(&self) -> &StoreTraits {
        self.inner.traits()
    }
}

#[async_trait]
impl StoreRead for Hooked {
    async fn get(
        &self,
        key: &ObjectKey,
        range: Option<Range<u64>>,
        limit_bytes: u64,
    ) -> Result<Bytes, StoreError> {
        (self.hook)(Operation::Get, key.as_str());
        self.inner.get(key, range, limit_bytes).await
    }

    async fn head(&self, key: &ObjectKey) -> Result<Option<Evidence>, StoreError> {
        (self.hook)(Operation::Head, key.as_str());
        self.inner.head(key).await
    }

    async fn any_version(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        (self.hook)(Operation::AnyVersion, key.as_str());
        self.inner.any_version(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StoreError> {
        (self.hook)(Operation::List, prefix);
        let mut listed = self.inner.list(prefix).await?;
        let unlisted = self.unlisted.lock().unwrap();
        listed.retain(|object| !unlisted.contains(&object.key));
        Ok(listed)
    }

    async fn unfinished(&self, prefix: &str) -> Result<Vec<UnfinishedUpload>, StoreError> {
        (self.hook)(Operation::Unfinished, prefix);
        self.inner.unfinished(prefix).await
    }
}

#[async_trait]
impl StoreWrite for Hooked {
    async fn create(&self, key: &ObjectKey) -> Result<Box<dyn PartWriter>, StoreError> {
        (self.hook)(Operation::Create, key.as_str());
        self.inner.create(key).await
    }

    async fn put_new(
        &self,
        key: &ObjectKey,
        bytes: Bytes,
    ) -> Result<(PutOutcome, Evidence), StoreError> {
        (self.hook)(Operation::PutNew, key.as_str());
        self.inner.put_new(key, bytes).await
    }
}

#[async_trait]
impl StoreDelete for Hooked {
    async fn delete(&self, key: &ObjectKey) -> Result<(), StoreError> {
        (self.hook)(Operation::Delete, key.as_str());
        if !key.as_str().contains("started.json") {
            tokio::task::yield_now().await;
        }
        if self.undeleted.lock().unwrap().contains(key.as_str()) {
            return Ok(());
        }
        self.inner.delete(key).await
    }

    async fn abort_unfinished(&self, upload: &UnfinishedUpload) -> Result<(), StoreError> {
        (self.hook)(Operation::AbortUnfinished, &upload.key);
        self.inner.abort_unfinished(upload).await
    }
}
