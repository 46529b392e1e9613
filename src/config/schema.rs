//! The names of all sections and keys, collected from their declaration: for unknown keys and for
//! `config convert`.

use super::declaration::visit_keys;
use super::form::{Form, Kind};
use super::sequence::SequenceStep;
use super::visitor::KeyVisitor;
use super::{Config, Environment};
use std::path::Path;
use std::sync::LazyLock;

/// A section.
#[derive(Debug)]
pub(super) struct SectionSpec {
    /// The name of the section.
    pub(super) name: &'static str,
    /// The keys of the section. A section without listed keys has keys of another form (`step01`).
    pub(super) keys: Vec<(&'static str, Kind)>,
}

impl SectionSpec {
    /// Returns the names of the keys.
    pub(super) fn key_names(&self) -> impl Iterator<Item = &'static str> {
        self.keys.iter().map(|(name, _)| *name)
    }

    /// Returns the kind of a key, if the section has it.
    pub(super) fn kind(&self, name: &str) -> Option<Kind> {
        let (_, kind) = self.keys.iter().find(|(key, _)| *key == name)?;
        Some(*kind)
    }
}

/// The sections in the order in which `config show` prints them.
pub(super) static SECTIONS: LazyLock<Vec<SectionSpec>> = LazyLock::new(|| {
    let mut config = Config::unread(Path::new(""), &Environment::default());
    let mut names = Names(Vec::new());
    visit_keys(&mut config, &mut names);
    names.0
});

/// Collects the names of the sections and keys.
struct Names(Vec<SectionSpec>);

impl KeyVisitor for Names {
    fn section(&mut self, name: &'static str) {
        self.0.push(SectionSpec {
            name,
            keys: Vec::new(),
        });
    }

    fn key<T: 'static>(&mut self, name: &'static str, _: &mut Option<T>, form: Form<T>) {
        if let Some(section) = self.0.last_mut() {
            section.keys.push((name, form.kind));
        }
    }

    fn steps(&mut self, _: &mut Vec<SequenceStep>) {}
}

/// Returns the section with this name.
pub(super) fn section_spec(name: &str) -> Option<&'static SectionSpec> {
    SECTIONS.iter().find(|section| section.name == name)
}

/// Returns the hint for a key outside its section: the sections that have a key with this name.
pub(super) fn belongs_in(key: &str) -> Option<String> {
    let sections = SECTIONS
        .iter()
        .filter(|section| section.kind(key).is_some());
    let names: Vec<_> = sections.map(|section| section.name).collect();
    (!names.is_empty()).then(|| format!("it belongs in [{}]", names.join("] or [")))
}

/// Returns the nearest of the names, if it is near enough to be a typing error: at most a third of
/// the letters differ.
pub(super) fn nearest<'n>(given: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let plain = |name: &str| name.to_lowercase().replace('-', "_");
    let given = plain(given);
    let distance = |name: &&str| strsim::damerau_levenshtein(&given, &plain(name));
    names
        .min_by_key(distance)
        .filter(|name| distance(name) * 3 <= given.chars().count().max(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_only_when_it_is_near() {
        let names = || section_spec("main").unwrap().key_names();
        for (given, expected) in [
            ("split_sise", Some("split_size")),
            ("splitsize", Some("split_size")),
            ("split-size", Some("split_size")),
            ("Remote", Some("remote")),
            ("encryption_password", Some("encryption_passphrase")),
            ("zfs", None),
            ("frobnicate", None),
        ] {
            assert_eq!(nearest(given, names()), expected, "{given}");
        }
    }

    #[test]
    fn schema_has_no_duplicate_key_in_a_section() {
        for section in SECTIONS.iter() {
            let mut names: Vec<_> = section.key_names().collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), section.keys.len(), "{}", section.name);
        }
    }
}
