//! Learning: examples to losses to parameter updates.

pub mod advantages;
pub mod coconut;
pub mod codi;
pub mod codi_trainer;
pub mod estimators;
pub mod implicit;
pub mod intervals;
pub mod objective;
pub mod optimizer;
pub mod policy;
pub mod policy_batch;
mod policy_plan;
pub mod policy_report;
pub mod soft_policy;
pub mod supervised;
