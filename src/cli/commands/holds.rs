//! `holds list` and `holds release`.

use crate::cli::args::{Holds, Release};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::Access;
use crate::cli::open::identity::known_stores;
use crate::cli::open::keys::keys_for_pruning;
use crate::cli::open::remote::open_zfs;
use crate::cli::screen::output::Output;
use crate::cli::screen::table::{WIDTH, age, bytes, wrap};
use crate::model::BackupId;
use crate::run::error_chain;
use crate::run::pool::holds::{
    JudgedHold, KnownAttempts, our_holds, over_in, plan_release, release_holds,
};
use crate::run::pool::select::{Selected, select_datasets};
use crate::run::restore::left_half;
use crate::sign::TrustedKeys;
use crate::store::StoreRead;
use crate::zfs::ZfsRead;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) async fn holds(context: &Context, command: &Holds) -> Result<(), Failure> {
    let output = &context.output;
    let config = &context.setup()?.config;
    let zfs = open_zfs()?;
    let stores = known_stores(config)?;
    let act = matches!(command, Holds::Release(release) if context.carries_out(release.yes));
    let datasets = context.datasets(&*zfs)?;
    let witnesses = match command {
        Holds::List => None,
        Holds::Release(release) => Some(Witnesses::open(context, release, &*zfs, &datasets).await?),
    };
    let mut all = Vec::new();
    let mut halves = Vec::new();
    for left_out in select_datasets(&*zfs, &config.datasets, &config.state_dir)?.left_out {
        halves.extend(left_half(&left_out.dataset)?);
    }
    for selected in datasets {
        let name = &selected.dataset.name;
        halves.extend(left_half(&selected.dataset)?);
        let known = match &witnesses {
            None => KnownAttempts::default(),
            Some(witnesses) => witnesses.ask(&*zfs, &selected, output).await?,
        };
        if !act {
            match plan_release(&*zfs, &config.state_dir, &stores, &selected, &known) {
                Ok(planned) => {
                    context.done(name, 0);
                    all.extend(planned.into_iter().map(|judged| Listed::new(judged, None)));
                }
                Err(error) => context.failed(name, &error.into()),
            }
            continue;
        }
        match release_holds(&*zfs, &config.state_dir, &stores, &selected, &known) {
            Ok(released) => {
                context.done(name, 0);
                for (judged, outcome) in released {
                    let failed = outcome.err().map(|error| {
                        let text = error_chain(&error);
                        context.failed(name, &error.into());
                        text
                    });
                    all.push(Listed::new(judged, Some(failed)));
                }
            }
            Err(error) => context.failed(name, &error.into()),
        }
    }
    let listing = matches!(command, Holds::List);
    lines(&all, listing, Timestamp::now())
        .iter()
        .for_each(|line| output.line(line));
    for (what, advice) in halves.iter().filter(|_| listing) {
        output.line(what);
        wrap(&format!("  {advice}"), WIDTH, "    ")
            .iter()
            .for_each(|line| output.line(line));
    }
    let held = HeldSnapshots {
        format: 1,
        holds: all,
    };
    output.json(&held);
    if let Some(id) = witnesses
        .iter()
        .flat_map(|witnesses| &witnesses.named)
        .find(|id| !is_listed(&held.holds, id))
    {
        return Err(usage(
            &format!("nothing is held for {id}"),
            "see `zfs-backup holds list`",
        ));
    }
    context.verdict()
}

fn is_listed(all: &[Listed], id: &BackupId) -> bool {
    all.iter().any(|listed| listed.judged.hold.id == *id)
}

/// The evidence that an upload is over: the configured stores that can be read, and the ids that
/// the person named.
struct Witnesses {
    stores: Vec<Arc<dyn StoreRead>>,
    trusted: TrustedKeys,
    named: BTreeSet<BackupId>,
}

impl Witnesses {
    /// Opens the stores when any dataset is held. A store that cannot be reached is reported and
    /// left out.
    async fn open(
        context: &Context,
        release: &Release,
        zfs: &dyn ZfsRead,
        datasets: &[Selected],
    ) -> Result<Self, Failure> {
        let setup = context.setup()?;
        let named = release.ids.iter().cloned().collect();
        let mut witnesses = Self {
            stores: Vec::new(),
            trusted: TrustedKeys::default(),
            named,
        };
        let mut is_held = false;
        for selected in datasets {
            is_held |= !our_holds(zfs, &selected.dataset.name)?.is_empty();
        }
        if !is_held {
            return Ok(witnesses);
        }
        for role in setup.roles() {
            let asked = match setup.open(role, Access::Read).await {
                Ok(store) => keys_for_pruning(setup, &*store)
                    .await
                    .map(|(_, trusted)| (store, trusted)),
                Err(failure) => Err(failure),
            };
            match asked {
                Ok((store, trusted)) => {
                    witnesses.stores.push(store);
                    witnesses.trusted = trusted;
                }
                Err(failure) => {
                    context.output.always(&format!(
                        "a store cannot be asked which uploads are over: {}",
                        failure.reason()
                    ));
                }
            }
        }
        Ok(witnesses)
    }

    /// Asks the stores which of the attempts that hold this dataset's snapshots are over.
    async fn ask(
        &self,
        zfs: &dyn ZfsRead,
        selected: &Selected,
        output: &Output,
    ) -> Result<KnownAttempts, Failure> {
        let ids: BTreeSet<BackupId> = our_holds(zfs, &selected.dataset.name)?
            .into_iter()
            .map(|hold| hold.id)
            .collect();
        let mut over = BTreeSet::new();
        for store in self.stores.iter().filter(|_| !ids.is_empty()) {
            match over_in(&**store, &selected.stored, &self.trusted, &ids).await {
                Ok(found) => over.extend(found),
                Err(error) => {
                    output.always(&format!(
                        "{} cannot be asked which uploads are over: {}",
                        store.url(),
                        error_chain(&error)
                    ));
                }
            }
        }
        Ok(KnownAttempts {
            over: Some(over),
            named: self.named.clone(),
        })
    }
}

/// The document of `holds list` and `holds release`.
#[derive(Serialize)]
pub(crate) struct HeldSnapshots {
    pub(crate) format: u32,
    pub(crate) holds: Vec<Listed>,
}

/// A hold with the result of its release.
#[derive(Serialize)]
pub(crate) struct Listed {
    #[serde(flatten)]
    pub(crate) judged: JudgedHold,
    pub(crate) released: bool,
    /// After an attempt to release the hold, the error or its absence.
    #[serde(skip)]
    pub(crate) attempt: Option<Option<String>>,
}

impl Listed {
    fn new(judged: JudgedHold, attempt: Option<Option<String>>) -> Self {
        Self {
            released: judged.stays.is_none() && attempt == Some(None),
            judged,
            attempt,
        }
    }
}

/// Returns the lines about the holds, each with its result or with the planned action.
fn lines(all: &[Listed], listing: bool, now: Timestamp) -> Vec<String> {
    if all.is_empty() {
        return vec!["nothing is held by zfs-backup on the configured datasets".to_owned()];
    }
    let mut lines = Vec::new();
    for Listed {
        judged, attempt, ..
    } in all
    {
        let hold = &judged.hold;
        let alone = if hold.holds > 1 {
            format!(", held {} times", hold.holds)
        } else {
            String::new()
        };
        let verdict = match (&judged.stays, attempt) {
            (Some(why), _) => format!("stays: {why}"),
            (None, None) if listing => "may be released".to_owned(),
            (None, None) => "would be released".to_owned(),
            (None, Some(None)) => "released".to_owned(),
            (None, Some(Some(error))) => format!("NOT released: {error}"),
        };
        lines.push(hold.snapshot.to_string());
        lines.push(format!(
            "  since {}, keeps {}{alone}",
            age(now, hold.since),
            bytes(hold.used_bytes)
        ));
        lines.push(format!("  {}", hold.tag));
        lines.extend(wrap(&format!("  {verdict}"), WIDTH, "    "));
    }
    let free = all.iter().filter(|listed| listed.judged.stays.is_none());
    let snapshots: BTreeSet<_> = free
        .clone()
        .map(|listed| &listed.judged.hold)
        .map(|hold| (&hold.snapshot, hold.used_bytes))
        .collect();
    let sum = snapshots
        .iter()
        .fold(0, |sum, (_, bytes)| u64::saturating_add(sum, *bytes));
    lines.push(format!(
        "{} of {} may be released; prune-snapshots can then free {}",
        free.count(),
        all.len(),
        bytes(sum)
    ));
    if all
        .iter()
        .any(|listed| listed.judged.stays.is_none() && listed.attempt.is_none())
        && !listing
    {
        lines.push(
            "-y releases them. An interrupted upload that needs one would start over.".to_owned(),
        );
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::pool::holds::OurHold;

    fn listed(stays: Option<&str>, done: Option<Option<&str>>) -> Listed {
        let id = "20261122T212604Z-full-0123456789abcdef-fedcba9876543210";
        let hold = OurHold {
            snapshot: "tank/media@zfs-backup_20261122T212604Z".parse().unwrap(),
            tag: format!("zfs-backup:{id}"),
            id: id.parse().unwrap(),
            since: Timestamp::UNIX_EPOCH,
            used_bytes: 31 << 30,
            holds: 2,
        };
        let judged = JudgedHold {
            hold,
            stays: stays.map(str::to_owned),
        };
        Listed::new(judged, done.map(|failed| failed.map(str::to_owned)))
    }

    #[test]
    fn hold_listing_shows_retained_bytes_and_release_outcome() {
        let now = Timestamp::from_second(7200).unwrap();
        let all = [
            listed(None, None),
            listed(Some("a run is at work on the dataset in s3:b"), None),
        ];
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
        1 of 2 may be released; prune-snapshots can then free 31.0G
        -y releases them. An interrupted upload that needs one would start over.
        ");
        assert!(screen.lines().all(|line| line.chars().count() <= 80));
        let after = lines(
            &[listed(None, Some(None)), listed(None, Some(Some("EPERM")))],
            false,
            now,
        )
        .join("\n");
        assert!(
            after.contains("  released") && after.contains("NOT released: EPERM"),
            "{after}"
        );
        assert_eq!(lines(&[], true, now).len(), 1);
    }
}
