//! Parses INI line by line, as the older tool and rclone write it. Lines of an unknown form are
//! kept unchanged.

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum IniLine<'t> {
    /// An empty line.
    Blank,
    /// A comment, without its mark.
    Comment(&'t str),
    /// `[name]`.
    Section(&'t str),
    /// `key = value`; the value is trimmed and otherwise unchanged.
    Pair(&'t str, &'t str),
    /// A line of another form.
    Other(&'t str),
}

/// Returns the lines of a text, in order.
pub(super) fn lines(text: &str) -> impl Iterator<Item = IniLine<'_>> {
    text.trim_start_matches('\u{feff}').lines().map(line)
}

fn line(line: &str) -> IniLine<'_> {
    let line = line.trim();
    if line.is_empty() {
        return IniLine::Blank;
    }
    if let Some(comment) = line.strip_prefix([';', '#']) {
        return IniLine::Comment(comment.trim());
    }
    let bare = without_comment(line).0;
    if let Some(name) = bare
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return IniLine::Section(name.trim());
    }
    match line.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => IniLine::Pair(key.trim(), value.trim()),
        _ => IniLine::Other(line),
    }
}

/// Splits a value from the comment after it, which begins with a mark after a space. A mark within
/// quotes does not begin a comment.
pub(super) fn without_comment(value: &str) -> (&str, Option<&str>) {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in value.char_indices() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            ('#' | ';', None) if before.is_whitespace() => {
                return (value[..at].trim_end(), Some(value[at + 1..].trim()));
            }
            _ => {}
        }
        before = c;
    }
    (value.trim_end(), None)
}

/// Removes the quotes around a value, if there are any.
pub(super) fn unquoted(value: &str) -> &str {
    let inner = |quote: char| {
        value
            .strip_prefix(quote)
            .and_then(|rest| rest.strip_suffix(quote))
    };
    inner('"').or_else(|| inner('\'')).unwrap_or(value)
}

/// Returns the pairs of one section; for a repeated key the last pair counts.
pub(super) fn section<'t>(text: &'t str, name: &str) -> Option<Vec<(&'t str, &'t str)>> {
    let mut found = None;
    let mut inside = false;
    for line in lines(text) {
        match line {
            IniLine::Section(section) => {
                inside = section == name;
                if inside {
                    found = Some(Vec::new());
                }
            }
            IniLine::Pair(key, value) if inside => {
                let pairs: &mut Vec<_> = found.get_or_insert_with(Vec::new);
                pairs.retain(|(known, _)| *known != key);
                pairs.push((key, value));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_line_is_recognised() {
        for (text, expected) in [
            ("", IniLine::Blank),
            ("  ; a b", IniLine::Comment("a b")),
            ("#x", IniLine::Comment("x")),
            ("[main]", IniLine::Section("main")),
            ("[main] ; here", IniLine::Section("main")),
            ("a = b = c", IniLine::Pair("a", "b = c")),
            ("a=", IniLine::Pair("a", "")),
            ("word", IniLine::Other("word")),
            ("= x", IniLine::Other("= x")),
        ] {
            assert_eq!(line(text), expected, "{text:?}");
        }
        assert_eq!(
            lines("\u{feff}[main]").next(),
            Some(IniLine::Section("main"))
        );
    }

    #[test]
    fn comments_behind_values_need_a_space_and_no_quote() {
        for (text, value, comment) in [
            ("1G # one", "1G", Some("one")),
            ("1G ; one", "1G", Some("one")),
            ("a#b", "a#b", None),
            ("\"a # b\" # c", "\"a # b\"", Some("c")),
            ("# all", "", Some("all")),
        ] {
            assert_eq!(without_comment(text), (value, comment), "{text:?}");
        }
    }

    #[test]
    fn a_section_returns_only_its_own_pairs() {
        let text = "[a]\nx = 1\n[b]\nx = 2\nx = 3\ny =\n[c]\n";
        assert_eq!(section(text, "b"), Some(vec![("x", "3"), ("y", "")]));
        assert_eq!(section(text, "c"), Some(vec![]));
        assert_eq!(section(text, "d"), None);
    }
}
