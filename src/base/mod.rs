//! What every floor may use: errors, element types, shapes, the random number layout, memory in large pages, and what
//! the system says of memory, of disks and of terminals.
//! Nothing else of ours is imported here.

pub mod disk;
pub mod dtype;
pub mod error;
pub mod host_memory;
pub mod pages;
pub mod rng;
pub mod shape;
pub mod terminal;

pub use dtype::Dtype;
pub use error::{Error, Result};
pub use shape::Shape;
