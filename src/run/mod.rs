//! Whole jobs: what the binaries do, without their command lines.
//!
//! ```text
//! recipe                what a run does: TOML, every key documented and checked
//! folder, metrics       a run's files; checkpoints: saved states that survive kills; environment: what it ran on
//! terminal              the text a person sees; the binaries print it
//! probe                 the public oracle
//! train                 the job on additions, with addition_recipe
//! ```

pub mod addition_recipe;
pub mod checkpoints;
pub mod environment;
pub mod folder;
pub mod metrics;
pub mod probe;
pub mod recipe;
pub mod terminal;
pub mod train;
