//! Density of noisy embeddings. Operation: src/ops/gaussian_density.rs.

use crate::measure::{Case, ROWS, WIDTH, check, numbers, random, zeros};
use latch::ops::gaussian_density::{Normal, backward, forward};

/// Forward and backward.
pub fn cases() -> Vec<Case> {
    let normal = Normal { deviation: 0.5, mean: false };
    let (x, m, d) = (random("x", ROWS, WIDTH), random("means", ROWS, WIDTH), random("d", ROWS, 1));
    let (mut score, mut dm) = (zeros(ROWS, 1), zeros(ROWS, WIDTH));
    forward(x.view(), m.view(), &normal, score.view_mut()).expect("shapes fit");
    backward(x.view(), m.view(), &normal, d.view(), dm.view_mut()).expect("shapes fit");
    let (xs, ms, ds) = (numbers(&x), numbers(&m), numbers(&d));
    check("gaussian_density dm", &dm, |at| 4.0 * ds[at / WIDTH] * (xs[at] - ms[at]));
    check("gaussian_density score", &score, |row| {
        let of = row * WIDTH..(row + 1) * WIDTH;
        -2.0 * xs[of.clone()].iter().zip(&ms[of]).map(|(x, m)| (x - m) * (x - m)).sum::<f64>()
    });
    let (x2, m2) = (random("x", ROWS, WIDTH), random("means", ROWS, WIDTH));
    vec![
        Case::moving("gaussian_density forward", 8, move || {
            forward(x2.view(), m2.view(), &normal, score.view_mut()).expect("shapes fit");
        }),
        Case::moving("gaussian_density backward", 12, move || {
            backward(x.view(), m.view(), &normal, d.view(), dm.view_mut()).expect("shapes fit");
        }),
    ]
}
