//! The tokenizer that a GGUF file describes, as a tokenizer.json.
//!
//! Two kinds exist: `gpt2`, a byte-level BPE with ranked merges, whose pre-tokenizer is known by a name; and `llama`,
//! a SentencePiece model with a score a token, turned into a BPE whose merges are ranked by the score of what they make
//! (as transformers' converter does). Rules are those of the models' own tokenizer.json files.

use crate::base::{Error, Result};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// The parts of a GGUF file's tokenizer.
#[derive(Clone, Debug)]
pub struct GgufVocabulary<'a> {
    /// The file, for messages.
    pub path: &'a Path,
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub model: &'a str,
    /// `tokenizer.ggml.pre`: how text is cut before merging.
    pub pre: Option<&'a str>,
    /// The tokens, by id.
    pub tokens: Vec<&'a str>,
    /// Kinds of tokens: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Empty: all normal.
    pub kinds: Vec<u32>,
    /// Scores (`llama`).
    pub scores: Vec<f64>,
    /// Merges `left right` in order of rank (`gpt2`).
    pub merges: Vec<&'a str>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// Unknown token.
    pub unknown: Option<u32>,
    /// Padding.
    pub padding: Option<u32>,
    /// Whether texts begin with `bos`.
    pub add_bos: Option<bool>,
    /// Whether texts end with `eos`.
    pub add_eos: Option<bool>,
    /// Whether a space is put before the text (`llama`).
    pub add_space_prefix: Option<bool>,
}

const UNKNOWN: u32 = 2;
const CONTROL: u32 = 3;
const USER_DEFINED: u32 = 4;

/// Longest token of a `llama` vocabulary that can be made by merging; finding its merges takes time in the square.
const LONGEST_MERGED: usize = 1024;

/// How Llama 3 cuts text; `{1,3}` digits stay together.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen2 cuts text: as Llama 3, digits alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl GgufVocabulary<'_> {
    fn wrong(&self, problem: impl Into<String>) -> Error {
        Error::file(self.path, problem, "use another file, or the model's Hugging Face folder")
    }

    /// The same tokenizer as the contents of a tokenizer.json.
    ///
    /// # Errors
    /// The parts contradict each other, or use a rule we do not know.
    pub fn tokenizer_json(&self) -> Result<Value> {
        if !self.kinds.is_empty() && self.kinds.len() != self.tokens.len() {
            return Err(self.wrong(format!(
                "tokenizer.ggml.token_type has {} entries for {} tokens",
                self.kinds.len(),
                self.tokens.len()
            )));
        }
        let mut ids = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(*token, id) {
                return Err(self.wrong(format!("tokens {first} and {id} are both {token:?}")));
            }
        }
        let (model, rules, space_prefix) = match self.model {
            "gpt2" => (self.byte_level_model(), self.byte_level_rules()?, false),
            "llama" => (self.sentence_piece_model(&ids)?, sentence_piece_rules(self.space_prefix()), true),
            other => {
                let advice = "known: gpt2, llama; use the model's Hugging Face folder";
                let problem = format!("tokenizer.ggml.model = \"{other}\" is unknown");
                return Err(Error::file(self.path, problem, advice));
            }
        };
        let mut json = rules;
        json.insert("version".into(), json!("1.0"));
        json.insert("model".into(), model);
        json.insert("added_tokens".into(), self.added_tokens());
        let llama3 = matches!(self.pre, Some("llama-bpe" | "llama3" | "llama-v3"));
        json.insert("post_processor".into(), self.template(space_prefix || llama3)?);
        Ok(Value::Object(json))
    }

    fn space_prefix(&self) -> bool {
        self.add_space_prefix.unwrap_or(true)
    }

    fn vocab(&self) -> Value {
        Value::Object(
            self.tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect(),
        )
    }

    fn added_tokens(&self) -> Value {
        let mut added = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let kind = self.kinds.get(id).copied().unwrap_or(1);
            let special = kind == CONTROL || (kind == UNKNOWN && self.model == "llama");
            if (special || kind == USER_DEFINED) && !token.is_empty() {
                added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": special}));
            }
        }
        Value::Array(added)
    }

    /// Puts `bos` before and `eos` behind a text, where the file says so (or, for `bos`, says nothing and
    /// `bos_expected`).
    fn template(&self, bos_expected: bool) -> Result<Value> {
        let token = |name: &str, id: Option<u32>, wanted: bool| -> Result<Option<(u32, &str)>> {
            let Some(id) = id.filter(|_| wanted) else { return Ok(None) };
            let text = self.tokens.get(id as usize).ok_or_else(|| {
                self.wrong(format!("the {name} token is {id}, the vocabulary has {}", self.tokens.len()))
            })?;
            Ok(Some((id, text)))
        };
        let bos = token("bos", self.bos, self.add_bos.unwrap_or(bos_expected))?;
        let eos = token("eos", self.eos, self.add_eos.unwrap_or(false))?;
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let mut special = Map::new();
        let mut piece = |found: Option<(u32, &str)>| {
            found.map(|(id, text)| {
                special.insert(text.into(), json!({"id": text, "ids": [id], "tokens": [text]}));
                json!({"SpecialToken": {"id": text, "type_id": 0}})
            })
        };
        let (before, behind) = (piece(bos), piece(eos));
        let sequence = |name: &str| {
            let text = json!({"Sequence": {"id": name, "type_id": 0}});
            before.iter().cloned().chain([text]).chain(behind.iter().cloned()).collect::<Vec<Value>>()
        };
        let pair: Vec<Value> = sequence("A").into_iter().chain(sequence("B")).collect();
        Ok(
            json!({"type": "TemplateProcessing", "single": sequence("A"), "pair": pair, "special_tokens": special}),
        )
    }

    fn byte_level_model(&self) -> Value {
        let merges: Vec<Value> = self.merges.iter().map(|merge| json!(merge)).collect();
        let whole_words = matches!(self.pre, Some("llama-bpe" | "llama3" | "llama-v3"));
        json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": whole_words,
            "vocab": self.vocab(), "merges": merges})
    }

    fn byte_level_rules(&self) -> Result<Map<String, Value>> {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let cut = |first: Value, use_regex: bool| json!({"type": "Sequence", "pretokenizers": [first, byte_level(use_regex)]});
        let regex = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let (pre_tokenizer, normalizer) = match self.pre {
            Some("gpt-2") => (byte_level(true), Value::Null),
            Some("smollm") => (cut(json!({"type": "Digits", "individual_digits": true}), true), Value::Null),
            Some("llama-bpe" | "llama3" | "llama-v3") => (cut(regex(LLAMA3), false), Value::Null),
            Some("qwen2" | "deepseek-r1-qwen") => (cut(regex(QWEN2), false), json!({"type": "NFC"})),
            found => {
                let problem = match found {
                    Some(name) => format!("tokenizer.ggml.pre = \"{name}\" is unknown"),
                    None => {
                        "metadata key tokenizer.ggml.pre is missing: how text is cut is not known".to_string()
                    }
                };
                let advice = "known: gpt-2, smollm, llama-bpe, qwen2; use the model's Hugging Face folder";
                return Err(Error::file(self.path, problem, advice));
            }
        };
        Ok(Map::from_iter([
            ("normalizer".to_string(), normalizer),
            ("pre_tokenizer".to_string(), pre_tokenizer),
            ("decoder".to_string(), byte_level(true)),
        ]))
    }

    /// A token can be made by joining any two tokens that spell it; joins are tried in order of the score of what they
    /// make, then of the longer halves.
    fn sentence_piece_model(&self, ids: &HashMap<&str, usize>) -> Result<Value> {
        if self.scores.len() != self.tokens.len() {
            return Err(self.wrong(format!(
                "tokenizer.ggml.scores has {} entries for {} tokens",
                self.scores.len(),
                self.tokens.len()
            )));
        }
        if let Some(id) = self.scores.iter().position(|score| score.is_nan()) {
            return Err(self.wrong(format!("the score of token {id} is not a number")));
        }
        let joinable = |id: usize| matches!(self.kinds.get(id).copied().unwrap_or(1), 1 | USER_DEFINED);
        let mut merges = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if !joinable(id) || self.kinds.get(id) == Some(&USER_DEFINED) {
                continue;
            }
            if token.len() > LONGEST_MERGED {
                return Err(
                    self.wrong(format!("token {id} has {} bytes, more than {LONGEST_MERGED}", token.len()))
                );
            }
            let mut found = Vec::new();
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right))
                    && joinable(l)
                    && joinable(r)
                {
                    found.push((l, r, left, right));
                }
            }
            found.sort_unstable_by_key(|(l, r, ..)| (*l, *r));
            let score = self.scores[id];
            merges.extend(found.into_iter().map(|(.., left, right)| (score, left, right)));
        }
        let length = |text: &str| text.chars().count();
        // Stable, so that equal ones stay in the order of ids, as in the converter of transformers.
        merges.sort_by(|a, b| {
            b.0.total_cmp(&a.0).then(length(b.1).cmp(&length(a.1))).then(length(b.2).cmp(&length(a.2)))
        });
        let merges: Vec<Value> = merges.into_iter().map(|(_, left, right)| json!([left, right])).collect();
        let kind = |wanted: u32| self.kinds.iter().position(|kind| *kind == wanted);
        let unknown = self.unknown.map(|id| id as usize).or(kind(UNKNOWN));
        let unknown = unknown.and_then(|id| self.tokens.get(id));
        Ok(json!({"type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": self.vocab(), "merges": merges}))
    }
}

/// Spaces become U+2581 and back; unknown characters are spelled in bytes.
fn sentence_piece_rules(space_prefix: bool) -> Map<String, Value> {
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space_prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Map::from_iter([
        ("normalizer".to_string(), json!({"type": "Sequence", "normalizers": normalizers})),
        ("pre_tokenizer".to_string(), Value::Null),
        ("decoder".to_string(), json!({"type": "Sequence", "decoders": decoders})),
    ])
}
