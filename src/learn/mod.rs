//! Learning: examples to losses to parameter updates, rewards to advantages to objectives, answers to estimates.

pub mod advantages;
pub mod estimators;
pub mod intervals;
pub mod objective;
pub mod optimizer;
pub mod supervised;
