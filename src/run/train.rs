//! The supervised job: learn additions through latent steps, and show held-out accuracy as it grows.

use super::addition_recipe::Recipe;
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Error, Result};
use crate::device::Device;
use crate::learn::optimizer::{Optimizer, Settings};
use crate::learn::supervised::{Example, Limits, StepReport, Trainer};
use crate::model::config::Config;
use crate::model::{Model, Precision, Record};
use crate::ops::sampler::Law;
use crate::rollout::generate::{Options, generate};
use crate::text::addition::{self, Addition};
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;

/// What a watcher of the run is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// One update is done.
    Step {
        /// Its number, from 1.
        step: usize,
        /// What it did.
        report: StepReport,
        /// Learning rate used.
        learning_rate: f64,
    },
    /// Held-out accuracy after `step` updates.
    Evaluation {
        /// Updates so far.
        step: usize,
        /// Right answers.
        right: usize,
        /// Problems asked.
        asked: usize,
        /// Some problems and the model's answers.
        samples: Vec<(Addition, String)>,
    },
}

/// The model of a recipe, with fresh weights.
pub fn fresh_model(recipe: &Recipe, device: &Device, precision: Precision) -> Result<Model> {
    let size = &recipe.model;
    let digits = (2 * recipe.data.bound).to_string().len();
    let config = json!({
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": addition::CHARACTERS.len(),
        "hidden_size": size.width,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "num_hidden_layers": size.layers,
        "intermediate_size": size.mlp_hidden,
        "max_position_embeddings": 4 * digits + recipe.train.latents + 8,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "rope_theta": 10000.0,
    });
    Model::random(Config::from_json(config, Path::new("the recipe"))?, recipe.seed, device, precision)
}

/// Trains; `watch` sees every step and evaluation and may stop the run after any of them.
///
/// # Errors
/// A recipe the model cannot hold, or a loss that stopped being finite.
pub fn train(
    recipe: &Recipe,
    model: &mut Model,
    mut watch: impl FnMut(&Event) -> ControlFlow<()>,
) -> Result<()> {
    let settings = &recipe.train;
    let (held_out, problems) = addition::split(recipe.data.bound, recipe.data.held_out, recipe.seed);
    let examples: Vec<Example> = problems.iter().map(|problem| example(problem, settings.latents)).collect();
    let limits = Limits::of(&examples, settings.batch, usize::MAX);
    let optimizer = Optimizer::new(
        model,
        Settings { weight_decay: settings.weight_decay, clip: Some(settings.clip), ..Settings::default() },
    )?;
    let mut trainer = Trainer::new(model, optimizer, limits, Record::Everything)?;
    let mut order = StreamKey::new(recipe.seed, 0, 0, 0, Purpose::DataOrder).draws(0, 0);
    for step in 1..=settings.steps {
        let batch: Vec<Example> =
            (0..settings.batch).map(|_| examples[order.below(examples.len())].clone()).collect();
        let learning_rate = schedule(step, settings.steps, settings.learning_rate);
        let report = trainer.step(model, &batch, learning_rate)?;
        if watch(&Event::Step { step, report, learning_rate }).is_break() {
            return Ok(());
        }
        if step == settings.steps || step % (settings.steps / 4).max(1) == 0 {
            let event = evaluate(model, &held_out, settings.latents, step)?;
            if watch(&event).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Warm-up over 50 steps, then cosine to a tenth of the peak.
fn schedule(step: usize, steps: usize, peak: f64) -> f64 {
    const WARM_UP: usize = 50;
    if step < WARM_UP.min(steps) {
        return peak * step as f64 / WARM_UP as f64;
    }
    let progress = (step.saturating_sub(WARM_UP)) as f64 / (steps.saturating_sub(WARM_UP)).max(1) as f64;
    peak * (0.55 + 0.45 * (std::f64::consts::PI * progress).cos())
}

fn example(problem: &Addition, latents: usize) -> Example {
    Example {
        prompt: addition::encode(&problem.prompt()),
        latents,
        end: Vec::new(),
        answer: addition::encode(&problem.answer()),
    }
}

/// Greedy answers to `problems`.
///
/// # Errors
/// Those of generation.
pub fn evaluate(model: &Model, problems: &[Addition], latents: usize, step: usize) -> Result<Event> {
    let stop = addition::encode(".");
    let Some(longest) = problems.iter().map(|p| p.answer().len()).max() else {
        return Err(Error::input("evaluation", "no problems", "hold out at least one problem"));
    };
    let prompts: Vec<Vec<u32>> = problems.iter().map(|p| addition::encode(&p.prompt())).collect();
    let options =
        Options { latents, after_latents: vec![], law: Law::Greedy, max_new_tokens: longest, stop, seed: 0 };
    let (answers, _) = generate(model, &prompts, &options, |_, _| ControlFlow::Continue(()))?;
    let texts: Vec<String> = answers.iter().map(|answer| addition::decode(&answer.ids)).collect();
    let right = problems.iter().zip(&texts).filter(|(problem, text)| problem.answer() == **text).count();
    let samples = problems.iter().copied().zip(texts).take(3).collect();
    Ok(Event::Evaluation { step, right, asked: problems.len(), samples })
}
