//! Reads all sections: from a [`Document`] to a [`Config`], including the rules between keys and
//! between sections.

use super::declaration::visit_keys;
use super::document::Document;
use super::form::Form;
use super::lifecycle::RulesFor;
use super::lifecycle_advice::note_idle_lifecycle;
use super::problem::Problem;
use super::schema::{self, SECTIONS, SectionSpec};
use super::sequence::{self, SequenceStep};
use super::visitor::KeyVisitor;
use super::{Config, Environment, Remote, default_lock_file, keys, main_section, stores};
use std::path::Path;

/// Reads all sections. Every key that cannot be read keeps its default, and its problem is recorded
/// in the document.
pub(super) fn read_config(document: &Document<'_>, file: &Path, env: &Environment) -> Config {
    check_section_names(document);
    for section in SECTIONS.iter() {
        check_key_names(document, section);
    }
    let mut config = Config::unread(file, env);
    let mut reader = Reader {
        document,
        section: "",
    };
    visit_keys(&mut config, &mut reader);
    if !document.has("main.lock_file") {
        config.lock_file = default_lock_file(file, &config.state_dir);
    }
    apply_levels(&mut config);
    config.prune = config.prune.filter(|_| document.has_section("prune"));
    if config.sequence.is_empty() {
        config.sequence = sequence::default_steps(&config);
    }
    check_rules(document, &config);
    note_idle_keys(document, &config);
    note_idle_lifecycle(document, &config);
    config
}

/// Adds `keep` to the retention rules of the configured stores. An intermediate directory next to a
/// remote may be smaller than `keep`: if its section has rules, only they count there.
fn apply_levels(config: &mut Config) {
    let keep = config.backup_lifecycle.keep;
    if config.remote.is_some() {
        config.lifecycle_remote.levels = keep;
    }
    let is_alone = config.remote.is_none();
    if config.intermediate.is_some()
        && (is_alone || config.lifecycle_intermediate.keeps_everything())
    {
        config.lifecycle_intermediate.levels = keep;
    }
}

/// Reads every key of the file into its field.
struct Reader<'d> {
    document: &'d Document<'d>,
    section: &'static str,
}

impl KeyVisitor for Reader<'_> {
    fn section(&mut self, name: &'static str) {
        self.section = name;
    }

    fn key<T: 'static>(&mut self, name: &'static str, value: &mut Option<T>, form: Form<T>) {
        let key = format!("{}.{name}", self.section);
        if let Some(given) = self.document.read(&key, &form) {
            *value = Some(given);
        }
    }

    fn steps(&mut self, steps: &mut Vec<SequenceStep>) {
        *steps = sequence::read_steps(self.document, self.section);
    }
}

/// Checks the rules between keys.
fn check_rules(file: &Document<'_>, config: &Config) {
    main_section::check_datasets(file, &config.datasets);
    main_section::check_snapshot_prefix(file, config);
    keys::check_keys(file);
    main_section::check_stores(file, config);
    main_section::check_split_size(file, config.split_size);
    main_section::check_rclone(file, config);
    stores::check_credentials(file);
    stores::check_encryption(file, config.s3.encryption.as_ref());
    stores::check_endpoint(file, config);
    stores::check_lock(file, "s3", config.s3.lock);
    stores::check_lock(file, "b2", config.b2.lock);
    let rules_for = if file.has("main.remote") {
        RulesFor::IntermediateWithRemote
    } else {
        RulesFor::IntermediateAlone
    };
    let intermediate = &config.lifecycle_intermediate;
    intermediate.check(file, "lifecycle-intermediate", rules_for);
    let remote = &config.lifecycle_remote;
    remote.check(file, "lifecycle-remote", RulesFor::Remote);
    match config.remote {
        Some(Remote::S3 { .. }) => stores::check_part_count(file, "s3.part_size", config),
        Some(Remote::B2 { .. }) => stores::check_part_count(file, "b2.part_size", config),
        Some(Remote::File { .. } | Remote::Rclone { .. }) | None => {}
    }
}

/// Reports unknown keys of a section. A section without listed keys has steps.
fn check_key_names(document: &Document<'_>, section: &SectionSpec) {
    for name in document.key_names(section.name) {
        let has_steps = section.keys.is_empty();
        if section.kind(name).is_some() || has_steps && sequence::step_number(name).is_some() {
            continue;
        }
        let hint = if has_steps {
            let form = "steps are called step01, step02, ... and run in the order of their numbers";
            Some(form.to_owned())
        } else {
            let near = schema::nearest(name, section.key_names());
            near.map(|near| format!("did you mean `{near}`?"))
        };
        let problem = Problem {
            hint: schema::belongs_in(name).or(hint),
            ..Problem::new("is not a known key")
        };
        document.refuse(&format!("{}.{name}", section.name), problem);
    }
}

/// Reports keys outside all sections, and unknown sections.
fn check_section_names(document: &Document<'_>) {
    for (name, value) in &document.root {
        let name = name.get_ref().as_ref();
        let is_known = schema::section_spec(name).is_some();
        let is_section = value.get_ref().is_table();
        let belongs_in = schema::belongs_in(name);
        if is_known && is_section {
            continue;
        }
        if is_section {
            let near = schema::nearest(name, SECTIONS.iter().map(|section| section.name));
            let problem = Problem {
                hint: near.map(|near| format!("did you mean `[{near}]`?")),
                ..Problem::new("is not a known section")
            };
            document.refuse(&format!("[{name}]"), problem);
        } else if is_known {
            let message = "is a section; expected keys below a line of its name in brackets";
            document.refuse(name, message);
        } else if let Some(hint) = belongs_in {
            document.refuse(name, Problem::new("is outside all sections").hint(hint));
        } else {
            document.refuse(name, "is not a known key, and is outside all sections");
        }
    }
}

/// Adds a notice for each key and section in the file that has no effect because its store is not
/// configured.
fn note_idle_keys(document: &Document<'_>, config: &Config) {
    let is_folder = matches!(config.remote, Some(Remote::File { .. }) | None);
    for (key, reason) in [
        (
            "main.bwlimit",
            "what is written into a folder is not limited",
        ),
        (
            "main.bwlimit_down",
            "what is read from a folder is not limited",
        ),
        (
            "main.retry_for",
            "no command waits for a folder that does not answer",
        ),
    ] {
        if is_folder && document.has(key) {
            document.notice(key, format!("{key} has no effect: {reason}"));
        }
    }
    let remote = config.remote.as_ref();
    let other_remote = remote.map_or_else(
        || "the remote is not set".to_owned(),
        |remote| format!("the remote is {remote}"),
    );
    let is_s3 = matches!(remote, Some(Remote::S3 { .. }));
    let is_b2 = matches!(remote, Some(Remote::B2 { .. }));
    let has_intermediate = config.intermediate.is_some();
    for (section, is_used, reason) in [
        ("s3", is_s3, &*other_remote),
        ("b2", is_b2, &other_remote),
        (
            "lifecycle-intermediate",
            has_intermediate,
            "there is no intermediate_basedir",
        ),
        ("lifecycle-remote", remote.is_some(), "there is no remote"),
    ] {
        if document.has_section(section) && !is_used {
            document.notice(section, format!("[{section}] has no effect: {reason}"));
        }
    }
}
