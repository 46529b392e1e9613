//! `config check` and `config show`.

pub(crate) mod convert;
pub(crate) mod init;
pub(crate) mod init_text;
pub(crate) mod recover;

use crate::cli::args::sequence::parse_steps;
use crate::cli::context::{Context, Setup};
use crate::cli::failure::Failure;
use crate::cli::open::remote::open_zfs;
use crate::cli::open::settings::backup_settings;
use crate::cli::screen::output::{Output, Render, display_path};
use crate::cli::screen::table::{WIDTH, bytes, wrap};
use crate::config::{Advice, Config, Size};
use crate::manifest::CHUNKS_MAX;
use crate::model::DatasetName;
use crate::plan::chunk_count::check_chunk_count;
use crate::run::backup::{estimate_full, send_flags};
use crate::run::error_chain;
use crate::run::pool::select::{Selected, select_datasets};
use crate::state::probes::{ProbeNote, known_probes};
use crate::zfs::ZfsSend;
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
    let mut advice = config.check_advice();
    advice.extend(split_size_advice(config));
    output.emit(&CheckedConfig {
        file: config.file.clone(),
        advice,
        probes: probes(config, output),
    });
    Ok(())
}

/// Returns the advice on `split_size` for the datasets as ZFS estimates them now.
fn split_size_advice(config: &Config) -> Vec<Advice> {
    let estimates = open_zfs().ok().and_then(|zfs| estimate_all(&*zfs, config));
    split_size_lines(config.split_size, estimates)
        .into_iter()
        .map(|text| Advice {
            subject: "split_size",
            text,
        })
        .collect()
}

/// Returns the estimated fulls of the configured datasets, or `None` when ZFS cannot be read.
fn estimate_all(zfs: &dyn ZfsSend, config: &Config) -> Option<Vec<(DatasetName, Option<u64>)>> {
    let selection = select_datasets(zfs, &config.datasets, &config.state_dir).ok()?;
    let settings = backup_settings(config);
    let estimate = |Selected { dataset, .. }: Selected| {
        let flags = send_flags(&dataset, &settings);
        let bytes = estimate_full(zfs, &dataset, flags);
        (dataset.name, bytes)
    };
    let known = selection.selected.into_iter().map(estimate);
    let unknown = selection.failed.into_iter().map(|(name, _)| (name, None));
    Some(known.chain(unknown).collect())
}

/// Judges `split_size`: a line for each dataset whose full has too many chunks, and one for those
/// whose size is unknown.
fn split_size_lines(
    split_size: Size,
    estimates: Option<Vec<(DatasetName, Option<u64>)>>,
) -> Vec<String> {
    let Some(estimates) = estimates else {
        let most = bytes(split_size.bytes().saturating_mul(CHUNKS_MAX.into()));
        return vec![format!(
            "ZFS cannot be read here, so the sizes of the datasets are unknown; with {split_size} \
             a stream may have at most {most}"
        )];
    };
    let mut lines = Vec::new();
    let mut unknown = Vec::new();
    for (dataset, estimate_bytes) in estimates {
        let Some(estimate_bytes) = estimate_bytes else {
            unknown.push(dataset.to_string());
            continue;
        };
        if let Err(count) = check_chunk_count(estimate_bytes, split_size.bytes()) {
            lines.push(format!(
                "a full of {dataset} will be refused: {count}; {}",
                count.hint()
            ));
        }
    }
    if !unknown.is_empty() {
        lines.push(format!(
            "ZFS gives no size of {}, so whether {split_size} is enough is unknown",
            unknown.join(", ")
        ));
    }
    lines
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
    let put = probe.conditional_put;
    let complete = probe.conditional_complete;
    format!(
        "{} was tried on {}: {kept}; create-only put {put}, upload {complete}; unfinished uploads: listing {}, removing {}",
        note.endpoint,
        note.at.strftime("%Y-%m-%d"),
        probe.list_uploads,
        probe.abort_uploads
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_size_is_judged_by_the_estimates_of_the_datasets() {
        let lines = |split: &str, estimates| split_size_lines(split.parse().unwrap(), estimates);
        let name = |text: &str| text.parse::<DatasetName>().unwrap();
        let tank = || {
            Some(vec![
                (name("tank/a"), Some(8 << 40)),
                (name("tank/b"), None),
            ])
        };
        assert_eq!(
            lines("1G", tank()),
            ["ZFS gives no size of tank/b, so whether 1G is enough is unknown"]
        );
        let judged = lines("15M", tank());
        let (first, second) = (&judged[0], &judged[1]);
        assert!(
            first.starts_with("a full of tank/a will be refused: "),
            "{first}"
        );
        assert!(first.contains("main.split_size is \"15M\""), "{first}");
        assert!(
            first.contains("write split_size = \"32M\" into [main]"),
            "{first}"
        );
        assert!(second.contains("tank/b"), "{second}");
        let unasked = lines("15M", None);
        assert!(unasked[0].contains("cannot be read"), "{unasked:?}");
        assert!(unasked[0].contains("7.15T"), "{unasked:?}");
    }
}
