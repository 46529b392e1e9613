//! Default locations of files. Pure: user and environment are arguments.

use std::path::{Path, PathBuf};

/// The facts that this crate takes from the process: the user, and the environment variables that
/// name locations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// The effective user.
    pub uid: u32,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<PathBuf>,
    /// `CREDENTIALS_DIRECTORY`, which systemd sets for a service with credentials.
    pub credentials_directory: Option<PathBuf>,
}

impl Environment {
    /// Returns the environment of this process.
    pub fn current() -> Self {
        // The XDG Base Directory Specification requires relative paths to be ignored.
        let folder = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        Self {
            uid: rustix::process::geteuid().as_raw(),
            home: folder("HOME"),
            xdg_config_home: folder("XDG_CONFIG_HOME"),
            xdg_state_home: folder("XDG_STATE_HOME"),
            credentials_directory: folder("CREDENTIALS_DIRECTORY"),
        }
    }

    fn is_root(&self) -> bool {
        self.uid == 0
    }
}

const SYSTEM_CONFIG: &str = "/etc/zfs-backup/zfs-backup.toml";
const SYSTEM_STATE: &str = "/var/lib/zfs-backup";

/// Returns the configuration file that is read without `-c`: the system's for root, below the XDG
/// folder for other users.
pub fn default_config_file(env: &Environment) -> PathBuf {
    if env.is_root() {
        return PathBuf::from(SYSTEM_CONFIG);
    }
    home_folder(env, env.xdg_config_home.as_deref(), ".config").join("zfs-backup/zfs-backup.toml")
}

/// Returns the `state_dir` of a configuration that does not name one. A configuration at another
/// path than the default has its state next to it, as `NAME.state`, so that two configurations
/// never share a journal.
pub fn default_state_dir(config_file: &Path, env: &Environment) -> PathBuf {
    if config_file != default_config_file(env) {
        return config_file.with_extension("state");
    }
    if env.is_root() {
        return PathBuf::from(SYSTEM_STATE);
    }
    home_folder(env, env.xdg_state_home.as_deref(), ".local/state").join("zfs-backup")
}

/// Returns the `lock_file` of a configuration that does not name one.
pub fn default_lock_file(config_file: &Path, state_dir: &Path) -> PathBuf {
    let mut name = config_file
        .file_stem()
        .unwrap_or_else(|| "zfs-backup".as_ref())
        .to_owned();
    name.push(".lock");
    state_dir.join(name)
}

fn home_folder(env: &Environment, xdg: Option<&Path>, below_home: &str) -> PathBuf {
    let home = env.home.as_deref().unwrap_or(Path::new("/"));
    xdg.map_or_else(|| home.join(below_home), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(xdg: Option<&str>) -> Environment {
        Environment {
            uid: 1000,
            home: Some("/home/eva".into()),
            xdg_config_home: xdg.map(PathBuf::from),
            xdg_state_home: xdg.map(PathBuf::from),
            credentials_directory: None,
        }
    }

    #[test]
    fn root_and_users_have_their_own_places() {
        for (env, config, state) in [
            (
                Environment::default(),
                "/etc/zfs-backup/zfs-backup.toml",
                "/var/lib/zfs-backup",
            ),
            (
                user(None),
                "/home/eva/.config/zfs-backup/zfs-backup.toml",
                "/home/eva/.local/state/zfs-backup",
            ),
            (
                user(Some("/x")),
                "/x/zfs-backup/zfs-backup.toml",
                "/x/zfs-backup",
            ),
        ] {
            assert_eq!(default_config_file(&env), Path::new(config));
            assert_eq!(default_state_dir(Path::new(config), &env), Path::new(state));
        }
    }

    #[test]
    fn a_configuration_at_another_path_has_its_state_next_to_it() {
        let file = Path::new("/etc/zfs-backup/photos.toml");
        let state = default_state_dir(file, &Environment::default());
        assert_eq!(state, Path::new("/etc/zfs-backup/photos.state"));
        assert_eq!(
            default_lock_file(file, &state),
            Path::new("/etc/zfs-backup/photos.state/photos.lock")
        );
    }
}
