//! Runs rclone: one process per call, with its arguments in a list and its log lines forwarded to
//! our log; the process is awaited or killed.

use super::cause::RcloneCause;
use super::settings::RcloneSettings;
use crate::store::StoreErrorKind;
use crate::store::work::run_blocking;
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::time::timeout;

/// The suffix of partial files, on the remotes for which rclone makes them.
pub(super) const PARTIAL_SUFFIX: &str = ".zb-partial";
/// The number of rclone's messages that are kept for an error.
const WORDS_MAX: usize = 20;
/// The longest message of rclone, with a few long paths in it.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// The interval for polling the end of a process. A process that has closed its outputs ends soon.
const END_PAUSE: Duration = Duration::from_millis(2);
/// The variables of rclone that are passed on: how to open its configuration, and remotes described
/// in the environment. All others could make rclone omit objects or write elsewhere.
const VARIABLES: [&str; 2] = ["RCLONE_PASSWORD_COMMAND", "RCLONE_CONFIG_PASS"];
const REMOTE_VARIABLES: &str = "RCLONE_CONFIG_";

/// A run of rclone.
pub(super) struct Call {
    /// The command and its own flags.
    pub(super) arguments: Vec<String>,
    /// The source and destination, after all flags.
    pub(super) places: Vec<String>,
    /// The file that rclone opens as `/proc/self/fd/0`.
    pub(super) stdin: Option<File>,
    /// The maximum output; more is an error.
    pub(super) output_bytes_max: u64,
    /// The time limit, after which the process is killed.
    pub(super) limit: Duration,
    /// Whether complaints are expected, so that they are logged for debugging only.
    pub(super) quiet: bool,
}

/// The result of a run: its output, for any exit status.
pub(super) struct Ended {
    pub(super) output: Vec<u8>,
    /// The cause of a failure; `None` for status 0.
    pub(super) failure: Option<RcloneCause>,
}

/// Runs rclone to its end. Dropping the future kills it.
pub(super) async fn run(settings: &RcloneSettings, call: Call) -> Result<Ended, RcloneCause> {
    let command = command_of(settings, &call);
    let switch = Arc::new(Switch::default());
    let _kill = KillOnDrop(Arc::clone(&switch));
    let Call {
        stdin,
        output_bytes_max,
        limit,
        quiet,
        ..
    } = call;
    let program = settings.program.display().to_string();
    let work = run_blocking(move || {
        run_to_end(command, stdin, &switch, output_bytes_max, quiet)
            .map_err(|error| cannot_run(&program, &error))
    });
    match timeout(limit, work).await {
        Ok(ended) => ended,
        Err(_) => {
            let text = format!(
                "rclone took longer than {} s and was stopped",
                limit.as_secs()
            );
            Err(RcloneCause::ours(StoreErrorKind::Unavailable, text))
        }
    }
}

fn cannot_run(program: &str, error: &io::Error) -> RcloneCause {
    let text = match error.kind() {
        io::ErrorKind::NotFound => format!("there is no program {program:?} in PATH"),
        io::ErrorKind::FileTooLarge => "rclone printed more than was asked".to_owned(),
        _ => format!("{program:?} cannot be run: {error}"),
    };
    let kind = if error.kind() == io::ErrorKind::FileTooLarge {
        StoreErrorKind::Corrupt
    } else {
        StoreErrorKind::Invalid
    };
    RcloneCause::ours(kind, text)
}

fn command_of(settings: &RcloneSettings, call: &Call) -> Command {
    let mut command = Command::new(&settings.program);
    command
        .args(&call.arguments)
        .args(common_arguments(settings))
        .arg("--")
        .args(&call.places);
    for (name, _) in std::env::vars_os().filter(|(name, _)| !may_keep(name)) {
        command.env_remove(name);
    }
    // A process group of its own: Ctrl-C reaches only this program, which ends rclone in order.
    command.process_group(0).current_dir("/");
    command
}

fn may_keep(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    !name.starts_with("RCLONE_")
        || name.starts_with(REMOTE_VARIABLES)
        || VARIABLES.contains(&name.as_ref())
}

/// Returns the arguments of every call. They contain no secret: secrets are in rclone.conf or in
/// the environment.
fn common_arguments(settings: &RcloneSettings) -> Vec<OsString> {
    let mut conf = OsString::from("--config=");
    conf.push(&settings.conf);
    let fixed = [
        "--use-json-log",
        "--log-level=NOTICE",
        "--stats=0",
        "--ask-password=false",
        "--retries=3",
        "--low-level-retries=10",
        "--timeout=5m",
        "--contimeout=1m",
        // Without this flag deleting only hides, and deleted objects still cost money.
        "--b2-hard-delete",
    ];
    let partial = format!("--partial-suffix={PARTIAL_SUFFIX}");
    let bwlimit = settings
        .bwlimit
        .as_ref()
        .map(|limit| format!("--bwlimit={limit}"));
    let texts = fixed
        .into_iter()
        .map(str::to_owned)
        .chain([partial])
        .chain(bwlimit);
    [conf]
        .into_iter()
        .chain(
            texts
                .chain(settings.args.iter().cloned())
                .map(OsString::from),
        )
        .collect()
}

/// A process that another thread may kill.
#[derive(Default)]
struct Switch(Mutex<State>);

#[derive(Default)]
struct State {
    child: Option<Child>,
    killed: bool,
}

struct KillOnDrop(Arc<Switch>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.killed = true;
        if let Some(child) = &mut state.child {
            // If `kill` fails, the process has already ended.
            let _ = child.kill();
        }
    }
}

impl Switch {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits without holding the lock, so that another thread can kill the process.
    fn wait(&self) -> io::Result<ExitStatus> {
        loop {
            let mut state = self.lock();
            let child = state.child.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
            if let Some(status) = child.try_wait()? {
                state.child = None;
                return Ok(status);
            }
            drop(state);
            thread::sleep(END_PAUSE);
        }
    }
}

fn run_to_end(
    mut command: Command,
    stdin: Option<File>,
    switch: &Switch,
    output_bytes_max: u64,
    quiet: bool,
) -> io::Result<Ended> {
    command
        .stdin(stdin.map_or_else(Stdio::null, Stdio::from))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let (stdout, stderr) = {
        let mut state = switch.lock();
        if state.killed {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut child = command.spawn()?;
        let outputs = (child.stdout.take(), child.stderr.take());
        state.child = Some(child);
        outputs
    };
    let listener = stderr.map(|stderr| thread::spawn(move || listen(stderr, quiet)));
    let mut output = Vec::new();
    let read = match stdout {
        Some(stdout) => stdout
            .take(output_bytes_max.saturating_add(1))
            .read_to_end(&mut output),
        None => Ok(0),
    };
    let too_much = output.len() as u64 > output_bytes_max;
    if (too_much || read.is_err())
        && let Some(child) = &mut switch.lock().child
    {
        let _ = child.kill();
    }
    let words = listener
        .and_then(|listener| listener.join().ok())
        .unwrap_or_default();
    let status = switch.wait()?;
    read?;
    if too_much {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let failure = (!status.success()).then(|| RcloneCause::ended(status, &words));
    Ok(Ended { output, failure })
}

/// A line of `--use-json-log`.
#[derive(Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    object: String,
}

/// Forwards rclone's lines to our log as they come, and returns the last of them.
fn listen(stderr: ChildStderr, quiet: bool) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while matches!(next_line(&mut reader, &mut line), Ok(true)) {
        let text = String::from_utf8_lossy(&line);
        let line = parse_line(&text);
        if line.msg.is_empty() {
            continue;
        }
        match line.level.as_str() {
            "debug" | "info" => tracing::debug!(object = line.object, "rclone: {}", line.msg),
            _ if quiet => tracing::debug!(object = line.object, "rclone: {}", line.msg),
            "notice" => tracing::info!(object = line.object, "rclone: {}", line.msg),
            _ => tracing::warn!(object = line.object, "rclone: {}", line.msg),
        }
        if !words.contains(&line.msg) {
            words.push(line.msg);
        }
        if words.len() > WORDS_MAX {
            words.remove(0);
        }
    }
    words
}

/// Reads the next line into `line`, without its end. A line longer than rclone ever writes is cut.
/// Returns whether there was a line.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    if reader
        .by_ref()
        .take(LINE_BYTES_MAX)
        .read_until(b'\n', line)?
        == 0
    {
        return Ok(false);
    }
    if line.ends_with(b"\n") {
        line.pop();
    } else {
        reader.skip_until(b'\n')?;
    }
    Ok(true)
}

/// Parses a line of the log. A line that is not JSON is kept as it is: rclone reports errors in its
/// arguments this way.
fn parse_line(text: &str) -> LogLine {
    let plain = || LogLine {
        level: "error".to_owned(),
        msg: text.to_owned(),
        object: String::new(),
    };
    let mut line = serde_json::from_str(text).unwrap_or_else(|_| plain());
    line.msg = line.msg.split_whitespace().collect::<Vec<_>>().join(" ");
    line
}

/// Parses a line of the log.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn words_of_line(text: &str) -> String {
    parse_line(text).msg
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn script(program: &str, limit: Duration) -> (RcloneSettings, Call) {
        let settings = RcloneSettings {
            program: program.into(),
            remote: "r".into(),
            ..Default::default()
        };
        let arguments = vec![];
        let call = Call {
            arguments,
            places: vec![],
            stdin: None,
            output_bytes_max: 100,
            limit,
            quiet: false,
        };
        (settings, call)
    }

    #[test]
    fn rclone_log_lines_are_parsed_in_json_and_plain_text() {
        for (text, level, msg, object) in [
            (
                r#"{"level":"error","msg":" a\n b","object":"x"}"#,
                "error",
                "a b",
                "x",
            ),
            (r#"{"level":"notice","msg":"a"}"#, "notice", "a", ""),
            (
                "Error: unknown flag: --x",
                "error",
                "Error: unknown flag: --x",
                "",
            ),
            ("", "error", "", ""),
        ] {
            let line = parse_line(text);
            assert_eq!(
                (line.level.as_str(), line.msg.as_str(), line.object.as_str()),
                (level, msg, object)
            );
        }
    }

    #[test]
    fn overlong_rclone_log_line_is_truncated_and_the_next_is_read() {
        let limit = usize::try_from(LINE_BYTES_MAX).unwrap();
        for (long, kept) in [
            (limit - 1, limit - 1),
            (limit, limit),
            (limit + 1, limit),
            (5 * limit, limit),
        ] {
            let text = [&vec![b'x'; long][..], b"\nnext"].concat();
            let (mut reader, mut line) = (&text[..], Vec::new());
            assert!(next_line(&mut reader, &mut line).unwrap());
            assert_eq!(line.len(), kept, "{long}");
            assert!(next_line(&mut reader, &mut line).unwrap());
            assert_eq!(line, b"next");
            assert!(!next_line(&mut reader, &mut line).unwrap());
        }
    }

    #[test]
    fn environment_variables_that_change_rclone_behaviour_are_removed() {
        for (name, kept) in [
            ("PATH", true),
            ("RCLONE_CONFIG_PASS", true),
            ("RCLONE_CONFIG_MYB2_KEY", true),
            ("RCLONE_PASSWORD_COMMAND", true),
            ("RCLONE_CONFIG", false),
            ("RCLONE_DRY_RUN", false),
            ("RCLONE_INCLUDE", false),
            ("RCLONE_FILTER_FROM", false),
        ] {
            assert_eq!(may_keep(&name.into()), kept, "{name}");
        }
    }

    #[tokio::test]
    async fn missing_slow_or_too_verbose_rclone_is_an_error() {
        let minute = Duration::from_secs(60);
        let (settings, call) = script("/no/such/rclone", minute);
        let error = run(&settings, call).await.err().unwrap();
        assert!(error.to_string().contains("no program"), "{error}");
        let (settings, mut call) = script("sh", minute);
        call.arguments = ["-c", "yes"].map(str::to_owned).to_vec();
        let error = run(&settings, call).await.err().unwrap();
        assert_eq!(error.kind(), StoreErrorKind::Corrupt, "{error}");
        let (settings, mut call) = script("sh", Duration::from_millis(200));
        call.arguments = ["-c", "exec sleep 600"].map(str::to_owned).to_vec();
        let begun = Instant::now();
        let error = run(&settings, call).await.err().unwrap();
        assert!(error.to_string().contains("longer than 0 s"), "{error}");
        assert!(begun.elapsed() < 5 * minute, "it was not killed");
    }
}
