//! The access that a command needs to a store.

use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::config::{CredentialFiles, Environment};
use crate::run::identity::Purpose;
use crate::store::Renew;

/// The work that a store is opened for. The work decides which credentials are used, whether the
/// store is probed before, and how its identity is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Reading, also for the plan of a later write.
    Read,
    /// Restoring, which must work without the state of this host.
    Restore,
    /// Writing. A store without a fresh probe is probed before.
    Write,
    /// Reading for a plan of deletions, with the credentials for deleting.
    PlanDelete,
    /// Deleting, with the credentials of `[prune]` where they are set, so that the nightly
    /// credentials need no right to delete.
    Delete,
}

impl Access {
    /// Returns the access of a command that writes, with `--dry-run` that of its plan.
    pub(crate) fn to_write(context: &Context) -> Self {
        if context.global.dry_run {
            Self::Read
        } else {
            Self::Write
        }
    }

    /// Returns the access of a command that deletes, with `-y`, or else prints its plan.
    pub(crate) fn to_delete(carry_out: bool) -> Self {
        if carry_out {
            Self::Delete
        } else {
            Self::PlanDelete
        }
    }

    /// Returns the purpose for which the store's identity is checked.
    pub(crate) fn purpose(self) -> Purpose {
        match self {
            Self::Read | Self::PlanDelete => Purpose::Read,
            Self::Restore => Purpose::Restore,
            Self::Write | Self::Delete => Purpose::Write,
        }
    }

    /// Returns whether the credentials of `[prune]` take precedence.
    pub(crate) fn has_own_credentials(self) -> bool {
        matches!(self, Self::PlanDelete | Self::Delete)
    }
}

/// Credentials as they are in their files now, and a reader for the time when the store refuses
/// them.
pub(crate) struct Credentials<T> {
    pub(crate) now: T,
    pub(crate) renew: Renew<T>,
}

/// Reads credentials from their files; `make` takes the id and the secret.
pub(crate) fn read_credentials<T: Send + 'static>(
    files: &CredentialFiles,
    env: &Environment,
    make: fn(&str, &str) -> T,
) -> Result<Credentials<T>, Failure> {
    let files = files.clone();
    let env = env.clone();
    let read = move || {
        let (id, secret) = files.read(&env)?;
        Ok::<T, crate::config::SecretError>(make(id.expose(), secret.expose()))
    };
    Ok(Credentials {
        now: read()?,
        renew: Renew::new(move || Ok(read()?)),
    })
}
