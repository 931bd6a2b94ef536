//! A logged rollout run again: from the run's folder, the checkpoint it was sampled from, and its line in samples.jsonl.

use super::adapters;
use super::admission::admit;
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
use crate::rollout::audit::worse;
use crate::rollout::group::{Drawing, Limits, Member, Rollouts, Thoughts, Trajectory};
use crate::rollout::masks::Rollout;
use crate::text::Problem;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

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
    /// Largest difference of a log-probability; infinite where the tokens differ, or the proxies of soft steps.
    pub gap: f64,
}

/// Runs line `number` of `RUN/samples.jsonl` again (the header is line 1).
///
/// # Errors
/// No such line, or the checkpoint that it was sampled from is not kept; the message says which ones are. A GPU without the
/// memory.
pub fn replay(samples: &Path, number: usize, device: &Device) -> Result<Replayed> {
    let logged = Logged::read(samples, number)?;
    let rehearse = |(): &(), device: &Device| {
        let student = Student::blank_of(&logged.recipe, device)?;
        let mut model = student.model.blank_twin()?;
        logged.plan.prepare(&mut model, &logged.recipe)?;
        logged.room(&student, &model).map(drop)
    };
    admit(device, "this replay", &(), &rehearse, &[])?;
    let student = Student::of(&logged.recipe, device)?;
    let model = logged.model(&student)?;
    let (mut rollouts, prompt) = logged.room(&student, &model)?;
    let member = Member { prompt: 0, coordinates: logged.coordinates };
    let mut again = rollouts.sample(&model, &[prompt], &[member], |_, _| ControlFlow::Continue(()))?;
    let again = again.pop().ok_or_else(|| logged.wrong("rollout"))?;
    let proxies: Vec<u32> = again.actions.iter().map(|action| action.proxy).collect();
    let same =
        logged.tokens == again.tokens && logged.proxies.as_ref().is_none_or(|logged| *logged == proxies);
    let gap = match same {
        false => f64::INFINITY,
        true => {
            let pairs = logged.log_probabilities.iter().zip(&again.log_probabilities);
            pairs.map(|(a, b)| (a - b).abs()).fold(0.0, worse)
        }
    };
    let text = student.tokenizer.decode(&again.tokens, true)?;
    Ok(Replayed { question: logged.problem.question, text, logged: logged.tokens, again, gap })
}

/// A line of samples.jsonl with the run that it is of.
struct Logged {
    samples: PathBuf,
    number: usize,
    recipe: Recipe,
    plan: ArmPlan,
    step: u64,
    coordinates: Rollout,
    problem: Problem,
    tokens: Vec<u32>,
    /// Those of its soft steps; none where they were not logged.
    proxies: Option<Vec<u32>>,
    log_probabilities: Vec<f64>,
}

impl Logged {
    fn read(samples: &Path, number: usize) -> Result<Logged> {
        let run = samples.parent().unwrap_or(Path::new("."));
        let line = metrics::line(samples, number)?;
        if !RunFolder::holds_run(run) {
            let problem = "has no recipe.toml beside it, so it is not in the folder of a run";
            return Err(Error::file(samples, problem, "give RUN/samples.jsonl:LINE, as train writes it"));
        }
        let recipe = RunFolder::recipe_of(run)?;
        let wrong = |what: &str| lacks(samples, number, what);
        let count = |key: &str| line[key].as_u64().ok_or_else(|| wrong(key));
        let text = |key: &str| line[key].as_str().map(String::from).ok_or_else(|| wrong(key));
        let plan = plan(&recipe, &text("part")?).ok_or_else(|| wrong("arm of the recipe"))?;
        let coordinate = |value: u64, key: &str| u32::try_from(value).map_err(|_| wrong(key));
        let update = count("update")?.checked_sub(1).ok_or_else(|| wrong("update"))?;
        // They are numbers of f32, which decimals read quickly miss by a unit in the last place of f64.
        let single = |value: f64| f64::from(value as f32);
        Ok(Logged {
            samples: samples.to_path_buf(),
            number,
            plan,
            recipe,
            step: count("step")?.checked_sub(1).ok_or_else(|| wrong("step"))?,
            coordinates: Rollout {
                update: coordinate(update, "update")?,
                prompt: coordinate(count("prompt")?, "prompt")?,
                rollout: coordinate(count("rollout")?, "rollout")?,
                attempt: coordinate(count("attempt")?, "attempt")?,
            },
            problem: Problem { question: text("question")?, steps: Vec::new(), answer: text("gold")? },
            tokens: numbers(&line["ids"]).ok_or_else(|| wrong("ids"))?.map(|id| id as u32).collect(),
            proxies: numbers(&line["proxies"]).map(|ids| ids.map(|id| id as u32).collect()),
            log_probabilities: numbers(&line["logprobs"])
                .ok_or_else(|| wrong("logprobs"))?
                .map(single)
                .collect(),
        })
    }

    fn wrong(&self, what: &str) -> Error {
        lacks(&self.samples, self.number, what)
    }

    /// The model that sampled it: that before its step.
    fn model(&self, student: &Student) -> Result<Model> {
        let run = self.samples.parent().unwrap_or(Path::new("."));
        match self.coordinates.update {
            0 => {
                let models = run.join("models");
                let mut start = adapters::load_start(&self.recipe, &student.model, &models)?;
                self.plan.prepare(&mut start, &self.recipe)?;
                Ok(start)
            }
            _ => after(run, self.step, &self.recipe, &student.model),
        }
    }

    /// Room to sample it, and its prompt.
    fn room(&self, student: &Student, model: &Model) -> Result<(Rollouts, Vec<u32>)> {
        let Logged { recipe, plan, .. } = self;
        let prompt = self.problem.encode(&student.tokenizer, student.markers.stop)?.question;
        let curriculum = settings::curriculum(recipe);
        let form = plan.form(reinforcement::form(recipe, &curriculum, &student.markers));
        let drawing = Drawing {
            gate: if plan.gated { settings::gating(&recipe.hrpo, &student.tokenizer)? } else { None },
            masking: plan.masking.clone(),
            latent_noise: plan.latent_noise,
            soft: plan.soft.map(|soft| soft.thoughts),
            thoughts: Thoughts::Own,
            law: settings::law(&recipe.grpo),
            seed: recipe.seed,
            share: true,
        };
        let limits = Limits { prompts: 1, members: 1, prompt_tokens: prompt.len() };
        Ok((Rollouts::reserve(model, form, drawing, limits, Record::Nothing)?, prompt))
    }
}

fn lacks(samples: &Path, number: usize, what: &str) -> Error {
    Error::file(samples, format!("line {number} has no {what}"), "is it a line of a run's samples.jsonl?")
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

/// The model after step `step`.
fn after(run: &Path, step: u64, recipe: &Recipe, model: &Model) -> Result<Model> {
    let folder = run.join("checkpoints");
    let wanted = folder.join(format!("step-{step:06}"));
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
            "does not keep the model of step {step}, which sampled this rollout; it keeps {}",
            kept.join(", ")
        ),
        "choose a line of the first update of an arm or of the update after a kept checkpoint, or keep more of them (run.checkpoint_every, run.keep_last)",
    ))
}
