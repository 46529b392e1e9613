//! Uploads that are interrupted on a real pool go on where they stopped: whatever ends the run, the next plain one ends
//! in the same backup, whose stream is that of `zfs send` to the byte, and nothing is left held.

use crate::bench::Bench;
use crate::pool::{noise, run, zfs};
use crate::proxy::{Action, Proxy};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A proxy that lets parts wait once the journal knows so many confirmed chunks, so that what happens then happens in
/// the middle.
struct Gate {
    _proxy: Proxy,
    state: PathBuf,
    shut: Arc<AtomicBool>,
    refusing: Arc<AtomicBool>,
}

impl Gate {
    fn after(bench: &Bench, chunks: usize) -> Self {
        let (shut, refusing) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
        let (held, away, state) = (Arc::clone(&shut), Arc::clone(&refusing), bench.path("state"));
        let journal = state.clone();
        let proxy = Proxy::start(&bench.weed.endpoint(), move |head| {
            while head.contains("partnumber=2")
                && held.load(Ordering::SeqCst)
                && !away.load(Ordering::SeqCst)
                && confirmed(&journal) >= chunks
            {
                std::thread::sleep(Duration::from_millis(50));
            }
            if away.load(Ordering::SeqCst) { Action::Refuse(503, "SlowDown") } else { Action::Pass }
        });
        bench.write_config("proxied.toml", &proxy.endpoint());
        Self { _proxy: proxy, state, shut, refusing }
    }

    fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
    }

    fn wait_for(&self, chunks: usize) {
        let begun = Instant::now();
        while confirmed(&self.state) < chunks {
            assert!(begun.elapsed() < Duration::from_secs(180), "{chunks} confirmed chunks: not reached");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// The chunks that the journals know as confirmed. A chunk may be on its way meanwhile.
fn confirmed(state: &Path) -> usize {
    let folders = fs::read_dir(state.join("journal")).into_iter().flatten().flatten();
    let files = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    let texts = files.map(|file| fs::read_to_string(file.path()).unwrap_or_default());
    texts.map(|text| text.matches("\"record\":\"confirmed\"").count()).sum()
}

fn start(bench: &Bench, config: &str, arguments: &[&str]) -> Child {
    bench.command(config, arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, name: &str) {
    run("kill", &["-s", name, &child.id().to_string()]);
}

/// Begins an upload and ends it with a signal once so many chunks are confirmed.
fn interrupt(bench: &Bench, kind: &str, chunks: usize, signal_name: &str) -> Output {
    let gate = Gate::after(bench, chunks);
    let child = start(bench, "proxied.toml", &["stream-to-remote", kind]);
    gate.wait_for(chunks);
    signal(&child, signal_name);
    let output = child.wait_with_output().unwrap();
    gate.open();
    output
}

fn newest(dataset: &str) -> String {
    let listed = zfs(&["list", "-Hpo", "name", "-s", "createtxg", "-t", "snapshot", dataset]);
    listed.lines().last().unwrap().to_owned()
}

/// The chunks of unfinished uploads and of backups, by an independent client.
fn chunks_in_bucket(bench: &Bench) -> Vec<String> {
    bench.keys_in_bucket().into_iter().filter(|key| key.ends_with(".zfs.age")).collect()
}

fn attempts(bench: &Bench) -> usize {
    let mut ids: Vec<String> = bench.keys_in_bucket();
    ids.retain(|key| key.ends_with("started.json"));
    ids.len()
}

fn userrefs(dataset: &str) -> Vec<String> {
    let listed = zfs(&["list", "-Hpo", "userrefs", "-t", "snapshot", dataset]);
    listed.lines().map(str::to_owned).collect()
}

/// A plain run ends the upload under the same id; its stream is the reference's; nothing is held and nothing left over.
fn check_goes_on(bench: &Bench, dataset: &str, kind: &str, reference: &[u8], attempts_expected: usize) {
    let (before, kept) = (chunks_in_bucket(bench), confirmed(&bench.path("state")));
    let said = String::from_utf8(bench.good(&["stream-to-remote", kind])).unwrap();
    assert!(said.contains("committed"), "{said}");
    assert_eq!(attempts(bench), attempts_expected, "it began anew: {said}");
    let after = chunks_in_bucket(bench);
    let stayed = before.iter().filter(|chunk| after.contains(chunk)).count();
    assert!(stayed >= kept, "confirmed chunks were made again: {before:?} {after:?}");
    assert!(!bench.keys_in_bucket().iter().any(|key| key.contains("progress-")), "progress objects stay");
    let identity = bench.path("identity.txt").display().to_string();
    let id = said.split_whitespace().skip_while(|word| *word != "committed").nth(1).unwrap();
    let stream = bench.good(&bench.restore_arguments(dataset, &identity, &["--stdout", "--backup", id]));
    assert!(stream == reference, "the stream differs from that of zfs send");
    assert!(userrefs(dataset).iter().all(|refs| refs == "0"), "holds are left: {:?}", userrefs(dataset));
    let bookmarks = zfs(&["list", "-Hpo", "name", "-t", "bookmark", dataset]);
    assert!(!bookmarks.contains("_base_"), "a private bookmark is left: {bookmarks}");
    let verified = String::from_utf8(bench.good(&["verify-checksums"])).unwrap();
    assert!(verified.contains("0 damaged"), "{verified}");
}

#[test]
fn interrupted_killed_uploads_go_on_under_their_hold() {
    let bench = Bench::small("reskill");
    bench.good(&["snapshot"]);
    let snapshot = newest(&bench.dataset());
    let reference = run("zfs", &["send", "-L", "-c", &snapshot]);
    interrupt(&bench, "--full", 2, "KILL");
    assert!(chunks_in_bucket(&bench).len() >= 2 && confirmed(&bench.path("state")) == 2);
    let refused = std::process::Command::new("zfs").args(["destroy", &snapshot]).output().unwrap();
    assert!(!refused.status.success(), "a snapshot that an upload needs was destroyed");
    let held = String::from_utf8(bench.good(&["holds", "list"])).unwrap();
    assert!(held.contains("unfinished"), "{held}");
    let shown = String::from_utf8(bench.good(&["show", "--include-remote", &bench.dataset()])).unwrap();
    assert!(shown.contains("given up"), "{shown}");
    // Again, one chunk later; then it is ended.
    interrupt(&bench, "--full", 3, "KILL");
    assert!(confirmed(&bench.path("state")) >= 3);
    check_goes_on(&bench, &bench.dataset(), "--full", &reference, 1);
}

#[test]
fn interrupted_by_a_request_to_stop_and_by_a_pause_of_the_whole_process() {
    let bench = Bench::small("resterm");
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", &newest(&bench.dataset())]);
    let stopped = interrupt(&bench, "--full", 1, "TERM");
    assert_eq!(stopped.status.code(), Some(130), "{}", String::from_utf8_lossy(&stopped.stderr));
    let gate = Gate::after(&bench, 2);
    let child = start(&bench, "proxied.toml", &["stream-to-remote", "--full"]);
    gate.wait_for(2);
    signal(&child, "STOP");
    gate.open();
    std::thread::sleep(Duration::from_secs(10));
    signal(&child, "CONT");
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // The kernel ends a send whose process was stopped while it waited for its reader.
    assert!(output.status.success() || said.contains("EINTR"), "{said}");
    if output.status.success() {
        let identity = bench.path("identity.txt").display().to_string();
        let stream = bench.good(&bench.restore_arguments(&bench.dataset(), &identity, &["--stdout"]));
        assert!(stream == reference);
        assert!(userrefs(&bench.dataset()).iter().all(|refs| refs == "0"));
    } else {
        check_goes_on(&bench, &bench.dataset(), "--full", &reference, 1);
    }
}

#[test]
fn interrupted_by_a_store_that_is_away() {
    let bench = Bench::small("resaway");
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", &newest(&bench.dataset())]);
    let gate = Gate::after(&bench, 2);
    let child = start(&bench, "proxied.toml", &["stream-to-remote", "--full"]);
    gate.wait_for(2);
    gate.refusing.store(true, Ordering::SeqCst);
    gate.open();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    check_goes_on(&bench, &bench.dataset(), "--full", &reference, 1);
}

/// With the state folder gone, what lies in the store and is held in the pool is enough.
#[test]
fn interrupted_and_the_state_folder_is_lost() {
    let bench = Bench::small("reswipe");
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", &newest(&bench.dataset())]);
    interrupt(&bench, "--full", 2, "KILL");
    fs::remove_dir_all(bench.path("state")).unwrap();
    check_goes_on(&bench, &bench.dataset(), "--full", &reference, 1);
}

#[test]
fn interrupted_incrementals_from_a_bookmark_go_on() {
    let bench = Bench::small("resincr");
    let dataset = bench.dataset();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--full"]);
    let base = newest(&dataset);
    fs::write(bench.pool.file("data/more"), noise(16 << 20, 77)).unwrap();
    bench.good(&["snapshot"]);
    let reference = run("zfs", &["send", "-L", "-c", "-i", &base, &newest(&dataset)]);
    zfs(&["destroy", &base]);
    interrupt(&bench, "--incremental", 1, "KILL");
    // The base's own bookmark may go: the upload has one of its own.
    let bookmarks = zfs(&["list", "-Hpo", "name", "-t", "bookmark", &dataset]);
    let own = bookmarks.lines().find(|name| !name.contains("_base_")).unwrap();
    assert!(bookmarks.contains("_base_"), "{bookmarks}");
    zfs(&["destroy", own]);
    check_goes_on(&bench, &dataset, "--incremental", &reference, 2);
}

#[test]
fn interrupted_raw_sends_and_volumes_go_on() {
    let bench = Bench::small("resraw");
    let secret = format!("{}/secret", bench.pool.name);
    let options =
        ["create", "-o", "encryption=aes-256-gcm", "-o", "keyformat=passphrase", "-o", "pbkdf2iters=100000", &secret];
    crate::pool::run_with_input("zfs", &options, "correct horse\n");
    bench.pool.write("secret/file", 20 << 20, 7);
    let volume = format!("{}/vol", bench.pool.name);
    zfs(&["create", "-V", "24M", "-o", "volblocksize=16k", &volume]);
    let device = ["/dev/zd0".to_owned(), format!("/dev/zvol/{volume}")];
    let begun = Instant::now();
    let device = loop {
        if let Some(found) = device.iter().find(|path| fs::metadata(path).is_ok()) {
            break found;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "the volume has no device");
        std::thread::sleep(Duration::from_millis(100));
    };
    fs::write(device, noise(20 << 20, 9)).unwrap();
    run("zpool", &["sync"]);
    let original = fs::read_to_string(bench.path("zb.toml")).unwrap();
    for (dataset, flags) in [(&secret, &["-w", "-L", "-c"][..]), (&volume, &["-L", "-c"])] {
        let own = |text: &str| text.replace(&bench.dataset(), dataset);
        fs::write(bench.path("zb.toml"), own(&original)).unwrap();
        bench.good(&["snapshot"]);
        let snapshot = newest(dataset);
        let reference = run("zfs", &[&["send"], flags, &[snapshot.as_str()]].concat());
        let gate = Gate::after(&bench, 2);
        let proxied = fs::read_to_string(bench.path("proxied.toml")).unwrap();
        fs::write(bench.path("proxied.toml"), own(&proxied)).unwrap();
        let before = attempts(&bench);
        let child = start(&bench, "proxied.toml", &["stream-to-remote", "--full"]);
        gate.wait_for(2);
        signal(&child, "KILL");
        child.wait_with_output().unwrap();
        gate.open();
        check_goes_on(&bench, dataset, "--full", &reference, before + 1);
    }
}
