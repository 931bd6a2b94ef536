//! RMSNorm. Operation: src/ops/rmsnorm.rs.

use crate::measure::{Case, ROWS, WIDTH, check, numbers, random, vector, zeros};
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::rmsnorm::{Saved, backward, forward};

const EPS: f64 = 1e-6;

/// Forward and backward.
pub fn cases() -> Vec<Case> {
    let saved = || Saved::reserve(&Device::cpu(), ROWS, WIDTH, Dtype::F32).expect("memory");
    let (x, w, dy) = (random("x", ROWS, WIDTH), vector("w", WIDTH), random("dy", ROWS, WIDTH));
    let (mut y, mut kept) = (zeros(ROWS, WIDTH), saved());
    forward(x.view(), &w, EPS, y.view_mut(), &mut kept, 0..ROWS).expect("shapes fit");
    let (xs, ws, gs) = (numbers(&x), numbers(&w), numbers(&dy));
    let row = |at: usize| at / WIDTH * WIDTH..(at / WIDTH + 1) * WIDTH;
    let inverse: Vec<f64> = xs
        .chunks(WIDTH)
        .map(|x| (x.iter().map(|x| x * x).sum::<f64>() / WIDTH as f64 + EPS).sqrt().recip())
        .collect();
    check("rmsnorm", &y, |at| ws[at % WIDTH] * xs[at] * inverse[at / WIDTH]);

    let (mut dx, mut dw) = (zeros(ROWS, WIDTH), vector("dw", WIDTH));
    dw.clear().expect("memory");
    backward(dy.view(), x.view(), &w, &kept, 0..ROWS, dx.view_mut(), &mut dw).expect("shapes fit");
    let dots: Vec<f64> =
        (0..ROWS).map(|r| row(r * WIDTH).map(|at| ws[at % WIDTH] * gs[at] * xs[at]).sum()).collect();
    check("rmsnorm dx", &dx, |at| {
        let r = inverse[at / WIDTH];
        r * (ws[at % WIDTH] * gs[at] - xs[at] * r * r * dots[at / WIDTH] / WIDTH as f64)
    });

    let (x2, w2, mut kept2) = (random("x", ROWS, WIDTH), vector("w", WIDTH), saved());
    vec![
        Case::moving("rmsnorm forward", 8, move || {
            forward(x2.view(), &w2, EPS, y.view_mut(), &mut kept2, 0..ROWS).expect("shapes fit");
        }),
        Case::moving("rmsnorm backward", 12, move || {
            backward(dy.view(), x.view(), &w, &kept, 0..ROWS, dx.view_mut(), &mut dw).expect("shapes fit");
        }),
    ]
}
