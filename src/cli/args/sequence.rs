//! The steps of `[backup-sequence]` as commands, parsed by the definitions of the command line.

use crate::cli::args::{Args, Command};
use crate::config::{Config, ConfigError, Problem, SequenceStep};
use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// A step that can be run.
#[derive(Debug)]
pub(crate) struct ParsedStep {
    /// The key of the step: `step03`.
    pub(crate) name: String,
    /// The command line of the step.
    pub(crate) line: String,
    /// The parsed command line.
    pub(crate) args: Args,
}

/// Returns all steps, or all problems of the steps.
pub(crate) fn parse_steps(config: &Config) -> Result<Vec<ParsedStep>, ConfigError> {
    let mut steps = Vec::new();
    let mut problems = Vec::new();
    let mut locked = false;
    for step in &config.sequence {
        let parsed = parse_step(step).and_then(|args| {
            match args.command {
                Command::Lock if locked => {
                    return Err(refused("locks again; expected `unlock` before", None));
                }
                Command::Lock => locked = true,
                Command::Unlock => locked = false,
                _ => {}
            }
            Ok(args)
        });
        match parsed {
            Ok(args) => steps.push(ParsedStep {
                name: step.name.clone(),
                line: step.line.clone(),
                args,
            }),
            Err((message, hint)) => {
                let key = format!("backup-sequence.{}", step.name);
                let message = format!("is {:?}: {message}", step.line);
                problems.push(Problem {
                    line: config.line_of(&key),
                    key: Some(key),
                    message,
                    hint,
                });
            }
        }
    }
    if problems.is_empty() {
        Ok(steps)
    } else {
        Err(ConfigError::Invalid {
            file: config.file.clone(),
            problems,
        })
    }
}

/// The problem of a step, and the hint.
type Refusal = (String, Option<String>);

fn refused(message: &str, hint: Option<&str>) -> Refusal {
    (message.to_owned(), hint.map(str::to_owned))
}

fn parse_step(step: &SequenceStep) -> Result<Args, Refusal> {
    let words = std::iter::once("zfs-backup").chain(step.words.iter().map(String::as_str));
    let args = Args::try_parse_from(words).map_err(|error| explain(&error))?;
    let global = &args.global;
    let whole_run = Some("give it to `zfs-backup perform`: it is for the whole run");
    if global.ignore_lock {
        let hint = "for an incremental write it after the command: `stream-to-remote -i`";
        return Err(refused(
            "-i before the command is --ignore-lock",
            Some(hint),
        ));
    }
    for (given, option) in [
        (global.config.is_some(), "-c"),
        (global.verbose > 0, "-v"),
        (global.quiet, "-q"),
        (global.json, "--json"),
        (global.retry_for.is_some(), "--retry-for"),
    ] {
        if given {
            return Err(refused(&format!("{option} is not for a step"), whole_run));
        }
    }
    match &args.command {
        Command::PruneSnapshots(prune)
        | Command::PruneIntermediate(prune)
        | Command::PruneRemote(prune)
            if prune.clock_is_right =>
        {
            let hint = "run the step by hand once; later runs use the time that it notes";
            Err(refused(
                "--clock-is-right is for a person, not for a sequence",
                Some(hint),
            ))
        }
        Command::Perform => Err(refused("a sequence cannot run itself", None)),
        Command::Config(_) | Command::Key(_) => Err(refused(
            "this command is for people, not for a sequence",
            None,
        )),
        _ => Ok(args),
    }
}

/// Turns an error of clap into the form of the other problems of a configuration.
fn explain(error: &clap::Error) -> Refusal {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return refused("it asks for help and does nothing", None);
    }
    let text = error.to_string();
    let words = text
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let message = words.collect::<Vec<_>>().join(" ");
    let message = message
        .strip_prefix("error: ")
        .unwrap_or(&message)
        .to_owned();
    // The nearest suggestion comes last.
    let suggestions = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    let near = suggestions
        .into_iter()
        .find_map(|kind| match error.get(kind)? {
            ContextValue::String(near) => Some(near.clone()),
            ContextValue::Strings(near) => near.last().cloned(),
            _ => None,
        });
    (message, near.map(|near| format!("did you mean `{near}`?")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;
    use std::path::Path;

    fn config(steps: &[&str]) -> Config {
        let main = "[main]\nzfs_fs = \"tank/a\"\nremote = \"file:/x\"\nencryption_passphrase_file = \"/k\"\n";
        let steps: String = steps
            .iter()
            .zip(1..)
            .map(|(step, n)| format!("step{n:02} = '{step}'\n"))
            .collect();
        let text = format!("{main}[backup-sequence]\n{steps}");
        Config::parse(&text, Path::new("zb.toml"), &Environment::default()).unwrap()
    }

    #[test]
    fn example_and_default_sequence_steps_parse_as_commands() {
        let example = [
            "lock",
            "snapshot",
            "export-intermediate -i",
            "prune-intermediate -y",
            "prune-snapshots -y",
            "upload-intermediate-to-remote --all",
            "prune-remote -y",
            "unlock",
            "verify-checksums --read-data=1/7",
            "--dry-run stream-to-remote --full",
            "lock --lock-wait 2h",
        ];
        let steps = parse_steps(&config(&example)).unwrap();
        assert!(steps.iter().map(|step| step.line.as_str()).eq(example));
        assert!(
            matches!(&steps[2].args.command, Command::ExportIntermediate(kind) if kind.incremental)
        );
        assert!(matches!(&steps[3].args.command, Command::PruneIntermediate(prune) if prune.yes));
        let rules = "[lifecycle-remote]\nkeep-last-chains = 1\n";
        let main = "[main]\nzfs_fs = \"a\"\nremote = \"file:/x\"\nencryption_passphrase_file = \"/k\"\noldest_snapshot_days = 9\n";
        let defaults = Config::parse(
            &format!("{main}{rules}"),
            Path::new("x"),
            &Environment::default(),
        )
        .unwrap();
        let steps = parse_steps(&defaults).unwrap();
        let lines: Vec<&str> = steps.iter().map(|step| step.line.as_str()).collect();
        let expected = [
            "lock",
            "snapshot",
            "stream-to-remote",
            "verify-checksums",
            "prune-remote -y",
            "prune-snapshots -y",
            "unlock",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let steps = [
            "snapshto",
            "stream-to-remote --ful",
            "stream-to-remote -f -i",
            "-i export-intermediate",
            "-c /x.toml snapshot",
            "--json snapshot",
            "perform",
            "config check",
            "snapshot --help",
            "lock",
            "lock",
            "forget",
            "prune-remote -y --clock-is-right",
        ];
        insta::assert_snapshot!(parse_steps(&config(&steps)).unwrap_err().to_string(), @r#"
        zb.toml:6: backup-sequence.step01 is "snapshto": unrecognized subcommand 'snapshto'
          hint: did you mean `snapshot`?
        zb.toml:7: backup-sequence.step02 is "stream-to-remote --ful": unexpected argument '--ful' found
          hint: did you mean `--full`?
        zb.toml:8: backup-sequence.step03 is "stream-to-remote -f -i": the argument '--full' cannot be used with '--incremental'
        zb.toml:9: backup-sequence.step04 is "-i export-intermediate": -i before the command is --ignore-lock
          hint: for an incremental write it after the command: `stream-to-remote -i`
        zb.toml:10: backup-sequence.step05 is "-c /x.toml snapshot": -c is not for a step
          hint: give it to `zfs-backup perform`: it is for the whole run
        zb.toml:11: backup-sequence.step06 is "--json snapshot": --json is not for a step
          hint: give it to `zfs-backup perform`: it is for the whole run
        zb.toml:12: backup-sequence.step07 is "perform": a sequence cannot run itself
        zb.toml:13: backup-sequence.step08 is "config check": this command is for people, not for a sequence
        zb.toml:14: backup-sequence.step09 is "snapshot --help": it asks for help and does nothing
        zb.toml:16: backup-sequence.step11 is "lock": locks again
          expected: `unlock` before
        zb.toml:17: backup-sequence.step12 is "forget": the following required arguments were not provided: <ID>
        zb.toml:18: backup-sequence.step13 is "prune-remote -y --clock-is-right": --clock-is-right is for a person, not for a sequence
          hint: run the step by hand once; later runs use the time that it notes
        "#);
    }
}
