//! Models: what they are, and their weights in and out of files.

pub mod config;
pub mod families;
pub mod folder;
pub mod gguf;
pub mod gguf_model;
pub mod mapped;
pub mod safetensors_file;
pub mod save;
pub mod stored;
pub mod weights;
