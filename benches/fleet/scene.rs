//! [`Scene`]: a host with pools in memory, a configuration in a folder of its own, and a bucket.

use crate::bucket::{Bucket, Requests};
use jiff::Timestamp;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;
use zfs_backup::cli::run_in_process;
use zfs_backup::model::DatasetName;
use zfs_backup::zfs::DatasetType;
use zfs_backup::zfs::fake::FakeZfs;

/// The passphrase of the keyring.
pub(crate) const PASSPHRASE: &str = "a passphrase of a benchmark";
/// The bucket and the prefix in it.
pub(crate) const PLACE: &str = "fleet/host";
/// The file of each dataset that stays as it is, and the file that changes.
const KEPT_FILE: u64 = 7;
const CHANGED_FILE: u64 = 8;

pub(crate) struct Scene {
    folder: PathBuf,
    /// Removes the folder in the end, unless another process owns it.
    _owned: Option<TempDir>,
    pub(crate) zfs: FakeZfs,
    pub(crate) bucket: Bucket,
    pub(crate) datasets: Vec<DatasetName>,
}

/// The cost of a command.
pub(crate) struct Cost {
    pub(crate) wall_seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// The peak of this process during the command.
    pub(crate) peak_mib: u64,
    pub(crate) requests: Requests,
}

impl Scene {
    /// A pool `tank` with so many datasets below it, with a file of so many bytes each.
    pub(crate) fn new(datasets: usize, file_bytes: usize) -> Self {
        let owned = TempDir::new().unwrap();
        let folder = owned.path().to_owned();
        Self {
            _owned: Some(owned),
            ..Self::at(folder, Bucket::start(), datasets, file_bytes)
        }
    }

    /// Does the same as [`Scene::new`], in a folder and with a bucket that exist.
    pub(crate) fn at(folder: PathBuf, bucket: Bucket, datasets: usize, file_bytes: usize) -> Self {
        let zfs = FakeZfs::new();
        zfs.set_now(Timestamp::now());
        let name = |number| format!("tank/c{number:03}").parse().unwrap();
        let datasets: Vec<DatasetName> = (0..datasets).map(name).collect();
        for (number, dataset) in (0..).zip(&datasets) {
            zfs.create(dataset, DatasetType::Filesystem);
            zfs.write_file(dataset, KEPT_FILE, &noise(number, file_bytes));
        }
        let scene = Self {
            folder,
            _owned: None,
            zfs,
            bucket,
            datasets,
        };
        scene.configure("");
        scene
    }

    /// Writes the configuration, with more keys at the end.
    pub(crate) fn configure(&self, more: &str) {
        let names: Vec<String> = self
            .datasets
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        let folder = self.folder.display();
        let (names, address) = (names.join(", "), &self.bucket.address);
        let text = format!(
            "[s3]\nendpoint = \"http://{address}\"\nregion = \"us-east-1\"\npath_style = true\n\
             [backup-lifecycle]\nfull_when_incrementals_exceed = \"10000%\"\n\
             [lifecycle-remote]\nkeep-within = \"10y\"\n\
             [main]\nzfs_fs = [{names}]\nremote = \"s3:{PLACE}\"\n\
             encryption_passphrase = \"{PASSPHRASE}\"\nstate_dir = \"{folder}/state\"\n\
             lock_file = \"{folder}/state/lock\"\n{more}"
        );
        let file = self.config_file();
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("zb.toml")
    }

    /// Writes other bytes of this length into each of these datasets.
    pub(crate) fn change(&self, datasets: &[DatasetName], bytes: usize) {
        let seed = Timestamp::now().as_nanosecond().to_le_bytes()[..8].try_into();
        let seed = u64::from_le_bytes(seed.unwrap());
        for (number, dataset) in (0..).zip(datasets) {
            self.zfs
                .write_file(dataset, CHANGED_FILE, &noise(seed ^ number, bytes));
        }
    }

    /// Runs a command as [`Scene::run`] does, with its output.
    pub(crate) fn run_aloud(&self, delay_ms: u64, words: &[&str]) -> Cost {
        self.run_with(&[], delay_ms, words)
    }

    /// Runs a command, which must succeed, with so many milliseconds for each request.
    pub(crate) fn run(&self, delay_ms: u64, words: &[&str]) -> Cost {
        self.run_with(&["-q"], delay_ms, words)
    }

    fn run_with(&self, options: &[&str], delay_ms: u64, words: &[&str]) -> Cost {
        self.zfs.set_now(Timestamp::now());
        self.bucket.delay(delay_ms);
        self.bucket.requests();
        forget_peak();
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let file = self.config_file();
        let head = ["-c", file.to_str().unwrap()];
        let words = [options, &head, words].concat();
        let status = run_in_process(&words, Arc::new(self.zfs.clone()));
        assert_eq!(status, 0, "{words:?}");
        let (wall_seconds, cpu_seconds) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let peak_mib = peak_mib();
        self.bucket.delay(0);
        Cost {
            wall_seconds,
            cpu_seconds,
            peak_mib,
            requests: self.bucket.requests(),
        }
    }
}

impl Cost {
    /// Prints the cost, after the words that say of what.
    pub(crate) fn print(&self, what: &str) {
        let Self {
            wall_seconds,
            cpu_seconds,
            peak_mib,
            requests,
        } = self;
        println!(
            "{what:<52} {wall_seconds:>8.2} s wall {cpu_seconds:>7.2} s CPU {peak_mib:>4} MiB peak\n  requests {requests}"
        );
        if std::env::args().any(|arg| arg == "--trace") {
            requests.print();
        }
    }
}

/// Returns bytes that do not compress.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut data);
    data
}

/// Returns the processor time of all threads of this process, in hundredths of a second.
pub(crate) fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<f64>().unwrap());
    ticks.sum::<f64>() / 100.0
}

/// Makes the kernel count the peak of memory anew, as proc(5) describes for `clear_refs`.
fn forget_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn peak_mib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}
