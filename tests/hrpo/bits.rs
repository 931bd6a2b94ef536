//! Gated rollouts against their replays, to the bit.

use super::*;

#[test]
fn gating_ends_with_the_mark_or_the_count() {
    let gate = |mark: &[u32], thinking| Gating { mark: mark.to_vec(), thinking, ..gating() };
    assert_eq!(gate(&[], 3).gated(&[1, 2]), 2);
    assert_eq!(gate(&[], 3).gated(&[1, 2, 3, 4]), 3);
    assert_eq!(gate(&[2], 3).gated(&[1, 2, 3, 4]), 1);
    assert_eq!(gate(&[2, 3], 9).gated(&[1, 2, 2, 3, 4]), 3);
    assert_eq!(gate(&[2, 3], 2).gated(&[1, 2, 2, 3, 4]), 2);
    assert_eq!(gate(&[2, 3], 9).gated(&[1, 2]), 2);
    assert_eq!(gate(&[1], 9).gated(&[1]), 0);
    assert_eq!(gate(&[1], 9).gated(&[]), 0);
}

#[test]
fn rollouts_are_audited_and_replayed_to_the_bit() {
    for family in ["gpt2", "llama"] {
        let model = model(family, Dtype::F32, &Device::cpu());
        for masking in [Masking::NONE, masked()] {
            let drawing = with_a_mark(&model, masking);
            let gate = drawing.gate.clone().unwrap();
            let (_, trajectories) = sampled(&model, &drawing, Record::Nothing);
            let (mut marked, mut counted, mut several) = (0, 0, 0);
            let mut audit = Audit::reserve(&model, form(), drawing.clone(), 7).unwrap();
            for trajectory in &trajectories {
                let prompt = &prompts()[trajectory.member.prompt];
                assert_eq!(audit.gap(&model, prompt, trajectory).unwrap(), 0.0, "{family} {drawing:?}");
                let read = trajectory.tokens.len() - 1;
                assert_eq!(trajectory.mixtures.len(), gate.gated(&trajectory.tokens[..read]));
                marked += usize::from(trajectory.mixtures.len() < read.min(THINKING));
                counted += usize::from(trajectory.mixtures.len() == THINKING && read > THINKING);
                for mixture in &trajectory.mixtures {
                    let square: f64 = mixture.iter().map(|(_, weight)| weight * weight).sum();
                    assert!((square - 1.0).abs() < 1e-6, "{mixture:?}");
                    assert!(mixture.is_sorted_by(|a, b| a.0 < b.0) && mixture.len() <= 9);
                    several += usize::from(mixture.len() > 1);
                }
            }
            assert!(marked > 0 && counted > 0 && several > 0, "{family}: {marked} {counted} {several}");
            let said: Vec<f64> =
                trajectories.iter().flat_map(|t| t.log_probabilities.iter().copied()).collect();
            let mut scores = Scores::reserve(&model, 12 * LONGEST).unwrap();
            for record in [Record::Nothing, Record::Everything, Record::LayerInputs] {
                let (again, drawn) = match record {
                    // Nothing is kept: only the trajectories can be compared.
                    Record::Nothing => (None, sampled(&model, &drawing, record).1),
                    _ => {
                        let (rollouts, drawn) = sampled(&model, &drawing, record);
                        (Some(rollouts), drawn)
                    }
                };
                assert_eq!(drawn, trajectories);
                if let Some(rollouts) = again {
                    assert_eq!(bits(&scored(&model, &rollouts, &drawn, &mut scores)), bits(&said));
                    let rollouts = replayed(&model, &drawing, &drawn, record);
                    assert_eq!(
                        bits(&scored(&model, &rollouts, &drawn, &mut scores)),
                        bits(&said),
                        "{family}"
                    );
                }
            }
            // The gates matter: without them the same tokens have other probabilities.
            let plain = Drawing { gate: None, ..drawing.clone() };
            let rollouts = replayed(&model, &plain, &trajectories, Record::Everything);
            assert_ne!(bits(&scored(&model, &rollouts, &trajectories, &mut scores)), bits(&said));
        }
    }
}

#[test]
fn a_rollout_is_the_same_in_any_batch_and_without_sharing() {
    let model = model("llama", Dtype::F32, &Device::cpu());
    for masking in [Masking::NONE, masked()] {
        let drawing = with_a_mark(&model, masking);
        let (_, all) = sampled(&model, &drawing, Record::Everything);
        let alone = Drawing { share: false, ..drawing };
        let mut rollouts = Rollouts::reserve(&model, form(), alone, LIMITS, Record::Nothing).unwrap();
        for trajectory in &all {
            let prompt = prompts()[trajectory.member.prompt].clone();
            let member = Member { prompt: 0, ..trajectory.member };
            let mut again = rollouts.sample(&model, &[prompt], &[member], go).unwrap().remove(0);
            again.member = trajectory.member;
            assert_eq!(&again, trajectory);
        }
    }
}

#[test]
fn an_audit_sees_another_mixture_and_misuse_is_named() {
    let model = model("gpt2", Dtype::F32, &Device::cpu());
    let drawing = drawing(gating(), Masking::NONE);
    let (_, trajectories) = sampled(&model, &drawing, Record::Nothing);
    let good = trajectories.iter().find(|t| t.mixtures.len() > 2).unwrap();
    let mut audit = Audit::reserve(&model, form(), drawing.clone(), 7).unwrap();
    let mut gap = |t: &Trajectory| audit.gap(&model, &prompts()[t.member.prompt], t).unwrap();
    assert_eq!(gap(good), 0.0);
    let mut other = good.clone();
    other.mixtures[0][0].1 += 0.1;
    assert!(gap(&other) > 0.0);
    let mut other = good.clone();
    other.mixtures.pop();
    let mut rollouts = Rollouts::reserve(&model, form(), drawing.clone(), LIMITS, Record::Nothing).unwrap();
    let message = rollouts.replay(&model, &prompts(), &[&other]).unwrap_err().to_string();
    assert!(message.contains("mixtures of a trajectory"), "{message}");

    let without = plain_model("gpt2", Dtype::F32, &Device::cpu());
    let message = Rollouts::reserve(&without, form(), drawing.clone(), LIMITS, Record::Nothing)
        .unwrap_err()
        .to_string();
    assert!(message.contains("hrpo.thinking") && message.contains("no gates"), "{message}");
    let message = plain_model("gpt2", Dtype::F32, &Device::cpu()).with_random_gates(1, 1.0).unwrap_err();
    assert!(message.to_string().contains("hrpo.least_share"), "{message}");
    let greedy = Drawing { gate: Some(Gating { law: Law::Greedy, ..gating() }), ..drawing };
    assert!(Rollouts::reserve(&model, form(), greedy, LIMITS, Record::Nothing).is_err());

    let mut sequences = room(&model, 4, Record::Everything);
    let run = |sequences: &mut Sequences, inputs: Vec<Input>, mixtures: Mixtures| {
        let rows = vec![0; inputs.len()];
        model.forward(sequences, &Segment { rows, inputs, mixtures, ..Segment::new() }, None)
    };
    let message = run(&mut sequences, vec![Input::Gated(3)], Mixtures::Noted).unwrap_err().to_string();
    assert!(message.contains("as many as mixtures were noted"), "{message}");
    run(&mut sequences, vec![Input::Token(3)], Mixtures::Noted).unwrap();
    let message = run(&mut sequences, vec![Input::Gated(3), Input::Latent], Mixtures::Noted).unwrap_err();
    assert!(message.to_string().contains("tokens alone"), "{message}");
    let one = || Mixtures::Stored(vec![vec![(2, 1.0)]]);
    let message = run(&mut sequences, vec![Input::Gated(3), Input::Gated(4)], one()).unwrap_err().to_string();
    assert!(message.contains("stored mixtures"), "{message}");
    run(&mut sequences, vec![Input::Gated(3)], one()).unwrap();
    assert_eq!(sequences.mixtures().unwrap(), [[(2, 1.0)]]);
}
