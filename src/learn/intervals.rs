//! How sure a measured number is: Student's interval of a mean, Wilson's of a proportion, the paired bootstrap and
//! McNemar's exact test. Nothing is drawn but the bootstrap's resamples, which Philox keys.

use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Error, Result};

/// An estimate with the ends of its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The estimate.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Two-sided 95 % point of the normal distribution.
const NORMAL: f64 = 1.959_963_984_540_054;

/// Mean with Student's 95 % interval.
///
/// # Errors
/// Fewer than two values, or one that is not finite.
pub fn mean(values: &[f64]) -> Result<Interval> {
    if values.len() < 2 || values.iter().any(|value| !value.is_finite()) {
        return Err(Error::input(
            "interval of a mean",
            format!("{} values, all of which must be finite", values.len()),
            "give at least two, for instance two seeds",
        ));
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean) * (value - mean)).sum::<f64>() / (count - 1.0);
    let half = student_quantile(0.975, count - 1.0) * (variance / count).sqrt();
    Ok(Interval { estimate: mean, low: mean - half, high: mean + half })
}

/// Proportion `right / total` with Wilson's 95 % interval (1927): right at 0 and 1 too.
///
/// # Errors
/// No trials, or more successes than trials.
pub fn proportion(right: usize, total: usize) -> Result<Interval> {
    if total == 0 || right > total {
        return Err(Error::input(
            "interval of a proportion",
            format!("{right} of {total}"),
            "give at least one trial",
        ));
    }
    let (n, p) = (total as f64, right as f64 / total as f64);
    let scale = 1.0 + NORMAL * NORMAL / n;
    let centre = (p + NORMAL * NORMAL / (2.0 * n)) / scale;
    let half = NORMAL / scale * (p * (1.0 - p) / n + NORMAL * NORMAL / (4.0 * n * n)).sqrt();
    // At the ends rounding may leave the estimate outside by one unit of its last place.
    Ok(Interval { estimate: p, low: (centre - half).clamp(0.0, p), high: (centre + half).clamp(p, 1.0) })
}

/// A paired comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Mean of `after - before` with the percentile interval of its resampled means.
    pub difference: Interval,
    /// Share of resamples whose mean difference is not above 0.
    pub not_better: f64,
}

/// Paired bootstrap over items: `resamples` resamples of the items, with replacement, as pairs. The same seed and
/// the same data give the same bits.
///
/// # Errors
/// Unequal or zero numbers of items, more than 2^32 - 1 of them, or fewer than 40 resamples.
pub fn paired_bootstrap(before: &[f64], after: &[f64], resamples: u32, seed: u64) -> Result<Paired> {
    let count = before.len();
    if count == 0 || count != after.len() || u32::try_from(count).is_err() || resamples < 40 {
        return Err(Error::input(
            "paired bootstrap",
            format!("{count} and {} items, {resamples} resamples", after.len()),
            "give equal numbers of items, and at least 40 resamples for ends of 2.5 %",
        ));
    }
    let differences: Vec<f64> = before.iter().zip(after).map(|(before, after)| after - before).collect();
    let mut means: Vec<f64> = (0..resamples)
        .map(|resample| {
            let mut draws = StreamKey::new(seed, resample, 0, 0, Purpose::Eval).draws(BOOTSTRAP_SITE, 0);
            (0..count).map(|_| differences[draws.below(count)]).sum::<f64>() / count as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |quantile: f64| {
        let place = quantile * (means.len() - 1) as f64;
        let (below, part) = (place.floor() as usize, place.fract());
        means[below] + part * (means[(below + 1).min(means.len() - 1)] - means[below])
    };
    let estimate = differences.iter().sum::<f64>() / count as f64;
    let not_better = means.iter().filter(|&&mean| mean <= 0.0).count() as f64 / means.len() as f64;
    Ok(Paired { difference: Interval { estimate, low: at(0.025), high: at(0.975) }, not_better })
}

/// Keeps the resamples apart from other draws of evaluation; ASCII "boot".
const BOOTSTRAP_SITE: u32 = 0x626f_6f74;

/// McNemar's exact test: the two-sided probability, if neither system were better, of a split of the discordant
/// items at least as uneven as `(only_before, only_after)`. 1 without discordant items.
pub fn mcnemar(only_before: usize, only_after: usize) -> f64 {
    let total = only_before + only_after;
    let log_half = -(total as f64) * std::f64::consts::LN_2;
    let mut log_ways = 0.0;
    let mut tail = 0.0;
    for i in 0..=only_before.min(only_after) {
        if i > 0 {
            log_ways += ((total - i + 1) as f64 / i as f64).ln();
        }
        tail += (log_ways + log_half).exp();
    }
    (2.0 * tail).min(1.0)
}

/// Counts of `(only before right, only after right)`: what [`mcnemar`] takes.
///
/// # Errors
/// Unequal numbers of items.
pub fn discordant(before: &[bool], after: &[bool]) -> Result<(usize, usize)> {
    if before.len() != after.len() {
        return Err(Error::shape("paired answers", after.len(), before.len()));
    }
    let count =
        |first: &[bool], second: &[bool]| first.iter().zip(second).filter(|(a, b)| **a && !**b).count();
    Ok((count(before, after), count(after, before)))
}

/// The value below which a t-distributed number of `freedom` degrees lies with probability `p` in (0.5, 1).
pub fn student_quantile(p: f64, freedom: f64) -> f64 {
    // P(T <= t) = 1 - I_x(freedom/2, 1/2)/2 with x = freedom / (freedom + t^2).
    let below = |t: f64| 1.0 - 0.5 * incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t));
    let (mut low, mut high) = (0.0, 1.0);
    while below(high) < p && high < 1e9 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if below(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    // The fraction converges fast on this side alone.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = (a * x.ln() + b * (1.0 - x).ln() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b)).exp() / a;
    // Evaluated from its end: 1/(1 + d1/(1 + d2/(1 + ...))).
    let mut fraction = 1.0;
    for m in (1..=400).rev() {
        let half = (m / 2) as f64;
        let d = match m % 2 {
            0 => half * (b - half) * x / ((a + 2.0 * half - 1.0) * (a + 2.0 * half)),
            _ => -(a + half) * (a + b + half) * x / ((a + 2.0 * half) * (a + 2.0 * half + 1.0)),
        };
        fraction = 1.0 + d / fraction;
    }
    front / fraction
}

/// ln Gamma(x) for x > 0: Stirling's series after shifting x above 15.
fn ln_gamma(x: f64) -> f64 {
    let (mut x, mut shift) = (x, 0.0);
    while x < 15.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series =
        (1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse * (1.0 / 1260.0 - inverse * (1.0 / 1680.0)))) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series
}
