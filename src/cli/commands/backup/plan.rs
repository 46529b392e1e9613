//! The plan of one dataset in a dry run, and the form that plans and results share.

use crate::cli::screen::output::{Output, Render};
use crate::cli::screen::table::bytes;
use crate::config::Config;
use crate::model::{BackupLevel, DatasetName};
use crate::plan::send::SendPlan;
use crate::run::backup::{PlannedBackup, PlannedResume};
use serde::Serialize;

/// A result or plan of one dataset.
#[derive(Serialize)]
pub(crate) struct DatasetResult<T> {
    pub(crate) dataset: DatasetName,
    #[serde(flatten)]
    pub(crate) result: T,
}

impl<T> DatasetResult<T> {
    pub(super) fn new(dataset: &DatasetName, result: T) -> Self {
        Self {
            dataset: dataset.clone(),
            result,
        }
    }
}

#[derive(Serialize)]
#[serde(tag = "plan", rename_all = "kebab-case")]
pub(crate) enum Plan {
    Resume {
        #[serde(flatten)]
        resume: PlannedResume,
        split_bytes: u64,
    },
    #[serde(untagged)]
    Send {
        #[serde(flatten)]
        plan: SendPlan,
        /// The size; `None` without an upload.
        #[serde(skip_serializing_if = "Option::is_none")]
        estimate: Option<Estimate>,
    },
}

/// The size of a planned upload; `None` when ZFS gave no estimate.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Estimate {
    pub(crate) bytes: Option<u64>,
    pub(crate) chunks: Option<u64>,
}

impl Plan {
    pub(super) fn new(planned: PlannedBackup, config: &Config) -> Self {
        let bytes = planned.estimate_bytes;
        let split_bytes = config.split_size.bytes();
        let estimate = Estimate {
            bytes,
            chunks: bytes.map(|bytes| bytes.div_ceil(split_bytes).max(1)),
        };
        let sends = matches!(
            planned.plan,
            SendPlan::Full { .. } | SendPlan::Incremental { .. }
        );
        Self::Send {
            plan: planned.plan,
            estimate: sends.then_some(estimate),
        }
    }
}

impl Render for DatasetResult<Plan> {
    fn render(&self, output: &Output) {
        let dataset = &self.dataset;
        let (plan, estimate) = match &self.result {
            Plan::Send { plan, estimate } => (plan, estimate),
            Plan::Resume {
                resume,
                split_bytes,
            } => return render_resume(dataset, resume, *split_bytes, output),
        };
        let size = match estimate {
            Some(Estimate {
                bytes: Some(estimate),
                chunks: Some(chunks),
            }) => format!("about {}, {chunks} chunks", bytes(*estimate)),
            _ => "size not known".to_owned(),
        };
        output.line(match plan {
            SendPlan::UpToDate { id } => {
                format!("{dataset}: up to date, {id} holds the newest snapshot")
            }
            SendPlan::Unchanged { snapshot, id } => format!(
                "{dataset}: unchanged: {id} already has the state of @{}",
                snapshot.name.short()
            ),
            SendPlan::Full {
                snapshot,
                why,
                level,
            } => format!(
                "{dataset} {}FULL ({why}) of @{}: {size}",
                level_word(*level),
                snapshot.name.short()
            ),
            SendPlan::Incremental {
                snapshot,
                base,
                backup,
                level,
            } => format!(
                "{dataset} {}incremental of @{}: {size}\n  from {base} ({})\n  on {}",
                level_word(*level),
                snapshot.name.short(),
                backup.snapshot.created_at.strftime("%Y-%m-%d"),
                backup.id
            ),
        });
    }
}

/// Returns the level with a space, or nothing without a level.
fn level_word(level: Option<BackupLevel>) -> String {
    level.map_or_else(String::new, |level| format!("{level} "))
}

fn render_resume(dataset: &DatasetName, resume: &PlannedResume, split_bytes: u64, output: &Output) {
    let PlannedResume {
        id,
        chunks,
        stream_bytes,
        resumes_at,
        why_not,
    } = resume;
    let kept = format!("{chunks} chunks ({}) are confirmed", bytes(*stream_bytes));
    match resumes_at {
        Some(position) => {
            output.line(format!("{dataset} resumes {id}"));
            let next = position / split_bytes;
            output.line(format!(
                "  {kept}; ZFS is read again from {}, in chunk {next}",
                bytes(*position)
            ));
        }
        None => {
            let why = why_not.as_deref().unwrap_or("for an unknown reason");
            output.line(format!("{dataset} does not resume {id}: {why}"));
            output.line(format!("  {kept}"));
        }
    }
}
