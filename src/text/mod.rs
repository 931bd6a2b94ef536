//! Text: tokens in and out, chat templates, problems and their answers. Knows neither devices nor models.

pub mod answer;
mod builtin_tokenizer;
mod chat_template;
pub mod datasets;
mod gguf_vocabulary;
mod graph_problems;
mod problem;
mod special_tokens;
mod stories;
mod tokenizer;
mod word_problems;

pub use builtin_tokenizer::{END_OF_TEXT, UNKNOWN, builtin_files, builtin_tokenizer};
pub use chat_template::{ChatTemplate, Message};
pub use gguf_vocabulary::GgufVocabulary;
pub use graph_problems::GraphProblems;
pub use problem::{ANSWER_MARK, EncodedProblem, Problem, Split};
pub use special_tokens::{
    END_LATENT, LATENT, LatentTokens, MARKER_TOKENS, PAUSE, START_LATENT, add_pause, initial_row_token,
};
pub use tokenizer::{TokenStream, Tokenizer};
pub use word_problems::{Operation, Templates, WordProblems};
