//! Dead groups, fresh prompts and the penalty: what counts in an update.

use super::*;

#[test]
fn the_penalty_is_zero_against_oneself_under_the_same_masks() {
    for estimator in [Estimator::K1, Estimator::K2, Estimator::K3] {
        for scope in [Scope::Latent, Scope::All] {
            let make = Make::new(scope, Mode::Shared).kl(estimator, 0.1);
            let (plain, _, _) = Make::new(scope, Mode::Shared).still(None, &questions(), &lively);
            assert_eq!(plain.kl(), None);
            let (same, _, _) = make.still(Some(model()), &questions(), &lively);
            assert_eq!(same.kl(), Some(0.0), "{estimator:?} {scope:?}");
            assert_eq!(same.passes[0].loss, plain.passes[0].loss);
            let clean = make.clone().set(|s| s.reference_masked = false);
            let (clean, _, _) = clean.still(Some(model()), &questions(), &lively);
            let found = clean.kl().unwrap();
            assert!(found.abs() > 1e-6, "{estimator:?} {scope:?}: {found}");
            assert!(estimator == Estimator::K1 || found > 0.0);
            let (other, _, _) = make.still(Some(model_of(6, Dtype::F64)), &questions(), &lively);
            assert!(other.kl().unwrap().abs() > 1e-3, "{estimator:?} {scope:?}");
        }
    }
}

/// Question `n` of many: odd ones are dead.
fn many(count: u32) -> Vec<Question> {
    (0..count).map(|number| Question { tokens: prompts()[number as usize % 3].clone(), number }).collect()
}

fn odd_dead(question: &Question, trajectory: &Trajectory) -> f64 {
    if question.number % 2 == 1 { 0.0 } else { lively(question, trajectory) }
}

#[test]
fn dead_groups_are_replaced_and_only_the_kept_ones_train() {
    for preset in [Preset::DropoutGrpo, Preset::Dapo, Preset::Cispo] {
        let mut make = Make::latent().preset(preset).set(|s| s.refills = 3);
        make.objective.overlong = None;
        // 0 1 2, then 3, then 4.
        let (report, gradient, policy) = make.still(None, &many(9), &odd_dead);
        assert_eq!(policy.source(), Source::Replay);
        let numbers: Vec<u32> = report.questions.iter().map(|question| question.number).collect();
        assert_eq!(numbers, [0, 1, 2, 3, 4], "{preset}");
        assert_eq!(report.rollouts.len(), 20);
        assert_eq!(report.groups(), Groups { dead_low: 2, dead_high: 0, live: 3 });
        let kept: Vec<Question> = many(5).into_iter().step_by(2).collect();
        let (plain, expected, _) = make.clone().set(|s| s.refills = 0).still(None, &kept, &odd_dead);
        assert_eq!(plain.source, Some(Source::Tape));
        close(&gradient, &expected, preset.name());

        // The limit is reached with two live groups: they alone count.
        let (report, gradient, _) = make.clone().set(|s| s.refills = 1).still(None, &many(9), &odd_dead);
        assert_eq!(report.questions.len(), 4);
        let two = make.clone().set(|s| (s.refills, s.prompts) = (0, 2));
        close(&gradient, &two.still(None, &kept[..2], &odd_dead).1, preset.name());
    }
}

#[test]
fn an_update_without_a_live_group_changes_nothing() {
    for refills in [0, 2] {
        let mut model = model();
        let make = Make::latent().set(|s| s.refills = refills);
        let mut policy = make.policy(&model, None).unwrap();
        let before: Vec<f64> = model.parameters().iter().flat_map(|p| p.download::<f64>().unwrap()).collect();
        let report = update(&mut policy, &mut model, 0.1, &many(20), &|_, _| 0.0).unwrap();
        assert_eq!(report.questions.len(), 3 * (refills + 1));
        assert!(report.gradient_norms.is_empty() && report.passes[0].tokens == 0);
        let after: Vec<f64> = model.parameters().iter().flat_map(|p| p.download::<f64>().unwrap()).collect();
        assert_eq!(before, after);
        assert_eq!(policy.optimizer().step(), 0);
    }
}

#[test]
fn a_length_penalty_makes_no_group_live() {
    let mut make = Make::latent().preset(Preset::Dapo).set(|s| s.refills = 1);
    make.objective.overlong = Some(Overlong { buffer: 1.0, factor: 0.5 });
    let (report, _, _) = make.still(None, &many(9), &|_, _| 0.0);
    assert_eq!(report.groups(), Groups { dead_low: 6, dead_high: 0, live: 0 });
    assert_eq!(report.passes[0].tokens, 0);
    for judged in &report.rollouts {
        let length = judged.trajectory.tokens.len() as f64;
        assert!((judged.reward - -0.5 * length / 9.0).abs() < 1e-15, "{} of {length}", judged.reward);
    }
}

#[test]
fn a_question_that_comes_again_gets_rollouts_of_its_own() {
    let twice = vec![questions()[0].clone(), questions()[1].clone(), questions()[0].clone()];
    for prompts in [1, 3] {
        let make = Make::latent();
        let bytes = make.bytes(&model(), prompts);
        let (report, _, _) = make.set(|s| s.tape_bytes = bytes).still(None, &twice, &lively);
        let answers = |question: usize| -> Vec<(u32, Vec<u32>)> {
            let of = report.rollouts[report.rollouts_of(&(question..question + 1))].iter();
            of.map(|j| (j.trajectory.member.coordinates.rollout, j.trajectory.tokens.clone())).collect()
        };
        let again = answers(2);
        assert_eq!(again.iter().map(|(rollout, _)| *rollout).collect::<Vec<_>>(), [4, 5, 6, 7]);
        assert!(answers(0).iter().zip(&again).any(|(first, second)| first.1 != second.1));
        assert_eq!(report.replay_gap, 0.0);
    }
}

#[test]
fn audits_are_counted() {
    let (one, _, _) = Make::latent().still(None, &questions(), &lively);
    assert_eq!(one.audited, 1);
    let (all, _, _) = Make::latent().set(|s| s.audit_all = true).still(None, &questions(), &lively);
    assert_eq!((all.audited, all.replay_gap), (12, 0.0));
    assert!(all.thoughts.is_some_and(|thoughts| thoughts.norm > 0.0));
}
