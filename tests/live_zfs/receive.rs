//! Receives: whole, cut, damaged, refused; and what they leave behind.

use crate::pool::{Pool, errno, full, noise, property, several, zfs};
use std::collections::BTreeMap;
use std::io::{Error, Read};
use zfs_backup::model::SnapshotName;
use zfs_backup::zfs::{
    PropertyValue, ReceiveRequest, SendBase, SendRequest, ZfsErrno, ZfsError, ZfsRead, ZfsReceive,
    ZfsSnapshots,
};

fn into(target: SnapshotName) -> ReceiveRequest {
    ReceiveRequest {
        target,
        resumable: false,
        properties: BTreeMap::new(),
    }
}

/// `a@1` and `a@2`, and the streams that make them.
fn source(name: &str) -> (Pool, Vec<u8>, Vec<u8>) {
    let pool = Pool::new(name);
    pool.create("a");
    pool.write("a/one", 3_000_000, 1);
    let first = pool.take("a@1");
    pool.write("a/two", 2_000_000, 2);
    let second = pool.take("a@2");
    let base = Some(SendBase::Snapshot(first.clone()));
    let whole = pool.send(&full(&first));
    let incremental = pool.send(&SendRequest {
        base,
        ..full(&second)
    });
    (pool, whole, incremental)
}

/// A reader that fails after its bytes.
struct Failing<'a>(&'a [u8]);

impl Read for Failing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer) {
            Ok(0) => Err(Error::other("the store lost it")),
            read => read,
        }
    }
}

/// A reader that gives few bytes at a time.
struct Dripping<'a>(&'a [u8], usize);

impl Read for Dripping<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = self.1.min(buffer.len());
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn full_and_incremental_restore_the_files() {
    let (pool, whole, incremental) = source("restore");
    pool.zfs
        .receive(&into(pool.snapshot("r@1")), &mut &whole[..])
        .unwrap();
    // Not mounted; and pieces of odd sizes make no difference.
    assert_eq!(property(&pool.dataset("r"), "mounted"), "no");
    pool.zfs
        .receive(
            &into(pool.snapshot("r@2")),
            &mut Dripping(&incremental, 997),
        )
        .unwrap();
    for short in ["1", "2"] {
        let guid = |path: &str| property(&pool.snapshot(&format!("{path}@{short}")), "guid");
        assert_eq!(guid("r"), guid("a"));
    }
    zfs(&["mount", "restore/r"]);
    assert!(std::fs::read(pool.file("r/one")).unwrap() == noise(3_000_000, 1));
    assert!(std::fs::read(pool.file("r/two")).unwrap() == noise(2_000_000, 2));
}

#[test]
fn cut_stream_leaves_nothing_unless_resumable() {
    let (pool, whole, incremental) = source("cut");
    let request = into(pool.snapshot("r@1"));
    for cut in [
        313,
        700,
        100_000,
        whole.len() / 2,
        whole.len() - 313,
        whole.len() - 312,
        whole.len() - 1,
    ] {
        assert_eq!(
            errno(pool.zfs.receive(&request, &mut &whole[..cut])),
            1040,
            "cut at {cut}"
        );
        assert_eq!(
            pool.zfs.dataset(&pool.dataset("r")).unwrap(),
            None,
            "cut at {cut}"
        );
    }
    for cut in [0, 1, 311] {
        assert_eq!(
            errno(pool.zfs.receive(&request, &mut &whole[..cut])),
            1040,
            "cut at {cut}"
        );
    }
    pool.zfs.receive(&request, &mut &whole[..]).unwrap();
    let before = pool.zfs.snapshots(&pool.dataset("r")).unwrap();
    let request = into(pool.snapshot("r@2"));
    for cut in [313, incremental.len() / 2, incremental.len() - 1] {
        assert_eq!(
            errno(pool.zfs.receive(&request, &mut &incremental[..cut])),
            1040,
            "cut at {cut}"
        );
        assert_eq!(
            pool.zfs.snapshots(&pool.dataset("r")).unwrap().len(),
            before.len()
        );
        assert_eq!(property(&pool.dataset("r"), "receive_resume_token"), "-");
    }
    pool.zfs.receive(&request, &mut &incremental[..]).unwrap();
}

#[test]
fn cut_resumable_stream_keeps_its_state() {
    let (pool, whole, incremental) = source("keep");
    let request = ReceiveRequest {
        resumable: true,
        ..into(pool.snapshot("r@1"))
    };
    assert_eq!(
        errno(pool.zfs.receive(&request, &mut &whole[..whole.len() / 2])),
        1040
    );
    let dataset = pool.zfs.dataset(&pool.dataset("r")).unwrap().unwrap();
    assert!(dataset.inconsistent);
    assert!(dataset.properties.contains_key("receive_resume_token"));
    // It is in the way of everything else.
    assert_eq!(
        errno(
            pool.zfs
                .receive(&into(pool.snapshot("r@1")), &mut &whole[..])
        ),
        libc::EBUSY
    );
    let failures = several(
        pool.zfs
            .take_snapshots(&[pool.snapshot("r@x")], &BTreeMap::new()),
    );
    assert_eq!(failures, [("keep/r@x".to_owned(), ZfsErrno(libc::EBUSY))]);
    pool.zfs.destroy_dataset(&pool.dataset("r")).unwrap();
    pool.zfs.receive(&request, &mut &whole[..]).unwrap();
    // Onto a filesystem that is there, the state lies in a hidden child, which no listing shows.
    let request = ReceiveRequest {
        resumable: true,
        ..into(pool.snapshot("r@2"))
    };
    assert_eq!(
        errno(
            pool.zfs
                .receive(&request, &mut &incremental[..incremental.len() / 2])
        ),
        1040
    );
    let dataset = pool.zfs.dataset(&pool.dataset("r")).unwrap().unwrap();
    assert!(!dataset.inconsistent);
    assert!(dataset.properties.contains_key("receive_resume_token"));
    assert_eq!(pool.zfs.children(&pool.dataset("r")).unwrap(), []);
}

#[test]
fn failing_source_is_the_error_and_nothing_is_kept() {
    let (pool, whole, _) = source("failing");
    // Also after the last byte: a checksum of the whole that does not match must prevent the
    // snapshot.
    for cut in [
        0,
        100,
        312,
        5000,
        whole.len() / 2,
        whole.len() - 1,
        whole.len(),
    ] {
        let error = pool
            .zfs
            .receive(&into(pool.snapshot("r@1")), &mut Failing(&whole[..cut]))
            .unwrap_err();
        let ZfsError::Source { subject, source } = &error else {
            panic!("cut at {cut}: {error:?}")
        };
        assert_eq!(
            (subject.as_str(), source.to_string().as_str()),
            ("failing/r@1", "the store lost it")
        );
        assert_eq!(
            pool.zfs.dataset(&pool.dataset("r")).unwrap(),
            None,
            "cut at {cut}"
        );
    }
}

#[test]
fn panicking_source_ends_the_receive() {
    struct Panicking<'a>(&'a [u8]);
    impl Read for Panicking<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let read = self.0.read(buffer)?;
            assert!(read > 0, "on purpose");
            Ok(read)
        }
    }
    let (pool, whole, _) = source("panic");
    let receive = std::panic::AssertUnwindSafe(|| {
        pool.zfs.receive(
            &into(pool.snapshot("r@1")),
            &mut Panicking(&whole[..100_000]),
        )
    });
    assert!(std::panic::catch_unwind(receive).is_err());
    assert_eq!(pool.zfs.dataset(&pool.dataset("r")).unwrap(), None);
}

#[test]
fn bytes_after_the_end_are_an_error() {
    let (pool, whole, _) = source("trailing");
    for extra in [1, 312, 4_000_000] {
        let long = [&whole[..], &vec![0; extra]].concat();
        let error = pool
            .zfs
            .receive(&into(pool.snapshot("r@1")), &mut &long[..])
            .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("the stream goes on after its END record"),
            "{error}"
        );
        zfs(&["destroy", "-r", "trailing/r"]);
    }
}

#[test]
fn early_refusal_gives_the_kernels_reason() {
    let (pool, whole, incremental) = source("early");
    let receive = |path: &str, bytes: &[u8]| {
        errno(
            pool.zfs
                .receive(&into(pool.snapshot(path)), &mut &bytes[..]),
        )
    };
    assert_eq!(receive("a@1", &whole), libc::EEXIST);
    assert_eq!(receive("no/parent@1", &whole), libc::ENOENT);
    assert_eq!(receive("none@2", &incremental), libc::ENOENT);
    pool.create("empty");
    assert_eq!(receive("empty@2", &incremental), libc::ENODEV);
    pool.zfs
        .receive(&into(pool.snapshot("r@1")), &mut &whole[..])
        .unwrap();
    zfs(&["mount", "early/r"]);
    pool.write("r/changed", 1000, 9);
    zfs(&["snapshot", "early/r@own"]);
    assert_eq!(receive("r@2", &incremental), libc::ETXTBSY);
    assert!(pool.file("r/changed").exists());
    assert_eq!(pool.zfs.snapshots(&pool.dataset("r")).unwrap().len(), 2);
}

#[test]
fn kernel_receive_refuses_invalid_packaged_or_damaged_streams() {
    let (pool, mut whole, _) = source("nostream");
    let request = into(pool.snapshot("r@1"));
    let error = pool
        .zfs
        .receive(&request, &mut &noise(10_000, 3)[..])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "read the stream for nostream/r@1: it does not begin as a send stream does"
    );
    let package = crate::pool::run("zfs", &["send", "-p", "nostream/a@1"]);
    let error = pool.zfs.receive(&request, &mut &package[..]).unwrap_err();
    assert!(
        error.to_string().contains("package of several streams"),
        "{error}"
    );
    let middle = whole.len() / 2;
    whole[middle] ^= 1;
    assert_eq!(
        errno(pool.zfs.receive(&request, &mut &whole[..])),
        libc::EBADE
    );
    assert_eq!(pool.zfs.dataset(&pool.dataset("r")).unwrap(), None);
}

#[test]
fn properties_are_set_as_zfs_receive_does() {
    let (pool, whole, _) = source("props");
    let text = |text: &str| PropertyValue::Text(text.to_owned());
    let mut request = into(pool.snapshot("r@1"));
    request.properties = BTreeMap::from([
        ("canmount".to_owned(), PropertyValue::Number(2)),
        ("readonly".to_owned(), PropertyValue::Number(1)),
        ("mountpoint".to_owned(), text("/tmp/restored")),
        ("my:own".to_owned(), text("mine")),
    ]);
    for resumable in [false, true] {
        request.resumable = resumable;
        pool.zfs.receive(&request, &mut &whole[..]).unwrap();
        for (key, value) in [
            ("canmount", "noauto"),
            ("readonly", "on"),
            ("mountpoint", "/tmp/restored"),
            ("my:own", "mine"),
        ] {
            assert_eq!(
                zfs(&["get", "-Hpo", "value,source", key, "props/r"]),
                format!("{value}\tlocal")
            );
        }
        zfs(&["destroy", "-r", "props/r"]);
    }
    // A string where a number belongs: the data is received, and the property named.
    request.properties = BTreeMap::from([("canmount".to_owned(), text("noauto"))]);
    let failures = several(pool.zfs.receive(&request, &mut &whole[..]));
    assert_eq!(
        failures
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>(),
        ["canmount"]
    );
    assert_eq!(pool.zfs.snapshots(&pool.dataset("r")).unwrap().len(), 1);
}

#[test]
fn incremental_of_a_clone_is_refused() {
    let pool = Pool::new("origin");
    pool.create("a");
    pool.write("a/one", 500_000, 1);
    let origin = pool.take("a@1");
    zfs(&["clone", "origin/a@1", "origin/c"]);
    pool.write("c/two", 500_000, 2);
    let cloned = pool.take("c@2");
    let stream = pool.send(&SendRequest {
        base: Some(SendBase::Snapshot(origin)),
        ..full(&cloned)
    });
    let request = into(pool.snapshot("r@2"));
    assert_eq!(
        errno(pool.zfs.receive(&request, &mut &stream[..])),
        libc::EINVAL
    );
    assert_eq!(pool.zfs.dataset(&pool.dataset("r")).unwrap(), None);
}
