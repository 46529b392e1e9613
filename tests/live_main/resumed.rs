//! Restores that are interrupted on a real pool go on where they stopped: the same snapshots, the
//! same data, and what was received is not fetched again.

use crate::bench::{Bench, assert_same_tree, describe};
use crate::pool::{device_of, noise, property, run, wait_until, zfs};
use crate::proxy::{Action, Proxy};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zfs_backup::stream::fletcher::ByteOrder;
use zfs_backup::stream::record::{HEADER_BYTES, RecordHeader, RecordType};

/// A proxy that counts the bytes of chunks that are asked for, and lets the fetch of some chunk
/// wait.
struct Gate {
    _proxy: Proxy,
    shut: Arc<AtomicBool>,
    waiting: Arc<AtomicBool>,
    away: Arc<AtomicBool>,
    fetched: Arc<AtomicU64>,
    keys: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Gate {
    /// Before the first chunk whose key has all of these in it. No parts: open.
    fn before(bench: &Bench, parts: &'static [&'static str]) -> Self {
        let [shut, waiting, away] =
            [!parts.is_empty(), false, false].map(|on| Arc::new(AtomicBool::new(on)));
        let (fetched, keys) = (Arc::new(AtomicU64::new(0)), Arc::default());
        let (held, waits, gone, sum) = (
            Arc::clone(&shut),
            Arc::clone(&waiting),
            Arc::clone(&away),
            Arc::clone(&fetched),
        );
        let seen: Arc<Mutex<BTreeMap<String, u64>>> = Arc::clone(&keys);
        let proxy = Proxy::start(&bench.weed.endpoint(), move |head| {
            let line = head.lines().next().unwrap_or_default();
            if !line.starts_with("get ") || !line.contains(".zfs") {
                return Action::Pass;
            }
            while parts.iter().all(|part| line.contains(part)) && held.load(Ordering::SeqCst) {
                waits.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(50));
            }
            if gone.load(Ordering::SeqCst) {
                return Action::Refuse(503, "SlowDown");
            }
            let bytes = range_bytes(head);
            sum.fetch_add(bytes, Ordering::SeqCst);
            *seen.lock().unwrap().entry(line.to_owned()).or_default() += bytes;
            Action::Pass
        });
        bench.write_config("proxied.toml", &proxy.endpoint());
        Self {
            _proxy: proxy,
            shut,
            waiting,
            away,
            fetched,
            keys,
        }
    }

    fn fetched(&self) -> u64 {
        self.fetched.load(Ordering::SeqCst)
    }

    fn open(&self) {
        self.shut.store(false, Ordering::SeqCst);
    }

    /// Until the fetch of that chunk waits, and the pool has recorded at least half of what came
    /// before. The rest may be in buffers.
    fn wait(&self, target: &str, chunk: u64) {
        wait_until("the chunk is asked for", || {
            self.waiting.load(Ordering::SeqCst)
        });
        wait_until("the pool has what was received", || {
            2 * received_bytes(target) >= chunk * CHUNK_BYTES
        });
    }
}

/// Stream bytes in a chunk of [`Bench::large_chunks`].
const CHUNK_BYTES: u64 = 6 << 20;

/// The bytes of a stream from which the kernel would resume a receive that is at work.
fn received_bytes(target: &str) -> u64 {
    // The place is written down with each transaction group.
    run("zpool", &["sync"]);
    let zfs = |arguments: &[&str]| Command::new("zfs").args(arguments).output().unwrap();
    let token = zfs(&["get", "-Ho", "value", "receive_resume_token", target]);
    let described = zfs(&["send", "-nvt", text(&token.stdout).trim()]);
    let described = text(&described.stdout) + &text(&described.stderr);
    let bytes = described
        .lines()
        .find_map(|line| line.trim().strip_prefix("bytes = 0x"));
    bytes.map_or(0, |bytes| u64::from_str_radix(bytes, 16).unwrap())
}

/// Of `range: bytes=A-B`.
fn range_bytes(head: &str) -> u64 {
    let range = head
        .lines()
        .find_map(|line| line.strip_prefix("range: bytes="))
        .expect("chunks are read by ranges");
    let (first, last) = range.trim().split_once('-').unwrap();
    last.parse::<u64>().unwrap() - first.parse::<u64>().unwrap() + 1
}

fn arguments<'a>(
    bench: &Bench,
    dataset: &'a str,
    identity: &'a str,
    to: &[&'a str],
) -> Vec<&'a str> {
    bench.restore_arguments(dataset, identity, to)
}

fn identity(bench: &Bench) -> String {
    bench.path("identity.txt").display().to_string()
}

/// Begins a restore and ends it with a signal once it waits for that chunk.
fn interrupt(
    bench: &Bench,
    dataset: &str,
    target: &str,
    parts: &'static [&'static str],
    signal: &str,
) -> Output {
    let gate = Gate::before(bench, parts);
    let (_, number) = parts.last().unwrap().split_once('/').unwrap();
    let chunk = number.trim_end_matches('-').parse().unwrap();
    let identity = identity(bench);
    let mut command = bench.command(
        "proxied.toml",
        &arguments(bench, dataset, &identity, &["--to", target]),
    );
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    gate.wait(target, chunk);
    run("kill", &["-s", signal, &child.id().to_string()]);
    let output = child.wait_with_output().unwrap();
    gate.open();
    wait_until("the kernel has written down where it stopped", || {
        property(&target, "receive_resume_token") != "-"
    });
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The same restore again, to its end: what it said, and the bytes of chunks that it fetched.
#[track_caller]
fn go_on(bench: &Bench, dataset: &str, to: &[&str]) -> (String, u64) {
    let gate = Gate::before(bench, &[]);
    let identity = identity(bench);
    let output = bench
        .command("proxied.toml", &arguments(bench, dataset, &identity, to))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    (text(&output.stdout) + &text(&output.stderr), gate.fetched())
}

/// What finding the place may cost: a chunk of 6 MiB for each of the three records that are looked
/// for, and BEGIN.
const LOOKS_MAX: u64 = 20 << 20;

/// The bytes that it says it fetches from there on, rounded up to MiB.
fn to_fetch(said: &str) -> u64 {
    let number = said
        .split_once(" are fetched")
        .unwrap()
        .0
        .rsplit_once(" and ")
        .unwrap()
        .1;
    let whole = number.split(['.', 'M']).next().unwrap();
    assert!(number.ends_with('M'), "{said}");
    (whole.parse::<u64>().unwrap() + 1) << 20
}

/// The records of a stream, without what depends on where it began and what the dataset is called.
fn records(stream: &[u8]) -> Vec<(RecordType, blake3::Hash)> {
    let (mut at, mut records) = (0, Vec::new());
    while let Some(header) = stream[at..].first_chunk::<HEADER_BYTES>() {
        let header = RecordHeader::new(*header, ByteOrder::Little);
        let end = at + HEADER_BYTES + usize::try_from(header.payload_bytes().unwrap()).unwrap();
        let kind = header.record_type();
        if !matches!(kind, RecordType::Begin | RecordType::End) {
            let mut hasher = blake3::Hasher::new();
            hasher
                .update(&header.bytes_without_checksum())
                .update(&stream[at + HEADER_BYTES..end]);
            records.push((kind, hasher.finalize()));
        }
        at = end;
    }
    assert_eq!(at, stream.len());
    records
}

/// Every snapshot has its guid, and ZFS sends of each what it sends of the source.
#[track_caller]
fn assert_same_dataset(source: &str, target: &str, flags: &[&str]) {
    let snapshots = |dataset: &str| {
        let listed = zfs(&[
            "list",
            "-Hpo",
            "name,guid",
            "-s",
            "createtxg",
            "-t",
            "snapshot",
            dataset,
        ]);
        listed
            .lines()
            .map(|line| line.split_once('@').unwrap().1.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(snapshots(source), snapshots(target));
    let mut base: Option<String> = None;
    for snapshot in snapshots(source) {
        let short = snapshot.split_whitespace().next().unwrap();
        let send = |dataset: &str| {
            let from = base.as_ref().map(|base| format!("{dataset}@{base}"));
            let from = from.iter().flat_map(|from| ["-i", from.as_str()]);
            let name = format!("{dataset}@{short}");
            let mut arguments = [&["send"], flags].concat();
            arguments.extend(from);
            arguments.push(&name);
            records(&run("zfs", &arguments))
        };
        let (expected, found) = (send(source), send(target));
        let differs = expected.iter().zip(&found).position(|(a, b)| a != b);
        assert!(
            expected == found,
            "{short}: {} and {} records, {differs:?}",
            expected.len(),
            found.len()
        );
        base = Some(short.to_owned());
    }
    assert_eq!(property(&target, "receive_resume_token"), "-");
    assert_eq!(
        zfs(&["get", "-Ho", "value", "zfs-backup:restoring", target]),
        "-"
    );
}

#[test]
fn resumed_full_after_kill_term_and_an_unreachable_store() {
    let bench = Bench::large_chunks("rrfull");
    let dataset = bench.dataset();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--full"]);
    let whole = Gate::before(&bench, &[]);
    let (target, plain) = (
        format!("{}/deep/back", bench.pool.name),
        format!("{}/plain", bench.pool.name),
    );
    let identity = identity(&bench);
    let output = bench
        .command(
            "proxied.toml",
            &arguments(&bench, &dataset, &identity, &["--to", &plain]),
        )
        .output();
    assert!(output.unwrap().status.success());
    let all = whole.fetched();
    assert!(all > 20 << 20, "{all}");

    interrupt(&bench, &dataset, &target, &["/00000002-"], "KILL");
    let mark = zfs(&[
        "get",
        "-Ho",
        "value,source",
        "zfs-backup:restoring",
        &target,
    ]);
    assert!(
        mark.contains("-full-") && mark.contains(" new") && mark.ends_with("local"),
        "{mark}"
    );
    // What would be done is said, and nothing is done.
    let to = ["--to", &target];
    let dry = bench.good(
        &[
            &["--dry-run"][..],
            &arguments(&bench, &dataset, &identity, &to),
        ]
        .concat(),
    );
    let dry = text(&dry);
    assert!(
        dry.contains("interrupted before;") && dry.contains(" resumes at "),
        "{dry}"
    );
    println!("{dry}");

    let stopped = interrupt(&bench, &dataset, &target, &["/00000003-"], "TERM");
    assert_eq!(
        stopped.status.code(),
        Some(130),
        "{}",
        text(&stopped.stderr)
    );
    assert!(
        text(&stopped.stderr).contains("keeps what was received"),
        "{}",
        text(&stopped.stderr)
    );

    let gate = Gate::before(&bench, &["/00000003-"]);
    let mut command = bench.command("proxied.toml", &arguments(&bench, &dataset, &identity, &to));
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    gate.wait(&target, 3);
    gate.away.store(true, Ordering::SeqCst);
    gate.open();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));

    let (said, fetched) = go_on(&bench, &dataset, &to);
    assert!(
        said.contains("interrupted before;") && said.contains("received "),
        "{said}"
    );
    println!("full: {fetched} of {all} bytes fetched after three interruptions");
    assert!(
        fetched < to_fetch(&said) + LOOKS_MAX && to_fetch(&said) * 4 < all * 3,
        "{fetched} of {all}: {said}"
    );
    assert_same_dataset(&dataset, &target, &["-L", "-c"]);
    assert_same_dataset(&dataset, &plain, &["-L", "-c"]);
    zfs(&["mount", &target]);
    run("zpool", &["sync"]);
    assert_same_tree(
        &describe(&bench.pool.file("data")),
        &describe(&bench.pool.file("deep/back")),
    );
}

#[test]
fn resumed_incremental_within_a_chain_and_after_a_rollback() {
    let bench = Bench::large_chunks("rrincr");
    let dataset = bench.dataset();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--full"]);
    fs::write(bench.pool.file("data/more"), noise(16 << 20, 77)).unwrap();
    fs::remove_file(bench.pool.file("data/small-3")).unwrap();
    fs::write(bench.pool.file("data/small-4"), noise(3 << 20, 4)).unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--incremental"]);
    fs::write(bench.pool.file("data/last"), noise(1 << 20, 78)).unwrap();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--incremental"]);

    let target = format!("{}/back", bench.pool.name);
    interrupt(&bench, &dataset, &target, &["-incr-", "/00000002-"], "KILL");
    assert_eq!(property(&target, "readonly"), "on");
    let gate = Gate::before(&bench, &[]);
    let identity = identity(&bench);
    let output = bench
        .command(
            "proxied.toml",
            &arguments(&bench, &dataset, &identity, &["--to", &target]),
        )
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        gate.keys
            .lock()
            .unwrap()
            .keys()
            .all(|key| !key.contains("-full-")),
        "the full was fetched again"
    );
    println!(
        "incremental: {} bytes fetched; {}",
        gate.fetched(),
        text(&output.stdout)
    );
    assert!(text(&output.stdout).contains("interrupted before;"));
    assert_eq!(property(&target, "readonly"), "off");
    assert_same_dataset(&dataset, &target, &["-L", "-c"]);

    // Onto one that was there: the newest in common, then its own way.
    let onto = format!("{}/onto", bench.pool.name);
    let full = bench
        .keys_in_bucket()
        .into_iter()
        .find(|key| key.contains("-full-") && key.ends_with("/manifest.json"));
    let id = full
        .unwrap()
        .split_once("/@")
        .unwrap()
        .1
        .trim_end_matches("/manifest.json")
        .to_owned();
    bench.good(&arguments(
        &bench,
        &dataset,
        &identity,
        &["--to", &onto, "--backup", &id],
    ));
    zfs(&["mount", &onto]);
    fs::write(bench.pool.file("onto/mine"), noise(50_000, 9)).unwrap();
    zfs(&["snapshot", &format!("{onto}@mine")]);
    let gate = Gate::before(&bench, &["-incr-", "/00000002-"]);
    let rollback = ["--to", onto.as_str(), "--force-rollback", "-y"];
    let mut command = bench.command(
        "proxied.toml",
        &arguments(&bench, &dataset, &identity, &rollback),
    );
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    gate.wait(&onto, 2);
    child.kill().unwrap();
    child.wait().unwrap();
    gate.open();
    // Marked and readonly: it is the beginning of this restore, and a plain command resumes it.
    assert_eq!(property(&onto, "readonly"), "on");
    let (said, _) = go_on(&bench, &dataset, &["--to", &onto]);
    assert!(said.contains("interrupted before;"), "{said}");
    assert_same_dataset(&dataset, &onto, &["-L", "-c"]);
    // A mount that was made readonly with it may stay so, which is said; else it takes files again.
    let words: Vec<&str> = said.split_whitespace().collect();
    let is_said = words.join(" ").contains("mount -o remount,rw");
    let is_writable = fs::write(bench.pool.file("onto/after"), b"x").is_ok();
    assert!(
        is_said != is_writable,
        "said: {is_said}, writable: {is_writable}: {said}"
    );
    zfs(&["unmount", &onto]);
    assert_eq!(property(&onto, "readonly"), "off");
}

/// A raw dataset with many files, one of them large, and a volume: all that the kernel wants
/// repeated.
#[test]
fn resumed_raw_datasets_volumes_and_compressed_chunks() {
    let bench = Bench::large_chunks("rrraw");
    let secret = format!("{}/secret", bench.pool.name);
    let options = [
        "create",
        "-o",
        "encryption=aes-256-gcm",
        "-o",
        "keyformat=passphrase",
        "-o",
        "pbkdf2iters=100000",
        &secret,
    ];
    crate::pool::run_with_input("zfs", &options, "correct horse\n");
    for number in 0..100 {
        bench.pool.write(
            &format!("secret/before-{number}"),
            3000 + number * 211,
            number as u64,
        );
    }
    bench.pool.write("secret/large", 17 << 20, 7);
    for number in 0..100 {
        bench.pool.write(
            &format!("secret/after-{number}"),
            3000 + number * 211,
            300 + number as u64,
        );
    }
    bench.pool.write("secret/end", 5 << 20, 8);
    let volume = format!("{}/vol", bench.pool.name);
    zfs(&["create", "-V", "24M", "-o", "volblocksize=16k", &volume]);
    write_volume(&volume);
    let original = fs::read_to_string(bench.path("zb.toml")).unwrap();
    let zstd = "[send]\ncompression = \"zstd\"\n";
    for (dataset, flags, sections, place, chunk) in [
        (&secret, &["-w"][..], "", "raw", &["/00000002-"]),
        (&volume, &["-L", "-c"][..], "", "volume", &["/00000002-"]),
        (
            &bench.dataset(),
            &["-L", "-c"][..],
            zstd,
            "zstd",
            &["/00000003-"],
        ),
    ] {
        let own = |text: &str| format!("{}{sections}", text.replace(&bench.dataset(), dataset));
        fs::write(bench.path("zb.toml"), own(&original)).unwrap();
        bench.good(&["snapshot"]);
        bench.good(&["stream-to-remote", "--full"]);
        let target = format!("{}/{place}", bench.pool.name);
        interrupt(&bench, dataset, &target, chunk, "KILL");
        let (said, fetched) = go_on(&bench, dataset, &["--to", &target]);
        println!("{place}: {fetched} bytes fetched; {said}");
        assert!(said.contains("interrupted before;"), "{place}: {said}");
        assert!(
            fetched < to_fetch(&said) + LOOKS_MAX && to_fetch(&said) < 20 << 20,
            "{place}: {fetched}: {said}"
        );
        assert_same_dataset(dataset, &target, flags);
    }
    let raw = format!("{}/raw", bench.pool.name);
    crate::pool::run_with_input("zfs", &["load-key", &raw], "correct horse\n");
    zfs(&["mount", &raw]);
    let files = |place: &str| {
        let script = "cd \"$1\" && find . -type f -print0 | sort -z | xargs -0 b3sum";
        text(&run(
            "sh",
            &["-c", script, "sh", bench.pool.file(place).to_str().unwrap()],
        ))
    };
    assert!(files("raw").lines().count() == 202 && files("raw") == files("secret"));
}

fn write_volume(volume: &str) {
    let device = device_of(volume);
    fs::write(device, noise(20 << 20, 9)).unwrap();
    run("zpool", &["sync"]);
}

#[test]
fn resumed_only_for_own_receives_and_restarted_on_request() {
    let bench = Bench::large_chunks("rrother");
    let dataset = bench.dataset();
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--full"]);
    let snapshot = zfs(&["list", "-Hpo", "name", "-t", "snapshot", &dataset]);
    // Somebody's receive of another snapshot.
    bench.pool.create("theirs");
    bench.pool.write("theirs/file", 3 << 20, 5);
    zfs(&["snapshot", &format!("{}/theirs@1", bench.pool.name)]);
    let target = format!("{}/back", bench.pool.name);
    let cut = |sent: &str| {
        let script = format!(
            "zfs send -L -c {sent} | head -c 2000000 | zfs receive -s -u {target} 2>/dev/null"
        );
        Command::new("sh").args(["-c", &script]).status().unwrap();
        assert_ne!(property(&target, "receive_resume_token"), "-");
    };
    cut(&format!("{}/theirs@1", bench.pool.name));
    let identity = identity(&bench);
    for to in [&["--to", &target][..], &["--to", &target, "--restart"]] {
        let refused = bench.zb(&arguments(&bench, &dataset, &identity, to));
        let said = text(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("zfs receive -A {target}")), "{said}");
        assert_ne!(property(&target, "receive_resume_token"), "-");
    }
    zfs(&["receive", "-A", &target]);
    // One of the very snapshot that we have goes on, whoever began it.
    cut(&snapshot);
    let (said, _) = go_on(&bench, &dataset, &["--to", &target]);
    assert!(said.contains("interrupted before;"), "{said}");
    assert_same_dataset(&dataset, &target, &["-L", "-c"]);

    let again = format!("{}/again", bench.pool.name);
    interrupt(&bench, &dataset, &again, &["/00000002-"], "KILL");
    let (said, fetched) = go_on(&bench, &dataset, &["--to", &again, "--restart"]);
    assert!(
        !said.contains("interrupted before;") && fetched > 20 << 20,
        "{fetched}: {said}"
    );
    assert_same_dataset(&dataset, &again, &["-L", "-c"]);
    bench.good(&["drill", "--identity", &identity]);
    assert!(!zfs(&["list", "-Hro", "name", &bench.pool.name]).contains("drill"));
}
