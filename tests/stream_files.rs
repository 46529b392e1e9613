//! Real streams, kept as files by hand: not run by default.
//!
//! `ZFS_BACKUP_STREAMS=FOLDER cargo test --release --test stream_files -- --ignored` takes every
//! file of the folder for a stream. `X.resumedN` is one that `zfs send -t` made after the receive
//! of X was cut somewhere.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

mod stream_common;

use std::fs;
use std::path::PathBuf;
use stream_common::{finds_damage, first_block, parse_any, points_at_blocks, splice_onto};

fn files(resumed: bool) -> Vec<PathBuf> {
    let folder = std::env::var("ZFS_BACKUP_STREAMS").expect("ZFS_BACKUP_STREAMS names the folder");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|file| file.to_string_lossy().contains(".resumed") == resumed);
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
#[ignore = "needs files: see above"]
fn real_streams_are_accepted_and_damage_is_found() {
    for file in files(false) {
        let mut bytes = fs::read(&file).unwrap();
        let summary = parse_any(&bytes).unwrap();
        println!(
            "{} {:#x} {:?}",
            file.display(),
            summary.feature_flags,
            summary.records
        );
        assert!(summary.checked);
        let (begin, points) = points_at_blocks(&bytes);
        let step = bytes.len() / 500 + 1;
        for at in (0..bytes.len())
            .step_by(step)
            .chain(bytes.len() - 312..bytes.len())
            .chain(0..312)
        {
            assert!(
                finds_damage(&mut bytes, &begin, &points, at),
                "{} byte {at}",
                file.display()
            );
        }
    }
}

#[test]
#[ignore = "needs files: see above"]
fn real_resumed_streams_splice_to_the_original() {
    for file in files(true) {
        let name = file.to_string_lossy();
        let original = fs::read(name.split(".resumed").next().unwrap()).unwrap();
        let resumed = fs::read(&file).unwrap();
        let block = first_block(&resumed);
        let (begin, points) = points_at_blocks(&original);
        let point = *points
            .iter()
            .find(|point| (point.object, point.offset) == block)
            .unwrap();
        let spliced = splice_onto(&original, begin, point, &resumed);
        assert!(spliced == original, "{name}");
        println!(
            "{name} taken up at {} of {}",
            point.position,
            original.len()
        );
    }
}
