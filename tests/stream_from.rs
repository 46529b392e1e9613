//! The whole way of a stream through the real program without ZFS: a recorded stream goes in
//! through a pipe or from a file, is stored, and comes back the same; in bounded memory, however
//! long it is.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "support/output.rs"]
mod output;
#[path = "support/recorded.rs"]
mod recorded;

use output::check;
use recorded::writer;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use zfs_backup::model::Guid;

const BLOCK_BYTES: usize = 128 << 10;
/// What a backup or a restore may take at default settings.
const PEAK_KIB_MAX: u64 = 96 << 10;

/// A host without ZFS and with an empty folder as its remote.
struct Host {
    folder: TempDir,
}

/// A block that no compressor makes smaller; one in four is zeros.
fn block(number: usize) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    if !number.is_multiple_of(4) {
        blake3::Hasher::new()
            .update(&number.to_le_bytes())
            .finalize_xof()
            .fill(&mut block);
    }
    block
}

fn stream(blocks: usize) -> Vec<u8> {
    let mut writer = writer(None);
    (0..blocks).for_each(|number| writer.write(2, (number * BLOCK_BYTES) as u64, &block(number)));
    writer.end()
}

impl Host {
    fn new(more: &str) -> Self {
        let host = Self {
            folder: TempDir::new().unwrap(),
        };
        fs::create_dir(host.path("remote")).unwrap();
        let (remote, state) = (host.path("remote"), host.path("state"));
        let text = format!(
            "[main]\nzfs_fs = \"tank/data\"\nuse_snapshots = \"*\"\nencryption_passphrase = \"only for this test of sixteen\"\n\
             remote = \"file:{}\"\nstate_dir = \"{}\"\n{more}",
            remote.display(),
            state.display()
        );
        fs::write(host.path("zb.toml"), text).unwrap();
        fs::set_permissions(host.path("zb.toml"), fs::Permissions::from_mode(0o600)).unwrap();
        // Here scrypt takes its 256 MiB, and never again.
        check(&host.run(&["key", "generate"]), 0, &[]);
        check(
            &host.run(&["key", "export", "--output", &host.text("identity")]),
            0,
            &[],
        );
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zfs-backup"));
        command.arg("-c").arg(self.path("zb.toml")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn restored(&self, name: &str) -> Vec<u8> {
        let (output, identity) = (self.text(name), self.text("identity"));
        check(
            &self.run(&[
                "restore",
                "tank/data",
                "--output",
                &output,
                "--identity",
                &identity,
            ]),
            0,
            &[],
        );
        fs::read(self.path(name)).unwrap()
    }
}

#[test]
fn recorded_stream_is_restored_byte_for_byte() {
    for more in ["", "[send]\ncompression = \"zstd:1\"\n"] {
        // Several chunks, of several parts each, none of which ends where a block does.
        let host = Host::new(&format!("split_size = \"9M\"\n{more}"));
        let recorded = stream(200);
        fs::write(host.path("recorded"), &recorded).unwrap();
        let from = host.text("recorded");
        let arguments = ["stream-to-remote", "--full", "--stream-from", &from];
        check(
            &host.run(&arguments),
            0,
            &["tank/data: committed", "3 chunks"],
        );
        assert!(
            host.restored("back") == recorded,
            "another stream came back"
        );
        check(
            &host.run(&["stream-to-remote", "--stream-from", &from]),
            0,
            &["up to date"],
        );
    }
}

#[test]
fn dry_run_refuses_a_stream_with_too_many_chunks() {
    let host = Host::new("split_size = \"64K\"\n");
    fs::write(host.path("recorded"), stream(3)).unwrap();
    // The estimate of a recorded stream is the length of its file.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(host.path("recorded"));
    file.unwrap().set_len(40 << 30).unwrap();
    let from = host.text("recorded");
    check(
        &host.run(&[
            "--dry-run",
            "stream-to-remote",
            "--full",
            "--stream-from",
            &from,
        ]),
        1,
        &[
            "split_size is \"64K\"",
            "write split_size = \"1M\" into [main]",
        ],
    );
}

#[test]
fn invalid_stream_from_input_is_refused() {
    let host = Host::new("");
    let from = host.text("recorded");
    let arguments = ["stream-to-remote", "--full", "--stream-from", &from];
    check(&host.run(&arguments), 1, &["recorded"]);
    fs::write(host.path("recorded"), writer(Some(Guid(3))).end()).unwrap();
    check(&host.run(&arguments), 1, &["incremental"]);
    check(
        &host.run(&["stream-to-remote", "--incremental", "--stream-from", &from]),
        2,
        &["cannot be used with"],
    );
    // A stream that was cut is no backup, whatever the file says of itself.
    let whole = stream(3);
    fs::write(host.path("recorded"), &whole[..whole.len() - 1]).unwrap();
    check(
        &host.run(&arguments),
        1,
        &["check the stream of tank/data@recorded"],
    );
    let help = host.run(&["stream-to-remote", "--help"]);
    assert!(
        !String::from_utf8_lossy(&help.stdout).contains("stream-from"),
        "it is for nobody's daily use"
    );
}

/// The most memory that a running process had, told by the kernel until it ended.
fn peak_kib(child: &mut Child) -> u64 {
    let (path, mut peak) = (format!("/proc/{}/status", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = kib.unwrap_or(peak);
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

#[test]
fn memory_is_bounded_whatever_the_length() {
    for more in ["", "[send]\ncompression = \"zstd:1\"\n"] {
        let host = Host::new(&format!("split_size = \"64M\"\n{more}"));
        let mut command =
            host.command(&["stream-to-remote", "--full", "--stream-from", "/dev/stdin"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        let feeder = std::thread::spawn(move || {
            let mut writer = writer(None);
            for number in 0..2000 {
                writer.write(2, (number * BLOCK_BYTES) as u64, &block(number));
                pipe.write_all(&writer.take_bytes()).unwrap();
            }
            pipe.write_all(&writer.end()).unwrap();
        });
        let peak = peak_kib(&mut child);
        feeder.join().unwrap();
        assert!(child.wait().unwrap().success());
        assert!(
            (1..PEAK_KIB_MAX).contains(&peak),
            "a backup of 250 MiB took {peak} KiB ({more:?})"
        );
        let identity = host.text("identity");
        let mut command =
            host.command(&["restore", "tank/data", "--stdout", "--identity", &identity]);
        let mut child = command
            .stdout(fs::File::create("/dev/null").unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let peak = peak_kib(&mut child);
        assert!(child.wait().unwrap().success());
        assert!(
            (1..PEAK_KIB_MAX).contains(&peak),
            "a restore of 250 MiB took {peak} KiB ({more:?})"
        );
    }
}
