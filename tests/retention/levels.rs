//! Levels: what must hold for any sequence of nights, wrong clocks, changed rules, deletions and
//! lost backups.

use crate::facts::at;
use crate::world::{LIFECYCLE, World, after};
use proptest::prelude::*;
use std::collections::BTreeSet;
use zfs_backup::config::{KeepLevels, LevelBase};
use zfs_backup::model::{BackupId, BackupKind, BackupLevel};
use zfs_backup::plan::BackupFacts;
use zfs_backup::plan::levels::{FullRule, LevelRules, level_of};
use zfs_backup::plan::send::{LifecycleRules, SendPlan};

/// Something that happens to a dataset and its store.
#[derive(Debug, Clone)]
enum Event {
    /// A backup, this many hours after the last one.
    Night(i64),
    /// The clock of the host is wrong by this many days, until the next such event.
    Clock(i64),
    Prune,
    Rules(LevelRules),
    /// The store loses a backup.
    Lose(prop::sample::Index),
    /// A chunk of a backup is damaged.
    Damage(prop::sample::Index),
    /// A person forgets the newest backup on which no other builds.
    Forget,
    /// The pool loses a bookmark.
    Bookmark(prop::sample::Index),
}

fn any_rules() -> impl Strategy<Value = LevelRules> {
    let keep = prop_oneof![
        Just("2y 12m 8w 14d"),
        Just("3m 4w 7d"),
        Just("1y 2m 2w 3d"),
        Just("2m 6d"),
        Just("2y 3w"),
        Just("1m 3d 12h"),
        Just("9d"),
    ];
    let base = prop_oneof![Just(LevelBase::Same), Just(LevelBase::Longer)];
    let days = |days: i64| FullRule::Age(jiff::SignedDuration::from_hours(24 * days));
    let fulls = prop_oneof![
        4 => Just(FullRule::Period),
        1 => Just(FullRule::Never),
        1 => (20i64..400).prop_map(days),
    ];
    (keep, base, fulls).prop_map(|(keep, base, fulls)| LevelRules {
        keep: keep.parse().unwrap(),
        base,
        fulls,
    })
}

/// Rules whose shortest level has one backup in each of its periods: nights are a day apart. A
/// second backup of a period is of the shortest level too.
fn rules_by_period() -> impl Strategy<Value = LevelRules> {
    let keep = prop_oneof![
        Just("2y 12m 8w 14d"),
        Just("3m 4w 7d"),
        Just("1y 2m 2w 3d"),
        Just("2m 6d"),
        Just("9d"),
    ];
    let base = prop_oneof![Just(LevelBase::Same), Just(LevelBase::Longer)];
    (keep, base).prop_map(|(keep, base)| LevelRules {
        keep: keep.parse().unwrap(),
        base,
        fulls: FullRule::Period,
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        20 => prop_oneof![8 => Just(24i64), 2 => 1i64..30, 1 => 30i64..900].prop_map(Event::Night),
        6 => Just(Event::Prune),
        1 => prop_oneof![Just(0i64), -700i64..700].prop_map(Event::Clock),
        1 => any_rules().prop_map(Event::Rules),
        1 => index().prop_map(Event::Lose),
        1 => index().prop_map(Event::Damage),
        1 => Just(Event::Forget),
        1 => index().prop_map(Event::Bookmark),
    ]
}

fn with_levels(levels: LevelRules) -> LifecycleRules {
    LifecycleRules {
        levels: Some(levels),
        ..LIFECYCLE
    }
}

/// A world, its true time, and the error of its clock.
struct History {
    world: World,
    now: jiff::Timestamp,
    wrong_hours: i64,
}

impl History {
    fn new(rules: LevelRules) -> Self {
        Self {
            world: World::new(with_levels(rules)),
            now: at("2024-03-05"),
            wrong_hours: 0,
        }
    }

    fn clock(&self) -> jiff::Timestamp {
        after(self.now, self.wrong_hours)
    }

    fn chosen(&self, index: prop::sample::Index) -> Option<BackupId> {
        let facts = &self.world.shelf.facts;
        (!facts.is_empty()).then(|| facts[index.index(facts.len())].id.clone())
    }

    fn play(&mut self, event: Event) {
        match event {
            Event::Night(hours) => {
                self.now = after(self.now, hours);
                let clock = self.clock();
                let plan = self.world.back_up(clock, |_| 1);
                assert_no_shorter_base(&self.world, &plan);
            }
            Event::Clock(days) => self.wrong_hours = days * 24,
            Event::Prune => self.prune(),
            Event::Rules(rules) => {
                self.world.lifecycle = with_levels(rules);
                self.world.shelf.rules.levels = Some(rules.keep);
            }
            Event::Lose(index) => {
                if let Some(id) = self.chosen(index) {
                    self.world.lose(&id);
                }
            }
            Event::Damage(index) => {
                self.world.damaged.extend(self.chosen(index));
                self.world.note_flaws();
            }
            Event::Forget => {
                let facts = &self.world.shelf.facts;
                let is_base = |id: &BackupId| facts.iter().any(|it| it.base.as_ref() == Some(id));
                let leaf = facts.iter().rfind(|backup| !is_base(&backup.id));
                if let Some(id) = leaf.map(|leaf| leaf.id.clone()) {
                    self.world.lose(&id);
                }
            }
            Event::Bookmark(index) => {
                let bookmarks = &mut self.world.bookmarks;
                if !bookmarks.is_empty() {
                    bookmarks.remove(index.index(bookmarks.len()));
                }
            }
        }
    }

    /// Prunes. Every restore point that stays restores, and the next backup is the one that it
    /// would have been before: no base went.
    fn prune(&mut self) {
        let (clock, store_clock) = (self.clock(), self.now);
        let tomorrow = after(clock, 24);
        let usable_before = self.world.usable();
        let next_before = self.world.plan_backup(tomorrow);
        let plan = self.world.prune(clock, store_clock);
        let usable: BTreeSet<BackupId> = self.world.usable();
        for kept in plan
            .keep
            .iter()
            .filter(|kept| usable_before.contains(&kept.id))
        {
            assert!(usable.contains(&kept.id), "{} no longer restores", kept.id);
        }
        self.world.note_flaws();
        assert_eq!(
            self.world.plan_backup(tomorrow).map(without_bytes),
            next_before.map(without_bytes),
            "a prune changed the next backup: {plan:#?}"
        );
    }
}

/// The plan without facts that a prune may change.
fn without_bytes(plan: SendPlan) -> (Option<BackupId>, Option<BackupLevel>) {
    match plan {
        SendPlan::Full { level, .. } => (None, level),
        SendPlan::Incremental { backup, level, .. } => (Some(backup.id), level),
        SendPlan::UpToDate { id } | SendPlan::Unchanged { id, .. } => (Some(id), None),
    }
}

/// No backup builds on one of a shorter level. Levels shorter than the configured ones count as the
/// shortest.
fn assert_no_shorter_base(world: &World, plan: &SendPlan) {
    let SendPlan::Incremental { backup, level, .. } = plan else {
        return;
    };
    let (keep, level) = (world.keep().unwrap(), level.unwrap());
    assert!(
        level_of(backup, &keep) >= level,
        "{level} on {:?} {}",
        backup.made.level,
        backup.id
    );
}

/// The links of the longest chain that levels can make: in each period of a level at most one
/// backup for each period of the next shorter level.
fn links_max(keep: &KeepLevels) -> u32 {
    let periods = |longer: BackupLevel, shorter: BackupLevel| match (longer, shorter) {
        (BackupLevel::Yearly, BackupLevel::Monthly) => 12,
        (BackupLevel::Yearly, BackupLevel::Weekly) => 54,
        (BackupLevel::Yearly, _) => 366,
        (BackupLevel::Monthly, BackupLevel::Weekly) => 6,
        (BackupLevel::Monthly, _) => 31,
        (BackupLevel::Weekly, _) => 7,
        _ => 24,
    };
    let levels: Vec<BackupLevel> = keep.levels().map(|(level, _)| level).collect();
    let pairs = levels.windows(2).map(|pair| periods(pair[1], pair[0]) - 1);
    1 + pairs.sum::<u32>()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn every_kept_restore_point_restores_and_no_prune_costs_a_full(
        rules in any_rules(),
        events in proptest::collection::vec(any_event(), 1..120),
    ) {
        let mut history = History::new(rules);
        for event in events {
            history.play(event);
        }
        history.prune();
    }

    #[test]
    fn undisturbed_nights_are_pruned_without_doubt_and_chains_stay_short(
        rules in rules_by_period(),
        gaps in proptest::collection::vec(prop_oneof![9 => Just(24i64), 1 => 24i64..900], 1..200),
        prunes in proptest::collection::vec(any::<bool>(), 200),
    ) {
        let mut history = History::new(rules);
        for (gap, prunes) in gaps.into_iter().zip(prunes) {
            history.play(Event::Night(gap));
            if prunes {
                let (clock, facts) = (history.clock(), &history.world.shelf.facts);
                let links = facts.iter().map(|backup| backup.position + 1).max();
                prop_assert!(links <= Some(links_max(&rules.keep)), "{links:?}");
                let plan = history.world.plan_prune(clock, clock);
                prop_assert!(plan.doubts.is_empty(), "{:?}", plan.doubts);
                history.prune();
                let wanted: u32 = rules.keep.levels().map(|(_, count)| count).sum();
                let stored = u32::try_from(history.world.shelf.facts.len()).unwrap();
                // Each wanted backup, and the ancestors that the newest of each level needs.
                prop_assert!(stored <= wanted + 2 * links_max(&rules.keep), "{stored}");
                let bookmarks = history.world.bookmarks.len();
                prop_assert!(bookmarks <= 2 * rules.keep.levels().count(), "{bookmarks}");
            }
        }
    }
}

/// Levels of backups by time: `2024-01-01 y` and so on, and F for a full.
fn played(rules: LevelRules, nights: &[&str]) -> Vec<String> {
    let mut world = World::new(with_levels(rules));
    let words = nights.iter().map(|night| {
        let plan = world.back_up(at(night), |_| 1);
        let made = world.shelf.facts.last().unwrap();
        let level = made.made.level.unwrap();
        let base = |base: &BackupFacts| format!(" on {}", base.snapshot.guid.0);
        match plan {
            SendPlan::Incremental { backup, .. } => format!("{level}{}", base(&backup)),
            _ => {
                assert_eq!(made.kind(), BackupKind::Full);
                "full".to_owned()
            }
        }
    });
    words.collect()
}

#[test]
fn the_first_backup_of_a_period_has_its_level() {
    let rules = |base, fulls| LevelRules {
        keep: "2y 12m 8w 14d".parse().unwrap(),
        base,
        fulls,
    };
    // 2024-01-01 is a Monday.
    let nights = [
        "2024-01-01", // 1
        "2024-01-02", // 2
        "2024-01-03", // 3
        "2024-01-08", // 4, a Monday
        "2024-01-09", // 5
        "2024-01-17", // 6, a Wednesday after a pause
        "2024-02-01", // 7, a Thursday
        "2024-02-02", // 8
        "2024-02-05", // 9, a Monday
        "2024-03-01", // 10
        "2025-01-01", // 11
        "2025-01-02", // 12
    ];
    let same = [
        "full",
        "daily on 1",
        "daily on 2",
        "weekly on 1",
        "daily on 4",
        "weekly on 4",
        "monthly on 1",
        "daily on 7",
        "weekly on 7",
        "monthly on 7",
        "full",
        "daily on 11",
    ];
    let longer = [
        "full",
        "daily on 1",
        "daily on 1",
        "weekly on 1",
        "daily on 4",
        "weekly on 1",
        "monthly on 1",
        "daily on 7",
        "weekly on 7",
        "monthly on 1",
        "full",
        "daily on 11",
    ];
    let never = [&same[..10], &["yearly on 1", "daily on 11"]].concat();
    for (base, fulls, expected) in [
        (LevelBase::Same, FullRule::Period, &same[..]),
        (LevelBase::Longer, FullRule::Period, &longer),
        (LevelBase::Same, FullRule::Never, &never),
    ] {
        assert_eq!(
            played(rules(base, fulls), &nights),
            expected,
            "{base} {fulls:?}"
        );
    }
}

#[test]
fn a_wrong_clock_makes_one_backup_of_a_longer_level_and_no_more() {
    let rules = LevelRules {
        keep: "2y 12m 14d".parse().unwrap(),
        base: LevelBase::Same,
        fulls: FullRule::Period,
    };
    let cases: [(&str, &[&str], &[&str]); 4] = [
        (
            "years ahead for one night, and then in its year",
            &[
                "2024-01-01",
                "2024-01-02",
                "2036-05-01",
                "2024-01-04",
                "2024-01-05",
                "2036-06-01",
            ],
            &[
                "full",
                "daily on 1",
                "full",
                "daily on 3",
                "daily on 4",
                "full",
            ],
        ),
        (
            "in 1970 for a night",
            &[
                "2024-01-01",
                "2024-01-02",
                "1970-01-01",
                "2024-01-04",
                "2024-01-05",
            ],
            &[
                "full",
                "daily on 1",
                "daily on 2",
                "daily on 3",
                "daily on 4",
            ],
        ),
        (
            "ahead from the first backup on",
            &[
                "2036-01-01",
                "2036-01-02",
                "2024-01-03",
                "2024-01-04",
                "2024-01-05",
            ],
            &["full", "daily on 1", "daily on 2", "full", "daily on 4"],
        ),
        (
            "set back by an hour",
            &[
                "2024-01-01",
                "2024-01-02T05:00:00Z",
                "2024-01-02T04:00:00Z",
                "2024-01-03",
            ],
            &["full", "daily on 1", "daily on 2", "daily on 3"],
        ),
    ];
    for (name, nights, expected) in cases {
        assert_eq!(played(rules, nights), expected, "{name}");
    }
}
