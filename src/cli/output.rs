//! The only place that prints: results on stdout, everything else on stderr.

use jiff::Timestamp;
use std::error::Error;
use std::io::Write;

/// How results are printed.
pub(super) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// The result for people, unless quiet or JSON was asked for.
    pub(super) fn line(&self, text: impl AsRef<str>) {
        if !self.json && !self.quiet {
            write_line(&mut std::io::stdout(), text.as_ref());
        }
    }

    /// The result for programs, when JSON was asked for.
    pub(super) fn json(&self, value: impl FnOnce() -> serde_json::Value) {
        if self.json {
            write_line(&mut std::io::stdout(), &format!("{:#}", value()));
        }
    }

    /// An error with each cause once, then the hint.
    pub(super) fn error(&self, error: &(dyn Error + 'static), hint: Option<&str>) {
        self.error_text(&crate::run::error_chain(error), hint);
    }

    pub(super) fn error_text(&self, text: &str, hint: Option<&str>) {
        let mut stderr = std::io::stderr();
        write_line(&mut stderr, &format!("error: {text}"));
        if let Some(hint) = hint {
            write_line(&mut stderr, &format!("hint: {hint}"));
        }
    }

    /// Something to know that is no error.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            self.always(text);
        }
    }

    /// Something that must be known also when quiet.
    pub(super) fn always(&self, text: &str) {
        write_line(&mut std::io::stderr(), &format!("note: {text}"));
    }
}

/// A reader that went away (`| head`) is no reason to fail: the work is done.
fn write_line(to: &mut dyn Write, text: &str) {
    let _ = writeln!(to, "{}", printable(text));
}

/// Names in a store are anybody's: nothing but line ends reaches the terminal as a control character.
fn printable(text: &str) -> String {
    let escape = |c: char| match c {
        '\n' => "\n".to_owned(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Bytes as an administrator reads them: binary multiples, three digits.
pub(super) fn bytes(bytes: u64) -> String {
    crate::model::bytes_text(bytes)
}

/// How long ago, in the largest unit that fits.
pub(super) fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.as_second() - then.as_second();
    match seconds {
        ..0 => "in the future".to_owned(),
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Lines with their columns aligned; the first row is the heading. Numbers are right-aligned by the caller's choice.
pub(super) fn table(rows: &[Vec<String>], right: &[usize]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).map_or(0, |text| text.chars().count());
    let widths: Vec<usize> =
        (0..columns).map(|column| rows.iter().map(|row| cell(row, column)).max().unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, text)| match right.contains(&column) {
            true => format!("{text:>width$}", width = widths[column]),
            false => format!("{text:<width$}", width = widths[column]),
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\nc\r"), "a\\u{1b}[2Jb\nc\\r");
    }

    #[test]
    fn tables_align_their_columns() {
        let rows = vec![vec!["A".into(), "SIZE".into()], vec!["long".into(), "1".into()]];
        assert_eq!(table(&rows, &[1]), ["A     SIZE", "long     1"]);
    }
}
