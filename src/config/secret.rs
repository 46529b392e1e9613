//! Secrets and their sources: [`Secret`], [`SecretFile`], [`Passphrase`].

use super::paths::Environment;
use super::trust::{self, Demand, FileError};
use super::units::{InvalidValue, TimeLimit};
use std::fmt;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

/// The only key whose value is a secret: the value is never printed, neither in an error nor by
/// `config show`.
pub(super) const SECRET_KEY: &str = "encryption_passphrase";
const HIDDEN: &str = "(hidden)";
/// The largest secret file. Passphrases, keys and tokens are far smaller; a larger file is the
/// wrong file.
const SECRET_BYTES_MAX: u64 = 64 << 10;
/// The time limit of `encryption_passphrase_command`: a hardware token may wait for a touch, but a
/// timer must not hang.
const COMMAND_TIME_MAX: TimeLimit = TimeLimit::seconds(60);
/// systemd's own name for the folder of a service's credentials.
const CREDENTIAL_PREFIX: &str = "${CREDENTIALS_DIRECTORY}/";

/// A text that is erased from memory when dropped and never reaches a log: only [`Secret::expose`]
/// shows it.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of a text.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Returns the text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

/// A secret that could not be obtained. The text names the source, never the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// systemd passes no credentials to this process.
    #[error("read the systemd credential {name}: CREDENTIALS_DIRECTORY is not set")]
    NoCredentials {
        /// The name of the credential.
        name: String,
    },
    /// The file cannot be read or cannot be trusted.
    #[error(transparent)]
    File(#[from] FileError),
    /// The source has content that cannot be a secret.
    #[error("read a secret from {origin}: {reason}")]
    Content {
        /// The file or command.
        origin: String,
        /// The fault in the content.
        reason: &'static str,
    },
    /// The command could not be run.
    #[error("run {program}")]
    Run {
        /// The program.
        program: String,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The command failed or took too long.
    #[error("run {program}: {reason}")]
    Command {
        /// The program.
        program: String,
        /// The command's exit status, or the time limit that it exceeded.
        reason: String,
    },
}

impl SecretError {
    /// Returns the remedy.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoCredentials { name } => Some(format!(
                "systemd sets it for a service with LoadCredential={name}:PATH; to run by hand, name the file itself"
            )),
            Self::File(error) => error.hint(),
            Self::Content { .. } | Self::Run { .. } | Self::Command { .. } => None,
        }
    }
}

/// A file with a secret: a path, or a systemd credential, which is located only when it is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFile {
    /// An absolute path.
    Path(PathBuf),
    /// `${CREDENTIALS_DIRECTORY}/NAME`.
    Credential(String),
}

impl SecretFile {
    /// Returns the path in this environment.
    ///
    /// # Errors
    /// [`SecretError::NoCredentials`] for a credential outside a systemd service.
    pub fn locate(&self, env: &Environment) -> Result<PathBuf, SecretError> {
        match (self, &env.credentials_directory) {
            (Self::Path(path), _) => Ok(path.clone()),
            (Self::Credential(name), Some(folder)) => Ok(folder.join(name)),
            (Self::Credential(name), None) => {
                Err(SecretError::NoCredentials { name: name.clone() })
            }
        }
    }

    /// Returns the demand that the file must meet.
    pub fn demand(&self) -> Demand {
        match self {
            Self::Path(_) => Demand::Secret,
            Self::Credential(_) => Demand::Credential,
        }
    }

    /// Reads the whole text, without a newline at its end. Blocks.
    ///
    /// # Errors
    /// [`SecretError`] when the file cannot be read, is readable by others, is empty or is not
    /// text.
    pub fn read_text(&self, env: &Environment) -> Result<Secret, SecretError> {
        let path = self.locate(env)?;
        let (bytes, _) = trust::read_trusted(&path, self.demand(), env.uid, SECRET_BYTES_MAX)?;
        to_secret(&bytes).map_err(|reason| SecretError::Content {
            origin: path.display().to_string(),
            reason,
        })
    }

    /// Reads a secret of one line, without its newline. Blocks.
    ///
    /// # Errors
    /// As for [`SecretFile::read_text`], and when there is more than one line.
    pub fn read_line(&self, env: &Environment) -> Result<Secret, SecretError> {
        let secret = self.read_text(env)?;
        one_line(secret).map_err(|reason| SecretError::Content {
            origin: self.to_string(),
            reason,
        })
    }
}

impl FromStr for SecretFile {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let expected =
            "an absolute path, or ${CREDENTIALS_DIRECTORY}/NAME for a systemd credential";
        let invalid = || InvalidValue::new(text, expected);
        if let Some(name) = text.strip_prefix(CREDENTIAL_PREFIX) {
            let mut parts = Path::new(name).components();
            let single =
                matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
            return single
                .then(|| Self::Credential(name.to_owned()))
                .ok_or_else(invalid);
        }
        if text.starts_with('/') {
            Ok(Self::Path(PathBuf::from(text)))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for SecretFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Credential(name) => write!(f, "{CREDENTIAL_PREFIX}{name}"),
        }
    }
}

/// A program and its arguments, which are run without a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    argv: Vec<String>,
}

impl CommandLine {
    /// Takes separate words, of which the first is the program.
    pub(super) fn from_words(argv: Vec<String>) -> Result<Self, InvalidValue> {
        match argv.first() {
            Some(program)
                if !program.is_empty() && !argv.iter().any(|word| word.contains('\0')) =>
            {
                Ok(Self { argv })
            }
            _ => Err(InvalidValue::new(
                &argv.join(" "),
                "a program and its arguments",
            )),
        }
    }

    /// Returns the program.
    pub fn program(&self) -> &str {
        &self.argv[0]
    }

    /// Returns the program and its arguments.
    pub fn argv(&self) -> &[String] {
        &self.argv
    }
}

impl FromStr for CommandLine {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let words = shell_words::split(text).map_err(|_| {
            InvalidValue::new(
                text,
                "a command line whose quotes are closed, split as a shell would",
            )
        })?;
        Self::from_words(words)
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shell_words::join(&self.argv))
    }
}

/// The source of the keyring's passphrase.
#[derive(Debug, Clone)]
pub enum Passphrase {
    /// The configuration itself.
    Inline(Secret),
    /// The first and only line of a file.
    File(SecretFile),
    /// The output of a command.
    Command(CommandLine),
}

impl Passphrase {
    /// Reads the passphrase from its source. Blocks: a command may take one minute.
    ///
    /// # Errors
    /// [`SecretError`], which names the source.
    pub fn resolve(&self, env: &Environment) -> Result<Secret, SecretError> {
        match self {
            Self::Inline(secret) => Ok(secret.clone()),
            Self::File(file) => file.read_line(env),
            Self::Command(command) => run_for_secret(command, COMMAND_TIME_MAX),
        }
    }
}

fn to_secret(bytes: &[u8]) -> Result<Secret, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8 text")?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        Err("it is empty")
    } else {
        Ok(Secret::new(text.to_owned()))
    }
}

/// Checks that a passphrase has one line, so that it can be typed at the prompt of `age`.
fn one_line(secret: Secret) -> Result<Secret, &'static str> {
    if secret.expose().contains(['\n', '\r', '\0']) {
        Err("it has more than one line")
    } else {
        Ok(secret)
    }
}

fn run_for_secret(command: &CommandLine, time_max: TimeLimit) -> Result<Secret, SecretError> {
    let program = command.program().to_owned();
    let failed = |reason: String| SecretError::Command {
        program: program.clone(),
        reason,
    };
    let mut child = Command::new(command.program())
        .args(&command.argv()[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|source| SecretError::Run {
            program: program.clone(),
            source,
        })?;
    let deadline = Instant::now() + time_max.duration();
    let ended = read_output(&mut child, deadline)
        .and_then(|bytes| Ok((bytes, wait_until(&mut child, deadline)?)));
    if ended.is_err() {
        // If `kill` fails, the child has already ended; `wait` collects it in either case.
        let _ = child.kill();
        let _ = child.wait();
    }
    let (bytes, status) = ended.map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => {
            failed(format!("it took longer than {time_max} and was stopped"))
        }
        _ => SecretError::Run {
            program: program.clone(),
            source: error,
        },
    })?;
    if !status.success() {
        return Err(failed(format!("it ended with {status}")));
    }
    to_secret(&bytes)
        .and_then(one_line)
        .map_err(|reason| SecretError::Content {
            origin: format!("the output of {program}"),
            reason,
        })
}

/// Reads standard output up to its end on a thread of its own, because a pipe cannot be read with a
/// time limit otherwise. After a time-out the thread remains until the pipe closes; it holds only
/// its buffer.
fn read_output(child: &mut Child, deadline: Instant) -> io::Result<Zeroizing<Vec<u8>>> {
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut bytes = Zeroizing::new(Vec::new());
        let outcome = stdout
            .take(SECRET_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map(|_| bytes);
        // After a time-out there is no receiver, and sending fails.
        let _ = sender.send(outcome);
    });
    let left = deadline.saturating_duration_since(Instant::now());
    receiver
        .recv_timeout(left)
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Waits for the program to end. A program that has closed its output may still run, so it is
/// polled every few milliseconds until the deadline.
fn wait_until(child: &mut Child, deadline: Instant) -> io::Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    fn here() -> Environment {
        Environment {
            uid: rustix::process::geteuid().as_raw(),
            ..Environment::default()
        }
    }

    fn command(script: &str) -> CommandLine {
        CommandLine::from_words(vec!["sh".into(), "-c".into(), script.into()]).unwrap()
    }

    #[test]
    fn a_secret_is_shown_only_on_request() {
        let secret = Secret::new("hunter2".into());
        assert_eq!(
            format!(
                "{secret} {secret:?} {:?}",
                Passphrase::Inline(secret.clone())
            ),
            "(hidden) (hidden) Inline((hidden))"
        );
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"(hidden)\"");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn one_newline_at_the_end_is_removed() {
        for (bytes, expected) in [
            ("abc", Ok("abc")),
            ("abc\n", Ok("abc")),
            ("abc\r\n", Ok("abc")),
            (" a b ", Ok(" a b ")),
            ("a\nb\n", Err("it has more than one line")),
            ("a\n\n", Err("it has more than one line")),
            ("\n", Err("it is empty")),
            ("", Err("it is empty")),
        ] {
            let line = to_secret(bytes.as_bytes()).and_then(one_line);
            assert_eq!(
                line.as_ref().map(Secret::expose).map_err(|reason| *reason),
                expected,
                "{bytes:?}"
            );
        }
        assert_eq!(to_secret(b"\xff").map(|_| ()), Err("it is not UTF-8 text"));
    }

    #[test]
    fn secret_files_are_absolute_or_credentials() {
        for (text, good) in [
            ("/etc/key", true),
            ("${CREDENTIALS_DIRECTORY}/key", true),
            ("${CREDENTIALS_DIRECTORY}/", false),
            ("${CREDENTIALS_DIRECTORY}/../key", false),
            ("${CREDENTIALS_DIRECTORY}/a/b", false),
            ("~/key", false),
            ("key", false),
            ("", false),
        ] {
            let parsed = text.parse::<SecretFile>();
            assert_eq!(parsed.is_ok(), good, "{text:?}");
            assert!(parsed.is_err() || parsed.map(|file| file.to_string()).as_deref() == Ok(text));
        }
    }

    #[test]
    fn a_credential_is_read_from_the_folder_of_the_service() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("key"), "abc\n").unwrap();
        fs::set_permissions(folder.path().join("key"), Permissions::from_mode(0o440)).unwrap();
        let file = SecretFile::Credential("key".into());
        let env = Environment {
            credentials_directory: Some(folder.path().into()),
            ..here()
        };
        assert_eq!(file.read_line(&env).unwrap().expose(), "abc");
        assert!(matches!(
            file.read_line(&here()),
            Err(SecretError::NoCredentials { .. })
        ));
        let plain = SecretFile::Path(folder.path().join("key"));
        assert!(matches!(
            plain.read_line(&here()),
            Err(SecretError::File(FileError::Distrusted { .. }))
        ));
    }

    #[test]
    fn the_output_of_a_command_is_the_secret() {
        let secret = Passphrase::Command(command("echo 'a b'")).resolve(&here());
        assert_eq!(secret.unwrap().expose(), "a b");
    }

    #[test]
    fn a_command_that_fails_prints_nothing_or_hangs_is_an_error() {
        let limit = TimeLimit::seconds(60);
        for (script, limit, expected) in [
            (
                "echo abc; exit 3",
                limit,
                "run sh: it ended with exit status: 3",
            ),
            (
                "true",
                limit,
                "read a secret from the output of sh: it is empty",
            ),
            (
                "exec sleep 50",
                TimeLimit::seconds(0),
                "run sh: it took longer than 0s and was stopped",
            ),
            (
                "exec >&-; exec sleep 50",
                TimeLimit::seconds(1),
                "run sh: it took longer than 1s and was stopped",
            ),
        ] {
            assert_eq!(
                run_for_secret(&command(script), limit)
                    .unwrap_err()
                    .to_string(),
                expected
            );
        }
        let missing = CommandLine::from_words(vec!["/no/such/program".into()]).unwrap();
        assert_eq!(
            run_for_secret(&missing, limit).unwrap_err().to_string(),
            "run /no/such/program"
        );
    }
}
