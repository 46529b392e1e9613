//! The text of an error and of its causes.

/// An error with its causes, outermost first, on one line. Each text says its own part only, so
/// none is there twice.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
