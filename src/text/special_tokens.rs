//! Coconut's tokens in a tokenizer that may not have them yet (algorithms A.1).

use super::Tokenizer;
use crate::base::{Error, Result};

/// Opens the latent thoughts.
pub const START_LATENT: &str = "<|start-latent|>";
/// Closes them.
pub const END_LATENT: &str = "<|end-latent|>";
/// Holds the place of one thought.
pub const LATENT: &str = "<|latent|>";
/// A learned token instead of a thought, for the pause variant.
pub const PAUSE: &str = "<|pause|>";
/// Opens a calculation; new rows of the embedding begin as copies of its row.
const MARK: &str = "<<";

/// All tokens that [`LatentTokens::add`] and [`add_pause`] see to.
pub const MARKER_TOKENS: [&str; 4] = [START_LATENT, END_LATENT, LATENT, PAUSE];

/// Ids of Coconut's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentTokens {
    /// [`START_LATENT`].
    pub start: u32,
    /// [`END_LATENT`].
    pub end: u32,
    /// [`LATENT`].
    pub latent: u32,
}

impl LatentTokens {
    /// Finds the three tokens, or appends those that are missing in the order start, end, latent. They are ordinary
    /// tokens as in the reference: decoding shows them, so an answer with one in it is a wrong answer. New ids may lie
    /// beyond the embedding: compare them with [`Tokenizer::id_bound`] and the model's vocabulary.
    ///
    /// # Errors
    /// A token cannot be added.
    pub fn add(tokenizer: &mut Tokenizer) -> Result<LatentTokens> {
        let names = [START_LATENT, END_LATENT, LATENT];
        // Tokens that exist may be marked special there; they are left as they are.
        let missing: Vec<&str> = names.into_iter().filter(|name| tokenizer.id(name).is_none()).collect();
        if !missing.is_empty() {
            tokenizer.add_tokens(&missing, false)?;
        }
        LatentTokens::find(tokenizer)
    }

    /// Finds the three tokens.
    ///
    /// # Errors
    /// One is missing: the message names it.
    pub fn find(tokenizer: &Tokenizer) -> Result<LatentTokens> {
        Ok(LatentTokens {
            start: tokenizer.required_id(START_LATENT)?,
            end: tokenizer.required_id(END_LATENT)?,
            latent: tokenizer.required_id(LATENT)?,
        })
    }
}

/// The pause token; appended where it is missing.
///
/// # Errors
/// It cannot be added.
pub fn add_pause(tokenizer: &mut Tokenizer) -> Result<u32> {
    match tokenizer.id(PAUSE) {
        Some(id) => Ok(id),
        None => Ok(tokenizer.add_tokens(&[PAUSE], false)?[0]),
    }
}

/// The token whose embedding row new tokens begin with: `<<`.
///
/// # Errors
/// The vocabulary does not have `<<` as one token.
pub fn initial_row_token(tokenizer: &Tokenizer) -> Result<u32> {
    tokenizer.id(MARK).ok_or_else(|| {
        Error::input(
            "tokenizer",
            format!("has no token `{MARK}`, whose embedding row new tokens begin with"),
            "name another token whose row is to be copied",
        )
    })
}
