//! What an interruption costs, in figures: bytes that ZFS sends again, bytes that are uploaded
//! again, seconds; against starting over. With the pool in memory and a folder as the store.
//!
//! ```text
//! cargo nextest run --test run --run-ignored only --no-capture figures
//! ```
//! `ZFS_BACKUP_TEST_MIB` is how much is sent; 2048 MiB take 10 GiB of memory.
//! `ZFS_BACKUP_TEST_SPLIT_MIB` is the size of chunks, else 64 and 1024.

use crate::failures::ThroughSend;
use crate::world::{World, committed, name, noise, quick_keys};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tempfile::TempDir;
use zfs_backup::plan::send::RequestedKind;
use zfs_backup::run::RunError;
use zfs_backup::run::backup::back_up;
use zfs_backup::run::transfer::Progress;
use zfs_backup::store::{DirSettings, DirStore};
use zfs_backup::zfs::{SendStream, Zfs};

const MIB: u64 = 1 << 20;
const FILE_MIB: u64 = 64;

/// What one run, or several, moved.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    read_bytes: u64,
    uploaded_bytes: u64,
    seconds: f64,
}

impl Cost {
    fn plus(self, other: Self) -> Self {
        Self {
            read_bytes: self.read_bytes + other.read_bytes,
            uploaded_bytes: self.uploaded_bytes + other.uploaded_bytes,
            seconds: self.seconds + other.seconds,
        }
    }

    fn beyond(self, whole: Self) -> Self {
        Self {
            read_bytes: self.read_bytes.saturating_sub(whole.read_bytes),
            uploaded_bytes: self.uploaded_bytes.saturating_sub(whole.uploaded_bytes),
            seconds: self.seconds - whole.seconds,
        }
    }

    fn tell(self, what: &str) {
        let Self {
            read_bytes,
            uploaded_bytes,
            seconds,
        } = self;
        let (read, uploaded) = (read_bytes / MIB, uploaded_bytes / MIB);
        // Also when the test succeeds.
        let mut terminal = std::io::stderr();
        writeln!(
            terminal,
            "{what:<44} read {read:>5} MiB  uploaded {uploaded:>5} MiB  {seconds:>6.1} s"
        )
        .unwrap();
    }
}

/// A place of its own for one upload.
struct Place {
    store: TempDir,
    state: TempDir,
}

/// Runs until the end, or until so many bytes were uploaded; what that cost.
async fn run(world: &World, place: &Place, stop_at_bytes: Option<u64>) -> Cost {
    let (read, uploaded) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let counted = Arc::clone(&read);
    let through = move |sending: SendStream| counting(sending, Arc::clone(&counted));
    let zfs: Arc<dyn Zfs> = Arc::new(ThroughSend {
        zfs: world.zfs.clone(),
        through: Box::new(through),
    });
    let mut env = world.env_with(zfs, stopping);
    let settings = DirSettings {
        root: place.store.path().to_owned(),
        part_bytes: 16 << 20,
    };
    env.store = Arc::new(DirStore::open(&settings).unwrap());
    env.settings.state_dir = place.state.path().to_owned();
    let seen = Arc::clone(&uploaded);
    env.progress = Arc::new(move |progress: Progress| {
        seen.fetch_max(progress.sent_bytes, Ordering::SeqCst);
        if stop_at_bytes.is_some_and(|bytes| progress.sent_bytes >= bytes) {
            stop.send_replace(true);
        }
    });
    let begun = Instant::now();
    let outcome = back_up(&env, &world.selected(), RequestedKind::Full).await;
    let seconds = begun.elapsed().as_secs_f64();
    match stop_at_bytes {
        None => drop(committed(outcome.unwrap())),
        Some(_) => assert!(matches!(outcome, Err(RunError::Interrupted)), "{outcome:?}"),
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
    Cost {
        read_bytes: count(&read),
        uploaded_bytes: count(&uploaded),
        seconds,
    }
}

/// The same stream, counted as it is read.
fn counting(sending: SendStream, count: Arc<AtomicU64>) -> SendStream {
    let sending = Arc::new(std::sync::Mutex::new(Some(sending)));
    let reader = Counting {
        sending: Arc::clone(&sending),
        count,
    };
    SendStream::new(
        Box::new(reader),
        Box::new(move || sending.lock().unwrap().take().unwrap().finish()),
    )
}

struct Counting {
    sending: Arc<std::sync::Mutex<Option<SendStream>>>,
    count: Arc<AtomicU64>,
}

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self
            .sending
            .lock()
            .unwrap()
            .as_mut()
            .unwrap()
            .reader()
            .read(buffer)?;
        self.count.fetch_add(bytes as u64, Ordering::SeqCst);
        Ok(bytes)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures: minutes, and 10 GiB of memory"]
async fn resumed_upload_repeats_at_most_one_chunk() {
    let mib: u64 = std::env::var("ZFS_BACKUP_TEST_MIB").map_or(2048, |text| text.parse().unwrap());
    let (keys, writer) = quick_keys();
    let mut world = World::empty(keys, writer);
    for file in 0..mib.div_ceil(FILE_MIB) {
        world.zfs.write_file(
            &name("tank/a b"),
            10 + file,
            &noise(file, usize::try_from(FILE_MIB * MIB).unwrap()),
        );
    }
    world.snapshot();
    let place = || Place {
        store: TempDir::new().unwrap(),
        state: TempDir::new().unwrap(),
    };
    let splits = std::env::var("ZFS_BACKUP_TEST_SPLIT_MIB")
        .map_or(vec![64, 1024], |text| vec![text.parse().unwrap()]);
    for split_mib in splits {
        world.settings.split_bytes = split_mib * MIB;
        let whole = run(&world, &place(), None).await;
        whole.tell(&format!(
            "{mib} MiB in chunks of {split_mib} MiB, not interrupted:"
        ));
        for percent in [10, 50, 90] {
            let place = place();
            let first = run(&world, &place, Some(whole.uploaded_bytes * percent / 100)).await;
            let second = run(&world, &place, None).await;
            let again = first.plus(second).beyond(whole);
            again.tell(&format!("  interrupted at {percent} %, done again:"));
            first.tell("    against starting over, done again:");
            assert!(
                again.uploaded_bytes <= split_mib * MIB + 64 * MIB,
                "more than a chunk was uploaded again"
            );
        }
    }
}
