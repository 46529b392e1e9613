//! [`FakeZfs`] against the kernel: the same random operations on both, the same answers and the
//! same refusals. The tests of the room `run` rely on this equality.
//!
//! `ZFS_BACKUP_TEST_SEED` repeats a run; `ZFS_BACKUP_TEST_SECONDS` is how long new sequences are
//! begun.

use crate::pool::{LARGE_COMPRESSED, Pool, noise, run, wait_until, zfs};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write;
use std::time::{Duration, Instant};
use zfs_backup::model::{BookmarkName, DatasetName, SnapshotName};
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{
    DatasetType, PropertyValue, ReceiveRequest, SendBase, SendRequest, Zfs, ZfsError, ZfsRead,
};

const POOL: &str = "same";
const DATASETS: [&str; 4] = ["same/a", "same/b", "same/a/c", "same/r"];
const SECONDS: u64 = 25;
/// However slow the machine is.
const SEQUENCES_MIN: usize = 3;
const STEPS: usize = 30;

/// An operation on names that may or may not exist.
#[derive(Debug, Clone)]
enum Operation {
    Create(DatasetName),
    Write(DatasetName, u64, usize, u64),
    Take(SnapshotName),
    Hold(SnapshotName, &'static str),
    Release(SnapshotName, &'static str),
    DestroySnapshots(Vec<SnapshotName>),
    DestroyDataset(DatasetName),
    Bookmark(BookmarkName, SnapshotName),
    DestroyBookmark(BookmarkName),
    RollBack(DatasetName, SnapshotName),
    Clone(SnapshotName, DatasetName),
    Set(DatasetName, &'static str, PropertyValue),
    Inherit(DatasetName, &'static str),
    /// From, to; onto the target's base while a snapshot of that name appears in the middle.
    SendReceive {
        base: Option<SendBase>,
        from: SnapshotName,
        to: SnapshotName,
        appears: Option<SnapshotName>,
    },
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    fn dataset(&mut self) -> DatasetName {
        DATASETS[self.below(DATASETS.len())].parse().unwrap()
    }

    fn snapshot(&mut self) -> SnapshotName {
        let short = ["1", "2", "3"][self.below(3)];
        self.dataset().snapshot(short).unwrap()
    }

    fn bookmark(&mut self) -> BookmarkName {
        let short = ["x", "y"][self.below(2)];
        self.dataset().bookmark(short).unwrap()
    }

    fn operation(&mut self) -> Operation {
        let tag = |random: &mut Self| ["keep", "also"][random.below(2)];
        match self.below(24) {
            0 | 1 => Operation::Create(self.dataset()),
            2..=5 => Operation::Write(
                self.dataset(),
                7 + self.below(3) as u64,
                1 + self.below(9_000),
                self.0,
            ),
            6..=9 => Operation::Take(self.snapshot()),
            10 => Operation::Hold(self.snapshot(), tag(self)),
            11 => Operation::Release(self.snapshot(), tag(self)),
            12 => Operation::DestroySnapshots(vec![self.snapshot()]),
            13 => Operation::DestroyDataset(self.dataset()),
            14 => Operation::Bookmark(self.bookmark(), self.snapshot()),
            15 => Operation::DestroyBookmark(self.bookmark()),
            16 | 17 => {
                let snapshot = self.snapshot();
                let dataset = if self.below(5) == 0 {
                    self.dataset()
                } else {
                    snapshot.dataset().clone()
                };
                Operation::RollBack(dataset, snapshot)
            }
            18 => Operation::Clone(self.snapshot(), self.dataset()),
            19 => Operation::Set(
                self.dataset(),
                "zfs-backup:test",
                PropertyValue::Text("a text".into()),
            ),
            20 => Operation::Inherit(self.dataset(), "zfs-backup:test"),
            _ => {
                let from = self.snapshot();
                let base = match self.below(3) {
                    0 => None,
                    1 => Some(SendBase::Snapshot(
                        from.dataset()
                            .snapshot(["1", "2", "3"][self.below(3)])
                            .unwrap(),
                    )),
                    _ => Some(SendBase::Bookmark(
                        from.dataset().bookmark(["x", "y"][self.below(2)]).unwrap(),
                    )),
                };
                let to = self.snapshot();
                let appears = (self.below(3) == 0).then(|| to.dataset().snapshot("late").unwrap());
                Operation::SendReceive {
                    base,
                    from,
                    to,
                    appears,
                }
            }
        }
    }
}

/// Returns a result's kind without its text, because the two sides word their errors differently.
fn kind<T>(result: Result<T, ZfsError>) -> String {
    match result {
        Ok(_) => "done".to_owned(),
        Err(ZfsError::Several { failures, .. }) => format!("{failures:?}"),
        Err(error) => error
            .errno()
            .map_or_else(|| error.to_string(), |errno| format!("errno {}", errno.0)),
    }
}

/// The operations that the two sides do in different ways.
trait Side: Sync {
    fn zfs(&self) -> &dyn Zfs;
    fn write(&self, dataset: &DatasetName, file: u64, bytes: &[u8]);
    fn clone_snapshot(&self, snapshot: &SnapshotName, dataset: &DatasetName) -> bool;
    /// Waits until this side has checked the target of a receive whose first half it has. Other
    /// threads than these belong to the receive.
    fn wait_until_checked(&self, target: &DatasetName, others: &BTreeSet<OsString>);
}

impl Side for FakeZfs {
    fn zfs(&self) -> &dyn Zfs {
        self
    }

    fn write(&self, dataset: &DatasetName, file: u64, bytes: &[u8]) {
        self.write_file(dataset, file, bytes);
    }

    fn clone_snapshot(&self, snapshot: &SnapshotName, dataset: &DatasetName) -> bool {
        self.clone_snapshot(snapshot, dataset).is_ok()
    }

    fn wait_until_checked(&self, _: &DatasetName, _: &BTreeSet<OsString>) {}
}

/// Runs the reference command; returns whether it succeeded.
fn tried(arguments: &[&str]) -> bool {
    std::process::Command::new("zfs")
        .args(arguments)
        .output()
        .unwrap()
        .status
        .success()
}

impl Side for Pool {
    fn zfs(&self) -> &dyn Zfs {
        &self.zfs
    }

    fn write(&self, dataset: &DatasetName, file: u64, bytes: &[u8]) {
        if self.zfs.dataset(dataset).unwrap().is_none() {
            return;
        }
        // Mounted for this only, so that no mount is in the way of anything else.
        let folder = "/tmp/same-files";
        std::fs::create_dir_all(folder).unwrap();
        run(
            "mount",
            &["-t", "zfs", "-o", "zfsutil", dataset.as_str(), folder],
        );
        std::fs::write(format!("{folder}/file-{file}"), bytes).unwrap();
        run("umount", &[folder]);
        run("zpool", &["sync", POOL]);
    }

    fn clone_snapshot(&self, snapshot: &SnapshotName, dataset: &DatasetName) -> bool {
        tried(&[
            "clone",
            "-o",
            "canmount=noauto",
            &snapshot.to_string(),
            dataset.as_str(),
        ])
    }

    fn wait_until_checked(&self, target: &DatasetName, others: &BTreeSet<OsString>) {
        // The kernel makes this hidden dataset once it has checked the target. After a refusal
        // the thread of the receive ends.
        let hidden = format!("{target}/%recv");
        wait_until("the target is checked", || {
            threads_now().is_subset(others) || tried(&["list", &hidden])
        });
    }
}

/// The ids of this process's threads.
fn threads_now() -> BTreeSet<OsString> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.map(|task| task.unwrap().file_name()).collect()
}

/// Gives its bytes, and does something once half of them are read.
struct Halfway<'a>(&'a [u8], usize, Option<Box<dyn FnOnce() + Send + 'a>>);

impl std::io::Read for Halfway<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0.len() <= self.1
            && let Some(what) = self.2.take()
        {
            what();
        }
        let most = buffer.len().min(4096);
        self.0.read(&mut buffer[..most])
    }
}

fn send_and_receive(side: &dyn Side, operation: &Operation) -> String {
    let Operation::SendReceive {
        base,
        from,
        to,
        appears,
    } = operation
    else {
        return String::new();
    };
    let request = SendRequest {
        snapshot: from.clone(),
        base: base.clone(),
        flags: LARGE_COMPRESSED,
        resume: None,
    };
    let sent = side.zfs().send(&request).and_then(|mut stream| {
        let mut bytes = Vec::new();
        stream.reader().read_to_end(&mut bytes).unwrap();
        stream.finish().map(|()| bytes)
    });
    let bytes = match sent {
        Ok(bytes) => bytes,
        Err(error) => return format!("send: {}", kind::<()>(Err(error))),
    };
    let request = ReceiveRequest {
        target: to.clone(),
        resumable: false,
        properties: [("canmount".to_owned(), PropertyValue::Number(2))].into(),
    };
    let zfs = side.zfs();
    let others = threads_now();
    let appear = move || {
        side.wait_until_checked(to.dataset(), &others);
        drop(zfs.take_snapshots(appears.as_slice(), &BTreeMap::new()));
    };
    let is_there = zfs.dataset(to.dataset()).unwrap().is_some();
    let what: Option<Box<dyn FnOnce() + Send>> = if appears.is_some() && is_there {
        Some(Box::new(appear))
    } else {
        None
    };
    let mut source = Halfway(&bytes, bytes.len() / 2, what);
    let received = kind(zfs.receive(&request, &mut source));
    // A refusal may come before half of the stream was read.
    if let Some(what) = source.2.take() {
        what();
    }
    format!("receive: {received}")
}

fn apply(side: &dyn Side, operation: &Operation) -> String {
    let zfs = side.zfs();
    match operation {
        Operation::Create(name) => kind(zfs.create_filesystem(
            name,
            &[("canmount".to_owned(), PropertyValue::Number(2))].into(),
        )),
        Operation::Write(dataset, file, bytes, seed) => {
            side.write(dataset, *file, &noise(*bytes, *seed));
            "written".to_owned()
        }
        Operation::Take(name) => {
            kind(zfs.take_snapshots(std::slice::from_ref(name), &BTreeMap::new()))
        }
        Operation::Hold(name, tag) => kind(zfs.hold(name, tag)),
        Operation::Release(name, tag) => kind(zfs.release(name, tag)),
        Operation::DestroySnapshots(names) => kind(zfs.destroy_snapshots(names)),
        Operation::DestroyDataset(name) => kind(zfs.destroy_dataset(name)),
        Operation::Bookmark(name, source) => {
            kind(zfs.bookmark(name, &SendBase::Snapshot(source.clone())))
        }
        Operation::DestroyBookmark(name) => kind(zfs.destroy_bookmarks(std::slice::from_ref(name))),
        Operation::RollBack(dataset, to) => kind(zfs.roll_back(dataset, to)),
        Operation::Clone(snapshot, name) => side.clone_snapshot(snapshot, name).to_string(),
        Operation::Set(name, property, value) => {
            kind(zfs.set_properties(name, &[((*property).to_owned(), value.clone())].into()))
        }
        Operation::Inherit(name, property) => kind(zfs.inherit_property(name, property)),
        Operation::SendReceive { .. } => send_and_receive(side, operation),
    }
}

/// Follows which datasets were rolled back and have no newer snapshot. A rollback resets the intent
/// log, which may count as `written` in the kernel. A receive does not count that as a change.
fn note_rollback(rolled_back: &mut BTreeSet<DatasetName>, operation: &Operation) {
    match operation {
        Operation::RollBack(dataset, _) => {
            rolled_back.insert(dataset.clone());
        }
        Operation::Take(snapshot) | Operation::SendReceive { to: snapshot, .. } => {
            rolled_back.remove(snapshot.dataset());
        }
        Operation::DestroyDataset(dataset) => {
            rolled_back.remove(dataset);
        }
        _ => {}
    }
}

/// All that both must agree on: names, what is the same snapshot as which, holds, clones,
/// bookmarks, properties.
fn picture(zfs: &dyn Zfs, rolled_back: &BTreeSet<DatasetName>) -> String {
    let (mut text, mut numbers) = (String::new(), BTreeMap::new());
    // Guids differ, and equal ones must be equal: each gets a number when it is first seen.
    let mut number = |guid: u64| {
        let next = numbers.len();
        *numbers.entry(guid).or_insert(next)
    };
    for name in DATASETS {
        let name: DatasetName = name.parse().unwrap();
        let Some(dataset) = zfs.dataset(&name).unwrap() else {
            continue;
        };
        let own = dataset
            .properties
            .get("zfs-backup:test")
            .map(|property| property.source.clone());
        let changed = dataset
            .properties
            .get("written")
            .map(|written| written.value != PropertyValue::Number(0));
        let snapshots = zfs.snapshots(&name).unwrap();
        let changed = changed.filter(|_| !snapshots.is_empty() && !rolled_back.contains(&name));
        writeln!(
            text,
            "{name} origin {:?} property {own:?} changed {changed:?}",
            dataset.origin
        )
        .unwrap();
        for snapshot in snapshots {
            let (holds, clones) = (
                zfs.holds(&snapshot.name).unwrap().into_keys(),
                snapshot.clones,
            );
            let holds: Vec<String> = holds.collect();
            writeln!(
                text,
                "  {} is {} {holds:?} {clones}",
                snapshot.name,
                number(snapshot.guid.0)
            )
            .unwrap();
            let alone = zfs.snapshot(&snapshot.name).unwrap();
            assert_eq!(alone.map(|alone| alone.guid), Some(snapshot.guid));
        }
        let mut bookmarks = zfs.bookmarks(&name).unwrap();
        bookmarks.sort_by(|one, other| one.name.cmp(&other.name));
        for bookmark in bookmarks {
            writeln!(text, "  {} is {}", bookmark.name, number(bookmark.guid.0)).unwrap();
        }
    }
    text
}

fn clear() {
    for name in ["same/r", "same/b", "same/a"] {
        let holds = zfs(&["list", "-Hro", "name", "-t", "snapshot", POOL]);
        for snapshot in holds.lines() {
            for tag in ["keep", "also"] {
                tried(&["release", tag, snapshot]);
            }
        }
        tried(&["destroy", "-R", name]);
    }
}

#[test]
fn the_fake_answers_as_the_kernel_does() {
    let number = |name: &str, default| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let seed = number("ZFS_BACKUP_TEST_SEED", 4711);
    let seconds = number("ZFS_BACKUP_TEST_SECONDS", SECONDS);
    println!("seed {seed}");
    let (pool, begun, mut random) = (
        Pool::new(POOL),
        Instant::now(),
        Random(seed.wrapping_mul(0x9E37_79B9) | 1),
    );
    zfs(&["set", "atime=off", POOL]);
    let (mut sequences, mut operations, mut refused) = (0, 0, 0);
    while sequences < SEQUENCES_MIN || begun.elapsed() < Duration::from_secs(seconds) {
        clear();
        let fake = FakeZfs::new();
        fake.create(&POOL.parse().unwrap(), DatasetType::Filesystem);
        let (mut done, mut rolled_back) = (Vec::new(), BTreeSet::new());
        for _ in 0..STEPS {
            let operation = random.operation();
            let (expected, found) = (apply(&pool, &operation), apply(&fake, &operation));
            done.push(format!("{operation:?} -> {expected}"));
            let before = done.join("\n");
            assert_eq!(
                found, expected,
                "seed {seed}: the fake (left) and the kernel differ after\n{before}"
            );
            if ["done", "receive: done"].contains(&expected.as_str()) {
                note_rollback(&mut rolled_back, &operation);
            }
            let kernel = picture(&pool.zfs, &rolled_back);
            let fakes = picture(&fake, &rolled_back);
            assert_eq!(
                fakes, kernel,
                "seed {seed}: the fake (left) and the kernel differ after\n{before}"
            );
            operations += 1;
            refused += usize::from(!["done", "written", "true"].contains(&expected.as_str()));
        }
        sequences += 1;
    }
    println!("{sequences} sequences, {operations} operations, {refused} of them refused by both");
    assert!(refused > 0 && refused < operations);
}
