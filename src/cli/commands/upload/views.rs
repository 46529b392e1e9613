//! The results of a copy and of its dry run, for people and for programs.

use crate::cli::open::datasets::NamedDataset;
use crate::cli::screen::output::{Output, Render};
use crate::cli::screen::table::bytes;
use crate::model::{BackupId, BackupKind, DatasetName};
use crate::plan::copy::LeftReason;
use crate::run::copy::{CopiedBackup, UploadPlan, UploadReport};
use crate::run::error_chain;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// The document of a dry run.
#[derive(Serialize)]
pub(crate) struct CopyPlans {
    pub(crate) plans: Vec<DatasetPlan>,
}

/// The plan for one dataset.
#[derive(Serialize)]
pub(crate) struct DatasetPlan {
    pub(crate) dataset: DatasetName,
    pub(crate) copy: Vec<PlannedCopy>,
    #[serde(serialize_with = "with_reasons")]
    pub(crate) left: Vec<(BackupId, LeftReason)>,
}

#[derive(Serialize)]
pub(crate) struct PlannedCopy {
    pub(crate) id: BackupId,
    pub(crate) parent: Option<BackupId>,
    pub(crate) bytes: u64,
}

fn with_reasons<R: Serialize, S: Serializer>(
    backups: &[(BackupId, R)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct WithReason<'a, R> {
        id: &'a BackupId,
        reason: &'a R,
    }
    serializer.collect_seq(backups.iter().map(|(id, reason)| WithReason { id, reason }))
}

impl DatasetPlan {
    pub(super) fn new(named: &NamedDataset, planned: &UploadPlan) -> Self {
        let copy = planned.plan.copy.iter().map(|step| PlannedCopy {
            id: step.id.clone(),
            parent: step.parent.clone(),
            bytes: planned.bytes_of([&step.id]),
        });
        Self {
            dataset: named.stored.clone(),
            copy: copy.collect(),
            left: planned.plan.left.clone(),
        }
    }
}

impl Render for DatasetPlan {
    fn render(&self, output: &Output) {
        let Self {
            dataset,
            copy,
            left,
        } = self;
        let what = match copy.len() {
            0 => "nothing to copy".to_owned(),
            count => {
                let size = copy.iter().map(|step| step.bytes).sum();
                format!("would copy {count}, {}", bytes(size))
            }
        };
        output.line(format!("{dataset}: {what}{}", left_words(left)));
        for step in copy {
            output.line(format!("  copy {}, {}", step.id, bytes(step.bytes)));
        }
        for (id, reason) in left {
            if *reason != LeftReason::Committed {
                output.line(format!("  leave {id}: {reason}"));
            }
        }
    }
}

/// The document of a run.
#[derive(Default, Serialize)]
pub(crate) struct Uploads {
    pub(crate) uploads: Vec<DatasetUpload>,
    pub(crate) failed: Vec<DatasetName>,
}

/// The result for one dataset.
#[derive(Serialize)]
pub(crate) struct DatasetUpload {
    pub(crate) dataset: DatasetName,
    pub(crate) copied: Vec<CopiedBackup>,
    #[serde(serialize_with = "with_reasons")]
    pub(crate) left: Vec<(BackupId, LeftReason)>,
    #[serde(serialize_with = "with_reasons")]
    pub(crate) failed: Vec<(BackupId, String)>,
    #[serde(skip)]
    pub(crate) seconds: f64,
}

impl DatasetUpload {
    pub(super) fn new(named: &NamedDataset, report: &UploadReport, seconds: f64) -> Self {
        let failed = report.failed.iter();
        let failed = failed.map(|(id, error)| (id.clone(), error_chain(error)));
        Self {
            dataset: named.stored.clone(),
            copied: report.copied.clone(),
            left: report.left.clone(),
            failed: failed.collect(),
            seconds,
        }
    }
}

impl Render for DatasetUpload {
    fn render(&self, output: &Output) {
        let dataset = &self.dataset;
        for copied in &self.copied {
            render_copied(dataset, copied, output);
        }
        let what = match self.copied.len() {
            0 => "nothing copied".to_owned(),
            count => {
                let sent = self.copied.iter().map(|copied| copied.sent_bytes).sum();
                format!(
                    "{count} copied, {} sent, {:.1} s",
                    bytes(sent),
                    self.seconds
                )
            }
        };
        output.line(format!("{dataset}: {what}{}", left_words(&self.left)));
        for (id, reason) in &self.left {
            if let LeftReason::Twin { .. } = reason {
                output.line(format!("  left {id}: {reason}"));
            }
        }
    }
}

fn render_copied(dataset: &DatasetName, copied: &CopiedBackup, output: &Output) {
    let CopiedBackup {
        id,
        chunks,
        stored_bytes,
        sent_bytes,
        by_size_only,
    } = copied;
    let kind = if id.kind() == BackupKind::Full {
        "full"
    } else {
        "incremental"
    };
    let there = stored_bytes - sent_bytes;
    let kept = if there > 0 {
        format!(", {} of them already stored", bytes(there))
    } else {
        String::new()
    };
    output.line(format!("{dataset}: copied {id}"));
    output.line(format!(
        "  {kind}, {} in {chunks} chunks{kept}",
        bytes(*stored_bytes)
    ));
    if *by_size_only > 0 {
        output.note(&format!(
            "of {by_size_only} chunks that existed already the store confirms only the size"
        ));
    }
}

/// Describes backups that are not copied, such as `, 21 already stored`; empty without any.
fn left_words(left: &[(BackupId, LeftReason)]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, reason) in left {
        let words = match reason {
            LeftReason::Committed => "already stored",
            LeftReason::Twin { .. } => "with an identical one there",
            LeftReason::Pruned => "pruned in the remote",
            LeftReason::WouldBePruned => "that would be pruned at once",
        };
        *counts.entry(words).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|(words, count)| format!(", {count} {words}"))
        .collect()
}
