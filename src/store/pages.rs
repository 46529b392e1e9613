//! [`Marks`]: detects an endless listing while its pages are read. [`check_count`]: refuses a
//! listing that would fill the memory.

use std::collections::HashSet;

/// The maximum number of entries in a listing that is kept in memory, about 200 bytes each. A
/// backup has at most 500,000 chunks: ten of the largest fulls of one dataset, petabytes, fit.
const LISTED_MAX: usize = 5_000_000;

/// Refuses a listing that is longer than this program can have caused, before it fills memory.
pub(crate) fn check_count(listed: usize) -> Result<(), String> {
    if listed <= LISTED_MAX {
        return Ok(());
    }
    Err(format!(
        "there are more than {LISTED_MAX} objects, more than this program ever makes: find out who puts them there, and \
         remove them with the tools of the store"
    ))
}

/// The marks at which pages began. A repeated mark would mean an endless listing.
#[derive(Default)]
pub(crate) struct Marks(HashSet<String>);

impl Marks {
    /// Records the mark of the next page.
    pub(crate) fn pass(&mut self, mark: Option<String>) -> Result<(), &'static str> {
        let mark = mark.ok_or("the store reports another page, but no token for it")?;
        if self.0.insert(mark) {
            Ok(())
        } else {
            Err("the store returns the same page repeatedly")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listing_above_five_million_objects_is_refused() {
        assert_eq!(check_count(LISTED_MAX), Ok(()));
        assert!(
            check_count(LISTED_MAX + 1)
                .unwrap_err()
                .contains("more than 5000000 objects")
        );
    }

    #[test]
    fn repeated_or_missing_page_marker_is_an_error() {
        let mut marks = Marks::default();
        for mark in ["a", "b"] {
            assert_eq!(marks.pass(Some(mark.to_owned())), Ok(()));
        }
        assert!(marks.pass(Some("a".to_owned())).is_err());
        assert!(marks.pass(None).is_err());
    }
}
