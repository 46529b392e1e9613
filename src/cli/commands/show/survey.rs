//! Reads ZFS, the stores and this host's records for `show`. A source that cannot be read is named,
//! and the others are shown nevertheless: an error is never shown as "nothing".

use crate::catalog::usable::UsableCatalog;
use crate::catalog::{
    Catalog, StoredAttempt, StoredBackup, list_datasets, read_catalog_through, read_started,
};
use crate::cli::args::Show;
use crate::cli::commands::show::unknown::{Foreign, count_foreign};
use crate::cli::commands::show::views::{
    AttemptView, BackupView, BookmarkView, DatasetView, HoldView, LocalView, LockfileView,
    Overview, SnapshotView, StoreAnswer, StoreView, UploadView,
};
use crate::cli::context::Context;
use crate::cli::failure::Failure;
use crate::cli::open::access::Access;
use crate::cli::open::datasets::configured_place;
use crate::cli::open::history;
use crate::cli::open::history::{DEFAULT_LIMITS, facts_of};
use crate::cli::open::identity::known_stores;
use crate::cli::open::reading::{ReadSide, open_configured, open_for_reading, trusted_keys};
use crate::cli::open::remote::{StoreState, open_zfs};
use crate::cli::parallel::for_each_dataset;
use crate::cli::screen::output::Output;
use crate::config::{Config, FullEvery};
use crate::model::DatasetName;
use crate::plan::health::judge_health;
use crate::run::backup::StoreRole;
use crate::run::identity::refuse_one_place;
use crate::run::pool::holds::our_holds;
use crate::run::pool::select::{Selected, select_datasets};
use crate::run::pool::snapshot::is_own;
use crate::run::{RunError, error_chain};
use crate::sign::TrustedKeys;
use crate::state::dataset_lock::is_held;
use crate::state::history::HistoryRecords;
use crate::state::manifests::{CacheMode, ObjectCache};
use crate::store::StoreRead;
use crate::store::key::dataset_prefix;
use crate::zfs::ZfsRead;
use jiff::Timestamp;

/// The result of the survey. `failed` means that a source could not be read, which was printed.
pub(crate) struct Survey {
    pub(crate) overview: Overview,
    pub(crate) failed: bool,
}

/// Surveys a store without a configuration: only the store that `--remote` names.
pub(crate) async fn survey_store(context: &Context, show: &Show) -> Result<Survey, Failure> {
    let output = &context.output;
    let side = open_for_reading(context, &show.source, false).await?;
    let trusted = trusted_keys(&side, &show.source).await?;
    let names = match show.datasets.is_empty() {
        true => list_datasets(&*side.store).await?,
        false => show.datasets.clone(),
    };
    let mut survey = Survey::new(StoreAnswer {
        url: Some(side.store.url().to_owned()),
        asked: true,
        error: None,
        ..StoreAnswer::default()
    });
    let cache = ObjectCache::none();
    for_each_dataset(
        context,
        &names,
        |name| name,
        async |name| store_view(&*side.store, name, &trusted, true, &cache).await,
        |name, found| {
            let mut view = DatasetView::new(name.clone());
            view.remote = survey.keep(found.map(|(view, _)| view), &mut view.errors, output);
            survey.overview.datasets.push(view);
        },
    )
    .await;
    if show.unknown {
        let foreign = survey.count_foreign(&*side.store, "store", output).await;
        let answer = &mut survey.overview.remote;
        answer.foreign_objects = foreign.as_ref().map(|foreign| foreign.objects);
        answer.foreign_bytes = foreign.as_ref().map(|foreign| foreign.bytes);
    }
    Ok(survey)
}

/// Surveys a host with a configuration.
pub(crate) async fn survey_host(
    context: &Context,
    show: &Show,
    deep: bool,
) -> Result<Survey, Failure> {
    let setup = context.setup()?;
    let config = &setup.config;
    let output = &*context.output;
    let remote_url = config.remote.as_ref().map(ToString::to_string);
    let mut survey = Survey::new(StoreAnswer {
        url: remote_url,
        asked: false,
        error: None,
        ..StoreAnswer::default()
    });
    survey.local(config, show, output);
    for dataset in &mut survey.overview.datasets {
        dataset.only_intermediate = config.remote.is_none();
    }
    if config.intermediate.is_some() {
        let opened = setup
            .open_if_reachable(StoreRole::Intermediate, Access::Read)
            .await;
        let answer = match opened {
            Ok(StoreState::Open(store)) => {
                let setup = Some(setup);
                let side = ReadSide { store, setup };
                survey
                    .store(&side, show, Shelf::Intermediate, deep, context)
                    .await
            }
            // The directory is a copy on the way to the remote. A host without it is described by
            // the remote, and the remarks below the table name the missing directory.
            Ok(StoreState::Unreachable(failure)) if config.remote.is_some() => StoreAnswer {
                error: Some(failure.reason()),
                ..StoreAnswer::default()
            },
            Ok(StoreState::None) => StoreAnswer::default(),
            Ok(StoreState::Unreachable(failure)) | Err(failure) => {
                survey.unanswered(&failure, output)
            }
        };
        survey.overview.intermediate = answer;
        survey.overview.intermediate.url = config
            .intermediate
            .as_ref()
            .map(|place| format!("file:{}", place.basedir.display()));
    }
    if show.reads_remote() && config.remote.is_some() {
        let answer = match open_configured(setup, StoreRole::Remote).await {
            Ok(side) => {
                survey
                    .store(&side, show, Shelf::Remote, deep, context)
                    .await
            }
            Err(failure) => survey.unanswered(&failure, output),
        };
        let url = survey.overview.remote.url.take();
        survey.overview.remote = StoreAnswer { url, ..answer };
    }
    survey.records(config, output);
    survey.overview.lockfile = lockfile(config);
    survey
        .overview
        .never_deleted
        .extend(never_deleted(config, &survey.overview.datasets));
    Ok(survey)
}

/// The store that a view belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shelf {
    Intermediate,
    Remote,
}

impl Shelf {
    fn name(self) -> &'static str {
        match self {
            Self::Intermediate => "intermediate",
            Self::Remote => "remote",
        }
    }
}

impl DatasetView {
    pub(super) fn new(dataset: DatasetName) -> Self {
        Self {
            dataset,
            local: None,
            intermediate: None,
            remote: None,
            record: None,
            running_in: Vec::new(),
            errors: Vec::new(),
            health: None,
            only_intermediate: false,
        }
    }
}

impl Survey {
    fn new(remote: StoreAnswer) -> Self {
        let overview = Overview {
            format: 1,
            now: Timestamp::now(),
            remote,
            intermediate: StoreAnswer::default(),
            datasets: Vec::new(),
            lockfile: None,
            never_deleted: Vec::new(),
        };
        Self {
            overview,
            failed: false,
        }
    }

    /// Returns the value; or prints the error, adds it to `errors` and returns `None`.
    fn keep<T>(
        &mut self,
        found: Result<T, impl Into<RunError>>,
        errors: &mut Vec<String>,
        output: &Output,
    ) -> Option<T> {
        found
            .map_err(|error| {
                let error = error.into();
                self.failed = true;
                errors.push(error_chain(&error));
                Failure::Run(error).print(output);
            })
            .ok()
    }

    fn unanswered(&mut self, failure: &Failure, output: &Output) -> StoreAnswer {
        self.failed = true;
        failure.print(output);
        StoreAnswer {
            url: None,
            asked: false,
            error: Some(failure.reason()),
            ..StoreAnswer::default()
        }
    }

    /// Adds the datasets, with what the pool has of each. Without ZFS adds the datasets that the
    /// configuration names.
    fn local(&mut self, config: &Config, show: &Show, output: &Output) {
        let wanted = |name: &DatasetName| show.datasets.is_empty() || show.datasets.contains(name);
        let found = open_zfs().and_then(|zfs| {
            Ok((
                select_datasets(&*zfs, &config.datasets, &config.state_dir)?,
                zfs,
            ))
        });
        match found {
            // Read one dataset at a time: a missing dataset must not hide the others.
            Ok((selection, zfs)) => {
                for left_out in &selection.left_out {
                    output.always(&format!("{}; it is left out", left_out.why));
                }
                for selected in selection
                    .selected
                    .iter()
                    .filter(|selected| wanted(&selected.stored))
                {
                    let mut view = DatasetView::new(selected.stored.clone());
                    let local = local_view(&*zfs, config, selected);
                    view.local = self.keep(local, &mut view.errors, output);
                    self.add(view, wanted);
                }
                for (name, error) in selection.failed {
                    let stored = configured_place(&config.datasets, &name);
                    let mut view = DatasetView::new(stored);
                    let _: Option<()> = self.keep(Err(error), &mut view.errors, output);
                    self.add(view, wanted);
                }
            }
            Err(failure) => {
                self.failed = true;
                failure.print(output);
                for name in &config.datasets.names {
                    let stored = configured_place(&config.datasets, name);
                    self.add(DatasetView::new(stored), wanted);
                }
            }
        }
        for name in &show.datasets {
            self.add(DatasetView::new(name.clone()), wanted);
        }
    }

    /// Adds a dataset if it is requested and not in the list yet.
    fn add(&mut self, view: DatasetView, wanted: impl Fn(&DatasetName) -> bool) {
        let known = self
            .overview
            .datasets
            .iter()
            .any(|known| known.dataset == view.dataset);
        if !known && wanted(&view.dataset) {
            self.overview.datasets.push(view);
        }
    }

    /// Reads all datasets in one store.
    async fn store(
        &mut self,
        side: &ReadSide<'_>,
        show: &Show,
        place: Shelf,
        deep: bool,
        context: &Context,
    ) -> StoreAnswer {
        let output = &*context.output;
        let trusted = match trusted_keys(side, &show.source).await {
            Ok(trusted) => trusted,
            // A complete listing shows that the store is empty: it has no keyring and no manifest
            // to verify.
            Err(_) if side.store.is_unused().await.is_ok_and(|unused| unused) => {
                TrustedKeys::default()
            }
            Err(failure) => return self.unanswered(&failure, output),
        };
        let mut datasets = std::mem::take(&mut self.overview.datasets);
        let keeping = if context.global.dry_run {
            CacheMode::ReadOnly
        } else {
            CacheMode::ReadWrite
        };
        let work = async |dataset: &DatasetView| {
            let cache = side.setup.map_or_else(ObjectCache::none, |setup| {
                let state_dir = &setup.config.state_dir;
                ObjectCache::open(state_dir, &side.store.known(), &dataset.dataset, keeping)
            });
            store_view(&*side.store, &dataset.dataset, &trusted, deep, &cache).await
        };
        let mut found = Vec::new();
        for_each_dataset(
            context,
            &datasets,
            |view| &view.dataset,
            work,
            |_, of_dataset| found.push(of_dataset),
        )
        .await;
        for (dataset, found) in datasets.iter_mut().zip(found) {
            let Some((mut view, catalog)) = self.keep(found, &mut dataset.errors, output) else {
                continue;
            };
            if let Some(setup) = side.setup {
                view.note_ends(setup.config.resume_days);
            }
            let counts = place == Shelf::Remote || dataset.only_intermediate;
            if let (Some(setup), true, false) = (side.setup, counts, context.global.dry_run) {
                history::seen(&setup.config, &*side.store, &catalog);
            }
            match place {
                Shelf::Intermediate => dataset.intermediate = Some(view),
                Shelf::Remote => dataset.remote = Some(view),
            }
        }
        self.overview.datasets = datasets;
        if place == Shelf::Remote && show.datasets.is_empty() {
            let foreign = list_datasets(&*side.store).await;
            let foreign = self
                .keep(foreign, &mut Vec::new(), output)
                .unwrap_or_default();
            let configured = |name: &DatasetName| {
                self.overview
                    .datasets
                    .iter()
                    .any(|view| view.dataset == *name)
            };
            let kept: Vec<String> = foreign
                .into_iter()
                .filter(|name| !configured(name))
                .map(|name| format!("{name} in the remote: this configuration does not name it"))
                .collect();
            self.overview.never_deleted.extend(kept);
        }
        let foreign = match show.unknown {
            true => self.count_foreign(&*side.store, place.name(), output).await,
            false => None,
        };
        StoreAnswer {
            url: None,
            asked: true,
            error: None,
            foreign_objects: foreign.as_ref().map(|foreign| foreign.objects),
            foreign_bytes: foreign.as_ref().map(|foreign| foreign.bytes),
        }
    }

    /// Counts the objects of a store that belong to none of the datasets.
    async fn count_foreign(
        &mut self,
        store: &dyn StoreRead,
        place: &str,
        output: &Output,
    ) -> Option<Foreign> {
        let counted = count_foreign(store, &self.overview.datasets).await;
        let foreign = self.keep(counted, &mut Vec::new(), output)?;
        self.overview.never_deleted.extend(foreign.sentence(place));
        Some(foreign)
    }

    /// Reads this host's records and judges the datasets.
    fn records(&mut self, config: &Config, output: &Output) {
        let now = self.overview.now;
        let known = self
            .keep(known_stores(config), &mut Vec::new(), output)
            .unwrap_or_default();
        if let [one, other] = known.as_slice() {
            let _: Option<()> = self.keep(refuse_one_place(one, other), &mut Vec::new(), output);
        }
        let mut datasets = std::mem::take(&mut self.overview.datasets);
        for dataset in &mut datasets {
            for store in &known {
                let held = is_held(&config.state_dir, store, &dataset.dataset);
                if self.keep(held, &mut dataset.errors, output) == Some(true) {
                    dataset.running_in.push(store.url.clone());
                }
            }
            let Some(store) = known.first() else { continue };
            let record = HistoryRecords::new(&config.state_dir, store, &dataset.dataset).read();
            dataset.record = self.keep(record, &mut dataset.errors, output);
            let Some(record) = &dataset.record else {
                continue;
            };
            let facts = facts_of(record, dataset.newest().map(|newest| newest.snapshot_at));
            dataset.health = Some(judge_health(&facts, &DEFAULT_LIMITS, now));
        }
        self.overview.datasets = datasets;
    }
}

fn local_view(
    zfs: &dyn ZfsRead,
    config: &Config,
    selected: &Selected,
) -> Result<LocalView, RunError> {
    let dataset = &selected.dataset;
    let snapshots = zfs
        .snapshots(&dataset.name)?
        .into_iter()
        .map(|snapshot| SnapshotView {
            own: is_own(&snapshot, dataset.guid, &config.snapshots.prefix),
            name: snapshot.name.to_string(),
            guid: snapshot.guid,
            created_at: snapshot.created_at,
            used_bytes: snapshot.used_bytes,
            referenced_bytes: snapshot.referenced_bytes,
            holds: snapshot.holds,
        });
    let bookmarks = zfs
        .bookmarks(&dataset.name)?
        .into_iter()
        .map(|bookmark| BookmarkView {
            name: bookmark.name.to_string(),
            guid: bookmark.guid,
            created_at: bookmark.created_at,
        });
    let holds = our_holds(zfs, &dataset.name)?
        .into_iter()
        .map(|hold| HoldView {
            snapshot: hold.snapshot.to_string(),
            tag: hold.tag,
            since: hold.since,
            used_bytes: hold.used_bytes,
        });
    Ok(LocalView {
        name: dataset.name.clone(),
        guid: dataset.guid,
        encrypted: dataset.encrypted,
        sent_raw: dataset.encrypted && config.send.raw.is_raw(dataset.encrypted),
        snapshots: snapshots.collect(),
        bookmarks: bookmarks.collect(),
        holds: holds.collect(),
    })
}

/// Reads the backups of a dataset in a store. With `deep` the objects of every backup are checked,
/// else only those of the newest chain.
async fn store_view(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    trusted: &TrustedKeys,
    deep: bool,
    cache: &ObjectCache,
) -> Result<(StoreView, Catalog), RunError> {
    let catalog = read_catalog_through(store, dataset, trusted, cache).await?;
    let newest_chain = catalog
        .newest()
        .map(|newest| newest.manifest.chain.full_id.clone());
    let wanted = |backup: &StoredBackup| {
        deep || Some(&backup.manifest.chain.full_id) == newest_chain.as_ref()
    };
    let seen = UsableCatalog::check_wanted(store, catalog, cache, wanted).await?;
    let catalog = &seen.catalog;
    let flaws = seen.flaws();
    let mut backups = Vec::new();
    for (number, backup) in catalog.backups.iter().enumerate() {
        let manifest = &backup.manifest;
        let checked = deep || number + 1 == catalog.backups.len();
        backups.push(BackupView {
            id: manifest.id.clone(),
            kind: manifest.kind,
            level: manifest.level,
            full_id: manifest.chain.full_id.clone(),
            position: manifest.chain.position,
            base: manifest.base.as_ref().map(|base| base.backup_id.clone()),
            snapshot_guid: manifest.snapshot.guid,
            snapshot_at: manifest.snapshot.created_at,
            stream_bytes: manifest.stream_bytes,
            stored_bytes: backup.stored_bytes(),
            raw: manifest.send.requested.iter().any(|flag| flag == "raw"),
            clone_origin_guid: manifest.clone_origin_guid,
            checked,
            flaw: flaws
                .get(&manifest.id)
                .cloned()
                .flatten()
                .filter(|_| checked),
        });
    }
    let mut unfinished = Vec::new();
    for attempt in &catalog.attempts {
        unfinished.push(attempt_view(store, dataset, attempt, trusted).await?);
    }
    let uploads = store.unfinished(&dataset_prefix(dataset)).await?;
    let view = StoreView {
        backups,
        unfinished,
        uploads: uploads
            .into_iter()
            .map(|u| UploadView {
                key: u.key,
                started_at: u.started_at,
            })
            .collect(),
        unknown_objects: catalog.unknown.len() as u64,
        unknown_bytes: catalog
            .unknown
            .iter()
            .fold(0, |sum, object| sum.saturating_add(object.bytes)),
        origins: catalog.origins() as u64,
        time_lines: catalog.time_lines() as u64,
    };
    Ok((view, seen.catalog))
}

async fn attempt_view(
    store: &dyn StoreRead,
    dataset: &DatasetName,
    attempt: &StoredAttempt,
    trusted: &TrustedKeys,
) -> Result<AttemptView, RunError> {
    let (started, distrust) = match read_started(store, dataset, &attempt.id, trusted).await {
        Ok(started) => (started, None),
        Err(error) if error.is_damage() => (None, Some(error_chain(&error))),
        Err(error) => return Err(error.into()),
    };
    Ok(AttemptView {
        id: attempt.id.clone(),
        started_at: started.as_ref().map(|started| started.started_at),
        base: started.and_then(|started| started.base.map(|base| base.backup_id)),
        objects: attempt.objects as u64,
        bytes: attempt.bytes,
        newest_object_at: attempt.newest,
        given_up_at: None,
        was_committed: attempt.was_committed,
        disbelieved: attempt
            .untrusted
            .as_ref()
            .map(|error| error_chain(error))
            .or(distrust),
    })
}

fn lockfile(config: &Config) -> Option<LockfileView> {
    let facts = config.lock_file.symlink_metadata().ok()?;
    let made_at = facts
        .modified()
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok());
    Some(LockfileView {
        path: config.lock_file.display().to_string(),
        made_at,
    })
}

/// Returns a sentence for everything that no prune will ever delete, as far as known: backups in
/// stores without rules, own snapshots without a limit, backups of several origins or time lines,
/// and objects that are not of this format.
fn never_deleted(config: &Config, datasets: &[DatasetView]) -> Vec<String> {
    let mut kept = Vec::new();
    let rules = [
        (
            "remote",
            config.remote.is_some(),
            config.lifecycle_remote.keeps_everything(),
        ),
        (
            "intermediate",
            config.intermediate.is_some(),
            config.lifecycle_intermediate.keeps_everything(),
        ),
    ];
    for (section, _, _) in rules
        .into_iter()
        .filter(|(_, configured, keeps_all)| *configured && *keeps_all)
    {
        kept.push(format!(
            "all backups in the {section}: [lifecycle-{section}] has no rule"
        ));
    }
    let lifecycle = &config.backup_lifecycle;
    if let (Some(keep), Some(FullEvery::Never)) = (lifecycle.keep, lifecycle.full_every) {
        let level = keep.longest();
        kept.push(format!(
            "the first full and every {level} backup: full_every is \"never\", and each builds on the one before"
        ));
    }
    if config.snapshots.oldest_days.is_none() {
        kept.push("all own snapshots: oldest_snapshot_days is not set".to_owned());
    }
    for dataset in datasets {
        let stores = [
            ("intermediate", &dataset.intermediate),
            ("remote", &dataset.remote),
        ];
        for (place, view) in stores
            .into_iter()
            .filter_map(|(place, view)| Some((place, view.as_ref()?)))
        {
            let name = &dataset.dataset;
            if view.origins > 1 {
                let what = "has backups of several origins: prune skips it until `adopt`";
                kept.push(format!("{name} in the {place} {what}"));
            }
            if view.time_lines > 1 {
                let what = "has backups of two time lines: prune skips it until `adopt`";
                kept.push(format!("{name} in the {place} {what}"));
            }
            if view.unknown_objects > 0 {
                kept.push(format!(
                    "{} objects under {name} in the {place}: not of this format",
                    view.unknown_objects
                ));
            }
        }
    }
    kept
}
