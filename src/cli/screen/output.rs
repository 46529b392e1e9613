//! The output: results on stdout, everything else on stderr. Only this module prints.

use crate::cli::args::{Global, ProgressWhen};
use crate::cli::screen::bars::above_bars;
use crate::cli::screen::log::LogTail;
use crate::cli::screen::table::{WIDTH, wrap};
use serde::{Serialize, Serializer};
use std::collections::BTreeSet;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How results are printed.
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    progress: ProgressWhen,
    /// Whether stdout shows colours.
    colour: bool,
    /// Whether a person reads stderr: long messages are wrapped between words then.
    wrapped: bool,
    tail: Arc<LogTail>,
    /// Notes that were printed already, because the steps of a run repeat notes.
    notes: Arc<Mutex<BTreeSet<String>>>,
    /// The JSON of a step, which becomes part of the run's document.
    captured: Option<Mutex<Vec<serde_json::Value>>>,
    first_error: Mutex<Option<Said>>,
}

/// A result of a command, or a part of one. Its serialized form is the one that `docs/json.md`
/// describes; [`Render::render`] is its text for people.
pub(crate) trait Render: Serialize {
    /// Prints the lines on stdout, and notes and errors about the result on stderr.
    fn render(&self, output: &Output);
}

/// An error as it was printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// The text of the error, with all causes.
    pub(crate) text: String,
    /// Advice for the person.
    pub(crate) hint: Option<String>,
}

/// The meaning of a coloured word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// A good state.
    Good,
    /// A state that a person should check.
    Doubtful,
    /// A bad state.
    Bad,
}

impl Output {
    pub(crate) fn new(global: &Global) -> Self {
        // An empty NO_COLOR does not count, as its definition says.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let colour = std::io::stdout().is_terminal() && !refused && !dumb;
        let wrapped = std::io::stderr().is_terminal();
        Self {
            json: global.json,
            quiet: global.quiet,
            progress: global.progress,
            colour,
            wrapped,
            tail: Arc::default(),
            notes: Arc::default(),
            captured: None,
            first_error: Mutex::default(),
        }
    }

    /// Returns the output of one step of a run, which keeps its JSON for [`Output::captured`] and
    /// does not print it.
    pub(crate) fn for_step(&self) -> Self {
        Self {
            tail: Arc::clone(&self.tail),
            notes: Arc::clone(&self.notes),
            captured: Some(Mutex::default()),
            first_error: Mutex::default(),
            ..*self
        }
    }

    /// Returns the JSON of a step, and removes it.
    pub(crate) fn captured(&self) -> Vec<serde_json::Value> {
        self.captured
            .as_ref()
            .map(|captured| std::mem::take(&mut *lock(captured)))
            .unwrap_or_default()
    }

    /// Returns the first error that was printed.
    pub(crate) fn first_error(&self) -> Option<Said> {
        lock(&self.first_error).clone()
    }

    /// Returns the buffer in which the log keeps its last lines.
    pub(crate) fn log_tail(&self) -> &Arc<LogTail> {
        &self.tail
    }

    /// Returns the last lines of the log and of the errors.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.tail.lines()
    }

    /// Returns whether the result is for a program.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Returns whether progress is printed.
    pub(crate) fn shows_progress(&self) -> bool {
        match self.progress {
            ProgressWhen::Auto => !self.quiet,
            ProgressWhen::Always => true,
            ProgressWhen::Never => false,
        }
    }

    /// Prints bytes unchanged, such as a script or a page. They were requested, so `--quiet` does
    /// not apply.
    pub(crate) fn raw(&self, bytes: &[u8]) {
        // A reader that has closed the pipe is no reason to fail.
        let _ = above_bars(|| std::io::stdout().write_all(bytes));
    }

    /// Prints a line of the result whose last occurrence of a word is coloured, if stdout shows
    /// colours.
    pub(crate) fn marked_line(&self, text: &str, word: &str, mark: Mark) {
        if !self.colour || self.json || self.quiet || word.is_empty() {
            return self.line(text);
        }
        let text = printable(text);
        let _ = above_bars(|| match text.rfind(word) {
            Some(at) => {
                let (before, rest) = text.split_at(at);
                let (word, after) = rest.split_at(word.len());
                let code = match mark {
                    Mark::Good => 32,
                    Mark::Doubtful => 33,
                    Mark::Bad => 31,
                };
                writeln!(
                    std::io::stdout(),
                    "{before}\x1b[{code}m{word}\x1b[0m{after}"
                )
            }
            None => writeln!(std::io::stdout(), "{text}"),
        });
    }

    /// Prints a line of the result for people, unless `--quiet` or `--json` is given.
    pub(crate) fn line(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            write_line(&mut std::io::stdout(), text.as_ref());
        }
    }

    /// Prints a line on stdout always: for text that monitoring must read.
    pub(crate) fn plain(&self, text: &str) {
        write_line(&mut std::io::stdout(), text);
    }

    /// Prints the whole result of a command: its text, or with `--json` its document.
    pub(crate) fn emit(&self, result: &impl Render) {
        result.render(self);
        self.json(result);
    }

    /// Prints the text of a part of a result, and returns the part for the document.
    pub(crate) fn printed<T: Render>(&self, part: T) -> T {
        part.render(self);
        part
    }

    /// Prints the document of a command, with `--json`.
    pub(crate) fn json(&self, document: &impl Serialize) {
        if !self.json {
            return;
        }
        let document = to_value(document);
        match &self.captured {
            Some(captured) => lock(captured).push(document),
            None => write_line(&mut std::io::stdout(), &format!("{document:#}")),
        }
    }

    /// Prints an error with each cause once, then the hint.
    pub(crate) fn error(&self, error: &(dyn Error + 'static), hint: Option<&str>) {
        self.error_text(&crate::run::error_chain(error), hint);
    }

    pub(crate) fn error_text(&self, text: &str, hint: Option<&str>) {
        self.message("error: ", text);
        if let Some(hint) = hint {
            self.message("hint: ", hint);
        }
        let hint = hint.map(str::to_owned);
        lock(&self.first_error).get_or_insert_with(|| Said {
            text: text.to_owned(),
            hint,
        });
    }

    /// Prints a message for a person. On a terminal it is wrapped between words; in a log it stays
    /// one line.
    fn message(&self, head: &str, text: &str) {
        let whole = format!("{head}{text}");
        self.tail.keep(&printable(&whole));
        match self.wrapped {
            true => wrap(&whole, WIDTH, "  ")
                .iter()
                .for_each(|line| write_line(&mut std::io::stderr(), line)),
            false => write_line(&mut std::io::stderr(), &whole),
        }
    }

    /// Prints information that is no error, once in a run.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet && lock(&self.notes).insert(text.to_owned()) {
            self.always(text);
        }
    }

    /// Prints a message that is also necessary with `--quiet`.
    pub(crate) fn always(&self, text: &str) {
        self.message("note: ", text);
    }
}

/// Returns a document as JSON.
pub(crate) fn to_value(document: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(document).expect("keys are texts, and `display_path` writes paths")
}

/// Writes a path in JSON as messages show it: JSON has no bytes that are not UTF-8.
pub(crate) fn display_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes a line. A reader that has closed the pipe (`| head`) is no reason to fail: the work is
/// done.
fn write_line(to: &mut dyn Write, text: &str) {
    let _ = above_bars(|| writeln!(to, "{}", printable(text)));
}

/// Escapes control characters, except line ends: anyone who can write to a store can choose the
/// names in it.
fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' => "\n".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc\r"), "a\\u{1b}[2Jb\nc\\r");
    }
}
