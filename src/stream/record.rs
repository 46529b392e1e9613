//! The send stream.
