//! The one integration test binary.

mod allocation;
mod binaries;
mod files;
mod generate;
mod golden;
mod layering;
mod learn;
mod parity;
mod philox;
mod real_model;
mod sequences;
mod theory;
mod verify_grad;
