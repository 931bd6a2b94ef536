//! Stepwise internalisation against its rules played out step by step (tools/icot_golden.py).

use latch::learn::implicit::{EVERYTHING, Removal, Side};
use latch::text::EncodedProblem;
use serde_json::Value;

const GOLDEN: &str = include_str!("../golden/icot.json");

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

#[test]
fn schedule_tokens_and_fresh_optimisers_are_those_of_the_rules() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let (mut emptied_steps, mut resets) = (0, 0);
    for (index, case) in golden["cases"].as_array().unwrap().iter().enumerate() {
        let max = number(&case["removal_max"]);
        let removal = Removal {
            per_epoch: case["removal_per_epoch"].as_f64().unwrap(),
            max: (max > 0).then_some(max),
            side: if case["side"] == "left" { Side::Left } else { Side::Right },
            smoothing: case["smooth"].as_bool().unwrap().then_some(4.0),
            reset_optimizer: case["reset_optimizer"].as_bool().unwrap(),
            seed: 0,
        };
        let batches = case["batches"].as_array().unwrap();
        let steps = case["steps"].as_array().unwrap();
        assert_eq!(steps.len(), batches.len() * number(&case["epochs"]));
        let (mut before, mut emptied) = (0, false);
        for (step, expected) in steps.iter().enumerate() {
            let scheduled = removal.scheduled(step, batches.len());
            let found = if scheduled == EVERYTHING { -1 } else { scheduled as i64 };
            assert_eq!(expected["scheduled"], found, "case {index}, step {step}");
            let reset = removal.resets(before, scheduled, emptied);
            assert_eq!(expected["reset"], reset, "case {index}, step {step}");
            emptied = scheduled > 0 || removal.smoothing.is_some();
            let examples = batches[step % batches.len()].as_array().unwrap().iter();
            for (example, trained) in examples.zip(expected["trained"].as_array().unwrap()) {
                let (length, extra) = (number(&example[0]), number(&example[1]));
                let extra = if removal.smoothing.is_some() { extra } else { 0 };
                let reasoning: Vec<u32> = (200..200 + length as u32).collect();
                let problem = EncodedProblem {
                    question: vec![100, 101, 102],
                    // Where steps end makes no difference.
                    steps: reasoning.chunks(3).map(<[u32]>::to_vec).collect(),
                    answer: vec![300, 301],
                };
                let removed = scheduled.saturating_add(extra);
                emptied &= removed >= length;
                let found = removal.example(&problem, removed);
                assert_eq!(*trained, serde_json::json!(found.answer), "case {index}, step {step}");
                assert_eq!((found.prompt, found.latents, found.end.len()), (problem.question, 0, 0));
            }
            emptied_steps += usize::from(emptied);
            resets += usize::from(reset);
            before = scheduled;
        }
    }
    assert!(
        emptied_steps > 10 && resets > 10,
        "{emptied_steps} emptied, {resets} resets: the cases show nothing"
    );
}

#[test]
fn extra_removal_has_the_released_law() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    for (lambda, table) in golden["law"].as_object().unwrap() {
        let removal = Removal {
            per_epoch: 8.0,
            max: None,
            side: Side::Left,
            smoothing: Some(lambda.parse().unwrap()),
            reset_optimizer: true,
            seed: 11,
        };
        let count = 100_000;
        let mut found = [0_usize; 100];
        (0..count).for_each(|number| found[removal.offset(1, number)] += 1);
        for (k, expected) in table.as_array().unwrap().iter().enumerate() {
            let (count, expected) = (f64::from(count), expected.as_f64().unwrap());
            // Four standard errors, and one draw where the expectation is far below one.
            let bound = 4.0 * (expected * (1.0 - expected) * count).sqrt() + 1.0;
            let difference = (found[k] as f64 - expected * count).abs();
            assert!(
                difference <= bound,
                "lambda {lambda}, {k}: {} of {count}, expected {expected}",
                found[k]
            );
        }
    }
}
