//! What must hold for any rules over any store.

use crate::facts::{Shelf, at};
use proptest::prelude::*;
use std::collections::BTreeSet;
use zfs_backup::config::RetentionRules;
use zfs_backup::model::{BackupId, BackupLevel};
use zfs_backup::plan::prune::{PrunePlan, SecondaryFacts};
use zfs_backup::plan::retention::{chains_newest_first, decide_retention, in_order};

fn any_rules() -> impl Strategy<Value = RetentionRules> {
    let count = || proptest::option::weighted(0.3, 0u32..4);
    let ages = proptest::collection::vec(prop_oneof!["[1-9]w", "[1-6]m", "[1-3]d"], 0..3);
    let within = proptest::option::weighted(0.3, 1u32..200);
    let at_least = proptest::option::weighted(0.2, 1u32..200);
    let keep = proptest::option::weighted(0.3, "([12]y )?([1-4]m )?([1-3]w )?([1-5]d)?");
    (
        count(),
        count(),
        count(),
        ages,
        within,
        count(),
        count(),
        count(),
        count(),
        keep,
        at_least,
    )
        .prop_map(
            |(
                last_chains,
                last_fulls,
                last_incrementals,
                ages,
                within,
                daily,
                weekly,
                monthly,
                yearly,
                keep,
                at_least,
            )| RetentionRules {
                last_chains,
                last_fulls,
                last_incrementals,
                full_ages: ages.iter().map(|age| age.parse().unwrap()).collect(),
                within: within.map(zfs_backup::config::Age::days),
                daily,
                weekly,
                monthly,
                yearly,
                levels: keep.and_then(|keep| keep.trim().parse().ok()),
                at_least: at_least.map(zfs_backup::config::Age::days),
            },
        )
}

/// Up to 20 backups, each a full or built on any earlier one, some hours or weeks apart; some
/// damaged; attempts.
fn any_shelf() -> impl Strategy<Value = Shelf> {
    shelves(false)
}

/// With `in_turn` an incremental follows from the newest chain only.
fn shelves(in_turn: bool) -> impl Strategy<Value = Shelf> {
    let level = proptest::option::of(prop::sample::select(&BackupLevel::ALL[..]));
    let backup = (
        any::<prop::sample::Index>(),
        0u8..10,
        1i64..900,
        0u8..12,
        level,
    );
    let attempts = proptest::collection::vec(
        (any::<prop::sample::Index>(), any::<bool>(), 0i64..40),
        0..3,
    );
    (
        proptest::collection::vec(backup, 0..20),
        attempts,
        any_rules(),
        0i64..2000,
    )
        .prop_map(move |(backups, attempts, rules, later)| {
            let mut shelf = Shelf::new("2026-01-01");
            shelf.rules = rules;
            let mut hours = 0;
            let time = |hours: i64| {
                jiff::Timestamp::from_second(at("2026-01-01").as_second() + hours * 3600).unwrap()
            };
            let mut damaged = Vec::new();
            for (txg, (base, kind, step, damage, level)) in (1..).zip(backups) {
                hours += step;
                let newest_full = shelf
                    .facts
                    .iter()
                    .rposition(|backup| backup.base.is_none())
                    .unwrap_or(0);
                let first = if in_turn { newest_full } else { 0 };
                let index = first + base.index((shelf.facts.len() - first).max(1));
                let base = shelf.facts.get(index).map(|base| base.id.clone());
                let id = shelf.add(
                    txg,
                    &time(hours).to_string(),
                    base.as_ref().filter(|_| kind > 2),
                );
                shelf.get_mut(&id).made.level = level;
                shelf.get_mut(&id).made.stored_at = Some(time(hours));
                if damage == 0 {
                    damaged.push(id);
                }
            }
            damaged.iter().for_each(|id| shelf.damage(id));
            (shelf.now, shelf.store_clock) = (time(hours + later), Some(time(hours + later)));
            for (txg, (base, journal, days)) in (100..).zip(attempts) {
                let base = shelf
                    .facts
                    .get(base.index(shelf.facts.len().max(1)))
                    .map(|base| base.id.clone());
                let newest = time(hours + later - days * 24).to_string();
                let id = shelf.attempt(txg, &newest, base.as_ref());
                if journal {
                    shelf.never_committing.insert(id);
                }
            }
            shelf
        })
}

fn kept_ids(plan: &PrunePlan) -> BTreeSet<BackupId> {
    plan.keep.iter().map(|kept| kept.id.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn prune_plan_never_deletes_a_needed_backup(shelf in any_shelf()) {
        let plan = shelf.plan();
        let kept = kept_ids(&plan);
        // Every backup is kept or goes, none both.
        let going: BTreeSet<BackupId> = plan.delete.iter().map(|doomed| doomed.id.clone()).collect();
        prop_assert_eq!(kept.len() + going.len(), shelf.facts.len());
        prop_assert!(kept.is_disjoint(&going));
        prop_assert!(plan.keep.iter().all(|kept| !kept.reasons.is_empty()));
        // What the rules keep is kept.
        for verdict in decide_retention(&shelf.facts, &shelf.rules, shelf.now) {
            prop_assert!(!verdict.keep || kept.contains(&verdict.id));
        }
        // Kept sets are closed under ancestors; while something goes each of them can be restored.
        for backup in shelf.facts.iter().filter(|backup| kept.contains(&backup.id)) {
            prop_assert!(backup.base.as_ref().is_none_or(|base| kept.contains(base)));
            prop_assert!(plan.is_empty() || backup.is_usable(), "{} is kept and of no use", backup.id);
        }
        // The newest usable chain stays whole; with levels its newest backup.
        let ordered = in_order(&shelf.facts);
        let usable: Vec<_> = ordered.iter().copied().filter(|backup| backup.is_usable()).collect();
        if let Some(chain) = chains_newest_first(&usable).first() {
            let must_stay = |backup: &&zfs_backup::plan::BackupFacts| match shelf.rules.levels {
                None => backup.full_id == **chain,
                Some(_) => usable.last().map(|newest| &newest.id) == Some(&backup.id),
            };
            prop_assert!(ordered.iter().filter(|backup| must_stay(backup)).all(|backup| kept.contains(&backup.id)));
        }
        prop_assert!(usable.is_empty() || !kept.is_empty());
        // At every point of carrying it out no backup that is still there lacks an ancestor.
        let mut there: BTreeSet<BackupId> = shelf.facts.iter().map(|backup| backup.id.clone()).collect();
        for doomed in &plan.delete {
            let needed = |backup: &&zfs_backup::plan::BackupFacts| {
                there.contains(&backup.id) && backup.base.as_ref() == Some(&doomed.id)
            };
            prop_assert!(!shelf.facts.iter().any(|backup| needed(&backup)), "{} goes too early", doomed.id);
            there.remove(&doomed.id);
        }
        // An attempt that stays keeps what it builds on.
        for left in &plan.left_alone {
            let leftover = shelf.leftovers.iter().find(|leftover| leftover.id == left.id).unwrap();
            if let zfs_backup::plan::prune::StartedFact::Signed { base: Some(base), .. } = &leftover.started {
                prop_assert!(kept.contains(base));
            }
        }
        prop_assert!(plan.doubts.is_empty() || plan.is_empty());
    }

    /// Ages are left out, because they look for neighbours that went; and chains that grow side by
    /// side, because they may change places when one loses its newest incrementals.
    #[test]
    fn second_identical_prune_plan_deletes_nothing_more(mut shelf in shelves(true)) {
        shelf.rules.full_ages.clear();
        let plan = shelf.plan();
        let mut after = shelf.clone();
        after.facts.retain(|backup| !plan.delete.iter().any(|doomed| doomed.id == backup.id));
        after.leftovers.retain(|leftover| !plan.delete_leftovers.iter().any(|doomed| doomed.id == leftover.id));
        prop_assert_eq!(kept_ids(&after.plan()), kept_ids(&plan));
    }

    #[test]
    fn the_order_of_a_listing_decides_nothing(shelf in any_shelf()) {
        prop_assert_eq!(shelf.plan(), shelf.reversed().plan());
    }

    #[test]
    fn with_a_remote_every_kept_backup_restores_from_both_stores_together(
        shelf in any_shelf(),
        there in proptest::collection::vec(any::<bool>(), 20),
    ) {
        let mut remote = shelf.clone();
        let mut flags = there.into_iter();
        remote.facts.retain(|_| flags.next().unwrap_or(true));
        // Usable there is only what has all its ancestors there.
        let present: BTreeSet<BackupId> = remote.facts.iter().map(|backup| backup.id.clone()).collect();
        let mut local = shelf.clone();
        // SecondaryFacts a remote a flaw is a backup's own.
        for backup in &mut local.facts {
            backup.flaw = None;
        }
        for index in 0..remote.facts.len() {
            let mut base = remote.facts[index].base.clone();
            while let Some(id) = base {
                if !present.contains(&id) {
                    remote.facts[index].flaw = Some("gap".to_owned());
                }
                base = shelf.get(&id).base.clone();
            }
        }
        let none = Default::default();
        let plan = local.plan_beside(SecondaryFacts::Remote { facts: &remote.facts, pruned: &none });
        let kept = kept_ids(&plan);
        let usable_there =
            |id: &BackupId| remote.facts.iter().any(|backup| backup.id == *id && backup.is_usable());
        for doomed in &plan.delete {
            prop_assert!(usable_there(&doomed.id), "{} is not in the remote", doomed.id);
        }
        for id in &kept {
            let mut base = local.get(id).base.clone();
            while let Some(ancestor) = base.filter(|ancestor| !usable_there(ancestor)) {
                prop_assert!(kept.contains(&ancestor), "{id} needs {ancestor}");
                base = local.get(&ancestor).base.clone();
            }
        }
    }
}
