//! What cannot be trained is refused.

use super::*;

#[test]
fn what_cannot_be_trained_is_refused_in_a_sentence() {
    let model = model();
    let mut make = Make::latent();
    make.drawing.law = Law::Categorical { temperature: 1.0, top_k: Some(3), top_p: None, min_p: None };
    says(make.policy(&model, None), &["law of the answers", "whole softmax", "top-k"]);
    make.drawing.law = Law::Greedy;
    says(make.policy(&model, None), &["law of the answers", "no greedy choice"]);
    let alone = Make::latent().set(|s| s.group = 1);
    says(alone.policy(&model, None), &["groups of 1", "at least 2"]);
    says(Make::latent().kl(Estimator::K1, 0.1).policy(&model, None), &["KL penalty", "give both or neither"]);
    says(Make::latent().policy(&model, Some(model_of(5, Dtype::F64))), &["give both or neither"]);

    let mut changed = model_of(5, Dtype::F64);
    let mut policy = Make::latent().policy(&changed, None).unwrap();
    let nan = |question: &Question, t: &Trajectory| {
        if question.number == 2 { f64::NAN } else { lively(question, t) }
    };
    says(
        update(&mut policy, &mut changed, 0.1, &questions(), &nan),
        &["a reward", "NaN", "nothing was updated"],
    );
    says(update(&mut policy, &mut changed, 0.1, &[], &lively), &["no question"]);
    let bits = |model: &Model| -> Vec<f64> {
        model.parameters().iter().flat_map(|p| p.download::<f64>().unwrap()).collect()
    };
    assert_eq!(bits(&changed), bits(&model));
}

#[test]
fn weights_that_are_not_finite_stop_the_update() {
    let mut model = model_of(5, Dtype::F64);
    let mut policy = Make::latent().policy(&model, None).unwrap();
    model.parameters_mut()[0].upload_at(4 * 24, &[f64::NAN]).unwrap();
    assert!(update(&mut policy, &mut model, 0.1, &questions(), &lively).is_err());
}
