//! The model of a run with its tokenizer: fresh, or loaded and given the tokens that the curriculum needs.

use super::adapters;
use super::recipe::{Family, HrpoKeys, Recipe, Variant};
use crate::base::{Error, Result};
use crate::device::Device;
use crate::learn::coconut::Markers;
use crate::model::config::Config;
use crate::model::save::Companions;
use crate::model::weights::Source;
use crate::model::{Model, Precision, Projector};
use crate::ops::reading_order;
use crate::text::{
    END_OF_TEXT, LatentTokens, MARKER_TOKENS, Tokenizer, add_pause, builtin_files, builtin_tokenizer,
    initial_row_token,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A model that can be asked questions.
#[derive(Debug)]
pub struct Student {
    /// The model.
    pub model: Model,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens of the curriculum.
    pub markers: Markers,
    /// Files saved beside the weights.
    pub companions: Companions,
    /// The folder that the model was loaded from, where nothing was added to it.
    pub unchanged: Option<PathBuf>,
}

pub use crate::model::LATENT_CONFIG;

/// How a model with gates reads its answers: beside the gates.
pub const GATING_CONFIG: &str = "latent_gating.json";

/// The recipe whose `[hrpo]` says how the model in `folder` reads its answers: as it was trained, else the default.
///
/// # Errors
/// A file that cannot be read, or a value that its key cannot take.
pub fn gating_of(folder: &Path) -> Result<Recipe> {
    let mut recipe = Recipe::resolve(None, &[])?;
    let path = folder.join(GATING_CONFIG);
    if path.is_file() {
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "cannot read"))?;
        let value: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text)
            .map_err(|error| Error::file(&path, format!("is not JSON: {error}"), "save the model again"))?;
        for (key, value) in &value {
            let text = value.as_str().map_or_else(|| value.to_string(), String::from);
            recipe.set(&format!("hrpo.{key}={text}")).map_err(|error| match error {
                Error::Input { problem, advice, .. } => Error::file(&path, problem, advice),
                other => other,
            })?;
        }
    }
    Ok(recipe)
}

/// The latent steps that a model was taught: those that the [`LATENT_CONFIG`] beside `adapter` names, since an adapter was
/// taught its own way of thinking, else that in the folder `model`; 0 where there is none.
///
/// # Errors
/// A file that cannot be read, or has no such number.
pub fn latents_of(model: &Path, adapter: Option<&Path>) -> Result<usize> {
    let paths = adapter.into_iter().chain([model]).map(|folder| folder.join(LATENT_CONFIG));
    let Some(path) = paths.into_iter().find(|path| path.is_file()) else { return Ok(0) };
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "cannot read"))?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| Error::file(&path, format!("is not JSON: {error}"), "save the model again"))?;
    let latents = value["latents"].as_u64().ok_or_else(|| {
        Error::file(&path, "has no number `latents`", "save the model again, or give --latents")
    })?;
    Ok(latents as usize)
}

/// Where the weights of a family come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weights {
    /// Read, or drawn.
    Real,
    /// Nowhere: they are zeros, in the memory that real ones would take.
    Blank,
}

impl Student {
    /// The model that `recipe` begins with, its adapter included.
    ///
    /// # Errors
    /// Sizes that no model can have, a folder or file that cannot be read, or a library of matrix products that the
    /// device has not.
    pub fn of(recipe: &Recipe, device: &Device) -> Result<Student> {
        Student::made(recipe, device, Weights::Real)
    }

    /// The same with weights of zeros, in the memory that [`Student::of`] takes on its way.
    ///
    /// # Errors
    /// As [`Student::of`].
    pub fn blank_of(recipe: &Recipe, device: &Device) -> Result<Student> {
        Student::made(recipe, device, Weights::Blank)
    }

    fn made(recipe: &Recipe, device: &Device, weights: Weights) -> Result<Student> {
        device.choose_matmul(recipe.run.matmul)?;
        reading_order::allow(recipe.run.weight_copies_mib);
        let precision = recipe.model.dtype;
        let mut student = match recipe.model.path.as_str() {
            "" => fresh(recipe, device, precision, weights),
            path => Student::read(Path::new(path), device, precision, weights),
        }?;
        // A checkpoint that has a projector goes on with it.
        if recipe.coconut.variant == Variant::Codi && student.model.projector().is_none() {
            let width = student.model.config().width;
            let hidden = if recipe.codi.projector == 0 { width } else { recipe.codi.projector };
            student.model = student.model.with_random_projector(Projector::of(hidden), recipe.seed)?;
            student.unchanged = None;
        }
        adapters::attach(recipe, &mut student.model)?;
        Ok(student)
    }

    /// Loads a model and adds the tokens that are missing; their rows of the vocabulary, new ones or padding that was there,
    /// are copies of the row of `<<`, or of the end-of-text token where the tokenizer has no `<<`.
    ///
    /// # Errors
    /// A folder or file that cannot be read.
    pub fn load(path: &Path, device: &Device, precision: Precision) -> Result<Student> {
        Student::read(path, device, precision, Weights::Real)
    }

    /// The same with weights of zeros, in the memory that [`Student::load`] takes on its way.
    ///
    /// # Errors
    /// As [`Student::load`].
    pub fn load_blank(path: &Path, device: &Device, precision: Precision) -> Result<Student> {
        Student::read(path, device, precision, Weights::Blank)
    }

    fn read(path: &Path, device: &Device, precision: Precision, weights: Weights) -> Result<Student> {
        let source = Source::open(path)?;
        let mut tokenizer = source.tokenizer()?;
        // Lessons need an end even where generation_config.json lets texts go on for ever.
        let mut said = source.stop_tokens()?;
        if said.is_empty() {
            said.clone_from(&source.config().eos);
        }
        let Some((&stop, others)) = said.split_first() else {
            return Err(Error::file(
                path,
                "names no end-of-text token",
                "set eos_token_id in config.json or generation_config.json",
            ));
        };
        let missing: Vec<&str> =
            MARKER_TOKENS.into_iter().filter(|name| tokenizer.id(name).is_none()).collect();
        let markers = markers(&mut tokenizer, stop, others)?;
        let loaded = match weights {
            Weights::Real => Model::from_source(&source, device, precision)?,
            Weights::Blank => Model::blank_of(&source, device, precision)?,
        };
        let vocab = tokenizer.id_bound();
        let grows = vocab > loaded.config().vocab;
        let like = initial_row_token(&tokenizer).unwrap_or(stop);
        // A vocabulary that was padded (Qwen's) has rows for new tokens already, which nothing was trained on.
        let padding: Vec<u32> = missing
            .into_iter()
            .filter_map(|name| tokenizer.id(name))
            .filter(|&id| (id as usize) < loaded.config().vocab)
            .collect();
        let mut model = match (grows, weights) {
            (true, Weights::Real) => loaded.with_vocabulary(vocab, like)?,
            (true, Weights::Blank) => loaded.blank_with_vocabulary(vocab)?,
            (false, _) => loaded,
        };
        if weights == Weights::Real && !padding.is_empty() {
            model.begin_rows_like(&padding, like)?;
        }
        let mut companions = source.companions()?;
        companions.set("tokenizer.json", tokenizer.to_json()?.into_bytes());
        let unchanged = (!grows && padding.is_empty() && path.is_dir()).then(|| path.to_path_buf());
        Ok(Student { model, tokenizer, markers, companions, unchanged })
    }

    /// Notes in the files beside the weights how answers are read through gates, or that they are not.
    pub fn describe_gating(&mut self, keys: Option<&HrpoKeys>) {
        let Some(keys) = keys else { return self.companions.remove(GATING_CONFIG) };
        let config = json!({
            "thinking": keys.thinking,
            "mark": keys.mark,
            "temperature": keys.temperature,
            "top_k": keys.top_k,
            "top_p": keys.top_p,
        });
        self.companions.set(GATING_CONFIG, format!("{config:#}\n").into_bytes());
    }

    /// Notes in the files beside the weights how thoughts are asked for.
    pub fn describe_latents(&mut self, latents: usize) {
        let config = json!({
            "start_token_id": self.markers.start,
            "end_token_id": self.markers.end,
            "stop_token_id": self.markers.stop,
            "latents": latents,
            "fed_back": match self.model.projector() {
                None => "final hidden state after the final norm, in place of the token embedding",
                Some(_) => "projection of the final hidden state after the final norm, in place of the token embedding",
            },
            "projector": self.model.projector().is_some(),
        });
        self.companions.set(LATENT_CONFIG, format!("{config:#}\n").into_bytes());
    }
}

/// The markers of a model; `others` end answers too, beside the one that ends those that are taught.
fn markers(tokenizer: &mut Tokenizer, stop: u32, others: &[u32]) -> Result<Markers> {
    let latent = LatentTokens::add(tokenizer)?;
    let pause = add_pause(tokenizer)?;
    let other_stops = std::array::from_fn(|place| others.get(place).copied());
    Ok(Markers { start: latent.start, end: latent.end, pause, stop, other_stops })
}

fn fresh(recipe: &Recipe, device: &Device, precision: Precision, weights: Weights) -> Result<Student> {
    let mut tokenizer = builtin_tokenizer()?;
    let stop = tokenizer.required_id(END_OF_TEXT)?;
    let markers = markers(&mut tokenizer, stop, &[])?;
    let keys = &recipe.model;
    let vocab = tokenizer.id_bound();
    let config = match keys.family {
        Family::Gpt2 => json!({
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "vocab_size": vocab,
            "n_embd": keys.width,
            "n_head": keys.heads,
            "n_layer": keys.layers,
            "n_inner": keys.mlp_hidden,
            "n_positions": keys.max_positions,
            "activation_function": "gelu_new",
            "eos_token_id": stop,
            "bos_token_id": stop,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        }),
        Family::Llama => json!({
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": vocab,
            "hidden_size": keys.width,
            "num_attention_heads": keys.heads,
            "num_key_value_heads": keys.kv_heads,
            "num_hidden_layers": keys.layers,
            "intermediate_size": keys.mlp_hidden,
            "max_position_embeddings": keys.max_positions,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": true,
            "rope_theta": 10000.0,
            "eos_token_id": stop,
            "bos_token_id": stop,
        }),
    };
    let config = Config::from_json(config, Path::new("the recipe"))?;
    let companions = Companions::of_contents(builtin_files(&tokenizer)?);
    let model = match weights {
        Weights::Real => Model::random(config, recipe.seed, device, precision)?,
        Weights::Blank => Model::build(config, device, precision, |_, _, _| Ok(()))?,
    };
    Ok(Student { model, tokenizer, markers, companions, unchanged: None })
}
