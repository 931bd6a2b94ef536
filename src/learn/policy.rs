//! One update of a policy on groups of rollouts (Dropout-GRPO and its family; algorithms B.10).
//!
//! ```text
//! sample (tape on) -> reward -> advantage -> score -> policy loss -> backward through answer, latents, prompt -> AdamW
//! ```
//!
//! The first pass reads the tape that sampling left ([`Source::Tape`]) or replays the rollouts that matter, teacher
//! forced, from tokens and keys ([`Source::Replay`]): the same bits of log-probabilities and losses, gradients equal up
//! to the order of sums. Later passes over the same rollouts always replay. Prompts run in parts that fit the tape.

use super::advantages::advantages;
use super::objective::Objective;
use super::optimizer::Optimizer;
use super::policy_batch::{Batch, Passed};
use super::policy_plan::{check, is_local, prompts_at_once, trains_dead_groups};
use super::policy_report::{Judged, Question, Report};
use super::soft_policy::SoftLearner;
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Error, Result};
use crate::model::{Gradients, Model, Record, Scores};
use crate::rollout::audit::{self, Audit};
use crate::rollout::group::{Drawing, Form, Member, Rollouts, SoftReplay, Trajectory};
use crate::rollout::masks::{Masking, Rollout};
use std::ops::{ControlFlow, Range};
use std::time::Instant;

mod pass;

pub use super::policy_plan::{Replay, Settings, Source};

/// A frozen model that the policy is held to.
#[derive(Debug)]
struct Reference {
    model: Model,
    rollouts: Rollouts,
    scores: Scores,
}

/// Reserved room and state of a policy's training.
#[derive(Debug)]
pub struct Policy {
    settings: Settings,
    objective: Objective,
    /// Prompts of one part.
    part: usize,
    rollouts: Rollouts,
    /// Replays without masks, where the update is to run without.
    clean: Option<Rollouts>,
    scores: Scores,
    batch: Batch,
    /// Losses of soft steps; none where they have none of their own.
    soft: Option<SoftLearner>,
    gradients: Gradients,
    optimizer: Optimizer,
    audit: Audit,
    reference: Option<Reference>,
}

/// A share of live groups below which replaying them costs less than walking the tape of all: a replay is a forward
/// and a backward pass (3 units) of the live, the tape a backward pass (2 units) of all.
const REPLAY_BELOW: f64 = 2.0 / 3.0;

impl Policy {
    /// Reserves everything that updates need. `reference` is the model that a KL penalty holds the policy to.
    ///
    /// # Errors
    /// A group of less than two rollouts, a law whose log-probabilities cannot be trained, a prompt too long for the
    /// model, or one group that does not fit the bytes.
    pub fn new(
        model: &Model,
        (form, drawing): (Form, Drawing),
        objective: Objective,
        mut settings: Settings,
        optimizer: Optimizer,
        reference: Option<Model>,
    ) -> Result<Policy> {
        check(&drawing, &objective, &settings, reference.is_some())?;
        let mut drawing = drawing;
        if let (Some(thoughts), Some(soft)) = (&mut drawing.soft, &settings.soft) {
            thoughts.replay = soft.estimator.replay();
            settings.truncation.soft = soft.estimator.gradient();
        }
        let part = prompts_at_once(model, &form, &drawing, &settings)?;
        let limits = settings.limits(part);
        let answers = limits.members * form.max_new_tokens;
        let soft = match (&drawing.soft, &settings.soft) {
            (Some(thoughts), Some(soft)) => SoftLearner::reserve(
                model,
                soft,
                (thoughts, drawing.latent_noise),
                limits.members,
                form.latents,
            )?,
            _ => None,
        };
        let without = |masking| Drawing { masking, ..drawing.clone() };
        let reference = match reference {
            None => None,
            Some(frozen) => {
                let masked = settings.reference_masked;
                let mut drawing = if masked { drawing.clone() } else { without(Masking::NONE) };
                // The reference reads what the policy read.
                if let Some(soft) = &mut drawing.soft
                    && soft.replay == SoftReplay::Noise
                {
                    soft.replay = SoftReplay::Actions;
                }
                // HRPO: the reference reads plain tokens.
                drawing.gate = None;
                Some(Reference {
                    rollouts: Rollouts::reserve(&frozen, form.clone(), drawing, limits, Record::LayerInputs)?,
                    scores: Scores::reserve_to_read(&frozen, answers)?,
                    model: frozen,
                })
            }
        };
        let clean = match settings.replay {
            Replay::Off => {
                let drawing = without(Masking::NONE);
                Some(Rollouts::reserve(model, form.clone(), drawing, limits, settings.record)?)
            }
            _ => None,
        };
        Ok(Policy {
            audit: Audit::reserve(model, form.clone(), drawing.clone(), settings.prompt_tokens)?,
            rollouts: Rollouts::reserve(model, form, drawing, limits, settings.record)?,
            scores: Scores::reserve(model, answers)?,
            batch: Batch::reserve(model, limits.members, answers)?,
            gradients: model.gradients()?,
            clean,
            soft,
            part,
            objective,
            settings,
            optimizer,
            reference,
        })
    }

    /// Prompts that run at once.
    pub fn prompts_at_once(&self) -> usize {
        self.part
    }

    /// The optimiser.
    pub fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// The optimiser, to be restored.
    pub fn optimizer_mut(&mut self) -> &mut Optimizer {
        &mut self.optimizer
    }

    /// The gradient of the last pass.
    pub fn gradients_mut(&mut self) -> &mut Gradients {
        &mut self.gradients
    }

    /// Where the first pass finds its activations. The tape serves when one part holds all prompts, or when no group's
    /// weights depend on other groups, so that each part is differentiated before the next takes its place.
    pub fn source(&self) -> Source {
        let settings = &self.settings;
        let whole = self.part >= settings.prompts || is_local(&self.objective);
        match settings.replay == Replay::Same && settings.refills == 0 && whole {
            true => Source::Tape,
            false => Source::Replay,
        }
    }

    /// Rolls out, judges and learns. `draw(n)` gives `n` questions (fewer when there are no more); `judge(question,
    /// trajectory)` is the reward.
    ///
    /// # Errors
    /// No question, a loss or gradient that is not finite (nothing is updated by that pass), and those of `judge`.
    pub fn update(
        &mut self,
        model: &mut Model,
        update: u32,
        learning_rate: f64,
        mut draw: impl FnMut(usize) -> Vec<Question>,
        mut judge: impl FnMut(&Question, &Trajectory) -> Result<f64>,
    ) -> Result<Report> {
        let mut report = Report::default();
        let mut first = Passed::default();
        let mut source = self.source();
        let mut chosen: Vec<usize> = Vec::new();
        self.gradients.clear();
        for refill in 0..=self.settings.refills {
            let wanted = self.settings.prompts - chosen.len();
            let questions = draw(wanted);
            for part in questions.chunks(self.part) {
                let of = self.sample(model, update, part, &mut report, &mut judge)?;
                self.audit(model, update, &of, &mut report)?;
                self.assign_advantages(&of.clone().collect::<Vec<_>>(), &mut report)?;
                if source == Source::Tape
                    && questions.len() <= self.part
                    && !self.worth_the_tape(&of, &report)
                {
                    source = Source::Replay;
                }
                if source == Source::Tape {
                    let on_tape = report.rollouts_of(&of).start;
                    self.learn(
                        model,
                        &of.collect::<Vec<_>>(),
                        Some((on_tape, questions.len())),
                        &mut report,
                        &mut first,
                    )?;
                }
            }
            let dynamic = self.settings.refills > 0;
            chosen = (0..report.questions.len()).filter(|&q| !dynamic || report.is_live(q)).collect();
            if chosen.len() >= self.settings.prompts
                || questions.len() < wanted
                || refill == self.settings.refills
            {
                break;
            }
        }
        if report.questions.is_empty() {
            return Err(Error::input("update", "no question", "give at least one prompt"));
        }
        // Advantages scaled by the whole batch are known only now.
        if source == Source::Replay {
            self.assign_advantages(&chosen, &mut report)?;
        }
        report.source = Some(source);
        for pass in 0..self.settings.passes {
            let passed = match (pass, source) {
                (0, Source::Tape) => std::mem::take(&mut first),
                _ => {
                    let mut passed = Passed::default();
                    self.gradients.clear();
                    self.learn(model, &chosen, None, &mut report, &mut passed)?;
                    passed
                }
            };
            let moves = passed.trained() > 0;
            report.passes.push(passed);
            if moves {
                let began = Instant::now();
                report.gradient_norms.push(self.optimizer.update(
                    model,
                    &mut self.gradients,
                    learning_rate,
                )?);
                report.times.optimizer += began.elapsed();
            }
        }
        Ok(report)
    }

    /// Rolls out `part` and judges it; returns the range of its questions in the report.
    fn sample(
        &mut self,
        model: &Model,
        update: u32,
        part: &[Question],
        report: &mut Report,
        judge: &mut impl FnMut(&Question, &Trajectory) -> Result<f64>,
    ) -> Result<Range<usize>> {
        let began = Instant::now();
        let prompts: Vec<Vec<u32>> = part.iter().map(|question| question.tokens.clone()).collect();
        let group = self.settings.group as u32;
        // A prompt that is drawn again within an update goes on counting: its rollouts are not those it had before.
        let seen: Vec<u32> = (0..part.len())
            .map(|n| {
                let before = report.questions.iter().chain(&part[..n]);
                before.filter(|question| question.number == part[n].number).count() as u32
            })
            .collect();
        let member = |prompt: usize, rollout: u32| Member {
            prompt,
            coordinates: Rollout {
                update,
                prompt: part[prompt].number,
                rollout: seen[prompt] * group + rollout,
                attempt: 0,
            },
        };
        let members: Vec<Member> = (0..part.len())
            .flat_map(|prompt| (0..group).map(move |k| (prompt, k)))
            .map(|(p, k)| member(p, k))
            .collect();
        let sampled = self.rollouts.sample(model, &prompts, &members, |_, _| ControlFlow::Continue(()))?;
        report.times.rollout += began.elapsed();
        let began = Instant::now();
        let limit = self.rollouts.form().max_new_tokens;
        let first = report.questions.len();
        report.questions.extend(part.iter().cloned());
        for mut trajectory in sampled {
            trajectory.member.prompt += first;
            let question = &report.questions[trajectory.member.prompt];
            let length = trajectory.tokens.len();
            let judged = judge(question, &trajectory)?;
            let penalty = self.objective.overlong.map_or(0.0, |overlong| overlong.penalty(length, limit));
            report.tokens += length;
            report.rollouts.push(Judged {
                trajectory,
                judged,
                reward: judged + penalty,
                advantage: 0.0,
                action_scores: Vec::new(),
            });
        }
        report.times.reward += began.elapsed();
        Ok(first..report.questions.len())
    }

    /// Audits one rollout of the questions `of`, or all.
    fn audit(&mut self, model: &Model, update: u32, of: &Range<usize>, report: &mut Report) -> Result<()> {
        let began = Instant::now();
        let rollouts = report.rollouts_of(of);
        let seed = self.rollouts.drawing().seed;
        let mut draws = StreamKey::new(seed, update, of.start as u32, 0, Purpose::Probe).draws(0, 0);
        let one = rollouts.start + draws.below(rollouts.len().max(1));
        for index in rollouts.filter(|&index| self.settings.audit_all || index == one) {
            let trajectory = &report.rollouts[index].trajectory;
            let prompt = &report.questions[trajectory.member.prompt].tokens;
            let gap = self.audit.gap(model, prompt, trajectory)?;
            report.replay_gap = audit::worse(report.replay_gap, gap);
            report.audited += 1;
        }
        report.thoughts = self.audit.thoughts()?;
        report.times.audit += began.elapsed();
        Ok(())
    }

    /// Assigns the advantages of the questions `of`, which are the whole batch where advantages depend on it.
    fn assign_advantages(&self, of: &[usize], report: &mut Report) -> Result<()> {
        if of.is_empty() {
            return Ok(());
        }
        let groups: Vec<Vec<f64>> = of.iter().map(|&question| report.rewards(question)).collect();
        let advantages = advantages(&groups, self.objective.baseline, self.objective.scale)?;
        for (&question, advantages) in of.iter().zip(advantages) {
            let rollouts = report.rollouts_of(&(question..question + 1));
            for (judged, advantage) in report.rollouts[rollouts].iter_mut().zip(advantages) {
                judged.advantage = advantage;
            }
        }
        Ok(())
    }

    /// Whether so many groups are live that walking the tape of all costs less than replaying them.
    fn worth_the_tape(&self, of: &Range<usize>, report: &Report) -> bool {
        let has_advantage = |question: usize| {
            let rollouts = report.rollouts_of(&(question..question + 1));
            report.rollouts[rollouts].iter().any(|judged| judged.advantage != 0.0)
        };
        let trains = |&question: &usize| trains_dead_groups(&self.objective) || has_advantage(question);
        of.clone().filter(trains).count() as f64 >= REPLAY_BELOW * of.len() as f64
    }
}
