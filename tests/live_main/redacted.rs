//! Redaction: what data was taken out of is not backed up, and a bookmark with a redaction list is
//! no base.

use crate::bench::{Bench, change};
use crate::halves::{newest, text};
use crate::pool::{property, run, zfs};
use std::fs;

#[test]
fn a_redacted_dataset_is_refused_and_a_redaction_bookmark_is_no_base() {
    let bench = Bench::tiny("redacted");
    let (data, pool) = (bench.dataset(), bench.pool.name.clone());
    bench.good(&["snapshot"]);
    bench.good(&["stream-to-remote", "--full"]);
    let first = newest(&data);
    let guid = property(&first, "guid").parse::<u64>().unwrap();
    // What is taken out is what differs in a clone.
    let clone = format!("{pool}/clone");
    zfs(&["clone", &first, &clone]);
    fs::remove_file(bench.pool.file("clone/small-7")).unwrap();
    fs::write(bench.pool.file("clone/small-90"), "nothing").unwrap();
    zfs(&["snapshot", &format!("{clone}@without")]);
    zfs(&["redact", &first, "list", &format!("{clone}@without")]);
    let red = format!("{pool}/red");
    run(
        "sh",
        &[
            "-c",
            &format!("zfs send --redact list {first} | zfs receive -u {red}"),
        ],
    );

    bench.use_dataset(&red);
    bench.good(&["snapshot"]);
    let output = bench.zb(&["stream-to-remote"]);
    let said = text(&output);
    assert!(
        !output.status.success()
            && said.contains(&format!("{red}@"))
            && said.contains("is redacted"),
        "{said}"
    );
    assert!(
        !bench
            .keys_in_bucket()
            .iter()
            .any(|key| key.starts_with(&format!("{red}/"))),
        "something was stored"
    );

    // Only the redaction bookmark is left of the base.
    bench.use_dataset(&data);
    zfs(&["destroy", "-r", &clone]);
    zfs(&["destroy", &format!("{data}#zfs-backup_{guid:016x}")]);
    zfs(&["destroy", &first]);
    let bookmarks = zfs(&["list", "-Hpo", "name,guid", "-t", "bookmark", &data]);
    assert_eq!(
        bookmarks,
        format!("{data}#list\t{guid}"),
        "else this proves nothing"
    );
    change(&bench, 5);
    bench.good(&["snapshot"]);
    let output = bench.zb(&["stream-to-remote", "--incremental"]);
    let said = text(&output)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    assert!(
        !output.status.success() && said.contains("only a bookmark with a redaction list"),
        "{said}"
    );
    let said = String::from_utf8(bench.good(&["--dry-run", "stream-to-remote"])).unwrap();
    assert!(said.contains("FULL (base lost"), "{said}");
}
