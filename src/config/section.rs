//! Typed reading of one section: every getter returns the value, or records the problem and returns
//! nothing.

use super::document::Document;
use super::problem::{Notice, Problem};
use super::schema::{self, SECRET_KEY, SectionSpec};
use super::units::{InvalidValue, Size};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::str::FromStr;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The problems and notices found so far. All sections share them, so that everything is reported
/// together.
#[derive(Default)]
pub(super) struct Findings {
    problems: RefCell<Vec<Problem>>,
    notices: RefCell<Vec<Notice>>,
    /// The keys in the file, with their lines.
    given: RefCell<BTreeMap<String, usize>>,
    /// The keys that were read: a test compares them with the schema.
    asked: RefCell<BTreeSet<String>>,
}

/// The final content of [`Findings`].
pub(super) struct Found {
    pub(super) problems: Vec<Problem>,
    pub(super) notices: Vec<Notice>,
    pub(super) given: BTreeMap<String, usize>,
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "only the test that no key is forgotten reads it")
    )]
    pub(super) asked: BTreeSet<String>,
}

impl Findings {
    pub(super) fn problem(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Ends reading. Problems are sorted by their lines, those without a line last.
    pub(super) fn finish(self) -> Found {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        Found {
            problems,
            notices: self.notices.into_inner(),
            given: self.given.into_inner(),
            asked: self.asked.into_inner(),
        }
    }
}

/// A section, present in the file or not.
pub(super) struct Section<'d> {
    spec: &'static SectionSpec,
    table: Option<&'d DeTable<'d>>,
    line: Option<usize>,
    document: &'d Document<'d>,
    findings: &'d Findings,
}

type Value<'d> = Spanned<DeValue<'d>>;

impl<'d> Section<'d> {
    /// Opens the section with this name.
    pub(super) fn open(
        document: &'d Document<'d>,
        name: &'static str,
        findings: &'d Findings,
    ) -> Self {
        let entry = document.root.get(name);
        let table = entry.and_then(|value| value.get_ref().as_table());
        let line = entry.map(|value| document.line(&value.span()));
        Self {
            spec: schema::section_spec(name),
            table,
            line,
            document,
            findings,
        }
    }

    /// Whether the section is in the file.
    pub(super) fn is_present(&self) -> bool {
        self.table.is_some()
    }

    /// Whether the key is in the file.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Returns the names of all keys in the file, known or not.
    pub(super) fn key_names(&self) -> Vec<String> {
        let names = self.table.into_iter().flat_map(|table| table.keys());
        names.map(|name| name.get_ref().to_string()).collect()
    }

    /// Returns the key with its section.
    pub(super) fn dotted(&self, key: &str) -> String {
        format!("{}.{key}", self.spec.name)
    }

    fn value(&self, key: &str) -> Option<&'d Value<'d>> {
        self.findings.asked.borrow_mut().insert(self.dotted(key));
        let value = self.table?.get(key)?;
        self.findings
            .given
            .borrow_mut()
            .insert(self.dotted(key), self.document.line(&value.span()));
        Some(value)
    }

    fn key_line(&self, key: &str) -> Option<usize> {
        let (name, _) = self.table?.get_key_value(key)?;
        Some(self.document.line(&name.span()))
    }

    /// Records a problem of a key.
    pub(super) fn refuse(&self, key: &str, message: impl Into<String>, hint: Option<String>) {
        let line = self.key_line(key).or(self.line);
        self.findings.problem(Problem {
            line,
            key: Some(self.dotted(key)),
            message: message.into(),
            hint,
        });
    }

    /// Records that a key is missing.
    pub(super) fn missing(&self, key: &str, expected: &str, hint: Option<String>) {
        self.refuse(key, format!("is missing; expected {expected}"), hint);
    }

    /// Records a problem of the section as a whole.
    pub(super) fn refuse_section(&self, message: impl Into<String>, hint: Option<String>) {
        let key = Some(format!("[{}]", self.spec.name));
        self.findings.problem(Problem {
            line: self.line,
            key,
            message: message.into(),
            hint,
        });
    }

    /// Whether a problem of a key of this section was recorded.
    pub(super) fn has_problems(&self) -> bool {
        let prefix = self.dotted("");
        self.findings.problems.borrow().iter().any(|problem| {
            problem
                .key
                .as_deref()
                .is_some_and(|key| key.starts_with(&prefix))
        })
    }

    /// Records a notice about a key. The text is a whole sentence.
    pub(super) fn notice(&self, key: &str, text: impl Into<String>) {
        self.findings.notices.borrow_mut().push(Notice {
            key: self.dotted(key),
            text: text.into(),
        });
    }

    /// Records a notice about the section.
    pub(super) fn notice_section(&self, text: impl Into<String>) {
        self.findings.notices.borrow_mut().push(Notice {
            key: self.spec.name.to_owned(),
            text: text.into(),
        });
    }

    /// Reports unknown keys.
    pub(super) fn check_names(&self) {
        // The reader of a section without a list of keys checks their form itself.
        for name in self
            .key_names()
            .into_iter()
            .filter(|_| !self.spec.keys.is_empty())
        {
            if !self.spec.keys.contains(&name.as_str()) {
                self.unknown_key(&name);
            }
        }
    }

    fn unknown_key(&self, name: &str) {
        let own = schema::nearest(name, self.spec.keys.iter().copied());
        let elsewhere = schema::sections_with(name);
        let hint = match (elsewhere.is_empty(), own) {
            (false, _) => Some(format!("it belongs in [{}]", elsewhere.join("] or ["))),
            (true, Some(own)) => Some(format!("did you mean `{own}`?")),
            (true, None) => None,
        };
        self.refuse(name, "is not a known key", hint);
    }

    fn wrong_type(&self, key: &str, value: &DeValue<'_>, expected: &str) {
        self.refuse(
            key,
            format!("is {}; expected {expected}", type_name(value)),
            None,
        );
    }

    fn wrong_value(&self, key: &str, invalid: InvalidValue) {
        let value = if key == SECRET_KEY {
            "(hidden)".to_owned()
        } else {
            format!("{:?}", invalid.value)
        };
        self.refuse(
            key,
            format!("is {value}; expected {}", invalid.expected),
            invalid.hint,
        );
    }

    /// Returns a text, unchanged.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value.get_ref(), "text in quotes");
        }
        text.map(str::to_owned)
    }

    /// Returns a text that `parse` has checked.
    pub(super) fn checked<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, InvalidValue>,
    ) -> Option<T> {
        parse(&self.text(key)?)
            .map_err(|invalid| self.wrong_value(key, invalid))
            .ok()
    }

    /// Returns a text parsed as a type.
    pub(super) fn parsed<T: FromStr<Err = InvalidValue>>(&self, key: &str) -> Option<T> {
        self.checked(key, str::parse)
    }

    /// Returns a text parsed as a type; an empty text counts as absent.
    pub(super) fn parsed_unless_empty<T: FromStr<Err = InvalidValue>>(
        &self,
        key: &str,
    ) -> Option<T> {
        let empty = self
            .value(key)
            .is_some_and(|value| value.get_ref().as_str() == Some(""));
        if empty { None } else { self.parsed(key) }
    }

    /// Returns `true` or `false`.
    pub(super) fn switch(&self, key: &str) -> Option<bool> {
        let value = self.value(key)?;
        let on = value.get_ref().as_bool();
        if on.is_none() {
            self.wrong_type(key, value.get_ref(), "true or false, without quotes");
        }
        on
    }

    /// Returns a whole number within a range.
    pub(super) fn number(&self, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.value(key)?;
        let expected = format!(
            "a whole number from {} to {}, without quotes",
            range.start(),
            range.end()
        );
        match integer(value.get_ref()) {
            None => self.wrong_type(key, value.get_ref(), &expected),
            Some(number) => match u32::try_from(number)
                .ok()
                .filter(|number| range.contains(number))
            {
                Some(number) => return Some(number),
                None => self.refuse(key, format!("is {number}; expected {expected}"), None),
            },
        }
        None
    }

    /// Returns a size within a range: text with a unit, or a number of bytes.
    pub(super) fn size(&self, key: &str, range: RangeInclusive<Size>) -> Option<Size> {
        let value = self.value(key)?;
        let size = match integer(value.get_ref()) {
            Some(number) => u64::try_from(number).ok().map(Size).or_else(|| {
                self.refuse(
                    key,
                    format!("is {number}; expected a size such as \"1G\""),
                    None,
                );
                None
            })?,
            None => self.parsed::<Size>(key)?,
        };
        if !range.contains(&size) {
            let message = format!(
                "is {size}; expected a size from {} to {}",
                range.start(),
                range.end()
            );
            self.refuse(key, message, None);
            return None;
        }
        Some(size)
    }

    /// Returns a list of texts.
    pub(super) fn list(&self, key: &str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let expected = "a list of texts, [\"a\", \"b\"]";
        match value.get_ref() {
            DeValue::Array(items) => {
                let texts = items
                    .iter()
                    .map(|item| item.get_ref().as_str().map(str::to_owned));
                let texts: Option<Vec<String>> = texts.collect();
                if texts.is_none() {
                    self.refuse(
                        key,
                        format!("has an item that is not text; expected {expected}"),
                        None,
                    );
                }
                texts
            }
            other => {
                self.wrong_type(key, other, expected);
                None
            }
        }
    }

    /// Returns a list; a single text counts as a list of one.
    pub(super) fn text_or_list(&self, key: &str) -> Option<Vec<String>> {
        match self.value(key)?.get_ref() {
            DeValue::String(text) => Some(vec![text.to_string()]),
            _ => self.list(key),
        }
    }

    /// Whether the value is a text.
    pub(super) fn is_text(&self, key: &str) -> bool {
        self.value(key)
            .is_some_and(|value| value.get_ref().is_str())
    }

    /// Parses the items of a list, and records each invalid one. Returns `None` if any is invalid.
    pub(super) fn parse_items<T, E>(
        &self,
        key: &str,
        items: &[String],
        expected: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Vec<T>> {
        let is_list = self
            .value(key)
            .is_some_and(|value| value.get_ref().is_array());
        let verb = if is_list { "has" } else { "is" };
        let parsed: Vec<Option<T>> = items
            .iter()
            .map(|item| match parse(item) {
                Ok(value) => Some(value),
                Err(_) => {
                    self.refuse(key, format!("{verb} {item:?}; expected {expected}"), None);
                    None
                }
            })
            .collect();
        parsed.into_iter().collect()
    }
}

fn integer(value: &DeValue<'_>) -> Option<i128> {
    let number = value.as_integer()?;
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}
