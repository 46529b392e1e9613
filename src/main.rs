//! The `zfs-backup` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    zfs_backup::cli::run()
}
