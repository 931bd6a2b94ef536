//! AdamW's step and the global gradient norm. Operations: src/ops/adamw.rs, gradient_norm.rs.

use crate::measure::{Case, ROWS, WIDTH, check, numbers, random};
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::adamw::{Hyper, Moments, step};
use latch::ops::gradient_norm::{self, GradientNorm};

const HYPER: Hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1 };

/// One tensor of each.
pub fn cases() -> Vec<Case> {
    let scale = Tensor::from_host(&Device::cpu(), [1], &[1.0_f32]).expect("one value");
    let (mut parameter, gradient) = (random("parameter", ROWS, WIDTH), random("gradient", ROWS, WIDTH));
    let (ps, gs) = (numbers(&parameter), numbers(&gradient));
    let mut moments = Moments::new(&parameter).expect("a float");
    step(&mut parameter, &gradient, &mut moments, &HYPER, &scale).expect("shapes fit");
    // The first step moves every element by the learning rate against its gradient's sign.
    check("adamw", &parameter, |at| {
        ps[at] * (1.0 - HYPER.lr * HYPER.weight_decay) - HYPER.lr * gs[at] / (gs[at].abs() + HYPER.eps)
    });

    let gradient2 = random("gradient", ROWS, WIDTH);
    let mut norm = GradientNorm::reserve(&Device::cpu(), &[ROWS * WIDTH], Dtype::F32).expect("memory");
    gradient_norm::forward(&[&gradient2], 1.0, &mut norm).expect("shapes fit");
    let length = gs.iter().map(|g| g * g).sum::<f64>().sqrt();
    check("gradient norm", norm.norm(), |_| length);
    vec![
        Case::moving("adamw", 28, move || {
            step(&mut parameter, &gradient, &mut moments, &HYPER, &scale).expect("shapes fit");
        }),
        Case::moving("gradient norm", 4, move || {
            gradient_norm::forward(&[&gradient2], 1.0, &mut norm).expect("shapes fit");
        }),
    ]
}
