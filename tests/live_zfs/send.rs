//! Streams: the same bytes as `zfs send`, from the start, from a base, from the middle.

use crate::pool::{LARGE_COMPRESSED, Pool, errno, full, property, run, threads, wait_until, zfs};
use crate::stream::{END, WRITE, content, records};
use std::collections::BTreeMap;
use std::path::Path;
use zfs_backup::zfs::fake::FakeZfs;
use zfs_backup::zfs::{
    DatasetType, ReceiveRequest, SendBase, SendFlags, SendRequest, SendResume, ZfsRead, ZfsReceive,
    ZfsSend, ZfsSnapshots,
};

/// Two snapshots that differ; some MB of files of several kinds.
fn filled(name: &str) -> Pool {
    let pool = Pool::new(name);
    pool.create("a");
    pool.write("a/large", 5_000_000, 1);
    std::fs::write(pool.file("a/compressible"), vec![b'x'; 3_000_000]).unwrap();
    std::fs::write(pool.file("a/tiny"), b"tiny").unwrap();
    pool.take("a@1");
    pool.write("a/large2", 1_500_000, 2);
    std::fs::remove_file(pool.file("a/tiny")).unwrap();
    pool.take("a@2");
    pool
}

#[test]
fn streams_are_those_of_zfs_send() {
    let pool = filled("bytes");
    let (first, second) = (pool.snapshot("a@1"), pool.snapshot("a@2"));
    pool.zfs
        .bookmark(&pool.bookmark("a#1"), &SendBase::Snapshot(first.clone()))
        .unwrap();
    let request = |base: Option<SendBase>, flags| SendRequest {
        snapshot: second.clone(),
        base,
        flags,
        resume: None,
    };
    let snapshot = || Some(SendBase::Snapshot(first.clone()));
    let bookmark = || Some(SendBase::Bookmark(pool.bookmark("a#1")));
    let large = SendFlags {
        large_blocks: true,
        ..SendFlags::default()
    };
    let cases: [(SendRequest, &[&str]); 7] = [
        (request(None, LARGE_COMPRESSED), &["-L", "-c"]),
        (
            request(snapshot(), LARGE_COMPRESSED),
            &["-L", "-c", "-i", "bytes/a@1"],
        ),
        (
            request(bookmark(), LARGE_COMPRESSED),
            &["-L", "-c", "-i", "bytes/a#1"],
        ),
        (request(None, large), &["-L"]),
        (request(None, SendFlags::default()), &[]),
        (
            request(
                None,
                SendFlags {
                    embedded: true,
                    ..LARGE_COMPRESSED
                },
            ),
            &["-L", "-c", "-e"],
        ),
        (request(None, SendFlags { raw: true, ..large }), &["-w"]),
    ];
    for (request, flags) in cases {
        let reference = run("zfs", &[&["send"], flags, &["bytes/a@2"]].concat());
        let ours = pool.send(&request);
        assert!(
            ours == reference,
            "{flags:?}: {} bytes, {} by zfs send",
            ours.len(),
            reference.len()
        );
        let space = pool.zfs.send_space(&request).unwrap();
        let dry = zfs(&[&["send", "-nP"], flags, &["bytes/a@2"]].concat());
        let size = dry
            .lines()
            .last()
            .unwrap()
            .strip_prefix("size")
            .unwrap()
            .trim();
        assert_eq!(space.to_string(), size, "{flags:?}");
    }
    assert_eq!(
        pool.send(&request(snapshot(), LARGE_COMPRESSED)),
        pool.send(&request(bookmark(), LARGE_COMPRESSED))
    );
}

#[test]
fn resumed_kernel_stream_continues_with_the_same_records() {
    let pool = filled("resume");
    let request = full(&pool.snapshot("a@2"));
    let whole = pool.send(&request);
    let all = records(&whole);
    let at = all
        .iter()
        .rposition(|record| record.kind == WRITE && record.offset > 0)
        .unwrap();
    let SendResume { object, offset } = SendResume {
        object: all[at].object,
        offset: all[at].offset,
    };
    let rest = pool.send(&SendRequest {
        resume: Some(SendResume { object, offset }),
        ..request
    });
    let resumed = records(&rest);
    // What the ZFS in memory puts into BEGIN is what the kernel puts there.
    assert!(rest[312..resumed[0].end] == fake_stream(object, offset)[312..408]);
    let first = resumed
        .iter()
        .position(|record| record.kind == WRITE)
        .unwrap();
    let contents = |stream: &[u8], records: &[crate::stream::Record]| -> Vec<_> {
        records
            .iter()
            .map(|record| content(stream, record))
            .collect()
    };
    assert!(contents(&rest, &resumed[first..]) == contents(&whole, &all[at..]));
}

#[test]
fn resumed_stream_is_that_of_zfs_send_with_the_token() {
    let pool = filled("token");
    let request = full(&pool.snapshot("a@2"));
    let whole = pool.send(&request);
    let cut = whole.len() / 2;
    let receive = ReceiveRequest {
        target: pool.snapshot("r@2"),
        resumable: true,
        properties: BTreeMap::new(),
    };
    assert_eq!(errno(pool.zfs.receive(&receive, &mut &whole[..cut])), 1040);
    let token = property(&pool.dataset("r"), "receive_resume_token");
    let described = zfs(&["send", "-nvt", &token]);
    let number = |key: &str| {
        let line = described
            .lines()
            .find_map(|line| line.trim().strip_prefix(&format!("{key} = ")))
            .unwrap();
        u64::from_str_radix(line.trim_start_matches("0x"), 16).unwrap()
    };
    let resume = Some(SendResume {
        object: number("object"),
        offset: number("offset"),
    });
    let ours = pool.send(&SendRequest { resume, ..request });
    assert!(ours == run("zfs", &["send", "-t", &token]));
    pool.zfs.receive(&receive, &mut &ours[..]).unwrap();
    assert_eq!(
        property(&receive.target, "guid"),
        property(&pool.snapshot("a@2"), "guid")
    );
}

#[test]
fn dropping_the_reader_cancels_the_send() {
    let pool = filled("cancel");
    let name = pool.snapshot("a@2");
    let mut stream = pool.zfs.send(&full(&name)).unwrap();
    stream.reader().read_exact(&mut [0; 100_000]).unwrap();
    let error = errno(stream.finish());
    assert!([libc::EINTR, libc::EPIPE].contains(&error), "{error}");
    // Not read at all.
    assert!(pool.zfs.send(&full(&name)).unwrap().finish().is_err());
    // Nothing is left of it that would keep the snapshot.
    pool.zfs.destroy_snapshots(&[name]).unwrap();
}

#[test]
fn abandoned_send_ends_by_itself() {
    let pool = filled("abandon");
    let name = pool.snapshot("a@2");
    drop(pool.zfs.send(&full(&name)).unwrap());
    wait_until("the send has ended", || {
        pool.zfs
            .destroy_snapshots(std::slice::from_ref(&name))
            .is_ok()
    });
}

#[test]
fn refused_sends_end_at_once_with_the_reason() {
    let pool = filled("nosend");
    let verdict = |request: &SendRequest| {
        let mut stream = pool.zfs.send(request).unwrap();
        let mut bytes = Vec::new();
        stream.reader().read_to_end(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        errno(stream.finish())
    };
    let with_base = |base| SendRequest {
        base: Some(base),
        ..full(&pool.snapshot("a@1"))
    };
    assert_eq!(verdict(&full(&pool.snapshot("a@gone"))), libc::ENOENT);
    assert_eq!(
        verdict(&with_base(SendBase::Snapshot(pool.snapshot("a@2")))),
        libc::EXDEV
    );
    assert_eq!(
        verdict(&with_base(SendBase::Snapshot(pool.snapshot("a@gone")))),
        libc::ENOENT
    );
    assert_eq!(
        verdict(&with_base(SendBase::Bookmark(pool.bookmark("a#gone")))),
        libc::ESRCH
    );
    assert_eq!(
        errno(pool.zfs.send_space(&full(&pool.snapshot("a@gone")))),
        libc::ENOENT
    );
}

#[test]
fn snapshot_being_sent_cannot_be_destroyed() {
    let pool = filled("sending");
    let name = pool.snapshot("a@2");
    let mut stream = pool.zfs.send(&full(&name)).unwrap();
    stream.reader().read_exact(&mut [0; 1000]).unwrap();
    let failures = crate::pool::several(pool.zfs.destroy_snapshots(std::slice::from_ref(&name)));
    assert_eq!(
        failures,
        [(name.to_string(), zfs_backup::zfs::ZfsErrno(libc::EBUSY))]
    );
    let mut rest = Vec::new();
    stream.reader().read_to_end(&mut rest).unwrap();
    stream.finish().unwrap();
}

#[test]
fn signals_do_not_reach_the_sending_thread() {
    let pool = filled("signals");
    let mut stream = pool.zfs.send(&full(&pool.snapshot("a@2"))).unwrap();
    stream.reader().read_exact(&mut [0; 1000]).unwrap();
    let mut sending = Vec::new();
    // The thread of an earlier test's send may still be ending.
    wait_until("one thread sends", || {
        sending = threads(Path::new("/proc/self"), "zfs-send");
        sending.len() == 1
    });
    let status = std::fs::read_to_string(sending[0].join("status")).unwrap();
    let blocked = status
        .lines()
        .find_map(|line| line.strip_prefix("SigBlk:"))
        .unwrap()
        .trim();
    let blocked = u64::from_str_radix(blocked, 16).unwrap();
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGPIPE,
        libc::SIGALRM,
    ] {
        assert!(
            blocked & (1 << (signal - 1)) != 0,
            "{signal} in {blocked:x}"
        );
    }
    assert!(stream.finish().is_err());
}

#[test]
fn volume_is_sent_as_zfs_send_does() {
    let pool = Pool::new("volume");
    zfs(&["create", "-s", "-V", "16M", "volume/v"]);
    let device = crate::pool::device_of("volume/v");
    let noise = crate::pool::noise(3_000_000, 5);
    std::fs::OpenOptions::new()
        .write(true)
        .open(device)
        .and_then(|mut file| {
            std::io::Write::write_all(&mut file, &noise)?;
            file.sync_all()
        })
        .unwrap();
    let name = pool.take("v@s");
    let ours = pool.send(&full(&name));
    assert!(ours.len() > 3_000_000);
    assert!(ours == run("zfs", &["send", "-L", "-c", "volume/v@s"]));
    assert_eq!(records(&ours).last().unwrap().kind, END);
    let receive = ReceiveRequest {
        target: pool.snapshot("r@s"),
        resumable: false,
        properties: BTreeMap::new(),
    };
    pool.zfs.receive(&receive, &mut &ours[..]).unwrap();
    assert!(pool.send(&full(&receive.target)).len() > 3_000_000);
    assert_eq!(property(&receive.target, "guid"), property(&name, "guid"));
}

/// A stream of the ZFS in memory, resumed there.
fn fake_stream(object: u64, offset: u64) -> Vec<u8> {
    let zfs = FakeZfs::new();
    let (dataset, snapshot) = ("tank/a".parse().unwrap(), "tank/a@1".parse().unwrap());
    zfs.create(&dataset, DatasetType::Filesystem);
    zfs.write_file(&dataset, object, &vec![7; offset as usize + 10_000]);
    zfs.write_file(&dataset, object + 5, b"another");
    zfs.take_snapshots(std::slice::from_ref(&snapshot), &BTreeMap::new())
        .unwrap();
    let resume = (offset > 0).then_some(SendResume { object, offset });
    let mut stream = zfs
        .send(&SendRequest {
            resume,
            ..full(&snapshot)
        })
        .unwrap();
    let mut bytes = Vec::new();
    stream.reader().read_to_end(&mut bytes).unwrap();
    stream.finish().unwrap();
    bytes
}

#[test]
fn streams_of_the_zfs_in_memory_are_accepted_by_zstream_and_the_kernel() {
    let pool = Pool::new("fake");
    for offset in [0, 40_960] {
        let stream = fake_stream(9, offset);
        std::fs::write("/tmp/fake.stream", &stream).unwrap();
        let output = std::process::Command::new("zstream")
            .args(["dump", "-v", "/tmp/fake.stream"])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !text.to_lowercase().contains("checksum differs"),
            "{text}"
        );
        assert!(text.contains("END checksum"), "{text}");
    }
    // Its objects make no filesystem that could be mounted, but the kernel checks and keeps them.
    let request = ReceiveRequest {
        target: pool.snapshot("r@1"),
        resumable: false,
        properties: BTreeMap::new(),
    };
    pool.zfs
        .receive(&request, &mut &fake_stream(9, 0)[..])
        .unwrap();
    assert_eq!(pool.zfs.snapshots(&pool.dataset("r")).unwrap().len(), 1);
    let mut damaged = fake_stream(9, 0);
    damaged[2000] ^= 1;
    let request = ReceiveRequest {
        target: pool.snapshot("d@1"),
        ..request
    };
    assert_eq!(
        errno(pool.zfs.receive(&request, &mut &damaged[..])),
        libc::EBADE
    );
}
