//! A GPU in software: reads PTX, runs its warps, checks every access.
//!
//! It sits where the CUDA driver sits and runs the very text that ships. It knows nothing of tensors or models and
//! shares no arithmetic with the CPU's kernels, so that one is the other's oracle.
//!
//! ```text
//! parse/    text -> tokens -> statements            decode/   statements -> instructions of a warp
//! program   entries and variables of a file         registers 32 lanes of every register
//! machine   memory and launches                     block     warps and barriers of one block
//! access    what an observer sees                   warp      lanes, divergence, one instruction after the other
//! check     the observer that finds faults          traffic, occupancy, sample   what a kernel costs a GPU
//! ```

pub mod access;
mod approximate;
mod arithmetic;
mod atomics;
mod block;
pub mod check;
mod convert;
mod copies;
pub mod counters;
mod decode;
mod descriptor;
pub mod fault;
mod float;
mod half;
mod instruction;
mod launch;
mod load;
pub mod machine;
mod matrix;
mod meeting;
mod memory;
pub mod occupancy;
mod parse;
pub mod program;
mod reach;
mod region;
mod registers;
mod rounding;
pub mod sample;
mod store;

pub mod traffic;
mod transfer;
mod warp;
mod warpgroup;
mod windows;

pub use counters::Counters;
pub use fault::{Fault, Kind, Result};
pub use machine::{Launch, Machine, Options};
pub use program::{Entry, Parameter, Program, Type};
