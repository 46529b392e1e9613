//! Problems of a configuration, and facts worth knowing about it: [`Problem`], [`Notice`],
//! [`ConfigError`].

use super::trust::FileError;
use super::units::InvalidValue;
use std::fmt;
use std::path::{Path, PathBuf};

/// A single fault in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1, if the fault has one.
    pub line: Option<usize>,
    /// The key with its section, `main.split_size`, or the section, if the fault has one.
    pub key: Option<String>,
    /// The fault, followed by `; expected ` and the expected form. Continues the key as a sentence:
    /// `is "1X"; expected a size`.
    pub message: String,
    /// The remedy.
    pub hint: Option<String>,
}

impl Problem {
    /// Creates a problem whose line and key are not known yet.
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            line: None,
            key: None,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds the remedy.
    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<T: Into<String>> From<T> for Problem {
    fn from(message: T) -> Self {
        Self::new(message)
    }
}

impl From<InvalidValue> for Vec<Problem> {
    fn from(invalid: InvalidValue) -> Self {
        let message = format!("is {:?}; expected {}", invalid.value, invalid.expected);
        vec![Problem {
            hint: invalid.hint,
            ..Problem::new(message)
        }]
    }
}

/// A fact that the user should know although it is not an error: a section that has no effect, a
/// value that some stores refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The key with its section, `main.bwlimit`, or the section.
    pub key: String,
    /// The notice: one sentence that names the key.
    pub text: String,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file does not exist.
    #[error("read the configuration {}: there is no such file", file.display())]
    Missing {
        /// The path of the file.
        file: PathBuf,
    },
    /// The file cannot be read or cannot be trusted.
    #[error("read the configuration")]
    File(#[source] FileError),
    /// The file was read and is invalid. The text lists every problem, one a line, each with its
    /// hint.
    #[error("{}", list(file, problems))]
    Invalid {
        /// The path of the file.
        file: PathBuf,
        /// All problems, in the order of the lines; never empty.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    /// Returns the remedy. [`ConfigError::Invalid`] prints the hints of its problems itself.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { .. } => Some("name the file with `-c FILE`".to_owned()),
            Self::File(error) => error.hint(),
            Self::Invalid { .. } => None,
        }
    }
}

fn list(file: &Path, problems: &[Problem]) -> String {
    let lines: Vec<String> = problems
        .iter()
        .map(|problem| screen(file, problem))
        .collect();
    lines.join("\n")
}

/// Writes `FILE:LINE: KEY MESSAGE`, then the expected form and the hint, each on a line of its own.
fn screen(file: &Path, problem: &Problem) -> String {
    let mut text = file.display().to_string();
    if let Some(line) = problem.line {
        text.push_str(&format!(":{line}"));
    }
    text.push_str(": ");
    if let Some(key) = &problem.key {
        text.push_str(&format!("{key} "));
    }
    text.push_str(&problem.message.replacen("; expected ", "\n  expected: ", 1));
    if let Some(hint) = &problem.hint {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    text
}
