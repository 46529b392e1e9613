//! [`Expected`]: the body of a response to a read, of a whole object or a range: its announced
//! length and range must match the request, and its actual length the announced one. For every
//! store that is read by HTTP.

use bytes::BytesMut;
use std::ops::Range;

/// The largest response that is not an object. The longest are pages of B2's listings: 10,000
/// entries with a name of at most 1 KiB and a few short fields, about 6 KiB each if every byte of
/// the name is escaped.
pub(crate) const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// The largest error response: a code, a sentence and an id.
pub(crate) const REFUSAL_BYTES_MAX: u64 = 64 << 10;

/// A body that is being received.
pub(crate) struct Expected {
    announced: usize,
    came: BytesMut,
}

impl Expected {
    /// Checks the headers of a response. `range` is the requested range, `None` for a whole object;
    /// `limit_bytes` is then the maximum length. The body is written into the memory of `came`.
    ///
    /// # Errors
    /// A sentence, when the response does not match the request. A retry would get the same
    /// response.
    pub(crate) fn new(
        length: Option<u64>,
        content_range: Option<&str>,
        range: Option<&Range<u64>>,
        limit_bytes: u64,
        mut came: BytesMut,
    ) -> Result<Self, String> {
        let bytes = length.ok_or("the response has no length")?;
        match range {
            None if bytes > limit_bytes => {
                return Err(format!(
                    "it has {bytes} bytes, more than the {limit_bytes} allowed"
                ));
            }
            Some(range) if bytes != range.end - range.start => {
                return Err(format!(
                    "bytes {range:?} were requested, {bytes} bytes received"
                ));
            }
            // A response without this header answers a request without a range: it starts at byte
            // 0.
            Some(range) if content_range.map_or(Some(0), range_start) != Some(range.start) => {
                return Err(format!(
                    "bytes {range:?} were requested, {content_range:?} received"
                ));
            }
            _ => {}
        }
        let announced =
            usize::try_from(bytes).map_err(|_| "it has more bytes than memory can have")?;
        came.clear();
        came.reserve(announced);
        Ok(Self { announced, came })
    }

    /// Returns the announced length.
    pub(crate) fn bytes(&self) -> u64 {
        self.announced as u64
    }

    /// Takes the next piece of the body.
    ///
    /// # Errors
    /// A sentence, when the body is longer than announced. A retry would get the same response.
    pub(crate) fn take(&mut self, piece: &[u8]) -> Result<(), String> {
        if self.came.len() + piece.len() > self.announced {
            return Err(format!(
                "{} bytes were announced, and more received",
                self.announced
            ));
        }
        self.came.extend_from_slice(piece);
        Ok(())
    }

    /// Returns the whole body.
    ///
    /// # Errors
    /// A sentence, when the body was cut off: a retry may succeed.
    pub(crate) fn finish(self) -> Result<BytesMut, String> {
        match self.came.len() == self.announced {
            true => Ok(self.came),
            false => Err(format!(
                "{} bytes were announced, {} received",
                self.announced,
                self.came.len()
            )),
        }
    }
}

/// Returns the start of a Content-Range: `bytes 5-9/100`.
fn range_start(content_range: &str) -> Option<u64> {
    content_range
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_range_is_read() {
        for (text, start) in [
            ("bytes 5-9/100", Some(5)),
            ("bytes 0-0/1", Some(0)),
            ("bytes */3", None),
            ("5-9", None),
        ] {
            assert_eq!(range_start(text), start, "{text}");
        }
    }

    #[test]
    fn response_length_and_range_must_match_the_request() {
        for (length, content_range, range, good) in [
            (Some(5), None, None, true),
            (Some(10), None, None, true),
            (Some(11), None, None, false),
            (None, None, None, false),
            (Some(5), Some("bytes 5-9/100"), Some(5..10), true),
            (Some(5), Some("bytes 4-8/100"), Some(5..10), false),
            (Some(4), Some("bytes 5-8/9"), Some(5..10), false),
            (Some(5), None, Some(5..10), false),
            (Some(5), None, Some(0..5), true),
            (Some(50), Some("bytes 5-54/100"), Some(5..55), true),
        ] {
            let told = Expected::new(length, content_range, range.as_ref(), 10, BytesMut::new());
            assert_eq!(told.is_ok(), good, "{length:?} {content_range:?} {range:?}");
        }
    }

    #[test]
    fn a_body_has_the_length_that_was_announced() {
        let expected =
            || Expected::new(Some(5), None, None, 10, BytesMut::from(&b"of no use"[..])).unwrap();
        let mut body = expected();
        body.take(b"12").unwrap();
        body.take(b"345").unwrap();
        assert!(body.take(b"6").is_err());
        assert_eq!(body.finish().unwrap().as_ref(), b"12345");
        let mut body = expected();
        body.take(b"1234").unwrap();
        assert_eq!(
            body.finish().unwrap_err(),
            "5 bytes were announced, 4 received"
        );
    }
}
