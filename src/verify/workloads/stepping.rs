//! What a captured step does beside its model: rows appended to the tape, the index moved on, states forked, memory
//! filled. Small, and part of every step.

use super::{Make, Work, moved};
use crate::base::Dtype;
use crate::ops::append::{Append, Pair};
use crate::ops::{Tensor, index, latent, random};
use half::bf16;

pub(super) const LIST: &[(&str, Make)] = &[
    ("append", |s| {
        // As a layer of a step: some rows of the stream, and one of the MLP.
        let widths = [s.size.width, s.size.width, s.size.hidden];
        let (mut kept, mut tape) = (Vec::new(), Vec::new());
        for width in widths {
            kept.push(s.activations("kept", s.sequences, width)?);
            tape.push(s.blank(s.positions(), width)?);
        }
        let (mut append, place) = (Append::reserve(s.device, widths.len())?, s.column(1, |_| 3_u32)?);
        // 32 bytes of the table a pair.
        let bytes = 2 * kept.iter().map(Tensor::bytes).sum::<usize>() + place.bytes() + 32 * widths.len();
        let count = s.sequences;
        Work::moving(bytes, move || {
            let mut pairs: Vec<Pair> =
                kept.iter().zip(&mut tape).map(|(from, to)| Pair::new(from, to, 1)).collect();
            append.run(&mut pairs, count, place.view())
        })
    }),
    ("index advance", |s| {
        let mut positions = s.column(s.positions(), |at| at as u32)?;
        Work::moving(moved(&[&positions, &positions]), move || index::advance(positions.view_mut(), 1))
    }),
    ("index repeat", |s| {
        let n = s.positions();
        let mut ids = s.column(2 * n, |at| at as i32)?;
        Work::moving(moved(&[&ids]), move || index::repeat(&mut ids, 0..n, n, 1))
    }),
    ("index fill", |s| {
        let mut x = s.blank(s.positions(), s.size.width)?;
        let dtype = s.dtype;
        Work::moving(moved(&[&x]), move || match dtype {
            Dtype::Bf16 => index::fill(x.view_mut(), bf16::ONE),
            _ => index::fill(x.view_mut(), 1.0_f32),
        })
    }),
    ("random fill", |s| {
        let mut x = s.blank(s.positions(), s.size.width)?;
        Work::moving(moved(&[&x]), move || random::fill(&mut x, 1.0))
    }),
    ("latent fork", |s| {
        let n = s.sequences;
        let mut feedback = s.activations("feedback", n + 1, s.size.width)?;
        Work::moving(feedback.bytes(), move || latent::fork(feedback.view_mut(), 0, 1..n + 1))
    }),
];
