//! `inspect`: what a model does in its latent steps, question by question.

#[path = "shared/ending.rs"]
mod ending;
#[path = "shared/machine.rs"]
mod machine;
#[path = "shared/masks.rs"]
mod masks;
#[path = "shared/model.rs"]
mod model;
#[path = "shared/output.rs"]
mod output;
#[path = "shared/problems.rs"]
mod problems;
#[path = "shared/words.rs"]
mod words;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use latch::base::{Error, Result};
use latch::cpu::parallel;
use latch::device::Device;
use latch::learn::coconut::{Curriculum, Variant};
use latch::rollout::group::Form;
use latch::rollout::masks::Rollout;
use latch::run::devices;
use latch::run::inspection::{Fed, Followed, Masked, Reading, follow, mean_states, read, spread};
use latch::run::problems::Item;
use latch::run::student::{Student, latents_of};
use latch::run::terminal::table;
use latch::text::Problem;
use machine::MachineArguments;
use masks::MaskArguments;
use model::ModelArguments;
use problems::ProblemArguments;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Shows what a model does in its latent steps.
///
/// For each latent step: the norm of the state that is fed back and its cosine with the one before; what the output head
/// predicts from it (the logit lens: a reading, not a transcript); the token embeddings nearest to it; and how far masks
/// move it. Then the answer, and what becomes of it with fewer steps, with the same state in every step, and under masks.
#[derive(Parser)]
#[command(version, allow_negative_numbers = true)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    /// A question, in place of problems (may be given several times)
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Look at only the first so many problems (0 = all)
    #[arg(long, default_value_t = 1)]
    limit: usize,
    /// Latent steps (default: what latent_config.json in the folder says)
    #[arg(long)]
    latents: Option<usize>,
    /// Tokens a list
    #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(1..=1000))]
    top: usize,
    /// Rollouts under masks (0 = none)
    #[arg(long, default_value_t = 8, value_parser = RangedU64ValueParser::<usize>::new().range(..=4096))]
    masks: usize,
    /// Seed of masks and generated problems
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Longest answer, in tokens
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    max_new_tokens: usize,
    #[command(flatten)]
    machine: MachineArguments,
    /// One JSON object a question on stdout, with the states themselves
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    problems: ProblemArguments,
    #[command(flatten)]
    masking: MaskArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ending::ended(
        parallel::with_threads(arguments.machine.threads, || run(&arguments)).map(|()| ExitCode::SUCCESS),
    )
}

fn run(arguments: &Arguments) -> Result<()> {
    // Each position is looked at before the next: there is nothing to capture.
    devices::on(&arguments.machine.device, false, &mut words::say, |device, _| work(arguments, device))
}

fn work(arguments: &Arguments, device: &Device) -> Result<()> {
    let ModelArguments { model, adapter } = &arguments.model;
    let latents = match arguments.latents {
        Some(latents) => latents,
        None => latents_of(model, adapter.as_deref())?,
    };
    // Of a folder that is not there, loading says so.
    if latents == 0 && model.exists() {
        return Err(Error::input(
            "--latents",
            format!("{} has no latent steps to look at", model.display()),
            "name a model that was taught to think in latents, or say how many steps to run: --latents 4",
        ));
    }
    let masking = arguments.masking.masking()?;
    let mut student = Student::load(model, device, arguments.machine.dtype)?;
    if let Some(adapter) = adapter {
        student.model.load_adapter(adapter)?;
    }
    let curriculum = Curriculum {
        variant: Variant::Coconut,
        thoughts_per_step: 1,
        max_latent_stage: latents,
        pad_latent_to_max: true,
        uniform_prob: 0.0,
        seed: arguments.seed,
    };
    let form = |latents: usize| curriculum.form(latents, latents, &student.markers, arguments.max_new_tokens);
    let (items, skipped) = match arguments.prompt.is_empty() {
        true => arguments.problems.items(&student, arguments.seed, arguments.limit)?,
        false => (asked(arguments, &student)?, 0),
    };
    if skipped > 0 {
        words::say(&format!("{skipped} malformed items left out"));
    }
    for item in &items {
        let rollouts = (0..arguments.masks as u32)
            .map(|rollout| Rollout { update: u32::MAX, prompt: item.number, rollout, attempt: 0 })
            .collect();
        let masked = Masked { masking: masking.clone(), rollouts, seed: arguments.seed };
        let seen = Seen::of(&student, item, &form, latents, &masked, arguments.top)?;
        let text = match arguments.json {
            true => format!("{}\n", seen.json(&student, item, &masked)?),
            false => seen.show(&student, item, &masked)?,
        };
        if !output::write(&text)? {
            break;
        }
    }
    Ok(())
}

/// The questions of the command line.
fn asked(arguments: &Arguments, student: &Student) -> Result<Vec<Item>> {
    let item = |(number, question): (usize, &String)| {
        let problem = Problem { question: question.clone(), steps: Vec::new(), answer: String::new() };
        let tokens = problem.encode(&student.tokenizer, student.markers.stop)?;
        Ok(Item { problem, tokens, number: number as u32 })
    };
    arguments.prompt.iter().enumerate().map(item).collect()
}

/// All that is shown of one question.
struct Seen {
    own: Followed,
    readings: Vec<Reading>,
    embedding_norm: f64,
    /// Answers with 0, 1, ... steps, up to one fewer than it has.
    fewer: Vec<Vec<u32>>,
    /// The answer where every step reads the mean of its states; none where a projector stands between.
    unmoved: Option<Vec<u32>>,
    /// Under masks.
    moved: Vec<Followed>,
    spread: Vec<f64>,
}

impl Seen {
    fn of(
        student: &Student,
        item: &Item,
        form: &dyn Fn(usize) -> Form,
        latents: usize,
        masked: &Masked,
        top: usize,
    ) -> Result<Seen> {
        let (model, prompt) = (&student.model, &item.tokens.question);
        let alone = |latents: usize, fed: Fed| {
            let mut followed = follow(model, prompt, &form(latents), fed, &Masked::none())?;
            Ok::<Followed, Error>(followed.remove(0))
        };
        let own = alone(latents, Fed::Own)?;
        let (readings, embedding_norm) = read(model, &own, top)?;
        let fewer = (0..latents).map(|latents| Ok(alone(latents, Fed::Own)?.answer));
        let fewer = fewer.collect::<Result<_>>()?;
        let unmoved = match model.projector() {
            None => Some(alone(latents, Fed::Given(&mean_states(&own.states)))?.answer),
            Some(_) => None,
        };
        let moved = match masked.rollouts.is_empty() {
            true => Vec::new(),
            false => follow(model, prompt, &form(latents), Fed::Own, masked)?,
        };
        let spread = spread(&moved);
        Ok(Seen { own, readings, embedding_norm, fewer, unmoved, moved, spread })
    }

    /// Answers under masks with how often each was given, most frequent first.
    fn votes(&self, student: &Student) -> Result<Vec<(String, usize)>> {
        let mut votes: Vec<(String, usize)> = Vec::new();
        for followed in &self.moved {
            let text = said(student, &followed.answer)?;
            match votes.iter_mut().find(|(other, _)| *other == text) {
                Some((_, count)) => *count += 1,
                None => votes.push((text, 1)),
            }
        }
        votes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Ok(votes)
    }

    fn json(&self, student: &Student, item: &Item, masked: &Masked) -> Result<Value> {
        let listed = |list: &[(u32, f64)], what: &str| -> Result<Vec<Value>> {
            list.iter()
                .map(|&(id, value)| Ok(json!({"id": id, "text": token(student, id)?, what: value})))
                .collect()
        };
        let mut steps = Vec::new();
        for (n, reading) in self.readings.iter().enumerate() {
            steps.push(json!({
                "step": n + 1,
                "norm": reading.norm,
                "cosine": reading.cosine,
                "entropy": reading.entropy,
                "predicted": listed(&reading.predicted, "probability")?,
                "nearest": listed(&reading.nearest, "cosine")?,
                "spread": self.spread.get(n),
                "state": self.own.states[n],
            }));
        }
        let answer = |ids: &[u32]| -> Result<Value> { Ok(json!({"ids": ids, "text": said(student, ids)?})) };
        let votes: Vec<Value> =
            self.votes(student)?.iter().map(|(text, count)| json!({"text": text, "count": count})).collect();
        Ok(json!({
            "question": item.problem.question,
            "steps": item.problem.steps,
            "expected": item.problem.answer,
            "prompt_ids": item.tokens.question,
            "embedding_norm": self.embedding_norm,
            "latents": steps,
            "answer": answer(&self.own.answer)?,
            "fewer_latents": self.fewer.iter().map(|ids| answer(ids)).collect::<Result<Vec<_>>>()?,
            "mean_latents": self.unmoved.as_deref().map(answer).transpose()?,
            "masked": {
                "rollouts": masked.rollouts.len(),
                "p": masked.masking.p,
                "answers": votes,
                "states": self.moved.iter().map(|followed| &followed.states).collect::<Vec<_>>(),
            },
        }))
    }

    fn show(&self, student: &Student, item: &Item, masked: &Masked) -> Result<String> {
        let mut out = format!("question  {}\n", item.problem.question.replace('\n', " "));
        if !item.problem.steps.is_empty() {
            out += &format!("steps     {}\n", item.problem.steps.join(" "));
        }
        if !item.problem.answer.is_empty() {
            out += &format!("expected  {}\n", item.problem.answer);
        }
        out.push('\n');
        let list = |list: &[(u32, f64)]| -> Result<String> {
            let one = |&(id, value): &(u32, f64)| Ok(format!("{:?} {value:.2}", token(student, id)?));
            Ok(list.iter().map(one).collect::<Result<Vec<_>>>()?.join("  "))
        };
        let mut rows = Vec::new();
        for (n, reading) in self.readings.iter().enumerate() {
            let mut row = vec![
                (n + 1).to_string(),
                format!("{:.2}", reading.norm),
                reading.cosine.map_or_else(String::new, |cosine| format!("{cosine:.2}")),
            ];
            row.extend(self.spread.get(n).map(|spread| format!("{spread:.2}")));
            row.extend([
                format!("{:.2}", reading.entropy),
                list(&reading.predicted)?,
                list(&reading.nearest)?,
            ]);
            rows.push(row);
        }
        let mut header = vec!["step", "|h|", "cos(before)"];
        header.extend((!self.spread.is_empty()).then_some("spread"));
        header.extend(["H (nats)", "the head predicts (probability)", "nearest embeddings (cosine)"]);
        out += &table(&header, &rows);
        out += &format!("mean norm of the token embeddings: {:.2}\n\n", self.embedding_norm);

        let mut line = |what: String, text: String| out += &format!("{what:<30}{text}\n");
        let quoted = |ids: &[u32]| Ok::<String, Error>(format!("{:?}", said(student, ids)?));
        line("answer".into(), quoted(&self.own.answer)?);
        for (latents, answer) in self.fewer.iter().enumerate().rev() {
            let steps = if latents == 1 { "step" } else { "steps" };
            line(format!("with {latents} latent {steps}"), quoted(answer)?);
        }
        let unmoved = match &self.unmoved {
            Some(answer) => quoted(answer)?,
            None => "not asked: a projector stands before the input".into(),
        };
        line("every step reads their mean".into(), unmoved);
        if !self.moved.is_empty() {
            let votes: Vec<String> =
                self.votes(student)?.iter().map(|(text, count)| format!("{text:?} x{count}")).collect();
            let (count, p) = (masked.rollouts.len(), masked.masking.p);
            line(format!("under {count} masks (p = {p})"), votes.join("  "));
        }
        out.push('\n');
        Ok(out)
    }
}

/// An answer's text, its special tokens left out.
fn said(student: &Student, ids: &[u32]) -> Result<String> {
    student.tokenizer.decode(ids, true)
}

/// One token's text.
fn token(student: &Student, id: u32) -> Result<String> {
    student.tokenizer.decode(&[id], false)
}
