//! Rollouts: many rows through prompt, latent steps and sampled answer, each step crossing to the host once.

pub mod audit;
mod decode;
pub mod generate;
pub mod geometry;
pub mod group;
pub mod masks;
mod plan;
mod sharing;
pub mod switching;
