//! What the tests of interrupted uploads share: a gate before the server, ways to end a run in the
//! middle, and all that must hold after the run that follows.

use crate::bench::Bench;
use crate::pool::{device_of, run, threads, wait_until, zfs};
use crate::proxy::{Action, Proxy};
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(20);

/// What happens to requests at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Passage {
    /// They wait.
    Held,
    /// They go through.
    Open,
    /// The server is away: all of them get 503, also those before the gate.
    Away,
    /// All of them get 500.
    Broken,
}

/// Where the gate stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    /// Within the chunk that follows so many chunks, and all chunks after it.
    Chunks(usize),
    /// Before the n-th request, counted from 1, and all after it.
    Request(usize),
}

/// A proxy that lets requests wait, or fails them, from some point on.
pub(crate) struct Gate {
    proxy: Proxy,
    state: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    passage: AtomicU8,
    seen: AtomicUsize,
    reached: AtomicBool,
}

impl Gate {
    /// The configuration `proxied.toml` goes through it.
    pub(crate) fn new(bench: &Bench, at: At, passage: Passage) -> Self {
        let state = bench.path("state");
        let passage = AtomicU8::new(passage as u8);
        let shared = Arc::new(Shared {
            passage,
            seen: AtomicUsize::new(0),
            reached: AtomicBool::new(false),
        });
        let at_gate = Arc::clone(&shared);
        // With several parts a chunk, the first one is there when the gate shuts.
        let part = if bench.split_size.ends_with('K') {
            "partnumber=1"
        } else {
            "partnumber=2"
        };
        let proxy = Proxy::start(&bench.weed.endpoint(), move |head| {
            let number = at_gate.seen.fetch_add(1, Ordering::SeqCst) + 1;
            let reached = || match at {
                At::Chunks(chunks) => {
                    head.contains(part) && chunk_number(head).is_some_and(|n| n >= chunks)
                }
                At::Request(n) => number >= n,
            };
            loop {
                let passage = at_gate.passage.load(Ordering::SeqCst);
                let refused = matches!(at, At::Chunks(_)) || reached();
                match passage {
                    p if p == Passage::Away as u8 && refused => {
                        return Action::Refuse(503, "SlowDown");
                    }
                    p if p == Passage::Broken as u8 && refused => {
                        return Action::Refuse(500, "InternalError");
                    }
                    p if p == Passage::Held as u8 && reached() => {
                        at_gate.reached.store(true, Ordering::SeqCst)
                    }
                    _ => return Action::Pass,
                }
                std::thread::sleep(POLL);
            }
        });
        bench.write_config("proxied.toml", &proxy.endpoint());
        bench.trust_endpoint(&proxy.endpoint());
        Self {
            proxy,
            state,
            shared,
        }
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> String {
        self.proxy.endpoint()
    }

    pub(crate) fn set(&self, passage: Passage) {
        self.shared.passage.store(passage as u8, Ordering::SeqCst);
    }

    /// Ends the gate after the program has ended. The requests that still waited never reach the
    /// server, and those that were forwarded are answered: the store changes no more.
    pub(crate) fn end(&self) {
        self.set(Passage::Open);
        self.proxy.wait_until_idle();
    }

    /// Requests that came so far.
    pub(crate) fn requests(&self) -> usize {
        self.shared.seen.load(Ordering::SeqCst)
    }

    /// Waits until so many chunks are confirmed and a part of a later chunk waits at the gate.
    pub(crate) fn wait_for(&self, chunks: usize) {
        let what = format!("{chunks} chunks are confirmed and a part waits at the gate");
        wait_until(&what, || {
            confirmed(&self.state) >= chunks && self.shared.reached.load(Ordering::SeqCst)
        });
    }

    /// Until a request waits at the gate; false when the run was over before.
    pub(crate) fn wait(&self, child: &mut Child) -> bool {
        let reached = || self.shared.reached.load(Ordering::SeqCst);
        wait_until("the gate is reached", || {
            reached() || child.try_wait().unwrap().is_some()
        });
        reached()
    }
}

/// Whether a request sends the first part of a chunk.
pub(crate) fn is_part_of_chunk(head: &str) -> bool {
    head.starts_with("put ") && head.contains(".zfs.age") && head.contains("partnumber=1")
}

/// The number of the chunk, counted from 0, that a request is about.
pub(crate) fn chunk_number(head: &str) -> Option<usize> {
    let object = head.split_once(".zfs.age")?.0.rsplit_once('/')?.1;
    object.split_once('-')?.0.parse().ok()
}

/// The chunks that the journals know as confirmed, by whole lines: the last may be torn. A chunk
/// may be on its way meanwhile.
pub(crate) fn confirmed(state: &Path) -> usize {
    let texts = journals(state)
        .into_iter()
        .map(|file| fs::read_to_string(file).unwrap_or_default());
    let is_confirmed =
        |line: &&str| line.ends_with('\n') && line.contains("\"record\":\"confirmed\"");
    texts
        .map(|text| text.split_inclusive('\n').filter(is_confirmed).count())
        .sum()
}

/// The files of attempts that are not over.
pub(crate) fn journals(state: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(state.join("journal"))
        .into_iter()
        .flatten()
        .flatten();
    let files =
        folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
    files.map(|file| file.path()).collect()
}

/// Starts the program, in a process group of its own as a shell does: else Ctrl-Z would not stop
/// it.
pub(crate) fn start(bench: &Bench, config: &str, arguments: &[&str]) -> Child {
    let mut command = bench.command(config, arguments);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap()
}

pub(crate) fn signal(child: &Child, name: &str) {
    run("kill", &["-s", name, &child.id().to_string()]);
}

/// Stops the process with a signal, and continues it after the kernel has ended its send, as the
/// kernel does when the process that sends was stopped.
pub(crate) fn stop_and_go_on(child: &Child, name: &str, gate: &Gate) {
    signal(child, name);
    let folder = PathBuf::from(format!("/proc/{}", child.id()));
    wait_until("the process is stopped", || {
        process_state(&folder) == Some('T')
    });
    gate.set(Passage::Open);
    // A thread in the kernel stops when its call returns.
    wait_until("the kernel has ended the send", || {
        threads(&folder, "zfs-send")
            .iter()
            .all(|thread| process_state(thread) == Some('T'))
    });
    signal(child, "CONT");
}

/// The state of a process or thread, by its folder in `/proc`; `None` once it has ended.
fn process_state(folder: &Path) -> Option<char> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Reads the standard error of a child until it has said something or has ended.
pub(crate) fn wait_for_words(child: &mut Child, words: &str) {
    let stderr = child.stderr.as_mut().unwrap();
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&said).contains(words) {
        if stderr.read(&mut byte).unwrap() == 0 {
            return;
        }
        said.push(byte[0]);
    }
}

/// Begins an upload and ends it with a signal once so many chunks are confirmed.
pub(crate) fn interrupt(bench: &Bench, kind: &str, chunks: usize, signal_name: &str) -> Output {
    let gate = Gate::new(bench, At::Chunks(chunks), Passage::Held);
    let child = start(bench, "proxied.toml", &["stream-to-remote", kind]);
    gate.wait_for(chunks);
    signal(&child, signal_name);
    let output = child.wait_with_output().unwrap();
    gate.end();
    output
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub(crate) fn newest(dataset: &str) -> String {
    let listed = zfs(&[
        "list",
        "-Hpo",
        "name",
        "-s",
        "createtxg",
        "-t",
        "snapshot",
        dataset,
    ]);
    listed.lines().last().unwrap().to_owned()
}

fn is_chunk(key: &str) -> bool {
    key.ends_with(".zfs.age")
}

fn id_of(key: &str) -> Option<&str> {
    Some(key.split_once("/@")?.1.split_once('/')?.0).filter(|id| id.starts_with('2'))
}

/// The attempts and backups that the bucket has anything of, by an independent client.
pub(crate) fn attempts(keys: &[String]) -> BTreeSet<&str> {
    keys.iter().filter_map(|key| id_of(key)).collect()
}

/// Those without a manifest.
pub(crate) fn unfinished(keys: &[String]) -> BTreeSet<&str> {
    let manifests = keys.iter().filter(|key| key.ends_with("/manifest.json"));
    let committed: BTreeSet<&str> = manifests.filter_map(|key| id_of(key)).collect();
    attempts(keys).difference(&committed).copied().collect()
}

pub(crate) fn assert_nothing_held(dataset: &str) {
    let listed = zfs(&["list", "-Hpo", "name,userrefs", "-t", "snapshot", dataset]);
    assert!(
        listed.lines().all(|line| line.ends_with("\t0")),
        "holds are left: {listed}"
    );
    let bookmarks = zfs(&["list", "-Hpo", "name", "-t", "bookmark", dataset]);
    assert!(
        !bookmarks.contains("_base_"),
        "a private bookmark is left: {bookmarks}"
    );
}

/// No journal of an attempt that is not over, and no file that was to become another one.
fn assert_nothing_temporary(bench: &Bench) {
    let folders = [
        bench.path("state").display().to_string(),
        bench.path("intermediate").display().to_string(),
    ];
    let found = run("find", &[&folders[0], &folders[1], "-type", "f"]);
    let files = String::from_utf8(found).unwrap();
    let endings = [".partial", ".new", "-new", ".tmp", ".begun", ".committing"];
    let left: Vec<&str> = files
        .lines()
        .filter(|file| endings.iter().any(|end| file.ends_with(end)))
        .collect();
    assert_eq!(left, [""; 0], "files are left");
}

/// A plain run ends the upload; under the same id where `attempts_expected` ids have anything in
/// the bucket then.
pub(crate) fn check_goes_on(
    bench: &Bench,
    dataset: &str,
    kind: &str,
    reference: &[u8],
    attempts_expected: usize,
) {
    let (before, kept) = (bench.keys_in_bucket(), confirmed(&bench.path("state")));
    assert!(
        unfinished(&before).len() <= 1,
        "more than one upload is unfinished: {before:?}"
    );
    let said = String::from_utf8(bench.good(&["stream-to-remote", kind])).unwrap();
    let after = bench.keys_in_bucket();
    assert_eq!(
        attempts(&after).len(),
        attempts_expected,
        "it began anew: {said}"
    );
    let stayed = before
        .iter()
        .filter(|key| is_chunk(key) && after.contains(key))
        .count();
    assert!(
        stayed >= kept,
        "confirmed chunks were made again: {before:?} {after:?}"
    );
    check_ended(bench, dataset, &said, reference);
    assert_eq!(unfinished(&after), BTreeSet::new());
}

/// What a run said to be committed is the reference, byte for byte, and nothing is held and nothing
/// left over.
pub(crate) fn check_ended(bench: &Bench, dataset: &str, said: &str, reference: &[u8]) {
    let words: Vec<&str> = said.split_whitespace().collect();
    let mut pairs = words.windows(2).rev();
    let id = pairs
        .find(|pair| pair[0] == "committed" && pair[1].starts_with('2'))
        .map(|pair| pair[1]);
    check_backup(
        bench,
        dataset,
        id.unwrap_or_else(|| panic!("nothing was committed: {said}")),
        reference,
    );
}

pub(crate) fn check_backup(bench: &Bench, dataset: &str, id: &str, reference: &[u8]) {
    let keys = bench.keys_in_bucket();
    assert!(
        !keys
            .iter()
            .any(|key| key.contains(id) && key.contains("progress-")),
        "progress objects stay: {keys:?}"
    );
    let identity = bench.path("identity.txt").display().to_string();
    // Under its name in the store, which is the first that it had.
    let of_id = keys.iter().find(|key| id_of(key) == Some(id)).unwrap();
    let stored = of_id.split_once("/@").unwrap().0;
    let stream =
        bench.good(&bench.restore_arguments(stored, &identity, &["--stdout", "--backup", id]));
    assert!(
        stream == reference,
        "the stream of {id} differs from that of zfs send"
    );
    assert_nothing_held(dataset);
    let verified = String::from_utf8(bench.good(&["verify-checksums"])).unwrap();
    let extra = verified
        .lines()
        .find(|line| line.contains("  extra ") && line.contains(id));
    assert!(
        verified.contains("0 damaged") && extra.is_none(),
        "{verified}"
    );
    assert_eq!(bench.open_uploads(), 0, "multipart uploads are open");
    assert_nothing_temporary(bench);
}

/// A dataset that is encrypted and one that is a volume, with some 2 MB of noise in each.
pub(crate) fn add_secret(bench: &Bench) -> String {
    let name = format!("{}/secret", bench.pool.name);
    let options = [
        "create",
        "-o",
        "encryption=aes-256-gcm",
        "-o",
        "keyformat=passphrase",
        "-o",
        "pbkdf2iters=100000",
        &name,
    ];
    crate::pool::run_with_input("zfs", &options, "correct horse\n");
    bench.pool.write("secret/file", 2 << 20, 7);
    name
}

/// A volume, and the device that it is written through.
pub(crate) fn add_volume(bench: &Bench) -> (String, PathBuf) {
    let name = format!("{}/vol", bench.pool.name);
    zfs(&["create", "-V", "8M", "-o", "volblocksize=16k", &name]);
    let device = device_of(&name);
    (name, device)
}

/// Everything is on the pool's disk.
pub(crate) fn settle() {
    run("zpool", &["sync"]);
}
