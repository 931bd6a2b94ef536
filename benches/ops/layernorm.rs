//! LayerNorm. Operation: src/ops/layernorm.rs.

use crate::measure::{Case, ROWS, WIDTH, check, numbers, random, vector, zeros};
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::layernorm::{Gradients, Saved, backward, forward};

const EPS: f64 = 1e-5;

/// Forward and backward.
pub fn cases() -> Vec<Case> {
    let saved = || Saved::reserve(&Device::cpu(), ROWS, WIDTH, Dtype::F32).expect("memory");
    let (x, w, b, dy) =
        (random("x", ROWS, WIDTH), vector("w", WIDTH), vector("b", WIDTH), random("dy", ROWS, WIDTH));
    let (mut y, mut kept) = (zeros(ROWS, WIDTH), saved());
    forward(x.view(), (&w, &b), EPS, y.view_mut(), &mut kept, 0..ROWS).expect("shapes fit");
    let (xs, ws, bs, gs) = (numbers(&x), numbers(&w), numbers(&b), numbers(&dy));
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / WIDTH as f64;
    // Each row's mean, inverse deviation, and the normalised values.
    let of_rows: Vec<(f64, f64)> = xs
        .chunks(WIDTH)
        .map(|x| {
            let centre = mean(&mut x.iter().copied());
            (centre, (mean(&mut x.iter().map(|x| (x - centre).powi(2))) + EPS).sqrt().recip())
        })
        .collect();
    let normal = |at: usize| (xs[at] - of_rows[at / WIDTH].0) * of_rows[at / WIDTH].1;
    check("layernorm", &y, |at| ws[at % WIDTH] * normal(at) + bs[at % WIDTH]);

    let (mut dx, mut dw, mut db) = (zeros(ROWS, WIDTH), vector("dw", WIDTH), vector("db", WIDTH));
    let gradients = Gradients { dw: &mut dw, db: &mut db };
    backward(dy.view(), x.view(), &w, &kept, 0..ROWS, dx.view_mut(), gradients).expect("shapes fit");
    let inner = |at: usize| ws[at % WIDTH] * gs[at];
    let means: Vec<(f64, f64)> = (0..ROWS)
        .map(|r| {
            let row = || r * WIDTH..(r + 1) * WIDTH;
            (mean(&mut row().map(inner)), mean(&mut row().map(|at| inner(at) * normal(at))))
        })
        .collect();
    check("layernorm dx", &dx, |at| {
        let (plain, along) = means[at / WIDTH];
        of_rows[at / WIDTH].1 * (inner(at) - plain - normal(at) * along)
    });

    let (x2, w2, b2, mut kept2) = (random("x", ROWS, WIDTH), vector("w", WIDTH), vector("b", WIDTH), saved());
    vec![
        Case::moving("layernorm forward", 8, move || {
            forward(x2.view(), (&w2, &b2), EPS, y.view_mut(), &mut kept2, 0..ROWS).expect("shapes fit");
        }),
        Case::moving("layernorm backward", 12, move || {
            let gradients = Gradients { dw: &mut dw, db: &mut db };
            backward(dy.view(), x.view(), &w, &kept, 0..ROWS, dx.view_mut(), gradients).expect("shapes fit");
        }),
    ]
}
