//! `show`.

use super::Failure;
use super::args::{Global, Show};
use super::output::{Output, age, bytes, table};
use super::wire::{ReadSide, load_config, open_configured, open_for_reading, open_zfs, trusted_keys};
use crate::model::DatasetName;
use crate::run::catalog::{Catalog, list_datasets, read_catalog};
use crate::run::snapshot::{find_dataset, is_own};
use crate::zfs::{Snapshot, Zfs};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) async fn show(global: &Global, show: &Show, output: &Output) -> Result<(), Failure> {
    let mut document = json!({ "format": 1 });
    if show.source.remote.is_some() {
        let side = open_for_reading(global, &show.source, false, output).await?;
        let names = if show.datasets.is_empty() { list_datasets(&*side.store).await? } else { show.datasets.clone() };
        document["remote"] = show_store(&side, show, &names, output).await?;
    } else {
        let (config, env) = load_config(global, output)?;
        let names = if show.datasets.is_empty() { config.datasets.names.clone() } else { show.datasets.clone() };
        document["local"] = show_local(&*open_zfs()?, &names, output)?;
        if config.intermediate.is_some() {
            let side = open_configured(config.clone(), env.clone(), true).await?;
            document["intermediate"] = show_store(&side, show, &names, output).await?;
        }
        if show.include_remote {
            let side = open_configured(config, env, false).await?;
            document["remote"] = show_store(&side, show, &names, output).await?;
        }
    }
    output.json(|| document);
    Ok(())
}

fn show_local(zfs: &dyn Zfs, names: &[DatasetName], output: &Output) -> Result<Value, Failure> {
    let now = Timestamp::now();
    let mut rows = vec![["DATASET", "SNAPSHOTS", "OURS", "NEWEST", "REFERS", "BOOKMARKS"].map(str::to_owned).to_vec()];
    let mut values = Vec::new();
    for name in names {
        let dataset = find_dataset(zfs, name)?;
        let (snapshots, bookmarks) = (zfs.snapshots(name)?, zfs.bookmarks(name)?);
        let own: Vec<&Snapshot> = snapshots.iter().filter(|snapshot| is_own(snapshot, dataset.guid)).collect();
        let newest = own.last();
        rows.push(vec![
            name.to_string(),
            snapshots.len().to_string(),
            own.len().to_string(),
            newest.map_or("-".into(), |snapshot| age(now, snapshot.created_at)),
            newest.map_or("-".into(), |snapshot| bytes(snapshot.referenced_bytes)),
            bookmarks.len().to_string(),
        ]);
        values.push(json!({
            "dataset": name, "guid": dataset.guid, "encrypted": dataset.encrypted, "snapshots": snapshots.len(),
            "own_snapshots": own.iter().map(|snapshot| json!({
                "name": snapshot.name, "guid": snapshot.guid, "created_at": snapshot.created_at,
                "referenced_bytes": snapshot.referenced_bytes, "used_bytes": snapshot.used_bytes, "holds": snapshot.holds,
            })).collect::<Vec<_>>(),
            "bookmarks": bookmarks.iter().map(|bookmark| bookmark.name.to_string()).collect::<Vec<_>>(),
        }));
        if dataset.encrypted {
            output.note(&format!(
                "{name} is natively encrypted: its ZFS key must survive too, or raw backups cannot be read"
            ));
        }
    }
    table(&rows, &[1, 2, 3, 4, 5]).iter().for_each(|line| output.line(line));
    Ok(values.into())
}

async fn show_store(side: &ReadSide, show: &Show, names: &[DatasetName], output: &Output) -> Result<Value, Failure> {
    let trusted = trusted_keys(side, &show.source).await?;
    output.line(format!("\n{}", side.store.url()));
    let mut rows = vec![["DATASET", "KIND", "SNAPSHOT OF", "AGE", "STREAM", "STORED"].map(str::to_owned).to_vec()];
    let (mut ids, mut notes, mut values) = (vec![None], Vec::new(), Vec::new());
    for name in names {
        let catalog = read_catalog(&*side.store, name, &trusted).await?;
        add_rows(&catalog, &mut rows, &mut ids, &mut notes);
        values.push(to_json(&catalog));
    }
    // An id is as long as a line: it stands below its backup.
    for (line, id) in table(&rows, &[3, 4, 5]).iter().zip(ids) {
        output.line(line);
        id.into_iter().for_each(|id: String| output.line(format!("    {id}")));
    }
    notes.iter().for_each(|note| output.line(note));
    Ok(json!({ "store": side.store.url(), "datasets": values }))
}

fn add_rows(catalog: &Catalog, rows: &mut Vec<Vec<String>>, ids: &mut Vec<Option<String>>, notes: &mut Vec<String>) {
    let now = Timestamp::now();
    let name = &catalog.dataset;
    if catalog.backups.is_empty() {
        rows.push(vec![name.to_string(), "-".into(), "no backup".into()]);
        ids.push(None);
    }
    for backup in &catalog.backups {
        let manifest = &backup.manifest;
        let at = manifest.snapshot.created_at;
        rows.push(vec![
            name.to_string(),
            manifest.kind.as_str().into(),
            at.strftime("%Y-%m-%d %H:%M").to_string(),
            age(now, at),
            bytes(manifest.stream_bytes),
            bytes(backup.stored_bytes()),
        ]);
        ids.push(Some(manifest.id.to_string()));
    }
    for attempt in &catalog.attempts {
        let newest = attempt.newest.map_or_else(String::new, |newest| format!(", newest {} ago", age(now, newest)));
        let what = match &attempt.disbelieved {
            None => format!("unfinished, not a backup: {} objects, {}{newest}", attempt.objects, bytes(attempt.bytes)),
            Some(error) => format!("NOT BELIEVED, not a backup: {}", crate::run::error_chain(error)),
        };
        notes.push(format!("  {name} {}: {what}", attempt.id));
    }
    if !catalog.unknown.is_empty() {
        notes.push(format!("  {name}: {} objects that are not of this format, left alone", catalog.unknown.len()));
    }
}

fn to_json(catalog: &Catalog) -> Value {
    let backups: Vec<_> = catalog
        .backups
        .iter()
        .map(|backup| {
            json!({
                "id": backup.manifest.id, "kind": backup.manifest.kind, "snapshot": backup.manifest.snapshot,
                "stream_bytes": backup.manifest.stream_bytes, "stored_bytes": backup.stored_bytes(),
            })
        })
        .collect();
    let attempts: Vec<_> = catalog
        .attempts
        .iter()
        .map(|attempt| {
            json!({
                "id": attempt.id, "objects": attempt.objects, "bytes": attempt.bytes, "newest": attempt.newest,
                "disbelieved": attempt.disbelieved.as_ref().map(|error| crate::run::error_chain(error)),
            })
        })
        .collect();
    json!({ "dataset": catalog.dataset, "backups": backups, "unfinished": attempts, "unknown": catalog.unknown.len() })
}
