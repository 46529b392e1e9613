//! Runs that end in the middle: dropped at every call of the store and of ZFS, with the journal
//! torn, wiped or rolled back. The next plain run ends in a valid backup with the bytes of an
//! uninterrupted send, and nothing is left over.

use crate::chains::{chain, night};
use crate::crash::{CrashAt, CrashStore, Watch};
use crate::failures::for_all;
use crate::world::{World, all_committed, committed, quick_keys};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use zfs_backup::config::RetentionRules;
use zfs_backup::manifest::Manifest;
use zfs_backup::manifest::Origin;
use zfs_backup::model::{BackupId, BackupKind};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnd, BackupEnv, BackupRun, CommittedBackup, back_up};
use zfs_backup::run::pool::pins::pinned;
use zfs_backup::run::prune::{PruneTask, SecondaryStore, prune_dataset, read_view};
use zfs_backup::state::journal::{read_attempts, unended};
use zfs_backup::store::memory::{Fault, Operation, Outcome};
use zfs_backup::store::{StoreErrorKind, StoreInfo, StoreRead};
use zfs_backup::zfs::fake::SendFault;
use zfs_backup::zfs::{ZfsRead, ZfsSnapshots};

fn unwatched() -> Watch {
    Arc::new(|_, _| {})
}

/// A clock that goes on by more than a minute with every look: a progress object for every chunk.
fn ticking() -> Timestamp {
    static SECONDS: AtomicI64 = AtomicI64::new(1_800_000_000);
    Timestamp::from_second(SECONDS.fetch_add(61, Ordering::SeqCst)).unwrap()
}

/// Begins a backup and drops it at the crash. `None` when it was over before.
async fn crash(world: &World, env: BackupEnv, requested: RequestedKind, at: CrashAt) -> Option<()> {
    let store = CrashStore::new(&world.store, Some(at), unwatched());
    match store.back_up(env, world.selected(), requested).await {
        None => Some(()),
        Some(outcome) => {
            outcome.unwrap();
            None
        }
    }
}

fn only_committed(run: BackupRun) -> CommittedBackup {
    assert_eq!(run.committed.len(), 1);
    committed(run)
}

/// How many calls of the store an uninterrupted run makes.
async fn store_calls(world: &World, env: BackupEnv, requested: RequestedKind) -> usize {
    let store = CrashStore::new(&world.store, None, unwatched());
    committed(
        store
            .back_up(env, world.selected(), requested)
            .await
            .unwrap()
            .unwrap(),
    );
    store.calls()
}

/// The ids that have objects.
fn ids(world: &World) -> BTreeSet<String> {
    let keys = world.store.keys();
    keys.iter()
        .filter_map(|key| Some(key.split_once("/@2")?.1.split_once('/')?.0.to_owned()))
        .collect()
}

/// The run after: what must hold whatever happened before.
async fn assert_goes_on(
    world: &World,
    requested: RequestedKind,
    backups: usize,
) -> CommittedBackup {
    let ended = committed(
        back_up(&world.env(), &world.selected(), requested)
            .await
            .unwrap(),
    );
    assert_nothing_is_left(world, backups).await;
    ended
}

async fn assert_nothing_is_left(world: &World, backups: usize) {
    world.assert_no_holds();
    assert_eq!(
        pinned(&world.zfs, &world.dataset).unwrap(),
        BTreeSet::new(),
        "a private bookmark is left"
    );
    let report = world.verify().await;
    assert_eq!((report.damage, report.extra), (vec![], vec![]));
    assert_eq!(world.catalog().await.backups.len(), backups);
    assert_eq!(
        world.store.unfinished("").await.unwrap(),
        [],
        "parts are left that nobody sees"
    );
    let journal = unended(
        &world.settings.state_dir,
        &world.store.known(),
        &world.dataset,
    )
    .unwrap();
    assert_eq!(journal, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_interrupted_at_any_store_call_is_resumed() {
    let (keys, writer) = quick_keys();
    let clean = World::with_keys(keys.clone(), writer.clone());
    let calls = store_calls(&clean, clean.env(), RequestedKind::Full).await;
    assert!(calls > 40, "{calls}");
    let cases: Vec<CrashAt> = (1..=calls)
        .flat_map(|n| [CrashAt::Before(n), CrashAt::After(n)])
        .collect();
    for_all(cases, |at| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let dropped = crash(&world, world.env(), RequestedKind::Full, at).await;
            assert!(dropped.is_some(), "the run was over before");
            if world.manifest_keys().is_empty() {
                assert_goes_on(&world, RequestedKind::Full, 1).await;
            } else {
                // The manifest was there: the run after only says so.
                world.try_back_up().await.unwrap();
                assert_nothing_is_left(&world, 1).await;
            }
            assert_eq!(ids(&world).len(), 1, "it began anew");
            world.assert_restores().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incremental_interrupted_at_any_store_call_is_resumed() {
    let (keys, writer) = quick_keys();
    let begin = |world: World| async move {
        let points = chain(&world, 1).await;
        night(&world, 2);
        world
            .zfs
            .write_file(&world.dataset, 70, &crate::world::noise(70, 200_000));
        world.snapshot();
        (world, points)
    };
    let (clean, _) = begin(World::with_keys(keys.clone(), writer.clone())).await;
    let calls = store_calls(&clean, clean.env(), RequestedKind::Incremental).await;
    let cases: Vec<CrashAt> = (1..=calls)
        .flat_map(|n| [CrashAt::Before(n), CrashAt::After(n)])
        .collect();
    for_all(cases, |at| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let (world, points) = begin(world).await;
            assert!(
                crash(&world, world.env(), RequestedKind::Incremental, at)
                    .await
                    .is_some()
            );
            world
                .try_back_up_as(RequestedKind::Incremental)
                .await
                .unwrap();
            assert_nothing_is_left(&world, 3).await;
            let newest = world.catalog().await.newest().unwrap().manifest.clone();
            assert_eq!(newest.base.as_ref().unwrap().backup_id, points[1].0.id);
            crate::chains::assert_comes_back(&world, &newest, &world.zfs.files(&world.dataset))
                .await;
        }
    })
    .await;
}

/// `--full` makes a full, whatever an interrupted incremental left to be finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requested_full_is_made_after_an_interrupted_incremental() {
    let (keys, writer) = quick_keys();
    let begin = |world: World| async move {
        chain(&world, 1).await;
        night(&world, 2);
        world
    };
    let clean = begin(World::with_keys(keys.clone(), writer.clone())).await;
    let calls = store_calls(&clean, clean.env(), RequestedKind::Incremental).await;
    for_all((1..=calls).map(CrashAt::After).collect(), |at| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let world = begin(world).await;
            crash(&world, world.env(), RequestedKind::Incremental, at).await;
            world.try_back_up_as(RequestedKind::Full).await.unwrap();
            let newest = world
                .catalog()
                .await
                .newest()
                .unwrap()
                .manifest
                .snapshot
                .guid;
            let catalog = world.catalog().await;
            let is_full_of_newest =
                |manifest: &Manifest| manifest.snapshot.guid == newest && manifest.base.is_none();
            assert!(
                catalog
                    .backups
                    .iter()
                    .any(|backup| is_full_of_newest(&backup.manifest)),
                "{at:?}: --full made no full"
            );
        }
    })
    .await;
}

/// Interrupted twice: whichever run it is that ends the commit, it also removes what only the
/// uploads needed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_that_ends_a_commit_removes_all_progress_objects_and_holds() {
    let (keys, writer) = quick_keys();
    let clean = World::with_keys(keys.clone(), writer.clone());
    interrupted_late(&clean).await;
    assert!(
        clean
            .store
            .keys()
            .iter()
            .any(|key| key.contains("progress-")),
        "nothing is there to be removed"
    );
    let calls = store_calls(&clean, clean.env(), RequestedKind::Full).await;
    let cases: Vec<CrashAt> = (1..=calls)
        .flat_map(|n| [CrashAt::Before(n), CrashAt::After(n)])
        .collect();
    for_all(cases, |at| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            interrupted_late(&world).await;
            assert!(
                crash(&world, world.env(), RequestedKind::Full, at)
                    .await
                    .is_some(),
                "the run was over before"
            );
            world.try_back_up().await.unwrap();
            assert_nothing_is_left(&world, 1).await;
            assert_eq!(ids(&world).len(), 1, "it began anew");
            world.assert_restores().await;
        }
    })
    .await;
}

/// A crash inside a call of ZFS, by a panic that nobody catches.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_crashed_at_any_zfs_call_is_followed_by_one_complete_backup() {
    let (keys, writer) = quick_keys();
    let clean = World::with_keys(keys.clone(), writer.clone());
    let (env, selected, before) = (clean.env(), clean.selected(), clean.zfs.calls());
    back_up(&env, &selected, RequestedKind::Full).await.unwrap();
    let calls = clean.zfs.calls() - before;
    for_all((1..=calls).collect(), |n| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            let (env, selected) = (world.env(), world.selected());
            world
                .zfs
                .before_call(n, |_| std::panic::resume_unwind(Box::new("a crash")));
            let run =
                tokio::spawn(async move { back_up(&env, &selected, RequestedKind::Full).await });
            if let Ok(outcome) = run.await
                && outcome.is_ok()
            {
                panic!("it did not crash");
            }
            world.try_back_up().await.unwrap();
            assert_nothing_is_left(&world, 1).await;
            assert_eq!(ids(&world).len(), 1);
            world.assert_restores().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn confirmed_chunks_are_neither_sent_nor_read_again() {
    let world = World::new();
    // Between the last chunk's parts.
    let finishes = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&finishes);
    let store = CrashStore::new(
        &world.store,
        None,
        Arc::new(move |what, _| {
            if what == "finish" {
                *counted.lock().unwrap() += 1;
            }
        }),
    );
    committed(
        store
            .back_up(world.env(), world.selected(), RequestedKind::Full)
            .await
            .unwrap()
            .unwrap(),
    );
    let (all, calls) = (*finishes.lock().unwrap(), store.calls());
    assert!(all >= 4);
    let mut kept_most = 0;
    for n in 1..calls {
        let world = World::new();
        crash(&world, world.env(), RequestedKind::Full, CrashAt::After(n)).await;
        let kept: BTreeSet<String> = confirmed_names(&world);
        kept_most = kept_most.max(kept.len());
        world.store.clear_events();
        world.try_back_up().await.unwrap();
        let created =
            world.store.events().into_iter().filter(|event| {
                event.operation == Operation::Finish && event.outcome == Outcome::Done
            });
        if !world.manifest_keys().is_empty() && !kept.is_empty() {
            assert!(
                created.count() <= all - kept.len(),
                "dropped after {n}: {kept:?} were sent again"
            );
        }
        world.assert_restores().await;
    }
    assert_eq!(kept_most, all, "no crash came after the last chunk");
}

/// The chunks that the journals of the world know as confirmed.
fn confirmed_names(world: &World) -> BTreeSet<String> {
    use zfs_backup::state::journal::log::JournalRecord;
    let attempts = read_attempts(
        &world.settings.state_dir,
        &world.store.known(),
        &world.dataset,
    )
    .unwrap();
    let records = attempts.iter().flat_map(|attempt| attempt.records());
    records
        .filter_map(|record| match record {
            JournalRecord::Confirmed(chunk) => Some(chunk.entry.name.clone()),
            _ => None,
        })
        .collect()
}

fn journal_files(state_dir: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(state_dir.join("journal"))
        .into_iter()
        .flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

/// Interrupted runs with confirmed chunks and progress objects for all of them; with the number of
/// confirmed chunks.
pub(crate) async fn interrupted_late(world: &World) -> usize {
    let mut env = world.env();
    env.now = ticking;
    // The third part of the last chunk but one.
    world.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::PutPart)
            .nth(15)
            .forever(),
    );
    back_up(&env, &world.selected(), RequestedKind::Full)
        .await
        .unwrap_err();
    world.store.heal();
    let kept = confirmed_names(world).len();
    assert!(kept >= 2, "{kept}");
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_journal_never_prevents_a_complete_backup() {
    let (keys, writer) = quick_keys();
    let sample = World::with_keys(keys.clone(), writer.clone());
    interrupted_late(&sample).await;
    let length = std::fs::metadata(&journal_files(&sample.settings.state_dir)[0])
        .unwrap()
        .len();
    for_all((0..=length).step_by(97).collect(), |cut| {
        let world = World::with_keys(keys.clone(), writer.clone());
        async move {
            interrupted_late(&world).await;
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(&journal_files(&world.settings.state_dir)[0]);
            file.unwrap().set_len(cut).unwrap();
            committed(world.try_back_up().await.unwrap());
            world.assert_restores().await;
            world.assert_no_holds();
            assert_eq!(world.verify().await.damage, []);
            assert_eq!(world.catalog().await.backups.len(), 1);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_without_a_current_journal_resumes_from_the_store() {
    for rolled_back in [false, true] {
        let world = World::new();
        let mut env = world.env();
        env.now = ticking;
        world.store.fail(
            Fault::before(StoreErrorKind::Denied)
                .of(Operation::PutPart)
                .nth(5)
                .forever(),
        );
        back_up(&env, &world.selected(), RequestedKind::Full)
            .await
            .unwrap_err();
        world.store.heal();
        let saved = rolled_back.then(|| {
            let file = journal_files(&world.settings.state_dir).remove(0);
            let bytes = std::fs::read(&file).unwrap();
            (file, bytes)
        });
        let kept = interrupted_late(&world).await;
        std::fs::remove_dir_all(world.settings.state_dir.join("journal")).unwrap();
        if let Some((file, bytes)) = saved {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, bytes).unwrap();
        }
        world.store.clear_events();
        let ended = assert_goes_on(&world, RequestedKind::Full, 1).await;
        let events = world.store.events();
        let done = |operation| {
            events
                .iter()
                .filter(|event| event.operation == operation && event.outcome == Outcome::Done)
                .count()
        };
        assert!(
            done(Operation::Finish) <= ended.chunks - kept,
            "rolled back: {rolled_back}"
        );
        assert_eq!(ids(&world).len(), 1);
        world.assert_restores().await;
        assert!(
            !world
                .store
                .keys()
                .iter()
                .any(|key| key.contains("progress-")),
            "progress objects stay"
        );
    }
}

/// The dataset's pool is what says that an upload goes on: without a hold nobody takes it up from
/// the store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_without_a_hold_and_journal_is_not_resumed() {
    let world = World::new();
    interrupted_late(&world).await;
    std::fs::remove_dir_all(world.settings.state_dir.join("journal")).unwrap();
    zfs_backup::run::pool::pins::unpin(&world.zfs, &world.dataset, |_| true).unwrap();
    committed(world.try_back_up().await.unwrap());
    assert_eq!(ids(&world).len(), 2);
    world.assert_no_holds();
    world.assert_restores().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_snapshot_is_backed_up_after_a_resumed_upload_in_the_same_run() {
    let world = World::new();
    interrupted_late(&world).await;
    let unfinished: BackupId = ids(&world)
        .pop_first()
        .map(|id| format!("2{id}").parse().unwrap())
        .unwrap();
    night(&world, 1);
    let outcome = world
        .try_back_up_as(RequestedKind::Lifecycle)
        .await
        .unwrap();
    let mut made = all_committed(outcome);
    let newest = made.pop().unwrap();
    assert_eq!(
        made.iter()
            .map(|backup| &backup.manifest.id)
            .collect::<Vec<_>>(),
        [&unfinished]
    );
    assert_eq!(newest.manifest.kind, BackupKind::Incr);
    assert_eq!(newest.manifest.base.as_ref().unwrap().backup_id, unfinished);
    assert_nothing_is_left(&world, 2).await;
    crate::chains::assert_comes_back(&world, &newest.manifest, &world.zfs.files(&world.dataset))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_commit_is_completed_without_changing_stored_objects() {
    let names = [
        "receipt.json.minisig",
        "receipt.json",
        "manifest.json.minisig",
        "manifest.json",
    ];
    for (name, newer) in names
        .into_iter()
        .flat_map(|name| [(name, false), (name, true)])
    {
        let world = World::new();
        world.store.fail(
            Fault::before(StoreErrorKind::Denied)
                .of(Operation::PutNew)
                .on(name)
                .forever(),
        );
        world.try_back_up().await.unwrap_err();
        world.store.heal();
        let put: BTreeMap<String, bytes::Bytes> = world
            .store
            .keys()
            .into_iter()
            .map(|key| (key.clone(), world.store.object(&key).unwrap()))
            .collect();
        if newer {
            night(&world, 1);
        }
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .unwrap();
        assert_nothing_is_left(&world, if newer { 2 } else { 1 }).await;
        assert!(
            put.iter()
                .all(|(key, bytes)| world.store.object(key).as_ref() == Some(bytes)),
            "{name}"
        );
        assert_eq!(ids(&world).len(), if newer { 2 } else { 1 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_abandons_the_interrupted_upload() {
    let mut world = World::new();
    interrupted_late(&world).await;
    let held = pinned(&world.zfs, &world.dataset).unwrap();
    assert_eq!(held.len(), 1);
    world.settings.restart = true;
    let fresh = world.back_up().await;
    assert!(!held.contains(&fresh.manifest.id));
    world.assert_no_holds();
    assert_eq!(world.store.unfinished("").await.unwrap(), []);
    world.assert_restores().await;
    // And nobody takes it up again.
    world.settings.restart = false;
    night(&world, 1);
    let next = only_committed(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .unwrap(),
    );
    assert_eq!(next.manifest.base.unwrap().backup_id, fresh.manifest.id);
    world.assert_no_holds();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_snapshot_cannot_be_destroyed_and_a_missing_one_restarts_the_upload() {
    let world = World::new();
    interrupted_late(&world).await;
    let snapshot = world.newest_snapshot();
    assert!(
        world
            .zfs
            .destroy_snapshots(std::slice::from_ref(&snapshot))
            .is_err()
    );
    zfs_backup::run::pool::pins::unpin(&world.zfs, &world.dataset, |_| true).unwrap();
    world
        .zfs
        .destroy_snapshots(std::slice::from_ref(&snapshot))
        .unwrap();
    night(&world, 1);
    only_committed(world.try_back_up().await.unwrap());
    assert_eq!(ids(&world).len(), 2);
    world.assert_no_holds();
    world.assert_restores().await;
}

/// What changes between the two halves, and whether the upload goes on all the same.
type Change = fn(&mut World);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_is_resumed_only_with_the_same_stream_and_settings() {
    let cases: [(&str, Change, bool); 8] = [
        ("nothing", |_| {}, true),
        (
            "another module",
            |world| world.zfs.set_module_version("2.4.0-1"),
            true,
        ),
        (
            "another name",
            |world| {
                let to = crate::world::name("tank/renamed");
                world.zfs.rename(&world.dataset, &to);
            },
            true,
        ),
        (
            "other flags",
            |world| world.settings.compressed = false,
            false,
        ),
        (
            "another size",
            |world| world.settings.split_bytes *= 2,
            false,
        ),
        (
            "other recipients",
            |world| {
                world
                    .writer
                    .recipients
                    .push(age::x25519::Identity::generate().to_public());
            },
            false,
        ),
        (
            "a lost chunk",
            |world| {
                let chunk = world
                    .store
                    .keys()
                    .into_iter()
                    .find(|key| key.contains("/00000000-"))
                    .unwrap();
                world.store.lose(&chunk);
            },
            false,
        ),
        (
            "a stranger's object",
            |world| {
                let started = world
                    .store
                    .keys()
                    .into_iter()
                    .find(|key| key.ends_with("started.json"))
                    .unwrap();
                world
                    .store
                    .plant(&started.replace("started.json", "RESTORE.txt"), "planted");
            },
            false,
        ),
    ];
    for (what, change, goes_on) in cases {
        let mut world = World::new();
        interrupted_late(&world).await;
        let before = ids(&world);
        change(&mut world);
        let mut selected = zfs_backup::run::pool::select::Selected {
            dataset: world
                .zfs
                .dataset(&world.dataset)
                .unwrap()
                .unwrap_or_else(|| {
                    world
                        .zfs
                        .dataset(&crate::world::name("tank/renamed"))
                        .unwrap()
                        .unwrap()
                }),
            stored: world.dataset.clone(),
        };
        let fresh = committed(
            back_up(&world.env(), &selected, RequestedKind::Full)
                .await
                .unwrap(),
        );
        let id = fresh.manifest.id.as_str()[1..].to_owned();
        assert_eq!(before.contains(&id), goes_on, "{what}");
        assert_eq!(
            pinned(&world.zfs, &selected.dataset.name).unwrap(),
            BTreeSet::new(),
            "{what}"
        );
        selected.stored = world.dataset.clone();
        let (bytes, result) = world.restore().await;
        assert_eq!(result.unwrap(), bytes.len() as u64, "{what}");
        assert_eq!(world.verify().await.damage, [], "{what}");
    }
}

/// A journal of a time when the backup was not committed yet must never touch what was committed
/// since, or pruned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_journal_never_touches_a_backup() {
    for fate in ["kept", "pruned", "hidden"] {
        let world = World::new();
        interrupted_late(&world).await;
        let file = journal_files(&world.settings.state_dir).remove(0);
        let bytes = std::fs::read(&file).unwrap();
        let first = world.back_up().await;
        std::fs::write(&file, bytes).unwrap();
        for name in ["manifest.json", "manifest.json.minisig"] {
            let key = crate::world::key_of(&first.manifest, name);
            match fate {
                "kept" => continue,
                "pruned" => assert!(world.store.lose(&key)),
                _ => assert!(world.store.hide(&key)),
            }
        }
        if fate == "pruned" {
            crate::chain::plant_prune_record(&world, &world.store, &[&first.manifest.id]);
        }
        let objects = |world: &World| -> Vec<String> {
            world
                .store
                .keys()
                .into_iter()
                .filter(|key| key.contains(first.manifest.id.as_str()))
                .collect()
        };
        let before = objects(&world);
        night(&world, 1);
        let next = only_committed(
            world
                .try_back_up_as(RequestedKind::Lifecycle)
                .await
                .unwrap(),
        );
        assert_ne!(next.manifest.id, first.manifest.id);
        assert_eq!(objects(&world), before, "{fate}");
        assert!(!file.exists());
        world.assert_no_holds();
    }
}

/// A recording store: no manifest before all its chunks are confirmed and all that it pins is
/// there, a signature before what it signs, and the journal before each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_object_is_put_after_the_objects_it_depends_on() {
    let world = World::new();
    let (store, state_dir) = (world.store.clone(), world.settings.state_dir.clone());
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = Arc::clone(&seen);
    let watch: Watch = Arc::new(move |what, key| {
        log.lock().unwrap().push(format!("{what} {key}"));
        let Some((_, name)) = key.rsplit_once('/') else {
            return;
        };
        let journal = || -> String {
            let files = journal_files(&state_dir);
            files
                .iter()
                .map(|file| std::fs::read_to_string(file).unwrap())
                .collect()
        };
        match (what, name) {
            ("create", name) => assert!(
                journal().contains(&format!("\"{name}\"")),
                "{name} before the journal knew"
            ),
            ("put", "started.json.minisig") => assert!(journal().contains("\"plan\"")),
            ("put", "RESTORE.txt.minisig") => assert!(journal().contains("\"closing\"")),
            ("put", "receipt.json.minisig") => {
                assert!(journal().contains("\"commit\""));
                assert!(
                    journal_files(&state_dir)
                        .iter()
                        .all(|file| file.extension().unwrap() == "committing")
                );
            }
            ("put", "manifest.json") => {
                let there =
                    |name: &str| store.object(&key.replace("manifest.json", name)).is_some();
                for name in [
                    "started.json",
                    "RESTORE.txt",
                    "private.age",
                    "chunks-0000.json",
                    "receipt.json",
                ] {
                    assert!(there(name), "the manifest before {name}");
                }
            }
            _ => {}
        }
        if what == "put" && name.ends_with(".json") && !name.starts_with("chunks") {
            assert!(
                store.object(&format!("{key}.minisig")).is_some(),
                "{name} before its signature"
            );
        }
    });
    let watched = CrashStore::new(&world.store, None, Arc::clone(&watch));
    // In two halves, the first dropped in the middle.
    let calls = store_calls(&World::new(), World::new().env(), RequestedKind::Full).await;
    let first = CrashStore::new(&world.store, Some(CrashAt::After(calls / 2)), watch);
    assert!(
        first
            .back_up(world.env(), world.selected(), RequestedKind::Full)
            .await
            .is_none()
    );
    let ended = watched
        .back_up(world.env(), world.selected(), RequestedKind::Full)
        .await
        .unwrap()
        .unwrap();
    let manifest = committed(ended).manifest;
    let events = world.store.events();
    let at = |operation: Operation, name: &str| {
        let is_it = |event: &zfs_backup::store::memory::StoreEvent| {
            event.operation == operation
                && event.outcome == Outcome::Done
                && event.key.ends_with(name)
        };
        events
            .iter()
            .position(is_it)
            .unwrap_or_else(|| panic!("no {operation:?} of {name}"))
    };
    let committed_at = at(Operation::PutNew, "/manifest.json");
    for chunk in world.chunks(&manifest).await {
        assert!(
            at(Operation::Finish, &chunk.name) < committed_at,
            "{} is confirmed after the commit",
            chunk.name
        );
    }
    let deleted = events
        .iter()
        .take(committed_at)
        .filter(|event| event.operation == Operation::Delete)
        .count();
    assert_eq!(deleted, 0, "something is deleted before the commit");
    assert!(seen.lock().unwrap().len() > calls);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_pauses_between_chunks_at_its_time_limit_and_resumes() {
    let mut world = World::new();
    let paused = |run: BackupRun| match run.end {
        Ok(BackupEnd::Paused(paused)) => paused,
        other => panic!("{other:?}"),
    };
    world.settings.until = Some(crate::world::now());
    let first = paused(world.try_back_up().await.unwrap());
    assert_eq!(
        (first.chunks, first.stream_bytes),
        (1, world.settings.split_bytes)
    );
    assert!(first.why.contains("max_runtime"), "{}", first.why);
    assert_eq!(
        pinned(&world.zfs, &world.dataset).unwrap(),
        BTreeSet::from([first.id.clone()])
    );
    assert_eq!(world.manifest_keys(), [""; 0]);
    // Outside its hours nothing is even read.
    (world.settings.until, world.settings.window) = (None, Some(elsewhen()));
    let sends = world.zfs.calls();
    let second = paused(world.try_back_up().await.unwrap());
    assert_eq!((&second.id, second.chunks), (&first.id, 1));
    assert!(second.why.contains("main.window"), "{}", second.why);
    assert!(world.zfs.calls() - sends < 20);
    world.settings.window = None;
    let ended = assert_goes_on(&world, RequestedKind::Full, 1).await;
    assert_eq!(ended.manifest.id, first.id);
    world.assert_restores().await;
    // What is small is not cut by the hour.
    world.settings.window = Some(elsewhen());
    night(&world, 1);
    committed(
        world
            .try_back_up_as(RequestedKind::Incremental)
            .await
            .unwrap(),
    );
}

/// Hours in which the clock of the worlds never is, wherever this runs.
fn elsewhen() -> zfs_backup::config::Window {
    let local = crate::world::now()
        .to_zoned(jiff::tz::TimeZone::system())
        .time();
    let hour = |ahead: i8| (local.hour() + ahead) % 24;
    format!("{:02}:00-{:02}:00", hour(2), hour(3))
        .parse()
        .unwrap()
}

/// A full that takes many nights does not hold up the nightly incrementals, and is what follows
/// once it is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nightly_incremental_is_made_before_an_unfinished_full_is_resumed() {
    let mut world = World::new();
    let points = chain(&world, 1).await;
    world
        .zfs
        .write_file(&world.dataset, 70, &crate::world::noise(70, 250_000));
    night(&world, 2);
    interrupted_late(&world).await;
    night(&world, 3);
    let made = all_committed(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .unwrap(),
    );
    let [nightly, full] = made.as_slice() else {
        panic!("{made:?}")
    };
    assert_eq!(full.manifest.kind, BackupKind::Full);
    let nightly = &nightly.manifest;
    assert_eq!(nightly.chain.full_id, points[0].0.id);
    assert_nothing_is_left(&world, 4).await;
    crate::chains::assert_comes_back(&world, nightly, &world.zfs.files(&world.dataset)).await;
    // The chain before it is over: the next incremental follows from the full that is there, and
    // makes no third.
    world.settings.lifecycle.incrementals_max = Some(2);
    night(&world, 4);
    let next = committed(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .unwrap(),
    )
    .manifest;
    assert_eq!(
        (&next.chain.full_id, next.chain.position),
        (&full.manifest.id, 1)
    );
    crate::chains::assert_comes_back(&world, &next, &world.zfs.files(&world.dataset)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruned_upload_ends_in_the_journal_and_a_prune_record_proves_it() {
    let world = World::new();
    let begun: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
    world.store.set_clock(Some(begun));
    interrupted_late(&world).await;
    let held = pinned(&world.zfs, &world.dataset).unwrap();
    let later = begun + jiff::SignedDuration::from_hours(15 * 24);
    world.store.set_clock(Some(later));
    let env = world.prune_env(later);
    let pool_guid = world.zfs.pool_guid("tank").unwrap();
    let origins = vec![Origin {
        dataset_guid: world.selected().dataset.guid,
        pool_guid,
    }];
    let (stored, rules, secondary) = (
        world.dataset.clone(),
        RetentionRules::default(),
        SecondaryStore::Nothing,
    );
    let outcome = prune_dataset(
        &env,
        &PruneTask {
            stored,
            origins,
            rules,
            secondary,
        },
    )
    .await
    .unwrap();
    assert_eq!(
        outcome.deleted.iter().collect::<BTreeSet<_>>(),
        held.iter().collect()
    );
    assert!(
        unended(
            &world.settings.state_dir,
            &world.store.known(),
            &world.dataset
        )
        .unwrap()
        .is_empty()
    );
    zfs_backup::run::pool::pins::unpin(&world.zfs, &world.dataset, |id| {
        outcome.deleted.contains(id)
    })
    .unwrap();
    world.assert_no_holds();
    // The record is the proof for a run that comes after a crash in between.
    let (stored, rules, secondary) = (
        world.dataset.clone(),
        RetentionRules::default(),
        SecondaryStore::Nothing,
    );
    let origins = vec![Origin {
        dataset_guid: world.selected().dataset.guid,
        pool_guid,
    }];
    let again = read_view(
        &env,
        &PruneTask {
            stored,
            origins,
            rules,
            secondary,
        },
    )
    .await
    .unwrap();
    assert!(held.iter().all(|id| again.is_over(id)));
}

/// A stopped process goes on, and the kernel has given the send up meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn send_interrupted_by_the_kernel_is_resumed_in_the_same_run() {
    const EINTR: i32 = 4;
    let world = World::new();
    world.zfs.fail_next_send(SendFault {
        after_bytes: 3 * 64 * 1024 + 17,
        errno: EINTR,
    });
    let backup = world.back_up().await;
    for chunk in world.chunks(&backup.manifest).await {
        let of_index = |key: &str| key.contains(&format!("/{:08}-", chunk.index));
        let finished = world.store.events().into_iter().filter(|event| {
            event.operation == Operation::Finish
                && event.outcome == Outcome::Done
                && of_index(&event.key)
        });
        assert_eq!(finished.count(), 1, "chunk {}", chunk.index);
    }
    assert_nothing_is_left(&world, 1).await;
    world.assert_restores().await;
}
