//! `perform`: the steps of `[backup-sequence]` in order, then the summary and the hooks.

pub(crate) mod report;

use crate::cli::args::Global;
use crate::cli::args::sequence::{ParsedStep, parse_steps};
use crate::cli::commands::run_command;
use crate::cli::context::Context;
use crate::cli::failure::{Failure, status};
use crate::cli::perform::report::{HookDocument, RunReport, StepReport};
use crate::cli::screen::output::to_value;
use crate::config::Config;
use crate::model::DatasetName;
use crate::run::RunError;
use crate::run::hooks::{HookCall, run_hook};
use crate::state::dir::sweep_leftovers;
use crate::state::last_success::{last_success, note_success};
use crate::state::process::host_name;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

pub(crate) async fn perform(context: &Context) -> Result<(), Failure> {
    let config = &context.setup()?.config;
    let started_at = Timestamp::now();
    let started = Instant::now();
    let mut report = RunReport {
        host: host_name(),
        config_file: config.file.clone(),
        names: config.datasets.names.clone(),
        started_at,
        last_success: None,
        steps: Vec::new(),
        status: status::DONE,
        seconds: 0.0,
        said: None,
    };
    match parse_steps(config) {
        Ok(steps) => run_steps(context, &steps, &mut report).await,
        Err(error) => {
            let failure = Failure::Config(error);
            failure.print(&context.output);
            report.status = failure.status();
            report.said = context.output.first_error();
        }
    }
    if *context.stop.borrow() {
        report.status = status::worst(report.status, status::INTERRUPTED);
    }
    // The lock of this run ends with the run, whatever its result.
    match context.leftovers.release_lock() {
        Ok(None | Some(true)) => {}
        Ok(Some(false)) => context
            .output
            .always("the lock of this run was taken away while it worked"),
        Err(error) => {
            let failure = Failure::from(error);
            failure.print(&context.output);
            report.status = status::worst(report.status, failure.status());
            report.said = report.said.or(context.output.first_error());
        }
    }
    report.seconds = started.elapsed().as_secs_f64();
    if !context.global.dry_run {
        remember(config, &mut report);
    }
    report
        .table()
        .iter()
        .for_each(|line| context.output.line(line));
    context.output.json(&report.document());
    if !context.global.dry_run {
        conclude(context, config, &mut report).await;
    }
    if report.status == status::DONE {
        Ok(())
    } else {
        Err(Failure::Reported(report.status))
    }
}

async fn run_steps(context: &Context, steps: &[ParsedStep], report: &mut RunReport) {
    let mut skip = BTreeSet::new();
    let mut continues = true;
    for step in steps {
        if !continues || *context.stop.borrow() {
            report.steps.push(StepReport::not_run(step));
            continue;
        }
        let ended = run_step(context, step, &skip).await;
        skip.extend(ended.tally.failed.keys().cloned());
        report.status = status::worst(report.status, ended.status);
        continues = lets_others_run(ended.status);
        report.steps.push(ended);
    }
}

/// Returns whether the next steps run. A step that failed for some datasets leaves the others to
/// the next step; any other failure ends the sequence.
fn lets_others_run(status: u8) -> bool {
    matches!(status, status::DONE | status::PARTIAL)
}

async fn run_step(
    context: &Context,
    step: &ParsedStep,
    skip: &BTreeSet<DatasetName>,
) -> StepReport {
    let own = &step.args.global;
    let global = Global {
        dry_run: context.global.dry_run || own.dry_run,
        lock_wait: own.lock_wait.or(context.global.lock_wait),
        parallel_datasets: own.parallel_datasets.or(context.global.parallel_datasets),
        ..context.global.clone()
    };
    context
        .output
        .line(format!("-- {} {}", step.name, step.line));
    let output = Arc::new(context.output.for_step());
    let inner = context.step(&step.name, global, Arc::clone(&output), skip.clone());
    let started = Instant::now();
    let command = &step.args.command;
    let work = Box::pin(run_command(command, &inner));
    let result = inner.end_after_stop(command, work).await;
    if let Err(failure) = &result {
        failure.print(&output);
    }
    StepReport {
        name: step.name.clone(),
        line: step.line.clone(),
        was_run: true,
        status: result.map_or_else(|failure| failure.status(), |()| status::DONE),
        tally: inner.tally(),
        seconds: started.elapsed().as_secs_f64(),
        said: output.first_error(),
        output: output.captured(),
    }
}

/// Records a success, or reads when the last one was. Errors of both are only logged.
fn remember(config: &Config, report: &mut RunReport) {
    // `state_dir` has folders with files, and some of these have a folder for each dataset and
    // store.
    match sweep_leftovers(&config.state_dir, 2) {
        Ok(0) => {}
        Ok(removed) => tracing::debug!(removed, "removed temporary files of runs that crashed"),
        Err(error) => {
            tracing::warn!(%error, "temporary files of runs that crashed stay in {}", config.state_dir.display())
        }
    }
    if report.status == status::DONE {
        if let Err(error) = note_success(&config.state_dir, &config.file, Timestamp::now()) {
            tracing::warn!(
                error = crate::run::error_chain(&error),
                "cannot note the time of this success"
            );
        }
        return;
    }
    let known = last_success(&config.state_dir, &config.file);
    report.last_success = known.unwrap_or_else(|error| {
        tracing::warn!(
            error = crate::run::error_chain(&error),
            "the time of the last success is not known"
        );
        None
    });
}

/// Runs `on_success` after a run that ended with 0, `on_failure` after every other. The result of
/// the hook does not change the run's status, except when the run is asked to stop while the hook
/// runs.
async fn conclude(context: &Context, config: &Config, report: &mut RunReport) {
    let hooks = &config.hooks;
    let (key, command) = match report.status {
        status::DONE => ("main.on_success", &hooks.on_success),
        _ => ("main.on_failure", &hooks.on_failure),
    };
    let Some(command) = command else { return };
    let mut variables = context.hook_variables(config);
    variables.extend(report.variables(&context.output.log_lines()));
    let document = to_value(&HookDocument {
        run: report.document(),
        log: context.output.log_lines(),
        message: report.message(),
    });
    let input = Some(format!("{document:#}\n"));
    let call = HookCall {
        key,
        command,
        time_max: hooks.timeout,
        variables,
        input,
    };
    // The request to stop that ended the run must not end the hook that reports it; a second
    // request ends everything.
    let stop = (!*context.stop.borrow()).then_some(&context.stop);
    match run_hook(&call, stop, &context.leftovers.hook).await {
        Ok(()) => {}
        Err(RunError::Interrupted) => {
            report.status = status::worst(report.status, status::INTERRUPTED)
        }
        Err(error) => context.output.always(&crate::run::error_chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_continues_only_after_status_0_or_3() {
        let going_on: Vec<u8> = (0..=255)
            .filter(|status| lets_others_run(*status))
            .collect();
        assert_eq!(going_on, [0, 3]);
    }
}
