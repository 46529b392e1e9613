//! `[backup-sequence]`: the steps of `perform`, in the order of the step numbers.

use super::document::Document;
use super::problem::Problem;
use super::{Config, form};
use std::collections::BTreeMap;

/// A step. The command line parser decides whether its words are a command of this program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceStep {
    /// The key of the step: `step01`.
    pub name: String,
    /// The command line, unchanged.
    pub line: String,
    /// The words of the command line, split as a shell would.
    pub words: Vec<String>,
}

impl SequenceStep {
    fn new(name: &str, line: &str) -> Option<Self> {
        let words = shell_words::split(line)
            .ok()
            .filter(|words| !words.is_empty())?;
        Some(Self {
            name: name.to_owned(),
            line: line.to_owned(),
            words,
        })
    }
}

/// The known typing error of the INI form's example.
pub(super) const KNOWN_TYPO: (&str, &str) = (
    "upload-intermediate-to-remove",
    "upload-intermediate-to-remote",
);

/// Returns the number of a step: 1 for `step01`.
pub(super) fn step_number(name: &str) -> Option<u64> {
    let digits = name
        .strip_prefix("step")
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// Reads the steps in the order of their numbers.
pub(super) fn read_steps(file: &Document<'_>, section: &str) -> Vec<SequenceStep> {
    let mut steps: BTreeMap<u64, SequenceStep> = BTreeMap::new();
    for name in file.key_names(section) {
        // Other names were refused as unknown keys.
        let Some(number) = step_number(name) else {
            continue;
        };
        let key = format!("{section}.{name}");
        let Some(step) = read_step(file, &key, name) else {
            continue;
        };
        if let Some(other) = steps.get(&number) {
            let message = format!(
                "has the same number as {}; expected each number once",
                other.name
            );
            file.refuse(&key, message);
        } else {
            steps.insert(number, step);
        }
    }
    steps.into_values().collect()
}

fn read_step(file: &Document<'_>, key: &str, name: &str) -> Option<SequenceStep> {
    let line = file.read(key, &form::any_text())?;
    let step = SequenceStep::new(name, &line);
    match step.as_ref().and_then(|step| step.words.first()) {
        None => {
            let message = format!("is {line:?}; expected a command line of this program");
            file.refuse(key, message);
        }
        Some(word) if word == KNOWN_TYPO.0 => {
            let message = format!("is {line:?}; expected a command of this program");
            let hint = format!("did you mean `{}`?", KNOWN_TYPO.1);
            file.refuse(key, Problem::new(message).hint(hint));
        }
        Some(_) => {}
    }
    step
}

/// Returns the steps of a configuration without `[backup-sequence]`.
pub(super) fn default_steps(config: &Config) -> Vec<SequenceStep> {
    let mut lines = vec!["lock", "snapshot"];
    if config.remote.is_some() {
        lines.extend(["stream-to-remote", "verify-checksums"]);
    } else {
        lines.extend(["export-intermediate", "verify-checksums --intermediate"]);
    }
    if !config.lifecycle_intermediate.keeps_everything() {
        lines.push("prune-intermediate -y");
    }
    if !config.lifecycle_remote.keeps_everything() {
        lines.push("prune-remote -y");
    }
    if config.snapshots.oldest_days.is_some() {
        lines.push("prune-snapshots -y");
    }
    lines.push("unlock");
    (1..)
        .zip(lines)
        .filter_map(|(number, line)| SequenceStep::new(&format!("step{number:02}"), line))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_numbers() {
        for (name, number) in [
            ("step01", Some(1)),
            ("step1", Some(1)),
            ("step10", Some(10)),
            ("step", None),
            ("step-1", None),
            ("Step01", None),
            ("stepx", None),
            ("zfs_fs", None),
        ] {
            assert_eq!(step_number(name), number, "{name}");
        }
    }
}
