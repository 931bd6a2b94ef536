//! What an update of a policy is set to do, which of that can be done, and how its rollouts are cut into parts.

use super::advantages::{Baseline, Scale};
use super::objective::{Aggregation, Objective};
use super::policy_report::Report;
use super::soft_policy::SoftObjective;
use crate::base::{Error, Result};
use crate::model::{Model, Record, Sequences, Truncation};
use crate::ops::sampler::Law;
use crate::rollout::group::{Drawing, Form, Limits, Trajectory, room};

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
    /// What the tape keeps.
    pub record: Record,
    /// How soft steps are trained, where thoughts are soft.
    pub soft: Option<SoftObjective>,
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

/// Whether no group's loss depends on other groups.
pub(super) fn is_local(objective: &Objective) -> bool {
    let mean = matches!(objective.aggregation, Aggregation::TokenMean { .. });
    !mean && !matches!(objective.scale, Scale::BatchStd { .. })
}

/// Whether a group of equal rewards has a gradient: by its penalty, or for want of a baseline.
pub(super) fn trains_dead_groups(objective: &Objective) -> bool {
    objective.baseline == Baseline::None || objective.loss.kl.is_some_and(|kl| kl.beta > 0.0)
}

/// The prompts and trajectories of `rows` as a batch of their own. With fresh masks, attempts count one up.
pub(super) fn teacher(
    rows: &[(usize, f64)],
    report: &Report,
    replay: Replay,
) -> (Vec<Vec<u32>>, Vec<Trajectory>) {
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
pub(super) fn parts<'r>(
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
    pub(super) fn limits(&self, prompts: usize) -> Limits {
        Limits { prompts, members: prompts * self.group, prompt_tokens: self.prompt_tokens }
    }
}

/// How many prompts' groups fit the bytes of the tape.
pub(super) fn prompts_at_once(
    model: &Model,
    form: &Form,
    drawing: &Drawing,
    settings: &Settings,
) -> Result<usize> {
    let bytes = |prompts: usize| {
        let room = room(model, form, drawing, settings.limits(prompts), settings.record);
        Sequences::bytes(model, room, settings.record)
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
            "raise grpo.tape_mib, set run.recompute = true, or take a smaller group, shorter answers or shorter prompts",
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

pub(super) fn check(
    drawing: &Drawing,
    objective: &Objective,
    settings: &Settings,
    reference: bool,
) -> Result<()> {
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
    match (&drawing.soft, &settings.soft) {
        (None, None) => {}
        (Some(thoughts), Some(objective)) => objective.check(thoughts, drawing.latent_noise)?,
        (thoughts, objective) => {
            return Err(Error::input(
                "soft thoughts",
                format!("drawn: {}, an estimator is given: {}", thoughts.is_some(), objective.is_some()),
                "give both (estimator none trains tokens alone) or neither",
            ));
        }
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
