//! The decision by table: in each case one change to the upload or to the present state, and the
//! result.

use super::*;
use crate::manifest::{BaseRef, FORMAT, SnapshotRef};
use crate::model::{Digest, ReadFault};
use crate::plan::fixtures::{self, at, snapshot};
use ResumeVerdict::{Abandon, Over, Resume, Wait};

fn reference(n: u64) -> SnapshotRef {
    SnapshotRef {
        guid: Guid(n),
        createtxg: n,
        created_at: at(n),
    }
}

fn bookmark(n: u64) -> Bookmark {
    fixtures::bookmark(&format!("b{n}"), n)
}

fn id(n: u64, kind: BackupKind) -> BackupId {
    BackupId::new(at(n), kind, Guid(n), n)
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Makes a complete backup of snapshot `n`.
fn backup(n: u64, kind: BackupKind) -> BackupFacts {
    let id = id(n, kind);
    BackupFacts {
        manifest_blake3: Digest::of(id.as_str().as_bytes()),
        snapshot: reference(n),
        base: (kind == BackupKind::Incr).then(|| self::id(1, BackupKind::Full)),
        full_id: id.clone(),
        id,
        position: 0,
        origin: Origin {
            dataset_guid: Guid(100),
            pool_guid: Guid(200),
        },
        made: Default::default(),
        requested: Vec::new(),
        recipients: Vec::new(),
        stream_bytes: 1,
        stored_bytes: 1,
        flaw: None,
    }
}

/// An upload of snapshot 2, and the present state. The base of an incremental is the full of
/// snapshot 1.
struct Case {
    started: Started,
    listed: BTreeSet<String>,
    known: BTreeSet<String>,
    has_manifest: bool,
    is_pruned: bool,
    read_faults: Vec<ReadFault>,
    origin: Origin,
    snapshots: Vec<Snapshot>,
    bookmarks: Vec<Bookmark>,
    flags: Vec<String>,
    split_bytes: u64,
    compression: CompressionName,
    recipients: Vec<String>,
    target: Vec<BackupFacts>,
    remote: Vec<BackupFacts>,
    unseen: Option<&'static str>,
}

impl Case {
    fn new(kind: BackupKind) -> Self {
        let (base, origin) = (
            backup(1, BackupKind::Full),
            backup(1, BackupKind::Full).origin,
        );
        let (flags, recipients) = (vec!["large-blocks".to_owned()], vec!["age1a".to_owned()]);
        let started = Started {
            format: FORMAT,
            object_type: "started".to_owned(),
            dataset: "t/a".parse().unwrap(),
            id: id(2, kind),
            snapshot: reference(2),
            base: (kind == BackupKind::Incr).then(|| BaseRef {
                guid: Guid(1),
                backup_id: base.id.clone(),
                manifest_blake3: base.manifest_blake3,
            }),
            origin: origin.clone(),
            host_mark: None,
            level: None,
            requested: flags.clone(),
            split_bytes: 64,
            compression: CompressionName::None,
            recipients: recipients.clone(),
            tool_version: "0".to_owned(),
            started_at: at(2),
        };
        Self {
            started,
            listed: names(&["started.json", "chunk"]),
            known: names(&["started.json", "chunk", "another chunk"]),
            has_manifest: false,
            is_pruned: false,
            read_faults: Vec::new(),
            origin,
            snapshots: vec![snapshot(1), snapshot(2), snapshot(3)],
            bookmarks: Vec::new(),
            flags,
            split_bytes: 64,
            compression: CompressionName::None,
            recipients,
            target: vec![base],
            remote: Vec::new(),
            unseen: None,
        }
    }

    fn judge(&self) -> ResumeVerdict {
        let Self {
            started,
            listed,
            known,
            has_manifest,
            is_pruned,
            read_faults,
            origin,
            snapshots,
            bookmarks,
            ..
        } = self;
        let (has_manifest, is_pruned) = (*has_manifest, *is_pruned);
        judge_unfinished(
            &UnfinishedFacts {
                started,
                listed,
                known,
                has_manifest,
                is_pruned,
                read_faults,
            },
            &ResumeFacts {
                origin,
                snapshots,
                bookmarks,
                flags: &self.flags,
                split_bytes: self.split_bytes,
                compression: self.compression,
                recipients: &self.recipients,
                target: &self.target,
                remote: &self.remote,
                unseen: self.unseen,
            },
        )
    }
}

/// Returns the verdict as text: its name, and its sources or its reason.
fn said(verdict: &ResumeVerdict) -> (&'static str, String) {
    match verdict {
        Resume {
            snapshot,
            base: None,
        } => ("go on", snapshot.name.to_string()),
        Resume {
            snapshot,
            base: Some(SendBase::Snapshot(base)),
        } => ("go on", format!("{} from {base}", snapshot.name)),
        Resume {
            snapshot,
            base: Some(SendBase::Bookmark(base)),
        } => ("go on", format!("{} from {base}", snapshot.name)),
        Wait { why } => ("wait", why.clone()),
        Over { why } => ("over", why.clone()),
        Abandon { why } => ("give up", why.clone()),
    }
}

fn faults(positions: &[u64]) -> Vec<ReadFault> {
    let fault = |position: &u64| ReadFault {
        position: *position,
        object: Some(*position),
        before: None,
    };
    positions.iter().map(fault).collect()
}

type Change = fn(&mut Case);

fn check(kind: BackupKind, cases: &[(&str, Change, (&str, &str))]) {
    for (what, change, (verdict, why)) in cases {
        let mut case = Case::new(kind);
        change(&mut case);
        let (found, text) = said(&case.judge());
        assert!(
            found == *verdict && text.contains(why),
            "{what}: {found}: {text}"
        );
    }
}

#[test]
fn full_upload_is_resumed_only_if_its_facts_are_unchanged() {
    check(
        BackupKind::Full,
        &[
            ("nothing changed", |_| {}, ("go on", "t/a@s2")),
            (
                "a renamed snapshot",
                |case| case.snapshots[1].name = "t/b@x".parse().unwrap(),
                ("go on", "t/b@x"),
            ),
            (
                "a manifest",
                |case| case.has_manifest = true,
                ("over", "it was committed"),
            ),
            (
                "a prune record",
                |case| case.is_pruned = true,
                ("over", "prune record"),
            ),
            (
                "both, and all else lost",
                |case| {
                    (case.has_manifest, case.is_pruned) = (true, true);
                    case.snapshots.clear();
                },
                ("over", "it was committed"),
            ),
            (
                "a stranger's object",
                |case| case.listed.extend(names(&["RESTORE.txt"])),
                ("give up", "RESTORE.txt"),
            ),
            (
                "a snapshot that is gone",
                |case| drop(case.snapshots.remove(1)),
                ("give up", "no longer in the pool"),
            ),
            (
                "only its bookmark",
                |case| {
                    case.snapshots.remove(1);
                    case.bookmarks.push(bookmark(2));
                },
                (
                    "give up",
                    "its snapshot, guid 0000000000000002, is no longer in the pool",
                ),
            ),
            (
                "one read error",
                |case| case.read_faults = faults(&[9]),
                ("go on", "t/a@s2"),
            ),
            (
                "read errors at different places",
                |case| case.read_faults = faults(&[9, 8, 10]),
                ("go on", "t/a@s2"),
            ),
            (
                "two read errors at one place",
                |case| case.read_faults = faults(&[9, 8, 9]),
                ("give up", "twice could not read its snapshot after byte 9"),
            ),
            (
                "another dataset",
                |case| case.origin.dataset_guid = Guid(9),
                ("give up", "the dataset or its pool"),
            ),
            (
                "another pool",
                |case| case.origin.pool_guid = Guid(9),
                ("give up", "the dataset or its pool"),
            ),
            (
                "other flags",
                |case| case.flags.push("raw".to_owned()),
                ("give up", "the send flags"),
            ),
            (
                "another size",
                |case| case.split_bytes = 65,
                ("give up", "main.split_size"),
            ),
            (
                "compression",
                |case| case.compression = CompressionName::Zstd,
                ("give up", "send.compression"),
            ),
            (
                "other recipients",
                |case| case.recipients.push("age1b".to_owned()),
                ("give up", "the recipients"),
            ),
            (
                "another full of it",
                |case| case.target.push(backup(2, BackupKind::Full)),
                ("give up", "already stores its snapshot"),
            ),
            (
                "an incremental of it",
                |case| case.target.push(backup(2, BackupKind::Incr)),
                ("go on", "t/a@s2"),
            ),
            (
                "a full of it with a hole",
                |case| {
                    case.target.push(BackupFacts {
                        flaw: Some("a hole".to_owned()),
                        ..backup(2, BackupKind::Full)
                    });
                },
                ("go on", "t/a@s2"),
            ),
            (
                "a full of it in the other store",
                |case| case.remote.push(backup(2, BackupKind::Full)),
                ("go on", "t/a@s2"),
            ),
            (
                "something unseen, which a full does not need",
                |case| case.unseen = Some("away"),
                ("go on", "t/a@s2"),
            ),
        ],
    );
}

#[test]
fn incremental_upload_is_resumed_only_if_pool_and_store_have_its_base() {
    check(
        BackupKind::Incr,
        &[
            ("nothing changed", |_| {}, ("go on", "t/a@s2 from t/a@s1")),
            (
                "a bookmark of the base",
                |case| {
                    case.snapshots.remove(0);
                    case.bookmarks.push(bookmark(1));
                },
                ("go on", "t/a@s2 from t/a#b1"),
            ),
            (
                "a bookmark of something else",
                |case| {
                    case.snapshots.remove(0);
                    case.bookmarks.push(bookmark(3));
                },
                ("give up", "its base, guid 0000000000000001"),
            ),
            (
                "a bookmark of the base with a redaction list",
                |case| {
                    case.snapshots.remove(0);
                    case.bookmarks.push(bookmark(1));
                    case.bookmarks[0].redacted = true;
                },
                ("give up", "its base, guid 0000000000000001"),
            ),
            (
                "no base in the pool",
                |case| drop(case.snapshots.remove(0)),
                ("give up", "its base, guid 0000000000000001"),
            ),
            (
                "the base in the other store",
                |case| case.remote = std::mem::take(&mut case.target),
                ("go on", "from t/a@s1"),
            ),
            (
                "no base stored",
                |case| case.target.clear(),
                ("give up", "is no longer stored"),
            ),
            (
                "another manifest of the base",
                |case| case.target[0].manifest_blake3 = Digest::of(b"x"),
                ("give up", "no longer stored"),
            ),
            (
                "a base with a hole",
                |case| case.target[0].flaw = Some("a hole".to_owned()),
                ("give up", "is incomplete: a hole"),
            ),
            (
                "no base seen",
                |case| {
                    case.target.clear();
                    case.unseen = Some("the remote is away");
                },
                ("wait", "but the remote is away"),
            ),
            (
                "no base seen, and other flags",
                |case| {
                    case.target.clear();
                    case.unseen = Some("the remote is away");
                    case.flags.clear();
                },
                ("give up", "the send flags"),
            ),
            (
                "any backup of its snapshot",
                |case| case.target.push(backup(2, BackupKind::Full)),
                ("give up", "already stores its snapshot"),
            ),
        ],
    );
}

#[test]
fn run_resumes_only_uploads_of_the_requested_kind() {
    let (full, incr) = (id(1, BackupKind::Full), id(1, BackupKind::Incr));
    let asked = |requested| {
        (
            is_asked_for(requested, &full),
            is_asked_for(requested, &incr),
        )
    };
    assert_eq!(asked(RequestedKind::Full), (true, false));
    assert_eq!(asked(RequestedKind::Incremental), (false, true));
    assert_eq!(asked(RequestedKind::Lifecycle), (true, true));
}

#[test]
fn read_error_at_the_resume_point_shows_no_place() {
    let fault = |position| ReadFault {
        position,
        object: None,
        before: None,
    };
    for (earlier, position, resumed_at, expected) in [
        (&[][..], 0, 0, false),
        (&[], 900, 0, true),
        (&[], 500, 500, false),
        (&[fault(900)], 500, 500, false),
        (&[fault(500)], 500, 500, true),
        (&[fault(900)], 900, 500, true),
    ] {
        let shown = shows_place(earlier, fault(position), resumed_at);
        assert_eq!(shown, expected, "{earlier:?} {position} {resumed_at}");
    }
}
