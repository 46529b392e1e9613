//! Tests that the fake resembles the kernel: they check the same facts as `tests/live_zfs` does on
//! the kernel.

use super::*;
use crate::zfs::{STREAM_TRUNCATED, SendFlags, ZfsErrno};

const FLAGS: SendFlags = SendFlags {
    raw: false,
    compressed: true,
    embedded: false,
    large_blocks: true,
};

fn dataset(name: &str) -> DatasetName {
    name.parse().unwrap()
}

fn snapshot(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

fn bookmark(name: &str) -> BookmarkName {
    name.parse().unwrap()
}

fn take(zfs: &FakeZfs, name: &str) -> SnapshotName {
    let name = snapshot(name);
    zfs.take_snapshots(std::slice::from_ref(&name), &BTreeMap::new())
        .unwrap();
    name
}

fn full(name: &SnapshotName) -> SendRequest {
    SendRequest {
        snapshot: name.clone(),
        base: None,
        flags: FLAGS,
        resume: None,
    }
}

fn since(base: SendBase, name: &SnapshotName) -> SendRequest {
    SendRequest {
        base: Some(base),
        ..full(name)
    }
}

fn send(zfs: &FakeZfs, request: &SendRequest) -> Vec<u8> {
    let (bytes, verdict) = send_and_verdict(zfs, request);
    verdict.unwrap();
    bytes
}

fn send_and_verdict(zfs: &FakeZfs, request: &SendRequest) -> (Vec<u8>, Result<(), ZfsError>) {
    let mut stream = zfs.send(request).unwrap();
    let mut bytes = Vec::new();
    stream.reader().read_to_end(&mut bytes).unwrap();
    (bytes, stream.finish())
}

fn into(name: &str) -> ReceiveRequest {
    let target = snapshot(name);
    ReceiveRequest {
        target,
        resumable: false,
        properties: BTreeMap::new(),
    }
}

fn resumable(name: &str) -> ReceiveRequest {
    ReceiveRequest {
        resumable: true,
        ..into(name)
    }
}

fn receive(zfs: &FakeZfs, request: &ReceiveRequest, mut bytes: &[u8]) -> Result<(), ZfsError> {
    zfs.receive(request, &mut bytes)
}

#[track_caller]
fn errno<T>(result: Result<T, ZfsError>) -> i32 {
    match result {
        Err(error) => error.errno().unwrap_or_else(|| panic!("{error:?}")).0,
        Ok(_) => panic!("it succeeded"),
    }
}

/// Makes `tank/a` with `@1` and `@2`, between which files are changed, shortened, extended, removed
/// and added.
fn two_states() -> (FakeZfs, SnapshotName, SnapshotName) {
    let zfs = FakeZfs::new();
    let a = dataset("tank/a");
    zfs.create(&a, DatasetType::Filesystem);
    let bytes = |len: usize, seed: u8| {
        (0..len)
            .map(|i| (i / 7).to_le_bytes()[0] ^ seed)
            .collect::<Vec<_>>()
    };
    for (object, len) in [
        (2, 50_000),
        (3, 0),
        (5, 1),
        (6, 20_000),
        (9, 4096),
        (10, 30_000),
    ] {
        zfs.write_file(&a, object, &bytes(len, object.to_le_bytes()[0]));
    }
    let first = take(&zfs, "tank/a@1");
    let mut changed = bytes(50_000, 2);
    changed[12_345] ^= 1;
    zfs.write_file(&a, 2, &changed);
    zfs.write_file(&a, 6, &bytes(5_000, 6));
    zfs.write_file(&a, 10, &bytes(40_000, 10));
    zfs.write_file(&a, 30, &bytes(10_000, 30));
    zfs.remove_file(&a, 5);
    zfs.remove_file(&a, 9);
    let second = take(&zfs, "tank/a@2");
    (zfs, first, second)
}

#[test]
fn full_and_incremental_restore_every_file() {
    let (zfs, first, second) = two_states();
    let (whole, incremental) = (
        send(&zfs, &full(&first)),
        send(&zfs, &since(SendBase::Snapshot(first.clone()), &second)),
    );
    assert!(
        incremental.len() < whole.len() / 2,
        "{} of {}",
        incremental.len(),
        whole.len()
    );
    receive(&zfs, &into("tank/r@1"), &whole).unwrap();
    receive(&zfs, &into("tank/r@x"), &incremental).unwrap();
    assert_eq!(
        zfs.snapshot_files(&snapshot("tank/r@1")),
        zfs.snapshot_files(&first)
    );
    assert_eq!(
        zfs.snapshot_files(&snapshot("tank/r@x")),
        zfs.snapshot_files(&second)
    );
    assert_eq!(zfs.files(&dataset("tank/r")), zfs.files(&dataset("tank/a")));
    let (original, received) = (
        zfs.snapshots(&dataset("tank/a")).unwrap(),
        zfs.snapshots(&dataset("tank/r")).unwrap(),
    );
    assert_eq!(received[1].guid, original[1].guid);
    assert_eq!(received[1].created_at, original[1].created_at);
    // A received dataset can be sent again.
    let onward = send(
        &zfs,
        &since(
            SendBase::Snapshot(snapshot("tank/r@1")),
            &snapshot("tank/r@x"),
        ),
    );
    receive(&zfs, &into("tank/r2@1"), &whole).unwrap();
    receive(&zfs, &into("tank/r2@2"), &onward).unwrap();
    assert_eq!(
        zfs.files(&dataset("tank/r2")),
        zfs.files(&dataset("tank/a"))
    );
}

#[test]
fn send_from_a_bookmark_equals_send_from_its_destroyed_snapshot() {
    let (zfs, first, second) = two_states();
    let mark = bookmark("tank/a#1");
    zfs.bookmark(&mark, &SendBase::Snapshot(first.clone()))
        .unwrap();
    let expected = send(&zfs, &since(SendBase::Snapshot(first.clone()), &second));
    zfs.destroy_snapshots(&[first]).unwrap();
    assert_eq!(
        send(&zfs, &since(SendBase::Bookmark(mark), &second)),
        expected
    );
}

#[test]
fn fake_receive_of_a_truncated_stream_leaves_nothing() {
    let (zfs, first, second) = two_states();
    let whole = send(&zfs, &full(&second));
    for cut in (0..whole.len())
        .step_by(97)
        .chain([whole.len() - 312, whole.len() - 1])
    {
        assert_eq!(
            errno(receive(&zfs, &into("tank/r@2"), &whole[..cut])),
            STREAM_TRUNCATED,
            "cut at {cut}"
        );
        assert_eq!(zfs.dataset(&dataset("tank/r")).unwrap(), None);
    }
    receive(&zfs, &into("tank/r@1"), &send(&zfs, &full(&first))).unwrap();
    let incremental = send(&zfs, &since(SendBase::Snapshot(first), &second));
    let before = zfs.files(&dataset("tank/r"));
    assert_eq!(
        errno(receive(
            &zfs,
            &into("tank/r@2"),
            &incremental[..incremental.len() / 2]
        )),
        STREAM_TRUNCATED
    );
    assert_eq!(zfs.files(&dataset("tank/r")), before);
    receive(&zfs, &into("tank/r@2"), &incremental).unwrap();
}

#[test]
fn fake_partial_receive_resumes_only_at_its_resume_point() {
    let (zfs, first, second) = two_states();
    let (r, request) = (dataset("tank/r"), resumable("tank/r@2"));
    for base in [None, Some(SendBase::Snapshot(first.clone()))] {
        let sent = SendRequest {
            base: base.clone(),
            ..full(&second)
        };
        let whole = send(&zfs, &sent);
        for cut in (312..whole.len()).step_by(1499) {
            if base.is_some() {
                receive(&zfs, &into("tank/r@1"), &send(&zfs, &full(&first))).unwrap();
            }
            assert_eq!(
                errno(receive(&zfs, &request, &whole[..cut])),
                STREAM_TRUNCATED
            );
            assert_eq!(
                zfs.dataset(&r).unwrap().unwrap().inconsistent,
                base.is_none()
            );
            assert_eq!(errno(receive(&zfs, &request, &whole)), libc::EBUSY);
            let point = zfs.receive_point(&r).unwrap();
            if point.object > 1 {
                let wrong = Some(SendResume {
                    offset: point.offset + 4096,
                    ..point
                });
                let stream = send(
                    &zfs,
                    &SendRequest {
                        resume: wrong,
                        ..sent.clone()
                    },
                );
                assert_eq!(errno(receive(&zfs, &request, &stream)), libc::EINVAL);
                let rest = send(
                    &zfs,
                    &SendRequest {
                        resume: Some(point),
                        ..sent.clone()
                    },
                );
                receive(&zfs, &request, &rest).unwrap();
                assert_eq!(zfs.files(&r), zfs.files(&dataset("tank/a")), "cut at {cut}");
            }
            zfs.lock().state.datasets.remove(r.as_str());
        }
    }
}

/// Returns each record without the parts that depend on where the stream began: its checksum, and
/// the checksum in END.
fn records(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some(header) = stream.first_chunk::<312>() {
        let payload_bytes = match header[0] {
            0 => header[4].into(),
            1 => 8,
            3 => 4096,
            _ => 0,
        };
        let (record, rest) = stream.split_at(312 + payload_bytes);
        let mut record = record.to_vec();
        record[280..312].fill(0);
        if record[0] == 5 {
            record[8..40].fill(0);
        }
        records.push(record);
        stream = rest;
    }
    assert!(stream.is_empty());
    records
}

#[test]
fn fake_resumed_stream_continues_with_the_same_records() {
    let (zfs, _, second) = two_states();
    let whole = records(&send(&zfs, &full(&second)));
    let at = whole
        .iter()
        .position(|record| record[0] == 3 && record[8] == 10 && record[24..26] == [0, 32])
        .unwrap();
    let resume = Some(SendResume {
        object: 10,
        offset: 8192,
    });
    let rest = records(&send(
        &zfs,
        &SendRequest {
            resume,
            ..full(&second)
        },
    ));
    assert_eq!(
        rest[..3].iter().map(|record| record[0]).collect::<Vec<_>>(),
        [0, 1, 4]
    );
    assert!(rest[3..] == whole[at..]);
}

#[test]
fn flipped_bit_is_never_received() {
    let (zfs, first, _) = two_states();
    let whole = send(&zfs, &full(&first));
    for at in (0..whole.len()).step_by(41) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        receive(&zfs, &into("tank/r@1"), &damaged).unwrap_err();
        assert_eq!(
            zfs.dataset(&dataset("tank/r")).unwrap(),
            None,
            "flipped at {at}"
        );
    }
}

#[test]
fn source_that_fails_even_at_its_end_is_the_error() {
    struct Failing<'a>(&'a [u8]);
    impl Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer) {
                Ok(0) => Err(std::io::Error::other("lost")),
                read => read,
            }
        }
    }
    let (zfs, first, _) = two_states();
    let whole = send(&zfs, &full(&first));
    for cut in [0, 100, 312, 5000, whole.len()] {
        let error = zfs
            .receive(&into("tank/r@1"), &mut Failing(&whole[..cut]))
            .unwrap_err();
        assert!(matches!(error, ZfsError::Source { .. }), "{error:?}");
        assert_eq!(zfs.dataset(&dataset("tank/r")).unwrap(), None);
    }
    let error = receive(&zfs, &into("tank/r@1"), &[&whole[..], b"x"].concat()).unwrap_err();
    assert!(
        error.to_string().ends_with("goes on after its END record"),
        "{error}"
    );
}

#[test]
fn refusals_have_the_kernels_numbers() {
    let (zfs, first, second) = two_states();
    let (whole, incremental) = (
        send(&zfs, &full(&first)),
        send(&zfs, &since(SendBase::Snapshot(first.clone()), &second)),
    );
    assert_eq!(
        errno(receive(&zfs, &into("tank/a@1"), &whole)),
        libc::EEXIST
    );
    assert_eq!(
        errno(receive(&zfs, &into("tank/no/parent@1"), &whole)),
        libc::ENOENT
    );
    assert_eq!(
        errno(receive(&zfs, &into("tank/none@2"), &incremental)),
        libc::ENOENT
    );
    zfs.create(&dataset("tank/empty"), DatasetType::Filesystem);
    assert_eq!(
        errno(receive(&zfs, &into("tank/empty@2"), &incremental)),
        libc::ENODEV
    );
    receive(&zfs, &into("tank/r@1"), &whole).unwrap();
    zfs.write_file(&dataset("tank/r"), 99, b"own");
    assert_eq!(
        errno(receive(&zfs, &into("tank/r@2"), &incremental)),
        libc::ETXTBSY
    );
    take(&zfs, "tank/r@own");
    assert_eq!(
        errno(receive(&zfs, &into("tank/r@2"), &incremental)),
        libc::ETXTBSY
    );
    assert!(zfs.files(&dataset("tank/r")).contains_key(&99));

    let verdict = |request: &SendRequest| {
        let (bytes, verdict) = send_and_verdict(&zfs, request);
        assert!(bytes.is_empty());
        errno(verdict)
    };
    assert_eq!(verdict(&full(&snapshot("tank/a@gone"))), libc::ENOENT);
    assert_eq!(
        verdict(&since(SendBase::Snapshot(second.clone()), &first)),
        libc::EXDEV
    );
    assert_eq!(
        verdict(&since(SendBase::Snapshot(snapshot("tank/a@gone")), &second)),
        libc::ENOENT
    );
    assert_eq!(
        verdict(&since(SendBase::Bookmark(bookmark("tank/a#gone")), &second)),
        libc::ESRCH
    );
    for name in ["tank/nothing"].map(dataset) {
        assert_eq!(errno(zfs.children(&name)), libc::ENOENT);
        assert_eq!(errno(zfs.snapshots(&name)), libc::ENOENT);
        assert_eq!(errno(zfs.bookmarks(&name)), libc::ENOENT);
    }
}

/// A reader that runs a closure in the middle of its bytes.
struct Halfway<'a>(&'a [u8], usize, Option<Box<dyn FnOnce() + Send + 'a>>);

impl Read for Halfway<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0.len() <= self.1
            && let Some(what) = self.2.take()
        {
            what();
        }
        let most = buffer.len().min(512);
        self.0.read(&mut buffer[..most])
    }
}

#[test]
fn change_during_a_receive_stops_it_at_the_end() {
    let replica = || {
        let (zfs, first, second) = two_states();
        let whole = send(&zfs, &full(&first));
        receive(&zfs, &into("tank/r@1"), &whole).unwrap();
        let incremental = send(&zfs, &since(SendBase::Snapshot(first), &second));
        (zfs, incremental)
    };
    let shorts = |zfs: &FakeZfs| {
        let snapshots = zfs.snapshots(&dataset("tank/r")).unwrap();
        snapshots
            .iter()
            .map(|snapshot| snapshot.name.short().to_owned())
            .collect::<Vec<_>>()
    };
    for (what, expected, left) in [
        ("snapshot", libc::EINVAL, vec!["1", "late"]),
        ("data", libc::ETXTBSY, vec!["1"]),
    ] {
        let (zfs, incremental) = replica();
        let late = || {
            if what == "data" {
                zfs.write_file(&dataset("tank/r"), 99, b"late");
                return;
            }
            take(&zfs, "tank/r@late");
        };
        let mut source = Halfway(&incremental, incremental.len() / 2, Some(Box::new(late)));
        let received = zfs.receive(&into("tank/r@2"), &mut source);
        assert_eq!(errno(received), expected, "{what}");
        assert_eq!(shorts(&zfs), left, "{what}");
    }
    // A snapshot without a change does not block the receive, but a snapshot with the same name
    // does.
    let (zfs, incremental) = replica();
    take(&zfs, "tank/r@noop");
    receive(&zfs, &into("tank/r@2"), &incremental).unwrap();
    let (zfs, incremental) = replica();
    take(&zfs, "tank/r@2");
    assert_eq!(
        errno(receive(&zfs, &into("tank/r@2"), &incremental)),
        libc::EEXIST
    );
}

#[test]
fn a_rollback_undoes_changes_and_destroys_nothing() {
    let (zfs, first, second) = two_states();
    let a = dataset("tank/a");
    let expected = zfs.snapshot_files(&second).unwrap();
    zfs.write_file(&a, 99, b"late");
    assert_eq!(errno(zfs.roll_back(&a, &first)), libc::EEXIST);
    assert_eq!(
        errno(zfs.roll_back(&a, &snapshot("tank/a@none"))),
        libc::ESRCH
    );
    assert_eq!(
        errno(zfs.roll_back(&dataset("tank/none"), &first)),
        libc::ENOENT
    );
    assert!(zfs.files(&a).contains_key(&99));
    zfs.roll_back(&a, &second).unwrap();
    assert_eq!(zfs.files(&a), expected);
    // A newer bookmark prevents the rollback.
    zfs.bookmark(&bookmark("tank/a#2"), &SendBase::Snapshot(second.clone()))
        .unwrap();
    zfs.destroy_snapshots(&[second]).unwrap();
    assert_eq!(errno(zfs.roll_back(&a, &first)), libc::EEXIST);
    zfs.destroy_bookmarks(&[bookmark("tank/a#2")]).unwrap();
    zfs.roll_back(&a, &first).unwrap();
}

#[test]
fn fake_snapshots_are_atomic_and_name_each_refused_one() {
    let (zfs, ..) = two_states();
    zfs.create(&dataset("tank/b"), DatasetType::Filesystem);
    zfs.create(&dataset("other"), DatasetType::Filesystem);
    let names = ["tank/a@1", "tank/b@1", "tank/none@1"].map(snapshot);
    let error = zfs.take_snapshots(&names, &BTreeMap::new()).unwrap_err();
    let ZfsError::Several { failures, .. } = error else {
        panic!("{error:?}")
    };
    let expected = [("tank/a@1", libc::EEXIST), ("tank/none@1", libc::ENOENT)];
    assert_eq!(
        failures,
        expected.map(|(name, errno)| (name.to_owned(), ZfsErrno(errno)))
    );
    assert_eq!(zfs.snapshots(&dataset("tank/b")).unwrap(), []);
    for pair in [["tank/a@x", "other@x"], ["tank/a@x", "tank/a@y"]] {
        assert_eq!(
            errno(zfs.take_snapshots(&pair.map(snapshot), &BTreeMap::new())),
            libc::EXDEV
        );
    }
    let properties = BTreeMap::from([("my:id".to_owned(), "7".to_owned())]);
    zfs.take_snapshots(&["tank/a@3", "tank/b@3"].map(snapshot), &properties)
        .unwrap();
    let (a, b) = (
        zfs.snapshots(&dataset("tank/a")).unwrap(),
        zfs.snapshots(&dataset("tank/b")).unwrap(),
    );
    assert_eq!(
        (a[2].createtxg, &a[2].user_properties),
        (b[0].createtxg, &properties)
    );
}

#[test]
fn holds_sends_and_clones_keep_a_snapshot() {
    let (zfs, first, second) = two_states();
    let busy = |name: &SnapshotName| match zfs.destroy_snapshots(std::slice::from_ref(name)) {
        Err(ZfsError::Several { failures, .. }) => failures[0].1.0,
        other => panic!("{other:?}"),
    };
    zfs.hold(&first, "tag").unwrap();
    assert_eq!(errno(zfs.hold(&first, "tag")), libc::EEXIST);
    assert_eq!(busy(&first), libc::EBUSY);
    zfs.release(&first, "tag").unwrap();
    zfs.release(&first, "tag").unwrap();
    let sending = zfs.send(&full(&first)).unwrap();
    assert_eq!(busy(&first), libc::EBUSY);
    assert_eq!(errno(sending.finish()), libc::EINTR);
    zfs.clone_snapshot(&second, &dataset("tank/c")).unwrap();
    assert_eq!(busy(&second), libc::EEXIST);
    zfs.destroy_snapshots(&[first, snapshot("tank/a@gone")])
        .unwrap();
}

#[test]
fn incremental_of_a_clone_is_refused() {
    let (zfs, first, _) = two_states();
    zfs.clone_snapshot(&first, &dataset("tank/c")).unwrap();
    zfs.write_file(&dataset("tank/c"), 77, b"of the clone");
    let cloned = take(&zfs, "tank/c@2");
    let stream = send(&zfs, &since(SendBase::Snapshot(first), &cloned));
    assert_eq!(
        errno(receive(&zfs, &into("tank/r@2"), &stream)),
        libc::EINVAL
    );
    assert_eq!(zfs.dataset(&dataset("tank/r")).unwrap(), None);
}

#[test]
fn locked_dataset_is_sent_raw_only() {
    let (zfs, _, second) = two_states();
    zfs.set_encrypted(&dataset("tank/a"), true);
    assert_eq!(
        errno(send_and_verdict(&zfs, &full(&second)).1),
        libc::EACCES
    );
    let raw = SendRequest {
        flags: SendFlags { raw: true, ..FLAGS },
        ..full(&second)
    };
    receive(&zfs, &into("tank/r@2"), &send(&zfs, &raw)).unwrap();
    let received = zfs.dataset(&dataset("tank/r")).unwrap().unwrap();
    assert!(received.encrypted && received.key_unavailable);
    assert_eq!(zfs.files(&dataset("tank/r")), zfs.files(&dataset("tank/a")));
}

#[test]
fn fake_zfs_fails_the_requested_call_and_send() {
    let (zfs, first, _) = two_states();
    let calls = zfs.calls();
    zfs.fail_call(2, libc::EIO);
    zfs.dataset(&dataset("tank/a")).unwrap();
    assert_eq!(errno(zfs.snapshots(&dataset("tank/a"))), libc::EIO);
    zfs.snapshots(&dataset("tank/a")).unwrap();
    assert_eq!(zfs.calls(), calls + 3);

    let whole = send(&zfs, &full(&first));
    for (fault, bytes, expected) in [
        (
            SendFault {
                after_bytes: 1000,
                errno: libc::EINTR,
            },
            1000,
            Err(libc::EINTR),
        ),
        (
            SendFault {
                after_bytes: usize::MAX,
                errno: libc::EIO,
            },
            whole.len(),
            Err(libc::EIO),
        ),
        (
            SendFault {
                after_bytes: 1000,
                errno: 0,
            },
            1000,
            Ok(()),
        ),
    ] {
        zfs.fail_next_send(fault);
        let (sent, verdict) = send_and_verdict(&zfs, &full(&first));
        assert!(sent == whole[..bytes]);
        assert_eq!(verdict.map_err(|error| error.errno().unwrap().0), expected);
        assert!(
            send(&zfs, &full(&first)) == whole,
            "the fault was for one send"
        );
    }
}

#[test]
fn inherited_user_properties_name_where_they_were_set() {
    let (zfs, ..) = two_states();
    let text = |text: &str| PropertyValue::Text(text.to_owned());
    zfs.set_property(&dataset("tank"), "my:p", text("pool's"));
    let property = |name: &str| {
        zfs.dataset(&dataset(name))
            .unwrap()
            .unwrap()
            .properties
            .remove("my:p")
            .unwrap()
    };
    assert_eq!(
        property("tank/a"),
        Property {
            value: text("pool's"),
            source: Some("tank".to_owned())
        }
    );
    zfs.set_property(&dataset("tank/a"), "my:p", text("own"));
    assert_eq!(
        property("tank/a"),
        Property {
            value: text("own"),
            source: Some("tank/a".to_owned())
        }
    );
}

#[test]
fn volume_is_no_parent() {
    let (zfs, first, _) = two_states();
    zfs.create(&dataset("tank/v"), DatasetType::Volume);
    assert_eq!(
        errno(receive(
            &zfs,
            &into("tank/v/r@1"),
            &send(&zfs, &full(&first))
        )),
        1033
    );
}
