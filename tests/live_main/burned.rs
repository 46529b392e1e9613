//! The day the server burned down: pool, state and configuration are gone. A bucket, its
//! credentials and a passphrase are left, first without this program, then with it on a bare host,
//! and the chains go on.

use crate::bench::{Bench, Tree, assert_same_tree, describe};
use crate::pool::{noise, property, run, zfs};
use crate::weed::{ACCESS_KEY, SECRET_KEY};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const PASSPHRASE: &str = "correct horse battery staple\n";

/// A dataset whose name has a space, with one below it.
struct Burned {
    bench: Bench,
    dataset: String,
}

/// Quotes for the shell.
fn quoted(text: &str) -> String {
    format!("'{text}'")
}

impl Burned {
    /// With a full and an incremental of each in the bucket.
    fn new() -> Self {
        let bench = Bench::tiny("burned");
        let dataset = "burned/two words".to_owned();
        zfs(&["rename", "burned/data", &dataset]);
        zfs(&["create", &format!("{dataset}/be low")]);
        let burned = Self { bench, dataset };
        fs::write(burned.file("two words/be low/file"), noise(30_000, 7)).unwrap();
        let text = format!(
            "[main]\nzfs_fs = \"{}\"\nrecursive = true\nencryption_passphrase_file = \"{}\"\nremote = \"{}\"\n\
             split_size = \"256K\"\nstate_dir = \"{}\"\n[s3]\nendpoint = \"{}\"\npart_size = \"5M\"\n",
            burned.dataset,
            burned.bench.path("passphrase").display(),
            burned.bench.remote(),
            burned.bench.path("state").display(),
            burned.bench.weed.endpoint()
        );
        fs::write(burned.bench.path("passphrase"), PASSPHRASE).unwrap();
        run(
            "chmod",
            &["600", burned.bench.path("passphrase").to_str().unwrap()],
        );
        fs::write(burned.bench.path("zb.toml"), text).unwrap();
        burned.night(&["--full"]);
        fs::write(burned.file("two words/be low/file"), noise(40_000, 8)).unwrap();
        fs::write(burned.file("two words/new"), noise(50_000, 9)).unwrap();
        burned.night(&["--incremental"]);
        burned
    }

    fn night(&self, how: &[&str]) {
        self.bench.good(&["snapshot"]);
        self.bench.good(&[&["stream-to-remote"], how].concat());
    }

    fn file(&self, path: &str) -> std::path::PathBuf {
        self.bench.pool.file(path)
    }

    /// Runs a command line in a terminal, in a folder, with the passphrase typed as often as it is
    /// asked for; what was on the screen.
    #[track_caller]
    fn typed(&self, folder: &Path, line: &str) -> String {
        let mut command = Command::new("script");
        command
            .args(["-qec", line, "/dev/null"])
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
            .env("AWS_ENDPOINT_URL", self.bench.weed.endpoint())
            .env("AWS_REGION", "us-east-1");
        let mut child = command.env("HOME", folder).spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(PASSPHRASE.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let screen = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{line}: {screen}");
        screen
    }

    /// Without this program: as RESTORE.txt of the newest backup says, with the passphrase alone.
    fn by_hand(&self, tree: &Tree) {
        let folder = self.bench.download("by-hand").join(&self.dataset);
        let ids = ids_in(&folder);
        for id in &ids {
            fs::rename(folder.join(format!("@{id}")), folder.join(id)).unwrap();
        }
        let newest = ids.iter().find(|id| id.contains("-incr-")).unwrap();
        let text = fs::read_to_string(folder.join(newest).join("RESTORE.txt")).unwrap();
        for client in ["aws s3 cp", "b2 sync", "rclone copy"] {
            assert!(text.contains(client), "{client} is missing: {text}");
        }
        assert!(
            text.contains(&format!("'{}/@{newest}/'", self.dataset)),
            "a name with a space is quoted: {text}"
        );
        let unlock = text
            .lines()
            .find_map(|line| line.split_once("With the passphrase: "))
            .unwrap()
            .1;
        let steps: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("#      (cd "))
            .collect();
        assert_eq!(steps.len(), 2, "{text}");
        for step in steps {
            let (id, command) = step.split_once(" && ").unwrap();
            self.typed(&folder.join(id), unlock);
            let command = command.replace("POOL/NEW", "'burned/by hand'");
            run(
                "sh",
                &[
                    "-c",
                    &format!("cd \"$1\" && ({command}"),
                    "sh",
                    folder.join(id).to_str().unwrap(),
                ],
            );
        }
        zfs(&["mount", "burned/by hand"]);
        run("zpool", &["sync"]);
        assert_same_tree(tree, &describe(&self.file("by hand")));
        zfs(&["destroy", "-r", "burned/by hand"]);
    }

    /// On a bare host: configuration, verification, the tree, and the next night is an incremental.
    fn with_the_program(&self, config: &str, guids: &[String], tree: &Tree) {
        let (bare, remote) = (self.bench.path("bare"), quoted(&self.bench.remote()));
        fs::create_dir(&bare).unwrap();
        self.typed(
            &bare,
            &format!("zfs-backup config recover --remote {remote} --output zb.toml"),
        );
        assert_eq!(fs::read_to_string(bare.join("zb.toml")).unwrap(), config);
        let shown = self.typed(&bare, &format!("zfs-backup show --remote {remote}"));
        assert!(shown.contains("two words"), "{shown}");
        let verified = self.typed(
            &bare,
            &format!("zfs-backup verify-checksums --remote {remote}"),
        );
        assert!(verified.contains("0 damaged"), "{verified}");
        let dataset = quoted(&self.dataset);
        self.typed(
            &bare,
            &format!("zfs-backup restore -r {dataset} --remote {remote} --to {dataset}"),
        );
        assert_eq!(self.guids(), guids);
        for name in [self.dataset.clone(), format!("{}/be low", self.dataset)] {
            zfs(&["mount", &name]);
        }
        run("zpool", &["sync"]);
        assert_same_tree(tree, &describe(&self.file("two words")));

        fs::rename(bare.join("zb.toml"), self.bench.path("zb.toml")).unwrap();
        for name in [self.dataset.clone(), format!("{}/be low", self.dataset)] {
            // `adopt` prints the command that takes over the restored dataset.
            let listed = String::from_utf8(self.bench.good(&["adopt", &name])).unwrap();
            let origin = listed
                .split_whitespace()
                .skip_while(|word| *word != "--origin")
                .nth(1)
                .unwrap()
                .to_owned();
            self.bench
                .good(&["adopt", &name, "--origin", &origin, "-y"]);
        }
        fs::write(self.file("two words/after"), noise(60_000, 10)).unwrap();
        self.night(&["--incremental"]);
        let manifests = self
            .bench
            .keys_in_bucket()
            .into_iter()
            .filter(|key| key.ends_with("/manifest.json"));
        let (full, incremental): (Vec<_>, Vec<_>) =
            manifests.partition(|key| key.contains("-full-"));
        assert_eq!(
            (full.len(), incremental.len()),
            (2, 4),
            "{full:?} {incremental:?}"
        );
        let config = quoted(self.bench.path("zb.toml").to_str().unwrap());
        let said = self.typed(
            &bare,
            &format!("zfs-backup -c {config} drill {dataset} --cold"),
        );
        assert!(said.contains("byte for byte"), "{said}");
    }

    /// The guids of all snapshots, oldest first.
    fn guids(&self) -> Vec<String> {
        let listed = zfs(&[
            "list",
            "-Hpro",
            "name",
            "-s",
            "createtxg",
            "-t",
            "snapshot",
            &self.dataset,
        ]);
        let mut guids: Vec<String> = listed.lines().map(|name| property(&name, "guid")).collect();
        guids.sort();
        guids
    }
}

fn ids_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter_map(|name| name.strip_prefix('@').map(str::to_owned))
        .collect()
}

#[test]
fn restore_needs_only_bucket_and_passphrase_after_the_host_is_lost() {
    let burned = Burned::new();
    let (guids, tree) = (burned.guids(), describe(&burned.file("two words")));
    let config = fs::read_to_string(burned.bench.path("zb.toml")).unwrap();
    // What was below is a dataset of its own, which RESTORE.txt does not bring back.
    zfs(&["unmount", "burned/two words/be low"]);
    let alone = describe(&burned.file("two words"));
    zfs(&["destroy", "-r", &burned.dataset]);
    for name in ["state", "intermediate"] {
        fs::remove_dir_all(burned.bench.path(name)).unwrap();
    }
    fs::remove_file(burned.bench.path("zb.toml")).unwrap();

    burned.by_hand(&alone);
    burned.with_the_program(&config, &guids, &tree);
}
