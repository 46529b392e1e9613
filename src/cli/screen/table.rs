//! Text for people: sizes, ages, evidence, lines that fit a terminal, and tables.

use crate::store::EvidenceTier;
use jiff::Timestamp;

/// The maximum width of texts for people, except for names that cannot be cut.
pub(crate) const WIDTH: usize = 80;

/// Returns a number of bytes in the form that administrators read: binary multiples, three digits.
pub(crate) fn bytes(bytes: u64) -> String {
    crate::model::bytes_text(bytes)
}

/// Describes a tier for people, with its protection: against accidents only, or against a writer
/// too.
pub(crate) fn tier_words(tier: EvidenceTier) -> &'static str {
    match tier {
        EvidenceTier::Crc64nvmeFull => {
            "the store's own CRC64NVME of the whole object (against accidents)"
        }
        EvidenceTier::Sha256Composite => "the store's own SHA-256 by parts (against a writer too)",
        EvidenceTier::Sha1 => "the store's own SHA-1 (against accidents)",
        EvidenceTier::Crc32c => "the store's own CRC32C of the whole object (against accidents)",
        EvidenceTier::Md5Etag => "the store's MD5 ETag (against accidents)",
        EvidenceTier::IdPin => "immutable id and size",
        EvidenceTier::SizeOnly => "size only",
        EvidenceTier::Unknown => "evidence of a later version",
        EvidenceTier::ReadBack => {
            "presence and size (a folder keeps no checksums: `b3sum -c` reads them)"
        }
    }
}

/// Returns the time since `then`, in the largest unit that fits.
pub(crate) fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.as_second() - then.as_second();
    match seconds {
        ..0 => "in the future".to_owned(),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Wraps text between words into lines of at most `width` characters; longer words stay whole.
/// Lines after the first begin with `indent`; line breaks in the text stay.
pub(crate) fn wrap(text: &str, width: usize, indent: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.split('\n') {
        let bare = paragraph.trim_start_matches(' ');
        let margin = &paragraph[..paragraph.len() - bare.len()];
        let mut line = margin.to_owned();
        for word in bare.split(' ') {
            let fits = line.chars().count() + 1 + word.chars().count() <= width;
            if line == margin {
                line.push_str(word);
            } else if fits {
                line.push(' ');
                line.push_str(word);
            } else {
                lines.push(std::mem::replace(&mut line, format!("{indent}{word}")));
            }
        }
        lines.push(line);
    }
    lines
}

/// Returns the lines of each row as [`table`] does, within `width` where the cells allow it. When
/// the lines would be longer, the gaps between the columns are narrower. If that is not enough, the
/// first column has lines of its own and the others are indented below it.
pub(crate) fn narrow_table(
    rows: &[Vec<String>],
    right: &[usize],
    width: usize,
) -> Vec<Vec<String>> {
    for gap in ["  ", " "] {
        let lines = spaced_table(rows, right, gap);
        if lines.iter().all(|line| line.chars().count() <= width) {
            return lines.into_iter().map(|line| vec![line]).collect();
        }
    }
    let rest: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().skip(1).cloned().collect())
        .collect();
    let right: Vec<usize> = right
        .iter()
        .filter_map(|column| column.checked_sub(1))
        .collect();
    let first = rows
        .iter()
        .map(|row| row.first().cloned().unwrap_or_default());
    first
        .zip(table(&rest, &right))
        .map(|(name, line)| vec![name, format!("  {line}")])
        .collect()
}

/// Returns lines with aligned columns; the first row is the heading. The columns in `right` are
/// right-aligned.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    spaced_table(rows, right, "  ")
}

fn spaced_table(rows: &[Vec<String>], right: &[usize], gap: &str) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell =
        |row: &Vec<String>, column: usize| row.get(column).map_or(0, |text| text.chars().count());
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| cell(row, column)).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .enumerate()
            .map(|(column, text)| match right.contains(&column) {
                true => format!("{text:>width$}", width = widths[column]),
                false => format!("{text:<width$}", width = widths[column]),
            });
        cells.collect::<Vec<_>>().join(gap).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// JSON has the words as keys: two tiers with one text would give one key twice.
    #[test]
    fn every_tier_has_words_of_its_own() {
        use EvidenceTier::*;
        let tiers = [
            Crc64nvmeFull,
            Sha256Composite,
            Sha1,
            Crc32c,
            Md5Etag,
            IdPin,
            SizeOnly,
            ReadBack,
            Unknown,
        ];
        let words: std::collections::BTreeSet<&str> = tiers.into_iter().map(tier_words).collect();
        assert_eq!(words.len(), tiers.len(), "{words:?}");
    }

    #[test]
    fn bytes_have_three_digits() {
        let cases = [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.00K"),
            (10_239, "9.99K"),
            (10 << 20, "10.0M"),
            (1000 << 20, "1000M"),
            ((1 << 40) - 1, "1023G"),
            (u64::MAX, "15.9E"),
        ];
        for (number, text) in cases {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn long_messages_are_broken_between_words_and_nothing_is_lost() {
        assert_eq!(wrap("aa bb cc dd", 5, "  "), ["aa bb", "  cc", "  dd"]);
        assert_eq!(wrap("short", 5, "  "), ["short"]);
        assert_eq!(
            wrap("longer-than-that x", 5, "  "),
            ["longer-than-that", "  x"]
        );
        assert_eq!(wrap("a\n  b", 9, "  "), ["a", "  b"]);
    }

    #[test]
    fn table_wider_than_the_screen_puts_each_name_on_its_own_line() {
        let rows = vec![
            vec!["NAME".to_owned(), "A".into(), "B".into()],
            vec!["tank/long".into(), "1".into(), "2".into()],
        ];
        assert_eq!(
            narrow_table(&rows, &[1, 2], 15),
            [["NAME       A  B"], ["tank/long  1  2"]]
        );
        assert_eq!(
            narrow_table(&rows, &[1, 2], 14),
            [["NAME      A B"], ["tank/long 1 2"]]
        );
        assert_eq!(
            narrow_table(&rows, &[1, 2], 12),
            [["NAME", "  A  B"], ["tank/long", "  1  2"]]
        );
    }

    #[test]
    fn tables_align_their_columns() {
        let rows = vec![
            vec!["A".into(), "SIZE".into()],
            vec!["long".into(), "1".into()],
        ];
        assert_eq!(table(&rows, &[1]), ["A     SIZE", "long     1"]);
    }
}
