//! The table of `show`, one line for each dataset, and the remarks below it. Pure: the clock is in
//! the data.

use crate::cli::commands::show::views::{AttemptView, DatasetView, HoldView, Overview};
use crate::cli::screen::output::Mark;
use crate::cli::screen::table::{WIDTH, age, bytes, narrow_table, wrap};
use crate::plan::health::Level;
use std::collections::BTreeMap;

/// A line, with the word in it that is coloured.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MarkedLine {
    pub(crate) text: String,
    pub(crate) mark: Option<(String, Mark)>,
}

impl From<String> for MarkedLine {
    fn from(text: String) -> Self {
        Self { text, mark: None }
    }
}

/// Returns the table and the remarks below it.
pub(crate) fn lines(overview: &Overview) -> Vec<MarkedLine> {
    let mut rows = vec![
        [
            "DATASET", "LAST", "CHAIN", "REMOTE", "VERIFIED", "DRILLED", "STATE",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    let states: Vec<(String, Mark)> = overview.datasets.iter().map(state).collect();
    rows.extend(
        overview
            .datasets
            .iter()
            .zip(&states)
            .map(|(dataset, (state, _))| row(overview, dataset, state)),
    );
    let mut lines: Vec<MarkedLine> = Vec::new();
    for (number, row) in narrow_table(&rows, &[], WIDTH).into_iter().enumerate() {
        let mark = number
            .checked_sub(1)
            .and_then(|number| states.get(number))
            .cloned();
        let last = row.len() - 1;
        let marked = |(index, text): (usize, String)| MarkedLine {
            text,
            mark: mark.clone().filter(|_| index == last),
        };
        lines.extend(row.into_iter().enumerate().map(marked));
    }
    for dataset in &overview.datasets {
        lines.extend(remarks(dataset));
    }
    let footer = footer(overview)
        .into_iter()
        .flat_map(|line| wrap(&line, WIDTH, "    "));
    lines.extend(footer.map(MarkedLine::from));
    lines
}

fn row(overview: &Overview, dataset: &DatasetView, state: &str) -> Vec<String> {
    let now = overview.now;
    let newest = dataset.newest();
    let record = dataset.record.as_ref();
    let last = newest.as_ref().map(|newest| {
        format!(
            "{} {}",
            age(now, newest.snapshot_at),
            newest.id.kind().as_str()
        )
    });
    let chain = newest.as_ref().map(|newest| match newest.position {
        0 => "full".to_owned(),
        position => format!("full+{position}"),
    });
    let begun = dataset.counting().and_then(|view| {
        view.unfinished
            .iter()
            .rev()
            .find(|attempt| !attempt.was_committed)
    });
    let chain = chain.or_else(|| begun.map(|attempt| share(dataset, attempt)));
    let stored = dataset
        .counting()
        .map(crate::cli::commands::show::views::StoreView::total_bytes);
    let stored = stored.or_else(|| record?.last_known().map(|(_, bytes, _)| bytes));
    let verified = record.map(|record| {
        record
            .verify
            .as_ref()
            .map_or("never".to_owned(), |note| age(now, note.at))
    });
    let drilled = record.map(|record| {
        record
            .drill
            .as_ref()
            .map_or("never".to_owned(), |note| age(now, note.at))
    });
    let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".to_owned());
    let has_any = newest.is_some();
    let raw = if dataset.is_raw() {
        " (raw: ZFS key too)"
    } else {
        ""
    };
    vec![
        dataset.dataset.to_string(),
        or_dash(last),
        or_dash(chain),
        or_dash(stored.map(bytes)),
        or_dash(verified.filter(|_| has_any)),
        or_dash(drilled.filter(|_| has_any)),
        format!("{state}{raw}"),
    ]
}

/// Describes how much of a first full is stored, relative to the bytes that its snapshot refers to,
/// which are near the stream's length.
fn share(dataset: &DatasetView, attempt: &AttemptView) -> String {
    let kind = attempt.id.kind().as_str();
    let local = dataset.local.iter().flat_map(|local| &local.snapshots);
    let whole = local
        .filter(|snapshot| snapshot.guid == attempt.id.snapshot_guid())
        .map(|s| s.referenced_bytes)
        .next();
    match whole.filter(|whole| *whole > 0) {
        Some(whole) => format!(
            "{kind} {}%",
            (u128::from(attempt.bytes) * 100 / u128::from(whole)).min(99)
        ),
        None => format!("{kind} begun"),
    }
}

/// Returns one word or two for all that is known, the worst first.
fn state(dataset: &DatasetView) -> (String, Mark) {
    let state = |word: &str, mark| (word.to_owned(), mark);
    let level = dataset.health.as_ref().map(|health| health.level);
    let late = dataset.health.as_ref().is_some_and(|health| health.late);
    let view = dataset.counting();
    let damaged = view.is_some_and(|view| {
        view.backups.iter().any(|backup| backup.flaw.is_some())
            || view.unfinished.iter().any(|attempt| attempt.was_committed)
    });
    let failures = dataset
        .record
        .as_ref()
        .map_or(&[][..], |record| &record.failures);
    let begun = view.is_some_and(|view| !view.unfinished.is_empty());
    match () {
        () if damaged || failures.iter().any(|failure| failure.damage) => {
            state("DAMAGED", Mark::Bad)
        }
        () if !dataset.errors.is_empty() => state("UNKNOWN", Mark::Bad),
        () if !dataset.running_in.is_empty() => state("running", Mark::Good),
        () if !failures.is_empty() => state("FAILED", Mark::Bad),
        () if dataset.newest().is_none() && begun => state("unfinished", Mark::Doubtful),
        () if dataset.newest().is_none() && view.is_none() => state("NONE KNOWN", Mark::Bad),
        () if dataset.newest().is_none() => state("NO BACKUP", Mark::Bad),
        () if late => state("LATE", Mark::Bad),
        () if level.is_some_and(|level| level > Level::Warning) => state("UNKNOWN", Mark::Bad),
        () if level == Some(Level::Warning) => state("check due", Mark::Doubtful),
        () => state("ok", Mark::Good),
    }
}

/// Returns the reasons that are printed below a dataset that is not OK.
fn remarks(dataset: &DatasetView) -> Vec<MarkedLine> {
    let mut texts: Vec<String> = dataset
        .errors
        .iter()
        .map(|error| format!("could not be asked: {error}"))
        .collect();
    texts.extend(
        dataset
            .health
            .iter()
            .flat_map(|health| health.reasons.clone()),
    );
    if let Some(view) = dataset.counting() {
        texts.extend(
            view.backups
                .iter()
                .filter_map(|backup| Some(format!("{}: {}", backup.id, backup.flaw.as_ref()?))),
        );
        for attempt in &view.unfinished {
            texts.push(match &attempt.disbelieved {
                Some(reason) => format!("{} INVALID OR UNTRUSTED: {reason}", attempt.id),
                None if attempt.was_committed => {
                    format!(
                        "{}: its manifest is missing, its signature exists",
                        attempt.id
                    )
                }
                None => continue,
            });
        }
    }
    let lines = texts
        .into_iter()
        .flat_map(|text| wrap(&format!("  {}: {text}", dataset.dataset), WIDTH, "    "));
    lines.map(MarkedLine::from).collect()
}

fn footer(overview: &Overview) -> Vec<String> {
    let now = overview.now;
    let mut lines = Vec::new();
    // The store was not read for these datasets, so the age of the table is that of the oldest
    // record.
    let remembered = overview
        .datasets
        .iter()
        .filter(|dataset| dataset.counting().is_none());
    let known = remembered.filter_map(|dataset| dataset.record.as_ref()?.last_known());
    if let Some(oldest) = known.map(|(at, _, _)| at).min() {
        let asks = if overview.remote.error.is_some() {
            ""
        } else {
            "; --include-remote asks the store"
        };
        lines.push(format!(
            "  LAST, CHAIN and REMOTE as known {} ago{asks}",
            age(now, oldest)
        ));
    }
    for (what, answer) in [
        ("remote", &overview.remote),
        ("intermediate", &overview.intermediate),
    ] {
        if let (Some(url), Some(error)) = (&answer.url, &answer.error) {
            lines.push(format!("  {what} {url} could not be asked: {error}"));
        }
    }
    let locals = || {
        overview
            .datasets
            .iter()
            .filter_map(|dataset| dataset.local.as_ref())
    };
    if locals().next().is_some() {
        lines.push(format!(
            "  pinned in the pool: {}",
            pinned(locals().flat_map(|local| &local.holds))
        ));
        let own: Vec<u64> = locals()
            .flat_map(|local| &local.snapshots)
            .filter(|s| s.own)
            .map(|s| s.used_bytes)
            .collect();
        let used = own
            .iter()
            .fold(0, |sum, bytes| u64::saturating_add(sum, *bytes));
        lines.push(format!(
            "  own snapshots: {}, at least {} freed without them",
            own.len(),
            bytes(used)
        ));
    }
    lines.push(format!(
        "  {}; locks: {}",
        orphans(overview),
        locks(overview)
    ));
    if let Some(lockfile) = &overview.lockfile {
        let since = lockfile
            .made_at
            .map_or_else(String::new, |at| format!(", made {} ago", age(now, at)));
        lines.push(format!(
            "  lockfile {}{since}; `zfs-backup unlock` removes it",
            lockfile.path
        ));
    }
    if !overview.never_deleted.is_empty() {
        lines.push("  what no rule will ever delete:".to_owned());
        lines.extend(
            overview
                .never_deleted
                .iter()
                .map(|what| format!("    {what}")),
        );
    }
    lines
}

/// Describes holds by snapshot: a snapshot with two holds is pinned once.
fn pinned<'a>(holds: impl Iterator<Item = &'a HoldView>) -> String {
    let held: BTreeMap<&str, u64> = holds
        .map(|hold| (hold.snapshot.as_str(), hold.used_bytes))
        .collect();
    if held.is_empty() {
        return "nothing".to_owned();
    }
    let sum = held
        .values()
        .fold(0, |sum, bytes| u64::saturating_add(sum, *bytes));
    let names: Vec<&str> = held.keys().copied().collect();
    format!(
        "{} by {} held snapshots ({})",
        bytes(sum),
        held.len(),
        names.join(", ")
    )
}

fn orphans(overview: &Overview) -> String {
    let stores = [
        (
            "remote",
            overview.remote.asked,
            overview.remote.url.is_some(),
        ),
        (
            "intermediate",
            overview.intermediate.asked,
            overview.intermediate.url.is_some(),
        ),
    ];
    let mut words = Vec::new();
    for (name, asked, configured) in stores {
        if !configured {
            continue;
        }
        let views = overview.datasets.iter().filter_map(|dataset| match name {
            "remote" => dataset.remote.as_ref(),
            _ => dataset.intermediate.as_ref(),
        });
        let mut count = 0;
        let mut size = 0_u64;
        let mut uploads = 0;
        for view in views {
            count += view.unfinished.len();
            size = view
                .unfinished
                .iter()
                .fold(size, |sum, attempt| sum.saturating_add(attempt.bytes));
            uploads += view.uploads.len();
        }
        words.push(match (asked, count, uploads) {
            (false, ..) => format!("{name} not asked"),
            (true, 0, 0) => format!("{name} 0"),
            (true, _, 0) => format!("{name} {count} ({})", bytes(size)),
            (true, ..) => format!("{name} {count} ({}), {uploads} open uploads", bytes(size)),
        });
    }
    format!(
        "orphans: {}",
        if words.is_empty() {
            "none".to_owned()
        } else {
            words.join(", ")
        }
    )
}

fn locks(overview: &Overview) -> String {
    let held: Vec<String> = overview
        .datasets
        .iter()
        .flat_map(|dataset| {
            dataset
                .running_in
                .iter()
                .map(move |store| format!("{} in {store}", dataset.dataset))
        })
        .collect();
    match (held.is_empty(), &overview.lockfile) {
        (true, None) => "none".to_owned(),
        (true, Some(_)) => "the lockfile".to_owned(),
        (false, _) => format!("a run is at work on {}", held.join(", ")),
    }
}

#[cfg(test)]
mod tests;
