//! Gradient checks of ops/latent.rs.

use crate::verify::gradient::Case;

/// The checks.
pub fn cases() -> Vec<Case<'static>> {
    Vec::new()
}
