//! The `zfs-backup` program.

fn main() {}
