//! `doctor`: one screen of checks, each with its meaning and advice. Writes only the probe of the
//! store.

use crate::cli::context::{Context, Setup};
use crate::cli::failure::{Failure, status};
use crate::cli::open::access::Access;
use crate::cli::open::identity::check_identities;
use crate::cli::open::keys::keys_for_pruning;
use crate::cli::open::remote::{UnprobedRemote, open_zfs};
use crate::cli::screen::output::{Mark, Output, Render, display_path};
use crate::cli::screen::table::{WIDTH, wrap};
use crate::config::{Config, KeySource, Remote};
use crate::run::RunError;
use crate::run::backup::StoreRole;
use crate::run::doctor::bucket::{StoreRequirements, check_bucket, check_probe};
use crate::run::doctor::host::{
    check_datasets, check_folder, check_intermediate, check_permissions, check_zfs,
    check_zfs_faults,
};
use crate::run::doctor::{Check, CheckState};
use crate::run::keys::KeyCache;
use crate::run::pool::select::Selected;
use crate::run::probe::probe_store;
use crate::run::runner::Runner;
use crate::sign::Trust;
use crate::state::probes::{ProbeCache, ProbeNote};
use crate::store::key::{KEYRING_PREFIX, PROBE_PREFIX};
use crate::store::{StoreRead, StoreWrite};
use jiff::Timestamp;
use serde::Serialize;
use std::path::PathBuf;

/// Marks before a check, for ASCII terminals and for UTF-8 terminals.
const MARKS: [[&str; 4]; 2] = [["+", "-", "!", "x"], ["✓", "·", "!", "✗"]];
/// The column of the text.
const TEXT_COLUMN: usize = 16;

/// The result of `doctor`.
#[derive(Serialize)]
pub(crate) struct Examination {
    pub(crate) format: u32,
    #[serde(serialize_with = "display_path")]
    pub(crate) file: PathBuf,
    pub(crate) remote: Option<String>,
    pub(crate) can_back_up: bool,
    pub(crate) checks: Vec<Check>,
    pub(crate) probe: Option<ProbeNote>,
}

pub(crate) async fn doctor(context: &Context) -> Result<(), Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let mut checks = Vec::new();
    let selected = host(config, &mut checks);
    checks.push(check_folder("state", &config.state_dir));
    if let Some(folder) = config.lock_file.parent() {
        checks.push(check_folder("lock", folder));
    }
    if let Some(intermediate) = &config.intermediate {
        checks.push(check_intermediate(&intermediate.basedir, &selected));
    }
    let probe = Box::pin(store(context, setup, &mut checks)).await;
    let can_back_up = checks.iter().all(|check| check.state != CheckState::Bad);
    context.output.emit(&Examination {
        format: 1,
        file: config.file.clone(),
        remote: config.remote.as_ref().map(ToString::to_string),
        can_back_up,
        checks,
        probe,
    });
    if can_back_up {
        Ok(())
    } else {
        Err(Failure::Reported(status::FAILED))
    }
}

fn host(config: &Config, checks: &mut Vec<Check>) -> Vec<Selected> {
    let zfs = match open_zfs() {
        Ok(zfs) => zfs,
        Err(failure) => {
            checks.push(check_of("zfs", &failure));
            return Vec::new();
        }
    };
    checks.push(check_zfs(&*zfs));
    let (found, selected) = check_datasets(&*zfs, &config.datasets, &config.state_dir);
    checks.extend(check_zfs_faults(&*zfs, &config.send, &selected));
    checks.extend(check_permissions(&*zfs, &selected, &Runner::current()));
    checks.extend(found);
    selected
}

/// Turns a failure into a check, with the reason and the advice.
fn check_of(subject: &'static str, failure: &Failure) -> Check {
    let advice = match failure {
        Failure::Run(error) => error.hint(),
        Failure::Config(error) => error.hint(),
        Failure::Secret(error) => error.hint(),
        Failure::Usage { hint, .. } | Failure::Doubtful { hint, .. } => Some(hint.clone()),
        Failure::Reported(_) => None,
    };
    Check::bad(subject, failure.reason(), advice)
}

/// Checks the stores: credentials, abilities of the remote, and the keyring.
async fn store(context: &Context, setup: &Setup, checks: &mut Vec<Check>) -> Option<ProbeNote> {
    let config = &setup.config;
    if config.remote.is_none() {
        checks.push(Check::note(
            "remote",
            "none is configured: all backups are on this host and are lost with it",
        ));
        match setup
            .open_unidentified(StoreRole::Intermediate, Access::Read)
            .await
        {
            Ok(store) => {
                let identities =
                    check_identities(config, &[(StoreRole::Intermediate, &*store)]).await;
                checks.extend(
                    identities
                        .err()
                        .map(|error| Check::failed("identity", &error)),
                );
                check_names(context, &[&*store], checks).await;
                checks.push(keyring(setup, &*store).await);
            }
            Err(failure) => checks.push(check_of("intermediate", &failure)),
        }
        return None;
    }
    let opened = match setup.open_unprobed_remote().await {
        Ok(opened) => opened,
        Err(failure) => {
            checks.push(check_of("credentials", &failure));
            return None;
        }
    };
    let UnprobedRemote { store, endpoint } = opened;
    checks.push(Check::good(
        "credentials",
        match &endpoint {
            Some(endpoint) => format!("accepted by {endpoint} for {}", store.url()),
            None => format!("{} exists", store.url()),
        },
    ));
    let mut stores: Vec<(StoreRole, &dyn StoreRead)> = vec![(StoreRole::Remote, &*store)];
    let mut named: Vec<&dyn StoreWrite> = vec![&*store];
    let intermediate = setup
        .open_unidentified(StoreRole::Intermediate, Access::Read)
        .await
        .ok();
    if let Some(store) = &intermediate {
        stores.push((StoreRole::Intermediate, &**store));
        named.push(&**store);
    }
    let identities = check_identities(config, &stores).await;
    checks.extend(
        identities
            .err()
            .map(|error| Check::failed("identity", &error)),
    );
    check_names(context, &named, checks).await;
    let wanted = wanted(config);
    let mut note = None;
    if let (Some(endpoint), false) = (&endpoint, context.global.dry_run) {
        match try_store(config, &*store, endpoint).await {
            Ok(found) => note = found,
            Err(failure) => checks.push(check_of("probe", &failure)),
        }
    }
    checks.extend(
        note.iter()
            .flat_map(|note| check_probe(&note.probe, &wanted)),
    );
    if matches!(config.remote, Some(Remote::B2 { .. })) {
        let evidence = config
            .check_advice()
            .into_iter()
            .filter(|advice| advice.subject == "evidence");
        checks.extend(evidence.map(|advice| Check::note("evidence", advice.text)));
    }
    match store.bucket_facts().await {
        Ok(Some(facts)) => checks.extend(check_bucket(
            &facts,
            note.as_ref().map(|note| &note.probe),
            &wanted,
        )),
        Ok(None) => {}
        Err(error) => checks.push(Check::failed("bucket", &RunError::from(error))),
    }
    checks.push(keyring(setup, &*store).await);
    note
}

/// Checks that the stores keep the names of objects. A dry run puts nothing, so it cannot check.
async fn check_names(context: &Context, stores: &[&dyn StoreWrite], checks: &mut Vec<Check>) {
    if context.global.dry_run {
        return;
    }
    for store in stores {
        if let Err(error) = store.check_names(PROBE_PREFIX).await {
            checks.push(Check::failed("names", &error.into()));
        }
    }
}

async fn try_store(
    config: &Config,
    store: &dyn StoreWrite,
    endpoint: &str,
) -> Result<Option<ProbeNote>, Failure> {
    let nonce = getrandom::u64().map_err(RunError::from)?;
    let cache = ProbeCache::new(&config.state_dir, store.url(), endpoint);
    Ok(probe_store(store, &cache, nonce, Timestamp::now()).await?)
}

fn wanted(config: &Config) -> StoreRequirements {
    let prune = config.prune.as_ref();
    let prunes_by_sequence = config
        .sequence
        .iter()
        .any(|step| step.line.contains("prune-remote"));
    StoreRequirements {
        checksum: config.s3.checksum,
        parts: config.parts_per_chunk(),
        lock: config.object_lock(),
        prunes: prunes_by_sequence,
        has_prune_credentials: prune.is_some_and(|prune| {
            prune.profile.is_some()
                || prune.s3_credential_files.is_some()
                || prune.b2_credential_files.is_some()
        }),
        resume_days: config.resume_days,
    }
}

/// Checks that the keys that a run needs exist and can be opened.
async fn keyring(setup: &Setup, store: &dyn StoreRead) -> Check {
    let config = &setup.config;
    let subject = "keyring";
    let listed = match store.list(KEYRING_PREFIX).await {
        Ok(listed) => listed,
        Err(error) => return Check::failed(subject, &error.into()),
    };
    if let KeySource::Passphrase(source) = &config.keys {
        let cached = match KeyCache::new(&config.state_dir).load() {
            Ok(cached) => cached.is_some(),
            Err(error) => return Check::failed(subject, &error),
        };
        match (listed.is_empty(), cached) {
            (true, true) => {
                return Check::warning(
                    subject,
                    format!(
                        "this host has its keys, and {} has no keyring: a new host could not restore",
                        store.url()
                    ),
                    "the next backup puts it back; find out who deleted it",
                );
            }
            (true, false) => {
                return match source.resolve(&setup.env) {
                    Ok(_) => Check::note(
                        subject,
                        "none yet: the first backup makes it, with the configured passphrase",
                    ),
                    Err(error) => check_of(subject, &Failure::Secret(error)),
                };
            }
            _ => {}
        }
    }
    match keys_for_pruning(setup, store).await {
        Ok((_, trusted)) if trusted.with(Trust::Unlimited).next().is_some() => Check::warning(
            subject,
            "an older signing key is trusted for everything: an early version rotated it, or two hosts rotated at once",
            "`zfs-backup key rotate` retires it",
        ),
        Ok(_)
            if KeyCache::new(&config.state_dir)
                .noted_rotation()
                .is_ok_and(|noted| noted.is_some()) =>
        {
            Check::warning(
                subject,
                "a rotation of the keys was interrupted: this host still uses the old ones",
                "run `zfs-backup key rotate` again",
            )
        }
        Ok(_) => Check::good(
            subject,
            match &config.keys {
                KeySource::Passphrase(_) => "in the store, and this host can sign and seal",
                KeySource::Recipients { .. } => {
                    "recipients are configured: no secret on this host opens backups"
                }
            },
        ),
        Err(failure) => check_of(subject, &failure),
    }
}

impl Render for Examination {
    fn render(&self, output: &Output) {
        let checks = &self.checks;
        let remote = self.remote.as_deref().unwrap_or("no remote");
        output.line(format!("{} -> {remote}", self.file.display()));
        let indent = " ".repeat(TEXT_COLUMN);
        let marks = MARKS[usize::from(knows_utf8())];
        for check in checks {
            let (mark, meaning) = match check.state {
                CheckState::Good => (marks[0], Some(Mark::Good)),
                CheckState::Note => (marks[1], None),
                CheckState::Warning => (marks[2], Some(Mark::Doubtful)),
                CheckState::Bad => (marks[3], Some(Mark::Bad)),
            };
            let head = format!("{mark} {:<width$}", check.subject, width = TEXT_COLUMN - 3);
            let mut lines = wrap(&format!("{head} {}", check.text), WIDTH, &indent).into_iter();
            if let Some(first) = lines.next() {
                match meaning {
                    Some(meaning) if check.state != CheckState::Good => {
                        output.marked_line(&first, check.subject, meaning)
                    }
                    _ => output.line(first),
                }
            }
            lines.for_each(|line| output.line(line));
            if let Some(advice) = &check.advice {
                wrap(&format!("{indent}do: {advice}"), WIDTH, &indent)
                    .iter()
                    .for_each(|line| output.line(line));
            }
        }
        let count = |state| checks.iter().filter(|check| check.state == state).count();
        let warnings = match count(CheckState::Warning) {
            0 => String::new(),
            1 => ", 1 warning".to_owned(),
            many => format!(", {many} warnings"),
        };
        match count(CheckState::Bad) {
            0 => output.line(format!("a backup can work{warnings}")),
            bad => output.line(format!(
                "a backup could not work: {bad} of {} checks failed{warnings}",
                checks.len()
            )),
        }
    }
}

fn knows_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    set.is_some_and(|locale| {
        locale
            .to_ascii_lowercase()
            .replace('-', "")
            .contains("utf8")
    })
}
