//! What `doctor` looks at: this host ([`host`]) and its store ([`bucket`]). Everything here only
//! looks; the one thing that is written is the probe of the store, by [`crate::state::probes`].

pub mod bucket;
pub mod host;

use super::{RunError, error_chain};
use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    /// As it should be.
    Good,
    /// To be known; nothing is wrong.
    Note,
    /// A backup works, and something is to be done all the same.
    Warning,
    /// A backup could not work.
    Bad,
}

/// One line of the screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, in one or two words.
    pub subject: &'static str,
    /// How it ended.
    pub state: CheckState,
    /// What was found, and what it means.
    pub text: String,
    /// What a person can do.
    pub advice: Option<String>,
}

impl Check {
    fn new(subject: &'static str, state: CheckState, text: impl Into<String>) -> Self {
        Self {
            subject,
            state,
            text: text.into(),
            advice: None,
        }
    }

    /// As it should be.
    pub fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(subject, CheckState::Good, text)
    }

    /// To be known.
    pub fn note(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(subject, CheckState::Note, text)
    }

    /// To be looked at.
    pub fn warning(
        subject: &'static str,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            advice: Some(advice.into()),
            ..Self::new(subject, CheckState::Warning, text)
        }
    }

    /// Wrong.
    pub fn bad(subject: &'static str, text: impl Into<String>, advice: Option<String>) -> Self {
        Self {
            advice,
            ..Self::new(subject, CheckState::Bad, text)
        }
    }

    /// A failure, with its hint.
    pub fn failed(subject: &'static str, error: &RunError) -> Self {
        Self::bad(subject, error_chain(error), error.hint())
    }
}
