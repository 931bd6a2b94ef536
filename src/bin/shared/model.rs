//! The flags that name a model.

use clap::Args;
use std::path::PathBuf;

/// Which model.
#[derive(Args, Debug)]
pub struct ModelArguments {
    /// Hugging Face folder or .gguf file
    #[arg(long)]
    pub model: PathBuf,
    /// Folder of an adapter (LoRA, as PEFT or train saves it) for the model
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}
