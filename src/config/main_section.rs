//! `[main]` except the encryption keys: datasets, snapshots, stores, hooks.

use super::document::Document;
use super::form::{self, Form, Kind, Place, Reading};
use super::problem::Problem;
use super::remote::Remote;
use super::schedule::{BandwidthSchedule, Window};
use super::secret::CommandLine;
use super::trust::{Demand, FolderRule};
use super::units::{InvalidValue, Size, TimeLimit};
use super::visitor::KeyVisitor;
use super::{Config, keys};
use crate::model::DatasetName;
use crate::store::rclone::check_arguments;
use globset::Glob;
use std::path::{Path, PathBuf};
use toml::Value;
use toml::de::DeValue;

/// The datasets to back up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatasetSelection {
    /// `zfs_fs`, in the order of the file; never empty, no name twice.
    pub names: Vec<DatasetName>,
    /// Whether every descendant is backed up as well.
    pub recursive: bool,
    /// Glob patterns for the names of excluded datasets.
    pub exclude: Vec<String>,
    /// The name in the store, if it differs from the dataset's own.
    pub store_as: Option<DatasetName>,
}

/// The source of the snapshots to back up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotSource {
    /// The snapshots that this tool takes.
    Own,
    /// The newest snapshot of other tools whose short name matches the glob.
    Matching(String),
}

/// Settings for snapshots: names, source, age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotSettings {
    /// The prefix of the names of own snapshots.
    pub prefix: String,
    /// The source: own snapshots or those of other tools.
    pub source: SnapshotSource,
    /// The age in days from which own snapshots are destroyed; 0 keeps bookmarks only; `None`
    /// destroys no snapshots.
    pub oldest_days: Option<u32>,
    /// Whether `snapshot` takes a snapshot of a dataset to which nothing was written since its newest
    /// one.
    pub of_unchanged: bool,
    /// Whether a snapshot is not backed up if nothing was written since the newest backup.
    pub skip_unchanged: bool,
}

/// The intermediate directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intermediate {
    /// The absolute path of the folder. A host with ZFS checks that the folder lies in no dataset
    /// that is backed up.
    pub basedir: PathBuf,
    /// Whether to write a B3SUMS file too.
    pub checksum: bool,
}

/// Settings for `rclone:` remotes only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RcloneSection {
    /// The path of the rclone.conf.
    pub conf: Option<PathBuf>,
    /// The bandwidth limit, passed to rclone unchanged.
    pub bwlimit: Option<String>,
    /// Additional arguments: `--name`, `--name=value`, or the value as the next item.
    pub args: Vec<String>,
    /// The folder in which chunks are spooled; `None` means `state_dir`.
    pub spool_dir: Option<PathBuf>,
}

/// Programs that run around a backup. Each is an absolute path with arguments, and is run without a
/// shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// Runs before the snapshot. If it fails, no snapshot is taken.
    pub pre_snapshot: Option<CommandLine>,
    /// Runs after the snapshot, whenever `pre_snapshot` ran.
    pub post_snapshot: Option<CommandLine>,
    /// Runs after a failed run.
    pub on_failure: Option<CommandLine>,
    /// Runs after a successful run.
    pub on_success: Option<CommandLine>,
    /// The time limit for each hook.
    pub timeout: TimeLimit,
}

/// Limits of speed and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// The limit in bytes per second of all uploads together.
    pub bwlimit: Option<BandwidthSchedule>,
    /// The limit in bytes per second of all downloads together.
    pub bwlimit_down: Option<BandwidthSchedule>,
    /// The hours in which a long upload may run. A long upload pauses outside them.
    pub window: Option<Window>,
    /// The running time after which a long upload pauses.
    pub max_runtime: Option<TimeLimit>,
    /// The time for which a store that does not answer is waited for; zero for not at all.
    pub retry_for: TimeLimit,
    /// The number of datasets that a command works on at once.
    pub parallel_datasets: u32,
}

/// The default of [`Pace::parallel_datasets`]: enough to hide most of the round trips to a store.
const PARALLEL_DATASETS_DEFAULT: u32 = 4;
/// The most datasets at once. Each has a few threads and a pipe; memory and requests are bounded
/// for all of them together.
pub(crate) const PARALLEL_DATASETS_MAX: u32 = 64;

/// The default of [`Pace::retry_for`]: a reboot of a router takes minutes, and a disturbance at a
/// provider often less than half an hour. A longer one is for a person to see.
const RETRY_FOR_DEFAULT: TimeLimit = TimeLimit::seconds(30 * 60);
/// The longest wait. Other hosts take a prune for dead after two days, so no prune may wait nearly
/// as long between two deletions.
pub(crate) const RETRY_FOR_MAX: TimeLimit = TimeLimit::seconds(12 * 3600);

/// The smallest chunk. Smaller chunks would make more overhead than data.
const SPLIT_SIZE_MIN: Size = Size(64 << 10);
/// Chunk sizes are a multiple of this. The format demands a multiple of 4 bytes; whole pages of
/// memory are no restriction in practice.
const SPLIT_SIZE_STEP: u64 = 4096;
/// The largest object that S3 stores accept.
const SPLIT_SIZE_MAX: Size = Size(5 << 40);
/// The longest suffix after the prefix: the time, and a number if the name is taken.
const SNAPSHOT_SUFFIX_LONGEST: &str = "20261122T212604Z-9999";

/// Declares the keys of `[main]`.
pub(super) fn declare_main(config: &mut Config, visitor: &mut impl KeyVisitor) {
    config.datasets.declare(visitor);
    config.keys.declare(visitor);
    keys::declare_verify_keys(&mut config.verify_keys, visitor);
    declare_intermediate(&mut config.intermediate, visitor);
    let split_size = form::size(SPLIT_SIZE_MIN..=SPLIT_SIZE_MAX);
    visitor.with_default("split_size", &mut config.split_size, split_size);
    visitor.key("remote", &mut config.remote, form::parsed());
    config.rclone.declare(visitor);
    config.pace.declare(visitor);
    config.snapshots.declare(visitor);
    let name = form::text(store_name, DatasetName::to_string).or_none("");
    visitor.with_default("store_as", &mut config.datasets.store_as, name);
    config.hooks.declare(visitor);
    let lock_file = form::path().naming(|file: &PathBuf| {
        let folder = file.parent()?.to_path_buf();
        Some(Place::Folder(folder, FolderRule::MayBeSticky))
    });
    visitor.with_default("lock_file", &mut config.lock_file, lock_file);
    // The folder holds the signing key and the recipient of all backups.
    let state_dir = form::folder(FolderRule::Closed);
    visitor.with_default("state_dir", &mut config.state_dir, state_dir);
    let days = form::number(1..=3650);
    visitor.with_default("resume_days", &mut config.resume_days, days);
}

impl DatasetSelection {
    /// Declares the keys except `store_as`, which `config show` prints further below.
    fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        let expected = "a dataset name: pool/path of letters, digits, space and -_.: without @ and a leading slash";
        let names = form::text_or_list(expected, str::parse, DatasetName::to_string);
        visitor.with_default("zfs_fs", &mut self.names, names);
        visitor.with_default("recursive", &mut self.recursive, form::switch());
        let glob = |text: &str| Glob::new(text).map(|glob| glob.glob().to_owned());
        let expected = "glob patterns such as \"tank/scratch/*\"";
        let globs = form::list(expected, glob, String::clone);
        visitor.with_default("exclude", &mut self.exclude, globs);
    }
}

pub(super) fn check_datasets(file: &Document<'_>, datasets: &DatasetSelection) {
    if !file.has("main.zfs_fs") {
        let expected = "the dataset to back up, or a list of them";
        file.missing("main.zfs_fs", expected, "zfs_fs = \"tank/photos\"");
    } else if datasets.names.is_empty() && !file.has_refused("main.zfs_fs") {
        file.refuse("main.zfs_fs", "is empty; expected at least one dataset");
    }
    for (index, name) in datasets.names.iter().enumerate() {
        if datasets.names[..index].contains(name) {
            let message = format!("names \"{name}\" twice; expected each dataset once");
            file.refuse("main.zfs_fs", message);
        }
    }
    if datasets.store_as.is_some() && datasets.names.len() > 1 {
        let message = "is one name; expected it only when zfs_fs names one dataset";
        file.refuse("main.store_as", message);
    }
    let has_globs = !datasets.exclude.is_empty() || file.has_refused("main.exclude");
    if has_globs && !datasets.recursive {
        file.refuse("main.exclude", "has no effect without recursive = true");
    }
}

fn store_name(text: &str) -> Result<DatasetName, InvalidValue> {
    text.parse()
        .map_err(|_| InvalidValue::new(text, "a name in the form of a dataset name"))
}

impl Default for SnapshotSettings {
    fn default() -> Self {
        Self {
            prefix: "zfs-backup_".to_owned(),
            source: SnapshotSource::Own,
            oldest_days: None,
            of_unchanged: true,
            skip_unchanged: true,
        }
    }
}

impl SnapshotSettings {
    fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        let days = form::number(0..=36_500);
        visitor.key("oldest_snapshot_days", &mut self.oldest_days, days);
        let prefix = form::text(snapshot_prefix, String::clone);
        visitor.with_default("snapshot_prefix", &mut self.prefix, prefix);
        let source = form::text(snapshot_source, |source| match source {
            SnapshotSource::Own => "own".to_owned(),
            SnapshotSource::Matching(glob) => glob.clone(),
        });
        visitor.with_default("use_snapshots", &mut self.source, source);
        let of_unchanged = &mut self.of_unchanged;
        visitor.with_default("snapshot_unchanged", of_unchanged, form::switch());
        visitor.with_default("skip_unchanged", &mut self.skip_unchanged, form::switch());
    }
}

/// Checks that a snapshot of every dataset can have a name with the prefix.
pub(super) fn check_snapshot_prefix(file: &Document<'_>, config: &Config) {
    let longest = format!("{}{SNAPSHOT_SUFFIX_LONGEST}", config.snapshots.prefix);
    for dataset in &config.datasets.names {
        if dataset.snapshot(&longest).is_err() {
            let message =
                format!("is too long for {dataset}; expected names of at most 255 bytes with it");
            file.refuse("main.snapshot_prefix", message);
        }
    }
}

fn snapshot_source(text: &str) -> Result<SnapshotSource, InvalidValue> {
    match text {
        "" | "own" => Ok(SnapshotSource::Own),
        glob if Glob::new(glob).is_ok() => Ok(SnapshotSource::Matching(glob.to_owned())),
        _ => Err(InvalidValue::new(
            text,
            "\"own\", or a glob such as \"autosnap_*_daily\"",
        )),
    }
}

/// Returns the prefix, or the reason why ZFS would refuse it. The length is checked later, together
/// with the dataset's name.
fn snapshot_prefix(text: &str) -> Result<String, InvalidValue> {
    let expected = "one or more letters, digits and -_.: because the prefix marks own snapshots";
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    let legal = !text.is_empty() && text.bytes().all(plain);
    legal
        .then(|| text.to_owned())
        .ok_or_else(|| InvalidValue::new(text, expected))
}

fn declare_intermediate(field: &mut Option<Intermediate>, visitor: &mut impl KeyVisitor) {
    let mut basedir = field.as_ref().map(|place| place.basedir.clone());
    let mut checksum = field.as_ref().map(|place| place.checksum);
    // The content of the folder decides which backups are kept.
    let folder = form::folder(FolderRule::Closed);
    visitor.key("intermediate_basedir", &mut basedir, folder);
    visitor.key("intermediate_checksum", &mut checksum, form::switch());
    *field = basedir.map(|basedir| Intermediate {
        basedir,
        checksum: checksum.unwrap_or(false),
    });
}

/// Checks that there is a store, and that two stores are two places.
pub(super) fn check_stores(file: &Document<'_>, config: &Config) {
    let has_intermediate = file.has("main.intermediate_basedir");
    if !has_intermediate && file.is_true("main.intermediate_checksum") {
        let message = "has no effect without intermediate_basedir";
        file.refuse("main.intermediate_checksum", message);
    }
    if !has_intermediate && !file.has("main.remote") {
        let expected = "a store: remote, or intermediate_basedir, or both";
        file.missing("main.remote", expected, "remote = \"s3:bucket/prefix\"");
    }
    if let (Some(Remote::File { dir }), Some(Intermediate { basedir, .. })) =
        (&config.remote, &config.intermediate)
        && (dir.starts_with(basedir) || basedir.starts_with(dir))
    {
        let message = "lies in the same folder as intermediate_basedir; expected two places";
        file.refuse("main.remote", message);
    }
}

pub(super) fn check_split_size(file: &Document<'_>, split_size: Size) {
    if !split_size.bytes().is_multiple_of(SPLIT_SIZE_STEP) {
        file.refuse("main.split_size", "is not a multiple of 4K");
    }
}

impl RcloneSection {
    fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        // The rclone.conf contains the secrets of the remote, and may name programs that rclone
        // runs.
        let conf =
            form::path().naming(|path: &PathBuf| Some(Place::File(path.clone(), Demand::Secret)));
        visitor.key("rclone_conf", &mut self.conf, conf);
        visitor.key("rclone_bwlimit", &mut self.bwlimit, form::any_text());
        visitor.list("rclone_args", &mut self.args, form::words());
        let spool_dir = form::folder(FolderRule::MayBeSticky);
        visitor.key("rclone_spool_dir", &mut self.spool_dir, spool_dir);
    }
}

/// The keys that are only for rclone, each with its equivalent for the other remotes.
const RCLONE_KEYS: [(&str, &str); 4] = [
    (
        "main.rclone_conf",
        "the credentials of a native remote belong in [s3] or [b2]",
    ),
    ("main.rclone_bwlimit", "the native key is `bwlimit`"),
    (
        "main.rclone_args",
        "the native keys are `part_size` and `concurrency` in [s3] or [b2]",
    ),
    (
        "main.rclone_spool_dir",
        "native remotes need no spool; [b2] may have a `spool_dir`",
    ),
];

pub(super) fn check_rclone(file: &Document<'_>, config: &Config) {
    for (n, reason) in check_arguments(&config.rclone.args) {
        let message = format!("cannot be passed to rclone: argument {n}: {reason}");
        file.refuse("main.rclone_args", message);
    }
    // An unreadable `remote` may have been meant as one of rclone's, so these keys are then not
    // refused.
    let may_be_rclone = match config.remote {
        Some(Remote::Rclone { .. }) => true,
        Some(_) => false,
        None => file.has("main.remote"),
    };
    for (key, native) in RCLONE_KEYS {
        if file.has(key) && !may_be_rclone {
            let problem = Problem::new("is only for a remote of the form rclone:REMOTE:PATH");
            file.refuse(key, problem.hint(native));
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            pre_snapshot: None,
            post_snapshot: None,
            on_failure: None,
            on_success: None,
            timeout: TimeLimit::seconds(600),
        }
    }
}

impl Hooks {
    fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        visitor.with_default("pre_snapshot", &mut self.pre_snapshot, hook());
        visitor.with_default("post_snapshot", &mut self.post_snapshot, hook());
        visitor.with_default("on_failure", &mut self.on_failure, hook());
        visitor.with_default("on_success", &mut self.on_success, hook());
        visitor.with_default("hook_timeout", &mut self.timeout, time_limit());
    }
}

/// A hook: a text, split as a shell would, or a list of words that are used unchanged. Its program
/// is an absolute path: timers have another PATH than users, and only a path can be checked.
fn hook() -> Form<Option<CommandLine>> {
    let read = |value: &DeValue<'_>| -> Reading<CommandLine> {
        let command = match value.as_str() {
            Some(line) => line.parse()?,
            None => CommandLine::from_words(form::read_list(value)?)?,
        };
        if Path::new(command.program()).is_absolute() {
            return Ok(command);
        }
        let expected = "the absolute path of a program, and its arguments";
        let hint = format!("`command -v {}` prints the path", command.program());
        Err(InvalidValue::new(&command.to_string(), expected).hint(hint))?
    };
    let form = Form::new(Kind::Text, read, |command| Value::from(command.to_string()));
    let program =
        |command: &CommandLine| Some(Place::File(command.program().into(), Demand::Unchangeable));
    form.naming(program).or_none("")
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            bwlimit: None,
            bwlimit_down: None,
            window: None,
            max_runtime: None,
            retry_for: RETRY_FOR_DEFAULT,
            parallel_datasets: PARALLEL_DATASETS_DEFAULT,
        }
    }
}

impl Pace {
    fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        visitor.key("bwlimit", &mut self.bwlimit, form::parsed());
        visitor.key("bwlimit_down", &mut self.bwlimit_down, form::parsed());
        visitor.key("window", &mut self.window, form::parsed());
        visitor.key("max_runtime", &mut self.max_runtime, time_limit());
        visitor.with_default("retry_for", &mut self.retry_for, retry_for());
        let datasets = form::number(1..=PARALLEL_DATASETS_MAX);
        visitor.with_default("parallel_datasets", &mut self.parallel_datasets, datasets);
    }
}

/// Reads the wait for a store that does not answer: at most [`RETRY_FOR_MAX`].
pub(crate) fn parse_retry_for(text: &str) -> Result<TimeLimit, InvalidValue> {
    let limit: TimeLimit = text.parse()?;
    if limit.duration() > RETRY_FOR_MAX.duration() {
        let form = format!("at most {RETRY_FOR_MAX}; an upload that waited in vain can be resumed");
        return Err(InvalidValue::new(text, form));
    }
    Ok(limit)
}

/// The form of `retry_for`: a time limit, or 0 with or without quotes.
fn retry_for() -> Form<TimeLimit> {
    let parsed = form::text(parse_retry_for, TimeLimit::to_string);
    let read = move |value: &DeValue<'_>| match value.as_integer() {
        Some(number) if number.as_str() == "0" => Ok(TimeLimit::seconds(0)),
        _ => parsed.read(value),
    };
    let show = |limit: &TimeLimit| Value::from(limit.to_string());
    Form::new(Kind::Text, read, show)
}

/// A time limit of at least one second.
fn time_limit() -> Form<TimeLimit> {
    let parse = |text: &str| {
        let limit: TimeLimit = text.parse()?;
        if limit.duration().is_zero() {
            return Err(InvalidValue::new(text, "at least 1s"));
        }
        Ok(limit)
    };
    form::text(parse, TimeLimit::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_for_is_limited_to_half_a_day() {
        assert_eq!(parse_retry_for("12h").unwrap(), RETRY_FOR_MAX);
        assert_eq!(parse_retry_for("0").unwrap(), TimeLimit::seconds(0));
        let error = parse_retry_for("13h").unwrap_err().to_string();
        assert!(
            error.contains("13h") && error.contains("at most 12h"),
            "{error}"
        );
    }
}
