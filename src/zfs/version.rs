//! The supported versions of the ZFS kernel module. The ioctls have no version of their own, so the
//! version of the module is checked before the first ioctl.

use super::ZfsError;

/// The series of OpenZFS whose headers `vendor/check.sh` compiles our declarations with: the series
/// packaged by Debian.
const COMPILED_SERIES: [&str; 3] = ["2.1", "2.3", "2.4"];

/// The series whose headers were compared by hand with those of the compiled series before and
/// after. No test covers them.
const COMPARED_SERIES: [&str; 1] = ["2.2"];

/// The environment variable that allows one more series; its value is that series.
pub const ALLOW_VARIABLE: &str = "ZFS_BACKUP_ALLOW_ZFS";

/// The file in which the kernel shows the version of the module.
pub const MODULE_VERSION: &str = "/sys/module/zfs/version";

/// The minor revision of OpenZFS's development versions: 2.4.99 follows the last 2.4 and belongs to
/// no series.
const DEVELOPMENT: &str = "99";

/// Returns the series of a module's version: `2.3` of `2.3.2-1`. A development version is a series
/// of its own, `2.4.99`, and a version of any other form is a series as a whole.
pub(super) fn series(version: &str) -> &str {
    let mut dots = version.match_indices('.').map(|(at, _)| at);
    let Some((first, second)) = dots.next().zip(dots.next()) else {
        return version;
    };
    let major = &version[..first];
    let minor = &version[first + 1..second];
    let rest = &version[second + 1..];
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let revision = rest
        .split(|letter: char| !letter.is_ascii_digit())
        .next()
        .unwrap_or_default();
    match is_number(major) && is_number(minor) && !revision.is_empty() {
        true if revision == DEVELOPMENT => &version[..=second + revision.len()],
        true => &version[..second],
        false => version,
    }
}

/// Returns the known series as text for people.
pub fn known_series() -> String {
    let mut known: Vec<&str> = COMPILED_SERIES
        .iter()
        .chain(&COMPARED_SERIES)
        .copied()
        .collect();
    known.sort_unstable();
    known.join(", ")
}

/// Whether our declarations were checked against the headers of this version's series.
pub fn is_known(version: &str) -> bool {
    COMPILED_SERIES
        .iter()
        .chain(&COMPARED_SERIES)
        .any(|known| *known == series(version))
}

/// Returns whether a module's version is older than a release, `[2, 1, 8]`; `None` for a version of
/// another form, as a build from git may have.
pub fn is_older(version: &str, release: [u32; 3]) -> Option<bool> {
    let mut numbers = version
        .splitn(3, '.')
        .map(|part| part.split(|letter: char| !letter.is_ascii_digit()).next());
    let mut next = || numbers.next().flatten()?.parse::<u32>().ok();
    Some([next()?, next()?, next()?] < release)
}

/// Refuses a module of a series that is neither known nor `allowed`.
pub(super) fn check(version: &str, allowed: Option<&str>) -> Result<(), ZfsError> {
    if is_known(version) || allowed == Some(series(version)) {
        return Ok(());
    }
    Err(ZfsError::Version {
        version: version.to_owned(),
        series: series(version).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_version_is_its_first_two_numbers() {
        let table = [
            ("2.3.2-1", "2.3"),
            ("2.3.2-2~bpo12+2", "2.3"),
            ("2.2.2-0ubuntu9.4", "2.2"),
            ("2.4.0-rc1", "2.4"),
            ("2.1.11-1", "2.1"),
            ("2.10.0-1", "2.10"),
            // Development versions may have the structures of the next series.
            ("2.4.99-1", "2.4.99"),
            ("2.4.99-123_gabcdef012", "2.4.99"),
            ("git", "git"),
            ("2.3", "2.3"),
            ("2.3-1.2.3", "2.3-1.2.3"),
            ("v2.3.1", "v2.3.1"),
            ("2.3.x", "2.3.x"),
            ("..", ".."),
            ("", ""),
        ];
        for (version, expected) in table {
            assert_eq!(series(version), expected, "{version}");
        }
    }

    #[test]
    fn age_of_a_version_is_known_if_it_has_three_numbers() {
        for (version, older) in [
            ("2.1.5-1ubuntu6~22.04.4", Some(true)),
            ("2.1.7-1", Some(true)),
            ("2.1.8-1", Some(false)),
            ("2.1.11-1", Some(false)),
            ("2.2.0-rc1", Some(false)),
            ("2.0.7", Some(true)),
            ("2.3", None),
            ("git", None),
            ("", None),
        ] {
            assert_eq!(is_older(version, [2, 1, 8]), older, "{version}");
        }
    }

    #[test]
    fn unknown_series_is_refused_unless_it_is_allowed_by_name() {
        for version in ["2.1.11-1", "2.2.2-0ubuntu9", "2.3.2-1", "2.4.4-1"] {
            assert!(check(version, None).is_ok(), "{version}");
        }
        for (version, series) in [
            ("2.5.0-1", "2.5"),
            ("2.0.7-1", "2.0"),
            ("0.8.6-1", "0.8"),
            ("2.4.99-1", "2.4.99"),
        ] {
            for allowed in [None, Some(""), Some("1"), Some("2.6"), Some(version)] {
                let error = check(version, allowed).unwrap_err();
                assert!(error.to_string().contains(version), "{error}");
            }
            assert!(check(version, Some(series)).is_ok(), "{version}");
        }
        for version in ["", "git"] {
            assert!(check(version, None).is_err(), "{version}");
        }
    }
}
