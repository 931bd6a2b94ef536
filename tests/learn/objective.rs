//! Presets against what TRL's and verl's formulas give (tools/policy_loss_golden.py, torch autograd in f64), and
//! aggregation by hand.

use latch::base::Dtype;
use latch::device::Device;
use latch::learn::advantages::advantages;
use latch::learn::objective::{Aggregation, Extent, Objective, Preset, weights};
use latch::ops::Tensor;
use latch::ops::policy_loss::{
    Estimator, Hyper, Inputs, Kl, Outputs, Ratio, Statistic, Surrogate, backward, forward,
};
use latch::verify::operations::policy_loss::starts;
use serde_json::Value;

fn golden() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/policy_loss.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// The objective of a golden case: a preset, or a preset with fields changed by hand.
fn objective(name: &str) -> Objective {
    let (preset, change) = name.split_once(", ").unwrap_or((name, ""));
    let mut objective = preset.parse::<Preset>().unwrap().objective();
    let clipped = |delta, dual| Surrogate::Clipped { low: 0.2, high: 0.28, delta, dual };
    let estimator = match change.rsplit(' ').next() {
        Some("k1") => Some(Estimator::K1),
        Some("k2") => Some(Estimator::K2),
        Some("k3") => Some(Estimator::K3),
        Some("k3+") => Some(Estimator::K3Plus),
        _ => None,
    };
    if let Some(estimator) = estimator {
        objective.loss.surrogate = clipped(None, Some(3.0));
        // verl bounds D for k3 alone; here D stays far inside.
        objective.loss.kl = Some(Kl { estimator, beta: 0.1, clamp: Some(20.0), cap: Some(10.0) });
    }
    match change {
        "sapo" => objective.loss.surrogate = Surrogate::Soft { positive: 1.0, negative: 1.05 },
        "delta 1.5" => objective.loss.surrogate = clipped(Some(1.5), None),
        _ => assert!(change.is_empty() || estimator.is_some(), "{change}"),
    }
    objective
}

#[test]
fn presets_give_the_numbers_of_their_sources() {
    let golden = golden();
    let lengths: Vec<usize> = floats(&golden["lengths"]).iter().map(|&length| length as usize).collect();
    let rewards: Vec<Vec<f64>> = golden["rewards"].as_array().unwrap().iter().map(floats).collect();
    let group = golden["group"].as_u64().unwrap() as usize;
    let extent = Extent {
        lengths: &lengths,
        groups: &vec![group; rewards.len()],
        max_length: golden["max_length"].as_u64().unwrap() as usize,
        left_out: &[],
    };
    let device = Device::cpu();
    let column = |values: &[f64]| Tensor::from_host(&device, [values.len(), 1], values).unwrap();
    let tensor = |name: &str| column(&floats(&golden[name]));
    let (log_probability, old, reference) = (tensor("log_probability"), tensor("old"), tensor("reference"));
    let starts = starts(&lengths);
    let starts = Tensor::from_host(&device, [starts.len(), 1], &starts).unwrap();
    let cases = golden["cases"].as_object().unwrap();
    for preset in Preset::ALL {
        assert!(cases.contains_key(preset.name()), "no golden numbers of {preset}");
    }
    for (name, case) in cases {
        let objective = objective(name);
        let near = |what: &str, found: &[f64], expected: &[f64]| {
            assert_eq!(found.len(), expected.len(), "{name}: {what}");
            for (n, (a, b)) in found.iter().zip(expected).enumerate() {
                assert!((a - b).abs() <= 1e-13 * (1.0 + b.abs()), "{name}: {what} {n}: {a} {b}");
            }
        };
        let by_row: Vec<f64> = advantages(&rewards, objective.baseline, objective.scale)
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        near("advantage", &by_row, &floats(&case["advantages"]));
        let by_token: Vec<f64> =
            by_row.iter().zip(&lengths).flat_map(|(&a, &length)| vec![a; length]).collect();
        let weights = weights(objective.aggregation, &extent).unwrap();
        let (advantage, weight) = (column(&by_token), column(&weights));
        let inputs = Inputs {
            log_probability: log_probability.view(),
            old: old.view(),
            reference: objective.loss.kl.map(|_| reference.view()),
            advantage: advantage.view(),
            starts: starts.view(),
        };
        let zeros = |cols| Tensor::zeros(&device, [by_token.len(), cols], Dtype::F64).unwrap();
        let (mut term, mut statistics, mut coefficient) = (zeros(1), zeros(Statistic::COUNT), zeros(1));
        let out = Outputs { term: term.view_mut(), statistics: statistics.view_mut() };
        forward(&inputs, &objective.loss, out).unwrap();
        backward(weight.view(), &inputs, &objective.loss, coefficient.view_mut()).unwrap();
        let terms = term.download::<f64>().unwrap();
        let loss: f64 = weights.iter().zip(&terms).map(|(weight, term)| weight * term).sum();
        near("loss", &[loss], &[case["loss"].as_f64().unwrap()]);
        near("coefficient", &coefficient.download::<f64>().unwrap(), &floats(&case["coefficients"]));
    }
}

#[test]
fn presets_differ_and_names_are_read() {
    for (i, preset) in Preset::ALL.into_iter().enumerate() {
        assert_eq!(preset.to_string().parse::<Preset>(), Ok(preset));
        preset.objective().loss.check().unwrap();
        for other in &Preset::ALL[..i] {
            assert_ne!(preset.objective(), other.objective(), "{preset} {other}");
        }
    }
    let message = "ppo".parse::<Preset>().unwrap_err();
    assert!(
        message.contains("`ppo`") && message.contains("dropout_grpo, grpo, bnpo, dr_grpo, dapo"),
        "{message}"
    );
}

#[test]
fn every_field_can_be_changed() {
    let base = Preset::Dapo.objective();
    let loss = Hyper { ratio: Ratio::Sequence, ..base.loss };
    let changed = Objective { loss, dynamic_sampling: None, overlong: None, mask_truncated: true, ..base };
    assert!(changed.loss.check().is_ok() && changed != base);
}

fn extent<'a>(lengths: &'a [usize], groups: &'a [usize], left_out: &'a [bool]) -> Extent<'a> {
    Extent { lengths, groups, max_length: 10, left_out }
}

#[test]
fn weights_by_hand() {
    let lengths = [2, 1, 4];
    let of = |aggregation, left_out: &[bool]| -> Vec<f64> {
        let all = weights(aggregation, &extent(&lengths, &[2, 1], left_out)).unwrap();
        // One of each row; the others are alike.
        assert!(all[0] == all[1] && all[3..].iter().all(|&w| w == all[3]) && all.len() == 7);
        vec![all[0], all[2], all[3]]
    };
    let near = |found: Vec<f64>, expected: [f64; 3]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-16), "{found:?} {expected:?}");
    };
    let third = 1.0 / 3.0;
    let global = Aggregation::TokenMean { local_rows: None };
    near(of(Aggregation::SequenceMean, &[]), [third / 2.0, third, third / 4.0]);
    near(of(global, &[]), [1.0 / 7.0; 3]);
    near(of(Aggregation::TokenMean { local_rows: Some(2) }, &[]), [1.0 / 6.0, 1.0 / 6.0, 1.0 / 8.0]);
    near(of(Aggregation::TokenSumOverConstant, &[]), [1.0 / 30.0; 3]);
    near(of(Aggregation::TokenSumOverGroup, &[]), [0.25, 0.25, 0.5]);
    // The last row was truncated: its tokens count nowhere.
    let left_out = [false, false, true];
    near(of(Aggregation::SequenceMean, &left_out), [third / 2.0, third, 0.0]);
    near(of(global, &left_out), [third, third, 0.0]);
    near(of(Aggregation::TokenSumOverConstant, &left_out), [1.0 / 30.0, 1.0 / 30.0, 0.0]);
    assert!(weights(global, &extent(&[], &[], &[])).unwrap().is_empty());
}

#[test]
fn extents_that_do_not_fit_are_errors() {
    let global = Aggregation::TokenMean { local_rows: None };
    let run = |aggregation, extent: Extent| weights(aggregation, &extent).unwrap_err().to_string();
    assert!(run(global, extent(&[1, 2], &[1], &[])).contains("groups: found 1 rows in all, expected 2 rows"));
    assert!(
        run(global, extent(&[1, 11], &[2], &[])).contains("length of row 1: found 11, expected at most 10")
    );
    assert!(run(global, extent(&[1, 2], &[2], &[true])).contains("rows left out"));
    let none = Aggregation::TokenMean { local_rows: Some(0) };
    assert!(run(none, extent(&[1, 2], &[2], &[])).contains("found 0"));
}
