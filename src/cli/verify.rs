//! `verify-checksums`.

use super::args::{Global, Verify};
use super::output::Output;
use super::wire::{open_for_reading, trusted_keys};
use super::{Failure, remember, status};
use crate::model::DatasetName;
use crate::run::catalog::list_datasets;
use crate::run::verify::{VerifyReport, verify_dataset};
use crate::store::{EvidenceTier, ObjectStore};
use serde_json::json;

pub(super) async fn verify(global: &Global, verify: &Verify, output: &Output) -> Result<(), Failure> {
    let side = open_for_reading(global, &verify.source, verify.intermediate, output).await?;
    let trusted = trusted_keys(&side, &verify.source).await?;
    let datasets = match (verify.datasets.is_empty(), &side.config) {
        (false, _) => verify.datasets.clone(),
        (true, Some((config, _))) => config.datasets.names.clone(),
        (true, None) => list_datasets(&*side.store).await?,
    };
    let (mut statuses, mut reports) = (Vec::new(), Vec::new());
    for dataset in &datasets {
        // One dataset that cannot be asked about must not hide what is found of the others.
        match verify_dataset(&*side.store, dataset, &trusted).await {
            Ok(report) => {
                if let Some((config, _)) = &side.config {
                    remember::verified(config, &*side.store, dataset, &report, verify.read_data.as_deref());
                }
                statuses.extend(status_of(&report));
                print(dataset, &report, &*side.store, output);
                reports.push(to_json(dataset, &report));
            }
            Err(error) => {
                if let Some((config, _)) = &side.config {
                    remember::failed(config, &*side.store, dataset, "verify", &error);
                }
                let failure = Failure::Run(error);
                failure.print(output);
                statuses.push(failure.status());
            }
        }
    }
    output.json(|| json!({ "store": side.store.url(), "datasets": reports }));
    statuses.into_iter().max().map_or(Ok(()), |status| Err(Failure::Reported(status)))
}

/// Damage, or no backup where there should be one: a wiped store is not a good one.
fn status_of(report: &VerifyReport) -> Option<u8> {
    match (report.damage.is_empty(), report.backups) {
        (false, _) => Some(status::DAMAGE),
        (true, 0) => Some(status::FAILED),
        (true, _) => None,
    }
}

fn print(dataset: &DatasetName, report: &VerifyReport, store: &dyn ObjectStore, output: &Output) {
    if report.backups == 0 && report.damage.is_empty() {
        output.error_text(&format!("{dataset}: no backup in {}", store.url()), None);
    } else {
        let objects: usize = report.objects.values().sum();
        output.line(format!(
            "{dataset}: {} backups, {objects} objects as confirmed, {} damaged",
            report.backups,
            report.damage.len()
        ));
    }
    for (tier, count) in &report.objects {
        output.line(format!("  {count} by {}", tier_words(*tier)));
    }
    for damage in &report.damage {
        // Damage is said also when quiet: it is the reason to run this.
        output.error_text(&format!("DAMAGED {}: {}", damage.key, damage.reason), None);
    }
    if let Some(newest) = &report.newest {
        output.line(format!("  newest {newest}"));
    }
    for key in &report.extra {
        output.line(format!("  extra {}", key.replace('\n', "\\n")));
    }
}

fn to_json(dataset: &DatasetName, report: &VerifyReport) -> serde_json::Value {
    let damage: Vec<_> = report
        .damage
        .iter()
        .map(|damage| json!({ "key": damage.key, "backup": damage.backup, "reason": damage.reason }))
        .collect();
    let objects: serde_json::Map<_, _> =
        report.objects.iter().map(|(tier, count)| (tier_words(*tier).to_owned(), json!(count))).collect();
    json!({ "dataset": dataset, "backups": report.backups, "objects": objects, "damage": damage, "extra": report.extra, "newest": report.newest })
}

/// What a tier means, for people. Which resists a writer and which only accidents belongs to it.
pub(super) fn tier_words(tier: EvidenceTier) -> &'static str {
    match tier {
        EvidenceTier::Crc64nvmeFull => "the store's own CRC64NVME of the whole object (against accidents)",
        EvidenceTier::Sha256Composite => "the store's own SHA-256 by parts (against a writer too)",
        EvidenceTier::Sha1 => "the store's own SHA-1 (against accidents)",
        EvidenceTier::Crc32c => "the store's own CRC32C (against accidents)",
        EvidenceTier::Md5Etag => "the store's MD5 ETag (against accidents)",
        EvidenceTier::IdPin => "immutable id and size",
        EvidenceTier::SizeOnly | EvidenceTier::Unknown => "size only",
        EvidenceTier::ReadBack => "presence and size (a folder keeps no checksums: `b3sum -c` reads them)",
    }
}
