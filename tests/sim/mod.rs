//! The simulator.

mod faults;
