//! Checkpoints: complete Hugging Face folders with the optimiser's state, that survive kills and full disks.
//!
//! ```text
//! checkpoints/step-000200/
//!   config.json, model.safetensors, companions   opens in transformers; or, where an adapter is trained,
//!   adapter_config.json, adapter_model.safetensors, companions   opens in PEFT
//!   train_state.safetensors                      AdamW's moments and masters; step, score and the job's state as text
//!   checksums.sha256                             of all others, as sha256sum -c reads it; written last
//! ```
//!
//! Everything is written into a hidden folder, synced, and renamed: a step's folder appears whole or not at all. Should a
//! disk lose or change something later, the checksums tell, and the checkpoint before it is used.

mod checksums;
mod state_file;

use super::adapters;
use super::recipe::Recipe;
use crate::base::{Dtype, Error, Result};
use crate::device::Device;
use crate::learn::optimizer::Optimizer;
use crate::model::safetensors_file::SafetensorsFile;
use crate::model::save::Companions;
use crate::model::{Model, Precision};
use checksums::{verify, write_checksums};
use state_file::{stored_as, write_train_state};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The file with everything that is not the model.
const TRAIN_STATE: &str = "train_state.safetensors";
/// Ends the name of a checkpoint while it takes the place of an older one of the same step.
const AGAIN: &str = "-again";
/// Begins the names of folders that are being written or removed.
const HIDDEN: &str = ".latch-";

/// What a job needs to go on, besides model and optimiser.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainState {
    /// The job's own state, JSON by convention: stage, epoch, counters, best score.
    pub job: String,
    /// Validation score for keep-best, higher is better.
    pub score: Option<f64>,
}

/// Which checkpoints stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many, at least 1.
    pub last: usize,
    /// Besides, the one with the highest score (the earliest of equals).
    pub best: bool,
}

/// The checkpoints of a run, for the process that writes them.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: Keep,
}

/// A checkpoint whose checksums were right when it was opened.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    step: u64,
    optimizer_step: Option<u64>,
    state: TrainState,
}

/// The newest usable checkpoint.
#[derive(Clone, Debug)]
pub struct Latest {
    /// None when there is none.
    pub checkpoint: Option<Checkpoint>,
    /// A sentence for each newer one that cannot be used: what is wrong with it.
    pub skipped: Vec<String>,
}

impl Checkpoints {
    /// The checkpoints in `folder` (created on the first save). Clears away what a killed process left unfinished, so
    /// only the process that writes may call it; others use [`latest`].
    ///
    /// # Errors
    /// The folder cannot be listed, or its left-overs not be removed.
    pub fn open(folder: &Path, keep: Keep) -> Result<Checkpoints> {
        let checkpoints = Checkpoints { folder: folder.to_path_buf(), keep };
        if folder.is_dir() {
            for name in names(folder)?.iter().filter(|name| name.starts_with(HIDDEN)) {
                let path = folder.join(name);
                fs::remove_dir_all(&path).map_err(Error::io(&path, "cannot remove"))?;
            }
            for (step, again) in steps(folder)?.into_iter().filter(|(_, again)| *again) {
                let path = path_of(folder, step, again);
                match Checkpoint::open(&path) {
                    Ok(_) => checkpoints.take_place(step)?,
                    Err(_) => checkpoints.remove(&path)?,
                }
            }
        }
        Ok(checkpoints)
    }

    /// Writes the checkpoint of `step`, then removes what [`Keep`] does not keep, and any of later steps: those could not
    /// be used, or the run would not be at `step` again. Returns the checkpoint's folder.
    ///
    /// # Errors
    /// The place cannot be written to, or the disk is full. All earlier checkpoints are then still there.
    pub fn save(
        &self,
        step: u64,
        model: &Model,
        optimizer: Option<&Optimizer>,
        state: &TrainState,
        companions: &Companions,
    ) -> Result<PathBuf> {
        let folder = &self.folder;
        fs::create_dir_all(folder).map_err(Error::io(folder, "cannot create the folder"))?;
        let staging = staging(folder)?;
        let new = staging.path().join("checkpoint");
        let path = path_of(folder, step, false);
        let write = || {
            adapters::save_exact(model, &new, companions)?;
            write_train_state(&new.join(TRAIN_STATE), step, model, optimizer, state)?;
            write_checksums(&new)?;
            sync(&new)
        };
        write().map_err(|error| error.in_place_of(&new, &path))?;
        let replaces = path.exists();
        let target = path_of(folder, step, replaces);
        fs::rename(&new, &target).map_err(Error::io(&target, "cannot create the folder"))?;
        sync(folder)?;
        if replaces {
            self.take_place(step)?;
        }
        self.prune(step)?;
        Ok(path)
    }

    /// The newest checkpoint that is whole.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn latest(&self) -> Result<Latest> {
        latest(&self.folder)
    }

    /// The checkpoint with the highest score, the earliest of equals. Damaged ones are passed over.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn best(&self) -> Result<Option<Checkpoint>> {
        let mut scored = scored(&self.folder)?;
        while let Some(best) = best(&scored) {
            match Checkpoint::open(&path_of(&self.folder, best, false)) {
                Ok(checkpoint) => return Ok(Some(checkpoint)),
                Err(_) => scored.retain(|(step, _)| *step != best),
            }
        }
        Ok(None)
    }

    /// Puts `step-N-again` in the place of `step-N`. At every moment one of the two is whole.
    fn take_place(&self, step: u64) -> Result<()> {
        let (old, new) = (path_of(&self.folder, step, false), path_of(&self.folder, step, true));
        if old.exists() {
            self.remove(&old)?;
        }
        fs::rename(&new, &old).map_err(Error::io(&old, "cannot create the folder"))?;
        sync(&self.folder)
    }

    /// Removes a checkpoint: out of sight in one step, so that no half of it is ever seen.
    fn remove(&self, path: &Path) -> Result<()> {
        let hidden = staging(&self.folder)?;
        let target = hidden.path().join("removed");
        fs::rename(path, &target).map_err(Error::io(path, "cannot remove"))?;
        sync(&self.folder)?;
        hidden.close().map_err(Error::io(path, "cannot remove"))
    }

    fn prune(&self, saved: u64) -> Result<()> {
        let mut earlier: Vec<u64> = steps(&self.folder)?.into_iter().map(|(step, _)| step).collect();
        earlier.dedup();
        let later: Vec<u64> = earlier.iter().copied().filter(|step| *step > saved).collect();
        earlier.retain(|step| *step <= saved);
        let kept: Vec<u64> = earlier.iter().rev().take(self.keep.last.max(1)).copied().collect();
        let mut candidates = if self.keep.best { scored(&self.folder)? } else { Vec::new() };
        candidates.retain(|(step, _)| *step <= saved);
        let best = best(&candidates);
        for step in later.into_iter().chain(earlier) {
            if !kept.contains(&step) && best != Some(step) {
                self.remove(&path_of(&self.folder, step, false))?;
            }
        }
        Ok(())
    }
}

/// The newest whole checkpoint in `folder`; reads only, so it may look at a run that is going on.
///
/// # Errors
/// The folder cannot be listed.
pub fn latest(folder: &Path) -> Result<Latest> {
    let mut skipped = Vec::new();
    if folder.is_dir() {
        for (step, again) in steps(folder)?.into_iter().rev() {
            match Checkpoint::open(&path_of(folder, step, again)) {
                Ok(checkpoint) => return Ok(Latest { checkpoint: Some(checkpoint), skipped }),
                Err(error) => skipped.push(format!("checkpoint of step {step} is skipped: {error}")),
            }
        }
    }
    Ok(Latest { checkpoint: None, skipped })
}

/// Step and folder of the newest checkpoint in `folder`, whose checksums nobody has compared.
///
/// # Errors
/// The folder cannot be listed.
pub fn newest(folder: &Path) -> Result<Option<(u64, PathBuf)>> {
    let last = if folder.is_dir() { steps(folder)?.pop() } else { None };
    Ok(last.map(|(step, again)| (step, path_of(folder, step, again))))
}

impl Checkpoint {
    /// Opens one checkpoint and compares every file with its checksum.
    ///
    /// # Errors
    /// What is missing, cut or changed, with names and sums.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        verify(path)?;
        let file = path.join(TRAIN_STATE);
        let opened = SafetensorsFile::open(&file)?;
        let text = |name: &str| opened.metadata().and_then(|metadata| metadata.get(name));
        let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok());
        let missing = |name: &str| {
            Error::file(&file, format!("has no readable {name}"), "the checkpoint is of another program")
        };
        Ok(Checkpoint {
            path: path.to_path_buf(),
            step: number("step").ok_or_else(|| missing("step"))?,
            optimizer_step: number("optimizer_step"),
            state: TrainState {
                job: text("job").ok_or_else(|| missing("job"))?.clone(),
                score: text("score").and_then(|text| text.parse().ok()),
            },
        })
    }

    /// Its folder, which is a Hugging Face folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The step it was saved at.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// What the job saved.
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// Whether an optimiser was saved.
    pub fn has_optimizer(&self) -> bool {
        self.optimizer_step.is_some()
    }

    /// The model, as it was to the bit when the recipe is that of the run; an adapter shares the base of `model`.
    ///
    /// # Errors
    /// Those of [`adapters::load_exact`].
    pub fn model_like(&self, recipe: &Recipe, model: &Model) -> Result<Model> {
        adapters::load_exact(recipe, model, &self.path)
    }

    /// The model, as it was to the bit when `precision` is that of the run; not where it is an adapter.
    ///
    /// # Errors
    /// Those of [`Model::load`].
    pub fn model(&self, device: &Device, precision: Precision) -> Result<Model> {
        Model::load(&self.path, device, precision)
    }

    /// Gives `optimizer`, made for `model`, the state it was saved with.
    ///
    /// # Errors
    /// None was saved, or one of another model or precision.
    pub fn restore(&self, model: &Model, optimizer: &mut Optimizer) -> Result<()> {
        let path = self.path.join(TRAIN_STATE);
        let Some(step) = self.optimizer_step else {
            let advice = "start with a fresh optimiser, or resume from another checkpoint";
            return Err(Error::file(&path, "holds no optimiser state", advice));
        };
        let file = SafetensorsFile::open(&path)?;
        optimizer.restore(model, step, |name, tensor| {
            let stored = file.tensor(name)?;
            let expected = stored_as(tensor.dtype())?;
            if stored.stored != expected || stored.shape != tensor.shape().dims() {
                let problem = format!(
                    "\"{name}\" is {} {:?}, expected {} {:?}",
                    stored.stored.torch_name(),
                    stored.shape,
                    expected.torch_name(),
                    tensor.shape().dims()
                );
                return Err(Error::file(&path, problem, "resume with the model and dtype of the run"));
            }
            match tensor.dtype() {
                Dtype::F64 => tensor.upload(&bytemuck::pod_collect_to_vec::<u8, f64>(stored.bytes)),
                _ => tensor.upload(&bytemuck::pod_collect_to_vec::<u8, f32>(stored.bytes)),
            }
        })
    }
}

fn path_of(folder: &Path, step: u64, again: bool) -> PathBuf {
    folder.join(format!("step-{step:06}{}", if again { AGAIN } else { "" }))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(Error::io(folder, "cannot list"))?;
    let name = |entry: std::io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<std::io::Result<_>>().map_err(Error::io(folder, "cannot list"))
}

/// Steps with a folder, rising; whether it is one that takes another's place.
fn steps(folder: &Path) -> Result<Vec<(u64, bool)>> {
    let mut list: Vec<(u64, bool)> = names(folder)?
        .iter()
        .filter_map(|name| {
            let digits = name.strip_prefix("step-")?;
            let (digits, again) = match digits.strip_suffix(AGAIN) {
                Some(digits) => (digits, true),
                None => (digits, false),
            };
            let step = digits.parse().ok()?;
            // Only names that we would give: others are somebody's copies.
            path_of(folder, step, again).ends_with(name).then_some((step, again))
        })
        .collect();
    list.sort_unstable();
    Ok(list)
}

/// Scores by rising step, of checkpoints that have one. Not verified.
fn scored(folder: &Path) -> Result<Vec<(u64, f64)>> {
    let mut list = Vec::new();
    if folder.is_dir() {
        for (step, _) in steps(folder)?.into_iter().filter(|(_, again)| !again) {
            let file = SafetensorsFile::open(&path_of(folder, step, false).join(TRAIN_STATE)).ok();
            let score = file.and_then(|file| file.metadata()?.get("score")?.parse().ok());
            list.extend(score.map(|score: f64| (step, score)));
        }
    }
    Ok(list)
}

/// The earliest step of the highest score; NaN is never best.
fn best(scored: &[(u64, f64)]) -> Option<u64> {
    let mut best: Option<(u64, f64)> = None;
    for &(step, score) in scored {
        if !score.is_nan() && best.is_none_or(|(_, highest)| score > highest) {
            best = Some((step, score));
        }
    }
    best.map(|(step, _)| step)
}

/// A hidden folder in `folder`, with the permissions that a plain one would have.
fn staging(folder: &Path) -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(HIDDEN);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(folder).map_err(Error::io(folder, "cannot write into the folder"))
}

/// Names of files are on the disk only when their folder is.
fn sync(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let opened = File::open(folder).map_err(Error::io(folder, "cannot open"))?;
        opened.sync_all().map_err(Error::io(folder, "cannot write"))?;
    }
    Ok(())
}
