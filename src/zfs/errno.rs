//! Sentences for error numbers.

pub(super) fn sentence(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}
