//! The form of a level in stored objects: its name, or null.

use crate::model::BackupLevel;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub(super) fn serialize<S: Serializer>(
    level: &Option<BackupLevel>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    level.map(BackupLevel::as_str).serialize(serializer)
}

/// Reads a level. A name of a later version counts as no level.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<BackupLevel>, D::Error> {
    let name: Option<String> = Option::deserialize(deserializer)?;
    Ok(name.as_deref().and_then(BackupLevel::from_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Object {
        #[serde(default, with = "super")]
        level: Option<BackupLevel>,
    }

    #[test]
    fn a_level_is_its_name_and_an_unknown_name_is_none() {
        let read = |json: &str| serde_json::from_str::<Object>(json).unwrap().level;
        for level in BackupLevel::ALL {
            let json = format!("{{\"level\":\"{level}\"}}");
            let object = Object { level: Some(level) };
            assert_eq!(serde_json::to_string(&object).unwrap(), json);
            assert_eq!(read(&json), Some(level));
        }
        for none in ["{}", "{\"level\":null}", "{\"level\":\"quarterly\"}"] {
            assert_eq!(read(none), None, "{none}");
        }
        assert_eq!(
            serde_json::to_string(&Object { level: None }).unwrap(),
            "{\"level\":null}"
        );
    }
}
