//! Which ids stored soft steps would keep under the logits of now (algorithms C.3: support churn).

use super::Model;
use super::soft::{Action, SoftLaw};
use crate::base::{Dtype, Result};
use crate::device::Arena;
use crate::ops::sampler::{self, Law, Noise, Support};
use crate::ops::{Tensor, View};

/// How the ids that soft steps keep have changed since they were drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Churn {
    /// Ids that were kept.
    pub kept: usize,
    /// Those of them that the logits of now would not keep.
    pub left: usize,
    /// Ids that the logits of now would keep and that were not kept.
    pub entered: usize,
}

impl Churn {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: Churn) {
        self.kept += other.kept;
        self.left += other.left;
        self.entered += other.entered;
    }

    /// What became of one step's ids, both lists ascending.
    pub fn between(then: &[u32], now: &[u32]) -> Churn {
        let both = then.iter().filter(|id| now.binary_search(id).is_ok()).count();
        Churn { kept: then.len(), left: then.len() - both, entered: now.len() - both }
    }
}

/// Buffers to select kept ids anew.
#[derive(Debug)]
pub(super) struct Selection {
    law: Law,
    support: Support,
    weights: Tensor,
    workspace: sampler::Workspace,
    keys: Tensor,
    steps: Tensor,
}

impl Selection {
    /// Room for `rows` steps at once.
    pub fn reserve(model: &Model, law: &SoftLaw, rows: usize) -> Result<Selection> {
        let (device, terms) = (model.device(), law.terms(model.config().vocab));
        let _arena = Arena::Workspace.enter();
        Ok(Selection {
            law: law.law,
            support: Support::reserve(device, rows, terms)?,
            weights: Tensor::zeros(device, [rows, terms], model.dtype().accumulation())?,
            workspace: sampler::Workspace::reserve(device, rows, model.config().vocab)?,
            keys: Tensor::zeros(device, [rows, 2], Dtype::U32)?,
            steps: Tensor::zeros(device, [rows, 1], Dtype::U32)?,
        })
    }

    /// Compares what `actions` kept with what their `logits` keep now (two downloads).
    pub fn churn(&mut self, logits: View, actions: &[&Action]) -> Result<Churn> {
        let rows = 0..actions.len();
        let terms = self.weights.view().cols();
        // What is kept does not depend on the noise, nor on the mixture's temperature.
        let noise =
            Noise { keys: self.keys.rows(rows.clone())?, steps: self.steps.rows(rows.clone())?, site: 0 };
        let weights = self.weights.rows_mut(rows.clone())?;
        let out = sampler::Mixed {
            support: &mut self.support,
            at: rows.clone(),
            weights,
            workspace: &self.workspace,
        };
        sampler::mixture(logits, &sampler::Mixture { law: &self.law, tau: 1.0 }, noise, out)?;
        let (ids, counts) = self.support.download(rows)?;
        let mut churn = Churn::default();
        for (n, action) in actions.iter().enumerate() {
            let kept = (counts[n] as usize).min(terms);
            churn.add(Churn::between(&action.ids, &ids[n * terms..n * terms + kept]));
        }
        Ok(churn)
    }
}
