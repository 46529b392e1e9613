//! [`Config::to_display_toml`]: the whole configuration in effect, for `config show`.

use super::declaration::visit_keys;
use super::form::Form;
use super::sequence::SequenceStep;
use super::visitor::KeyVisitor;
use super::{Config, Remote};
use toml::Value;

impl Config {
    /// Writes the configuration as TOML, with all defaults (marked as such) and with secrets
    /// hidden.
    pub fn to_display_toml(&self) -> String {
        let mut shown = Shown {
            config: self,
            section: "",
            heading: String::new(),
            text: format!("# {}, merged with the defaults\n", self.file.display()),
        };
        visit_keys(&mut self.clone(), &mut shown);
        shown.text
    }
}

/// Writes every key that has a value.
struct Shown<'c> {
    config: &'c Config,
    section: &'static str,
    /// The heading of a section whose first key is not written yet.
    heading: String,
    text: String,
}

impl Shown<'_> {
    /// Whether the section has an effect or is in the file.
    fn is_wanted(&self) -> bool {
        let dot = format!("{}.", self.section);
        let has_effect = match self.section {
            "s3" => matches!(self.config.remote, Some(Remote::S3 { .. })),
            "b2" => matches!(self.config.remote, Some(Remote::B2 { .. })),
            _ => true,
        };
        has_effect || self.config.given.keys().any(|key| key.starts_with(&dot))
    }

    fn line(&mut self, key: &str, value: &Value) {
        if !self.is_wanted() {
            return;
        }
        let mark = match self.config.line_of(&format!("{}.{key}", self.section)) {
            Some(_) => "",
            None => "  # default",
        };
        self.text.push_str(&std::mem::take(&mut self.heading));
        self.text.push_str(&format!("{key} = {value}{mark}\n"));
    }
}

impl KeyVisitor for Shown<'_> {
    fn section(&mut self, name: &'static str) {
        self.section = name;
        self.heading = format!("\n[{name}]\n");
    }

    fn key<T: 'static>(&mut self, name: &'static str, value: &mut Option<T>, form: Form<T>) {
        if let Some(value) = value.as_ref().and_then(|value| form.show(value)) {
            self.line(name, &value);
        }
    }

    fn steps(&mut self, steps: &mut Vec<SequenceStep>) {
        for step in steps {
            self.line(&step.name, &Value::from(step.line.as_str()));
        }
    }
}
