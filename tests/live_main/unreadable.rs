//! A pool with one block that cannot be read: its vdev is overwritten under a known file while the
//! pool is exported.

use crate::bench::Bench;
use crate::pool::{noise, run, zfs};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Output;

/// The length of the damaged file: several chunks, of which the fault leaves some.
const BAD_BYTES: usize = 6 << 20;
/// The place of the damage in the file.
const DAMAGE_AT: usize = 4 << 20;
const DAMAGE_BYTES: usize = 4096;

/// Overwrites the vdev where it holds this part of the file.
fn damage(bench: &Bench, content: &[u8]) {
    let pool = bench.pool.name.as_str();
    run("zpool", &["export", pool]);
    let image = format!("/tmp/{pool}.img");
    let pattern = &content[DAMAGE_AT..DAMAGE_AT + DAMAGE_BYTES];
    let bytes = fs::read(&image).unwrap();
    // Blocks begin at any sector.
    let found: Vec<usize> = (0..bytes.len() - DAMAGE_BYTES)
        .step_by(512)
        .filter(|at| bytes[*at..].starts_with(pattern))
        .collect();
    assert_eq!(found.len(), 1, "the block is in the image once");
    let file = fs::File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0x55; DAMAGE_BYTES], found[0] as u64)
        .unwrap();
    file.sync_all().unwrap();
    run("zpool", &["import", "-d", &image, pool]);
}

#[track_caller]
fn ends_with(output: &Output, status: i32, says: &[&str]) {
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(status), "{text}");
    for needle in says {
        assert!(text.contains(needle), "no {needle:?} in {text}");
    }
}

#[test]
fn unreadable_snapshot_is_stepped_over_in_the_second_night() {
    let bench = Bench::small("sick");
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    let content = noise(BAD_BYTES, 77);
    fs::write(bench.pool.file("data/bad"), &content).unwrap();
    run("zpool", &["sync"]);
    bench.good(&["snapshot"]);
    let listed = zfs(&[
        "list",
        "-H",
        "-o",
        "name",
        "-t",
        "snapshot",
        "-s",
        "createtxg",
    ]);
    let bad = listed.lines().last().unwrap().to_owned();
    damage(&bench, &content);
    let inode = fs::metadata(bench.pool.file("data/bad")).unwrap().ino();

    let first = bench.zb(&["stream-to-remote"]);
    let object = format!("object {inode} or a later one");
    ends_with(&first, 1, &[&bad, "EIO", &object, "zpool status -v sick"]);
    fs::remove_file(bench.pool.file("data/bad")).unwrap();
    bench.good(&["snapshot"]);
    let second = bench.zb(&["stream-to-remote"]);
    let destroy = format!("zfs destroy {bad}");
    ends_with(
        &second,
        3,
        &["committed", &bad, "is stepped over", &object, &destroy],
    );
    let health = bench.zb(&["health"]);
    ends_with(&health, 1, &[&bad, "is stepped over"]);
    zfs(&["destroy", &bad]);
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote"]);
    let newest = bench.path("identity.txt").display().to_string();
    bench.good(&bench.restore_arguments("sick/data", &newest, &["--to", "sick/restored"]));
    assert!(!bench.pool.file("restored/bad").exists());
}
