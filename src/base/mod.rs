//! Small value types that every floor may use: errors, element types, shapes, and the random number layout.
//! Nothing else of ours is imported here.

pub mod dtype;
pub mod error;
pub mod pages;
pub mod rng;
pub mod shape;

pub use dtype::Dtype;
pub use error::{Error, Result};
pub use shape::Shape;
