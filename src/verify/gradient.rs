//! One gradient check: probe entries, difference quotients, verdict.
//!
//! The error of an entry is `|g - d| / max(|g|, |d|, 1e-3 * max|g| of its tensor)`, with `g` the gradient under
//! test and `d` the slope of the f64 loss by central differences (difference.rs). A point at a kink has no
//! slope: it is moved along the probed direction until it has one, and the gradient is computed there.
//! The f32 gradient is compared with the f64 gradient at the same entries. All points are numbers that f32 holds
//! exactly, so that both are gradients of the same function at the same point.

use super::difference::{self, Demand, Finding, Slope};
use super::fault::Fault;
use crate::base::rng::{Draws, Purpose, StreamKey};
use crate::base::{Dtype, Result};

/// Largest error of an f64 gradient against differences.
pub const TOLERANCE_F64: f64 = 1e-6;
/// Errors of an f64 gradient are measured against no less than this part of the tensor's largest entry.
pub const FLOOR_F64: f64 = 1e-3;
/// Largest error of an f32 gradient against the f64 gradient: a tenth of the one percent that a lost term or a
/// product in a shorter type would make. Right gradients of the small models err by about 1e-4 at most.
pub const TOLERANCE_F32: f64 = 1e-3;
/// The floor of f32. An entry is a sum of terms of both signs; f32 leaves it an absolute error of about 1e-7
/// times the sum of their sizes and the conditioning of what came before, whatever the entry's own size is. With
/// this floor small entries may be off by 1e-5 of the tensor's largest, some 150 units of its last place. Whether
/// they are right is what the f64 check says, with a floor ten times lower.
pub const FLOOR_F32: f64 = 1e-2;
/// Random entries probed per tensor (all entries of smaller tensors).
pub const RANDOM_PROBES: usize = 64;
/// Entries of largest gradient probed per tensor.
pub const LARGEST_PROBES: usize = 8;
/// First step, in units of the value or of the root mean square of its tensor, whichever is larger: where the
/// truncation of an extrapolated difference, O(step^4), meets the rounding of the loss, O(1e-16/step).
const STEP: f64 = 2e-3;
/// How often a point at a kink is moved before the check gives up and fails.
const MOVES: usize = 8;

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

/// A function with a state: what is probed moves one entry at a time, so that large models are not rebuilt.
pub trait Subject {
    /// Name for the table.
    fn name(&self) -> &str;
    /// The variables with the values they started with.
    fn variables(&self) -> &[Variable];
    /// Replaces the values of `variable` from entry `at` on.
    fn set(&mut self, variable: usize, at: usize, values: &[f64]) -> Result<()>;
    /// The loss at the present values, in f64.
    fn loss(&mut self) -> Result<f64>;
    /// The gradient under test at the present values, computed in the given dtype, one vector a variable.
    fn gradient(&mut self, dtype: Dtype) -> Result<Vec<Vec<f64>>>;
}

/// A [`Case`] at a point that moves.
pub struct CaseSubject<'c, 'a> {
    case: &'c Case<'a>,
    variables: Vec<Variable>,
    point: Vec<Vec<f64>>,
}

impl<'c, 'a> CaseSubject<'c, 'a> {
    /// The case at its point, rounded to f32.
    pub fn new(case: &'c Case<'a>) -> CaseSubject<'c, 'a> {
        let mut variables = case.variables.clone();
        for value in variables.iter_mut().flat_map(|variable| &mut variable.values) {
            *value = f64::from(*value as f32);
        }
        CaseSubject { case, point: variables.iter().map(|v| v.values.clone()).collect(), variables }
    }
}

impl Subject for CaseSubject<'_, '_> {
    fn name(&self) -> &str {
        &self.case.name
    }

    fn variables(&self) -> &[Variable] {
        &self.variables
    }

    fn set(&mut self, variable: usize, at: usize, values: &[f64]) -> Result<()> {
        self.point[variable][at..at + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn loss(&mut self) -> Result<f64> {
        (self.case.loss)(&self.point)
    }

    fn gradient(&mut self, dtype: Dtype) -> Result<Vec<Vec<f64>>> {
        (self.case.gradient)(&self.point, dtype)
    }
}

/// How much is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Random entries per tensor.
    pub random: usize,
    /// Entries of largest gradient per tensor.
    pub largest: usize,
    /// Chooses the random entries and the random direction.
    pub seed: u64,
}

impl Default for Effort {
    fn default() -> Effort {
        Effort { random: RANDOM_PROBES, largest: LARGEST_PROBES, seed: 0 }
    }
}

/// The outcome for one variable.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// `case / variable`.
    pub name: String,
    /// Entries probed.
    pub probed: usize,
    /// Points that stood at a kink and were moved.
    pub moved: usize,
    /// Worst error of f64 against differences.
    pub worst_f64: f64,
    /// Worst error of f32 against f64.
    pub worst_f32: f64,
    /// Where the worst f64 error is: entry, gradient, difference.
    pub witness: (usize, f64, f64),
    /// Estimated error of that difference, in the same units as `worst_f64`.
    pub uncertainty: f64,
    /// Where the worst f32 error is: entry, f32 gradient, f64 gradient.
    pub witness_f32: (usize, f64, f64),
    /// Both errors are within tolerance.
    pub passed: bool,
}

impl Outcome {
    /// The variable's name, without the case's.
    pub fn variable(&self) -> &str {
        self.name.split_once(" / ").map_or(self.name.as_str(), |(_, variable)| variable)
    }
}

/// Random numbers of checks: standard normal values that f32 holds exactly, reproducible from a name.
pub fn normals(name: &str, count: usize) -> Vec<f64> {
    let mut draws = stream(name, 0).draws(0, 0);
    (0..count).map(|_| f64::from(draws.normal() as f32)).collect()
}

pub(super) fn stream(name: &str, seed: u64) -> StreamKey {
    // FNV-1a: any fixed map from names to seeds would do.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    StreamKey::new(hash, seed as u32, (seed >> 32) as u32, 0, Purpose::Probe)
}

/// Checks every variable of `case` with the default effort, then one random direction over all of them.
///
/// # Errors
/// Those of the case's functions.
pub fn check(case: &Case, fault: Option<&Fault>) -> Result<Vec<Outcome>> {
    check_subject(&mut CaseSubject::new(case), Effort::default(), fault)
}

/// Checks every variable of `subject`, then one random direction over all of them. A planted fault is applied to
/// the gradients before they are compared.
///
/// # Errors
/// Those of the subject's functions.
pub fn check_subject(
    subject: &mut dyn Subject,
    effort: Effort,
    fault: Option<&Fault>,
) -> Result<Vec<Outcome>> {
    let mut check = Check { effort, fault, centre: subject.loss()?, subject };
    let gradient = check.gradients()?;
    let mut outcomes = Vec::new();
    for variable in 0..check.subject.variables().len() {
        outcomes.push(check.variable(variable, &gradient)?);
    }
    outcomes.push(check.direction(&gradient)?);
    Ok(outcomes)
}

/// The gradient under test in both dtypes.
struct Gradients {
    f64: Vec<Vec<f64>>,
    f32: Vec<Vec<f64>>,
}

/// What is probed.
enum Along<'a> {
    /// One entry, and its value.
    Entry(usize, usize, f64),
    /// Everything at once, in proportion to these.
    Everything(&'a [Vec<f64>]),
}

impl Along<'_> {
    /// The slope that a gradient claims.
    fn slope(&self, gradient: &[Vec<f64>]) -> f64 {
        match self {
            Along::Entry(variable, entry, _) => gradient[*variable][*entry],
            Along::Everything(direction) => {
                gradient.iter().zip(*direction).flat_map(|(g, d)| g.iter().zip(d)).map(|(g, d)| g * d).sum()
            }
        }
    }
}

/// A probe's result: both gradients and the difference at one (smooth) point.
struct Probe {
    g64: f64,
    g32: f64,
    slope: Slope,
    moved: bool,
}

struct Check<'s> {
    subject: &'s mut dyn Subject,
    effort: Effort,
    fault: Option<&'s Fault>,
    /// Loss at the starting point.
    centre: f64,
}

impl Check<'_> {
    fn gradients(&mut self) -> Result<Gradients> {
        let (mut f64, mut f32) = (self.subject.gradient(Dtype::F64)?, self.subject.gradient(Dtype::F32)?);
        if let Some(fault) = self.fault {
            for (variable, (g64, g32)) in self.subject.variables().iter().zip(f64.iter_mut().zip(&mut f32)) {
                if fault.concerns(self.subject.name(), &variable.name) {
                    fault.apply(g64, g32);
                }
            }
        }
        Ok(Gradients { f64, f32 })
    }

    fn variable(&mut self, index: usize, gradient: &Gradients) -> Result<Outcome> {
        let variable = &self.subject.variables()[index];
        let name = format!("{} / {}", self.subject.name(), variable.name);
        let (g64, scale) = (&gradient.f64[index], scale(&variable.values));
        let largest = g64.iter().fold(0.0_f64, |m, g| m.max(g.abs()));
        let entries = probes(&name, g64, self.effort);
        let mut outcome = start(name);
        for entry in entries {
            let value = self.subject.variables()[index].values[entry];
            let step = STEP * value.abs().max(scale);
            let probe =
                self.probe(&Along::Entry(index, entry, value), gradient, step, FLOOR_F64 * largest)?;
            record(&mut outcome, entry, &probe, largest);
        }
        Ok(finish(outcome))
    }

    /// The check of one random direction over all variables together.
    fn direction(&mut self, gradient: &Gradients) -> Result<Outcome> {
        let (mut direction, mut squares) = (Vec::new(), 0.0);
        for (variable, g64) in self.subject.variables().iter().zip(&gradient.f64) {
            let scale = scale(&variable.values);
            let name = format!("{} {} direction", self.subject.name(), variable.name);
            let mut draws = stream(&name, self.effort.seed).draws(0, 0);
            direction.push((0..g64.len()).map(|_| scale * draws.normal()).collect::<Vec<_>>());
            squares += g64.iter().map(|g| g * g * scale * scale).sum::<f64>();
        }
        let mut outcome = start(format!("{} / random direction", self.subject.name()));
        let count = direction.iter().map(Vec::len).sum::<usize>().max(1);
        // The slope along a random direction is normal with this deviation: it may cancel, and a tenth of the
        // deviation is the floor.
        let largest = squares.sqrt() * 0.1 / FLOOR_F64;
        let step = 5.0 * STEP / (count as f64).sqrt();
        let probe = self.probe(&Along::Everything(&direction), gradient, step, FLOOR_F64 * largest)?;
        record(&mut outcome, 0, &probe, largest);
        Ok(finish(outcome))
    }

    /// Measures the slope, moving the point away from kinks.
    fn probe(&mut self, along: &Along, gradient: &Gradients, step: f64, floor: f64) -> Result<Probe> {
        let (mut g64, mut g32) = (along.slope(&gradient.f64), along.slope(&gradient.f32));
        let (mut from, mut centre) = (0.0, self.centre);
        let mut draws: Option<Draws> = None;
        for attempt in 0..=MOVES {
            let demand = Demand { step, centre, claimed: g64, floor, tolerance: TOLERANCE_F64 };
            let finding = difference::slope(demand, |t| {
                self.place(along, from + t)?;
                self.subject.loss()
            });
            self.place(along, 0.0)?;
            let last = attempt == MOVES;
            match finding? {
                Finding::Smooth(slope) => return Ok(Probe { g64, g32, slope, moved: attempt > 0 }),
                Finding::Kink { .. } if last => break,
                Finding::Kink { .. } => {
                    // Each entry draws for itself, so that both sides of a kink are visited.
                    let site = match along {
                        Along::Entry(_, entry, _) => *entry as u32 + 1,
                        Along::Everything(_) => 0,
                    };
                    let draws =
                        draws.get_or_insert_with(|| stream("moved points", self.effort.seed).draws(2, site));
                    from = step * (attempt + 1) as f64 * (8.0 + 8.0 * draws.uniform());
                    if draws.uniform() < 0.5 {
                        from = -from;
                    }
                    self.place(along, from)?;
                    centre = self.subject.loss()?;
                    let there = self.gradients()?;
                    (g64, g32) = (along.slope(&there.f64), along.slope(&there.f32));
                }
            }
        }
        // Kinks all around: no slope was found, and that is a failure.
        Ok(Probe { g64, g32, slope: Slope { value: f64::NAN, uncertainty: f64::INFINITY }, moved: true })
    }

    /// Moves the subject to its starting point plus `t` along the probed direction.
    fn place(&mut self, along: &Along, t: f64) -> Result<()> {
        match along {
            Along::Entry(variable, entry, value) => self.subject.set(*variable, *entry, &[value + t]),
            Along::Everything(direction) => {
                for (variable, direction) in direction.iter().enumerate() {
                    let values = &self.subject.variables()[variable].values;
                    let moved: Vec<f64> = values.iter().zip(direction).map(|(v, d)| v + t * d).collect();
                    self.subject.set(variable, 0, &moved)?;
                }
                Ok(())
            }
        }
    }
}

/// Root mean square of a tensor's values: the size of a natural change; 1 where all are zero.
fn scale(values: &[f64]) -> f64 {
    let mean = values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64;
    if mean > 0.0 { mean.sqrt() } else { 1.0 }
}

fn start(name: String) -> Outcome {
    Outcome {
        name,
        probed: 0,
        moved: 0,
        worst_f64: 0.0,
        worst_f32: 0.0,
        witness: (0, 0.0, 0.0),
        uncertainty: 0.0,
        witness_f32: (0, 0.0, 0.0),
        passed: false,
    }
}

/// `|a - b|` in units of the larger, or of the floor; infinite where either is no number.
fn error(a: f64, b: f64, floor: f64) -> f64 {
    let scale = a.abs().max(b.abs()).max(floor);
    let error = if scale == 0.0 { 0.0 } else { (a - b).abs() / scale };
    if error.is_nan() { f64::INFINITY } else { error }
}

fn record(outcome: &mut Outcome, entry: usize, probe: &Probe, largest: f64) {
    let (g64, g32, difference) = (probe.g64, probe.g32, probe.slope.value);
    outcome.probed += 1;
    outcome.moved += usize::from(probe.moved);
    let e64 = error(g64, difference, FLOOR_F64 * largest);
    if e64 >= outcome.worst_f64 {
        outcome.worst_f64 = e64;
        outcome.witness = (entry, g64, difference);
        outcome.uncertainty = error(probe.slope.uncertainty, 0.0, g64.abs().max(FLOOR_F64 * largest));
    }
    let e32 = error(g32, g64, FLOOR_F32 * largest);
    if e32 >= outcome.worst_f32 {
        outcome.worst_f32 = e32;
        outcome.witness_f32 = (entry, g32, g64);
    }
}

fn finish(mut outcome: Outcome) -> Outcome {
    outcome.passed = outcome.worst_f64 <= TOLERANCE_F64 && outcome.worst_f32 <= TOLERANCE_F32;
    outcome
}

/// Which entries of a gradient are probed: random ones and the largest.
fn probes(name: &str, gradient: &[f64], effort: Effort) -> Vec<usize> {
    let wanted = effort.random + effort.largest;
    if gradient.len() <= wanted {
        return (0..gradient.len()).collect();
    }
    let mut order: Vec<usize> = (0..gradient.len()).collect();
    let by_size = |a: &usize, b: &usize| gradient[*b].abs().total_cmp(&gradient[*a].abs());
    if effort.largest > 0 {
        order.select_nth_unstable_by(effort.largest - 1, by_size);
    }
    let mut chosen = order[..effort.largest].to_vec();
    let mut draws = stream(name, effort.seed).draws(1, 0);
    while chosen.len() < wanted {
        let entry = draws.below(gradient.len());
        if !chosen.contains(&entry) {
            chosen.push(entry);
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
