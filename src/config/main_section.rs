//! `[main]` except the keys: datasets, snapshots, stores, hooks.

use super::remote::Remote;
use super::schedule::{BandwidthSchedule, Window};
use super::secret::CommandLine;
use super::section::Section;
use super::stores::absolute_path;
use super::units::{InvalidValue, Size, TimeLimit};
use crate::model::DatasetName;
use crate::store::rclone::check_arguments;
use std::path::{Path, PathBuf};

/// The datasets to back up.
#[derive(Debug, Clone, PartialEq, Eq)]
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
pub struct RcloneSettings {
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pace {
    /// The limit in bytes per second of all uploads together.
    pub bwlimit: Option<BandwidthSchedule>,
    /// The hours in which a long upload may run. A long upload pauses outside them.
    pub window: Option<Window>,
    /// The running time after which a long upload pauses.
    pub max_runtime: Option<TimeLimit>,
}

/// The smallest chunk. Smaller chunks would make more overhead than data.
const SPLIT_SIZE_MIN: Size = Size(64 << 10);
/// Chunk sizes are a multiple of this. The format demands a multiple of 4 bytes; whole pages of
/// memory are no restriction in practice.
const SPLIT_SIZE_STEP: u64 = 4096;
/// The largest object that S3 stores accept.
const SPLIT_SIZE_MAX: Size = Size(5 << 40);
pub(super) const SPLIT_SIZE_DEFAULT: Size = Size(1 << 30);
pub(super) const SNAPSHOT_PREFIX_DEFAULT: &str = "zfs-backup_";
pub(super) const HOOK_TIMEOUT_DEFAULT: TimeLimit = TimeLimit::seconds(600);
pub(super) const RESUME_DAYS_DEFAULT: u32 = 14;
/// The longest suffix after the prefix: the time, and a number if the name is taken.
const SNAPSHOT_SUFFIX_LONGEST: &str = "20261122T212604Z-9999";

pub(super) fn read_datasets(main: &Section<'_>) -> Option<DatasetSelection> {
    let names = read_dataset_names(main);
    let exclude = main.list("exclude").unwrap_or_default();
    main.parse_items(
        "exclude",
        &exclude,
        "glob patterns such as \"tank/scratch/*\"",
        globset::Glob::new,
    );
    let store_as = main
        .parsed_unless_empty::<StoreName>("store_as")
        .map(|name| name.0);
    if let (Some(_), Some([_, _, ..])) = (&store_as, names.as_deref()) {
        main.refuse(
            "store_as",
            "is one name; expected it only when zfs_fs names one dataset",
            None,
        );
    }
    let recursive = main.switch("recursive").unwrap_or(false);
    if !exclude.is_empty() && !recursive && main.has("exclude") {
        main.refuse("exclude", "has no effect without recursive = true", None);
    }
    Some(DatasetSelection {
        names: names?,
        recursive,
        exclude,
        store_as,
    })
}

fn read_dataset_names(main: &Section<'_>) -> Option<Vec<DatasetName>> {
    let key = "zfs_fs";
    if !main.has(key) {
        main.missing(
            key,
            "the dataset to back up, or a list of them",
            Some("zfs_fs = \"tank/photos\"".into()),
        );
    }
    let texts = main.text_or_list(key)?;
    if texts.is_empty() {
        main.refuse(key, "is empty; expected at least one dataset", None);
        return None;
    }
    let expected = "a dataset name: pool/path of letters, digits, space and -_.: without @ and a leading slash";
    let names = main.parse_items(key, &texts, expected, str::parse::<DatasetName>)?;
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            main.refuse(
                key,
                format!("names \"{name}\" twice; expected each dataset once"),
                None,
            );
        }
    }
    Some(names)
}

struct StoreName(DatasetName);

impl std::str::FromStr for StoreName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        text.parse()
            .map(Self)
            .map_err(|_| InvalidValue::new(text, "a name formed as a dataset name is"))
    }
}

pub(super) fn read_snapshots(
    main: &Section<'_>,
    datasets: Option<&DatasetSelection>,
) -> SnapshotSettings {
    let prefix = main
        .checked("snapshot_prefix", snapshot_prefix)
        .unwrap_or_else(|| SNAPSHOT_PREFIX_DEFAULT.into());
    for dataset in datasets.into_iter().flat_map(|datasets| &datasets.names) {
        if dataset
            .snapshot(&format!("{prefix}{SNAPSHOT_SUFFIX_LONGEST}"))
            .is_err()
        {
            let message =
                format!("is too long for {dataset}; expected names of at most 255 bytes with it");
            main.refuse("snapshot_prefix", message, None);
        }
    }
    let source = main.checked("use_snapshots", |text| match text {
        "" | "own" => Ok(SnapshotSource::Own),
        glob => match globset::Glob::new(glob) {
            Ok(_) => Ok(SnapshotSource::Matching(glob.to_owned())),
            Err(_) => Err(InvalidValue::new(
                glob,
                "\"own\", or a glob such as \"autosnap_*_daily\"",
            )),
        },
    });
    SnapshotSettings {
        prefix,
        source: source.unwrap_or(SnapshotSource::Own),
        oldest_days: main.number("oldest_snapshot_days", 0..=36_500),
    }
}

/// Returns the prefix, or the reason why ZFS would refuse it. The length is checked later, together
/// with the dataset's name.
fn snapshot_prefix(text: &str) -> Result<String, InvalidValue> {
    let expected =
        "letters, digits and -_.: only, at least one, because own snapshots are known by it";
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    let legal = !text.is_empty() && text.bytes().all(plain);
    legal
        .then(|| text.to_owned())
        .ok_or_else(|| InvalidValue::new(text, expected))
}

pub(super) fn read_intermediate(main: &Section<'_>) -> Option<Intermediate> {
    let checksum = main.switch("intermediate_checksum");
    let basedir = main.checked("intermediate_basedir", absolute_path);
    if checksum == Some(true) && !main.has("intermediate_basedir") {
        main.refuse(
            "intermediate_checksum",
            "has no effect without intermediate_basedir",
            None,
        );
    }
    Some(Intermediate {
        basedir: basedir?,
        checksum: checksum.unwrap_or(false),
    })
}

pub(super) fn read_remote(
    main: &Section<'_>,
    intermediate: Option<&Intermediate>,
) -> Option<Remote> {
    let remote = main.parsed::<Remote>("remote");
    if !main.has("remote") && !main.has("intermediate_basedir") {
        let expected = "a store: remote, or intermediate_basedir, or both";
        main.missing(
            "remote",
            expected,
            Some("remote = \"s3:bucket/prefix\"".to_owned()),
        );
    }
    if let (Some(Remote::File { dir }), Some(intermediate)) = (&remote, intermediate)
        && (dir.starts_with(&intermediate.basedir) || intermediate.basedir.starts_with(dir))
    {
        main.refuse(
            "remote",
            "lies in the same folder as intermediate_basedir; expected two places",
            None,
        );
    }
    remote
}

/// The keys that are only for rclone, each with its equivalent for the other remotes.
const RCLONE_KEYS: [(&str, &str); 4] = [
    (
        "rclone_conf",
        "the credentials of a native remote stand in [s3] or [b2]",
    ),
    ("rclone_bwlimit", "the native key is `bwlimit`"),
    (
        "rclone_args",
        "the native keys are `part_size` and `concurrency` in [s3] or [b2]",
    ),
    (
        "rclone_spool_dir",
        "native remotes need no spool; [b2] may have a `spool_dir`",
    ),
];

pub(super) fn read_rclone(main: &Section<'_>, remote: Option<&Remote>) -> RcloneSettings {
    let settings = RcloneSettings {
        conf: main.checked("rclone_conf", absolute_path),
        bwlimit: main.text("rclone_bwlimit"),
        args: main.list("rclone_args").unwrap_or_default(),
        spool_dir: main.checked("rclone_spool_dir", absolute_path),
    };
    for (n, why) in check_arguments(&settings.args) {
        main.refuse(
            "rclone_args",
            format!("cannot be given to rclone: of argument {n}, {why}"),
            None,
        );
    }
    // An unreadable `remote` may have been meant as one of rclone's, so these keys are then not
    // refused.
    let other_remote = matches!(
        remote,
        Some(Remote::S3 { .. } | Remote::B2 { .. } | Remote::File { .. })
    );
    for (key, native) in RCLONE_KEYS {
        if main.has(key) && (other_remote || !main.has("remote")) {
            main.refuse(
                key,
                "is only for a remote of the form rclone:REMOTE:PATH",
                Some(native.to_owned()),
            );
        }
    }
    settings
}

pub(super) fn read_hooks(main: &Section<'_>) -> Hooks {
    let hook = |key| read_hook(main, key);
    let hooks = Hooks {
        pre_snapshot: hook("pre_snapshot"),
        post_snapshot: hook("post_snapshot"),
        on_failure: hook("on_failure"),
        on_success: hook("on_success"),
        timeout: main.parsed("hook_timeout").unwrap_or(HOOK_TIMEOUT_DEFAULT),
    };
    if hooks.timeout.duration().is_zero() {
        main.refuse("hook_timeout", "is 0s; expected at least 1s", None);
    }
    hooks
}

/// Reads a hook: a text, split as a shell would, or a list of words that are used unchanged.
fn read_hook(main: &Section<'_>, key: &str) -> Option<CommandLine> {
    if main.is_text(key) {
        return main
            .parsed_unless_empty::<HookCommand>(key)
            .map(|hook| hook.0);
    }
    let command = CommandLine::from_words(main.list(key)?).and_then(at_a_path);
    let refused = |invalid: InvalidValue| {
        let message = format!("is {:?}; expected {}", invalid.value, invalid.expected);
        main.refuse(key, message, invalid.hint);
    };
    command.map_err(refused).ok()
}

impl Hooks {
    /// Returns each configured hook with its key.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &CommandLine)> {
        [
            ("main.pre_snapshot", &self.pre_snapshot),
            ("main.post_snapshot", &self.post_snapshot),
            ("main.on_failure", &self.on_failure),
            ("main.on_success", &self.on_success),
        ]
        .into_iter()
        .filter_map(|(key, hook)| Some((key, hook.as_ref()?)))
    }
}

/// A hook whose program is an absolute path: timers have another PATH than users, and only a path
/// can be checked.
struct HookCommand(CommandLine);

impl std::str::FromStr for HookCommand {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        at_a_path(text.parse()?).map(Self)
    }
}

fn at_a_path(command: CommandLine) -> Result<CommandLine, InvalidValue> {
    if Path::new(command.program()).is_absolute() {
        return Ok(command);
    }
    let invalid = InvalidValue::new(
        &command.to_string(),
        "the absolute path of a program, and its arguments",
    );
    Err(invalid.hint(format!(
        "`command -v {}` says where it is",
        command.program()
    )))
}

pub(super) fn read_pace(main: &Section<'_>) -> Pace {
    let max_runtime = main.parsed::<TimeLimit>("max_runtime");
    if max_runtime.is_some_and(|limit| limit.duration().is_zero()) {
        main.refuse("max_runtime", "is 0s; expected at least 1s", None);
    }
    Pace {
        bwlimit: main.parsed("bwlimit"),
        window: main.parsed("window"),
        max_runtime,
    }
}

pub(super) fn read_split_size(main: &Section<'_>) -> Size {
    let size = main
        .size("split_size", SPLIT_SIZE_MIN..=SPLIT_SIZE_MAX)
        .unwrap_or(SPLIT_SIZE_DEFAULT);
    if !size.bytes().is_multiple_of(SPLIT_SIZE_STEP) {
        main.refuse("split_size", "is not a multiple of 4K", None);
    }
    size
}
