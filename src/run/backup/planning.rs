//! Reads what the stores and the pool hold of a dataset, and decides what to send.

use super::source::{flag_names, send_flags};
use super::{BackupEnv, BackupSettings, OtherStore, PlannedBackup, SteppedOver, StoreRole};
use crate::catalog::remembered::{recall, remember};
use crate::catalog::stores::{RemoteView, StoresView, is_out_of_reach};
use crate::catalog::usable::UsableCatalog;
use crate::catalog::{Catalog, read_catalog_through};
use crate::config::SnapshotSource;
use crate::manifest::{Manifest, Origin};
use crate::model::{BackupId, DatasetName, Digest, Guid, ReadFault};
use crate::plan::BackupFacts;
use crate::plan::chunk_count::check_chunk_count;
use crate::plan::resume::unreadable_at;
use crate::plan::send::{RequestedKind, SendConflict, SendFacts, SendPlan, plan_send};
use crate::run::blocking::blocking;
use crate::run::identity::refuse_one_place;
use crate::run::pool::select::Selected;
use crate::run::pool::snapshot::{find_dataset, is_own};
use crate::run::{RunError, error_chain};
use crate::state::journal::read_attempts;
use crate::state::manifests::{CacheMode, ObjectCache};
use crate::store::StoreRead;
use crate::zfs::{Bookmark, Dataset, SendBase, SendRequest, Snapshot, ZfsRead, ZfsSend};
use globset::Glob;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The stores and the pool, as a step of a run has read them.
pub(super) struct View {
    pub(super) stores: StoresView,
    pub(super) local: Local,
}

impl View {
    /// Reads the stores and the pool.
    ///
    /// # Errors
    /// As for [`read_stores`] and [`Local::read`].
    pub(super) async fn read(
        env: &BackupEnv,
        selected: &Selected,
        mode: CacheMode,
    ) -> Result<Self, RunError> {
        let mut local = Local::read_apart(env, selected).await?;
        if send_flags(&local.dataset, &env.settings).raw && local.dataset.encrypted {
            local.set_aside(|bookmark| bookmark.ivset_guid == Some(0));
        }
        Ok(Self {
            stores: read_stores(env, &selected.stored, mode).await?,
            local,
        })
    }
}

/// A base, both in the pool and in a store.
pub(super) struct Base {
    /// The snapshot or bookmark from which the send starts.
    pub(super) local: SendBase,
    /// The manifest of the base.
    pub(super) manifest: Manifest,
    /// The hash of its manifest.
    pub(super) manifest_blake3: Digest,
    /// The backups of its chain up to the base itself, the full first.
    pub(super) chain: Vec<BackupId>,
}

impl Base {
    /// Finds the base in the stores.
    ///
    /// # Errors
    /// [`RunError::Refused`] when no store has it.
    pub(super) fn find(
        stores: &StoresView,
        id: &BackupId,
        manifest_blake3: Digest,
        local: SendBase,
    ) -> Result<Self, RunError> {
        let unknown = || RunError::refused(format!("{id} is gone"), "run it again");
        let stored = stores.stored(id, manifest_blake3).ok_or_else(unknown)?;
        Ok(Self {
            local,
            manifest: stored.manifest.clone(),
            manifest_blake3,
            chain: stores.target.chain(stores.remote.usable(), id),
        })
    }
}

/// Reads the target, and the remote if bases may be in it. Objects that the cache has and that are
/// listed unchanged are not fetched: the listing shows what is whole, and the base's manifest is
/// read from the store before a commit that depends on it.
///
/// # Errors
/// [`RunError`] when the target cannot be read. If the remote cannot be reached, its saved state is
/// used instead.
async fn read_stores(
    env: &BackupEnv,
    stored: &DatasetName,
    keeping: CacheMode,
) -> Result<StoresView, RunError> {
    if let Some(other) = &env.other {
        refuse_one_place(&env.store.known(), &other.known)?;
    }
    let target = read_usable(env, &*env.store, stored, keeping).await?;
    let mut unseen = untrusted_reason(&target.catalog, env.store.url());
    let remote = match &env.other {
        Some(other) if other.role == StoreRole::Remote => {
            read_remote(env, other, (stored, keeping), &mut unseen).await?
        }
        _ => RemoteView::None,
    };
    Ok(StoresView {
        target,
        remote,
        unseen,
    })
}

pub(super) async fn read_usable(
    env: &BackupEnv,
    store: &dyn StoreRead,
    stored: &DatasetName,
    keeping: CacheMode,
) -> Result<UsableCatalog, RunError> {
    let cache = ObjectCache::open(&env.settings.state_dir, &store.known(), stored, keeping);
    let catalog = read_catalog_through(store, stored, &env.keys.trusted, &cache).await?;
    for (id, error) in catalog.untrusted() {
        tracing::warn!(%id, %error, store = store.url(), "the store has a manifest that is invalid or untrusted; it is left alone");
    }
    Ok(UsableCatalog::check_wanted(store, catalog, &cache, |_| true).await?)
}

fn untrusted_reason(catalog: &Catalog, store_url: &str) -> Option<String> {
    let count = catalog.untrusted().count();
    (count > 0).then(|| format!("{count} manifests in {store_url} are invalid or untrusted"))
}

/// Saves what the remote holds, to plan with it while the remote is out of reach. A failure costs
/// only that.
pub(super) async fn remember_remote(
    env: &BackupEnv,
    stored: &DatasetName,
    stores: &StoresView,
    listed_at: Timestamp,
) {
    let listed_at = (env.role == StoreRole::Remote).then_some(listed_at);
    let (store, usable): (&dyn StoreRead, _) = match (&stores.remote, env.role) {
        (RemoteView::Current(store, usable), _) => (&**store, usable),
        (_, StoreRole::Remote) => (&*env.store, &stores.target),
        (RemoteView::None | RemoteView::Remembered(_), StoreRole::Intermediate) => return,
    };
    let state_dir = &env.settings.state_dir;
    if let Err(error) = remember(state_dir, store, stored, &usable.whole(), listed_at).await {
        tracing::warn!(
            error = error_chain(&error),
            "cannot save the remote's manifests for planning while it is offline"
        );
    }
}

async fn read_remote(
    env: &BackupEnv,
    other: &OtherStore,
    (stored, keeping): (&DatasetName, CacheMode),
    unseen: &mut Option<String>,
) -> Result<RemoteView, RunError> {
    let why = match &other.store {
        Ok(store) => match read_usable(env, &**store, stored, keeping).await {
            Ok(usable) => {
                *unseen = unseen
                    .take()
                    .or_else(|| untrusted_reason(&usable.catalog, store.url()));
                return Ok(RemoteView::Current(store.clone(), usable));
            }
            Err(RunError::Store(error)) if is_out_of_reach(&error) => error_chain(&error),
            Err(error) => return Err(error),
        },
        Err(why) => why.clone(),
    };
    tracing::warn!(
        "{} cannot be reached; planning with what it held when it was last read: {why}",
        other.known.url
    );
    match recall(
        &env.settings.state_dir,
        &other.known,
        stored,
        &env.keys.trusted,
    )? {
        Some((catalog, 0)) => Ok(RemoteView::Remembered(UsableCatalog::remembered(catalog))),
        Some((catalog, count)) => {
            *unseen = Some(format!(
                "{count} remembered manifests of {} are untrusted",
                other.known.url
            ));
            Ok(RemoteView::Remembered(UsableCatalog::remembered(catalog)))
        }
        None => {
            *unseen = Some(format!(
                "{} cannot be reached and was never read from here",
                other.known.url
            ));
            Ok(RemoteView::None)
        }
    }
}

/// The dataset in the pool, with its snapshots and bookmarks.
pub(super) struct Local {
    pub(super) dataset: Dataset,
    pub(super) snapshots: Vec<Snapshot>,
    pub(super) bookmarks: Vec<Bookmark>,
    /// The bases from which ZFS sends, and whose raw incrementals it does not receive.
    unfit_bases: BTreeSet<Guid>,
}

impl Local {
    /// Does the same as [`Local::read`] on a thread of its own: a pool that hangs must not stop the
    /// uploads of other datasets.
    ///
    /// # Errors
    /// As for [`Local::read`].
    pub(super) async fn read_apart(env: &BackupEnv, selected: &Selected) -> Result<Self, RunError> {
        let (zfs, selected) = (Arc::clone(&env.zfs), selected.clone());
        blocking(move || Self::read(&*zfs, &selected)).await?
    }

    /// Reads the pool.
    ///
    /// # Errors
    /// [`RunError`] when the dataset is gone or another one has its name.
    pub(super) fn read(zfs: &dyn ZfsRead, selected: &Selected) -> Result<Self, RunError> {
        let name = &selected.dataset.name;
        let dataset = find_dataset(zfs, name)?;
        if dataset.guid != selected.dataset.guid {
            return Err(RunError::refused(
                format!("{name} is another dataset than it was a moment ago"),
                "run it again",
            ));
        }
        Ok(Self {
            dataset,
            snapshots: zfs.snapshots(name)?,
            bookmarks: zfs.bookmarks(name)?,
            unfit_bases: BTreeSet::new(),
        })
    }

    /// Leaves out the bookmarks that cannot be a base.
    fn set_aside(&mut self, is_unfit: impl Fn(&Bookmark) -> bool) {
        let unfit = self.bookmarks.extract_if(.., |bookmark| is_unfit(bookmark));
        self.unfit_bases.extend(unfit.map(|bookmark| bookmark.guid));
    }

    /// Leaves out the snapshots and bookmarks with these guids: they cannot be a base.
    pub(super) fn set_aside_bases(&mut self, guids: &BTreeSet<Guid>) {
        self.snapshots
            .retain(|snapshot| !guids.contains(&snapshot.guid));
        self.set_aside(|bookmark| guids.contains(&bookmark.guid));
        self.unfit_bases.extend(guids);
    }

    /// Returns the origin of the stream: the guids of the dataset and its pool.
    ///
    /// # Errors
    /// [`RunError::Zfs`] when the pool does not report its guid.
    pub(super) fn origin(&self, zfs: &dyn ZfsRead) -> Result<Origin, RunError> {
        Ok(Origin {
            dataset_guid: self.dataset.guid,
            pool_guid: zfs.pool_guid(self.dataset.name.pool())?,
        })
    }

    /// Returns the snapshots that may be sent, the newest first.
    pub(super) fn candidates(&self, settings: &BackupSettings) -> Result<Vec<&Snapshot>, RunError> {
        let newest_first = self.snapshots.iter().rev();
        match &settings.source {
            SnapshotSource::Own => {
                let is_own = |snapshot: &&Snapshot| {
                    is_own(snapshot, self.dataset.guid, &settings.snapshot_prefix)
                };
                Ok(newest_first.filter(is_own).collect())
            }
            SnapshotSource::Matching(pattern) => {
                let wrong = |error: globset::Error| {
                    RunError::refused(error.to_string(), "check main.use_snapshots")
                };
                let glob = Glob::new(pattern).map_err(wrong)?.compile_matcher();
                Ok(newest_first
                    .filter(|snapshot| glob.is_match(snapshot.name.short()))
                    .collect())
            }
        }
    }
}

/// The facts for a plan, as far as they are computed.
pub(super) struct Gathered {
    flags: Vec<String>,
    recipients: Vec<String>,
    target: Vec<BackupFacts>,
    remote: Vec<BackupFacts>,
}

impl Gathered {
    pub(super) fn new(env: &BackupEnv, view: &View) -> Self {
        Self {
            flags: flag_names(send_flags(&view.local.dataset, &env.settings)),
            recipients: env
                .keys
                .recipients
                .iter()
                .map(ToString::to_string)
                .collect(),
            target: view.stores.target_facts(),
            remote: view.stores.remote_facts(),
        }
    }

    pub(super) fn facts<'a>(
        &'a self,
        env: &BackupEnv,
        View { stores, local }: &'a View,
        snapshot: Option<&'a Snapshot>,
        full_estimate_bytes: Option<u64>,
    ) -> SendFacts<'a> {
        let dataset = &local.dataset;
        SendFacts {
            snapshot,
            redacted_dataset: dataset.redacted.then_some(&dataset.name),
            snapshots: &local.snapshots,
            bookmarks: &local.bookmarks,
            unfit_bases: &local.unfit_bases,
            target: &self.target,
            remote: &self.remote,
            unseen: stores.unseen.as_deref(),
            flags: &self.flags,
            recipients: &self.recipients,
            full_estimate_bytes,
            now: (env.now)(),
        }
    }
}

/// Decides what to send. Snapshots that are `unreadable` are stepped over.
///
/// # Errors
/// [`RunError::Conflict`], [`RunError::Refused`] for settings that do not fit the dataset, or
/// [`RunError::Zfs`].
pub(super) fn decide(
    env: &BackupEnv,
    view: &View,
    requested: RequestedKind,
    unreadable: &BTreeMap<Guid, ReadFault>,
) -> Result<PlannedBackup, RunError> {
    let local = &view.local;
    let Dataset {
        name,
        encrypted,
        key_unavailable,
        ..
    } = &local.dataset;
    let settings = &env.settings;
    let flags = send_flags(&local.dataset, settings);
    if *encrypted && !flags.raw && *key_unavailable {
        return Err(RunError::refused(
            format!("{name} is encrypted, its key is not loaded, and send.raw is \"never\""),
            "load the key, or set send.raw = \"auto\"",
        ));
    }
    let mut candidates = local.candidates(settings)?.into_iter().peekable();
    let mut stepped_over = Vec::new();
    while let Some(snapshot) = candidates.next_if(|it| unreadable.contains_key(&it.guid)) {
        let fault = unreadable[&snapshot.guid];
        let snapshot = snapshot.clone();
        stepped_over.push(SteppedOver { snapshot, fault });
    }
    let candidate = candidates.next();
    if let (None, Some(newest)) = (candidate, stepped_over.first()) {
        return Err(newest.clone().into_error(None));
    }
    let estimate = |snapshot: &Snapshot, base: Option<SendBase>| {
        let request = SendRequest {
            snapshot: snapshot.name.clone(),
            base,
            flags,
            resume: None,
        };
        estimate_stream(&*env.zfs, &request)
    };
    let full_estimate_bytes = candidate.and_then(|snapshot| estimate(snapshot, None));
    let gathered = Gathered::new(env, view);
    let facts = gathered.facts(env, view, candidate, full_estimate_bytes);
    let mut plan = plan_send(&facts, &settings.lifecycle, requested)
        .map_err(|conflict| explain(env, name, conflict))?;
    if let (SendPlan::Full { .. }, RequestedKind::Lifecycle) = (&plan, requested)
        && let Some(Err(count)) =
            full_estimate_bytes.map(|bytes| check_chunk_count(bytes, settings.split_bytes))
        && let Ok(incremental @ SendPlan::Incremental { .. }) =
            plan_send(&facts, &settings.lifecycle, RequestedKind::Incremental)
    {
        tracing::warn!(dataset = %name, "a full is due and is not made: {count}; {}", count.hint());
        plan = incremental;
    }
    let estimate_bytes = match &plan {
        SendPlan::Full { .. } => full_estimate_bytes,
        SendPlan::Incremental { snapshot, base, .. } => estimate(snapshot, Some(base.clone())),
        SendPlan::UpToDate { .. } | SendPlan::Unchanged { .. } => None,
    };
    if let Some(bytes) = estimate_bytes {
        check_chunk_count(bytes, settings.split_bytes)
            .map_err(|count| explain(env, name, SendConflict::TooManyChunks(count)))?;
    }
    Ok(PlannedBackup {
        plan,
        estimate_bytes,
        stepped_over,
    })
}

/// Returns the kernel's estimate of a stream in bytes. A missing estimate is only logged.
pub(super) fn estimate_stream(zfs: &dyn ZfsSend, request: &SendRequest) -> Option<u64> {
    let estimated = zfs.send_space(request);
    estimated
        .inspect_err(|error| tracing::warn!(error = error_chain(error), "no estimate"))
        .ok()
}

/// Returns the snapshots of attempts that ended twice at the same place because ZFS could not read
/// the snapshot. With `--restart` there are none: the snapshots are tried again. A snapshot that is
/// stored all the same was readable later, after a repair.
pub(super) fn unreadable_snapshots(
    env: &BackupEnv,
    stores: &StoresView,
) -> Result<BTreeMap<Guid, ReadFault>, RunError> {
    if env.settings.restart {
        return Ok(BTreeMap::new());
    }
    let dataset = &stores.target.catalog.dataset;
    let attempts = read_attempts(&env.settings.state_dir, &env.store.known(), dataset)?;
    let (target, remote) = (stores.target_facts(), stores.remote_facts());
    let usable = target.iter().chain(&remote).filter(|it| it.is_usable());
    let stored: BTreeSet<Guid> = usable.map(|backup| backup.snapshot.guid).collect();
    let unreadable = attempts.iter().filter_map(|attempt| {
        let fault = unreadable_at(&attempt.read_faults())?;
        Some((attempt.id.snapshot_guid(), fault))
    });
    Ok(unreadable
        .filter(|(guid, _)| !stored.contains(guid))
        .collect())
}

fn explain(env: &BackupEnv, dataset: &DatasetName, conflict: SendConflict) -> RunError {
    let command = match env.role {
        StoreRole::Remote => "stream-to-remote",
        StoreRole::Intermediate => "export-intermediate",
    };
    let hint = match (&conflict, &env.settings.source) {
        (SendConflict::NoSnapshot { .. }, SnapshotSource::Own) => {
            "run `zfs-backup snapshot` first".to_owned()
        }
        (SendConflict::NoSnapshot { .. }, SnapshotSource::Matching(pattern)) => {
            format!("main.use_snapshots is \"{pattern}\": take a snapshot that it matches")
        }
        (SendConflict::Redacted { .. }, _) => {
            "back up the dataset that it was made from, and leave this one out with main.exclude"
                .to_owned()
        }
        (SendConflict::TooManyChunks(count), _) => count.hint(),
        (
            SendConflict::NoCommonBase(_)
            | SendConflict::TooLarge { .. }
            | SendConflict::OnlyFull(_),
            _,
        ) => format!("accept a full: zfs-backup {command} --full"),
    };
    RunError::Conflict {
        dataset: dataset.clone(),
        conflict,
        hint,
    }
}
