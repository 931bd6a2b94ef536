//! Text: tokens in and out, chat templates, embedded problems. Knows neither devices nor models.

pub mod addition;
mod chat_template;
mod gguf_vocabulary;
mod tokenizer;

pub use chat_template::{ChatTemplate, Message};
pub use gguf_vocabulary::GgufVocabulary;
pub use tokenizer::{TokenStream, Tokenizer};
