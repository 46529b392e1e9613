//! Scenarios of one dataset, written as lines of a table: each backup, and the expected result for
//! all.

use super::*;
use crate::manifest::SnapshotRef;
use crate::model::{BackupKind, BackupLevel, Digest};
use crate::plan::Making;
use crate::plan::fixtures::at;

/// Reads lines `NAME host TXG DAY [base=NAME] [after=NAME,NAME]`, where the host is `x`, `y` or `-`
/// for an old manifest. An old manifest names only its base; all others name the backups they come
/// after. `-` as `after` is the empty list, `level=NAME` a level.
fn backups(table: &str) -> Vec<(String, BackupFacts)> {
    let mut made: Vec<(String, BackupFacts)> = Vec::new();
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = line.split_whitespace();
        let mut next = || words.next().unwrap().to_owned();
        let (name, host, txg, day) = (next(), next(), next(), next());
        let (mut base, mut after, mut level) = (None, None, None);
        let find = |name: &str| {
            made.iter()
                .find(|(other, _)| other == name)
                .map(|(_, backup)| backup.clone())
        };
        let absent = |name: &str| {
            let name = name.trim_start_matches('!');
            let (name, day) = name.split_once('@').unwrap_or((name, "1"));
            id_of(name, BackupKind::Full, day.parse().unwrap())
        };
        for word in words {
            match word.split_once('=').unwrap() {
                ("base", name) => base = Some(find(name).unwrap()),
                ("after", "-") => after = Some(Vec::new()),
                ("level", name) => level = BackupLevel::from_name(name),
                // A name with `!` is that of a deleted backup, perhaps with its day: `!NAME@DAY`.
                (_, names) => {
                    let id =
                        |name: &str| find(name).map_or_else(|| absent(name), |backup| backup.id);
                    after = Some(names.split(',').map(id).collect());
                }
            }
        }
        let (txg, day): (u64, u64) = (txg.parse().unwrap(), day.parse().unwrap());
        let kind = if base.is_some() {
            BackupKind::Incr
        } else {
            BackupKind::Full
        };
        let id = id_of(&name, kind, day);
        let host = (host != "-").then(|| {
            format!(
                "{}-0123456789abcdef",
                host.repeat(16).replace('x', "a").replace('y', "b")
            )
        });
        let facts = BackupFacts {
            manifest_blake3: Digest::of(name.as_bytes()),
            snapshot: SnapshotRef {
                guid: id.snapshot_guid(),
                createtxg: txg,
                created_at: at(day),
            },
            full_id: base
                .as_ref()
                .map_or_else(|| id.clone(), |base: &BackupFacts| base.full_id.clone()),
            position: base.as_ref().map_or(0, |base| base.position + 1),
            base: base.map(|base| base.id),
            origin: origin(),
            made: Making {
                host: host.map(|host| host.parse().unwrap()),
                previous: after,
                started_at: at(day),
                finished_at: at(day),
                adopted: false,
                level,
                ..Making::default()
            },
            requested: Vec::new(),
            recipients: Vec::new(),
            stream_bytes: 1,
            stored_bytes: 1,
            flaw: None,
            id,
        };
        made.push((name, facts));
    }
    made
}

fn origin() -> Origin {
    Origin {
        dataset_guid: Guid(1),
        pool_guid: Guid(2),
    }
}

/// The name is encoded as the guid.
fn id_of(name: &str, kind: BackupKind, day: u64) -> BackupId {
    let guid = name
        .bytes()
        .fold(0, |guid, byte| guid * 256 + u64::from(byte));
    BackupId::new(at(day), kind, Guid(guid), 1)
}

fn name_of(guid: Guid) -> String {
    let bytes = guid.0.to_be_bytes();
    String::from_utf8(bytes.into_iter().filter(|byte| *byte != 0).collect()).unwrap()
}

fn sight(known: &str, adopted: &[BackupId]) -> PoolView {
    let known = known
        .split_whitespace()
        .map(|name| id_of(name, BackupKind::Full, 0).snapshot_guid())
        .collect();
    PoolView {
        origin: origin(),
        known,
        adopted: adopted.iter().cloned().collect(),
    }
}

fn strays(table: &str, known: &str) -> String {
    strays_after(table, known, "")
}

fn strays_after(table: &str, known: &str, adopted: &str) -> String {
    let made = backups(table);
    let adopted: Vec<BackupId> = adopted
        .split_whitespace()
        .map(|name| {
            made.iter()
                .find(|(other, _)| other == name)
                .unwrap()
                .1
                .id
                .clone()
        })
        .collect();
    let facts: Vec<BackupFacts> = made.into_iter().map(|(_, facts)| facts).collect();
    let found = Timeline::new(&facts).strays(&sight(known, &adopted));
    found
        .iter()
        .map(|stray| name_of(stray.backup.snapshot.guid))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Returns the newest backup, or the candidates with question marks.
fn newest(table: &str) -> String {
    let facts: Vec<BackupFacts> = backups(table).into_iter().map(|(_, facts)| facts).collect();
    let all: Vec<&BackupFacts> = facts.iter().collect();
    let name = |backup: &BackupFacts| name_of(backup.snapshot.guid);
    match Timeline::new(&facts).newest(&all) {
        Ok(newest) => newest.map(name).unwrap_or_default(),
        Err(candidates) => candidates
            .into_iter()
            .map(|backup| name(backup) + "?")
            .collect::<Vec<_>>()
            .join(" "),
    }
}

const LINEAR: &str = "
    p1 x 10 1 after=-
    p2 x 20 2 base=p1 after=p1
    p3 x 30 3 after=p2
    p4 x 40 4 base=p3 after=p3";

/// Both hosts continue from p2 with fulls.
const CLONED: &str = "
    p1 x 10 1 after=-
    p2 x 20 2 base=p1 after=p1
    a3 x 30 3 after=p2
    b4 y 40 4 after=p2
    a5 x 50 5 after=a3
    b6 y 60 6 after=b4";

/// As above, but the clone has the machine id and state folder of its original.
const TWINS: &str = "
    p1 x 10 1 after=-
    p2 x 20 2 base=p1 after=p1
    a3 x 30 3 base=p2 after=p2
    b4 x 40 4 base=p2 after=p2
    a5 x 50 5 base=a3 after=a3";

#[test]
fn single_time_line_has_no_strays_for_any_pool_contents() {
    for known in ["p1 p2 p3 p4", "p4", "p3 p4", "p1 p4", "", "other"] {
        assert_eq!(strays(LINEAR, known), "", "{known}");
    }
    assert_eq!(newest(LINEAR), "p4");
}

/// A weekly and its dailies lie between a full and the monthly, which builds on the full. The last
/// daily, which the monthly came after, is deleted.
#[test]
fn a_backup_with_a_level_on_an_older_base_does_not_make_a_second_time_line() {
    let table = |level: &str| {
        format!(
            "
            f1 x 10 1 after=-
            w2 x 20 2 base=f1 after=f1 level=weekly
            m4 x 40 4 base=f1 after=!d3@3 {level}
            n5 x 50 5 base=m4 after=m4"
        )
    };
    for known in ["n5", "m4 n5", "f1 n5"] {
        assert_eq!(strays(&table("level=monthly"), known), "", "{known}");
    }
    // Without levels a base that is not the newest backup is evidence.
    assert_eq!(strays(&table(""), "n5"), "w2");
    assert_eq!(newest(&table("level=monthly")), "n5");
    // A pool that knew the weekly names it, or what follows from it.
    let other = "
        f1 x 10 1 after=-
        w2 y 20 2 base=f1 after=f1 level=weekly
        m4 x 40 4 base=f1 after=f1 level=monthly
        n5 x 50 5 base=m4 after=m4";
    assert_eq!(strays(other, "n5"), "w2");
}

#[test]
fn old_manifests_without_marks_on_the_own_line_are_no_strays() {
    let table = "
        p1 - 10 1
        p2 - 20 2 base=p1
        q3 - 30 3
        q4 - 40 4 base=q3
        n5 x 50 5 base=q4 after=q4
        n6 x 60 6 after=n5";
    for known in ["n6", "n5 n6", "q4 n5 n6", "q3 n6", "p2 n6"] {
        assert_eq!(strays(table, known), "", "{known}");
    }
    assert_eq!(newest(table), "n6");
    let old = "
        p1 - 10 1
        p2 - 20 2 base=p1
        q3 - 30 3";
    assert_eq!(
        (strays(old, "q3"), newest(old)),
        (String::new(), "q3".to_owned())
    );
}

#[test]
fn moved_pool_continues_its_time_line_without_strays() {
    let moved = "
        p1 x 10 1 after=-
        p2 x 20 2 base=p1 after=p1
        q3 y 30 3 base=p2 after=p2
        q4 y 40 4 after=q3
        p5 x 50 5 after=q4";
    for known in ["p5", "q4 p5", "p1 p5"] {
        assert_eq!(strays(moved, known), "", "{known}: there and back again");
    }
    assert_eq!(newest(moved), "p5");
    // Before its first backup the pool knows only the newest backup that the other pool stored.
    assert_eq!(strays(LINEAR, "p4"), "");
}

/// The pool lost its snapshots and bookmarks, or it is a clone whose original pruned all backups that
/// both know: only a person can tell.
#[test]
fn backups_that_the_pool_s_first_backup_does_not_name_are_strays() {
    let table = "
        p1 x 10 1 after=-
        p2 x 20 2 base=p1 after=p1
        q3 HOST 30 3 after=-
        q4 HOST 40 4 base=q3 after=q3";
    for (host, asked) in [("y", "q4? p2?"), ("x", "q4")] {
        let table = table.replace("HOST", host);
        assert_eq!(strays(&table, "q3 q4"), "p2 p1");
        assert_eq!(newest(&table), asked);
    }
}

#[test]
fn backups_of_a_clone_are_strays_with_a_pool_and_ambiguous_without() {
    assert_eq!(strays(CLONED, "p2 a3 a5"), "b6 b4");
    assert_eq!(strays(CLONED, "p2 b4 b6"), "a5 a3");
    // The state before the pool's own next backup, and the state after it.
    assert_eq!(strays(CLONED, "p2"), "b6 a5 b4 a3");
    assert_eq!(strays(CLONED, "a5"), "b6 b4");
    assert_eq!(newest(CLONED), "b6? a5?");
}

#[test]
fn clones_that_back_up_concurrently_are_detected_by_both() {
    // Each night the snapshots are taken on two days, and both uploads end on the third. Both begin
    // with fulls of their own.
    let mut made = backups(
        "
        p1 x 10 1 after=-
        a2 x 20 2 after=p1
        b3 y 30 3 after=p1
        a5 x 50 5 base=a2 after=a2
        b6 y 60 6 base=b3 after=b3
        a8 x 80 8 base=a5 after=a5
        b9 y 90 9 base=b6 after=b6",
    );
    for (number, (_, facts)) in made.iter_mut().enumerate().skip(1) {
        facts.made.finished_at = at([4, 4, 7, 7, 10, 10][number - 1]);
    }
    let facts: Vec<BackupFacts> = made.into_iter().map(|(_, facts)| facts).collect();
    let strays = |known: &str| {
        let found = Timeline::new(&facts).strays(&sight(known, &[]));
        found
            .iter()
            .map(|stray| name_of(stray.backup.snapshot.guid))
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(strays("p1 a2 a5 a8"), "b9 b6 b3");
    assert_eq!(
        strays("p1 b3 b6 b9"),
        "a8 a5 a2",
        "the last one was under way when b9 was begun"
    );
    let all: Vec<&BackupFacts> = facts.iter().collect();
    assert!(Timeline::new(&facts).newest(&all).is_err());
}

#[test]
fn clone_with_the_host_mark_of_its_model_is_found_after_both_back_up() {
    assert_eq!(strays(TWINS, "p2 a3 a5"), "b4");
    assert_eq!(strays(TWINS, "p2 b4"), "a5 a3");
    assert_eq!(newest(TWINS), "a5? b4?");
    let fulls = TWINS.replace("base=p2 ", "").replace("base=a3 ", "");
    assert_eq!(
        (strays(&fulls, "p2 a5"), newest(&fulls)),
        ("b4".to_owned(), "a5? b4?".to_owned())
    );
}

#[test]
fn newest_is_ambiguous_after_a_clone_or_its_model_stops() {
    let table = "
        p1 x 10 1 after=-
        a2 x 20 2 base=p1 after=p1
        a3 x 30 3 base=a2 after=a2
        b4 y 40 4 base=p1 after=p1";
    assert_eq!(newest(table), "b4? a3?");
    assert_eq!(strays(table, "p1 b4"), "a3 a2");
    assert_eq!(strays(table, "a3"), "b4");
}

#[test]
fn old_manifests_fork_by_their_bases() {
    let table = "
        p1 - 10 1
        a2 - 20 2 base=p1
        b3 - 30 3 base=p1
        a4 - 40 4 base=a2
        b5 - 50 5 base=b3";
    assert_eq!(strays(table, "a4"), "b5 b3");
    assert_eq!(strays(table, "b5"), "a4 a2");
    assert_eq!(newest(table), "b5? a4?");
}

#[test]
fn old_manifests_with_the_same_base_fork_at_that_base() {
    let table = "
        p1 - 10 1
        b2 - 20 2 base=p1
        a3 - 30 3 base=p1";
    assert_eq!(strays(table, "p1 a3"), "b2");
}

/// Returns the backups that are strays, each with the name of the evidence.
fn reasons(table: &str, known: &str) -> String {
    let facts: Vec<BackupFacts> = backups(table).into_iter().map(|(_, facts)| facts).collect();
    let found = Timeline::new(&facts).strays(&sight(known, &[]));
    let text = |stray: &Stray<'_>| {
        let name = name_of(stray.backup.snapshot.guid);
        match stray.why {
            StrayReason::Later { .. } => format!("{name} later"),
            StrayReason::Skipped { by } => {
                format!("{name} skipped by {}", name_of(by.snapshot.guid))
            }
            StrayReason::Unlinked => format!("{name} unlinked"),
        }
    };
    found.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[test]
fn stray_must_be_later_by_time_or_transaction_group() {
    for (txg, day, expected) in [
        (20, 3, "s4 unlinked"),
        (30, 3, "s4 unlinked"),
        (40, 3, "s4 later"),
        (20, 4, "s4 later"),
        (30, 4, "s4 later"),
    ] {
        let table = format!(
            "
            p1 x 10 1 after=-
            p3 x 30 3 base=p1 after=p1
            s4 y {txg} {day} base=p1 after=p1"
        );
        assert_eq!(reasons(&table, "p1 p3"), expected, "{txg} on day {day}");
    }
}

#[test]
fn backup_of_equal_time_is_a_stray_only_after_a_successor_skips_it() {
    let table = "
        p1 x 10 1 after=-
        b2 y 20 2 after=p1
        c2 x 30 2 after=p1";
    assert_eq!(reasons(table, "p1 c2"), "b2 unlinked");
    let continued = format!("{table}\nd3 x 40 3 after=c2");
    assert_eq!(reasons(&continued, "p1 c2 d3"), "b2 skipped by d3");
}

/// A pool whose backups were all pruned names none when it makes its next one. It would have named a
/// backup of its own that was still stored.
#[test]
fn backup_that_a_pool_without_other_backups_does_not_name_is_a_stray() {
    let table = "
        b2 x 20 2 after=-
        a3 y 30 3 after=-";
    assert_eq!(reasons(table, "a3"), "b2 skipped by a3");
    let at_once = "
        b2 x 20 2 after=-
        a3 y 30 2 after=-";
    assert_eq!(reasons(at_once, "a3"), "b2 unlinked");
    let old = "
        b2 - 20 2
        a3 - 30 3";
    assert_eq!(reasons(old, "a3"), "");
}

/// The clone took its snapshot before ours, and stored it after all that we stored or began. None
/// of ours can have skipped it.
#[test]
fn a_clone_that_stores_an_older_snapshot_after_all_of_ours_is_found() {
    let table = "
        p1 x 10 1 after=-
        p2 x 20 2 base=p1 after=p1
        b3 x 30 3 after=p2
        a4 x 40 4 after=p2";
    let reasons_when = |stored: [u64; 2], known: &str, table: &str| {
        let mut made = backups(table);
        for (number, day) in stored.into_iter().enumerate() {
            made[2 + number].1.made.finished_at = at(day);
        }
        let facts: Vec<BackupFacts> = made.into_iter().map(|(_, facts)| facts).collect();
        let found = Timeline::new(&facts).strays(&sight(known, &[]));
        found
            .iter()
            .map(|stray| (name_of(stray.backup.snapshot.guid), stray.why))
            .map(|(name, why)| format!("{name} {}", why == StrayReason::Unlinked))
            .collect::<Vec<_>>()
            .join(" ")
    };
    // Stored after ours; while ours was under way; at the same time.
    for stored in [[6, 5], [5, 6], [5, 5]] {
        assert_eq!(
            reasons_when(stored, "p2 a4", table),
            "b3 true",
            "{stored:?}"
        );
    }
    // Our backup names a backup that is gone and is newer than the clone's snapshot. The missing
    // backup can lead to the clone's only if ours was stored later.
    let gone = table.replace("a4 x 40 4 after=p2", "a5 x 50 5 after=p2");
    let name_gone = |stored: [u64; 2]| {
        let mut made = backups(&gone);
        made[3].1.made.previous = Some(vec![id_of("a4", BackupKind::Full, 4)]);
        for (number, day) in stored.into_iter().enumerate() {
            made[2 + number].1.made.finished_at = at(day);
        }
        let facts: Vec<BackupFacts> = made.into_iter().map(|(_, facts)| facts).collect();
        Timeline::new(&facts).strays(&sight("p2 a5", &[])).len()
    };
    assert_eq!(
        [name_gone([6, 7]), name_gone([6, 6]), name_gone([7, 6])],
        [0, 1, 1]
    );
    // The same holds for an old manifest, which does not say what its pool knew.
    let old = table.replace("a4 x 40 4 after=p2", "a4 - 40 4 base=p2");
    assert_eq!(reasons_when([5, 6], "p2 a4", &old), "");
    assert_eq!(reasons_when([6, 5], "p2 a4", &old), "b3 true");
}

#[test]
fn skipped_backup_of_an_unknown_host_is_not_a_second_time_line() {
    let table = "
        p1 x 10 1 after=-
        b2 - 20 2 base=p1
        a3 x 30 3 after=p1";
    assert_eq!(newest(table), "a3");
    assert_eq!(newest(&table.replace("b2 -", "b2 y")), "a3? b2?");
}

#[test]
fn stray_reason_names_the_greater_id_of_two_twins() {
    let mut facts: Vec<BackupFacts> = backups("p1 x 10 1 after=-\ns2 y 20 2 after=p1")
        .into_iter()
        .map(|(_, facts)| facts)
        .collect();
    let mut twin = facts[0].clone();
    twin.id = BackupId::new(at(1), BackupKind::Full, twin.snapshot.guid, 2);
    facts.push(twin.clone());
    for facts in [
        facts.iter().rev().collect(),
        facts.iter().collect::<Vec<_>>(),
    ] {
        let found = Timeline::new(facts).strays(&sight("p1", &[]));
        assert!(
            matches!(&found[..], [Stray { why: StrayReason::Later { known }, .. }] if known.id == twin.id),
            "{found:?}"
        );
    }
}

#[test]
fn a_known_snapshot_in_a_backup_of_another_origin_is_not_the_newest_of_the_pool() {
    let mut made = backups(
        "
        p1 x 10 1 after=-
        s4 y 20 4 after=p1
        o5 - 1000 5",
    );
    made[2].1.origin.pool_guid = Guid(99);
    let facts: Vec<BackupFacts> = made.into_iter().map(|(_, facts)| facts).collect();
    let found = Timeline::new(&facts).strays(&sight("p1 o5", &[]));
    assert_eq!(
        found
            .iter()
            .map(|stray| name_of(stray.backup.snapshot.guid))
            .collect::<Vec<_>>(),
        ["s4"]
    );
}

#[test]
fn rewound_pool_has_strays_and_is_ambiguous_while_time_and_txg_disagree() {
    let rewound = "
        p1 x 100 1 after=-
        p2 x 200 2 base=p1 after=p1
        p3 x 300 3 base=p2 after=p2
        r4 x 150 4 base=p1 after=p1";
    assert_eq!(strays(rewound, "p1"), "r4 p3 p2");
    assert_eq!(strays(rewound, "p1 r4"), "p3 p2");
    assert_eq!(newest(rewound), "r4? p3?");
    // Once the pool has caught up, both orders agree on the newest backup; the strays remain known.
    let caught_up = format!("{rewound}\nr5 x 400 5 base=r4 after=r4");
    assert_eq!(
        (strays(&caught_up, "r4 r5"), newest(&caught_up)),
        ("p3 p2".to_owned(), "r5".to_owned())
    );
}

#[test]
fn clock_set_back_within_one_linked_line_is_not_ambiguous() {
    let table = "
        p1 x 10 5 after=-
        p2 x 20 6 base=p1 after=p1
        p3 x 30 2 base=p2 after=p2";
    assert_eq!(newest(table), "p3");
    assert_eq!(strays(table, "p3"), "");
    assert_eq!(newest("p1 - 10 5\np2 - 20 2"), "p1? p2?");
}

#[test]
fn delayed_copy_or_long_upload_is_not_another_time_line() {
    // i3 was exported, and a run that did not see it streamed i4; from i5 on both are known.
    let waited = "
        p1 x 10 1 after=-
        i3 x 30 3 base=p1 after=p1
        i4 x 40 4 base=p1 after=p1
        i5 x 50 5 base=i4 after=i4,i3";
    assert_eq!(
        (strays(waited, "i5"), newest(waited)),
        (String::new(), "i5".to_owned())
    );
    let (until_then, _) = waited.rsplit_once('\n').unwrap();
    assert_eq!(
        (strays(until_then, "p1 i3 i4"), newest(until_then)),
        (String::new(), "i4".to_owned())
    );
    // The full of day 2 was committed on day 4.
    let mut long = backups(
        "
        p1 x 10 1 after=-
        i3 x 30 3 base=p1 after=p1
        i4 x 40 4 base=i3 after=i3
        f2 x 20 2 after=i4
        i5 x 50 5 base=f2 after=f2",
    );
    long[3].1.made.finished_at = at(4);
    let facts: Vec<BackupFacts> = long.into_iter().map(|(_, facts)| facts).collect();
    assert_eq!(Timeline::new(&facts).strays(&sight("i5", &[])), []);
    assert_eq!(
        Timeline::new(&facts)
            .newest(&facts.iter().collect::<Vec<_>>())
            .unwrap()
            .unwrap()
            .id,
        facts[4].id
    );
    assert_eq!(
        Timeline::new(&facts[..4])
            .newest(&facts[..4].iter().collect::<Vec<_>>())
            .unwrap()
            .unwrap()
            .id,
        facts[2].id
    );
}

#[test]
fn link_to_a_deleted_backup_makes_no_stray() {
    // The chain between them was deleted completely; `!q4` is newer than both.
    let mut made = backups(
        "
        p1 y 10 1 after=-
        p2 y 20 2 after=!p0
        n5 x 50 5 after=!q4",
    );
    let gone = id_of("q4", BackupKind::Full, 4);
    made[2].1.made.previous = Some(vec![gone]);
    let facts: Vec<BackupFacts> = made.into_iter().map(|(_, facts)| facts).collect();
    assert_eq!(Timeline::new(&facts).strays(&sight("n5", &[])), []);
    assert_eq!(
        Timeline::new(&facts)
            .newest(&facts.iter().collect::<Vec<_>>())
            .unwrap()
            .unwrap()
            .id,
        facts[2].id
    );
}

#[test]
fn adopted_backup_is_no_stray_but_later_backups_of_its_host_are() {
    assert_eq!(strays_after(CLONED, "p2 a3 a5", "b6"), "");
    assert_eq!(strays_after(CLONED, "p2 a3 a5", "b4"), "b6");
    let merged = format!("{CLONED}\na7 x 70 7 after=a5,b6\nb8 y 80 8 after=b6\na9 x 90 9 after=a7");
    assert_eq!(strays_after(&merged, "a7 a9", "b4 b6"), "b8");
    assert_eq!(newest(&merged), "a9? b8?");
    let merged = format!("{CLONED}\na7 x 70 7 after=a5,b6");
    assert_eq!(
        (strays(&merged, "a7"), newest(&merged)),
        (String::new(), "a7".to_owned())
    );
}

#[test]
fn backup_of_another_origin_is_not_a_stray() {
    let mut made = backups(CLONED);
    for (name, facts) in &mut made {
        if name.starts_with('b') {
            facts.origin.dataset_guid = Guid(9);
        }
    }
    let facts: Vec<BackupFacts> = made.into_iter().map(|(_, facts)| facts).collect();
    assert_eq!(Timeline::new(&facts).strays(&sight("a3 a5", &[])), []);
}

#[test]
fn backup_links_to_the_newest_known_and_to_adopted_backups() {
    let made = backups(CLONED);
    let facts: Vec<BackupFacts> = made.iter().map(|(_, facts)| facts.clone()).collect();
    let names = |known: &str, adopted: &[BackupId], own: &str| {
        let own = id_of(own, BackupKind::Full, 0).snapshot_guid();
        let previous = previous_of(&facts, &sight(known, adopted), own);
        previous
            .iter()
            .map(|id| name_of(id.snapshot_guid()))
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(names("p1 p2 a3 a5", &[], "n7"), "a5");
    assert_eq!(names("p2", &[], "n7"), "p2");
    assert_eq!(names("", &[], "n7"), "");
    assert_eq!(names("a5", &[facts[5].id.clone()], "n7"), "b6 a5");
    assert_eq!(
        names("p2 a3 a5", &[], "a5"),
        "a3",
        "a second attempt at the same snapshot"
    );
}
