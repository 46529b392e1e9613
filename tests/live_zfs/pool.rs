//! A pool in a file, the reference command, and short names for what the tests need all the time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use zfs_backup::model::{BookmarkName, DatasetName, SnapshotName};
use zfs_backup::zfs::{RealZfs, SendFlags, SendRequest, ZfsErrno, ZfsError, ZfsSend, ZfsSnapshots};

/// Everything on: what the product asks for.
pub(crate) const LARGE_COMPRESSED: SendFlags = SendFlags {
    raw: false,
    compressed: true,
    embedded: false,
    large_blocks: true,
};

/// A pool of its own for one test, destroyed with it.
pub(crate) struct Pool {
    pub(crate) name: String,
    pub(crate) zfs: RealZfs,
}

impl Pool {
    /// Mounted below `/tmp/NAME`, with large records so that large blocks matter.
    pub(crate) fn new(name: &str) -> Self {
        let zfs = RealZfs::open(None).expect("these tests need ZFS");
        let file = format!("/tmp/{name}.img");
        fs::File::create(&file).unwrap().set_len(512 << 20).unwrap();
        let mountpoint = format!("mountpoint=/tmp/{name}");
        run(
            "zpool",
            &[
                "create",
                "-f",
                "-O",
                "recordsize=1M",
                "-O",
                "compression=lz4",
                "-O",
                &mountpoint,
                name,
                &file,
            ],
        );
        Self {
            name: name.to_owned(),
            zfs,
        }
    }

    pub(crate) fn dataset(&self, path: &str) -> DatasetName {
        format!("{}/{path}", self.name).parse().unwrap()
    }

    pub(crate) fn snapshot(&self, path: &str) -> SnapshotName {
        format!("{}/{path}", self.name).parse().unwrap()
    }

    pub(crate) fn bookmark(&self, path: &str) -> BookmarkName {
        format!("{}/{path}", self.name).parse().unwrap()
    }

    /// Makes a filesystem by the reference command.
    pub(crate) fn create(&self, path: &str) -> DatasetName {
        let name = self.dataset(path);
        zfs(&["create", name.as_str()]);
        name
    }

    /// Where a file of a mounted dataset lies.
    pub(crate) fn file(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/tmp/{}/{path}", self.name))
    }

    /// Writes a file whose content no compression makes small.
    pub(crate) fn write(&self, path: &str, bytes: usize, seed: u64) {
        fs::write(self.file(path), noise(bytes, seed)).unwrap();
    }

    /// Takes one snapshot without properties.
    pub(crate) fn take(&self, path: &str) -> SnapshotName {
        let name = self.snapshot(path);
        self.zfs
            .take_snapshots(std::slice::from_ref(&name), &BTreeMap::new())
            .unwrap();
        name
    }

    /// All bytes of a stream, which must end well.
    pub(crate) fn send(&self, request: &SendRequest) -> Vec<u8> {
        let mut stream = self.zfs.send(request).unwrap();
        let mut bytes = Vec::new();
        std::io::copy(stream.reader(), &mut bytes).unwrap();
        stream.finish().unwrap();
        bytes
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // A failing test must not hide behind a pool that cannot be destroyed.
        let _ = Command::new("zpool")
            .args(["destroy", "-f", &self.name])
            .status();
        let _ = fs::remove_file(format!("/tmp/{}.img", self.name));
    }
}

/// A full send with all flags.
pub(crate) fn full(snapshot: &SnapshotName) -> SendRequest {
    SendRequest {
        snapshot: snapshot.clone(),
        base: None,
        flags: LARGE_COMPRESSED,
        resume: None,
    }
}

/// Bytes from a counter, always the same for one seed.
pub(crate) fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| word()).collect();
    out.truncate(bytes);
    out
}

/// Runs the reference command, which must succeed; its standard output.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(program).args(arguments).output().unwrap();
    assert!(
        status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&stderr)
    );
    stdout
}

/// As [`run`], with something on standard input.
pub(crate) fn run_with_input(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{program} {arguments:?}");
}

/// The `zfs` command's output as text, without the last line's end.
pub(crate) fn zfs(arguments: &[&str]) -> String {
    String::from_utf8(run("zfs", arguments))
        .unwrap()
        .trim_end()
        .to_owned()
}

/// A property by the reference command, as a number without unit.
pub(crate) fn property(name: &impl ToString, property: &str) -> String {
    zfs(&["get", "-Hpo", "value", property, &name.to_string()])
}

/// Guards against hanging. The machine may be emulated, and busy with other work.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// Waits until something holds.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < WAIT_MAX, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The folders of the threads of that name, of the process with that folder in `/proc`.
pub(crate) fn threads(process: &Path, name: &str) -> Vec<PathBuf> {
    let tasks = fs::read_dir(process.join("task"))
        .into_iter()
        .flatten()
        .flatten();
    let is_named = |folder: &PathBuf| {
        fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    tasks.map(|task| task.path()).filter(is_named).collect()
}

/// The device of a volume, which appears some time after the volume. There is no udev, so the
/// device is the one whose size is the volume's.
pub(crate) fn device_of(volume: &str) -> PathBuf {
    let sectors = (property(&volume, "volsize").parse::<u64>().unwrap() / 512).to_string();
    let is_it = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let size = fs::read_to_string(format!("/sys/block/{name}/size")).unwrap_or_default();
        fs::metadata(path).is_ok() && size.trim() == sectors
    };
    let mut found = None;
    wait_until("the volume has a device", || {
        let by_name = PathBuf::from(format!("/dev/zvol/{volume}"));
        let mut by_number = (0..64).map(|number| PathBuf::from(format!("/dev/zd{}", number * 16)));
        found = Some(by_name).filter(|path| path.exists());
        found = found.take().or_else(|| by_number.find(is_it));
        found.is_some()
    });
    found.unwrap()
}

/// The error number, which there must be.
#[track_caller]
pub(crate) fn errno<T>(result: Result<T, ZfsError>) -> i32 {
    match result {
        Err(error) => error.errno().unwrap_or_else(|| panic!("{error:?}")).0,
        Ok(_) => panic!("it succeeded"),
    }
}

/// What was refused, and why.
#[track_caller]
pub(crate) fn several<T>(result: Result<T, ZfsError>) -> Vec<(String, ZfsErrno)> {
    match result {
        Err(ZfsError::Several { failures, .. }) => failures,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it succeeded"),
    }
}
