//! generation_config.json: the tokens that end generation, and the settings by which transformers would change a
//! model's predictions and latch does not.

use crate::base::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// The file's name.
pub(super) const FILE: &str = "generation_config.json";

/// Settings that change which token is the best, and the value at which each changes nothing. Sampling settings
/// (temperature, top_p, ...) are not among them: the command line names its own law.
const CHANGING: [(&str, f64); 8] = [
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("num_beams", 1.0),
    ("guidance_scale", 1.0),
    ("penalty_alpha", 0.0),
];

/// The same for settings that are lists or objects: absent or empty changes nothing.
const CHANGING_LISTS: [&str; 7] = [
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "exponential_decay_length_penalty",
];

/// The tokens that end generation; `None` where there is no file (`json` is null). A file that names none, by leaving the
/// key out or by `null`, means none, whatever config.json says: transformers' rule. `path` is for messages.
///
/// # Errors
/// The file holds no object, or `eos_token_id` is neither a token id nor a list of them.
pub(super) fn stop_tokens(json: &Value, path: &Path) -> Result<Option<Vec<u32>>> {
    if json.is_null() {
        return Ok(None);
    }
    if !json.is_object() {
        return Err(Error::file(
            path,
            format!("holds {json}, expected an object"),
            "correct the file, or remove it",
        ));
    }
    let found = &json["eos_token_id"];
    let list = match found {
        Value::Null => Vec::new(),
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    list.iter().map(id).collect::<Option<Vec<u32>>>().map(Some).ok_or_else(|| {
        Error::file(path, format!("eos_token_id = {found}, expected token ids"), "correct the file")
    })
}

/// What the file asks for and latch does not do, as `key = value`.
pub(super) fn not_followed(json: &Value) -> Vec<String> {
    let changes = |key: &str| match (&json[key], CHANGING.iter().find(|(name, _)| *name == key)) {
        (Value::Null, _) => false,
        (value, Some((_, neutral))) => value.as_f64() != Some(*neutral),
        (Value::Array(list), None) => !list.is_empty(),
        (Value::Object(map), None) => !map.is_empty(),
        _ => true,
    };
    let keys = CHANGING.iter().map(|(key, _)| *key).chain(CHANGING_LISTS);
    keys.filter(|key| changes(key)).map(|key| format!("{key} = {}", json[key])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_that_would_change_the_text_are_named() {
        let qwen = json!({"do_sample": true, "temperature": 0.7, "top_p": 0.8, "repetition_penalty": 1.1,
            "eos_token_id": [2, 3]});
        assert_eq!(not_followed(&qwen), ["repetition_penalty = 1.1"]);
        let neutral = json!({"repetition_penalty": 1.0, "num_beams": 1, "suppress_tokens": [], "min_length": 0,
            "forced_eos_token_id": null});
        assert_eq!(not_followed(&neutral), Vec::<String>::new());
        let lists = json!({"suppress_tokens": [5], "forced_bos_token_id": 7, "num_beams": 4});
        let expected = ["num_beams = 4", "suppress_tokens = [5]", "forced_bos_token_id = 7"];
        assert_eq!(not_followed(&lists), expected);
        assert_eq!(not_followed(&Value::Null), Vec::<String>::new());
    }
}
