//! Gradients through drawn steps where what is differentiated is not what a replay computes, so that differences of
//! replays say nothing.
//!
//! Normal noise on logits has a deviation that follows the logits, and its gradient counts that deviation as the constant
//! it was. Straight-through feeds a one-hot input, and its gradient is that of the mixture: of inputs
//! `(hard + y - y then)^T E`, which are what was fed and move as y does. Both are exact of a model whose noise is held: here
//! inputs are given from the host, y from logits that are read step by step and the noise as it was added.

use super::*;
use latch::model::{Input, Room, RowPlan, Segment, Sequences, SoftRoom};
use latch::ops::Tensor;

#[test]
fn gradients_through_drawn_steps_are_those_of_held_noise() {
    let gaussian = Perturbation::Gaussian { strength: 0.4 };
    let cases = [(Perturbation::Gumbel { clamp: None }, true), (gaussian, false), (gaussian, true)];
    for (family, (perturbation, hard)) in ["gpt2", "llama"].into_iter().flat_map(|f| cases.map(|c| (f, c))) {
        let what = format!("{family}, {perturbation:?}, hard: {hard}");
        let fresh = || model(family, Dtype::F64, &Device::cpu());
        let model = fresh();
        let steps = 3;
        let soft =
            SoftThoughts { proxies_stop: false, replay: SoftReplay::Noise, ..thoughts(perturbation, hard) };
        let drawing = drawing(soft);
        let mut rollouts =
            Rollouts::reserve(&model, form(steps), drawing, LIMITS, Record::Everything).unwrap();
        let prompt = prompts().remove(0);
        let member = members(1, 1)[0];
        let go = |_, _| ControlFlow::Continue(());
        let drawn = rollouts.sample(&model, std::slice::from_ref(&prompt), &[member], go).unwrap().remove(0);
        assert!(drawn.actions.iter().any(|action| action.ids.len() > 1) && drawn.tokens.len() > 1);
        let mut scores = Scores::reserve(&model, 60).unwrap();
        let values = scored(&model, &rollouts, std::slice::from_ref(&drawn), &mut scores);
        let weights: Vec<f64> = (0..values.len()).map(|n| 0.7 - 0.4 * n as f64).collect();
        let mut gradients = model.gradients().unwrap();
        let (sequences, masks) = rollouts.parts_mut();
        scores.backward(&model, sequences, &weights, &mut gradients).unwrap();
        let truncation = Truncation { soft: SoftGradient::Pathwise, ..Truncation::default() };
        model.backward(sequences, masks, truncation, &mut gradients).unwrap();

        // Noise by step, and y as it was.
        let mut noise: Vec<Vec<f64>> = Vec::new();
        let mut drawn_y: Vec<Vec<f64>> = Vec::new();
        let mut value = |model: &Model, learn: bool| -> f64 {
            let terms = drawn.actions.iter().map(|action| action.ids.len()).max().unwrap();
            let soft = SoftRoom { positions: steps, rows: 1, terms, ..SoftRoom::default() };
            let room = Room { rows: 1, slots: 64, longest: 64, tape_positions: 64, soft };
            let mut sequences = Sequences::reserve(model, model.device(), room, Record::Everything).unwrap();
            sequences.layout(&[RowPlan::own(64)]).unwrap();
            let mut at = model.forward(&mut sequences, &Segment::of_tokens(0, &prompt), None).unwrap();
            for (step, action) in drawn.actions.iter().enumerate() {
                let mut logits =
                    Tensor::zeros(model.device(), [1, model.config().vocab], Dtype::F64).unwrap();
                model.logits(sequences.hidden(at.end - 1..at.end).unwrap(), logits.view_mut()).unwrap();
                let logits = logits.download::<f64>().unwrap();
                let log_softmax = |values: Vec<f64>| -> Vec<f64> {
                    let sum = values.iter().map(|value| value.exp()).sum::<f64>().ln();
                    values.into_iter().map(|value| value - sum).collect()
                };
                let clean = log_softmax(action.ids.iter().map(|&id| logits[id as usize] / 0.9).collect());
                if learn {
                    noise.push(action.perturbed.iter().zip(&clean).map(|(g, a)| g - a).collect());
                }
                let g = clean.iter().zip(&noise[step]).map(|(a, noise)| (a + noise) / 0.5).collect();
                let y: Vec<f64> = log_softmax(g).into_iter().map(f64::exp).collect();
                if learn {
                    drawn_y.push(y.clone());
                }
                let largest = action.largest();
                let mut input: Vec<(u32, f64)> = (action.ids.iter().zip(y.iter().zip(&drawn_y[step])))
                    .map(|(&id, (&y, then))| match hard {
                        true => (id, f64::from(u8::from(Some(id) == largest)) + y - then),
                        false => (id, y),
                    })
                    .collect();
                input.resize(terms, (0, 0.0));
                let mut segment = Segment::new();
                segment.push(0, Input::Soft(input));
                at = model.forward(&mut sequences, &segment, None).unwrap();
            }
            let mut positions = vec![at.end as u32 - 1];
            let read = Segment::of_tokens(0, &drawn.tokens[..drawn.tokens.len() - 1]);
            positions.extend(model.forward(&mut sequences, &read, None).unwrap().map(|at| at as u32));
            let mut scores = Scores::reserve(model, 60).unwrap();
            scores.forward(model, &sequences, &positions, &drawn.tokens, 1.0).unwrap();
            let values = scores.log_probabilities().unwrap();
            values.iter().zip(&weights).map(|(value, weight)| value * weight).sum()
        };
        let here: f64 = values.iter().zip(&weights).map(|(value, weight)| value * weight).sum();
        assert!((value(&model, true) - here).abs() < 1e-9, "{what}");
        let mut at = |step: f64| {
            let mut model = fresh();
            let direction = moved(&mut model, step);
            (value(&model, false), direction)
        };
        let difference = models::slope(|step| at(step).0);
        let direction = at(0.0).1;
        let slope: f64 = flat(&mut gradients).iter().zip(&direction).map(|(g, d)| g * d).sum();
        let error = (slope - difference).abs() / slope.abs().max(difference.abs());
        assert!(error < 1e-6, "{what}: gradient {slope}, difference {difference}, error {error:e}");
    }
}
