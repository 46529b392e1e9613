//! The options that every command has.

use crate::config::{PARALLEL_DATASETS_MAX, TimeLimit, parse_retry_for};
use clap::{Args as ClapArgs, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct Global {
    /// The configuration [default: /etc/zfs-backup/zfs-backup.toml, for an ordinary user the XDG
    /// path]
    #[arg(short, long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Run although the lockfile exists; give it before the command. The kernel lock is never
    /// ignored
    #[arg(short = 'i', long)]
    pub(crate) ignore_lock: bool,
    /// Wait at most this long for the lock (90s, 10m, 2h) instead of ending with status 11
    #[arg(long, global = true, value_name = "DURATION")]
    pub(crate) lock_wait: Option<TimeLimit>,
    /// Wait at most this long while the store or the network does not answer (90s, 30m, 2h; 0 for
    /// never) [default: main.retry_for, or 30m, for commands that upload, restore, verify, copy or
    /// prune; 0 for others]
    #[arg(long, global = true, value_name = "DURATION", value_parser = parse_retry_for)]
    pub(crate) retry_for: Option<TimeLimit>,
    /// Work on this many datasets at once, 1 to 64 [default: main.parallel_datasets, or 4]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(PARALLEL_DATASETS_MAX)))]
    pub(crate) parallel_datasets: Option<u32>,
    /// Print what would be done, and change nothing
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
    /// Print more; give it twice to print everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print nothing on success
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print the result as JSON on stdout; logs stay on stderr
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Show upload progress: auto shows a bar on a terminal, otherwise a line every 30 s; nothing
    /// with -q
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t)]
    pub(crate) progress: ProgressWhen,
}

/// When progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ProgressWhen {
    /// Show progress, but not with -q.
    #[default]
    Auto,
    /// Show progress, also with -q.
    Always,
    /// Show no progress.
    Never,
}
