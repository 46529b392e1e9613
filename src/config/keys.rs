//! The keys of this host: a passphrase, or recipients with a signing key.

use super::document::Document;
use super::form::{self, Form, Kind, Place};
use super::problem::Problem;
use super::secret::{CommandLine, Passphrase, SECRET_KEY, Secret, SecretFile};
use super::trust::Demand;
use super::visitor::KeyVisitor;
use age::x25519::Recipient;
use minisign::PublicKey;
use std::path::PathBuf;
use toml::Value;
use toml::de::DeValue;

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
    "main.encryption_passphrase",
    "main.encryption_passphrase_file",
    "main.encryption_passphrase_command",
    RECIPIENTS,
];
const RECIPIENTS: &str = "main.encryption_recipients";

impl KeySource {
    /// Returns the source of a configuration that was not read yet: no recipient, so that nothing
    /// can be sealed.
    pub(super) fn unread() -> Self {
        Self::Recipients {
            recipients: Vec::new(),
            signing_key_file: SecretFile::Path(PathBuf::new()),
        }
    }

    /// Declares the keys. All of them are read, including contradicting ones, so that all of them
    /// are checked.
    pub(super) fn declare(&mut self, visitor: &mut impl KeyVisitor) {
        let mut inline = None;
        let mut file = None;
        let mut command = None;
        let mut recipients = None;
        let mut signing_key = None;
        match self.clone() {
            Self::Passphrase(Passphrase::Inline(secret)) => inline = Some(secret),
            Self::Passphrase(Passphrase::File(path)) => file = Some(path),
            Self::Passphrase(Passphrase::Command(line)) => command = Some(line),
            Self::Recipients {
                recipients: keys,
                signing_key_file,
            } if !keys.is_empty() => {
                recipients = Some(keys);
                signing_key = Some(signing_key_file);
            }
            Self::Recipients { .. } => {}
        }
        visitor.key(SECRET_KEY, &mut inline, passphrase());
        visitor.key("encryption_passphrase_file", &mut file, form::secret_file());
        let line = passphrase_command();
        visitor.key("encryption_passphrase_command", &mut command, line);
        visitor.key("encryption_recipients", &mut recipients, recipient_list());
        visitor.key("signing_key_file", &mut signing_key, form::secret_file());
        let passphrase = inline
            .map(Passphrase::Inline)
            .or(file.map(Passphrase::File))
            .or(command.map(Passphrase::Command));
        if let (Some(recipients), Some(signing_key_file)) = (recipients, signing_key) {
            *self = Self::Recipients {
                recipients,
                signing_key_file,
            };
        } else if let Some(passphrase) = passphrase {
            *self = Self::Passphrase(passphrase);
        }
    }
}

/// Declares the verifying keys for manifests, in addition to the keyring's.
pub(super) fn declare_verify_keys(keys: &mut Vec<PublicKey>, visitor: &mut impl KeyVisitor) {
    let expected = "a minisign public key, 56 characters that begin with RW";
    let form = form::text_or_list(expected, PublicKey::from_base64, PublicKey::to_base64);
    visitor.list("verify_keys", keys, form);
}

/// The passphrase itself. No message repeats the value.
fn passphrase() -> Form<Secret> {
    let read = |value: &DeValue<'_>| {
        let text = form::read_text(value)?;
        if text.is_empty() || text.contains(['\n', '\r', '\0']) {
            return form::refused("cannot be typed; expected one line of text, not empty");
        }
        Ok(Secret::new(text))
    };
    Form::new(Kind::Text, read, |secret| Value::from(secret.to_string()))
}

/// A command: a text, split as a shell would, or a list of words.
fn passphrase_command() -> Form<CommandLine> {
    let read = |value: &DeValue<'_>| {
        let words = form::read_text_or_list(value)?;
        Ok(match words.as_slice() {
            [line] => line.parse(),
            _ => CommandLine::from_words(words),
        }?)
    };
    let form = Form::new(Kind::Text, read, |command| Value::from(command.to_string()));
    // A program without a path is searched for in the user's own PATH.
    form.naming(|command: &CommandLine| {
        let program = PathBuf::from(command.program());
        program
            .is_absolute()
            .then_some(Place::File(program, Demand::Unchangeable))
    })
}

fn recipient_list() -> Form<Vec<Recipient>> {
    let read = |value: &DeValue<'_>| {
        let items = form::read_text_or_list(value)?;
        if items.is_empty() {
            return form::refused("is empty; expected at least one age recipient");
        }
        let is_secret = |item: &String| item.to_ascii_uppercase().starts_with("AGE-SECRET-KEY-");
        if items.iter().any(is_secret) {
            let hint = "the public half is the `# public key:` line of the identity file; keep the identity elsewhere";
            let problem = "has a secret identity; expected its public half, age1...";
            return Err(vec![Problem::new(problem).hint(hint)]);
        }
        let expected = "an age recipient, age1... of 62 characters";
        form::parse_items(value, &items, expected, str::parse::<Recipient>)
    };
    Form::new(Kind::TextOrList, read, |recipients| {
        form::show_items(recipients, Recipient::to_string)
    })
}

/// Checks that the keys are complete and do not contradict each other.
pub(super) fn check_keys(file: &Document<'_>) {
    match (file.has(RECIPIENTS), file.has("main.signing_key_file")) {
        (true, false) => file.missing(
            "main.signing_key_file",
            "the file of a minisign secret key, because with encryption_recipients no keyring has one",
            "`minisign -G -W` makes a key pair without a password",
        ),
        (false, true) => {
            let problem = "needs encryption_recipients; with a passphrase the keyring has the signing key";
            let problem = Problem::new(problem).hint("remove `signing_key_file`");
            file.refuse("main.signing_key_file", problem);
        }
        _ => {}
    }
    check_one_way(file);
    if file.has(RECIPIENTS) && !file.has("main.verify_keys") {
        file.missing(
            "main.verify_keys",
            "the public half of the signing key, because without it nothing that is stored can be checked",
            "it is the last line of the .pub file that minisign wrote",
        );
    }
}

fn check_one_way(file: &Document<'_>) {
    let mut given = WAYS.into_iter().filter(|key| file.has(key));
    let Some(first) = given.next() else {
        return file.missing(
            "main.encryption_passphrase_file",
            "a way to encrypt: encryption_passphrase (or _file, or _command), or encryption_recipients",
            "nothing is ever stored unencrypted",
        );
    };
    for other in given {
        let hint = if other == RECIPIENTS {
            "keep the passphrase on hosts that restore, the recipients on hosts that only back up"
                .to_owned()
        } else {
            format!(
                "remove `{}` or the other one",
                other.trim_start_matches("main.")
            )
        };
        let message = format!("conflicts with {first}; expected only one of them");
        file.refuse(other, Problem::new(message).hint(hint));
    }
}
