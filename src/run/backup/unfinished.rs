//! Finds unfinished uploads: by this host's journal, or, if the journal was lost or rolled back, by
//! the objects in the store and the holds in the pool. Decides about each and changes nothing.

use super::BackupEnv;
use super::planning::{Local, View};
use super::source::{flag_names, send_flags};
use crate::catalog::CatalogError;
use crate::catalog::stores::StoresView;
use crate::catalog::{get_signed, read_pruned};
use crate::manifest::{
    LARGE_TEXT_BYTES_MAX, MANIFEST_BYTES_MAX, ProgressChunk, Started, begin_from_bytes, parse_as,
    parse_progress, parse_started,
};
use crate::model::{BackupId, DatasetName, Digest, ReadFault};
use crate::plan::resume::{
    ResumeFacts, ResumeVerdict, UnfinishedFacts, is_asked_for, judge_unfinished,
};
use crate::plan::send::RequestedKind;
use crate::run::pool::pins::pinned;
use crate::run::pool::select::Selected;
use crate::run::transfer::{Carried, ConfirmedChunk};
use crate::run::verify::compare;
use crate::run::{RunError, error_chain};
use crate::sign::SignedType;
use crate::state::journal::log::JournalRecord;
use crate::state::journal::{JournaledAttempt, read_attempts};
use crate::store::key::{
    BackupObject, SIGNATURE_SUFFIX, backup_prefix, object_name, parse_object_name,
};
use crate::store::{Evidence, ObjectKey, ObjectStore, StoreErrorKind};
use crate::stream::record::BeginRecord;
use crate::zfs::{SendBase, Snapshot};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};

/// The most objects that are checked concurrently.
const HEADS_MAX: usize = 16;

/// An unfinished upload, with everything that is known of it.
pub(super) struct Unfinished {
    pub(super) started: Started,
    /// The exact bytes of `started.json`.
    pub(super) started_bytes: Vec<u8>,
    /// The hash of the keyring that the upload began with.
    pub(super) keyring: Option<Digest>,
    /// The exact bytes of `private.age`, after they were made.
    pub(super) private: Option<Vec<u8>>,
    begin: Option<BeginRecord>,
    chunks: BTreeMap<u32, ProgressChunk>,
    /// The begun chunks by name, with the store's upload ids where known.
    uploads: BTreeMap<String, Option<String>>,
    /// The number of the next progress object.
    pub(super) next_progress: u16,
    /// Whether the progress objects named chunks that the journal does not.
    pub(super) from_progress: bool,
    /// Whether the upload was found in the store: its journal is lost, or has no plan.
    pub(super) from_store: bool,
    /// The journal, if its file exists.
    pub(super) journal: Option<JournaledAttempt>,
}

/// An unfinished upload to resume, with the snapshot and base to send.
pub(super) struct ResumableUpload {
    pub(super) upload: Unfinished,
    pub(super) snapshot: Snapshot,
    pub(super) base: Option<SendBase>,
}

impl Unfinished {
    /// Reads an upload from its journal. Returns `None` when the journal has no plan: it is of a
    /// copy, or of an upload that was interrupted at its very start.
    fn from_journal(journal: JournaledAttempt) -> Result<Option<Self>, RunError> {
        let Some(JournalRecord::Plan {
            started, keyring, ..
        }) = journal.records().first()
        else {
            return Ok(None);
        };
        let id = &journal.id;
        let unusable = |source| RunError::Manifest {
            key: format!("the journal of {id}"),
            source,
        };
        let parsed: Started = parse_as(started, SignedType::Started.as_str()).map_err(unusable)?;
        let mut upload = Self::new(parsed, started.clone(), *keyring);
        for record in journal.records() {
            match record {
                JournalRecord::Plan { .. }
                | JournalRecord::Commit(_)
                | JournalRecord::ReadFault(_)
                | JournalRecord::Abandoned { .. } => {}
                JournalRecord::Chunk { name } => {
                    upload.uploads.entry(name.clone()).or_default();
                }
                JournalRecord::Upload { name, upload_id } => {
                    upload.uploads.insert(name.clone(), Some(upload_id.clone()));
                }
                JournalRecord::Stream { begin } => upload.begin = begin_from_bytes(begin),
                JournalRecord::Confirmed(chunk) => upload.add(ProgressChunk::clone(chunk)),
                JournalRecord::Closing { private } => upload.private = Some(private.clone()),
            }
        }
        upload.journal = Some(journal);
        Ok(Some(upload))
    }

    fn new(started: Started, started_bytes: Vec<u8>, keyring: Option<Digest>) -> Self {
        Self {
            started,
            started_bytes,
            keyring,
            private: None,
            begin: None,
            chunks: BTreeMap::new(),
            uploads: BTreeMap::new(),
            next_progress: 0,
            from_progress: false,
            from_store: false,
            journal: None,
        }
    }

    fn add(&mut self, chunk: ProgressChunk) {
        self.uploads.entry(chunk.entry.name.clone()).or_default();
        self.chunks.insert(chunk.entry.index, chunk);
    }

    pub(super) fn id(&self) -> &BackupId {
        &self.started.id
    }

    /// Returns the sort key: incrementals before fulls, then the upload with the most chunks first.
    pub(super) fn order(&self) -> (bool, std::cmp::Reverse<usize>, BackupId) {
        (
            self.started.base.is_none(),
            std::cmp::Reverse(self.chunks.len()),
            self.id().clone(),
        )
    }

    /// Returns the state from which the transfer resumes.
    pub(super) fn carried(&self) -> Carried {
        let chunk = |(index, chunk): (&u32, &ProgressChunk)| {
            (*index, ConfirmedChunk::from_progress(chunk.clone()))
        };
        match &self.begin {
            Some(begin) => Carried {
                begin: Some(begin.clone()),
                chunks: self.chunks.iter().map(chunk).collect(),
            },
            // No chunk can be joined to a stream without its first record.
            None => Carried::default(),
        }
    }

    /// Returns the records that a new journal of the upload has after the plan.
    pub(super) fn records(&self) -> Vec<JournalRecord> {
        let begin = self.begin.as_ref().map(|begin| JournalRecord::Stream {
            begin: begin.header().bytes().to_vec(),
        });
        let chunks = self
            .chunks
            .values()
            .map(|chunk| JournalRecord::Confirmed(Box::new(chunk.clone())));
        begin.into_iter().chain(chunks).collect()
    }

    /// Returns whether the journal, the progress objects or the listing show that the chunk was
    /// begun before this run.
    pub(super) fn knows(&self, chunk: &str) -> bool {
        self.uploads.contains_key(chunk)
    }

    /// Returns the chunks that were begun and not confirmed, with their upload ids.
    pub(super) fn unconfirmed(&self) -> impl Iterator<Item = (&String, &Option<String>)> {
        let confirmed: BTreeSet<&String> = self
            .chunks
            .values()
            .map(|chunk| &chunk.entry.name)
            .collect();
        self.uploads
            .iter()
            .filter(move |(name, _)| !confirmed.contains(name))
    }

    /// Returns the places at which ZFS could not read the snapshot.
    pub(super) fn read_faults(&self) -> Vec<ReadFault> {
        let journal = self.journal.as_ref();
        journal.map_or_else(Vec::new, JournaledAttempt::read_faults)
    }

    /// Returns the names of the objects that this upload can have put by now.
    fn known(&self) -> BTreeSet<String> {
        let mut objects = vec![BackupObject::Started, BackupObject::Keyring];
        if self.private.is_some() {
            objects.extend([BackupObject::RestoreText, BackupObject::Private]);
            let lists = self.chunks.len().div_ceil(crate::manifest::CHUNKS_PER_LIST);
            objects
                .extend((0..u16::try_from(lists).unwrap_or(u16::MAX)).map(BackupObject::ChunkList));
        }
        objects.extend((0..self.next_progress).map(BackupObject::Progress));
        let names = objects.iter().map(object_name);
        let signed = names.flat_map(|name| [format!("{name}{SIGNATURE_SUFFIX}"), name]);
        signed.chain(self.uploads.keys().cloned()).collect()
    }
}

/// Returns the unfinished uploads that a run of the requested kind considers, each with its
/// verdict. Changes nothing, on this host or in the store.
///
/// # Errors
/// [`RunError`] when something could not be read.
pub(super) async fn judge_all(
    env: &BackupEnv,
    selected: &Selected,
    view: &View,
    requested: RequestedKind,
) -> Result<Vec<(Unfinished, ResumeVerdict)>, RunError> {
    let View { stores, local } = view;
    let stored = &selected.stored;
    let (mut found, mut known, mut lost) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
    for journal in read_attempts(&env.settings.state_dir, &env.store.known(), stored)? {
        let id = journal.id.clone();
        if !journal.committing && journal.records().is_empty() {
            lost.insert(id, journal);
            continue;
        }
        known.insert(id);
        if !journal.committing && !journal.is_abandoned() {
            found.extend(Unfinished::from_journal(journal)?);
        }
    }
    let pins = pinned(&*env.zfs, &selected.dataset.name)?;
    for attempt in &stores.target.catalog.attempts {
        if known.contains(&attempt.id) || !pins.contains(&attempt.id) || attempt.was_committed {
            continue;
        }
        if let Some(mut upload) = in_store(env, stored, &attempt.id).await? {
            upload.journal = lost.remove(&attempt.id);
            found.push(upload);
        }
    }
    found.retain(|upload| is_asked_for(requested, upload.id()));
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let pruned = read_pruned(&*env.store, stored, &env.keys.trusted).await?;
    let mut judged = Vec::new();
    for mut upload in found {
        let verdict = judge(env, stores, local, &mut upload, &pruned).await?;
        judged.push((upload, verdict));
    }
    Ok(judged)
}

/// Returns whether the store has the manifest, even behind a delete marker. If this key may not
/// list versions, only the visible object counts: the journal of an interrupted run is right,
/// except in the rare case that it was rolled back.
async fn was_committed(env: &BackupEnv, manifest: &ObjectKey) -> Result<bool, RunError> {
    match env.store.any_version(manifest).await {
        Err(error) if error.kind == StoreErrorKind::Denied => {
            tracing::warn!(
                error = error_chain(&error),
                "hidden versions of {manifest} cannot be excluded"
            );
            Ok(env.store.head(manifest).await?.is_some())
        }
        any => Ok(any?),
    }
}

/// Reads an unfinished upload from the store alone, by its signed first object. The origin in that
/// object says which dataset and pool it belongs to.
async fn in_store(
    env: &BackupEnv,
    stored: &DatasetName,
    id: &BackupId,
) -> Result<Option<Unfinished>, RunError> {
    let key = ObjectKey::backup(stored, id, &BackupObject::Started);
    let trusted = &env.keys.trusted;
    let (bytes, signature) = match get_signed(
        &*env.store,
        &key,
        SignedType::Started,
        trusted,
        MANIFEST_BYTES_MAX,
    )
    .await
    {
        Ok(read) => read,
        Err(CatalogError::Damaged { .. }) => return Ok(None),
        Err(error) if error.is_damage() => {
            tracing::warn!(%key, error = error_chain(&error), "an unfinished upload is not trusted");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match parse_started(&env.keys.trusted, stored, id, &bytes, &signature) {
        Ok(started) => {
            let keyring = env
                .keys
                .keyring
                .as_ref()
                .map(|keyring| Digest::of(&keyring.bytes));
            let upload = Unfinished::new(started, bytes.to_vec(), keyring);
            Ok(Some(Unfinished {
                from_store: true,
                ..upload
            }))
        }
        Err(error) => {
            tracing::warn!(%key, error = error_chain(&error), "an unfinished upload is not trusted");
            Ok(None)
        }
    }
}

/// Decides about one upload. Reads its progress objects first if it was found in the store, or if
/// the store has chunks that the journal does not name.
async fn judge(
    env: &BackupEnv,
    stores: &StoresView,
    local: &Local,
    upload: &mut Unfinished,
    pruned: &BTreeSet<BackupId>,
) -> Result<ResumeVerdict, RunError> {
    let stored = &stores.target.catalog.dataset;
    let prefix = backup_prefix(stored, upload.id());
    let objects = env.store.list(&prefix).await?;
    let sizes: BTreeMap<String, u64> = objects
        .into_iter()
        .map(|object| (object.key[prefix.len()..].to_owned(), object.bytes))
        .collect();
    let listed: BTreeSet<String> = sizes.keys().cloned().collect();
    note_progress_numbers(upload, &listed);
    if upload.from_store
        || listed
            .iter()
            .any(|name| is_chunk(name) && !upload.uploads.contains_key(name))
    {
        read_progress(env, stored, upload, &listed).await?;
        // Chunks may be newer than the last progress object. The resumed upload neither uses nor
        // changes them: each sealing gives new names, and a manifest that named them would be
        // noticed.
        let unknown: Vec<String> = listed
            .iter()
            .filter(|name| is_chunk(name))
            .cloned()
            .collect();
        for name in unknown {
            upload.uploads.entry(name).or_default();
        }
    }
    let manifest = ObjectKey::backup(stored, upload.id(), &BackupObject::Manifest);
    let has_manifest = stores.target.catalog.backup(upload.id()).is_some()
        || was_committed(env, &manifest).await?;
    let recipients: Vec<String> = env
        .keys
        .recipients
        .iter()
        .map(ToString::to_string)
        .collect();
    let flags = flag_names(send_flags(&local.dataset, &env.settings));
    let facts = UnfinishedFacts {
        started: &upload.started,
        read_faults: &upload.read_faults(),
        listed: &listed,
        known: &upload.known(),
        has_manifest,
        is_pruned: pruned.contains(upload.id()),
    };
    let verdict = judge_unfinished(
        &facts,
        &ResumeFacts {
            origin: &local.origin(&*env.zfs)?,
            snapshots: &local.snapshots,
            bookmarks: &local.bookmarks,
            flags: &flags,
            split_bytes: env.settings.split_bytes,
            compression: env.settings.compression.into(),
            recipients: &recipients,
            target: &stores.target_facts(),
            remote: &stores.remote_facts(),
            unseen: stores.unseen.as_deref(),
        },
    );
    match &verdict {
        ResumeVerdict::Resume { .. } => Ok(match check_chunks(env, stored, upload).await? {
            Some(why) => ResumeVerdict::Abandon { why },
            None => verdict,
        }),
        _ => Ok(verdict),
    }
}

fn is_chunk(name: &str) -> bool {
    matches!(parse_object_name(name), Some(BackupObject::Chunk { .. }))
}

/// Finds the number of the next progress object: one above the highest listed number, with or
/// without its signature.
fn note_progress_numbers(upload: &mut Unfinished, listed: &BTreeSet<String>) {
    let numbers = listed.iter().filter_map(|name| {
        match parse_object_name(name.strip_suffix(SIGNATURE_SUFFIX).unwrap_or(name)) {
            Some(BackupObject::Progress(number)) => Some(number),
            _ => None,
        }
    });
    upload.next_progress = numbers.max().map_or(0, |last| last.saturating_add(1));
}

/// Adds the chunks that the signed progress objects name. Untrusted progress objects are ignored.
async fn read_progress(
    env: &BackupEnv,
    stored: &DatasetName,
    upload: &mut Unfinished,
    listed: &BTreeSet<String>,
) -> Result<(), RunError> {
    let id = upload.id().clone();
    for number in 0..upload.next_progress {
        let object = BackupObject::Progress(number);
        if !listed.contains(&object_name(&object)) {
            continue;
        }
        let key = ObjectKey::backup(stored, &id, &object);
        let keys = &env.keys;
        let read = get_signed(
            &*env.store,
            &key,
            SignedType::Progress,
            &keys.trusted,
            LARGE_TEXT_BYTES_MAX,
        )
        .await;
        let (bytes, signature) = match read {
            Ok(read) => read,
            Err(CatalogError::Damaged { .. }) => continue,
            Err(error) if error.is_damage() => {
                tracing::warn!(%key, error = error_chain(&error), "a progress object is not trusted");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match parse_progress(
            &keys.trusted,
            &keys.signing,
            stored,
            &id,
            number,
            &bytes,
            &signature,
        ) {
            Ok(body) => {
                upload.begin = upload
                    .begin
                    .take()
                    .or_else(|| begin_from_bytes(&body.begin));
                for chunk in body.chunks {
                    if !upload.chunks.contains_key(&chunk.entry.index) {
                        upload.from_progress = true;
                        upload.add(chunk);
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%key, error = error_chain(&error), "a progress object is not trusted")
            }
        }
    }
    Ok(())
}

/// Checks the store's present evidence for each confirmed chunk against the recorded evidence.
/// Returns the first difference.
async fn check_chunks(
    env: &BackupEnv,
    stored: &DatasetName,
    upload: &Unfinished,
) -> Result<Option<String>, RunError> {
    let store: &dyn ObjectStore = &*env.store;
    let prefix = backup_prefix(stored, upload.id());
    let listed = store.evidence_under(&prefix).await?;
    let ask = |chunk: &ProgressChunk| {
        let (name, recorded) = (chunk.entry.name.clone(), chunk.evidence.clone());
        let key =
            parse_object_name(&name).map(|object| ObjectKey::backup(stored, upload.id(), &object));
        let known = listed
            .as_ref()
            .map(|listed| listed.get(&format!("{prefix}{name}")).cloned());
        async move {
            let found: Option<Evidence> = match (known, key) {
                (Some(found), _) => found,
                (None, Some(key)) => store.head(&key).await?,
                (None, None) => None,
            };
            Ok::<_, RunError>(
                compare(&recorded, found.as_ref())
                    .err()
                    .map(|reason| format!("{name}: {reason}")),
            )
        }
    };
    let asked: Vec<_> = upload.chunks.values().map(ask).collect();
    let flaws: Vec<Option<String>> = stream::iter(asked)
        .buffered(HEADS_MAX)
        .try_collect()
        .await?;
    Ok(flaws.into_iter().flatten().next())
}

/// Returns the number of confirmed chunks of an attempt and the bytes of stream in them, by its
/// journal.
///
/// # Errors
/// [`RunError::State`] when the journal cannot be read.
pub(super) fn stored_of(
    env: &BackupEnv,
    selected: &Selected,
    id: &BackupId,
) -> Result<(usize, u64), RunError> {
    let attempts = read_attempts(
        &env.settings.state_dir,
        &env.store.known(),
        &selected.stored,
    )?;
    let records = attempts
        .iter()
        .filter(|attempt| attempt.id == *id)
        .flat_map(JournaledAttempt::records);
    let confirmed = records.filter_map(|record| match record {
        JournalRecord::Confirmed(chunk) => Some(chunk.entry.stream_bytes),
        _ => None,
    });
    Ok(confirmed.fold((0, 0), |(chunks, sum), bytes| (chunks + 1, sum + bytes)))
}
