//! `lock`, `unlock`, and the check of the lockfile before other commands.

use crate::cli::args::{Command, Holds};
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::screen::output::display_path;
use crate::cli::screen::table::age;
use crate::config::{Config, TimeLimit};
use crate::run::RunError;
use crate::state::StateError;
use crate::state::lockfile::{
    LockHolder, LockKind, LockState, TakeOutcome, read_lock, remove_lock, take_lock,
};
use crate::state::process::HostBoot;
use jiff::Timestamp;
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often a lock is checked while a command waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How a command treats the lockfile before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockNeed {
    /// The command ignores the lockfile.
    Nothing,
    /// The command reports a lock and continues.
    Note,
    /// The command does not start while another run or person has the lock.
    Check,
}

impl Command {
    /// Returns the command's need: commands that change something wait for the lock, commands that
    /// read report it.
    pub(crate) fn lock_need(&self) -> LockNeed {
        match self {
            Self::Snapshot
            | Self::ExportIntermediate(_)
            | Self::UploadIntermediateToRemote(_)
            | Self::StreamToRemote(_)
            | Self::PruneSnapshots(_)
            | Self::PruneIntermediate(_)
            | Self::PruneRemote(_)
            | Self::Holds(Holds::Release(_))
            | Self::AcceptStore(_)
            | Self::Adopt(_)
            | Self::Forget(_) => LockNeed::Check,
            // Without a configuration there is no lockfile.
            Self::VerifyChecksums(verify) if verify.source.remote.is_none() => LockNeed::Note,
            Self::Show(show) if show.source.remote.is_none() => LockNeed::Note,
            Self::Restore(restore) if restore.source.remote.is_none() => LockNeed::Note,
            _ => LockNeed::Nothing,
        }
    }

    /// Returns whether the command has its own `-i`, which means `--incremental`.
    fn has_incremental(&self) -> bool {
        matches!(self, Self::ExportIntermediate(_) | Self::StreamToRemote(_))
    }
}

/// Checks the lockfile as the command needs it. The lock of this run itself does not count.
pub(crate) async fn check_lock(command: &Command, context: &Context) -> Result<(), Failure> {
    let need = match command.lock_need() {
        // A dry run changes nothing, so a lock need not stop it.
        LockNeed::Check if context.global.dry_run => LockNeed::Note,
        need => need,
    };
    if need == LockNeed::Nothing {
        return Ok(());
    }
    let config = &context.setup()?.config;
    let here = HostBoot::current();
    let read = || read_lock(&config.lock_file, &here);
    if need == LockNeed::Note {
        match read() {
            Ok(state) => note(context, config, &state, ""),
            Err(error) => context.output.note(&crate::run::error_chain(&error)),
        }
        return Ok(());
    }
    let mut waiting = LockWait::new(context);
    loop {
        let state = read()?;
        match &state {
            LockState::Free
                if context.global.ignore_lock
                    && command.has_incremental()
                    && !context.is_step() =>
            {
                context.output.always(
                    "there was no lock to ignore: -i before the command is --ignore-lock; \
                     for --incremental write -i after the command",
                );
                return Ok(());
            }
            LockState::Free => return Ok(()),
            LockState::Held(holder) if context.leftovers.has_lock_of(holder) => return Ok(()),
            LockState::Stale(_) => {
                note(context, config, &state, "");
                return Ok(());
            }
            LockState::Held(_) | LockState::Damaged(_) if context.global.ignore_lock => {
                note(context, config, &state, "ignored: ");
                return Ok(());
            }
            LockState::Held(_) | LockState::Damaged(_) => waiting.wait(config, &state).await?,
        }
    }
}

/// Runs work that starts with the kernel lock of a dataset and a store. While another run has that
/// lock, tries again for as long as `--lock-wait` allows.
pub(crate) async fn wait_for_others<T>(
    context: &Context,
    mut work: impl AsyncFnMut() -> Result<T, RunError>,
) -> Result<T, RunError> {
    let mut waiting = LockWait::new(context);
    loop {
        match work().await {
            Err(error @ RunError::State(StateError::Locked { .. })) => {
                waiting.pause(&error.to_string(), || error).await?
            }
            done => return done,
        }
    }
}

fn note(context: &Context, config: &Config, state: &LockState, how: &str) {
    match state {
        LockState::Free => {}
        LockState::Held(holder) if context.leftovers.has_lock_of(holder) => {}
        state => context.output.note(&format!(
            "{how}{}",
            describe(state, config, Timestamp::now())
        )),
    }
}

/// The document of `lock` and `unlock`.
#[derive(Serialize)]
pub(crate) struct LockChange {
    #[serde(serialize_with = "display_path")]
    pub(crate) lock_file: PathBuf,
    pub(crate) locked: bool,
    /// Whether `unlock` removed a lock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) removed: Option<bool>,
}

/// `lock`: makes the lock by hand or, as a step, for the run of `perform`.
pub(crate) async fn lock(context: &Context) -> Result<(), Failure> {
    let config = &context.setup()?.config;
    let path = config.lock_file.display();
    if context.global.dry_run {
        note(
            context,
            config,
            &read_lock(&config.lock_file, &HostBoot::current())?,
            "",
        );
        context
            .output
            .line(format!("would make the lockfile {path}"));
        return Ok(());
    }
    let kind = if context.is_step() {
        LockKind::Run
    } else {
        LockKind::Manual
    };
    let mut waiting = LockWait::new(context);
    let (lock, replaced) = loop {
        let holder = LockHolder::current(kind, Timestamp::now())?;
        match take_lock(&config.lock_file, &holder)? {
            TakeOutcome::Taken(lock, replaced) => break (lock, replaced),
            TakeOutcome::Busy(state) if context.global.ignore_lock && context.is_step() => {
                note(context, config, &state, "ignored: ");
                return Ok(());
            }
            TakeOutcome::Busy(state) => waiting.wait(config, &state).await?,
        }
    };
    if let Some(holder) = replaced {
        let old = describe(&LockState::Stale(*holder), config, Timestamp::now());
        context.output.always(&format!("taken over: {old}"));
    }
    context.output.line(format!("locked: {path}"));
    context.output.json(&LockChange {
        lock_file: config.lock_file.clone(),
        locked: true,
        removed: None,
    });
    match kind {
        LockKind::Manual => lock.stay(),
        LockKind::Run => context.leftovers.keep_lock(lock),
    }
    Ok(())
}

/// `unlock`: removes the lock that a person or a dead run left; the lock of a run that may be alive
/// only with `-i`. As a step, removes the lock of this run.
pub(crate) fn unlock(context: &Context) -> Result<(), Failure> {
    let config = &context.setup()?.config;
    let path = config.lock_file.display();
    if context.global.dry_run {
        context
            .output
            .line(format!("would remove the lockfile {path}"));
        return Ok(());
    }
    if context.is_step() {
        return unlock_own(context);
    }
    let may_be_alive = |state: &LockState| matches!(state, LockState::Held(holder) if holder.kind == LockKind::Run);
    let ignore = context.global.ignore_lock;
    let (state, removed) = remove_lock(&config.lock_file, &HostBoot::current(), |state| {
        ignore || !may_be_alive(state)
    })?;
    let about = describe(&state, config, Timestamp::now());
    match (&state, removed) {
        (LockState::Free, _) => context.output.line(format!("there is no lock: {path}")),
        (state, true) if may_be_alive(state) => {
            context.output.always(&format!(
                "removed although the run may still be active: {about}"
            ));
        }
        (_, true) => context
            .output
            .line(format!("unlocked: {path}; it was {about}")),
        (state, false) => return Err(refusal(context, config, state, &about).into()),
    }
    context.output.json(&LockChange {
        lock_file: config.lock_file.clone(),
        locked: false,
        removed: Some(removed),
    });
    Ok(())
}

fn unlock_own(context: &Context) -> Result<(), Failure> {
    match context.leftovers.release_lock()? {
        Some(true) => context.output.line("unlocked"),
        Some(false) => context
            .output
            .always("the lock of this run was taken away while it worked"),
        None => context.output.line("this run has no lock"),
    }
    Ok(())
}

/// Waits for as long as `--lock-wait` allows, then fails.
struct LockWait<'a> {
    context: &'a Context,
    begun: Instant,
    was_said: bool,
}

impl<'a> LockWait<'a> {
    fn new(context: &'a Context) -> Self {
        Self {
            context,
            begun: Instant::now(),
            was_said: false,
        }
    }

    async fn wait(&mut self, config: &Config, state: &LockState) -> Result<(), Failure> {
        let about = describe(state, config, Timestamp::now());
        let context = self.context;
        Ok(self
            .pause(&about, || refusal(context, config, state, &about))
            .await?)
    }

    async fn pause(
        &mut self,
        about: &str,
        refusal: impl FnOnce() -> RunError,
    ) -> Result<(), RunError> {
        let limit = self
            .context
            .global
            .lock_wait
            .unwrap_or(TimeLimit::seconds(0));
        let left = limit.duration().saturating_sub(self.begun.elapsed());
        if left.is_zero() {
            return Err(refusal());
        }
        if !std::mem::replace(&mut self.was_said, true) {
            tracing::info!("waiting for at most {limit}: {about}");
        }
        let mut stop = self.context.stop.clone();
        tokio::select! {
            () = tokio::time::sleep(left.min(LOOK_EVERY)) => Ok(()),
            Ok(_) = stop.wait_for(|stop| *stop) => Err(RunError::Interrupted),
        }
    }
}

/// Describes the owner and the age of the lock, on one line.
fn describe(state: &LockState, config: &Config, now: Timestamp) -> String {
    let place = |holder: &LockHolder| format!("by {} on {}", holder.user, holder.here.host);
    let since = |holder: &LockHolder| {
        let begun = holder.locked_at.strftime("%Y-%m-%d %H:%M:%S UTC");
        format!("{} ago, {begun}", age(now, holder.locked_at))
    };
    match state {
        LockState::Free => format!("there is no lock {}", config.lock_file.display()),
        LockState::Damaged(reason) => {
            format!(
                "the lockfile {} does not name its owner: {reason}",
                config.lock_file.display()
            )
        }
        LockState::Held(holder) if holder.kind == LockKind::Manual => {
            format!("locked by hand, {} ({})", place(holder), since(holder))
        }
        LockState::Held(holder) => {
            format!(
                "locked by a run, `{}`, process {}, {} ({})",
                holder.command,
                holder.pid,
                place(holder),
                since(holder)
            )
        }
        LockState::Stale(holder) => {
            format!(
                "the stale lock of a run that is over, `{}`, process {}, {} ({})",
                holder.command,
                holder.pid,
                place(holder),
                since(holder)
            )
        }
    }
}

fn refusal(context: &Context, config: &Config, state: &LockState, about: &str) -> RunError {
    let unlock = |option: &str| match &context.global.config {
        Some(_) => {
            let file = config.file.display().to_string();
            let quoted = shell_words::quote(&file);
            format!("`zfs-backup -c {quoted}{option} unlock`")
        }
        None => format!("`zfs-backup{option} unlock`"),
    };
    let is_here = |holder: &LockHolder| holder.here.is_same_host(&HostBoot::current());
    let hint = match state {
        LockState::Held(holder) if holder.kind == LockKind::Manual => {
            format!("{} removes it", unlock(""))
        }
        LockState::Held(holder) if is_here(holder) => {
            "wait until the run has ended, for instance with --lock-wait 2h".to_owned()
        }
        LockState::Held(holder) => {
            format!(
                "whether it still runs can only be seen on {}; if it does not, {} removes the lock",
                holder.here.host,
                unlock(" -i")
            )
        }
        _ => format!("if nothing runs here, {} removes it", unlock("")),
    };
    RunError::LockedBy {
        what: about.to_owned(),
        hint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Global;
    use crate::cli::screen::output::Output;
    use crate::state::dataset_lock::lock_dataset;
    use std::sync::Arc;

    /// Returns the result of a command with this `--lock-wait` that finds the kernel lock held for
    /// `held`.
    async fn wait(lock_wait: Option<u64>, held: Duration, stopped: bool) -> Result<u32, RunError> {
        let state = tempfile::tempdir().unwrap();
        let dataset = "tank/a".parse().unwrap();
        let global = Global {
            lock_wait: lock_wait.map(TimeLimit::seconds),
            quiet: true,
            ..Global::default()
        };
        let output = Arc::new(Output::new(&global));
        let (stopper, stop) = tokio::sync::watch::channel(false);
        let context = Context::new(global, output, stop, Arc::default());
        let other = lock_dataset(
            state.path(),
            &crate::model::KnownStore::of_url("s3:b"),
            &dataset,
        )
        .unwrap();
        let waiting = wait_for_others(&context, async || {
            lock_dataset(
                state.path(),
                &crate::model::KnownStore::of_url("s3:b"),
                &dataset,
            )
            .map(|_| 7)
            .map_err(RunError::from)
        });
        let others = async {
            tokio::time::sleep(held).await;
            match stopped {
                true => drop(stopper.send(true)),
                false => drop(other),
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            done = waiting => done,
            () = others => unreachable!(),
        }
    }

    #[tokio::test]
    async fn kernel_lock_is_retried_until_lock_wait_expires() {
        let short = Duration::from_millis(100);
        assert_eq!(wait(Some(60), short, false).await.unwrap(), 7);
        for lock_wait in [None, Some(0), Some(1)] {
            let refused = wait(lock_wait, Duration::from_secs(60), false)
                .await
                .unwrap_err();
            assert!(
                refused
                    .to_string()
                    .contains("tank/a in s3:b is being worked on"),
                "{refused}"
            );
        }
        assert!(matches!(
            wait(Some(60), short, true).await,
            Err(RunError::Interrupted)
        ));
    }
}
