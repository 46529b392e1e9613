//! The user interface: arguments in; text, JSON and an exit status out. The adapters are chosen
//! only in this room.

mod args;
mod commands;
mod context;
mod failure;
mod lock;
mod open;
mod parallel;
mod perform;
mod screen;

use args::{Args, Command};
use clap::Parser;
use commands::run_command;
use context::{Context, GRACE, Leftovers};
use failure::status;
use perform::perform;
use screen::output::Output;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// Parses the command line, runs the command and returns the exit status.
pub fn run() -> ExitCode {
    ExitCode::from(run_args(Args::parse()))
}

/// Runs a command line in this process, with this ZFS instead of the kernel's, and returns the exit
/// status. For benchmarks of whole commands.
///
/// # Panics
/// When the words are not a valid command line.
#[cfg(any(test, feature = "testing"))]
pub fn run_in_process(words: &[&str], zfs: Arc<dyn crate::zfs::Zfs>) -> u8 {
    open::remote::replace_zfs(zfs);
    let words = std::iter::once("zfs-backup").chain(words.iter().copied());
    run_args(Args::try_parse_from(words).expect("a valid command line"))
}

fn run_args(args: Args) -> u8 {
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
            return status::FAILED;
        }
    };
    let (sender, stop) = watch::channel(false);
    let leftovers = Arc::new(Leftovers::default());
    // Before any work begins: a signal that nobody listens for would end the run and leave its lock.
    let signals = {
        let _entered = runtime.enter();
        stop_signals()
    };
    if let Some(signals) = signals {
        runtime.spawn(listen_for_signals(signals, sender, Arc::clone(&leftovers)));
    }
    let result = runtime.block_on(async {
        let context = Context::new(args.global.clone(), Arc::clone(&output), stop, leftovers);
        // A person watches a dry run.
        let waits = args.command.waits_for_stores() && !args.global.dry_run;
        let context = match waits {
            true => context.waiting_for_stores(),
            false => context,
        };
        match &args.command {
            Command::Perform => perform(&context).await,
            command => {
                // The futures of all commands together are too large for the stack.
                Box::pin(context.end_after_stop(command, run_command(command, &context))).await
            }
        }
    });
    // Blocking threads that still wait for the kernel or a full pipe must not delay the end of the
    // process.
    runtime.shutdown_timeout(GRACE);
    match result {
        Ok(()) => status::DONE,
        Err(failure) => {
            failure.print(&output);
            failure.status()
        }
    }
}

/// This number of threads can fill any network line.
const RUNTIME_THREADS_MAX: usize = 4;

/// Starts to catch the signals that request a stop; `None` when the system refuses.
fn stop_signals() -> Option<[Signal; 2]> {
    Some([
        signal(SignalKind::interrupt()).ok()?,
        signal(SignalKind::terminate()).ok()?,
    ])
}

/// Listens for signals: the first one requests a stop, a second one ends the process at once. In
/// both cases no manifest is half-written, because a manifest is a single put.
async fn listen_for_signals(
    [mut interrupt, mut terminate]: [Signal; 2],
    sender: watch::Sender<bool>,
    leftovers: Arc<Leftovers>,
) {
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
        tracing::warn!("stopping at the next safe point; a second signal ends the run at once");
    }
}
