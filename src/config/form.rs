//! [`Form`]: how the value of a key is read from the file, shown by `config show`, and written by
//! `config convert`.

use super::problem::Problem;
use super::secret::SecretFile;
use super::trust::{Demand, FolderRule};
use super::units::{InvalidValue, Size};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Component, PathBuf};
use std::str::FromStr;
use toml::Value;
use toml::de::DeValue;

/// A value as read, or the problems with it. The reader adds the key and the line.
pub(super) type Reading<T> = Result<T, Vec<Problem>>;

/// The form in which `config convert` writes a value of the INI file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Switch,
    Number,
    Size,
    /// A text, or a list if the value has several items.
    TextOrList,
    List,
    /// A list of words, split as a shell would.
    Words,
}

/// A file or folder that a value names, and the demand that it must meet.
#[derive(Debug)]
pub(super) enum Place {
    File(PathBuf, Demand),
    Secret(SecretFile),
    Folder(PathBuf, FolderRule),
}

type Reader<T> = dyn Fn(&DeValue<'_>) -> Reading<T>;
/// Something that a value may have.
type Finder<T, Found> = dyn Fn(&T) -> Option<Found>;

/// The form of a value.
pub(super) struct Form<T> {
    pub(super) kind: Kind,
    read: Box<Reader<T>>,
    show: Box<Finder<T, Value>>,
    place: Box<Finder<T, Place>>,
}

impl<T: 'static> Form<T> {
    pub(super) fn new(
        kind: Kind,
        read: impl Fn(&DeValue<'_>) -> Reading<T> + 'static,
        show: impl Fn(&T) -> Value + 'static,
    ) -> Self {
        Self {
            kind,
            read: Box::new(read),
            show: Box::new(move |value| Some(show(value))),
            place: Box::new(|_| None),
        }
    }

    pub(super) fn read(&self, value: &DeValue<'_>) -> Reading<T> {
        (self.read)(value)
    }

    /// Returns the value in TOML, or `None` if it is shown by the absence of its key.
    pub(super) fn show(&self, value: &T) -> Option<Value> {
        (self.show)(value)
    }

    /// Returns the file or folder that the value names.
    pub(super) fn place(&self, value: &T) -> Option<Place> {
        (self.place)(value)
    }

    /// Adds the file or folder that a value names.
    pub(super) fn naming(mut self, place: impl Fn(&T) -> Option<Place> + 'static) -> Self {
        self.place = Box::new(place);
        self
    }

    /// Accepts a word that stands for no value. An empty word is not shown.
    pub(super) fn or_none(self, word: &'static str) -> Form<Option<T>> {
        let Self {
            kind,
            read,
            show,
            place,
        } = self;
        let shown = (!word.is_empty()).then(|| Value::from(word));
        Form {
            kind,
            read: Box::new(move |value| match value.as_str() {
                Some(text) if text == word => Ok(None),
                _ => read(value).map(Some),
            }),
            show: Box::new(move |value| value.as_ref().map_or_else(|| shown.clone(), &show)),
            place: Box::new(move |value| value.as_ref().and_then(&place)),
        }
    }
}

/// A text that `parse` checks.
pub(super) fn text<T: 'static>(
    parse: impl Fn(&str) -> Result<T, InvalidValue> + 'static,
    show: impl Fn(&T) -> String + 'static,
) -> Form<T> {
    let read = move |value: &DeValue<'_>| Ok(parse(&read_text(value)?)?);
    Form::new(Kind::Text, read, move |value| Value::String(show(value)))
}

/// A text that a type parses and prints.
pub(super) fn parsed<T: FromStr<Err = InvalidValue> + Display + 'static>() -> Form<T> {
    text(str::parse, T::to_string)
}

/// Any text, unchanged.
pub(super) fn any_text() -> Form<String> {
    text(|text| Ok(text.to_owned()), String::clone)
}

/// Makes the form of a value that is one of several words.
pub(super) fn word_of<T: Display + Copy + 'static>(
    words: impl IntoIterator<Item = T>,
    expected: &'static str,
) -> Form<T> {
    let words: Vec<T> = words.into_iter().collect();
    let find = move |text: &str| {
        let found = words.iter().find(|word| word.to_string() == text);
        found
            .copied()
            .ok_or_else(|| InvalidValue::new(text, expected))
    };
    text(find, T::to_string)
}

/// An absolute path without `..`, whose meaning does not depend on the working directory.
pub(super) fn path() -> Form<PathBuf> {
    let parse = |text: &str| {
        let path = PathBuf::from(text);
        if path.is_absolute() && !path.components().any(|part| part == Component::ParentDir) {
            Ok(path)
        } else {
            Err(InvalidValue::new(text, "an absolute path without `..`"))
        }
    };
    text(parse, |path| path.display().to_string())
}

/// The path of a folder that the program writes in.
pub(super) fn folder(rule: FolderRule) -> Form<PathBuf> {
    path().naming(move |path| Some(Place::Folder(path.clone(), rule)))
}

/// A file with a secret.
pub(super) fn secret_file() -> Form<SecretFile> {
    parsed().naming(|file: &SecretFile| Some(Place::Secret(file.clone())))
}

/// `true` or `false`.
pub(super) fn switch() -> Form<bool> {
    Form::new(Kind::Switch, read_switch, |on| Value::Boolean(*on))
}

/// `true` or `false`, shown as `default` without a value.
pub(super) fn switch_or(default: bool) -> Form<Option<bool>> {
    let read = |value: &DeValue<'_>| read_switch(value).map(Some);
    let show = move |on: &Option<bool>| Value::Boolean(on.unwrap_or(default));
    Form::new(Kind::Switch, read, show)
}

fn read_switch(value: &DeValue<'_>) -> Reading<bool> {
    let on = value.as_bool();
    on.ok_or_else(|| wrong_type(value, "true or false, without quotes"))
}

/// A whole number within a range.
pub(super) fn number(range: RangeInclusive<u32>) -> Form<u32> {
    let expected = format!(
        "a whole number from {} to {}, without quotes",
        range.start(),
        range.end()
    );
    let read = move |value: &DeValue<'_>| {
        let number = integer(value).ok_or_else(|| wrong_type(value, &expected))?;
        match u32::try_from(number) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => refused(format!("is {number}; expected {expected}")),
        }
    };
    Form::new(Kind::Number, read, |number| {
        Value::Integer(i64::from(*number))
    })
}

/// A size within a range: text with a unit, or a number of bytes.
pub(super) fn size(range: RangeInclusive<Size>) -> Form<Size> {
    let read = move |value: &DeValue<'_>| {
        let size = match integer(value) {
            Some(number) => match u64::try_from(number) {
                Ok(bytes) => Size(bytes),
                Err(_) => {
                    return refused(format!("is {number}; expected a size such as \"1G\""));
                }
            },
            None => read_text(value)?.parse()?,
        };
        if range.contains(&size) {
            return Ok(size);
        }
        refused(format!(
            "is {size}; expected a size from {} to {}",
            range.start(),
            range.end()
        ))
    };
    Form::new(Kind::Size, read, |size| Value::String(size.to_string()))
}

/// A list of texts, each of which `parse` checks.
pub(super) fn list<T: 'static, E>(
    expected: &'static str,
    parse: impl Fn(&str) -> Result<T, E> + 'static,
    show: fn(&T) -> String,
) -> Form<Vec<T>> {
    let read = move |value: &DeValue<'_>| parse_items(value, &read_list(value)?, expected, &parse);
    Form::new(Kind::List, read, move |items| show_items(items, show))
}

/// A list of any texts, unchanged.
pub(super) fn words() -> Form<Vec<String>> {
    Form {
        kind: Kind::Words,
        ..list("", str::parse::<String>, String::clone)
    }
}

/// A list of texts as [`list`]; a single text counts as a list of one.
pub(super) fn text_or_list<T: 'static, E>(
    expected: &'static str,
    parse: impl Fn(&str) -> Result<T, E> + 'static,
    show: fn(&T) -> String,
) -> Form<Vec<T>> {
    let read =
        move |value: &DeValue<'_>| parse_items(value, &read_text_or_list(value)?, expected, &parse);
    Form::new(Kind::TextOrList, read, move |items| show_items(items, show))
}

/// Returns a text, unchanged.
pub(super) fn read_text(value: &DeValue<'_>) -> Reading<String> {
    let text = value.as_str().map(str::to_owned);
    text.ok_or_else(|| wrong_type(value, "text in quotes"))
}

/// Returns the texts of a list.
pub(super) fn read_list(value: &DeValue<'_>) -> Reading<Vec<String>> {
    let expected = "a list of texts, [\"a\", \"b\"]";
    let items = value
        .as_array()
        .ok_or_else(|| wrong_type(value, expected))?;
    let texts = items
        .iter()
        .map(|item| item.get_ref().as_str().map(str::to_owned));
    match texts.collect() {
        Some(texts) => Ok(texts),
        None => refused(format!("has an item that is not text; expected {expected}")),
    }
}

/// Returns the texts of a list; a single text counts as a list of one.
pub(super) fn read_text_or_list(value: &DeValue<'_>) -> Reading<Vec<String>> {
    match value.as_str() {
        Some(text) => Ok(vec![text.to_owned()]),
        None => read_list(value),
    }
}

/// Parses all items, or returns a problem for each invalid one.
pub(super) fn parse_items<T, E>(
    value: &DeValue<'_>,
    items: &[String],
    expected: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Reading<Vec<T>> {
    let verb = if value.is_array() { "has" } else { "is" };
    let mut parsed = Vec::new();
    let mut problems = Vec::new();
    for item in items {
        match parse(item) {
            Ok(item) => parsed.push(item),
            Err(_) => problems.push(Problem::new(format!(
                "{verb} {item:?}; expected {expected}"
            ))),
        }
    }
    if problems.is_empty() {
        Ok(parsed)
    } else {
        Err(problems)
    }
}

/// Refuses a value for one reason.
pub(super) fn refused<T>(message: impl Into<String>) -> Reading<T> {
    Err(vec![Problem::new(message)])
}

pub(super) fn show_items<T>(items: &[T], show: fn(&T) -> String) -> Value {
    Value::from(items.iter().map(show).collect::<Vec<_>>())
}

fn wrong_type(value: &DeValue<'_>, expected: &str) -> Vec<Problem> {
    let found = match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    };
    vec![Problem::new(format!("is {found}; expected {expected}"))]
}

fn integer(value: &DeValue<'_>) -> Option<i128> {
    let number = value.as_integer()?;
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}
