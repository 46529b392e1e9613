//! A tree of fifty datasets over five runs, with datasets made, destroyed and renamed between them;
//! then the third moment comes back: exactly the datasets that there were, under their names of
//! then, with exactly their files.

use crate::bench::{self, Bench, tell};
use crate::pool::{noise, run, zfs};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;
use zfs_backup::model::Digest;

/// The files of each dataset, by its name below the root of the tree.
type Moment = BTreeMap<String, BTreeMap<String, Digest>>;

struct Fifty {
    bench: Bench,
    seed: u64,
}

impl Fifty {
    /// Forty-eight datasets: the root and seven groups of six, four of which have one more below.
    fn new() -> Self {
        let mut fifty = Self {
            bench: Bench::tiny("fifty"),
            seed: 0,
        };
        let store = fifty.bench.path("store");
        fs::create_dir(&store).unwrap();
        let text = fs::read_to_string(fifty.bench.path("zb.toml")).unwrap();
        let text = text.replace(&fifty.bench.remote(), &format!("file:{}", store.display()));
        let (main, _) = text.split_once("[s3]").unwrap();
        fs::write(
            fifty.bench.path("zb.toml"),
            format!("{main}recursive = true\n"),
        )
        .unwrap();
        for group in 0..7 {
            fifty.make(&format!("g{group}"));
            (0..5).for_each(|number| fifty.make(&format!("g{group}/d{number}")));
        }
        ["g0/d0/x", "g1/d0/x", "g2/d0/x", "g3/d0/x"]
            .iter()
            .for_each(|name| fifty.make(name));
        fifty
    }

    fn root(&self) -> String {
        self.bench.dataset()
    }

    fn make(&mut self, name: &str) {
        zfs(&["create", &format!("{}/{name}", self.root())]);
        self.write(name);
    }

    /// Another file, and another content of the one that all have.
    fn write(&mut self, name: &str) {
        self.seed += 1;
        let folder = self.bench.pool.file("data").join(name);
        fs::write(
            folder.join(format!("file-{}", self.seed)),
            noise(3_000, self.seed),
        )
        .unwrap();
        fs::write(folder.join("changing"), noise(9_000, self.seed)).unwrap();
    }

    fn destroy(&self, name: &str) {
        zfs(&["destroy", "-r", &format!("{}/{name}", self.root())]);
    }

    fn rename(&self, from: &str, to: &str) {
        zfs(&[
            "rename",
            &format!("{}/{from}", self.root()),
            &format!("{}/{to}", self.root()),
        ]);
    }

    /// Snapshots and backups of all there is; how many datasets that are.
    fn night(&self) -> usize {
        self.bench.good(&["snapshot"]);
        self.bench.good(&["stream-to-remote"]);
        zfs(&["list", "-Hro", "name", &self.root()]).lines().count()
    }
}

fn moment(dataset: &str, folder: &Path) -> Moment {
    run("zpool", &["sync"]);
    let names = zfs(&["list", "-Hro", "name", dataset]);
    let below = |name: &str| {
        name.strip_prefix(dataset)
            .unwrap()
            .trim_start_matches('/')
            .to_owned()
    };
    let files = |name: &str| -> BTreeMap<String, Digest> {
        let entries = fs::read_dir(folder.join(name)).unwrap().map(Result::unwrap);
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
        files
            .map(|file| {
                (
                    file.file_name().into_string().unwrap(),
                    Digest::of(&fs::read(file.path()).unwrap()),
                )
            })
            .collect()
    };
    names
        .lines()
        .map(|name| (below(name), files(&below(name))))
        .collect()
}

#[test]
fn tree_of_fifty_datasets_is_restored_to_the_third_of_five_snapshots() {
    let begun = Instant::now();
    let mut fifty = Fifty::new();
    let mut counts = vec![fifty.night()];

    // A subtree and some single ones go, two get other names, one of them with what is below it.
    fifty.destroy("g4");
    ["g5/d1", "g5/d2"]
        .iter()
        .for_each(|name| fifty.destroy(name));
    fifty.rename("g0", "pictures");
    fifty.rename("g1/d1", "g1/renamed");
    ["g6/new0", "g6/new1", "late"]
        .iter()
        .for_each(|name| fifty.make(name));
    ["pictures/d0/x", "g1/renamed", "g2"]
        .iter()
        .for_each(|name| fifty.write(name));
    counts.push(fifty.night());

    // One comes again under its old name and is another; one of the new ones goes at once.
    fifty.make("g5/d1");
    fifty.destroy("g6/new1");
    fifty.rename("g2/d0", "g3/moved");
    for number in 0..9 {
        fifty.make(&format!("g6/third{number}"));
    }
    ["pictures", "g3/moved/x", "g5/d1", "g6/new0"]
        .iter()
        .for_each(|name| fifty.write(name));
    counts.push(fifty.night());
    let third = moment(&fifty.root(), &fifty.bench.pool.file("data"));
    let then = bench::moment().to_string();

    fifty.rename("pictures", "photos");
    fifty.destroy("g3");
    ["fourth0", "fourth1"]
        .iter()
        .for_each(|name| fifty.make(name));
    ["photos/d1", "g6/third1"]
        .iter()
        .for_each(|name| fifty.write(name));
    counts.push(fifty.night());
    fifty.destroy("photos");
    fifty.write("g6/third2");
    counts.push(fifty.night());
    let backed_up = begun.elapsed();

    let identity = fifty.bench.path("identity.txt").display().to_string();
    let (target, place) = (
        format!("{}/then", fifty.bench.pool.name),
        fifty.bench.path("then"),
    );
    let mountpoint = format!("mountpoint={}", place.display());
    let to = ["-r", "--at", &then, "--to", &target, "-o", &mountpoint];
    let root = fifty.root();
    let output = fifty
        .bench
        .zb(&fifty.bench.restore_arguments(&root, &identity, &to));
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{said}");
    zfs(&["list", "-Hro", "name", &target])
        .lines()
        .for_each(|name| drop(zfs(&["mount", name])));
    let back = moment(&target, &place);
    let names = |moment: &Moment| moment.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&back), names(&third), "{said}");
    assert!(back == third, "files differ");
    for gone in ["g4", "g5/d2", "g6/new1"] {
        assert!(
            said.contains(&format!("{root}/{gone} did not exist at that moment")),
            "{gone}: {said}"
        );
    }
    assert!(
        said.contains(&format!(
            "{root}/fourth0 has no backup from before that moment"
        )),
        "{said}"
    );
    tell(&format!(
        "datasets in the five runs: {counts:?}; {} restored to the third moment, {} files; backups {:.0} s, restore {:.0} s",
        back.len(),
        back.values().map(BTreeMap::len).sum::<usize>(),
        backed_up.as_secs_f64(),
        (begun.elapsed() - backed_up).as_secs_f64(),
    ));
    assert!(third.len() >= 50 && counts.len() == 5, "{counts:?}");
}
