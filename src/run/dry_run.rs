//! What a run will do and take, before it does: counts, memory by kind, and how updates find their activations. On a GPU a
//! run that would not fit is refused with the same numbers.

use super::admission::{self, Remedy};
use super::problems::{self, Problems};
use super::recipe::{Recipe, Variant};
use super::rehearsal::{Rehearsed, rehearse};
use super::settings;
use super::story::longest;
use super::student::Student;
use super::terminal::{Certainty, MemoryRow, memory_table};
use crate::base::{Result, host_memory};
use crate::cpu::parallel;
use crate::device::{Arena, Device};
use crate::model::Precision;
use crate::ops::reading_order;
use std::fmt::Write;

/// Everything `--dry-run` prints after the recipe.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// Counts, in words, a line each.
    pub lines: Vec<String>,
    /// What memory is for, at the worst moment.
    pub memory: Vec<MemoryRow>,
    /// When that is.
    pub worst: String,
    /// Bytes that are free where the memory is taken, where that is known.
    pub free: Option<u64>,
}

impl Forecast {
    /// Bytes of the whole table.
    pub fn bytes(&self) -> u64 {
        self.memory.iter().map(|row| row.bytes).sum()
    }

    /// Bytes of tensors.
    pub fn tensors(&self) -> u64 {
        let exact = self.memory.iter().filter(|row| row.certainty == Certainty::Exact);
        exact.map(|row| row.bytes).sum()
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "most memory is held in: {}", self.worst);
        text + "\n" + &memory_table(&self.memory, self.free)
    }
}

/// What the program, its tokenizer and the problems take where the system does not say.
const PROGRAM: u64 = 32 << 20;

/// What matrix products pack for all threads at once, at most (cpu/gemm/packed.rs, in f32).
const PACKED: u64 = 16 << 20;

/// What a thread has touched of its stack, and packs for itself.
const THREAD: u64 = 2 << 20;

/// The problems of `recipe`, without its model.
///
/// # Errors
/// Those of the model's files and of the problems'.
pub fn problems(recipe: &Recipe, device: &Device) -> Result<Problems> {
    let Student { model, tokenizer, markers, .. } = Student::blank_of(recipe, &device.accountant(None))?;
    let (curriculum, longest) = (settings::curriculum(recipe), longest(recipe, &model));
    problems::load(recipe, &tokenizer, markers.stop, &curriculum, longest)
}

/// The forecast of `recipe` with its problems on `device`, which is asked for its free memory alone.
///
/// # Errors
/// Settings that contradict each other, or one group of rollouts that does not fit the tape.
pub fn forecast(recipe: &Recipe, problems: &Problems, device: &Device) -> Result<Forecast> {
    let rehearse = |device: &Device| rehearse(recipe, problems, device);
    forecast_of(recipe, device, vec![counts(problems)], &rehearse)
}

/// The forecast of what `rehearse` does by `recipe`, with `counts` of it in words.
///
/// # Errors
/// Those of `rehearse`.
pub(super) fn forecast_of(
    recipe: &Recipe,
    device: &Device,
    counts: Vec<String>,
    rehearse: &dyn Fn(&Device) -> Result<Rehearsed>,
) -> Result<Forecast> {
    // Before the rehearsal, which comes and goes: what is resident and no tensor is here to stay.
    let held = device.traffic().count().bytes_held as u64;
    let program = host_memory::resident().map_or(PROGRAM, |resident| resident.saturating_sub(held));
    let rehearsed = rehearse(&device.accountant(None))?;
    let mut lines = vec![rehearsed.model.clone()];
    lines.extend(counts);
    lines.extend(rehearsed.adapter.iter().chain(&rehearsed.lines).cloned());
    let exact = |name: &str, bytes: usize| MemoryRow {
        name: name.into(),
        bytes: bytes as u64,
        certainty: Certainty::Exact,
    };
    let mut memory: Vec<MemoryRow> =
        rows(&rehearsed).iter().map(|(name, bytes)| exact(name, *bytes)).collect();
    let free = match device {
        Device::Cpu(_) => {
            let mut estimate = |name: &str, bytes: u64| {
                memory.push(MemoryRow { name: name.into(), bytes, certainty: Certainty::Estimate });
            };
            // Rollouts and answers read every matrix at each position: all come to have a copy.
            let weights = rehearsed.peak.of(Arena::Weights);
            let copies = reading_order::at_most(weights, recipe.run.weight_copies_mib);
            if copies > 0 {
                estimate("copies of weights", copies as u64);
            }
            estimate("program, tokenizer, problems", program);
            estimate("threads and packed operands", PACKED + THREAD * parallel::threads() as u64);
            host_memory::free()
        }
        Device::Gpu(gpu) => {
            let free = gpu.memory_free()?;
            let rehearse = |device: &Device| rehearse(device).map(drop);
            let fits = rehearse(&device.accountant(Some(free))).is_ok();
            let need = admission::need(device, &rehearse, if fits { 0 } else { free })?;
            memory.push(exact("rounding to blocks", need.free.saturating_sub(need.peak.total())));
            Some(free as u64)
        }
    };
    Ok(Forecast { lines, memory, worst: rehearsed.worst, free })
}

/// Bytes that the forecast of `recipe` adds up to: of the host's memory on the CPU, of tensors on a GPU, whose pool rounds
/// them up.
///
/// # Errors
/// As [`forecast`].
pub fn bytes(recipe: &Recipe, problems: &Problems, device: &Device) -> Result<u64> {
    match device {
        Device::Cpu(_) => Ok(forecast(recipe, problems, device)?.bytes()),
        Device::Gpu(_) => Ok(rehearse(recipe, problems, &device.accountant(None))?.peak.total() as u64),
    }
}

/// Memory by kind; beside an adapter frozen weights are apart.
fn rows(rehearsed: &Rehearsed) -> Vec<(String, usize)> {
    let [frozen, adapted] = rehearsed.weights;
    let mut rows = Vec::new();
    for (name, bytes) in admission::kinds(&rehearsed.peak) {
        match (name, adapted > 0) {
            ("weights", true) => {
                rows.push(("frozen weights".into(), frozen));
                rows.push(("adapters".into(), bytes - frozen));
            }
            ("gradients" | "optimiser moments", true) => rows.push((format!("{name} of adapters"), bytes)),
            _ => rows.push((name.into(), bytes)),
        }
    }
    rows
}

/// What the problems are.
pub(super) fn counts(problems: &Problems) -> String {
    format!(
        "problems  {} train, {} valid, {} test; {} malformed, {} too long; {} and {} shared with training, where {} are left out",
        problems.train.items.len(),
        problems.valid.items.len(),
        problems.test.items.len(),
        problems.train.bad + problems.valid.bad + problems.test.bad,
        problems.train.too_long + problems.valid.too_long + problems.test.too_long,
        problems.overlap[0],
        problems.overlap[1],
        problems.known,
    )
}

/// Refuses a run that `device`, where it is a GPU, has no memory for.
///
/// # Errors
/// As [`admission::admit`], with the recipe's keys that would make it fit.
pub fn admit(recipe: &Recipe, problems: &Problems, device: &Device) -> Result<()> {
    let rehearse = |recipe: &Recipe, device: &Device| rehearse(recipe, problems, device).map(drop);
    admission::admit(device, "this run", recipe, &rehearse, &remedies())
}

/// What can be set to make a run take less, the least change first.
pub(super) fn remedies<'a>() -> Vec<Remedy<'a, Recipe>> {
    /// The recipe with one key changed, where it is then still one that can be run.
    fn with(recipe: &Recipe, change: impl FnOnce(&mut Recipe)) -> Option<Recipe> {
        let mut changed = recipe.clone();
        change(&mut changed);
        changed.check("the recipe").is_ok().then_some(changed)
    }
    let half = |value: usize, least: usize| (value > least).then(|| (value / 2).max(least));
    let set = |key: &str, value: String| format!("--set {key}={value}");
    vec![
        Remedy::new(
            |r: &Recipe| if r.run.recompute { None } else { with(r, |r| r.run.recompute = true) },
            move |_| set("run.recompute", "true".into()),
        ),
        Remedy::new(
            move |r: &Recipe| {
                half(r.run.positions_at_once, 16)
                    .and_then(|value| with(r, |r| r.run.positions_at_once = value))
            },
            move |r| set("run.positions_at_once", r.run.positions_at_once.to_string()),
        ),
        Remedy::new(
            move |r: &Recipe| {
                // 0 is no limit: begin where every tape fits.
                let now = if r.grpo.tape_mib == 0 { 1 << 20 } else { r.grpo.tape_mib };
                half(now, 1).and_then(|value| with(r, |r| r.grpo.tape_mib = value))
            },
            move |r| set("grpo.tape_mib", r.grpo.tape_mib.to_string()),
        ),
        Remedy::new(
            move |r: &Recipe| {
                half(r.evaluation.batch, 1).and_then(|value| with(r, |r| r.evaluation.batch = value))
            },
            move |r| set("evaluation.batch", r.evaluation.batch.to_string()),
        ),
        Remedy::new(
            |r: &Recipe| match r.model.dtype {
                Precision::F32 => with(r, |r| r.model.dtype = Precision::Bf16),
                Precision::Bf16 => with(r, |r| r.model.dtype = Precision::Bf16Activations),
                _ => None,
            },
            move |r| set("model.dtype", r.model.dtype.to_string()),
        ),
        Remedy::new(
            |r: &Recipe| match r.adapter.rank == 0 && r.coconut.variant != Variant::Codi {
                true => with(r, |r| r.adapter.rank = 16),
                false => None,
            },
            move |r| set("adapter.rank", r.adapter.rank.to_string()),
        ),
    ]
}
