//! What a run of the program needs: a pool with files, a server, keys, a configuration.

use crate::pool::{Pool, noise, run};
use crate::weed::{ACCESS_KEY, SECRET_KEY, Weed};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;
use zfs_backup::keyring::KeyFile;
use zfs_backup::model::Digest;
use zfs_backup::plan::clock::ClockTrust;
use zfs_backup::run::clock::ClockCheck;

const BUCKET: &str = "backups";

/// One server for all benches, each in a place of its own: emulated, it takes some ten seconds to
/// start. It ends with the machine.
fn server() -> &'static Weed {
    static SERVER: OnceLock<Weed> = OnceLock::new();
    SERVER.get_or_init(|| runtime().block_on(Weed::start(BUCKET)))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Says something also when the test succeeds.
pub(crate) fn tell(line: &str) {
    let mut terminal = std::io::stdout();
    writeln!(terminal, "{line}").unwrap();
}

/// The present moment. ZFS dates snapshots in seconds: a later snapshot is of a later second.
pub(crate) fn moment() -> jiff::Timestamp {
    let now = jiff::Timestamp::now();
    while jiff::Timestamp::now().as_second() <= now.as_second() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    now
}

/// One bench for one test.
pub(crate) struct Bench {
    pub(crate) pool: Pool,
    pub(crate) weed: &'static Weed,
    pub(crate) folder: TempDir,
    pub(crate) split_size: &'static str,
    /// The dataset that configurations name.
    subject: RefCell<String>,
}

impl Bench {
    /// A pool with one dataset of more than 30 MB, which makes at least 4 chunks of 8M, each of two
    /// parts.
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, &[20, 12], "8M")
    }

    /// As much as it takes for at least 3 chunks of two parts: emulated, every megabyte counts.
    pub(crate) fn parts(name: &str) -> Self {
        Self::with(name, &[9, 9], "6M")
    }

    /// Chunks so large that not fetching one again is seen.
    pub(crate) fn large_chunks(name: &str) -> Self {
        Self::with(name, &[10, 11], "6M")
    }

    /// As much as it takes for at least 7 chunks, each of one part.
    pub(crate) fn small(name: &str) -> Self {
        Self::with(name, &[2, 2], "512K")
    }

    /// Little files only, in two or three chunks: for what is done many times.
    pub(crate) fn tiny(name: &str) -> Self {
        Self::with(name, &[], "256K")
    }

    /// A pool with one dataset, a server, keys in recipients mode, and a configuration.
    fn with(name: &str, large_mebibytes: &[usize], split_size: &'static str) -> Self {
        let (pool, folder, subject) = (
            Pool::new(name),
            TempDir::new().unwrap(),
            RefCell::new(format!("{name}/data")),
        );
        let bench = Self {
            pool,
            weed: server(),
            folder,
            split_size,
            subject,
        };
        bench.fill(large_mebibytes);
        bench.write_keys();
        bench.write_config("zb.toml", &bench.weed.endpoint());
        bench
    }

    /// Sets the guest's clock as if the time until then had passed. The time since boot stays
    /// behind, so the note of the last run, which a clock that jumped contradicts, is written anew.
    pub(crate) fn pass_time_until(&self, seconds: u64) {
        run("date", &["-s", &format!("@{seconds}")]);
        let state = self.path("state");
        ClockCheck::read(&state, true)
            .unwrap()
            .keep_note(&state, &Ok(ClockTrust::Confirmed))
            .unwrap();
        let owner = fs::metadata(&state).unwrap();
        chown(
            state.join("clock.json"),
            Some(owner.uid()),
            Some(owner.gid()),
        )
        .unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn dataset(&self) -> String {
        self.subject.borrow().clone()
    }

    /// From now on configurations name another dataset.
    pub(crate) fn use_dataset(&self, name: &str) {
        name.clone_into(&mut self.subject.borrow_mut());
        self.write_config("zb.toml", &self.weed.endpoint());
    }

    /// Where its backups go: a prefix of its own.
    pub(crate) fn remote(&self) -> String {
        format!("s3:{BUCKET}/{}", self.pool.name)
    }

    fn fill(&self, large_mebibytes: &[usize]) {
        self.pool.create("data");
        for number in 0..150 {
            self.pool.write(
                &format!("data/small-{number}"),
                100 + number * 37,
                number as u64,
            );
        }
        for (number, mebibytes) in (1..).zip(large_mebibytes) {
            self.pool.write(
                &format!("data/large-{number}"),
                mebibytes << 20,
                1000 + number,
            );
        }
        let sparse = fs::File::create(self.pool.file("data/sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_at(&sparse, b"in the middle", 30 << 20).unwrap();
        fs::create_dir(self.pool.file("data/folder")).unwrap();
        symlink("../large-1", self.pool.file("data/folder/link")).unwrap();
        fs::set_permissions(
            self.pool.file("data/small-1"),
            fs::Permissions::from_mode(0o4711),
        )
        .unwrap();
        run(
            "setfattr",
            &[
                "-n",
                "user.note",
                "-v",
                "kept",
                self.pool.file("data/small-2").to_str().unwrap(),
            ],
        );
        run(
            "setfattr",
            &[
                "-n",
                "trusted.big",
                "-v",
                &"x".repeat(900),
                self.pool.file("data/folder").to_str().unwrap(),
            ],
        );
    }

    fn write_keys(&self) {
        let keys = KeyFile::generate().unwrap();
        let secret = keys.signing_key().unwrap().to_secret_text().unwrap();
        write_secret(&self.path("identity.txt"), &keys.to_text().unwrap());
        write_secret(
            &self.path("signing.key"),
            &format!("untrusted comment: test\n{secret}\n"),
        );
    }

    pub(crate) fn keys(&self) -> KeyFile {
        KeyFile::parse(&fs::read_to_string(self.path("identity.txt")).unwrap()).unwrap()
    }

    /// A configuration whose remote is behind that endpoint.
    pub(crate) fn write_config(&self, name: &str, endpoint: &str) {
        self.write_config_with(name, endpoint, "", "");
    }

    /// With more lines at the end of `[main]` and more sections. Nothing waits for a store that is
    /// away.
    pub(crate) fn write_config_with(&self, name: &str, endpoint: &str, main: &str, sections: &str) {
        let keys = self.keys();
        let text = format!(
            "[main]\nzfs_fs = \"{}\"\nencryption_recipients = [\"{}\"]\nsigning_key_file = \"{}\"\nverify_keys = [\"{}\"]\n\
             remote = \"{}\"\nintermediate_basedir = \"{}\"\nsplit_size = \"{}\"\nstate_dir = \"{}\"\nretry_for = 0\n{main}\
             [s3]\nendpoint = \"{endpoint}\"\npart_size = \"5M\"\n{sections}",
            self.dataset(),
            keys.recipient().unwrap(),
            self.path("signing.key").display(),
            keys.signing_key().unwrap().verifying_key(),
            self.remote(),
            self.path("intermediate").display(),
            self.split_size,
            self.path("state").display(),
        );
        fs::create_dir_all(self.path("intermediate")).unwrap();
        write_secret(&self.path(name), &text);
    }

    /// What was found out about the server holds behind a proxy too: else each run through a new
    /// one would try the server again, with several MB, and an interruption would meet that instead
    /// of the upload.
    pub(crate) fn trust_endpoint(&self, endpoint: &str) {
        let folder = self.path("state/probes");
        let Some(note) = fs::read_dir(&folder).into_iter().flatten().flatten().next() else {
            return;
        };
        let text = fs::read_to_string(note.path()).unwrap();
        let known: serde_json::Value = serde_json::from_str(&text).unwrap();
        let text = text.replace(known["endpoint"].as_str().unwrap(), endpoint);
        let name = Digest::of(format!("{}\n{endpoint}", self.remote()).as_bytes()).to_string();
        write_secret(&folder.join(format!("{}.json", &name[..32])), &text);
    }

    /// The program, not yet started.
    pub(crate) fn command(&self, config: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("zfs-backup");
        command
            .arg("-c")
            .arg(self.path(config))
            .args(arguments)
            .stdin(Stdio::null());
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY);
        command
    }

    pub(crate) fn zb(&self, arguments: &[&str]) -> Output {
        self.command("zb.toml", arguments).output().unwrap()
    }

    /// Runs the program, which must succeed; its standard output.
    #[track_caller]
    pub(crate) fn good(&self, arguments: &[&str]) -> Vec<u8> {
        let output = self.zb(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    pub(crate) fn restore_arguments<'a>(
        &self,
        dataset: &'a str,
        identity: &'a str,
        to: &[&'a str],
    ) -> Vec<&'a str> {
        let mut arguments = vec!["restore", dataset, "--identity", identity];
        arguments.extend_from_slice(to);
        arguments
    }

    /// All objects of the bench by an independent client, in a new folder.
    pub(crate) fn download(&self, name: &str) -> PathBuf {
        let folder = self.path(name);
        let remote = format!(
            ":s3,provider=Other,endpoint='{}',access_key_id={ACCESS_KEY},secret_access_key={SECRET_KEY}:{BUCKET}/{}",
            self.weed.endpoint(),
            self.pool.name
        );
        run(
            "rclone",
            &[
                "--config",
                "/dev/null",
                "copy",
                &remote,
                folder.to_str().unwrap(),
            ],
        );
        folder
    }

    /// The keys of the bench, below its prefix, by a plain client: rclone alone would take seconds
    /// to start.
    pub(crate) fn keys_in_bucket(&self) -> Vec<String> {
        let (client, prefix) = (self.weed.client(), format!("{}/", self.pool.name));
        let listed = async {
            let mut pages = client
                .list_objects_v2()
                .bucket(BUCKET)
                .prefix(&prefix)
                .into_paginator()
                .send();
            let mut keys = Vec::new();
            while let Some(page) = pages.next().await {
                keys.extend(
                    page.unwrap()
                        .contents()
                        .iter()
                        .map(|object| object.key().unwrap().to_owned()),
                );
            }
            keys
        };
        let keys = runtime().block_on(listed);
        keys.iter()
            .map(|key| key.strip_prefix(&prefix).unwrap().to_owned())
            .collect()
    }

    /// The multipart uploads of the bench that were begun and not ended.
    pub(crate) fn open_uploads(&self) -> usize {
        let (client, prefix) = (self.weed.client(), format!("{}/", self.pool.name));
        let listed = runtime()
            .block_on(
                client
                    .list_multipart_uploads()
                    .bucket(BUCKET)
                    .prefix(&prefix)
                    .send(),
            )
            .unwrap();
        // The server takes the prefix for a folder and lists others too.
        listed
            .uploads()
            .iter()
            .filter(|upload| upload.key().unwrap().starts_with(&prefix))
            .count()
    }
}

fn write_secret(path: &Path, text: &str) {
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
}

/// How far the allocated 512-byte sectors of a file and its copy may be apart: what sparse or
/// compressed files save is far more. Indirect blocks are compressed, and the places of blocks in
/// the pool, which are in them, differ; a block that finds no place in one piece has a header
/// besides.
fn sectors_apart_max(sectors: u64) -> u64 {
    16 + sectors / 64
}

/// Everything that a person could compare of a tree.
pub(crate) struct Tree {
    /// Hashes, types, modes, owners, sizes, times, extended attributes.
    lines: String,
    /// Allocated sectors of each file.
    sectors: BTreeMap<String, u64>,
}

/// Reads a tree.
pub(crate) fn describe(folder: &Path) -> Tree {
    let say = |script: &str| {
        String::from_utf8(run(
            "sh",
            &[
                "-c",
                &format!("cd \"$1\" && {script}"),
                "sh",
                folder.to_str().unwrap(),
            ],
        ))
        .unwrap()
    };
    let lines = say("find . -type f -print0 | sort -z | xargs -0 b3sum && \
         find . -print0 | sort -z | xargs -0 stat -c '%n %f %u %g %s %Y %N' && getfattr -R -h -d -m - . | sort");
    let sectors = say("find . -type f -print0 | sort -z | xargs -0 stat -c '%b %n'");
    let sectors = sectors.lines().map(|line| line.split_once(' ').unwrap());
    Tree {
        lines,
        sectors: sectors
            .map(|(count, name)| (name.to_owned(), count.parse().unwrap()))
            .collect(),
    }
}

/// Holds two trees against each other, and names only what differs: the failure must fit on a
/// screen.
#[track_caller]
pub(crate) fn assert_same_tree(expected: &Tree, actual: &Tree) {
    let only = |these: &str, those: &str| {
        let those: BTreeSet<&str> = those.lines().collect();
        these
            .lines()
            .filter(|line| !those.contains(line))
            .take(10)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let (lost, new) = (
        only(&expected.lines, &actual.lines),
        only(&actual.lines, &expected.lines),
    );
    assert!(
        expected.lines == actual.lines,
        "the trees differ; expected:\n{lost}\nfound:\n{new}"
    );
    for (name, sectors) in &expected.sectors {
        let copied = actual.sectors[name];
        assert!(
            sectors.abs_diff(copied) <= sectors_apart_max(*sectors),
            "{name}: {sectors} sectors, and {copied} in the copy"
        );
    }
}

/// Noise of another seed, for a second snapshot.
pub(crate) fn change(bench: &Bench, seed: u64) {
    fs::write(bench.pool.file("data/changed"), noise(1 << 20, seed)).unwrap();
}
