//! Switching between tokens and mixtures: against the rule step by step on the host, in any batch, and from any seed.

use crate::parity::gpu;
use crate::soft::{model, prompts};
use latch::base::Dtype;
use latch::device::Device;
use latch::model::{Input, Model, Record, Room, RowPlan, Segment, Sequences, SoftRoom};
use latch::ops::Tensor;
use latch::ops::sampler::Law;
use latch::rollout::switching::{Cap, Reading, Switched, SwitchedOptions, Switching, generate};
use std::ops::ControlFlow;

const STEPS: usize = 24;

fn rule(window: usize, cap: Option<Cap>) -> Switching {
    Switching { window, alpha: 0.6, beta: 0.7, open: 50, close: 51, first: Some(10), top_k: None, cap }
}

fn options(law: Law) -> SwitchedOptions {
    SwitchedOptions { law, max_new_tokens: STEPS, stop: vec![], seed: 3 }
}

fn run(model: &Model, prompts: &[Vec<u32>], rule: &Switching, options: &SwitchedOptions) -> Vec<Switched> {
    generate(model, prompts, rule, options, |_, _| ControlFlow::Continue(())).unwrap()
}

/// One greedy row, without the module under test: softmax, entropy, mode and mixtures on the host, every input one given
/// mixture. Returns tokens, the mode of each step (true = what follows reads no token), entropies.
fn by_hand(model: &Model, prompt: &[u32], rule: &Switching) -> (Vec<u32>, Vec<bool>, Vec<f64>) {
    let vocabulary = model.config().vocab;
    let terms = vocabulary + 1;
    let soft = SoftRoom { positions: STEPS, rows: 1, terms, ..SoftRoom::default() };
    let room = Room { rows: 1, slots: 64, longest: 64, tape_positions: 64, soft };
    let mut sequences = Sequences::reserve(model, model.device(), room, Record::Nothing).unwrap();
    sequences.layout(&[RowPlan::own(64)]).unwrap();
    model.forward(&mut sequences, &Segment::of_tokens(0, prompt), None).unwrap();
    let (mut tokens, mut modes, mut entropies) = (vec![], vec![], vec![]);
    let (mut latent, mut closed, mut reference, mut since) = (true, false, 0.0, 0);
    for step in 0..STEPS {
        let mut logits = Tensor::zeros(model.device(), [1, vocabulary], Dtype::F64).unwrap();
        model.logits(sequences.latest_hidden(), logits.view_mut()).unwrap();
        let logits = logits.download::<f64>().unwrap();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        let p: Vec<f64> = logits.iter().map(|logit| logit.exp() / sum).collect();
        let entropy: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
        let token = (0..vocabulary).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
        closed |= token == rule.close;
        let (mut falls, mut rises) = (false, false);
        since += 1;
        if step == 0 {
            (reference, since) = (entropy, 0);
        } else if latent && entropy < reference {
            falls = true;
        } else if !latent && entropy > reference && since >= rule.window && !closed {
            rises = true;
        }
        if falls || rises {
            (latent, reference, since) = (rises, entropy, 0);
        }
        let rising = |from: f64| from + (1.0 - from) * step as f64 / STEPS as f64;
        let (share, other) = match (falls, rises, latent && !closed) {
            (true, ..) => (rising(rule.beta), rule.close),
            (_, true, _) => (rising(rule.alpha), rule.open),
            (.., true) if step == 0 => (0.9, rule.first.unwrap()),
            (.., true) => (1.0, 0),
            (.., false) => (0.0, token),
        };
        tokens.push(token);
        modes.push(share > 0.0);
        entropies.push(entropy);
        let mut input: Vec<(u32, f64)> = (0..).zip(p.iter().map(|p| p * share)).collect();
        input.push((other, 1.0 - share));
        let mut segment = Segment::new();
        segment.push(0, Input::Soft(input));
        model.forward(&mut sequences, &segment, None).unwrap();
    }
    (tokens, modes, entropies)
}

#[test]
fn rows_switch_as_the_rule_says_step_by_step() {
    for family in ["gpt2", "llama"] {
        let model = model(family, Dtype::F64, &Device::cpu());
        let (mut opened, mut closed, mut mixed) = (0, 0, 0);
        for window in [1, 4] {
            let rule = rule(window, None);
            let found = run(&model, &prompts(), &rule, &options(Law::Greedy));
            for (prompt, found) in prompts().iter().zip(&found) {
                let (tokens, modes, entropies) = by_hand(&model, prompt, &rule);
                assert_eq!(found.ids, tokens, "{family}, window {window}");
                let read: Vec<bool> =
                    found.readings.iter().map(|reading| *reading != Reading::Token).collect();
                assert_eq!(read, modes, "{family}, window {window}");
                for (a, b) in found.entropies.iter().zip(&entropies) {
                    assert!((a - b).abs() < 1e-9, "{family}, window {window}: entropy {a} {b}");
                }
                let blends = |id| move |reading: &&Reading| matches!(reading, Reading::Blend { with, .. } if *with == id);
                opened += found.readings.iter().filter(blends(rule.open)).count();
                closed += found.readings.iter().filter(blends(rule.close)).count();
                mixed += found.readings.iter().filter(|reading| **reading == Reading::Mixture).count();
            }
        }
        assert!(opened > 0 && closed > 0 && mixed > 0, "{family}: {opened} {closed} {mixed}");
    }
}

#[test]
fn a_row_is_the_same_in_any_batch_and_from_its_seed() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    let law = Law::Categorical { temperature: 1.0, top_k: None, top_p: None, min_p: None };
    let rule = rule(2, None);
    let all = run(&model, &prompts(), &rule, &options(law));
    assert_eq!(all, run(&model, &prompts(), &rule, &options(law)));
    // A row's stream is that of its place, so the first one is asked alone, and the others beside fewer.
    for count in 1..prompts().len() {
        assert_eq!(run(&model, &prompts()[..count], &rule, &options(law))[..], all[..count]);
    }
    let other = run(&model, &prompts(), &rule, &SwitchedOptions { seed: 4, ..options(law) });
    assert!(other.iter().zip(&all).all(|(a, b)| a.ids != b.ids));
}

#[test]
fn a_cap_bounds_switches_and_asks_for_the_answer() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    let free = run(&model, &prompts(), &rule(1, None), &options(Law::Greedy));
    let closes = |switched: &Switched| {
        let close = |reading: &&Reading| matches!(reading, Reading::Blend { with: 51, .. });
        switched.readings.iter().filter(close).count()
    };
    let answer = vec![33, 34];
    let capped = rule(1, Some(Cap { switches: 1, answer: answer.clone(), budget: 4 }));
    for (free, capped) in free.iter().zip(run(&model, &prompts(), &capped, &options(Law::Greedy))) {
        assert!(closes(free) > 0);
        let first =
            free.readings.iter().position(|reading| matches!(reading, Reading::Blend { with: 51, .. }));
        let first = first.unwrap();
        // Up to the first switch nothing differs; after it `close` is said, and locks.
        assert_eq!(capped.ids[..=first], free.ids[..=first]);
        assert_eq!(capped.ids[first + 1], 51);
        assert_eq!(closes(&capped), 1);
        assert!(capped.readings[first + 1..].iter().all(|reading| *reading == Reading::Token));
    }
}

#[test]
fn the_simulated_gpu_switches_as_the_cpu_does() {
    let cpu = model("llama", Dtype::F32, &Device::cpu());
    let device = gpu::device();
    let gpu = model("llama", Dtype::F32, &device);
    let options = SwitchedOptions { max_new_tokens: 5, ..options(Law::Greedy) };
    let (a, b) =
        (run(&cpu, &prompts(), &rule(1, None), &options), run(&gpu, &prompts(), &rule(1, None), &options));
    for (a, b) in a.iter().zip(&b) {
        assert_eq!((&a.ids, &a.readings), (&b.ids, &b.readings));
        assert!(a.entropies.iter().zip(&b.entropies).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    let refused = |prompts: &[Vec<u32>], rule: &Switching, options: &SwitchedOptions| {
        generate(&model, prompts, rule, options, |_, _| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let greedy = options(Law::Greedy);
    assert!(refused(&[vec![]], &rule(1, None), &greedy).contains("prompt 0 has no tokens"));
    assert!(refused(&prompts(), &Switching { open: 61, ..rule(1, None) }, &greedy).contains("token id 61"));
    let long = SwitchedOptions { max_new_tokens: 200, ..greedy };
    assert!(refused(&prompts(), &rule(1, None), &long).contains("exceed the model's 128"));
}
