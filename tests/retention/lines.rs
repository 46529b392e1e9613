//! Two time lines of one origin: nothing is deleted until a person took one of them over, and then
//! by its time.

use crate::facts::{Shelf, at, deleted, doubts, labels, origin};
use std::collections::BTreeSet;
use zfs_backup::config::RetentionRules;
use zfs_backup::model::{BackupId, Guid, HostMark};
use zfs_backup::plan::prune::Doubt;
use zfs_backup::plan::timeline::PoolView;

/// A full of both lines, then two fulls of a future that was abandoned, then one of the pool as it
/// was rewound: its transaction group is the smallest of the three.
fn rewound() -> (Shelf, [BackupId; 4]) {
    let mut shelf = Shelf::new("2026-03-20");
    shelf.rules = RetentionRules {
        last_chains: Some(1),
        ..Default::default()
    };
    let shared = shelf.full(10, "2026-03-01");
    let abandoned = [shelf.full(200, "2026-03-02"), shelf.full(300, "2026-03-03")];
    let real = shelf.full(150, "2026-03-04");
    for id in [&abandoned[0], &real] {
        shelf.get_mut(id).made.previous = Some(vec![shared.clone()]);
    }
    shelf.get_mut(&abandoned[1]).made.previous = Some(vec![abandoned[0].clone()]);
    let known = BTreeSet::from([Guid(10), Guid(150)]);
    shelf.pool = Some(PoolView {
        origin: origin(1),
        known,
        adopted: BTreeSet::new(),
    });
    let [first, second] = abandoned;
    (shelf, [shared, first, second, real])
}

#[test]
fn other_time_line_keeps_every_backup_and_names_the_adopt_command() {
    let (mut shelf, ids) = rewound();
    let mark: HostMark = "0123456789abcdef-fedcba9876543210".parse().unwrap();
    ids[1..3]
        .iter()
        .for_each(|id| shelf.get_mut(id).made.host = Some(mark.clone()));
    for shelf in [shelf.reversed(), shelf] {
        let plan = shelf.plan();
        assert_eq!(
            (deleted(&plan), plan.delete_leftovers.len()),
            (String::new(), 0)
        );
        let [Doubt::OtherLine { id, host, .. }] = &plan.doubts[..] else {
            panic!("{:?}", doubts(&plan))
        };
        assert_eq!(
            (id, host),
            (&ids[2], &Some(mark.clone())),
            "the newest of them, once"
        );
        let hint = plan.doubts[0].hint("prune-remote", &"tank/a b".parse().unwrap());
        assert!(
            hint.contains(&format!("zfs-backup adopt 'tank/a b' --line {} -y", ids[2])),
            "{hint}"
        );
    }
    // Two hosts are two doubts.
    let (mut shelf, ids) = rewound();
    shelf.get_mut(&ids[1]).made.host = Some(mark);
    assert_eq!(shelf.plan().doubts.len(), 2);
}

#[test]
fn conflicting_orders_without_a_pool_keep_every_backup() {
    let (mut shelf, _) = rewound();
    shelf.pool = None;
    let plan = shelf.plan();
    assert_eq!(deleted(&plan), "");
    assert!(
        plan.doubts
            .iter()
            .all(|doubt| matches!(doubt, Doubt::Order { .. })),
        "{:?}",
        doubts(&plan)
    );
    assert!(!plan.doubts.is_empty());
}

#[test]
fn adopted_backups_are_ordered_by_time_not_by_transaction_group() {
    let (mut shelf, ids) = rewound();
    let pool = shelf.pool.as_mut().unwrap();
    pool.adopted = ids[1..3].iter().cloned().collect();
    // As the reader of the store marks them.
    ids[1..3]
        .iter()
        .for_each(|id| shelf.get_mut(id).made.adopted = true);
    for shelf in [shelf.reversed(), shelf.clone()] {
        let plan = shelf.plan();
        assert_eq!(
            (doubts(&plan), deleted(&plan)),
            (Vec::new(), "F10 F200 F300".to_owned())
        );
    }
    // Later backups of the other host were not taken over.
    let later = shelf.full(400, "2026-03-05");
    let doubts = shelf.plan().doubts;
    assert!(
        matches!(&doubts[..], [Doubt::OtherLine { id, .. }] if *id == later),
        "{doubts:?}"
    );
}

#[test]
fn time_line_fully_known_to_the_pool_is_no_other_line() {
    let (mut shelf, ids) = rewound();
    shelf
        .pool
        .as_mut()
        .unwrap()
        .known
        .extend([Guid(200), Guid(300)]);
    // All known: only a clock can have been wrong.
    let doubts = shelf.plan().doubts;
    assert!(
        doubts
            .iter()
            .all(|doubt| matches!(doubt, Doubt::Order { .. })),
        "{doubts:?}"
    );
    shelf.get_mut(&ids[3]).snapshot.createtxg = 400;
    assert_eq!(
        labels(shelf.plan().delete.iter().map(|doomed| &doomed.id)),
        "F10 F200 F300"
    );
    assert_eq!(at("2026-03-04"), shelf.get(&ids[3]).snapshot.created_at);
}
