//! The configuration: a TOML file that is read and checked as a whole. Every error names its key
//! and line.
//!
//! [`Config::load`] opens the file (only if nobody else can change it), [`Config::parse`] is the
//! pure part. Both return a [`Config`] with all defaults applied, or a [`ConfigError`] with all
//! problems. [`Config::notices`] names the keys that have no effect.
//!
//! `declaration` explains how each key is declared once. Nothing here opens a store or calls ZFS: `run` and `cli` do.

mod advice;
pub mod convert;
mod declaration;
mod document;
mod form;
mod keys;
mod levels;
mod lifecycle;
mod lifecycle_advice;
mod main_section;
mod paths;
mod places;
mod problem;
mod read;
mod remote;
mod schedule;
mod schema;
mod secret;
mod send;
mod sequence;
mod show;
mod stores;
mod syntax;
pub mod trust;
mod units;
mod visitor;

pub use advice::{Advice, PEAK_FIXED};
pub use document::without_secrets;
pub use keys::KeySource;
pub use levels::{FullEvery, KeepLevels, LevelBase};
pub use lifecycle::{BackupLifecycle, Percent, RetentionRules};
pub use main_section::{
    DatasetSelection, Hooks, Intermediate, Pace, RcloneSection, SnapshotSettings, SnapshotSource,
};
pub(crate) use main_section::{PARALLEL_DATASETS_MAX, parse_retry_for};
pub use paths::{Environment, default_config_file, default_lock_file, default_state_dir};
pub use problem::{ConfigError, Notice, Problem};
pub use remote::Remote;
pub use schedule::{BandwidthSchedule, Window};
pub use secret::{CommandLine, Passphrase, Secret, SecretError, SecretFile};
pub use send::{Compression, RawMode, SEALING_THREADS_MAX, SendSection};
pub use sequence::SequenceStep;
pub use stores::{
    B2Section, CredentialFiles, EncryptionSettings, PartSettings, PruneSection, S3Section,
};
pub use units::{Age, InvalidValue, Size, TimeLimit};

use document::Document;
use minisign::PublicKey;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trust::{Demand, FileError};

/// The largest configuration file. A larger file is the wrong file.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A checked configuration, with all defaults applied.
#[derive(Debug, Clone)]
pub struct Config {
    /// The path of the configuration file.
    pub file: PathBuf,
    /// The datasets to back up.
    pub datasets: DatasetSelection,
    /// The source of the snapshots, and their names.
    pub snapshots: SnapshotSettings,
    /// The passphrase, or recipients and signing key.
    pub keys: KeySource,
    /// Verifying keys for manifests, in addition to the keyring's.
    pub verify_keys: Vec<PublicKey>,
    /// The intermediate directory, if configured. A configuration has an intermediate directory, a
    /// remote, or both.
    pub intermediate: Option<Intermediate>,
    /// The remote, if configured.
    pub remote: Option<Remote>,
    /// Bytes of the stream in one chunk.
    pub split_size: Size,
    /// Limits of speed and time.
    pub pace: Pace,
    /// Settings for `rclone:` remotes only.
    pub rclone: RcloneSection,
    /// Programs to run around a backup.
    pub hooks: Hooks,
    /// The lockfile of `lock` and `unlock`.
    pub lock_file: PathBuf,
    /// The folder for journals and other state of this host.
    pub state_dir: PathBuf,
    /// The age in days of an unfinished upload's newest object from which the upload is abandoned.
    pub resume_days: u32,
    /// `[s3]`.
    pub s3: S3Section,
    /// `[b2]`.
    pub b2: B2Section,
    /// `[prune]`, if the file has it.
    pub prune: Option<PruneSection>,
    /// `[send]`.
    pub send: SendSection,
    /// `[backup-lifecycle]`.
    pub backup_lifecycle: BackupLifecycle,
    /// The steps of `perform`: `[backup-sequence]`, or the default steps.
    pub sequence: Vec<SequenceStep>,
    /// The retention rules of the intermediate directory.
    pub lifecycle_intermediate: RetentionRules,
    /// The retention rules of the remote.
    pub lifecycle_remote: RetentionRules,
    notices: Vec<Notice>,
    /// The keys in the file, with their sections and lines; all others have their defaults.
    given: BTreeMap<String, usize>,
}

impl Config {
    /// Reads a configuration file that belongs to root or the user, and checks it together with the
    /// files that it names. Blocks. A named file that does not exist is not an error here: a
    /// restore may not need it.
    ///
    /// # Errors
    /// [`ConfigError`] with all problems.
    pub fn load(file: &Path, env: &Environment) -> Result<Self, ConfigError> {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
        let read = trust::read_trusted(&file, Demand::Unchangeable, env.uid, CONFIG_BYTES_MAX);
        let (bytes, facts) = read.map_err(|error| {
            if error.is_not_found() {
                ConfigError::Missing { file: file.clone() }
            } else {
                ConfigError::File(error)
            }
        })?;
        let not_text = |_| invalid(&file, vec![Problem::new("is not UTF-8 text")]);
        let text = std::str::from_utf8(&bytes).map_err(not_text)?;
        let config = Self::parse(text, &file, env)?;
        if matches!(config.keys, KeySource::Passphrase(Passphrase::Inline(_))) {
            let distrusted = |flaw| {
                ConfigError::File(FileError::Distrusted {
                    path: file.clone(),
                    flaw,
                })
            };
            trust::judge_file(facts, Demand::Secret, env.uid).map_err(distrusted)?;
        }
        let problems = config.distrusted_places(env);
        if problems.is_empty() {
            Ok(config)
        } else {
            Err(invalid(&file, problems))
        }
    }

    /// Reads a configuration from text. `file` is the path from which defaults are derived and
    /// which errors name. Opens no files.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with all problems.
    pub fn parse(text: &str, file: &Path, env: &Environment) -> Result<Self, ConfigError> {
        let document = Document::parse(text).map_err(|problems| invalid(file, problems))?;
        let config = read::read_config(&document, file, env);
        let given = document.key_lines();
        let (problems, notices) = document.finish();
        if !problems.is_empty() {
            return Err(invalid(file, problems));
        }
        Ok(Self {
            notices,
            given,
            ..config
        })
    }

    /// Returns the defaults of all keys, before the file is read. The required keys are empty.
    fn unread(file: &Path, env: &Environment) -> Self {
        let state_dir = default_state_dir(file, env);
        Self {
            file: file.to_path_buf(),
            datasets: DatasetSelection::default(),
            snapshots: SnapshotSettings::default(),
            keys: KeySource::unread(),
            verify_keys: Vec::new(),
            intermediate: None,
            remote: None,
            split_size: Size(1 << 30),
            pace: Pace::default(),
            rclone: RcloneSection::default(),
            hooks: Hooks::default(),
            lock_file: default_lock_file(file, &state_dir),
            state_dir,
            resume_days: 14,
            s3: S3Section::default(),
            b2: B2Section::default(),
            prune: None,
            send: SendSection::default(),
            backup_lifecycle: BackupLifecycle::default(),
            sequence: Vec::new(),
            lifecycle_intermediate: RetentionRules::default(),
            lifecycle_remote: RetentionRules::default(),
            notices: Vec::new(),
            given: BTreeMap::new(),
        }
    }

    /// Returns facts that an administrator should know although they are not errors, above all
    /// every key that is set and has no effect yet.
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// Returns the line, from 1, of a key with its section (`main.remote`), if the file has the
    /// key.
    pub fn line_of(&self, key: &str) -> Option<usize> {
        self.given.get(key).copied()
    }

    /// Returns the number of parts of the longest chunk.
    pub fn parts_per_chunk(&self) -> u64 {
        stores::sealed_bytes_max(self.split_size).div_ceil(self.parts().part_size.bytes())
    }

    /// Returns how chunks are cut into parts for the configured remote.
    pub fn parts(&self) -> PartSettings {
        match self.remote {
            Some(Remote::S3 { .. }) => self.s3.parts,
            Some(Remote::B2 { .. }) => self.b2.parts,
            Some(Remote::File { .. } | Remote::Rclone { .. }) | None => PartSettings::default(),
        }
    }
}

fn invalid(file: &Path, problems: Vec<Problem>) -> ConfigError {
    ConfigError::Invalid {
        file: file.to_path_buf(),
        problems,
    }
}
