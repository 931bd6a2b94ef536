//! Coconut's tokens in tokenizers that lack them, have some, or have all.

use latch::text::{LatentTokens, Tokenizer, add_pause, initial_row_token};
use std::path::Path;

fn words(tokens: &[&str]) -> Tokenizer {
    let vocab: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| (token.to_string(), id.into())).collect();
    let json = serde_json::json!({"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": tokens[0]}});
    Tokenizer::from_bytes(json.to_string().as_bytes(), Path::new("tokenizer.json")).unwrap()
}

#[test]
fn tokens_are_appended_in_order_and_found_again() {
    let mut tokenizer = words(&["?", "a", "<<"]);
    assert!(LatentTokens::find(&tokenizer).unwrap_err().to_string().contains("<|start-latent|>"));
    let tokens = LatentTokens::add(&mut tokenizer).unwrap();
    assert_eq!(tokens, LatentTokens { start: 3, end: 4, latent: 5 });
    assert_eq!(LatentTokens::add(&mut tokenizer).unwrap(), tokens);
    assert_eq!(tokenizer.id_bound(), 6);
    assert_eq!(add_pause(&mut tokenizer).unwrap(), 6);
    assert_eq!(add_pause(&mut tokenizer).unwrap(), 6);
    // They survive being written, and are found inside a text.
    let again = Tokenizer::from_bytes(tokenizer.to_json().unwrap().as_bytes(), Path::new("again")).unwrap();
    assert_eq!(LatentTokens::find(&again).unwrap(), tokens);
    assert_eq!(again.encode("a<|latent|><|end-latent|>a", false).unwrap(), [1, 5, 4, 1]);
    assert_eq!(again.decode(&[1, 5], true).unwrap(), "a<|latent|>");
}

#[test]
fn only_missing_tokens_are_appended() {
    let mut tokenizer = words(&["?", "<|latent|>", "<<"]);
    let tokens = LatentTokens::add(&mut tokenizer).unwrap();
    assert_eq!(tokens, LatentTokens { start: 3, end: 4, latent: 1 });
}

#[test]
fn the_row_to_copy_is_looked_up() {
    assert_eq!(initial_row_token(&words(&["?", "a", "<<"])).unwrap(), 2);
    let error = initial_row_token(&words(&["?", "a"])).unwrap_err().to_string();
    assert!(error.contains("no token `<<`"), "{error}");
}
