//! Levels in the configuration: their errors, what they mean for the stores, and in words.

use crate::{notices, parse, screen, with};
use insta::assert_snapshot;

fn lifecycle(text: &str) -> String {
    with("", &format!("[backup-lifecycle]\n{text}"))
}

#[test]
fn malformed_levels_are_refused_with_the_form_that_fits() {
    let text = "keep = \"14d 8w\"\nlevel_base = \"shorter\"\nfull_every = \"seldom\"\n\
        [lifecycle-remote]\nkeep_at_least = \"180\"";
    assert_snapshot!(screen(&lifecycle(text)), @r#"
    zb.toml:7: backup-lifecycle.keep is "14d 8w"
      expected: numbers with the units y m w d h, each unit at most once and the longest first, such as "2y 12m 8w 14d"
      hint: write "8w 14d"
    zb.toml:8: backup-lifecycle.level_base is "shorter"
      expected: "same" or "longer"
    zb.toml:9: backup-lifecycle.full_every is "seldom"
      expected: an age such as 1h, 7d, 1w, 6m or 1y (m = 30 days, y = 365 days), at most 100y, or "never"
    zb.toml:11: lifecycle-remote.keep_at_least is "180"
      expected: an age such as 1h, 7d, 1w, 6m or 1y (m = 30 days, y = 365 days), at most 100y
    "#);
}

#[test]
fn keys_that_levels_replace_cause_a_notice() {
    let keep = "keep = \"2y 12m 8w 14d\"\n";
    assert_snapshot!(notices(&lifecycle(keep)), @"");
    let both = format!("{keep}max_incrementals = 30\nfull_when_incrementals_exceed = \"50%\"");
    assert_snapshot!(notices(&lifecycle(&both)), @r"
    backup-lifecycle.max_incrementals has no effect: keep decides when a full is made; remove one of the two
    backup-lifecycle.full_when_incrementals_exceed has no effect: keep decides when a full is made; remove one of the two
    ");
    let without = "level_base = \"same\"\nfull_every = \"never\"\n\
        [lifecycle-remote]\nkeep_at_least = \"180d\"";
    assert_snapshot!(notices(&lifecycle(without)), @r#"
    backup-lifecycle.level_base has no effect: there are no shorter and longer levels; set keep, such as keep = "2y 12m 8w 14d"
    backup-lifecycle.full_every has no effect: "never" is for keep; without keep full_when_incrementals_exceed decides
    lifecycle-remote.keep_at_least has no effect: no rule deletes a backup
    "#);
    assert_snapshot!(notices(&lifecycle("keep = \"14d\"")), @r#"backup-lifecycle.keep is "14d", so every backup is a full: add a longer or a shorter unit, or set full_every"#);
    assert_snapshot!(notices(&lifecycle("keep = \"14d\"\nfull_every = \"90d\"")), @"");
}

/// Returns the sentences of `config check` about the lifecycle.
fn meaning(text: &str) -> String {
    let advice = parse(text).unwrap().check_advice();
    let lines = advice
        .iter()
        .filter(|line| line.subject == "backups" || line.subject.ends_with("retention"));
    lines
        .map(|line| format!("{}: {}\n", line.subject, line.text))
        .collect()
}

#[test]
fn levels_are_said_in_one_sentence_each() {
    assert_snapshot!(meaning(&lifecycle("keep = \"2y 12m 8w 14d\"")), @r"
    backups: the first backup of a year is a full, the first of a month a monthly incremental, the first of a week a weekly incremental, and every other backup a daily incremental; each builds on the newest of its own or a longer level
    remote retention: these stay, with all that they build on: the newest yearly backup of 2 years, the newest monthly backup of 12 months, the newest weekly backup of 8 weeks, the newest daily backup of 14 days
    ");
    let rest = "keep = \"1m 24h\"\nlevel_base = \"longer\"\nfull_every = \"1y\"\n\
        [lifecycle-remote]\nkeep-last-full-only = 3\nkeep_at_least = \"180d\"";
    assert_snapshot!(meaning(&lifecycle(rest)), @r"
    backups: a backup is a full when the full of its chain is 1y old, and the first of a month is a monthly incremental, and every other backup an hourly incremental; each builds on the newest of a longer level
    remote retention: these stay, with all that they build on: the newest monthly backup of 1 month, the newest hourly backup of 24 hours, the 3 newest fulls; nothing is deleted before it was stored for 180d
    ");
    let never = "keep = \"12m 14d\"\nfull_every = \"never\"";
    assert_snapshot!(meaning(&lifecycle(never)).lines().next().unwrap(), @"backups: only the first backup is a full, and the first of a month is a monthly incremental, which builds on the one before and is never deleted, and every other backup a daily incremental; each builds on the newest of its own or a longer level");
    assert_snapshot!(meaning(&lifecycle("keep = \"14d\"")).lines().next().unwrap(), @"backups: the first backup of a day is a full, and so is every other backup of that day");
    assert_snapshot!(meaning(&lifecycle("")), @r"
    backups: each backup is an incremental on the one before, until the incrementals of a chain hold more than 50% of its full; then a full
    remote retention: every backup stays: there is no rule
    ");
}

#[test]
fn levels_are_the_retention_of_both_stores() {
    let levels = |main: &str, rest: &str| {
        let rest = format!("[backup-lifecycle]\nkeep = \"12m 14d\"\n{rest}");
        let config = parse(&with(main, &rest)).unwrap();
        let steps: Vec<&str> = config.sequence.iter().map(|step| &*step.line).collect();
        (
            config.lifecycle_remote.levels.is_some(),
            config.lifecycle_intermediate.levels.is_some(),
            steps.contains(&"prune-remote -y"),
            steps.contains(&"prune-intermediate -y"),
        )
    };
    let folder = "intermediate_basedir = \"/srv/export\"";
    let own = "[lifecycle-intermediate]\nkeep-last-chains = 1";
    let remote = "[lifecycle-remote]\nkeep-last-chains = 1";
    assert_eq!(levels("", ""), (true, false, true, false));
    assert_eq!(levels("", remote), (true, false, true, false));
    assert_eq!(levels(folder, ""), (true, true, true, true));
    // The remote has every level, so the directory may be smaller.
    assert_eq!(levels(folder, own), (true, false, true, true));
}

#[test]
fn an_object_lock_covers_the_chains_of_a_level() {
    let covers = |days: u32, keep: &str| {
        let rest = format!("[backup-lifecycle]\n{keep}\n[s3]\nobject_lock_days = {days}\n");
        let config = parse(&with("", &rest)).unwrap();
        config.object_lock().map(|lock| lock.covers_chains)
    };
    for (days, keep, expected) in [
        (366, "keep = \"2y 14d\"", true),
        (365, "keep = \"2y 14d\"", false),
        (31, "keep = \"12m 14d\"", true),
        (90, "keep = \"2y 14d\"\nfull_every = \"90d\"", true),
        (900, "keep = \"2y 14d\"\nfull_every = \"never\"", false),
    ] {
        assert_eq!(covers(days, keep), Some(expected), "{days} {keep}");
    }
}
