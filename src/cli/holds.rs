//! `holds list` and `holds release`.

use super::Failure;
use super::args::Holds;
use super::context::Context;
use super::output::{Output, WIDTH, age, bytes, wrap};
use super::wire::{open_zfs, store_urls};
use crate::run::error_chain;
use crate::run::holds::{JudgedHold, plan_release, release_holds};
use crate::run::restore::left_half;
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub(super) fn holds(context: &Context, command: &Holds) -> Result<(), Failure> {
    let Context { global, output, .. } = context;
    let config = &context.config()?.0;
    let (zfs, urls) = (open_zfs()?, store_urls(config));
    let act = matches!(command, Holds::Release(prune) if prune.yes) && !global.dry_run;
    let (mut all, mut halves) = (Vec::new(), Vec::new());
    for selected in context.datasets(&*zfs)? {
        let name = &selected.dataset.name;
        halves.extend(left_half(&selected.dataset)?);
        if !act {
            match plan_release(&*zfs, &config.state_dir, &urls, &selected) {
                Ok(planned) => {
                    context.done(name, 0);
                    all.extend(planned.into_iter().map(|judged| (judged, None)));
                }
                Err(error) => context.failed(name, &error.into()),
            }
            continue;
        }
        match release_holds(&*zfs, &config.state_dir, &urls, &selected) {
            Ok(released) => {
                context.done(name, 0);
                for (judged, outcome) in released {
                    let failed = outcome.err().map(|error| {
                        let text = error_chain(&error);
                        context.failed(name, &error.into());
                        text
                    });
                    all.push((judged, Some(failed)));
                }
            }
            Err(error) => context.failed(name, &error.into()),
        }
    }
    let listing = matches!(command, Holds::List);
    lines(&all, listing, Timestamp::now()).iter().for_each(|line| output.line(line));
    for (what, advice) in halves.iter().filter(|_| listing) {
        output.line(what);
        wrap(&format!("  {advice}"), WIDTH, "    ").iter().for_each(|line| output.line(line));
    }
    print_json(&all, output);
    context.verdict()
}

/// A hold, and once something was done: whether that failed.
type Listed = (JudgedHold, Option<Option<String>>);

/// What is held, and what became or would become of each.
fn lines(all: &[Listed], listing: bool, now: Timestamp) -> Vec<String> {
    if all.is_empty() {
        return vec!["nothing is held by zfs-backup on the configured datasets".to_owned()];
    }
    let mut lines = Vec::new();
    for (judged, done) in all {
        let hold = &judged.hold;
        let alone = if hold.holds > 1 { format!(", held {} times", hold.holds) } else { String::new() };
        let verdict = match (&judged.stays, done) {
            (Some(why), _) => format!("stays: {why}"),
            (None, None) if listing => "may be released".to_owned(),
            (None, None) => "would be released".to_owned(),
            (None, Some(None)) => "released".to_owned(),
            (None, Some(Some(error))) => format!("NOT released: {error}"),
        };
        lines.push(hold.snapshot.to_string());
        lines.push(format!("  since {}, keeps {}{alone}", age(now, hold.since), bytes(hold.used_bytes)));
        lines.push(format!("  {}", hold.tag));
        lines.extend(wrap(&format!("  {verdict}"), WIDTH, "    "));
    }
    let free = all.iter().filter(|(judged, _)| judged.stays.is_none());
    let snapshots: BTreeSet<_> =
        free.clone().map(|(judged, _)| (&judged.hold.snapshot, judged.hold.used_bytes)).collect();
    let sum = snapshots.iter().fold(0, |sum, (_, bytes)| u64::saturating_add(sum, *bytes));
    lines.push(format!("{} of {} may go; prune-snapshots can then free {}", free.count(), all.len(), bytes(sum)));
    if all.iter().any(|(judged, done)| judged.stays.is_none() && done.is_none()) && !listing {
        lines.push("-y releases them. An interrupted upload that needs one would start over.".to_owned());
    }
    lines
}

fn print_json(all: &[Listed], output: &Output) {
    output.json(|| {
        let holds: Vec<Value> = all
            .iter()
            .map(|(judged, done)| {
                let hold = &judged.hold;
                json!({
                    "snapshot": hold.snapshot, "tag": hold.tag, "backup": hold.id, "since": hold.since,
                    "used_bytes": hold.used_bytes, "stays": judged.stays,
                    "released": matches!((&judged.stays, done), (None, Some(None))),
                })
            })
            .collect();
        json!({ "format": 1, "holds": holds })
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::holds::OurHold;

    fn listed(stays: Option<&str>, done: Option<Option<&str>>) -> Listed {
        let id = "20261122T212604Z-full-0123456789abcdef-fedcba9876543210";
        let hold = OurHold {
            snapshot: "tank/media@zfs-backup_20261122T212604Z".parse().unwrap(),
            tag: format!("zfs-backup:{id}"),
            id: id.parse().ok(),
            since: Timestamp::UNIX_EPOCH,
            used_bytes: 31 << 30,
            holds: 2,
        };
        (JudgedHold { hold, stays: stays.map(str::to_owned) }, done.map(|failed| failed.map(str::to_owned)))
    }

    #[test]
    fn every_hold_says_what_it_keeps_and_what_becomes_of_it() {
        let now = Timestamp::from_second(7200).unwrap();
        let all = [listed(None, None), listed(Some("a run is at work on the dataset in s3:b"), None)];
        let screen = lines(&all, false, now).join("\n");
        insta::assert_snapshot!(screen, @r"
        tank/media@zfs-backup_20261122T212604Z
          since 2h, keeps 31.0G, held 2 times
          zfs-backup:20261122T212604Z-full-0123456789abcdef-fedcba9876543210
          would be released
        tank/media@zfs-backup_20261122T212604Z
          since 2h, keeps 31.0G, held 2 times
          zfs-backup:20261122T212604Z-full-0123456789abcdef-fedcba9876543210
          stays: a run is at work on the dataset in s3:b
        1 of 2 may go; prune-snapshots can then free 31.0G
        -y releases them. An interrupted upload that needs one would start over.
        ");
        assert!(screen.lines().all(|line| line.chars().count() <= 80));
        let after = lines(&[listed(None, Some(None)), listed(None, Some(Some("EPERM")))], false, now).join("\n");
        assert!(after.contains("  released") && after.contains("NOT released: EPERM"), "{after}");
        assert_eq!(lines(&[], true, now).len(), 1);
    }
}
