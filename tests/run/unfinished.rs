//! What is said of unfinished uploads: before a run, while it goes on, and when it fails after it
//! has ended one. And what becomes of one that is known from the store alone.

use crate::chains::night;
use crate::interrupted::interrupted_late;
use crate::world::{World, committed};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use zfs_backup::config::RetentionRules;
use zfs_backup::manifest::Origin;
use zfs_backup::model::BackupId;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::backup::{PlannedResume, back_up, plan_resumes};
use zfs_backup::run::pool::pins::pinned;
use zfs_backup::run::prune::{PruneTask, SecondaryStore, prune_dataset};
use zfs_backup::run::transfer::Progress;
use zfs_backup::store::StoreErrorKind;
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::zfs::ZfsRead;

async fn planned(world: &World) -> Vec<PlannedResume> {
    plan_resumes(&world.env(), &world.selected(), RequestedKind::Full)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backup_plan_shows_the_resume_point_and_changes_nothing() {
    let mut world = World::new();
    assert_eq!(planned(&world).await, []);
    let kept = interrupted_late(&world).await;
    let (keys, held) = (
        world.store.keys(),
        pinned(&world.zfs, &world.dataset).unwrap(),
    );
    let plan = planned(&world).await.remove(0);
    assert_eq!((plan.chunks, plan.why_not), (kept, None));
    let split_bytes = world.settings.split_bytes;
    assert_eq!(plan.stream_bytes, kept as u64 * split_bytes);
    let from = plan.resumes_at.unwrap();
    assert!(
        from > plan.stream_bytes - split_bytes && from <= plan.stream_bytes,
        "{from}"
    );
    world.settings.restart = true;
    assert_eq!(
        planned(&world).await[0].why_not.as_deref(),
        Some("a restart was asked for")
    );
    world.settings.restart = false;
    world.settings.split_bytes *= 2;
    let plan = planned(&world).await.remove(0);
    assert_eq!(plan.resumes_at, None);
    assert!(plan.why_not.unwrap().contains("main.split_size"));
    assert_eq!(
        (
            world.store.keys(),
            pinned(&world.zfs, &world.dataset).unwrap()
        ),
        (keys, held)
    );
    // And it goes on as it would have.
    world.settings.split_bytes = split_bytes;
    assert_eq!(world.back_up().await.manifest.id, plan.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resumed_upload_reports_its_progress_and_total_at_once() {
    let world = World::new();
    let kept = interrupted_late(&world).await;
    let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let heard = Arc::clone(&told);
    let mut env = world.env();
    env.progress = Arc::new(move |progress| heard.lock().unwrap().push(progress));
    committed(
        back_up(&env, &world.selected(), RequestedKind::Full)
            .await
            .unwrap(),
    );
    let told = told.lock().unwrap();
    let kept_bytes = kept as u64 * world.settings.split_bytes;
    assert_eq!(
        (told[0].stream_bytes, told[0].chunks_confirmed as usize),
        (kept_bytes, kept)
    );
    assert!(told[0].estimate_bytes.unwrap() > kept_bytes);
    assert!(
        told[1..].iter().all(
            |progress| progress.stream_bytes >= kept_bytes && progress.estimate_bytes.is_none()
        )
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_after_a_completed_upload_still_reports_that_upload() {
    let world = World::new();
    interrupted_late(&world).await;
    night(&world, 1);
    world.store.fail(
        Fault::before(StoreErrorKind::Denied)
            .of(Operation::PutPart)
            .on("-incr-")
            .forever(),
    );
    let outcome = world
        .try_back_up_as(RequestedKind::Lifecycle)
        .await
        .unwrap();
    let (ended, error) = (outcome.committed, outcome.end.unwrap_err());
    assert_eq!(ended.len(), 1);
    assert!(
        zfs_backup::run::error_chain(&error).contains("-incr-"),
        "{error}"
    );
    assert_eq!(world.manifest_keys().len(), 1);
    assert!(world.manifest_keys()[0].contains(ended[0].manifest.id.as_str()));
    world.store.heal();
    let next = committed(
        world
            .try_back_up_as(RequestedKind::Lifecycle)
            .await
            .unwrap(),
    );
    assert_eq!(next.manifest.base.unwrap().backup_id, ended[0].manifest.id);
    world.assert_no_holds();
}

/// Its first object is ours and of this dataset in this pool, and no manifest of it is there:
/// whoever gives it up notes so, and a prune deletes it once its days are over. One of another pool
/// nobody here can judge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoned_upload_known_only_from_the_store_is_pruned_after_its_days() {
    let mut world = World::new();
    let begun: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
    world.store.set_clock(Some(begun));
    interrupted_late(&world).await;
    let given_up = pinned(&world.zfs, &world.dataset).unwrap();
    std::fs::remove_dir_all(world.settings.state_dir.join("journal")).unwrap();
    world.settings.split_bytes *= 2;
    let fresh = world.back_up().await;
    assert!(!given_up.contains(&fresh.manifest.id));
    world.assert_no_holds();
    let pool_guid = world.zfs.pool_guid("tank").unwrap();
    let origins = vec![Origin {
        dataset_guid: world.selected().dataset.guid,
        pool_guid,
    }];
    let prune = async |days: i64| -> BTreeSet<BackupId> {
        let now = begun + jiff::SignedDuration::from_hours(days * 24);
        world.store.set_clock(Some(now));
        let env = world.prune_env(now);
        let (stored, rules, secondary) = (
            world.dataset.clone(),
            RetentionRules::default(),
            SecondaryStore::Nothing,
        );
        let task = PruneTask {
            stored,
            origins: origins.clone(),
            rules,
            secondary,
        };
        prune_dataset(&env, &task)
            .await
            .unwrap()
            .deleted
            .into_iter()
            .collect()
    };
    assert_eq!(prune(13).await, BTreeSet::new());
    assert_eq!(prune(15).await, given_up);
    assert_eq!(world.verify().await.extra, [""; 0]);
    world.assert_restores().await;
}
