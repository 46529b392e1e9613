//! The folders that a configuration names: who else may write in them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;
use zfs_backup::config::{Config, Environment};

/// Loads a configuration with these lines, in a folder of its own.
fn load(folder: &Path, lines: &str) -> Result<Config, String> {
    let file = folder.join("zb.toml");
    let state = folder.join("state").display().to_string();
    let text = format!(
        "[main]\nzfs_fs = \"t/a\"\nremote = \"b2:bucket\"\nencryption_passphrase = \"x\"\nstate_dir = \"{state}\"\n{lines}\n"
    );
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    Config::load(&file, &Environment::current()).map_err(|error| error.to_string())
}

fn folder_of_mode(folder: &Path, name: &str, mode: u32) -> String {
    let path = folder.join(name);
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path.canonicalize().unwrap().display().to_string()
}

#[test]
fn folder_writable_by_others_is_named_with_its_key_and_chmod_command() {
    for (key, name, line, mode, refused) in [
        ("state_dir", "state", "", 0o700, false),
        ("state_dir", "state", "", 0o755, false),
        ("state_dir", "state", "", 0o775, true),
        ("state_dir", "state", "", 0o1777, true),
        (
            "intermediate_basedir",
            "base",
            "intermediate_basedir = \"PATH\"",
            0o750,
            false,
        ),
        (
            "intermediate_basedir",
            "base",
            "intermediate_basedir = \"PATH\"",
            0o770,
            true,
        ),
        (
            "lock_file",
            "lock",
            "lock_file = \"PATH/zb.lock\"",
            0o1777,
            false,
        ),
        (
            "lock_file",
            "lock",
            "lock_file = \"PATH/zb.lock\"",
            0o777,
            true,
        ),
        (
            "spool_dir",
            "spool",
            "[b2]\nspool_dir = \"PATH\"",
            0o1777,
            false,
        ),
        (
            "spool_dir",
            "spool",
            "[b2]\nspool_dir = \"PATH\"",
            0o777,
            true,
        ),
    ] {
        let folder = TempDir::new().unwrap();
        let path = folder_of_mode(folder.path(), name, mode);
        match load(folder.path(), &line.replace("PATH", &path)) {
            Ok(_) => assert!(!refused, "{key} {mode:o}"),
            Err(text) => {
                assert!(refused, "{key} {mode:o}: {text}");
                assert!(
                    text.contains(key) && text.contains(&format!("chmod go-w {path}")),
                    "{text}"
                );
            }
        }
    }
}

#[test]
fn missing_folders_are_no_error_where_only_the_user_can_create_them() {
    let folder = TempDir::new().unwrap();
    let absent = folder.path().join("above/base");
    let line = format!("intermediate_basedir = \"{}\"", absent.display());
    load(folder.path(), &line).unwrap();
    let above = folder_of_mode(folder.path(), "above", 0o777);
    let text = load(folder.path(), &line).unwrap_err();
    assert!(
        text.contains("intermediate_basedir") && text.contains(&format!("chmod go-w {above}")),
        "{text}"
    );
}
