//! Learning: examples to losses to parameter updates.

pub mod coconut;
pub mod optimizer;
pub mod supervised;
