//! Whole jobs: what the binaries do, without their command lines.
//!
//! ```text
//! recipe                what a run does: TOML, every key documented and checked
//! probe                 the public oracle
//! train                 the job on additions, with addition_recipe
//! ```

pub mod addition_recipe;
pub mod probe;
pub mod recipe;
pub mod train;
