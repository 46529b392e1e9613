//! What may happen to the machine between the two halves of an upload: full disks, a snapshot
//! destroyed by a person, a dataset renamed, a key unloaded or changed. Each ends in a valid
//! backup; what cannot be used any more goes by prune.

use crate::bench::Bench;
use crate::halves::{
    At, Gate, Passage, add_secret, assert_nothing_held, attempts, check_ended, check_goes_on,
    confirmed, interrupt, journals, newest, start, text, unfinished,
};
use crate::pool::{noise, run, run_with_input, zfs};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Takes all room there is, page by page; what is written in the pages that files have already
/// still goes.
fn fill_up(folder: &Path) {
    let script = "cat /dev/zero >\"$1/filler\" 2>/dev/null; true";
    run("sh", &["-c", script, "sh", folder.to_str().unwrap()]);
}

fn mount_small(folder: &Path, size: &str) {
    fs::create_dir_all(folder).unwrap();
    run(
        "mount",
        &[
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size},mode=0700"),
            "none",
            folder.to_str().unwrap(),
        ],
    );
}

/// Whatever the prune rules are, what was given up goes once `resume_days` are over, and only then.
fn check_gone_after_prune(bench: &Bench) {
    bench.good(&["prune-remote", "-y"]);
    assert_eq!(
        unfinished(&bench.keys_in_bucket()).len(),
        1,
        "it went too early"
    );
    let now = jiff::Timestamp::now().as_second();
    run("date", &["-s", &format!("@{}", now + 15 * 86_400)]);
    // The clock was set within one boot and stays unconfirmed: the server is on this host.
    assert_eq!(bench.zb(&["prune-remote", "-y"]).status.code(), Some(3));
    let said = String::from_utf8(bench.good(&["prune-remote", "-y", "--clock-is-right"])).unwrap();
    assert_eq!(
        unfinished(&bench.keys_in_bucket()),
        BTreeSet::new(),
        "{said}"
    );
    let verified = String::from_utf8(bench.good(&["verify-checksums"])).unwrap();
    assert!(verified.contains("0 damaged"), "{verified}");
    assert_eq!(journals(&bench.path("state")).len(), 0);
}

#[test]
fn matrix_full_state_disk_stops_an_upload_that_resumes_after_space_is_freed() {
    let bench = Bench::small("fullstate");
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", &newest(&bench.dataset())]);
    let state = bench.path("state");
    let _ = fs::remove_dir_all(&state);
    mount_small(&state, "1m");
    // Full from the start: nothing is put and nothing held.
    fill_up(&state);
    let output = bench.zb(&["stream-to-remote", "--full"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("make room on the file system of"),
        "{}",
        text(&output)
    );
    assert!(
        text(&output).contains(&state.display().to_string()),
        "{}",
        text(&output)
    );
    assert_eq!(attempts(&bench.keys_in_bucket()), BTreeSet::new());
    assert_nothing_held(&bench.dataset());
    assert_eq!(journals(&state).len(), 0);
    fs::remove_file(state.join("filler")).unwrap();
    // Full in the middle.
    let gate = Gate::new(&bench, At::Chunks(1), Passage::Held);
    let child = start(&bench, "proxied.toml", &["stream-to-remote", "--full"]);
    gate.wait_for(1);
    fill_up(&state);
    gate.set(Passage::Open);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("/journal/") && text(&output).contains("make room"),
        "{}",
        text(&output)
    );
    fs::remove_file(state.join("filler")).unwrap();
    assert!(confirmed(&state) >= 1);
    check_goes_on(&bench, &bench.dataset(), "--full", &reference, 1);
    run("umount", &[state.to_str().unwrap()]);
}

#[test]
fn matrix_full_intermediate_disk_stops_an_export_that_resumes_with_space() {
    let bench = Bench::small("fullinter");
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", &newest(&bench.dataset())]);
    let folder = bench.path("intermediate");
    mount_small(&folder, "2m");
    let path = folder.display().to_string();
    let output = bench.zb(&["export-intermediate", "--full"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let said = text(&output);
    assert!(
        said.contains("No space left") && said.contains(".zfs.age") && said.contains(&path),
        "{said}"
    );
    assert!(said.contains("make room there"), "{said}");
    let files = || String::from_utf8(run("find", &[&path, "-type", "f"])).unwrap();
    assert!(
        files().contains("00000000-") && !files().contains("manifest"),
        "{}",
        files()
    );
    run("mount", &["-o", "remount,size=40m", &path]);
    let said = String::from_utf8(bench.good(&["export-intermediate", "--full"])).unwrap();
    let started: BTreeSet<String> = files()
        .lines()
        .filter(|file| file.ends_with("started.json"))
        .map(str::to_owned)
        .collect();
    assert_eq!(started.len(), 1, "it began anew: {said}");
    assert!(!files().contains(".partial"), "{}", files());
    let identity = bench.path("identity.txt").display().to_string();
    let to = ["--from", "intermediate", "--stdout"];
    assert!(bench.good(&bench.restore_arguments(&bench.dataset(), &identity, &to)) == reference);
    bench.good(&["verify-checksums", "--intermediate"]);
    assert_nothing_held(&bench.dataset());
    run("umount", &[&path]);
}

#[test]
fn matrix_destroyed_snapshot_restarts_the_upload_and_prune_removes_the_old() {
    let bench = Bench::small("destroyed");
    bench.good(&["snapshot"]);
    let snapshot = newest(&bench.dataset());
    interrupt(&bench, "--full", 2, "KILL");
    let refused = Command::new("zfs")
        .args(["destroy", &snapshot])
        .output()
        .unwrap();
    assert!(!refused.status.success(), "the hold did not protect it");
    let holds = zfs(&["holds", "-H", &snapshot]);
    for line in holds.lines() {
        zfs(&["release", line.split('\t').nth(1).unwrap(), &snapshot]);
    }
    zfs(&["destroy", &snapshot]);
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", &newest(&bench.dataset())]);
    let planned =
        String::from_utf8(bench.good(&["--dry-run", "stream-to-remote", "--full"])).unwrap();
    assert!(
        planned.contains("does not resume") && planned.contains("no longer in the pool"),
        "{planned}"
    );
    let output = bench.zb(&["stream-to-remote", "--full"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(
        text(&output).contains("no longer in the pool"),
        "{}",
        text(&output)
    );
    check_ended_but_left(&bench, &text(&output), &reference);
    check_gone_after_prune(&bench);
}

/// As `check_ended`, while what was given up still lies in the store, and its journal here as the
/// proof for a prune.
fn check_ended_but_left(bench: &Bench, said: &str, reference: &[u8]) {
    assert_eq!(unfinished(&bench.keys_in_bucket()).len(), 1, "{said}");
    assert!(
        said.contains("abandoning an unfinished upload and beginning a new one"),
        "{said}"
    );
    let kept = journals(&bench.path("state"));
    assert_eq!(kept.len(), 1, "{kept:?}");
    let away = bench.path("journal-of-the-one-given-up");
    fs::rename(&kept[0], &away).unwrap();
    check_ended(bench, &bench.dataset(), said, reference);
    fs::rename(&away, &kept[0]).unwrap();
}

#[test]
fn matrix_renamed_dataset_resumes_its_upload_under_its_stored_name() {
    let bench = Bench::small("moved");
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", &newest(&bench.dataset())]);
    interrupt(&bench, "--full", 2, "KILL");
    let renamed = format!("{}/pictures", bench.pool.name);
    zfs(&["rename", &bench.dataset(), &renamed]);
    bench.use_dataset(&renamed);
    check_goes_on(&bench, &renamed, "--full", &reference, 1);
    assert!(
        bench
            .keys_in_bucket()
            .iter()
            .all(|key| !key.contains("pictures"))
    );
}

#[test]
fn matrix_raw_upload_resumes_after_its_key_is_unloaded_or_changed() {
    let bench = Bench::small("rekeyed");
    let secret = add_secret(&bench);
    bench.use_dataset(&secret);
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-w", "-L", "-c", &newest(&secret)]);
    interrupt(&bench, "--full", 2, "KILL");
    zfs(&["unmount", &secret]);
    zfs(&["unload-key", &secret]);
    check_goes_on(&bench, &secret, "--full", &reference, 1);

    run_with_input("zfs", &["load-key", &secret], "correct horse\n");
    zfs(&["mount", &secret]);
    fs::write(bench.pool.file("secret/more"), noise(2 << 20, 8)).unwrap();
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-w", "-L", "-c", &newest(&secret)]);
    interrupt(&bench, "--full", 2, "KILL");
    run_with_input("zfs", &["change-key", &secret], "battery staple\n");
    let now = run("zfs", &["send", "-w", "-L", "-c", &newest(&secret)]);
    assert!(
        now != reference,
        "another passphrase makes another stream: else this proves nothing"
    );
    // Only the wrapped keys in the first record are others, and these are stored: what comes is the
    // stream that was begun, and opens with the passphrase of then.
    check_goes_on(&bench, &secret, "--full", &reference, 2);
    let identity = bench.path("identity.txt").display().to_string();
    let target = format!("{}/back", bench.pool.name);
    bench.good(&bench.restore_arguments(&secret, &identity, &["--to", &target]));
    run_with_input("zfs", &["load-key", &target], "correct horse\n");
}
