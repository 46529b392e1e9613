//! `upload-intermediate-to-remote`.

pub(crate) mod views;

use crate::cli::args::{Source, Upload};
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::lock::wait_for_others;
use crate::cli::open::access::Access;
use crate::cli::open::datasets::{NamedDataset, datasets_to_change};
use crate::cli::open::keys::keys_for_writing;
use crate::cli::open::reading::{open_configured, trusted_keys};
use crate::cli::open::{history, kept_config};
use crate::cli::parallel::for_each_dataset;
use crate::cli::screen::output::Output;
use crate::cli::screen::progress::UploadProgress;
use crate::model::BackupId;
use crate::plan::BackupFacts;
use crate::plan::copy::doomed;
use crate::run::RunError;
use crate::run::backup::StoreRole;
use crate::run::copy::{
    CopyPool, UploadEnv, UploadPlan, UploadReport, UploadRules, plan_upload, refusal,
    upload_dataset,
};
use crate::run::identity::refuse_one_place;
use crate::run::transfer::ProgressSink;
use crate::store::StoreRead;
use jiff::Timestamp;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use views::{CopyPlans, DatasetPlan, DatasetUpload, Uploads};

pub(crate) async fn upload(context: &Context, args: &Upload) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let access = Access::to_write(context);
    let mut from = setup.open(StoreRole::Intermediate, Access::Read).await?;
    let is_unused = from.is_unused().await? && !from.known().id.is_random();
    if !is_unused {
        from = setup.open(StoreRole::Intermediate, access).await?;
    } else if access == Access::Write {
        // A store without exports must not get an identity or keys.
        return nothing_to_copy(context, &datasets_to_change(context, &*from).await?);
    }
    let to = setup.open(StoreRole::Remote, access).await?;
    // Check this before keys are put anywhere.
    refuse_one_place(&from.known(), &to.known())?;
    let datasets = datasets_to_change(context, &*from).await?;
    let lifecycle = &config.lifecycle_remote;
    let now = Timestamp::now();
    let would_be_pruned =
        |remote: &[BackupFacts], local: &[BackupFacts]| doomed(remote, local, lifecycle, now);
    let rules = UploadRules {
        all: args.all,
        would_be_pruned: &would_be_pruned,
    };
    if context.global.dry_run {
        return dry_run(context, &datasets, &*from, &*to, &rules).await;
    }
    // Set up the keys of the directory first: its backups are sealed to them, and the remote must
    // have them too.
    keys_for_writing(setup, &*from).await?;
    let keys = keys_for_writing(setup, &*to).await?;
    let pool = CopyPool::default();
    let mut results = Vec::new();
    for_each_dataset(
        context,
        &datasets,
        |named| &named.in_pool,
        async |named| {
            let shown = ShownProgress::new(&context.output, named.stored.as_str());
            let upload = UploadEnv {
                from: from.clone(),
                to: Arc::clone(&to),
                pool: pool.clone(),
                keys: keys.clone(),
                state_dir: config.state_dir.clone(),
                now: Timestamp::now,
                progress: shown.begin(),
                stop: context.stop.clone(),
            };
            let started = Instant::now();
            let outcome = wait_for_others(context, async || {
                upload_dataset(&upload, &named.stored, &rules).await
            })
            .await;
            shown.finish();
            match outcome {
                Ok(report) => {
                    history::copied(config, &*to, &named.stored, report.copied.last());
                    let seconds = started.elapsed().as_secs_f64();
                    let upload = DatasetUpload::new(named, &report, seconds);
                    let upload = context.output.printed(upload);
                    settle(context, named, report);
                    Some(upload)
                }
                Err(error) => {
                    context.failed(&named.in_pool, &Failure::Run(error));
                    None
                }
            }
        },
        |_, upload| results.extend(upload),
    )
    .await;
    if !results.is_empty() {
        kept_config::keep(config, &*to, &keys).await;
    }
    context.output.json(&Uploads {
        uploads: results,
        failed: context.failed_datasets(),
    });
    context.verdict()
}

fn nothing_to_copy(context: &Context, datasets: &[NamedDataset]) -> Result<(), Failure> {
    context
        .output
        .line("the intermediate directory is empty: nothing to copy");
    context.output.json(&Uploads::default());
    datasets
        .iter()
        .for_each(|named| context.done(&named.in_pool, 0));
    context.verdict()
}

/// Adds the result of a dataset to the context. Each failure is printed; the most serious one is
/// the dataset's.
fn settle(context: &Context, named: &NamedDataset, report: UploadReport) {
    let sent_bytes = report.copied.iter().map(|copied| copied.sent_bytes).sum();
    if report.failed.is_empty() {
        return context.done(&named.in_pool, sent_bytes);
    }
    context.moved(sent_bytes);
    fail_all(context, named, report.failed);
}

fn fail_all(context: &Context, named: &NamedDataset, failed: Vec<(BackupId, RunError)>) {
    let mut failures: Vec<Failure> = failed
        .into_iter()
        .map(|(_, error)| Failure::Run(error))
        .collect();
    failures.sort_by_key(Failure::status);
    for failure in &failures {
        context.failed(&named.in_pool, failure);
    }
}

async fn dry_run(
    context: &Context,
    datasets: &[NamedDataset],
    from: &dyn StoreRead,
    to: &dyn StoreRead,
    rules: &UploadRules<'_>,
) -> Result<(), Failure> {
    // The keys are read as in reading commands: no key is made or put.
    let side = open_configured(context.setup()?, StoreRole::Intermediate).await?;
    let trusted = trusted_keys(
        &side,
        &Source {
            remote: None,
            identity: None,
        },
    )
    .await?;
    let mut plans = Vec::new();
    let finish = |named: &NamedDataset, planned: Result<UploadPlan, RunError>| match planned {
        Ok(planned) => {
            plans.push(context.output.printed(DatasetPlan::new(named, &planned)));
            let UploadPlan {
                plan,
                mut untrusted,
                ..
            } = planned;
            untrusted.extend(
                plan.refused
                    .into_iter()
                    .map(|(id, gap)| (id, refusal(&named.stored, &gap))),
            );
            match untrusted.is_empty() {
                true => context.done(&named.in_pool, 0),
                false => fail_all(context, named, untrusted),
            }
        }
        Err(error) => context.failed(&named.in_pool, &Failure::Run(error)),
    };
    for_each_dataset(
        context,
        datasets,
        |named| &named.in_pool,
        async |named| plan_upload(from, to, &trusted, &named.stored, rules).await,
        finish,
    )
    .await;
    context.output.json(&CopyPlans { plans });
    context.verdict()
}

/// The progress of one dataset. The amount of work is known only after the planning.
struct ShownProgress {
    output: Arc<Output>,
    name: String,
    shown: Arc<Mutex<Option<UploadProgress>>>,
}

impl ShownProgress {
    fn new(output: &Arc<Output>, name: &str) -> Self {
        Self {
            output: Arc::clone(output),
            name: name.to_owned(),
            shown: Arc::default(),
        }
    }

    fn begin(&self) -> Arc<dyn Fn(u64) -> ProgressSink + Send + Sync> {
        let output = Arc::clone(&self.output);
        let name = self.name.clone();
        let shown = Arc::clone(&self.shown);
        Arc::new(move |total_bytes| {
            let progress = UploadProgress::new(&output, &name);
            progress.expect(total_bytes);
            let sink = progress.sink();
            *shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress);
            sink
        })
    }

    fn finish(&self) {
        if let Some(progress) = self
            .shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            progress.finish();
        }
    }
}
