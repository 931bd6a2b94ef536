//! Stepwise internalisation, iCoT (Deng, Choi, Shieber 2024, arXiv 2405.14838; da03/Internalize_CoT_Step_by_Step
//! train.py): the tokens of the written-out reasoning are taken away a few an epoch, until the answer follows the
//! question.
//!
//! ```text
//! steps a token    p = round(steps an epoch / removed tokens an epoch)            (halves to even)
//! scheduled        s(t) = t / p at step t of all, t + 1 where p = 0; everything once s(t) >= max
//! smoothing        an example loses s(t) + o tokens, P(o = k) = (1 - exp(-lambda)) exp(-lambda k), the tail of
//!                  k >= 99 on 99
//! optimiser        starts afresh at a step where s grows, unless the batch before had no reasoning left
//! trained          what is left of the reasoning, and the answer
//! ```
//!
//! Positions close up behind what was removed, as in the released command lines (its `keep_position` is not offered: the
//! release has no generation for it). Deviations: o is drawn from the stream (seed; epoch, problem, 0, DataOrder), site
//! 2; there are no separator tokens between question, reasoning and answer, since our answers begin with a mark of
//! their own; with removal from the right a batch counts as emptied when it is, where the release counts every batch.

use super::supervised::Example;
use crate::base::rng::{Purpose, StreamKey};
use crate::text::EncodedProblem;

/// Removed tokens where nothing is left.
pub const EVERYTHING: usize = usize::MAX;
/// The largest offset that smoothing draws.
const LARGEST_OFFSET: usize = 99;

/// From which end tokens are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first ones go first.
    Left,
    /// The last ones go first.
    Right,
}

/// How reasoning is taken away.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Removal {
    /// Tokens an epoch, spread over its steps.
    pub per_epoch: f64,
    /// Once so many are scheduled, everything is removed; none = never.
    pub max: Option<usize>,
    /// Which go first.
    pub side: Side,
    /// Lambda of the random extra removal; none = no extra.
    pub smoothing: Option<f64>,
    /// Whether the optimiser starts afresh with each stage.
    pub reset_optimizer: bool,
    /// Seed of the extra removal.
    pub seed: u64,
}

impl Removal {
    /// Tokens scheduled to be removed at step `step` of the whole curriculum, counted from 0, where an epoch has
    /// `steps_per_epoch` steps.
    pub fn scheduled(&self, step: usize, steps_per_epoch: usize) -> usize {
        let pace = (steps_per_epoch as f64 / self.per_epoch).round_ties_even() as usize;
        let removed = step.checked_div(pace).unwrap_or(step + 1);
        match self.max {
            Some(max) if removed >= max => EVERYTHING,
            _ => removed,
        }
    }

    /// How many more an example loses: `number` is the problem's.
    pub fn offset(&self, epoch: u32, number: u32) -> usize {
        let Some(lambda) = self.smoothing else { return 0 };
        let uniform = StreamKey::new(self.seed, epoch, number, 0, Purpose::DataOrder).draws(2, 0).uniform();
        // P(o >= k) = exp(-lambda k).
        ((-uniform.ln() / lambda) as usize).min(LARGEST_OFFSET)
    }

    /// Tokens that problem `number` loses where `scheduled` are scheduled.
    pub fn count(&self, scheduled: usize, epoch: u32, number: u32) -> usize {
        scheduled.saturating_add(self.offset(epoch, number))
    }

    /// Whether the optimiser starts afresh between two steps; `emptied` = no example of the first had reasoning left.
    pub fn resets(&self, before: usize, now: usize, emptied: bool) -> bool {
        self.reset_optimizer && now > before && !emptied
    }

    /// The example of `problem` without `removed` tokens of its reasoning.
    pub fn example(&self, problem: &EncodedProblem, removed: usize) -> Example {
        let mut answer: Vec<u32> = problem.steps.concat();
        let removed = removed.min(answer.len());
        match self.side {
            Side::Left => drop(answer.drain(..removed)),
            Side::Right => answer.truncate(answer.len() - removed),
        }
        answer.extend(&problem.answer);
        Example { prompt: problem.question.clone(), latents: 0, end: Vec::new(), answer }
    }
}

/// Tokens of a problem's reasoning.
pub fn reasoning(problem: &EncodedProblem) -> usize {
    problem.steps.iter().map(Vec::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: Removal = Removal {
        per_epoch: 8.0,
        max: Some(39),
        side: Side::Left,
        smoothing: Some(4.0),
        reset_optimizer: true,
        seed: 3,
    };

    #[test]
    fn tokens_go_from_the_chosen_side_and_never_from_the_answer() {
        let problem =
            EncodedProblem { question: vec![1, 2], steps: vec![vec![10], vec![20, 21]], answer: vec![5, 99] };
        let answers = |side, removed| Removal { side, ..PAPER }.example(&problem, removed).answer;
        assert_eq!(answers(Side::Left, 0), [10, 20, 21, 5, 99]);
        assert_eq!(answers(Side::Left, 1), [20, 21, 5, 99]);
        assert_eq!(answers(Side::Left, 2), [21, 5, 99]);
        assert_eq!(answers(Side::Right, 1), [10, 20, 5, 99]);
        assert_eq!(answers(Side::Right, 2), [10, 5, 99]);
        for side in [Side::Left, Side::Right] {
            for removed in [3, 4, EVERYTHING] {
                assert_eq!(answers(side, removed), [5, 99]);
            }
        }
        let example = PAPER.example(&problem, 1);
        assert_eq!((example.prompt, example.latents, example.end), (vec![1, 2], 0, vec![]));
    }

    #[test]
    fn the_schedule_of_the_paper() {
        // 80 steps an epoch and 8 tokens: one token every 10 steps; 39 are reached at step 390.
        let at = |step| PAPER.scheduled(step, 80);
        assert_eq!([0, 9, 10, 79, 80, 389, 390, 10_000].map(at), [0, 0, 1, 7, 8, 38, EVERYTHING, EVERYTHING]);
        assert_eq!(Removal { max: None, ..PAPER }.scheduled(4000, 80), 400);
        // Halves go to the even number, as in Python: 20 / 8 = 2.5 steps a token are 2, 28 / 8 = 3.5 are 4.
        assert_eq!((PAPER.scheduled(4, 20), PAPER.scheduled(8, 28)), (2, 2));
        // Fewer than half a step a token: one a step, from the first.
        assert_eq!([0, 1, 2].map(|step| PAPER.scheduled(step, 3)), [1, 2, 3]);
    }

    #[test]
    fn extra_removal_follows_its_law_and_is_replayable() {
        let lambda = 0.7;
        let removal = Removal { smoothing: Some(lambda), ..PAPER };
        let count = 20_000;
        let drawn: Vec<usize> = (0..count).map(|number| removal.offset(2, number)).collect();
        assert_eq!(drawn, (0..count).map(|number| removal.offset(2, number)).collect::<Vec<_>>());
        assert_ne!(drawn, (0..count).map(|number| removal.offset(3, number)).collect::<Vec<_>>());
        for k in 0..6 {
            let share = drawn.iter().filter(|&&o| o == k).count() as f64 / f64::from(count);
            let expected = (1.0 - (-lambda).exp()) * (-lambda * k as f64).exp();
            let error = (expected * (1.0 - expected) / f64::from(count)).sqrt();
            assert!((share - expected).abs() < 4.0 * error, "{k}: {share}, expected {expected}");
        }
        // A tiny lambda shows the end of the table.
        let wide = Removal { smoothing: Some(1e-6), ..PAPER };
        assert_eq!((0..100).map(|number| wide.offset(0, number)).min(), Some(LARGEST_OFFSET));
        assert_eq!(Removal { smoothing: None, ..PAPER }.count(5, 2, 7), 5);
        assert_eq!(removal.count(EVERYTHING, 2, 7), EVERYTHING);
    }

    #[test]
    fn the_optimiser_starts_afresh_where_a_stage_begins() {
        assert!(PAPER.resets(1, 2, false));
        assert!(!PAPER.resets(2, 2, false));
        assert!(!PAPER.resets(1, 2, true));
        assert!(!PAPER.resets(EVERYTHING, EVERYTHING, false));
        assert!(!Removal { reset_optimizer: false, ..PAPER }.resets(1, 2, false));
    }
}
