//! The rule for how comments begin: with their subject, and not with a pronoun or relative.

use super::{Breach, Source};
use std::collections::BTreeMap;

/// Words that may not open a comment: pronouns and relatives, which hide the subject.
const HIDDEN_SUBJECTS: [&str; 41] = [
    "It",
    "Its",
    "One",
    "Ones",
    "That",
    "Those",
    "These",
    "They",
    "Them",
    "He",
    "She",
    "We",
    "What",
    "Whatever",
    "Who",
    "Whoever",
    "Whom",
    "Whomever",
    "Whose",
    "Which",
    "Whichever",
    "Where",
    "Wherever",
    "Nobody",
    "None",
    "Nothing",
    "Neither",
    "Either",
    "Such",
    "Somebody",
    "Someone",
    "Anybody",
    "Anyone",
    "Anything",
    "Everybody",
    "Everyone",
    "Everything",
    "Others",
    "Here",
    "There",
    "Itself",
];
/// Words after which an opening "This" stands alone, without the noun that it belongs to.
const VERBS_AFTER_THIS: [&str; 20] = [
    "is", "was", "are", "were", "has", "had", "can", "may", "must", "does", "will", "would",
    "should", "alone", "way", "means", "makes", "holds", "keeps", "one",
];
/// Percentage of the comments of a room that may open with a hidden subject.
const HIDDEN_SUBJECTS_PERCENT_MAX: usize = 2;
/// Comments name their subject first. The share of those that do not is limited in each room.
pub(super) fn comment_openings(sources: &[Source]) -> Vec<Breach> {
    let mut rooms: BTreeMap<&str, (usize, Vec<Breach>)> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.own().is_some()) {
        let (count, breaches) = rooms.entry(source.room()).or_default();
        for (line, opening) in comments(&source.text) {
            *count += 1;
            if hides_subject(opening) {
                let what = format!("a comment opens with {opening:?}");
                breaches.push(Breach::new(source, line, what));
            }
        }
    }
    rooms
        .into_iter()
        .filter(|(_, (count, breaches))| breaches.len() * 100 > count * HIDDEN_SUBJECTS_PERCENT_MAX)
        .flat_map(|(_, (_, breaches))| breaches)
        .collect()
}

/// Returns the first line of each comment with its number. Adjacent lines with the same indentation
/// and the same marker (`//`, `///` or `//!`) are one comment.
fn comments(text: &str) -> Vec<(usize, &str)> {
    let mut openings = Vec::new();
    let mut previous = None;
    for (index, line) in text.lines().enumerate() {
        let comment = split_comment(line);
        if let Some((marker, opening)) = comment
            && previous != Some(marker)
        {
            openings.push((index + 1, opening.trim()));
        }
        previous = comment.map(|(marker, _)| marker);
    }
    openings
}

/// Splits a line of a comment after its indentation and marker.
fn split_comment(line: &str) -> Option<(&str, &str)> {
    let comment = line.trim_start();
    let marker = ["///", "//!", "//"]
        .into_iter()
        .find(|marker| comment.starts_with(marker))?;
    Some(line.split_at(line.len() - comment.len() + marker.len()))
}

fn hides_subject(opening: &str) -> bool {
    let mut words = opening
        .split_whitespace()
        .map(|word| word.trim_end_matches(|letter: char| letter.is_ascii_punctuation()));
    match words.next() {
        Some("This") => words
            .next()
            .is_none_or(|next| VERBS_AFTER_THIS.contains(&next)),
        Some(first) => HIDDEN_SUBJECTS.contains(&first),
        None => false,
    }
}
