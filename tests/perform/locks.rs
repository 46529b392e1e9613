//! The lockfile: who gets it, who is refused and what he reads, who waits.

use crate::scene::Scene;
use rustix::process::Signal;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

const ANOTHER_BOOT: &str = "00000000-0000-0000-0000-000000000000";

/// Leaves the lock of a run of that process, changed.
fn plant(scene: &Scene, pid: u32, change: impl Fn(&mut serde_json::Value)) {
    scene.run(&["lock"]).check(0, &["locked: DIR/zb.lock"]);
    let mut lock: serde_json::Value = serde_json::from_str(&scene.read("zb.lock")).unwrap();
    lock["kind"] = "run".into();
    lock["pid"] = pid.into();
    lock["command"] = "zfs-backup perform".into();
    change(&mut lock);
    fs::write(scene.lock(), lock.to_string()).unwrap();
}

/// Leaves the lock of a run on this host that is gone.
fn plant_stale(scene: &Scene) {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    plant(scene, child.id(), |_| {});
}

#[test]
fn manual_lock_stops_changing_commands_until_unlock() {
    let scene = Scene::new(&["lock", "snapshot"]);
    scene
        .run(&["unlock"])
        .check(0, &["there is no lock: DIR/zb.lock"]);
    scene.run(&["lock"]).check(0, &["locked: DIR/zb.lock"]);
    for command in [
        &["snapshot"][..],
        &["export-intermediate"],
        &["upload-intermediate-to-remote"],
        &["stream-to-remote"],
        &["prune-remote"],
        &["prune-intermediate"],
        &["prune-snapshots", "-y"],
        &["holds", "release"],
        &["adopt", "tank/a"],
        &["lock"],
        &["perform"],
    ] {
        let refused = scene.run(command);
        refused.check(
            11,
            &[
                "error: locked by hand, by ",
                "s ago",
                "`zfs-backup -c DIR/zb.toml unlock` removes it",
            ],
        );
    }
    // Whoever only reads says so and goes on.
    scene
        .run(&["verify-checksums"])
        .check(1, &["note: locked by hand"]);
    scene
        .run(&["--dry-run", "snapshot"])
        .check(1, &["note: locked by hand"]);
    scene
        .run(&["-i", "snapshot"])
        .check(1, &["note: ignored: locked by hand"]);
    scene.run(&["-i", "lock"]).check(11, &["locked by hand"]);
    scene
        .run(&["unlock"])
        .check(0, &["unlocked: DIR/zb.lock; it was locked by hand"]);
    assert!(!scene.lock().exists());
    let free = scene.run(&["snapshot"]);
    assert!(
        free.status == Some(1) && !free.stderr.contains("lock"),
        "{}",
        free.stderr
    );
}

#[test]
fn manual_lock_survives_a_reboot() {
    let scene = Scene::new(&["lock"]);
    plant(&scene, 1, |lock| {
        lock["kind"] = "manual".into();
        lock["boot_id"] = ANOTHER_BOOT.into();
    });
    scene.run(&["perform"]).check(11, &["locked by hand"]);
}

#[test]
fn stale_lock_of_an_ended_run_is_replaced_by_perform() {
    let scene = Scene::new(&["lock", "unlock"]);
    plant_stale(&scene);
    scene
        .run(&["snapshot"])
        .check(1, &["note: the stale lock of a run that is over"]);
    assert!(scene.lock().exists(), "only perform takes it over");
    scene.run(&["perform"]).check(
        0,
        &["note: taken over: the stale lock of a run that is over, `zfs-backup perform`"],
    );
    assert!(!scene.lock().exists());
    plant(&scene, std::process::id(), |lock| {
        lock["boot_id"] = ANOTHER_BOOT.into()
    });
    scene.run(&["perform"]).check(0, &["taken over"]);
    plant_stale(&scene);
    scene.run(&["unlock"]).check(0, &["it was the stale lock"]);
}

#[test]
fn lock_of_another_host_or_invalid_lockfile_stops_perform() {
    let scene = Scene::new(&["lock"]);
    plant(&scene, 1, |lock| lock["host"] = "other".into());
    let refused = scene.run(&["perform"]);
    refused.check(
        11,
        &[
            "on other",
            "whether it still runs can only be seen on other",
            "-i unlock` removes the lock",
        ],
    );
    scene.run(&["unlock"]).check(11, &["locked by a run"]);
    scene
        .run(&["-i", "unlock"])
        .check(0, &["removed although the run may still be active"]);
    fs::write(scene.lock(), "{").unwrap();
    scene.run(&["perform"]).check(
        11,
        &[
            "DIR/zb.lock does not name its owner",
            "if nothing runs here",
        ],
    );
    scene.run(&["verify-checksums"]).check(
        1,
        &["note: the lockfile DIR/zb.lock does not name its owner"],
    );
    scene.run(&["unlock"]).check(0, &["unlocked"]);
}

#[test]
fn second_concurrent_perform_is_refused_and_the_first_stops_cleanly() {
    let scene = Scene::with_silent_remote(
        |scene| {
            scene.hook(
                "on_failure",
                "echo \"$ZFS_BACKUP_EXIT_STATUS $ZFS_BACKUP_COMMAND\" > $D/told",
            )
        },
        &["lock", "verify-checksums", "snapshot"],
    );
    let first = scene.start(&["perform"]);
    scene.wait_until_asked();
    let second = scene.run(&["perform"]);
    second.check(
        11,
        &[
            "locked by a run, `",
            &format!("process {}, by ", first.pid()),
            "wait until the run has ended",
        ],
    );
    second.check(
        11,
        &[
            "step01  lock              LOCKED",
            "step03  snapshot          not run",
            "LOCKED, exit status 11",
        ],
    );
    assert_eq!(scene.wait_for("told"), "11 lock\n");
    fs::remove_file(scene.path("told")).unwrap();
    scene.run(&["unlock"]).check(11, &["locked by a run"]);
    first.signal(Signal::TERM);
    let first = first.end();
    first.check(
        130,
        &[
            "INTERRUPTED",
            "step03  snapshot          not run",
            "error: interrupted",
        ],
    );
    assert!(!scene.lock().exists());
    assert_eq!(scene.read("told"), "130 verify-checksums\n");
}

#[test]
fn second_interrupt_ends_the_run_at_once_and_removes_its_lock() {
    let scene = Scene::with_silent_remote(|_| String::new(), &["lock", "verify-checksums"]);
    let mut run = scene.start(&["perform"]);
    scene.wait_until_asked();
    run.signal(Signal::INT);
    // Two signals at once are one to the kernel.
    run.wait_for_words("a second signal ends the run at once");
    run.signal(Signal::INT);
    let run = run.end();
    run.check(130, &[]);
    assert!(
        !run.stdout.contains("INTERRUPTED") && !run.stderr.contains("INTERRUPTED"),
        "it waited for the step: {}",
        run.stdout
    );
    assert!(!scene.lock().exists());
}

#[test]
fn a_killed_run_leaves_a_stale_lock() {
    let scene = Scene::with_silent_remote(|_| String::new(), &["lock", "verify-checksums"]);
    let run = scene.start(&["perform"]);
    scene.wait_until_asked();
    run.signal(Signal::KILL);
    assert_eq!(run.end().status, None);
    assert!(scene.lock().exists());
    scene.configure("", &["lock"], "");
    scene
        .run(&["perform"])
        .check(0, &["taken over: the stale lock"]);
    assert!(
        !scene.lock().exists(),
        "released at the end, also without `unlock`"
    );
}

#[test]
fn lock_wait_limits_the_time_waiting_for_the_lockfile() {
    let scene = Scene::new(&["lock"]);
    scene.run(&["lock"]).check(0, &[]);
    let begun = Instant::now();
    scene.run(&["--lock-wait", "1s", "snapshot"]).check(
        11,
        &["waiting for at most 1s: locked by hand", "removes it"],
    );
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let mut waiting = scene.start(&["perform", "--lock-wait", "10m"]);
    waiting.wait_for_words("waiting for at most");
    scene.run(&["unlock"]).check(0, &[]);
    waiting
        .end()
        .check(0, &["waiting for at most", "locked: DIR/zb.lock"]);
    scene.run(&["lock"]).check(0, &[]);
    let mut waiting = scene.start(&["snapshot", "--lock-wait", "10m"]);
    waiting.wait_for_words("waiting for at most");
    waiting.signal(Signal::TERM);
    waiting.end().check(130, &["interrupted"]);
}

#[test]
fn ignore_lock_without_a_lock_suggests_the_option_after_the_command() {
    let scene = Scene::new(&["lock"]);
    let needle = "there was no lock to ignore";
    scene
        .run(&["-i", "stream-to-remote"])
        .check(1, &[needle, "write -i after the command"]);
    let meant = scene.run(&["stream-to-remote", "-i"]);
    assert!(!meant.stderr.contains(needle), "{}", meant.stderr);
    let other = scene.run(&["-i", "snapshot"]);
    assert!(!other.stderr.contains(needle), "{}", other.stderr);
}
