//! The file as TOML with the line of every key, and the problems and notices found in it:
//! [`Document`]. Keys are named with their section: `main.remote`.

use super::form::Form;
use super::problem::{Notice, Problem};
use super::secret::SECRET_KEY;
use super::syntax;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// A parsed file.
pub(super) struct Document<'i> {
    /// The sections.
    pub(super) root: DeTable<'i>,
    text: &'i str,
    problems: RefCell<Vec<Problem>>,
    notices: RefCell<Vec<Notice>>,
}

impl<'i> Document<'i> {
    /// Parses the text, or returns all problems with its form.
    pub(super) fn parse(text: &'i str) -> Result<Self, Vec<Problem>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            return Err(syntax::problems(text, &errors));
        }
        Ok(Self {
            root: root.into_inner(),
            text,
            problems: RefCell::default(),
            notices: RefCell::default(),
        })
    }

    /// Returns all problems, sorted by their lines, those without a line last, and the notices.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Notice>) {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        (problems, self.notices.into_inner())
    }

    /// Returns every key with its line.
    pub(super) fn key_lines(&self) -> BTreeMap<String, usize> {
        let mut lines = BTreeMap::new();
        for (section, value) in &self.root {
            for key in value
                .get_ref()
                .as_table()
                .into_iter()
                .flat_map(DeTable::keys)
            {
                let dotted = format!("{}.{}", section.get_ref(), key.get_ref());
                lines.insert(dotted, self.line(&key.span()));
            }
        }
        lines
    }

    /// Returns the line, from 1, where a span begins.
    fn line(&self, span: &Range<usize>) -> usize {
        syntax::line_of(self.text, span.start)
    }

    fn section(&self, name: &str) -> Option<&DeTable<'i>> {
        self.root.get(name)?.get_ref().as_table()
    }

    /// Whether the file has the section.
    pub(super) fn has_section(&self, name: &str) -> bool {
        self.section(name).is_some()
    }

    /// Returns the names of all keys of a section in the file, known or not.
    pub(super) fn key_names(&self, section: &str) -> impl Iterator<Item = &str> {
        let keys = self.section(section).into_iter().flat_map(DeTable::keys);
        keys.map(|name| name.get_ref().as_ref())
    }

    fn value(&self, key: &str) -> Option<&DeValue<'i>> {
        let (section, name) = key.split_once('.')?;
        Some(self.section(section)?.get(name)?.get_ref())
    }

    /// Whether the file has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// Whether the file has the key with the value `true`.
    pub(super) fn is_true(&self, key: &str) -> bool {
        self.value(key).and_then(DeValue::as_bool) == Some(true)
    }

    /// Reads a key. Records the problems of an invalid value, and returns `None` for it.
    pub(super) fn read<T: 'static>(&self, key: &str, form: &Form<T>) -> Option<T> {
        match form.read(self.value(key)?) {
            Ok(value) => Some(value),
            Err(problems) => {
                for problem in problems {
                    self.refuse(key, problem);
                }
                None
            }
        }
    }

    /// Records a problem of a key, of a section (`[main]`), or of a name outside all sections. The
    /// line of a missing key is that of its section.
    pub(super) fn refuse(&self, key: &str, problem: impl Into<Problem>) {
        let whole = self.root.get_key_value(key.trim_matches(['[', ']']));
        let found = whole.or_else(|| {
            let (section, name) = key.split_once('.')?;
            let entry = self.section(section)?.get_key_value(name);
            entry.or_else(|| self.root.get_key_value(section))
        });
        self.problems.borrow_mut().push(Problem {
            line: found.map(|(name, _)| self.line(&name.span())),
            key: Some(key.to_owned()),
            ..problem.into()
        });
    }

    /// Records that a key is missing.
    pub(super) fn missing(&self, key: &str, expected: &str, hint: &str) {
        let problem = Problem::new(format!("is missing; expected {expected}"));
        self.refuse(key, problem.hint(hint));
    }

    /// Whether a problem of this key was recorded, or of any key that begins so.
    pub(super) fn has_refused(&self, key: &str) -> bool {
        let problems = self.problems.borrow();
        let mut keys = problems.iter().filter_map(|problem| problem.key.as_deref());
        keys.any(|refused| refused.starts_with(key))
    }

    /// Records a notice about a key or section. The text is a whole sentence.
    pub(super) fn notice(&self, key: &str, text: impl Into<String>) {
        self.notices.borrow_mut().push(Notice {
            key: key.to_owned(),
            text: text.into(),
        });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_is_removed_from_a_printed_configuration() {
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
}
