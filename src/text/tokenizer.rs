//! Text to tokens and back. The only file that imports `tokenizers`.
//!
//! Truncation and padding that a tokenizer.json may ask for are switched off: a prompt is never cut silently.

use super::gguf_vocabulary::GgufVocabulary;
use crate::base::{Error, Result};
use serde_json::Value;
use std::path::Path;
use tokenizers::AddedToken;

/// A tokenizer in Hugging Face's format.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// The file is missing or no tokenizer.
    pub fn from_file(path: &Path) -> Result<Tokenizer> {
        let bytes = std::fs::read(path).map_err(Error::io(path, "cannot open"))?;
        Tokenizer::from_bytes(&bytes, path)
    }

    /// Reads the contents of a tokenizer.json; `path` names the source in errors.
    ///
    /// # Errors
    /// The contents are no tokenizer.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Tokenizer> {
        let advice = "expected Hugging Face's tokenizer.json; fetch it again";
        let outline: Value = serde_json::from_slice(bytes)
            .map_err(|error| Error::file(path, format!("is not valid JSON: {error}"), advice))?;
        check_merges(&outline).map_err(|problem| Error::file(path, problem, advice))?;
        drop(outline);
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| Error::file(path, format!("is no tokenizer: {error}"), advice))?;
        let plain = inner.with_padding(None).with_truncation(None).map(|_| ());
        plain.map_err(|error| Error::file(path, format!("cannot switch truncation off: {error}"), advice))?;
        Ok(Tokenizer { inner })
    }

    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// The parts contradict each other, or use a rule we do not know.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Tokenizer> {
        let json = vocabulary.tokenizer_json()?;
        Tokenizer::from_bytes(json.to_string().as_bytes(), vocabulary.path)
    }

    /// The tokenizer as a tokenizer.json.
    ///
    /// # Errors
    /// A part cannot be written; no part that can be read is known to do this.
    pub fn to_json(&self) -> Result<String> {
        let text = self.inner.to_string(true);
        text.map_err(|error| Error::input("tokenizer", format!("cannot be written: {error}"), "report this"))
    }

    /// The tokens of `text`. Special tokens written in the text (`<|im_end|>`) are recognised;
    /// `with_special` adds those that the model expects around a text (Llama's beginning-of-text).
    ///
    /// # Errors
    /// A character the tokenizer has no token for and no way to spell.
    pub fn encode(&self, text: &str, with_special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, with_special).map_err(|error| {
            Error::input("text", format!("cannot be turned into tokens: {error}"), "check the tokenizer")
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`; bytes that are no whole character come out as U+FFFD. Special tokens are left away if
    /// `skip_special`.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let text = self.inner.decode(ids, skip_special);
        text.map_err(|error| {
            Error::input("tokens", format!("cannot be turned into text: {error}"), "check the ids")
        })
    }

    /// A decoder that takes one token at a time.
    pub fn stream(&self, skip_special: bool) -> TokenStream<'_> {
        TokenStream { tokenizer: self, skip_special, ids: Vec::new(), shown: 0 }
    }

    /// The id of a token, spelled as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The id of a token that must be there.
    ///
    /// # Errors
    /// It is not: the message names it.
    pub fn required_id(&self, token: &str) -> Result<u32> {
        self.id(token).ok_or_else(|| {
            Error::input(
                "tokenizer",
                format!("has no token `{token}`"),
                "this model was not prepared for it; add the token and resize the embedding first",
            )
        })
    }

    /// The token with this id, spelled as in the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `decode(.., true)` leaves the token away.
    fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        self.token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// Whether the token is one of SentencePiece's 256 for bytes that no other token spells.
    fn spells_a_byte(&self, id: u32) -> bool {
        let token = self.token(id);
        let digits = token.as_deref().and_then(|token| token.strip_prefix("<0x")?.strip_suffix('>'));
        digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id plus one: what an embedding must have at least.
    pub fn id_bound(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// Adds tokens that are recognised as wholes anywhere in a text; those that exist keep their ids. New ones get the
    /// ids after the last, in order. Special tokens are left away by `decode(.., true)`, ordinary ones are not.
    ///
    /// # Errors
    /// A token could not be added.
    pub fn add_tokens(&mut self, tokens: &[&str], special: bool) -> Result<Vec<u32>> {
        let wrap = |error: tokenizers::Error| {
            Error::input("tokenizer", format!("cannot add {tokens:?}: {error}"), "check the names")
        };
        let added = tokens.iter().map(|token| AddedToken::from(*token, special).normalized(false));
        let added: Vec<AddedToken> = added.collect();
        if special {
            self.inner.add_special_tokens(added).map_err(wrap)?;
        } else {
            self.inner.add_tokens(added).map_err(wrap)?;
        }
        tokens.iter().map(|token| self.required_id(token)).collect()
    }
}

/// Decodes token by token. A piece comes out as soon as it is whole: characters that span tokens are held back, and so
/// are tokens that spell a byte (`<0x0A>`) until one that does not follows, since a run of them that is no UTF-8 as a
/// whole decodes to one U+FFFD a byte. All pieces together are the text of all tokens.
#[derive(Clone, Debug)]
pub struct TokenStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// The tokens of the last piece, then those held back. The last piece is decoded again with each new token, since
    /// decoders look at what stands before (leading spaces).
    ids: Vec<u32>,
    /// How many of `ids` belong to the last piece.
    shown: usize,
}

impl TokenStream<'_> {
    /// Takes the next token; returns the text that is now complete, perhaps none.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        // It is left away before anything is decoded, so that it does not even part a run of bytes.
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        self.ids.push(id);
        if self.tokenizer.spells_a_byte(id) {
            return Ok(String::new());
        }
        let (before, now) = self.texts()?;
        // A replacement character at the end may be the beginning of a character still to come.
        if now.ends_with(char::REPLACEMENT_CHARACTER) || now.len() <= before.len() {
            return Ok(String::new());
        }
        self.ids.drain(..self.shown);
        self.shown = self.ids.len();
        Ok(now[common_length(&before, &now)..].to_string())
    }

    /// The text that was held back, at the end of the tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        let (before, now) = self.texts()?;
        Ok(now[common_length(&before, &now)..].to_string())
    }

    /// Texts of the last piece, and of it with the tokens held back.
    fn texts(&self) -> Result<(String, String)> {
        let before = self.tokenizer.decode(&self.ids[..self.shown], self.skip_special)?;
        Ok((before, self.tokenizer.decode(&self.ids, self.skip_special)?))
    }
}

/// Bytes of the longest common beginning.
fn common_length(a: &str, b: &str) -> usize {
    let differs = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y);
    differs.map_or(a.len().min(b.len()), |((at, _), _)| at)
}

/// The crate's BPE builder copies `left + right` of a merge into a buffer as long as the longest token, and panics when
/// it does not fit; a damaged file must give an error instead.
fn check_merges(json: &Value) -> std::result::Result<(), String> {
    let model = &json["model"];
    let (Some(vocabulary), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array()) else {
        return Ok(());
    };
    let prefix = model["continuing_subword_prefix"].as_str().map_or(0, str::len);
    let longest = vocabulary.keys().map(String::len).max().unwrap_or(0);
    for merge in merges {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            _ => merge[0].as_str().zip(merge[1].as_str()),
        };
        let Some((left, right)) = pair else { return Err(format!("merge {merge} is not a pair of tokens")) };
        if right.len() < prefix || left.len() + right.len() - prefix > longest {
            return Err(format!("merge {merge} makes a token that is not in the vocabulary"));
        }
    }
    Ok(())
}
