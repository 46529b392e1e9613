//! [`choose_chunks`]: chooses the chunks that `verify-checksums --read-data` downloads.

use crate::model::Digest;

/// The share of the chunks to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadShare {
    /// Every chunk of every backup.
    All,
    /// A percentage of the bytes, chosen at random: 1 to 99.
    Percent(u8),
    /// About this many bytes, chosen at random.
    Bytes(u64),
    /// A different one of this many parts each day, so that all is read within this many days.
    Turn(u32),
}

/// A chunk that could be read. Names are unique for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The object name of the chunk.
    pub name: &'a str,
    /// The bytes of the chunk.
    pub bytes: u64,
}

/// Decides for each chunk whether it is read. `day` counts days, `seed` is random. At least one
/// chunk is read if there are chunks and the share is not by turns: with few chunks a turn may have
/// none on some days.
pub fn choose_chunks(chunks: &[Candidate<'_>], share: ReadShare, day: u64, seed: u64) -> Vec<bool> {
    let total = chunks
        .iter()
        .fold(0u64, |sum, chunk| sum.saturating_add(chunk.bytes));
    match share {
        ReadShare::All => vec![true; chunks.len()],
        ReadShare::Percent(percent) => {
            let wanted = u128::from(total) * u128::from(percent) / 100;
            choose_at_random(chunks, u64::try_from(wanted).unwrap_or(u64::MAX), seed)
        }
        ReadShare::Bytes(wanted) => choose_at_random(chunks, wanted, seed),
        ReadShare::Turn(parts) => {
            let parts = u64::from(parts.max(1));
            chunks
                .iter()
                .map(|chunk| number_of(chunk.name, 0) % parts == day % parts)
                .collect()
        }
    }
}

/// Chooses chunks in a random order until their bytes suffice. Each chunk's place follows from its
/// name and the seed.
fn choose_at_random(chunks: &[Candidate<'_>], wanted_bytes: u64, seed: u64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..chunks.len()).collect();
    order.sort_by_key(|index| (number_of(chunks[*index].name, seed), *index));
    let mut chosen = vec![false; chunks.len()];
    let mut bytes = 0u64;
    for (place, index) in order.into_iter().enumerate() {
        if place > 0 && bytes >= wanted_bytes {
            break;
        }
        chosen[index] = true;
        bytes = bytes.saturating_add(chunks[index].bytes);
    }
    chosen
}

fn number_of(name: &str, seed: u64) -> u64 {
    let Digest(bytes) = Digest::of(format!("{seed:016x}{name}").as_bytes());
    bytes
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count)
            .map(|index| format!("{index:08}-{:08x}.zfs.age", index * 7))
            .collect()
    }

    fn candidates(names: &[String]) -> Vec<Candidate<'_>> {
        names
            .iter()
            .map(|name| Candidate { name, bytes: 10 })
            .collect()
    }

    fn count(chosen: &[bool]) -> usize {
        chosen.iter().filter(|chosen| **chosen).count()
    }

    #[test]
    fn turn_sampling_reads_every_chunk_exactly_once_per_round() {
        let names = names(1000);
        let chunks = candidates(&names);
        for first_day in [0, 20_780] {
            let mut read = vec![0; chunks.len()];
            for day in first_day..first_day + 7 {
                let chosen = choose_chunks(&chunks, ReadShare::Turn(7), day, 1);
                assert!(
                    (80..220).contains(&count(&chosen)),
                    "day {day} reads {}",
                    count(&chosen)
                );
                read.iter_mut()
                    .zip(chosen)
                    .for_each(|(read, chosen)| *read += i32::from(chosen));
            }
            assert!(read.iter().all(|read| *read == 1));
        }
        assert_eq!(
            count(&choose_chunks(&chunks, ReadShare::Turn(1), 5, 1)),
            1000
        );
    }

    #[test]
    fn sampled_share_has_the_requested_size_and_depends_on_the_seed() {
        let names = names(200);
        let chunks = candidates(&names);
        for (share, expected) in [
            (ReadShare::All, 200),
            (ReadShare::Percent(5), 10),
            (ReadShare::Percent(99), 198),
            (ReadShare::Bytes(1), 1),
            (ReadShare::Bytes(0), 1),
            (ReadShare::Bytes(95), 10),
            (ReadShare::Bytes(u64::MAX), 200),
        ] {
            assert_eq!(
                count(&choose_chunks(&chunks, share, 0, 9)),
                expected,
                "{share:?}"
            );
            assert!(choose_chunks(&[], share, 0, 9).is_empty());
        }
        let of_seed = |seed| choose_chunks(&chunks, ReadShare::Percent(5), 0, seed);
        assert_eq!(of_seed(1), of_seed(1));
        assert_ne!(of_seed(1), of_seed(2));
    }

    #[test]
    fn any_share_of_a_single_chunk_reads_that_chunk() {
        let names = names(1);
        assert_eq!(
            choose_chunks(&candidates(&names), ReadShare::Percent(1), 0, 0),
            [true]
        );
    }
}
