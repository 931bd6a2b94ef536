//! A small tokenizer for the embedded problems, so that nothing is downloaded. It is a tokenizer.json like any other:
//! a list of whole words, cut by one regular expression that both fancy-regex here and Oniguruma in transformers know.
//!
//! A word takes the space before it, and the space after it where a number follows: a number is then the same token in
//! a sentence and in a calculation. Numbers are cut into at most two digits. Tokens put side by side are the text again.

use super::special_tokens::{END_LATENT, LATENT, PAUSE, START_LATENT};
use super::{Tokenizer, graph_problems, word_problems};
use crate::base::Result;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Ends a text, and pads.
pub const END_OF_TEXT: &str = "<|endoftext|>";
/// Stands for whatever is not in the vocabulary.
pub const UNKNOWN: &str = "<|unk|>";

/// The pieces of a text. Every character is in exactly one.
const PIECES: &str = r"\d{1,2}|### ?|<<|>>| ?[A-Za-z]+(?: (?=\d))?|[^A-Za-z\d]";

/// Pieces that are no words.
const SIGNS: [&str; 30] = [
    "\n", " ", "###", "### ", "<<", ">>", "+", "-", "*", "/", "=", ".", ",", "?", "!", ":", ";", "'", "\"",
    "$", "%", "(", ")", "#", "<", ">", "|", "_", "&", "@",
];

/// The tokenizer. [`END_OF_TEXT`] is token 0.
///
/// # Errors
/// None but for a fault of ours in its description.
pub fn builtin_tokenizer() -> Result<Tokenizer> {
    Tokenizer::from_bytes(description().to_string().as_bytes(), Path::new("the built-in tokenizer"))
}

/// tokenizer.json and tokenizer_config.json of the built-in tokenizer, for a model's folder; transformers'
/// `AutoTokenizer` opens them. `tokenizer` may have got tokens since it was built.
///
/// # Errors
/// As [`Tokenizer::to_json`].
pub fn builtin_files(tokenizer: &Tokenizer) -> Result<Vec<(String, Vec<u8>)>> {
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": false,
        "add_prefix_space": false,
    });
    Ok(vec![
        ("tokenizer.json".to_string(), tokenizer.to_json()?.into_bytes()),
        ("tokenizer_config.json".to_string(), format!("{settings:#}\n").into_bytes()),
    ])
}

fn description() -> Value {
    // Texts without special tokens skip these; Coconut's are ordinary tokens, as in special_tokens.rs.
    let added = [
        (END_OF_TEXT, true),
        (UNKNOWN, true),
        (START_LATENT, false),
        (END_LATENT, false),
        (LATENT, false),
        (PAUSE, false),
    ];
    let added_tokens: Vec<Value> = added
        .iter()
        .enumerate()
        .map(|(id, (token, special))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": special})
        })
        .collect();
    let tokens = added.iter().map(|(token, _)| token.to_string()).chain(vocabulary());
    let vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens, "normalizer": null,
        "pre_tokenizer":
            {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN},
    })
}

/// Signs, numbers, then words in alphabetical order.
fn vocabulary() -> Vec<String> {
    let mut words = BTreeSet::new();
    for text in word_problems::all_sentences().into_iter().chain(graph_problems::all_sentences()) {
        for word in text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty()) {
            words.insert(word.to_string());
            words.insert(format!(" {word}"));
        }
        // Words before numbers.
        for (at, _) in text.match_indices(|c: char| c.is_ascii_digit()) {
            let before = &text[..at];
            let Some(sentence) = before.strip_suffix(' ') else { continue };
            let word = sentence.rsplit(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
            if !word.is_empty() {
                words.insert(format!("{word} "));
                words.insert(format!(" {word} "));
            }
        }
    }
    let signs = SIGNS.iter().map(|sign| sign.to_string());
    let numbers = (0..10).map(|n| n.to_string()).chain((0..100).map(|n| format!("{n:02}")));
    signs.chain(numbers).chain(words).collect()
}
