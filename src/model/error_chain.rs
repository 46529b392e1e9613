//! The text of an error and of its causes.

/// Returns the texts of an error and of its causes, outermost first, on one line. A text that an
/// outer text contains already, as in the errors of the S3 SDK, is left out.
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}
