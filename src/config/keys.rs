//! The keys of this host: a passphrase, or recipients with a signing key.

use super::secret::{CommandLine, Passphrase, Secret, SecretFile};
use super::section::Section;
use age::x25519::Recipient;
use minisign::PublicKey;

/// The source of this host's keys.
#[derive(Debug, Clone)]
pub enum KeySource {
    /// A passphrase. The keyring in the store, sealed with it, has the age identity and the signing
    /// key.
    Passphrase(Passphrase),
    /// Public halves only: this host seals and signs, and can open no backup.
    Recipients {
        /// The recipients that chunks are sealed to.
        recipients: Vec<Recipient>,
        /// The file of the minisign secret key.
        signing_key_file: SecretFile,
    },
}

const WAYS: [&str; 4] = [
    "encryption_passphrase",
    "encryption_passphrase_file",
    "encryption_passphrase_command",
    "encryption_recipients",
];

/// Reads the key source. All keys are read, including contradicting ones, so that all of them are
/// checked.
pub(super) fn read_key_source(main: &Section<'_>) -> Option<KeySource> {
    let inline = main.text("encryption_passphrase");
    if inline
        .as_deref()
        .is_some_and(|text| text.is_empty() || text.contains(['\n', '\r', '\0']))
    {
        main.refuse(
            "encryption_passphrase",
            "cannot be typed; expected one line of text, not empty",
            None,
        );
    }
    let file = main.parsed::<SecretFile>("encryption_passphrase_file");
    let command = read_command(main);
    let recipients = read_recipients(main);
    let signing_key_file = read_signing_key(main);
    check_one_way(main);
    if let Some(recipients) = recipients {
        return signing_key_file.map(|signing_key_file| KeySource::Recipients {
            recipients,
            signing_key_file,
        });
    }
    let passphrase = inline.map(|text| Passphrase::Inline(Secret::new(text)));
    let passphrase = passphrase
        .or(file.map(Passphrase::File))
        .or(command.map(Passphrase::Command));
    passphrase.map(KeySource::Passphrase)
}

fn check_one_way(main: &Section<'_>) {
    let given: Vec<&str> = WAYS.into_iter().filter(|key| main.has(key)).collect();
    match given.as_slice() {
        [] => main.missing(
            "encryption_passphrase_file",
            "a way to encrypt: encryption_passphrase (or _file, or _command), or encryption_recipients",
            Some("nothing is ever stored unencrypted".to_owned()),
        ),
        [_] => {}
        [first, others @ ..] => {
            for other in others {
                let message = format!("conflicts with main.{first}; expected only one of them");
                main.refuse(other, message, Some(two_ways_hint(other)));
            }
        }
    }
}

fn two_ways_hint(key: &str) -> String {
    if key == "encryption_recipients" {
        "keep the passphrase on hosts that restore, the recipients on hosts that only back up"
            .to_owned()
    } else {
        format!("remove `{key}` or the other one")
    }
}

/// Reads the command: a text, split as a shell would, or a list of words.
fn read_command(main: &Section<'_>) -> Option<CommandLine> {
    let key = "encryption_passphrase_command";
    let words = main.text_or_list(key)?;
    let command = match words.as_slice() {
        [line] => line.parse(),
        _ => CommandLine::from_words(words),
    };
    command
        .map_err(|invalid| {
            main.refuse(
                key,
                format!("is {:?}; expected {}", invalid.value, invalid.expected),
                None,
            )
        })
        .ok()
}

fn read_recipients(main: &Section<'_>) -> Option<Vec<Recipient>> {
    let key = "encryption_recipients";
    let items = main.text_or_list(key)?;
    if items.is_empty() {
        main.refuse(key, "is empty; expected at least one age recipient", None);
        return None;
    }
    if items
        .iter()
        .any(|item| item.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-"))
    {
        let hint = "the public half is the `# public key:` line of the identity file; keep the identity elsewhere";
        main.refuse(
            key,
            "has a secret identity; expected its public half, age1...",
            Some(hint.to_owned()),
        );
        return None;
    }
    main.parse_items(
        key,
        &items,
        "an age recipient, age1... of 62 characters",
        str::parse::<Recipient>,
    )
}

fn read_signing_key(main: &Section<'_>) -> Option<SecretFile> {
    let key = "signing_key_file";
    let file = main.parsed::<SecretFile>(key);
    match (main.has("encryption_recipients"), main.has(key)) {
        (true, false) => main.missing(
            key,
            "the file of a minisign secret key, because with encryption_recipients no keyring has one",
            Some("`minisign -G -W` makes a key pair without a password".to_owned()),
        ),
        (false, true) => main.refuse(
            key,
            "stands without encryption_recipients; with a passphrase the keyring has the signing key",
            Some(format!("remove `{key}`")),
        ),
        _ => {}
    }
    file
}

/// Reads the verifying keys for manifests, in addition to the keyring's.
pub(super) fn read_verify_keys(main: &Section<'_>) -> Vec<PublicKey> {
    let key = "verify_keys";
    if main.has("encryption_recipients") && !main.has(key) {
        main.missing(
            key,
            "the public half of the signing key, because without it nothing that is stored can be checked",
            Some("it is the last line of the .pub file that minisign wrote".to_owned()),
        );
    }
    let items = main.text_or_list(key).unwrap_or_default();
    let expected = "a minisign public key, 56 characters that begin with RW";
    main.parse_items(key, &items, expected, PublicKey::from_base64)
        .unwrap_or_default()
}
