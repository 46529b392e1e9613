//! Which own snapshots may be destroyed, by table.

use crate::facts::{Shelf, at};
use std::collections::BTreeSet;
use zfs_backup::config::KeepLevels;
use zfs_backup::model::{BackupId, BackupKind, BackupLevel, Guid};
use zfs_backup::plan::clock::ClockDoubt;
use zfs_backup::plan::prune::{StartedFact, Unreadable};
use zfs_backup::plan::snapshots::{
    SnapshotReason, SnapshotVerdict, SnapshotsInput, StoreNeeds, bookmark_name,
    find_snapshots_doubt, plan_snapshots,
};
use zfs_backup::zfs::{Bookmark, Snapshot};

/// Own snapshots 1, 2, 3 of January, February, March; each backed up in one store and bookmarked;
/// now is April.
struct Case {
    own: Vec<Snapshot>,
    bookmarks: Vec<Bookmark>,
    stores: Vec<StoreNeeds>,
    journal: BTreeSet<BackupId>,
    marked: Vec<Snapshot>,
    pinned: BTreeSet<BackupId>,
    clock: Option<ClockDoubt>,
    oldest_days: u32,
    levels: Option<KeepLevels>,
}

fn snapshot(guid: u64) -> Snapshot {
    Snapshot {
        name: format!("t/a@s{guid}").parse().unwrap(),
        guid: Guid(guid),
        createtxg: guid,
        created_at: at(&format!("2026-0{guid}-01")),
        referenced_bytes: 0,
        used_bytes: 10,
        holds: 0,
        clones: 0,
        redacted: false,
        user_properties: Default::default(),
    }
}

fn bookmark(guid: u64) -> Bookmark {
    let name = format!("t/a#{}", bookmark_name(Guid(guid)))
        .parse()
        .unwrap();
    Bookmark {
        name,
        guid: Guid(guid),
        createtxg: guid,
        created_at: at("2026-01-01"),
        redacted: false,
        ivset_guid: None,
    }
}

impl Case {
    fn new() -> Self {
        let mut shelf = Shelf::new("2026-04-01");
        let full = shelf.full(1, "2026-01-01");
        let one = shelf.incr(2, "2026-02-01", &full);
        shelf.incr(3, "2026-03-01", &one);
        let store = StoreNeeds {
            store: "s3:b".to_owned(),
            facts: shelf.facts,
            attempts: Vec::new(),
        };
        Self {
            own: (1..=3).map(snapshot).collect(),
            bookmarks: (1..=3).map(bookmark).collect(),
            stores: vec![store],
            journal: BTreeSet::new(),
            marked: Vec::new(),
            pinned: BTreeSet::new(),
            clock: None,
            oldest_days: 10,
            levels: None,
        }
    }

    /// The guids of those that go.
    fn destroyed(&self) -> Vec<u64> {
        let verdicts = self.verdicts();
        verdicts
            .into_iter()
            .filter(|(_, reason)| *reason == SnapshotReason::Old)
            .map(|(guid, _)| guid)
            .collect()
    }

    fn plan(&self) -> Vec<SnapshotVerdict> {
        let input = SnapshotsInput {
            own: &self.own,
            marked: &self.marked,
            prefix: "zfs-backup_",
            guids: &self.own.iter().map(|snapshot| snapshot.guid).collect(),
            bookmarks: &self.bookmarks,
            stores: &self.stores,
            journal: &self.journal,
            pinned: &self.pinned,
            oldest_days: self.oldest_days,
            levels: self.levels,
            now: at("2026-04-01"),
            clock: self.clock.as_ref(),
        };
        plan_snapshots(&input)
    }

    fn verdicts(&self) -> Vec<(u64, SnapshotReason)> {
        let verdicts = self.plan();
        for verdict in &verdicts {
            assert_eq!(
                verdict.destroy,
                verdict.reason == SnapshotReason::Old,
                "{verdict:?}"
            );
            assert!(!verdict.reason.to_string().is_empty());
        }
        self.own
            .iter()
            .map(|own| own.guid.0)
            .zip(verdicts.into_iter().map(|verdict| verdict.reason))
            .collect()
    }
}

#[test]
fn only_old_own_snapshots_that_nothing_needs_are_destroyed() {
    let attempt = |guid: u64, base: Option<u64>| {
        let kind = if base.is_some() {
            BackupKind::Incr
        } else {
            BackupKind::Full
        };
        let id = |guid, kind| BackupId::new(at("2026-03-01"), kind, Guid(guid), 9);
        let origin = crate::facts::origin(1);
        let base = base.map(|guid| id(guid, BackupKind::Full));
        (id(guid, kind), StartedFact::Signed { base, origin })
    };
    let unreadable = || {
        StartedFact::Unreadable(Unreadable {
            reason: "x".to_owned(),
            damage: true,
        })
    };
    type Edit = Box<dyn Fn(&mut Case)>;
    let cases: Vec<(&str, Edit, &[u64])> = vec![
        ("stored, bookmarked, old", Box::new(|_| {}), &[1, 2, 3]),
        (
            "young ones stay",
            Box::new(|case| case.oldest_days = 40),
            &[1, 2],
        ),
        (
            "exactly so many days old is old",
            Box::new(|case| case.oldest_days = 31),
            &[1, 2, 3],
        ),
        (
            "all are young",
            Box::new(|case| case.oldest_days = 120),
            &[],
        ),
        (
            "a held one stays",
            Box::new(|case| case.own[0].holds = 1),
            &[2, 3],
        ),
        (
            "days = 0 with bookmarks",
            Box::new(|case| case.oldest_days = 0),
            &[1, 2, 3],
        ),
        (
            "days = 0 and one has no bookmark",
            Box::new(|case| {
                case.oldest_days = 0;
                case.bookmarks.remove(1);
            }),
            &[1, 3],
        ),
        (
            "the base of the next incremental without its bookmark",
            Box::new(|case| {
                case.bookmarks.pop();
            }),
            &[1, 2],
        ),
        (
            "a bookmark of that name with another guid is none",
            Box::new(|case| case.bookmarks[2].guid = Guid(99)),
            &[1, 2],
        ),
        (
            "a bookmark with another name is none",
            Box::new(|case| case.bookmarks[2].name = "t/a#x".parse().unwrap()),
            &[1, 2],
        ),
        (
            "older ones need no bookmark",
            Box::new(|case| case.bookmarks.retain(|bookmark| bookmark.guid == Guid(3))),
            &[1, 2, 3],
        ),
        (
            "a bookmark of the newest backup is its base, and no older snapshot",
            Box::new(|case| {
                case.own.pop();
                case.bookmarks.retain(|bookmark| bookmark.guid == Guid(3));
            }),
            &[1, 2],
        ),
        (
            "a bookmark with a redaction list is no base, so an older snapshot is",
            Box::new(|case| {
                case.own.pop();
                case.bookmarks.retain(|bookmark| bookmark.guid == Guid(3));
                case.bookmarks[0].redacted = true;
            }),
            &[1],
        ),
        (
            "the newest that is not stored stays",
            Box::new(|case| {
                case.stores[0].facts.pop();
            }),
            &[1, 2],
        ),
        (
            "and so does then the base, without a bookmark",
            Box::new(|case| {
                case.stores[0].facts.pop();
                case.bookmarks.clear();
            }),
            &[1],
        ),
        (
            "the newest that is not usable there stays",
            Box::new(|case| {
                case.stores[0].facts[2].flaw = Some("gap".to_owned());
            }),
            &[1, 2],
        ),
        (
            "not usable and no bookmarks: it and the newest usable",
            Box::new(|case| {
                case.stores[0].facts[2].flaw = Some("gap".to_owned());
                case.bookmarks.clear();
            }),
            &[1],
        ),
        (
            "an empty store has not got the newest",
            Box::new(|case| case.stores[0].facts.clear()),
            &[1, 2],
        ),
        ("no store", Box::new(|case| case.stores.clear()), &[1, 2]),
        (
            "a second store that has less",
            Box::new(|case| {
                let mut second = case.stores[0].clone();
                second.facts.truncate(1);
                case.stores.push(second);
            }),
            &[1, 2],
        ),
        (
            "a second store whose base has no bookmark",
            Box::new(|case| {
                let mut second = case.stores[0].clone();
                second.facts.truncate(1);
                case.stores.push(second);
                case.bookmarks.remove(0);
            }),
            &[2],
        ),
        (
            "an upload of it",
            Box::new(move |case| case.stores[0].attempts.push(attempt(2, None))),
            &[1, 3],
        ),
        (
            "an upload that builds on it",
            Box::new(move |case| case.stores[0].attempts.push(attempt(7, Some(1)))),
            &[2, 3],
        ),
        (
            "an upload that cannot be read",
            Box::new(move |case| {
                case.stores[0]
                    .attempts
                    .push((attempt(7, None).0, unreadable()));
            }),
            &[],
        ),
        (
            "an incremental that does not say on what it builds",
            Box::new(move |case| {
                case.stores[0]
                    .attempts
                    .push((attempt(7, Some(1)).0, StartedFact::Absent));
            }),
            &[],
        ),
        (
            "a full that says nothing",
            Box::new(move |case| {
                case.stores[0]
                    .attempts
                    .push((attempt(7, None).0, StartedFact::Absent));
            }),
            &[1, 2, 3],
        ),
        (
            "the journal knows an attempt of it",
            Box::new(move |case| {
                case.journal.insert(attempt(1, None).0);
            }),
            &[2, 3],
        ),
        (
            "an upload that cannot be read, and whose hold is in the pool: what it needs is held",
            Box::new(move |case| {
                case.stores[0]
                    .attempts
                    .push((attempt(7, None).0, unreadable()));
                case.stores[0]
                    .attempts
                    .push((attempt(8, Some(1)).0, StartedFact::Absent));
                case.pinned = [attempt(7, None).0, attempt(8, Some(1)).0].into();
                case.own[1].holds = 1;
            }),
            &[1, 3],
        ),
        (
            "the snapshot of an upload that is pinned stays, also without the hold",
            Box::new(move |case| {
                case.stores[0]
                    .attempts
                    .push((attempt(2, None).0, StartedFact::Absent));
                case.pinned.insert(attempt(2, None).0);
            }),
            &[1, 3],
        ),
        (
            "a clock that is ahead",
            Box::new(|case| {
                case.clock = Some(ClockDoubt::Idle {
                    now: at("2026-04-01"),
                    last: at("2026-03-01"),
                })
            }),
            &[],
        ),
        (
            "a clock that is behind makes all of them young",
            Box::new(|case| {
                case.own
                    .iter_mut()
                    .for_each(|own| own.created_at = at("2027-01-01"));
            }),
            &[],
        ),
    ];
    for (what, edit, expected) in cases {
        let mut case = Case::new();
        edit(&mut case);
        assert_eq!(case.destroyed(), expected, "{what}: {:?}", case.verdicts());
    }
}

#[test]
fn doubt_about_old_snapshots_is_reported_with_its_remedy() {
    let doubt = |case: &Case| find_snapshots_doubt(&case.plan(), "prune-snapshots");
    let mut case = Case::new();
    assert_eq!(doubt(&case), None);
    case.clock = Some(ClockDoubt::Idle {
        now: at("2026-04-01"),
        last: at("2026-03-01"),
    });
    let told = doubt(&case).unwrap();
    assert!(told.what.contains("1m 1d after the last run"), "{told:?}");
    assert!(
        told.hint
            .contains("zfs-backup prune-snapshots -y --clock-is-right"),
        "{told:?}"
    );
    // Young ones are kept by no doubt.
    case.oldest_days = 120;
    assert_eq!(doubt(&case), None);
    let id = BackupId::new(at("2026-03-01"), BackupKind::Incr, Guid(7), 9);
    case.stores[0]
        .attempts
        .push((id.clone(), StartedFact::Absent));
    assert_eq!(doubt(&case), None);
    case.oldest_days = 10;
    let told = doubt(&case).unwrap();
    assert!(
        told.what.contains(id.as_str()) && told.hint.contains(&format!("zfs-backup forget {id}")),
        "{told:?}"
    );
}

#[test]
fn a_snapshot_with_our_mark_and_another_name_is_named_and_never_destroyed() {
    let mut case = Case::new();
    case.marked = vec![snapshot(4)];
    for days in [0, 10] {
        case.oldest_days = days;
        let plan = case.plan();
        assert_eq!(plan.len(), 4);
        assert_eq!((plan[3].name.short(), plan[3].destroy), ("s4", false));
        assert_eq!(
            plan[3].reason,
            SnapshotReason::NotOurName {
                prefix: "zfs-backup_".to_owned()
            }
        );
    }
    // The newest own one is the newest of those that are ours.
    case.stores[0].facts.pop();
    assert_eq!(case.destroyed(), [1, 2]);
}

#[test]
fn the_only_form_of_a_base_of_a_level_stays() {
    let mut case = Case::new();
    let level = |case: &mut Case, index: usize, level| {
        case.stores[0].facts[index].made.level = Some(level);
    };
    level(&mut case, 1, BackupLevel::Monthly);
    level(&mut case, 2, BackupLevel::Daily);
    case.levels = Some("2y 12m 14d".parse().unwrap());
    // The full is the base of the next yearly, the second of the next monthly.
    assert_eq!(case.destroyed(), [1, 2, 3]);
    case.bookmarks.retain(|bookmark| bookmark.guid == Guid(3));
    assert_eq!(case.destroyed(), [3]);
    case.levels = Some("12m 14d".parse().unwrap());
    assert_eq!(case.destroyed(), [1, 3]);
    case.levels = None;
    assert_eq!(case.destroyed(), [1, 2, 3]);
}
