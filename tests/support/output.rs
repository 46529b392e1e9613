//! What the program said, held against what it should say.

use std::process::Output;

/// That it ended so, said all of this on either stream, and did not panic.
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
