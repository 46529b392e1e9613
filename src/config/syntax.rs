//! The problems of a file that is not TOML.

use super::problem::Problem;
use super::secret::SECRET_KEY;

/// Returns the problems with the form of the text.
pub(super) fn problems(text: &str, errors: &[toml::de::Error]) -> Vec<Problem> {
    if looks_like_ini(text) {
        let problem = Problem::new("this looks like the INI form of older tools, not like TOML");
        return vec![problem.hint("run `zfs-backup config convert FILE`, which writes it as TOML")];
    }
    syntax_problems(text, errors)
}

/// Returns the line, from 1, of an offset.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
        + 1
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
    format!("text needs quotes: {key} = \"{shown}\"")
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
    use super::super::document::Document;
    use super::*;

    #[test]
    fn ini_is_distinguished_from_toml_with_a_typing_error() {
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
    fn every_line_with_a_typing_error_is_reported_once() {
        let text = "[main]\nzfs_fs = \"data\"\nsplit_size = 1G\nremote = \"file:/x\"\nstate_dir = /x # here\n";
        let problems = Document::parse(text).err().unwrap();
        let seen: Vec<_> = problems
            .iter()
            .map(|problem| (problem.line, problem.hint.as_deref()))
            .collect();
        assert_eq!(
            seen,
            [
                (Some(3), Some("text needs quotes: split_size = \"1G\"")),
                (Some(5), Some("text needs quotes: state_dir = \"/x\"")),
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
