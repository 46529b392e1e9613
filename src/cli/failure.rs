//! Why a command ended without doing all of its work, and the exit status that says so.

use crate::catalog::CatalogError;
use crate::cli::screen::output::Output;
use crate::config::{ConfigError, SecretError};
use crate::run::RunError;
use crate::state::StateError;

/// Exit statuses, as the README documents them.
pub(crate) mod status {
    pub(crate) const DONE: u8 = 0;
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const PARTIAL: u8 = 3;
    pub(crate) const DAMAGE: u8 = 4;
    pub(crate) const LOCKED: u8 = 11;
    pub(crate) const INTERRUPTED: u8 = 130;

    /// Returns the more serious of two statuses, with which a command or run that has both ends.
    pub(crate) fn worst(a: u8, b: u8) -> u8 {
        const ORDER: [u8; 7] = [DONE, USAGE, PARTIAL, FAILED, DAMAGE, LOCKED, INTERRUPTED];
        // A status outside the table is the failure of another program.
        let rank = |status| ORDER.iter().position(|other| *other == status).unwrap_or(3);
        if rank(a) >= rank(b) { a } else { b }
    }
}

/// The reason why a command ended without doing all of its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An error of `run`, or of a room that `run` uses.
    Run(RunError),
    /// The configuration is wrong.
    Config(ConfigError),
    /// A secret could not be read.
    Secret(SecretError),
    /// The command line asks for something impossible.
    Usage { what: String, hint: String },
    /// A doubt about a dataset, because of which none of its objects was deleted.
    Doubtful {
        what: String,
        hint: String,
        status: u8,
    },
    /// The command has printed its errors already and ends with this status.
    Reported(u8),
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

impl From<CatalogError> for Failure {
    fn from(error: CatalogError) -> Self {
        Self::Run(error.into())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::Run(error.into())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<SecretError> for Failure {
    fn from(error: SecretError) -> Self {
        Self::Secret(error)
    }
}

impl From<crate::store::StoreError> for Failure {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Run(error.into())
    }
}

impl From<crate::zfs::ZfsError> for Failure {
    fn from(error: crate::zfs::ZfsError) -> Self {
        Self::Run(error.into())
    }
}

impl Failure {
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Run(RunError::Interrupted) => status::INTERRUPTED,
            Self::Run(RunError::State(StateError::Locked { .. }) | RunError::LockedBy { .. }) => {
                status::LOCKED
            }
            Self::Run(RunError::SteppedOver { .. }) => status::PARTIAL,
            Self::Run(error) if error.is_damage() => status::DAMAGE,
            Self::Run(_) => status::FAILED,
            Self::Config(_) | Self::Secret(_) | Self::Usage { .. } => status::USAGE,
            Self::Doubtful { status, .. } | Self::Reported(status) => *status,
        }
    }

    /// Returns the reason on one line.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Run(error) => crate::run::error_chain(error),
            Self::Config(error) => crate::run::error_chain(error),
            Self::Secret(error) => crate::run::error_chain(error),
            Self::Usage { what, .. } | Self::Doubtful { what, .. } => what.clone(),
            Self::Reported(status) => format!("ended with status {status}"),
        }
    }

    pub(crate) fn print(&self, output: &Output) {
        match self {
            Self::Run(error) => output.error(error, error.hint().as_deref()),
            Self::Config(error) => output.error(error, error.hint().as_deref()),
            Self::Secret(error) => output.error(error, error.hint().as_deref()),
            Self::Usage { what, hint } | Self::Doubtful { what, hint, .. } => {
                output.error_text(what, Some(hint))
            }
            Self::Reported(_) => {}
        }
    }
}

/// Returns the failure of a command line or a configuration that asks for something impossible.
pub(crate) fn usage(what: &str, hint: &str) -> Failure {
    Failure::Usage {
        what: what.to_owned(),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stepped_over_snapshot_ends_with_status_3() {
        let failure = Failure::Run(RunError::SteppedOver {
            snapshot: "tank/a@b".parse().unwrap(),
            fault: crate::model::ReadFault {
                position: 1,
                object: None,
                before: None,
            },
            newest: None,
        });
        assert_eq!(failure.status(), 3);
    }

    #[test]
    fn worst_exit_status_follows_the_severity_order_not_the_number() {
        let order = [0, 2, 3, 1, 4, 11, 130];
        for (rank, worse) in order.iter().enumerate() {
            for better in &order[..=rank] {
                assert_eq!(
                    (
                        status::worst(*better, *worse),
                        status::worst(*worse, *better)
                    ),
                    (*worse, *worse)
                );
            }
        }
    }
}
