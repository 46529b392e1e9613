//! [`Marks`]: turning the pages of a listing to its very end, and not for ever.

use std::collections::HashSet;

/// The places where pages began: one that comes again would mean turning pages for ever.
#[derive(Default)]
pub(crate) struct Marks(HashSet<String>);

impl Marks {
    /// Notes where the next page begins.
    pub(crate) fn pass(&mut self, mark: Option<String>) -> Result<(), &'static str> {
        let mark = mark.ok_or("the store says that there is more, but not how to go on")?;
        if self.0.insert(mark) { Ok(()) } else { Err("the store gives the same page again and again") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_do_not_go_on_are_noticed() {
        let mut marks = Marks::default();
        for mark in ["a", "b"] {
            assert_eq!(marks.pass(Some(mark.to_owned())), Ok(()));
        }
        assert!(marks.pass(Some("a".to_owned())).is_err());
        assert!(marks.pass(None).is_err());
    }
}
