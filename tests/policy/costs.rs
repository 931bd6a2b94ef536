//! What an update costs: matrix products that do not grow with the answer, no memory on the way.

use super::*;

/// Answers of exactly `max_new_tokens` tokens.
fn endless(max_new_tokens: usize) -> Make {
    let mut make = Make::latent();
    make.form = Form { stop: vec![], max_new_tokens, ..form() };
    make
}

#[test]
fn the_matrix_products_of_a_backward_pass_do_not_depend_on_the_answers_length() {
    let count = |max_new_tokens: usize| {
        let make = endless(max_new_tokens);
        let model = model();
        let limits = Limits { prompts: 3, members: 12, prompt_tokens: 70 };
        let mut rollouts =
            Rollouts::reserve(&model, make.form.clone(), make.drawing.clone(), limits, Record::Everything)
                .unwrap();
        let members = crate::rollouts::members(3, 4);
        let go = |_: usize, _: u32| std::ops::ControlFlow::Continue(());
        let products = || model.device().traffic().count().products;
        let before = products();
        let sampled = rollouts.sample(&model, &prompts(), &members, go).unwrap();
        let sampling = products() - before;
        let targets: Vec<u32> = sampled.iter().flat_map(|t| t.tokens.clone()).collect();
        assert_eq!(targets.len(), 12 * max_new_tokens);
        let at: Vec<u32> = rollouts.predictors().iter().flatten().copied().collect();
        let mut scores = Scores::reserve(&model, targets.len()).unwrap();
        let mut gradients = model.gradients().unwrap();
        let (sequences, masks) = rollouts.parts_mut();
        scores.forward(&model, sequences, &at, &targets, 1.0 / TEMPERATURE).unwrap();
        let before = products();
        scores.backward(&model, sequences, &vec![0.1; targets.len()], &mut gradients).unwrap();
        model.backward(sequences, masks, Truncation::default(), &mut gradients).unwrap();
        (sampling, products() - before)
    };
    let (short, long) = (count(4), count(24));
    assert!(short.1 > 0 && short.0 < long.0, "{short:?} {long:?}");
    assert_eq!(short.1, long.1);
}

#[test]
fn the_matrix_products_of_a_later_pass_do_not_depend_on_the_answers_length() {
    let products = |max_new_tokens: usize, passes: usize| {
        let make = endless(max_new_tokens).set(|s| s.passes = passes);
        let mut model = model();
        let mut policy = make.policy(&model, None).unwrap();
        let before = model.device().traffic().count().products;
        update(&mut policy, &mut model, 0.0, &questions(), &lively).unwrap();
        model.device().traffic().count().products - before
    };
    let pass = |max_new_tokens| products(max_new_tokens, 2) - products(max_new_tokens, 1);
    assert!(pass(4) > 0);
    assert_eq!(pass(4), pass(24));
}

#[test]
fn updates_allocate_no_device_memory_once_reserved() {
    for (replay, refills) in [(Replay::Same, 0), (Replay::Off, 0), (Replay::Same, 1)] {
        let mut model = model();
        let make = Make::latent().kl(Estimator::K3, 0.1).set(|s| {
            (s.passes, s.replay, s.refills, s.audit_all) = (2, replay, refills, true);
        });
        let mut policy = make.policy(&model, Some(model_of(6, Dtype::F64))).unwrap();
        let before = model.device().traffic().count().allocations;
        for _ in 0..3 {
            update(&mut policy, &mut model, 1e-3, &questions(), &one_dead).unwrap();
        }
        assert_eq!(model.device().traffic().count().allocations, before, "{replay:?} {refills}");
    }
}

#[test]
fn supervised_steps_allocate_no_device_memory_once_reserved() {
    let mut model = model_of(5, Dtype::F32);
    let example = |latents: usize, answer: u32| Example {
        prompt: vec![1, 2, 3, 58],
        latents,
        end: vec![59],
        answer: (0..answer).collect(),
    };
    let examples = [example(0, 9), example(2, 5), example(4, 3)];
    let optimizer = Optimizer::new(&model, optimizer::Settings::default()).unwrap();
    let mut trainer =
        Trainer::new(&model, optimizer, Batches::of(&examples, 3, 1000), Record::Everything).unwrap();
    let before = model.device().traffic().count().allocations;
    for round in 0..3 {
        trainer.step(&mut model, &examples[round..], 1e-3).unwrap();
    }
    assert_eq!(model.device().traffic().count().allocations, before);
}
