//! Answer tokens that are read with their mixtures (HRPO): who goes on gated, and what is noted of it.

use super::{Rollouts, Trajectory};
use crate::base::{Error, Result};
use crate::model::Model;

impl Rollouts {
    /// Notes the mixtures of the tokens that `survivors`, who are among the `active`, read gated; returns who does.
    /// The logits at hand are those that the latest token of each of the `active` was drawn from.
    pub(super) fn note_mixtures(
        &mut self,
        model: &Model,
        trajectories: &[Trajectory],
        active: &[usize],
        survivors: &[usize],
    ) -> Result<Vec<usize>> {
        let Some(gate) = &self.drawing.gate else { return Ok(Vec::new()) };
        let opens = |index: &usize| {
            let tokens = &trajectories[*index].tokens;
            gate.gated(tokens) == tokens.len()
        };
        let gated: Vec<usize> = survivors.iter().copied().filter(opens).collect();
        // Rows of the logits, in runs: places are noted in the order of the segment that reads them.
        let mut left = gated.iter().peekable();
        let rows: Vec<usize> =
            (0..active.len()).filter(|&n| left.next_if(|index| **index == active[n]).is_some()).collect();
        for run in rows.chunk_by(|a, b| a + 1 == *b) {
            let logits = self.decoder.logits(run[0]..run[0] + run.len())?;
            model.note_mixtures(&mut self.sequences, logits, &gate.law)?;
        }
        self.gated.extend(&gated);
        Ok(gated)
    }

    /// Brings the mixtures to the host, once, and gives each trajectory its own.
    pub(super) fn note_gated(&mut self, trajectories: &mut [Trajectory]) -> Result<()> {
        if self.gated.is_empty() {
            return Ok(());
        }
        for (&index, mixture) in self.gated.iter().zip(self.sequences.mixtures()?) {
            if mixture.is_empty() || mixture.iter().any(|(_, weight)| !weight.is_finite()) {
                return Err(Error::NotFinite {
                    what: format!("mixture {} of rollout {index}", trajectories[index].mixtures.len() + 1),
                    found: "logits without a softmax, or more kept ids than there is room for".into(),
                    advice: "the weights or the hidden states are broken; check them, and the learning rate"
                        .into(),
                });
            }
            trajectories[index].mixtures.push(mixture);
        }
        Ok(())
    }

    /// How many tokens of a trajectory a replay reads gated; its last token is not read.
    pub(super) fn replays_gated(&self, trajectory: &Trajectory) -> Result<usize> {
        let Some(gate) = &self.drawing.gate else { return Ok(0) };
        let gated = gate.gated(&trajectory.tokens[..trajectory.tokens.len().saturating_sub(1)]);
        match trajectory.mixtures.len() == gated {
            true => Ok(gated),
            false => Err(Error::shape(
                "mixtures of a trajectory",
                trajectory.mixtures.len(),
                format!("{gated}, as its tokens say"),
            )),
        }
    }
}
