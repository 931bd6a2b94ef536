//! Rows of the embedding tables, gathered and added to: tokens, and mixtures of tokens.

use super::{Make, Setting, Work, moved};
use crate::base::{Dtype, Result};
use crate::ops::scatter::Order;
use crate::ops::{Tensor, embedding};

pub(super) const LIST: &[(&str, Make)] = &[
    ("embedding forward", |s| {
        let (n, d) = (s.positions(), s.size.width);
        let (table, places, mut x) = (vocabulary(s)?, s.matrix("places", s.length, d)?, s.blank(n, d)?);
        let (ids, positions) = index(s, n)?;
        let read = (n + s.length) * d * s.matrix_dtype().size();
        Work::moving(read + moved(&[&x, &ids, &positions]), move || {
            let inputs = embedding::Inputs { ids: ids.view(), positions: positions.view(), soft: None };
            embedding::forward(&inputs, &table, Some(&places), x.view_mut())
        })
    }),
    ("embedding backward", |s| backward(s, s.positions())),
    ("embedding backward of 4096 positions", |s| backward(s, 4096)),
    ("embedding forward soft", |s| {
        let (n, d) = (s.sequences, s.size.width);
        let (table, mut x) = (vocabulary(s)?, s.blank(n, d)?);
        let soft = Soft::new(s, n)?;
        let read = n * KEPT * d * s.matrix_dtype().size();
        Work::moving(read + moved(&[&x, &soft.ids, &soft.kept, &soft.weights]), move || {
            embedding::forward(&soft.inputs(), &table, None, x.view_mut())
        })
    }),
    ("embedding backward soft", |s| backward_soft(s, s.sequences)),
    ("embedding backward soft replayed", |s| backward_soft(s, s.positions())),
];

/// `n` positions. More of them than one block sorts find their places by other kernels.
fn backward(s: &Setting, n: usize) -> Result<Work> {
    let d = s.size.width;
    let (table, dx) = (vocabulary(s)?, s.activations("dx", n, d)?);
    let (mut dtable, mut dplaces) =
        (s.zeros(s.size.vocabulary, d, Dtype::F32)?, s.zeros(s.length, d, Dtype::F32)?);
    let ((ids, positions), mut order) = (index(s, n)?, Order::reserve(s.device, n)?);
    let added = 2 * 4 * (n + s.length) * d;
    Work::moving(added + moved(&[&dx, &ids, &positions]), move || {
        let inputs = embedding::Inputs { ids: ids.view(), positions: positions.view(), soft: None };
        let (dx, dplaces) = (dx.view(), Some(&mut dplaces));
        embedding::backward(dx, &inputs, &table, &mut dtable, dplaces, None, &mut order)
    })
}

/// Ids of a mixture.
const KEPT: usize = 30;

/// `n` mixtures: those of one step of a group, or all that an update replays in one segment.
fn backward_soft(s: &Setting, n: usize) -> Result<Work> {
    let d = s.size.width;
    let (table, dx) = (vocabulary(s)?, s.activations("dx", n, d)?);
    let mut dtable = s.zeros(s.size.vocabulary, d, Dtype::F32)?;
    let (soft, mut order) = (Soft::new(s, n)?, Order::reserve(s.device, n * KEPT)?);
    let mut dweights = s.zeros(n, KEPT, Dtype::F32)?;
    let rows = n * KEPT * d * (2 * 4 + s.matrix_dtype().size());
    let bytes = rows + moved(&[&dx, &soft.ids, &soft.kept, &soft.weights, &dweights]);
    Work::moving(bytes, move || {
        let (inputs, dweights) = (soft.inputs(), Some(dweights.view_mut()));
        embedding::backward(dx.view(), &inputs, &table, &mut dtable, None, dweights, &mut order)
    })
}

fn vocabulary(s: &Setting) -> Result<Tensor> {
    s.matrix("table", s.size.vocabulary, s.size.width)
}

/// Tokens and positions of `n` packed positions.
fn index(s: &Setting, n: usize) -> Result<(Tensor, Tensor)> {
    Ok((s.column(n, |at| s.token(at) as i32)?, s.column(n, |at| (at % s.length) as u32)?))
}

/// A mixture of [`KEPT`] tokens a row.
struct Soft {
    ids: Tensor,
    positions: Tensor,
    kept: Tensor,
    weights: Tensor,
}

impl Soft {
    fn new(s: &Setting, n: usize) -> Result<Soft> {
        let kept: Vec<u32> = (0..n * KEPT).map(|at| s.token(at) as u32).collect();
        let weights = vec![1.0 / KEPT as f32; n * KEPT];
        Ok(Soft {
            ids: s.column(n, |row| -2 - row as i32)?,
            positions: s.column(n, |_| 0_u32)?,
            kept: Tensor::from_host(s.device, [n, KEPT], &kept)?,
            weights: Tensor::from_host(s.device, [n, KEPT], &weights)?,
        })
    }

    fn inputs(&self) -> embedding::Inputs<'_> {
        let soft = embedding::Soft { ids: self.kept.view(), weights: self.weights.view() };
        embedding::Inputs { ids: self.ids.view(), positions: self.positions.view(), soft: Some(soft) }
    }
}
