//! Smooth L1 distance of rows. Operation: src/ops/smooth_l1.rs.

use crate::measure::{Case, ROWS, WIDTH, check, numbers, random, zeros};
use latch::ops::smooth_l1::{backward, forward};

/// Forward and backward.
pub fn cases() -> Vec<Case> {
    let (x, target) = (random("x", ROWS, WIDTH), random("target", ROWS, WIDTH));
    let (mut statistics, mut dx) = (zeros(ROWS, 3), zeros(ROWS, WIDTH));
    forward(x.view(), target.view(), 1.0, statistics.view_mut()).expect("shapes fit");
    backward(x.view(), target.view(), 1.0, 0.5, dx.view_mut()).expect("shapes fit");
    let (xs, ts) = (numbers(&x), numbers(&target));
    check("smooth_l1 dx", &dx, |at| 0.5 * (xs[at] - ts[at]).clamp(-1.0, 1.0));
    check("smooth_l1 statistics", &statistics, |at| {
        let row = at / 3 * WIDTH..(at / 3 + 1) * WIDTH;
        let (x, t) = (&xs[row.clone()], &ts[row]);
        let mean = t.iter().sum::<f64>() / WIDTH as f64;
        match at % 3 {
            0 => x.iter().zip(t).map(|(x, t)| (x - t).abs()).map(term).sum(),
            1 => mean,
            _ => t.iter().map(|t| (t - mean) * (t - mean)).sum(),
        }
    });
    let (x2, target2) = (random("x", ROWS, WIDTH), random("target", ROWS, WIDTH));
    vec![
        Case::moving("smooth_l1 forward", 8, move || {
            forward(x2.view(), target2.view(), 1.0, statistics.view_mut()).expect("shapes fit");
        }),
        Case::moving("smooth_l1 backward", 12, move || {
            backward(x.view(), target.view(), 1.0, 0.5, dx.view_mut()).expect("shapes fit");
        }),
    ]
}

/// The term of a distance, beta = 1.
fn term(size: f64) -> f64 {
    if size < 1.0 { 0.5 * size * size } else { size - 0.5 }
}
