//! Rollouts: many rows through prompt, latent steps and sampled answer, each step crossing to the host once.

pub mod generate;
pub mod masks;
