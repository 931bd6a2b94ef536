//! The simulator.

mod instructions;
mod launches;
mod text;
