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
use super::main_section::declare_main;
use super::visitor::KeyVisitor;

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
