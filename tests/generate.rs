//! Generation: batches, stopping, crossings, replay of sampled tokens, and what bad requests are told.

use crate::models;
use latch::base::Dtype;
use latch::device::Device;
use latch::model::{Model, Record, RowPlan, Scores, Segment, Sequences, SequencesPlan};
use latch::ops::sampler::Law;
use latch::rollout::generate::{Generated, Options, generate};
use serde_json::json;
use std::ops::ControlFlow;

fn model() -> Model {
    // A width that fills no vector.
    let config = models::config(json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 61, "n_embd": 21, "n_head": 3,
        "n_layer": 2, "n_positions": 96, "activation_function": "gelu_new",
    }));
    models::random(config, 5, Dtype::F32, &Device::cpu())
}

fn options() -> Options {
    Options {
        latents: 2,
        soft: None,
        after_latents: vec![3],
        law: Law::PLAIN,
        max_new_tokens: 12,
        stop: vec![],
        seed: 9,
    }
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![4, 8, 15], vec![16], vec![23, 42, 7, 1, 30, 2]]
}

fn run(model: &Model, prompts: &[Vec<u32>], options: &Options) -> Vec<Generated> {
    generate(model, prompts, options, |_, _| ControlFlow::Continue(())).unwrap().0
}

#[test]
fn sampled_rows_stop_alone_and_keep_their_bits_when_others_stop() {
    let model = model();
    let free = run(&model, &prompts(), &options());
    assert_ne!(free[0].ids, free[1].ids);
    // A token that row 1 samples early makes rows stop at different steps, which packs the survivors anew.
    let stop = Options { stop: vec![free[1].ids[2]], ..options() };
    let stopped = run(&model, &prompts(), &stop);
    assert!(stopped[1].stopped && stopped[1].ids.len() <= 3);
    for (free, stopped) in free.iter().zip(&stopped) {
        let length = stopped.ids.len();
        assert_eq!(stopped.ids, free.ids[..length]);
        assert_eq!(stopped.log_probabilities, free.log_probabilities[..length]);
        assert_eq!(stopped.stopped, length < 12 || free.ids[11] == stop.stop[0]);
    }
}

#[test]
fn sampled_log_probabilities_are_those_of_the_teacher_forced_answer_to_the_bit() {
    let model = model();
    for law in [Law::PLAIN, Law::Categorical { temperature: 0.7, top_k: None, top_p: None, min_p: None }] {
        let options = Options { law, ..options() };
        let rows = run(&model, &prompts(), &options);
        for (row, prompt) in rows.iter().zip(prompts()) {
            let length = prompt.len() + options.latents + 1 + row.ids.len();
            let plan = SequencesPlan {
                rows: vec![RowPlan::own(length)],
                record: Record::Everything,
                tape_positions: length,
            };
            let mut sequences = Sequences::new(&model, &plan).unwrap();
            model.forward(&mut sequences, &Segment::of_tokens(0, &prompt), None).unwrap();
            for _ in 0..options.latents {
                model.forward(&mut sequences, &Segment::latent_step([0]), None).unwrap();
            }
            let answer: Vec<u32> =
                options.after_latents.iter().chain(&row.ids[..row.ids.len() - 1]).copied().collect();
            let at = model.forward(&mut sequences, &Segment::of_tokens(0, &answer), None).unwrap();
            let positions: Vec<u32> = at.map(|n| n as u32).collect();
            let mut scores = Scores::reserve(&model, positions.len()).unwrap();
            scores.forward(&model, &sequences, &positions, &row.ids, law.inverse_temperature()).unwrap();
            assert_eq!(scores.log_probabilities().unwrap(), row.log_probabilities);
        }
    }
}

#[test]
fn a_decode_step_crosses_once() {
    let model = model();
    let count = |tokens: usize| {
        let before = model.device().traffic().count();
        run(&model, &prompts(), &Options { max_new_tokens: tokens, ..options() });
        let after = model.device().traffic().count();
        (after.uploads - before.uploads, after.downloads - before.downloads)
    };
    let (short, long) = (count(4), count(11));
    assert_eq!(long.1 - short.1, 7, "each further step downloads its tokens");
    assert_eq!(long.0, short.0, "and uploads nothing");
}

#[test]
fn a_decode_step_allocates_nothing_on_the_device() {
    let model = model();
    let count = |tokens: usize| {
        let before = model.device().traffic().count().allocations;
        run(&model, &prompts(), &Options { max_new_tokens: tokens, ..options() });
        model.device().traffic().count().allocations - before
    };
    assert_eq!(count(4), count(11));
}

#[test]
fn generation_may_be_stopped_at_any_token() {
    let mut seen = 0;
    let (rows, _) = generate(&model(), &prompts(), &options(), |_, _| {
        seen += 1;
        if seen == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(
        rows.iter().map(|row| row.ids.len()).sum::<usize>(),
        6,
        "the step of the fifth token is finished"
    );
    assert!(rows.iter().all(|row| row.log_probabilities.len() == row.ids.len()));
}

#[test]
fn bad_requests_are_told_what_to_do() {
    let model = model();
    let message = |prompts: &[Vec<u32>], options: &Options| {
        generate(&model, prompts, options, |_, _| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    let empty = message(&[vec![1], vec![]], &options());
    assert!(empty.contains("prompt 1 has no tokens"), "{empty}");
    let long = message(&[vec![1; 90]], &options());
    assert!(long.contains("104 positions") && long.contains("exceed the model's 96"), "{long}");
    let unknown = message(&[vec![61]], &options());
    assert!(unknown.contains("id 61") && unknown.contains("vocabulary has 61"), "{unknown}");
    let cold = Law::Categorical { temperature: 0.0, top_k: None, top_p: None, min_p: None };
    let cold = message(&[vec![1]], &Options { law: cold, ..options() });
    assert!(cold.contains("temperature"), "{cold}");
}
