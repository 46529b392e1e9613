//! `restore --output`: a partial file is resumed from what is proven in it, and whatever it
//! contains, the result is the stored stream or an error.

use crate::world::{SPLIT_BYTES, World, never, noise};
use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use zfs_backup::run::restore::{
    PartialFile, RestoreBackup, RestorePoint, ResumedReceive, find_partial, other_partials,
    restore_to_file,
};
use zfs_backup::run::{RunError, error_chain};
use zfs_backup::state::StateError;
use zfs_backup::store::StoreErrorKind;
use zfs_backup::store::memory::{Fault, Operation};
use zfs_backup::stream::record::{BeginRecord, HEADER_BYTES, RecordWriter};
use zfs_backup::stream::seal::ChunkCompression;

/// The longest record of the world's streams, which lies after the last proven byte.
const RECORD_BYTES_MAX: u64 = 128 * 1024 + HEADER_BYTES as u64;

struct Scene {
    world: World,
    folder: TempDir,
    backup: RestoreBackup,
    stream: Vec<u8>,
}

impl Scene {
    async fn new(world: World) -> Self {
        world.back_up().await;
        let backup = world.find(&RestorePoint::Newest).await.unwrap().backups[0].clone();
        let (folder, stream) = (TempDir::new().unwrap(), world.stream());
        Self {
            world,
            folder,
            backup,
            stream,
        }
    }

    fn target(&self) -> PathBuf {
        self.folder.path().join("stream")
    }

    fn partial(&self) -> PathBuf {
        let id = &self.backup.manifest.id;
        self.folder.path().join(format!("stream.{id}.partial"))
    }

    /// Leaves a partial file as an interrupted run does.
    fn leave(&self, bytes: &[u8]) {
        fs::write(self.partial(), bytes).unwrap();
        fs::set_permissions(self.partial(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Restores to the target, and returns where the restore resumed.
    async fn restore(&self) -> Result<Option<ResumedReceive>, RunError> {
        let mut partial = PartialFile::open(&self.target(), &self.backup.manifest.id)?;
        let resumed = RefCell::new(None);
        let keep = |found: &ResumedReceive| drop(resumed.replace(Some(found.clone())));
        restore_to_file(&self.backup, &self.world.keys, &partial, &never(), keep).await?;
        partial.become_named(&self.target()).unwrap();
        Ok(resumed.into_inner())
    }

    /// Restores over a partial file of these bytes, checks that the result is the stored stream,
    /// and returns the position at which the restore resumed; 0 when it started over.
    async fn position_after(&self, left: &[u8], case: &str) -> u64 {
        self.leave(left);
        let resumed = self.restore().await;
        let resumed = resumed.unwrap_or_else(|error| panic!("{case}: {}", error_chain(&error)));
        assert!(
            fs::read(self.target()).unwrap() == self.stream,
            "{case}: other bytes"
        );
        assert_eq!(names(self.folder.path()), ["stream"], "{case}");
        fs::remove_file(self.target()).unwrap();
        resumed.map_or(0, |resumed| resumed.position)
    }

    /// Returns the indexes of the chunks that were fetched since the events were cleared.
    fn fetched(&self) -> Vec<u32> {
        let events = self.world.store.events();
        let is_fetched = |name: &str| {
            let is_it = |key: &str| key.ends_with(name);
            events
                .iter()
                .any(|event| event.operation == Operation::Get && is_it(&event.key))
        };
        let chunks = self
            .backup
            .chunks
            .iter()
            .filter(|chunk| is_fetched(&chunk.name));
        chunks.map(|chunk| chunk.index).collect()
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn compressed() -> World {
    let mut world = World::new();
    world.settings.compression = ChunkCompression::Zstd {
        level: 3,
        long: None,
    };
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_resumes_at_any_cut_and_fetches_no_earlier_chunk() {
    for world in [World::new(), compressed()] {
        let scene = Scene::new(world).await;
        let (length, last) = (scene.stream.len(), scene.backup.chunks.len() as u64 - 1);
        let header = HEADER_BYTES;
        let ends = [0, 1, header, length - header, length - 1, length];
        for cut in (7919..length).step_by(19_937).chain(ends) {
            let case = format!("cut at {cut} of {length}");
            scene.world.store.clear_events();
            let position = scene.position_after(&scene.stream[..cut], &case).await;
            let least = (cut as u64).saturating_sub(RECORD_BYTES_MAX) / SPLIT_BYTES;
            let first = position / SPLIT_BYTES;
            assert!(
                first >= least.min(last) && position <= cut as u64,
                "{case}: {position}"
            );
            let expected: Vec<u32> = (first..=last)
                .map(|index| u32::try_from(index).unwrap())
                .collect();
            assert_eq!(scene.fetched(), expected, "{case}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_partial_file_is_cut_back_to_before_the_damage() {
    let scene = Scene::new(World::new()).await;
    let length = scene.stream.len();
    for at in (3..length).step_by(10_007).chain([0, 311, 312, length - 1]) {
        let mut left = scene.stream.clone();
        left[at] ^= 0x10;
        let position = scene
            .position_after(&left, &format!("flipped at {at}"))
            .await;
        assert!(
            position <= at as u64,
            "flipped at {at}, resumed at {position}"
        );
    }
    // A power cut can leave zeros of the right length.
    for from in (4096..length).step_by(40_961) {
        let mut left = scene.stream.clone();
        left[from..].fill(0);
        let position = scene
            .position_after(&left, &format!("zeros from {from}"))
            .await;
        assert!(
            position <= from as u64,
            "zeros from {from}, resumed at {position}"
        );
    }
    let longer = [&scene.stream[..], &noise(5, 300_000)].concat();
    assert!(scene.position_after(&longer, "longer").await > 0);
    let doubled = [&scene.stream[..], &scene.stream[..]].concat();
    assert!(scene.position_after(&doubled, "doubled").await > 0);
    assert_eq!(scene.position_after(&noise(4, length), "garbage").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn consistent_stream_of_other_content_never_becomes_the_result() {
    let scene = Scene::new(World::new()).await;
    let begin = BeginRecord::parse(scene.stream.first_chunk().unwrap()).unwrap();
    let payload = &scene.stream[HEADER_BYTES..HEADER_BYTES + begin.payload_bytes as usize];
    let mut writer = RecordWriter::new(&begin, payload);
    for block in 0..20 {
        writer.write(5, block * 16_384, &noise(block, 16_384));
    }
    let other = writer.end();
    assert!(other.len() as u64 > 3 * SPLIT_BYTES);
    for length in [other.len(), usize::try_from(3 * SPLIT_BYTES).unwrap()] {
        assert!(
            scene
                .position_after(&other[..length], "other content")
                .await
                > 0
        );
    }
    // The stored stream up to the middle of a record, then the rest of another consistent stream.
    let mixed = [&scene.stream[..100_000], &other[100_000..]].concat();
    scene.position_after(&mixed, "mixed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uncompressed_chunk_is_entered_in_its_middle() {
    let mut world = World::new();
    world.settings.split_bytes = 64 << 20;
    world
        .zfs
        .write_file(&world.dataset, 30, &noise(3, 20 << 20));
    world.snapshot();
    let scene = Scene::new(world).await;
    assert_eq!(scene.backup.chunks.len(), 1);
    let cut = &scene.stream[..17 << 20];
    scene.leave(cut);
    let planned = find_partial(&scene.backup, &scene.target(), &never())
        .await
        .unwrap();
    assert!(
        fs::read(scene.partial()).unwrap() == cut,
        "a dry run changed the file"
    );
    let planned = planned.unwrap();
    assert_eq!(planned.position, 16 << 20);
    assert!(planned.fetch_bytes < scene.backup.chunks[0].sealed_bytes - (15 << 20));
    assert_eq!(scene.position_after(cut, "17 MiB").await, 16 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_fetch_leaves_a_partial_file_from_which_the_next_run_resumes() {
    let scene = Scene::new(World::new()).await;
    let third = scene.backup.chunks[2].name.clone();
    let away = Fault::before(StoreErrorKind::Denied).of(Operation::Get);
    scene.world.store.fail(away.on(&third).forever());
    let error = scene.restore().await.unwrap_err();
    assert!(
        error_chain(&error).contains(&third),
        "{}",
        error_chain(&error)
    );
    let left = fs::metadata(scene.partial()).unwrap();
    assert_eq!(left.permissions().mode() & 0o7777, 0o600);
    assert_eq!(left.len(), 2 * SPLIT_BYTES);
    scene.world.store.heal();
    let left = fs::read(scene.partial()).unwrap();
    assert!(scene.position_after(&left, "after the failure").await > 0);

    // Without a byte there is nothing to resume.
    let first = scene.backup.chunks[0].name.clone();
    let away = Fault::before(StoreErrorKind::Denied).of(Operation::Get);
    scene.world.store.fail(away.on(&first).forever());
    scene.restore().await.unwrap_err();
    assert!(names(scene.folder.path()).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_ends_the_proof_of_a_partial_file() {
    let scene = Scene::new(World::new()).await;
    scene.leave(&scene.stream);
    let (_sender, stop) = tokio::sync::watch::channel(true);
    let partial = PartialFile::open(&scene.target(), &scene.backup.manifest.id).unwrap();
    let end = restore_to_file(&scene.backup, &scene.world.keys, &partial, &stop, |_| {}).await;
    assert!(matches!(end, Err(RunError::Interrupted)), "{end:?}");
    drop(partial);
    assert!(fs::read(scene.partial()).unwrap() == scene.stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn partial_file_that_others_can_change_is_refused_and_kept() {
    let scene = Scene::new(World::new()).await;
    let other = scene.folder.path().join("other");
    let says = async |needle: &str| {
        let error = scene.restore().await.unwrap_err();
        let text = format!("{} {:?}", error_chain(&error), error.hint());
        assert!(text.contains(needle), "{needle}: {text}");
        let planned = find_partial(&scene.backup, &scene.target(), &never()).await;
        planned.unwrap_err();
        assert!(!scene.target().exists());
    };
    fs::write(&other, b"precious").unwrap();
    symlink(&other, scene.partial()).unwrap();
    says("open").await;
    fs::remove_file(scene.partial()).unwrap();

    fs::hard_link(&other, scene.partial()).unwrap();
    says("it has 2 hard links").await;
    fs::remove_file(scene.partial()).unwrap();
    assert_eq!(fs::read(&other).unwrap(), b"precious");

    scene.leave(&scene.stream[..100_000]);
    fs::set_permissions(scene.partial(), fs::Permissions::from_mode(0o622)).unwrap();
    says("its mode 622 lets others write").await;
    says("rm ").await;
    assert_eq!(fs::metadata(scene.partial()).unwrap().len(), 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_partial_file_has_one_writer_and_others_are_named() {
    let scene = Scene::new(World::new()).await;
    let (target, id) = (scene.target(), &scene.backup.manifest.id);
    let first = PartialFile::open(&target, id).unwrap();
    let second = PartialFile::open(&target, id).unwrap_err();
    assert!(
        matches!(&second, RunError::State(StateError::Locked { holder, .. }) if *holder == Some(std::process::id())),
        "{second:?}"
    );
    drop(first);
    assert!(names(scene.folder.path()).is_empty(), "an empty file stays");

    let earlier = "20250101T000000Z-full-00000000000000ff-00000000000000ff";
    let earlier = scene
        .folder
        .path()
        .join(format!("stream.{earlier}.partial"));
    fs::write(&earlier, b"x").unwrap();
    fs::write(scene.folder.path().join("stream.x.partial"), b"x").unwrap();
    scene.leave(b"x");
    assert_eq!(other_partials(&target, id), [earlier]);
}
