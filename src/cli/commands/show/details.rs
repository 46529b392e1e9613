//! The lines of `show DATASET` and `show -v` about one dataset: snapshots, bookmarks, chains,
//! unfinished uploads. Pure.

use crate::cli::commands::show::views::{BackupView, DatasetView, LocalView, Overview, StoreView};
use crate::cli::screen::table::{WIDTH, age, bytes, table, wrap};
use crate::model::{BackupId, BackupKind, BackupLevel};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Returns all lines of one dataset, at most 80 characters wide except for names. Ids have lines of
/// their own below.
pub(crate) fn lines(overview: &Overview, dataset: &DatasetView) -> Vec<String> {
    let now = overview.now;
    let mut lines = vec![String::new(), dataset.dataset.to_string()];
    if let Some(local) = &dataset.local {
        lines.extend(local_lines(local, now));
    }
    lines.extend(chain_lines(overview, dataset));
    for (place, view) in stores(dataset) {
        lines.extend(unfinished_lines(place, view, now));
    }
    lines
}

fn stores(dataset: &DatasetView) -> impl Iterator<Item = (&'static str, &StoreView)> {
    let intermediate = dataset
        .intermediate
        .as_ref()
        .map(|view| ("intermediate", view));
    intermediate
        .into_iter()
        .chain(dataset.remote.as_ref().map(|view| ("remote", view)))
}

fn local_lines(local: &LocalView, now: Timestamp) -> Vec<String> {
    let own = local
        .snapshots
        .iter()
        .filter(|snapshot| snapshot.own)
        .count();
    let mut lines = vec![format!(
        "  in the pool as {}: {} snapshots, {own} of them ours; {} bookmarks",
        local.name,
        local.snapshots.len(),
        local.bookmarks.len()
    )];
    let short = |name: &str| name.split(['@', '#']).nth(1).unwrap_or(name).to_owned();
    let mut rows = vec![
        ["  SNAPSHOT", "AGE", "USED", "REFERS", "OURS", "HELD"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for snapshot in &local.snapshots {
        rows.push(vec![
            format!("  @{}", short(&snapshot.name)),
            age(now, snapshot.created_at),
            bytes(snapshot.used_bytes),
            bytes(snapshot.referenced_bytes),
            if snapshot.own { "yes" } else { "no" }.to_owned(),
            if snapshot.holds > 0 {
                snapshot.holds.to_string()
            } else {
                "-".to_owned()
            },
        ]);
    }
    rows.extend(local.bookmarks.iter().map(|bookmark| {
        vec![
            format!("  #{}", short(&bookmark.name)),
            age(now, bookmark.created_at),
            "-".into(),
            "-".into(),
            "-".into(),
            "-".into(),
        ]
    }));
    if rows.len() > 1 {
        lines.extend(
            crate::cli::screen::table::narrow_table(&rows, &[1, 2, 3, 5], WIDTH)
                .into_iter()
                .flatten(),
        );
    }
    for hold in &local.holds {
        lines.extend([
            format!("  held {} by", age(now, hold.since)),
            format!("    {}", hold.tag),
            format!("    on {}", hold.snapshot),
        ]);
    }
    lines
}

/// Returns lines for every backup of both stores once: chains in the order of their newest member,
/// a full before its incrementals.
fn chain_lines(overview: &Overview, dataset: &DatasetView) -> Vec<String> {
    let mut places: BTreeMap<&BackupId, Vec<&'static str>> = BTreeMap::new();
    let mut backups: BTreeMap<&BackupId, &BackupView> = BTreeMap::new();
    let mut newest: BTreeMap<&BackupId, Timestamp> = BTreeMap::new();
    for (place, view) in stores(dataset) {
        for backup in &view.backups {
            places.entry(&backup.id).or_default().push(place);
            // A flaw in one of the stores must be visible, whichever store was listed first.
            let known = backups.entry(&backup.id).or_insert(backup);
            if backup.flaw.is_some() {
                *known = backup;
            }
            let at = newest.entry(&backup.full_id).or_insert(backup.snapshot_at);
            *at = backup.snapshot_at.max(*at);
        }
    }
    let mut ordered: Vec<&BackupView> = backups.into_values().collect();
    let leveled: BTreeSet<&BackupId> = ordered
        .iter()
        .filter(|backup| backup.level.is_some())
        .map(|backup| &backup.full_id)
        .collect();
    // With levels a chain is a tree. In the order of time each backup stands below those of longer
    // levels that came before it.
    ordered.sort_by_key(|backup| {
        let is_tree = leveled.contains(&backup.full_id);
        (
            newest.get(&backup.full_id).copied(),
            &backup.full_id,
            is_tree.then_some(backup.snapshot_at),
            backup.position,
            &backup.id,
        )
    });
    if ordered.is_empty() {
        let asked = stores(dataset)
            .map(|(place, _)| place)
            .collect::<Vec<_>>()
            .join(" and ");
        return match asked.is_empty() {
            true => vec!["  no store was asked".to_owned()],
            false => vec![format!("  no backup in {asked}")],
        };
    }
    let mut rows = vec![
        ["  KIND", "SNAPSHOT OF", "AGE", "STREAM", "STORED", "WHERE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for backup in &ordered {
        let place =
            places.get(&backup.id).map_or(
                "",
                |places| if places.len() > 1 { "both" } else { places[0] },
            );
        rows.push(vec![
            format!("  {}", kind_cell(backup)),
            backup.snapshot_at.strftime("%Y-%m-%d %H:%M").to_string(),
            age(overview.now, backup.snapshot_at),
            bytes(backup.stream_bytes),
            bytes(backup.stored_bytes),
            place.to_owned(),
        ]);
    }
    let mut lines = Vec::new();
    for (number, line) in table(&rows, &[2, 3, 4]).into_iter().enumerate() {
        lines.push(line);
        let Some(backup) = number.checked_sub(1).and_then(|number| ordered.get(number)) else {
            continue;
        };
        lines.push(format!("      {}", backup.id));
        if let Some(guid) = backup.clone_origin_guid.filter(|_| backup.position == 0) {
            lines.push(format!(
                "      was a clone of the snapshot with guid {guid}; a restore of it is not a clone"
            ));
        }
        if let Some(flaw) = &backup.flaw {
            lines.extend(wrap(
                &format!("      NOT USABLE: {flaw}"),
                WIDTH,
                "        ",
            ));
        }
    }
    if dataset.remote.is_none() && overview.remote.url.is_some() {
        lines.push("  the remote was not asked".to_owned());
    }
    lines
}

/// Returns the kind and the level of a backup. A shorter level is indented more.
fn kind_cell(backup: &BackupView) -> String {
    match (backup.kind, backup.level) {
        (BackupKind::Full, None) => backup.kind.as_str().to_owned(),
        (BackupKind::Full, Some(level)) => format!("{}, {level}", backup.kind.as_str()),
        (BackupKind::Incr, None) => format!("+ {}", backup.kind.as_str()),
        (BackupKind::Incr, Some(level)) => {
            let depth = BackupLevel::Yearly as usize - level as usize;
            format!("{}+ {level}", "  ".repeat(depth.saturating_sub(1)))
        }
    }
}

fn unfinished_lines(place: &str, view: &StoreView, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    for attempt in &view.unfinished {
        let newest = attempt
            .newest_object_at
            .map_or_else(String::new, |at| format!(", newest {} ago", age(now, at)));
        let begun = attempt
            .started_at
            .map_or_else(String::new, |at| format!(", begun {} ago", age(now, at)));
        let word = if attempt.was_committed {
            "NO LONGER a backup"
        } else {
            "unfinished, not a backup"
        };
        lines.push(format!("  {place}: {word}"));
        lines.push(format!(
            "      {} objects, {}{begun}{newest}",
            attempt.objects,
            bytes(attempt.bytes)
        ));
        lines.push(format!("      {}", attempt.id));
        lines.extend(attempt.base.iter().map(|base| format!("      on {base}")));
        lines.extend(attempt.given_up_at.iter().map(|at| {
            format!(
                "      the next backup resumes it; a prune abandons it on {}",
                at.strftime("%Y-%m-%d")
            )
        }));
        if let Some(reason) = &attempt.disbelieved {
            lines.extend(wrap(
                &format!("      INVALID OR UNTRUSTED: {reason}"),
                WIDTH,
                "        ",
            ));
        }
    }
    for upload in &view.uploads {
        let begun = upload
            .started_at
            .map_or_else(String::new, |at| format!(" begun {} ago", age(now, at)));
        lines.extend([
            format!("  {place}: an upload{begun} was neither completed nor aborted"),
            format!("      {}", upload.key),
        ]);
    }
    if view.unknown_objects > 0 {
        let count = view.unknown_objects;
        let size = bytes(view.unknown_bytes);
        lines.push(format!(
            "  {place}: {count} objects that are not of this format ({size}), left alone"
        ));
    }
    lines
}
