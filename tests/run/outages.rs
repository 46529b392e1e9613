//! Stores that are away for some minutes of a simulated clock: what waits, what is logged, and what
//! a wait in vain leaves.

use crate::b2_sim::{B2Sim, SimOptions};
use crate::proxy::{Action, Proxy, Rule};
use crate::prune::{last_chains, two_chains};
use crate::upload::Pair;
use crate::weed::Weed;
use crate::world::{SharedBytes, World, committed, main_keyring_key, name, noise, now};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{BackupEnv, BackupRun, back_up};
use zfs_backup::run::copy::{CopyPool, UploadEnv};
use zfs_backup::run::pool::select::Selected;
use zfs_backup::run::pool::snapshot::take_snapshots;
use zfs_backup::run::prune::{SecondaryStore, prune_dataset};
use zfs_backup::run::restore::{
    ReceiveOptions, RestorePoint, find_restore_set, restore_to_dataset, restore_to_writer,
};
use zfs_backup::run::verify::verify_dataset;
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::store::memory::{Fault, MemoryStore, Operation};
use zfs_backup::store::{
    B2Settings, B2Store, ObjectKey, ObjectStore, Patience, PatienceClock, PatientStore, S3Settings,
    S3Store, StoreErrorKind, StoreRead,
};
use zfs_backup::zfs::{DatasetType, ZfsRead};

const MINUTE: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(30 * 60);
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);

/// An outage by a simulated clock.
#[derive(Clone)]
struct Outage {
    clock: PatienceClock,
    lasts: Duration,
    until: Arc<Mutex<Option<Instant>>>,
}

impl Outage {
    fn lasting(lasts: Duration) -> Self {
        let begun = "2026-11-30T03:12:45[UTC]".parse().unwrap();
        Self {
            clock: PatienceClock::simulated(begun),
            lasts,
            until: Arc::default(),
        }
    }

    /// Begins the outage unless it began before.
    fn begin(&self) {
        let mut until = self.until.lock().unwrap();
        until.get_or_insert(self.clock.now() + self.lasts);
    }

    fn is_on(&self) -> bool {
        let until = *self.until.lock().unwrap();
        until.is_some_and(|until| self.clock.now() < until)
    }

    fn has_been(&self) -> bool {
        self.until.lock().unwrap().is_some() && !self.is_on()
    }

    fn patience(&self, limit: Duration) -> (Arc<Patience>, Sender) {
        let (sender, stop) = tokio::sync::watch::channel(false);
        let patience = Patience::by_clock(limit, stop, self.clock.clone());
        (Arc::new(patience), sender)
    }

    /// Makes the store away from the `n`-th call of this operation, counted from 1.
    fn befall(&self, store: &MemoryStore, operation: Operation, n: usize) {
        let (outage, calls) = (self.clone(), AtomicUsize::new(0));
        store.set_away(move |called, _| {
            if called == operation && calls.fetch_add(1, Ordering::SeqCst) + 1 == n {
                outage.begin();
            }
            outage.is_on()
        });
    }

    /// Loses the reply of the `n`-th call of this operation, and makes the store away from the next
    /// call.
    fn befall_after(&self, store: &MemoryStore, operation: Operation, n: usize) {
        store.fail(
            Fault::after(StoreErrorKind::Unavailable)
                .of(operation)
                .nth(n),
        );
        let (outage, calls) = (self.clone(), AtomicUsize::new(0));
        store.set_away(move |called, _| {
            if outage.is_on() {
                return true;
            }
            if called == operation && calls.fetch_add(1, Ordering::SeqCst) + 1 == n {
                outage.begin();
            }
            false
        });
    }
}

type Sender = tokio::sync::watch::Sender<bool>;

fn patient(store: &MemoryStore, patience: &Arc<Patience>) -> Arc<dyn ObjectStore> {
    Arc::new(PatientStore::new(
        Arc::new(store.clone()),
        Arc::clone(patience),
    ))
}

/// The lines of the log.
#[derive(Clone, Default)]
struct Log(SharedBytes);

impl Log {
    /// Logs what this thread does while the guard lives.
    fn begin() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.0.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .with_target(false)
            .without_time()
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// Returns the lines about the outage, and prints them.
    fn read(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.take()).unwrap();
        assert!(
            !text.contains("making the unconfirmed chunks again") || text.contains("memory:"),
            "a chunk was sent again: {text}"
        );
        let about = |line: &&str| line.contains("answer");
        let lines: Vec<String> = text.lines().filter(about).map(str::to_owned).collect();
        lines.iter().for_each(|line| println!("{}", line.trim()));
        lines
    }
}

fn assert_logged_once(log: &Log) {
    let lines = log.read();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines[0].contains("has not answered since 03:1")
            && lines[0].contains("; retrying until 03:4")
            && lines[0].contains("(retry_for = 30m)"),
        "{lines:#?}"
    );
    // By the time of the first line, the pauses of other requests may have moved the clock.
    let is_after = |time: &str| lines[1].contains(&format!("answers again after {time}"));
    assert!(is_after("2m ") || is_after("3m"), "{lines:#?}");
}

async fn back_up_into(world: &World, store: &Arc<dyn ObjectStore>) -> Result<BackupRun, RunError> {
    let env = BackupEnv {
        store: Arc::clone(store),
        ..world.env()
    };
    back_up(&env, &world.selected(), RequestedKind::Full).await
}

#[tokio::test]
async fn upload_waits_out_an_outage_at_each_operation() {
    for (operation, n) in [
        (Operation::List, 1),
        (Operation::Create, 2),
        (Operation::PutPart, 9),
        (Operation::Finish, 2),
        (Operation::PutNew, 1),
        (Operation::PutNew, 5),
        (Operation::Get, 1),
    ] {
        let (log, _guard) = Log::begin();
        let (world, outage) = (World::new(), Outage::lasting(3 * MINUTE));
        let (patience, _sender) = outage.patience(LIMIT);
        outage.befall(&world.store, operation, n);
        let run = back_up_into(&world, &patient(&world.store, &patience)).await;
        committed(run.unwrap_or_else(|error| panic!("{operation:?}: {}", error_chain(&error))));
        assert!(outage.has_been(), "{operation:?}");
        assert_logged_once(&log);
        world.assert_restores().await;
        assert_eq!(world.verify().await.damage, []);
    }
}

#[tokio::test]
async fn outage_longer_than_retry_for_leaves_an_upload_that_resumes_and_is_waited_for_once() {
    let (world, outage) = (World::new(), Outage::lasting(FOR_EVER));
    let second = name("tank/second");
    world.zfs.create(&second, DatasetType::Filesystem);
    world.zfs.write_file(&second, 7, &noise(5, 50_000));
    take_snapshots(
        &world.zfs,
        std::slice::from_ref(&second),
        "zfs-backup_",
        now(),
    )
    .unwrap();
    let (patience, _sender) = outage.patience(LIMIT);
    let store = patient(&world.store, &patience);
    outage.befall(&world.store, Operation::PutPart, 15);
    let begun = outage.clock.now();
    let error = back_up_into(&world, &store).await.unwrap_err();
    let text = error_chain(&error);
    assert!(
        text.contains("no answer since 03:12:45, gave up after 30m (retry_for = 30m)"),
        "{text}"
    );
    assert_eq!(outage.clock.now() - begun, LIMIT);
    assert_eq!(world.manifest_keys(), [""; 0]);

    // The next dataset of the run is tried once.
    let env = BackupEnv {
        store: Arc::clone(&store),
        ..world.env()
    };
    let selected = Selected {
        dataset: world.zfs.dataset(&second).unwrap().unwrap(),
        stored: second.clone(),
    };
    let started = Instant::now();
    let error = back_up(&env, &selected, RequestedKind::Full)
        .await
        .unwrap_err();
    assert!(error_chain(&error).contains("no answer since"), "{error}");
    assert_eq!(
        outage.clock.now() - begun,
        LIMIT,
        "nothing is waited for again"
    );
    assert!(started.elapsed() < Duration::from_secs(1));

    // The next run resumes: the confirmed chunks are not created again.
    world.store.heal();
    let confirmed = world
        .store
        .keys()
        .iter()
        .filter(|key| key.ends_with(".zfs.age"))
        .count();
    assert!(confirmed > 0);
    world.store.clear_events();
    let backup = committed(back_up_into(&world, &store).await.unwrap());
    let created = world
        .store
        .events()
        .iter()
        .filter(|event| event.operation == Operation::Create)
        .count();
    assert_eq!(created + confirmed, backup.chunks);
    world.assert_restores().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_that_is_too_long_the_same_command_resumes_a_restore_and_a_copy() {
    let counted = |store: &MemoryStore, operation| {
        let events = store.events();
        let done = events.iter().filter(|event| event.operation == operation);
        done.count()
    };
    let world = World::new();
    let backup = world.back_up().await;
    let restore = async |outage: &Outage, target: &str| {
        let (patience, _sender) = outage.patience(LIMIT);
        let stores: [Arc<dyn StoreRead>; 1] = [patient(&world.store, &patience)];
        let point = RestorePoint::Newest;
        let set = find_restore_set(&stores, &world.dataset, &world.keys, &point).await?;
        let zfs = Arc::new(world.zfs.clone());
        let (target, options) = (name(target), ReceiveOptions::default());
        let stop = crate::world::never();
        world.store.clear_events();
        restore_to_dataset(&set, &world.keys, zfs, &target, &options, stop).await
    };
    let good = Outage::lasting(Duration::ZERO);
    restore(&good, "tank/whole").await.unwrap();
    let all = counted(&world.store, Operation::Get);
    let outage = Outage::lasting(FOR_EVER);
    let in_the_middle = AtomicUsize::new(0);
    let (away, is_chunk) = (outage.clone(), |key: &str| key.ends_with(".zfs.age"));
    world.store.set_away(move |called, key| {
        if called == Operation::Get && is_chunk(key) {
            let n = in_the_middle.fetch_add(1, Ordering::SeqCst);
            if n == all / 2 {
                away.begin();
            }
        }
        away.is_on()
    });
    let error = restore(&outage, "tank/restored").await.unwrap_err();
    assert!(error_chain(&error).contains("gave up after 30m"), "{error}");
    world.store.heal();
    let resumed = restore(&good, "tank/restored").await.unwrap();
    assert!(resumed.resumed.is_some());
    assert_eq!(
        world.zfs.files(&name("tank/restored")),
        world.zfs.files(&name("tank/whole"))
    );

    let pair = Pair::new(world);
    let outage = Outage::lasting(FOR_EVER);
    let (patience, _sender) = outage.patience(LIMIT);
    outage.befall(&pair.remote, Operation::Create, 3);
    let env = UploadEnv {
        to: patient(&pair.remote, &patience),
        ..pair.env(crate::world::never())
    };
    let report = pair.upload_with(&env, false, &[]).await.unwrap();
    assert_eq!(report.failed.len(), 1);
    pair.remote.heal();
    let copied = pair.remote.keys();
    let copied = copied.iter().filter(|key| key.ends_with(".zfs.age"));
    let copied = copied.count();
    assert!(copied > 0);
    pair.remote.clear_events();
    pair.upload().await;
    pair.assert_copied(&backup.manifest).await;
    let created = counted(&pair.remote, Operation::Create);
    assert_eq!(created + copied, backup.chunks);
}

#[tokio::test]
async fn retry_for_of_zero_waits_for_nothing() {
    let (world, outage) = (World::new(), Outage::lasting(MINUTE));
    let (patience, _sender) = outage.patience(Duration::ZERO);
    outage.befall(&world.store, Operation::List, 1);
    let error = back_up_into(&world, &patient(&world.store, &patience))
        .await
        .unwrap_err();
    assert!(!error_chain(&error).contains("gave up"), "{error}");
    assert!(outage.is_on(), "no time has passed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_during_the_wait_interrupts_an_upload_and_a_restore_at_once() {
    let world = World::new();
    let (sender, stop) = tokio::sync::watch::channel(false);
    let patience = Arc::new(Patience::new(LIMIT, stop.clone()));
    let store = patient(&world.store, &patience);
    let away = Outage::lasting(FOR_EVER);
    away.befall(&world.store, Operation::PutNew, 3);
    let waiting = away.clone();
    let stopper = tokio::spawn(async move {
        while !waiting.is_on() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        sender.send_replace(true);
        (sender, Instant::now())
    });
    let env = BackupEnv {
        store,
        ..world.env_with(Arc::new(world.zfs.clone()), stop)
    };
    let error = back_up(&env, &world.selected(), RequestedKind::Full)
        .await
        .unwrap_err();
    assert!(matches!(error, RunError::Interrupted), "{error:?}");
    let (_sender, stopped) = stopper.await.unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn restore_waits_out_an_outage_in_the_middle_of_a_chunk() {
    let (log, _guard) = Log::begin();
    let world = World::new();
    world.back_up().await;
    let reads = |store: &MemoryStore| {
        let events = store.events();
        events
            .iter()
            .filter(|event| event.operation == Operation::Get)
            .count()
    };
    world.store.clear_events();
    world.assert_restores().await;
    let all = reads(&world.store);
    for n in [1, all / 2, all] {
        let outage = Outage::lasting(3 * MINUTE);
        let (patience, _sender) = outage.patience(LIMIT);
        outage.befall(&world.store, Operation::Get, n);
        let stores: [Arc<dyn StoreRead>; 1] = [patient(&world.store, &patience)];
        let set = find_restore_set(&stores, &world.dataset, &world.keys, &RestorePoint::Newest)
            .await
            .unwrap();
        let output = SharedBytes::default();
        restore_to_writer(&set.backups[0], &world.keys, Box::new(output.clone()))
            .await
            .unwrap();
        assert!(output.take() == world.stream(), "other bytes came back");
        assert!(outage.has_been(), "read {n} of {all}");
        assert_logged_once(&log);
    }
}

#[tokio::test]
async fn verify_waits_out_an_outage() {
    let world = World::new();
    world.back_up().await;
    for (operation, n) in [
        (Operation::List, 1),
        (Operation::Get, 2),
        (Operation::Head, 3),
    ] {
        let outage = Outage::lasting(3 * MINUTE);
        let (patience, _sender) = outage.patience(LIMIT);
        outage.befall(&world.store, operation, n);
        let store = patient(&world.store, &patience);
        let report = verify_dataset(&*store, &world.dataset, &world.keys.trusted)
            .await
            .unwrap();
        assert_eq!(
            (report.backups, report.damage),
            (1, vec![]),
            "{operation:?}"
        );
        assert!(outage.has_been(), "{operation:?}");
        world.store.heal();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_waits_out_an_outage() {
    for (operation, n) in [(Operation::Create, 2), (Operation::PutNew, 4)] {
        let world = World::new();
        let manifest = world.back_up().await.manifest;
        let pair = Pair::new(world);
        let outage = Outage::lasting(3 * MINUTE);
        let (patience, _sender) = outage.patience(LIMIT);
        outage.befall(&pair.remote, operation, n);
        let env = UploadEnv {
            pool: CopyPool::default(),
            to: patient(&pair.remote, &patience),
            ..pair.env(crate::world::never())
        };
        let report = pair.upload_with(&env, false, &[]).await.unwrap();
        assert_eq!(report.failed.len(), 0, "{operation:?}");
        assert!(outage.has_been(), "{operation:?}");
        pair.assert_copied(&manifest).await;
    }
}

#[tokio::test]
async fn prune_waits_out_an_outage_and_deletes_the_same() {
    for (operation, n) in [
        (Operation::List, 1),
        (Operation::PutNew, 1),
        (Operation::Delete, 7),
    ] {
        let (yard, old, new) = two_chains().await;
        let outage = Outage::lasting(3 * MINUTE);
        let (patience, _sender) = outage.patience(LIMIT);
        outage.befall(&yard.store, operation, n);
        let env = yard.env(0, patient(&yard.store, &patience), crate::world::never());
        let outcome = prune_dataset(&env, &yard.task(&last_chains(1), SecondaryStore::Nothing))
            .await
            .unwrap();
        assert_eq!(outcome.deleted.len(), old.len(), "{operation:?}");
        assert!(outage.has_been(), "{operation:?}");
        assert_eq!(yard.ids(), new.iter().cloned().collect());
        yard.assert_restores(new).await;
    }
}

#[tokio::test]
async fn lost_reply_of_any_put_at_the_start_of_an_outage_is_not_taken_for_another_writer() {
    let counted = World::new();
    counted.back_up().await;
    let puts = counted
        .store
        .events()
        .iter()
        .filter(|event| event.operation == Operation::PutNew)
        .count();
    assert!(puts >= 8, "{puts}");
    for n in 1..=puts {
        let (world, outage) = (World::new(), Outage::lasting(3 * MINUTE));
        let (patience, _sender) = outage.patience(LIMIT);
        outage.befall_after(&world.store, Operation::PutNew, n);
        let run = back_up_into(&world, &patient(&world.store, &patience)).await;
        committed(run.unwrap_or_else(|error| panic!("put {n}: {}", error_chain(&error))));
        assert!(outage.has_been(), "put {n}");
        let report = world.verify().await;
        assert_eq!((report.damage, report.extra), (vec![], vec![]), "put {n}");
    }
}

const BUCKET: &str = "outages";
/// The smallest part of S3.
const S3_PART_BYTES: usize = 5 << 20;

/// A world whose backup has chunks of several parts.
fn large_world() -> World {
    let mut world = World::new();
    world.settings.split_bytes = 11 << 20;
    world
        .zfs
        .write_file(&world.dataset, 30, &noise(3, 24 << 20));
    world.snapshot();
    world
}

async fn put_keyring(world: &World, store: &dyn ObjectStore) {
    let keyring = world.writer.keyring.as_ref().unwrap().bytes.clone();
    let key = ObjectKey::listed(&main_keyring_key(&world.writer)).unwrap();
    store.put_new(&key, keyring).await.unwrap();
}

async fn assert_verifies_and_restores(world: &World, store: &Arc<dyn ObjectStore>) {
    let report = verify_dataset(&**store, &world.dataset, &world.keys.trusted)
        .await
        .unwrap();
    assert_eq!((report.damage, report.extra), (vec![], vec![]));
    let stores: [Arc<dyn StoreRead>; 1] = [store.clone()];
    let set = find_restore_set(&stores, &world.dataset, &world.keys, &RestorePoint::Newest)
        .await
        .unwrap();
    let output = SharedBytes::default();
    restore_to_writer(&set.backups[0], &world.keys, Box::new(output.clone()))
        .await
        .unwrap();
    assert!(output.take() == world.stream(), "other bytes came back");
}

/// Makes a rule for an outage that begins with the first request for which `matches` holds; that
/// request is treated as `first`.
fn away_from(outage: &Outage, first: Action, matches: fn(&str) -> bool) -> Box<Rule> {
    let (outage, has_begun) = (outage.clone(), AtomicBool::new(false));
    Box::new(move |head| {
        if matches(head) && !has_begun.swap(true, Ordering::SeqCst) {
            outage.begin();
            return first.clone();
        }
        match outage.is_on() {
            true => Action::Silence(Duration::ZERO),
            false => Action::Pass,
        }
    })
}

type Case = (&'static str, Action, fn(&str) -> bool);

#[tokio::test]
async fn s3_upload_waits_out_three_minutes_at_the_level_of_a_request() {
    let weed = Weed::start(BUCKET).await;
    let world = large_world();
    let cases: [Case; 5] = [
        ("part", Action::Silence(Duration::ZERO), |head| {
            head.contains("partnumber=2")
        }),
        ("begin", Action::Silence(Duration::ZERO), |head| {
            head.contains("?uploads")
        }),
        ("lost-finish", Action::LoseReply, |head| {
            head.starts_with("post") && head.contains("uploadid=")
        }),
        ("lost-put", Action::LoseReply, |head| {
            head.starts_with("put") && head.contains("private.age")
        }),
        ("listing", Action::Refuse(503, "SlowDown"), |head| {
            head.contains("list-type=2")
        }),
    ];
    for (case, first, matches) in cases {
        let (log, _guard) = Log::begin();
        let outage = Outage::lasting(3 * MINUTE);
        let (patience, _sender) = outage.patience(LIMIT);
        let proxy = Proxy::start(&weed.endpoint(), away_from(&outage, first, matches));
        let settings = S3Settings {
            prefix: case.to_owned(),
            part_bytes: S3_PART_BYTES,
            endpoint: Some(proxy.endpoint()),
            pause_first: Duration::from_millis(1),
            patience: Arc::clone(&patience),
            ..weed.settings(BUCKET)
        };
        let store = Arc::new(S3Store::connect(settings).await.unwrap());
        let store: Arc<dyn ObjectStore> = Arc::new(PatientStore::new(store, patience));
        put_keyring(&world, &*store).await;
        let run = back_up_into(&world, &store).await;
        committed(run.unwrap_or_else(|error| panic!("{case}: {}", error_chain(&error))));
        assert!(outage.has_been(), "{case}");
        assert_logged_once(&log);
        assert_verifies_and_restores(&world, &store).await;
        assert_eq!(store.unfinished("").await.unwrap(), [], "{case}");
    }
}

#[tokio::test]
async fn b2_upload_waits_out_three_minutes_and_settles_lost_replies() {
    let is_upload: fn(&str) -> bool = |head| head.contains("x-bz-file-name");
    let cases: [(Case, usize); 5] = [
        (
            ("finish", Action::LoseReply, |head| {
                head.contains("b2_finish_large_file")
            }),
            16 * 1024,
        ),
        (
            ("part", Action::LoseReply, |head| {
                head.contains("x-bz-part-number")
            }),
            16 * 1024,
        ),
        (
            ("begin", Action::LoseReply, |head| {
                head.contains("b2_start_large_file")
            }),
            16 * 1024,
        ),
        (("put", Action::LoseReply, is_upload), 128 * 1024),
        (
            ("authorize", Action::Silence(Duration::ZERO), |head| {
                head.contains("b2_authorize_account")
            }),
            128 * 1024,
        ),
    ];
    for ((case, first, matches), part_bytes) in cases {
        let (log, _guard) = Log::begin();
        let outage = Outage::lasting(3 * MINUTE);
        let (patience, _sender) = outage.patience(LIMIT);
        let sim = B2Sim::start_with(SimOptions {
            part_bytes_min: part_bytes,
            ..SimOptions::default()
        });
        let proxy = Proxy::start(&sim.endpoint(), away_from(&outage, first, matches));
        sim.is_reached_at(&proxy.endpoint());
        let settings = B2Settings {
            endpoint: Some(proxy.endpoint()),
            pause_first: Duration::from_millis(1),
            patience: Arc::clone(&patience),
            ..sim.settings()
        };
        let store = Arc::new(B2Store::new(settings).unwrap());
        let store: Arc<dyn ObjectStore> = Arc::new(PatientStore::new(store, patience));
        let world = World::new();
        put_keyring(&world, &*store).await;
        let run = back_up_into(&world, &store).await;
        committed(run.unwrap_or_else(|error| panic!("{case}: {}", error_chain(&error))));
        assert!(outage.has_been(), "{case}");
        assert_logged_once(&log);
        assert_verifies_and_restores(&world, &store).await;
        for (key, action, _) in sim.versions() {
            assert_eq!(action, "upload", "{case}: {key}");
        }
    }
}
