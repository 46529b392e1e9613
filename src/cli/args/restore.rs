//! The arguments of `restore` and `drill`.

use super::source::Source;
use crate::config::Age;
use crate::model::{BackupId, DatasetName};
use clap::Args as ClapArgs;
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use std::path::PathBuf;
use std::str::FromStr;

#[derive(Debug, ClapArgs)]
#[command(group(clap::ArgGroup::new("destination").required(true).args(["to", "output", "stdout"])))]
pub(crate) struct Restore {
    /// The dataset as it is named in the store, with @SNAPSHOT for a backup other than the newest
    #[arg(value_name = "DATASET[@SNAPSHOT]")]
    pub(crate) what: String,
    /// Receive into this dataset, unmounted; missing parents are created with canmount=off
    #[arg(long, value_name = "DATASET")]
    pub(crate) to: Option<DatasetName>,
    /// Write the bare stream into this new file. If interrupted, the same command resumes from
    /// FILE.ID.partial
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Write the bare stream to stdout, for `zfs receive` anywhere; a repeated command starts over
    #[arg(long)]
    pub(crate) stdout: bool,
    /// Restore the newest backup that is not after this time: 2026-11-20, "2026-11-20 14:30" or
    /// 2026-11-20T13:30:00Z. A day means its end; a time without a zone is in this host's zone
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    pub(crate) at: Option<At>,
    /// This backup, by its id
    #[arg(long, value_name = "ID")]
    pub(crate) backup: Option<BackupId>,
    /// Also restore all descendants, as they were at the same moment
    #[arg(short, long, requires = "to", conflicts_with_all = ["backup", "force_rollback"])]
    pub(crate) recursive: bool,
    /// Where from: intermediate, remote, or a folder with a copy of a store. Without it each backup
    /// comes from the nearest store that has it whole
    #[arg(long, value_name = "PLACE", conflicts_with = "remote")]
    pub(crate) from: Option<From>,
    /// Receive onto a dataset that exists: it is rolled back to the newest snapshot that it has in
    /// common with the chain. Without -y the command only lists what it would destroy
    #[arg(long, requires = "to")]
    pub(crate) force_rollback: bool,
    /// Carry out what --force-rollback lists
    #[arg(short, long, requires = "force_rollback")]
    pub(crate) yes: bool,
    /// Destroy what an interrupted restore has received, and start over, instead of resuming
    /// it
    #[arg(long, requires = "to")]
    pub(crate) restart: bool,
    /// Restore even if the target has less free space than the restore needs
    #[arg(long, conflicts_with = "stdout")]
    pub(crate) although_full: bool,
    /// Set the properties that the source had; a mount point is set with canmount=noauto
    #[arg(long, requires = "to")]
    pub(crate) with_properties: bool,
    /// Set this property on the received datasets, such as compression=zstd; repeatable
    #[arg(short = 'o', value_name = "NAME=VALUE", requires = "to")]
    pub(crate) set: Vec<String>,
    /// Do not set this property of the source; repeatable
    #[arg(short = 'x', value_name = "NAME", requires = "with_properties")]
    pub(crate) without: Vec<String>,
    /// An option of earlier builds, kept to print what to do instead
    #[arg(long, hide = true)]
    pub(crate) mount: bool,
    /// Fail if the backup is older: only this shows that a store lost its newest backups
    #[arg(long, value_name = "AGE")]
    pub(crate) max_age: Option<Age>,
    /// Fail if a backup other than this one would be restored
    #[arg(long, value_name = "ID")]
    pub(crate) expect: Option<BackupId>,
    #[command(flatten)]
    pub(crate) source: Source,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Drill {
    /// The dataset, as it is named in the store [default: the configured one whose last drill is
    /// the oldest]
    #[arg(value_name = "DATASET")]
    pub(crate) dataset: Option<DatasetName>,
    /// This backup, by its id [default: the newest]
    #[arg(long, value_name = "ID")]
    pub(crate) backup: Option<BackupId>,
    /// Make the scratch dataset below this one [default: the pool of the dataset]
    #[arg(long, value_name = "DATASET")]
    pub(crate) into: Option<DatasetName>,
    /// Where from: intermediate, remote, or a folder with a copy of a store
    #[arg(long, value_name = "PLACE", conflicts_with = "remote")]
    pub(crate) from: Option<From>,
    /// Restore even if the target has less free space than the restore needs
    #[arg(long)]
    pub(crate) although_full: bool,
    /// Rehearse the loss of this host: use only the remote and a typed passphrase
    #[arg(long, conflicts_with_all = ["from", "remote"])]
    pub(crate) cold: bool,
    #[command(flatten)]
    pub(crate) source: Source,
}

/// The value of `--from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    /// The intermediate directory.
    Intermediate,
    /// The remote.
    Remote,
    /// A folder with a copy of a store.
    Folder(PathBuf),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "intermediate" => Ok(Self::Intermediate),
            "remote" => Ok(Self::Remote),
            folder if folder.contains('/') => Ok(Self::Folder(folder.into())),
            _ => Err("expected intermediate, remote, or a folder such as ./copy".to_owned()),
        }
    }
}

/// The value of `--at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At(pub(crate) Timestamp);

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        At::parse(text, &TimeZone::system())
    }
}

impl At {
    fn parse(text: &str, zone: &TimeZone) -> Result<Self, String> {
        let expected =
            || "expected 2026-11-20, \"2026-11-20 14:30\" or 2026-11-20T13:30:00Z".to_owned();
        if let Ok(time) = text.parse::<Timestamp>() {
            return Ok(Self(time));
        }
        // A day means its end, so that a snapshot of its last second belongs to it.
        let civil = match text.len() {
            10 => text
                .parse::<Date>()
                .map(|day| day.at(23, 59, 59, 999_999_999)),
            _ => text.parse::<DateTime>(),
        };
        let zoned = civil
            .map_err(|_| expected())?
            .to_zoned(zone.clone())
            .map_err(|_| expected())?;
        Ok(Self(zoned.timestamp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restore_time_accepts_offsets_local_times_and_dates() {
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        for (text, expected) in [
            ("2026-11-20T13:30:00Z", "2026-11-20T13:30:00Z"),
            ("2026-11-20T13:30:00+02:00", "2026-11-20T11:30:00Z"),
            ("2026-11-20 14:30", "2026-11-20T13:30:00Z"),
            ("2026-11-20T14:30:05", "2026-11-20T13:30:05Z"),
            ("2026-11-20", "2026-11-20T22:59:59.999999999Z"),
        ] {
            assert_eq!(
                At::parse(text, &zone).unwrap().0,
                expected.parse::<Timestamp>().unwrap(),
                "{text}"
            );
        }
        for text in [
            "",
            "yesterday",
            "2026-13-01",
            "20.11.2026",
            "2026-11-20 25:00",
        ] {
            assert!(At::parse(text, &zone).is_err(), "{text}");
        }
    }

    #[test]
    fn restore_source_is_a_store_name_or_an_absolute_folder() {
        assert_eq!("remote".parse(), Ok(From::Remote));
        assert_eq!("/mnt/copy".parse(), Ok(From::Folder("/mnt/copy".into())));
        assert!("remoet".parse::<From>().is_err());
    }
}
