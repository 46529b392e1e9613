//! The report of a run of `perform`: as a table, as JSON, and as the message that a hook may mail.

use crate::cli::args::sequence::ParsedStep;
use crate::cli::context::Tally;
use crate::cli::failure::status;
use crate::cli::screen::output::{Said, display_path};
use crate::cli::screen::table::{age, bytes, table};
use crate::model::DatasetName;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::path::PathBuf;

/// Limits for the columns of the table with text of any length, so that a line has at most 80
/// characters.
const NAME_CHARS_MAX: usize = 7;
const COMMAND_CHARS_MAX: usize = 29;
const RESULT_CHARS_MAX: usize = 23;

/// A step with its result.
#[derive(Debug, Serialize)]
pub(crate) struct StepReport {
    /// The key of the step: `step03`.
    #[serde(rename = "step")]
    pub(crate) name: String,
    /// The command line of the step.
    #[serde(rename = "command")]
    pub(crate) line: String,
    /// Whether the step was started.
    #[serde(rename = "run")]
    pub(crate) was_run: bool,
    /// The exit status of the step.
    #[serde(skip)]
    pub(crate) status: u8,
    /// The results of the datasets.
    #[serde(flatten)]
    pub(crate) tally: Tally,
    /// The duration of the step.
    pub(crate) seconds: f64,
    /// The first error, if there was one.
    #[serde(skip)]
    pub(crate) said: Option<Said>,
    /// The JSON that the step printed.
    pub(crate) output: Vec<Value>,
}

impl StepReport {
    /// Returns the report of a step that was not run because an earlier step ended the sequence.
    pub(crate) fn not_run(step: &ParsedStep) -> Self {
        Self {
            name: step.name.clone(),
            line: step.line.clone(),
            was_run: false,
            status: status::DONE,
            tally: Tally::default(),
            seconds: 0.0,
            said: None,
            output: Vec::new(),
        }
    }

    /// Returns `2 ok 1 FAILED 1 skipped`, or a word where there is nothing to count.
    fn result(&self) -> String {
        if !self.was_run {
            return "not run".to_owned();
        }
        let Tally {
            done,
            paused,
            failed,
            skipped,
            ..
        } = &self.tally;
        let counts = [
            (done.len() - paused.len(), "ok"),
            (paused.len(), "paused"),
            (failed.len(), "FAILED"),
            (skipped.len(), "skipped"),
        ];
        let counted = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"));
        let counted: Vec<String> = counted.collect();
        match self.status {
            status::DONE | status::PARTIAL if !counted.is_empty() => counted.join(" "),
            status::DONE => "ok".to_owned(),
            status::FAILED if !failed.is_empty() => counted.join(" "),
            status => word(status).to_owned(),
        }
    }

    fn row(&self) -> Vec<String> {
        let (bytes, time) = match (self.was_run, self.tally.bytes) {
            (false, _) => ("-".to_owned(), "-".to_owned()),
            (true, 0) => ("-".to_owned(), duration(self.seconds)),
            (true, count) => (bytes(count), duration(self.seconds)),
        };
        vec![
            shortened(&self.name, NAME_CHARS_MAX),
            shortened(&self.line, COMMAND_CHARS_MAX),
            shortened(&self.result(), RESULT_CHARS_MAX),
            bytes,
            time,
        ]
    }

    fn document(&self) -> StepDocument<'_> {
        StepDocument {
            step: self,
            exit_status: self.was_run.then_some(self.status),
            error: ErrorText::new(self.said.as_ref()),
        }
    }
}

/// A step in the document of `perform`.
#[derive(Serialize)]
pub(crate) struct StepDocument<'a> {
    #[serde(flatten)]
    pub(crate) step: &'a StepReport,
    pub(crate) exit_status: Option<u8>,
    #[serde(flatten)]
    pub(crate) error: ErrorText<'a>,
}

/// The document of `perform`.
#[derive(Serialize)]
pub(crate) struct RunDocument<'a> {
    pub(crate) format: u32,
    #[serde(flatten)]
    pub(crate) run: &'a RunReport,
    #[serde(flatten)]
    pub(crate) error: ErrorText<'a>,
    pub(crate) steps: Vec<StepDocument<'a>>,
}

#[derive(Serialize)]
pub(crate) struct ErrorText<'a> {
    pub(crate) error: Option<&'a str>,
    pub(crate) hint: Option<&'a str>,
}

impl<'a> ErrorText<'a> {
    fn new(said: Option<&'a Said>) -> Self {
        Self {
            error: said.map(|said| said.text.as_str()),
            hint: said.and_then(|said| said.hint.as_deref()),
        }
    }
}

/// The document that a hook reads.
#[derive(Serialize)]
pub(crate) struct HookDocument<'a> {
    #[serde(flatten)]
    pub(crate) run: RunDocument<'a>,
    pub(crate) log: Vec<String>,
    pub(crate) message: String,
}

/// The report of a run.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    /// The name of this host.
    pub(crate) host: String,
    /// The configuration file.
    #[serde(rename = "config", serialize_with = "display_path")]
    pub(crate) config_file: PathBuf,
    /// The configured datasets.
    #[serde(rename = "datasets")]
    pub(crate) names: Vec<DatasetName>,
    /// When the run started.
    pub(crate) started_at: Timestamp,
    /// When a run last succeeded, if this one did not and that time is known.
    pub(crate) last_success: Option<Timestamp>,
    /// The steps, in order.
    #[serde(skip)]
    pub(crate) steps: Vec<StepReport>,
    /// The exit status.
    #[serde(rename = "exit_status")]
    pub(crate) status: u8,
    /// The duration of the run.
    pub(crate) seconds: f64,
    /// The first error outside the steps.
    #[serde(skip)]
    pub(crate) said: Option<Said>,
}

impl RunReport {
    /// Returns the summary, at most 80 characters wide.
    pub(crate) fn table(&self) -> Vec<String> {
        let heading = ["STEP", "COMMAND", "RESULT", "BYTES", "TIME"]
            .map(str::to_owned)
            .to_vec();
        let rows: Vec<_> = std::iter::once(heading)
            .chain(self.steps.iter().map(StepReport::row))
            .collect();
        let mut lines = if self.steps.is_empty() {
            Vec::new()
        } else {
            table(&rows, &[3, 4])
        };
        lines.push(format!(
            "{}, exit status {}, {}",
            word(self.status),
            self.status,
            duration(self.seconds)
        ));
        lines
    }

    /// Returns the report for programs.
    pub(crate) fn document(&self) -> RunDocument<'_> {
        RunDocument {
            format: 1,
            run: self,
            error: ErrorText::new(self.first_error()),
            steps: self.steps.iter().map(StepReport::document).collect(),
        }
    }

    /// Returns the step that failed first. A step that failed for some datasets counts only if no
    /// step failed completely.
    fn failed_step(&self) -> Option<&StepReport> {
        let worst = self
            .steps
            .iter()
            .map(|step| step.status)
            .fold(status::DONE, status::worst);
        self.steps
            .iter()
            .find(|step| step.status == worst && worst != status::DONE)
    }

    fn first_error(&self) -> Option<&Said> {
        self.failed_step()
            .and_then(|step| step.said.as_ref())
            .or(self.said.as_ref())
    }

    /// Returns the datasets that failed; all datasets, when the failure belongs to none of them.
    fn concerned(&self) -> Vec<&DatasetName> {
        let mut failed: Vec<_> = self
            .steps
            .iter()
            .flat_map(|step| step.tally.failed.keys())
            .collect();
        failed.sort_unstable();
        failed.dedup();
        if failed.is_empty() {
            self.names.iter().collect()
        } else {
            failed
        }
    }

    /// Returns the message for a person, in a few lines.
    pub(crate) fn message(&self) -> String {
        let names: Vec<String> = self.concerned().iter().map(ToString::to_string).collect();
        let names = names.join(", ");
        if self.status == status::DONE {
            let stored: u64 = self.steps.iter().map(|step| step.tally.bytes).sum();
            let time = duration(self.seconds);
            return format!("{names} ok on {}: {} in {time}\n", self.host, bytes(stored));
        }
        let last = match self.last_success {
            None => "no run has succeeded yet".to_owned(),
            Some(at) => format!("last good run {} ago", age(self.started_at, at)),
        };
        let mut lines = vec![format!(
            "{names} {} on {}, {last}",
            word(self.status),
            self.host
        )];
        if let Some(step) = self.failed_step() {
            lines.push(format!("at   {} {}", step.name, step.line));
        }
        if let Some(said) = self.first_error() {
            lines.push(format!("why  {}", said.text));
            lines.extend(said.hint.as_ref().map(|hint| format!("do   {hint}")));
        }
        let quoted = quoted(&self.config_file);
        lines.push(format!("     then zfs-backup -c {quoted} perform"));
        let list = |run: bool| -> Vec<&str> {
            let wanted = self
                .steps
                .iter()
                .filter(|step| step.was_run == run && step.status == status::DONE);
            wanted.map(|step| step.line.as_str()).collect()
        };
        for (what, steps) in [("done", list(true)), ("not run", list(false))] {
            if !steps.is_empty() {
                lines.push(format!("{what}: {}", steps.join(", ")));
            }
        }
        lines.join("\n") + "\n"
    }

    /// Returns the environment variables of a hook, except host and configuration.
    pub(crate) fn variables(&self, log: &[String]) -> Vec<(&'static str, String)> {
        let step = self.failed_step();
        let names: Vec<String> = self.concerned().iter().map(ToString::to_string).collect();
        vec![
            (
                "ZFS_BACKUP_STEP",
                step.map(|step| step.name.clone()).unwrap_or_default(),
            ),
            (
                "ZFS_BACKUP_COMMAND",
                step.map(|step| step.line.clone()).unwrap_or_default(),
            ),
            (
                "ZFS_BACKUP_DATASET",
                names.first().cloned().unwrap_or_default(),
            ),
            ("ZFS_BACKUP_DATASETS", names.join("\n")),
            (
                "ZFS_BACKUP_ERROR",
                self.first_error()
                    .map(|said| said.text.clone())
                    .unwrap_or_default(),
            ),
            ("ZFS_BACKUP_EXIT_STATUS", self.status.to_string()),
            ("ZFS_BACKUP_DURATION", format!("{:.0}", self.seconds)),
            ("ZFS_BACKUP_MESSAGE", self.message()),
            ("ZFS_BACKUP_LOG", log.join("\n")),
        ]
    }
}

fn quoted(path: &std::path::Path) -> String {
    shell_words::quote(&path.display().to_string()).into_owned()
}

/// Returns the meaning of an exit status, in a word or two.
fn word(status: u8) -> &'static str {
    match status {
        status::DONE => "ok",
        status::PARTIAL => "PARTLY FAILED",
        status::DAMAGE => "DAMAGED",
        status::LOCKED => "LOCKED",
        status::INTERRUPTED => "INTERRUPTED",
        _ => "FAILED",
    }
}

/// Returns a duration as seconds, as minutes and seconds, or as hours and minutes.
fn duration(seconds: f64) -> String {
    let whole = std::time::Duration::from_secs_f64(seconds.max(0.0)).as_secs();
    match whole {
        0..60 => format!("{whole}s"),
        60..3600 => format!("{}m {}s", whole / 60, whole % 60),
        _ => format!("{}h {}m", whole / 3600, whole % 3600 / 60),
    }
}

/// Returns at most `chars_max` characters of the text; a `~` at the end shows that the text was
/// cut.
fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max - 1).chain(['~']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn step(
        name: &str,
        line: &str,
        status: u8,
        counts: [usize; 3],
        bytes: u64,
        seconds: f64,
    ) -> StepReport {
        let name_of = |n: usize| -> DatasetName { format!("tank/{n}").parse().unwrap() };
        let [done, failed, skipped] = counts;
        let tally = Tally {
            done: (0..done).map(name_of).collect(),
            failed: (10..10 + failed)
                .map(|n| (name_of(n), (1, "B2 401: key deleted".to_owned())))
                .collect(),
            skipped: (10..10 + skipped).map(name_of).collect(),
            paused: BTreeSet::new(),
            bytes,
            is_incomplete: false,
        };
        let said = (status != 0).then(|| Said {
            text: "B2 401: key 0021 deleted or lacks writeFiles".into(),
            hint: Some("put the new key in b2.key".into()),
        });
        let (name, line) = (name.to_owned(), line.to_owned());
        StepReport {
            name,
            line,
            was_run: true,
            status,
            tally,
            seconds,
            said,
            output: Vec::new(),
        }
    }

    fn not_run(name: &str, line: &str) -> StepReport {
        StepReport {
            was_run: false,
            ..step(name, line, 0, [0; 3], 0, 0.0)
        }
    }

    fn run(status: u8, steps: Vec<StepReport>) -> RunReport {
        let started_at: Timestamp = "2026-11-23T01:00:00Z".parse().unwrap();
        RunReport {
            host: "nas1".into(),
            config_file: "/etc/zfs-backup/photos and films.toml".into(),
            names: vec![
                "tank/photos".parse().unwrap(),
                "tank/films".parse().unwrap(),
            ],
            started_at,
            last_success: (status != 0).then(|| "2026-11-21T23:00:00Z".parse().unwrap()),
            steps,
            status,
            seconds: 427.4,
            said: None,
        }
    }

    fn partial() -> RunReport {
        run(
            status::PARTIAL,
            vec![
                step("step01", "lock", 0, [0, 0, 0], 0, 0.1),
                step("step02", "snapshot", 0, [3, 0, 0], 0, 0.4),
                step(
                    "step03",
                    "stream-to-remote",
                    3,
                    [2, 1, 0],
                    2_254_857_830,
                    420.0,
                ),
                step(
                    "step04",
                    "upload-intermediate-to-remote --all",
                    0,
                    [2, 0, 1],
                    0,
                    7200.0,
                ),
                step("step100", "unlock", 0, [0, 0, 0], 0, 0.0),
            ],
        )
    }

    fn failed(status: u8) -> RunReport {
        let steps = vec![
            step("step01", "lock", 0, [0, 0, 0], 0, 0.1),
            step("step02", "verify-checksums", status, [0, 0, 0], 0, 3.0),
            not_run("step03", "prune-remote -y"),
            not_run("step04", "unlock"),
        ];
        run(status, steps)
    }

    #[test]
    fn the_summary_fits_80_columns() {
        insta::assert_snapshot!(partial().table().join("\n"), @r"
        STEP     COMMAND                        RESULT          BYTES   TIME
        step01   lock                           ok                  -     0s
        step02   snapshot                       3 ok                -     0s
        step03   stream-to-remote               2 ok 1 FAILED   2.09G  7m 0s
        step04   upload-intermediate-to-remot~  2 ok 1 skipped      -  2h 0m
        step100  unlock                         ok                  -     0s
        PARTLY FAILED, exit status 3, 7m 7s
        ");
        insta::assert_snapshot!(failed(status::DAMAGE).table().join("\n"), @r"
        STEP    COMMAND           RESULT   BYTES  TIME
        step01  lock              ok           -    0s
        step02  verify-checksums  DAMAGED      -    3s
        step03  prune-remote -y   not run      -     -
        step04  unlock            not run      -     -
        DAMAGED, exit status 4, 7m 7s
        ");
        let mut long = partial();
        let name = "x".repeat(60);
        long.steps.push(step(
            &name,
            &name,
            3,
            [1000, 1000, 1000],
            u64::MAX,
            3_599_999.0,
        ));
        for line in long.table() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn report_message_names_the_failed_step_cause_and_remedy() {
        insta::assert_snapshot!(partial().message(), @r"
        tank/10 PARTLY FAILED on nas1, last good run 26h ago
        at   step03 stream-to-remote
        why  B2 401: key 0021 deleted or lacks writeFiles
        do   put the new key in b2.key
             then zfs-backup -c '/etc/zfs-backup/photos and films.toml' perform
        done: lock, snapshot, upload-intermediate-to-remote --all, unlock
        ");
        insta::assert_snapshot!(failed(status::INTERRUPTED).message(), @r"
        tank/photos, tank/films INTERRUPTED on nas1, last good run 26h ago
        at   step02 verify-checksums
        why  B2 401: key 0021 deleted or lacks writeFiles
        do   put the new key in b2.key
             then zfs-backup -c '/etc/zfs-backup/photos and films.toml' perform
        done: lock
        not run: prune-remote -y, unlock
        ");
        let mut well = partial();
        well.steps.remove(2);
        well.status = status::DONE;
        insta::assert_snapshot!(well.message(), @"tank/photos, tank/films ok on nas1: 0 in 7m 7s");
        let mut never = failed(status::FAILED);
        never.last_success = None;
        assert!(never.message().contains("no run has succeeded yet"));
    }

    #[test]
    fn hook_variables_name_the_worst_step_and_the_failed_datasets() {
        let mut report = partial();
        report
            .steps
            .push(step("step09", "verify-checksums", 4, [0, 0, 0], 0, 1.0));
        report.status = status::DAMAGE;
        let variables = report.variables(&["a".into(), "b".into()]);
        let value = |name: &str| {
            variables
                .iter()
                .find(|(other, _)| *other == name)
                .map(|(_, value)| value.as_str())
        };
        assert_eq!(value("ZFS_BACKUP_STEP"), Some("step09"));
        assert_eq!(value("ZFS_BACKUP_COMMAND"), Some("verify-checksums"));
        assert_eq!(value("ZFS_BACKUP_DATASET"), Some("tank/10"));
        assert_eq!(value("ZFS_BACKUP_EXIT_STATUS"), Some("4"));
        assert_eq!(value("ZFS_BACKUP_DURATION"), Some("427"));
        assert_eq!(value("ZFS_BACKUP_LOG"), Some("a\nb"));
        let of_none = failed(status::DAMAGE).variables(&[]);
        assert!(of_none.contains(&("ZFS_BACKUP_DATASETS", "tank/photos\ntank/films".to_owned())));
        let document = serde_json::to_value(report.document()).unwrap();
        assert_eq!(document["steps"][2]["failed"][0]["dataset"], "tank/10");
        assert_eq!(document["steps"][2]["exit_status"], 3);
        let document = serde_json::to_value(failed(4).document()).unwrap();
        assert_eq!(document["steps"][3]["exit_status"], Value::Null);
    }

    #[test]
    fn config_path_that_is_not_utf_8_is_written_lossily() {
        let mut report = partial();
        report.config_file = OsStr::from_bytes(b"/etc/\xff.toml").into();
        let document = serde_json::to_value(report.document()).unwrap();
        assert_eq!(document["config"], "/etc/\u{fffd}.toml");
    }
}
