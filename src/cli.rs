//! The user interface: arguments in; text, JSON and an exit status out. The adapters are chosen
//! only in this room.

mod adopt;
mod args;
mod backup;
mod check;
mod context;
mod convert;
mod details;
mod doctor;
mod drill;
mod follow;
mod forget;
mod health;
mod holds;
mod identity;
mod init;
mod init_text;
mod keys;
mod lock;
mod log;
mod manual;
mod meter;
mod native_b2;
mod new_file;
mod output;
mod overview;
mod pace;
mod perform;
mod places;
mod progress;
mod prune;
mod prune_plan;
mod prune_snapshots;
mod rclone_remote;
mod recover;
mod rekey;
mod remember;
mod report;
mod restore;
mod restore_args;
mod restore_tree;
mod sequence;
mod share;
mod show;
mod snapshot;
mod stored;
mod survey;
mod upload;
mod verify;
mod views;
mod wire;

use crate::catalog::CatalogError;
use crate::config::{ConfigError, SecretError};
use crate::run::RunError;
use crate::run::transfer::Stop;
use crate::state::StateError;
use args::{Args, Command};
use clap::Parser;
use context::{Context, Leftovers};
use output::Output;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::watch;

/// Exit statuses, as the README documents them.
mod status {
    pub(super) const DONE: u8 = 0;
    pub(super) const FAILED: u8 = 1;
    pub(super) const USAGE: u8 = 2;
    pub(super) const PARTIAL: u8 = 3;
    pub(super) const DAMAGE: u8 = 4;
    pub(super) const LOCKED: u8 = 11;
    pub(super) const INTERRUPTED: u8 = 130;

    /// Returns the more serious of two statuses, with which a command or run that has both ends.
    pub(super) fn worst(a: u8, b: u8) -> u8 {
        const ORDER: [u8; 7] = [DONE, USAGE, PARTIAL, FAILED, DAMAGE, LOCKED, INTERRUPTED];
        // A status outside the table is the failure of another program.
        let rank = |status| ORDER.iter().position(|other| *other == status).unwrap_or(3);
        if rank(a) >= rank(b) { a } else { b }
    }
}

/// The reason why a command ended without doing all of its work.
#[derive(Debug)]
enum Failure {
    /// An error of `run`, or of a room that `run` uses.
    Run(RunError),
    /// The configuration is wrong.
    Config(ConfigError),
    /// A secret could not be read.
    Secret(SecretError),
    /// The command line asks for something impossible.
    Usage { what: String, hint: String },
    /// A doubt about a dataset, because of which none of its objects was deleted.
    Doubtful {
        what: String,
        hint: String,
        status: u8,
    },
    /// The command has printed its errors already and ends with this status.
    Reported(u8),
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

impl From<CatalogError> for Failure {
    fn from(error: CatalogError) -> Self {
        Self::Run(error.into())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::Run(error.into())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Run(error.into())
    }
}

impl From<crate::zfs::ZfsError> for Failure {
    fn from(error: crate::zfs::ZfsError) -> Self {
        Self::Run(error.into())
    }
}

impl Failure {
    fn status(&self) -> u8 {
        match self {
            Self::Run(RunError::Interrupted) => status::INTERRUPTED,
            Self::Run(RunError::State(StateError::Locked { .. }) | RunError::LockedBy { .. }) => {
                status::LOCKED
            }
            Self::Run(error) if error.is_damage() => status::DAMAGE,
            Self::Run(_) => status::FAILED,
            Self::Config(_) | Self::Secret(_) | Self::Usage { .. } => status::USAGE,
            Self::Doubtful { status, .. } | Self::Reported(status) => *status,
        }
    }

    /// Returns the reason on one line.
    fn reason(&self) -> String {
        match self {
            Self::Run(error) => crate::run::error_chain(error),
            Self::Config(error) => crate::run::error_chain(error),
            Self::Secret(error) => crate::run::error_chain(error),
            Self::Usage { what, .. } | Self::Doubtful { what, .. } => what.clone(),
            Self::Reported(status) => format!("ended with status {status}"),
        }
    }

    fn print(&self, output: &Output) {
        match self {
            Self::Run(error) => output.error(error, error.hint().as_deref()),
            Self::Config(error) => output.error(error, error.hint().as_deref()),
            Self::Secret(error) => output.error(error, error.hint().as_deref()),
            Self::Usage { what, hint } | Self::Doubtful { what, hint, .. } => {
                output.error_text(what, Some(hint))
            }
            Self::Reported(_) => {}
        }
    }
}

/// Parses the command line, runs the command and returns the exit status.
pub fn run() -> ExitCode {
    let args = Args::parse();
    let output = Arc::new(Output::new(&args.global));
    log::init_log(args.global.verbose, args.global.quiet, output.log_tail());
    // The threads of the runtime move bytes to and from sockets; computations have their own
    // threads. More threads would only use memory.
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(RUNTIME_THREADS_MAX);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&error, None);
            return ExitCode::from(status::FAILED);
        }
    };
    let (sender, stop) = watch::channel(false);
    let leftovers = Arc::new(Leftovers::default());
    runtime.spawn(listen_for_signals(sender, Arc::clone(&leftovers)));
    let result = runtime.block_on(async {
        let mut stopping = stop.clone();
        let context = Context::new(args.global.clone(), Arc::clone(&output), stop, leftovers);
        tokio::select! {
            result = dispatch(&args.command, &context) => result,
            // Commands that can leave something behind stop by themselves; all other commands are
            // simply dropped.
            () = stopped_for(&mut stopping, GRACE), if !args.command.ends_by_itself() => {
                Err(Failure::Run(RunError::Interrupted))
            }
        }
    });
    // Blocking threads that still wait for the kernel or a full pipe must not delay the end of the
    // process.
    runtime.shutdown_timeout(GRACE);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(&output);
            ExitCode::from(failure.status())
        }
    }
}

/// This number of threads can fill any network line.
const RUNTIME_THREADS_MAX: usize = 4;
/// How long a command may take to end by itself after a request to stop.
const GRACE: std::time::Duration = std::time::Duration::from_secs(10);

async fn stopped_for(stop: &mut Stop, grace: std::time::Duration) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(grace).await;
}

/// Listens for signals: the first one requests a stop, a second one ends the process at once. In
/// both cases no manifest is half-written, because a manifest is a single put.
async fn listen_for_signals(sender: watch::Sender<bool>, leftovers: Arc<Leftovers>) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if sender.send_replace(true) {
            leftovers.end();
            #[expect(clippy::exit, reason = "the second request to stop is an order")]
            std::process::exit(i32::from(status::INTERRUPTED));
        }
        tracing::warn!("stopping as soon as nothing half-done is left; once more ends at once");
    }
}

/// Runs one command. A step of `perform` is run by this function too, with the context of its run.
async fn dispatch(command: &Command, context: &Context) -> Result<(), Failure> {
    let Context { global, output, .. } = context;
    lock::check_lock(command, context).await?;
    match command {
        Command::Perform => perform::perform(context).await,
        Command::Lock => lock::lock(context).await,
        Command::Unlock => lock::unlock(context),
        Command::Snapshot => snapshot::snapshot(context).await,
        Command::StreamToRemote(kind) => backup::stream_to_remote(context, kind).await,
        Command::ExportIntermediate(kind) => backup::export_intermediate(context, kind).await,
        Command::UploadIntermediateToRemote(rules) => upload::upload(context, rules).await,
        Command::PruneSnapshots(prune) => prune_snapshots::prune_snapshots(context, prune).await,
        Command::PruneIntermediate(prune) => prune::prune_intermediate(context, prune).await,
        Command::PruneRemote(prune) => prune::prune_remote(context, prune).await,
        Command::AcceptStore(accept) => identity::accept_store(context, accept).await,
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
        Command::Key(command) => keys::key(global, command, output).await,
        Command::Config(args::ConfigCommand::Init(init)) => init::init(global, init, output),
        Command::Config(args::ConfigCommand::Convert { file }) => convert::convert(file, output),
        Command::Config(args::ConfigCommand::Recover(recover)) => {
            recover::recover(context, recover).await
        }
        Command::Config(command) => check::config(global, command, output),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_status_is_that_of_the_table_not_the_largest_number() {
        let order = [0, 2, 3, 1, 4, 11, 130];
        for (rank, worse) in order.iter().enumerate() {
            for better in &order[..=rank] {
                assert_eq!(
                    (
                        status::worst(*better, *worse),
                        status::worst(*worse, *better)
                    ),
                    (*worse, *worse)
                );
            }
        }
    }
}
