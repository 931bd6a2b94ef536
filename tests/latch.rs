//! The one integration test binary.

mod allocation;
mod files;
mod parity;
mod real_model;
