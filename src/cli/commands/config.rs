//! `config check` and `config show`.

pub(crate) mod convert;
pub(crate) mod init;
pub(crate) mod init_text;
pub(crate) mod recover;

use crate::cli::args::sequence::parse_steps;
use crate::cli::context::{Context, Setup};
use crate::cli::failure::Failure;
use crate::cli::screen::output::{Output, Render, display_path};
use crate::cli::screen::table::{WIDTH, wrap};
use crate::config::{Advice, Config};
use crate::run::error_chain;
use crate::state::probes::{ProbeNote, known_probes};
use serde::Serialize;
use std::path::PathBuf;

/// The document of `config show`.
#[derive(Serialize)]
pub(crate) struct ShownConfig {
    #[serde(serialize_with = "display_path")]
    pub(crate) file: PathBuf,
    pub(crate) toml: String,
}

/// The result of `config check`.
#[derive(Serialize)]
pub(crate) struct CheckedConfig {
    #[serde(serialize_with = "display_path")]
    pub(crate) file: PathBuf,
    pub(crate) advice: Vec<Advice>,
    pub(crate) probes: Vec<ProbeNote>,
}

impl Render for CheckedConfig {
    fn render(&self, output: &Output) {
        output.line(format!("{}: good", self.file.display()));
        let advice = self
            .advice
            .iter()
            .map(|advice| format!("  {}: {}", advice.subject, advice.text));
        let probes = self
            .probes
            .iter()
            .map(|note| format!("  probe: {}", describe(note)));
        for text in advice.chain(probes) {
            wrap(&text, WIDTH, "    ")
                .iter()
                .for_each(|line| output.line(line));
        }
    }
}

/// `config show`.
pub(crate) fn show(context: &Context) -> Result<(), Failure> {
    let config = &context.setup()?.config;
    let output = &context.output;
    let toml = config.to_display_toml();
    output.line(toml.trim_end());
    output.json(&ShownConfig {
        file: config.file.clone(),
        toml,
    });
    Ok(())
}

/// `config check`.
pub(crate) fn check(setup: &Setup, output: &Output) -> Result<(), Failure> {
    let config = &setup.config;
    parse_steps(config)?;
    for missing in config.missing_files(&setup.env) {
        output.note(&missing.to_string());
    }
    output.emit(&CheckedConfig {
        file: config.file.clone(),
        advice: config.check_advice(),
        probes: probes(config, output),
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
