//! What a run will do and take, before it does: counts, the largest pieces of memory, and how updates find their
//! activations.

use super::problems::{Item, Problems};
use super::recipe::Recipe;
use super::reinforcement::{self, Arm};
use super::school_room::{SchoolRoom, limits_of};
use super::schooling::Phase;
use super::settings;
use super::story::{Part, parts};
use super::student::Student;
use super::terminal::{Certainty, MemoryRow, memory_table};
use crate::base::Result;
use crate::device::Device;
use crate::learn::optimizer::Optimizer;
use crate::learn::policy::Source;
use crate::model::Model;
use crate::model::Record::Nothing;
use crate::ops::sampler::Law;
use crate::rollout::group::{Drawing, Form, Limits, Rollouts, Thoughts};
use crate::rollout::masks::Masking;
use std::fmt::Write;

/// Everything `--dry-run` prints after the recipe.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// Counts, in words, a line each.
    pub lines: Vec<String>,
    /// The pieces of memory that are alive at once at the worst moment.
    pub memory: Vec<MemoryRow>,
}

impl Forecast {
    /// Bytes of the whole table.
    pub fn bytes(&self) -> u64 {
        self.memory.iter().map(|row| row.bytes).sum()
    }

    /// As text.
    pub fn text(&self, free: Option<u64>) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        text + "\n" + &memory_table(&self.memory, free)
    }
}

/// What the program itself, its threads and the problems take, beside tensors.
const PROGRAM: u64 = 24 << 20;

/// The forecast of `recipe` with its model and problems.
///
/// # Errors
/// Settings that contradict each other, or one group of rollouts that does not fit the tape.
pub fn forecast(recipe: &Recipe, student: &Student, problems: &Problems) -> Result<Forecast> {
    let model = &student.model;
    let parameters: usize = model.parameters().iter().map(|p| p.shape().elements()).sum();
    let weights: usize = model.parameters().iter().map(|p| p.bytes()).sum();
    let mut lines = vec![
        format!(
            "model     {} {} layers, width {}, vocabulary {}: {parameters} parameters",
            model.config().family.model_type(),
            model.config().layers,
            model.config().width,
            model.config().vocab
        ),
        format!(
            "problems  {} train, {} valid, {} test; {} malformed, {} too long; {} and {} shared with training, left out there",
            problems.train.items.len(),
            problems.valid.items.len(),
            problems.test.items.len(),
            problems.train.bad + problems.valid.bad + problems.test.bad,
            problems.train.too_long + problems.valid.too_long + problems.test.too_long,
            problems.overlap[0],
            problems.overlap[1],
        ),
    ];
    let items = &problems.prompts().items;
    let mut largest: (usize, String) = (0, "no updates".into());
    for part in parts(recipe) {
        let (bytes, line) = match &part {
            Part::Phase(phase) | Part::Continued(phase) => school(recipe, student, phase, problems)?,
            Part::Arm(plan) => {
                let curriculum = settings::curriculum(recipe);
                let form = reinforcement::form(recipe, &curriculum, &student.markers);
                // The same reservations, on a model of its own device, whose pages are never touched.
                let (before, stand_in) = stand_in(model)?;
                let reference = plan.objective.loss.kl.map(|_| stand_in.duplicate()).transpose()?;
                let arm =
                    Arm::new(&stand_in, recipe, plan, form.clone(), items, &student.tokenizer, reference)?;
                let updates = stand_in.device().traffic().count().bytes_held - before;
                // Between updates it is asked validation problems, at the end test problems in every way.
                let asks =
                    |items: &[Item], samples| examination(recipe, &stand_in, form.clone(), items, samples);
                let between = if recipe.evaluation.every > 0 { asks(&problems.valid.items, 1)? } else { 0 };
                let mut closing = 0;
                for set in std::iter::once(&problems.test).chain(&problems.shifted) {
                    closing =
                        closing.max(asks(&set.items, 1)?).max(asks(&set.items, recipe.evaluation.masks)?);
                }
                let bytes = (updates + between).max(closing);
                let policy = arm.policy();
                let how = match policy.source() {
                    Source::Tape => "gradients read the tape of sampling",
                    Source::Replay => "gradients replay the rollouts",
                };
                let line = format!(
                    "{:<9} {} updates of {} prompts x {} rollouts, {} prompts at once, {how}",
                    plan.name,
                    recipe.grpo.updates,
                    plan.prompts,
                    plan.group,
                    policy.prompts_at_once().min(plan.prompts),
                );
                (bytes, line)
            }
        };
        if bytes > largest.0 {
            largest = (bytes, line.split_whitespace().next().unwrap_or_default().to_string());
        }
        lines.push(line);
    }
    let row = |name: &str, bytes: u64, certainty| MemoryRow { name: name.into(), bytes, certainty };
    let memory = vec![
        row("weights", weights as u64, Certainty::Exact),
        row(&format!("largest part ({})", largest.1), largest.0 as u64, Certainty::Exact),
        row("program and problems", PROGRAM, Certainty::Estimate),
    ];
    Ok(Forecast { lines, memory })
}

/// Bytes of a supervised phase: the larger of its updates and of the evaluation after it, with the optimiser in both.
fn school(recipe: &Recipe, student: &Student, phase: &Phase, problems: &Problems) -> Result<(usize, String)> {
    let items = &problems.train.items;
    let limits = limits_of(phase, items, student.markers);
    // The same reservations, on a model of its own device, whose pages are never touched.
    let (before, stand_in) = stand_in(&student.model)?;
    let held = || stand_in.device().traffic().count().bytes_held - before;
    let settings = settings::optimizer(phase.weight_decay, phase.clip);
    let optimizer = Optimizer::new(&stand_in, settings)?;
    let kept = held();
    let room = SchoolRoom::new(&stand_in, phase, items, student.markers, optimizer)?;
    let training = held();
    drop(room);
    let answers = problems.valid.items.iter();
    let answers = answers.map(|item| phase.at_end(&item.tokens, items.len(), &student.markers).answer.len());
    let form =
        phase.curriculum.form(phase.stage, usize::MAX, &student.markers, answers.max().unwrap_or(1) + 2);
    let asking = kept + examination(recipe, &stand_in, form, &problems.valid.items, 1)?;
    let line = format!(
        "{:<9} {} epochs of {} examples, {} an update, longest {} positions",
        phase.name,
        phase.epochs,
        items.len(),
        phase.batch,
        limits.longest
    );
    Ok((training.max(asking), line))
}

/// Bytes of asking `items` so many answers each, in the way that takes most.
fn examination(recipe: &Recipe, model: &Model, form: Form, items: &[Item], samples: usize) -> Result<usize> {
    let before = model.device().traffic().count().bytes_held;
    let prompts = (recipe.evaluation.batch / samples).clamp(1, items.len().max(1));
    let limits = Limits {
        prompts,
        members: prompts * samples,
        prompt_tokens: items.iter().map(|item| item.tokens.question.len()).max().unwrap_or(1),
    };
    let mut most = 0;
    for (thoughts, scope) in
        [(Thoughts::Own, None), (Thoughts::Shuffled, None), (Thoughts::Own, Some(recipe.mask.scope))]
    {
        let drawing = Drawing {
            masking: scope.map_or(Masking::NONE, |scope| settings::masking(&recipe.mask, scope)),
            latent_noise: 0.0,
            thoughts,
            law: Law::Greedy,
            seed: recipe.seed,
            share: true,
        };
        let rollouts = Rollouts::reserve(model, form.clone(), drawing, limits, Nothing)?;
        most = most.max(model.device().traffic().count().bytes_held - before);
        drop(rollouts);
    }
    Ok(most)
}

/// A model of the same sizes on a host device of its own, and the bytes it holds there.
fn stand_in(model: &Model) -> Result<(usize, Model)> {
    let device = Device::cpu();
    let model = model.blank(&device)?;
    Ok((device.traffic().count().bytes_held, model))
}

/// Bytes of memory that programs may still take; none where the system does not say.
pub fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes << 10)
}
