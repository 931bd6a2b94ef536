//! Draws against their replays, to the bit; batches, early ends, audits.

use super::*;

#[test]
fn draws_are_audited_and_replayed_to_the_bit() {
    for family in ["gpt2", "llama"] {
        let model = model(family, Dtype::F32, &Device::cpu());
        let (mut stopped, mut answered, mut several) = (0, 0, 0);
        for perturbation in KINDS {
            for (masking, noise) in [(Masking::NONE, 0.0), (masked(0.2), 0.0), (Masking::NONE, 0.05)] {
                for hard in [false, true] {
                    let drawing = Drawing {
                        masking: masking.clone(),
                        latent_noise: noise,
                        ..drawing(thoughts(perturbation, hard))
                    };
                    let (_, trajectories) = sampled(&model, &form(6), &drawing, Record::Nothing);
                    let mut audit = Audit::reserve(&model, form(6), drawing.clone(), 7).unwrap();
                    let mut scores = Scores::reserve(&model, 60).unwrap();
                    for trajectory in &trajectories {
                        let prompt = &prompts()[trajectory.member.prompt];
                        assert_eq!(
                            audit.gap(&model, prompt, trajectory).unwrap(),
                            0.0,
                            "{family} {drawing:?}"
                        );
                        stopped += usize::from(trajectory.tokens.is_empty());
                        answered += usize::from(!trajectory.tokens.is_empty());
                        several += usize::from(trajectory.actions.iter().any(|action| action.ids.len() > 1));
                    }
                    let said: Vec<f64> =
                        trajectories.iter().flat_map(|t| t.log_probabilities.iter().copied()).collect();
                    for replay in [SoftReplay::Actions, SoftReplay::Noise] {
                        let mut drawing = drawing.clone();
                        drawing.soft = drawing.soft.map(|soft| SoftThoughts { replay, ..soft });
                        let mut rollouts =
                            Rollouts::reserve(&model, form(6), drawing.clone(), LIMITS, Record::Everything)
                                .unwrap();
                        rollouts
                            .replay(&model, &prompts(), &trajectories.iter().collect::<Vec<_>>())
                            .unwrap();
                        let again = scored(&model, &rollouts, &trajectories, &mut scores);
                        assert_eq!(bits(&again), bits(&said), "{family} {replay:?} {drawing:?}");
                    }
                }
            }
        }
        assert!(stopped > 0 && answered > 0 && several > 0, "{family}: {stopped} {answered} {several}");
    }
}

#[test]
fn a_rollout_is_the_same_in_any_batch_and_without_sharing() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    for masking in [Masking::NONE, masked(0.2)] {
        let drawing = Drawing { masking, ..drawing(thoughts(Perturbation::Gumbel { clamp: None }, false)) };
        let (_, all) = sampled(&model, &form(6), &drawing, Record::Everything);
        let alone = Drawing { share: false, ..drawing };
        let mut rollouts = Rollouts::reserve(&model, form(6), alone, LIMITS, Record::Nothing).unwrap();
        for trajectory in &all {
            let prompt = prompts()[trajectory.member.prompt].clone();
            let member = Member { prompt: 0, ..trajectory.member };
            let go = |_, _| ControlFlow::Continue(());
            let mut again = rollouts.sample(&model, &[prompt], &[member], go).unwrap().remove(0);
            again.member = trajectory.member;
            assert_eq!(&again, trajectory);
        }
    }
}

#[test]
fn thinking_ends_early_when_it_is_cold_or_says_so() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    let never = SoftThoughts { proxies_stop: false, ..thoughts(Perturbation::None, false) };
    let steps = |soft: SoftThoughts| -> (Vec<Trajectory>, Drawing) {
        let drawing = drawing(soft);
        (sampled(&model, &form(6), &drawing, Record::Nothing).1, drawing)
    };
    let (all, _) = steps(never);
    assert!(all.iter().all(|t| t.actions.len() == 6 && !t.tokens.is_empty()));
    let entropies: Vec<f64> = all.iter().flat_map(|t| &t.actions).map(Action::entropy).collect();
    let middle = {
        let mut sorted = entropies.clone();
        sorted.sort_by(f64::total_cmp);
        // Between two values, so that rounding decides nothing.
        (sorted[sorted.len() / 2] + sorted[sorted.len() / 2 - 5]) / 2.0
    };
    // What the rule says, from the entropies of the rollouts that never left.
    let expected = |t: &Trajectory, run: usize| {
        let mut cold = 0;
        for (step, action) in t.actions.iter().enumerate() {
            cold = if action.entropy() < middle { cold + 1 } else { 0 };
            if cold >= run {
                return step + 1;
            }
        }
        t.actions.len()
    };
    for run in [1, 2] {
        let cold = Some(ColdStop { entropy: middle, steps: run });
        let (early, drawing) = steps(SoftThoughts { cold, ..never });
        let found: Vec<usize> = early.iter().map(|t| t.actions.len()).collect();
        assert_eq!(found, all.iter().map(|t| expected(t, run)).collect::<Vec<_>>());
        assert!(found.iter().any(|&steps| steps < 6) && early.iter().all(|t| !t.tokens.is_empty()));
        let mut audit = Audit::reserve(&model, form(6), drawing, 7).unwrap();
        for t in &early {
            assert_eq!(audit.gap(&model, &prompts()[t.member.prompt], t).unwrap(), 0.0);
        }
    }
    let word = all[0].actions[2].proxy;
    let (early, _) = steps(SoftThoughts { leave_at: Some(word), ..never });
    for (early, all) in early.iter().zip(&all) {
        let at = all.actions.iter().position(|action| action.proxy == word);
        assert_eq!(early.actions.len(), at.map_or(6, |step| step + 1));
    }
}

#[test]
fn an_audit_sees_another_noise_another_mixture_and_another_proxy() {
    let model = model("gpt2", Dtype::F32, &Device::cpu());
    let drawing = drawing(thoughts(Perturbation::Gumbel { clamp: None }, false));
    let (_, trajectories) = sampled(&model, &form(6), &drawing, Record::Nothing);
    let mut audit = Audit::reserve(&model, form(6), drawing, 7).unwrap();
    let mut gap = |trajectory: &Trajectory| {
        audit.gap(&model, &prompts()[trajectory.member.prompt], trajectory).unwrap()
    };
    let good = trajectories.iter().find(|t| t.actions.iter().any(|action| action.ids.len() > 1)).unwrap();
    assert_eq!(gap(good), 0.0);
    let mut other = good.clone();
    other.member.coordinates.rollout += 100;
    assert!(gap(&other) > 1e-3);
    let mut other = good.clone();
    let action = other.actions.iter_mut().find(|action| action.ids.len() > 1).unwrap();
    action.perturbed[0] += 1e-3;
    assert!(gap(&other) > 0.0);
    let mut other = good.clone();
    other.actions[0].proxy ^= 1;
    assert_eq!(gap(&other), f64::INFINITY);
}
