//! Copying when calls fail, when it is interrupted and run again, and when the directory's copy is
//! damaged: a whole backup in the remote or none, and nothing sent twice.

use crate::failures::for_all;
use crate::upload::{Pair, REMOTE_PART_BYTES, reasons};
use crate::world::{World, key_of, memory_store, never};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;
use zfs_backup::manifest::Manifest;
use zfs_backup::run::copy::UploadEnv;
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::state::StateError;
use zfs_backup::state::dataset_lock::lock_dataset;
use zfs_backup::store::memory::{Fault, MemoryStore, Operation, Outcome};
use zfs_backup::store::{
    DirSettings, DirStore, Evidence, EvidenceTier, ObjectKey, ObjectStore, StoreErrorKind,
    StoreInfo, StoreRead, StoreTraits,
};

/// A whole backup to copy, made once.
struct Original {
    world: World,
    manifest: Manifest,
}

impl Original {
    async fn new() -> Self {
        let world = World::new();
        let manifest = world.back_up().await.manifest;
        Self { world, manifest }
    }

    /// A host of its own with the same directory.
    fn pair(&self) -> Pair {
        let world = World::with_keys(self.world.keys.clone(), self.world.writer.clone());
        for key in self.world.store.keys() {
            world
                .store
                .plant(&key, self.world.store.object(&key).unwrap());
        }
        Pair::new(world)
    }
}

/// How often each chunk was completed in the remote.
fn completions(store: &MemoryStore) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let done = store.events().into_iter().filter(|event| {
        event.operation == Operation::Finish
            && matches!(event.outcome, Outcome::Done | Outcome::ReplyLost(_))
    });
    done.for_each(|event| *counts.entry(event.key).or_default() += 1);
    counts
}

async fn assert_whole_or_none(pair: &Pair, manifest: &Manifest) {
    pair.remote.heal();
    pair.world.store.heal();
    let first = pair.manifests_in_remote();
    if first == 0 {
        pair.upload().await;
    }
    pair.assert_copied(manifest).await;
    assert!(
        completions(&pair.remote).values().all(|count| *count == 1),
        "{:?}",
        completions(&pair.remote)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_failed_call_of_either_store_leaves_a_complete_copy_or_none() {
    let original = Original::new().await;
    let clean = original.pair();
    clean.upload().await;
    let (of_remote, of_directory) = (
        clean.remote.events().len(),
        clean.world.store.events().len(),
    );
    assert!(
        of_remote > 30 && of_directory > 20,
        "{of_remote} {of_directory}"
    );
    let kinds = [
        StoreErrorKind::Unavailable,
        StoreErrorKind::Denied,
        StoreErrorKind::NotFound,
        StoreErrorKind::Full,
    ];
    let faults =
        |n: usize| kinds.map(|kind| [Fault::before(kind).nth(n), Fault::after(kind).nth(n)]);
    let remote = (1..=of_remote)
        .flat_map(faults)
        .flatten()
        .map(|fault| (true, fault));
    let directory = (1..=of_directory)
        .flat_map(faults)
        .flatten()
        .map(|fault| (false, fault));
    for_all(remote.chain(directory).collect(), |(in_remote, fault)| {
        let (pair, manifest) = (original.pair(), original.manifest.clone());
        async move {
            let store = if in_remote {
                &pair.remote
            } else {
                &pair.world.store
            };
            store.fail(fault);
            let texts = match pair.try_upload().await {
                Ok(report) => reasons(&report),
                Err(error) => vec![error_chain(&error)],
            };
            let names =
                |text: &String| text.contains("tank/a b") || text.contains("@zfs-backup/keys/");
            assert!(texts.iter().all(names), "names nothing: {texts:?}");
            assert!(!texts.is_empty() || pair.manifests_in_remote() == 1);
            assert_whole_or_none(&pair, &manifest).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_copy_resumes_without_sending_chunks_again() {
    let original = Original::new().await;
    let chunks = original.world.chunks(&original.manifest).await.len();
    for after in 1..=chunks {
        let pair = original.pair();
        let (asker, stop) = tokio::sync::watch::channel(false);
        let mut env = pair.env(stop);
        let (asker, told) = (Arc::new(asker), Arc::new(AtomicUsize::new(0)));
        env.progress = Arc::new(move |_| {
            let (asker, told) = (Arc::clone(&asker), Arc::clone(&told));
            Arc::new(move |_| {
                if told.fetch_add(1, Ordering::Relaxed) + 1 == after {
                    asker.send_replace(true);
                }
            })
        });
        let report = pair.upload_with(&env, false, &[]).await.unwrap();
        assert!(
            matches!(report.failed[..], [(_, RunError::Interrupted)]),
            "{:?}",
            reasons(&report)
        );
        assert_eq!(pair.manifests_in_remote(), 0);
        assert_eq!(pair.remote.unfinished("").await.unwrap(), []);
        let report = pair.upload().await;
        let copied = &report.copied[0];
        assert!(
            copied.sent_bytes < copied.stored_bytes && copied.by_size_only == 0,
            "{copied:?}"
        );
        pair.assert_copied(&original.manifest).await;
        assert!(completions(&pair.remote).values().all(|count| *count == 1));
    }
}

/// Kills the run when the key is put, in the remote that is given.
async fn die_at(pair: &Pair, key: &str, fault: fn(StoreErrorKind) -> Fault) {
    pair.remote.fail(
        fault(StoreErrorKind::Denied)
            .of(Operation::PutNew)
            .on(key)
            .forever(),
    );
    let report = pair.try_upload().await.unwrap();
    assert_eq!(report.failed.len(), 1);
    pair.remote.heal();
    assert_eq!(pair.manifests_in_remote(), 0);
}

fn later(env: UploadEnv) -> UploadEnv {
    UploadEnv {
        now: || "2026-01-03T00:00:00Z".parse::<Timestamp>().unwrap(),
        ..env
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_killed_in_its_commit_is_completed_with_the_same_receipt() {
    let original = Original::new().await;
    let receipt_key = key_of(&original.manifest, "receipt.json");
    for key in [
        "receipt.json.minisig",
        "receipt.json",
        "manifest.json.minisig",
        "manifest.json",
    ] {
        for fault in [Fault::before, Fault::after] {
            // A reply that is lost for the manifest is found by reading it back; the last put of a
            // run is no death.
            let pair = original.pair();
            if key == "manifest.json"
                && std::ptr::fn_addr_eq(fault as fn(_) -> _, Fault::after as fn(_) -> _)
            {
                continue;
            }
            die_at(&pair, &format!("/{key}"), fault).await;
            let before = pair.remote.object(&receipt_key);
            let report = pair
                .upload_with(&later(pair.env(never())), false, &[])
                .await
                .unwrap();
            assert!(report.failed.is_empty(), "{key}: {:?}", reasons(&report));
            assert_eq!(report.copied[0].sent_bytes, 0, "{key}");
            pair.assert_copied(&original.manifest).await;
            assert!(
                before.is_none() || before == pair.remote.object(&receipt_key),
                "{key}: another receipt"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_folder_loses_no_copy() {
    let original = Original::new().await;
    // The receipt is whole in the remote: it is taken from there.
    let mut pair = original.pair();
    die_at(&pair, "/manifest.json.minisig", Fault::before).await;
    pair.state = TempDir::new().unwrap();
    let report = pair
        .upload_with(&later(pair.env(never())), false, &[])
        .await
        .unwrap();
    assert!(report.failed.is_empty(), "{:?}", reasons(&report));
    pair.assert_copied(&original.manifest).await;
    // Only the signature of a receipt that nobody has any more: it cannot be replaced, and a person
    // is told.
    let mut pair = original.pair();
    die_at(&pair, "/receipt.json", Fault::before).await;
    pair.remote.plant(
        &key_of(&original.manifest, "receipt.json.minisig"),
        &b"of a receipt that is gone"[..],
    );
    pair.state = TempDir::new().unwrap();
    let report = pair
        .upload_with(&later(pair.env(never())), false, &[])
        .await
        .unwrap();
    let error = &report.failed[0].1;
    assert!(
        error
            .hint()
            .unwrap()
            .contains(&format!("forget {}", original.manifest.id)),
        "{error}"
    );
    assert_eq!(pair.manifests_in_remote(), 0);
}

#[derive(Debug, Clone, Copy)]
enum Harm {
    Lost,
    Cut,
    Flipped,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_directory_is_named_and_nothing_is_committed() {
    let original = Original::new().await;
    let chunk = original.world.chunks(&original.manifest).await[2]
        .name
        .clone();
    let objects = [
        "started.json",
        "started.json.minisig",
        "keyring.age",
        &chunk,
        "chunks-0000.json",
        "private.age",
        "RESTORE.txt",
        "RESTORE.txt.minisig",
        "manifest.json.minisig",
    ];
    for object in objects {
        for harm in [Harm::Lost, Harm::Cut, Harm::Flipped] {
            let pair = original.pair();
            let key = key_of(&original.manifest, object);
            let bytes = pair.world.store.object(&key).unwrap().len();
            assert!(match harm {
                Harm::Lost => pair.world.store.lose(&key),
                Harm::Cut => pair.world.store.cut(&key, bytes / 2),
                Harm::Flipped => pair.world.store.flip(&key, bytes / 2),
            });
            let report = pair.try_upload().await.unwrap();
            assert_eq!(report.failed.len(), 1, "{object} {harm:?}");
            let error = &report.failed[0].1;
            let text = error_chain(error);
            assert!(error.is_damage(), "{object} {harm:?}: {text}");
            assert!(
                text.contains(key.trim_end_matches(".minisig")),
                "{object} {harm:?}: {text}"
            );
            assert_eq!(pair.manifests_in_remote(), 0, "{object} {harm:?}");
            assert_eq!(
                pair.remote.unfinished("").await.unwrap(),
                [],
                "{object} {harm:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_receipt_of_the_directory_harms_no_copy() {
    let original = Original::new().await;
    let pair = original.pair();
    let key = key_of(&original.manifest, "receipt.json");
    assert!(pair.world.store.flip(&key, 50));
    pair.upload().await;
    pair.assert_copied(&original.manifest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_pruned_from_the_directory_during_the_copy_is_not_damage() {
    let original = Original::new().await;
    let pair = original.pair();
    let (store, prefix) = (pair.world.store.clone(), key_of(&original.manifest, ""));
    let mut env = pair.env(never());
    env.progress = Arc::new(move |_| {
        let (store, prefix) = (store.clone(), prefix.clone());
        Arc::new(move |_| {
            for key in store.keys().iter().filter(|key| key.starts_with(&prefix)) {
                store.lose(key);
            }
        })
    });
    let report = pair.upload_with(&env, false, &[]).await.unwrap();
    let error = &report.failed[0].1;
    assert!(
        !error.is_damage() && error.to_string().contains("deleted from"),
        "{}",
        error_chain(error)
    );
    assert_eq!(pair.manifests_in_remote(), 0);
}

/// A pair whose copy died after its chunks, and the key of one of them in the remote.
async fn half_copied(original: &Original, tier: EvidenceTier) -> (Pair, String) {
    let mut pair = original.pair();
    let traits = StoreTraits {
        part_bytes: REMOTE_PART_BYTES,
        concurrency: 2,
        conditional_put: true,
        holds_parts: false,
    };
    pair.remote = MemoryStore::with_tier(traits, tier);
    die_at(&pair, "/RESTORE.txt", Fault::before).await;
    let chunk = pair.world.chunks(&original.manifest).await[1].name.clone();
    (pair, key_of(&original.manifest, &chunk))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn already_stored_chunks_are_compared_with_the_store_evidence() {
    let original = Original::new().await;
    // Another checksum, another size.
    for (bytes, checksum) in [(None, "AAAAAAAAAAA="), (Some(5), "")] {
        let (pair, key) = half_copied(&original, EvidenceTier::Crc64nvmeFull).await;
        let real = pair
            .remote
            .head(&ObjectKey::listed(&key).unwrap())
            .await
            .unwrap()
            .unwrap();
        let bytes = bytes.unwrap_or(real.bytes);
        pair.remote.lie(
            &key,
            Some(Evidence {
                bytes,
                checksum: Some(checksum.to_owned()),
                ..real
            }),
        );
        let report = pair.try_upload().await.unwrap();
        let error = &report.failed[0].1;
        assert!(
            error.is_damage() && error_chain(error).contains(&key),
            "{}",
            error_chain(error)
        );
        assert_eq!(pair.manifests_in_remote(), 0);
    }
    // A store that says nothing of the content: the size has to do, and that is said.
    let (pair, _) = half_copied(&original, EvidenceTier::IdPin).await;
    let report = pair.upload().await;
    assert_eq!(
        (report.copied[0].sent_bytes, report.copied[0].by_size_only),
        (0, report.copied[0].chunks)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_as_remote_is_read_back() {
    let original = Original::new().await;
    let folder = TempDir::new().unwrap();
    let settings = DirSettings {
        root: folder.path().to_owned(),
        part_bytes: REMOTE_PART_BYTES,
    };
    let remote: Arc<dyn ObjectStore> = Arc::new(DirStore::open(&settings).unwrap());
    let mut pair = original.pair();
    pair.remote = memory_store(REMOTE_PART_BYTES);
    let env = |stop| UploadEnv {
        to: Arc::clone(&remote),
        ..pair.env(stop)
    };
    let (asker, stop) = tokio::sync::watch::channel(false);
    let mut interrupted = env(stop);
    let asker = Arc::new(asker);
    interrupted.progress = Arc::new(move |_| {
        let asker = Arc::clone(&asker);
        Arc::new(move |_| {
            asker.send_replace(true);
        })
    });
    assert_eq!(
        pair.upload_with(&interrupted, false, &[])
            .await
            .unwrap()
            .failed
            .len(),
        1
    );
    let chunk = pair.world.chunks(&original.manifest).await[0].name.clone();
    let file = folder.path().join(key_of(&original.manifest, &chunk));
    let whole = std::fs::read(&file).unwrap();
    let mut rotten = whole.clone();
    rotten[100] ^= 1;
    std::fs::write(&file, rotten).unwrap();
    let report = pair.upload_with(&env(never()), false, &[]).await.unwrap();
    assert!(report.failed[0].1.is_damage() && error_chain(&report.failed[0].1).contains(&chunk));
    std::fs::write(&file, whole).unwrap();
    let report = pair.upload_with(&env(never()), false, &[]).await.unwrap();
    assert!(report.failed.is_empty(), "{:?}", reasons(&report));
    assert!(
        report.copied[0].sent_bytes < report.copied[0].stored_bytes
            && report.copied[0].by_size_only == 0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_makes_no_store_call_while_another_run_holds_the_lock() {
    let original = Original::new().await;
    let pair = original.pair();
    let held = lock_dataset(pair.state.path(), &pair.remote.known(), &pair.world.dataset).unwrap();
    let refused = pair.try_upload().await;
    assert!(
        matches!(&refused, Err(RunError::State(StateError::Locked { subject, .. })) if subject.contains("tank/a b")),
        "{refused:?}"
    );
    assert_eq!(pair.remote.events().len(), 0);
    drop(held);
    pair.upload().await;
}
