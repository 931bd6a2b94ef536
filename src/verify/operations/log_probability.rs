//! Gradient checks of ops/log_probability.rs.

use crate::verify::gradient::Case;

/// The checks.
pub fn cases() -> Vec<Case<'static>> {
    Vec::new()
}
