//! Learning: examples to losses to parameter updates.

pub mod optimizer;
pub mod supervised;
