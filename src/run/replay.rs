//! A logged rollout run again: from the run's folder, the checkpoint it was sampled from, and its line in samples.jsonl.

use super::adapters;
use super::checkpoints::Checkpoint;
use super::folder::RunFolder;
use super::metrics;
use super::recipe::Recipe;
use super::reinforcement::{self, ArmPlan};
use super::settings;
use super::story::{Part, parts};
use super::student::Student;
use crate::base::{Error, Result};
use crate::device::Device;
use crate::model::{Model, Record};
use crate::rollout::group::{Drawing, Limits, Member, Rollouts, Thoughts, Trajectory};
use crate::rollout::masks::Rollout;
use crate::text::Problem;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;

/// A rollout as it was logged and as it came out again.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// The question.
    pub question: String,
    /// The answer's text, as it came out again.
    pub text: String,
    /// The tokens as logged.
    pub logged: Vec<u32>,
    /// What came out again.
    pub again: Trajectory,
    /// Largest difference of a log-probability; infinite where the tokens differ.
    pub gap: f64,
}

/// Runs line `number` of `RUN/samples.jsonl` again (the header is line 1).
///
/// # Errors
/// No such line, or the checkpoint that it was sampled from is not kept; the message says which ones are.
pub fn replay(samples: &Path, number: usize, device: &Device) -> Result<Replayed> {
    let run = samples.parent().unwrap_or(Path::new("."));
    let line = metrics::line(samples, number)?;
    if !RunFolder::holds_run(run) {
        let problem = "has no recipe.toml beside it, so it is not in the folder of a run";
        return Err(Error::file(samples, problem, "give RUN/samples.jsonl:LINE, as train writes it"));
    }
    let recipe = RunFolder::recipe_of(run)?;
    let wrong = |what: &str| {
        Error::file(samples, format!("line {number} has no {what}"), "is it a line of a run's samples.jsonl?")
    };
    let count = |key: &str| line[key].as_u64().ok_or_else(|| wrong(key));
    let text = |key: &str| line[key].as_str().map(String::from).ok_or_else(|| wrong(key));
    let (step, update, part) = (count("step")?, count("update")?, text("part")?);
    let plan = plan(&recipe, &part).ok_or_else(|| wrong("arm of the recipe"))?;
    let student = Student::of(&recipe, device)?;
    let model = if update == 1 {
        adapters::load_start(&recipe, &student.model, &run.join("models"))?
    } else {
        before(run, step, &recipe, &student.model)?
    };
    let coordinate = |key: &str| -> Result<u32> { u32::try_from(count(key)?).map_err(|_| wrong(key)) };
    let coordinates = Rollout {
        update: u32::try_from(update - 1).map_err(|_| wrong("update"))?,
        prompt: coordinate("prompt")?,
        rollout: coordinate("rollout")?,
        attempt: coordinate("attempt")?,
    };
    let question = text("question")?;
    let problem = Problem { question: question.clone(), steps: Vec::new(), answer: text("gold")? };
    let prompt = problem.encode(&student.tokenizer, student.markers.stop)?.question;
    let curriculum = settings::curriculum(&recipe);
    let form = plan.form(reinforcement::form(&recipe, &curriculum, &student.markers));
    let drawing = Drawing {
        gate: if plan.gated { settings::gating(&recipe.hrpo, &student.tokenizer)? } else { None },
        masking: plan.masking,
        latent_noise: plan.latent_noise,
        soft: plan.soft.map(|soft| soft.thoughts),
        thoughts: Thoughts::Own,
        law: settings::law(&recipe.grpo),
        seed: recipe.seed,
        share: true,
    };
    let limits = Limits { prompts: 1, members: 1, prompt_tokens: prompt.len() };
    let mut rollouts = Rollouts::reserve(&model, form, drawing, limits, Record::Nothing)?;
    let member = Member { prompt: 0, coordinates };
    let mut again = rollouts.sample(&model, &[prompt], &[member], |_, _| ControlFlow::Continue(()))?;
    let again = again.pop().ok_or_else(|| wrong("rollout"))?;
    let logged: Vec<u32> = numbers(&line["ids"]).ok_or_else(|| wrong("ids"))?.map(|id| id as u32).collect();
    // They are numbers of f32, which decimals read quickly miss by a unit in the last place of f64.
    let single = |value: f64| f64::from(value as f32);
    let values: Vec<f64> = numbers(&line["logprobs"]).ok_or_else(|| wrong("logprobs"))?.map(single).collect();
    let gap = match logged == again.tokens {
        false => f64::INFINITY,
        true => values.iter().zip(&again.log_probabilities).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max),
    };
    Ok(Replayed { question, text: student.tokenizer.decode(&again.tokens, true)?, logged, again, gap })
}

fn numbers(value: &Value) -> Option<impl Iterator<Item = f64>> {
    let list: Option<Vec<f64>> = value.as_array()?.iter().map(Value::as_f64).collect();
    list.map(Vec::into_iter)
}

fn plan(recipe: &Recipe, name: &str) -> Option<ArmPlan> {
    parts(recipe).into_iter().find_map(|part| match part {
        Part::Arm(plan) if plan.name == name => Some(*plan),
        _ => None,
    })
}

/// The model before step `step`.
fn before(run: &Path, step: u64, recipe: &Recipe, model: &Model) -> Result<Model> {
    let folder = run.join("checkpoints");
    let wanted = folder.join(format!("step-{:06}", step - 1));
    if wanted.is_dir() {
        return Checkpoint::open(&wanted)?.model_like(recipe, model);
    }
    let names = std::fs::read_dir(&folder).map_err(Error::io(&folder, "cannot list"))?;
    let mut kept: Vec<String> =
        names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    kept.sort();
    Err(Error::file(
        &folder,
        format!(
            "does not keep the model of step {}, which sampled this rollout; it keeps {}",
            step - 1,
            kept.join(", ")
        ),
        "choose a line of the first update of an arm or of the update after a kept checkpoint, or keep more of them (run.checkpoint_every, run.keep_last)",
    ))
}
