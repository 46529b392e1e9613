//! Files of this host that a crash may have truncated or a person may have edited: journal, cache,
//! lockfile.

use super::{Choices, Target};
use crate::model::{DatasetName, KnownStore, ReadFault};
use crate::state::journal::log::{JournalRecord, line_of_log, records_of_log};
use crate::state::lockfile::{LockHolder, LockKind, LockState, read_lock};
use crate::state::manifests::{CacheMode, ObjectCache};
use crate::state::process::HostBoot;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub(super) const JOURNAL: Target = Target {
    name: "journal",
    run: journal,
    seeds: || {
        let lines: Vec<String> = records()
            .iter()
            .filter_map(|record| serde_json::to_string(record).ok())
            .collect();
        let whole = lines.iter().scan(String::new(), |last, json| {
            let line = line_of_log(last, json.as_bytes());
            Some(line)
        });
        let whole: Vec<u8> = whole.flatten().collect();
        vec![
            [b"m", lines.join("\n").as_bytes()].concat(),
            [b"w", &whole[..]].concat(),
        ]
    },
    words: &[
        "\"record\":\"plan\"",
        "\"record\":\"given-up\"",
        "\"record\":\"chunk\"",
        "\"record\":\"commit\"",
        "\n",
        "null",
    ],
};

pub(super) const CACHE_FILE: Target = Target {
    name: "cache_file",
    run: cache_file,
    seeds: || {
        let line = |key: &str, bytes: u64| {
            format!(
                "{{\"key\":\"{key}\",\"bytes\":{bytes},\"modified_at\":null,\"blake3\":\"{}\"}}\n",
                "0".repeat(64)
            )
        };
        vec![
            [
                line("a", 3),
                "abc\n".to_owned(),
                line("b", 0),
                "\n".to_owned(),
            ]
            .concat()
            .into_bytes(),
            line("a", u64::MAX).into_bytes(),
            line("a", 1 << 62).into_bytes(),
            line("a", 16 << 20).into_bytes(),
        ]
    },
    words: &[
        "\"key\":",
        "\"bytes\":",
        "\"modified_at\":null",
        "\"blake3\":",
        "\n",
        "18446744073709551615",
        "16777216",
    ],
};

pub(super) const LOCKFILE: Target = Target {
    name: "lockfile",
    run: lockfile,
    seeds: || {
        let kinds = [LockKind::Manual, LockKind::Run];
        let holders = kinds
            .into_iter()
            .filter_map(|kind| LockHolder::current(kind, jiff::Timestamp::UNIX_EPOCH).ok());
        holders
            .filter_map(|holder| serde_json::to_vec_pretty(&holder).ok())
            .collect()
    },
    words: &[
        "\"kind\": \"run\"",
        "\"pid\": ",
        "\"pid_started\": null",
        "\"boot_id\": \"\"",
        "4294967295",
        "4294967296",
    ],
};

/// A folder of this process, in memory if the host has `/dev/shm`. Nothing is kept in it.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = Path::new("/dev/shm");
    let above = if shared.is_dir() {
        shared.to_owned()
    } else {
        std::env::temp_dir()
    };
    let folder = above.join(format!("zfs-backup-fuzz.{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder in memory can be made");
    folder
});

fn records() -> Vec<JournalRecord> {
    vec![
        JournalRecord::Plan {
            started: b"{}".to_vec(),
            keyring: None,
            zfs_version: "2.3.2-1".to_owned(),
        },
        JournalRecord::Chunk {
            name: "00000000-00000001.zfs.age".to_owned(),
        },
        JournalRecord::Upload {
            name: "00000000-00000001.zfs.age".to_owned(),
            upload_id: "4_z".to_owned(),
        },
        JournalRecord::Stream {
            begin: vec![1; 312],
        },
        JournalRecord::Closing {
            private: vec![2; 9],
        },
        JournalRecord::ReadFault(ReadFault {
            position: 9,
            object: None,
            before: None,
        }),
        JournalRecord::Abandoned {
            why: "its snapshot is gone".to_owned(),
        },
    ]
}

/// Reads any bytes as a log or, if the first byte is `m`, as lines of JSON with the right sums.
fn journal(input: &[u8]) {
    let mut choices = Choices(input);
    let mended: Vec<u8> = match choices.byte() {
        b'm' => {
            let mut last = String::new();
            choices
                .0
                .split(|byte| *byte == b'\n')
                .flat_map(|json| line_of_log(&mut last, json))
                .collect()
        }
        _ => choices.0.to_vec(),
    };
    let Ok(records) = records_of_log(&mended) else {
        return;
    };
    let mut last = String::new();
    let json =
        |record: &JournalRecord| serde_json::to_vec(record).expect("what was read can be written");
    let written: Vec<u8> = records
        .iter()
        .flat_map(|record| line_of_log(&mut last, &json(record)))
        .collect();
    let again = records_of_log(&written).expect("what was written can be read");
    assert_eq!(again, records, "it is not read as it is written");
}

/// Reads any bytes after the first line of a cache.
fn cache_file(input: &[u8]) {
    let store = KnownStore::of_url("file:/srv/b");
    let state_dir = &*FOLDER;
    let dataset: DatasetName = "tank/a".parse().expect("the name is one");
    let _ = std::fs::remove_dir_all(state_dir.join("cache"));
    drop(ObjectCache::open(
        state_dir,
        &store,
        &dataset,
        CacheMode::ReadWrite,
    ));
    let files = std::fs::read_dir(state_dir.join("cache")).expect("opening a cache makes it");
    for file in files.flatten() {
        let mut bytes = std::fs::read(file.path()).expect("it is a file");
        let heading = bytes.clone();
        bytes.extend_from_slice(input);
        std::fs::write(file.path(), &bytes).expect("memory is not full");
        drop(ObjectCache::open(
            state_dir,
            &store,
            &dataset,
            CacheMode::ReadOnly,
        ));
        let untouched = std::fs::read(file.path()).expect("it is a file");
        assert_eq!(
            untouched, bytes,
            "a cache that keeps nothing changed its file"
        );
        drop(ObjectCache::open(
            state_dir,
            &store,
            &dataset,
            CacheMode::ReadWrite,
        ));
        let left = std::fs::read(file.path()).expect("it is a file");
        assert!(
            bytes.starts_with(&left) && left.starts_with(&heading),
            "more than a torn tail was cut"
        );
    }
}

/// Reads any bytes as the lockfile: never free, and stale only for an ended run of this host.
fn lockfile(input: &[u8]) {
    static HERE: LazyLock<HostBoot> = LazyLock::new(HostBoot::current);
    let path = FOLDER.join("lock");
    std::fs::write(&path, input).expect("memory is not full");
    match read_lock(&path, &HERE).expect("a file can be read") {
        LockState::Free => panic!("a file that is there is no lock"),
        LockState::Stale(holder) => {
            assert!(holder.kind == LockKind::Run, "a lock made by hand is stale")
        }
        LockState::Held(_) | LockState::Damaged(_) => {}
    }
}
