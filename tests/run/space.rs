//! Whether a restore fits: judged by what comes and what is left, before a chunk is fetched.

use crate::world::{World, committed, name};
use zfs_backup::model::DatasetName;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::plan::space::Fit;
use zfs_backup::run::restore::drill::judge_drill_fit;
use zfs_backup::run::restore::{
    ArrivingDataset, PropertyChoice, ReceiveOptions, RestorePoint, RestoreSet, check_target,
    judge_file_fit, judge_fit,
};
use zfs_backup::zfs::{DatasetType, PropertyValue};

/// A chain of two backups, with the bytes of each stream.
async fn chain(world: &World) -> (RestoreSet, [u64; 2]) {
    let full = world.back_up().await.manifest.stream_bytes;
    world.zfs.write_file(&world.dataset, 30, &[7; 50_000]);
    world.snapshot();
    let incremental = world.try_back_up_as(RequestedKind::Incremental).await;
    let incremental = committed(incremental.unwrap()).manifest.stream_bytes;
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    (set, [full, incremental])
}

fn fit(world: &World, set: &RestoreSet, target: &DatasetName, options: &ReceiveOptions) -> Fit {
    let plan = check_target(&world.zfs, target, set, options).unwrap();
    let plan = &plan;
    judge_fit(
        &world.zfs,
        target,
        &[ArrivingDataset { set, plan, options }],
    )
}

#[tokio::test]
async fn a_new_dataset_needs_the_whole_chain() {
    let world = World::new();
    let (set, streams) = chain(&world).await;
    let (target, options) = (name("tank/new/restored"), ReceiveOptions::default());
    let judge = || fit(&world, &set, &target, &options);
    assert!(matches!(judge(), Fit::Unknown { .. }), "nothing is known");
    let all: u64 = streams.iter().sum();
    world.zfs.set_available(&name("tank"), all);
    assert_eq!(judge(), Fit::Fits);
    world.zfs.set_available(&name("tank"), all - 1);
    let Fit::TooLarge(shortage) = judge() else {
        panic!("{:?}", judge());
    };
    assert_eq!(shortage.place, "tank");
    assert_eq!(shortage.available_bytes, all - 1);
    // A drill needs as much.
    let drill = judge_drill_fit(&world.zfs, &set, &name("tank")).unwrap();
    assert!(matches!(drill, Fit::TooLarge(_)));
    // Space that cannot be read is unknown.
    let plan = check_target(&world.zfs, &target, &set, &options).unwrap();
    world.zfs.fail_call(1, 5);
    let datasets = [ArrivingDataset {
        set: &set,
        plan: &plan,
        options: &options,
    }];
    let unread = judge_fit(&world.zfs, &target, &datasets);
    assert!(matches!(unread, Fit::Unknown { .. }), "{unread:?}");
    // A quota of the nearest ancestor counts.
    world.zfs.set_available(&name("tank"), all);
    world.zfs.create(&name("tank/new"), DatasetType::Filesystem);
    world.zfs.set_available(&name("tank/new"), 1);
    assert!(matches!(judge(), Fit::TooLarge(_)));
    // The datasets of a tree need their sum.
    let half = [datasets[0], datasets[0]];
    world.zfs.set_available(&name("tank/new"), all);
    assert_eq!(judge(), Fit::Fits);
    let tree = judge_fit(&world.zfs, &target, &half);
    assert!(matches!(tree, Fit::TooLarge(_)));
}

#[tokio::test]
async fn an_existing_dataset_needs_only_what_comes() {
    let world = World::new();
    let full = world.back_up().await;
    let target = name("tank/restored");
    world.restore_into(&target).await.unwrap();
    world.zfs.write_file(&world.dataset, 30, &[7; 50_000]);
    world.snapshot();
    let incremental = committed(
        world
            .try_back_up_as(RequestedKind::Incremental)
            .await
            .unwrap(),
    );
    let set = world.find(&RestorePoint::Newest).await.unwrap();
    let options = ReceiveOptions {
        rollback: true,
        ..ReceiveOptions::default()
    };
    let coming = incremental.manifest.stream_bytes;
    assert!(coming < full.manifest.stream_bytes);
    world.zfs.set_available(&name("tank"), coming);
    assert_eq!(fit(&world, &set, &target, &options), Fit::Fits);
    world.zfs.set_available(&name("tank"), coming - 1);
    let judge = || fit(&world, &set, &target, &options);
    assert!(matches!(judge(), Fit::TooLarge(_)), "{:?}", judge());
    // A rollback frees the space of what it destroys, and nobody knows how much that is.
    world.zfs.write_file(&target, 31, &[8; 50_000]);
    assert!(matches!(judge(), Fit::Doubtful(_)), "{:?}", judge());
}

#[tokio::test]
async fn quota_of_a_parent_may_not_bind_its_children() {
    let world = World::new();
    let (set, streams) = chain(&world).await;
    let (target, options) = (name("tank/new/restored"), ReceiveOptions::default());
    world.zfs.set_available(&name("tank"), streams[0] - 1);
    let judge = || fit(&world, &set, &target, &options);
    assert!(matches!(judge(), Fit::TooLarge(_)), "{:?}", judge());
    let quota = PropertyValue::Number(streams[0]);
    world.zfs.set_property(&name("tank"), "refquota", quota);
    assert!(matches!(judge(), Fit::Doubtful(_)), "{:?}", judge());
}

#[tokio::test]
async fn a_stream_of_uncompressed_blocks_may_be_compressed() {
    let mut world = World::new();
    world.settings.compressed = false;
    let (set, streams) = chain(&world).await;
    let (target, options) = (name("tank/restored"), ReceiveOptions::default());
    world.zfs.set_available(&name("tank"), streams[0]);
    let judge = || fit(&world, &set, &target, &options);
    assert!(matches!(judge(), Fit::Doubtful(_)), "{:?}", judge());
    let off = PropertyValue::Number(2);
    world.zfs.set_property(&name("tank"), "compression", off);
    assert!(matches!(judge(), Fit::TooLarge(_)), "{:?}", judge());
}

#[tokio::test]
async fn a_reservation_is_counted_in_addition() {
    let world = World::new();
    let (set, streams) = chain(&world).await;
    let target = name("tank/restored");
    let all: u64 = streams.iter().sum();
    world.zfs.set_available(&name("tank"), all + 1_000_000);
    for (reservation, expected) in [
        ("refreservation=900K", true),
        ("refreservation=1M", false),
        // A reservation counts the data itself.
        ("reservation=1M", true),
        ("reservation=2M", false),
    ] {
        let given = [reservation.to_owned()];
        let options = ReceiveOptions {
            properties: PropertyChoice::new(false, &given, &[]).unwrap(),
            ..ReceiveOptions::default()
        };
        let fits = fit(&world, &set, &target, &options) == Fit::Fits;
        assert_eq!(fits, expected, "{reservation}");
    }
}

#[tokio::test]
async fn a_file_needs_the_length_of_its_stream() {
    let world = World::new();
    world.back_up().await;
    let mut set = world.find(&RestorePoint::Newest).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("stream");
    assert_eq!(judge_file_fit(&file, &set.backups[0]), Fit::Fits);
    set.backups[0].manifest.stream_bytes = u64::MAX;
    let fit = judge_file_fit(&file, &set.backups[0]);
    assert!(matches!(fit, Fit::TooLarge(_)), "{fit:?}");
    let gone = judge_file_fit(&folder.path().join("gone/stream"), &set.backups[0]);
    assert!(matches!(gone, Fit::Unknown { .. }), "{gone:?}");
}
