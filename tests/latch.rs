//! The one integration test binary.

mod golden;
mod layering;
mod parity;
mod philox;
mod sequences;
mod verify_grad;
