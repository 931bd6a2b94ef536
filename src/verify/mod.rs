//! Gradients against central differences in f64: the first oracle of everything that has a backward.
//!
//! `tools/verify_grad` prints the tables made here; `tests/parity` runs the same checks on ragged shapes.

pub mod gradient;
pub mod operations;
