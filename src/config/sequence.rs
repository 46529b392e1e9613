//! `[backup-sequence]`: the steps of `perform`, in the order of the step numbers.

use super::section::Section;
use super::{Config, schema};

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
fn step_number(name: &str) -> Option<u64> {
    let digits = name
        .strip_prefix("step")
        .filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// Reads the steps in the order of their numbers.
pub(super) fn read_steps(section: &Section<'_>) -> Vec<SequenceStep> {
    let mut steps: Vec<(u64, SequenceStep)> = Vec::new();
    for name in section.key_names() {
        let Some(number) = step_number(&name) else {
            refuse_name(section, &name);
            continue;
        };
        let Some(step) = read_step(section, &name) else {
            continue;
        };
        match steps.iter().find(|(other, _)| *other == number) {
            Some((_, other)) => {
                let message = format!(
                    "has the same number as {}; expected each number once",
                    other.name
                );
                section.refuse(&name, message, None);
            }
            None => steps.push((number, step)),
        }
    }
    steps.sort_by_key(|(number, _)| *number);
    steps.into_iter().map(|(_, step)| step).collect()
}

fn refuse_name(section: &Section<'_>, name: &str) {
    let elsewhere = schema::sections_with(name);
    let hint = match elsewhere.is_empty() {
        true => {
            "steps are called step01, step02, ... and run in the order of their numbers".to_owned()
        }
        false => format!("it belongs in [{}]", elsewhere.join("] or [")),
    };
    section.refuse(name, "is not a known key", Some(hint));
}

fn read_step(section: &Section<'_>, name: &str) -> Option<SequenceStep> {
    let line = section.text(name)?;
    let step = SequenceStep::new(name, &line);
    let first = step.as_ref().and_then(|step| step.words.first());
    match first.map(String::as_str) {
        None => section.refuse(
            name,
            format!("is {line:?}; expected a command line of this program"),
            None,
        ),
        Some(word) if word == KNOWN_TYPO.0 => {
            let hint = format!("did you mean `{}`?", KNOWN_TYPO.1);
            section.refuse(
                name,
                format!("is {line:?}; expected a command of this program"),
                Some(hint),
            );
        }
        Some(_) => {}
    }
    step
}

/// Returns the steps of a configuration without `[backup-sequence]`.
pub(super) fn default_steps(config: &Config) -> Vec<SequenceStep> {
    let backup = if config.remote.is_some() {
        "stream-to-remote"
    } else {
        "export-intermediate"
    };
    let verify = if config.remote.is_some() {
        "verify-checksums"
    } else {
        "verify-checksums --intermediate"
    };
    let lines = [
        (true, "lock"),
        (true, "snapshot"),
        (true, backup),
        (true, verify),
        (
            !config.lifecycle_intermediate.keeps_everything(),
            "prune-intermediate -y",
        ),
        (
            !config.lifecycle_remote.keeps_everything(),
            "prune-remote -y",
        ),
        (config.snapshots.oldest_days.is_some(), "prune-snapshots -y"),
        (true, "unlock"),
    ];
    let wanted = lines
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .map(|(_, line)| line);
    wanted
        .zip(1..)
        .filter_map(|(line, number)| SequenceStep::new(&format!("step{number:02}"), line))
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
