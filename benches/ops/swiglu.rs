//! SwiGLU's product. Operation: src/ops/swiglu.rs.

use crate::measure::{Case, ROWS, WIDTH, check, numbers, random, zeros};
use latch::ops::swiglu::{backward, forward};

/// Forward and backward.
pub fn cases() -> Vec<Case> {
    let (gate, up, dy) = (random("gate", ROWS, WIDTH), random("up", ROWS, WIDTH), random("dy", ROWS, WIDTH));
    let (mut y, mut dgate, mut dup) = (zeros(ROWS, WIDTH), zeros(ROWS, WIDTH), zeros(ROWS, WIDTH));
    forward(gate.view(), up.view(), y.view_mut()).expect("shapes fit");
    backward(dy.view(), gate.view(), up.view(), dgate.view_mut(), dup.view_mut()).expect("shapes fit");
    let (g, u, d) = (numbers(&gate), numbers(&up), numbers(&dy));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    check("swiglu", &y, |at| g[at] * sigmoid(g[at]) * u[at]);
    check("swiglu dup", &dup, |at| d[at] * g[at] * sigmoid(g[at]));
    check("swiglu dgate", &dgate, |at| {
        let s = sigmoid(g[at]);
        d[at] * u[at] * s * (1.0 + g[at] * (1.0 - s))
    });
    let (gate2, up2) = (random("gate", ROWS, WIDTH), random("up", ROWS, WIDTH));
    vec![
        Case::moving("swiglu forward", 12, move || {
            forward(gate2.view(), up2.view(), y.view_mut()).expect("shapes fit");
        }),
        Case::moving("swiglu backward", 20, move || {
            backward(dy.view(), gate.view(), up.view(), dgate.view_mut(), dup.view_mut())
                .expect("shapes fit");
        }),
    ]
}
