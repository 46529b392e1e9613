//! The checks of `doctor`, of this host ([`host`]) and its store ([`bucket`]). They only read; the
//! one thing written is the probe of the store, by [`crate::state::probes`].

pub mod bucket;
pub mod host;

use super::{RunError, error_chain};
use serde::Serialize;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    /// The checked object is as it should be.
    Good,
    /// A fact worth knowing; nothing is wrong.
    Note,
    /// A backup works, but something needs to be done.
    Warning,
    /// A backup could not work.
    Bad,
}

/// A line of the screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The object of the check, in one or two words.
    pub subject: &'static str,
    /// The result.
    pub state: CheckState,
    /// The finding, and what it means.
    pub text: String,
    /// The action that a person can take.
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

    /// Returns a check that found nothing wrong.
    pub fn good(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(subject, CheckState::Good, text)
    }

    /// Returns a check that only informs.
    pub fn note(subject: &'static str, text: impl Into<String>) -> Self {
        Self::new(subject, CheckState::Note, text)
    }

    /// Returns a check that needs attention.
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

    /// Returns a check that failed.
    pub fn bad(subject: &'static str, text: impl Into<String>, advice: Option<String>) -> Self {
        Self {
            advice,
            ..Self::new(subject, CheckState::Bad, text)
        }
    }

    /// Returns a failed check for an error, with its hint.
    pub fn failed(subject: &'static str, error: &RunError) -> Self {
        Self::bad(subject, error_chain(error), error.hint())
    }
}
