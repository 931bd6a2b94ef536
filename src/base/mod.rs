//! What every floor may use: errors, element types, shapes, the random number layout, and memory in large pages.
//! Nothing else of ours is imported here.

pub mod dtype;
pub mod error;
pub mod pages;
pub mod rng;
pub mod shape;

pub use dtype::Dtype;
pub use error::{Error, Result};
pub use shape::Shape;
