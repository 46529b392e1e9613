//! The decision by table: the pool, the stores, the request, and the result.

#[cfg(test)]
mod levels;

use super::*;
use crate::manifest::Origin;
use crate::model::Digest;
use crate::plan::bookmarks::{BookmarkNeeds, spent_bookmarks};
use crate::plan::fixtures::{self, at, snapshot};
use RequestedKind::{Full as F, Incremental as I, Lifecycle as L};

const RULES: LifecycleRules = LifecycleRules {
    incrementals_percent_max: 50,
    full_age_max: None,
    incrementals_max: None,
    auto_full_bytes_max: 1000,
    levels: None,
};

static NO_BASES: BTreeSet<Guid> = BTreeSet::new();

fn bookmark(n: u64) -> Bookmark {
    fixtures::bookmark(&format!("zfs-backup_{}", Guid(n)), n)
}

fn id(n: u64, kind: BackupKind, nonce: u64) -> BackupId {
    BackupId::new(at(n), kind, Guid(n), nonce)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Makes a complete full of 100 stored bytes.
fn full(n: u64) -> BackupFacts {
    let id = id(n, BackupKind::Full, n);
    BackupFacts {
        manifest_blake3: Digest::of(id.as_str().as_bytes()),
        snapshot: SnapshotRef {
            guid: Guid(n),
            createtxg: n,
            created_at: at(n),
        },
        base: None,
        full_id: id.clone(),
        id,
        position: 0,
        origin: Origin {
            dataset_guid: Guid(1),
            pool_guid: Guid(2),
        },
        made: Default::default(),
        requested: names(&["compressed", "large-blocks"]),
        recipients: names(&["age1a"]),
        stream_bytes: 90,
        stored_bytes: 100,
        flaw: None,
    }
}

/// Makes a complete incremental of 10 stored bytes.
fn incr(n: u64, base: &BackupFacts) -> BackupFacts {
    let id = id(n, BackupKind::Incr, n);
    let (full_id, position) = (base.full_id.clone(), base.position + 1);
    BackupFacts {
        id,
        base: Some(base.id.clone()),
        full_id,
        position,
        stored_bytes: 10,
        ..full(n)
    }
}

/// Makes the full of `first` and incrementals of all snapshots after it up to `last`.
fn chain(first: u64, last: u64) -> Vec<BackupFacts> {
    let mut chain = vec![full(first)];
    for n in first + 1..=last {
        let next = incr(n, chain.last().unwrap());
        chain.push(next);
    }
    chain
}

fn flawed(mut backup: BackupFacts) -> BackupFacts {
    backup.flaw = Some("chunk 3 is missing".into());
    backup
}

fn with(mut backup: BackupFacts, change: impl FnOnce(&mut BackupFacts)) -> BackupFacts {
    change(&mut backup);
    backup
}

fn all_with(backups: Vec<BackupFacts>, change: impl Fn(&mut BackupFacts)) -> Vec<BackupFacts> {
    backups
        .into_iter()
        .map(|backup| with(backup, &change))
        .collect()
}

/// A row of the table. Absent fields are as in [`Case::default`].
#[derive(Clone)]
struct Case {
    snapshots: Vec<u64>,
    /// The newest snapshot that may be sent.
    candidate: Option<u64>,
    bookmarks: Vec<u64>,
    target: Vec<BackupFacts>,
    remote: Vec<BackupFacts>,
    unseen: Option<&'static str>,
    flags: Vec<String>,
    recipients: Vec<String>,
    estimate: Option<u64>,
    now: u64,
    rules: LifecycleRules,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            snapshots: vec![1, 2, 3],
            candidate: Some(3),
            bookmarks: Vec::new(),
            target: Vec::new(),
            remote: Vec::new(),
            unseen: None,
            flags: names(&["compressed", "large-blocks"]),
            recipients: names(&["age1a"]),
            estimate: Some(500),
            now: 4,
            rules: RULES,
        }
    }
}

impl Case {
    /// Returns the plan in a few letters: `full first`, `incr 3 from @s1 on 1`, `have 2`, `no
    /// common`.
    fn decide(&self, requested: RequestedKind) -> String {
        let candidate = self.candidate.map(snapshot);
        let snapshots: Vec<_> = self.snapshots.iter().map(|n| snapshot(*n)).collect();
        let bookmarks: Vec<_> = self.bookmarks.iter().map(|n| bookmark(*n)).collect();
        let facts = SendFacts {
            snapshot: candidate.as_ref(),
            redacted_dataset: None,
            snapshots: &snapshots,
            bookmarks: &bookmarks,
            unfit_bases: &NO_BASES,
            target: &self.target,
            remote: &self.remote,
            unseen: self.unseen,
            flags: &self.flags,
            recipients: &self.recipients,
            full_estimate_bytes: self.estimate,
            now: at(self.now),
        };
        match plan_send(&facts, &self.rules, requested) {
            Ok(SendPlan::Full {
                snapshot,
                why,
                level,
            }) => {
                assert_eq!(Some(snapshot), candidate);
                assert_eq!(level, self.rules.levels.map(|it| it.keep.longest()));
                format!("full {}", reason(&why))
            }
            Ok(SendPlan::Unchanged { .. }) => unreachable!("plan_send never finds this"),
            Ok(SendPlan::Incremental {
                snapshot,
                base,
                backup,
                level,
            }) => {
                let base = match base {
                    SendBase::Snapshot(name) => format!("@{}", name.short()),
                    SendBase::Bookmark(name) => {
                        format!("#{}", name.short().trim_start_matches("zfs-backup_"))
                    }
                };
                let kind = backup.kind().as_str();
                let word = level.map_or_else(String::new, |level| format!("{level} "));
                format!(
                    "{word}incr {} from {base} on {kind} {}",
                    snapshot.guid.0, backup.snapshot.guid.0
                )
            }
            Ok(SendPlan::UpToDate { id }) => {
                format!("have {} {}", id.kind().as_str(), id.snapshot_guid().0)
            }
            Err(SendConflict::NoSnapshot { others }) => format!("no snapshot, {others} others"),
            Err(SendConflict::NoCommonBase(_)) => "no common base".into(),
            Err(SendConflict::TooLarge { .. }) => "too large".into(),
            Err(SendConflict::OnlyFull(why)) => format!("only full {}", reason(&why)),
            Err(SendConflict::TooManyChunks(_)) => "too many chunks".to_owned(),
            Err(SendConflict::Redacted { name }) => format!("redacted {name}"),
        }
    }
}

fn reason(why: &FullReason) -> &'static str {
    match why {
        FullReason::Requested => "requested",
        FullReason::First => "first",
        FullReason::BaseLost(_) => "lost",
        FullReason::Flags { .. } => "flags",
        FullReason::Recipients => "recipients",
        FullReason::Length { .. } => "length",
        FullReason::Age { .. } => "age",
        FullReason::Share { .. } => "share",
        FullReason::FirstOf { .. } => "due",
        FullReason::NoBaseOf { .. } => "no base",
    }
}

#[track_caller]
fn check(rows: Vec<(&str, Case, RequestedKind, &str)>) {
    for (what, case, requested, expected) in rows {
        assert_eq!(case.decide(requested), expected, "{what}, {requested:?}");
    }
}

fn stored(target: Vec<BackupFacts>) -> Case {
    Case {
        target,
        ..Case::default()
    }
}

#[test]
fn missing_and_already_stored_snapshots_by_table() {
    let none = || Case {
        candidate: None,
        ..Case::default()
    };
    let empty = || Case {
        candidate: None,
        snapshots: vec![],
        ..Case::default()
    };
    let other_flags = |backup: &mut BackupFacts| backup.requested = names(&["large-blocks"]);
    check(vec![
        ("no snapshot at all", empty(), L, "no snapshot, 0 others"),
        (
            "only snapshots of others",
            none(),
            L,
            "no snapshot, 3 others",
        ),
        (
            "only snapshots of others",
            none(),
            F,
            "no snapshot, 3 others",
        ),
        (
            "only snapshots of others",
            none(),
            I,
            "no snapshot, 3 others",
        ),
        ("an empty store", stored(vec![]), L, "full first"),
        ("an empty store", stored(vec![]), F, "full requested"),
        ("an empty store", stored(vec![]), I, "no common base"),
        ("stored as full", stored(vec![full(3)]), L, "have full 3"),
        ("stored as full", stored(vec![full(3)]), F, "have full 3"),
        ("stored as full", stored(vec![full(3)]), I, "have full 3"),
        (
            "stored as incremental",
            stored(chain(1, 3)),
            L,
            "have incr 3",
        ),
        (
            "stored as incremental",
            stored(chain(1, 3)),
            I,
            "have incr 3",
        ),
        (
            "a full is wanted and an incremental is there",
            stored(chain(1, 3)),
            F,
            "full requested",
        ),
        (
            "a full is wanted and it is there with other flags",
            stored(vec![with(full(3), other_flags)]),
            F,
            "full requested",
        ),
        (
            "there with other flags, nobody asks",
            stored(vec![with(full(3), other_flags)]),
            L,
            "have full 3",
        ),
        (
            "a full is wanted and the one there is not whole",
            stored(vec![flawed(full(3))]),
            F,
            "full requested",
        ),
        (
            "the newest is not whole",
            stored(vec![full(2), flawed(full(3))]),
            L,
            "incr 3 from @s2 on full 2",
        ),
        (
            "older is stored",
            stored(vec![full(1)]),
            F,
            "full requested",
        ),
    ]);
}

#[test]
fn base_is_the_newest_complete_backup_whose_snapshot_guid_is_in_the_pool() {
    let gone = |snapshots: Vec<u64>, bookmarks: Vec<u64>, target| Case {
        snapshots,
        bookmarks,
        target,
        ..Case::default()
    };
    let renewed = with(full(9), |backup| backup.snapshot.guid = Guid(77));
    let other_origin = with(full(2), |backup| backup.origin.dataset_guid = Guid(99));
    let broken = |n: usize| {
        let mut chain = chain(1, 2);
        chain[n] = flawed(chain[n].clone());
        chain
    };
    let both = [chain(1, 2), vec![full(2)]].concat();
    check(vec![
        (
            "a full",
            stored(vec![full(1)]),
            L,
            "incr 3 from @s1 on full 1",
        ),
        (
            "a full",
            stored(vec![full(1)]),
            I,
            "incr 3 from @s1 on full 1",
        ),
        (
            "a chain",
            stored(chain(1, 2)),
            L,
            "incr 3 from @s2 on incr 2",
        ),
        (
            "two fulls",
            stored(vec![full(1), full(2)]),
            L,
            "incr 3 from @s2 on full 2",
        ),
        (
            "a full and an incremental of one snapshot",
            stored(both),
            L,
            "incr 3 from @s2 on full 2",
        ),
        (
            "only a bookmark",
            gone(vec![3], vec![1], vec![full(1)]),
            L,
            "incr 3 from #0000000000000001 on full 1",
        ),
        (
            "snapshot and bookmark",
            gone(vec![1, 3], vec![1], vec![full(1)]),
            L,
            "incr 3 from @s1 on full 1",
        ),
        (
            "a newer bookmark",
            gone(vec![1, 3], vec![2], chain(1, 2)),
            L,
            "incr 3 from #0000000000000002 on incr 2",
        ),
        (
            "newest is gone here",
            gone(vec![1, 3], vec![], chain(1, 2)),
            L,
            "incr 3 from @s1 on full 1",
        ),
        (
            "rolled back: stored 2 is no more",
            gone(vec![1, 5], vec![], chain(1, 2)),
            L,
            "incr 3 from @s1 on full 1",
        ),
        (
            "nothing here",
            gone(vec![3], vec![], chain(1, 2)),
            L,
            "full lost",
        ),
        (
            "nothing here",
            gone(vec![3], vec![], chain(1, 2)),
            I,
            "no common base",
        ),
        (
            "nothing here",
            gone(vec![3], vec![], chain(1, 2)),
            F,
            "full requested",
        ),
        (
            "same name, another guid",
            gone(vec![3], vec![], vec![renewed]),
            I,
            "no common base",
        ),
        (
            "another origin, the snapshot is here",
            stored(vec![other_origin]),
            L,
            "incr 3 from @s2 on full 2",
        ),
        (
            "the incremental is not whole",
            stored(broken(1)),
            L,
            "incr 3 from @s1 on full 1",
        ),
        (
            "nothing is whole",
            stored(vec![flawed(full(1)), flawed(full(2))]),
            L,
            "full lost",
        ),
        (
            "nothing is whole",
            stored(vec![flawed(full(1))]),
            I,
            "no common base",
        ),
        (
            "stored is newer than what may be sent",
            Case {
                candidate: Some(1),
                ..stored(vec![full(2)])
            },
            L,
            "full lost",
        ),
        (
            "stored is newer than what may be sent",
            Case {
                candidate: Some(1),
                ..stored(vec![full(2)])
            },
            I,
            "no common base",
        ),
    ]);
}

#[test]
fn own_bookmark_is_preferred_and_a_foreign_one_accepted_as_base() {
    let sent = snapshot(3);
    let decide = |bookmarks: &[Bookmark]| {
        let (flags, recipients) = (Case::default().flags, Case::default().recipients);
        let facts = SendFacts {
            snapshot: Some(&sent),
            redacted_dataset: None,
            snapshots: std::slice::from_ref(&sent),
            bookmarks,
            unfit_bases: &NO_BASES,
            target: &[full(1)],
            remote: &[],
            unseen: None,
            flags: &flags,
            recipients: &recipients,
            full_estimate_bytes: None,
            now: at(4),
        };
        match plan_send(&facts, &RULES, L) {
            Ok(SendPlan::Incremental {
                base: SendBase::Bookmark(name),
                ..
            }) => name.short().to_owned(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        decide(&[fixtures::bookmark("a", 1), bookmark(1)]),
        "zfs-backup_0000000000000001"
    );
    // A bookmark with a redaction list does not count.
    let redacted = Bookmark {
        redacted: true,
        ..bookmark(1)
    };
    assert_eq!(decide(&[redacted, fixtures::bookmark("a", 1)]), "a");
    assert_eq!(
        decide(&[fixtures::bookmark("zfs-backup_0000000000000002", 1)]),
        "zfs-backup_0000000000000002"
    );
}

#[test]
fn changed_flags_recipients_or_lifecycle_limits_end_a_chain() {
    let rules = |change: fn(&mut LifecycleRules)| {
        let mut case = stored(chain(1, 2));
        change(&mut case.rules);
        case
    };
    let two_days =
        |rules: &mut LifecycleRules| rules.full_age_max = Some(SignedDuration::from_hours(48));
    let recipients = |count: usize| Case {
        recipients: names(&["age1a", "age1b"][..count]),
        ..stored(chain(1, 2))
    };
    let reordered = Case {
        flags: names(&["large-blocks", "compressed"]),
        ..stored(chain(1, 2))
    };
    let raw = Case {
        flags: names(&["compressed", "large-blocks", "raw"]),
        ..stored(chain(1, 2))
    };
    let raw_full = Case {
        flags: raw.flags.clone(),
        ..stored(
            [
                chain(1, 2),
                vec![with(full(2), |b| b.requested = raw.flags.clone())],
            ]
            .concat(),
        )
    };
    let share = |bytes: u64| {
        stored(vec![
            full(1),
            with(incr(2, &full(1)), |backup| backup.stored_bytes = bytes),
        ])
    };
    let many = Case {
        target: all_with(chain(1, 2), |backup| backup.stored_bytes = 0),
        ..Case::default()
    };
    check(vec![
        ("other flags", raw.clone(), L, "full flags"),
        ("other flags", raw, I, "only full flags"),
        (
            "a full with the flags of now",
            raw_full,
            L,
            "incr 3 from @s2 on full 2",
        ),
        (
            "flags in another order",
            reordered,
            L,
            "incr 3 from @s2 on incr 2",
        ),
        ("one more recipient", recipients(2), L, "full recipients"),
        (
            "one more recipient",
            recipients(2),
            I,
            "only full recipients",
        ),
        (
            "no recipient of the chain",
            recipients(0),
            L,
            "full recipients",
        ),
        (
            "as many incrementals as allowed",
            rules(|rules| rules.incrementals_max = Some(1)),
            L,
            "full length",
        ),
        (
            "as many incrementals as allowed",
            rules(|rules| rules.incrementals_max = Some(1)),
            I,
            "only full length",
        ),
        (
            "one more is allowed",
            rules(|rules| rules.incrementals_max = Some(2)),
            L,
            "incr 3 from @s2 on incr 2",
        ),
        (
            "none is allowed",
            rules(|rules| rules.incrementals_max = Some(0)),
            L,
            "full length",
        ),
        (
            "the full is as old as allowed",
            Case {
                now: 3,
                ..rules(two_days)
            },
            L,
            "full age",
        ),
        (
            "the full is younger",
            Case {
                now: 2,
                ..rules(two_days)
            },
            L,
            "incr 3 from @s2 on incr 2",
        ),
        (
            "the full is too old and an incremental is wanted",
            Case {
                now: 9,
                ..rules(two_days)
            },
            I,
            "incr 3 from @s2 on incr 2",
        ),
        (
            "the clock is behind the full",
            Case {
                now: 0,
                ..rules(two_days)
            },
            L,
            "incr 3 from @s2 on incr 2",
        ),
        ("just the share", share(50), L, "incr 3 from @s2 on incr 2"),
        ("over the share", share(51), L, "full share"),
        (
            "over the share and an incremental is wanted",
            share(51),
            I,
            "incr 3 from @s2 on incr 2",
        ),
        ("a full of nothing", many, L, "incr 3 from @s2 on incr 2"),
        (
            "a lifecycle full has no limit of size",
            Case {
                estimate: Some(u64::MAX),
                ..share(51)
            },
            L,
            "full share",
        ),
        (
            "nor has one for other flags",
            Case {
                estimate: None,
                flags: vec![],
                ..share(1)
            },
            L,
            "full flags",
        ),
    ]);
}

#[test]
fn ended_chain_is_continued_from_a_newer_full() {
    // The full of snapshot 3 took many nights; meanwhile 4 was stored on the chain before it.
    let mut target = chain(1, 2);
    target.push(incr(4, &target[1]));
    let case = |target: &[BackupFacts]| Case {
        snapshots: vec![1, 2, 3, 4, 5],
        candidate: Some(5),
        rules: LifecycleRules {
            incrementals_max: Some(2),
            ..RULES
        },
        ..stored(target.to_vec())
    };
    assert_eq!(case(&target).decide(L), "full length");
    target.push(full(3));
    check(vec![
        ("nobody asks", case(&target), L, "incr 5 from @s3 on full 3"),
        (
            "an incremental is wanted",
            case(&target),
            I,
            "incr 5 from @s3 on full 3",
        ),
    ]);
    target[3].origin.pool_guid = Guid(9);
    assert_eq!(case(&target).decide(L), "full length", "of another origin");
}

/// The facts of a case that is stored in the target, where the newest of these snapshots is sent.
fn facts_of<'a>(case: &'a Case, snapshots: &'a [Snapshot]) -> SendFacts<'a> {
    SendFacts {
        snapshot: snapshots.last(),
        redacted_dataset: None,
        snapshots,
        bookmarks: &[],
        unfit_bases: &NO_BASES,
        target: &case.target,
        remote: &[],
        unseen: None,
        flags: &case.flags,
        recipients: &case.recipients,
        full_estimate_bytes: None,
        now: at(4),
    }
}

#[test]
fn full_caused_by_the_incremental_share_reports_its_percent() {
    let first = with(full(1), |backup| backup.stored_bytes = 200);
    let second = with(incr(2, &first), |backup| backup.stored_bytes = 102);
    let case = stored(vec![first, second]);
    let snapshots = [snapshot(1), snapshot(2), snapshot(3)];
    let over = FullReason::Share {
        percent: 51,
        limit: 50,
    };
    assert_eq!(
        plan_send(&facts_of(&case, &snapshots), &RULES, L),
        Ok(SendPlan::Full {
            snapshot: snapshot(3),
            why: over,
            level: None,
        })
    );
}

#[test]
fn a_snapshot_of_the_same_transaction_group_is_no_base() {
    let case = stored(vec![full(2)]);
    let mut snapshots = [snapshot(2), snapshot(3)];
    snapshots[0].createtxg = 3;
    assert!(matches!(
        plan_send(&facts_of(&case, &snapshots), &RULES, I),
        Err(SendConflict::NoCommonBase(_))
    ));
}

#[test]
fn lost_base_causes_a_full_only_with_a_known_size_below_the_limit() {
    let lost = |estimate| Case {
        snapshots: vec![3],
        estimate,
        ..stored(vec![full(1)])
    };
    let unseen = |estimate| Case {
        unseen: Some("the remote is away"),
        estimate,
        ..Case::default()
    };
    check(vec![
        ("just the limit", lost(Some(1000)), L, "full lost"),
        ("over the limit", lost(Some(1001)), L, "too large"),
        ("not known", lost(None), L, "too large"),
        (
            "over the limit and asked for",
            lost(Some(1001)),
            F,
            "full requested",
        ),
        (
            "over the limit, incremental",
            lost(Some(1001)),
            I,
            "no common base",
        ),
        (
            "the first has no limit",
            Case {
                estimate: Some(u64::MAX),
                ..Case::default()
            },
            L,
            "full first",
        ),
        (
            "the first, not known",
            Case {
                estimate: None,
                ..Case::default()
            },
            L,
            "full first",
        ),
        (
            "what cannot be seen is not empty",
            unseen(Some(1)),
            L,
            "full lost",
        ),
        (
            "what cannot be seen is not empty",
            unseen(Some(1001)),
            L,
            "too large",
        ),
        (
            "nothing is automatic",
            Case {
                rules: LifecycleRules {
                    auto_full_bytes_max: 0,
                    ..RULES
                },
                ..lost(Some(1))
            },
            L,
            "too large",
        ),
    ]);
}

#[test]
fn base_of_an_export_to_the_intermediate_directory_may_be_in_the_remote() {
    let with_remote = |target, remote| Case {
        target,
        remote,
        ..Case::default()
    };
    let remote = chain(1, 2);
    check(vec![
        (
            "only in the remote",
            with_remote(vec![], remote.clone()),
            L,
            "incr 3 from @s2 on incr 2",
        ),
        (
            "stored in the remote already",
            with_remote(vec![], chain(1, 3)),
            L,
            "have incr 3",
        ),
        (
            "a full is wanted here",
            with_remote(vec![], vec![full(3)]),
            F,
            "full requested",
        ),
        (
            "newer here",
            with_remote(chain(1, 2), vec![full(1)]),
            L,
            "incr 3 from @s2 on incr 2",
        ),
        (
            "newer there",
            with_remote(vec![full(1)], remote.clone()),
            L,
            "incr 3 from @s2 on incr 2",
        ),
        (
            "the same in both counts once",
            Case {
                rules: LifecycleRules {
                    incrementals_percent_max: 10,
                    ..RULES
                },
                ..with_remote(remote.clone(), remote)
            },
            L,
            "incr 3 from @s2 on incr 2",
        ),
    ]);
}

#[test]
fn send_conflict_lists_the_state_of_store_and_pool() {
    let loss = BaseLoss {
        newest: Some((full(2).snapshot, None)),
        here: LocalBase::Neither,
        unseen: None,
    };
    let too_large = SendConflict::TooLarge {
        loss: Box::new(loss),
        estimate_bytes: Some(10 << 40),
        limit_bytes: 100 << 30,
    };
    insta::assert_snapshot!(too_large.to_string(), @r"
    no incremental possible, and a full would send 10.0T, more than auto_full_max (100G). Nothing sent.
      store's newest: 1970-01-03 guid 0000000000000002  here: neither snapshot nor bookmark
    ");
    let too_new = BaseLoss {
        newest: Some((full(2).snapshot, None)),
        here: LocalBase::Snapshot,
        unseen: None,
    };
    insta::assert_snapshot!(too_new.to_string(), @"store's newest: 1970-01-03 guid 0000000000000002  here: its snapshot, and not older than what would be sent");
    let damaged = BaseLoss {
        newest: Some((full(2).snapshot, Some("chunk 3 is missing".into()))),
        here: LocalBase::Bookmark,
        unseen: Some("the remote is away".into()),
    };
    insta::assert_snapshot!(SendConflict::NoCommonBase(Box::new(damaged)).to_string(), @r"
    no incremental possible. Nothing sent.
      store's newest: 1970-01-03 guid 0000000000000002  here: a bookmark of it
      but it is not usable: chunk 3 is missing
      and there may be more: the remote is away
    ");
    let case = stored(vec![full(1)]);
    let (only, redacted) = (
        snapshot(3),
        [Bookmark {
            redacted: true,
            ..bookmark(1)
        }],
    );
    let facts = SendFacts {
        snapshot: Some(&only),
        redacted_dataset: None,
        snapshots: std::slice::from_ref(&only),
        bookmarks: &redacted,
        unfit_bases: &NO_BASES,
        target: &case.target,
        remote: &[],
        unseen: None,
        flags: &case.flags,
        recipients: &case.recipients,
        full_estimate_bytes: None,
        now: at(4),
    };
    insta::assert_snapshot!(plan_send(&facts, &RULES, RequestedKind::Incremental).unwrap_err().to_string(), @r"
    no incremental possible. Nothing sent.
      store's newest: 1970-01-02 guid 0000000000000001  here: only a bookmark with a redaction list, from which no backup can start
    ");
    // A bookmark with a redaction list of something else says nothing of this backup.
    let other = [Bookmark {
        redacted: true,
        ..bookmark(2)
    }];
    let facts = SendFacts {
        bookmarks: &other,
        ..facts
    };
    let Err(SendConflict::NoCommonBase(loss)) = plan_send(&facts, &RULES, I) else {
        panic!("a base")
    };
    assert_eq!(loss.here, LocalBase::Neither);
    let facts = SendFacts {
        bookmarks: &[],
        unfit_bases: &BTreeSet::from([Guid(1)]),
        ..facts
    };
    insta::assert_snapshot!(plan_send(&facts, &RULES, RequestedKind::Incremental).unwrap_err().to_string(), @r"
    no incremental possible. Nothing sent.
      store's newest: 1970-01-02 guid 0000000000000001  here: only without an IV-set guid (a fault of OpenZFS up to 2.1.5): ZFS would not receive a raw incremental from it
    ");
    let flags = FullReason::Flags {
        chain: names(&["compressed"]),
        now: vec![],
    };
    insta::assert_snapshot!(SendConflict::OnlyFull(flags).to_string(), @"no incremental possible: the chain was sent with other flags: compressed; now none. Nothing sent.");
}

#[test]
fn only_own_bookmarks_that_nothing_needs_are_destroyed() {
    let spent = |bookmarks: &[Bookmark], needs: &BookmarkNeeds| -> Vec<String> {
        spent_bookmarks(bookmarks, needs)
            .iter()
            .map(|name| name.short().to_owned())
            .collect()
    };
    let ours = |numbers: &[u64]| numbers.iter().map(|n| bookmark(*n)).collect::<Vec<_>>();
    let name = |n: u64| format!("zfs-backup_{}", Guid(n));
    // The chains 1-2, 3-4 and 5-6.
    let store = [chain(1, 2), chain(3, 4), chain(5, 6)].concat();
    let needs = |stores: Vec<Vec<BackupFacts>>| BookmarkNeeds {
        stores,
        ..BookmarkNeeds::default()
    };
    let all = ours(&[1, 2, 3, 4, 5, 6]);
    assert_eq!(spent(&all, &needs(vec![store.clone()])), [name(1), name(2)]);
    // The other store still has the oldest chain among its newest two.
    assert_eq!(
        spent(&all, &needs(vec![store.clone(), chain(1, 2)])),
        [""; 0]
    );
    // An unusable chain does not count as one of the two.
    let damaged = [
        chain(1, 2),
        chain(3, 4),
        vec![flawed(full(5)), flawed(incr(6, &full(5)))],
    ]
    .concat();
    assert_eq!(spent(&all, &needs(vec![damaged])), [name(5), name(6)]);
    let unfinished = BookmarkNeeds {
        unfinished: [Guid(1)].into(),
        ..needs(vec![store.clone()])
    };
    assert_eq!(spent(&all, &unfinished), [name(2)]);
    // Bookmarks of another configuration, and bookmarks made by hand.
    let foreign = [
        bookmark(7),
        fixtures::bookmark("mine", 1),
        fixtures::bookmark("zfs-backup_0000000000000001x", 1),
    ];
    assert_eq!(spent(&foreign, &needs(vec![store.clone()])), [""; 0]);
    assert_eq!(
        spent(
            &[fixtures::bookmark(&name(2), 1)],
            &needs(vec![store.clone()])
        ),
        [""; 0]
    );
    let pruned = BookmarkNeeds {
        pruned: [Guid(7)].into(),
        ..needs(vec![store])
    };
    assert_eq!(spent(&foreign, &pruned), [name(7)]);
}

#[test]
fn redacted_data_is_a_conflict_that_names_it() {
    let case = stored(vec![full(1)]);
    let whole = snapshot(3);
    let redacted = Snapshot {
        redacted: true,
        ..snapshot(3)
    };
    let dataset = redacted.name.dataset().clone();
    let facts = facts_of(&case, std::slice::from_ref(&redacted));
    let plan = plan_send(&facts, &RULES, L);
    let name = redacted.name.to_string();
    assert_eq!(plan, Err(SendConflict::Redacted { name }));
    let facts = SendFacts {
        redacted_dataset: Some(&dataset),
        ..facts_of(&case, std::slice::from_ref(&whole))
    };
    let plan = plan_send(&facts, &RULES, L);
    let name = dataset.to_string();
    assert_eq!(plan, Err(SendConflict::Redacted { name }));
}
