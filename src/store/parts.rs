//! [`PartSizes`]: checks the rule that all parts but the last have equal length, in one place for
//! all stores.

/// The sizes of the parts of one object. Composite checksums and some stores (R2) depend on the
/// rule.
#[derive(Debug)]
pub(crate) struct PartSizes {
    part_bytes: usize,
    bytes: u64,
    last_was_short: bool,
}

impl PartSizes {
    /// Begins an object whose parts have `part_bytes`.
    pub(crate) fn new(part_bytes: usize) -> Self {
        Self {
            part_bytes,
            bytes: 0,
            last_was_short: false,
        }
    }

    /// Accepts the next part. The error is a sentence saying why the part cannot follow. An empty
    /// part is ignored and always allowed.
    pub(crate) fn accept(&mut self, len: usize) -> Result<(), String> {
        if len == 0 {
            return Ok(());
        }
        if len > self.part_bytes {
            return Err(format!(
                "a part of {len} bytes is longer than the part size {}",
                self.part_bytes
            ));
        }
        if self.last_was_short {
            return Err(format!(
                "a part follows one that was shorter than the part size {}",
                self.part_bytes
            ));
        }
        self.last_was_short = len < self.part_bytes;
        self.bytes += len as u64;
        Ok(())
    }

    /// The object's bytes so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_part_may_be_short() {
        for (sizes, allowed) in [
            (&[][..], true),
            (&[0], true),
            (&[4, 4, 4], true),
            (&[4, 4, 1], true),
            (&[3], true),
            (&[3, 0], true),
            (&[3, 1], false),
            (&[5], false),
            (&[4, 3, 4], false),
        ] {
            let mut parts = PartSizes::new(4);
            let verdict = sizes.iter().try_for_each(|len| parts.accept(*len));
            assert_eq!(verdict.is_ok(), allowed, "{sizes:?}: {verdict:?}");
            if allowed {
                assert_eq!(
                    parts.bytes(),
                    sizes.iter().sum::<usize>() as u64,
                    "{sizes:?}"
                );
            }
        }
    }
}
