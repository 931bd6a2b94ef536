//! Learning: examples to losses to parameter updates.

pub mod coconut;
pub mod optimizer;
pub mod policy;
pub mod policy_batch;
pub mod policy_report;
pub mod supervised;
