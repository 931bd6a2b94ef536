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

use super::adapters;
use super::recipe::Recipe;
use crate::base::{Dtype, Error, Result};
use crate::device::{Device, Element};
use crate::learn::optimizer::Optimizer;
use crate::model::safetensors_file::{self, SafetensorsFile, TensorHeader, TensorWriter};
use crate::model::save::{CHECKSUMS, Companions};
use crate::model::stored::Stored;
use crate::model::{Model, Precision, peft};
use crate::ops::Tensor;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// The file with everything that is not the model.
const TRAIN_STATE: &str = "train_state.safetensors";
/// Without these a folder is no checkpoint. They stand last in the checksums, so that a cut list lacks one of them.
const REQUIRED: [&str; 3] = ["config.json", "model.safetensors", TRAIN_STATE];
/// The same, where the model is an adapter.
const REQUIRED_OF_ADAPTERS: [&str; 3] = [peft::CONFIG_FILE, peft::WEIGHTS_FILE, TRAIN_STATE];
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
        adapters::save_exact(model, &new, companions)?;
        write_train_state(&new.join(TRAIN_STATE), step, model, optimizer, state)?;
        write_checksums(&new)?;
        sync(&new)?;
        let path = path_of(folder, step, false);
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

/// Creates `path`, lets `body` write it, and has the system put it on the disk.
fn write_synced(path: &Path, body: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let file = File::create(path).map_err(Error::io(path, "cannot create"))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    body(&mut out)?;
    let file = out.into_inner().map_err(|error| Error::io(path, "cannot write")(error.into_error()))?;
    file.sync_all().map_err(Error::io(path, "cannot write"))
}

/// Names of files are on the disk only when their folder is.
fn sync(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        let opened = File::open(folder).map_err(Error::io(folder, "cannot open"))?;
        opened.sync_all().map_err(Error::io(folder, "cannot write"))?;
    }
    Ok(())
}

fn stored_as(dtype: Dtype) -> Result<Stored> {
    match dtype {
        Dtype::F32 => Ok(Stored::F32),
        Dtype::F64 => Ok(Stored::F64),
        other => Err(Error::dtype("optimiser state", other, "f32 or f64")),
    }
}

fn write_train_state(
    path: &Path,
    step: u64,
    model: &Model,
    optimizer: Option<&Optimizer>,
    state: &TrainState,
) -> Result<()> {
    let list = optimizer.map(|optimizer| optimizer.state(model)).transpose()?.unwrap_or_default();
    let mut headers = Vec::with_capacity(list.len());
    for (name, tensor) in &list {
        let (shape, stored) = (tensor.shape().dims().to_vec(), stored_as(tensor.dtype())?);
        headers.push(TensorHeader { name: name.clone(), shape, stored });
    }
    let step = step.to_string();
    let optimizer_step = optimizer.map(|optimizer| optimizer.step().to_string());
    let score = state.score.map(|score| score.to_string());
    let mut metadata = vec![("format", "latch"), ("step", &step), ("job", &state.job)];
    metadata.extend(optimizer_step.iter().map(|text| ("optimizer_step", text.as_str())));
    metadata.extend(score.iter().map(|text| ("score", text.as_str())));
    write_synced(path, |out| {
        safetensors_file::write(path, out, &headers, &metadata, &mut |index, writer| match list[index]
            .1
            .dtype()
        {
            Dtype::F64 => write::<f64>(list[index].1, writer),
            _ => write::<f32>(list[index].1, writer),
        })
    })
}

/// The elements of a tensor, a piece at a time.
fn write<T: Element>(tensor: &Tensor, writer: &mut TensorWriter) -> Result<()> {
    const PIECE: usize = 4 << 20;
    let (rows, cols) = tensor.shape().as_matrix();
    let step = (PIECE / cols.max(1)).max(1);
    for first in (0..rows).step_by(step) {
        let piece = tensor.rows(first..(first + step).min(rows))?.download::<T>()?;
        writer.write(bytemuck::cast_slice(&piece))?;
    }
    Ok(())
}

fn write_checksums(folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    list_files(folder, "", &mut files)?;
    files.retain(|name| name != CHECKSUMS);
    let required = required(&files);
    files.sort_by_key(|name| (required.iter().position(|required| required == name), name.clone()));
    let mut text = String::new();
    for name in &files {
        text.push_str(&format!("{}  {name}\n", sum(&folder.join(name))?.0));
    }
    let path = folder.join(CHECKSUMS);
    write_synced(&path, |out| out.write_all(text.as_bytes()).map_err(Error::io(&path, "cannot write")))
}

/// All files under `folder`, as paths with `/`.
fn list_files(folder: &Path, inside: &str, files: &mut Vec<String>) -> Result<()> {
    for name in names(folder)? {
        let path = folder.join(&name);
        if path.is_dir() {
            list_files(&path, &format!("{inside}{name}/"), files)?;
        } else {
            files.push(format!("{inside}{name}"));
        }
    }
    Ok(())
}

/// What a checkpoint with these files must have.
fn required<S: AsRef<str>>(names: &[S]) -> [&'static str; 3] {
    let adapter = names.iter().any(|name| name.as_ref() == peft::CONFIG_FILE);
    if adapter { REQUIRED_OF_ADAPTERS } else { REQUIRED }
}

/// SHA-256 of a file in hexadecimal, and its length.
fn sum(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(Error::io(path, "cannot open"))?;
    let (mut hash, mut length) = (Sha256::new(), 0);
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece).map_err(Error::io(path, "cannot read"))? {
            0 => break,
            read => {
                hash.update(&piece[..read]);
                length += read as u64;
            }
        }
    }
    Ok((hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), length))
}

fn verify(folder: &Path) -> Result<()> {
    let list = folder.join(CHECKSUMS);
    let text = fs::read_to_string(&list).map_err(Error::io(&list, "cannot read"))?;
    let advice = "the checkpoint is damaged; use the one before it";
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(Error::file(&list, "ends in the middle of a line", advice));
    }
    let mut named = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some((expected, name)) = line.split_once("  ").filter(|(sum, _)| sum.len() == 64) else {
            let problem = format!("line {} is not a checksum and a name", index + 1);
            return Err(Error::file(&list, problem, advice));
        };
        let path = folder.join(name);
        let (found, length) = sum(&path)?;
        if found != expected {
            let problem = format!(
                "its {length} bytes have checksum {}..., expected {}...",
                &found[..12],
                expected.get(..12).unwrap_or(expected)
            );
            return Err(Error::file(&path, problem, advice));
        }
        named.push(name);
    }
    match required(&named).iter().find(|required| !named.contains(required)) {
        Some(missing) => Err(Error::file(&list, format!("has no checksum of {missing}"), advice)),
        None => Ok(()),
    }
}
