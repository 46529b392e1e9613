//! A prune plan as people and programs read it: a line a backup, runs of incrementals folded.

use super::output::bytes;
use crate::model::{BackupId, BackupKind, DatasetName};
use crate::plan::BackupFacts;
use crate::plan::prune::{Doubt, Proof};
use crate::plan::retention::{Reason, chains_newest_first, in_order};
use crate::run::prune::PruneLook;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What fits a terminal.
const COLUMNS: usize = 80;

/// One line of the plan before it is folded.
struct Row<'a> {
    keep: bool,
    backup: &'a BackupFacts,
    /// Whole, for a line of its own.
    reasons: Vec<String>,
    /// What must be the same for a run to be one line.
    kinds: Vec<String>,
}

/// The plan of one dataset.
pub(super) fn plan_lines(look: &PruneLook, carried_out: bool) -> Vec<String> {
    let rows = rows(look);
    let mut lines = Vec::new();
    let mut rest = &rows[..];
    while let Some(first) = rest.first() {
        let same = |row: &&Row<'_>| {
            row.backup.kind() == BackupKind::Incr
                && row.keep == first.keep
                && row.backup.full_id == first.backup.full_id
                && row.kinds == first.kinds
        };
        let run = if same(&first) { rest.iter().take_while(same).count() } else { 1 };
        lines.push(line(&rest[..run]));
        rest = &rest[run..];
    }
    let plan = &look.plan;
    for leftover in &plan.delete_leftovers {
        let why = match leftover.proof {
            Proof::PruneRecord => "a prune record names it",
            Proof::Journal => "its upload never reached a commit, and was given up",
        };
        lines.push(format!("delete {}", leftover.id));
        lines.push(format!("       {} objects, {}: {why}", leftover.objects, bytes(leftover.bytes)));
    }
    for left in &plan.left_alone {
        lines.push(format!("left   {}", left.id));
        lines.push(format!("       {} objects, {}: {}", left.objects, bytes(left.bytes), left.why));
        lines.push(format!("       zfs-backup forget {}", left.id));
    }
    let unknown = look.catalog.unknown.len();
    if unknown > 0 {
        lines.push(format!("foreign {unknown} objects that are not of this format, left alone."));
    }
    lines.push(summary(look, carried_out));
    lines
}

fn summary(look: &PruneLook, carried_out: bool) -> String {
    let plan = &look.plan;
    let complete = if plan.doubts.is_empty() { "kept chains checked complete" } else { "NOTHING IS DELETED" };
    let gone = plan.delete.len() + plan.delete_leftovers.len();
    let verb = if carried_out { "Deleted" } else { "Deletes" };
    let free = if carried_out { "freed" } else { "frees" };
    format!("{verb} {gone}, keeps {}, {free} {}; {complete}.", plan.keep.len(), bytes(plan.freed_bytes()))
}

/// Kept ones before those that go; the newest chain first, in a chain the oldest first.
fn rows(look: &PruneLook) -> Vec<Row<'_>> {
    let ordered = in_order(&look.facts);
    let chains = chains_newest_first(&ordered);
    let kept: BTreeMap<&BackupId, &Vec<Reason>> = look.plan.keep.iter().map(|kept| (&kept.id, &kept.reasons)).collect();
    let mut rows: Vec<Row<'_>> = Vec::new();
    for backup in ordered {
        let row = match kept.get(&backup.id) {
            Some(reasons) => Row { keep: true, backup, reasons: words(reasons, false), kinds: words(reasons, true) },
            None => {
                let with_full = backup.id != backup.full_id && !kept.contains_key(&backup.full_id);
                let reason = if with_full { "its full goes".to_owned() } else { Reason::NoRuleKeepsIt.to_string() };
                Row { keep: false, backup, reasons: vec![reason.clone()], kinds: vec![reason] }
            }
        };
        rows.push(row);
    }
    rows.sort_by_key(|row| (!row.keep, chains.iter().position(|chain| **chain == row.backup.full_id)));
    rows
}

/// Reasons in words, none twice. In a run places and ids are left out.
fn words(reasons: &[Reason], in_run: bool) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for reason in reasons {
        let text = match reason {
            Reason::AncestorOf { .. } => "a kept backup follows from it".to_owned(),
            Reason::UnfinishedUpload { .. } => "an unfinished upload builds on its chain".to_owned(),
            Reason::Waiting { .. } => "what waits in the intermediate directory builds on it".to_owned(),
            Reason::Period { .. } | Reason::LastIncremental { .. } if in_run => {
                reason.to_string().split(' ').next().unwrap_or_default().to_owned()
            }
            other => other.to_string(),
        };
        if !words.contains(&text) {
            words.push(text);
        }
    }
    // The newest usable chain is always kept: with another reason it says nothing.
    let usable = Reason::NewestUsableChain.to_string();
    if words.len() > 1 {
        words.retain(|word| *word != usable);
    }
    words
}

fn line(run: &[Row<'_>]) -> String {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return String::new() };
    let action = if first.keep { "keep" } else { "delete" };
    let at = |row: &Row<'_>, format: &str| row.backup.snapshot.created_at.strftime(format).to_string();
    let (what, reasons) = match run.len() {
        1 => {
            let kind = first.backup.kind().as_str();
            (format!("{} {kind}", at(first, "%Y-%m-%d")), &first.reasons)
        }
        count => (format!("{}..{} x{count}", at(first, "%m-%d"), at(last, "%m-%d")), &first.kinds),
    };
    let size: u64 = run.iter().fold(0, |sum, row| sum.saturating_add(row.backup.stored_bytes));
    let start = format!("{action:<6} {what:<17} {:>6} ", bytes(size));
    let room = COLUMNS - start.chars().count().min(COLUMNS);
    format!("{start}{}", fitting(reasons, room))
}

/// As many of the reasons as fit, and how many more there are. The first is always there.
fn fitting(reasons: &[String], room: usize) -> String {
    let mut count = reasons.len();
    loop {
        let more = reasons.len() - count;
        let end = if more == 0 { String::new() } else { format!("; +{more}") };
        let text = format!("{}{end}", reasons[..count].join("; "));
        if count <= 1 || text.chars().count() <= room {
            return text;
        }
        count -= 1;
    }
}

/// Every verdict, for programs.
pub(super) fn plan_to_json(stored: &DatasetName, look: &PruneLook, carried_out: bool) -> Value {
    let plan = &look.plan;
    let text = |reasons: &[Reason]| reasons.iter().map(ToString::to_string).collect::<Vec<_>>();
    let keep: Vec<_> = plan.keep.iter().map(|kept| json!({ "id": kept.id, "reasons": text(&kept.reasons) })).collect();
    let delete: Vec<_> = plan
        .delete
        .iter()
        .map(|doomed| json!({ "id": doomed.id, "bytes": doomed.bytes, "reason": doomed.reason.to_string() }))
        .collect();
    let leftovers: Vec<_> = plan
        .delete_leftovers
        .iter()
        .map(|leftover| {
            let proof = match leftover.proof {
                Proof::PruneRecord => "prune-record",
                Proof::Journal => "journal",
            };
            json!({ "id": leftover.id, "objects": leftover.objects, "bytes": leftover.bytes, "proof": proof })
        })
        .collect();
    let left: Vec<_> = plan
        .left_alone
        .iter()
        .map(|left| json!({ "id": left.id, "objects": left.objects, "bytes": left.bytes, "why": left.why }))
        .collect();
    let doubt = |doubt: &Doubt| json!({ "text": doubt.to_string(), "damage": doubt.is_damage(), "hint": doubt.hint() });
    json!({
        "dataset": stored, "keep": keep, "delete": delete, "delete_leftovers": leftovers, "left_alone": left,
        "doubts": plan.doubts.iter().map(doubt).collect::<Vec<_>>(), "freed_bytes": plan.freed_bytes(),
        "unknown_objects": look.catalog.unknown.len(), "carried_out": carried_out,
    })
}
