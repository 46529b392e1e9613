//! An ordinary user's whole nights, with what `zfs allow` gives and nothing else; what is missing
//! is named.

use crate::bench::{Bench, change};
use crate::pool::{property, run, zfs};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Output;
use std::time::{SystemTime, UNIX_EPOCH};

const UID: u32 = 1000;
/// What the README says a backup needs.
const NIGHTLY: &str = "snapshot,userprop,hold,release,bookmark,send,destroy,mount";
/// And a restore, where it goes.
const RESTORE: [&str; 6] = [
    "receive", "create", "mount", "userprop", "readonly", "destroy",
];

struct Nobody {
    bench: Bench,
    device_mode: u32,
}

impl Nobody {
    /// Everything in the bench's folder is the user's; `/dev/zfs` is open to all, as udev makes it.
    fn new() -> Self {
        let bench = Bench::tiny("ordinary");
        let main = format!(
            "lock_file = \"{}\"\noldest_snapshot_days = 1\n",
            bench.path("lock").display()
        );
        bench.write_config_with(
            "zb.toml",
            &bench.weed.endpoint(),
            &main,
            "[lifecycle-intermediate]\nkeep-last-chains = 1\n[lifecycle-remote]\nkeep-last-chains = 1\n",
        );
        run(
            "chown",
            &[
                "-R",
                &format!("{UID}:{UID}"),
                bench.folder.path().to_str().unwrap(),
            ],
        );
        let device_mode = fs::metadata("/dev/zfs").unwrap().mode();
        fs::set_permissions("/dev/zfs", fs::Permissions::from_mode(0o666)).unwrap();
        Self { bench, device_mode }
    }

    /// The program, run by that user.
    fn zb(&self, arguments: &[&str]) -> Output {
        let mut command = self.bench.command("zb.toml", arguments);
        command
            .uid(UID)
            .gid(UID)
            .env("HOME", self.bench.folder.path())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn good(&self, arguments: &[&str]) -> String {
        let output = self.zb(arguments);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{arguments:?}: {text}");
        text
    }

    /// It fails, and says each of these.
    #[track_caller]
    fn bad(&self, arguments: &[&str], says: &[&str]) {
        let output = self.zb(arguments);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(!output.status.success(), "{arguments:?}: {text}");
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        says.iter()
            .for_each(|words| assert!(text.contains(words), "{words:?} is not in: {text}"));
    }
}

impl Drop for Nobody {
    fn drop(&mut self) {
        let _ = fs::set_permissions("/dev/zfs", fs::Permissions::from_mode(self.device_mode));
    }
}

#[test]
fn unprivileged_user_backs_up_and_restores_with_zfs_allow_permissions() {
    let nobody = Nobody::new();
    let (dataset, user) = (nobody.bench.dataset(), UID.to_string());
    nobody.bad(
        &["doctor"],
        &[
            "lacks snapshot, userprop, hold, release, bookmark, send",
            "zfs allow -u 1000",
        ],
    );
    nobody.bad(
        &["snapshot"],
        &[&dataset, "zfs allow -u USER snapshot,userprop"],
    );

    zfs(&["allow", "-u", &user, NIGHTLY, &dataset]);
    nobody.good(&["doctor"]);
    nobody.good(&["perform"]);
    change(&nobody.bench, 5);
    nobody.good(&["perform"]);
    let shown = nobody.good(&["show", "--include-remote", &dataset]);
    assert!(shown.contains("full") && shown.contains("incr"), "{shown}");
    assert!(nobody.good(&["verify-checksums"]).contains("0 damaged"));

    // Without `destroy` an old snapshot stays, and the reason names what would help.
    let snapshots = zfs(&[
        "list",
        "-Hpo",
        "name",
        "-s",
        "createtxg",
        "-t",
        "snapshot",
        &dataset,
    ]);
    let newest = snapshots.lines().last().unwrap();
    let guid = property(&newest, "guid");
    zfs(&["unallow", "-u", &user, "destroy,mount", &dataset]);
    change(&nobody.bench, 6);
    nobody.good(&["snapshot"]);
    let later = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
        + 3 * 86_400;
    nobody.bench.pass_time_until(later);
    let first = snapshots.lines().next().unwrap();
    nobody.bad(
        &["prune-snapshots", "-y"],
        &[first, "zfs allow -u USER destroy,mount"],
    );
    zfs(&["allow", "-u", &user, "destroy,mount", &dataset]);
    nobody.good(&["prune-snapshots", "-y"]);
    assert!(
        !zfs(&["list", "-Hpo", "name", "-t", "snapshot", &dataset])
            .lines()
            .any(|name| name == first)
    );

    // A restore names what it lacks, leaves nothing, and works with it.
    let identity = nobody.bench.path("identity.txt").display().to_string();
    let target = format!("{}/back", nobody.bench.pool.name);
    let restore = [
        "restore",
        &dataset,
        "--identity",
        &identity,
        "--to",
        &target,
    ];
    let pool = nobody.bench.pool.name.clone();
    let all = RESTORE.join(",");
    nobody.bad(
        &restore,
        &[
            &target,
            &format!("as root: zfs allow -u {UID} {all} {pool}"),
        ],
    );
    // Each of them alone is missed before anything is fetched, but for the last, without which only
    // a failure leaves something behind.
    for missing in &RESTORE[..RESTORE.len() - 1] {
        let others: Vec<&str> = RESTORE
            .into_iter()
            .filter(|other| other != missing)
            .collect();
        zfs(&["allow", "-u", &user, &others.join(","), &pool]);
        nobody.bad(
            &restore,
            &[
                &format!("user {UID} lacks {missing} on {pool}"),
                &format!("{missing} {pool}"),
            ],
        );
        zfs(&["unallow", "-u", &user, &all, &pool]);
    }
    let deep = format!("{target}/below/it");
    let with_parents = [
        "restore",
        &dataset,
        "--identity",
        &identity,
        "--to",
        &deep,
        "-o",
        "quota=1G",
    ];
    zfs(&["allow", "-u", &user, &all, &pool]);
    nobody.bad(
        &with_parents,
        &[&format!("user {UID} lacks canmount, quota on {pool}")],
    );
    assert!(
        !zfs(&["list", "-Ho", "name"])
            .lines()
            .any(|name| name.starts_with(&target))
    );
    nobody.bad(
        &["drill", &dataset, "--identity", &identity],
        &[&format!("user {UID} lacks canmount on {pool}")],
    );
    // What is on the list is enough for all of it: no warning says that something could not be set
    // or given back.
    let said = nobody.good(&restore);
    assert!(
        !said.contains("WARN") && !said.contains("zfs inherit"),
        "{said}"
    );
    assert_eq!(
        zfs(&["get", "-Ho", "source", "readonly", &target]),
        "local",
        "the end of the chain set it off"
    );
    zfs(&["allow", "-u", &user, "canmount,quota", &pool]);
    nobody.good(&with_parents);
    assert!(
        nobody
            .good(&["drill", &dataset, "--identity", &identity])
            .contains("every record checked")
    );
    assert_eq!(property(&deep, "quota"), (1_u64 << 30).to_string());
    let received = format!("{target}@{}", newest.split('@').nth(1).unwrap());
    assert_eq!(property(&received, "guid"), guid);
}
