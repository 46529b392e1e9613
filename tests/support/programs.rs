//! The locations of the programs that scripts/deps installs.

use std::env;
use std::path::PathBuf;

/// Finds a program that scripts/deps installs: the one that `variable` names, else that of the
/// cache, else that of `PATH`.
pub(crate) fn find_program(name: &str, variable: &str) -> PathBuf {
    if let Some(named) = env::var_os(variable) {
        return named.into();
    }
    let cache = env::var_os("ZFS_BACKUP_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| {
        Some(
            env::var_os("XDG_CACHE_HOME")
                .map(PathBuf::from)?
                .join("zfs-backup"),
        )
    });
    let cache =
        cache.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache/zfs-backup")));
    let cached = cache
        .into_iter()
        .map(|cache| cache.join("venv/bin").join(name));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|folder| folder.join(name));
    let found = cached.chain(on_path).find(|program| program.is_file());
    found.unwrap_or_else(|| {
        panic!("no `{name}`: run scripts/deps, or name the program in {variable}")
    })
}
