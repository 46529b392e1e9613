//! `config recover`, and the copy of the configuration that writing commands keep next to the
//! keyring.

use crate::cli::args::{Recover, Source};
use crate::cli::commands::config::init::write_new;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, usage};
use crate::cli::open::reading::{key_file, open_for_reading};
use crate::cli::screen::table::age;
use crate::run::keys::kept_config::{KeptConfig, KeptConfigs, kept_configs};
use jiff::Timestamp;
use serde::Serialize;

/// The document of `config recover`.
#[derive(Serialize)]
pub(crate) struct RecoveredConfig<'a> {
    pub(crate) host: &'a str,
    pub(crate) file: &'a str,
    pub(crate) written_at: Timestamp,
    pub(crate) toml: &'a str,
}

pub(crate) async fn recover(context: &Context, recover: &Recover) -> Result<(), Failure> {
    let output = &context.output;
    let source = Source {
        remote: Some(recover.remote.clone()),
        identity: recover.identity.clone(),
    };
    let side = open_for_reading(context, &source, false).await?;
    let keys = key_file(&side, &source).await?;
    let KeptConfigs {
        trusted: mut kept,
        untrusted,
    } = kept_configs(&*side.store, &keys).await?;
    if let Some(host) = &recover.host {
        kept.retain(|kept| kept.host == *host);
    }
    let Some(newest) = kept.first() else {
        let hint =
            "hosts store it with every backup since version 0.1; `config init` makes a new one";
        let (what, hint) = match untrusted {
            0 => (String::new(), hint.to_owned()),
            _ => (
                format!(" that these keys trust (not trusted: {untrusted})"),
                hint_for_untrusted(recover),
            ),
        };
        return Err(usage(
            &format!("no configuration is kept in {}{what}", side.store.url()),
            &hint,
        ));
    };
    if untrusted > 0 {
        output.always(&format!(
            "configurations that these keys do not trust: {untrusted}. They may be newer: {}",
            hint_for_untrusted(recover)
        ));
    }
    let others = kept
        .iter()
        .filter(|other| other.host != newest.host || other.file != newest.file);
    for other in others {
        output.always(&format!("there is also {}", words_of(other)));
    }
    output.always(&format!("this is {}", words_of(newest)));
    output.always("it contains no secrets: add the passphrase and the credentials again");
    match &recover.output {
        Some(file) => {
            write_new(file, newest.text.as_bytes())?;
            output.line(format!("wrote {}, mode 0600", file.display()));
        }
        None if !output.is_json() => output.raw(newest.text.as_bytes()),
        None => {}
    }
    output.json(&RecoveredConfig {
        host: &newest.host,
        file: &newest.file,
        written_at: newest.written_at,
        toml: &newest.text,
    });
    Ok(())
}

/// Returns advice about configurations that the given keys do not trust. A configuration is valid
/// only by the newest keys, and an older paper copy does not have them.
fn hint_for_untrusted(recover: &Recover) -> String {
    let newer = match &recover.identity {
        Some(file) => format!(
            "{} may be from before a `key rotate`. Use the paper copy that was printed after it, or leave --identity out \
             and give the passphrase",
            file.display()
        ),
        None => "use the newest passphrase, or --identity with the paper copy of the newest keys"
            .to_owned(),
    };
    format!("{newer}; if that changes nothing, somebody else made them")
}

fn words_of(kept: &KeptConfig) -> String {
    format!(
        "{} of host {}, stored {} ago",
        kept.file,
        kept.host,
        age(Timestamp::now(), kept.written_at)
    )
}
