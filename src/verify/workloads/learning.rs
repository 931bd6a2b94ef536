//! The optimiser, the gradient's norm, and the terms of the policy's loss.

use super::{Make, Setting, Work, moved};
use crate::base::{Dtype, Result};
use crate::ops::Tensor;
use crate::ops::adamw::{self, Batch, Moments, step, step_all};
use crate::ops::gradient_norm::{self, GradientNorm};
use crate::ops::policy_loss::{self, Hyper, Outputs, Ratio, Statistic, Surrogate};

pub(super) const LIST: &[(&str, Make)] = &[
    ("adamw begin", |s| {
        let parameter = s.matrix("parameter", s.size.hidden, s.size.width)?;
        // An f32 parameter has no master: nothing runs.
        let master = if parameter.dtype() == Dtype::Bf16 { 4 * parameter.shape().elements() } else { 0 };
        let bytes = if master > 0 { parameter.bytes() + master } else { 0 };
        Work::moving(bytes, move || Moments::new(&parameter).map(drop))
    }),
    ("adamw of one tensor", |s| {
        let (rows, cols) = (s.size.hidden, s.size.width);
        let mut parameter = s.matrix("parameter", rows, cols)?;
        let gradient = s.normal("gradient", [rows, cols], Dtype::F32, 1.0)?;
        let mut moments = Moments::new(&parameter)?;
        let mut scale = s.vector("scale", 1)?;
        scale.upload(&[1.0_f32])?;
        let bytes = state_bytes(&parameter, &gradient, &moments);
        Work::moving(bytes, move || step(&mut parameter, &gradient, &mut moments, &HYPER_ADAMW, &scale))
    }),
    ("adamw", |s| {
        let (rows, cols) = (s.size.hidden, s.size.width);
        let mut parameters = [s.matrix("parameter", rows, cols)?];
        let gradient = s.normal("gradient", [rows, cols], Dtype::F32, 1.0)?;
        let mut moments = [Moments::new(&parameters[0])?];
        let mut scale = s.vector("scale", 1)?;
        scale.upload(&[1.0_f32])?;
        let bytes = state_bytes(&parameters[0], &gradient, &moments[0]);
        let mut batch = Batch::default();
        Work::moving(bytes, move || {
            step_all(&mut parameters, &[&gradient], &mut moments, &HYPER_ADAMW, &scale, &mut batch)
        })
    }),
    ("gradient norm", |s| {
        let (rows, cols) = (s.size.hidden, s.size.width);
        let gradient = s.normal("gradient", [rows, cols], Dtype::F32, 1.0)?;
        let mut norm = GradientNorm::reserve(s.device, &[rows * cols], Dtype::F32)?;
        Work::moving(gradient.bytes() + 8, move || gradient_norm::forward(&[&gradient], 1.0, &mut norm))
    }),
    ("policy_loss forward", |s| {
        let terms = Terms::new(s)?;
        let n = s.positions();
        let (mut term, mut statistics) =
            (s.zeros(n, 1, Dtype::F32)?, s.zeros(n, Statistic::COUNT, Dtype::F32)?);
        Work::moving(terms.bytes() + moved(&[&term, &statistics]), move || {
            let out = Outputs { term: term.view_mut(), statistics: statistics.view_mut() };
            policy_loss::forward(&terms.inputs(), &HYPER, out)
        })
    }),
    ("policy_loss backward", |s| {
        let (terms, n) = (Terms::new(s)?, s.positions());
        let (weight, mut coefficient) = (s.numbers("weight", n, 1)?, s.zeros(n, 1, Dtype::F32)?);
        Work::moving(terms.bytes() + moved(&[&weight, &coefficient]), move || {
            policy_loss::backward(weight.view(), &terms.inputs(), &HYPER, coefficient.view_mut())
        })
    }),
];

const HYPER_ADAMW: adamw::Hyper =
    adamw::Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1 };

/// Bytes of a step of AdamW: moments are read and written, and so is an f32 parameter, or the master of a bf16 one, which
/// is only written.
fn state_bytes(parameter: &Tensor, gradient: &Tensor, moments: &Moments) -> usize {
    let (m, v) = (&moments.m, &moments.v);
    let master = if moments.has_master() { 2 * moments.master_bytes() } else { parameter.bytes() };
    moved(&[m, m, v, v, gradient, parameter]) + master
}

const HYPER: Hyper = Hyper {
    ratio: Ratio::Token,
    surrogate: Surrogate::Clipped { low: 0.2, high: 0.2, delta: None, dual: None },
    clamp: None,
    kl: None,
};

/// Scored tokens: as many as positions, in as many rows as sequences.
struct Terms {
    numbers: [Tensor; 3],
    starts: Tensor,
}

impl Terms {
    fn new(s: &Setting) -> Result<Terms> {
        let n = s.positions();
        let numbers = [s.numbers("now", n, 1)?, s.numbers("old", n, 1)?, s.numbers("advantage", n, 1)?];
        Ok(Terms { numbers, starts: s.column(s.sequences + 1, |row| (row * s.length) as u32)? })
    }

    fn bytes(&self) -> usize {
        self.numbers.iter().map(Tensor::bytes).sum::<usize>() + self.starts.bytes()
    }

    fn inputs(&self) -> policy_loss::Inputs<'_> {
        let [log_probability, old, advantage] = self.numbers.each_ref().map(Tensor::view);
        policy_loss::Inputs { log_probability, old, reference: None, advantage, starts: self.starts.view() }
    }
}
