//! `key generate` and `key show`; the other commands on keys are in `rekey`.

use super::Failure;
use super::args::{Global, Key};
use super::follow::Purpose;
use super::output::Output;
use super::rekey;
use super::wire::{keys_for_writing, load_config, open_intermediate, open_remote_for, usage};
use crate::run::keys::{KeyCache, WriterKeys};
use serde_json::json;

pub(super) async fn key(global: &Global, command: &Key, output: &Output) -> Result<(), Failure> {
    if let Key::Export { output: file, source } = command {
        return rekey::export(global, file.as_deref(), source, output).await;
    }
    let (config, env) = load_config(global, output)?;
    let keys = match command {
        Key::Export { .. } => return Ok(()),
        Key::Show => KeyCache::new(&config.state_dir).load()?.ok_or_else(|| {
            usage("there is no keyring on this host yet", "run `zfs-backup key generate`, or make the first backup")
        })?,
        Key::Generate if matches!(config.keys, crate::config::KeySource::Recipients { .. }) => {
            return Err(usage(
                "recipients are configured, so no keyring is made",
                "make keys with age-keygen and minisign",
            ));
        }
        Key::Generate if global.dry_run => {
            output.line("would look for a keyring in the configured stores, and make one where there is none");
            return Ok(());
        }
        Key::Passphrase { new_passphrase_file } => {
            let change = rekey::Change::Passphrase(new_passphrase_file.as_deref());
            return rekey::change(global, &config, &env, &change, output).await;
        }
        Key::Rotate => return rekey::change(global, &config, &env, &rekey::Change::Keys, output).await,
        Key::Generate => {
            let mut keys = None;
            if config.remote.is_some() {
                let store = open_remote_for(&config, &env, Purpose::Write).await?;
                keys = Some(keys_for_writing(&config, &env, &*store).await?);
            }
            if config.intermediate.is_some() {
                let store = open_intermediate(&config, Purpose::Write).await?;
                keys = Some(keys_for_writing(&config, &env, &*store).await?);
            }
            keys.ok_or_else(|| usage("the configuration names no store", "set main.remote"))?
        }
    };
    print(&keys, output);
    Ok(())
}

pub(super) fn print(keys: &WriterKeys, output: &Output) {
    for recipient in &keys.recipients {
        output.line(format!("recipient      {recipient}"));
    }
    for key in &keys.trusted.0 {
        output.line(format!("verifying key  {key}"));
    }
    if let Some(keyring) = &keys.keyring {
        output.line(format!("keyring        @zfs-backup/keys/{}/", keyring.tag));
    }
    output.json(|| {
        json!({
            "recipients": keys.recipients.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "verifying_keys": keys.trusted.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "keyring": keys.keyring.as_ref().map(|keyring| keyring.tag.clone()),
        })
    });
}
