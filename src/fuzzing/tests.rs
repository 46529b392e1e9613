//! The targets as an ordinary test: all seeds, the inputs in `fuzz/corpus`, and ten seconds of
//! random mutations by default.

use super::{TARGETS, Target};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// The duration for all targets together; `FUZZ_SECONDS` overrides it.
const SECONDS: u64 = 10;
/// The least inputs for each target, however slow the machine is.
const COUNT_MIN: u64 = 20;
const INPUT_BYTES_MAX: usize = 8 << 10;

/// A small random number generator (xorshift*): the mutations need no more, and a failure must be
/// repeatable.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }
}

/// Makes one change: a bit, a byte, a number at its limit, a run of bytes cut, repeated or
/// exchanged, a word of the format.
fn mutate(input: &mut Vec<u8>, pool: &[Vec<u8>], words: &[&str], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = (at + 1 + random.below(16)).min(input.len());
    let run = at.min(end)..end;
    match random.below(10) {
        0 | 1 if at < input.len() => input[at] ^= 1 << random.below(8),
        2 if at < input.len() => input[at] = random.byte(),
        3 => {
            const NUMBERS: [u64; 7] = [0, 1, 0x7f, 0xffff_ffff, 1 << 31, u64::MAX, 1 << 63];
            let bytes = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][random.below(4)];
            let room = input.len().saturating_sub(at).min(width);
            input[at..at + room].copy_from_slice(&bytes[..room]);
        }
        4 => drop(input.drain(run)),
        5 => {
            let copy = input[run].to_vec();
            input.splice(at..at, copy);
        }
        6 => input.truncate(at),
        7 | 8 if !words.is_empty() => {
            let word = words[random.below(words.len())].bytes();
            let replaced = if random.byte() & 1 == 0 { at..at } else { run };
            input.splice(replaced, word);
        }
        _ => {
            let other = &pool[random.below(pool.len())];
            let from = random.below(other.len() + 1);
            let tail = other[from..].iter().copied();
            input.truncate(at);
            input.extend(tail);
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// Reads the kept inputs of a target: `fuzz/corpus/NAME`, one a line, in hexadecimal digits.
fn kept(target: &Target) -> Vec<Vec<u8>> {
    let root = std::env::var("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let text = std::fs::read_to_string(Path::new(&root).join("fuzz/corpus").join(target.name))
        .unwrap_or_default();
    let input = |line: &str| {
        let digits = line.as_bytes().as_chunks::<2>().0;
        let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
        digits
            .iter()
            .map(byte)
            .collect::<Result<Vec<u8>, _>>()
            .unwrap_or_else(|_| panic!("{}: {line}", target.name))
    };
    text.lines().map(input).collect()
}

fn run(target: &Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let digits: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        panic!(
            "target {} fails; the panic stands above; add this line to fuzz/corpus/{0}:\n{digits}",
            target.name
        );
    }
}

#[test]
fn every_fuzz_target_passes_on_its_seeds_and_saved_inputs() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(
            !seeds.is_empty() && seeds.iter().all(|seed| seed.len() <= 64 << 10),
            "{}",
            target.name
        );
        for input in seeds.iter().chain(&kept(target)) {
            run(target, input);
        }
        run(target, &[]);
    }
}

#[test]
fn no_target_fails_on_random_mutations() {
    let seconds = std::env::var("FUZZ_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(SECONDS);
    let seed = std::env::var("FUZZ_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) | 1 << 40);
    let share = Duration::from_secs(seconds) / u32::try_from(TARGETS.len()).unwrap();
    println!("FUZZ_SEED={seed}");
    for target in TARGETS {
        let (mut random, begin, mut count) = (Random(seed), Instant::now(), 0_u64);
        let pool: Vec<Vec<u8>> = (target.seeds)().into_iter().chain(kept(target)).collect();
        while count < COUNT_MIN || begin.elapsed() < share {
            let mut input = pool[random.below(pool.len())].clone();
            for _ in 0..=random.below(4) {
                mutate(&mut input, &pool, target.words, &mut random);
            }
            run(target, &input);
            count += 1;
        }
        println!("{}: {count}", target.name);
    }
}

/// Checks that a failing target is reported. A target that cannot fail would prove nothing.
#[test]
fn failing_target_is_named_with_its_input() {
    let target = Target {
        name: "bad",
        run: |input| assert!(input.len() < 3),
        seeds: Vec::new,
        words: &[],
    };
    run(&target, b"ab");
    let message = catch_unwind(|| run(&target, b"abc")).unwrap_err();
    assert!(
        message
            .downcast_ref::<String>()
            .unwrap()
            .ends_with("fuzz/corpus/bad:\n616263")
    );
}
