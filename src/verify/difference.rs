//! Slopes by central differences, with the care that makes 1e-6 a fair demand: steps in proportion to the
//! value, Richardson extrapolation, an estimate of the error, and points at a kink recognised.
//!
//! With `D(h) = (f(h) - f(-h)) / 2h = f' + a h^2 + b h^4 + ...` two steps give `(4 D(h/2) - D(h)) / 3 = f' + O(h^4)`
//! (Richardson). Their distance `|D(h/2) - D(h)| = 3/4 |a| h^2 + ...` tells how far the expansion is from its
//! limit: in units of the slope it is squared by the extrapolation, which is the first estimate of the error.
//! Where that, or the gradient under test, asks for more, further steps are tried and the value is taken where
//! neighbouring extrapolations agree best (Ridders, "Accurate computation of F'(x) and F'(x) F''(x)", 1982); the
//! choice never looks at the gradient.

use crate::base::Result;

/// Factors of the first step that are tried when it is in doubt.
const LADDER: [f64; 7] = [8.0, 4.0, 2.0, 1.0, 0.5, 0.125, 0.03125];
/// One-sided slopes that differ by more than this part of the slope are looked at closely even where the central
/// difference agrees with the gradient: at a kink both may be the mean of two slopes.
const SUSPICIOUS_JUMP: f64 = 1e-2;

/// A slope, and what is known about its error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// The slope.
    pub value: f64,
    /// Estimate of its absolute error.
    pub uncertainty: f64,
}

/// What the differences around a point say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Finding {
    /// The function is smooth here.
    Smooth(Slope),
    /// The slopes left and right of the point differ however small the step: there is no derivative.
    Kink {
        /// Slope on the left.
        left: f64,
        /// Slope on the right.
        right: f64,
    },
}

/// What is measured, and when it is good enough.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// First step.
    pub step: f64,
    /// `f(0)`.
    pub centre: f64,
    /// The slope that the gradient under test claims; only decides whether more effort is spent.
    pub claimed: f64,
    /// Smallest size that errors are measured in.
    pub floor: f64,
    /// Error, in units of the slope or the floor, that matters.
    pub tolerance: f64,
}

/// Central and one-sided slopes from `f(h), f(-h), f(h/2), f(-h/2)`.
#[derive(Clone, Copy, Debug)]
struct Stencil {
    /// D(h).
    wide: f64,
    /// D(h/2).
    narrow: f64,
    /// One-sided slopes of second order.
    left: f64,
    right: f64,
}

impl Stencil {
    fn at(h: f64, centre: f64, f: &mut impl FnMut(f64) -> Result<f64>) -> Result<Stencil> {
        let (ahead, behind, near_ahead, near_behind) = (f(h)?, f(-h)?, f(h / 2.0)?, f(-h / 2.0)?);
        Ok(Stencil {
            wide: (ahead - behind) / (2.0 * h),
            narrow: (near_ahead - near_behind) / h,
            left: (3.0 * centre - 4.0 * near_behind + behind) / h,
            right: (4.0 * near_ahead - ahead - 3.0 * centre) / h,
        })
    }

    fn extrapolated(&self) -> f64 {
        (4.0 * self.narrow - self.wide) / 3.0
    }

    /// Distance of the one-sided slopes: O(h^3) where the function is smooth, constant at a kink, and growing
    /// like 1/h where it is rounding.
    fn jump(&self) -> f64 {
        (self.right - self.left).abs()
    }
}

/// The slope of `f` at 0.
///
/// # Errors
/// Those of `f`.
pub fn slope(demand: Demand, mut f: impl FnMut(f64) -> Result<f64>) -> Result<Finding> {
    let first = Stencil::at(demand.step, demand.centre, &mut f)?;
    let value = first.extrapolated();
    let scale = value.abs().max(demand.claimed.abs()).max(demand.floor);
    let expansion = (first.narrow - first.wide).abs();
    let uncertainty = if scale == 0.0 { expansion } else { expansion * expansion / scale };
    let in_doubt = (value - demand.claimed).abs() > 0.5 * demand.tolerance * scale
        || uncertainty > 0.5 * demand.tolerance * scale
        || first.jump() > SUSPICIOUS_JUMP * scale
        || !value.is_finite();
    if !in_doubt {
        return Ok(Finding::Smooth(Slope { value, uncertainty }));
    }
    let close: Result<Vec<Stencil>> = [1.0 / 16.0, 1.0 / 256.0]
        .iter()
        .map(|part| Stencil::at(demand.step * part, demand.centre, &mut f))
        .collect();
    let close = close?;
    let jumps = [first.jump(), close[0].jump(), close[1].jump()];
    let lasting = |before: f64, after: f64| after > 0.5 * before && after < 2.0 * before;
    if jumps[2] > demand.tolerance * scale && lasting(jumps[0], jumps[1]) && lasting(jumps[1], jumps[2]) {
        return Ok(Finding::Kink { left: close[1].left, right: close[1].right });
    }
    refine(demand, &mut f).map(Finding::Smooth)
}

/// The extrapolation where neighbours on the ladder of steps agree best.
fn refine(demand: Demand, f: &mut impl FnMut(f64) -> Result<f64>) -> Result<Slope> {
    let values: Result<Vec<f64>> = LADDER
        .iter()
        .map(|part| Stencil::at(demand.step * part, demand.centre, f).map(|stencil| stencil.extrapolated()))
        .collect();
    let values = values?;
    let mut best = Slope { value: f64::NAN, uncertainty: f64::INFINITY };
    for pair in values.windows(2) {
        let distance = (pair[0] - pair[1]).abs();
        if distance < best.uncertainty {
            best = Slope { value: pair[1], uncertainty: distance };
        }
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(claimed: f64, centre: f64) -> Demand {
        Demand { step: 2e-3, centre, claimed, floor: 1e-3, tolerance: 1e-6 }
    }

    fn smooth(finding: Finding) -> Slope {
        match finding {
            Finding::Smooth(slope) => slope,
            Finding::Kink { left, right } => panic!("a kink of {left} and {right}"),
        }
    }

    #[test]
    fn smooth_functions_are_exact_to_ten_digits() {
        let found = smooth(slope(demand(1.0, 0.0), |t| Ok(t.sin())).unwrap());
        assert!((found.value - 1.0).abs() < 1e-10, "{found:?}");
        let found = smooth(slope(demand(0.7_f64.exp(), 0.7_f64.exp()), |t| Ok((0.7 + t).exp())).unwrap());
        assert!((found.value - 0.7_f64.exp()).abs() < 1e-10 && found.uncertainty < 1e-9, "{found:?}");
    }

    #[test]
    fn a_step_that_is_far_too_wide_is_refined() {
        // Length scale 1e-3: the first step spans two of them.
        let f = |t: f64| Ok((1e3 * t).tanh() * 1e-3);
        let found = smooth(slope(demand(1.0, 0.0), f).unwrap());
        assert!((found.value - 1.0).abs() < 1e-4, "{found:?}");
        assert!(found.uncertainty > (found.value - 1.0).abs() / 10.0, "{found:?}");
    }

    #[test]
    fn a_step_that_drowns_in_rounding_is_refined() {
        // A large constant makes differences of small steps noisy.
        let f = |t: f64| Ok(1e6 + (3.0 + t) * (3.0 + t));
        let coarse = Demand { step: 1e-6, centre: 1e6 + 9.0, claimed: 6.0, floor: 1e-3, tolerance: 1e-6 };
        let found = smooth(slope(coarse, f).unwrap());
        assert!((found.value - 6.0).abs() < 1e-3, "{found:?}");
    }

    #[test]
    fn a_kink_is_found_even_where_the_gradient_agrees_with_the_mean() {
        for claimed in [0.0, 1.0, -1.0, 0.3] {
            let found = slope(demand(claimed, 0.0), |t| Ok(t.abs())).unwrap();
            let Finding::Kink { left, right } = found else { panic!("{found:?}") };
            assert!((left + 1.0).abs() < 1e-6 && (right - 1.0).abs() < 1e-6);
        }
        let bent = |t: f64| Ok(t.sin() + 0.05 * t.max(0.0));
        assert!(matches!(slope(demand(1.025, 0.0), bent).unwrap(), Finding::Kink { .. }));
    }

    #[test]
    fn a_kink_beside_the_point_does_not_spoil_it() {
        // Inside the first step, outside the finer ones.
        let f = |t: f64| Ok((t - 1.1e-3).abs());
        assert!((smooth(slope(demand(-1.0, 1.1e-3), f).unwrap()).value + 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_value_does_not_follow_the_claim() {
        for claimed in [1.0, 1.001, 0.9, 55.0] {
            let found = smooth(slope(demand(claimed, 0.0), |t| Ok(t.sin())).unwrap());
            assert!((found.value - 1.0).abs() < 1e-9, "{claimed}: {found:?}");
        }
    }
}
