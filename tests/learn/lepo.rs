//! LEPO's loss term by term against a transcription of the released formulas in PyTorch (tools/lepo_golden.py), and
//! the densities of soft actions against torch.distributions.

use latch::base::Dtype;
use latch::device::Device;
use latch::learn::advantages::{Baseline, Scale, advantages};
use latch::learn::objective::{Aggregation, Extent, weights};
use latch::ops::Tensor;
use latch::ops::policy_loss::{Hyper, Inputs, Outputs, Ratio, Statistic, Surrogate, backward, forward};
use latch::ops::sampler::{self, Law, Support};
use latch::ops::soft_action::{Score, Scored, score, score_backward};
use latch::verify::operations::policy_loss::starts;
use serde_json::Value;

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn lists(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(floats).collect()
}

fn near(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (n, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-12 * (1.0 + b.abs()), "{what} {n}: {a} {b}");
    }
}

/// Rows of some positions' columns, as tensors on the CPU.
fn matrix(rows: &[Vec<f64>]) -> Tensor {
    let cols = rows.first().map_or(0, Vec::len);
    Tensor::from_host(&Device::cpu(), [rows.len(), cols], &rows.concat()).unwrap()
}

fn column(values: &[f64]) -> Tensor {
    Tensor::from_host(&Device::cpu(), [values.len(), 1], values).unwrap()
}

fn zeros(rows: usize, cols: usize) -> Tensor {
    Tensor::zeros(&Device::cpu(), [rows, cols], Dtype::F64).unwrap()
}

/// The golden batch: positions are packed row by row, and the first `latents` of each row are soft.
struct Golden {
    value: Value,
    lengths: Vec<usize>,
    latents: usize,
    logits: Vec<Vec<f64>>,
}

impl Golden {
    fn load() -> Golden {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/lepo/loss.json");
        let value: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        Golden {
            lengths: floats(&value["lengths"]).iter().map(|&length| length as usize).collect(),
            latents: value["latents"].as_u64().unwrap() as usize,
            logits: lists(&value["logits"]),
            value,
        }
    }

    /// Positions of the soft steps (`true`) or of the tokens, in packed order.
    fn positions(&self, soft: bool) -> Vec<usize> {
        let starts = starts(&self.lengths);
        let of_row = |row: usize| (0..self.lengths[row]).map(move |at| (row, at));
        (0..self.lengths.len())
            .flat_map(of_row)
            .filter(|(_, at)| (*at < self.latents) == soft)
            .map(|(row, at)| starts[row] as usize + at)
            .collect()
    }

    /// The stored support of the soft steps, g and y.
    fn stored(&self) -> (Support, Tensor, Tensor) {
        let capacity = self.value["capacity"].as_u64().unwrap() as usize;
        let padded = |name: &str| -> Vec<Vec<f64>> {
            let mut rows = lists(&self.value[name]);
            rows.iter_mut().for_each(|row| row.resize(capacity, 0.0));
            rows
        };
        let counts: Vec<u32> = lists(&self.value["ids"]).iter().map(|ids| ids.len() as u32).collect();
        let ids: Vec<u32> = padded("ids").concat().into_iter().map(|id| id as u32).collect();
        let mut support = Support::reserve(&Device::cpu(), counts.len(), capacity).unwrap();
        support.upload(0..counts.len(), &ids, &counts).unwrap();
        (support, matrix(&padded("g")), matrix(&padded("y")))
    }

    fn rows(&self, positions: &[usize]) -> Tensor {
        matrix(&positions.iter().map(|&at| self.logits[at].clone()).collect::<Vec<_>>())
    }
}

/// Terms and coefficients of one part of the matrix under its loss.
fn part(hyper: &Hyper, lengths: &[usize], of: [&[f64]; 4]) -> [Vec<f64>; 2] {
    let [log_probability, old, advantage, weight] = of.map(column);
    let starts = starts(lengths);
    let starts = Tensor::from_host(&Device::cpu(), [starts.len(), 1], &starts).unwrap();
    let inputs = Inputs {
        log_probability: log_probability.view(),
        old: old.view(),
        reference: None,
        advantage: advantage.view(),
        starts: starts.view(),
    };
    let count = of[0].len();
    let (mut term, mut statistics, mut coefficient) =
        (zeros(count, 1), zeros(count, Statistic::COUNT), zeros(count, 1));
    let out = Outputs { term: term.view_mut(), statistics: statistics.view_mut() };
    forward(&inputs, hyper, out).unwrap();
    backward(weight.view(), &inputs, hyper, coefficient.view_mut()).unwrap();
    [term.download().unwrap(), coefficient.download().unwrap()]
}

#[test]
fn the_released_loss_term_by_term() {
    let golden = Golden::load();
    let (soft, tokens) = (golden.positions(true), golden.positions(false));
    let vocabulary = golden.logits[0].len();
    let pick = |values: &[f64], positions: &[usize]| -> Vec<f64> {
        positions.iter().map(|&at| values[at]).collect()
    };

    // What plays the log-probability: the cross-entropy with the soft label, and that of the token.
    let (support, perturbed, labels) = golden.stored();
    let logits = golden.rows(&soft);
    let scored = Scored {
        logits: logits.view(),
        inverse_temperature: 1.0,
        support: &support,
        at: 0..soft.len(),
        perturbed: perturbed.view(),
        weights: labels.view(),
    };
    let kind = Score::SoftCe { full: true };
    let mut of_soft = zeros(soft.len(), 1);
    score(&scored, &kind, of_soft.view_mut()).unwrap();
    let of_soft: Vec<f64> = of_soft.download().unwrap();

    let token_logits = golden.rows(&tokens);
    let ids: Vec<u32> =
        pick(&floats(&golden.value["tokens"]), &tokens).into_iter().map(|id| id as u32).collect();
    let ids = Tensor::from_host(&Device::cpu(), [tokens.len(), 1], &ids).unwrap();
    let whole = Support::reserve(&Device::cpu(), tokens.len(), 1).unwrap();
    let law = sampler::Scored { logits: token_logits.view(), tokens: ids.view(), law: &Law::PLAIN };
    let mut of_token = zeros(tokens.len(), 1);
    sampler::score_on_support(&law, &whole, 0..tokens.len(), of_token.view_mut()).unwrap();
    let of_token: Vec<f64> = of_token.download().unwrap();

    let rewards = lists(&golden.value["rewards"]);
    let by_row: Vec<f64> =
        advantages(&rewards, Baseline::GroupMean, Scale::GROUP).unwrap().into_iter().flatten().collect();
    near("advantage", &by_row, &floats(&golden.value["advantages"]));
    let advantage: Vec<f64> =
        by_row.iter().zip(&golden.lengths).flat_map(|(&a, &length)| vec![a; length]).collect();
    let extent = Extent {
        lengths: &golden.lengths,
        groups: &vec![rewards[0].len(); rewards.len()],
        max_length: golden.value["max_length"].as_u64().unwrap() as usize,
        left_out: &[],
    };
    let latent_lengths = vec![golden.latents; golden.lengths.len()];
    let token_lengths: Vec<usize> = golden.lengths.iter().map(|length| length - golden.latents).collect();
    let of_latents = Hyper { ratio: Ratio::Token, surrogate: Surrogate::Plain, clamp: None, kl: None };
    let clipped = Surrogate::Clipped { low: 0.2, high: 0.2, delta: None, dual: None };
    let of_tokens = Hyper { surrogate: clipped, ..of_latents };
    let old = pick(&floats(&golden.value["old"]), &tokens);

    for (name, aggregation) in [
        ("grpo", Aggregation::SequenceMean),
        ("bnpo", Aggregation::TokenMean { local_rows: None }),
        ("bnpo, 1", Aggregation::TokenMean { local_rows: Some(1) }),
        ("dr_grpo", Aggregation::TokenSumOverConstant),
    ] {
        let case = &golden.value["cases"][name];
        let weights = weights(aggregation, &extent).unwrap();
        let (a, w) = (pick(&advantage, &soft), pick(&weights, &soft));
        // The plain surrogate reads no old log-probability.
        let nothing = vec![f64::NAN; soft.len()];
        let [soft_terms, soft_slopes] = part(&of_latents, &latent_lengths, [&of_soft, &nothing, &a, &w]);
        let (a, w) = (pick(&advantage, &tokens), pick(&weights, &tokens));
        let [token_terms, token_slopes] = part(&of_tokens, &token_lengths, [&of_token, &old, &a, &w]);

        let mut terms = vec![0.0; weights.len()];
        soft.iter().zip(soft_terms).for_each(|(&at, term)| terms[at] = term);
        tokens.iter().zip(token_terms).for_each(|(&at, term)| terms[at] = term);
        near(&format!("{name} term"), &terms, &floats(&case["terms"]));
        let loss: f64 = terms.iter().zip(&weights).map(|(term, weight)| term * weight).sum();
        near(&format!("{name} loss"), &[loss], &[case["loss"].as_f64().unwrap()]);

        let mut of_soft = zeros(soft.len(), vocabulary);
        score_backward(column(&soft_slopes).view(), &scored, &kind, of_soft.view_mut()).unwrap();
        let mut of_token = zeros(tokens.len(), vocabulary);
        let slopes = column(&token_slopes);
        let at = 0..tokens.len();
        sampler::score_on_support_backward(slopes.view(), &law, &whole, at, of_token.view_mut()).unwrap();
        let (of_soft, of_token) = (of_soft.download::<f64>().unwrap(), of_token.download::<f64>().unwrap());
        let expected = lists(&case["gradient"]);
        for (positions, found) in [(&soft, of_soft), (&tokens, of_token)] {
            for (&at, found) in positions.iter().zip(found.chunks(vocabulary)) {
                near(&format!("{name} gradient at {at}"), found, &expected[at]);
            }
        }
    }
}

#[test]
fn densities_are_those_of_torch_distributions() {
    let golden = Golden::load();
    let soft = golden.positions(true);
    let (support, perturbed, labels) = golden.stored();
    let logits = golden.rows(&soft);
    let scored = Scored {
        logits: logits.view(),
        inverse_temperature: 1.0,
        support: &support,
        at: 0..soft.len(),
        perturbed: perturbed.view(),
        weights: labels.view(),
    };
    let tau = golden.value["tau"].as_f64().unwrap();
    for (name, kind) in [
        ("concrete", Score::Concrete { tau, mean: false }),
        ("gumbel_g", Score::GumbelG { floor: None, clamp: None, mean: false }),
    ] {
        let expected = &golden.value["densities"][name];
        let mut values = zeros(soft.len(), 1);
        score(&scored, &kind, values.view_mut()).unwrap();
        near(name, &values.download::<f64>().unwrap(), &floats(&expected["values"]));
        let ones = column(&vec![1.0; soft.len()]);
        let mut gradient = zeros(soft.len(), golden.logits[0].len());
        score_backward(ones.view(), &scored, &kind, gradient.view_mut()).unwrap();
        near(
            &format!("{name} gradient"),
            &gradient.download::<f64>().unwrap(),
            &floats(&expected["gradient"]),
        );
    }
}
