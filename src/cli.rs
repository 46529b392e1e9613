//! The user interface: arguments in; text, JSON and an exit status out. The adapters are chosen
//! only in this room.

mod args;
mod commands;
mod context;
mod failure;
mod lock;
mod open;
mod perform;
mod screen;

use crate::run::RunError;
use crate::run::transfer::Stop;
use args::{Args, Command};
use clap::Parser;
use context::{Context, Leftovers};
use failure::{Failure, status};
use screen::output::Output;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::watch;

/// Parses the command line, runs the command and returns the exit status.
pub fn run() -> ExitCode {
    let args = Args::parse();
    let output = Arc::new(Output::new(&args.global));
    screen::log::init_log(args.global.verbose, args.global.quiet, output.log_tail());
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
        Command::Snapshot => commands::snapshot::snapshot(context).await,
        Command::StreamToRemote(kind) => commands::backup::stream_to_remote(context, kind).await,
        Command::ExportIntermediate(kind) => {
            commands::backup::export_intermediate(context, kind).await
        }
        Command::UploadIntermediateToRemote(rules) => {
            commands::upload::upload(context, rules).await
        }
        Command::PruneSnapshots(prune) => {
            commands::prune_snapshots::prune_snapshots(context, prune).await
        }
        Command::PruneIntermediate(prune) => {
            commands::prune::prune_intermediate(context, prune).await
        }
        Command::PruneRemote(prune) => commands::prune::prune_remote(context, prune).await,
        Command::AcceptStore(accept) => open::identity::accept_store(context, accept).await,
        Command::Adopt(adopt) => commands::adopt::adopt(context, adopt).await,
        Command::Forget(forget) => commands::forget::forget(context, forget).await,
        Command::Show(show) => commands::show::show(context, show).await,
        Command::Health(health) => commands::health::health(context, health),
        Command::Doctor => commands::doctor::doctor(context).await,
        Command::Holds(holds) => commands::holds::holds(context, holds).await,
        Command::Completions { shell } => commands::manual::completions(*shell, output),
        Command::Man { output: folder } => commands::manual::man(folder.as_deref(), output),
        Command::VerifyChecksums(verify) => commands::verify::verify(context, verify).await,
        Command::Restore(restore) => commands::restore::restore(context, restore).await,
        Command::Drill(drill) => commands::drill::drill(context, drill).await,
        Command::Key(command) => commands::key::key(global, command, output).await,
        Command::Config(args::ConfigCommand::Init(init)) => {
            commands::config::init::init(global, init, output)
        }
        Command::Config(args::ConfigCommand::Convert { file }) => {
            commands::config::convert::convert(file, output)
        }
        Command::Config(args::ConfigCommand::Recover(recover)) => {
            commands::config::recover::recover(context, recover).await
        }
        Command::Config(command) => commands::config::config(global, command, output),
    }
}
