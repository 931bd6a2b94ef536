//! Training of adapters in a run: from the recipe's keys to a model that trains them, and where they are kept.
//!
//! ```text
//! save = "merged"     models/NAME              Hugging Face folders; models/coconut-adapter, what every arm starts from
//! save = "separate"   models/NAME              adapters of models/base, or of model.path where no token was added to it
//! checkpoints/step-N                           an adapter with the optimiser's state, either way
//! ```
//! The base is loaded (or drawn) once from the recipe and shared by everything that needs it.

use super::recipe::{AdapterSave, Recipe};
use super::student::Student;
use crate::base::{Error, Result};
use crate::model::adapter::{self, AdapterConfig, Embeddings};
use crate::model::save::Companions;
use crate::model::{Model, peft};
use std::path::{Path, PathBuf};

/// The adapter that a recipe asks for, for a model whose embedding and head are one matrix or two; none for rank 0.
pub fn config(recipe: &Recipe, tied: bool) -> Option<AdapterConfig> {
    let keys = &recipe.adapter;
    (keys.rank > 0).then(|| AdapterConfig {
        rank: keys.rank,
        alpha: keys.alpha,
        rslora: keys.rslora,
        targets: keys.targets.clone(),
        embeddings: match (keys.train_embeddings, tied) {
            (false, _) => Embeddings::Frozen,
            (true, true) => Embeddings::Tied,
            (true, false) => Embeddings::Both,
        },
        base: recipe.model.path.clone(),
    })
}

/// Gives the student the recipe's adapter.
///
/// # Errors
/// Targets that the model has not: the message names the key.
pub fn attach(recipe: &Recipe, model: &mut Model) -> Result<()> {
    let Some(config) = config(recipe, model.config().tied) else { return Ok(()) };
    adapter::parameters(model, &config).map_err(|error| match error {
        Error::Input { problem, advice, .. } => {
            Error::Input { what: "adapter.targets".into(), problem, advice }
        }
        other => other,
    })?;
    model.adapt(config, recipe.seed)
}

/// Whether models are saved as adapters alone.
fn separate(recipe: &Recipe, model: &Model) -> bool {
    model.adapter().is_some() && recipe.adapter.save == AdapterSave::Separate
}

/// Sees to it that adapters which will be saved by themselves have a base on the disk, and name it.
///
/// # Errors
/// The place cannot be written to, or the disk is full.
pub fn keep_base(recipe: &Recipe, student: &mut Student, models: &Path) -> Result<()> {
    if !separate(recipe, &student.model) {
        return Ok(());
    }
    let folder = match &student.unchanged {
        Some(path) => path.clone(),
        None => {
            let folder = models.join("base");
            // It appears whole or not at all, and never changes.
            if !folder.is_dir() {
                student.model.base().save(&folder, &student.companions)?;
            }
            folder
        }
    };
    let absolute = std::path::absolute(&folder).map_err(Error::io(&folder, "cannot find"))?;
    student.model.name_base(&absolute.to_string_lossy());
    Ok(())
}

/// Saves what has been trained as `models/NAME`, in the form that the recipe asks for.
///
/// # Errors
/// The place cannot be written to, or the disk is full.
pub fn save(recipe: &Recipe, student: &Student, folder: &Path) -> Result<()> {
    match separate(recipe, &student.model) {
        true => student.model.save_adapter(folder, &student.companions),
        false => student.model.save(folder, &student.companions),
    }
}

/// Where the model is kept, to the bit, that every arm starts from.
fn start_folder(recipe: &Recipe, models: &Path) -> PathBuf {
    let merged = recipe.adapter.rank > 0 && recipe.adapter.save == AdapterSave::Merged;
    models.join(if merged { "coconut-adapter" } else { "coconut" })
}

/// Saves the model that every arm starts from: as it is asked for, and so that it comes back to the bit.
///
/// # Errors
/// The place cannot be written to, or the disk is full.
pub fn save_start(recipe: &Recipe, student: &Student, models: &Path) -> Result<()> {
    let (shown, exact) = (models.join("coconut"), start_folder(recipe, models));
    save(recipe, student, &shown)?;
    match shown == exact {
        true => Ok(()),
        false => save_exact(&student.model, &exact, &student.companions),
    }
}

/// The model that every arm starts from. `model` is any of the run: an adapter shares its base.
///
/// # Errors
/// Those of [`load_exact`].
pub fn load_start(recipe: &Recipe, model: &Model, models: &Path) -> Result<Model> {
    load_exact(recipe, model, &start_folder(recipe, models))
}

/// Saves what training changes: the adapter, or the whole model.
///
/// # Errors
/// The place cannot be written to, or the disk is full.
pub fn save_exact(model: &Model, folder: &Path, companions: &Companions) -> Result<()> {
    match model.adapter() {
        Some(_) => model.save_adapter(folder, companions),
        None => model.save(folder, companions),
    }
}

/// The model in a folder that [`save_exact`] wrote; an adapter shares the base of `model`.
///
/// # Errors
/// Files that are missing or damaged, or an adapter of another base.
pub fn load_exact(recipe: &Recipe, model: &Model, folder: &Path) -> Result<Model> {
    if !peft::is_adapter(folder) {
        return Model::load(folder, model.device(), recipe.model.dtype);
    }
    let mut loaded = model.base();
    loaded.load_adapter(folder)?;
    Ok(loaded)
}
