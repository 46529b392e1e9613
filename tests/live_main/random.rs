//! Interruptions at random points: full and incremental, raw and not, a volume, all kinds of
//! interruption mixed, several in one upload. The seed is printed; with it the same choices are
//! made again.
//!
//! ```text
//! ZFS_BACKUP_TEST_SEED=7 ZFS_BACKUP_TEST_INTERRUPTIONS=100 live_main random
//! ```

use crate::bench::{Bench, tell};
use crate::halves::{
    At, Gate, Passage, add_secret, add_volume, check_backup, newest, settle, signal, start,
    stop_and_go_on, text, unfinished, wait_for_words,
};
use crate::pool::{noise, property, run, zfs};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Output;

/// How a run is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Kill,
    Term,
    Int,
    Stop,
    CtrlZ,
    StateLost,
    StoreAway,
    Status500,
}

/// As often as they are worth: most crashes are kills.
const ENDS: [End; 16] = [
    End::Kill,
    End::Kill,
    End::Kill,
    End::Kill,
    End::Kill,
    End::Kill,
    End::Term,
    End::Term,
    End::Int,
    End::Int,
    End::Stop,
    End::CtrlZ,
    End::StateLost,
    End::StateLost,
    End::StoreAway,
    End::Status500,
];

/// Always the same for one seed (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((word ^ (word >> 31)) % bound as u64).unwrap()
    }
}

fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

/// A dataset that is backed up.
struct Subject {
    what: &'static str,
    dataset: String,
    flags: &'static [&'static str],
    device: Option<PathBuf>,
    /// The snapshot of its newest backup.
    backed_up: Option<String>,
}

impl Subject {
    fn new(what: &'static str, dataset: String, device: Option<PathBuf>) -> Self {
        let flags: &[&str] = if what == "raw" {
            &["-w", "-L", "-c"]
        } else {
            &["-L", "-c"]
        };
        Self {
            what,
            dataset,
            flags,
            device,
            backed_up: None,
        }
    }

    fn change(&self, bench: &Bench, random: &mut Random) {
        let bytes = noise(
            (1 << 20) + random.below(400_000),
            random.below(1 << 30) as u64,
        );
        match &self.device {
            Some(device) => {
                let volume = fs::OpenOptions::new().write(true).open(device).unwrap();
                volume
                    .write_all_at(&bytes, (random.below(64) << 16) as u64)
                    .unwrap();
                volume.sync_all().unwrap();
            }
            None => {
                let place = self.dataset.split_once('/').unwrap().1;
                fs::write(bench.pool.file(&format!("{place}/changed")), bytes).unwrap();
            }
        }
        settle();
    }
}

#[test]
fn random_interruptions_end_in_whole_backups() {
    let seed = setting("ZFS_BACKUP_TEST_SEED", 1);
    let wanted = usize::try_from(setting("ZFS_BACKUP_TEST_INTERRUPTIONS", 12)).unwrap();
    tell(&format!(
        "random interruptions: seed {seed}, {wanted} wanted"
    ));
    let bench = Bench::tiny("random");
    // Tries the server, so that what is interrupted later is uploads and nothing else.
    bench.zb(&["doctor"]);
    let secret = add_secret(&bench);
    let (volume, device) = add_volume(&bench);
    let subjects = [
        ("plain", bench.dataset(), None),
        ("raw", secret, None),
        ("volume", volume, Some(device)),
    ];
    let mut subjects = subjects.map(|(what, dataset, device)| Subject::new(what, dataset, device));
    let mut rounds = Rounds {
        bench,
        random: Random(seed),
        done: BTreeMap::new(),
        requests: BTreeMap::new(),
    };
    while rounds.count() < wanted {
        let chosen = rounds.random.below(subjects.len());
        rounds.round(&mut subjects[chosen]);
    }
    tell(&format!(
        "random interruptions with seed {seed}: {} of them, by what was sent",
        rounds.count()
    ));
    let mut lines: BTreeMap<&String, Vec<String>> = BTreeMap::new();
    for ((what, end), count) in &rounds.done {
        lines
            .entry(what)
            .or_default()
            .push(format!("{end:?} {count}"));
    }
    lines
        .iter()
        .for_each(|(what, counts)| tell(&format!("  {what:<20} {}", counts.join(", "))));
}

struct Rounds {
    bench: Bench,
    random: Random,
    /// Interruptions that came in the middle, by what was sent and how it was interrupted.
    done: BTreeMap<(String, End), usize>,
    /// How many requests a whole run of this kind made.
    requests: BTreeMap<String, usize>,
}

impl Rounds {
    fn count(&self) -> usize {
        self.done.values().sum()
    }

    /// One upload, with some interruptions, to its end.
    fn round(&mut self, subject: &mut Subject) {
        self.bench.use_dataset(&subject.dataset);
        subject.change(&self.bench, &mut self.random);
        self.bench.good(&["snapshot"]);
        let snapshot = newest(&subject.dataset);
        let base = subject
            .backed_up
            .clone()
            .filter(|_| self.random.below(5) < 3);
        let kind = if base.is_some() {
            "--incremental"
        } else {
            "--full"
        };
        let from = base.iter().flat_map(|base| ["-i", base.as_str()]);
        let words: Vec<&str> = ["send"]
            .iter()
            .chain(subject.flags)
            .copied()
            .chain(from)
            .chain([&*snapshot])
            .collect();
        let reference = run("zfs", &words);
        if let Some(base) = base.filter(|_| self.random.below(2) == 0) {
            // From then on it is a bookmark.
            zfs(&["destroy", &base]);
        }
        let what = format!("{} {}", subject.what, kind.trim_start_matches('-'));
        for _ in 0..=self.random.below(3) {
            if !self.interrupt(&what, kind) {
                break;
            }
            let keys = self.bench.keys_in_bucket();
            assert!(
                unfinished(&keys).len() <= 1,
                "more than one upload is unfinished: {keys:?}"
            );
        }
        let gate = Gate::new(&self.bench, At::Request(usize::MAX), Passage::Open);
        let output = self
            .bench
            .command("proxied.toml", &["stream-to-remote", kind])
            .output()
            .unwrap();
        assert!(output.status.success(), "{what}: {}", text(&output));
        let whole = self.requests.entry(what.clone()).or_default();
        *whole = gate.requests().max(*whole);
        let id = self.committed(&snapshot, kind);
        check_backup(&self.bench, &subject.dataset, &id, &reference);
        assert_eq!(
            unfinished(&self.bench.keys_in_bucket()).len(),
            0,
            "{what}: something is left"
        );
        subject.backed_up = Some(snapshot);
    }

    /// The one backup of a snapshot.
    fn committed(&self, snapshot: &str, kind: &str) -> String {
        let guid = format!(
            "-{:016x}-",
            property(&snapshot, "guid").parse::<u64>().unwrap()
        );
        let kind = if kind == "--full" { "-full-" } else { "-incr-" };
        let keys = self.bench.keys_in_bucket();
        let ids = keys
            .iter()
            .filter_map(|key| key.strip_suffix("/manifest.json")?.split_once("/@"));
        let ids: Vec<&str> = ids
            .map(|(_, id)| id)
            .filter(|id| id.contains(&guid) && id.contains(kind))
            .collect();
        assert_eq!(ids.len(), 1, "{snapshot}: {ids:?}");
        ids[0].to_owned()
    }

    /// Interrupts one run somewhere; false when it came to its end all the same.
    fn interrupt(&mut self, what: &str, kind: &str) -> bool {
        let end = ENDS[self.random.below(ENDS.len())];
        let whole = self.requests.get(what).copied().unwrap_or(50);
        let request = 1 + self.random.below(whole);
        let passage = match end {
            End::StoreAway => Passage::Away,
            End::Status500 => Passage::Broken,
            _ => Passage::Held,
        };
        let gate = Gate::new(&self.bench, At::Request(request), passage);
        let mut child = start(&self.bench, "proxied.toml", &["stream-to-remote", kind]);
        let reached = passage != Passage::Held || gate.wait(&mut child);
        if reached {
            match end {
                End::Kill | End::StateLost => signal(&child, "KILL"),
                End::Term => signal(&child, "TERM"),
                End::Int => signal(&child, "INT"),
                End::Stop => stop_and_go_on(&child, "STOP", &gate),
                End::CtrlZ => stop_and_go_on(&child, "TSTP", &gate),
                End::StoreAway | End::Status500 => {}
            }
            if matches!(end, End::Term | End::Int) {
                // The requests of a run that knows of its end leave nothing half-done: they pass.
                wait_for_words(&mut child, "stopping at the next safe point");
                gate.set(Passage::Open);
            }
        }
        let output = child.wait_with_output().unwrap();
        gate.end();
        let interrupted = reached && gate.requests() >= request;
        if interrupted {
            *self.done.entry((what.to_owned(), end)).or_default() += 1;
        }
        tell(&format!(
            "  {:>3} {what}: {end:?} at request {request}/{whole}: {:?}",
            self.count(),
            output.status
        ));
        self.check_end(end, interrupted, &output);
        if end == End::StateLost && interrupted {
            self.lose_state();
        }
        interrupted && !output.status.success()
    }

    fn check_end(&self, end: End, interrupted: bool, output: &Output) {
        let (code, killed) = (output.status.code(), output.status.signal() == Some(9));
        let expected = match end {
            _ if !interrupted => code == Some(0),
            End::Kill | End::StateLost => killed,
            // A commit that has begun is ended.
            End::Term | End::Int => matches!(code, Some(130 | 0)),
            End::Stop | End::CtrlZ => code == Some(0),
            // What comes after the commit is not worth a failure.
            End::StoreAway | End::Status500 => matches!(code, Some(1 | 0)),
        };
        assert!(expected, "{end:?}: {:?} {}", output.status, text(output));
    }

    /// Where the upload is known from the store: before its first object nothing is, and at the
    /// very end of its commit nobody may go on without a journal.
    fn lose_state(&self) {
        let keys = self.bench.keys_in_bucket();
        let known = |id: &&str| {
            let has = |name: &str| {
                keys.iter()
                    .any(|key| key.contains(*id) && key.ends_with(name))
            };
            let is_closing = ["/private.age", "/RESTORE.txt.minisig", "/chunks-0000.json"]
                .into_iter()
                .any(has);
            has("/started.json") && !is_closing
        };
        if unfinished(&keys).iter().any(known) {
            for entry in fs::read_dir(self.bench.path("state")).unwrap().flatten() {
                // What the server can do is not the upload's state.
                if entry.file_name() != "probes" && entry.file_type().unwrap().is_dir() {
                    fs::remove_dir_all(entry.path()).unwrap();
                }
            }
        }
    }
}
