//! Gradients against central differences in f64: the first oracle of everything that has a backward.
//!
//! ```text
//! difference   slopes: steps, extrapolation, kinks
//! gradient     one check: which entries, which error, which verdict
//! fault        planted mistakes that a check must see
//! operations   one file an operation, with its stem
//! script       what a model runs, and the loss
//! models       a layer of each family; a model through latent steps with masks and a shared prompt
//! suite        all of them
//! tolerance    when two devices agree
//! rounding     whole models in lower precision against f64: distances in norm
//! workloads    every kernel at the sizes of real models, with its floors; the bars of their counters
//! ```
//!
//! `tools/verify_grad` prints the table made here; `tests/parity` runs the checks of single operations.

pub mod codi;
pub mod difference;
pub mod fault;
pub mod gradient;
pub mod models;
pub mod operations;
pub mod rounding;
pub mod script;
pub mod suite;
pub mod tolerance;
pub mod workloads;
