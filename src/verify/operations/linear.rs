//! Gradient checks of ops/linear.rs.

use crate::verify::gradient::Case;

/// The checks.
pub fn cases() -> Vec<Case<'static>> {
    Vec::new()
}
