//! The cost of a night for a fleet of datasets: wall time, requests by kind, memory and processor
//! time of whole commands, run in this process on pools in memory and on an S3 server of its own
//! that delays every answer. The rows are those of the table in the README.
//!
//! ```text
//! cargo bench --bench fleet                    every row
//! cargo bench --bench fleet -- incremental     one row; the names are in ROWS
//! cargo bench --bench fleet -- incremental --trace    and each of its requests, with its depth
//! ```
//! `--profile dev` builds faster and measures the same requests; only CPU is higher then. Each row
//! is a process of its own, and the server is another one, so that peak memory is the program's.
#![allow(missing_docs, reason = "no part of the crate")]
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on fails"
)]

mod bucket;
#[path = "../e2e/http.rs"]
mod http;
mod million;
#[path = "../e2e/objects.rs"]
mod objects;
mod planning;
#[path = "../e2e/record.rs"]
mod record;
mod rows;
mod scene;
#[path = "../e2e/sink.rs"]
mod sink;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/run/stock.rs"]
mod stock;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/run/world.rs"]
mod world;

use std::process::Command;
use std::time::Duration;

type Row = (&'static str, fn());

/// The row for a look at the screen. It is not in the table, and runs only when it is named.
const SCREEN: &str = "screen";

const ROWS: [Row; 6] = [
    ("unchanged", rows::unchanged),
    ("changed", rows::changed),
    ("million", million::million),
    ("planning", planning::planning),
    ("incremental", rows::incremental),
    (SCREEN, rows::screen),
];

fn main() {
    // Cargo adds an argument of its own.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    if words == ["sink"] {
        return sink::serve(0, Duration::ZERO, false);
    }
    if let ["template", folder, address] = words[..] {
        return million::template(folder, address);
    }
    if let ["row", name, ..] = words[..] {
        let (_, row) = ROWS.iter().find(|(row, _)| *row == name).unwrap();
        return row();
    }
    let wanted: Vec<&str> = words
        .iter()
        .copied()
        .filter(|word| !word.starts_with("--"))
        .collect();
    for (name, _) in ROWS {
        let is_wanted = match wanted.is_empty() {
            true => name != SCREEN,
            false => wanted.contains(&name),
        };
        if !is_wanted {
            continue;
        }
        let mut row = Command::new(std::env::current_exe().unwrap());
        row.args(["row", name]);
        row.args(words.iter().filter(|word| word.starts_with("--")));
        // The keys of the S3 server, which checks none.
        row.env("AWS_ACCESS_KEY_ID", "fleet")
            .env("AWS_SECRET_ACCESS_KEY", "fleet");
        assert!(row.status().unwrap().success(), "{name} failed");
    }
}
