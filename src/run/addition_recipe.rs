//! Recipes: TOML files that say what a run does. Unknown keys are errors.

use crate::base::{Error, Result};
use serde::Deserialize;
use std::path::Path;

/// The built-in recipe.
pub const DEFAULT: &str = include_str!("../../recipes/addition.toml");

/// A whole run.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of everything random.
    pub seed: u64,
    /// The model to make.
    pub model: ModelRecipe,
    /// The problems.
    pub data: DataRecipe,
    /// The training.
    pub train: TrainRecipe,
}

/// Sizes of a fresh model of the Llama family.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Attention heads.
    pub heads: usize,
    /// Hidden width of the MLP.
    pub mlp_hidden: usize,
}

/// Which additions.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// Summands are below this.
    pub bound: u32,
    /// Problems never trained on.
    pub held_out: usize,
}

/// How to train.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct TrainRecipe {
    /// Updates.
    pub steps: usize,
    /// Examples a step.
    pub batch: usize,
    /// Latent steps between question and answer.
    pub latents: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest gradient norm.
    pub clip: f64,
}

impl Recipe {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// An unreadable file, a syntax error, an unknown or missing key, or a value that cannot be used.
    pub fn read(path: &Path) -> Result<Recipe> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "cannot read the recipe"))?;
        Recipe::parse(&text, path)
    }

    /// Parses the text of a recipe; `path` is for messages.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Recipe> {
        let recipe: Recipe = toml::from_str(text).map_err(|error| {
            Error::file(
                path,
                error.to_string().trim_end().to_string(),
                "compare with recipes/addition.toml, which documents every key",
            )
        })?;
        recipe.check(path)?;
        Ok(recipe)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let problems = u64::from(self.data.bound) * u64::from(self.data.bound);
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let wrong = [
            (self.model.layers == 0, "model.layers is 0"),
            (self.model.heads == 0, "model.heads is 0"),
            (
                self.model.heads != 0 && !self.model.width.is_multiple_of(2 * self.model.heads),
                "model.width is no multiple of twice model.heads",
            ),
            (self.model.width == 0 || self.model.mlp_hidden == 0, "model.width or model.mlp_hidden is 0"),
            (self.data.bound > 10_000, "data.bound is above 10000"),
            (
                self.data.held_out == 0 || self.data.held_out as u64 >= problems,
                "data.held_out leaves nothing to train on, or nothing to test",
            ),
            (self.train.batch == 0, "train.batch is 0"),
            (!positive(self.train.learning_rate), "train.learning_rate is not positive"),
            (!positive(self.train.clip), "train.clip is not positive"),
            (self.train.weight_decay < 0.0, "train.weight_decay is negative"),
        ];
        match wrong.into_iter().find(|(wrong, _)| *wrong) {
            Some((_, problem)) => {
                Err(Error::file(path, problem, "recipes/addition.toml documents every key"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Recipe> {
        Recipe::parse(text, Path::new("mine.toml"))
    }

    #[test]
    fn the_built_in_recipe_is_valid() {
        parse(DEFAULT).unwrap();
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line_and_the_known_keys() {
        let message = parse(&DEFAULT.replace("latents =", "latent =")).unwrap_err().to_string();
        assert!(
            message.contains("mine.toml") && message.contains("latent") && message.contains("latents"),
            "{message}"
        );
    }

    #[test]
    fn values_that_cannot_be_used_are_named() {
        let message = parse(&DEFAULT.replace("batch = 64", "batch = 0")).unwrap_err().to_string();
        assert!(message.contains("train.batch is 0"), "{message}");
    }
}
