//! What is refused, and in which words.

use super::*;
use crate::parity::gpu;

#[test]
fn settings_out_of_range_are_named() {
    let good = settings(GUMBEL, 0.5);
    good.validate().unwrap();
    for (bad, expected) in [
        (Settings { tau: 0.0, ..good }, "soft action tau: found 0, expected a number of at least 1e-6"),
        (Settings { tau: -0.1, ..good }, "soft action tau: found -0.1"),
        (Settings { tau: f64::NAN, ..good }, "soft action tau: found NaN"),
        (Settings { inverse_temperature: 0.0, ..good }, "soft action inverse_temperature: found 0"),
        (Settings { inverse_temperature: f64::INFINITY, ..good }, "inverse_temperature: found inf"),
        (settings(Perturbation::Gaussian { strength: -0.1 }, 0.5), "soft action strength: found -0.1"),
        (settings(Perturbation::Gaussian { strength: f64::NAN }, 0.5), "soft action strength: found NaN"),
        (settings(Perturbation::Dirichlet { concentration: 0.0 }, 0.5), "concentration: found 0"),
        (
            settings(Perturbation::Gumbel { clamp: Some((3.0, -1.5)) }, 0.5),
            "soft action clamp: found 3 to -1.5, expected a lower bound below the upper",
        ),
        (settings(Perturbation::Gumbel { clamp: Some((f64::NAN, 1.0)) }, 0.5), "clamp: found NaN to 1"),
    ] {
        let text = bad.validate().unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
        let problem = ragged("soft action messages");
        let refused = problem.try_act(&Device::cpu(), Dtype::F32, 0..9, &bad).unwrap_err().to_string();
        assert_eq!(refused, text);
    }
    for (kind, expected) in [
        (Score::Concrete { tau: 0.0, mean: false }, "soft action tau: found 0"),
        (Score::GumbelG { floor: Some(0.5), clamp: None, mean: true }, "soft action score floor: found 0.5"),
        (
            Score::GumbelG { floor: None, clamp: Some((1.0, 1.0)), mean: true },
            "soft action clamp: found 1 to 1",
        ),
    ] {
        let text = kind.validate().unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn dirichlet_actions_have_no_pathwise_gradient() {
    let device = Device::cpu();
    let wide = Tensor::zeros(&device, [2, 3], Dtype::F32).unwrap();
    let mut d_logits = Tensor::zeros(&device, [2, 8], Dtype::F32).unwrap();
    let support = Support::reserve(&device, 2, 3).unwrap();
    let settings = settings(Perturbation::Dirichlet { concentration: 1.0 }, 0.5);
    let refused = backward(wide.view(), wide.view(), &settings, &support, 0..2, d_logits.view_mut());
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("no pathwise derivative") && text.contains("soft_ce"), "{text}");
}

#[test]
fn broken_rows_are_named() {
    let device = Device::cpu();
    let good = ragged("soft action broken");
    let stored = good.act_exactly(&settings(GUMBEL, 0.5));
    let refused = |problem: &Problem| {
        let acted = problem.try_act(&device, Dtype::F64, 0..9, &settings(GUMBEL, 0.5)).unwrap_err();
        for kind in scores() {
            let scored =
                problem.try_score(&device, Dtype::F64, 0..9, 1.0, &stored, &kind, &[1.0; 9]).unwrap_err();
            assert_eq!(scored.to_string(), acted.to_string(), "{kind:?}");
        }
        acted.to_string()
    };
    let changed = |change: fn(&mut Problem)| {
        let mut problem = good.clone();
        change(&mut problem);
        refused(&problem)
    };
    for (change, expected) in [
        ((|p| p.kept[4].clear()) as fn(&mut Problem), "row 4 keeps no ids, and an action needs at least one"),
        (|p| p.kept[5].swap(2, 3), "the ids of row 5 do not ascend"),
        (|p| p.kept[5][3] = p.kept[5][2], "the ids of row 5 do not ascend"),
        (|p| *p.kept[8].last_mut().unwrap() = 61, "row 8 holds ids outside the logits' vocabulary"),
        (|p| p.logits[5 * 61 + p.kept[5][1] as usize] = f32::NAN, "row 5, token"),
        (|p| p.logits[5 * 61 + p.kept[5][1] as usize] = f32::NEG_INFINITY, "has -inf"),
    ] {
        let text = changed(change);
        assert!(text.contains(expected), "{text}");
    }
    // What is not kept matters to the full vocabulary's softmax alone.
    let mut problem = good.clone();
    let other = (0..61).find(|id| !problem.kept[5].contains(id)).unwrap();
    problem.logits[5 * 61 + other as usize] = f32::NAN;
    problem.try_act(&device, Dtype::F64, 0..9, &settings(GUMBEL, 0.5)).unwrap();
    let score = |kind| problem.try_score(&device, Dtype::F64, 0..9, 1.0, &stored, &kind, &[1.0; 9]);
    score(Score::SoftCe { full: false }).unwrap();
    let text = score(Score::SoftCe { full: true }).unwrap_err().to_string();
    assert!(text.contains(&format!("row 5, token {other} has NaN")), "{text}");
}

#[test]
fn shapes_and_dtypes_are_named() {
    let device = Device::cpu();
    let wide = |rows, cols, dtype| Tensor::zeros(&device, [rows, cols], dtype).unwrap();
    let logits = wide(2, 8, Dtype::F32);
    let support = Support::reserve(&device, 2, 3).unwrap();
    let (keys, steps) = (wide(2, 2, Dtype::U32), wide(2, 1, Dtype::U32));
    let run = |perturbed: (usize, usize, Dtype), entropies: usize, at: Range<usize>| {
        let (mut perturbed, mut weights) =
            (wide(perturbed.0, perturbed.1, perturbed.2), wide(2, 3, Dtype::F32));
        let (mut proxies, mut entropies) = (wide(2, 1, Dtype::U32), wide(entropies, 1, Dtype::F32));
        let out = Outputs {
            perturbed: perturbed.view_mut(),
            weights: weights.view_mut(),
            soft: None,
            proxies: proxies.view_mut(),
            entropies: Some(entropies.view_mut()),
        };
        let noise = Noise { keys: keys.view(), steps: steps.view(), site: 0 };
        let refused = forward(logits.view(), &support, at, &settings(GUMBEL, 0.5), noise, out);
        refused.unwrap_err().to_string()
    };
    assert!(run((2, 4, Dtype::F32), 2, 0..2).contains("soft action perturbed: found 2 rows of 4"));
    assert!(run((2, 3, Dtype::F64), 2, 0..2).contains("soft action perturbed: element type"));
    assert!(run((2, 3, Dtype::F32), 1, 0..2).contains("soft action entropies: found 1 rows"));
    assert!(run((2, 3, Dtype::F32), 2, 0..1).contains("soft action support: found 1 rows"));
    assert!(run((2, 3, Dtype::F32), 2, 1..3).contains("inside 0..2"));
}

#[test]
fn supports_go_up_and_come_down() {
    for device in [Device::cpu(), gpu::device()] {
        let mut support = Support::reserve(&device, 4, 3).unwrap();
        let ids = [4, 9, 0, 2, 0, 0];
        support.upload(1..3, &ids, &[2, 1]).unwrap();
        assert_eq!(support.capacity(), 3);
        assert_eq!(support.download(1..3).unwrap(), (ids.to_vec(), vec![2, 1]));
        assert_eq!(support.download(0..4).unwrap().1, [0, 2, 1, 0]);
        let refused = |support: &mut Support, at, ids: &[u32], counts: &[u32]| {
            support.upload(at, ids, counts).unwrap_err().to_string()
        };
        let text = refused(&mut support, 0..2, &ids, &[2, 4]);
        assert!(text.contains("row 1 keeps 4 tokens, the support has room for 3"), "{text}");
        let text = refused(&mut support, 0..2, &ids[..5], &[2, 1]);
        assert!(text.contains("found 5 ids and 2 counts, expected 6 ids and 2 counts"), "{text}");
        assert!(refused(&mut support, 3..5, &ids, &[2, 1]).contains("inside 0..4"));
        // Nothing of a refused upload arrives.
        assert_eq!(support.download(0..4).unwrap().1, [0, 2, 1, 0]);
    }
}
