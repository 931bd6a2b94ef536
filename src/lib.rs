//! latch: inference and training for transformers that reason in a continuous latent space.
//!
//! The house has floors, and data flows one way (ARCHITECTURE.md):
//! `bin, tools -> {run, serve} -> learn -> rollout -> {model, text} -> ops -> {device, cpu} -> base`.
//! `tests/layering.rs` fails when an arrow points up.
#![deny(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

pub mod base;
pub mod cpu;
pub mod device;
pub mod learn;
pub mod model;
pub mod ops;
pub mod rollout;
pub mod run;
pub mod sim;
pub mod text;
pub mod verify;
