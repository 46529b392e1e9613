//! Credentials of a remote in separate files.

use crate::config::document::Document;
use crate::config::form;
use crate::config::paths::Environment;
use crate::config::secret::{Secret, SecretError, SecretFile};
use crate::config::visitor::KeyVisitor;

pub(super) const S3_KEYS: [&str; 2] = ["access_key_id_file", "secret_access_key_file"];
pub(super) const B2_KEYS: [&str; 2] = ["application_key_id_file", "application_key_file"];

/// The two files of a pair of credentials: the id and the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The file with the key's id.
    pub id_file: SecretFile,
    /// The file with the key itself.
    pub secret_file: SecretFile,
}

impl CredentialFiles {
    /// Reads the id and the secret. Blocks.
    ///
    /// # Errors
    /// [`SecretError`], which names the file.
    pub fn read(&self, env: &Environment) -> Result<(Secret, Secret), SecretError> {
        Ok((
            self.id_file.read_line(env)?,
            self.secret_file.read_line(env)?,
        ))
    }
}

pub(super) fn declare_credential_files(
    [id_key, secret_key]: [&'static str; 2],
    files: &mut Option<CredentialFiles>,
    visitor: &mut impl KeyVisitor,
) {
    let mut id_file = files.as_ref().map(|files| files.id_file.clone());
    let mut secret_file = files.as_ref().map(|files| files.secret_file.clone());
    visitor.key(id_key, &mut id_file, form::secret_file());
    visitor.key(secret_key, &mut secret_file, form::secret_file());
    *files = id_file
        .zip(secret_file)
        .map(|(id_file, secret_file)| CredentialFiles {
            id_file,
            secret_file,
        });
}

/// Checks that `[s3]`, `[b2]` and `[prune]` name either a profile or complete pairs of files: half
/// a pair would silently be completed with the other half of another pair.
pub(in crate::config) fn check_credentials(file: &Document<'_>) {
    for (section, [id, secret]) in [
        ("s3", S3_KEYS),
        ("b2", B2_KEYS),
        ("prune", S3_KEYS),
        ("prune", B2_KEYS),
    ] {
        for (given, other) in [(id, secret), (secret, id)] {
            let missing = format!("{section}.{other}");
            if file.has(&format!("{section}.{given}")) && !file.has(&missing) {
                let problem = format!("is missing; expected the other half of {given}");
                file.refuse(&missing, problem);
            }
        }
    }
    for section in ["s3", "prune"] {
        let profile = format!("{section}.profile");
        let has = |key: &&str| file.has(&format!("{section}.{key}"));
        if file.has(&profile) && S3_KEYS.iter().any(has) {
            let files = S3_KEYS.join(" and ");
            let message = format!("conflicts with {files}; expected only one of them");
            file.refuse(&profile, message);
        }
    }
}
