//! GELU, tanh form. Operation: src/ops/gelu.rs.

use crate::measure::{Case, ROWS, WIDTH, check, numbers, random, zeros};
use latch::ops::gelu::{backward, forward};

/// Forward and backward.
pub fn cases() -> Vec<Case> {
    let (x, dy) = (random("x", ROWS, WIDTH), random("dy", ROWS, WIDTH));
    let (mut y, mut dx) = (zeros(ROWS, WIDTH), zeros(ROWS, WIDTH));
    forward(x.view(), y.view_mut()).expect("shapes fit");
    backward(dy.view(), x.view(), dx.view_mut()).expect("shapes fit");
    let (xs, gs) = (numbers(&x), numbers(&dy));
    let root = (2.0 / std::f64::consts::PI).sqrt();
    let tanh = |x: f64| (root * (x + 0.044715 * x * x * x)).tanh();
    check("gelu", &y, |at| 0.5 * xs[at] * (1.0 + tanh(xs[at])));
    check("gelu dx", &dx, |at| {
        let (x, t) = (xs[at], tanh(xs[at]));
        gs[at] * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044715 * x * x))
    });
    let x2 = random("x", ROWS, WIDTH);
    vec![
        Case::moving("gelu forward", 8, move || forward(x2.view(), y.view_mut()).expect("shapes fit")),
        Case::moving("gelu backward", 12, move || {
            backward(dy.view(), x.view(), dx.view_mut()).expect("shapes fit");
        }),
    ]
}
