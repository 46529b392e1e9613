//! The command line.

mod commands;
mod global;
mod restore;
pub(crate) mod sequence;
mod share;
mod source;

pub(crate) use commands::{
    AcceptStore, Adopt, Command, ConfigCommand, Forget, Health, Holds, Init, Key, Kind,
    OriginChoice, PruneByAge, Recover, Release, Show, Upload, Verify,
};
pub(crate) use global::{Global, ProgressWhen};
pub(crate) use restore::{Drill, From, Restore};
pub(crate) use source::Source;

use clap::Parser;

const EXIT_STATUS: &str = "\
Exit status:
  0    done, or nothing to do
  1    failed
  2    wrong usage or configuration
  3    finished, but some datasets failed, or an unreadable snapshot was
       stepped over
  4    damage found
  11   another run has the lock
  130  interrupted";

/// Streams ZFS snapshots, in chunks encrypted with age, into S3-compatible storage, verifies the
/// stored backups, and restores them. The program drives ZFS through libzfs_core and never runs
/// the zfs command.
#[derive(Debug, Parser)]
#[command(name = "zfs-backup", version, after_help = EXIT_STATUS, max_term_width = 80)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}
