//! Updates of a policy against themselves (tape and replay, parts and whole), against an independent computation, and
//! against finite differences.

mod costs;
mod groups;
mod oracle;
mod refusals;
mod ways;

use crate::models;
use crate::rollouts::{form, prompts};
use latch::base::{Dtype, Result};
use latch::device::Device;
use latch::learn::advantages::Overlong;
use latch::learn::objective::{Aggregation, Objective, Preset};
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::policy::{Policy, Replay, Settings, Source};
use latch::learn::policy_report::{Groups, Question, Report};
use latch::learn::supervised::{Example, Limits as Batches, Trainer};
use latch::model::{
    Gradients, Input, Model, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan, Truncation,
};
use latch::ops::mask::SiteKind;
use latch::ops::policy_loss::{Estimator, Kl, Statistic};
use latch::ops::sampler::Law;
use latch::rollout::group::{Drawing, Form, Limits, Rollouts, Thoughts, Trajectory, room};
use latch::rollout::masks::{MaskPlan, Masking, Mode, Part, Scope};

/// Two ways to add up one gradient in f64 differ by rounding: at most this much, relative to its norm.
const CLOSE: f64 = 1e-12;
const TEMPERATURE: f64 = 0.8;
const UPDATE: u32 = 3;

fn model_of(seed: u64, dtype: Dtype) -> Model {
    models::random(models::gpt2(), seed, dtype, &Device::cpu())
}

fn model() -> Model {
    model_of(5, Dtype::F64)
}

/// What a policy is made of; tests change what they are about.
#[derive(Clone)]
struct Make {
    form: Form,
    drawing: Drawing,
    objective: Objective,
    settings: Settings,
    optimizer: optimizer::Settings,
}

impl Make {
    fn new(scope: Scope, mode: Mode) -> Make {
        let law = Law::Categorical { temperature: TEMPERATURE, top_k: None, top_p: None, min_p: None };
        let masking = Masking { p: 0.2, sites: SiteKind::ALL.to_vec(), scope, mode };
        Make {
            form: form(),
            drawing: Drawing {
                gate: None,
                masking,
                latent_noise: 0.0,
                soft: None,
                thoughts: Thoughts::Own,
                law,
                seed: 11,
                share: true,
            },
            objective: Preset::DropoutGrpo.objective(),
            settings: Settings {
                group: 4,
                prompts: 3,
                prompt_tokens: 70,
                passes: 1,
                truncation: Truncation::default(),
                tape_bytes: usize::MAX,
                audit_all: false,
                reference_masked: true,
                refills: 0,
                record: Record::Everything,
                replay: Replay::Same,
                soft: None,
            },
            optimizer: optimizer::Settings {
                weight_decay: 0.0,
                clip: None,
                ..optimizer::Settings::default()
            },
        }
    }

    fn latent() -> Make {
        Make::new(Scope::Latent, Mode::Shared)
    }

    fn preset(mut self, preset: Preset) -> Make {
        self.objective = preset.objective();
        self
    }

    fn kl(mut self, estimator: Estimator, beta: f64) -> Make {
        self.objective.loss.kl = Some(Kl { estimator, beta, clamp: None, cap: None });
        self
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Make {
        change(&mut self.settings);
        self
    }

    fn policy(&self, model: &Model, reference: Option<Model>) -> Result<Policy> {
        let optimizer = Optimizer::new(model, self.optimizer)?;
        let drawn = (self.form.clone(), self.drawing.clone());
        Policy::new(model, drawn, self.objective, self.settings.clone(), optimizer, reference)
    }

    /// The bytes of a tape that holds the groups of so many prompts.
    fn bytes(&self, model: &Model, prompts: usize) -> usize {
        let group = self.settings.group;
        let limits = Limits { prompts, members: prompts * group, prompt_tokens: self.settings.prompt_tokens };
        let room = room(model, &self.form, &self.drawing, limits, Record::Everything);
        Sequences::bytes(model, room, Record::Everything).unwrap()
    }

    /// One update of a fresh model at learning rate 0: the report, the gradient of its last pass, and the policy.
    fn still(
        &self,
        reference: Option<Model>,
        questions: &[Question],
        judge: Judge,
    ) -> (Report, Vec<f64>, Policy) {
        let mut model = model();
        let mut policy = self.policy(&model, reference).unwrap();
        let report = update(&mut policy, &mut model, 0.0, questions, judge).unwrap();
        let gradient = flat(policy.gradients_mut());
        (report, gradient, policy)
    }
}

type Judge<'a> = &'a dyn Fn(&Question, &Trajectory) -> f64;

fn questions() -> Vec<Question> {
    let all = prompts().into_iter().enumerate();
    all.map(|(number, tokens)| Question { tokens, number: number as u32 }).collect()
}

/// Rewards of three values.
fn lively(_: &Question, trajectory: &Trajectory) -> f64 {
    f64::from(trajectory.tokens.iter().sum::<u32>() % 3) / 2.0
}

/// The same, but question 1 is always answered right.
fn one_dead(question: &Question, trajectory: &Trajectory) -> f64 {
    if question.number == 1 { 1.0 } else { lively(question, trajectory) }
}

fn update(
    policy: &mut Policy,
    model: &mut Model,
    rate: f64,
    questions: &[Question],
    judge: Judge,
) -> Result<Report> {
    let mut left = questions.iter().cloned();
    policy.update(
        model,
        UPDATE,
        rate,
        |n| left.by_ref().take(n).collect(),
        |question, t| Ok(judge(question, t)),
    )
}

fn flat(gradients: &mut Gradients) -> Vec<f64> {
    gradients.tensors().unwrap().iter().flat_map(|tensor| tensor.view().numbers().unwrap()).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// ‖a - b‖ / ‖b‖.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert!(norm(b) > 0.0, "a gradient of zeros shows nothing");
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<_>>()) / norm(b)
}

#[track_caller]
fn close(a: &[f64], b: &[f64], what: &str) {
    let apart = apart(a, b);
    assert!(apart <= CLOSE, "{what}: gradients differ by {apart:.1e}");
}

#[track_caller]
fn says<T>(found: Result<T>, words: &[&str]) {
    let message = found.err().expect("an error").to_string();
    words.iter().for_each(|word| assert!(message.contains(word), "`{word}` is missing in: {message}"));
}

fn masks() -> [Make; 5] {
    [
        Make::new(Scope::Latent, Mode::Shared),
        Make::new(Scope::PromptLatent, Mode::Shared),
        Make::new(Scope::All, Mode::Shared),
        Make::new(Scope::All, Mode::PerPosition),
        Make::new(Scope::Latent, Mode::None),
    ]
}

/// Updates in f32 on each device against the CPU's: the same tokens, losses and gradients within `tolerance` of their
/// norm, and no replay gap. Called by tests/gpu_models.rs.
pub fn updates_on(devices: &[Device], tolerance: f64, change: &dyn Fn(Model) -> Model) {
    let cpu = model_of(5, Dtype::F32);
    let flat = |policy: &mut Policy| -> Vec<f64> {
        let tensors = policy.gradients_mut().tensors().unwrap();
        tensors.iter().flat_map(|t| t.download::<f32>().unwrap()).map(f64::from).collect()
    };
    for make in [Make::latent(), Make::new(Scope::All, Mode::Shared), Make::latent().preset(Preset::Grpo)] {
        let run = |mut model: Model| {
            let make = make.clone().set(|settings| settings.audit_all = true);
            let reference = make.objective.loss.kl.map(|_| model.duplicate().unwrap());
            let mut policy = make.policy(&model, reference).unwrap();
            let report = update(&mut policy, &mut model, 1e-3, &questions(), &lively).unwrap();
            (report, flat(&mut policy))
        };
        let (expected, slope) = run(change(crate::gpu_models::on(&Device::cpu(), &cpu)));
        for device in devices {
            let (found, gradient) = run(change(crate::gpu_models::on(device, &cpu)));
            let tokens = |report: &Report| -> Vec<Vec<u32>> {
                report.rollouts.iter().map(|judged| judged.trajectory.tokens.clone()).collect()
            };
            assert_eq!(tokens(&found), tokens(&expected), "{}", device.name());
            assert_eq!(found.replay_gap, 0.0, "{}", device.name());
            assert_eq!(found.audited, found.rollouts.len());
            let apart = apart(&gradient, &slope);
            assert!(apart <= tolerance, "{}: gradients differ by {apart:.1e}", device.name());
            let (a, b) = (found.gradient_norms[0], expected.gradient_norms[0]);
            assert!((a - b).abs() <= tolerance * b, "{}: norms {a} and {b}", device.name());
        }
    }
}
