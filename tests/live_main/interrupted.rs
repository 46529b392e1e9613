//! Uploads that are interrupted on a real pool go on where they stopped: whatever ends the run, the
//! next plain one ends in the same backup, whose stream is that of `zfs send` to the byte, and
//! nothing is left held.

use crate::bench::Bench;
use crate::halves::{
    At, Gate, Passage, add_secret, add_volume, assert_nothing_held, attempts, check_ended,
    check_goes_on, confirmed, interrupt, newest, settle, signal, start, stop_and_go_on, text,
};
use crate::pool::{noise, run, zfs};
use std::fs;

/// The first snapshot of the bench's dataset, and what `zfs send` makes of it.
fn begin(bench: &Bench) -> Vec<u8> {
    bench.good(&["snapshot"]);
    run("zfs", &["send", "-L", "-c", &newest(&bench.dataset())])
}

#[test]
fn interrupted_by_kill_uploads_resume_and_hold_their_snapshot() {
    let bench = Bench::parts("reskill");
    let reference = begin(&bench);
    let snapshot = newest(&bench.dataset());
    interrupt(&bench, "--full", 1, "KILL");
    assert!(confirmed(&bench.path("state")) >= 1);
    // The gate holds the second part of a later chunk, so its upload is open. Another chunk may
    // have begun too.
    assert!(
        bench.open_uploads() >= 1,
        "it was not killed in the middle of a chunk"
    );
    let refused = std::process::Command::new("zfs")
        .args(["destroy", &snapshot])
        .output()
        .unwrap();
    assert!(
        !refused.status.success(),
        "a snapshot that an upload needs was destroyed"
    );
    let held = String::from_utf8(bench.good(&["holds", "list"])).unwrap();
    assert!(held.contains("unfinished"), "{held}");
    let shown =
        String::from_utf8(bench.good(&["show", "--include-remote", &bench.dataset()])).unwrap();
    assert!(shown.contains("a prune abandons it on"), "{shown}");
    let planned = String::from_utf8(bench.good(&["--dry-run", "stream-to-remote"])).unwrap();
    assert!(
        planned.contains(" resumes ") && planned.contains("ZFS is read again from"),
        "{planned}"
    );
    // Again, one chunk later; then it is ended.
    interrupt(&bench, "--full", 2, "KILL");
    assert!(confirmed(&bench.path("state")) >= 2);
    check_goes_on(&bench, &bench.dataset(), "--full", &reference, 1);
}

#[test]
fn interrupted_by_stop_signals_or_a_paused_process_uploads_complete() {
    let bench = Bench::small("resterm");
    // More than the pipe and the buffers hold, so that the send waits for its reader at the gate.
    bench.pool.write("data/long", 12 << 20, 41);
    let mut reference = begin(&bench);
    for (signal_name, stop_name) in [("TERM", "STOP"), ("INT", "TSTP")] {
        let stopped = interrupt(&bench, "--full", 1, signal_name);
        assert_eq!(stopped.status.code(), Some(130), "{}", text(&stopped));
        let gate = Gate::new(&bench, At::Chunks(3), Passage::Held);
        let child = start(&bench, "proxied.toml", &["stream-to-remote", "--full"]);
        gate.wait_for(3);
        stop_and_go_on(&child, stop_name, &gate);
        let output = child.wait_with_output().unwrap();
        // The kernel ends a send whose process was stopped while it waited for its reader; the run
        // resumes it.
        assert!(output.status.success(), "{stop_name}: {}", text(&output));
        assert!(
            text(&output).contains("the send was interrupted; resuming it"),
            "{stop_name}: {}",
            text(&output)
        );
        check_ended(&bench, &bench.dataset(), &text(&output), &reference);
        fs::write(bench.pool.file("data/more"), noise(1 << 20, 5)).unwrap();
        reference = begin(&bench);
    }
}

#[test]
fn interrupted_by_an_unreachable_or_failing_store_uploads_resume() {
    let bench = Bench::small("resaway");
    let reference = begin(&bench);
    let gate = Gate::new(&bench, At::Chunks(2), Passage::Held);
    let child = start(&bench, "proxied.toml", &["stream-to-remote", "--full"]);
    gate.wait_for(2);
    gate.set(Passage::Away);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    gate.end();
    assert!(confirmed(&bench.path("state")) >= 2);
    let gate = Gate::new(&bench, At::Request(24), Passage::Broken);
    let output = bench
        .command("proxied.toml", &["stream-to-remote", "--full"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(
        text(&output).contains("InternalError") || text(&output).contains("500"),
        "{}",
        text(&output)
    );
    assert!(gate.requests() > 24, "it ended before the server broke");
    check_goes_on(&bench, &bench.dataset(), "--full", &reference, 1);
}

/// With the state folder gone, what lies in the store and is held in the pool is enough.
#[test]
fn interrupted_upload_resumes_without_its_state_folder() {
    let bench = Bench::small("reswipe");
    let reference = begin(&bench);
    interrupt(&bench, "--full", 2, "KILL");
    fs::remove_dir_all(bench.path("state")).unwrap();
    check_goes_on(&bench, &bench.dataset(), "--full", &reference, 1);
}

#[test]
fn interrupted_incrementals_from_a_bookmark_resume() {
    let bench = Bench::small("resincr");
    let dataset = bench.dataset();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--full"]);
    let base = newest(&dataset);
    fs::write(bench.pool.file("data/more"), noise(2 << 20, 77)).unwrap();
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", "-i", &base, &newest(&dataset)]);
    zfs(&["destroy", &base]);
    interrupt(&bench, "--incremental", 1, "KILL");
    // The base's own bookmark may go: the upload has one of its own.
    let bookmarks = zfs(&["list", "-Hpo", "name", "-t", "bookmark", &dataset]);
    let own = bookmarks
        .lines()
        .find(|name| !name.contains("_base_"))
        .unwrap();
    assert!(bookmarks.contains("_base_"), "{bookmarks}");
    zfs(&["destroy", own]);
    check_goes_on(&bench, &dataset, "--incremental", &reference, 2);
}

#[test]
fn interrupted_raw_sends_and_volumes_resume() {
    let bench = Bench::small("resraw");
    let secret = add_secret(&bench);
    let (volume, device) = add_volume(&bench);
    fs::write(device, noise(3 << 20, 9)).unwrap();
    settle();
    for (dataset, flags) in [(&secret, &["-w", "-L", "-c"][..]), (&volume, &["-L", "-c"])] {
        bench.use_dataset(dataset);
        bench.good(&["snapshot"]);
        let snapshot = newest(dataset);
        let reference = run("zfs", &[&["send"], flags, &[snapshot.as_str()]].concat());
        let before = attempts(&bench.keys_in_bucket()).len();
        let gate = Gate::new(&bench, At::Chunks(1), Passage::Held);
        let child = start(&bench, "proxied.toml", &["stream-to-remote", "--full"]);
        gate.wait_for(1);
        signal(&child, "KILL");
        child.wait_with_output().unwrap();
        gate.end();
        check_goes_on(&bench, dataset, "--full", &reference, before + 1);
    }
    assert_nothing_held(&secret);
}
