//! One update of a policy on groups of rollouts (Dropout-GRPO and its family; algorithms B.10).
//!
//! ```text
//! sample (tape on) -> reward -> advantage -> score -> policy loss -> backward through answer, latents, prompt -> AdamW
//! ```
//!
//! The first pass reads the tape that sampling left ([`Source::Tape`]) or replays the rollouts that matter, teacher
//! forced, from tokens and keys ([`Source::Replay`]): the same bits of log-probabilities and losses, gradients equal up
//! to the order of sums. Later passes over the same rollouts always replay. Prompts run in parts that fit the tape.

use super::advantages::{Baseline, Scale, advantages};
use super::objective::{Aggregation, Extent, Objective, weights};
use super::optimizer::Optimizer;
use super::policy_batch::{Batch, Passed};
use super::policy_report::{Judged, Question, Report};
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Error, Result};
use crate::model::{Gradients, Model, Record, Scores, Sequences, Truncation};
use crate::ops::sampler::Law;
use crate::rollout::audit::{self, Audit};
use crate::rollout::group::{Drawing, Form, Limits, Member, Rollouts, Trajectory, room};
use crate::rollout::masks::{Masking, Rollout};
use std::ops::{ControlFlow, Range};
use std::time::Instant;

/// Settings that stay for a run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rollouts of a prompt.
    pub group: usize,
    /// Prompts of an update.
    pub prompts: usize,
    /// Tokens of the longest prompt.
    pub prompt_tokens: usize,
    /// Passes over the rollouts of an update, each with its own step of the optimiser.
    pub passes: usize,
    /// Where gradients stop.
    pub truncation: Truncation,
    /// Bytes that sequences, tape and caches of one part may take.
    pub tape_bytes: usize,
    /// Whether every rollout is audited, or one an update.
    pub audit_all: bool,
    /// Whether the reference is scored under each rollout's mask, or clean.
    pub reference_masked: bool,
    /// How often further prompts may be drawn where groups are dead (DAPO's dynamic sampling); 0 = never.
    pub refills: usize,
    /// Which mask the update runs under.
    pub replay: Replay,
}

/// Which mask the update scores a rollout under. Only [`Replay::Same`] estimates a gradient (algorithms B.4, E4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// The mask it was sampled under.
    Same,
    /// Another mask of the same law: what framework dropout does.
    Fresh,
    /// No mask.
    Off,
}

/// Where a pass finds its activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// On the tape of sampling.
    Tape,
    /// By replaying.
    Replay,
}

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
        settings: Settings,
        optimizer: Optimizer,
        reference: Option<Model>,
    ) -> Result<Policy> {
        check(&drawing, &objective, &settings, reference.is_some())?;
        let part = prompts_at_once(model, &form, &drawing, &settings)?;
        let limits = settings.limits(part);
        let answers = limits.members * form.max_new_tokens;
        let without = |masking| Drawing { masking, ..drawing.clone() };
        let reference = match reference {
            None => None,
            Some(frozen) => {
                let masked = settings.reference_masked;
                let drawing = if masked { drawing.clone() } else { without(Masking::NONE) };
                Some(Reference {
                    rollouts: Rollouts::reserve(&frozen, form.clone(), drawing, limits, Record::LayerInputs)?,
                    scores: Scores::reserve(&frozen, answers)?,
                    model: frozen,
                })
            }
        };
        let clean = match settings.replay {
            Replay::Off => {
                let drawing = without(Masking::NONE);
                Some(Rollouts::reserve(model, form.clone(), drawing, limits, Record::Everything)?)
            }
            _ => None,
        };
        Ok(Policy {
            audit: Audit::reserve(model, form.clone(), drawing.clone(), settings.prompt_tokens)?,
            rollouts: Rollouts::reserve(model, form, drawing, limits, Record::Everything)?,
            scores: Scores::reserve(model, answers)?,
            batch: Batch::reserve(model, limits.members, answers)?,
            gradients: model.gradients()?,
            clean,
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
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
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
        self.gradients.clear()?;
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
                    self.gradients.clear()?;
                    self.learn(model, &chosen, None, &mut report, &mut passed)?;
                    passed
                }
            };
            let moves = passed.tokens > 0;
            report.passes.push(passed);
            if moves {
                let began = Instant::now();
                report.gradient_norms.push(self.optimizer.update(model, &self.gradients, learning_rate)?);
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
            report.rollouts.push(Judged { trajectory, judged, reward: judged + penalty, advantage: 0.0 });
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

    /// Adds the gradient of the questions `of` to the gradients: from the tape (on which this rollout of the report is the
    /// first, of an update of so many questions), or by replay.
    fn learn(
        &mut self,
        model: &Model,
        of: &[usize],
        on_tape: Option<(usize, usize)>,
        report: &mut Report,
        passed: &mut Passed,
    ) -> Result<()> {
        let counted: Vec<usize> =
            of.iter().flat_map(|&question| report.rollouts_of(&(question..question + 1))).collect();
        let judged: Vec<&Judged> = counted.iter().map(|&index| &report.rollouts[index]).collect();
        let prompts = on_tape.map_or(of.len(), |(_, questions)| questions);
        let weights = self.row_weights(&judged, prompts)?;
        // Rows that no gradient comes from are neither scored nor replayed.
        let idle = |judged: &Judged, weight: f64| {
            weight == 0.0 || (judged.advantage == 0.0 && !trains_dead_groups(&self.objective))
        };
        let rows: Vec<(usize, f64)> = (counted.iter().zip(&judged).zip(weights))
            .filter(|((_, judged), weight)| !idle(judged, *weight))
            .map(|((&index, _), weight)| (index, weight))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        match on_tape {
            Some((first, _)) => {
                let predictors = self.rollouts.predictors();
                let at: Vec<u32> =
                    rows.iter().flat_map(|(index, _)| predictors[index - first].iter().copied()).collect();
                self.differentiate(model, &rows, &at, report, passed)
            }
            None => {
                let group = self.settings.group;
                for part in parts(&rows, report, self.part, self.part * group) {
                    let began = Instant::now();
                    let (prompts, replayed) = teacher(part, report, self.settings.replay);
                    let rollouts = self.clean.as_mut().unwrap_or(&mut self.rollouts);
                    rollouts.replay(model, &prompts, &replayed.iter().collect::<Vec<_>>())?;
                    let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
                    report.times.rollout += began.elapsed();
                    self.differentiate(model, part, &at, report, passed)?;
                }
                Ok(())
            }
        }
    }

    /// The weight of each token of each of the rollouts `judged`, where an update has `prompts` groups; those that are
    /// not given count as rows without tokens.
    fn row_weights(&self, judged: &[&Judged], prompts: usize) -> Result<Vec<f64>> {
        let group = self.settings.group;
        let rows = judged.len().max(prompts * group);
        let mut lengths: Vec<usize> = judged.iter().map(|judged| judged.trajectory.tokens.len()).collect();
        let mut left_out: Vec<bool> = judged.iter().map(|judged| !judged.trajectory.stopped).collect();
        lengths.resize(rows, 0);
        left_out.resize(rows, false);
        let extent = Extent {
            lengths: &lengths,
            groups: &vec![group; rows / group],
            max_length: self.rollouts.form().max_new_tokens,
            left_out: if self.objective.mask_truncated { &left_out } else { &[] },
        };
        let weights = weights(self.objective.aggregation, &extent)?;
        let mut token = 0;
        let first = |length: &usize| {
            let weight = weights.get(token).copied().unwrap_or(0.0);
            token += length;
            weight
        };
        Ok(lengths[..judged.len()].iter().map(first).collect())
    }

    /// Scores the rollouts `rows` (index, weight of each token) at the tape positions `at`, and adds their gradient.
    fn differentiate(
        &mut self,
        model: &Model,
        rows: &[(usize, f64)],
        at: &[u32],
        report: &mut Report,
        passed: &mut Passed,
    ) -> Result<()> {
        let began = Instant::now();
        let judged: Vec<&Judged> = rows.iter().map(|&(index, _)| &report.rollouts[index]).collect();
        let weights: Vec<f64> = rows.iter().map(|&(_, weight)| weight).collect();
        let targets: Vec<u32> = judged.iter().flat_map(|judged| judged.trajectory.tokens.clone()).collect();
        let inverse_temperature = self.rollouts.drawing().law.inverse_temperature();
        let reference = match &mut self.reference {
            None => None,
            Some(reference) => {
                let (prompts, replayed) = teacher(rows, report, Replay::Same);
                let Reference { model, rollouts, scores } = reference;
                rollouts.replay(model, &prompts, &replayed.iter().collect::<Vec<_>>())?;
                let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
                scores.forward(model, rollouts.sequences(), &at, &targets, inverse_temperature)?;
                Some(scores.log_probabilities()?)
            }
        };
        let rollouts = self.clean.as_mut().unwrap_or(&mut self.rollouts);
        let (sequences, masks) = rollouts.parts_mut();
        self.scores.forward(model, sequences, at, &targets, inverse_temperature)?;
        self.batch.load(&judged, &weights, reference.as_deref())?;
        self.batch.run(&mut self.scores, &self.objective.loss, passed)?;
        self.scores.backward_written(model, sequences, &mut self.gradients)?;
        model.backward(sequences, masks, self.settings.truncation, &mut self.gradients)?;
        report.times.backward += began.elapsed();
        Ok(())
    }
}

/// Whether no group's loss depends on other groups.
fn is_local(objective: &Objective) -> bool {
    let mean = matches!(objective.aggregation, Aggregation::TokenMean { .. });
    !mean && !matches!(objective.scale, Scale::BatchStd { .. })
}

/// Whether a group of equal rewards has a gradient: by its penalty, or for want of a baseline.
fn trains_dead_groups(objective: &Objective) -> bool {
    objective.baseline == Baseline::None || objective.loss.kl.is_some_and(|kl| kl.beta > 0.0)
}

/// The prompts and trajectories of `rows` as a batch of their own. With fresh masks, attempts count one up.
fn teacher(rows: &[(usize, f64)], report: &Report, replay: Replay) -> (Vec<Vec<u32>>, Vec<Trajectory>) {
    let mut prompts: Vec<Vec<u32>> = Vec::new();
    let mut of = None;
    let trajectories = rows
        .iter()
        .map(|&(index, _)| {
            let mut trajectory = report.rollouts[index].trajectory.clone();
            let question = trajectory.member.prompt;
            if of != Some(question) {
                prompts.push(report.questions[question].tokens.clone());
                of = Some(question);
            }
            trajectory.member.prompt = prompts.len() - 1;
            trajectory.member.coordinates.attempt += u32::from(replay == Replay::Fresh);
            trajectory
        })
        .collect();
    (prompts, trajectories)
}

/// Cuts `rows`, which are ordered by question, into runs of at most `prompts` questions and `members` rollouts.
fn parts<'r>(
    rows: &'r [(usize, f64)],
    report: &Report,
    prompts: usize,
    members: usize,
) -> Vec<&'r [(usize, f64)]> {
    let question = |row: &(usize, f64)| report.rollouts[row.0].trajectory.member.prompt;
    let mut parts = Vec::new();
    let (mut begin, mut questions) = (0, 0);
    for end in 1..=rows.len() {
        let next = end < rows.len() && question(&rows[end]) != question(&rows[end - 1]);
        questions += usize::from(next);
        if end == rows.len() || (next && questions == prompts) || end - begin == members {
            parts.push(&rows[begin..end]);
            (begin, questions) = (end, 0);
        }
    }
    parts
}

impl Settings {
    fn limits(&self, prompts: usize) -> Limits {
        Limits { prompts, members: prompts * self.group, prompt_tokens: self.prompt_tokens }
    }
}

/// How many prompts' groups fit the bytes of the tape.
fn prompts_at_once(model: &Model, form: &Form, drawing: &Drawing, settings: &Settings) -> Result<usize> {
    let bytes = |prompts: usize| {
        let room = room(form, drawing, settings.limits(prompts), Record::Everything);
        Sequences::bytes(model, room, Record::Everything)
    };
    let one = bytes(1)?;
    if one > settings.tape_bytes {
        return Err(Error::input(
            "tape",
            format!(
                "one group of {} rollouts takes {:.1} MiB of {:.1}",
                settings.group,
                one as f64 / (1 << 20) as f64,
                settings.tape_bytes as f64 / (1 << 20) as f64
            ),
            "raise grpo.tape_mib, or take a smaller group, shorter answers or shorter prompts",
        ));
    }
    let (mut fits, mut too_many) = (1, settings.prompts + 1);
    while too_many - fits > 1 {
        let middle = fits.midpoint(too_many);
        match bytes(middle)? <= settings.tape_bytes {
            true => fits = middle,
            false => too_many = middle,
        }
    }
    Ok(fits)
}

fn check(drawing: &Drawing, objective: &Objective, settings: &Settings, reference: bool) -> Result<()> {
    objective.loss.check()?;
    if objective.loss.kl.is_some() != reference {
        return Err(Error::input(
            "KL penalty",
            format!("the objective's is {:?}, a reference model is given: {reference}", objective.loss.kl),
            "give both or neither",
        ));
    }
    let least = if objective.baseline == Baseline::None { 1 } else { 2 };
    if settings.group < least || settings.prompts == 0 || settings.passes == 0 {
        return Err(Error::input(
            "update",
            format!("groups of {}, {} prompts, {} passes", settings.group, settings.prompts, settings.passes),
            "use groups of at least 2 rollouts (a baseline compares them), at least one prompt and one pass",
        ));
    }
    match drawing.law {
        Law::Categorical { top_k: None, top_p: None | Some(1.0), min_p: None | Some(0.0), .. } => Ok(()),
        law => Err(Error::input(
            "law of the answers",
            format!("{law:?}"),
            "train on tokens drawn from the whole softmax (no greedy choice, no top-k, top-p or min-p): the log-probability that trains must be that of the law sampled from",
        )),
    }
}
