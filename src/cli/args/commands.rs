//! The commands and their options. The doc comments are the help text.

use super::restore::{Drill, Restore};
use super::source::Source;
use crate::config::{Age, Remote};
use crate::model::{BackupId, DatasetName, Guid, InvalidName};
use crate::plan::sample::ReadShare;
use clap::{Args as ClapArgs, Subcommand};
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the steps of [backup-sequence] in order; a timer starts this every night
    Perform,
    /// Create the lockfile by hand: no run starts until `unlock`, even after a reboot
    Lock,
    /// Delete the lockfile that was made by hand or that a dead run left
    ///
    /// The lock of a run that may still be active, here or on another host, is deleted only with
    /// -i before the command. In a sequence this deletes the lock of its own run.
    Unlock,
    /// Take one atomic snapshot of all configured datasets of a pool
    Snapshot,
    /// Write backups of the newest snapshots into the intermediate directory
    ExportIntermediate(Kind),
    /// Copy to the remote the backups of the intermediate directory that were never committed there
    UploadIntermediateToRemote(Upload),
    /// Stream the newest snapshots to the remote, without a copy on disk
    StreamToRemote(Kind),
    /// Destroy this tool's snapshots that are older than oldest_snapshot_days and that nothing
    /// needs
    PruneSnapshots(PruneByAge),
    /// Delete from the intermediate directory what `keep` and [lifecycle-intermediate] do not keep
    PruneIntermediate(PruneByAge),
    /// Delete from the remote what `keep` and [lifecycle-remote] do not keep
    PruneRemote(PruneByAge),
    /// Compare the signed manifests with what the store itself reports; downloads no chunk unless
    /// asked
    VerifyChecksums(Verify),
    /// Show snapshots, chains and unfinished uploads, their age, size and state
    Show(Show),
    /// Restore a backup into a new dataset, or as a bare stream
    Restore(Restore),
    /// Rehearse a restore into a scratch dataset, which is checked and then destroyed
    ///
    /// The kernel checks every record of every stream. The snapshots must have the guids of the
    /// manifests. Where the pool still has a snapshot and its base, its own stream must equal the
    /// restored one. `show` and `health` then report the date of the drill. Without DATASET the
    /// drill takes the dataset whose last drill is the oldest.
    Drill(Drill),
    /// Print one line per dataset for monitoring, from this host's records; exit status 0 to 3 as
    /// monitoring plugins do
    Health(Health),
    /// Check ZFS, permissions, credentials and the store, and print what works and what to do about
    /// the rest
    ///
    /// Writes only probes of the stores, below @zfs-backup/probe/, and removes them again; writes
    /// nothing with --dry-run. Ends with 1 if a backup could not work.
    Doctor,
    /// List or release the holds of this tool in the pools
    #[command(subcommand)]
    Holds(Holds),
    /// Take over the backups of another origin, such as a pool that was rebuilt, or of another time
    /// line of this one, such as that of a cloned machine or a pool that was rewound
    ///
    /// Without --origin and --line the command lists the origins and time lines, with the command
    /// for each. Afterwards the retention rules apply to the adopted backups too. Only the listed
    /// backups of a time line are adopted: if its host makes more, pruning stops again.
    Adopt(Adopt),
    /// Accept the present store as the right one, after a disk or a bucket was replaced
    AcceptStore(AcceptStore),
    /// Delete one backup that nothing depends on, or the remains of an upload
    Forget(Forget),
    /// Make, show, export and rotate the keys that encrypt and sign
    #[command(subcommand)]
    Key(Key),
    /// Make, check, show or convert the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the completions of a shell
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each command
    Man {
        /// Write the pages of all commands into this folder
        #[arg(long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
}

impl Command {
    /// Returns whether the command waits while the store does not answer, without being asked to.
    /// Commands that a person or a monitor reads report at once.
    pub(crate) fn waits_for_stores(&self) -> bool {
        matches!(
            self,
            Self::Perform
                | Self::ExportIntermediate(_)
                | Self::UploadIntermediateToRemote(_)
                | Self::StreamToRemote(_)
                | Self::PruneSnapshots(_)
                | Self::PruneIntermediate(_)
                | Self::PruneRemote(_)
                | Self::VerifyChecksums(_)
                | Self::Restore(_)
                | Self::Drill(_)
        )
    }

    /// Returns whether the command ends by itself after a request to stop, however long its hooks
    /// take. Such a command must not be dropped.
    pub(crate) fn ends_by_itself(&self) -> bool {
        matches!(self, Self::Snapshot | Self::Drill(_))
            || matches!(self, Self::Restore(restore) if restore.to.is_some())
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Upload {
    /// Also copy backups that were pruned in the remote or that prune-remote would delete at once
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PruneByAge {
    /// Delete; without it the plan is printed with its reasons, and nothing changes
    #[arg(short, long)]
    pub(crate) yes: bool,
    /// Confirm that this host's clock is right when nothing else confirms it
    ///
    /// Pruning deletes nothing while the clock is more than a day ahead of the time that earlier
    /// runs noted, for example after a long time without power on a host without NTP. With -y this
    /// option notes the time as confirmed, for later runs. The clock of an S3 or B2 store overrules
    /// this option.
    #[arg(long)]
    pub(crate) clock_is_right: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Health {
    /// Warn when the newest backup is older than this; critical when it is more than twice as old
    #[arg(long, value_name = "AGE", default_value = "26h")]
    pub(crate) max_age: Age,
    /// Warn when the last successful verify-checksums is older than this
    #[arg(long, value_name = "AGE", default_value = "8d")]
    pub(crate) max_verify_age: Age,
    /// Warn when the last restore drill is older than this
    #[arg(long, value_name = "AGE", default_value = "90d")]
    pub(crate) max_drill_age: Age,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Holds {
    /// List the held snapshots, the backup that each is held for, since when, and the space kept
    List,
    /// Release the holds of runs that are over; without -y only print them
    Release(Release),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Release {
    /// Also release the holds of this backup when no journal and no store proves its upload over;
    /// repeatable
    #[arg(long = "id", value_name = "ID")]
    pub(crate) ids: Vec<BackupId>,
    /// Release the holds; without -y the command only prints which holds it would release
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AcceptStore {
    /// Accept the intermediate directory instead of the remote
    #[arg(long)]
    pub(crate) intermediate: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Adopt {
    /// The dataset, as it is named in the store
    #[arg(value_name = "DATASET")]
    pub(crate) dataset: DatasetName,
    /// Take over the backups of the dataset with this guid; add the guid of its pool where needed
    #[arg(long, value_name = "GUID[/POOL_GUID]", conflicts_with = "line")]
    pub(crate) origin: Option<OriginChoice>,
    /// Take over the other time line whose newest backup this is
    #[arg(long, value_name = "ID")]
    pub(crate) line: Option<BackupId>,
    /// Accept a time line or origin whose newest snapshot is newer than all our stored ones: its
    /// host may still be active
    #[arg(long)]
    pub(crate) although_newer: bool,
    /// Take over; without -y only print what would be taken over
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// The guid of a dataset, and of the pool that it was in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OriginChoice {
    pub(crate) dataset_guid: Guid,
    /// `None` accepts any pool.
    pub(crate) pool_guid: Option<Guid>,
}

impl FromStr for OriginChoice {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (dataset, pool) = text
            .split_once('/')
            .map_or((text, None), |(dataset, pool)| (dataset, Some(pool)));
        Ok(Self {
            dataset_guid: dataset.parse()?,
            pool_guid: pool.map(str::parse).transpose()?,
        })
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Forget {
    /// The backup
    #[arg(value_name = "ID")]
    pub(crate) id: BackupId,
    /// The dataset, as it is named in the store [default: the configured one that has the backup]
    #[arg(long, value_name = "DATASET")]
    pub(crate) dataset: Option<DatasetName>,
    /// Delete in the intermediate directory instead of the remote
    #[arg(long)]
    pub(crate) intermediate: bool,
    /// Delete; without it the plan is printed
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Kind {
    /// Make a full backup in any case
    #[arg(short, long, conflicts_with = "incremental")]
    pub(crate) full: bool,
    /// Make an incremental or fail; never fall back to a full
    #[arg(short, long)]
    pub(crate) incremental: bool,
    /// Abandon the interrupted uploads of this kind instead of resuming them
    ///
    /// Their holds are released. Their stored objects stay until a prune or `forget`
    /// deletes them.
    #[arg(long)]
    pub(crate) restart: bool,
    /// Take this recorded full stream (a file or a pipe, as `zfs send` writes them) in place of
    /// what ZFS would send, for benchmarks and for tests on hosts without ZFS; the dataset and the
    /// snapshot are those that it names. The released program does not have this option
    #[cfg(any(test, feature = "testing"))]
    #[arg(long, value_name = "FILE", hide = true, conflicts_with = "incremental")]
    pub(crate) stream_from: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Show {
    /// Also list what the remote holds
    #[arg(long)]
    pub(crate) include_remote: bool,
    /// Also count the objects in the stores that belong to no configured dataset: lists every
    /// object, which takes a request for each thousand. Implies --include-remote
    #[arg(long, conflicts_with = "datasets")]
    pub(crate) unknown: bool,
    #[command(flatten)]
    pub(crate) source: Source,
    /// Only these datasets, as they are named in the store [default: all configured; with --remote
    /// all found]
    #[arg(value_name = "DATASET")]
    pub(crate) datasets: Vec<DatasetName>,
}

impl Show {
    /// Whether the remote is read too.
    pub(crate) fn reads_remote(&self) -> bool {
        self.include_remote || self.unknown
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    /// Verify the intermediate directory instead of the remote
    #[arg(long, conflicts_with = "remote")]
    pub(crate) intermediate: bool,
    /// Also download and check chunks: all, a share (5%), an amount (10G), or a daily seventh (1/7)
    #[arg(long, value_name = "SHARE", num_args = 0..=1, require_equals = true, default_missing_value = "100%")]
    pub(crate) read_data: Option<ReadShare>,
    #[command(flatten)]
    pub(crate) source: Source,
    /// Only these datasets, as they are named in the store [default: all configured; with --remote
    /// all found]
    #[arg(value_name = "DATASET")]
    pub(crate) datasets: Vec<DatasetName>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Key {
    /// Make the keyring in the configured stores, if there is none yet
    Generate {
        /// Use the keys that the passphrase opens although the store holds backups for newer or
        /// other keys. Check those backups first: an attacker who deletes the newest keyring wants
        /// this host to seal to old, leaked keys
        #[arg(long)]
        trust_found_keys: bool,
    },
    /// Show the public halves: recipient and verifying key
    Show,
    /// Print the secret identity and signing key, for a paper copy that needs no passphrase
    Export {
        /// Write them into this new file, mode 0600, instead of the terminal
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        source: Source,
    },
    /// Seal the keyring with a new passphrase; the old one still opens copies made before
    Passphrase {
        /// The first line of this file is the new passphrase, instead of asking for it
        #[arg(long, value_name = "FILE")]
        new_passphrase_file: Option<PathBuf>,
    },
    /// Make new keys and retire the old ones, for after a leak. The next backup of each dataset is
    /// a full of a new chain
    ///
    /// From now on the old verifying keys are trusted for exactly the backups and prune records
    /// that verify in the configured stores at this moment, and for nothing that is signed with
    /// them later. Before the rotation, delete the backups that you did not make (`zfs-backup
    /// forget`). Let no other host back up meanwhile. --dry-run shows the objects that would stay
    /// trusted.
    ///
    /// A rotation does not protect older backups: they stay sealed to the old identity, so anyone
    /// who has that identity and a copy of the bucket can read them. Once new fulls are stored,
    /// delete the old backups with prune-remote and prune-intermediate. If the passphrase leaked,
    /// run `key passphrase` first.
    Rotate {
        /// Keep trusting the old keys as before: for a scheduled rotation without a leak
        #[arg(long)]
        keep_trust: bool,
        /// Also list what this store holds, and write nothing there: the store of another
        /// configuration or host with the same keys, as for `restore --remote`. May be repeated.
        /// Without it such a store cannot be used with the new keys
        #[arg(long, value_name = "STORE", conflicts_with = "keep_trust")]
        also_list: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Write a first configuration, and check it. Asks on a terminal for missing values
    Init(Init),
    /// Check the configuration and give advice
    Check,
    /// Show the merged configuration with all defaults, secrets hidden
    Show,
    /// Restore the configuration from the store, after the old host was lost
    ///
    /// Backups store a copy beside the keyring, encrypted and signed, without its secrets.
    Recover(Recover),
    /// Print the TOML form of an older INI configuration
    Convert {
        /// The INI file
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Recover {
    /// The store: s3:bucket/prefix, b2:bucket/prefix or file:/dir
    #[arg(long, value_name = "URL")]
    pub(crate) remote: String,
    /// The key file, instead of the passphrase
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// The configuration of this host [default: the newest one]
    #[arg(long, value_name = "HOST")]
    pub(crate) host: Option<String>,
    /// Write it into this new file, mode 0600, instead of printing it
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Init {
    /// Back this dataset up; may be given several times
    #[arg(long = "dataset", value_name = "DATASET")]
    pub(crate) datasets: Vec<DatasetName>,
    /// The remote: s3:bucket/prefix, b2:bucket/prefix, file:/dir or rclone:REMOTE:PATH
    #[arg(long, value_name = "URL")]
    pub(crate) remote: Option<Remote>,
    /// The URL of an S3-compatible store that is not AWS
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// The region of an S3 store
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// The snapshots to back up: own, or a glob for those of another tool: "autosnap_*_daily"
    #[arg(long, value_name = "GLOB")]
    pub(crate) use_snapshots: Option<String>,
}
