//! The power goes in the middle of an upload: two boots of the machine with one disk, perhaps with
//! two versions of ZFS. `scripts/power-cuts` runs the halves. Pool, state folder and store lie on
//! that disk; the store's folder has made durable what it confirmed, as a store elsewhere would.

use crate::bench::tell;
use crate::halves::{confirmed, journals, newest, text};
use crate::pool::{device_of, noise, run, run_with_input, zfs};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use zfs_backup::keyring::KeyFile;

const FOLDER: &str = "/work/power";
const POOL: &str = "power";

fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// "full" or "incr", then "plain", "raw" or "volume".
fn case() -> (String, String) {
    let case = std::env::var("ZFS_BACKUP_TEST_CASE").unwrap();
    let (kind, what) = case.split_once('-').unwrap();
    (kind.to_owned(), what.to_owned())
}

fn dataset() -> String {
    format!("{POOL}/{}", case().1)
}

fn write_config() {
    let keys = KeyFile::generate().unwrap();
    let signing = keys.signing_key().unwrap();
    let secret = format!(
        "untrusted comment: test\n{}\n",
        signing.to_secret_text().unwrap()
    );
    let config = format!(
        "[main]\nzfs_fs = \"{}\"\nencryption_recipients = [\"{}\"]\nsigning_key_file = \"{FOLDER}/signing.key\"\n\
         verify_keys = [\"{}\"]\nremote = \"file:{FOLDER}/store\"\nsplit_size = \"256K\"\nstate_dir = \"{FOLDER}/state\"\n",
        dataset(),
        keys.recipient().unwrap(),
        signing.verifying_key(),
    );
    fs::create_dir_all(path("store")).unwrap();
    for (name, content) in [
        ("identity.txt", keys.to_text().unwrap().to_string()),
        ("signing.key", secret),
        ("zb.toml", config),
    ] {
        fs::write(path(name), content).unwrap();
        run("chmod", &["600", path(name).to_str().unwrap()]);
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new("zfs-backup");
    command
        .arg("-c")
        .arg(path("zb.toml"))
        .args(arguments)
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn good(arguments: &[&str]) -> Output {
    let output = command(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    output
}

/// Several MB that were not there before.
fn change(seed: u64) {
    let bytes = noise(8 << 20, seed);
    match case().1.as_str() {
        "volume" => fs::write(device_of(&dataset()), bytes).unwrap(),
        what => fs::write(path("mnt").join(what).join("file"), bytes).unwrap(),
    }
    run("zpool", &["sync"]);
}

fn flag(kind: &str) -> &'static str {
    if kind == "full" {
        "--full"
    } else {
        "--incremental"
    }
}

fn ids() -> Vec<String> {
    let found = run(
        "find",
        &[path("store").to_str().unwrap(), "-name", "started.json"],
    );
    String::from_utf8(found)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
#[ignore = "scripts/power-cuts runs it: it cuts the power"]
fn first_half() {
    let (kind, what) = case();
    let image = path("pool.img");
    fs::create_dir_all(FOLDER).unwrap();
    fs::File::create(&image)
        .unwrap()
        .set_len(256 << 20)
        .unwrap();
    let mountpoint = format!("mountpoint={FOLDER}/mnt");
    run(
        "zpool",
        &[
            "create",
            "-f",
            "-O",
            "recordsize=1M",
            "-O",
            &mountpoint,
            POOL,
            image.to_str().unwrap(),
        ],
    );
    let flags: &[&str] = match what.as_str() {
        "raw" => {
            let options = [
                "create",
                "-o",
                "encryption=aes-256-gcm",
                "-o",
                "keyformat=passphrase",
            ];
            run_with_input(
                "zfs",
                &[&options[..], &["-o", "pbkdf2iters=100000", &dataset()]].concat(),
                "correct horse\n",
            );
            &["-w", "-L", "-c"]
        }
        "volume" => {
            zfs(&["create", "-V", "16M", &dataset()]);
            &["-L", "-c"]
        }
        _ => {
            zfs(&["create", &dataset()]);
            &["-L", "-c"]
        }
    };
    write_config();
    change(1);
    good(&["snapshot"]);
    let mut from = Vec::new();
    if kind == "incr" {
        good(&["stream-to-remote", "--full"]);
        from = vec!["-i".to_owned(), newest(&dataset())];
        change(2);
        good(&["snapshot"]);
    }
    let words: Vec<&str> = ["send"]
        .iter()
        .chain(flags)
        .copied()
        .chain(from.iter().map(String::as_str))
        .collect();
    fs::write(
        path("reference"),
        run("zfs", &[&words[..], &[&newest(&dataset())]].concat()),
    )
    .unwrap();
    if let [_, base] = &from[..] {
        // The upload follows from a bookmark.
        zfs(&["destroy", base]);
    }
    run("sync", &[]);
    let mut upload = Upload::start(&kind);
    upload.run_until_confirmed(CONFIRMED_MIN);
    upload.run_on_for_some_lines();
    run("power-cut", &["0"]);
    std::thread::sleep(Duration::from_secs(600));
    panic!("the power stayed");
}

/// Chunks that are confirmed before the power goes, of more than thirty.
const CONFIRMED_MIN: usize = 6;
/// Lines of the log, at least one a chunk, that the upload may write while the power goes.
const LINES_AT_THE_CUT: usize = 8;

/// A run whose log is a pipe that holds one line: the upload cannot get far ahead of the reader,
/// however fast it is.
struct Upload {
    child: Child,
    log: fs::File,
}

impl Upload {
    fn start(kind: &str) -> Self {
        let (log, end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::DIRECT).unwrap();
        // The pipe holds one page, and so one packet.
        assert_eq!(fcntl_setpipe_size(&end, 4096).unwrap(), 4096);
        let child = command(&["-vv", "stream-to-remote", flag(kind)])
            .stderr(Stdio::from(end))
            .spawn()
            .unwrap();
        let log = fs::File::from(log);
        Self { child, log }
    }

    /// Reads the next line of the log.
    fn read_line(log: &mut fs::File) -> String {
        let mut line = [0; 4096];
        let bytes = log.read(&mut line).unwrap();
        assert!(bytes > 0, "the upload was over before the power went");
        String::from_utf8_lossy(&line[..bytes]).into_owned()
    }

    fn run_until_confirmed(&mut self, chunks: usize) {
        while confirmed(&path("state")) < chunks {
            tell(Self::read_line(&mut self.log).trim_end());
        }
        assert!(self.child.try_wait().unwrap().is_none());
    }

    /// Reads on in the background, so that the upload is at work when the power goes.
    fn run_on_for_some_lines(mut self) {
        std::thread::spawn(move || {
            for _ in 0..LINES_AT_THE_CUT {
                Self::read_line(&mut self.log);
                std::thread::sleep(Duration::from_millis(30));
            }
            // The upload waits until the power goes.
            std::thread::sleep(Duration::MAX);
        });
    }
}

#[test]
#[ignore = "scripts/power-cuts runs it, after the first half"]
fn second_half() {
    let (kind, _) = case();
    run("zpool", &["import", "-d", FOLDER, POOL]);
    let kept = confirmed(&path("state"));
    assert!(kept >= 5, "{kept} confirmed chunks are known");
    let held = String::from_utf8(good(&["holds", "list"]).stdout).unwrap();
    assert!(held.contains("unfinished"), "{held}");
    let chunks = || {
        String::from_utf8(run(
            "find",
            &[path("store").to_str().unwrap(), "-name", "*.zfs.age"],
        ))
        .unwrap()
    };
    let (before, ids_before) = (chunks(), ids());
    let said = text(&good(&["-v", "stream-to-remote", flag(&kind)]));
    assert!(
        said.contains("committed") && said.contains("resumes an interrupted upload"),
        "{said}"
    );
    assert_eq!(ids(), ids_before, "it began anew: {said}");
    let after = chunks();
    let stayed = before.lines().filter(|chunk| after.contains(chunk)).count();
    assert!(
        stayed >= kept,
        "confirmed chunks were made again: {before} {after}"
    );
    let id = said
        .split_whitespace()
        .skip_while(|word| *word != "committed")
        .nth(1)
        .unwrap();
    let identity = path("identity.txt").display().to_string();
    let stream = good(&[
        "restore",
        &dataset(),
        "--identity",
        &identity,
        "--stdout",
        "--backup",
        id,
    ])
    .stdout;
    assert!(
        stream == fs::read(path("reference")).unwrap(),
        "the stream differs from that of zfs send before the cut"
    );
    crate::halves::assert_nothing_held(&dataset());
    assert!(text(&good(&["verify-checksums"])).contains("0 damaged"));
    assert_eq!(journals(&path("state")).len(), 0);
    let files = String::from_utf8(run(
        "find",
        &[FOLDER, "-name", "*.partial", "-o", "-name", "*.new"],
    ))
    .unwrap();
    assert_eq!(files, "", "files are left");
}
