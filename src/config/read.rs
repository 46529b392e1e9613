//! Reads all sections: from a [`Document`] to a [`Config`], including the rules between sections.

use super::document::Document;
use super::lifecycle::RulesFor;
use super::main_section::{self, RESUME_DAYS_DEFAULT};
use super::problem::Problem;
use super::section::{Findings, Section};
use super::{
    B2Section, BackupLifecycle, Config, Environment, PruneSection, Remote, RetentionRules,
    S3Section, SendSection, default_lock_file, default_state_dir, keys, schema, sequence, stores,
};
use std::collections::BTreeMap;
use std::path::Path;

/// Reads all sections. Returns `None` only after a problem was recorded.
pub(super) fn read_config(
    document: &Document<'_>,
    findings: &Findings,
    file: &Path,
    env: &Environment,
) -> Option<Config> {
    check_section_names(document, findings);
    let open = |name| Section::open(document, name, findings);
    let (main, s3, b2, prune, send) = (
        open("main"),
        open("s3"),
        open("b2"),
        open("prune"),
        open("send"),
    );
    let (backup_lifecycle, sequence) = (open("backup-lifecycle"), open("backup-sequence"));
    let (keep_intermediate, keep_remote) =
        (open("lifecycle-intermediate"), open("lifecycle-remote"));
    for section in [
        &main,
        &s3,
        &b2,
        &prune,
        &send,
        &backup_lifecycle,
        &sequence,
        &keep_intermediate,
        &keep_remote,
    ] {
        section.check_names();
    }

    let datasets = main_section::read_datasets(&main);
    let snapshots = main_section::read_snapshots(&main, datasets.as_ref());
    let keys = keys::read_key_source(&main);
    let intermediate = main_section::read_intermediate(&main);
    let remote = main_section::read_remote(&main, intermediate.as_ref());
    let state_dir = main.checked("state_dir", stores::absolute_path);
    let state_dir = state_dir.unwrap_or_else(|| default_state_dir(file, env));
    let lock_file = main.checked("lock_file", stores::absolute_path);
    let has_remote = main.has("remote");
    let rules_for = if has_remote {
        RulesFor::IntermediateWithRemote
    } else {
        RulesFor::IntermediateAlone
    };
    let config = Config {
        file: file.to_path_buf(),
        snapshots,
        verify_keys: keys::read_verify_keys(&main),
        split_size: main_section::read_split_size(&main),
        pace: main_section::read_pace(&main),
        rclone: main_section::read_rclone(&main, remote.as_ref()),
        hooks: main_section::read_hooks(&main),
        lock_file: lock_file.unwrap_or_else(|| default_lock_file(file, &state_dir)),
        state_dir,
        resume_days: main
            .number("resume_days", 1..=3650)
            .unwrap_or(RESUME_DAYS_DEFAULT),
        s3: S3Section::read(&s3),
        b2: B2Section::read(&b2),
        prune: prune.is_present().then(|| PruneSection::read(&prune)),
        send: SendSection::read(&send),
        backup_lifecycle: BackupLifecycle::read(&backup_lifecycle),
        sequence: sequence::read_steps(&sequence),
        lifecycle_intermediate: RetentionRules::read(&keep_intermediate, rules_for),
        lifecycle_remote: RetentionRules::read(&keep_remote, RulesFor::Remote),
        datasets: datasets?,
        keys: keys?,
        intermediate,
        remote,
        notices: Vec::new(),
        given: BTreeMap::new(),
    };
    match config.remote {
        Some(Remote::S3 { .. }) => {
            stores::check_part_count(&main, &s3, config.split_size, config.s3.parts)
        }
        Some(Remote::B2 { .. }) => {
            stores::check_part_count(&main, &b2, config.split_size, config.b2.parts)
        }
        Some(Remote::File { .. } | Remote::Rclone { .. }) | None => {}
    }
    if config.pace.bwlimit.is_some() && matches!(config.remote, Some(Remote::File { .. }) | None) {
        main.notice(
            "bwlimit",
            "main.bwlimit has no effect: what is written into a folder is not limited".to_owned(),
        );
    }
    note_idle_sections(&config, &s3, &b2, &keep_intermediate, &keep_remote);
    Some(config)
}

/// Reports keys outside all sections, and unknown sections.
fn check_section_names(document: &Document<'_>, findings: &Findings) {
    for (name, value) in &document.root {
        let known = schema::SECTIONS
            .iter()
            .any(|section| section.name == name.get_ref().as_ref());
        let is_section = value.get_ref().is_table();
        if known && is_section {
            continue;
        }
        let elsewhere = schema::sections_with(name.get_ref());
        let near = schema::nearest(
            name.get_ref(),
            schema::SECTIONS.iter().map(|section| section.name),
        );
        let (message, hint) = match (known, is_section) {
            (true, _) => (
                "is a section; expected keys below a line of its name in brackets",
                None,
            ),
            (_, true) => (
                "is not a known section",
                near.map(|near| format!("did you mean `[{near}]`?")),
            ),
            _ if elsewhere.is_empty() => ("is not a known key, and is outside all sections", None),
            _ => (
                "is outside all sections",
                Some(format!("it belongs in [{}]", elsewhere.join("] or ["))),
            ),
        };
        let key = if is_section {
            format!("[{}]", name.get_ref())
        } else {
            name.get_ref().to_string()
        };
        let line = Some(document.line(&name.span()));
        findings.problem(Problem {
            line,
            key: Some(key),
            message: message.to_owned(),
            hint,
        });
    }
}

/// Adds a notice for each section in the file that has no effect because its store is not
/// configured.
fn note_idle_sections(
    config: &Config,
    s3: &Section<'_>,
    b2: &Section<'_>,
    keep_intermediate: &Section<'_>,
    keep_remote: &Section<'_>,
) {
    let remote = config
        .remote
        .as_ref()
        .map_or_else(|| "not set".to_owned(), Remote::to_string);
    let is_s3 = matches!(config.remote, Some(Remote::S3 { .. }));
    let is_b2 = matches!(config.remote, Some(Remote::B2 { .. }));
    for (section, name, used, why) in [
        (s3, "s3", is_s3, format!("the remote is {remote}")),
        (b2, "b2", is_b2, format!("the remote is {remote}")),
        (
            keep_intermediate,
            "lifecycle-intermediate",
            config.intermediate.is_some(),
            "there is no intermediate_basedir".to_owned(),
        ),
        (
            keep_remote,
            "lifecycle-remote",
            config.remote.is_some(),
            "there is no remote".to_owned(),
        ),
    ] {
        if section.is_present() && !used {
            section.notice_section(format!("[{name}] has no effect: {why}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::schema::SECTIONS;

    #[test]
    fn no_known_key_is_left_unread() {
        let text = "[main]\nzfs_fs = \"tank\"\nintermediate_basedir = \"/x\"\nencryption_passphrase = \"x\"\n[prune]\n";
        let document = Document::parse(text).ok().unwrap();
        let findings = Findings::default();
        read_config(
            &document,
            &findings,
            Path::new("/x.toml"),
            &Environment::default(),
        );
        let asked = findings.finish().asked;
        for section in SECTIONS {
            for key in section.keys {
                assert!(
                    asked.contains(&format!("{}.{key}", section.name)),
                    "{}.{key}",
                    section.name
                );
            }
        }
    }
}
