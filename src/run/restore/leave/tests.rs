//! Tests which datasets are destroyed after a restore that ended early, and which stay.

use super::*;
use crate::run::restore::mark::{PARENT_PROPERTY, RESTORING_PROPERTY, SCRATCH_PROPERTY};
use crate::stream::resuming::ResumingError;
use crate::zfs::fake::FakeZfs;
use crate::zfs::{
    DatasetType, PropertyValue, ReceiveRequest, SendBase, SendFlags, SendRequest, ZfsErrno,
    ZfsSend, ZfsSnapshots,
};
use std::collections::BTreeMap;

fn name(text: &str) -> DatasetName {
    text.parse().unwrap()
}

fn set(zfs: &FakeZfs, dataset: &str, property: &str, value: &str) {
    zfs.set_property(
        &name(dataset),
        property,
        PropertyValue::Text(value.to_owned()),
    );
}

fn is_there(zfs: &FakeZfs, dataset: &str) -> bool {
    zfs.dataset(&name(dataset)).unwrap().is_some()
}

/// The token that a mark of that text carries.
fn token(mark: &str) -> Option<RestoreToken> {
    let zfs = FakeZfs::new();
    zfs.create(&name("tank/a"), DatasetType::Filesystem);
    set(&zfs, "tank/a", RESTORING_PROPERTY, mark);
    Begun::of(&zfs.dataset(&name("tank/a")).unwrap().unwrap())?.token
}

const OURS: &str = "x new token=00000000000000ff";

#[test]
fn temporary_receive_errors_allow_resume_and_a_refused_resume_restarts() {
    let zfs = |errno| {
        RunError::Zfs(ZfsError::Call {
            operation: "receive",
            subject: "tank/a".to_owned(),
            source: ZfsErrno(errno),
        })
    };
    for errno in [
        libc::EINTR,
        libc::ENOSPC,
        libc::EDQUOT,
        libc::EAGAIN,
        libc::EBUSY,
        libc::ETXTBSY,
    ] {
        assert!(may_resume(&zfs(errno)), "{errno}");
        assert!(!must_start_over(&zfs(errno)), "{errno}");
    }
    for errno in [libc::EINVAL, libc::ENOTSUP] {
        assert!(!may_resume(&zfs(errno)), "{errno}");
        assert!(must_start_over(&zfs(errno)), "{errno}");
    }
    let other = zfs(libc::EIO);
    assert!(!may_resume(&other) && !must_start_over(&other));
    assert!(may_resume(&RunError::Interrupted));
    assert!(!must_start_over(&RunError::Interrupted));
    let other_stream = RunError::CannotResumeReceive {
        id: "x".to_owned(),
        source: ResumingError::Unfit { why: "y" },
    };
    assert!(must_start_over(&other_stream));
}

#[test]
fn parent_marked_by_another_restore_is_not_destroyed() {
    for (mark, goes) in [("00000000000000ff", true), ("00000000000000fe", false)] {
        let zfs = FakeZfs::new();
        zfs.create(&name("tank/p"), DatasetType::Filesystem);
        set(&zfs, "tank/p", PARENT_PROPERTY, mark);
        zfs.set_property(&name("tank/p"), "canmount", PropertyValue::Number(0));
        destroy_parents(&zfs, token(OURS), &[name("tank/p")]).unwrap();
        assert_eq!(is_there(&zfs, "tank/p"), !goes, "{mark}");
    }
}

#[test]
fn only_a_new_dataset_with_the_token_is_destroyed_for_a_restart() {
    for (mark, goes) in [
        (OURS, true),
        ("x new token=00000000000000fe", false),
        ("x token=00000000000000ff", false),
        ("x new", false),
    ] {
        let zfs = FakeZfs::new();
        zfs.create(&name("tank/a"), DatasetType::Filesystem);
        set(&zfs, "tank/a", RESTORING_PROPERTY, mark);
        let done = destroy_begun(
            &zfs,
            &name("tank/a"),
            token(OURS).unwrap(),
            &BTreeSet::new(),
        );
        assert_eq!(done.is_ok(), goes, "{mark}: {done:?}");
        assert_eq!(is_there(&zfs, "tank/a"), !goes, "{mark}");
    }
}

#[test]
fn held_snapshot_of_a_scratch_dataset_is_named() {
    let zfs = FakeZfs::new();
    zfs.create(&name("tank/a"), DatasetType::Filesystem);
    set(&zfs, "tank/a", SCRATCH_PROPERTY, "00000000000000ff");
    let snapshot: SnapshotName = "tank/a@1".parse().unwrap();
    zfs.take_snapshots(std::slice::from_ref(&snapshot), &BTreeMap::new())
        .unwrap();
    zfs.hold(&snapshot, "keep").unwrap();
    let guids = zfs.snapshots(&name("tank/a")).unwrap();
    let guids = guids.iter().map(|snapshot| snapshot.guid).collect();
    let refused = destroy_scratch(&zfs, &name("tank/a"), &guids).unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("tank/a@1, which the restore did not make or which is held"),
        "{refused}"
    );
}

/// `tank/back` with a receive that was cut: of an incremental onto its snapshot, or of a full.
fn cut_receive(incremental: bool) -> FakeZfs {
    let zfs = FakeZfs::new();
    zfs.create(&name("tank/a"), DatasetType::Filesystem);
    let mut base = None;
    for number in [1, 2] {
        let bytes = vec![number; 60_000];
        zfs.write_file(&name("tank/a"), 5, &bytes);
        let snapshot: SnapshotName = format!("tank/a@{number}").parse().unwrap();
        zfs.take_snapshots(std::slice::from_ref(&snapshot), &BTreeMap::new())
            .unwrap();
        let request = SendRequest {
            snapshot: snapshot.clone(),
            base: base.take(),
            flags: SendFlags {
                raw: false,
                compressed: true,
                embedded: false,
                large_blocks: true,
            },
            resume: None,
        };
        let mut sending = zfs.send(&request).unwrap();
        let mut stream = Vec::new();
        std::io::Read::read_to_end(&mut sending.reader(), &mut stream).unwrap();
        sending.finish().unwrap();
        let is_cut = !incremental || number == 2;
        let end = if is_cut {
            stream.len() / 2
        } else {
            stream.len()
        };
        let request = ReceiveRequest {
            target: format!("tank/back@{number}").parse().unwrap(),
            resumable: true,
            properties: BTreeMap::new(),
        };
        let received = zfs.receive(&request, &mut &stream[..end]);
        assert_eq!(received.is_err(), is_cut);
        if is_cut {
            break;
        }
        base = Some(SendBase::Snapshot(snapshot));
    }
    zfs
}

#[test]
fn partial_receive_is_aborted_only_with_the_token_of_its_restore() {
    let ours = "x token=00000000000000ff";
    for (incremental, mark, given, is_such, goes) in [
        (true, ours, token(OURS), true, true),
        (true, ours, token(OURS), false, false),
        (true, "x token=00000000000000fe", token(OURS), true, false),
        (true, "x", token(OURS), true, false),
        (true, "x", None, true, false),
        (true, ours, None, true, false),
        (false, ours, token(OURS), true, false),
    ] {
        let zfs = cut_receive(incremental);
        let target = name("tank/back");
        set(&zfs, "tank/back", RESTORING_PROPERTY, mark);
        assert!(zfs.receive_point(&target).is_some());
        abort_cut(&zfs, &target, given, |_| is_such).unwrap();
        assert_eq!(
            zfs.receive_point(&target).is_none(),
            goes,
            "{incremental} {mark} {given:?} {is_such}"
        );
    }
}
