//! What no rule may delete, and what goes in which order.

use crate::facts::{Shelf, at, deleted, doubts, kept, label, labels, origin, reasons};
use std::collections::BTreeSet;
use zfs_backup::config::RetentionRules;
use zfs_backup::model::{BackupId, BackupKind, Guid};
use zfs_backup::plan::clock::ClockDoubt;
use zfs_backup::plan::prune::{
    Live, Lock, OtherPrune, Proof, PrunePlan, SecondaryBackups, SecondaryFacts, StartedFact,
    Unreadable, follower, waiting_follower,
};

fn last_chains(count: u32) -> RetentionRules {
    RetentionRules {
        last_chains: Some(count),
        ..Default::default()
    }
}

/// Three chains of three, a month apart; rules that keep the newest.
fn three_chains() -> (Shelf, Vec<Vec<BackupId>>) {
    let mut shelf = Shelf::new("2026-04-01");
    shelf.rules = last_chains(1);
    let mut chains = Vec::new();
    for month in 1..=3u64 {
        let full = shelf.full(month * 10, &format!("2026-0{month}-01"));
        let one = shelf.incr(month * 10 + 1, &format!("2026-0{month}-02"), &full);
        let two = shelf.incr(month * 10 + 2, &format!("2026-0{month}-03"), &one);
        chains.push(vec![full, one, two]);
    }
    (shelf, chains)
}

fn assert_nothing_goes(plan: &PrunePlan, doubt: &str, damage: bool) {
    assert!(
        plan.delete.is_empty() && plan.delete_leftovers.is_empty(),
        "{}",
        deleted(plan)
    );
    let found = plan
        .doubts
        .iter()
        .find(|found| found.to_string().contains(doubt));
    let found = found.unwrap_or_else(|| panic!("no {doubt:?} in {:?}", doubts(plan)));
    assert_eq!(found.is_damage(), damage, "{found}");
    assert!(
        !found
            .hint("prune-remote", &"tank/a".parse().unwrap())
            .is_empty()
    );
}

#[test]
fn descendants_are_deleted_before_their_ancestors() {
    let (shelf, _) = three_chains();
    let plan = shelf.plan();
    assert_eq!(doubts(&plan), [""; 0]);
    assert_eq!(deleted(&plan), "i12 i11 F10 i22 i21 F20");
    assert_eq!(kept(&plan), "F30 i31 i32");
    assert_eq!(plan.freed_bytes(), 6 * 110);
}

#[test]
fn kept_sets_have_all_their_ancestors() {
    let (mut shelf, chains) = three_chains();
    shelf.rules = RetentionRules {
        last_incrementals: Some(1),
        ..Default::default()
    };
    let plan = shelf.plan();
    assert_eq!(kept(&plan), "F30 i31 i32");
    assert_eq!(
        reasons(&plan, &chains[2][2]),
        "last-incremental 1/1; newest usable chain"
    );
    // Also those of what only a lock keeps.
    shelf.locks.insert(
        chains[0][1].clone(),
        Lock::Until("2027-01-01T00:00:00Z".to_owned()),
    );
    let plan = shelf.plan();
    assert_eq!(deleted(&plan), "i12 i22 i21 F20");
    assert_eq!(
        reasons(&plan, &chains[0][1]),
        "locked until 2027-01-01T00:00:00Z"
    );
    assert_eq!(
        reasons(&plan, &chains[0][0]),
        format!("{} builds on it", chains[0][1])
    );
}

#[test]
fn newest_usable_chain_is_kept_regardless_of_the_rules() {
    let (mut shelf, chains) = three_chains();
    shelf.rules = RetentionRules {
        full_ages: vec!["10y".parse().unwrap()],
        ..Default::default()
    };
    let plan = shelf.plan();
    assert_eq!(kept(&plan), "F10 F30 i31 i32");
    assert_eq!(reasons(&plan, &chains[2][1]), "newest usable chain");
    // The newest chain is no use: the one before stays, and it is not by a rule that the newest
    // goes.
    shelf.damage(&chains[2][0]);
    let plan = shelf.plan();
    assert_eq!(kept(&plan), "F10 F20 i21 i22");
    assert_eq!(deleted(&plan), "i12 i11 i32 i31 F30");
}

#[test]
fn a_backup_to_be_kept_that_is_not_usable_keeps_everything() {
    let (mut shelf, chains) = three_chains();
    shelf.rules = last_chains(1);
    shelf.damage(&chains[2][1]);
    assert_nothing_goes(
        &shelf.plan(),
        "must be kept but is not usable: chunk 3 is missing",
        true,
    );
    assert_eq!(kept(&shelf.plan()), "F10 i11 i12 F20 i21 i22 F30 i31 i32");
}

#[test]
fn no_backup_is_deleted_if_none_is_usable() {
    let (mut shelf, chains) = three_chains();
    shelf.rules = RetentionRules {
        within: Some("1h".parse().unwrap()),
        ..Default::default()
    };
    chains.iter().for_each(|chain| shelf.damage(&chain[0]));
    assert_nothing_goes(&shelf.plan(), "none of the 9 backups is usable", true);
}

#[test]
fn damaged_backups_outside_the_rules_are_deleted() {
    let (mut shelf, chains) = three_chains();
    shelf.damage(&chains[0][1]);
    assert_eq!(deleted(&shelf.plan()), "i12 i11 F10 i22 i21 F20");
}

#[test]
fn untrusted_manifest_stops_every_deletion() {
    let (mut shelf, _) = three_chains();
    let id = shelf.attempt(40, "2026-03-20", None);
    for damage in [true, false] {
        shelf.leftover(&id).untrusted = Some(Unreadable {
            reason: "its format is 2".to_owned(),
            damage,
        });
        assert_nothing_goes(
            &shelf.plan(),
            "is invalid or untrusted: its format is 2",
            damage,
        );
        // Also when a record would explain that it goes: it did not.
        let mut named = shelf.clone();
        named.record(&id, "2026-03-30");
        assert_nothing_goes(&named.plan(), "is invalid or untrusted", damage);
    }
}

#[test]
fn missing_manifest_with_a_signature_stops_deletion_unless_recorded_as_pruned() {
    let (mut shelf, _) = three_chains();
    let id = shelf.attempt(40, "2026-03-20", None);
    shelf.leftover(&id).was_committed = true;
    assert_nothing_goes(
        &shelf.plan(),
        "is missing, and its signature or a hidden version of it exists",
        true,
    );
    let mut held = shelf.clone();
    held.full(40, "2026-03-20");
    assert_nothing_goes(
        &held.plan(),
        "is missing, and its signature or a hidden version of it exists",
        false,
    );
    // The record of another attempt explains nothing.
    let mut with_other = shelf.clone();
    let other = with_other.attempt(41, "2026-03-20", None);
    with_other.record(&other, "2026-03-30");
    assert_nothing_goes(&with_other.plan(), "is missing, and its signature", true);
    // Objects that were put after the record keep the leftover, and the record still explains that
    // the manifest is gone.
    let mut put_again = shelf.clone();
    put_again.record(&id, "2026-03-19");
    let plan = put_again.plan();
    assert_eq!(doubts(&plan), [""; 0]);
    assert_eq!(labels(plan.left_alone.iter().map(|left| &left.id)), "F40");
    shelf.record(&id, "2026-03-30");
    let plan = shelf.plan();
    assert_eq!(doubts(&plan), [""; 0]);
    assert_eq!(plan.delete_leftovers[0].proof, Proof::PruneRecord);
}

#[test]
fn times_that_contradict_keep_everything() {
    let ahead = |now: &str, store: Option<&str>| {
        let (mut shelf, _) = three_chains();
        (shelf.now, shelf.store_clock) = (at(now), store.map(at));
        shelf.plan()
    };
    let last = "2026-03-03T12:00:00Z";
    assert_eq!(
        doubts(&ahead("2026-03-02T12:00:00Z", Some(last))),
        [""; 0],
        "a day is allowed"
    );
    assert_nothing_goes(
        &ahead("2026-03-02T11:59:59Z", Some(last)),
        "ahead of this host's clock",
        false,
    );
    assert_nothing_goes(
        &ahead("2026-04-01", Some("2026-03-02T11:59:59Z")),
        "ahead of the store's clock",
        false,
    );
    assert_eq!(
        doubts(&ahead("2026-04-01", None)),
        [""; 0],
        "a store that says no times"
    );

    let (mut shelf, chains) = three_chains();
    shelf.get_mut(&chains[1][1]).snapshot.created_at = at("2025-12-31");
    assert_nothing_goes(&shelf.plan(), "but a later time", false);
    // Of another pool it says nothing.
    for id in &chains[1] {
        shelf.get_mut(id).origin = origin(2);
    }
    shelf.get_mut(&chains[1][0]).snapshot.created_at = at("2025-12-30");
    shelf.origins.push(origin(2));
    assert_eq!(doubts(&shelf.plan()), [""; 0]);
    // Two snapshots of one second contradict nothing.
    let (mut shelf, _) = three_chains();
    shelf.full(33, "2026-03-03");
    assert_eq!(doubts(&shelf.plan()), [""; 0]);
    // One snapshot has one time.
    let (mut shelf, _) = three_chains();
    shelf.full(32, "2026-03-04");
    assert_nothing_goes(&shelf.plan(), "but a later time", false);
}

#[test]
fn another_origin_keeps_everything_until_it_is_adopted() {
    let (mut shelf, chains) = three_chains();
    chains[0]
        .iter()
        .for_each(|id| shelf.get_mut(id).origin = origin(2));
    assert_nothing_goes(
        &shelf.plan(),
        "another origin: dataset guid 0000000000000002",
        false,
    );
    assert_eq!(shelf.plan().doubts.len(), 1, "said once");
    shelf.origins.push(origin(2));
    assert_eq!(deleted(&shelf.plan()), "i12 i11 F10 i22 i21 F20");
    // Only backups of another origin: a pool that was rebuilt, before its first backup.
    shelf.origins = vec![origin(3)];
    assert_eq!(shelf.plan().doubts.len(), 2);
    // An unfinished upload of another origin is two hosts too.
    let (mut shelf, _) = three_chains();
    let id = shelf.attempt(40, "2026-03-20", None);
    shelf.leftover(&id).started = StartedFact::Signed {
        base: None,
        origin: origin(2),
    };
    assert_nothing_goes(&shelf.plan(), "another origin", false);
    // The same dataset guid in another pool: a mirror that was split.
    let (mut shelf, chains) = three_chains();
    shelf.get_mut(&chains[0][0]).origin.pool_guid = zfs_backup::model::Guid(5);
    assert_nothing_goes(&shelf.plan(), "in pool guid 0000000000000005", false);
}

#[test]
fn unfinished_upload_of_any_host_keeps_the_chain_of_its_base() {
    let (mut shelf, chains) = three_chains();
    let id = shelf.attempt(40, "2020-01-01", Some(&chains[0][1]));
    let plan = shelf.plan();
    assert_eq!(deleted(&plan), "i22 i21 F20");
    assert_eq!(
        reasons(&plan, &chains[0][2]),
        format!("the unfinished upload {id} builds on its chain")
    );
    assert_eq!(labels(plan.left_alone.iter().map(|left| &left.id)), "i40");
    assert_eq!(
        plan.left_alone[0].why,
        "an unfinished upload; no proof that it was abandoned"
    );
    // Once it is proved to be over it pins nothing, and goes.
    shelf.never_committing.insert(id.clone());
    let plan = shelf.plan();
    assert_eq!(deleted(&plan), "i12 i11 F10 i22 i21 F20");
    assert_eq!(plan.delete_leftovers[0].id, id);
}

#[test]
fn unfinished_upload_keeps_twins_of_its_base() {
    let (mut shelf, chains) = three_chains();
    // The base lies in another store; this store has backups of the same snapshot.
    let elsewhere = |txg: u64, kind| BackupId::new(at("2026-01-01"), kind, Guid(txg), 0x99);
    let id = shelf.attempt(40, "2026-03-20", Some(&elsewhere(12, BackupKind::Incr)));
    assert_eq!(deleted(&shelf.plan()), "i22 i21 F20");
    assert_eq!(
        follower(&shelf.facts, &shelf.leftovers, &chains[0][2]),
        Some(&id)
    );
    // An attempt in the intermediate directory pins what it may build on here.
    let mut waiting = shelf.clone();
    waiting.waiting_attempts = std::mem::take(&mut waiting.leftovers);
    assert_eq!(deleted(&waiting.plan()), "i22 i21 F20");
    // Of another kind it is no twin.
    let base = Some(elsewhere(12, BackupKind::Full));
    shelf.leftover(&id).started = StartedFact::Signed {
        base,
        origin: origin(1),
    };
    assert_eq!(deleted(&shelf.plan()), "i12 i11 F10 i22 i21 F20");
    assert_eq!(
        follower(&shelf.facts, &shelf.leftovers, &chains[0][2]),
        None
    );
}

#[test]
fn doubtful_clock_stops_deletion_and_is_reported_only_if_needed() {
    let (mut shelf, _) = three_chains();
    shelf.clock = Some(ClockDoubt::Jumped {
        now: at("2040-04-01"),
        expected: at("2026-04-01"),
    });
    assert_nothing_goes(
        &shelf.plan(),
        "ahead of what it was in an earlier run",
        false,
    );
    assert_eq!(kept(&shelf.plan()), "F10 i11 i12 F20 i21 i22 F30 i31 i32");
    shelf.rules = last_chains(3);
    assert_eq!(doubts(&shelf.plan()), [""; 0]);
    // Leftovers of an attempt are deleted by age too.
    let id = shelf.attempt(40, "2026-01-01", None);
    shelf.never_committing.insert(id);
    assert_nothing_goes(&shelf.plan(), "ahead of what it was", false);
}

#[test]
fn prune_by_another_host_stops_deletion_and_is_reported_only_if_needed() {
    let (mut shelf, chains) = three_chains();
    shelf.other_prune = Some(OtherPrune {
        id: chains[0][0].clone(),
        at: at("2026-03-31"),
        record: "t/@prune/1.json".to_owned(),
        is_in_future: false,
        until: at("2026-04-02"),
    });
    assert_nothing_goes(&shelf.plan(), "another host is pruning here", false);
    let hint = shelf.plan().doubts[0].hint("prune-remote", &"tank/a".parse().unwrap());
    assert!(
        hint.contains("a crashed prune counts for 48 hours"),
        "{hint}"
    );
    shelf.rules = last_chains(3);
    assert_eq!(doubts(&shelf.plan()), [""; 0]);
    let id = shelf.attempt(40, "2026-01-01", None);
    shelf.never_committing.insert(id);
    assert_nothing_goes(&shelf.plan(), "another host is pruning here", false);
}

/// A full and an incremental in the remote, and in the intermediate directory what follows from the
/// incremental.
fn waiting() -> (Shelf, Shelf, BackupId, BackupId) {
    let mut remote = Shelf::new("2026-04-01");
    let full = remote.full(1, "2026-01-01");
    let base = remote.incr(2, "2026-01-02", &full);
    let mut here = remote.clone();
    let waits = here.incr(3, "2026-01-03", &base);
    here.facts.retain(|backup| backup.id == waits);
    (remote, here, base, waits)
}

fn found_waiting(here: &Shelf, remote: &Shelf, id: &BackupId) -> Option<BackupId> {
    let waiting = SecondaryBackups {
        facts: &here.facts,
        leftovers: &here.leftovers,
    };
    waiting_follower(waiting, &remote.facts, &remote.pruned, id).cloned()
}

#[test]
fn uncopied_backup_needs_its_base_in_the_remote_if_no_other_replaces_it() {
    let (remote, here, base, waits) = waiting();
    let full = remote.facts[0].id.clone();
    assert_eq!(found_waiting(&here, &remote, &base), Some(waits.clone()));
    assert_eq!(found_waiting(&here, &remote, &full), None);
    // The remote lacks the base, or has it with a hole.
    let mut lacking = remote.clone();
    lacking.facts.pop();
    assert_eq!(found_waiting(&here, &lacking, &base), None);
    let mut damaged = remote.clone();
    damaged.damage(&base);
    assert_eq!(found_waiting(&here, &damaged, &base), None);
    // A twin serves too, and alone it is needed.
    let mut twin = remote.facts[1].clone();
    twin.id = BackupId::new(twin.snapshot.created_at, BackupKind::Incr, Guid(2), 0xffff);
    let mut two = remote.clone();
    two.facts.push(twin.clone());
    assert_eq!(found_waiting(&here, &two, &base), None);
    two.facts.retain(|backup| backup.id != base);
    assert_eq!(found_waiting(&here, &two, &twin.id), Some(waits.clone()));
    // The intermediate directory has the base too.
    let mut whole = here.clone();
    whole.facts.push(remote.facts[1].clone());
    assert_eq!(found_waiting(&whole, &remote, &base), None);
    // The backup is in the remote already.
    let mut copied = remote.clone();
    copied.facts.push(here.facts[0].clone());
    assert_eq!(found_waiting(&here, &copied, &base), None);
}

#[test]
fn unfinished_export_needs_its_base_in_the_remote() {
    let (remote, mut here, base, _) = waiting();
    here.facts.clear();
    let full = here.attempt(39, "2026-03-20", None);
    assert_eq!(found_waiting(&here, &remote, &base), None, "{full}");
    let id = here.attempt(40, "2026-03-20", Some(&base));
    assert_eq!(found_waiting(&here, &remote, &base), Some(id));
    here.facts.push(remote.facts[1].clone());
    assert_eq!(found_waiting(&here, &remote, &base), None);
}

#[test]
fn leftover_objects_newer_than_the_prune_record_are_kept_until_old() {
    for (recorded, now, goes) in [
        ("2026-03-20T12:00:00Z", "2026-03-21", true),
        ("2026-03-20T11:59:59Z", "2026-03-21", false),
        ("2026-03-20T11:59:59Z", "2026-04-03", true),
    ] {
        let (mut shelf, _) = three_chains();
        shelf.now = at(now);
        let id = shelf.attempt(40, "2026-03-20", None);
        shelf.record(&id, recorded);
        let plan = shelf.plan();
        assert_eq!(
            plan.delete_leftovers.len(),
            usize::from(goes),
            "{recorded} {now}: {:?}",
            plan.left_alone
        );
    }
}

#[test]
fn an_upload_that_cannot_be_read_pins_everything() {
    let (mut shelf, chains) = three_chains();
    let id = shelf.attempt(40, "2026-03-20", Some(&chains[0][1]));
    for damage in [true, false] {
        shelf.leftover(&id).started = StartedFact::Unreadable(Unreadable {
            reason: "forged".to_owned(),
            damage,
        });
        assert_nothing_goes(&shelf.plan(), "is unknown: forged", damage);
    }
    shelf.leftover(&id).started = StartedFact::Absent;
    assert_nothing_goes(&shelf.plan(), "its started.json is missing", false);
    // A leftover that goes pins nothing.
    shelf.record(&id, "2026-03-30");
    assert_eq!(doubts(&shelf.plan()), [""; 0]);
    // A full builds on nothing.
    let (mut shelf, _) = three_chains();
    let id = shelf.attempt(40, "2026-03-20", None);
    shelf.leftover(&id).started = StartedFact::Absent;
    assert_eq!(deleted(&shelf.plan()), "i12 i11 F10 i22 i21 F20");
}

#[test]
fn leftovers_are_deleted_only_with_proof() {
    struct Case {
        what: &'static str,
        journal: bool,
        record: Option<&'static str>,
        newest: Option<&'static str>,
        committed: bool,
        followed: bool,
        proof: Result<Proof, &'static str>,
    }
    let base = Case {
        what: "",
        journal: false,
        record: None,
        newest: Some("2026-03-01"),
        committed: false,
        followed: false,
        proof: Err("no proof"),
    };
    let recent = Some("2026-03-25");
    let cases = [
        Case {
            what: "nothing is known",
            ..base
        },
        Case {
            what: "the journal, and given up",
            journal: true,
            proof: Ok(Proof::Journal),
            ..base
        },
        Case {
            what: "exactly resume_days",
            journal: true,
            newest: Some("2026-03-18"),
            proof: Ok(Proof::Journal),
            ..base
        },
        Case {
            what: "a day less",
            journal: true,
            newest: Some("2026-03-19"),
            proof: Err("can be resumed"),
            ..base
        },
        Case {
            what: "may go on",
            journal: true,
            newest: recent,
            proof: Err("can be resumed"),
            ..base
        },
        Case {
            what: "age unknown",
            journal: true,
            newest: None,
            proof: Err("does not report its age"),
            ..base
        },
        Case {
            what: "near its commit",
            journal: true,
            committed: true,
            proof: Err("of its manifest exists"),
            ..base
        },
        Case {
            what: "something follows",
            journal: true,
            followed: true,
            proof: Err("builds on it"),
            ..base
        },
        Case {
            what: "a record",
            record: Some("2026-03-02"),
            proof: Ok(Proof::PruneRecord),
            ..base
        },
        Case {
            what: "a record, signature left",
            record: Some("2026-03-02"),
            committed: true,
            proof: Ok(Proof::PruneRecord),
            ..base
        },
        Case {
            what: "put again since",
            record: Some("2026-03-24"),
            newest: recent,
            proof: Err("newer objects exist"),
            ..base
        },
        Case {
            what: "put again, and given up",
            record: Some("2026-02-01"),
            proof: Ok(Proof::PruneRecord),
            ..base
        },
        Case {
            what: "a record, and something follows",
            record: Some("2026-03-02"),
            followed: true,
            proof: Err("builds on it"),
            ..base
        },
        Case {
            what: "a record, age unknown",
            record: Some("2026-03-02"),
            newest: None,
            proof: Err("does not report its age"),
            ..base
        },
    ];
    for case in cases {
        let mut shelf = Shelf::new("2026-04-01");
        let id = shelf.attempt(5, "2026-03-01", None);
        let leftover = shelf.leftover(&id);
        (leftover.newest, leftover.was_committed) = (case.newest.map(at), case.committed);
        if case.journal {
            shelf.never_committing.insert(id.clone());
        }
        if let Some(written_at) = case.record {
            shelf.record(&id, written_at);
        }
        if case.followed {
            shelf.attempt(6, "2026-03-01", Some(&id));
        }
        let plan = shelf.plan();
        let found = plan
            .delete_leftovers
            .iter()
            .find(|doomed| doomed.id == id)
            .map(|doomed| doomed.proof);
        match case.proof {
            Ok(proof) => assert_eq!(found, Some(proof), "{}: {plan:?}", case.what),
            Err(why) => {
                assert_eq!(found, None, "{}", case.what);
                let left = plan.left_alone.iter().find(|left| left.id == id).unwrap();
                assert!(left.why.contains(why), "{}: {}", case.what, left.why);
            }
        }
    }
}

#[test]
fn leftover_that_is_the_base_of_a_backup_is_kept_despite_a_prune_record() {
    let (mut shelf, chains) = three_chains();
    // The manifest of a base is hidden: it looks like an attempt, and an old record names it.
    let hidden = chains[2][0].clone();
    shelf.facts.retain(|backup| backup.id != hidden);
    let id = shelf.attempt(30, "2026-03-01", None);
    shelf.leftover(&id).id = hidden.clone();
    shelf.record(&hidden, "2026-03-20");
    let plan = shelf.plan();
    assert!(plan.delete_leftovers.is_empty(), "{plan:?}");
}

#[test]
fn missing_backup_listed_in_a_receipt_stops_every_deletion() {
    let (mut shelf, chains) = three_chains();
    let gone = BackupId::new(
        at("2026-02-20"),
        zfs_backup::model::BackupKind::Full,
        zfs_backup::model::Guid(5),
        5,
    );
    let ids = BTreeSet::from([chains[0][0].clone(), gone.clone()]);
    shelf.live = Some(Live {
        of: chains[2][2].clone(),
        ids: Ok(ids),
    });
    assert_nothing_goes(
        &shelf.plan(),
        "which no longer exists, and no signed prune record explains it",
        true,
    );
    let mut named = shelf.clone();
    named.record(&gone, "2026-03-20");
    assert_eq!(doubts(&named.plan()), [""; 0]);
    let unreadable = Unreadable {
        reason: "missing".to_owned(),
        damage: true,
    };
    shelf.live = Some(Live {
        of: chains[2][2].clone(),
        ids: Err(unreadable),
    });
    assert_nothing_goes(&shelf.plan(), "the receipt of", true);
}

#[test]
fn backup_with_an_unknown_object_lock_is_kept() {
    let (mut shelf, chains) = three_chains();
    shelf
        .locks
        .insert(chains[1][2].clone(), Lock::Unknown("missing".to_owned()));
    let plan = shelf.plan();
    assert_eq!(deleted(&plan), "i12 i11 F10");
    assert_eq!(
        reasons(&plan, &chains[1][2]),
        "its locks are unknown: missing"
    );
}

/// The intermediate directory beside a remote: rules keep the newest full and the newest
/// incremental.
fn intermediate() -> (Shelf, Vec<Vec<BackupId>>) {
    let (mut shelf, chains) = three_chains();
    shelf.rules = RetentionRules {
        last_fulls: Some(1),
        last_incrementals: Some(1),
        ..Default::default()
    };
    (shelf, chains)
}

#[test]
fn export_is_pruned_only_if_committed_in_the_remote() {
    let (shelf, chains) = intermediate();
    let none = Default::default();
    let plan = |remote: &Shelf| {
        shelf.plan_beside(SecondaryFacts::Remote {
            facts: &remote.facts,
            pruned: &none,
        })
    };
    // All is there: what the rules keep stays, without ancestors.
    let mut remote = shelf.clone();
    assert_eq!(deleted(&plan(&remote)), "i12 i11 F10 i22 i21 F20 i31");
    assert_eq!(doubts(&plan(&remote)), [""; 0]);
    // A backup that it lacks stays, and so does what it lacks of its ancestors.
    remote
        .facts
        .retain(|backup| backup.id != chains[0][1] && backup.id != chains[0][2]);
    let found = plan(&remote);
    assert_eq!(deleted(&found), "F10 i22 i21 F20 i31");
    assert_eq!(
        reasons(&found, &chains[0][1]),
        "not committed in the remote"
    );
    remote.facts.retain(|backup| backup.id != chains[0][0]);
    assert_eq!(deleted(&plan(&remote)), "i22 i21 F20 i31");
    // An empty remote keeps everything.
    remote.facts.clear();
    assert_eq!(deleted(&plan(&remote)), "");
}

#[test]
fn backup_unusable_in_the_remote_does_not_count_as_committed() {
    let (shelf, chains) = intermediate();
    let none = Default::default();
    let mut remote = shelf.clone();
    remote.damage(&chains[0][1]);
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &remote.facts,
        pruned: &none,
    });
    assert_eq!(deleted(&plan), "F10 i22 i21 F20 i31");
    // Nor is one whose manifest is another.
    let mut remote = shelf.clone();
    remote.get_mut(&chains[0][2]).manifest_blake3 = zfs_backup::model::Digest::of(b"other");
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &remote.facts,
        pruned: &none,
    });
    assert_eq!(deleted(&plan), "i11 F10 i22 i21 F20 i31");
}

#[test]
fn twin_in_the_remote_counts_as_committed_but_not_as_an_ancestor() {
    let (shelf, chains) = intermediate();
    let none = Default::default();
    let mut remote = shelf.clone();
    let replace = |remote: &mut Shelf, id: &BackupId| {
        let twin = BackupId::new(
            remote.get(id).snapshot.created_at,
            id.kind(),
            id.snapshot_guid(),
            0xffff,
        );
        remote.get_mut(id).id = twin;
    };
    // A leaf.
    replace(&mut remote, &chains[0][2]);
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &remote.facts,
        pruned: &none,
    });
    assert_eq!(deleted(&plan), "i12 i11 F10 i22 i21 F20 i31");
    // The base of what is kept: its manifest names that id.
    replace(&mut remote, &chains[2][1]);
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &remote.facts,
        pruned: &none,
    });
    assert_eq!(label(&chains[2][1]), "i31");
    assert_eq!(deleted(&plan), "i12 i11 F10 i22 i21 F20");
    // With other flags, recipients, origin or place it is another backup: nobody could receive its
    // children on it.
    type Change = fn(&mut zfs_backup::plan::BackupFacts);
    let changes: [Change; 4] = [
        |twin| twin.requested = vec!["raw".to_owned()],
        |twin| twin.recipients = vec!["age1other".to_owned()],
        |twin| twin.origin.pool_guid.0 += 1,
        |twin| twin.position += 1,
    ];
    for change in changes {
        let mut remote = shelf.clone();
        replace(&mut remote, &chains[0][2]);
        let twin = remote.facts[2].id.clone();
        change(remote.get_mut(&twin));
        let plan = shelf.plan_beside(SecondaryFacts::Remote {
            facts: &remote.facts,
            pruned: &none,
        });
        assert_eq!(deleted(&plan), "i11 F10 i22 i21 F20 i31");
    }
}

#[test]
fn export_pruned_in_the_remote_is_deleted_but_missing_bases_are_kept() {
    let (shelf, chains) = intermediate();
    let mut remote = shelf.clone();
    remote
        .facts
        .retain(|backup| !chains[0].contains(&backup.id) && backup.id != chains[2][1]);
    chains[0]
        .iter()
        .for_each(|id| remote.record(id, "2026-03-20"));
    remote.record(&chains[2][1], "2026-03-20");
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &remote.facts,
        pruned: &remote.pruned,
    });
    assert_eq!(
        deleted(&plan),
        "i12 i11 F10 i22 i21 F20",
        "i31 stays for i32"
    );
    // A record of another manifest proves nothing.
    let other = Some(zfs_backup::model::Digest::of(b"other"));
    remote
        .pruned
        .get_mut(&chains[0][2])
        .unwrap()
        .manifest_blake3 = other;
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &remote.facts,
        pruned: &remote.pruned,
    });
    assert_eq!(deleted(&plan), "i22 i21 F20");
}

#[test]
fn an_unreachable_remote_keeps_everything() {
    let (shelf, chains) = intermediate();
    let plan = shelf.plan_beside(SecondaryFacts::Unreachable);
    assert_eq!((deleted(&plan).as_str(), doubts(&plan).len()), ("", 0));
    assert_eq!(reasons(&plan, &chains[0][0]), "the remote is unreachable");
}

#[test]
fn kept_export_without_its_local_base_is_usable_only_with_the_remote() {
    let (mut shelf, chains) = intermediate();
    let none = Default::default();
    let remote = shelf.clone();
    // Pruned here earlier; the remote has it.
    shelf.facts.retain(|backup| backup.id != chains[2][1]);
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &remote.facts,
        pruned: &none,
    });
    assert_eq!(doubts(&plan), [""; 0]);
    assert_eq!(deleted(&plan), "i12 i11 F10 i22 i21 F20");
    // The remote lacks it too.
    let mut poorer = remote.clone();
    poorer
        .facts
        .retain(|backup| backup.id != chains[2][1] && backup.id != chains[2][2]);
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &poorer.facts,
        pruned: &none,
    });
    assert_nothing_goes(&plan, "which is neither here nor in the remote", true);
    // A twin in the remote serves as the base.
    let mut with_twin = remote.clone();
    let base = with_twin.get_mut(&chains[2][1]);
    base.id = BackupId::new(base.snapshot.created_at, BackupKind::Incr, Guid(31), 0xffff);
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &with_twin.facts,
        pruned: &none,
    });
    assert_eq!(doubts(&plan), [""; 0]);
}

#[test]
fn damaged_exports_are_deleted_if_complete_in_the_remote() {
    let (mut shelf, chains) = intermediate();
    let remote = shelf.clone();
    shelf.rules = last_chains(0);
    chains.iter().flatten().for_each(|id| shelf.damage(id));
    let plan = shelf.plan_beside(SecondaryFacts::Remote {
        facts: &remote.facts,
        pruned: &Default::default(),
    });
    assert_eq!(doubts(&plan), [""; 0]);
    assert_eq!(plan.delete.len(), 9);
}

#[test]
fn base_with_a_different_chain_position_stops_every_deletion() {
    type Change = fn(&mut zfs_backup::plan::BackupFacts, &BackupId);
    let changes: [Change; 2] = [
        |base, other_full| base.full_id = other_full.clone(),
        |base, _| base.position += 1,
    ];
    for change in changes {
        let (mut shelf, chains) = intermediate();
        let mut remote = shelf.clone();
        remote
            .facts
            .retain(|backup| !chains[2].contains(&backup.id));
        change(shelf.get_mut(&chains[2][1]), &chains[1][0]);
        let plan = shelf.plan_beside(SecondaryFacts::Remote {
            facts: &remote.facts,
            pruned: &Default::default(),
        });
        assert_nothing_goes(&plan, "which has another place in the chain", true);
    }
}

#[test]
fn uncopied_export_keeps_the_chain_of_its_base_in_the_remote() {
    let (mut remote, chains) = three_chains();
    let mut here = remote.clone();
    here.incr(13, "2026-03-20", &chains[0][2]);
    remote.waiting = here.facts.clone();
    let plan = remote.plan();
    assert_eq!(deleted(&plan), "i22 i21 F20");
    assert!(
        reasons(&plan, &chains[0][0]).contains("in the intermediate directory builds on its chain")
    );
}

#[test]
fn unfinished_export_keeps_the_chain_of_its_base_in_the_remote() {
    let (mut remote, chains) = three_chains();
    let mut here = remote.clone();
    let id = here.attempt(40, "2026-03-20", Some(&chains[0][2]));
    remote.waiting_attempts = here.leftovers.clone();
    assert_eq!(deleted(&remote.plan()), "i22 i21 F20");
    assert!(reasons(&remote.plan(), &chains[0][0]).contains("builds on its chain"));
    here.leftover(&id).started = StartedFact::Absent;
    remote.waiting_attempts = here.leftovers;
    assert_nothing_goes(&remote.plan(), "its started.json is missing", false);
}

#[test]
fn without_rules_only_proved_leftovers_are_deleted() {
    let (mut shelf, _) = three_chains();
    shelf.rules = RetentionRules::default();
    let id = shelf.attempt(40, "2026-03-01", None);
    shelf.never_committing.insert(id.clone());
    let plan = shelf.plan();
    assert_eq!(
        (deleted(&plan).as_str(), plan.delete_leftovers.len()),
        ("", 1)
    );
    assert_eq!(plan.freed_bytes(), 1000);
}
