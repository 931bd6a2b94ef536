//! Gradient checks of ops/masked_residual.rs.

use crate::verify::gradient::Case;

/// The checks.
pub fn cases() -> Vec<Case<'static>> {
    Vec::new()
}
