//! Whole jobs: what the binaries do, without their command lines.

pub mod probe;
pub mod recipe;
pub mod train;
