//! `key generate` and `key show`; `rekey` has the other key commands.

pub(crate) mod rekey;

use crate::cli::args::Key;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::Access;
use crate::cli::open::keys::keys_for_writing_with;
use crate::cli::screen::output::{Output, Render};
use crate::run::keys::rotate::OldKeys;
use crate::run::keys::{KeyCache, NewerKeys, WriterKeys};
use crate::sign::{Trust, TrustedKeys};
use serde::Serialize;

pub(crate) async fn key(context: &Context, command: &Key) -> Result<(), Failure> {
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
            context.output.line("would look for a keyring in the configured stores, and make one where there is none");
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
    context.output.emit(&PublicKeys::new(&keys));
    Ok(())
}

/// The result of the commands that show or change keys.
#[derive(Serialize)]
pub(crate) struct PublicKeys {
    pub(crate) recipients: Vec<String>,
    pub(crate) verifying_keys: Vec<String>,
    pub(crate) retired_keys: Vec<String>,
    /// The folder of the keyring.
    pub(crate) keyring: Option<String>,
    #[serde(skip)]
    pub(crate) trusted: TrustedKeys,
}

impl PublicKeys {
    pub(crate) fn new(keys: &WriterKeys) -> Self {
        let mut verifying_keys = Vec::new();
        let mut retired_keys = Vec::new();
        for (key, trust) in keys.trusted.iter() {
            let list = match trust {
                Trust::Current | Trust::Kept | Trust::Unlimited => &mut verifying_keys,
                Trust::Retired => &mut retired_keys,
            };
            list.push(key.to_string());
        }
        Self {
            recipients: keys.recipients.iter().map(ToString::to_string).collect(),
            verifying_keys,
            retired_keys,
            keyring: keys.keyring.as_ref().map(|keyring| keyring.tag.clone()),
            trusted: keys.trusted.clone(),
        }
    }
}

impl Render for PublicKeys {
    fn render(&self, output: &Output) {
        for recipient in &self.recipients {
            output.line(format!("recipient      {recipient}"));
        }
        for (key, trust) in self.trusted.iter() {
            output.line(match trust {
                Trust::Current => format!("verifying key  {key}"),
                Trust::Kept => format!("older key      {key}, trusted as before"),
                Trust::Unlimited => {
                    format!("older key      {key}, trusted for everything: `zfs-backup key rotate` retires it")
                }
                Trust::Retired => format!("retired key    {key}"),
            });
        }
        if let Some(keyring) = &self.keyring {
            output.line(format!("keyring        @zfs-backup/keys/{keyring}/"));
        }
    }
}
