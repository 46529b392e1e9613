//! The command line.

use crate::model::{BackupId, DatasetName};
use clap::{Args as ClapArgs, Parser, Subcommand};
use std::path::PathBuf;

const EXIT_STATUS: &str = "\
Exit status:
  0    done, or nothing to do
  1    failed
  2    wrong usage or configuration
  3    finished, but some datasets failed
  4    damage found
  11   another run has the lock
  130  interrupted";

/// Streams ZFS snapshots, chunked and sealed with age, straight into S3-compatible storage, proves that they are there,
/// and restores them. ZFS is driven through libzfs_core; the zfs command is never run.
#[derive(Debug, Parser)]
#[command(name = "zfs-backup", version, after_help = EXIT_STATUS, max_term_width = 100)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Global {
    /// The configuration [default: /etc/zfs-backup/zfs-backup.toml, for an ordinary user the XDG path]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Say what would be done, and do nothing
    #[arg(long, global = true)]
    pub(super) dry_run: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,
    /// Print nothing on success
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// The result as JSON on stdout; logs stay on stderr
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Take one atomic snapshot of all configured datasets of a pool
    Snapshot,
    /// Stream the newest snapshots into the remote, with nothing on disk
    StreamToRemote(Kind),
    /// Write backups of the newest snapshots into the intermediate directory
    ExportIntermediate(Kind),
    /// Show snapshots and backups, their age, size and state
    Show(Show),
    /// Hold the signed manifests against what the store itself reports; downloads no chunk
    VerifyChecksums(Verify),
    /// Bring a backup back: into a new dataset, or as a bare stream
    Restore(Restore),
    /// The keys that seal and sign
    #[command(subcommand)]
    Key(Key),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, ClapArgs)]
pub(super) struct Kind {
    /// A full backup in any case
    #[arg(short, long, conflicts_with = "incremental")]
    pub(super) full: bool,
    /// An incremental or nothing; it never becomes a full (comes in a later version)
    #[arg(short, long)]
    pub(super) incremental: bool,
}

/// Where to read from, and with which keys. On a bare host no configuration is needed.
#[derive(Debug, ClapArgs)]
pub(super) struct Source {
    /// Read from this store instead of the configured remote: s3:bucket/prefix or file:/dir. With it no
    /// configuration is read; S3 credentials and endpoint come from the environment (AWS_...)
    #[arg(long, value_name = "URL")]
    pub(super) remote: Option<String>,
    /// The key file (an age identity file with the verifying key in a comment line), instead of the passphrase
    #[arg(long, value_name = "FILE")]
    pub(super) identity: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Show {
    /// Also ask the remote what it holds
    #[arg(long)]
    pub(super) include_remote: bool,
    #[command(flatten)]
    pub(super) source: Source,
    /// Only these datasets, as they are named in the store [default: all configured; with --remote all found]
    #[arg(value_name = "DATASET")]
    pub(super) datasets: Vec<DatasetName>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Verify {
    /// Verify the intermediate directory instead of the remote
    #[arg(long, conflicts_with = "remote")]
    pub(super) intermediate: bool,
    #[command(flatten)]
    pub(super) source: Source,
    /// Only these datasets, as they are named in the store [default: all configured; with --remote all found]
    #[arg(value_name = "DATASET")]
    pub(super) datasets: Vec<DatasetName>,
}

#[derive(Debug, ClapArgs)]
#[command(group(clap::ArgGroup::new("destination").required(true).args(["to", "output", "stdout"])))]
pub(super) struct Restore {
    /// The dataset as it is named in the store, with @SNAPSHOT for another than the newest backup
    #[arg(value_name = "DATASET[@SNAPSHOT]")]
    pub(super) what: String,
    /// Receive into this new dataset, unmounted; its parent must exist
    #[arg(long, value_name = "DATASET")]
    pub(super) to: Option<DatasetName>,
    /// Write the bare stream into this new file
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Write the bare stream to stdout, for `zfs receive` anywhere
    #[arg(long)]
    pub(super) stdout: bool,
    /// This backup, by its id
    #[arg(long, value_name = "ID")]
    pub(super) backup: Option<BackupId>,
    /// Read from the intermediate directory
    #[arg(long, conflicts_with = "remote")]
    pub(super) intermediate: bool,
    #[command(flatten)]
    pub(super) source: Source,
}

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Make the keyring in the configured stores, if there is none yet
    Generate,
    /// Show the public halves: recipient and verifying key
    Show,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration and give advice
    Check,
    /// Show the merged configuration with all defaults, secrets hidden
    Show,
}
