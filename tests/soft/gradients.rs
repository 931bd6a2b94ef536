//! Gradients of whole models through soft steps against finite differences of replays. What a replay computes anew but
//! the gradient holds, normal noise on logits and one-hot inputs, is in held.rs.

use super::*;

#[test]
fn gradients_through_soft_steps_are_the_differences() {
    for family in ["gpt2", "llama"] {
        for (case, Case { name, .. }) in cases().into_iter().enumerate() {
            for masking in [Masking::NONE, masked(0.2)] {
                let model = model(family, Dtype::F64, &Device::cpu());
                let (objective, _) = objective(&model, case, masking);
                let mut gradients = model.gradients().unwrap();
                objective.at(&model, Some(&mut gradients));
                let at = |step: f64| {
                    let mut model = self::model(family, Dtype::F64, &Device::cpu());
                    let direction = moved(&mut model, step);
                    (objective.at(&model, None), direction)
                };
                let difference = models::slope(|step| at(step).0);
                let direction = at(0.0).1;
                let slope: f64 = flat(&mut gradients).iter().zip(&direction).map(|(g, d)| g * d).sum();
                let error = (slope - difference).abs() / slope.abs().max(difference.abs());
                assert!(
                    error < 1e-6,
                    "{family}, {name}: gradient {slope}, difference {difference}, error {error:e}"
                );
            }
        }
    }
}

#[test]
fn the_tape_of_sampling_and_a_replay_give_the_same_gradients() {
    for (case, Case { name, .. }) in cases().into_iter().enumerate() {
        let model = model("llama", Dtype::F64, &Device::cpu());
        let (objective, mut rollouts) = objective(&model, case, masked(0.2));
        let (mut tape, mut replay) = (model.gradients().unwrap(), model.gradients().unwrap());
        let a = objective.of(&model, &mut rollouts, Some(&mut tape));
        let b = objective.at(&model, Some(&mut replay));
        assert_eq!(a.to_bits(), b.to_bits(), "{name}");
        let (tape, replay) = (flat(&mut tape), flat(&mut replay));
        let apart = models::apart(&replay, &tape);
        assert!(apart <= 1e-12, "{name}: {apart:e}");
    }
}

#[test]
fn constant_inputs_leave_the_embedding_table_alone() {
    let model = model("llama", Dtype::F64, &Device::cpu());
    let scored = cases().iter().position(|case| case.name == "soft_ce").unwrap();
    let (mut objective, _) = objective(&model, scored, Masking::NONE);
    let mut of = |soft| {
        objective.truncation.soft = soft;
        let mut gradients = model.gradients().unwrap();
        objective.at(&model, Some(&mut gradients));
        gradients
    };
    let (mut table, mut nothing) = (of(SoftGradient::Table), of(SoftGradient::Nothing));
    let embedding = model.parameter_list().iter().position(|p| p.name.contains("embed_tokens")).unwrap();
    for (index, (a, b)) in table.tensors().unwrap().iter().zip(nothing.tensors().unwrap()).enumerate() {
        let (a, b) = (a.download::<f64>().unwrap(), b.download::<f64>().unwrap());
        let apart = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let largest = a.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        if index == embedding {
            assert!(apart > 1e-3 * largest);
        } else {
            assert!(apart <= 1e-12 * largest, "parameter {index}: {apart:e} of {largest:e}");
        }
    }
}
