//! One gradient check: probe entries, difference quotients, verdict.
//!
//! The error of an entry is `|g - d| / max(|g|, |d|, 1e-3 * max|g| of its tensor)`, with `g` the gradient under
//! test and `d` a central difference of the f64 loss at steps `h` and `h/2`, combined by Richardson
//! extrapolation (`(4 d(h/2) - d(h)) / 3`, error O(h^4)). The f32 gradient is compared with the f64 gradient at
//! the same entries.

use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};

/// Largest error of an f64 gradient against differences.
pub const TOLERANCE_F64: f64 = 1e-6;
/// Largest error of an f32 gradient against the f64 gradient.
pub const TOLERANCE_F32: f64 = 2e-3;
/// Random entries probed per tensor (all entries of smaller tensors).
pub const RANDOM_PROBES: usize = 64;
/// Entries of largest gradient probed per tensor.
pub const LARGEST_PROBES: usize = 8;

/// One named tensor that the loss is differentiated by.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Name for the table.
    pub name: String,
    /// Values, row-major.
    pub values: Vec<f64>,
}

/// A scalar function of some variables, and the gradient under test.
pub struct Case<'a> {
    /// Name for the table.
    pub name: String,
    /// The point of evaluation.
    pub variables: Vec<Variable>,
    /// The loss at the given values (one vector a variable), computed in f64.
    #[allow(clippy::type_complexity)]
    pub loss: Box<dyn Fn(&[Vec<f64>]) -> Result<f64> + 'a>,
    /// The gradient by the code under test, computed in the given dtype (f32 or f64), one vector a variable.
    #[allow(clippy::type_complexity)]
    pub gradient: Box<dyn Fn(&[Vec<f64>], Dtype) -> Result<Vec<Vec<f64>>> + 'a>,
}

/// The outcome for one variable.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `case / variable`.
    pub name: String,
    /// Entries probed.
    pub probed: usize,
    /// Worst error of f64 against differences.
    pub worst_f64: f64,
    /// Worst error of f32 against f64.
    pub worst_f32: f64,
    /// Where the worst f64 error is: entry, gradient, difference.
    pub witness: (usize, f64, f64),
    /// Both errors are within tolerance.
    pub passed: bool,
}

/// Random numbers of checks: standard normal values, reproducible from a name.
pub fn normals(name: &str, count: usize) -> Vec<f64> {
    let mut draws = stream(name).draws(0, 0);
    (0..count).map(|_| draws.normal()).collect()
}

fn stream(name: &str) -> StreamKey {
    // FNV-1a: any fixed map from names to seeds would do.
    let seed = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    StreamKey::new(seed, 0, 0, 0, Purpose::Probe)
}

/// Checks every variable of `case`, then one random direction over all of them. A planted fault (see
/// [`plant`]) is applied to the gradients before they are compared.
pub fn check(case: &Case, fault: Option<&str>) -> Result<Vec<Outcome>> {
    let point: Vec<Vec<f64>> = case.variables.iter().map(|v| v.values.clone()).collect();
    let mut g64 = (case.gradient)(&point, Dtype::F64)?;
    let mut g32 = (case.gradient)(&point, Dtype::F32)?;
    if fault.is_some_and(|operation| case.name.split([' ', '/']).next() == Some(operation)) {
        plant(&mut g64);
        plant(&mut g32);
    }
    let mut outcomes = Vec::new();
    for (index, variable) in case.variables.iter().enumerate() {
        let entries = probes(&variable.name, &g64[index]);
        let largest = g64[index].iter().fold(0.0_f64, |m, g| m.max(g.abs()));
        let mut outcome = start(format!("{} / {}", case.name, variable.name), entries.len());
        for &entry in &entries {
            let difference = richardson(step_for(variable.values[entry]), |h| {
                let mut moved = point.clone();
                moved[index][entry] += h;
                (case.loss)(&moved)
            })?;
            record(&mut outcome, entry, g64[index][entry], difference, g32[index][entry], largest);
        }
        outcomes.push(finish(outcome));
    }
    outcomes.push(check_direction(case, &point, &g64, &g32)?);
    Ok(outcomes)
}

/// The check of one random direction over all variables together.
fn check_direction(case: &Case, point: &[Vec<f64>], g64: &[Vec<f64>], g32: &[Vec<f64>]) -> Result<Outcome> {
    let direction: Vec<Vec<f64>> = case
        .variables
        .iter()
        .map(|v| normals(&format!("{} {} direction", case.name, v.name), v.values.len()))
        .collect();
    let dot = |g: &[Vec<f64>]| -> f64 {
        g.iter().zip(&direction).flat_map(|(g, d)| g.iter().zip(d)).map(|(g, d)| g * d).sum()
    };
    let size = direction.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    let difference = richardson(1e-2 / size.sqrt(), |h| {
        let moved: Vec<Vec<f64>> = point
            .iter()
            .zip(&direction)
            .map(|(p, d)| p.iter().zip(d).map(|(p, d)| p + h * d).collect())
            .collect();
        (case.loss)(&moved)
    })?;
    let norm = g64.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
    let mut outcome = start(format!("{} / random direction", case.name), 1);
    // The slope along a random direction may cancel; the gradient's norm is its natural scale.
    record(&mut outcome, 0, dot(g64), difference, dot(g32), norm * 100.0);
    Ok(finish(outcome))
}

fn start(name: String, probed: usize) -> Outcome {
    Outcome { name, probed, worst_f64: 0.0, worst_f32: 0.0, witness: (0, 0.0, 0.0), passed: false }
}

fn record(outcome: &mut Outcome, entry: usize, g64: f64, difference: f64, g32: f64, largest: f64) {
    let error = |g: f64, d: f64| {
        let scale = g.abs().max(d.abs()).max(1e-3 * largest);
        let error = if scale == 0.0 { 0.0 } else { (g - d).abs() / scale };
        if error.is_nan() { f64::INFINITY } else { error }
    };
    let e64 = error(g64, difference);
    if e64 >= outcome.worst_f64 {
        outcome.worst_f64 = e64;
        outcome.witness = (entry, g64, difference);
    }
    outcome.worst_f32 = outcome.worst_f32.max(error(g32, g64));
}

fn finish(mut outcome: Outcome) -> Outcome {
    outcome.passed = outcome.worst_f64 <= TOLERANCE_F64 && outcome.worst_f32 <= TOLERANCE_F32;
    outcome
}

fn step_for(value: f64) -> f64 {
    1e-3 * value.abs().max(1.0)
}

/// Derivative at 0 of `f` from central differences at two steps, extrapolated.
pub fn richardson(h: f64, mut f: impl FnMut(f64) -> Result<f64>) -> Result<f64> {
    let wide = (f(h)? - f(-h)?) / (2.0 * h);
    let narrow = (f(h / 2.0)? - f(-h / 2.0)?) / h;
    Ok((4.0 * narrow - wide) / 3.0)
}

/// Which entries of a gradient are probed: random ones and the largest.
pub fn probes(name: &str, gradient: &[f64]) -> Vec<usize> {
    if gradient.len() <= RANDOM_PROBES + LARGEST_PROBES {
        return (0..gradient.len()).collect();
    }
    let mut order: Vec<usize> = (0..gradient.len()).collect();
    order.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
    let mut chosen: Vec<usize> = order[..LARGEST_PROBES].to_vec();
    let mut draws = stream(name).draws(1, 0);
    while chosen.len() < RANDOM_PROBES + LARGEST_PROBES {
        let entry = draws.below(gradient.len());
        if !chosen.contains(&entry) {
            chosen.push(entry);
        }
    }
    chosen
}

/// A planted fault: the largest entry of the last variable's gradient is off by a hundredth of a percent.
fn plant(gradient: &mut [Vec<f64>]) {
    if let Some(entry) =
        gradient.last_mut().and_then(|g| g.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())))
    {
        *entry *= 1.0001;
    }
}
