//! Backups with levels: day 1 is 1970-01-02, day 31 the first of February, day 365 the first of the
//! next year.

use super::*;
use crate::config::{KeepLevels, LevelBase};
use crate::plan::levels::{FullRule, LevelRules};

fn keep() -> KeepLevels {
    "2y 12m 14d".parse().unwrap()
}

fn rules(base: LevelBase, fulls: FullRule) -> LifecycleRules {
    LifecycleRules {
        levels: Some(LevelRules {
            keep: keep(),
            base,
            fulls,
        }),
        ..RULES
    }
}

fn of_level(level: BackupLevel, n: u64, base: &BackupFacts) -> BackupFacts {
    with(incr(n, base), |backup| backup.made.level = Some(level))
}

/// Returns the backups of a year: the full of day 1, dailies of the days 2 and 3, the monthly of
/// day 31, and a daily of day 32.
fn year() -> Vec<BackupFacts> {
    use BackupLevel::{Daily, Monthly};
    let full = full(1);
    let second = of_level(Daily, 2, &full);
    let third = of_level(Daily, 3, &second);
    let monthly = of_level(Monthly, 31, &full);
    let daily = of_level(Daily, 32, &monthly);
    vec![full, second, third, monthly, daily]
}

/// Returns the case of a snapshot of day `n` whose pool has bookmarks of these days.
fn case(n: u64, bookmarks: &[u64], target: Vec<BackupFacts>) -> Case {
    Case {
        snapshots: vec![n],
        candidate: Some(n),
        bookmarks: bookmarks.to_vec(),
        target,
        now: n,
        rules: rules(LevelBase::Same, FullRule::Period),
        ..Case::default()
    }
}

fn all_here(n: u64) -> Case {
    case(n, &[1, 2, 3, 31, 32], year())
}

#[test]
fn the_level_and_its_base_by_table() {
    let longer = |case: Case| Case {
        rules: rules(LevelBase::Longer, FullRule::Period),
        ..case
    };
    let never = |case: Case| Case {
        rules: rules(LevelBase::Same, FullRule::Never),
        ..case
    };
    let aged = |case: Case| Case {
        rules: rules(
            LevelBase::Same,
            FullRule::Age(SignedDuration::from_hours(24 * 40)),
        ),
        ..case
    };
    check(vec![
        ("nothing stored", case(1, &[], vec![]), L, "full first"),
        ("requested", all_here(33), F, "full requested"),
        (
            "a day",
            all_here(33),
            L,
            "daily incr 33 from #0000000000000020 on incr 32",
        ),
        (
            "a month",
            all_here(59),
            L,
            "monthly incr 59 from #000000000000001f on incr 31",
        ),
        ("a year", all_here(365), L, "full due"),
        (
            "a year, with --incremental",
            all_here(365),
            I,
            "monthly incr 365 from #000000000000001f on incr 31",
        ),
        (
            "a day on a longer level",
            longer(all_here(33)),
            L,
            "daily incr 33 from #000000000000001f on incr 31",
        ),
        (
            "a month on a longer level",
            longer(all_here(59)),
            L,
            "monthly incr 59 from #0000000000000001 on full 1",
        ),
        (
            "a year without fulls",
            never(all_here(365)),
            L,
            "yearly incr 365 from #0000000000000001 on full 1",
        ),
        (
            "the full is young",
            aged(all_here(40)),
            L,
            "daily incr 40 from #0000000000000020 on incr 32",
        ),
        ("the full is old", aged(all_here(41)), L, "full age"),
        (
            "the full is old, with --incremental",
            aged(all_here(41)),
            I,
            "daily incr 41 from #0000000000000020 on incr 32",
        ),
        ("already stored", all_here(32), L, "have incr 32"),
    ]);
}

#[test]
fn a_level_without_a_base_in_the_pool_makes_a_small_full_or_a_shorter_level() {
    let large = |case: Case| Case {
        estimate: Some(1001),
        ..case
    };
    let unknown = |case: Case| Case {
        estimate: None,
        ..case
    };
    let dailies = || case(59, &[2, 3, 32], year());
    let daily = "daily incr 59 from #0000000000000020 on incr 32";
    let alone = |n| Case {
        rules: rules(LevelBase::Longer, FullRule::Period),
        ..case(n, &[32], year())
    };
    check(vec![
        ("a month", dailies(), L, "full no base"),
        ("a month, with a large full", large(dailies()), L, daily),
        (
            "a month, with a full of unknown size",
            unknown(dailies()),
            L,
            daily,
        ),
        ("a month, with --incremental", dailies(), I, daily),
        ("no base of a longer level", alone(33), L, "full no base"),
        (
            "no base of a longer level, and a large full",
            large(alone(33)),
            L,
            "daily incr 33 from #0000000000000020 on incr 32",
        ),
        ("no base at all", case(33, &[], year()), L, "full lost"),
        (
            "no base at all, and a large full",
            large(case(33, &[], year())),
            L,
            "too large",
        ),
    ]);
}

#[test]
fn backups_without_a_level_are_of_the_shortest_and_fulls_of_the_longest() {
    let here = [1, 2, 3, 4];
    check(vec![
        (
            "a day after a chain",
            case(5, &here, chain(1, 4)),
            L,
            "daily incr 5 from #0000000000000004 on incr 4",
        ),
        (
            "a month after a chain",
            case(31, &here, chain(1, 4)),
            L,
            "monthly incr 31 from #0000000000000001 on full 1",
        ),
    ]);
}

#[test]
fn other_flags_and_recipients_make_a_full_unless_a_newer_one_has_them() {
    let other = |backups| all_with(backups, |backup| backup.requested = names(&["raw"]));
    let sealed = |backups| all_with(backups, |backup| backup.recipients = names(&["age1b"]));
    let with_full = |backups: Vec<BackupFacts>| [backups, vec![full(20)]].concat();
    let here = [1, 2, 3, 20, 31, 32];
    check(vec![
        ("flags", case(33, &here, other(year())), L, "full flags"),
        (
            "flags, with --incremental",
            case(33, &here, other(year())),
            I,
            "only full flags",
        ),
        (
            "recipients",
            case(33, &here, sealed(year())),
            L,
            "full recipients",
        ),
        (
            "a full of day 20 that was committed late",
            case(33, &here, with_full(other(year()))),
            L,
            "daily incr 33 from #0000000000000014 on full 20",
        ),
        (
            "the same with equal flags",
            case(33, &here, with_full(year())),
            L,
            "daily incr 33 from #0000000000000014 on full 20",
        ),
    ]);
}

#[test]
fn a_damaged_base_is_left_for_an_older_one() {
    let mut backups = year();
    backups[4] = flawed(backups[4].clone());
    let daily = case(33, &[1, 31, 32], backups.clone());
    backups[3] = flawed(backups[3].clone());
    let monthly = case(33, &[1, 31, 32], backups);
    check(vec![
        (
            "a daily",
            daily,
            L,
            "daily incr 33 from #000000000000001f on incr 31",
        ),
        (
            "a monthly, which is due again",
            monthly,
            L,
            "monthly incr 33 from #0000000000000001 on full 1",
        ),
    ]);
}

#[test]
fn bookmarks_stay_for_the_newest_base_of_each_level_in_two_chains() {
    let here: Vec<Bookmark> = [1, 2, 3, 31, 32, 365, 366, 367].map(bookmark).into();
    let full = full(365);
    let second = of_level(BackupLevel::Daily, 366, &full);
    let third = of_level(BackupLevel::Daily, 367, &second);
    let new = vec![full, second, third];
    let spent = |store: Vec<BackupFacts>, unfinished: &[u64]| -> Vec<u64> {
        let needs = BookmarkNeeds {
            stores: vec![store],
            unfinished: unfinished.iter().map(|n| Guid(*n)).collect(),
            levels: Some(keep()),
            ..BookmarkNeeds::default()
        };
        let spent = spent_bookmarks(&here, &needs);
        let guid = |name: &crate::model::BookmarkName| {
            here.iter()
                .find(|bookmark| bookmark.name == *name)
                .unwrap()
                .guid
                .0
        };
        spent.iter().map(guid).collect()
    };
    // The full 1 is the base of the next yearly, the monthly 31 of the next monthly.
    assert_eq!(spent(year(), &[]), [2, 3]);
    assert_eq!(spent(year(), &[2]), [3]);
    assert_eq!(spent([year(), new].concat(), &[]), [2, 3, 366]);
}

#[test]
fn an_unchanged_dataset_needs_a_backup_only_of_a_longer_level() {
    let is_needed = |case: &Case| {
        let snapshots = [snapshot(case.snapshots[0])];
        let bookmarks: Vec<Bookmark> = case.bookmarks.iter().map(|n| bookmark(*n)).collect();
        let facts = SendFacts {
            bookmarks: &bookmarks,
            ..facts_of(case, &snapshots)
        };
        let (_, newest) = newest_comparable(&facts).unwrap();
        is_longer_level_due(&facts, &case.rules, newest)
    };
    let ends_with = |last: usize| year()[..last].to_vec();
    let here = [1, 2, 3, 31, 32];
    for (what, case, expected) in [
        ("a day after a daily", case(33, &here, year()), false),
        ("a month after a daily", case(59, &here, year()), true),
        (
            "a month after a monthly",
            case(59, &here, ends_with(4)),
            false,
        ),
        ("a month after a full", case(59, &here, ends_with(1)), false),
        (
            "a year after a monthly",
            case(365, &here, ends_with(4)),
            false,
        ),
        ("a year after a daily", case(365, &here, year()), true),
    ] {
        assert_eq!(is_needed(&case), expected, "{what}");
    }
}

#[test]
fn the_text_of_a_due_full_names_its_period() {
    let texts = BackupLevel::ALL.map(|level| {
        let why = FullReason::FirstOf { level, at: at(365) };
        why.to_string()
    });
    insta::assert_snapshot!(texts.join("\n"), @r"
    the first backup of 1971-01-01, hour 00
    the first backup of 1971-01-01
    the first backup of week 1970-W53
    the first backup of 1971-01
    the first backup of 1971
    ");
    let why = FullReason::NoBaseOf {
        level: BackupLevel::Weekly,
    };
    insta::assert_snapshot!(why.to_string(), @"a weekly backup is due, and the pool has neither snapshot nor bookmark of a backup that it may build on");
}
