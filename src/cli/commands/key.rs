//! `key generate` and `key show`; `rekey` has the other key commands.

pub(crate) mod rekey;

use crate::cli::args::Key;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::Access;
use crate::cli::open::keys::keys_for_writing_with;
use crate::cli::screen::output::Output;
use crate::run::keys::rotate::OldKeys;
use crate::run::keys::{KeyCache, NewerKeys, WriterKeys};
use crate::sign::Trust;
use serde_json::json;

pub(crate) async fn key(context: &Context, command: &Key) -> Result<(), Failure> {
    let output = &context.output;
    if let Key::Export {
        output: file,
        source,
    } = command
    {
        return rekey::export(context, file.as_deref(), source).await;
    }
    let setup = context.setup()?;
    let config = &setup.config;
    let keys = match command {
        Key::Export { .. } => return Ok(()),
        Key::Show => KeyCache::new(&config.state_dir).load()?.ok_or_else(|| {
            usage(
                "there is no keyring on this host yet",
                "run `zfs-backup key generate`, or make the first backup",
            )
        })?,
        Key::Generate { .. }
            if matches!(config.keys, crate::config::KeySource::Recipients { .. }) =>
        {
            return Err(usage(
                "recipients are configured, so no keyring is made",
                "make keys with age-keygen and minisign",
            ));
        }
        Key::Generate { .. } if context.global.dry_run => {
            output.line("would look for a keyring in the configured stores, and make one where there is none");
            return Ok(());
        }
        Key::Passphrase {
            new_passphrase_file,
        } => {
            let change = rekey::Change::Passphrase(new_passphrase_file.as_deref());
            return rekey::change(context, &change).await;
        }
        Key::Rotate {
            keep_trust,
            also_list,
        } => {
            let old_keys = if *keep_trust {
                OldKeys::KeepTrust
            } else {
                OldKeys::Retire
            };
            let change = rekey::Change::Keys(old_keys, also_list);
            return rekey::change(context, &change).await;
        }
        Key::Generate { trust_found_keys } => {
            let newer = if *trust_found_keys {
                NewerKeys::Ignore
            } else {
                NewerKeys::Refuse
            };
            let mut keys = None;
            for role in setup.roles() {
                let store = setup.open(role, Access::Write).await?;
                keys = Some(keys_for_writing_with(setup, &*store, newer).await?);
            }
            keys.ok_or_else(|| usage("the configuration names no store", "set main.remote"))?
        }
    };
    print(&keys, output);
    Ok(())
}

pub(crate) fn print(keys: &WriterKeys, output: &Output) {
    print_lines(keys, output);
    output.json(|| keys_json(keys));
}

pub(crate) fn print_lines(keys: &WriterKeys, output: &Output) {
    for recipient in &keys.recipients {
        output.line(format!("recipient      {recipient}"));
    }
    for (key, trust) in keys.trusted.iter() {
        output.line(match trust {
            Trust::Current => format!("verifying key  {key}"),
            Trust::Kept => format!("older key      {key}, trusted as before"),
            Trust::Unlimited => {
                format!("older key      {key}, trusted for everything: `zfs-backup key rotate` retires it")
            }
            Trust::Retired => format!("retired key    {key}"),
        });
    }
    if let Some(keyring) = &keys.keyring {
        output.line(format!("keyring        @zfs-backup/keys/{}/", keyring.tag));
    }
}

pub(crate) fn keys_json(keys: &WriterKeys) -> serde_json::Value {
    let with = |wanted: &[Trust]| {
        let chosen = keys
            .trusted
            .iter()
            .filter(|(_, trust)| wanted.contains(trust));
        chosen.map(|(key, _)| key.to_string()).collect::<Vec<_>>()
    };
    json!({
        "recipients": keys.recipients.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "verifying_keys": with(&[Trust::Current, Trust::Kept, Trust::Unlimited]),
        "retired_keys": with(&[Trust::Retired]),
        "keyring": keys.keyring.as_ref().map(|keyring| keyring.tag.clone()),
    })
}
