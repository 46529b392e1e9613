//! `restore`.

pub(crate) mod output_file;
pub(crate) mod space;
pub(crate) mod tree;

use crate::cli::args::Restore;
use crate::cli::commands::restore::output_file::{find_resumed_file, write_file};
use crate::cli::commands::restore::space::check_fit;
use crate::cli::commands::restore::tree::restore_tree;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::reading::{ReadPlaces, open_places};
use crate::cli::open::remote::open_zfs;
use crate::cli::screen::output::{Output, Render};
use crate::cli::screen::table::{age, bytes};
use crate::keyring::KeyFile;
use crate::manifest::{ChunkEntry, Manifest};
use crate::model::{DatasetName, InvalidName, SnapshotName};
use crate::plan::space::Fit;
use crate::run::restore::{
    ArrivingDataset, LostBookmark, PropertyChoice, ReceiveOptions, ReceivePlan, Received,
    RestoreBackup, RestoreLock, RestorePoint, RestoreSet, ResumeChoice, ResumedReceive, Rollback,
    VisibleSteps, check_allowed, check_target, fetch_requests, find_interrupted,
    find_restore_backup, find_restore_set, find_restore_tree, judge_file_fit, judge_fit,
    left_readonly, lock_folder, lock_target, restore_as_planned, restore_to_writer, visible_steps,
};
use crate::run::runner::Runner;
use crate::run::{RunError, error_chain};
use crate::zfs::{ZfsHost, ZfsRead, enlarge_pipe};
use jiff::Timestamp;
use serde::Serialize;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::sync::Arc;

pub(crate) async fn restore(context: &Context, restore: &Restore) -> Result<(), Failure> {
    let (dataset, point) = parse_what(restore)?;
    if restore.stdout && std::io::stdout().is_terminal() {
        return Err(usage(
            "stdout is a terminal, and a stream is binary data",
            "pipe it: ... --stdout | zfs receive POOL/NEW",
        ));
    }
    if restore.mount {
        return Err(usage(
            "there is no --mount: a restore mounts nothing, because only you know which folder is free",
            "leave the option out; at the end restore prints the commands: zfs load-key, zfs set, zfs mount",
        ));
    }
    let options = receive_options(restore)?;
    let places = open_places(context, &restore.source, restore.from.as_ref(), false).await?;
    let stores = &places.stores;
    let keys = &places.keys;
    match &restore.to {
        Some(target) if restore.recursive => {
            let tree = find_restore_tree(stores, &dataset, keys, &point).await?;
            announce(&tree.members[0].set, restore, &context.output)?;
            restore_tree(context, restore, tree, target, &options, keys).await
        }
        Some(target) => {
            let set = find_restore_set(stores, &dataset, keys, &point).await?;
            announce(&set, restore, &context.output)?;
            restore_one(context, restore, &set, target, &options, keys).await
        }
        None => restore_stream(context, restore, &dataset, &point, &places).await,
    }
}

fn parse_what(restore: &Restore) -> Result<(DatasetName, RestorePoint), Failure> {
    let wrong = |error: InvalidName| {
        usage(
            &error.to_string(),
            "DATASET or DATASET@SNAPSHOT, as `show --include-remote` names it",
        )
    };
    let (dataset, snapshot) = if restore.what.contains('@') {
        let name: SnapshotName = restore.what.parse().map_err(wrong)?;
        (name.dataset().clone(), Some(name.short().to_owned()))
    } else {
        (restore.what.parse().map_err(wrong)?, None)
    };
    match (snapshot, &restore.backup, &restore.at) {
        (Some(_), Some(_), _) => Err(usage(
            "@SNAPSHOT and --backup both say which backup",
            "give one of them",
        )),
        (Some(_), _, Some(_)) => Err(usage(
            "@SNAPSHOT and --at both say which backup",
            "give one of them",
        )),
        (Some(short), None, None) => Ok((dataset, RestorePoint::Snapshot(short))),
        (None, Some(id), _) => Ok((dataset, RestorePoint::Id(id.clone()))),
        (None, None, Some(at)) => Ok((dataset, RestorePoint::At(at.0))),
        (None, None, None) => Ok((dataset, RestorePoint::Newest)),
    }
}

fn receive_options(restore: &Restore) -> Result<ReceiveOptions, Failure> {
    let properties =
        PropertyChoice::new(restore.with_properties, &restore.set, &restore.without)
            .map_err(|error| usage(&error.to_string(), "as `zfs receive -o` and `-x` take them"))?;
    let resume = if restore.restart {
        ResumeChoice::Restart
    } else {
        ResumeChoice::Resume
    };
    Ok(ReceiveOptions {
        properties,
        rollback: restore.force_rollback,
        resume,
    })
}

/// Prints the time of the backup and compares it with the caller's expectation. A store that has
/// lost its newest backups cannot be noticed without outside knowledge.
fn announce(set: &RestoreSet, restore: &Restore, output: &Output) -> Result<(), Failure> {
    for why in &set.unasked {
        output.always(&format!(
            "a store could not be asked, and may have something newer: {why}"
        ));
    }
    let newest = set.newest();
    let now = Timestamp::now();
    let id = &newest.manifest.id;
    let at = newest.manifest.snapshot.created_at;
    output.always(&format!(
        "{} is from {at}, {} ago",
        restore.what,
        age(now, at)
    ));
    if newest
        .private
        .as_ref()
        .and_then(|private| private.zfs_key.as_ref())
        .is_some_and(|key| key.raw)
    {
        output.note("it was sent raw: to mount it, the ZFS key of that time is needed too");
    }
    if let Some(guid) = newest.manifest.clone_origin_guid {
        let private = newest.private.as_ref();
        let origin = private.and_then(|private| private.clone_origin.clone());
        let origin = origin.unwrap_or_else(|| format!("the snapshot with guid {guid}"));
        output
            .note(&format!("the source was a clone of {origin}; the restored dataset is not a clone and uses its full size"));
    }
    if let Some(expected) = restore.expect.as_ref().filter(|expected| *expected != id) {
        let hint = "the store may have lost its newest backups, or --expect names an older one";
        return Err(RunError::refused(
            format!("{id} would be restored, and {expected} was expected"),
            hint,
        )
        .into());
    }
    let old = std::time::Duration::try_from(now.duration_since(at)).unwrap_or_default();
    if let Some(limit) = restore.max_age.filter(|limit| old > limit.duration()) {
        let what = format!(
            "{id} is {} old, and at most {limit} was expected",
            age(now, at)
        );
        return Err(RunError::refused(
            what,
            "the store may have lost its newest backups; check with `show`",
        )
        .into());
    }
    Ok(())
}

async fn restore_one(
    context: &Context,
    restore: &Restore,
    set: &RestoreSet,
    target: &DatasetName,
    options: &ReceiveOptions,
    keys: &KeyFile,
) -> Result<(), Failure> {
    let output = &context.output;
    let check_space = |zfs: &dyn ZfsRead, plan: &ReceivePlan| {
        let arriving = ArrivingDataset { set, plan, options };
        let fit = judge_fit(zfs, target, &[arriving]);
        check_fit(fit, restore.although_full, context)
    };
    if context.global.dry_run {
        // Without ZFS, as on another host, the plan still shows the contents of the store.
        let zfs = open_zfs().ok();
        let plan = zfs
            .as_ref()
            .map(|zfs| check_target(&**zfs, target, set, options))
            .transpose()?;
        let space = zfs
            .as_ref()
            .zip(plan.as_ref())
            .map(|(zfs, plan)| check_space(&**zfs, plan))
            .transpose()?;
        let receive = PlannedReceive {
            resumed: find_resumed(context, set, plan.as_ref(), keys).await?,
            rollback: plan.as_ref().and_then(|plan| plan.rollback.as_ref()),
            plan: plan.as_ref(),
        };
        output.emit(&PlannedRestore::new(set, Some(receive), space));
        return Ok(());
    }
    let _lock = lock(target)?;
    let zfs = open_zfs()?;
    let plan = check_target(&*zfs, target, set, options)?;
    check_allowed(&*zfs, target, set, &plan, options, &Runner::current())?;
    check_space(&*zfs, &plan)?;
    if let Some(rollback) = &plan.rollback {
        say_lost(rollback, restore.yes, output);
        if !restore.yes {
            output.json(&RefusedRollback {
                rollback,
                carried_out: false,
            });
            let what = format!("{target} would be rolled back; nothing was changed");
            let hint = "the same command with -y destroys what is listed, and receives";
            return Err(RunError::refused(what, hint).into());
        }
    }
    // This call is not raced against the stop signal. On a stop it cleans up itself: it destroys
    // the received data or leaves it resumable.
    let received = restore_as_planned(
        set,
        keys,
        Arc::clone(&zfs),
        target,
        &plan,
        options,
        context.stop.clone(),
    )
    .await?;
    say_received(&*zfs, &received, target, output);
    let visible = say_visible(&*zfs, target, output);
    output.json(&Restored {
        received: received.snapshots,
        went_on: received.resumed,
        to_mount: visible.commands,
    });
    Ok(())
}

/// The document of a restore.
#[derive(Serialize)]
pub(crate) struct Restored {
    pub(crate) received: Vec<SnapshotName>,
    pub(crate) went_on: Option<ResumedReceive>,
    pub(crate) to_mount: Vec<String>,
}

/// The document of a restore that needs `-y` for a rollback.
#[derive(Serialize)]
pub(crate) struct RefusedRollback<'a> {
    pub(crate) rollback: &'a Rollback,
    pub(crate) carried_out: bool,
}

/// Keeps other restores of this host away from the target, the datasets above it and those below
/// it.
pub(crate) fn lock(target: &DatasetName) -> Result<Option<RestoreLock>, Failure> {
    Ok(lock_folder()
        .map(|folder| lock_target(&folder, target))
        .transpose()?)
}

/// Prints the commands that make the dataset visible, which a person must run.
pub(crate) fn say_visible(
    zfs: &dyn ZfsHost,
    target: &DatasetName,
    output: &Output,
) -> VisibleSteps {
    let steps = visible_steps(zfs, target).unwrap_or_else(|error| {
        tracing::warn!(
            error = error_chain(&error),
            "cannot find out how to make {target} visible"
        );
        VisibleSteps::default()
    });
    match (&steps.place, steps.commands.is_empty()) {
        (Some(place), true) => output.line(format!("its data is at {}", place.display())),
        (Some(place), false) => {
            output.line(format!("not mounted; to have it at {}:", place.display()))
        }
        (None, false) => output.line("not mounted; to have it in a folder:"),
        (None, true) => {}
    }
    steps
        .commands
        .iter()
        .for_each(|command| output.line(format!("  {command}")));
    steps.note.iter().for_each(|note| output.note(note));
    steps
}

fn say_received(zfs: &dyn ZfsHost, received: &Received, target: &DatasetName, output: &Output) {
    if let Some(resumed) = &received.resumed {
        output.line(words_of(resumed));
    }
    received
        .snapshots
        .iter()
        .for_each(|snapshot| output.line(format!("received {snapshot}")));
    if received.snapshots.is_empty() {
        output.line(format!(
            "{target} was received completely by an earlier run"
        ));
    }
    match left_readonly(zfs, target) {
        Ok(Some(place)) => {
            let place = place.display().to_string();
            let quoted = shell_words::quote(&place);
            output.note(&format!(
                "it is mounted readonly, and stays so until: mount -o remount,rw {quoted}"
            ));
        }
        Ok(None) => {}
        // The restore has succeeded: a missing message does not make it fail.
        Err(error) => tracing::warn!(
            error = error_chain(&error),
            "whether it is mounted readonly is not known"
        ),
    }
}

fn words_of(resumed: &ResumedReceive) -> String {
    let ResumedReceive {
        id,
        position,
        stream_bytes,
        fetch_bytes,
    } = resumed;
    let position = bytes(*position);
    let stream = bytes(*stream_bytes);
    format!(
        "interrupted before; {id} resumes at {position} of {stream}, and {} are fetched",
        bytes(*fetch_bytes)
    )
}

/// Returns where the restore would resume. Prints the reason when it would start over.
async fn find_resumed(
    context: &Context,
    set: &RestoreSet,
    plan: Option<&ReceivePlan>,
    keys: &KeyFile,
) -> Result<Option<ResumedReceive>, Failure> {
    let Some(plan) = plan else { return Ok(None) };
    match find_interrupted(set, plan, keys, &context.stop).await {
        Err(error @ RunError::CannotResumeReceive { .. }) => {
            context.output.always(&format!(
                "{}: it would start over",
                crate::run::error_chain(&error)
            ));
            Ok(None)
        }
        found => Ok(found?),
    }
}

/// Prints exactly what is destroyed.
fn say_lost(rollback: &Rollback, yes: bool, output: &Output) {
    let (is, are) = if yes {
        ("is", "are")
    } else {
        ("would be", "would be")
    };
    let target = rollback.base.dataset();
    let base = &rollback.base;
    output.always(&format!(
        "{target} {is} rolled back to {base}; these {are} destroyed:"
    ));
    lost_lines(rollback)
        .iter()
        .for_each(|line| output.always(&format!("  {line}")));
}

fn lost_lines(rollback: &Rollback) -> Vec<String> {
    let mut lines = Vec::new();
    for lost in &rollback.snapshots {
        lines.push(format!(
            "{}, guid {}, taken {}",
            lost.name, lost.guid, lost.created_at
        ));
    }
    for LostBookmark { name, guid } in &rollback.bookmarks {
        lines.push(format!("{name}, guid {guid}, a bookmark"));
    }
    lines.push(match rollback.written_bytes {
        Some(0) => "no data: nothing was written since the newest snapshot".to_owned(),
        Some(written) => format!("{} written since the newest snapshot", bytes(written)),
        None => {
            "all data written since the newest snapshot: ZFS does not report how much".to_owned()
        }
    });
    lines
}

/// The plan of a dry run.
#[derive(Serialize)]
pub(crate) struct PlannedRestore<'a> {
    pub(crate) backups: Vec<ChainBackup<'a>>,
    /// The plan to receive, unless the stream would only be written.
    #[serde(flatten)]
    pub(crate) receive: Option<PlannedReceive<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) space: Option<Fit>,
    #[serde(skip)]
    pub(crate) set: &'a RestoreSet,
}

/// A backup of the chain, with its store.
#[derive(Serialize)]
pub(crate) struct ChainBackup<'a> {
    pub(crate) store: &'a str,
    pub(crate) manifest: &'a Manifest,
}

#[derive(Serialize)]
pub(crate) struct PlannedReceive<'a> {
    #[serde(rename = "goes_on")]
    pub(crate) resumed: Option<ResumedReceive>,
    pub(crate) rollback: Option<&'a Rollback>,
    #[serde(skip)]
    pub(crate) plan: Option<&'a ReceivePlan>,
}

impl<'a> PlannedRestore<'a> {
    pub(crate) fn new(
        set: &'a RestoreSet,
        receive: Option<PlannedReceive<'a>>,
        space: Option<Fit>,
    ) -> Self {
        let backups = set.backups.iter().map(|backup| ChainBackup {
            store: backup.store.url(),
            manifest: &backup.manifest,
        });
        Self {
            backups: backups.collect(),
            receive,
            space,
            set,
        }
    }
}

impl Render for PlannedRestore<'_> {
    fn render(&self, output: &Output) {
        let receive = self.receive.as_ref();
        let plan = receive.and_then(|receive| receive.plan);
        let resumed = receive.and_then(|receive| receive.resumed.as_ref());
        let skipped = plan.map_or(0, |plan| plan.skipped);
        let mut objects = 0;
        let mut stored = 0;
        let mut requests = 0;
        for (number, backup) in self.set.backups.iter().enumerate() {
            let sealed: u64 = backup.chunks.iter().map(|chunk| chunk.sealed_bytes).sum();
            let name = backup
                .private
                .as_ref()
                .map_or("a snapshot whose name is lost", |private| {
                    &private.snapshot_name
                });
            let Manifest {
                kind, level, id, ..
            } = &backup.manifest;
            let level = level.map_or_else(String::new, |level| format!("{level} "));
            output.line(format!("{level}{} {id}", kind.as_str()));
            if number < skipped {
                output.line(format!("  of {name}: there already"));
                continue;
            }
            let count = backup.chunks.len();
            let from = backup.store.url();
            let stream = bytes(backup.manifest.stream_bytes);
            output.line(format!(
                "  of {name}: {count} chunks, {} from {from}, {stream} of stream",
                bytes(sealed)
            ));
            let resumed = resumed.filter(|_| number == skipped);
            if let Some(resumed) = resumed {
                output.line(format!("  {}", words_of(resumed)));
            }
            let chunks = resumed.map_or(&backup.chunks[..], |resumed| chunks_from(backup, resumed));
            (objects, requests) = (objects + chunks.len(), requests + fetch_requests(chunks));
            stored += resumed.map_or(sealed, |resumed| resumed.fetch_bytes);
        }
        output.line(format!(
            "to fetch: {} in {objects} objects by {requests} requests",
            bytes(stored)
        ));
        if let Some(plan) = plan {
            render_receive(plan, output);
        }
    }
}

fn render_receive(plan: &ReceivePlan, output: &Output) {
    if plan.gives_up {
        output.line("to destroy: what an interrupted restore has received");
    }
    for parent in &plan.parents {
        output.line(format!("to make: {parent}, canmount=off"));
    }
    if let Some(rollback) = &plan.rollback {
        output.line(format!("to roll back to: {}; destroys:", rollback.base));
        lost_lines(rollback)
            .iter()
            .for_each(|line| output.line(format!("  {line}")));
    }
}

fn chunks_from<'a>(backup: &'a RestoreBackup, resumed: &ResumedReceive) -> &'a [ChunkEntry] {
    let first = usize::try_from(resumed.position / backup.manifest.split_bytes.max(1))
        .unwrap_or(usize::MAX);
    backup.chunks.get(first..).unwrap_or_default()
}

async fn restore_stream(
    context: &Context,
    restore: &Restore,
    dataset: &DatasetName,
    point: &RestorePoint,
    places: &ReadPlaces<'_>,
) -> Result<(), Failure> {
    let stores = &places.stores;
    let keys = &places.keys;
    let set = match point {
        // A bare stream needs no backup before it.
        RestorePoint::Id(id) => {
            let backups = vec![find_restore_backup(stores, dataset, keys, id).await?];
            RestoreSet {
                backups,
                unasked: Vec::new(),
            }
        }
        point => find_restore_set(stores, dataset, keys, point).await?,
    };
    announce(&set, restore, &context.output)?;
    let space = match (&restore.output, set.backups.as_slice()) {
        (Some(file), [backup]) => {
            let fit = judge_file_fit(file, backup);
            Some(check_fit(fit, restore.although_full, context)?)
        }
        _ => None,
    };
    if context.global.dry_run {
        let receive = match (&restore.output, set.backups.as_slice()) {
            (Some(file), [backup]) => find_resumed_file(context, backup, file).await?,
            _ => None,
        };
        context
            .output
            .emit(&PlannedRestore::new(&set, receive, space));
        return Ok(());
    }
    match &restore.output {
        Some(file) => write_file(context, only_backup(&set, restore)?, keys, file).await,
        None => write_stdout(context, only_backup(&set, restore)?, keys).await,
    }
}

async fn write_stdout(
    context: &Context,
    backup: &RestoreBackup,
    keys: &KeyFile,
) -> Result<(), Failure> {
    // The standard handle is not used, because it scans for line ends.
    let file = std::io::stdout().as_fd().try_clone_to_owned();
    let failed = |source| RunError::File {
        operation: "write to",
        path: "stdout".into(),
        source,
    };
    let file = file.map_err(failed)?;
    // A larger pipe lets the reader work in parallel.
    enlarge_pipe(&file);
    let mut stop = context.stop.clone();
    tokio::select! {
        result = restore_to_writer(backup, keys, Box::new(File::from(file))) => Ok(result.map(drop)?),
        // The fetch ends with the runtime, and the stream ends with it.
        _ = stop.wait_for(|stop| *stop) => Err(Failure::Run(RunError::Interrupted)),
    }
}

fn only_backup<'a>(set: &'a RestoreSet, restore: &Restore) -> Result<&'a RestoreBackup, Failure> {
    match set.backups.as_slice() {
        [backup] => Ok(backup),
        chain => {
            let ids: Vec<_> = chain
                .iter()
                .map(|backup| format!("\n  --backup {}", backup.manifest.id))
                .collect();
            Err(usage(
                &format!(
                    "a bare stream contains one backup, and {} needs a chain of {}, in this order:{}",
                    restore.what,
                    chain.len(),
                    ids.concat()
                ),
                "run this once for each with --backup ID, and receive one after the other; or use --to, which does it",
            ))
        }
    }
}
