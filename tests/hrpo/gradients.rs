//! Gradients through gates against differences, from the tape and replayed, and one update.

use super::*;
use crate::models;

/// Answers' log-probabilities with a coefficient each.
struct Objective {
    drawing: Drawing,
    trajectories: Vec<Trajectory>,
}

impl Objective {
    fn at(&self, model: &Model, gradients: Option<&mut Gradients>) -> f64 {
        let mut rollouts = replayed(model, &self.drawing, &self.trajectories, Record::Everything);
        self.of(model, &mut rollouts, gradients)
    }

    fn of(&self, model: &Model, rollouts: &mut Rollouts, gradients: Option<&mut Gradients>) -> f64 {
        let mut scores = Scores::reserve(model, 12 * LONGEST).unwrap();
        let values = scored(model, rollouts, &self.trajectories, &mut scores);
        let weights: Vec<f64> = (0..values.len()).map(|n| ((n * 37 + 11) % 19) as f64 / 10.0 - 0.9).collect();
        if let Some(gradients) = gradients {
            let (sequences, masks) = rollouts.parts_mut();
            scores.backward(model, sequences, &weights, gradients).unwrap();
            model.backward(sequences, masks, Truncation::default(), gradients).unwrap();
        }
        values.iter().zip(&weights).map(|(a, b)| a * b).sum()
    }
}

fn flat(gradients: &mut Gradients) -> Vec<f64> {
    gradients.tensors().unwrap().iter().flat_map(|tensor| tensor.download::<f64>().unwrap()).collect()
}

/// Ids that no prompt and no answer of the gradient checks holds: their mixtures are constants there.
const APART: std::ops::Range<u32> = 40..61;

/// Moves parameters by `step` along a fixed random direction, all or the gates' alone; returns the direction. Rows of
/// the token embedding that mixtures are made of stay: mixtures are constants, so the gradient does not know them.
fn moved(model: &mut Model, step: f64, gates_alone: bool) -> Vec<f64> {
    let (products, lambda) = model.gate_parameters().unwrap();
    let table =
        model.parameter_list().iter().position(|p| p.name.contains("wte") || p.name.contains("embed"));
    let width = model.config().width;
    let mut direction = Vec::new();
    for (index, parameter) in model.parameters_mut().iter_mut().enumerate() {
        let mut draws = StreamKey::new(9, 0, index as u32, 0, Purpose::Probe).draws(0, 0);
        let values = parameter.download::<f64>().unwrap();
        let stays = |at: usize| match gates_alone {
            true => !products.contains(&index) && !lambda.contains(&index),
            false => Some(index) == table && APART.contains(&((at / width) as u32)),
        };
        let own: Vec<f64> = (0..values.len())
            .map(|at| (at, draws.below(2001) as f64 / 1000.0 - 1.0))
            .map(|(at, d)| if stays(at) { 0.0 } else { d })
            .collect();
        let values: Vec<f64> = values.iter().zip(&own).map(|(value, d)| value + step * d).collect();
        parameter.upload(&values).unwrap();
        direction.extend(own);
    }
    direction
}

#[test]
fn gradients_through_the_gates_are_the_differences() {
    for family in ["gpt2", "llama"] {
        for masking in [Masking::NONE, masked()] {
            let model = model(family, Dtype::F64, &Device::cpu());
            let drawing = drawing(gating(), masking);
            let (_, mut trajectories) = sampled(&model, &drawing, Record::Nothing);
            // Mixtures of ids apart; tokens of the others.
            for trajectory in &mut trajectories {
                trajectory.tokens.iter_mut().for_each(|token| *token %= APART.start);
                for (n, mixture) in trajectory.mixtures.iter_mut().enumerate() {
                    let id = |k: usize| APART.start + ((5 * n + 3 * k) % APART.len()) as u32;
                    *mixture = vec![(id(0), 0.8), (id(1), -0.3), (id(2), 0.5)];
                }
            }
            let objective = Objective { drawing, trajectories };
            let mut gradients = model.gradients().unwrap();
            objective.at(&model, Some(&mut gradients));
            for gates_alone in [true, false] {
                let at = |step: f64| {
                    let mut model = self::model(family, Dtype::F64, &Device::cpu());
                    let direction = moved(&mut model, step, gates_alone);
                    (objective.at(&model, None), direction)
                };
                let difference = models::slope(|step| at(step).0);
                let direction = at(0.0).1;
                let slope: f64 = flat(&mut gradients).iter().zip(&direction).map(|(g, d)| g * d).sum();
                let error = (slope - difference).abs() / slope.abs().max(difference.abs());
                assert!(slope.abs() > 1e-3, "{family}: {slope}");
                assert!(error < 1e-6, "{family}, gates alone {gates_alone}: {slope} {difference} {error:e}");
            }
            // Each of the five has a gradient of its own, which a planted fault would spoil.
            let (products, lambda) = model.gate_parameters().unwrap();
            for index in products.start..lambda.end {
                let own = gradients.tensors().unwrap()[index].download::<f64>().unwrap();
                assert!(own.iter().filter(|g| **g != 0.0).count() > own.len() / 2, "parameter {index}");
            }
        }
    }
}

#[test]
fn the_tape_of_sampling_and_a_replay_give_the_same_gradients() {
    for (family, masking) in [("gpt2", Masking::NONE), ("llama", masked())] {
        let model = model(family, Dtype::F64, &Device::cpu());
        let drawing = with_a_mark(&model, masking);
        let (mut rollouts, trajectories) = sampled(&model, &drawing, Record::Everything);
        let objective = Objective { drawing, trajectories };
        let (mut tape, mut replay) = (model.gradients().unwrap(), model.gradients().unwrap());
        let a = objective.of(&model, &mut rollouts, Some(&mut tape));
        let b = objective.at(&model, Some(&mut replay));
        assert_eq!(a.to_bits(), b.to_bits());
        let (tape, replay) = (flat(&mut tape), flat(&mut replay));
        let apart = models::apart(&replay, &tape);
        assert!(apart <= 1e-12, "{apart:e}");
    }
}

#[test]
fn an_update_moves_gates_at_rates_of_their_own_and_the_reference_reads_plain_tokens() {
    let gradient = |passes: usize, bytes: usize, kl: bool| {
        let mut model = model("llama", Dtype::F64, &Device::cpu());
        let before: Vec<Vec<f64>> = model.parameters().iter().map(|p| p.download().unwrap()).collect();
        let (products, lambda) = model.gate_parameters().unwrap();
        let mut optimizer = Optimizer::new(
            &model,
            optimizer::Settings { weight_decay: 0.0, clip: None, ..Default::default() },
        )
        .unwrap();
        optimizer.set_rates(&[(products.clone(), 100.0), (lambda.clone(), 1000.0)]).unwrap();
        let mut objective = Preset::TrlBnpo.objective();
        let reference = kl.then(|| plain_model("llama", Dtype::F64, &Device::cpu()));
        objective.loss.kl =
            kl.then_some(Kl { estimator: Estimator::K3, beta: 0.005, clamp: None, cap: None });
        let settings = Settings {
            group: 4,
            prompts: 3,
            prompt_tokens: 7,
            passes,
            truncation: Truncation::default(),
            tape_bytes: bytes,
            audit_all: true,
            reference_masked: false,
            refills: 0,
            record: Record::Everything,
            replay: Replay::Same,
            soft: None,
        };
        let drawn = (form(), drawing(gating(), Masking::NONE));
        let mut policy = Policy::new(&model, drawn, objective, settings, optimizer, reference).unwrap();
        let mut left = prompts().into_iter().enumerate();
        let draw = |n: usize| {
            let question = |(number, tokens)| Question { tokens, number: number as u32 };
            left.by_ref().take(n).map(question).collect::<Vec<_>>()
        };
        let reward = |_: &Question, t: &Trajectory| Ok(f64::from(t.tokens.iter().sum::<u32>() % 3) / 2.0);
        let report = policy.update(&mut model, 3, 1e-6, draw, reward).unwrap();
        assert_eq!((report.replay_gap, report.audited), (0.0, 12));
        // Adam's first step is the learning rate, whatever the gradient.
        if passes == 1 {
            for (index, before) in before.iter().enumerate() {
                let rate = match index {
                    _ if products.contains(&index) => 1e-4,
                    _ if lambda.contains(&index) => 1e-3,
                    _ => 1e-6,
                };
                let after = model.parameters()[index].download::<f64>().unwrap();
                let step = after.iter().zip(before).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!((step / rate - 1.0).abs() < 1e-2, "parameter {index}: {step:e} at rate {rate:e}");
            }
        }
        (report.source.unwrap(), report.passes[0].loss, flat(policy.gradients_mut()))
    };
    let (source, loss, tape) = gradient(1, usize::MAX, false);
    assert_eq!(source, Source::Tape);
    assert!(loss.is_finite() && tape.iter().any(|g| *g != 0.0));
    // Before the first step the policy differs from a reference that reads plain tokens, so the penalty is there.
    let (_, held, _) = gradient(1, usize::MAX, true);
    assert!(held > loss + 1e-6, "{held} {loss}");
    let (_, again, _) = gradient(2, usize::MAX, true);
    assert_eq!(again.to_bits(), held.to_bits());
}
