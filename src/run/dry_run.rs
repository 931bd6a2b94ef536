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
use crate::ops::Tensor;
use crate::ops::sampler::Law;
use crate::rollout::group::{Drawing, Form, Gating, Limits, Rollouts, Thoughts};
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
    let elements = |list: &[Tensor]| -> usize { list.iter().map(|tensor| tensor.shape().elements()).sum() };
    let bytes = |list: &[Tensor]| -> u64 { list.iter().map(|tensor| tensor.bytes() as u64).sum() };
    let parameters = elements(model.parameters());
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
    if let Some(config) = model.adapter() {
        let trained = elements(model.trained());
        lines.push(format!(
            "adapter   rank {}, scale {}: {trained} of {} parameters are trained ({:.2} %)",
            config.rank,
            config.scale(),
            parameters + trained,
            100.0 * trained as f64 / (parameters + trained) as f64
        ));
    }
    let items = &problems.prompts().items;
    let mut largest = (Moment::default(), "no updates".to_string());
    for part in parts(recipe) {
        let (moment, line) = match &part {
            Part::Phase(phase) | Part::Continued(phase) => school(recipe, student, phase, problems)?,
            Part::Arm(plan) => {
                let curriculum = settings::curriculum(recipe);
                let form = reinforcement::form(recipe, &curriculum, &student.markers);
                // The same reservations, on a model of its own device, whose pages are never touched.
                let (before, mut stand_in) = stand_in(model)?;
                plan.prepare(&mut stand_in, recipe)?;
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
                let training = Moment { bytes: updates + between, gradients: true, optimizer: true };
                let moment = training.or(Moment { bytes: closing, ..Moment::default() });
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
                (moment, line)
            }
        };
        if moment.bytes > largest.0.bytes {
            largest = (moment, line.split_whitespace().next().unwrap_or_default().to_string());
        }
        lines.push(line);
    }
    let row = |name: &str, bytes: u64, certainty| MemoryRow { name: name.into(), bytes, certainty };
    let exact = |name: &str, bytes: u64| row(name, bytes, Certainty::Exact);
    let (moment, part) = largest;
    let largest = format!("largest part ({part})");
    let mut memory = match model.adapter() {
        None => vec![exact("weights", bytes(model.parameters())), exact(&largest, moment.bytes as u64)],
        Some(_) => {
            let [gradients, optimizer] = training_bytes(model)?;
            let [gradients, optimizer] = [(gradients, moment.gradients), (optimizer, moment.optimizer)]
                .map(|(bytes, held)| bytes * u64::from(held));
            vec![
                exact("frozen weights", bytes(model.parameters())),
                exact("adapters", bytes(model.trained())),
                exact("gradients of adapters", gradients),
                exact("optimiser of adapters", optimizer),
                exact(&format!("{largest}, the rest"), moment.bytes as u64 - gradients - optimizer),
            ]
        }
    };
    memory.push(row("program and problems", PROGRAM, Certainty::Estimate));
    Ok(Forecast { lines, memory })
}

/// What is held at one moment of a part, beside the model.
#[derive(Clone, Copy, Debug, Default)]
struct Moment {
    bytes: usize,
    /// Whether gradients and the optimiser's state are part of it.
    gradients: bool,
    optimizer: bool,
}

impl Moment {
    /// The one that takes more.
    fn or(self, other: Moment) -> Moment {
        if other.bytes > self.bytes { other } else { self }
    }
}

/// Bytes of the gradients and of an optimiser of what `model` trains.
fn training_bytes(model: &Model) -> Result<[u64; 2]> {
    let (before, stand_in) = stand_in(model)?;
    let held = || (stand_in.device().traffic().count().bytes_held - before) as u64;
    let gradients = stand_in.gradients()?;
    let of_gradients = held();
    let optimizer = Optimizer::new(&stand_in, settings::optimizer(0.0, 0.0))?;
    let of_both = held();
    drop((gradients, optimizer));
    Ok([of_gradients, of_both - of_gradients])
}

/// A supervised phase: the larger of its updates and of the evaluation after it, with the optimiser in both.
fn school(
    recipe: &Recipe,
    student: &Student,
    phase: &Phase,
    problems: &Problems,
) -> Result<(Moment, String)> {
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
    let training = Moment { bytes: training, gradients: true, optimizer: true };
    Ok((training.or(Moment { bytes: asking, gradients: false, optimizer: true }), line))
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
        // The mark, which is left out, does not change what is reserved.
        let gate = Gating {
            law: settings::gating_law(&recipe.hrpo),
            thinking: recipe.hrpo.thinking,
            mark: Vec::new(),
        };
        let drawing = Drawing {
            gate: Some(gate).filter(|gate| model.has_gates() && gate.thinking > 0),
            masking: scope.map_or(Masking::NONE, |scope| settings::masking(&recipe.mask, scope)),
            latent_noise: 0.0,
            soft: None,
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
