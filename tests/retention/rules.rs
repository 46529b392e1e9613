//! Every sentence about what rules keep.

use crate::facts::{Shelf, at, label, origin};
use zfs_backup::config::RetentionRules;
use zfs_backup::model::{BackupId, BackupLevel};
use zfs_backup::plan::retention::{age_words, decide_retention, in_order};

/// Two chains by month, one of them with a branch.
///
/// ```text
/// F10 - i11 - i12        F20 - i21 - i22
///          \- i13                \- i23
/// ```
fn two_chains() -> Shelf {
    let mut shelf = Shelf::new("2026-03-01");
    let full = shelf.full(10, "2026-01-01");
    let first = shelf.incr(11, "2026-01-02", &full);
    shelf.incr(12, "2026-01-03", &first);
    shelf.incr(13, "2026-01-04", &first);
    let full = shelf.full(20, "2026-02-01");
    shelf.incr(21, "2026-02-02", &full);
    let second = shelf.incr(22, "2026-02-03", &full);
    shelf.incr(23, "2026-02-04", &second);
    shelf
}

fn kept_by(shelf: &Shelf, rules: &RetentionRules) -> String {
    let kept = |shelf: &Shelf| {
        let verdicts = decide_retention(&shelf.facts, rules, shelf.now);
        assert_eq!(verdicts.len(), shelf.facts.len());
        let kept = verdicts
            .iter()
            .filter(|verdict| verdict.keep)
            .map(|verdict| label(&verdict.id));
        kept.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        kept(shelf),
        kept(&shelf.reversed()),
        "the order of the input decided"
    );
    kept(shelf)
}

fn rules(edit: impl FnOnce(&mut RetentionRules)) -> RetentionRules {
    let mut rules = RetentionRules::default();
    edit(&mut rules);
    rules
}

fn ages(ages: &[&str]) -> RetentionRules {
    rules(|rules| rules.full_ages = ages.iter().map(|age| age.parse().unwrap()).collect())
}

const ALL: &str = "F10 i11 i12 i13 F20 i21 i22 i23";

#[test]
fn each_rule_by_table() {
    let shelf = two_chains();
    let cases: &[(&str, RetentionRules, &str)] = &[
        ("no rule keeps everything", rules(|_| {}), ALL),
        (
            "the newest chain, whole",
            rules(|r| r.last_chains = Some(1)),
            "F20 i21 i22 i23",
        ),
        ("two chains", rules(|r| r.last_chains = Some(2)), ALL),
        (
            "more chains than there are",
            rules(|r| r.last_chains = Some(9)),
            ALL,
        ),
        ("no chain", rules(|r| r.last_chains = Some(0)), ""),
        (
            "the newest full alone counts",
            rules(|r| r.last_fulls = Some(1)),
            "F20",
        ),
        (
            "the fulls of two chains",
            rules(|r| r.last_fulls = Some(2)),
            "F10 F20",
        ),
        (
            "the newest incremental, without what it depends on",
            rules(|r| r.last_incrementals = Some(1)),
            "i23",
        ),
        (
            "two of them",
            rules(|r| r.last_incrementals = Some(2)),
            "i22 i23",
        ),
        (
            "never those of an older chain",
            rules(|r| r.last_incrementals = Some(9)),
            "i21 i22 i23",
        ),
        (
            "what is younger, with all ancestors",
            rules(|r| r.within = Some("26d".parse().unwrap())),
            "F20 i22 i23",
        ),
        (
            "exactly as old counts as within",
            rules(|r| r.within = Some("25d".parse().unwrap())),
            "F20 i22 i23",
        ),
        (
            "within nothing",
            rules(|r| r.within = Some("24d".parse().unwrap())),
            "",
        ),
        (
            "the newest of one day, with its ancestors",
            rules(|r| r.daily = Some(1)),
            "F20 i22 i23",
        ),
        ("two days", rules(|r| r.daily = Some(2)), "F20 i22 i23"),
        (
            "three days",
            rules(|r| r.daily = Some(3)),
            "F20 i21 i22 i23",
        ),
        (
            "two months",
            rules(|r| r.monthly = Some(2)),
            "F10 i11 i13 F20 i22 i23",
        ),
        ("one year", rules(|r| r.yearly = Some(5)), "F20 i22 i23"),
        (
            "a union",
            rules(|r| (r.last_fulls, r.last_incrementals) = (Some(2), Some(1))),
            "F10 F20 i23",
        ),
    ];
    for (what, rules, expected) in cases {
        assert_eq!(kept_by(&shelf, rules), *expected, "{what}");
    }
}

#[test]
fn chain_order_follows_the_newest_backup_of_each_chain() {
    let mut shelf = two_chains();
    // The older full got the newest incremental.
    let old = shelf.facts[0].id.clone();
    shelf.incr(30, "2026-02-20", &old);
    assert_eq!(
        kept_by(&shelf, &rules(|r| r.last_chains = Some(1))),
        "F10 i11 i12 i13 i30"
    );
    assert_eq!(kept_by(&shelf, &rules(|r| r.last_fulls = Some(1))), "F10");
    assert_eq!(
        kept_by(&shelf, &rules(|r| r.last_incrementals = Some(2))),
        "i13 i30"
    );
}

#[test]
fn fulls_on_both_sides_of_each_wanted_age_are_kept() {
    let mut shelf = Shelf::new("2026-12-31");
    for (txg, time) in [
        (1, "2025-12-01"),
        (2, "2026-05-01"),
        (3, "2026-08-01"),
        (4, "2026-12-01"),
        (5, "2026-12-28"),
    ] {
        shelf.full(txg, time);
    }
    for (wanted, expected) in [
        (&["1w"][..], "F4 F5"),
        (&["6m"], "F2 F3"),
        (&["1y"], "F1 F2"),
        (&["10y"], "F1"),
        (&["1h"], "F5"),
        (&["1w", "6m", "1y"], "F1 F2 F3 F4 F5"),
        (&["1y", "1w"], "F1 F2 F4 F5"),
    ] {
        assert_eq!(kept_by(&shelf, &ages(wanted)), expected, "{wanted:?}");
    }
    // One that is exactly as old is both.
    assert_eq!(kept_by(&shelf, &ages(&["30d"])), "F4");
}

#[test]
fn monthly_fulls_always_leave_one_near_the_wanted_age() {
    // A full every month, for two years: in each month there is a full not younger than half a
    // year.
    let mut shelf = Shelf::new("2026-01-01");
    let mut day = at("2026-01-01");
    for txg in 1..=24 {
        shelf.now = day;
        shelf.full(txg, &day.to_string());
        let verdicts = decide_retention(&shelf.facts, &ages(&["6m"]), day);
        shelf.facts.retain(|backup| {
            verdicts
                .iter()
                .any(|verdict| verdict.keep && verdict.id == backup.id)
        });
        if txg > 7 {
            let oldest = in_order(&shelf.facts)[0].snapshot.created_at;
            let days = (day.as_second() - oldest.as_second()) / 86_400;
            assert!(
                (180..=395).contains(&days),
                "after {txg} months the oldest has {days} days"
            );
        }
        day = jiff::Timestamp::from_second(day.as_second() + 30 * 86_400).unwrap();
    }
}

#[test]
fn retention_verdict_shows_the_wanted_and_the_actual_age() {
    let mut shelf = Shelf::new("2026-11-22");
    shelf.full(1, "2026-05-20");
    let verdicts = decide_retention(&shelf.facts, &ages(&["6m"]), shelf.now);
    assert_eq!(
        verdicts[0].reasons[0].to_string(),
        "age 6m wanted, is 6m 6d"
    );
    for (seconds, words) in [
        (-1, "in the future"),
        (0, "less than 1h"),
        (3600, "1h"),
        (90_000, "1d 1h"),
        (400 * 86_400, "1y 1m"),
        (365 * 86_400 + 3600, "1y 1h"),
    ] {
        assert_eq!(age_words(seconds), words, "{seconds}");
    }
}

#[test]
fn periods_are_those_of_the_utc_calendar() {
    let mut shelf = Shelf::new("2027-01-10");
    // Sunday, Monday; the last hour of a year and the first of the next, which lie in one ISO week.
    for (txg, time) in [
        (1, "2026-12-27T23:59:59Z"),
        (2, "2026-12-28T00:00:00Z"),
        (3, "2026-12-31T23:30:00Z"),
        (4, "2027-01-01T00:30:00Z"),
        (5, "2027-01-01T23:30:00Z"),
    ] {
        shelf.full(txg, time);
    }
    let count = |edit: fn(&mut RetentionRules)| kept_by(&shelf, &rules(edit));
    assert_eq!(count(|r| r.daily = Some(2)), "F3 F5");
    assert_eq!(count(|r| r.daily = Some(4)), "F1 F2 F3 F5");
    assert_eq!(count(|r| r.weekly = Some(2)), "F1 F5");
    assert_eq!(count(|r| r.monthly = Some(2)), "F3 F5");
    assert_eq!(count(|r| r.yearly = Some(1)), "F5");
}

#[test]
fn within_an_origin_the_transaction_group_orders_and_across_origins_the_time() {
    let mut shelf = Shelf::new("2026-03-01");
    // The clock was wrong when F2 was taken.
    shelf.full(1, "2026-02-10");
    shelf.full(2, "2026-01-01");
    let other = shelf.full(3, "2026-02-01");
    shelf.get_mut(&other).origin = origin(2);
    let order: Vec<String> = in_order(&shelf.facts)
        .iter()
        .map(|backup| label(&backup.id))
        .collect();
    assert_eq!(order, ["F3", "F1", "F2"]);
    assert_eq!(kept_by(&shelf, &rules(|r| r.last_fulls = Some(1))), "F2");
    assert_eq!(kept_by(&shelf, &rules(|r| r.last_fulls = Some(2))), "F1 F2");
}

#[test]
fn two_backups_of_one_snapshot_do_not_depend_on_the_order_of_a_listing() {
    let mut shelf = Shelf::new("2026-03-01");
    let full = shelf.full(1, "2026-01-01");
    shelf.incr(2, "2026-01-02", &full);
    shelf.full(2, "2026-01-02");
    assert_eq!(kept_by(&shelf, &rules(|r| r.last_fulls = Some(1))), "F1");
    assert_eq!(kept_by(&shelf, &rules(|r| r.daily = Some(1))), "F1 i2");
}

#[test]
fn cyclic_bases_do_not_hang_the_retention_rules() {
    let mut shelf = Shelf::new("2026-03-01");
    let full = shelf.full(1, "2026-01-01");
    let a = shelf.incr(2, "2026-01-02", &full);
    let b = shelf.incr(3, "2026-01-03", &a);
    shelf.get_mut(&a).base = Some(b);
    assert_eq!(kept_by(&shelf, &rules(|r| r.daily = Some(1))), "i2 i3");
    assert_eq!(shelf.plan().doubts, []);
}

/// A full of the year, dailies of three days, a weekly, a monthly and what follows from them.
///
/// ```text
/// F1 - i2 - i3   F1 - i4 - i5   F1 - i6 - i7
///  yearly daily      weekly daily   monthly daily
/// ```
fn leveled() -> Shelf {
    use BackupLevel::{Daily, Monthly, Weekly};
    let mut shelf = Shelf::new("2024-02-10");
    let full = shelf.full(1, "2024-01-01");
    let mut add = |txg, time, base: &BackupId, level| {
        let id = shelf.incr(txg, time, base);
        shelf.get_mut(&id).made.level = Some(level);
        id
    };
    let second = add(2, "2024-01-02", &full, Daily);
    add(3, "2024-01-03", &second, Daily);
    let weekly = add(4, "2024-01-08", &full, Weekly);
    add(5, "2024-01-09", &weekly, Daily);
    let monthly = add(6, "2024-02-01", &full, Monthly);
    add(7, "2024-02-02", &monthly, Daily);
    shelf
}

fn keep(text: &str) -> RetentionRules {
    rules(|rules| rules.levels = Some(text.parse().unwrap()))
}

#[test]
fn each_level_keeps_its_newest_periods_and_what_they_build_on() {
    let shelf = leveled();
    for (rules, expected) in [
        (keep("1y"), "F1"),
        (keep("1m"), "F1 i6"),
        (keep("2m"), "F1 i6"),
        (keep("1w"), "F1 i6"),
        (keep("2w"), "F1 i4 i6"),
        (keep("1d"), "F1 i6 i7"),
        (keep("3d"), "F1 i4 i5 i6 i7"),
        (keep("1y 2m 2w 1d"), "F1 i4 i6 i7"),
        (keep("9d"), "F1 i2 i3 i4 i5 i6 i7"),
    ] {
        assert_eq!(kept_by(&shelf, &rules), expected, "{:?}", rules.levels);
    }
    let mut both = keep("1y");
    both.daily = Some(1);
    assert_eq!(kept_by(&shelf, &both), "F1 i6 i7");
    let verdicts = decide_retention(&shelf.facts, &both, shelf.now);
    let of_full = verdicts
        .iter()
        .find(|verdict| label(&verdict.id) == "F1")
        .unwrap();
    let texts: Vec<String> = of_full.reasons.iter().map(ToString::to_string).collect();
    assert!(texts.contains(&"yearly level 1/1".to_owned()), "{texts:?}");
}

/// Levels are configured for a chain of nightly incrementals: the restore points of the past months
/// stay.
#[test]
fn periods_from_before_the_levels_keep_their_newest_backup() {
    let mut shelf = leveled();
    for backup in &mut shelf.facts {
        backup.made.level = None;
    }
    // The year and the first month and week have a full, so no other backup is needed there.
    assert_eq!(kept_by(&shelf, &keep("1y")), "F1");
    assert_eq!(kept_by(&shelf, &keep("2m")), "F1 i6 i7");
    assert_eq!(kept_by(&shelf, &keep("2w")), "F1 i4 i5 i6 i7");
}

#[test]
fn keep_at_least_counts_from_the_time_of_storing_and_says_until_when() {
    let mut shelf = leveled();
    let mut rules = keep("1m");
    rules.at_least = Some("30d".parse().unwrap());
    for backup in &mut shelf.facts {
        backup.made.finished_at = at("2023-01-01");
    }
    assert_eq!(kept_by(&shelf, &rules), "F1 i6");
    // Stored weeks after its snapshot was taken. Its base stays with it.
    shelf.facts[2].made.stored_at = Some(at("2024-01-20"));
    assert_eq!(kept_by(&shelf, &rules), "F1 i2 i3 i6");
    // Without a time of the store the time of the host counts.
    shelf.facts[4].made.finished_at = at("2024-01-12");
    assert_eq!(kept_by(&shelf, &rules), "F1 i2 i3 i4 i5 i6");
    let verdicts = decide_retention(&shelf.facts, &rules, shelf.now);
    let reason = |name: &str| {
        let verdict = verdicts.iter().find(|verdict| label(&verdict.id) == name);
        verdict.unwrap().reasons[0].to_string()
    };
    assert_eq!(
        reason("i3"),
        "kept at least until 2024-02-19 (keep_at_least)"
    );
    assert_eq!(reason("i6"), "monthly level 1/1");
    shelf.now = at("2024-02-19");
    assert_eq!(kept_by(&shelf, &rules), "F1 i6");
}
