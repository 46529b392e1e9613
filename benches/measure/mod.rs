//! Times one piece of code, and prints the time of a call and the throughput.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::hint::black_box;
use std::time::{Duration, Instant};

/// The time for which each piece of code is measured.
const MEASURED: Duration = Duration::from_secs(3);
const CALLS_MIN: usize = 10;

/// Calls `work`, which works through `bytes`, and prints the median of the calls. A word on the command
/// line selects the benchmarks whose names contain it.
pub(crate) fn measure<T>(name: &str, bytes: usize, mut work: impl FnMut() -> T) {
    let selected = std::env::args().skip(1).find(|word| word != "--bench");
    if selected.is_some_and(|word| !name.contains(&word)) {
        return;
    }
    // The first call fills the caches.
    black_box(work());
    let mut seconds = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < MEASURED || seconds.len() < CALLS_MIN {
        let call = Instant::now();
        black_box(work());
        seconds.push(call.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let least = seconds[0];
    println!(
        "{name:<56} {:>8.3} ms {:>7.2} GiB/s   best {:.3} ms of {}",
        median * 1e3,
        bytes as f64 / median / (1_u64 << 30) as f64,
        least * 1e3,
        seconds.len()
    );
}
