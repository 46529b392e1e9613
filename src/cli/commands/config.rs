//! `config check` and `config show`.

pub(crate) mod convert;
pub(crate) mod init;
pub(crate) mod init_text;
pub(crate) mod recover;

use crate::cli::args::sequence::parse_steps;
use crate::cli::context::{Context, Setup};
use crate::cli::failure::Failure;
use crate::cli::screen::output::Output;
use crate::cli::screen::table::{WIDTH, wrap};
use crate::config::Config;
use crate::run::error_chain;
use crate::state::probes::{ProbeNote, known_probes};
use serde_json::json;

/// `config show`.
pub(crate) fn show(context: &Context) -> Result<(), Failure> {
    let config = &context.setup()?.config;
    let output = &context.output;
    output.line(config.to_display_toml().trim_end());
    output.json(|| json!({ "file": config.file, "toml": config.to_display_toml() }));
    Ok(())
}

/// `config check`.
pub(crate) fn check(setup: &Setup, output: &Output) -> Result<(), Failure> {
    let config = &setup.config;
    parse_steps(config)?;
    for missing in config.missing_files(&setup.env) {
        output.note(&missing.to_string());
    }
    output.line(format!("{}: good", config.file.display()));
    for advice in config.check_advice() {
        let text = format!("  {}: {}", advice.subject, advice.text);
        wrap(&text, WIDTH, "    ")
            .iter()
            .for_each(|line| output.line(line));
    }
    let probes = probes(config, output);
    for note in &probes {
        wrap(&format!("  probe: {}", describe(note)), WIDTH, "    ")
            .iter()
            .for_each(|line| output.line(line));
    }
    output.json(|| {
        let advice: Vec<_> = config
            .check_advice()
            .iter()
            .map(|advice| json!({ "subject": advice.subject, "text": advice.text }))
            .collect();
        json!({ "file": config.file, "advice": advice, "probes": probes })
    });
    Ok(())
}

/// Returns the cached probes of the remote. An unreadable cache is reported as a note: the next
/// command that writes probes the remote again.
fn probes(config: &Config, output: &Output) -> Vec<ProbeNote> {
    let Some(remote) = &config.remote else {
        return Vec::new();
    };
    known_probes(&config.state_dir, &remote.to_string()).unwrap_or_else(|error| {
        output.note(&error_chain(&error));
        Vec::new()
    })
}

fn describe(note: &ProbeNote) -> String {
    let probe = &note.probe;
    let kept = match probe.kept.as_slice() {
        [] if probe.checksum.is_none() => "checksums are the store's own".to_owned(),
        [] => "it keeps no checksum".to_owned(),
        kept => format!(
            "it keeps {}",
            kept.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" and ")
        ),
    };
    let (put, complete) = (probe.conditional_put, probe.conditional_complete);
    format!(
        "{} was tried on {}: {kept}; create-only put {put}, upload {complete}; unfinished uploads: listing {}, removing {}",
        note.endpoint,
        note.at.strftime("%Y-%m-%d"),
        probe.list_uploads,
        probe.abort_uploads
    )
}
