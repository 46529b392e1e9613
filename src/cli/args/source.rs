//! The options of every command that reads a store.

use clap::Args as ClapArgs;
use std::path::PathBuf;

/// The store to read from, and the keys. A host without a configuration can use both options.
#[derive(Debug, ClapArgs)]
pub(crate) struct Source {
    /// Read from this store instead of the configured remote: s3:bucket/prefix, b2:bucket/prefix or
    /// file:/dir. With it no configuration is read; credentials and endpoint come from the
    /// environment (AWS_..., B2_...)
    #[arg(long, value_name = "URL")]
    pub(crate) remote: Option<String>,
    /// The key file (an age identity file with the verifying key in a comment line), instead of the
    /// passphrase
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
}
