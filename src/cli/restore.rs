//! `restore`.

use super::Failure;
use super::args::{Global, Restore};
use super::output::{Output, age, bytes};
use super::wire::{ReadSide, key_file, open_for_reading, open_zfs, usage};
use crate::keyring::KeyFile;
use crate::model::{DatasetName, InvalidName, SnapshotName};
use crate::run::RunError;
use crate::run::restore::{
    RestoreBackup, RestorePoint, RestoreSet, find_restore_backup, find_restore_set, restore_to_dataset,
    restore_to_writer,
};
use crate::run::transfer::Stop;
use jiff::Timestamp;
use serde_json::json;
use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) async fn restore(
    global: &Global,
    restore: &Restore,
    output: &Output,
    mut stop: Stop,
) -> Result<(), Failure> {
    let (dataset, point) = parse_what(restore)?;
    if restore.stdout && std::io::stdout().is_terminal() {
        return Err(usage(
            "stdout is a terminal, and a stream is not for reading",
            "pipe it: ... --stdout | zfs receive POOL/NEW",
        ));
    }
    let side = open_for_reading(global, &restore.source, restore.intermediate, output).await?;
    let keys = key_file(&side, &restore.source).await?;
    let set = match &point {
        // A bare stream needs nothing before it.
        RestorePoint::Id(id) if restore.to.is_none() => {
            RestoreSet { backups: vec![find_restore_backup(&*side.store, &dataset, &keys, id).await?] }
        }
        point => find_restore_set(&*side.store, &dataset, &keys, point).await?,
    };
    announce(&set, restore, output);
    if global.dry_run {
        print_plan(&set, &side, output);
        return Ok(());
    }
    if let Some(target) = &restore.to {
        // It ends by itself when it is asked to stop, because what it received must go again.
        let zfs = open_zfs()?;
        let received = restore_to_dataset(Arc::clone(&side.store), &set, &keys, zfs, target, stop).await?;
        received.iter().for_each(|snapshot| output.line(format!("received {snapshot}")));
        output.json(|| json!({ "received": received }));
        return Ok(());
    }
    let backup = only_backup(&set, restore)?;
    let work = async {
        match &restore.output {
            Some(file) => write_file(&side, backup, &keys, file).await,
            None => {
                restore_to_writer(Arc::clone(&side.store), backup, &keys, Box::new(std::io::stdout())).await?;
                Ok(())
            }
        }
    };
    tokio::select! {
        result = work => result,
        // The fetch ends with the runtime, and the stream with it.
        _ = stop.wait_for(|stop| *stop) => Err(Failure::Run(RunError::Interrupted)),
    }
}

fn parse_what(restore: &Restore) -> Result<(DatasetName, RestorePoint), Failure> {
    let wrong = |error: InvalidName| {
        usage(&error.to_string(), "DATASET or DATASET@SNAPSHOT, as `show --include-remote` names it")
    };
    let (dataset, snapshot) = if restore.what.contains('@') {
        let name: SnapshotName = restore.what.parse().map_err(wrong)?;
        (name.dataset().clone(), Some(name.short().to_owned()))
    } else {
        (restore.what.parse().map_err(wrong)?, None)
    };
    match (snapshot, &restore.backup) {
        (Some(_), Some(_)) => Err(usage("@SNAPSHOT and --backup both say which backup", "give one of them")),
        (Some(short), None) => Ok((dataset, RestorePoint::Snapshot(short))),
        (None, Some(id)) => Ok((dataset, RestorePoint::Id(id.clone()))),
        (None, None) => Ok((dataset, RestorePoint::Newest)),
    }
}

/// A cut tail of the store cannot be noticed without outside knowledge, so the time is always said.
fn announce(set: &RestoreSet, restore: &Restore, output: &Output) {
    if let Some(backup) = set.backups.last() {
        let at = backup.manifest.snapshot.created_at;
        output.always(&format!("{} is from {at}, {} ago", restore.what, age(Timestamp::now(), at)));
        if backup.private.as_ref().and_then(|private| private.zfs_key.as_ref()).is_some_and(|key| key.raw) {
            output.note("it was sent raw: to mount it, the ZFS key of that time is needed too");
        }
    }
}

fn print_plan(set: &RestoreSet, side: &ReadSide, output: &Output) {
    for backup in &set.backups {
        let stored: u64 = backup.chunks.iter().map(|chunk| chunk.sealed_bytes).sum();
        output.line(format!(
            "{} {} of {}: {} chunks, {} from {}, {} of stream",
            backup.manifest.kind.as_str(),
            backup.manifest.id,
            backup.private.as_ref().map_or("a snapshot whose name is lost", |private| &private.snapshot_name),
            backup.chunks.len(),
            bytes(stored),
            side.store.url(),
            bytes(backup.manifest.stream_bytes),
        ));
    }
    output.json(|| json!({ "backups": set.backups.iter().map(|backup| &backup.manifest).collect::<Vec<_>>() }));
}

fn only_backup<'a>(set: &'a RestoreSet, restore: &Restore) -> Result<&'a RestoreBackup, Failure> {
    match set.backups.as_slice() {
        [backup] => Ok(backup),
        chain => {
            let ids: Vec<_> = chain.iter().map(|backup| format!("\n  --backup {}", backup.manifest.id)).collect();
            Err(usage(
                &format!(
                    "a bare stream is of one backup, and {} needs a chain of {}, in this order:{}",
                    restore.what,
                    chain.len(),
                    ids.concat()
                ),
                "run this once for each with --backup ID, and receive one after the other; or use --to, which does it",
            ))
        }
    }
}

/// Under its own name only once it is whole and on disk.
async fn write_file(side: &ReadSide, backup: &RestoreBackup, keys: &KeyFile, path: &Path) -> Result<(), Failure> {
    let failed =
        |operation: &'static str| move |source| RunError::File { operation, path: path.display().to_string(), source };
    if path.symlink_metadata().is_ok() {
        return Err(usage(&format!("{} exists already", path.display()), "name a file that does not exist yet"));
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial);
    let file = opened.map_err(failed("create"))?;
    let copy = file.try_clone().map_err(failed("create"))?;
    restore_to_writer(Arc::clone(&side.store), backup, keys, Box::new(copy)).await?;
    file.sync_all().map_err(failed("write"))?;
    std::fs::rename(&partial, path).map_err(failed("name"))?;
    Ok(())
}
