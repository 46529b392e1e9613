//! The copy of the configuration that writing commands keep next to the keyring.

use crate::config::{Config, without_secrets};
use crate::run::error_chain;
use crate::run::keys::WriterKeys;
use crate::run::keys::kept_config::{KeptConfig, keep_config};
use crate::state::process::host_name;
use crate::store::StoreWrite;
use jiff::Timestamp;

/// Keeps the configuration in the store, if it changed. A failure is logged and does not fail the
/// command.
pub(crate) async fn keep(config: &Config, store: &dyn StoreWrite, keys: &WriterKeys) {
    let text = std::fs::read_to_string(&config.file)
        .ok()
        .as_deref()
        .and_then(without_secrets);
    let Some(text) = text else {
        tracing::warn!(file = %config.file.display(), "cannot be read again, so no copy of it was stored");
        return;
    };
    let kept = KeptConfig::new(
        &host_name(),
        &config.file.display().to_string(),
        &text,
        Timestamp::now(),
    );
    match keep_config(store, keys, &config.state_dir, &kept).await {
        Ok(true) => {
            tracing::info!("the configuration was stored beside the keyring, without its secrets")
        }
        Ok(false) => {}
        Err(error) => tracing::warn!(
            error = error_chain(&error),
            "no copy of the configuration was stored"
        ),
    }
}
