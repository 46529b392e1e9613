//! A prune plan for people and programs: one line for each backup, with runs of incrementals
//! folded.

use crate::cli::screen::table::bytes;
use crate::model::{BackupId, BackupKind, DatasetName};
use crate::plan::BackupFacts;
use crate::plan::prune::{Proof, PrunePlan};
use crate::plan::retention::{Reason, chains_newest_first, in_order};
use crate::run::prune::PruneView;
use serde::Serialize;
use std::collections::BTreeMap;

/// The width of a terminal.
const COLUMNS: usize = 80;

/// A line of the plan before it is folded.
struct Row<'a> {
    keep: bool,
    backup: &'a BackupFacts,
    /// The full reasons, for a line of its own.
    reasons: Vec<String>,
    /// The reasons that must be equal for a run to be one line.
    kinds: Vec<String>,
}

/// Returns the plan of one dataset.
pub(crate) fn plan_lines(view: &PruneView, carried_out: bool) -> Vec<String> {
    lines_of(
        &view.facts,
        &view.plan,
        view.catalog.unknown.len(),
        carried_out,
    )
}

fn lines_of(
    facts: &[BackupFacts],
    plan: &PrunePlan,
    unknown: usize,
    carried_out: bool,
) -> Vec<String> {
    let rows = rows(facts, plan);
    let mut lines = Vec::new();
    let mut rest = &rows[..];
    while let Some(first) = rest.first() {
        let same = |row: &&Row<'_>| {
            row.backup.kind() == BackupKind::Incr
                && row.keep == first.keep
                && row.backup.full_id == first.backup.full_id
                && row.kinds == first.kinds
        };
        let run = if same(&first) {
            rest.iter().take_while(same).count()
        } else {
            1
        };
        lines.push(line(&rest[..run]));
        rest = &rest[run..];
    }
    for leftover in &plan.delete_leftovers {
        let why = match leftover.proof {
            Proof::PruneRecord => "a prune record names it",
            Proof::Journal => "its upload never reached a commit, and was abandoned",
        };
        lines.push(format!("delete {}", leftover.id));
        lines.push(format!(
            "       {} objects, {}: {why}",
            leftover.objects,
            bytes(leftover.bytes)
        ));
    }
    for left in &plan.left_alone {
        lines.push(format!("left   {}", left.id));
        lines.push(format!(
            "       {} objects, {}: {}",
            left.objects,
            bytes(left.bytes),
            left.why
        ));
        let id = &left.id;
        lines.push(format!("       zfs-backup forget {id}"));
    }
    if unknown > 0 {
        lines.push(format!(
            "foreign {unknown} objects that are not of this format, left alone."
        ));
    }
    lines.push(summary(plan, carried_out));
    lines
}

fn summary(plan: &PrunePlan, carried_out: bool) -> String {
    let complete = if plan.doubts.is_empty() {
        "kept chains checked complete"
    } else {
        "NOTHING IS DELETED"
    };
    let gone = plan.delete.len() + plan.delete_leftovers.len();
    let verb = if carried_out { "Deleted" } else { "Deletes" };
    let free = if carried_out { "freed" } else { "frees" };
    format!(
        "{verb} {gone}, keeps {}, {free} {}; {complete}.",
        plan.keep.len(),
        bytes(plan.freed_bytes())
    )
}

/// Returns the rows: kept backups before deleted ones, the newest chain first, in a chain the
/// oldest first.
fn rows<'a>(facts: &'a [BackupFacts], plan: &'a PrunePlan) -> Vec<Row<'a>> {
    let ordered = in_order(facts);
    let chains = chains_newest_first(&ordered);
    let kept: BTreeMap<&BackupId, &Vec<Reason>> = plan
        .keep
        .iter()
        .map(|kept| (&kept.id, &kept.reasons))
        .collect();
    let mut rows: Vec<Row<'_>> = Vec::new();
    for backup in ordered {
        let row = match kept.get(&backup.id) {
            Some(reasons) => Row {
                keep: true,
                backup,
                reasons: words(reasons, false),
                kinds: words(reasons, true),
            },
            None => {
                let with_full = backup.id != backup.full_id && !kept.contains_key(&backup.full_id);
                let reason = if with_full {
                    "its full is deleted".to_owned()
                } else {
                    Reason::NoRuleKeepsIt.to_string()
                };
                Row {
                    keep: false,
                    backup,
                    reasons: vec![reason.clone()],
                    kinds: vec![reason],
                }
            }
        };
        rows.push(row);
    }
    rows.sort_by_key(|row| {
        (
            !row.keep,
            chains
                .iter()
                .position(|chain| **chain == row.backup.full_id),
        )
    });
    rows
}

/// Returns the reasons in words, without repetitions. For a run, places and ids are left out.
fn words(reasons: &[Reason], in_run: bool) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for reason in reasons {
        let text = match reason {
            Reason::AncestorOf { .. } => "a kept backup builds on it".to_owned(),
            Reason::UnfinishedUpload { .. } => {
                "an unfinished upload builds on its chain".to_owned()
            }
            Reason::Waiting { .. } => {
                "a backup in the intermediate directory builds on it".to_owned()
            }
            Reason::Period { .. } | Reason::LastIncremental { .. } if in_run => reason
                .to_string()
                .split(' ')
                .next()
                .unwrap_or_default()
                .to_owned(),
            other => other.to_string(),
        };
        if !words.contains(&text) {
            words.push(text);
        }
    }
    // The newest usable chain is always kept, so with another reason this one adds nothing.
    let usable = Reason::NewestUsableChain.to_string();
    if words.len() > 1 {
        words.retain(|word| *word != usable);
    }
    words
}

fn line(run: &[Row<'_>]) -> String {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return String::new();
    };
    let action = if first.keep { "keep" } else { "delete" };
    let at =
        |row: &Row<'_>, format: &str| row.backup.snapshot.created_at.strftime(format).to_string();
    let (what, reasons) = match run.len() {
        1 => {
            let kind = first.backup.kind().as_str();
            (format!("{} {kind}", at(first, "%Y-%m-%d")), &first.reasons)
        }
        count => (
            format!("{}..{} x{count}", at(first, "%m-%d"), at(last, "%m-%d")),
            &first.kinds,
        ),
    };
    let size: u64 = run
        .iter()
        .fold(0, |sum, row| sum.saturating_add(row.backup.stored_bytes));
    let start = format!("{action:<6} {what:<17} {:>6} ", bytes(size));
    let room = COLUMNS - start.chars().count().min(COLUMNS);
    format!("{start}{}", fitting(reasons, room))
}

/// Returns as many of the reasons as fit, and the number of the others. The first one is always
/// included.
fn fitting(reasons: &[String], room: usize) -> String {
    let mut count = reasons.len();
    loop {
        let more = reasons.len() - count;
        let end = if more == 0 {
            String::new()
        } else {
            format!("; +{more}")
        };
        let text = format!("{}{end}", reasons[..count].join("; "));
        if count <= 1 || text.chars().count() <= room {
            return text;
        }
        count -= 1;
    }
}

/// The plan of one dataset with every verdict.
#[derive(Serialize)]
pub(crate) struct PrunedDataset {
    pub(crate) dataset: DatasetName,
    #[serde(flatten)]
    pub(crate) plan: PrunePlan,
    pub(crate) doubts: Vec<DoubtText>,
    pub(crate) freed_bytes: u64,
    pub(crate) unknown_objects: usize,
    pub(crate) carried_out: bool,
}

/// A reason why nothing is deleted.
#[derive(Serialize)]
pub(crate) struct DoubtText {
    pub(crate) text: String,
    pub(crate) damage: bool,
    pub(crate) hint: String,
}

impl PrunedDataset {
    pub(crate) fn new(
        dataset: DatasetName,
        view: PruneView,
        step: &str,
        carried_out: bool,
    ) -> Self {
        let doubts = view.plan.doubts.iter().map(|doubt| DoubtText {
            text: doubt.to_string(),
            damage: doubt.is_damage(),
            hint: doubt.hint(step, &dataset),
        });
        Self {
            doubts: doubts.collect(),
            freed_bytes: view.plan.freed_bytes(),
            unknown_objects: view.catalog.unknown.len(),
            plan: view.plan,
            dataset,
            carried_out,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Origin, SnapshotRef};
    use crate::model::{Digest, Guid};
    use crate::plan::prune::{Doomed, DoomedLeftover, Kept, LeftAlone};
    use jiff::Timestamp;

    fn backup(day: i64, chain: Option<&BackupFacts>, gigabytes: u64) -> BackupFacts {
        let at = Timestamp::from_second(1_788_000_000 + day * 86_400).unwrap();
        let kind = if chain.is_some() {
            BackupKind::Incr
        } else {
            BackupKind::Full
        };
        let guid = Guid(u64::try_from(day).unwrap());
        let id = BackupId::new(at, kind, guid, 1);
        BackupFacts {
            manifest_blake3: Digest::of(b""),
            snapshot: SnapshotRef {
                guid,
                createtxg: guid.0,
                created_at: at,
            },
            base: chain.map(|full| full.id.clone()),
            full_id: chain.map_or_else(|| id.clone(), |full| full.id.clone()),
            position: 0,
            origin: Origin {
                dataset_guid: Guid(1),
                pool_guid: Guid(1),
            },
            made: Default::default(),
            requested: Vec::new(),
            recipients: Vec::new(),
            stream_bytes: 0,
            stored_bytes: gigabytes << 30,
            flaw: None,
            id,
        }
    }

    #[test]
    fn a_plan_fits_a_terminal_and_folds_runs() {
        let (old, new) = (backup(1, None, 9500), backup(60, None, 9800));
        let mut facts: Vec<BackupFacts> = (2..30).map(|day| backup(day, Some(&old), 2)).collect();
        facts.extend((61..82).map(|day| backup(day, Some(&new), 2)));
        let chain = Reason::LastChain { place: 1, of: 1 };
        let kept = |id: &BackupId, reasons: Vec<Reason>| Kept {
            id: id.clone(),
            reasons,
        };
        let mut keep = vec![kept(
            &new.id,
            vec![chain.clone(), Reason::LastFull { place: 1, of: 3 }],
        )];
        for (day, backup) in facts
            .iter()
            .filter(|backup| backup.full_id == new.id)
            .enumerate()
        {
            let place = 21 - day;
            let daily = Reason::Period {
                level: crate::model::BackupLevel::Daily,
                place,
                of: 30,
            };
            keep.push(kept(&backup.id, vec![chain.clone(), daily]));
        }
        let doomed = |backup: &BackupFacts| Doomed {
            id: backup.id.clone(),
            bytes: backup.stored_bytes,
            reason: Reason::NoRuleKeepsIt,
        };
        facts.extend([old.clone(), new]);
        let delete = facts
            .iter()
            .filter(|backup| backup.full_id == old.id)
            .map(doomed)
            .collect();
        let id: BackupId = "20260901T000000Z-full-00000000000000ff-00000000000000ff"
            .parse()
            .unwrap();
        let why = "an unfinished upload; no proof that it is over".to_owned();
        let plan = PrunePlan {
            keep,
            delete,
            delete_leftovers: vec![DoomedLeftover {
                id: id.clone(),
                objects: 3,
                bytes: 5 << 20,
                proof: Proof::Journal,
            }],
            left_alone: vec![LeftAlone {
                id,
                objects: 2,
                bytes: 1 << 20,
                why,
            }],
            doubts: Vec::new(),
        };
        let lines = lines_of(&facts, &plan, 3, false);
        assert!(
            lines.iter().all(|line| line.chars().count() <= 80),
            "{lines:#?}"
        );
        insta::assert_snapshot!(lines.join("\n"), @r"
        keep   2026-10-28 full    9.57T newest chain; last-full 1/3
        keep   10-29..11-18 x21   42.0G newest chain; daily
        delete 2026-08-30 full    9.27T no rule keeps it
        delete 08-31..09-27 x28   56.0G its full is deleted
        delete 20260901T000000Z-full-00000000000000ff-00000000000000ff
               3 objects, 5.00M: its upload never reached a commit, and was abandoned
        left   20260901T000000Z-full-00000000000000ff-00000000000000ff
               2 objects, 1.00M: an unfinished upload; no proof that it is over
               zfs-backup forget 20260901T000000Z-full-00000000000000ff-00000000000000ff
        foreign 3 objects that are not of this format, left alone.
        Deletes 30, keeps 22, frees 9.33T; kept chains checked complete.
        ");
    }

    #[test]
    fn reasons_that_do_not_fit_are_counted() {
        let reasons: Vec<String> = ["newest chain", "last-full 1/3", "daily 1/7"]
            .map(str::to_owned)
            .to_vec();
        assert_eq!(
            fitting(&reasons, 60),
            "newest chain; last-full 1/3; daily 1/7"
        );
        assert_eq!(fitting(&reasons, 32), "newest chain; last-full 1/3; +1");
        assert_eq!(fitting(&reasons, 3), "newest chain; +2");
    }
}
