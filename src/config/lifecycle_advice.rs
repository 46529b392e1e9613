//! The sentences of `config check` about the lifecycle sections: how backups are made, and which of
//! them stay.

use super::document::Document;
use super::levels::{FullEvery, KeepLevels, LevelBase};
use super::lifecycle::{BackupLifecycle, RetentionRules};
use super::{Age, Config};
use crate::model::BackupLevel;

impl Config {
    /// Says how backups are made.
    pub(super) fn backups_advice(&self) -> String {
        let rules = &self.backup_lifecycle;
        match &rules.keep {
            Some(keep) => levels_sentence(keep, rules),
            None => chains_sentence(rules),
        }
    }

    /// Says which backups stay in the remote.
    pub(super) fn remote_retention_advice(&self) -> Option<String> {
        let text = retention_sentence(&self.lifecycle_remote);
        self.remote.is_some().then_some(text)
    }

    /// Says which backups stay in the intermediate directory.
    pub(super) fn intermediate_retention_advice(&self) -> Option<String> {
        self.intermediate.as_ref()?;
        let rules = &self.lifecycle_intermediate;
        let text = retention_sentence(rules);
        let is_smaller = self.backup_lifecycle.keep.is_some() && rules.levels.is_none();
        Some(if is_smaller {
            format!(
                "{text}; [lifecycle-intermediate] replaces keep here: the remote has every level"
            )
        } else {
            text
        })
    }
}

/// Adds a notice for each key of `[backup-lifecycle]` and of the retention sections that has no
/// effect in this combination.
pub(super) fn note_idle_lifecycle(document: &Document<'_>, config: &Config) {
    let rules = &config.backup_lifecycle;
    let has_levels = rules.keep.is_some();
    let has_one_level = rules
        .keep
        .is_some_and(|keep| keep.longest() == keep.shortest());
    let idle = [
        (
            "backup-lifecycle.max_incrementals",
            has_levels,
            "keep decides when a full is made; remove one of the two",
        ),
        (
            "backup-lifecycle.full_when_incrementals_exceed",
            has_levels,
            "keep decides when a full is made; remove one of the two",
        ),
        (
            "backup-lifecycle.level_base",
            !has_levels || has_one_level,
            "there are no shorter and longer levels; set keep, such as keep = \"2y 12m 8w 14d\"",
        ),
        (
            "backup-lifecycle.full_every",
            !has_levels && rules.full_every == Some(FullEvery::Never),
            "\"never\" is for keep; without keep full_when_incrementals_exceed decides",
        ),
        (
            "lifecycle-remote.keep_at_least",
            config.lifecycle_remote.keeps_everything(),
            "no rule deletes a backup",
        ),
        (
            "lifecycle-intermediate.keep_at_least",
            config.lifecycle_intermediate.keeps_everything(),
            "no rule deletes a backup",
        ),
    ];
    for (key, is_idle, reason) in idle {
        if is_idle && document.has(key) {
            document.notice(key, format!("{key} has no effect: {reason}"));
        }
    }
    if let Some(keep) = rules
        .keep
        .filter(|_| has_one_level && rules.full_every.is_none())
    {
        let key = "backup-lifecycle.keep";
        document.notice(
            key,
            format!(
                "{key} is \"{keep}\", so every backup is a full: add a longer or a shorter unit, or set full_every"
            ),
        );
    }
}

/// Says how backups of several levels are made.
fn levels_sentence(keep: &KeepLevels, rules: &BackupLifecycle) -> String {
    let mut levels = keep.levels().rev().map(|(level, _)| level);
    let longest = levels.next().unwrap_or(keep.longest());
    let fulls = match rules.full_every {
        None => format!("the first backup of a {} is a full", longest.unit()),
        Some(FullEvery::Never) => format!(
            "only the first backup is a full, and the first of a {} is {} incremental, which builds on the one before and is never deleted",
            longest.unit(),
            with_article(longest)
        ),
        Some(FullEvery::Age(age)) => format!(
            "a backup is a full when the full of its chain is {age} old, and the first of a {} is {} incremental",
            longest.unit(),
            with_article(longest)
        ),
    };
    let shorter: Vec<BackupLevel> = levels.collect();
    let Some((shortest, between)) = shorter.split_last() else {
        return format!(
            "{fulls}, and so is every other backup of that {}",
            longest.unit()
        );
    };
    let between = between.iter().map(|level| {
        format!(
            ", the first of a {} {} incremental",
            level.unit(),
            with_article(*level)
        )
    });
    let bases = match rules.level_base.unwrap_or_default() {
        LevelBase::Same => "each builds on the newest of its own or a longer level",
        LevelBase::Longer => "each builds on the newest of a longer level",
    };
    format!(
        "{fulls}{}, and every other backup {} incremental; {bases}",
        between.collect::<String>(),
        with_article(*shortest)
    )
}

fn with_article(level: BackupLevel) -> String {
    match level {
        BackupLevel::Hourly => format!("an {level}"),
        _ => format!("a {level}"),
    }
}

/// Says how backups without levels are made.
fn chains_sentence(rules: &BackupLifecycle) -> String {
    let age = rules.full_every.and_then(FullEvery::age);
    let mut limits = vec![format!(
        "the incrementals of a chain hold more than {} of its full",
        rules.full_when_incrementals_exceed
    )];
    limits.extend(age.map(|age| format!("the full is {age} old")));
    limits.extend(
        rules
            .max_incrementals
            .map(|count| format!("the chain has {count} incrementals")),
    );
    format!(
        "each backup is an incremental on the one before, until {}; then a full",
        limits.join(", or ")
    )
}

/// Says which backups a set of rules keeps.
fn retention_sentence(rules: &RetentionRules) -> String {
    if rules.keeps_everything() {
        return "every backup stays: there is no rule".to_owned();
    }
    let mut kept = Vec::new();
    if let Some(keep) = &rules.levels {
        let levels = keep.levels().rev().map(|(level, count)| {
            let unit = level.unit();
            let plural = if count == 1 { "" } else { "s" };
            format!("the newest {level} backup of {count} {unit}{plural}")
        });
        kept.extend(levels);
    }
    kept.extend(older_rules(rules));
    let at_least = rules.at_least.map_or_else(String::new, |age: Age| {
        format!("; nothing is deleted before it was stored for {age}")
    });
    format!(
        "these stay, with all that they build on: {}{at_least}",
        kept.join(", ")
    )
}

/// Describes the rules of a retention section.
fn older_rules(rules: &RetentionRules) -> Vec<String> {
    let counts = [
        (rules.last_chains, "newest chains, whole"),
        (rules.last_fulls, "newest fulls"),
        (rules.last_incrementals, "newest incrementals"),
        (rules.daily, "newest days, one backup each"),
        (rules.weekly, "newest weeks, one backup each"),
        (rules.monthly, "newest months, one backup each"),
        (rules.yearly, "newest years, one backup each"),
    ];
    let mut kept: Vec<String> = counts
        .into_iter()
        .filter_map(|(count, what)| Some((count.filter(|count| *count > 0)?, what)))
        .map(|(count, what)| format!("the {count} {what}"))
        .collect();
    let ages: Vec<String> = rules.full_ages.iter().map(Age::to_string).collect();
    if !ages.is_empty() {
        kept.push(format!("the fulls nearest to the ages {}", ages.join(", ")));
    }
    kept.extend(
        rules
            .within
            .map(|age| format!("everything younger than {age}")),
    );
    kept
}
