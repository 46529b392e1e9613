//! Nights of a host that nobody watches: `perform` with the sequence and the rules of the example
//! configuration, the guest's own clock put forward between them, files changing, one night without
//! the server, one killed run.

use crate::bench::{Bench, Tree, assert_same_tree, describe};
use crate::pool::{noise, run, wait_until, zfs};
use crate::proxy::{Action, Proxy};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use zfs_backup::model::{BackupId, BackupKind};

/// From one night to the next. Not a whole day, so that no age is just about a rule's.
const NIGHT_SECONDS: u64 = 25 * 3600;
/// The example of the design, with a new full every third night, so that the rules have something
/// to do. One lockfile for all configurations of a bench.
const MAIN: &str =
    "intermediate_checksum = true\noldest_snapshot_days = 3\nlock_file = \"/tmp/nights.lock\"\n";
const SECTIONS: &str = r#"
[backup-lifecycle]
full_when_incrementals_exceed = "10000%"
max_incrementals = 2
[backup-sequence]
step01 = "lock"
step02 = "snapshot"
step03 = "export-intermediate"
step04 = "prune-intermediate -y"
step05 = "prune-snapshots -y"
step06 = "upload-intermediate-to-remote"
step07 = "prune-remote -y"
step08 = "unlock"
step09 = "verify-checksums"
[lifecycle-intermediate]
keep-last-chains              = 0
keep-last-full-only           = 1
keep-last-incremental-only    = 1
keep-full-with-age-closest-to = ["1w", "6m", "1y"]
[lifecycle-remote]
keep-last-chains    = 1
keep-last-full-only = 3
"#;

struct Nights {
    bench: Bench,
    first: SystemTime,
    /// What the dataset was in each night.
    trees: BTreeMap<u64, Tree>,
}

impl Nights {
    fn new(name: &str) -> Self {
        let bench = Bench::tiny(name);
        bench.write_config_with("zb.toml", &bench.weed.endpoint(), MAIN, SECTIONS);
        // Nobody listens there.
        bench.write_config_with("down.toml", "http://127.0.0.1:9", MAIN, SECTIONS);
        Self {
            bench,
            first: SystemTime::now(),
            trees: BTreeMap::new(),
        }
    }

    /// The night begins: the clock goes on by days, and files have changed.
    fn begin(&mut self, night: u64) {
        let at = self.first + Duration::from_secs(night * NIGHT_SECONDS);
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        self.bench.pass_time_until(seconds);
        let file = |name: String| self.bench.pool.file(&format!("data/{name}"));
        fs::write(file(format!("night-{night}")), noise(30_000, night)).unwrap();
        fs::write(file("diary".into()), noise(50_000, night + 500)).unwrap();
        let _ = fs::remove_file(file(format!("small-{night}")));
        // Allocated sectors settle once they are written.
        run("zpool", &["sync"]);
        self.trees
            .insert(night, describe(&self.bench.pool.file("data")));
    }

    #[track_caller]
    fn perform(&self) -> String {
        let output = self.bench.zb(&["perform"]);
        assert!(output.status.success(), "{}", text(&output));
        text(&output)
    }

    /// The night that an id's snapshot was taken in.
    fn night_of(&self, id: &BackupId) -> u64 {
        let text = id.to_string();
        let at: jiff::civil::DateTime =
            jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", &text[..16]).unwrap();
        let at = at
            .to_zoned(jiff::tz::TimeZone::UTC)
            .unwrap()
            .timestamp()
            .as_second();
        let first = self
            .first
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        (u64::try_from(at).unwrap() - first) / NIGHT_SECONDS
    }

    /// The nights whose backups are committed among these keys, with their kinds.
    fn committed<'k>(
        &self,
        keys: impl Iterator<Item = &'k str>,
    ) -> BTreeMap<u64, (BackupKind, BackupId)> {
        let manifests = keys.filter_map(|key| key.strip_suffix("/manifest.json"));
        let ids = manifests.map(|folder| {
            folder
                .rsplit_once('@')
                .unwrap()
                .1
                .parse::<BackupId>()
                .unwrap()
        });
        ids.map(|id| (self.night_of(&id), (id.kind(), id)))
            .collect()
    }

    fn in_remote(&self) -> BTreeMap<u64, (BackupKind, BackupId)> {
        let keys = self.bench.keys_in_bucket();
        self.committed(keys.iter().map(String::as_str))
    }

    fn in_intermediate(&self) -> BTreeMap<u64, (BackupKind, BackupId)> {
        let folder = self.bench.path("intermediate").display().to_string();
        let files = String::from_utf8(run("find", &[&folder, "-type", "f"])).unwrap();
        self.committed(files.lines())
    }

    /// Restores a backup into a new dataset and holds it against what the dataset was in that
    /// night.
    #[track_caller]
    fn check_restore(&self, night: u64, id: &BackupId) {
        let (dataset, identity) = (
            self.bench.dataset(),
            self.bench.path("identity.txt").display().to_string(),
        );
        let target = format!("{}/back-{night}", self.bench.pool.name);
        let id = id.to_string();
        self.bench.good(&self.bench.restore_arguments(
            &dataset,
            &identity,
            &["--backup", &id, "--to", &target],
        ));
        if zfs(&["get", "-Hpo", "value", "mounted", &target]) == "no" {
            zfs(&["mount", &target]);
        }
        run("zpool", &["sync"]);
        assert_same_tree(
            &self.trees[&night],
            &describe(&self.bench.pool.file(&format!("back-{night}"))),
        );
    }

    /// A configuration whose uploads of chunks wait for as long as the flag is set, and the count
    /// of those that came.
    fn held_config(&self, name: &str) -> (Proxy, Arc<AtomicBool>, Arc<AtomicUsize>) {
        let (hold, arrived) = (
            Arc::new(AtomicBool::new(true)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (held, came) = (Arc::clone(&hold), Arc::clone(&arrived));
        let proxy = Proxy::start(&self.bench.weed.endpoint(), move |head| {
            if (head.starts_with("put ") || head.starts_with("post ")) && head.contains(".zfs.age")
            {
                came.fetch_add(1, Ordering::SeqCst);
                while held.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
            Action::Pass
        });
        self.bench
            .write_config_with(name, &proxy.endpoint(), MAIN, SECTIONS);
        (proxy, hold, arrived)
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn kinds(found: &BTreeMap<u64, (BackupKind, BackupId)>) -> Vec<(u64, BackupKind)> {
    found
        .iter()
        .map(|(night, (kind, _))| (*night, *kind))
        .collect()
}

#[test]
fn example_configuration_runs_thirteen_nights_and_keeps_the_expected_backups() {
    use BackupKind::Full;
    let mut nights = Nights::new("nights");
    for night in 0..=12 {
        nights.begin(night);
        match night {
            4 => without_the_server(&nights),
            7 => killed_in_the_middle(&nights),
            10 => two_at_once(&nights),
            _ => drop(nights.perform()),
        }
    }

    // One chain whole, and the fulls of the three newest chains.
    let remote = nights.in_remote();
    assert_eq!(kinds(&remote), [(6, Full), (9, Full), (12, Full)]);
    // The newest full, which has no incremental yet, and the fulls on both sides of a week, of which
    // the older one also grows into half a year. The third night's full was on neither side when the
    // sixth night's came, the ninth's when the twelfth's did.
    let intermediate = nights.in_intermediate();
    assert_eq!(kinds(&intermediate), [(0, Full), (6, Full), (12, Full)]);

    let own = zfs(&[
        "list",
        "-Hpo",
        "name",
        "-t",
        "snapshot",
        &nights.bench.dataset(),
    ]);
    assert!(
        (3..=4).contains(&own.lines().count()),
        "snapshots of three days are kept:\n{own}"
    );
    let bookmarks = zfs(&[
        "list",
        "-Hpo",
        "name",
        "-t",
        "bookmark",
        &nights.bench.dataset(),
    ]);
    assert!(
        bookmarks.contains(&remote[&12].1.snapshot_guid().to_string()),
        "{bookmarks}"
    );

    for night in [6, 9, 12] {
        nights.check_restore(night, &remote[&night].1);
    }
    let sums: BTreeSet<String> = intermediate
        .values()
        .map(|(_, id)| {
            let folder = nights
                .bench
                .path("intermediate")
                .join(nights.bench.dataset())
                .join(format!("@{id}"));
            String::from_utf8(run(
                "sh",
                &[
                    "-c",
                    "cd \"$1\" && b3sum -c B3SUMS",
                    "sh",
                    folder.to_str().unwrap(),
                ],
            ))
            .unwrap()
        })
        .collect();
    assert!(
        sums.iter().all(|sums| sums.contains("manifest.json: OK")),
        "{sums:?}"
    );
}

/// The export is done, the upload fails, nothing that is needed is pruned; the next night carries
/// both over.
fn without_the_server(nights: &Nights) {
    let before = nights.in_intermediate();
    let output = nights
        .bench
        .command("down.toml", &["perform"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let after = nights.in_intermediate();
    assert!(
        before.keys().all(|night| after.contains_key(night)),
        "{before:?} {after:?}"
    );
    assert!(after.contains_key(&4), "{after:?}");
    assert!(!nights.in_remote().contains_key(&4));
}

/// Killed while a chunk goes up, it leaves its lock behind; the next run takes the lock over and
/// does all of the work. Nothing is written in between, so it makes one backup and not two.
fn killed_in_the_middle(nights: &Nights) {
    let (proxy, hold, arrived) = nights.held_config("held.toml");
    let mut command = nights.bench.command("held.toml", &["perform"]);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("a chunk is on its way", || {
        arrived.load(Ordering::SeqCst) > 0
    });
    child.kill().unwrap();
    child.wait().unwrap();
    hold.store(false, Ordering::SeqCst);
    proxy.wait_until_idle();
    assert!(!nights.in_remote().contains_key(&7));
    let said = nights.perform();
    assert!(said.contains("stale"), "{said}");
    assert!(nights.in_remote().contains_key(&7));
}

/// The second one is refused by the lock, with the number of the first; the first does its work.
fn two_at_once(nights: &Nights) {
    let (_proxy, hold, arrived) = nights.held_config("held.toml");
    let mut command = nights.bench.command("held.toml", &["perform"]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("a chunk is on its way", || {
        arrived.load(Ordering::SeqCst) > 0
    });
    let second = nights.bench.zb(&["perform"]);
    let first_pid = child.id().to_string();
    hold.store(false, Ordering::SeqCst);
    let first = child.wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(11), "{}", text(&second));
    assert!(text(&second).contains(&first_pid), "{}", text(&second));
    assert!(first.status.success(), "{}", text(&first));
}
