//! The simulator.

mod faults;
mod instructions;
mod launches;
mod text;
