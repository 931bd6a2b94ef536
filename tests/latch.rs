//! The one integration test binary.

mod parity;
mod philox;
