//! RESTORE.txt: run as it stands, with the tools that it names, by a shell that knows nothing of
//! us.

use crate::world::{World, key_of};
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;
use zfs_backup::manifest::Manifest;
use zfs_backup::stream::seal::ChunkCompression;

/// A folder with the objects of the backup and the key, as RESTORE.txt wants it.
pub(crate) fn fetch(world: &World, manifest: &Manifest) -> TempDir {
    let (folder, prefix) = (TempDir::new().unwrap(), key_of(manifest, ""));
    for key in world
        .store
        .keys()
        .iter()
        .filter(|key| key.starts_with(&prefix))
    {
        std::fs::write(
            folder.path().join(&key[prefix.len()..]),
            world.store.object(key).unwrap(),
        )
        .unwrap();
    }
    std::fs::write(
        folder.path().join("identity.txt"),
        &*world.keys.to_text().unwrap(),
    )
    .unwrap();
    folder
}

pub(crate) fn run(folder: &Path, program: &str, arguments: &[&str]) -> Output {
    let ran = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output();
    ran.unwrap_or_else(|error| panic!("{program}, which this test needs: {error}"))
}

async fn backed_up(compression: ChunkCompression) -> (World, Manifest, TempDir) {
    let mut world = World::new();
    world.settings.compression = compression;
    let manifest = world.back_up().await.manifest;
    let folder = fetch(&world, &manifest);
    (world, manifest, folder)
}

const ZSTD: ChunkCompression = ChunkCompression::Zstd {
    level: 3,
    long: None,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_instructions_restore_the_stream_without_this_tool() {
    for compression in [ChunkCompression::None, ZSTD] {
        let (world, _, folder) = backed_up(compression).await;
        let output = run(folder.path(), "sh", &["RESTORE.txt"]);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.stdout == world.stream(), "{compression:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_instructions_stop_at_a_damaged_or_missing_chunk_and_write_nothing_of_it() {
    for compression in [ChunkCompression::None, ZSTD] {
        for missing in [false, true] {
            let (world, manifest, folder) = backed_up(compression).await;
            let chunk = folder.path().join(&world.chunks(&manifest).await[2].name);
            if missing {
                std::fs::remove_file(&chunk).unwrap();
            } else {
                let mut bytes = std::fs::read(&chunk).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(&chunk, bytes).unwrap();
            }
            let output = run(folder.path(), "sh", &["RESTORE.txt"]);
            assert!(!output.status.success(), "{compression:?} {missing}");
            assert!(
                output.stdout == world.stream()[..2 * 64 * 1024],
                "{} bytes",
                output.stdout.len()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_instructions_fail_with_a_key_that_does_not_fit() {
    for compression in [ChunkCompression::None, ZSTD] {
        let (_, _, folder) = backed_up(compression).await;
        let (other, _) = crate::world::quick_keys();
        std::fs::write(
            folder.path().join("identity.txt"),
            &*other.to_text().unwrap(),
        )
        .unwrap();
        let output = run(folder.path(), "sh", &["RESTORE.txt"]);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{compression:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minisign_verifies_stored_signatures_with_the_command_of_the_first_line() {
    let (world, manifest, folder) = backed_up(ChunkCompression::None).await;
    let key = world.writer.signing.verifying_key().to_string();
    for object in [
        "manifest.json",
        "RESTORE.txt",
        "receipt.json",
        "started.json",
    ] {
        let output = run(folder.path(), "minisign", &["-V", "-P", &key, "-m", object]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{object}: {said}");
        assert!(said.contains(&key_of(&manifest, object)), "{said}");
    }
    let text = std::fs::read_to_string(folder.path().join("RESTORE.txt")).unwrap();
    assert_eq!(
        text.lines().next(),
        Some(format!("# minisign -V -P {key} -m RESTORE.txt").as_str())
    );
    std::fs::write(folder.path().join("RESTORE.txt"), format!("{text}\n")).unwrap();
    assert!(
        !run(
            folder.path(),
            "minisign",
            &["-V", "-P", &key, "-m", "RESTORE.txt"]
        )
        .status
        .success()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_with_a_space_is_quoted_in_the_instructions() {
    let (_, manifest, folder) = backed_up(ChunkCompression::None).await;
    let text = std::fs::read_to_string(folder.path().join("RESTORE.txt")).unwrap();
    assert!(
        text.contains(&format!(
            "REMOTE:BUCKET/PREFIX/'tank/a b/@{}/' .",
            manifest.id
        )),
        "{text}"
    );
}
