//! The adapters that a command works with, opened as the configuration names them: stores, keys,
//! ZFS, and the datasets that a command is about.

pub(crate) mod access;
pub(crate) mod b2;
pub(crate) mod datasets;
pub(crate) mod history;
pub(crate) mod identity;
pub(crate) mod kept_config;
pub(crate) mod keys;
pub(crate) mod pace;
pub(crate) mod rclone;
pub(crate) mod reading;
pub(crate) mod remote;
pub(crate) mod s3;
pub(crate) mod settings;
