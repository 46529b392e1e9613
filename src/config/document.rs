//! The file as TOML with the position of every value: [`Document`]. This file does not know the
//! meaning of keys.
//!
//! Values are read one by one and not with serde's derive, which stops at the first error: a user
//! who converts a configuration wants to see all errors at once.

use super::problem::Problem;
use super::schema::SECRET_KEY;
use std::ops::Range;
use toml::de::DeTable;

/// A parsed file.
pub(super) struct Document<'i> {
    /// The sections.
    pub(super) root: DeTable<'i>,
    text: &'i str,
}

impl<'i> Document<'i> {
    /// Parses the text, or returns all problems with its form.
    pub(super) fn parse(text: &'i str) -> Result<Self, Vec<Problem>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            return Ok(Self {
                root: root.into_inner(),
                text,
            });
        }
        if looks_like_ini(text) {
            return Err(vec![ini_problem()]);
        }
        Err(syntax_problems(text, &errors))
    }

    /// Returns the line, from 1, where a span begins.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        line_of(self.text, span.start)
    }
}

/// Returns the text of a configuration, including comments, with its only secret replaced by an
/// empty string; `None` if the text is not TOML.
pub fn without_secrets(text: &str) -> Option<String> {
    let root = DeTable::parse(text).ok()?;
    let main = root
        .get_ref()
        .iter()
        .find(|(name, _)| name.get_ref().as_ref() == "main");
    let secret = main.and_then(|(_, main)| main.get_ref().as_table()?.get(SECRET_KEY));
    let mut kept = text.to_owned();
    if let Some(secret) = secret {
        kept.replace_range(secret.span(), "\"\"");
    }
    Some(kept)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
}

fn ini_problem() -> Problem {
    Problem {
        line: None,
        key: None,
        message: "this looks like the INI form of older tools, not like TOML".to_owned(),
        hint: Some("run `zfs-backup config convert FILE`, which writes it as TOML".to_owned()),
    }
}

/// Returns one problem per line, because the parser's later errors about a line follow from the
/// first.
fn syntax_problems(text: &str, errors: &[toml::de::Error]) -> Vec<Problem> {
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|error| {
            let line = error.span().map(|span| line_of(text, span.start));
            let source = line
                .and_then(|line| text.lines().nth(line - 1))
                .unwrap_or_default();
            Problem {
                line,
                key: None,
                message: format!("this is not TOML: {}", error.message()),
                hint: syntax_hint(error.message(), source),
            }
        })
        .collect();
    problems.sort_by_key(|problem| problem.line);
    problems.dedup_by_key(|problem| problem.line);
    problems
}

fn syntax_hint(message: &str, source: &str) -> Option<String> {
    if message.starts_with("duplicate key") {
        let name = source.split('=').next().unwrap_or_default().trim();
        return Some(format!("`{name}` is set twice: keep one of them"));
    }
    unquoted(source).map(|key| quote_hint(key, source))
}

fn quote_hint(key: &str, source: &str) -> String {
    let value = source
        .split_once('=')
        .map(|(_, value)| value.trim())
        .unwrap_or_default();
    let value = value.split(" #").next().unwrap_or_default().trim_end();
    let secret = key == SECRET_KEY || key.contains("pass") || key.contains("secret");
    let shown = if secret || value.contains(['"', '\\']) {
        "..."
    } else {
        value
    };
    format!("text stands in quotes: {key} = \"{shown}\"")
}

/// Returns the key of a line `key = value` whose value is neither quoted nor any other TOML value.
fn unquoted(line: &str) -> Option<&str> {
    let (key, value) = line.trim().split_once('=')?;
    let value = value.trim();
    let bare = value.split([' ', '#']).next().unwrap_or_default();
    let toml_start = value.starts_with(['"', '\'', '[', '{']);
    let number =
        bare.parse::<f64>().is_ok() || matches!(bare, "true" | "false") || bare.starts_with("0x");
    (!key.trim_start().starts_with(['#', ';']) && !toml_start && !number).then_some(key.trim())
}

/// Whether the text is INI: a comment begins with `;`, or more values are unquoted than quoted.
fn looks_like_ini(text: &str) -> bool {
    let lines = || text.lines().map(str::trim);
    let quoted = |line: &&str| {
        line.split_once('=')
            .is_some_and(|(_, value)| value.trim().starts_with(['"', '\'']))
    };
    let bare_count = lines().filter(|line| unquoted(line).is_some()).count();
    lines().any(|line| line.starts_with(';')) || bare_count > lines().filter(quoted).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ini_is_told_from_toml_with_a_slip() {
        for (text, ini) in [
            ("[main]\nzfs_fs = data/photos\n", true),
            ("; old\n[main]\nzfs_fs = \"data\"\n", true),
            ("[main]\nzfs_fs=data\nsplit_size=1G\nremote=\"x\"\n", true),
            ("[main]\nzfs_fs = \"data\"\nsplit_size = 1G\n", false),
            ("[main]\nzfs_fs = \"data\nsplit_size = \"1G\"\n", false),
            ("[main\nzfs_fs = \"data\"\n", false),
        ] {
            assert_eq!(looks_like_ini(text), ini, "{text:?}");
            assert!(Document::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_secret_is_left_out_and_nothing_else() {
        for (text, kept) in [
            (
                "# hi\n[main]\nencryption_passphrase = \"hunter2\" # x\na = 1\n",
                "# hi\n[main]\nencryption_passphrase = \"\" # x\na = 1\n",
            ),
            (
                "main.encryption_passphrase = '''hunter2'''\n",
                "main.encryption_passphrase = \"\"\n",
            ),
            ("[main]\na = \"x\"\n", "[main]\na = \"x\"\n"),
        ] {
            assert_eq!(without_secrets(text).as_deref(), Some(kept));
        }
        assert_eq!(without_secrets("encryption_passphrase = hunter2"), None);
    }

    #[test]
    fn every_line_with_a_slip_is_named_once() {
        let text = "[main]\nzfs_fs = \"data\"\nsplit_size = 1G\nremote = \"file:/x\"\nstate_dir = /x # here\n";
        let problems = Document::parse(text).err().unwrap();
        let seen: Vec<_> = problems
            .iter()
            .map(|problem| (problem.line, problem.hint.as_deref()))
            .collect();
        assert_eq!(
            seen,
            [
                (Some(3), Some("text stands in quotes: split_size = \"1G\"")),
                (Some(5), Some("text stands in quotes: state_dir = \"/x\"")),
            ]
        );
    }

    #[test]
    fn a_passphrase_without_quotes_is_not_repeated() {
        let text = "[main]\nzfs_fs = \"data\"\nencryption_passphrase = hunter2\n";
        let problems = Document::parse(text).err().unwrap();
        assert!(!format!("{problems:?}").contains("hunter2"), "{problems:?}");
    }
}
