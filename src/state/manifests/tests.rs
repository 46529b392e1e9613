//! Tests of the cache file: its use after a crash, after damage, and concurrently with another
//! process.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

const STORE: &str = "s3:bucket/p";

fn dataset() -> DatasetName {
    "tank/a b".parse().unwrap()
}

fn open(state: &Path) -> ObjectCache {
    ObjectCache::open(
        state,
        &KnownStore::of_url(STORE),
        &dataset(),
        CacheMode::ReadWrite,
    )
}

fn listed(key: &str, bytes: &[u8], second: i64) -> ListedObject {
    let modified_at = Some(Timestamp::from_second(second).unwrap());
    ListedObject {
        key: key.to_owned(),
        bytes: bytes.len() as u64,
        modified_at,
    }
}

/// Returns three objects; the second contains line ends and text that looks like a line of the
/// cache.
fn objects() -> Vec<(ListedObject, Vec<u8>)> {
    let bodies = [
        b"first".to_vec(),
        b"\n{\"key\":\"x\",\"bytes\":1}\n\n".to_vec(),
        vec![7; 200],
    ];
    let objects = bodies.into_iter().enumerate();
    objects
        .map(|(number, body)| (listed(&format!("tank/a b/@{number}"), &body, 100), body))
        .collect()
}

fn filled(state: &Path) -> PathBuf {
    let cache = open(state);
    objects()
        .iter()
        .for_each(|(object, body)| cache.put(object, body));
    path_of(state, &KnownStore::of_url(STORE), &dataset())
}

#[test]
fn cached_object_is_returned_only_while_its_listing_is_unchanged() {
    let state = tempfile::tempdir().unwrap();
    let path = filled(state.path());
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    assert_eq!(
        fs::metadata(path.parent().unwrap())
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o700
    );
    let cache = open(state.path());
    for (object, body) in objects() {
        assert_eq!(cache.get(&object).unwrap(), body);
        assert_eq!(
            cache.get(&ListedObject {
                bytes: object.bytes + 1,
                ..object.clone()
            }),
            None
        );
        assert_eq!(
            cache.get(&listed(&object.key, &body, 101)),
            None,
            "written anew"
        );
        assert_eq!(
            cache.get(&ListedObject {
                modified_at: None,
                ..object.clone()
            }),
            None
        );
        assert_eq!(
            cache.get_pinned(&object.key, Digest::of(&body)).unwrap(),
            body
        );
        assert_eq!(cache.get_pinned(&object.key, Digest::of(b"")), None);
    }
    // Bytes of another length than listed are not the listed object.
    let (object, _) = &objects()[0];
    cache.put(object, b"longer than that");
    assert_eq!(cache.get(object).unwrap(), b"first"[..]);
    cache.put(&listed(&object.key, b"other", 200), b"other");
    assert_eq!(cache.get(object), None);
    let another = |store, name: &str| {
        ObjectCache::open(
            state.path(),
            &KnownStore::of_url(store),
            &name.parse().unwrap(),
            CacheMode::ReadWrite,
        )
    };
    assert_eq!(another("s3:bucket/q", "tank/a b").get(object), None);
    assert_eq!(another(STORE, "tank/a").get(object), None);
    assert_eq!(ObjectCache::none().get(object), None);
}

#[test]
fn truncated_cache_file_yields_complete_objects_and_accepts_more() {
    let state = tempfile::tempdir().unwrap();
    let path = filled(state.path());
    let whole = fs::read(&path).unwrap();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let cache = open(state.path());
        let found: Vec<bool> = objects()
            .iter()
            .map(|(object, _)| cache.get(object).is_some())
            .collect();
        assert!(
            !found[2] && found.is_sorted_by(|a, b| a >= b),
            "cut at {length}: {found:?}"
        );
        objects()
            .iter()
            .for_each(|(object, body)| cache.put(object, body));
        drop(cache);
        let again = open(state.path());
        assert!(
            objects()
                .iter()
                .all(|(object, body)| again.get(object).unwrap() == body),
            "cut at {length}"
        );
    }
}

#[test]
fn cache_never_returns_an_object_with_a_changed_byte() {
    let state = tempfile::tempdir().unwrap();
    let path = filled(state.path());
    let whole = fs::read(&path).unwrap();
    let mut lost = 0;
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        // Read only, so that the next iteration finds what this one wrote.
        let cache = ObjectCache::open(
            state.path(),
            &KnownStore::of_url(STORE),
            &dataset(),
            CacheMode::ReadOnly,
        );
        for (object, body) in objects() {
            match cache.get(&object) {
                Some(found) => assert_eq!(found, body, "byte {at}"),
                None => lost += 1,
            }
        }
    }
    assert!(
        lost >= whole.len(),
        "{lost} objects lost by {} bytes",
        whole.len()
    );
}

#[test]
fn unlisted_objects_are_dropped_from_the_cache_and_their_space_freed() {
    let state = tempfile::tempdir().unwrap();
    let path = path_of(state.path(), &KnownStore::of_url(STORE), &dataset());
    let body = vec![9; 600_000];
    let keys = ["tank/a b/@1", "tank/a b/@2", "tank/a b/@3", "tank/a b/@4"]
        .map(|key| listed(key, &body, 100));
    let cache = open(state.path());
    keys.iter().for_each(|object| cache.put(object, &body));
    let reader = ObjectCache::open(
        state.path(),
        &KnownStore::of_url(STORE),
        &dataset(),
        CacheMode::ReadOnly,
    );
    cache.keep_listed(&keys[..3]);
    assert_eq!(cache.get(&keys[3]), None);
    assert!(
        fs::metadata(&path).unwrap().len() > 4 * 600_000,
        "for one of four it is not written anew"
    );
    cache.keep_listed(&keys[2..3]);
    assert!(fs::metadata(&path).unwrap().len() < 601_000);
    assert_eq!(cache.get(&keys[2]).unwrap(), body);
    cache.put(&keys[0], &body);
    drop(cache);
    let cache = open(state.path());
    assert_eq!(
        keys.each_ref().map(|object| cache.get(object).is_some()),
        [true, false, true, false]
    );
    assert_eq!(
        reader.get(&keys[3]).unwrap(),
        body,
        "whoever reads the old file reads on"
    );
    let names: Vec<_> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(names, [path]);
}

#[test]
fn cache_has_one_writer_and_other_processes_only_read() {
    let state = tempfile::tempdir().unwrap();
    let path = filled(state.path());
    let (first, second) = (open(state.path()), open(state.path()));
    let new = listed("tank/a b/@new", b"new", 100);
    let before = fs::read(&path).unwrap();
    second.put(&new, b"new");
    assert_eq!((second.get(&new), fs::read(&path).unwrap()), (None, before));
    assert!(second.get(&objects()[2].0).is_some());
    first.put(&new, b"new");
    assert_eq!(first.get(&new).unwrap(), b"new"[..]);
    drop((first, second));
    assert_eq!(open(state.path()).get(&new).unwrap(), b"new"[..]);
    // A cache that keeps nothing makes no file.
    let empty = tempfile::tempdir().unwrap();
    let cache = ObjectCache::open(
        empty.path(),
        &KnownStore::of_url(STORE),
        &dataset(),
        CacheMode::ReadOnly,
    );
    cache.put(&new, b"new");
    assert_eq!(
        (cache.get(&new), fs::read_dir(empty.path()).unwrap().count()),
        (None, 0)
    );
}

#[test]
fn unusable_cache_folder_disables_the_cache() {
    let state = tempfile::tempdir().unwrap();
    let (object, body) = &objects()[0];
    // A file in the place of the folder, and a folder in the place of the file.
    fs::write(state.path().join("cache"), "x").unwrap();
    let cache = open(state.path());
    cache.put(object, body);
    assert_eq!(cache.get(object), None);
    fs::remove_file(state.path().join("cache")).unwrap();
    fs::create_dir_all(path_of(
        state.path(),
        &KnownStore::of_url(STORE),
        &dataset(),
    ))
    .unwrap();
    assert_eq!(open(state.path()).get(object), None);
}
