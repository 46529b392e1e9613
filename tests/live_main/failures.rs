//! What must never become a backup: after each failure, which comes after at least one chunk was
//! confirmed, there is no manifest, nothing takes it for a backup, the exit says what failed, and
//! the next run succeeds.

use crate::bench::Bench;
use crate::halves::{chunk_number, confirmed, interrupt, is_part_of_chunk};
use crate::pool::{noise, run, zfs};
use crate::proxy::{Action, Proxy};
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// No manifest, no backup shown, nothing restored; and the next run works.
fn check_no_backup_and_recover(bench: &Bench) {
    let manifests = |bench: &Bench| {
        bench
            .keys_in_bucket()
            .into_iter()
            .filter(|key| key.contains("manifest.json"))
            .count()
    };
    assert_eq!(manifests(bench), 0);
    let shown =
        String::from_utf8(bench.good(&["show", "--include-remote", &bench.dataset()])).unwrap();
    assert!(
        shown.contains("no backup") && shown.contains("unfinished, not a backup"),
        "{shown}"
    );
    let (dataset, identity) = (
        bench.dataset(),
        bench.path("identity.txt").display().to_string(),
    );
    let restored = bench.zb(&bench.restore_arguments(
        &dataset,
        &identity,
        &["--to", &format!("{}/never", bench.pool.name)],
    ));
    assert_eq!(restored.status.code(), Some(1));
    assert!(
        stderr(&restored).contains("no whole backup"),
        "{}",
        stderr(&restored)
    );
    bench.good(&["stream-to-remote", "--full"]);
    let holds = zfs(&[
        "list",
        "-Hpo",
        "userrefs",
        "-t",
        "snapshot",
        &bench.dataset(),
    ]);
    assert!(
        holds.lines().all(|holds| holds == "0"),
        "holds are left: {holds}"
    );
    bench.good(&["verify-checksums"]);
    assert_eq!(manifests(bench), 2, "a manifest and its signature");
}

#[test]
fn a_server_that_refuses_the_last_part_leaves_no_backup() {
    let bench = Bench::small("refuse");
    bench.good(&["snapshot"]);
    let proxy = Proxy::start(&bench.weed.endpoint(), |head| {
        // Each chunk has one part, so it is the last one.
        if is_part_of_chunk(head) && chunk_number(head).is_some_and(|number| number >= 1) {
            Action::Refuse(403, "AccessDenied")
        } else {
            Action::Pass
        }
    });
    bench.write_config("proxied.toml", &proxy.endpoint());
    let output = bench
        .command("proxied.toml", &["stream-to-remote", "--full"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(".zfs.age") && stderr(&output).contains("AccessDenied"),
        "{}",
        stderr(&output)
    );
    assert_eq!(confirmed(&bench.path("state")), 1);
    check_no_backup_and_recover(&bench);
}

#[test]
fn killed_and_interrupted_runs_leave_no_backup() {
    for (name, signal_name, exit) in [("killed", "KILL", None), ("stopped", "TERM", Some(130))] {
        let bench = Bench::small(name);
        bench.good(&["snapshot"]);
        let output = interrupt(&bench, "--full", 2, signal_name);
        assert_eq!(output.status.code(), exit, "{}", stderr(&output));
        if exit.is_none() {
            assert_eq!(output.status.signal(), Some(9));
        }
        check_no_backup_and_recover(&bench);
    }
}

#[test]
fn send_aborted_by_the_kernel_leaves_no_backup() {
    let bench = Bench::small("cutpipe");
    bench.good(&["snapshot"]);
    // A block of the second large file cannot be read any more: lzc_send ends in the middle of the
    // stream.
    let pool = bench.pool.name.clone();
    run("zpool", &["export", &pool]);
    let needle = noise(2 << 20, 1002)[(1 << 20) + 512..(1 << 20) + 4608].to_vec();
    let image = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/tmp/{pool}.img"))
        .unwrap();
    let at = find(&image, &needle);
    image.write_all_at(&vec![0x5a; 4096], at).unwrap();
    run(
        "zpool",
        &["import", "-d", &format!("/tmp/{pool}.img"), &pool],
    );
    let output = bench.zb(&["stream-to-remote", "--full"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains(&format!("send {}@", bench.dataset())),
        "it must name the snapshot: {}",
        stderr(&output)
    );
    assert!(confirmed(&bench.path("state")) >= 1);
    image.write_all_at(&needle, at).unwrap();
    run("zpool", &["export", &pool]);
    run(
        "zpool",
        &["import", "-d", &format!("/tmp/{pool}.img"), &pool],
    );
    check_no_backup_and_recover(&bench);
}

/// Where the bytes lie in the image. Noise is not compressed, and records of a megabyte lie in one
/// piece.
fn find(image: &fs::File, needle: &[u8]) -> u64 {
    const SECTOR: usize = 512;
    let mut block = vec![0; (1 << 20) + needle.len()];
    let mut start = 0;
    while let Ok(bytes) = image.read_at(&mut block, start) {
        assert!(bytes > needle.len(), "the block is not in the image");
        let mut sectors = (0..bytes - needle.len()).step_by(SECTOR);
        if let Some(at) = sectors.find(|at| block[*at..].starts_with(needle)) {
            return start + at as u64;
        }
        start += 1 << 20;
    }
    panic!("the image cannot be read");
}
