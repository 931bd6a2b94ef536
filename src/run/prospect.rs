//! What a run would do with its folder and take of its disk, before it does: a part of what `--dry-run` says.

use super::adapters;
use super::folder::{Existing, RunFolder, standing};
use super::recipe::{AdapterSave, Recipe};
use super::schooling;
use super::settings;
use super::story::{Part, Progress, parts};
use super::student::Student;
use super::terminal::bytes;
use crate::base::{Result, disk};
use crate::device::Device;
use crate::learn::optimizer::Optimizer;
use crate::ops::Tensor;
use std::path::Path;

/// What would become of `path`, line by line: made, taken anew, or gone on with from which checkpoint and in which part;
/// then what checkpoints and models take of the disk. Nothing is written.
///
/// # Errors
/// Whatever the run itself would refuse the folder for; sizes that no model can have.
pub fn prospect(recipe: &Recipe, path: &Path, existing: Existing, device: &Device) -> Result<Vec<String>> {
    let there = RunFolder::look(path, existing)?;
    let place = path.display();
    let mut lines = match (existing, there) {
        (Existing::Resume, _) => going_on(recipe, path)?,
        (Existing::Clean, true) => {
            vec![format!("folder    {place}: the run that it holds is removed, another begins")]
        }
        _ => vec![format!("folder    {place}: a run begins there")],
    };
    lines.push(Disk::of(recipe, device)?.line(disk::free(standing(path))));
    Ok(lines)
}

/// Where the run in `path` goes on.
fn going_on(recipe: &Recipe, path: &Path) -> Result<Vec<String>> {
    RunFolder::refuse_other_recipe(path, recipe)?;
    let (latest, place) = (RunFolder::latest(path)?, path.display());
    let mut lines = latest.skipped;
    let Some(checkpoint) = latest.checkpoint else {
        lines.push(format!("folder    {place}: the run there has no checkpoint yet, and begins again"));
        return Ok(lines);
    };
    let progress = Progress::of_checkpoint(&checkpoint)?;
    let from =
        format!("folder    {place}: goes on after step {} of {}", progress.step, checkpoint.path().display());
    lines.push(match parts(recipe).get(progress.part) {
        None => format!("{from}, where all is done: the closing table is written again"),
        Some(part) => {
            let name = match part {
                Part::Phase(phase) | Part::Continued(phase) => &phase.name,
                Part::Arm(plan) => &plan.name,
            };
            format!("{from}, in {name} after {} of its updates", progress.update)
        }
    });
    Ok(lines)
}

/// Bytes as a person reads them, small models' too.
fn amount(count: u64) -> String {
    match count {
        0..0x100_0000 => format!("{:.2} MiB", count as f64 / f64::from(1 << 20)),
        _ => bytes(count),
    }
}

/// Bytes that a run writes, the logs of its updates left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// A checkpoint with the optimiser's state.
    pub checkpoint: u64,
    /// Most checkpoints at once: those that are kept, and one that is being written.
    pub checkpoints: u64,
    /// All models of the closing table.
    pub models: u64,
}

impl Disk {
    /// What `recipe` writes. `device` is asked for nothing: a model and an optimiser are made on its accountant.
    ///
    /// # Errors
    /// Sizes that no model can have, a folder or file that cannot be read.
    pub fn of(recipe: &Recipe, device: &Device) -> Result<Disk> {
        let Student { model, companions, unchanged, .. } =
            Student::blank_of(recipe, &device.accountant(None))?;
        let held = |list: &[Tensor]| list.iter().map(|tensor| tensor.bytes() as u64).sum::<u64>();
        let files = companions.bytes();
        let (whole, trained) = (held(model.parameters()) + files, held(model.trained()) + files);
        let optimizer = Optimizer::new(&model, settings::optimizer(0.0, 0.0))?;
        let state: usize = optimizer.state(&model)?.iter().map(|(_, state)| state.bytes()).sum();
        let adapted = adapters::config(recipe, model.config().tied).is_some();
        let named = 1 + recipe.grpo.arms.len() as u64;
        let models = match (adapted, recipe.adapter.save) {
            (false, _) => named * whole,
            // The adapter itself is kept beside the merged model that every arm starts from.
            (true, AdapterSave::Merged) => named * whole + trained,
            (true, AdapterSave::Separate) => named * trained + if unchanged.is_some() { 0 } else { whole },
        };
        let trains = !schooling::phases(recipe).is_empty() || !recipe.grpo.arms.is_empty();
        let kept = recipe.run.keep_last.max(1) as u64 + u64::from(recipe.run.keep_best);
        Ok(Disk {
            checkpoint: trained + state as u64,
            checkpoints: if trains { kept + 1 } else { 0 },
            models,
        })
    }

    /// All of it at most.
    pub fn all(&self) -> u64 {
        self.checkpoints.saturating_mul(self.checkpoint).saturating_add(self.models)
    }

    /// In words, beside what is `free`.
    pub fn line(&self, free: Option<u64>) -> String {
        let all = self.all();
        let free = match free {
            Some(free) if free >= all => format!(", of {} free: fits", bytes(free)),
            Some(free) => format!(", of {} free: may not fit", bytes(free)),
            None => String::new(),
        };
        format!(
            "disk      {} a checkpoint, at most {} at once; models {}; {} in all{free}",
            amount(self.checkpoint),
            self.checkpoints,
            amount(self.models),
            amount(all)
        )
    }
}
