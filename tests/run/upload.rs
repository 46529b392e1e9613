//! Copying from the intermediate directory to the remote: the same bytes, what is left out and why,
//! parents and twins.

use crate::chain::{plant, plant_prune_record, plant_twin};
use crate::world::{World, key_of, memory_store, never, now, quick_keys};
use std::collections::BTreeSet;
use std::sync::Arc;
use tempfile::TempDir;
use zfs_backup::catalog::read_catalog;
use zfs_backup::catalog::usable::UsableCatalog;
use zfs_backup::manifest::{Manifest, Receipt, parse_strict};
use zfs_backup::model::BackupId;
use zfs_backup::plan::BackupFacts;
use zfs_backup::plan::copy::LeftReason;
use zfs_backup::plan::restore::plan_restore;
use zfs_backup::run::copy::{
    CopyPool, UploadEnv, UploadReport, UploadRules, plan_upload, upload_dataset,
};
use zfs_backup::run::transfer::Stop;
use zfs_backup::run::verify::verify_dataset;
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::store::memory::{MemoryStore, Operation, Outcome};

pub(crate) const REMOTE_PART_BYTES: usize = 24 * 1024;

/// A host with an intermediate directory (the world's store) and a remote.
pub(crate) struct Pair {
    pub(crate) world: World,
    pub(crate) remote: MemoryStore,
    pub(crate) state: TempDir,
}

impl Pair {
    pub(crate) fn new(world: World) -> Self {
        Self {
            world,
            remote: memory_store(REMOTE_PART_BYTES),
            state: TempDir::new().unwrap(),
        }
    }

    pub(crate) fn env(&self, stop: Stop) -> UploadEnv {
        UploadEnv {
            pool: CopyPool::default(),
            from: Arc::new(self.world.store.clone()),
            to: Arc::new(self.remote.clone()),
            keys: self.world.writer.clone(),
            state_dir: self.state.path().to_owned(),
            now,
            progress: Arc::new(|_| Arc::new(|_| {})),
            stop,
        }
    }

    pub(crate) async fn try_upload(&self) -> Result<UploadReport, RunError> {
        self.upload_with(&self.env(never()), false, &[]).await
    }

    pub(crate) async fn upload_with(
        &self,
        env: &UploadEnv,
        all: bool,
        doomed: &[&BackupId],
    ) -> Result<UploadReport, RunError> {
        let doomed: BTreeSet<BackupId> = doomed.iter().map(|id| (*id).clone()).collect();
        let would_be_pruned = move |_: &[BackupFacts], _: &[BackupFacts]| doomed.clone();
        let rules = UploadRules {
            all,
            would_be_pruned: &would_be_pruned,
        };
        upload_dataset(env, &self.world.dataset, &rules).await
    }

    /// Everything must work.
    pub(crate) async fn upload(&self) -> UploadReport {
        let report = self.try_upload().await.unwrap();
        assert!(report.failed.is_empty(), "{:?}", reasons(&report));
        report
    }

    pub(crate) fn manifests_in_remote(&self) -> usize {
        self.remote
            .keys()
            .iter()
            .filter(|key| key.ends_with("/manifest.json"))
            .count()
    }

    /// That the remote has the backup, the very bytes, and that it verifies there.
    pub(crate) async fn assert_copied(&self, manifest: &Manifest) {
        let prefix = key_of(manifest, "");
        let mut copied = self.remote.keys();
        copied.retain(|key| key.starts_with(&prefix));
        let mut there = self.world.store.keys();
        there.retain(|key| key.starts_with(&prefix));
        assert_eq!(copied, there);
        for key in copied.iter().filter(|key| !key.contains("receipt.json")) {
            assert!(
                self.remote.object(key) == self.world.store.object(key),
                "{key} has other bytes"
            );
        }
        let report = verify_dataset(&self.remote, &self.world.dataset, &self.world.keys.trusted)
            .await
            .unwrap();
        assert_eq!((report.damage, report.extra), (vec![], vec![]));
    }
}

pub(crate) fn reasons(report: &UploadReport) -> Vec<String> {
    report
        .failed
        .iter()
        .map(|(id, error)| format!("{id}: {}", error_chain(error)))
        .collect()
}

fn copied(report: &UploadReport) -> Vec<&BackupId> {
    report.copied.iter().map(|copied| &copied.id).collect()
}

async fn world_with_backup() -> (World, Manifest) {
    let world = World::new();
    let manifest = world.back_up().await.manifest;
    (world, manifest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_copied_with_the_same_bytes_and_a_receipt_of_the_new_store() {
    let (world, manifest) = world_with_backup().await;
    let pair = Pair::new(world);
    let report = pair.upload().await;
    assert_eq!(copied(&report), [&manifest.id]);
    let whole = &report.copied[0];
    assert!(
        whole.sent_bytes == whole.stored_bytes && whole.stored_bytes > 0 && whole.chunks >= 4,
        "{whole:?}"
    );
    pair.assert_copied(&manifest).await;
    let receipt = |store: &MemoryStore| -> Receipt {
        parse_strict(&store.object(&key_of(&manifest, "receipt.json")).unwrap()).unwrap()
    };
    let (old, new) = (receipt(&pair.world.store), receipt(&pair.remote));
    let names = |receipt: &Receipt| {
        receipt
            .objects
            .iter()
            .map(|entry| entry.name.clone())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&old), names(&new));
    let part_bytes = |receipt: &Receipt| {
        receipt
            .objects
            .iter()
            .filter_map(|entry| entry.evidence.part_bytes)
            .max()
    };
    assert_eq!(
        part_bytes(&new),
        Some(REMOTE_PART_BYTES as u64),
        "the evidence is not that of the new store"
    );
    assert_ne!(part_bytes(&old), part_bytes(&new));

    // It restores from there, and a second run has nothing to do.
    let mut there = World::with_keys(pair.world.keys.clone(), pair.world.writer.clone());
    (there.store, there.zfs) = (pair.remote.clone(), pair.world.zfs.clone());
    there.assert_restores().await;
    pair.remote.clear_events();
    let again = pair.upload().await;
    assert_eq!(
        (copied(&again).len(), &again.left[..]),
        (0, &[(manifest.id.clone(), LeftReason::Committed)][..])
    );
    assert!(
        !pair
            .remote
            .events()
            .iter()
            .any(|event| crate::world::is_put(event.operation))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_writes_its_objects_in_commit_order() {
    let (world, manifest) = world_with_backup().await;
    let pair = Pair::new(world);
    pair.upload().await;
    let prefix = key_of(&manifest, "");
    let finished = |operation| matches!(operation, Operation::PutNew | Operation::Finish);
    let done = pair
        .remote
        .events()
        .into_iter()
        .filter(|event| finished(event.operation) && event.outcome == Outcome::Done);
    let order: Vec<String> = done.map(|event| event.key.replace(&prefix, "")).collect();
    let at = |name: &str| {
        order
            .iter()
            .position(|key| key == name)
            .unwrap_or_else(|| panic!("no {name} in {order:?}"))
    };
    let names = [
        "started.json.minisig",
        "started.json",
        "keyring.age",
        "RESTORE.txt.minisig",
        "RESTORE.txt",
        "private.age",
        "chunks-0000.json",
        "receipt.json.minisig",
        "receipt.json",
        "manifest.json.minisig",
        "manifest.json",
    ];
    assert!(
        names.windows(2).all(|pair| at(pair[0]) < at(pair[1])),
        "{order:?}"
    );
    assert_eq!(order.last().map(String::as_str), Some("manifest.json"));
    let keyring = order
        .iter()
        .position(|key| key.starts_with("@zfs-backup/keys/"))
        .unwrap();
    let chunks: Vec<usize> = (0..order.len())
        .filter(|index| order[*index].ends_with(".zfs.age"))
        .collect();
    assert!(chunks.iter().all(|chunk| *chunk > keyring
        && *chunk > at("started.json")
        && *chunk < at("RESTORE.txt")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_are_copied_parents_first_and_receipts_list_live_backups() {
    let (world, full) = world_with_backup().await;
    let first = plant(&world, &full, 1, Some(&full));
    let second = plant(&world, &full, 2, Some(&first));
    let pair = Pair::new(world);
    let report = pair.upload().await;
    assert_eq!(copied(&report), [&full.id, &first.id, &second.id]);
    for manifest in [&full, &first, &second] {
        pair.assert_copied(manifest).await;
    }
    let receipt = pair
        .remote
        .object(&key_of(&second, "receipt.json"))
        .unwrap();
    let receipt: Receipt = parse_strict(&receipt).unwrap();
    let live: Vec<&BackupId> = receipt.live.iter().map(|entry| &entry.id).collect();
    assert_eq!(live, [&full.id, &first.id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copy_reports_a_parent_missing_in_both_stores_and_copies_the_others() {
    let (world, full) = world_with_backup().await;
    let lost = plant(&world, &full, 1, None);
    let child = plant(&world, &full, 2, Some(&lost));
    let grandchild = plant(&world, &full, 3, Some(&child));
    for key in world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&key_of(&lost, "")))
    {
        world.store.lose(key);
    }
    let pair = Pair::new(world);
    let report = pair.try_upload().await.unwrap();
    assert_eq!(copied(&report), [&full.id]);
    let failed: Vec<&BackupId> = report.failed.iter().map(|(id, _)| id).collect();
    assert_eq!(failed, [&child.id, &grandchild.id]);
    assert!(
        report.failed[0].1.to_string().contains(lost.id.as_str()),
        "{}",
        report.failed[0].1
    );
    assert!(
        report.failed[1].1.to_string().contains(child.id.as_str()),
        "{}",
        report.failed[1].1
    );
    pair.assert_copied(&full).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_backup_fails_only_its_own_copy_and_its_descendants() {
    let (world, full) = world_with_backup().await;
    let other = plant(&world, &full, 1, None);
    let child = plant(&world, &full, 2, Some(&other));
    let key = key_of(&other, "private.age");
    assert!(world.store.flip(&key, 9));
    let pair = Pair::new(world);
    let report = pair.try_upload().await.unwrap();
    assert_eq!(copied(&report), [&full.id]);
    let failed: Vec<&BackupId> = report.failed.iter().map(|(id, _)| id).collect();
    assert_eq!(failed, [&other.id, &child.id]);
    assert!(report.failed[0].1.is_damage() && report.failed[0].1.to_string().contains(&key));
    assert_eq!(pair.manifests_in_remote(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pruned_backups_are_copied_only_with_all() {
    let (world, full) = world_with_backup().await;
    let (pruned, doomed) = (plant(&world, &full, 1, None), plant(&world, &full, 2, None));
    let pair = Pair::new(world);
    pair.remote.set_clock(Some(crate::world::now()));
    plant_prune_record(&pair.world, &pair.remote, &[&pruned.id]);
    let report = pair
        .upload_with(&pair.env(never()), false, &[&doomed.id])
        .await
        .unwrap();
    assert_eq!(copied(&report), [&full.id]);
    assert_eq!(
        report.left,
        [
            (pruned.id.clone(), LeftReason::Pruned),
            (doomed.id.clone(), LeftReason::WouldBePruned)
        ]
    );
    // The record is of another host, whose prune may run for two days.
    let later = crate::builder::later(crate::world::now(), crate::builder::hours(49));
    pair.remote.set_clock(Some(later));
    let report = pair
        .upload_with(&pair.env(never()), true, &[&doomed.id])
        .await
        .unwrap();
    assert_eq!(
        copied(&report),
        [&pruned.id, &doomed.id],
        "{:?}",
        reasons(&report)
    );
    assert_eq!(pair.manifests_in_remote(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twin_in_the_remote_is_the_base_of_copied_children() {
    let (world, full) = world_with_backup().await;
    let twin = plant_twin(&world, &full, 0x77);
    let child = plant(&world, &full, 1, Some(&full));
    let pair = Pair::new(world);
    // The twin is what was streamed to the remote; the directory has the full and its child.
    for key in pair
        .world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&key_of(&twin, "")))
    {
        pair.remote
            .plant(key, pair.world.store.object(key).unwrap());
        pair.world.store.lose(key);
    }
    let report = pair.upload().await;
    assert_eq!(copied(&report), [&child.id]);
    assert_eq!(
        report.left,
        [(
            full.id.clone(),
            LeftReason::Twin {
                of: twin.id.clone()
            }
        )]
    );
    let catalog = read_catalog(&pair.remote, &pair.world.dataset, &pair.world.keys.trusted)
        .await
        .unwrap();
    let known: Vec<_> = catalog
        .backups
        .iter()
        .map(|backup| (&backup.manifest, backup.manifest_blake3))
        .collect();
    let chain: Vec<&BackupId> = plan_restore(&known, &child.id)
        .unwrap()
        .into_iter()
        .map(|found| &found.id)
        .collect();
    assert_eq!(chain, [&twin.id, &child.id]);
    // What plans see of the child names the twin: that is what must be kept.
    let facts = UsableCatalog::check(&pair.remote, catalog)
        .await
        .unwrap()
        .facts(None);
    let of_child = facts.iter().find(|facts| facts.id == child.id).unwrap();
    assert_eq!(
        (&of_child.base, &of_child.full_id, &of_child.flaw),
        (&Some(twin.id.clone()), &twin.id, &None)
    );
    let report = verify_dataset(&pair.remote, &pair.world.dataset, &pair.world.keys.trusted)
        .await
        .unwrap();
    assert_eq!(report.damage, []);
}

/// The other host put its record before this run began, and deletes after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_in_a_young_prune_record_stops_the_child_for_two_days() {
    let (world, full) = world_with_backup().await;
    let child = plant(&world, &full, 1, Some(&full));
    let pair = Pair::new(world);
    pair.remote.set_clock(Some(now()));
    let env = pair.env(never());
    pair.upload_with(&env, false, &[&child.id]).await.unwrap();
    plant_prune_record(&pair.world, &pair.remote, &[&full.id]);
    for (hours, copied) in [(0, 0), (47, 0), (48, 1)] {
        let clock = now() + jiff::SignedDuration::from_hours(hours);
        pair.remote.set_clock(Some(clock));
        let report = pair.upload_with(&env, false, &[]).await.unwrap();
        assert_eq!(report.copied.len(), copied, "after {hours} hours");
        let is_said = |(id, error): &(BackupId, RunError)| {
            *id == child.id && error.to_string().contains(full.id.as_str())
        };
        assert_eq!(report.failed.len(), 1 - copied, "after {hours} hours");
        assert!(report.failed.iter().all(is_said), "{:?}", reasons(&report));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parent_that_is_pruned_while_its_child_is_copied_stops_the_child() {
    let (world, full) = world_with_backup().await;
    let child = plant(&world, &full, 1, Some(&full));
    // As a second host would: the record before anything else, or, from a machine that knows no
    // records, the manifest.
    for by_record in [true, false] {
        let mut pair = Pair::new(World::with_keys(world.keys.clone(), world.writer.clone()));
        pair.world.store = world.store.clone();
        let env = pair.env(never());
        pair.upload_with(&env, false, &[&child.id]).await.unwrap();
        assert_eq!(pair.manifests_in_remote(), 1);
        let mut env = pair.env(never());
        let (remote, manifest_key) = (pair.remote.clone(), key_of(&full, "manifest.json"));
        if by_record {
            let doomed = full.id.clone();
            let again = World::with_keys(world.keys.clone(), world.writer.clone());
            env.progress = Arc::new(move |_| {
                plant_prune_record(&again, &remote, &[&doomed]);
                Arc::new(|_| {})
            });
        } else {
            env.progress = Arc::new(move |_| {
                let (remote, manifest_key) = (remote.clone(), manifest_key.clone());
                Arc::new(move |_| {
                    assert!(remote.lose(&manifest_key) || remote.object(&manifest_key).is_none())
                })
            });
        }
        let report = pair.upload_with(&env, false, &[]).await.unwrap();
        assert_eq!(report.failed.len(), 1, "{by_record}");
        let (id, error) = &report.failed[0];
        assert!(
            *id == child.id && error.to_string().contains(full.id.as_str()),
            "{error}"
        );
        assert!(error.to_string().contains("pruned"), "{error}");
        assert!(
            pair.remote
                .object(&key_of(&child, "manifest.json"))
                .is_none()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_plan_lists_the_copies_and_changes_nothing() {
    let (world, full) = world_with_backup().await;
    let pair = Pair::new(world);
    let none = |_: &[BackupFacts], _: &[BackupFacts]| BTreeSet::new();
    let rules = UploadRules {
        all: false,
        would_be_pruned: &none,
    };
    let (from, trusted) = (&pair.world.store, &pair.world.keys.trusted);
    let planned = plan_upload(from, &pair.remote, trusted, &pair.world.dataset, &rules)
        .await
        .unwrap();
    let ids: Vec<&BackupId> = planned.plan.copy.iter().map(|step| &step.id).collect();
    assert_eq!(ids, [&full.id]);
    assert!(planned.bytes_of(ids) > 250_000);
    assert_eq!(pair.remote.keys(), [""; 0]);
    assert!(
        !pair
            .remote
            .events()
            .iter()
            .any(|event| crate::world::is_put(event.operation))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn untrusted_manifest_in_either_store_is_damage_and_never_replaced() {
    let (world, full) = world_with_backup().await;
    let key = key_of(&full, "manifest.json");
    let whole = world.store.object(&key).unwrap();
    let pair = Pair::new(world);
    assert!(pair.world.store.flip(&key, 40));
    let report = pair.try_upload().await.unwrap();
    assert!(report.failed[0].1.is_damage() && error_chain(&report.failed[0].1).contains(&key));
    assert_eq!(pair.remote.keys(), [""; 0]);
    pair.world.store.plant(&key, whole);
    pair.remote.plant(&key, &b"{}"[..]);
    let report = pair.try_upload().await.unwrap();
    assert!(
        report.failed[0].1.is_damage()
            && error_chain(&report.failed[0].1).contains(full.id.as_str())
    );
    assert_eq!(pair.remote.object(&key).unwrap(), &b"{}"[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_without_a_keyring_is_copied_too() {
    let (keys, mut writer) = quick_keys();
    writer.keyring = None;
    let world = World::with_keys(keys, writer);
    let manifest = world.back_up().await.manifest;
    let pair = Pair::new(world);
    pair.upload().await;
    pair.assert_copied(&manifest).await;
    assert!(
        !pair
            .remote
            .keys()
            .iter()
            .any(|key| key.starts_with("@zfs-backup"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_keyring_under_the_own_key_is_never_replaced() {
    let (world, manifest) = world_with_backup().await;
    let key = crate::world::main_keyring_key(&world.writer);
    let pair = Pair::new(world);
    pair.remote.plant(&key, &b"sealed for somebody else\n"[..]);
    let report = pair.try_upload().await.unwrap();
    assert!(report.failed[0].1.is_damage() && error_chain(&report.failed[0].1).contains(&key));
    assert!(
        pair.remote
            .object(&key_of(&manifest, "manifest.json"))
            .is_none()
    );
    assert_eq!(
        pair.remote.object(&key).unwrap(),
        &b"sealed for somebody else\n"[..]
    );
}
