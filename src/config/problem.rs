//! What is wrong with a configuration, or worth knowing about it: [`Problem`], [`Notice`],
//! [`ConfigError`].

use super::trust::FileError;
use std::fmt;
use std::path::{Path, PathBuf};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1, where one can be named.
    pub line: Option<usize>,
    /// The key with its section, `main.split_size`, or the section, where one can be named.
    pub key: Option<String>,
    /// What is wrong, then `; expected ` and what was expected. Follows the key as a sentence does:
    /// `is "1X"; expected a size`.
    pub message: String,
    /// What a person can do.
    pub hint: Option<String>,
}

/// Something that a person should know although nothing is wrong: a section that has no effect, a
/// value that some stores refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The key with its section, `main.bwlimit`, or the section.
    pub key: String,
    /// One sentence that names the key.
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
    /// There is no such file.
    #[error("read the configuration {}: there is no such file", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// It cannot be read or is not to be believed.
    #[error("read the configuration")]
    File(#[source] FileError),
    /// It was read and is wrong. The text lists every problem, one a line, each with its hint.
    #[error("{}", list(file, problems))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// Everything that is wrong, in the order of the lines; never empty.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    /// What a person can do, apart from the hints that [`ConfigError::Invalid`] prints with its
    /// problems.
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

/// `FILE:LINE: KEY MESSAGE`, then what was expected and the hint, each on a line of its own.
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
