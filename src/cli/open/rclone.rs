//! Opens a remote of rclone, with its configuration file, and with the spool for large objects.

use crate::cli::context::Setup;
use crate::cli::failure::Failure;
use crate::cli::open::pace::download_limiter;
use crate::config::Config;
use crate::store::{ObjectStore, Patience, RcloneSettings, RcloneStore, Spool};
use std::env;
use std::path::PathBuf;
use std::sync::Arc;

/// Opens the configured remote.
pub(crate) async fn open_configured(
    setup: &Setup,
    remote: &str,
    path: &str,
    opening: &Patience,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    let config = &setup.config;
    let rclone = &config.rclone;
    let ours = config.pace.bwlimit.as_ref().map(|limit| limit.for_rclone());
    let settings = RcloneSettings {
        conf: conf_of(config),
        bwlimit: rclone.bwlimit.clone().or(ours),
        limiter_down: download_limiter(config),
        args: rclone.args.clone(),
        part_bytes: config.parts().part_size.in_memory(),
        patience: Arc::clone(&setup.patience),
        ..settings(remote, path)
    };
    let store = connect(settings, opening).await?;
    let dir = rclone.spool_dir.as_ref().unwrap_or(&config.state_dir);
    Ok(Arc::new(Spool::new(Arc::new(store), dir.clone())))
}

/// Opens a remote that is named on the command line, for reading: all other settings come from the
/// environment.
pub(crate) async fn open_bare(
    remote: &str,
    path: &str,
    patience: &Arc<Patience>,
) -> Result<Arc<dyn ObjectStore>, Failure> {
    Ok(Arc::new(connect(settings(remote, path), patience).await?))
}

async fn connect(settings: RcloneSettings, opening: &Patience) -> Result<RcloneStore, Failure> {
    let connect = || RcloneStore::connect(settings.clone());
    Ok(opening.wait_out(connect).await?)
}

fn settings(remote: &str, path: &str) -> RcloneSettings {
    RcloneSettings {
        remote: remote.to_owned(),
        path: path.to_owned(),
        conf: default_conf(),
        ..Default::default()
    }
}

/// Returns the configuration file that names the remote.
pub(crate) fn conf_of(config: &Config) -> PathBuf {
    config.rclone.conf.clone().unwrap_or_else(default_conf)
}

/// Returns the file that rclone itself reads by default.
fn default_conf() -> PathBuf {
    let folder = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let home = || folder("HOME").map(|home| home.join(".config"));
    let below = || {
        folder("XDG_CONFIG_HOME")
            .or_else(home)
            .map(|folder| folder.join("rclone/rclone.conf"))
    };
    folder("RCLONE_CONFIG")
        .or_else(below)
        .unwrap_or_else(|| PathBuf::from("/dev/null"))
}
