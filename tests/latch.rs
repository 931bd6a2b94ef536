//! The one integration test binary.

mod adapters;
mod allocation;
mod binaries;
mod device;
mod files;
mod generate;
mod golden;
mod gpu_models;
mod hrpo;
mod layering;
mod learn;
mod parity;
mod philox;
mod policy;
mod real_model;
mod rollouts;
mod run;
mod schools;
mod sequences;
mod shipped_ptx;
mod sim;
mod soft;
mod story;
mod text;
mod theory;
mod verify_grad;
