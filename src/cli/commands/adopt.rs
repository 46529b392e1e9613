//! `adopt`: a person decides that this dataset takes over the backups of another origin, or of
//! another time line of its own origin.

use crate::catalog::{read_catalog, read_started};
use crate::cli::args::{Adopt, OriginChoice};
use crate::cli::context::{Context, Setup};
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::Access;
use crate::cli::open::datasets::origin_of;
use crate::cli::open::keys::keys_for_pruning;
use crate::cli::open::remote::open_zfs;
use crate::cli::screen::output::Output;
use crate::cli::screen::table::bytes;
use crate::config::Config;
use crate::manifest::Origin;
use crate::model::{BackupId, DatasetName, HostMark};
use crate::plan::BackupFacts;
use crate::plan::adopt::{HeldAttempt, Holder, Holding, find_holdings};
use crate::plan::prune::adopt_command;
use crate::plan::timeline::PoolView;
use crate::run::RunError;
use crate::run::pool::select::Selected;
use crate::run::pool::view::pool_view;
use crate::state::adoption::{adopt as adopt_on_disk, origins_of};
use crate::state::host_mark::known_host_mark;
use crate::store::StoreRead;
use crate::zfs::ZfsRead;
use serde::Serialize;
use std::sync::Arc;

/// The document of `adopt`.
#[derive(Serialize)]
pub(crate) struct AdoptDocument<'a> {
    pub(crate) format: u32,
    pub(crate) dataset: &'a DatasetName,
    pub(crate) own: &'a Origin,
    pub(crate) others: Vec<Other<'a>>,
    pub(crate) carried_out: bool,
}

/// An origin or time line that can be taken over.
#[derive(Serialize)]
pub(crate) struct Other<'a> {
    #[serde(flatten)]
    pub(crate) holding: &'a Holding,
    pub(crate) chosen: bool,
}

pub(crate) async fn adopt(context: &Context, adopt: &Adopt) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let output = &context.output;
    let zfs = open_zfs()?;
    let datasets = context.datasets(&*zfs)?;
    let Some(selected) = datasets
        .iter()
        .find(|selected| selected.stored == adopt.dataset)
    else {
        let what = format!("{} is not a dataset of this configuration", adopt.dataset);
        return Err(usage(
            &what,
            "name it as it is named in the store (main.store_as)",
        ));
    };
    let stored = &selected.stored;
    let own = origin_of(&*zfs, selected)?;
    // The adoption is kept under the store's identity, so a store without objects gets its identity
    // first.
    let access = if context.carries_out(adopt.yes) {
        Access::Write
    } else {
        Access::Read
    };
    let mut stores: Vec<Arc<dyn StoreRead>> = Vec::new();
    for role in setup.roles().into_iter().rev() {
        stores.push(setup.open(role, access).await?);
    }
    let (pool, origins) = read_pool(&*zfs, config, selected, &own, &stores)?;
    let holdings = read_holdings(setup, (stored, &stores), &pool, &origins).await?;
    let chosen = choose(adopt, &holdings)?;
    let carry_out = context.carries_out(adopt.yes) && chosen.is_some();
    print(
        stored,
        &holdings,
        chosen,
        carry_out,
        known_host_mark(&config.state_dir)?.as_ref(),
        output,
    );
    if let Some(holding) = chosen {
        refuse_newer(adopt, holding)?;
    }
    if let Some(holding) = chosen.filter(|_| carry_out) {
        let (origin, ids): (Option<&Origin>, Vec<BackupId>) = match &holding.holder {
            Holder::Origin(origin) => (Some(origin), Vec::new()),
            Holder::Line(_) => (None, holding.ids.iter().cloned().collect()),
        };
        for store in &stores {
            adopt_on_disk(
                &config.state_dir,
                &store.known(),
                stored,
                &own,
                origin.map(std::slice::from_ref).unwrap_or_default(),
                &ids,
            )?;
        }
    } else if chosen.is_some() {
        output.note("nothing was taken over; -y takes it over");
    }
    let others = holdings.iter().map(|holding| Other {
        holding,
        chosen: chosen == Some(holding),
    });
    output.json(&AdoptDocument {
        format: 1,
        dataset: stored,
        own: &own,
        others: others.collect(),
        carried_out: carry_out,
    });
    Ok(())
}

/// Returns the holding that the arguments name; `None` when they name none and nothing is to be
/// done.
fn choose<'a>(adopt: &Adopt, holdings: &'a [Holding]) -> Result<Option<&'a Holding>, Failure> {
    let commands = || {
        let commands: Vec<String> = holdings
            .iter()
            .map(|holding| adopt_command(&adopt.dataset, &holding.holder.to_string()))
            .collect();
        match commands.is_empty() {
            true => "there is nothing to take over".to_owned(),
            false => format!("choose one: {}", commands.join("; or: ")),
        }
    };
    let found: Vec<&Holding> = match (&adopt.origin, &adopt.line) {
        (
            Some(OriginChoice {
                dataset_guid,
                pool_guid,
            }),
            _,
        ) => holdings
            .iter()
            .filter(|holding| holding.is_origin(*dataset_guid, *pool_guid))
            .collect(),
        (None, Some(id)) => {
            let line = Holder::Line(id.clone());
            holdings
                .iter()
                .filter(|holding| holding.holder == line)
                .collect()
        }
        (None, None) if adopt.yes && !holdings.is_empty() => {
            return Err(usage("-y needs --origin or --line", &commands()));
        }
        (None, None) => return Ok(None),
    };
    match (&found[..], &adopt.line) {
        ([one], _) => Ok(Some(one)),
        ([], Some(id)) => {
            let what = format!(
                "{id} is not the newest backup of another time line of {}",
                adopt.dataset
            );
            Err(RunError::refused(
                what,
                format!("{}; a time line that grows has an active host", commands()),
            )
            .into())
        }
        ([], None) => {
            let what = format!(
                "no other origin with that guid has backups of {}",
                adopt.dataset
            );
            Err(RunError::refused(what, commands()).into())
        }
        _ => Err(usage(
            "several pools have a dataset with that guid",
            &commands(),
        )),
    }
}

fn refuse_newer(adopt: &Adopt, holding: &Holding) -> Result<(), Failure> {
    if !holding.is_newer || adopt.although_newer || !adopt.yes {
        return Ok(());
    }
    let command = adopt_command(
        &adopt.dataset,
        &format!("{} --although-newer", holding.holder),
    );
    let what = format!(
        "{}: its newest snapshot, of {}, is newer than all our stored ones: its host may still be active",
        adopt.dataset, holding.newest
    );
    let hint = format!(
        "if two hosts write here, give one of them another prefix; if that one is gone, make a backup first, or: {command}"
    );
    Err(RunError::refused(what, hint).into())
}

fn print(
    stored: &DatasetName,
    holdings: &[Holding],
    chosen: Option<&Holding>,
    carry_out: bool,
    own: Option<&HostMark>,
    output: &Output,
) {
    if holdings.is_empty() {
        output.line(format!(
            "{stored}: there is no other origin or time line to take over"
        ));
        return;
    }
    for holding in holdings
        .iter()
        .filter(|holding| chosen.is_none_or(|chosen| chosen == *holding))
    {
        let verb = match (chosen, carry_out) {
            (None, _) => "could take over",
            (Some(_), false) => "would take over",
            (Some(_), true) => "takes over",
        };
        let Origin {
            dataset_guid,
            pool_guid,
        } = &holding.origin;
        output.line(match &holding.holder {
            Holder::Origin(_) => {
                format!("{stored} {verb} dataset guid {dataset_guid} in pool guid {pool_guid}:")
            }
            Holder::Line(id) => {
                format!("{stored} {verb} another time line of its own, up to {id}:")
            }
        });
        holding_lines(holding, own)
            .iter()
            .for_each(|line| output.line(format!("  {line}")));
        if chosen.is_none() {
            output.line(format!(
                "  {}",
                adopt_command(stored, &holding.holder.to_string())
            ));
        }
    }
    output.note("the retention rules then apply to the adopted backups too; do not adopt those of an active host");
}

fn holding_lines(holding: &Holding, own: Option<&HostMark>) -> Vec<String> {
    let Holding {
        ids,
        attempts,
        bytes: held,
        oldest,
        newest,
        hosts,
        ..
    } = holding;
    let mut lines = vec![
        format!(
            "{} backups and {attempts} unfinished uploads, {} in all stores",
            ids.len(),
            bytes(*held)
        ),
        format!("snapshots from {oldest} to {newest}"),
    ];
    if holding.is_newer {
        lines.push(
            "its newest is newer than all our stored ones: its host may still be active".to_owned(),
        );
    }
    for host in hosts {
        let this = if Some(host) == own {
            ", as this one"
        } else {
            ""
        };
        lines.push(format!("by host {host}{this}"));
    }
    if hosts.is_empty() {
        lines.push("by a host that left no mark".to_owned());
    }
    lines
}

/// Reads what the pool knows, and the origins and backups that the dataset owns in every store:
/// backups that were taken over in only one of two stores can still be taken over.
fn read_pool(
    zfs: &dyn ZfsRead,
    config: &Config,
    selected: &Selected,
    own: &Origin,
    stores: &[Arc<dyn StoreRead>],
) -> Result<(PoolView, Vec<Origin>), Failure> {
    let mut found: Option<(PoolView, Vec<Origin>)> = None;
    for store in stores {
        let state_dir = &config.state_dir;
        let store = &store.known();
        let stored = &selected.stored;
        let origins = origins_of(state_dir, store, stored, own)?;
        let pool = pool_view(zfs, &selected.dataset.name, (state_dir, store, stored), own)?;
        match &mut found {
            None => found = Some((pool, origins)),
            Some((all, known)) => {
                all.adopted.retain(|id| pool.adopted.contains(id));
                known.retain(|origin| origins.contains(origin));
            }
        }
    }
    found.ok_or_else(|| usage("the configuration names no store", "set main.remote"))
}

async fn read_holdings(
    setup: &Setup,
    (stored, stores): (&DatasetName, &[Arc<dyn StoreRead>]),
    pool: &PoolView,
    origins: &[Origin],
) -> Result<Vec<Holding>, Failure> {
    let mut backups = Vec::new();
    let mut attempts = Vec::new();
    for store in stores {
        let (_, trusted) = keys_for_pruning(setup, &**store).await?;
        let catalog = read_catalog(&**store, stored, &trusted).await?;
        for backup in &catalog.backups {
            backups.push(BackupFacts::new(
                &backup.manifest,
                backup.manifest_blake3,
                backup.stored_bytes(),
                None,
            ));
        }
        for attempt in &catalog.attempts {
            // An untrusted `started.json` proves no origin.
            let started = match read_started(&**store, stored, &attempt.id, &trusted).await {
                Err(error) if error.is_damage() => None,
                started => started?,
            };
            attempts.extend(started.map(|started| HeldAttempt {
                id: started.id,
                origin: started.origin,
                host: started.host_mark,
                at: started.snapshot.created_at,
                bytes: attempt.bytes,
            }));
        }
    }
    Ok(find_holdings(&backups, &attempts, pool, origins))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Args, Command};
    use crate::manifest::SnapshotRef;
    use crate::model::{BackupKind, Digest, Guid};
    use crate::plan::Making;
    use clap::Parser;
    use jiff::Timestamp;
    use std::collections::BTreeSet;

    const MARK: &str = "aaaaaaaaaaaaaaaa-0123456789abcdef";

    fn origin(dataset: u64) -> Origin {
        Origin {
            dataset_guid: Guid(dataset),
            pool_guid: Guid(9),
        }
    }

    fn backup(guid: u64, origin: Origin, previous: &[&BackupFacts]) -> BackupFacts {
        let at =
            Timestamp::from_second(1_770_000_000 + i64::try_from(guid).unwrap() * 86_400).unwrap();
        let id = BackupId::new(at, BackupKind::Full, Guid(guid), 1);
        BackupFacts {
            manifest_blake3: Digest::of(b""),
            snapshot: SnapshotRef {
                guid: Guid(guid),
                createtxg: guid,
                created_at: at,
            },
            base: None,
            full_id: id.clone(),
            position: 0,
            origin,
            made: Making {
                host: Some(MARK.parse().unwrap()),
                previous: Some(previous.iter().map(|backup| backup.id.clone()).collect()),
                ..Making::default()
            },
            requested: Vec::new(),
            recipients: Vec::new(),
            stream_bytes: 1,
            stored_bytes: 1 << 30,
            flaw: None,
            id,
        }
    }

    /// Returns the holdings of these backups: the pool knows 1 and 4; 2 and 3 are of another time
    /// line; 5, the newest, is of another origin.
    fn holdings() -> Vec<Holding> {
        let first = backup(1, origin(1), &[]);
        let second = backup(2, origin(1), &[&first]);
        let third = backup(3, origin(1), &[&second]);
        let fourth = backup(4, origin(1), &[&first]);
        let fifth = backup(5, origin(7), &[]);
        let attempt = HeldAttempt {
            id: BackupId::new(fifth.snapshot.created_at, BackupKind::Full, Guid(6), 1),
            origin: origin(7),
            host: None,
            at: fifth.snapshot.created_at,
            bytes: 1 << 30,
        };
        let known = BTreeSet::from([Guid(1), Guid(4)]);
        let pool = PoolView {
            origin: origin(1),
            known,
            adopted: BTreeSet::new(),
        };
        find_holdings(
            &[first, second, third, fourth, fifth],
            &[attempt],
            &pool,
            &[origin(1)],
        )
    }

    fn parsed(arguments: &str) -> Adopt {
        let arguments = format!("zfs-backup adopt tank/a {arguments}");
        match Args::parse_from(arguments.split_whitespace()).command {
            Command::Adopt(adopt) => adopt,
            other => panic!("{other:?}"),
        }
    }

    fn reason_of(failure: &Failure) -> String {
        format!("{failure:?}")
    }

    #[test]
    fn adopt_lists_count_bytes_times_and_host_of_each_other_time_line() {
        let holdings = holdings();
        let mark = MARK.parse().unwrap();
        let said: Vec<String> = holdings
            .iter()
            .flat_map(|holding| {
                let command =
                    adopt_command(&"tank/a b".parse().unwrap(), &holding.holder.to_string());
                holding_lines(holding, Some(&mark))
                    .into_iter()
                    .chain([command])
            })
            .collect();
        insta::assert_snapshot!(said.join("\n"), @r"
        1 backups and 1 unfinished uploads, 2.00G in all stores
        snapshots from 2026-02-07T02:40:00Z to 2026-02-07T02:40:00Z
        its newest is newer than all our stored ones: its host may still be active
        by host aaaaaaaaaaaaaaaa-0123456789abcdef, as this one
        zfs-backup adopt 'tank/a b' --origin 0000000000000007/0000000000000009 -y
        2 backups and 0 unfinished uploads, 2.00G in all stores
        snapshots from 2026-02-04T02:40:00Z to 2026-02-05T02:40:00Z
        by host aaaaaaaaaaaaaaaa-0123456789abcdef, as this one
        zfs-backup adopt 'tank/a b' --line 20260205T024000Z-full-0000000000000003-0000000000000001 -y
        ");
    }

    #[test]
    fn adopt_requires_an_existing_origin_or_line() {
        let holdings = holdings();
        assert_eq!(choose(&parsed(""), &holdings).unwrap(), None);
        let line = "--line 20260205T024000Z-full-0000000000000003-0000000000000001";
        for (arguments, chosen) in [
            ("--origin 0000000000000007", 0),
            ("--origin 0000000000000007/0000000000000009 -y", 0),
            (line, 1),
        ] {
            assert_eq!(
                choose(&parsed(arguments), &holdings).unwrap(),
                Some(&holdings[chosen]),
                "{arguments}"
            );
        }
        for (arguments, told) in [
            ("-y", "-y needs --origin or --line"),
            (
                "--origin 0000000000000008 -y",
                "no other origin with that guid",
            ),
            (
                "--origin 0000000000000007/0000000000000008",
                "no other origin with that guid",
            ),
            (
                "--line 20260204T024000Z-full-0000000000000002-0000000000000001 -y",
                "is not the newest backup of another",
            ),
        ] {
            let reason = reason_of(&choose(&parsed(arguments), &holdings).unwrap_err());
            assert!(
                reason.contains(told)
                    && reason.contains(&format!("zfs-backup adopt tank/a {line} -y")),
                "{reason}"
            );
        }
        assert_eq!(
            choose(&parsed("-y"), &[]).unwrap(),
            None,
            "nothing to take over is no error"
        );
    }

    #[test]
    fn adopting_newer_backups_requires_although_newer() {
        let holdings = holdings();
        let refused =
            refuse_newer(&parsed("--origin 0000000000000007 -y"), &holdings[0]).unwrap_err();
        let reason = reason_of(&refused);
        let command = "zfs-backup adopt tank/a --origin 0000000000000007/0000000000000009 --although-newer -y";
        assert!(
            reason.contains("may still be active") && reason.contains(command),
            "{reason}"
        );
        refuse_newer(&parsed("--origin 0000000000000007"), &holdings[0]).unwrap();
        refuse_newer(
            &parsed("--origin 0000000000000007 --although-newer -y"),
            &holdings[0],
        )
        .unwrap();
        refuse_newer(&parsed("-y"), &holdings[1]).unwrap();
    }
}
