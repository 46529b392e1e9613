//! The log on stderr, and its last lines for the message about a failed run.

use crate::cli::screen::bars::above_bars;
use crate::store::s3::LOG_LIMIT;
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tracing_subscriber::filter::{EnvFilter, ParseError};

/// The number of lines that are kept.
const LINES_MAX: usize = 60;
/// The number of characters that are kept of a line: 60 lines of 300 characters of up to 4 bytes
/// fit into one environment variable.
const LINE_CHARS_MAX: usize = 300;

/// The last lines that were written to stderr, of the log and of errors.
#[derive(Debug, Default)]
pub(crate) struct LogTail(Mutex<VecDeque<String>>);

impl LogTail {
    /// Keeps the lines of this text.
    pub(crate) fn keep(&self, text: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for line in text.lines().filter(|line| !line.is_empty()) {
            lines.push_back(without_colour(line).chars().take(LINE_CHARS_MAX).collect());
            if lines.len() > LINES_MAX {
                lines.pop_front();
            }
        }
    }

    /// Returns the lines, oldest first.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }
}

/// Returns a line without the sequences that colour it on a terminal.
fn without_colour(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.split_once('m').map_or(part, |(_, text)| text));
    first + &rest.collect::<String>()
}

/// Starts the log.
pub(crate) fn init_log(verbose: u8, quiet: bool, tail: &Arc<LogTail>) {
    let level = match verbose {
        0 if quiet => "warn",
        0 => "zfs_backup=info,warn",
        1 => "zfs_backup=debug,warn",
        _ => "debug",
    };
    let filter = std::env::var("ZFS_BACKUP_LOG_LEVEL")
        .ok()
        .filter(|level| !level.is_empty())
        .and_then(|level| limited(&level).ok())
        .unwrap_or_else(|| EnvFilter::new(level));
    let tail = Arc::clone(tail);
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Tee(Arc::clone(&tail)))
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbose > 0);
    let _ = log.without_time().try_init();
}

/// Returns a filter that lets no secret pass, whatever the directives.
fn limited(directives: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("{directives},{LOG_LIMIT}"))
}

/// Writes to stderr and keeps what it wrote. An event of the log arrives in one piece.
struct Tee(Arc<LogTail>);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.keep(&String::from_utf8_lossy(bytes));
        above_bars(|| std::io::stderr().write_all(bytes)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_without_colours() {
        let tail = LogTail::default();
        (0..100).for_each(|n| tail.keep(&format!("line {n}\n")));
        tail.keep("\x1b[2m\x1b[33m WARN\x1b[0m a\n\nb\n");
        tail.keep(&"x".repeat(1000));
        let lines = tail.lines();
        assert_eq!((lines.len(), lines[0].as_str()), (LINES_MAX, "line 43"));
        assert_eq!(
            lines[LINES_MAX - 3..],
            [
                " WARN a".to_owned(),
                "b".to_owned(),
                "x".repeat(LINE_CHARS_MAX)
            ]
        );
    }
}
