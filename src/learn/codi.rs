//! CODI (Shen et al. 2025, arXiv 2502.21074; zhenyi4/codi src/model.py): one model is its own teacher.
//!
//! ```text
//! teacher   question  step 1 .. step S  answer                          cross-entropy of steps and answer
//! student   question  start  z_1 .. z_N  end  answer                    cross-entropy of the answer
//!           z_1 = P(h_start), z_i+1 = P(h at z_i)                       P: the projector (model/projector.rs)
//! distilled D = 1/(L+1) sum_l mean(smooth_l1(s_l - t_l)) / std(t_l)     l: embeddings, layers 1 .. L-1, final norm
//!           s_l, t_l [B, width]: states of student and teacher at the position that predicts answer token `tap`
//! loss      w_s CE_student + w_d D + w_t CE_teacher
//! ```
//!
//! The teacher's states and their standard deviation (over the batch, n - 1) are constants. Both passes of a problem are
//! rows of one batch, and one walk back serves all three terms. Deviations from the release: means are over the whole
//! batch, in however many parts it runs; the whole answer is trained in the student as in the teacher; the end marker
//! that opens the answer is read, not trained (the release reads it too); no LoRA.

use super::supervised::{self, Example, Limits};
use crate::base::{Error, Result};
use crate::model::{Gradients, Model, Record, RowPlan, Scores, Sequences, Taps, Truncation};
use crate::ops::{Tensor, smooth_l1};

/// One problem as student and as teacher see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// Question, thoughts, answer.
    pub student: Example,
    /// Question, steps and answer in words.
    pub teacher: Example,
    /// Tokens of the answer before the one whose prediction is distilled.
    pub tap: usize,
    /// Tokens of the teacher's reasoning, which stand before its answer.
    pub reasoning: usize,
}

impl Lesson {
    /// Positions of both rows.
    pub fn positions(&self) -> usize {
        self.student.positions() + self.teacher.positions()
    }

    /// Refuses a lesson whose answer ends before the token whose prediction is distilled; `what` names it.
    ///
    /// # Errors
    /// It is such a lesson.
    pub fn expect_tap(&self, what: &str) -> Result<()> {
        let answer = self.student.answer.len().min(self.teacher.answer.len().saturating_sub(self.reasoning));
        match self.tap < answer {
            true => Ok(()),
            false => Err(Error::input(
                what,
                format!(
                    "the state before answer token {} is to be distilled; the answer has {answer} tokens",
                    self.tap
                ),
                "lower codi.distill_token",
            )),
        }
    }
}

/// How the three terms are weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// Of the student's cross-entropy.
    pub student: f64,
    /// Of the distance of states.
    pub distill: f64,
    /// Of the teacher's cross-entropy.
    pub teacher: f64,
    /// Whether distances are divided by the standard deviation of the teacher's states.
    pub by_deviation: bool,
    /// Where smooth L1 turns from square to absolute.
    pub beta: f64,
}

impl Default for Weights {
    fn default() -> Weights {
        Weights { student: 1.0, distill: 1.0, teacher: 1.0, by_deviation: true, beta: 1.0 }
    }
}

/// The three terms of a batch, not weighed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// Mean cross-entropy of the student's answer tokens.
    pub student: f64,
    /// Mean distance of states.
    pub distill: f64,
    /// Mean cross-entropy of the teacher's tokens.
    pub teacher: f64,
}

impl Losses {
    /// What is minimised.
    pub fn total(&self, weights: &Weights) -> f64 {
        weights.student * self.student + weights.distill * self.distill + weights.teacher * self.teacher
    }
}

/// Room for any `rows` of `lessons` at once, or for as many as `positions` positions hold.
pub fn limits(lessons: &[Lesson], rows: usize, positions: usize) -> Limits {
    let examples: Vec<Example> =
        lessons.iter().flat_map(|lesson| [lesson.student.clone(), lesson.teacher.clone()]).collect();
    let limits = Limits::of(&examples, 2 * rows, positions);
    Limits { positions: limits.positions.max(2 * limits.longest), ..limits }
}

/// Mean and spread of numbers that come in rows (Chan, Golub and LeVeque).
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn merge(&mut self, count: f64, mean: f64, squares: f64) {
        let all = self.count + count;
        let off = mean - self.mean;
        self.mean += off * count / all;
        self.squares += squares + off * off * self.count * count / all;
        self.count = all;
    }

    fn deviation(&self) -> f64 {
        (self.squares / (self.count - 1.0)).sqrt()
    }
}

/// Reserved room for the passes of a batch.
#[derive(Debug)]
pub struct Distiller {
    sequences: Sequences,
    scores: Scores,
    student: Taps,
    teacher: Taps,
    /// `[depth * rows, 3]`: what ops::smooth_l1 says of each state of each row.
    statistics: Tensor,
    limits: Limits,
    weights: Weights,
    /// Deviations of a teacher that stays what it was.
    held: Option<Vec<f64>>,
}

/// What a batch is divided by.
struct Totals {
    student: f64,
    teacher: f64,
    lessons: f64,
}

impl Totals {
    fn of(lessons: &[Lesson]) -> Totals {
        let count = |answer: fn(&Lesson) -> usize| lessons.iter().map(answer).sum::<usize>() as f64;
        Totals {
            student: count(|lesson| lesson.student.answer.len()),
            teacher: count(|lesson| lesson.teacher.answer.len()),
            lessons: lessons.len() as f64,
        }
    }
}

impl Distiller {
    /// Reserves what batches within `limits` ([`limits`]) need.
    ///
    /// # Errors
    /// A model without a projector, lessons longer than its position table, or a device without the memory.
    pub fn new(model: &Model, limits: Limits, weights: Weights, record: Record) -> Result<Distiller> {
        if model.projector().is_none() {
            return Err(Error::input(
                "CODI",
                "the model has no projector between its final hidden state and its latents",
                "give it one (Model::with_random_projector), or load a checkpoint that has latent_projector.json",
            ));
        }
        let pairs = limits.rows.div_ceil(2);
        let student = Taps::reserve(model, pairs, true)?;
        let statistics = [student.depth() * pairs, 3];
        Ok(Distiller {
            sequences: Sequences::reserve(model, model.device(), limits.room(), record)?,
            scores: Scores::reserve(model, limits.positions)?,
            teacher: Taps::reserve(model, pairs, false)?,
            statistics: Tensor::zeros(model.device(), statistics, model.dtype().accumulation())?,
            student,
            limits,
            weights,
            held: None,
        })
    }

    /// The terms of `lessons` under the present weights.
    ///
    /// # Errors
    /// Lessons that do not fit or have no token at their tap.
    pub fn losses(&mut self, model: &Model, lessons: &[Lesson]) -> Result<Losses> {
        self.batch(model, lessons, None)
    }

    /// Adds the gradient of the weighed terms to `gradients`; returns the terms.
    ///
    /// # Errors
    /// As [`Distiller::losses`]; a loss that is not finite.
    pub fn gradient(
        &mut self,
        model: &Model,
        lessons: &[Lesson],
        gradients: &mut Gradients,
    ) -> Result<Losses> {
        self.batch(model, lessons, Some(gradients))
    }

    /// From now on the teacher's states are those that `model` has for `lessons` now, and later calls are about these
    /// lessons: the loss as a function of what the gradient is taken by.
    ///
    /// # Errors
    /// Lessons that do not fit at once.
    pub fn hold(&mut self, model: &Model, lessons: &[Lesson]) -> Result<()> {
        self.held = None;
        if self.fitting(lessons) < lessons.len() {
            return Err(Error::shape("lessons to hold", lessons.len(), "as many as run at once"));
        }
        self.forward(model, lessons)?;
        self.held = Some(self.deviations(&mut vec![Moments::default(); self.student.depth()])?);
        Ok(())
    }

    fn batch(
        &mut self,
        model: &Model,
        lessons: &[Lesson],
        mut gradients: Option<&mut Gradients>,
    ) -> Result<Losses> {
        self.check(lessons)?;
        let totals = Totals::of(lessons);
        let mut deviations = self.held.clone();
        if deviations.is_none() && self.fitting(lessons) < lessons.len() {
            // The deviation is over the whole batch, which no part sees: one pass more for the teacher's states.
            let mut moments = vec![Moments::default(); self.student.depth()];
            let mut found = Vec::new();
            let mut rest = lessons;
            while !rest.is_empty() {
                let (part, after) = rest.split_at(self.fitting(rest));
                rest = after;
                self.forward(model, part)?;
                found = self.deviations(&mut moments)?;
            }
            deviations = Some(found);
        }
        let mut losses = Losses::default();
        let mut rest = lessons;
        while !rest.is_empty() {
            let (part, after) = rest.split_at(self.fitting(rest));
            rest = after;
            let gradients = gradients.as_deref_mut();
            let found = self.part(model, part, &totals, deviations.as_deref(), gradients)?;
            losses.student += found.student;
            losses.distill += found.distill;
            losses.teacher += found.teacher;
        }
        Ok(losses)
    }

    /// One part of a batch: its share of the terms, and of their gradient.
    fn part(
        &mut self,
        model: &Model,
        part: &[Lesson],
        totals: &Totals,
        deviations: Option<&[f64]>,
        gradients: Option<&mut Gradients>,
    ) -> Result<Losses> {
        self.forward(model, part)?;
        let own = self.deviations(&mut vec![Moments::default(); self.student.depth()])?;
        let deviations = deviations.unwrap_or(&own);
        let weights = self.weights;
        let (depth, width) = (self.student.depth(), model.config().width);
        let elements = totals.lessons * width as f64;
        let scale = |layer: usize| {
            let by = if weights.by_deviation { deviations[layer] } else { 1.0 };
            1.0 / (depth as f64 * elements * by)
        };
        let statistics = self.statistics()?;
        let distances = statistics.chunks_exact(3 * part.len()).enumerate();
        let distill =
            distances.map(|(layer, rows)| scale(layer) * rows.iter().step_by(3).sum::<f64>()).sum::<f64>();
        let scored = self.scores.log_probabilities()?;
        let of_student: usize = part.iter().map(|lesson| lesson.student.answer.len()).sum();
        let mean = |scored: &[f64], total: f64| -scored.iter().sum::<f64>() / total;
        let losses = Losses {
            student: mean(&scored[..of_student], totals.student),
            distill,
            teacher: mean(&scored[of_student..], totals.teacher),
        };
        let Some(gradients) = gradients else { return Ok(losses) };
        let total = losses.total(&weights);
        if !total.is_finite() {
            return Err(Error::NotFinite {
                what: "the loss".into(),
                found: format!("{total} ({losses:?})"),
                advice: "lower the learning rate, or look for non-finite weights; nothing was updated".into(),
            });
        }
        for layer in 0..depth {
            let (x, dx) = self.student.gradient_mut(layer)?;
            let target = self.teacher.states(layer)?;
            smooth_l1::backward(x, target, weights.beta, weights.distill * scale(layer), dx)?;
        }
        let coefficients: Vec<f64> = (0..scored.len())
            .map(|n| match n < of_student {
                true => -weights.student / totals.student,
                false => -weights.teacher / totals.teacher,
            })
            .collect();
        self.scores.backward(model, &mut self.sequences, &coefficients, gradients)?;
        let taps = Some(&mut self.student);
        model.backward_tapped(&mut self.sequences, None, Truncation::default(), gradients, taps)?;
        Ok(losses)
    }

    /// Runs students and teachers of `part`, scores their tokens and compares their states.
    fn forward(&mut self, model: &Model, part: &[Lesson]) -> Result<()> {
        let students = part.iter().map(|lesson| &lesson.student);
        let rows: Vec<Example> = students.chain(part.iter().map(|lesson| &lesson.teacher)).cloned().collect();
        let plans: Vec<RowPlan> = rows.iter().map(|example| RowPlan::own(example.positions())).collect();
        self.sequences.layout(&plans)?;
        let (positions, targets) = supervised::run(model, &mut self.sequences, &rows)?;
        self.scores.forward(model, &self.sequences, &positions, &targets, 1.0)?;
        let (mut first, mut student, mut teacher) = (0, Vec::new(), Vec::new());
        for (row, example) in rows.iter().enumerate() {
            let lesson = &part[row % part.len()];
            match row < part.len() {
                true => student.push(positions[first + lesson.tap]),
                false => teacher.push(positions[first + lesson.reasoning + lesson.tap]),
            }
            first += example.answer.len();
        }
        self.student.read(&self.sequences, &student)?;
        if self.held.is_none() {
            self.teacher.read(&self.sequences, &teacher)?;
        }
        for layer in 0..self.student.depth() {
            let rows = layer * part.len()..(layer + 1) * part.len();
            let (x, target) = (self.student.states(layer)?, self.teacher.states(layer)?);
            smooth_l1::forward(x, target, self.weights.beta, self.statistics.rows_mut(rows)?)?;
        }
        Ok(())
    }

    /// What [`Distiller::forward`] left of every state of every row (one download).
    fn statistics(&self) -> Result<Vec<f64>> {
        self.statistics.rows(0..self.student.depth() * self.student.count())?.numbers()
    }

    /// Adds the teacher's states to `moments`, by state; returns their deviations so far.
    fn deviations(&self, moments: &mut [Moments]) -> Result<Vec<f64>> {
        let width = self.teacher.states(0)?.cols() as f64;
        let statistics = self.statistics()?;
        for (moments, rows) in moments.iter_mut().zip(statistics.chunks_exact(3 * self.student.count())) {
            rows.chunks_exact(3).for_each(|row| moments.merge(width, row[1], row[2]));
        }
        Ok(moments.iter().map(Moments::deviation).collect())
    }

    /// How many of `lessons` fit at once.
    fn fitting(&self, lessons: &[Lesson]) -> usize {
        let mut positions = 0;
        let fits = |lesson: &&Lesson| {
            positions += lesson.positions();
            positions <= self.limits.positions
        };
        lessons.iter().take(self.limits.rows / 2).take_while(fits).count().max(1)
    }

    fn check(&self, lessons: &[Lesson]) -> Result<()> {
        if lessons.is_empty() {
            return Err(Error::shape("batch", "0 lessons", "at least 1"));
        }
        for (index, lesson) in lessons.iter().enumerate() {
            let (student, teacher) = (&lesson.student, &lesson.teacher);
            if student.prompt.is_empty() || teacher.prompt.is_empty() {
                return Err(Error::input(
                    format!("lesson {index}"),
                    "has an empty question",
                    "give every lesson at least one token to read",
                ));
            }
            lesson.expect_tap(&format!("lesson {index}"))?;
            let longest = student.positions().max(teacher.positions());
            if longest > self.limits.longest {
                return Err(Error::shape(
                    format!("lesson {index}"),
                    format!("{longest} positions"),
                    format!("at most {}", self.limits.longest),
                ));
            }
        }
        Ok(())
    }
}
