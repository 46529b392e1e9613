//! The comparison of a store's evidence with the evidence that it gave at the commit.

use crate::store::{Evidence, EvidenceTier};

/// Compares the store's present evidence with the evidence from when it confirmed the object.
/// Evidence of the recorded kind must still exist and be equal: weaker evidence now is damage.
///
/// # Errors
/// The difference, as a sentence.
pub fn compare(recorded: &Evidence, found: Option<&Evidence>) -> Result<EvidenceTier, String> {
    let found = found.ok_or("missing")?;
    if found.bytes != recorded.bytes {
        return Err(format!("has {} bytes, not {}", found.bytes, recorded.bytes));
    }
    let same = |what: &str, before: &Option<String>, now: &Option<String>| match (before, now) {
        (Some(before), Some(now)) if before != now => Err(format!(
            "{what} is {now}, and was {before} when it was confirmed"
        )),
        (Some(_), None) => Err(format!("the store no longer reports its {what}")),
        _ => Ok(()),
    };
    match recorded.tier {
        EvidenceTier::Crc64nvmeFull
        | EvidenceTier::Sha256Composite
        | EvidenceTier::Sha1
        | EvidenceTier::Crc32c => {
            same("checksum", &recorded.checksum, &found.checksum)?;
        }
        EvidenceTier::Md5Etag => same("ETag", &recorded.etag, &found.etag)?,
        EvidenceTier::IdPin => same("id", &recorded.version_id, &found.version_id)?,
        EvidenceTier::SizeOnly | EvidenceTier::ReadBack | EvidenceTier::Unknown => {}
    }
    Ok(recorded.tier)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(tier: EvidenceTier, checksum: Option<&str>) -> Evidence {
        let checksum = checksum.map(str::to_owned);
        Evidence {
            tier,
            bytes: 5,
            checksum,
            etag: None,
            version_id: None,
            part_bytes: None,
            locked_until: None,
        }
    }

    #[test]
    fn recorded_evidence_must_be_present_and_equal() {
        let recorded = evidence(EvidenceTier::Crc64nvmeFull, Some("a"));
        assert_eq!(
            compare(&recorded, Some(&recorded)),
            Ok(EvidenceTier::Crc64nvmeFull)
        );
        let other = evidence(EvidenceTier::Crc64nvmeFull, Some("b"));
        assert_eq!(
            compare(&recorded, Some(&other)),
            Err("checksum is b, and was a when it was confirmed".into())
        );
        let weaker = evidence(EvidenceTier::SizeOnly, None);
        assert_eq!(
            compare(&recorded, Some(&weaker)),
            Err("the store no longer reports its checksum".into())
        );
        assert_eq!(compare(&recorded, None), Err("missing".into()));
        let longer = Evidence {
            bytes: 6,
            ..recorded.clone()
        };
        assert_eq!(
            compare(&recorded, Some(&longer)),
            Err("has 6 bytes, not 5".into())
        );
    }
}
