//! The sections and their keys, each declared once: [`visit_keys`] calls a [`KeyVisitor`] with every
//! key, the field of [`Config`] that holds its value, and its [`Form`].
//!
//! The visitors are the reader of the file, `config show`, the names for "did you mean" and for
//! `config convert`, and the files and folders that the configuration names. The keys of a section
//! stand in the `declare` function next to the section's struct.
//!
//! The keys are not fields of structs that serde reads: its derive stops at the first problem of a
//! struct, repeats a value of the wrong type (a passphrase), and loses the lines of unknown keys.

use super::Config;
use super::form::Form;
use super::main_section::declare_main;
use super::sequence::SequenceStep;

/// A pass over all keys.
pub(super) trait KeyVisitor {
    /// Begins a section. The keys that follow belong to it.
    fn section(&mut self, name: &'static str);

    /// Visits a key whose value may be absent.
    fn key<T: 'static>(&mut self, name: &'static str, value: &mut Option<T>, form: Form<T>);

    /// Visits the steps of a sequence, whose keys have no fixed names.
    fn steps(&mut self, steps: &mut Vec<SequenceStep>);

    /// Visits a key with a default value.
    fn with_default<T: Clone + 'static>(
        &mut self,
        name: &'static str,
        value: &mut T,
        form: Form<T>,
    ) {
        let mut given = Some(value.clone());
        self.key(name, &mut given, form);
        if let Some(given) = given {
            *value = given;
        }
    }

    /// Visits a key with a list. An empty list is shown by the absence of the key.
    fn list<T: 'static>(&mut self, name: &'static str, items: &mut Vec<T>, form: Form<Vec<T>>) {
        let mut given = Some(std::mem::take(items)).filter(|items| !items.is_empty());
        self.key(name, &mut given, form);
        *items = given.unwrap_or_default();
    }
}

/// Visits every key of every section, in the order in which `config show` prints them.
pub(super) fn visit_keys(config: &mut Config, visitor: &mut impl KeyVisitor) {
    visitor.section("main");
    declare_main(config, visitor);
    visitor.section("s3");
    config.s3.declare(visitor);
    visitor.section("b2");
    config.b2.declare(visitor);
    visitor.section("prune");
    config.prune.get_or_insert_default().declare(visitor);
    visitor.section("send");
    config.send.declare(visitor);
    visitor.section("backup-lifecycle");
    config.backup_lifecycle.declare(visitor);
    visitor.section("backup-sequence");
    visitor.steps(&mut config.sequence);
    visitor.section("lifecycle-intermediate");
    config.lifecycle_intermediate.declare(visitor);
    visitor.section("lifecycle-remote");
    config.lifecycle_remote.declare(visitor);
}
