//! [`convert_ini`]: converts the INI form of the older tool's configuration to TOML. Pure: the
//! texts are arguments.
//!
//! Comments keep their position. A key that cannot be converted becomes a comment and is also
//! listed in [`Converted::lost`]; nothing is dropped silently. For secrets the result names only
//! the files that will hold them, never their values.

mod ini;
mod rclone;

use super::form::Kind;
use super::schema;
use super::secret::SECRET_KEY;
use super::sequence::KNOWN_TYPO;
use super::units::Size;
use super::{BandwidthSchedule, Remote};
use ini::IniLine;
use serde::Serialize;
use std::path::PathBuf;
use toml::Value;

/// A converted configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Converted {
    /// The text of the new file.
    pub toml: String,
    /// The entries that could not be converted, one a line.
    pub lost: Vec<String>,
    /// The steps that the user must take and the facts to know, one sentence each.
    pub advice: Vec<String>,
}

/// Returns the rclone.conf that an INI configuration names, which the caller reads before
/// [`convert_ini`].
pub fn rclone_conf_of(text: &str) -> Option<PathBuf> {
    let path = main_value(text, "rclone_conf")?;
    (!path.is_empty()).then(|| PathBuf::from(path))
}

/// Converts a configuration. `rclone_conf` is the text of the rclone.conf that it uses, if it could
/// be read.
pub fn convert_ini(text: &str, rclone_conf: Option<&str>) -> Converted {
    let mut work = Work {
        rclone_conf,
        ..Work::default()
    };
    work.native = main_value(text, "remote")
        .is_some_and(|value| rclone::native_remote(value, rclone_conf).section.is_some());
    for line in ini::lines(text) {
        match line {
            IniLine::Blank => work.out.toml.push('\n'),
            IniLine::Comment(comment) => work.comment(comment),
            IniLine::Section(name) => work.section(name),
            IniLine::Pair(key, value) => work.pair(key, value),
            IniLine::Other(line) => work.lose(line, line),
        }
    }
    if let Some((name, lines)) = work.appended.take() {
        work.out.toml.push_str(&format!("\n[{name}]\n"));
        lines
            .iter()
            .for_each(|(key, value)| work.line(key, value, None));
    }
    work.out
}

/// Returns the value of a key of `[main]`.
fn main_value<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    let mut main = ini::section(text, "main")?.into_iter();
    let (_, value) = main.find(|(name, _)| plain(name, '_') == key)?;
    Some(ini::unquoted(ini::without_comment(value).0))
}

/// Spells a name as this tool does: lower case, with one kind of dash.
fn plain(name: &str, dash: char) -> String {
    name.to_lowercase().replace(['-', '_'], &dash.to_string())
}

fn truth(value: &str) -> Option<bool> {
    match value.to_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Some(true),
        "no" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Spells a size as this tool does: `1GB`, `1GiB` and `1Gi` of other tools are binary too.
fn size(value: &str) -> Option<String> {
    let short = value
        .trim_end_matches(['B', 'b'])
        .trim_end_matches('i')
        .trim();
    [value, short]
        .into_iter()
        .find_map(|text| text.parse::<Size>().ok())
        .map(|size| size.to_string())
}

fn list(value: &str) -> Vec<String> {
    value
        .split(',')
        .map(|item| ini::unquoted(item.trim()).to_owned())
        .filter(|item| !item.is_empty())
        .collect()
}

/// Converts a value to TOML. Returns `None` if it is not of the kind.
fn toml_value(kind: Kind, value: &str) -> Option<Value> {
    let text = ini::unquoted(value);
    match kind {
        Kind::Text => Some(Value::from(text)),
        Kind::Switch => truth(text).map(Value::from),
        Kind::Number => text
            .parse::<u32>()
            .ok()
            .map(|number| Value::from(i64::from(number))),
        Kind::Size => size(text).map(Value::from),
        Kind::List => Some(Value::from(list(value))),
        Kind::Words => shell_words::split(value).ok().map(Value::from),
        Kind::TextOrList => match list(value).as_slice() {
            [one] => Some(Value::from(one.as_str())),
            several => Some(Value::from(several.to_vec())),
        },
    }
}

#[derive(Default)]
struct Work<'t> {
    out: Converted,
    rclone_conf: Option<&'t str>,
    /// Whether the remote is converted to one that this tool supports natively, so that rclone's
    /// keys are removed.
    native: bool,
    section: String,
    /// The section of the native remote, to be appended to the file.
    appended: Option<(&'static str, Vec<(&'static str, Value)>)>,
}

/// Replaces control characters, which TOML does not allow in a comment.
fn printable(comment: &str) -> String {
    comment.replace(
        |letter: char| letter.is_control() && letter != '\t',
        "\u{fffd}",
    )
}

impl Work<'_> {
    fn comment(&mut self, comment: &str) {
        let space = if comment.is_empty() { "" } else { " " };
        self.out
            .toml
            .push_str(&format!("#{space}{}\n", printable(comment)));
    }

    fn line(&mut self, key: &str, value: &Value, comment: Option<&str>) {
        let comment =
            comment.map_or_else(String::new, |comment| format!("  # {}", printable(comment)));
        self.out
            .toml
            .push_str(&format!("{key} = {value}{comment}\n"));
    }

    /// Keeps an entry that cannot be converted as a comment, and records the reason.
    fn lose(&mut self, shown: &str, why: &str) {
        self.comment(&format!("not carried over: {shown}"));
        self.out.lost.push(why.to_owned());
    }

    fn section(&mut self, name: &str) {
        self.section = plain(name, '-');
        if schema::section_spec(&self.section).is_some() {
            self.out.toml.push_str(&format!("[{}]\n", self.section));
        } else {
            self.lose(
                &format!("[{name}]"),
                &format!("[{name}]: there is no such section"),
            );
        }
    }

    fn pair(&mut self, given: &str, value: &str) {
        let dash = if self.section.starts_with("lifecycle-") {
            '-'
        } else {
            '_'
        };
        let mut key = plain(given, dash);
        if key == "keep-last-chain" {
            key.push('s');
        }
        let Some(spec) = schema::section_spec(&self.section) else {
            return self.lose_pair(given, value, "its section is not known");
        };
        if spec.keys.is_empty() {
            return self.step(given, value);
        }
        let Some(kind) = spec.kind(&key) else {
            return self.lose_pair(given, value, "there is no such key");
        };
        // A passphrase may contain a comment mark, so no comment is split off.
        let (value, comment) = if key == SECRET_KEY {
            (value, None)
        } else {
            ini::without_comment(value)
        };
        match key.as_str() {
            "remote" => self.remote(value, comment),
            "rclone_conf" | "rclone_bwlimit" | "rclone_args" if self.native => {
                self.rclone_key(&key, value)
            }
            _ => self.known(&key, kind, value, comment),
        }
    }

    fn lose_pair(&mut self, key: &str, value: &str, why: &str) {
        let lower = key.to_lowercase();
        let secret = ["pass", "secret", "key", "token"]
            .iter()
            .any(|word| lower.contains(word));
        let shown = if secret { "(hidden)" } else { value };
        self.lose(&format!("{key} = {shown}"), &format!("{key}: {why}"));
    }

    fn known(&mut self, key: &str, kind: Kind, value: &str, comment: Option<&str>) {
        match toml_value(kind, value) {
            Some(value) => self.line(key, &value, comment),
            None => {
                let text = ini::unquoted(value);
                self.lose_pair(key, value, &format!("{text:?} cannot be read"));
            }
        }
    }

    fn step(&mut self, key: &str, value: &str) {
        let (value, comment) = ini::without_comment(value);
        let text = ini::unquoted(value).replace(KNOWN_TYPO.0, KNOWN_TYPO.1);
        if text != ini::unquoted(value) {
            self.out.advice.push(format!(
                "{key}: {} was a typing error of {}",
                KNOWN_TYPO.0, KNOWN_TYPO.1
            ));
        }
        self.line(&plain(key, '_'), &Value::from(text), comment);
    }

    fn remote(&mut self, value: &str, comment: Option<&str>) {
        let native = rclone::native_remote(ini::unquoted(value), self.rclone_conf);
        self.out.advice.extend(native.advice);
        self.out.lost.extend(native.lost);
        match native.remote.parse::<Remote>() {
            Ok(remote) => self.line("remote", &Value::from(remote.to_string()), comment),
            Err(_) => self.comment(&format!("not carried over: remote = {value}")),
        }
        self.appended = native.section;
    }

    /// Converts a key that was for rclone, for a remote that this tool supports natively.
    fn rclone_key(&mut self, key: &str, value: &str) {
        let text = ini::unquoted(value);
        match (key, text.parse::<BandwidthSchedule>()) {
            ("rclone_bwlimit", Ok(limit)) => {
                self.line("bwlimit", &Value::from(limit.to_string()), None)
            }
            ("rclone_conf", _) => {
                self.comment(&format!("rclone is no longer used: {key} = {value}"))
            }
            ("rclone_args", _) => {
                self.lose_pair(key, value, "the native keys are part_size and concurrency")
            }
            _ => self.lose_pair(key, value, "the native key is bwlimit"),
        }
    }
}

#[cfg(test)]
mod tests;
