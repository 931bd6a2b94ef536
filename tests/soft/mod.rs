//! Soft steps: draws against their replays, to the bit; gradients of whole models against finite differences.

mod bits;
mod gradients;
mod held;
mod updates;

use crate::models;
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::learn::objective::Preset;
use latch::learn::optimizer::{self, Optimizer};
use latch::learn::policy::{Policy, Replay, Settings, Source};
use latch::learn::policy_report::{Question, Report};
use latch::learn::soft_policy::{SoftEstimator, SoftObjective, SoftStatistics};
use latch::model::{
    Action, Gradients, Model, NoisyInput, Record, Scores, SoftGradient, SoftLaw, SoftScore, SoftScores,
    Truncation,
};
use latch::ops::gaussian_density::Normal;
use latch::ops::mask::SiteKind;
use latch::ops::policy_loss::{Hyper, Ratio, Statistic, Surrogate};
use latch::ops::sampler::Law;
use latch::ops::soft_action::{Perturbation, Proxy, Score};
use latch::rollout::audit::Audit;
use latch::rollout::group::{
    ColdStop, Drawing, Form, Limits, Member, Rollouts, SoftReplay, SoftThoughts, Thoughts, Trajectory,
};
use latch::rollout::masks::{Masking, Mode, Rollout, Scope};
use std::ops::ControlFlow;

const TOP_K: usize = 9;

pub fn model(family: &str, dtype: Dtype, device: &Device) -> Model {
    let config = if family == "gpt2" { models::gpt2() } else { models::llama() };
    let mut model = models::random(config, 5, dtype, device);
    // Sharper than at birth, so that mixtures are not all alike.
    if dtype != Dtype::Bf16 {
        for parameter in model.parameters_mut() {
            if parameter.shape().dims().len() == 2 {
                match dtype {
                    Dtype::F64 => scale::<f64>(parameter, 8.0),
                    _ => scale::<f32>(parameter, 8.0),
                }
            }
        }
    }
    model
}

fn scale<T: latch::device::Element + Copy + std::ops::Mul<Output = T>>(
    tensor: &mut latch::ops::Tensor,
    by: T,
) {
    let values: Vec<T> = tensor.download::<T>().unwrap().into_iter().map(|value| value * by).collect();
    tensor.upload(&values).unwrap();
}

pub fn thoughts(perturbation: Perturbation, hard: bool) -> SoftThoughts {
    SoftThoughts {
        law: SoftLaw {
            law: Law::Categorical { temperature: 0.9, top_k: Some(TOP_K), top_p: Some(0.95), min_p: None },
            tau: 0.5,
            perturbation,
            proxy: Proxy::Argmax,
            hard,
        },
        proxies_stop: true,
        cold: None,
        leave_at: None,
        replay: SoftReplay::Actions,
    }
}

pub fn form(latents: usize) -> Form {
    Form { start: vec![], latents, end: vec![], stop: vec![7, 8, 9], max_new_tokens: 5 }
}

pub fn drawing(thoughts: SoftThoughts) -> Drawing {
    Drawing {
        gate: None,
        masking: Masking::NONE,
        latent_noise: 0.0,
        soft: Some(thoughts),
        thoughts: Thoughts::Own,
        law: Law::PLAIN,
        seed: 11,
        share: true,
    }
}

pub fn masked(p: f64) -> Masking {
    Masking { p, sites: SiteKind::ALL.to_vec(), scope: Scope::All, mode: Mode::PerStep }
}

pub fn prompts() -> Vec<Vec<u32>> {
    vec![vec![3, 14, 15, 9, 26], vec![5, 35, 8], vec![2, 7, 1, 8, 28, 18, 28]]
}

pub fn members(prompts: usize, group: u32) -> Vec<Member> {
    (0..prompts)
        .flat_map(|prompt| {
            (0..group).map(move |rollout| Member {
                prompt,
                coordinates: Rollout { update: 2, prompt: 40 + prompt as u32, rollout, attempt: 0 },
            })
        })
        .collect()
}

pub const LIMITS: Limits = Limits { prompts: 3, members: 12, prompt_tokens: 7 };

pub fn sampled(model: &Model, form: &Form, drawing: &Drawing, record: Record) -> (Rollouts, Vec<Trajectory>) {
    let mut rollouts = Rollouts::reserve(model, form.clone(), drawing.clone(), LIMITS, record).unwrap();
    let go = |_, _| ControlFlow::Continue(());
    let trajectories = rollouts.sample(model, &prompts(), &members(3, 4), go).unwrap();
    (rollouts, trajectories)
}

const KINDS: [Perturbation; 5] = [
    Perturbation::None,
    Perturbation::Gumbel { clamp: None },
    Perturbation::Gumbel { clamp: Some((-1.5, 3.0)) },
    Perturbation::Gaussian { strength: 0.4 },
    Perturbation::Dirichlet { concentration: 3.0 },
];

pub fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The log-probabilities of all answers as the rollouts stand on the tape.
pub fn scored(
    model: &Model,
    rollouts: &Rollouts,
    trajectories: &[Trajectory],
    scores: &mut Scores,
) -> Vec<f64> {
    let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
    let targets: Vec<u32> = trajectories.iter().flat_map(|t| t.tokens.iter().copied()).collect();
    scores.forward(model, rollouts.sequences(), &at, &targets, 1.0).unwrap();
    scores.log_probabilities().unwrap()
}

/// What the gradient checks differentiate: answers' log-probabilities and, where asked, scores of soft steps, each with
/// a coefficient of its own.
pub struct Objective {
    drawing: Drawing,
    pub trajectories: Vec<Trajectory>,
    score: Option<SoftScore>,
    truncation: Truncation,
}

impl Objective {
    fn coefficients(count: usize, salt: usize) -> Vec<f64> {
        (0..count).map(|n| ((n * 37 + salt * 11) % 19) as f64 / 10.0 - 0.9).collect()
    }

    fn actions(&self) -> Vec<&Action> {
        self.trajectories.iter().flat_map(|t| &t.actions).collect()
    }

    /// The value at a model and, when asked, its gradient.
    pub fn at(&self, model: &Model, gradients: Option<&mut Gradients>) -> f64 {
        let record = Record::Everything;
        let mut rollouts = Rollouts::reserve(model, form(4), self.drawing.clone(), LIMITS, record).unwrap();
        rollouts.replay(model, &prompts(), &self.trajectories.iter().collect::<Vec<_>>()).unwrap();
        self.of(model, &mut rollouts, gradients)
    }

    pub fn of(&self, model: &Model, rollouts: &mut Rollouts, gradients: Option<&mut Gradients>) -> f64 {
        let mut scores = Scores::reserve(model, 60).unwrap();
        let values = scored(model, rollouts, &self.trajectories, &mut scores);
        let weights = Self::coefficients(values.len(), 1);
        let mut total: f64 = values.iter().zip(&weights).map(|(a, b)| a * b).sum();
        let mut soft = self.score.map(|kind| SoftScores::reserve(model, 48, TOP_K, kind, 1.0 / 0.9).unwrap());
        let mut soft_weights = Vec::new();
        if let Some(soft) = &mut soft {
            let at: Vec<u32> = rollouts.thinking().iter().flatten().copied().collect();
            soft.forward(model, rollouts.sequences(), &at, &self.actions()).unwrap();
            let values = soft.values().unwrap();
            soft_weights = Self::coefficients(values.len(), 2);
            total += values.iter().zip(&soft_weights).map(|(a, b)| a * b).sum::<f64>();
        }
        if let Some(gradients) = gradients {
            let (sequences, masks) = rollouts.parts_mut();
            scores.backward(model, sequences, &weights, gradients).unwrap();
            if let Some(soft) = &mut soft {
                soft.backward(model, sequences, &soft_weights, gradients).unwrap();
            }
            model.backward(sequences, masks, self.truncation, gradients).unwrap();
        }
        total
    }
}

pub fn flat(gradients: &mut Gradients) -> Vec<f64> {
    gradients.tensors().unwrap().iter().flat_map(|tensor| tensor.view().numbers().unwrap()).collect()
}

/// Moves all parameters by `step` along a fixed random direction; returns the direction.
pub fn moved(model: &mut Model, step: f64) -> Vec<f64> {
    let mut direction = Vec::new();
    for (index, parameter) in model.parameters_mut().iter_mut().enumerate() {
        let mut draws = StreamKey::new(9, 0, index as u32, 0, Purpose::Probe).draws(0, 0);
        let values = parameter.download::<f64>().unwrap();
        let own: Vec<f64> = values.iter().map(|_| draws.below(2001) as f64 / 1000.0 - 1.0).collect();
        let values: Vec<f64> = values.iter().zip(&own).map(|(value, d)| value + step * d).collect();
        parameter.upload(&values).unwrap();
        direction.extend(own);
    }
    direction
}

/// What an estimator differentiates.
struct Case {
    name: &'static str,
    perturbation: Perturbation,
    /// Deviation of the noise on embeddings.
    noise: f64,
    /// How soft inputs are replayed, where gradients flow, and the score.
    replay: SoftReplay,
    gradient: SoftGradient,
    score: Option<SoftScore>,
}

fn cases() -> Vec<Case> {
    let gumbel = Perturbation::Gumbel { clamp: None };
    let pathwise = |name, perturbation, noise| Case {
        name,
        perturbation,
        noise,
        replay: SoftReplay::Noise,
        gradient: SoftGradient::Pathwise,
        score: None,
    };
    let scored = |name, score: Score| Case {
        name,
        perturbation: gumbel,
        noise: 0.0,
        replay: SoftReplay::Actions,
        gradient: SoftGradient::Table,
        score: Some(score.into()),
    };
    let embedded = |name, mean| Case {
        name,
        perturbation: Perturbation::None,
        noise: 0.05,
        replay: SoftReplay::Inputs,
        gradient: SoftGradient::Nothing,
        score: Some(NoisyInput { tau: 0.5, normal: Normal { deviation: 0.05, mean } }.into()),
    };
    vec![
        pathwise("pathwise, gumbel", gumbel, 0.0),
        pathwise("pathwise, no noise", Perturbation::None, 0.0),
        pathwise("pathwise, noise on embeddings", Perturbation::None, 0.05),
        pathwise("pathwise, gumbel and noise on embeddings", gumbel, 0.05),
        embedded("gauss_embed", false),
        embedded("gauss_embed, mean", true),
        scored("soft_ce", Score::SoftCe { full: true }),
        scored("soft_ce on the support", Score::SoftCe { full: false }),
        scored("concrete", Score::Concrete { tau: 0.5, mean: false }),
        scored("gumbel_g", Score::GumbelG { clamp: None, floor: None, mean: true }),
    ]
}

pub fn objective(model: &Model, case: usize, masking: Masking) -> (Objective, Rollouts) {
    let Case { perturbation, noise, replay, gradient, score, .. } = cases()[case];
    let mut drawing = Drawing { masking, latent_noise: noise, ..drawing(thoughts(perturbation, false)) };
    drawing.soft = drawing.soft.map(|soft| SoftThoughts { replay, ..soft });
    let (rollouts, trajectories) = sampled(model, &form(4), &drawing, Record::Everything);
    let truncation = Truncation { soft: gradient, ..Truncation::default() };
    (Objective { drawing, trajectories, score, truncation }, rollouts)
}

fn estimators() -> Vec<SoftEstimator> {
    vec![
        SoftEstimator::None,
        SoftEstimator::SoftCe { full: true },
        SoftEstimator::SoftCe { full: false },
        SoftEstimator::Concrete { mean: false },
        SoftEstimator::GumbelG { floor: Some(-3.0), mean: true },
        SoftEstimator::GaussEmbed { mean: false },
        SoftEstimator::Pathwise,
        SoftEstimator::StraightThrough,
    ]
}

/// The noise that an estimator needs: on logits, or on embeddings.
pub fn noise_of(estimator: SoftEstimator) -> (Perturbation, f64) {
    match estimator {
        SoftEstimator::GaussEmbed { .. } => (Perturbation::None, 0.05),
        _ => (Perturbation::Gumbel { clamp: None }, 0.0),
    }
}

pub fn settings(estimator: SoftEstimator, ratio: bool) -> Settings {
    let surrogate = match ratio {
        true => Surrogate::Clipped { low: 0.2, high: 0.2, delta: None, dual: None },
        false => Surrogate::Plain,
    };
    Settings {
        group: 4,
        prompts: 3,
        prompt_tokens: 7,
        passes: 1,
        truncation: Truncation::default(),
        tape_bytes: usize::MAX,
        audit_all: true,
        reference_masked: true,
        refills: 0,
        record: Record::Everything,
        replay: Replay::Same,
        soft: Some(SoftObjective {
            estimator,
            loss: Hyper { ratio: Ratio::Token, surrogate, clamp: Some(20.0), kl: None },
        }),
    }
}

/// One update at a learning rate: the report and the gradient of the last pass.
pub fn updated(
    model: &mut Model,
    settings: Settings,
    thoughts: SoftThoughts,
    preset: Preset,
    rate: f64,
) -> (Report, Vec<f64>) {
    let optimizer = optimizer::Settings { weight_decay: 0.0, clip: None, ..optimizer::Settings::default() };
    let optimizer = Optimizer::new(model, optimizer).unwrap();
    let latent_noise = settings.soft.as_ref().map_or(0.0, |soft| noise_of(soft.estimator).1);
    let drawn = (form(4), Drawing { latent_noise, ..drawing(thoughts) });
    let mut policy = Policy::new(model, drawn, preset.objective(), settings, optimizer, None).unwrap();
    let questions: Vec<Question> =
        prompts().into_iter().zip(40..).map(|(tokens, number)| Question { tokens, number }).collect();
    let mut left = questions.into_iter();
    let report = policy
        .update(
            model,
            2,
            rate,
            |n| left.by_ref().take(n).collect(),
            |_, t| Ok(f64::from(t.said().iter().sum::<u32>() % 3) / 2.0),
        )
        .unwrap();
    let gradient = match model.dtype() {
        Dtype::F64 => flat(policy.gradients_mut()),
        _ => Vec::new(),
    };
    (report, gradient)
}
