//! `key export`, `key passphrase`, `key rotate`: the commands that need the secret keys.

use crate::cli::args::Source;
use crate::cli::commands::key::PublicKeys;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::access::Access;
use crate::cli::open::kept_config;
use crate::cli::open::keys::configured_passphrase;
use crate::cli::open::reading::{key_file, open_for_reading, open_named};
use crate::cli::screen::output::Output;
use crate::config::{Environment, KeySource, SecretFile};
use crate::keyring::WORK_FACTOR;
use crate::run::RunError;
use crate::run::keys::KeyCache;
use crate::run::keys::rotate::{CollectedDataset, OldKeys, Rekey, Rekeyed};
use crate::sign::{Trust, TrustedKeys};
use crate::store::StoreRead;
use age::secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use std::fs::OpenOptions;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The minimum length of a passphrase. A shorter one can be brute-forced offline by anyone who
/// copies the keyring from the bucket.
const PASSPHRASE_CHARS_MIN: usize = 16;

const PAPER_HEAD: &str = "\
# SECRET. Anyone who has this page can read every backup and sign new ones; no
# passphrase protects it. Keep it on paper, where no network is.
# As a file it works with `zfs-backup restore --remote URL --identity FILE`
# and, for the chunks alone, with `age -d -i FILE`.
";

/// `key export`: prints the keys on a terminal or writes a new file, never into a pipe or a log by
/// accident.
pub(crate) async fn export(
    context: &Context,
    file: Option<&Path>,
    source: &Source,
) -> Result<(), Failure> {
    let output = &context.output;
    if file.is_none() && (context.global.json || !std::io::stdout().is_terminal()) {
        return Err(usage(
            "the keys are secret and are printed on a terminal only",
            "name a file with --output FILE: it is made with mode 0600",
        ));
    }
    let side = open_for_reading(context, source, false).await?;
    let keys = key_file(&side, source).await?;
    let text = keys.to_text().map_err(|source| RunError::Keyring {
        store: side.store.url().to_owned(),
        source,
    })?;
    let paper = Zeroizing::new(format!(
        "{PAPER_HEAD}# store: {}\n{}",
        side.store.url(),
        *text
    ));
    match file {
        None => output.raw(paper.as_bytes()),
        Some(file) => write_secret(file, paper.as_bytes())?,
    }
    if keys.signing.is_none() {
        output.note("there is no signing key in it: it restores and signs nothing");
    }
    Ok(())
}

/// Writes a new file that only its owner can read.
fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    let failed = |operation| {
        move |source| RunError::File {
            operation,
            path: path.display().to_string(),
            source,
        }
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("create"))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed("write"))
}

/// The change that `change` makes.
pub(crate) enum Change<'a> {
    /// A new passphrase, from the file or typed.
    Passphrase(Option<&'a Path>),
    /// New keys; with the stores that are listed in addition to the configured ones.
    Keys(OldKeys, &'a [String]),
}

/// Carries out `key passphrase` and `key rotate`.
pub(crate) async fn change(context: &Context, change: &Change<'_>) -> Result<(), Failure> {
    let output = &context.output;
    let setup = context.setup()?;
    let config = &setup.config;
    if matches!(config.keys, KeySource::Recipients { .. }) {
        return Err(usage(
            "recipients are configured, so there is no keyring to change",
            "make new keys with age-keygen and minisign, and name them in the configuration. Signatures of the old key \
             are valid as long as `verify_keys` or a key file names it: remove it there after a leak; an old backup \
             then restores with `--identity FILE`, a key file that has the old `# verifying key:` line, and `--backup ID`",
        ));
    }
    let stores = setup.open_all(Access::to_write(context)).await?;
    let mut also_listed: Vec<Arc<dyn StoreRead>> = Vec::new();
    if let Change::Keys(_, urls) = change {
        for url in *urls {
            also_listed
                .push(open_named("--also-list", url, context.patience_with_named_store()).await?);
        }
    }
    let cache = KeyCache::new(&config.state_dir);
    let rekey = Rekey {
        stores: &stores,
        also_listed: &also_listed,
        cache: &cache,
        work_factor: WORK_FACTOR,
    };
    let names: Vec<&str> = stores.iter().map(|store| store.url()).collect();
    if context.global.dry_run {
        let what = match change {
            Change::Passphrase(_) => "would seal another copy of the keyring and keep the old one",
            Change::Keys(..) => "would make new keys, store their keyring and keep the old one",
        };
        output.line(format!("{what} in {}", names.join(" and ")));
        if let Change::Keys(OldKeys::Retire, _) = change {
            let collected = rekey.preview(&configured_passphrase(setup)?).await?;
            report_collected(&collected, "would be trusted", output);
            output.json(&ChangedKeys {
                keys: None,
                believed: collected,
            });
        }
        return Ok(());
    }
    let old = configured_passphrase(setup)?;
    let done = match change {
        Change::Passphrase(file) => {
            rekey
                .change_passphrase(&old, &new_passphrase(*file, &setup.env, output)?)
                .await?
        }
        Change::Keys(old_keys, _) => rekey.rotate(&old, *old_keys).await?,
    };
    if let Change::Keys(..) = change {
        for store in &stores {
            kept_config::keep(config, &**store, &done.keys).await;
        }
    }
    report(done, change, output);
    Ok(())
}

/// The document of `key passphrase` and `key rotate`.
#[derive(Serialize)]
pub(crate) struct ChangedKeys {
    /// The new keys, unless they are only planned.
    #[serde(flatten)]
    pub(crate) keys: Option<PublicKeys>,
    pub(crate) believed: Vec<CollectedDataset>,
}

fn report(done: Rekeyed, change: &Change<'_>, output: &Output) {
    let keys = output.printed(PublicKeys::new(&done.keys));
    for (store, key) in &done.places {
        output.line(format!("put as         {key}\n            in {store}"));
    }
    report_collected(&done.collected, "trusted", output);
    output.json(&ChangedKeys {
        keys: Some(keys),
        believed: done.collected,
    });
    if done.resumed {
        output.note("an earlier run, or another host, had begun this: its keys are used");
    }
    match change {
        Change::Passphrase(_) => {
            output.always("put the new passphrase into the configuration, and on paper");
            output.always("the old passphrase still opens every copy of the keyring made before: in the store,");
            output.always(
                "beside backups, and in any copy of the bucket. If it leaked, run `key rotate` too",
            );
        }
        Change::Keys(..) => report_rotation(&done.keys.trusted, output),
    }
}

/// Prints the effect of a rotation and its limits.
fn report_rotation(trusted: &TrustedKeys, output: &Output) {
    let has = |trust| trusted.with(trust).next().is_some();
    if has(Trust::Retired) {
        output.always("retired keys stay valid for the backups and prune records that verified at the rotation, and");
        output.always("for nothing that they sign later. A backup that an attacker with a leaked key planted before");
        output.always("the rotation is among them: find it with `zfs-backup show --include-remote`, then `forget` it");
    }
    if has(Trust::Kept) {
        output.always("older keys are trusted as before (--keep-trust). After a leak run `key rotate` without it");
    }
    if has(Trust::Unlimited) {
        output.always("an older key is trusted for everything, because an early version rotated it: run `key rotate`");
    }
    output.always("older backups stay sealed to the old identity: anyone with it and a copy of the bucket can read");
    output.always("them. When new fulls are stored, delete the old ones: prune-remote, prune-intermediate, or forget");
    output.always("the next backup of each dataset is a full of a new chain; an unfinished upload starts over");
    output.always("old keyrings stay: with their passphrase they open the older backups");
    output.always("run `key rotate` on the other hosts of this store, which then take these keys over; until then");
    output.always("they refuse to back up");
    output.always("print a new paper copy: `zfs-backup key export`");
}

fn report_collected(collected: &[CollectedDataset], trusted: &str, output: &Output) {
    for found in collected {
        let newest = found
            .newest
            .map(|newest| format!(", the newest of {newest}"))
            .unwrap_or_default();
        output.line(format!(
            "{trusted:<14} {}: {} backups{newest}",
            found.dataset, found.backups
        ));
        output.line(format!("            in {}", found.store));
        if found.unfinished > 0 {
            output.line(format!(
                "abandoned      {}: unfinished uploads: {}",
                found.dataset, found.unfinished
            ));
        }
        for key in &found.untrusted {
            output.line(format!("not {trusted:<10} {key}: it does not verify"));
        }
    }
}

fn new_passphrase(
    file: Option<&Path>,
    env: &Environment,
    output: &Output,
) -> Result<SecretString, Failure> {
    let secret = match file {
        Some(path) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
            SecretString::from(SecretFile::Path(path).read_line(env)?.expose().to_owned())
        }
        None => typed_twice()?,
    };
    if secret.expose_secret().chars().count() < PASSPHRASE_CHARS_MIN {
        output.always(&format!(
            "the new passphrase is shorter than {PASSPHRASE_CHARS_MIN} characters: it can be found by trying"
        ));
    }
    Ok(secret)
}

fn typed_twice() -> Result<SecretString, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(usage(
            "there is no terminal to ask for the new passphrase",
            "name a file with --new-passphrase-file",
        ));
    }
    let first = ask_passphrase("new passphrase: ")?;
    let second = ask_passphrase("once more: ")?;
    match *first == *second && !first.is_empty() {
        true => Ok(SecretString::from(first.as_str().to_owned())),
        false => Err(usage(
            "the two are not the same, or empty",
            "run it again: nothing was changed",
        )),
    }
}

fn ask_passphrase(prompt: &str) -> Result<Zeroizing<String>, RunError> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::Interrupted => RunError::Interrupted,
            _ => RunError::File {
                operation: "read the passphrase from",
                path: "the terminal".into(),
                source,
            },
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::KeyFile;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_paper_copy_is_a_key_file() {
        let keys = KeyFile::generate().unwrap();
        let text = format!("{PAPER_HEAD}# store: s3:b/p\n{}", *keys.to_text().unwrap());
        let read = KeyFile::parse(&text).unwrap();
        assert_eq!(*read.to_text().unwrap(), *keys.to_text().unwrap());
        assert!(PAPER_HEAD.lines().all(|line| line.len() <= 80));
    }

    #[test]
    fn secret_file_is_created_once_with_mode_0600() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("paper");
        write_secret(&file, b"x").unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_secret(&file, b"y").is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }
}
