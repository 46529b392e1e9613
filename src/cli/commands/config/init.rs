//! `config init`: finds the datasets, asks questions, writes a first configuration and checks it.
//! Never changes an existing file.

use crate::cli::args::{Global, Init};
use crate::cli::commands::config::check;
use crate::cli::commands::config::init_text::{
    Answers, OtherTool, PASSPHRASE_BITS, config_text, other_tools, paper, passphrase_of,
};
use crate::cli::context::{Context, Setup};
use crate::cli::failure::{Failure, usage};
use crate::cli::open::remote::open_zfs;
use crate::cli::screen::output::Output;
use crate::cli::screen::table::bytes;
use crate::config::{Environment, Remote, default_config_file};
use crate::model::DatasetName;
use crate::run::{RunError, error_chain};
use crate::zfs::ZfsRead;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// The kernel module has a folder here for each imported pool.
const POOLS: &str = "/proc/spl/kstat/zfs";
/// The most datasets that are listed one by one.
const LISTED_MAX: usize = 40;

pub(crate) fn init(context: &Context, init: &Init) -> Result<(), Failure> {
    let Context { global, output, .. } = context;
    let file = global
        .config
        .clone()
        .unwrap_or_else(|| default_config_file(&Environment::current()));
    let file = std::path::absolute(&file).unwrap_or(file);
    if file.symlink_metadata().is_ok() {
        return Err(usage(
            &format!("{} exists already and is never overwritten", file.display()),
            "edit it, or name another file with `-c FILE`",
        ));
    }
    let person = Person {
        here: std::io::stdin().is_terminal() && !global.json,
    };
    if !person.here && (init.datasets.is_empty() || init.remote.is_none()) {
        return Err(usage(
            "there is no terminal to ask on",
            "give --dataset DATASET and --remote URL",
        ));
    }
    let answers = ask_all(init, &person, output)?;
    if global.dry_run {
        let hidden = Answers {
            passphrase: "(a new passphrase)".to_owned(),
            ..answers
        };
        output.line(format!(
            "would write {}:\n{}",
            file.display(),
            config_text(&hidden)
        ));
        return Ok(());
    }
    write_new(&file, config_text(&answers).as_bytes())?;
    output.line(format!("wrote {}, mode 0600", file.display()));
    // Print the paper copy only on a terminal: in a log it would put the passphrase into the log.
    match person.here && std::io::stdout().is_terminal() {
        true => output.line(paper(&answers, &file)),
        false => {
            output.always("copy the passphrase from the file to paper: without it nothing restores")
        }
    }
    let written = Global {
        config: Some(file),
        ..global.clone()
    };
    check(&Setup::load(&written, output)?, output)?;
    output.line("next: zfs-backup key generate, then snapshot and stream-to-remote");
    Ok(())
}

fn ask_all(init: &Init, person: &Person, output: &Output) -> Result<Answers, Failure> {
    let found = look_around(output);
    let datasets = match init.datasets.is_empty() {
        false => init.datasets.clone(),
        true => ask_datasets(&found, person, output)?,
    };
    if let Some(found) = &found {
        for name in datasets
            .iter()
            .filter(|name| !found.iter().any(|dataset| dataset.name == **name))
        {
            output.always(&format!("there is no dataset {name} on this host now"));
        }
    }
    let remote: Remote = match &init.remote {
        Some(remote) => remote.clone(),
        None => person.ask_parsed(
            "where to? s3:bucket/prefix, b2:bucket/prefix or file:/dir",
            None,
        )?,
    };
    let is_s3 = matches!(remote, Remote::S3 { .. });
    let optional = |given: &Option<String>, question| match given {
        None if is_s3 && person.here => {
            Ok(Some(person.ask(question, Some(""))?).filter(|answer| !answer.is_empty()))
        }
        given => Ok::<_, Failure>(given.clone()),
    };
    let endpoint = optional(
        &init.endpoint,
        "endpoint URL of the S3 store (empty for AWS)",
    )?;
    let region = optional(&init.region, "region (empty for the environment's)")?;
    let wanted = found
        .iter()
        .flatten()
        .filter(|dataset| datasets.contains(&dataset.name));
    let names: Vec<&str> = wanted
        .flat_map(|dataset| &dataset.snapshots)
        .map(String::as_str)
        .collect();
    let use_snapshots = match &init.use_snapshots {
        Some(glob) => glob.clone(),
        None => ask_snapshots(&other_tools(names.iter().copied()), person, output)?,
    };
    let longest_full_bytes = longest_full(found.as_deref().unwrap_or_default(), &datasets);
    if longest_full_bytes.is_none() {
        output.note("the size of some dataset is unknown: split_size has its default value");
    }
    let passphrase = ask_passphrase(person, output)?;
    Ok(Answers {
        datasets,
        remote,
        endpoint,
        region,
        use_snapshots,
        passphrase,
        longest_full_bytes,
    })
}

/// A dataset of an imported pool.
struct FoundDataset {
    name: DatasetName,
    used_bytes: Option<u64>,
    /// The data of a full, before compression.
    full_bytes: Option<u64>,
    encrypted: bool,
    /// The short names of its snapshots.
    snapshots: Vec<String>,
}

/// Returns all datasets of the imported pools, or `None` when ZFS cannot be read, which is printed.
fn look_around(output: &Output) -> Option<Vec<FoundDataset>> {
    let found = open_zfs().and_then(|zfs| find_datasets(&*zfs));
    found
        .map_err(|failure| {
            failure.print(output);
            output.always("cannot list the datasets of this host: name them by hand");
        })
        .ok()
}

fn find_datasets(zfs: &dyn ZfsRead) -> Result<Vec<FoundDataset>, Failure> {
    let failed = |source| RunError::File {
        operation: "read",
        path: POOLS.to_owned(),
        source,
    };
    let mut waiting = Vec::new();
    for entry in std::fs::read_dir(POOLS).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let pool = entry
            .file_type()
            .map_err(failed)?
            .is_dir()
            .then(|| entry.file_name());
        let pool = pool.and_then(|name| name.to_str()?.parse::<DatasetName>().ok());
        waiting.extend(pool.map(|pool| zfs.dataset(&pool)).transpose()?.flatten());
    }
    let mut found = Vec::new();
    while let Some(dataset) = waiting.pop() {
        waiting.extend(zfs.children(&dataset.name)?);
        let used_bytes = dataset.number("used");
        // Incompressible data uses more space than it has bytes.
        let full_bytes = dataset
            .number("logicalreferenced")
            .max(dataset.number("referenced"));
        let snapshots = zfs.snapshots(&dataset.name)?;
        let short = |name: String| name.split_once('@').map(|(_, short)| short.to_owned());
        let snapshots = snapshots
            .into_iter()
            .filter_map(|snapshot| short(snapshot.name.to_string()))
            .collect();
        found.push(FoundDataset {
            name: dataset.name,
            used_bytes,
            full_bytes,
            encrypted: dataset.encrypted,
            snapshots,
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Returns the bytes of the longest full of these datasets, or `None` if the size of one is
/// unknown.
fn longest_full(found: &[FoundDataset], datasets: &[DatasetName]) -> Option<u64> {
    let full_bytes = |name: &DatasetName| {
        let dataset = found.iter().find(|dataset| dataset.name == *name)?;
        dataset.full_bytes
    };
    let all: Option<Vec<u64>> = datasets.iter().map(full_bytes).collect();
    all?.into_iter().max()
}

fn ask_datasets(
    found: &Option<Vec<FoundDataset>>,
    person: &Person,
    output: &Output,
) -> Result<Vec<DatasetName>, Failure> {
    for dataset in found.iter().flatten().take(LISTED_MAX) {
        let used = dataset
            .used_bytes
            .map_or_else(String::new, |used| format!(", {}", bytes(used)));
        let encrypted = if dataset.encrypted {
            ", encrypted: sent raw, its ZFS key must survive too"
        } else {
            ""
        };
        output.line(format!(
            "  {}{used}, {} snapshots{encrypted}",
            dataset.name,
            dataset.snapshots.len()
        ));
    }
    let more = found
        .as_ref()
        .map_or(0, |found| found.len().saturating_sub(LISTED_MAX));
    if more > 0 {
        output.line(format!("  and {more} more"));
    }
    loop {
        let answer = person.ask("datasets to back up, with commas between them", None)?;
        let names = answer
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty());
        match names
            .map(str::parse)
            .collect::<Result<Vec<DatasetName>, _>>()
        {
            Ok(names) if !names.is_empty() => return Ok(names),
            Ok(_) => {}
            Err(error) => output.error_text(&error.to_string(), None),
        }
    }
}

fn ask_snapshots(tools: &[OtherTool], person: &Person, output: &Output) -> Result<String, Failure> {
    for tool in tools {
        output.line(format!(
            "  {} makes snapshots here: {} match {}",
            tool.name, tool.count, tool.glob
        ));
    }
    match (tools.first(), person.here) {
        (Some(tool), true) => {
            let question = format!(
                "which snapshots are backed up? own, or a glob such as {}",
                tool.glob
            );
            person.ask(&question, Some("own"))
        }
        (Some(tool), false) => {
            output.note(&format!(
                "own snapshots are taken; to use those of {} give --use-snapshots",
                tool.name
            ));
            Ok("own".to_owned())
        }
        (None, _) => Ok("own".to_owned()),
    }
}

fn ask_passphrase(person: &Person, output: &Output) -> Result<String, Failure> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(RunError::from)?;
    let proposed = passphrase_of(u128::from_le_bytes(random));
    if !person.here {
        return Ok(proposed);
    }
    output.line(format!(
        "a passphrase of {PASSPHRASE_BITS} random bits: {proposed}"
    ));
    person.ask("press Enter to use it, or type your own", Some(&proposed))
}

/// The person who answers the questions.
struct Person {
    here: bool,
}

impl Person {
    /// Asks until there is an answer; an empty one selects the default, where there is one.
    fn ask(&self, question: &str, default: Option<&str>) -> Result<String, Failure> {
        let lost = |source| RunError::File {
            operation: "read the answer from",
            path: "the terminal".into(),
            source,
        };
        loop {
            let shown = default
                .filter(|default| !default.is_empty())
                .map_or_else(String::new, |d| format!(" [{d}]"));
            let mut stderr = std::io::stderr();
            write!(stderr, "{question}{shown}: ")
                .and_then(|()| stderr.flush())
                .map_err(lost)?;
            let mut line = String::new();
            if std::io::stdin().read_line(&mut line).map_err(lost)? == 0 {
                return Err(usage(
                    "there was no answer",
                    "run it again: nothing was written",
                ));
            }
            match (line.trim(), default) {
                ("", Some(default)) => return Ok(default.to_owned()),
                ("", None) => {}
                (answer, _) => return Ok(answer.to_owned()),
            }
        }
    }

    fn ask_parsed<T>(&self, question: &str, default: Option<&str>) -> Result<T, Failure>
    where
        T: std::str::FromStr,
        T::Err: std::error::Error + 'static,
    {
        loop {
            match self.ask(question, default)?.parse() {
                Ok(value) => return Ok(value),
                Err(error) => writeln!(std::io::stderr(), "{}", error_chain(&error)).unwrap_or(()),
            }
        }
    }
}

/// Writes a whole new file with mode 0600. Never replaces another file.
pub(crate) fn write_new(file: &Path, text: &[u8]) -> Result<(), RunError> {
    let failed = |operation, path: &Path| {
        let path = path.display().to_string();
        move |source| RunError::File {
            operation,
            path,
            source,
        }
    };
    // A bare name is in the current folder, and its parent "" is no name of a folder.
    let absolute = std::path::absolute(file).map_err(failed("find", file))?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)
        .map_err(failed("create", folder))?;
    let mut written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(failed("create", file))?;
    written
        .write_all(text)
        .and_then(|()| written.sync_all())
        .map_err(failed("write", file))?;
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed("sync", folder))
}
