//! Destroys bookmarks that nothing needs any more, after a backup, and only if everything that
//! could need them was read.

use super::planning::read_usable;
use super::{BackupEnv, StoreRole};
use crate::catalog::stores::{RemoteView, StoresView};
use crate::catalog::{Catalog, read_pruned};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, SIGNATURE_BYTES_MAX, parse_started};
use crate::model::{BackupId, BackupKind, BookmarkName, Digest, Guid, KnownStore};
use crate::plan::BackupFacts;
use crate::plan::bookmarks::{BookmarkNeeds, is_own, needed_guids, spent_bookmarks};
use crate::run::error_chain;
use crate::run::pool::select::Selected;
use crate::state::bookmark_notes::BookmarkNotes;
use crate::state::manifests::CacheMode;
use crate::store::key::BackupObject;
use crate::store::{ObjectKey, StoreInfo, StoreRead};
use crate::zfs::Bookmark;
use std::collections::BTreeSet;

/// Destroys our bookmarks that neither the newest two usable chains of any configured store nor an
/// unfinished upload needs, nor the store of another configuration on this host. A failure only
/// leaves a bookmark in place.
pub(super) async fn release_bookmarks(
    env: &BackupEnv,
    selected: &Selected,
    stores: &StoresView,
    committed: &Manifest,
) {
    let dataset = &selected.dataset.name;
    match find_spent(env, selected, stores, committed).await {
        Ok(spent) if spent.is_empty() => {}
        Ok(spent) => match env.zfs.destroy_bookmarks(&spent) {
            Ok(()) => {
                tracing::debug!(%dataset, count = spent.len(), "bookmarks that nothing needs any more are gone")
            }
            Err(error) => tracing::warn!(
                error = error_chain(&error),
                "bookmarks that nothing needs stay"
            ),
        },
        Err(why) => {
            tracing::warn!(%dataset, why, "all bookmarks stay, because not all that may need them is known")
        }
    }
}

async fn find_spent(
    env: &BackupEnv,
    selected: &Selected,
    stores: &StoresView,
    committed: &Manifest,
) -> Result<Vec<BookmarkName>, String> {
    let (dataset, stored) = (&selected.dataset.name, &selected.stored);
    if let Some(unseen) = &stores.unseen {
        return Err(unseen.clone());
    }
    let mut target = stores.target_facts();
    // The hash of the manifest is not used here.
    target.push(BackupFacts::new(committed, Digest::of(b""), 0, None));
    let keep = env.settings.lifecycle.levels.map(|levels| levels.keep);
    let notes = BookmarkNotes::new(&env.settings.state_dir, selected.dataset.guid);
    let note = |store: &dyn StoreInfo, facts: &[BackupFacts], begun: &[Guid]| {
        let needed = needed_guids(facts, keep.as_ref())
            .into_iter()
            .chain(begun.iter().copied())
            .collect();
        notes.replace(&store.known(), needed).map_err(text)
    };
    let begun = unfinished(env, &*env.store, &stores.target.catalog).await?;
    note(&*env.store, &target, &begun)?;
    let mut needs = BookmarkNeeds {
        stores: vec![target],
        levels: keep,
        ..BookmarkNeeds::default()
    };
    needs.unfinished.extend(begun);
    let mut configured: Vec<&dyn StoreRead> = vec![&*env.store];
    if let Some(other) = &env.other {
        let store = other
            .store
            .as_ref()
            .map_err(|why| format!("{} cannot be reached: {why}", other.known.url))?;
        let read;
        let usable = match &stores.remote {
            RemoteView::Current(_, usable) => usable,
            RemoteView::Remembered(_) => {
                return Err(format!("{} cannot be reached", other.known.url));
            }
            RemoteView::None => {
                debug_assert_eq!(
                    other.role,
                    StoreRole::Intermediate,
                    "a remote beside the target was read already"
                );
                read = read_usable(env, &**store, stored, CacheMode::ReadWrite)
                    .await
                    .map_err(text)?;
                &read
            }
        };
        let facts = usable.facts(Some(&stores.target));
        let begun = unfinished(env, &**store, &usable.catalog).await?;
        note(&**store, &facts, &begun)?;
        needs.stores.push(facts);
        needs.unfinished.extend(begun);
        configured.push(&**store);
    }
    let own: Vec<KnownStore> = configured.iter().map(|store| store.known()).collect();
    needs.elsewhere = notes.needed_elsewhere(&own, stored, (env.now)())?;
    let bookmarks = env
        .zfs
        .bookmarks(dataset)
        .map_err(|error| error_chain(&error))?;
    if has_unknown(&bookmarks, &needs) {
        for store in configured {
            let pruned = read_pruned(store, stored, &env.keys.trusted)
                .await
                .map_err(text)?;
            needs
                .pruned
                .extend(pruned.iter().map(BackupId::snapshot_guid));
        }
    }
    Ok(spent_bookmarks(&bookmarks, &needs))
}

/// Returns whether one of our bookmarks belongs to no known backup or unfinished upload. The prune
/// records, which grow with the years, are read only in that case.
fn has_unknown(bookmarks: &[Bookmark], needs: &BookmarkNeeds) -> bool {
    let known: BTreeSet<Guid> = needs
        .stores
        .iter()
        .flatten()
        .map(|backup| backup.snapshot.guid)
        .collect();
    bookmarks.iter().any(|bookmark| {
        is_own(bookmark)
            && !known.contains(&bookmark.guid)
            && !needs.unfinished.contains(&bookmark.guid)
    })
}

/// Returns the guids of the snapshots and bases of unfinished attempts.
async fn unfinished(
    env: &BackupEnv,
    store: &dyn StoreRead,
    catalog: &Catalog,
) -> Result<Vec<Guid>, String> {
    let mut guids = Vec::new();
    for attempt in &catalog.attempts {
        if let Some(error) = &attempt.untrusted {
            return Err(format!("{}: {}", attempt.id, error_chain(error)));
        }
        guids.push(attempt.id.snapshot_guid());
        if attempt.id.kind() == BackupKind::Full {
            continue;
        }
        let key = ObjectKey::backup(&catalog.dataset, &attempt.id, &BackupObject::Started);
        let read = async {
            let signature = store
                .get(&key.signature(), None, SIGNATURE_BYTES_MAX)
                .await?;
            Ok::<_, crate::store::StoreError>((
                store.get(&key, None, MANIFEST_BYTES_MAX).await?,
                signature,
            ))
        };
        let (bytes, signature) = read.await.map_err(|error| error_chain(&error))?;
        let started = parse_started(
            &env.keys.trusted,
            &catalog.dataset,
            &attempt.id,
            &bytes,
            &signature,
        );
        let started = started.map_err(|error| format!("{key}: {}", error_chain(&error)))?;
        guids.extend(started.base.map(|base| base.guid));
    }
    Ok(guids)
}

fn text(error: impl std::error::Error) -> String {
    error_chain(&error)
}
