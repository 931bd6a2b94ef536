//! The simulator.

mod faults;
mod instructions;
mod launches;
mod mutations;
mod text;
