//! Compares the program's output with the expected output.

use std::process::Output;

/// Checks that the program ended with this status, printed all of this on either stream, and did
/// not panic.
#[track_caller]
pub(crate) fn check(output: &Output, status: i32, needles: &[&str]) {
    let (errors, text) = (
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    assert!(!errors.contains("panicked"), "{errors}");
    assert_eq!(output.status.code(), Some(status), "{errors}{text}");
    for needle in needles {
        assert!(
            errors.contains(needle) || text.contains(needle),
            "no {needle:?} in:\n{errors}{text}"
        );
    }
}
