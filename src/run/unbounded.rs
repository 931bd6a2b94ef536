//! Numbers in JSON that may be infinite or no number, for `#[serde(with = "...")]`: JSON has no such numbers, and what is
//! written as null could not be read back. They are written as text, `inf` or `NaN`.

use serde::{Deserialize, Deserializer, Serializer};

/// Writes a number, or its name where JSON has no such number.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    match value.is_finite() {
        true => serializer.serialize_f64(*value),
        false => serializer.serialize_str(&value.to_string()),
    }
}

/// Reads a number or its name; null, as earlier versions wrote, is no number.
///
/// # Errors
/// Anything else.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Found {
        Number(f64),
        Name(String),
        Nothing(()),
    }
    match Found::deserialize(deserializer)? {
        Found::Number(number) => Ok(number),
        Found::Name(name) => name.parse().map_err(serde::de::Error::custom),
        Found::Nothing(()) => Ok(f64::NAN),
    }
}
