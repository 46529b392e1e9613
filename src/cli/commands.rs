//! The commands, one file or folder each.

mod accept_store;
mod adopt;
mod backup;
mod config;
mod doctor;
mod drill;
mod forget;
mod health;
mod holds;
#[cfg(test)]
mod json_page;
mod key;
mod manual;
mod prune;
mod prune_snapshots;
mod restore;
mod show;
mod snapshot;
mod upload;
mod verify;

use crate::cli::args::{Command, ConfigCommand};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::lock::{self, check_lock};

/// Runs one command other than `perform`. A step of `perform` is run by this function too, with
/// the context of its run.
pub(crate) async fn run_command(command: &Command, context: &Context) -> Result<(), Failure> {
    let output = &context.output;
    check_lock(command, context).await?;
    match command {
        Command::Perform => Err(usage(
            "a sequence cannot run itself",
            "remove the step `perform` from [backup-sequence]",
        )),
        Command::Lock => lock::lock(context).await,
        Command::Unlock => lock::unlock(context),
        Command::Snapshot => snapshot::snapshot(context).await,
        Command::StreamToRemote(kind) => backup::stream_to_remote(context, kind).await,
        Command::ExportIntermediate(kind) => backup::export_intermediate(context, kind).await,
        Command::UploadIntermediateToRemote(rules) => upload::upload(context, rules).await,
        Command::PruneSnapshots(prune) => prune_snapshots::prune_snapshots(context, prune).await,
        Command::PruneIntermediate(prune) => prune::prune_intermediate(context, prune).await,
        Command::PruneRemote(prune) => prune::prune_remote(context, prune).await,
        Command::AcceptStore(accept) => accept_store::accept_store(context, accept).await,
        Command::Adopt(adopt) => adopt::adopt(context, adopt).await,
        Command::Forget(forget) => forget::forget(context, forget).await,
        Command::Show(show) => show::show(context, show).await,
        Command::Health(health) => health::health(context, health),
        Command::Doctor => doctor::doctor(context).await,
        Command::Holds(holds) => holds::holds(context, holds).await,
        Command::Completions { shell } => manual::completions(*shell, output),
        Command::Man { output: folder } => manual::man(folder.as_deref(), output),
        Command::VerifyChecksums(verify) => verify::verify(context, verify).await,
        Command::Restore(restore) => restore::restore(context, restore).await,
        Command::Drill(drill) => drill::drill(context, drill).await,
        Command::Key(command) => key::key(context, command).await,
        Command::Config(ConfigCommand::Init(init)) => config::init::init(context, init),
        Command::Config(ConfigCommand::Convert { file }) => config::convert::convert(file, output),
        Command::Config(ConfigCommand::Recover(recover)) => {
            config::recover::recover(context, recover).await
        }
        Command::Config(ConfigCommand::Check) => config::check(context.setup()?, output),
        Command::Config(ConfigCommand::Show) => config::show(context),
    }
}
