//! Text: tokens in and out, chat templates. Knows neither devices nor models.

mod chat_template;
mod gguf_vocabulary;
mod tokenizer;

pub use chat_template::{ChatTemplate, Message};
pub use gguf_vocabulary::GgufVocabulary;
pub use tokenizer::{TokenStream, Tokenizer};
