//! `restore --output FILE`.

use super::{PlannedReceive, words_of};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::screen::table::bytes;
use crate::keyring::KeyFile;
use crate::run::RunError;
use crate::run::restore::{
    PartialFile, RestoreBackup, find_partial, other_partials, restore_to_file,
};
use std::io::ErrorKind;
use std::path::Path;

/// Writes the stream of a backup to a partial file, or the rest of the stream if an earlier run
/// left one, and gives it its name once it is complete and on disk.
pub(super) async fn write_file(
    context: &Context,
    backup: &RestoreBackup,
    keys: &KeyFile,
    path: &Path,
) -> Result<(), Failure> {
    refuse_existing(path)?;
    let id = &backup.manifest.id;
    let mut partial = PartialFile::open(path, id)?;
    // Another run may have completed the file just before this one locked it.
    refuse_existing(path)?;
    for other in other_partials(path, id) {
        context.output.note(&format!(
            "{} is of another backup: resume that restore with --backup ID (the ID in the file name), or delete the file",
            other.display()
        ));
    }
    let output = &context.output;
    if partial.bytes() > 0 {
        output.note(&format!(
            "checking the {} of {}, which an interrupted restore left",
            bytes(partial.bytes()),
            partial.path().display()
        ));
    }
    let say = |resumed: &_| output.line(words_of(resumed));
    let written = restore_to_file(backup, keys, &partial, &context.stop, say).await;
    let left_bytes = partial.bytes();
    if written.as_ref().is_err_and(|error| !error.is_damage()) && left_bytes > 0 {
        output.always(&format!(
            "{} has {} of {} of the stream; the same command resumes",
            partial.path().display(),
            bytes(left_bytes),
            bytes(backup.manifest.stream_bytes)
        ));
    }
    written?;
    name_file(&mut partial, path)
}

/// Returns where [`write_file`] would resume, for a dry run.
pub(super) async fn find_resumed_file<'a>(
    context: &Context,
    backup: &RestoreBackup,
    path: &Path,
) -> Result<Option<PlannedReceive<'a>>, Failure> {
    let resumed = find_partial(backup, path, &context.stop).await?;
    Ok(resumed.map(|resumed| PlannedReceive {
        resumed: Some(resumed),
        rollback: None,
        plan: None,
    }))
}

fn name_file(partial: &mut PartialFile, path: &Path) -> Result<(), Failure> {
    match partial.become_named(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(exists(path)),
        named => named.map_err(|source| {
            Failure::Run(RunError::File {
                operation: "rename the partial file to",
                path: path.display().to_string(),
                source,
            })
        }),
    }
}

fn refuse_existing(path: &Path) -> Result<(), Failure> {
    match path.symlink_metadata() {
        Ok(_) => Err(exists(path)),
        Err(_) => Ok(()),
    }
}

fn exists(path: &Path) -> Failure {
    usage(
        &format!("{} exists already", path.display()),
        "name a file that does not exist yet",
    )
}
