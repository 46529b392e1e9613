//! The configuration: a TOML file that is read and checked as a whole. Every error names its key
//! and line.
//!
//! [`Config::load`] opens the file (only if nobody else can change it), [`Config::parse`] is the
//! pure part. Both return a [`Config`] with all defaults applied, or a [`ConfigError`] with all
//! problems. [`Config::notices`] names the keys that have no effect.
//!
//! `schema` lists all keys once. Nothing here opens a store or calls ZFS: `run` and `cli` do.

mod advice;
pub mod convert;
mod document;
mod keys;
mod lifecycle;
mod main_section;
mod paths;
mod problem;
mod read;
mod remote;
mod schedule;
mod schema;
mod secret;
mod section;
mod send;
mod sequence;
mod show;
mod stores;
pub mod trust;
mod units;

pub use advice::{Advice, PEAK_FIXED};
pub use document::without_secrets;
pub use keys::KeySource;
pub use lifecycle::{BackupLifecycle, Percent, RetentionRules};
pub use main_section::{
    DatasetSelection, Hooks, Intermediate, Pace, RcloneSettings, SnapshotSettings, SnapshotSource,
};
pub use paths::{Environment, default_config_file, default_lock_file, default_state_dir};
pub use problem::{ConfigError, Notice, Problem};
pub use remote::Remote;
pub use schedule::{BandwidthSchedule, Window};
pub use secret::{CommandLine, Passphrase, Secret, SecretError, SecretFile};
pub use send::{Compression, RawMode, SEALING_THREADS_MAX, SendSection};
pub use sequence::SequenceStep;
pub use stores::{B2Section, CredentialFiles, PartSettings, PruneSection, S3Section};
pub use units::{Age, InvalidValue, Size, TimeLimit};

use document::Document;
use minisign::PublicKey;
use section::Findings;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trust::{Demand, FileError, FolderRule};

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
    pub rclone: RcloneSettings,
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

/// The key of the intermediate directory, as problems name it.
const INTERMEDIATE_BASEDIR: &str = "main.intermediate_basedir";

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
        let (bytes, facts) = read.map_err(|error| match error.is_not_found() {
            true => ConfigError::Missing { file: file.clone() },
            false => ConfigError::File(error),
        })?;
        let not_text = |_| invalid(&file, vec![whole_file_problem("is not UTF-8 text")]);
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
        let findings = Findings::default();
        let config = read::read_config(&document, &findings, file, env);
        let found = findings.finish();
        if !found.problems.is_empty() {
            return Err(invalid(file, found.problems));
        }
        let mut config = config.expect("whatever cannot be read has noted a problem");
        config.notices = found.notices;
        config.given = found.given;
        if config.sequence.is_empty() {
            config.sequence = sequence::default_steps(&config);
        }
        Ok(config)
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

    /// Returns the named files that do not exist, for `config check`. Credentials of systemd are
    /// not checked.
    pub fn missing_files(&self, env: &Environment) -> Vec<Notice> {
        let missing = |(key, path, demand): (&str, PathBuf, Demand)| {
            trust::open_trusted(&path, demand, env.uid)
                .err()
                .filter(FileError::is_not_found)?;
            Some(Notice {
                key: key.to_owned(),
                text: format!("{key} names {}, which does not exist", path.display()),
            })
        };
        self.named_files(env)
            .into_iter()
            .filter_map(missing)
            .collect()
    }

    /// Returns the files and folders that users other than root and the running user could change.
    fn distrusted_places(&self, env: &Environment) -> Vec<Problem> {
        let problem = |key: &str, what: String, judged: Result<(), FileError>| {
            let error = judged.err()?;
            let FileError::Distrusted { .. } = &error else {
                return None;
            };
            let message = format!("names {what} that cannot be trusted: {error}");
            let hint = match key == INTERMEDIATE_BASEDIR {
                true => error.hint_for_backups(),
                false => error.hint(),
            };
            Some(Problem {
                line: self.given.get(key).copied(),
                key: Some(key.to_owned()),
                message,
                hint,
            })
        };
        let file = |(key, path, demand): (&str, PathBuf, Demand)| {
            problem(
                key,
                "a file".to_owned(),
                trust::open_trusted(&path, demand, env.uid).map(drop),
            )
        };
        let folder = |(key, path, rule): (&str, &Path, FolderRule)| {
            problem(
                key,
                format!("the folder {}", path.display()),
                trust::judge_place(path, rule, env.uid),
            )
        };
        let files = self.named_files(env).into_iter().filter_map(file);
        let mut problems: Vec<Problem> = files
            .chain(self.named_folders().into_iter().filter_map(folder))
            .collect();
        problems.sort_by_key(|problem| problem.line);
        problems
    }

    /// Returns the folders that the program writes in and whose contents it trusts, each with its
    /// rule for other writers.
    fn named_folders(&self) -> Vec<(&'static str, &Path, FolderRule)> {
        // state_dir holds the signing key and the recipient of all backups, and the content of the
        // intermediate directory decides which backups are kept.
        let mut folders = vec![("main.state_dir", &*self.state_dir, FolderRule::Closed)];
        let intermediate = self
            .intermediate
            .as_ref()
            .map(|intermediate| &*intermediate.basedir);
        folders
            .extend(intermediate.map(|folder| (INTERMEDIATE_BASEDIR, folder, FolderRule::Closed)));
        let lock = self
            .lock_file
            .parent()
            .filter(|folder| *folder != self.state_dir);
        let shared = [
            ("main.lock_file", lock),
            ("main.rclone_spool_dir", self.rclone.spool_dir.as_deref()),
            ("b2.spool_dir", self.b2.spool_dir.as_deref()),
        ];
        folders.extend(
            shared
                .into_iter()
                .filter_map(|(key, folder)| Some((key, folder?, FolderRule::MayBeSticky))),
        );
        folders
    }

    /// Returns the programs and key files, each with its demand.
    fn named_files(&self, env: &Environment) -> Vec<(&'static str, PathBuf, Demand)> {
        let hooks = self.hooks.iter();
        let programs =
            hooks.map(|(key, hook)| (key, PathBuf::from(hook.program()), Demand::Unchangeable));
        let secrets = self.secret_files();
        let located = secrets
            .into_iter()
            .filter_map(|(key, file)| Some((key, file.locate(env).ok()?, file.demand())));
        let command = match &self.keys {
            KeySource::Passphrase(Passphrase::Command(command)) => {
                Some(PathBuf::from(command.program()))
            }
            _ => None,
        };
        // A program without a path is searched for in the user's own PATH.
        let command = command.filter(|program| program.is_absolute());
        let command = command.map(|program| {
            (
                "main.encryption_passphrase_command",
                program,
                Demand::Unchangeable,
            )
        });
        // The rclone.conf contains the secrets of the remote, and may name programs that rclone
        // runs.
        let conf = self
            .rclone
            .conf
            .clone()
            .map(|conf| ("main.rclone_conf", conf, Demand::Secret));
        programs.chain(command).chain(conf).chain(located).collect()
    }

    fn secret_files(&self) -> Vec<(&'static str, &SecretFile)> {
        let mut files = Vec::new();
        match &self.keys {
            KeySource::Passphrase(Passphrase::File(file)) => {
                files.push(("main.encryption_passphrase_file", file))
            }
            KeySource::Recipients {
                signing_key_file, ..
            } => files.push(("main.signing_key_file", signing_key_file)),
            KeySource::Passphrase(_) => {}
        }
        let prune = self.prune.as_ref();
        let pairs = [
            (
                "s3.access_key_id_file",
                "s3.secret_access_key_file",
                self.s3.credential_files.as_ref(),
            ),
            (
                "b2.application_key_id_file",
                "b2.application_key_file",
                self.b2.credential_files.as_ref(),
            ),
            (
                "prune.access_key_id_file",
                "prune.secret_access_key_file",
                prune.and_then(|prune| prune.s3_credential_files.as_ref()),
            ),
            (
                "prune.application_key_id_file",
                "prune.application_key_file",
                prune.and_then(|prune| prune.b2_credential_files.as_ref()),
            ),
        ];
        for (id_key, secret_key, pair) in pairs {
            files.extend(
                pair.into_iter()
                    .flat_map(|p| [(id_key, &p.id_file), (secret_key, &p.secret_file)]),
            );
        }
        files
    }
}

fn invalid(file: &Path, problems: Vec<Problem>) -> ConfigError {
    ConfigError::Invalid {
        file: file.to_path_buf(),
        problems,
    }
}

fn whole_file_problem(message: &str) -> Problem {
    Problem {
        line: None,
        key: None,
        message: message.to_owned(),
        hint: None,
    }
}
