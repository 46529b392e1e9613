//! The helper of the end-to-end benchmark, besides the programs that it measures: a sink that
//! speaks S3, streams to send, and the cost of the bare arithmetic. `benches/e2e/run` starts it and
//! prints the table.
#![allow(missing_docs, reason = "no part of the crate")]
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on fails"
)]

// The same as in the tests.
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/support/b2_sim.rs"]
mod b2_sim;
mod cost;
mod floor;
mod generate;
mod http;
mod objects;
mod record;
mod sink;
#[expect(dead_code, reason = "the tests use all of it")]
#[path = "../../tests/support/tls.rs"]
mod tls;

use std::path::Path;
use std::time::Duration;

const USAGE: &str = "\
e2e sink PORT [--delay-ms N] [--keep]       an S3 server on 127.0.0.1; without --keep large bodies are discarded
e2e tls PORT URL FILE                       TLS before that server; who is to trust it finds in the file whom to trust
e2e b2                                      a simulator of B2; prints its endpoint, key id and key
e2e generate random|mixed BYTES FILE        a valid full send stream of that many bytes of blocks
e2e cost FILE                               CPU seconds per GiB of the bare arithmetic on one core
e2e floor upload|restore PORT               the least that the machine asks: pipe, arithmetic, socket; what came back
                                            is not what went, for only the work is the same";

fn main() {
    // Cargo adds an argument of its own.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| arg != "--bench")
        .collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["sink", port, ref options @ ..] => {
            let (mut delay, mut keep) = (Duration::ZERO, false);
            let mut options = options.iter();
            while let Some(option) = options.next() {
                match *option {
                    "--delay-ms" => {
                        delay = Duration::from_millis(options.next().expect(USAGE).parse().unwrap())
                    }
                    "--keep" => keep = true,
                    _ => panic!("{USAGE}"),
                }
            }
            sink::serve(port.parse().unwrap(), delay, keep);
        }
        ["tls", port, url, ca_file] => {
            tls::TlsFront::start(port.parse().unwrap(), url, Path::new(ca_file));
            wait_for_the_end();
        }
        ["b2"] => {
            let sim = b2_sim::B2Sim::start();
            println!("{} {} {}", sim.endpoint(), b2_sim::KEY_ID, b2_sim::KEY);
            wait_for_the_end();
        }
        ["generate", kind, bytes, file] => {
            generate::generate(kind, bytes.parse().unwrap(), Path::new(file))
        }
        ["floor", "upload", port] => floor::upload(port.parse().unwrap()),
        ["floor", "restore", port] => floor::restore(port.parse().unwrap()),
        ["cost", file] => cost::cost(Path::new(file)),
        _ => println!("{USAGE}"),
    }
}

/// Waits until the process that started the helper ends it.
fn wait_for_the_end() {
    loop {
        std::thread::park();
    }
}
