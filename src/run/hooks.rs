//! Runs programs of the user around a backup: each in its own process group, with a time limit and
//! with its output in our log.
//!
//! A hook gets our environment and the variables and input of its call, nothing else: no
//! descriptor, no terminal, no secret that our own environment does not have. To end a hook, its
//! process group gets SIGTERM, and SIGKILL after [`END_GRACE`].

use super::RunError;
use super::transfer::Stop;
use crate::config::{CommandLine, TimeLimit};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// The time that a hook has to exit by itself after SIGTERM.
pub const END_GRACE: Duration = Duration::from_secs(10);
/// The interval of the checks whether a hook has exited.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The time to wait for the rest of the output after a hook has exited: a daemon that it started
/// may keep the pipe open.
const OUTPUT_GRACE: Duration = Duration::from_secs(1);
/// Longer lines of output are cut.
const LINE_BYTES_MAX: u64 = 8 << 10;
/// The kernel accepts 128 KiB for one variable; a hook needs less.
const VARIABLE_BYTES_MAX: usize = 32 << 10;

/// A call of a hook.
#[derive(Debug)]
pub struct HookCall<'a> {
    /// The configuration key of the hook, such as `main.pre_snapshot`.
    pub key: &'static str,
    /// The program.
    pub command: &'a CommandLine,
    /// The time limit.
    pub time_max: TimeLimit,
    /// Variables in addition to those of this process; values above 32 KiB are cut.
    pub variables: Vec<(&'static str, String)>,
    /// The hook's stdin; `None` for `/dev/null`.
    pub input: Option<String>,
}

/// The process group of the running hook, so that another task can kill it.
#[derive(Debug, Clone, Default)]
pub struct RunningHook(Arc<Mutex<Option<Pid>>>);

impl RunningHook {
    /// Kills the running hook, if there is one.
    pub fn kill(&self) {
        if let Some(group) = *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            signal(group, Signal::KILL);
        }
    }

    fn set(&self, group: Option<Pid>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = group;
    }
}

/// Runs a hook until it exits. With `stop`, a request to stop ends the hook too.
///
/// # Errors
/// [`RunError::Hook`] when it could not be started, failed or took too long;
/// [`RunError::Interrupted`].
pub async fn run_hook(
    call: &HookCall<'_>,
    stop: Option<&Stop>,
    running: &RunningHook,
) -> Result<(), RunError> {
    tracing::debug!("{} runs {}", call.key, call.command);
    let mut process =
        Process::start(call, running).map_err(|error| call.failed(error.to_string()))?;
    let output = process.listen(call);
    let reason = tokio::select! {
        () = process.ended() => None,
        () = tokio::time::sleep(call.time_max.duration()) => {
            Some(call.failed(format!("it took longer than {} and was ended", call.time_max)))
        }
        () = asked_to_stop(stop) => Some(RunError::Interrupted),
    };
    if reason.is_some() {
        process.end().await;
    }
    let status = process
        .collect()
        .map_err(|error| call.failed(error.to_string()))?;
    let _ = tokio::time::timeout(OUTPUT_GRACE, futures_util::future::join_all(output)).await;
    match reason {
        Some(reason) => Err(reason),
        None if status.success() => Ok(()),
        None => Err(call.failed(format!("it ended with {status}"))),
    }
}

impl HookCall<'_> {
    fn failed(&self, reason: String) -> RunError {
        RunError::Hook {
            key: self.key,
            program: self.command.program().to_owned(),
            reason,
        }
    }
}

async fn asked_to_stop(stop: Option<&Stop>) {
    let Some(stop) = stop else {
        return std::future::pending().await;
    };
    if stop.clone().wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// A started hook. Dropping it before it was collected kills its process group.
struct Process<'a> {
    child: Child,
    group: Pid,
    running: &'a RunningHook,
    is_collected: bool,
}

impl<'a> Process<'a> {
    fn start(call: &HookCall<'_>, running: &'a RunningHook) -> std::io::Result<Self> {
        let mut command = Command::new(call.command.program());
        command.args(&call.command.argv()[1..]).process_group(0);
        command.stdin(if call.input.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        for (name, value) in &call.variables {
            command.env(name, cut(&value.replace('\0', " "), VARIABLE_BYTES_MAX));
        }
        let mut child = command.spawn()?;
        if let (Some(mut stdin), Some(input)) = (child.stdin.take(), call.input.clone()) {
            // Write on a thread: a hook that does not read its stdin must not block us. An error is
            // ignored, because a hook that closes its stdin has read enough.
            std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        }
        let group = Pid::from_child(&child);
        running.set(Some(group));
        Ok(Self {
            child,
            group,
            running,
            is_collected: false,
        })
    }

    /// Copies each line of output to the log, on two separate threads.
    fn listen(&mut self, call: &HookCall<'_>) -> Vec<oneshot::Receiver<()>> {
        let stdout = self.child.stdout.take().map(|pipe| pass_on(call.key, pipe));
        let stderr = self.child.stderr.take().map(|pipe| pass_on(call.key, pipe));
        stdout.into_iter().chain(stderr).collect()
    }

    /// Waits until the program itself has exited. Does not collect it, so that its process id is
    /// not reused.
    async fn ended(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        // `waitid` fails with ECHILD once the hook was reaped; then there is nothing to wait for.
        while matches!(
            waitid(WaitId::Pid(self.group), options),
            Ok(None) | Err(rustix::io::Errno::INTR)
        ) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn end(&self) {
        signal(self.group, Signal::TERM);
        let _ = tokio::time::timeout(END_GRACE, self.ended()).await;
        // Kill the rest of the process group too.
        signal(self.group, Signal::KILL);
        self.ended().await;
    }

    fn collect(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait();
        self.is_collected = true;
        status
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        self.running.set(None);
        if !self.is_collected {
            signal(self.group, Signal::KILL);
            // A killed process exits at once. If something delays that, do not wait.
            let _ = self.child.try_wait();
        }
    }
}

/// Sends a signal to a process group. A group that no longer exists needs none.
fn signal(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
}

fn pass_on(key: &'static str, pipe: impl Read + Send + 'static) -> oneshot::Receiver<()> {
    let (done, listener) = oneshot::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while matches!(
            (&mut reader)
                .take(LINE_BYTES_MAX)
                .read_until(b'\n', &mut line),
            Ok(1..)
        ) {
            tracing::info!("{key}: {}", plain(&line));
            line.clear();
        }
        // The receiver is gone when a daemon kept the pipe open past `OUTPUT_GRACE`.
        let _ = done.send(());
    });
    listener
}

/// Returns a line without its end and with control characters escaped.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let escape = |c: char| match c {
        '\t' => " ".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.trim_end_matches(['\n', '\r'])
        .chars()
        .map(escape)
        .collect()
}

/// Returns the first bytes of a text, at most `bytes_max`, in whole characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len()))
        .rev()
        .find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Instant;

    fn sh(script: &str) -> CommandLine {
        shell_words::join(["/bin/sh", "-c", script])
            .parse()
            .unwrap()
    }

    fn call(command: &CommandLine) -> HookCall<'_> {
        let time_max = TimeLimit::seconds(60);
        HookCall {
            key: "main.pre_snapshot",
            command,
            time_max,
            variables: Vec::new(),
            input: None,
        }
    }

    async fn run(call: &HookCall<'_>) -> Result<(), String> {
        run_hook(call, None, &RunningHook::default())
            .await
            .map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_hook_fails_when_its_program_does() {
        for (script, expected) in [
            ("exit 0", Ok(())),
            (
                "exit 3",
                Err("run the hook main.pre_snapshot (/bin/sh): it ended with exit status: 3"),
            ),
            (
                "kill -9 $$",
                Err("run the hook main.pre_snapshot (/bin/sh): it ended with signal: 9 (SIGKILL)"),
            ),
            ("read x && exit 7; exit 0", Ok(())),
        ] {
            assert_eq!(
                run(&call(&sh(script))).await,
                expected.map_err(str::to_owned),
                "{script}"
            );
        }
        let missing: CommandLine = "/no/such/hook".parse().unwrap();
        assert!(
            run(&call(&missing))
                .await
                .unwrap_err()
                .contains("/no/such/hook")
        );
    }

    #[tokio::test]
    async fn hook_receives_its_variables_and_stdin() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("heard");
        let command = sh(&format!(
            "cat > '{}'; printf '%s' \"$ZFS_BACKUP_STEP\" >> '{0}'",
            file.display()
        ));
        let input = "x".repeat(200_000);
        let told = HookCall {
            variables: vec![("ZFS_BACKUP_STEP", "a\0b".into())],
            input: Some(input.clone()),
            ..call(&command)
        };
        run(&told).await.unwrap();
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            format!("{input}a b")
        );
        // A hook that does not read its stdin is no failure.
        let deaf = sh("exec <&-; exit 0");
        run(&HookCall {
            input: Some(input),
            ..call(&deaf)
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_hook_that_takes_too_long_ends_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let (pid, asked) = (folder.path().join("pid"), folder.path().join("asked"));
        let command = sh(&format!(
            "trap 'echo yes > \"{}\"; exit' TERM; sleep 600 & echo $! > '{}'; wait",
            asked.display(),
            pid.display()
        ));
        // A busy machine may need longer to start the hook than the hook may take.
        for seconds in [1, 10, 60] {
            let slow = HookCall {
                time_max: TimeLimit::seconds(seconds),
                ..call(&command)
            };
            assert!(run(&slow).await.unwrap_err().ends_with(&format!(
                "it took longer than {} and was ended",
                slow.time_max
            )));
            if std::fs::read_to_string(&pid).is_ok_and(|pid| pid.ends_with('\n')) {
                break;
            }
        }
        assert!(asked.exists(), "SIGTERM was enough");
        assert_gone(&pid);
    }

    #[tokio::test]
    async fn a_request_to_stop_ends_the_hook_and_a_dropped_call_kills_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let command = sh(&format!("echo $$ > '{}'; exec sleep 600", file.display()));
        let (sender, stop) = tokio::sync::watch::channel(false);
        let (told, running) = (call(&command), RunningHook::default());
        let (result, ()) = tokio::join!(run_hook(&told, Some(&stop), &running), async {
            written(&file).await;
            sender.send_replace(true);
        });
        assert!(matches!(result, Err(RunError::Interrupted)));
        assert_gone(&file);
        std::fs::remove_file(&file).unwrap();
        tokio::select! {
            _ = run_hook(&told, None, &running) => panic!("it sleeps for ten minutes"),
            () = written(&file) => {}
        }
        assert_gone(&file);
    }

    #[tokio::test]
    async fn daemon_that_keeps_the_pipe_open_does_not_delay_the_hook() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let command = sh(&format!("sleep 600 & echo $! > '{}'", file.display()));
        run(&call(&command)).await.unwrap();
        let pid = std::fs::read_to_string(&file).unwrap();
        let pid: u32 = pid.trim().parse().unwrap();
        let started = crate::state::process::process_started(pid).unwrap();
        assert!(
            !crate::state::process::is_gone(pid, started),
            "the daemon had ended: this proves nothing"
        );
        let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
    }

    async fn written(file: &Path) {
        while std::fs::read_to_string(file).unwrap_or_default().is_empty() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    #[track_caller]
    fn assert_gone(file: &Path) {
        let pid: u32 = std::fs::read_to_string(file)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while crate::state::process::process_started(pid)
            .is_some_and(|started| !crate::state::process::is_gone(pid, started))
        {
            assert!(Instant::now() < deadline, "process {pid} lives");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    #[test]
    fn hook_output_is_sanitised_and_long_values_are_truncated() {
        assert_eq!(plain(b"a\tb\x1b[2J\r\n"), "a b\\u{1b}[2J");
        assert_eq!(plain(b"\xff"), "\u{fffd}");
        assert_eq!(
            (cut("aéb", 2), cut("aéb", 3), cut("ab", 9), cut("é", 0)),
            ("a", "aé", "ab", "")
        );
    }
}
