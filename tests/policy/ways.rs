//! The same update by several ways: tape and replay, shared prompts and none, prompts at once and in parts.

use super::*;

#[test]
fn the_tape_and_a_replay_give_the_same_losses_and_gradients() {
    for mut make in masks() {
        for share in [true, false] {
            make.drawing.share = share;
            for judge in [&lively as Judge, &one_dead] {
                let what =
                    format!("{:?} {:?} {share}", make.drawing.masking.scope, make.drawing.masking.mode);
                let (tape, gradient, _) = make.still(None, &questions(), judge);
                assert_eq!(tape.source, Some(Source::Tape), "{what}");
                // At learning rate 0 the second pass replays under the same weights.
                let (twice, replayed, _) =
                    make.clone().set(|s| s.passes = 2).still(None, &questions(), judge);
                assert_eq!(twice.passes.len(), 2);
                for passed in [&tape.passes[0], &twice.passes[0], &twice.passes[1]] {
                    assert_eq!((passed.log_ratio, passed.ratio_spread), (0.0, 0.0), "{what}");
                    assert_eq!(passed.loss.to_bits(), tape.passes[0].loss.to_bits(), "{what}");
                    assert_eq!(passed.tokens, tape.passes[0].tokens, "{what}");
                }
                close(&replayed, &gradient, &what);
                let lengths: Vec<usize> = tape.rollouts.iter().map(|j| j.trajectory.tokens.len()).collect();
                assert!(lengths.iter().any(|&length| length != lengths[0]), "answers of one length: {what}");
                assert_eq!(tape.replay_gap, 0.0);
            }
        }
    }
}

#[test]
fn sharing_prompts_changes_no_loss_and_no_gradient() {
    for mut make in masks() {
        let (shared, gradient, _) = make.still(None, &questions(), &one_dead);
        make.drawing.share = false;
        let (own, alone, _) = make.still(None, &questions(), &one_dead);
        assert_eq!(shared.passes[0].loss.to_bits(), own.passes[0].loss.to_bits());
        close(&alone, &gradient, "not shared");
    }
}

#[test]
fn mostly_dead_groups_are_replayed_and_the_gradient_is_the_same() {
    let make = Make::latent();
    let judge =
        |question: &Question, t: &Trajectory| if question.number == 2 { lively(question, t) } else { 0.0 };
    let (report, gradient, policy) = make.still(None, &questions(), &judge);
    assert_eq!((policy.source(), report.source), (Source::Tape, Some(Source::Replay)));
    assert_eq!(report.groups(), Groups { dead_low: 2, dead_high: 0, live: 1 });
    // A penalty of weight 0 keeps every group on the tape.
    let (all, from_tape, _) = make.kl(Estimator::K3, 1e-300).still(Some(model()), &questions(), &judge);
    assert_eq!(all.source, Some(Source::Tape));
    assert_eq!(all.passes[0].loss, report.passes[0].loss);
    close(&gradient, &from_tape, "one live group");
}

#[test]
fn prompts_in_parts_are_prompts_at_once() {
    let model = model();
    for (preset, source) in [
        (Preset::DropoutGrpo, Source::Tape),
        (Preset::DrGrpo, Source::Tape),
        (Preset::Gspo, Source::Tape),
        (Preset::TrlBnpo, Source::Replay),
        (Preset::Cispo, Source::Replay),
    ] {
        for prompts in [1, 2] {
            let make = Make::latent().preset(preset);
            let (whole, gradient, policy) = make.still(None, &questions(), &one_dead);
            assert_eq!((policy.source(), policy.prompts_at_once()), (Source::Tape, 3), "{preset}");
            let bytes = make.bytes(&model, prompts);
            let (parts, added, policy) =
                make.set(|s| s.tape_bytes = bytes).still(None, &questions(), &one_dead);
            assert_eq!((policy.source(), policy.prompts_at_once()), (source, prompts), "{preset}");
            assert_eq!(parts.source, Some(source), "{preset}");
            let difference = (parts.passes[0].loss - whole.passes[0].loss).abs();
            assert!(difference <= CLOSE * whole.passes[0].loss.abs().max(1e-3), "{preset}: {difference:.1e}");
            assert_eq!(parts.passes[0].tokens, whole.passes[0].tokens);
            close(&added, &gradient, preset.name());
        }
    }
}

#[test]
fn a_group_that_does_not_fit_is_refused_with_numbers() {
    let make = Make::latent();
    let bytes = make.bytes(&model(), 1);
    let mebibytes = format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let found = make.set(|s| s.tape_bytes = bytes - 1).policy(&model(), None);
    says(found, &["one group of 4 rollouts", &mebibytes, "grpo.tape_mib"]);
}

#[test]
fn fewer_questions_than_prompts_weigh_the_same_from_the_tape_and_replayed() {
    let make = Make::latent().set(|s| s.prompts = 5);
    let (_, tape, _) = make.still(None, &questions(), &lively);
    let (_, exact, _) = make.clone().set(|s| s.prompts = 3).still(None, &questions(), &lively);
    let (_, replayed, _) = make.set(|s| s.passes = 2).still(None, &questions(), &lively);
    close(&tape, &exact, "three questions of five");
    close(&replayed, &exact, "replayed");
}

#[test]
fn a_dead_group_adds_nothing_unless_it_is_penalised() {
    let live: Vec<Question> = questions().into_iter().filter(|question| question.number != 1).collect();
    for preset in [Preset::DropoutGrpo, Preset::Rloo, Preset::Grpo] {
        let mut make = Make::latent().preset(preset);
        make.objective.loss.kl = None;
        let (report, all, _) = make.still(None, &questions(), &one_dead);
        assert_eq!(report.groups(), Groups { dead_low: 0, dead_high: 1, live: 2 });
        let dead = &report.rollouts[report.rollouts_of(&(1..2))];
        assert!(dead.iter().all(|judged| judged.advantage == 0.0));
        let (_, alone, _) = make.clone().set(|s| s.prompts = 2).still(None, &live, &one_dead);
        let thirds: Vec<f64> = alone.iter().map(|g| g * 2.0 / 3.0).collect();
        close(&all, &thirds, preset.name());

        let other = || Some(model_of(6, Dtype::F64));
        let penalised = make.kl(Estimator::K3, 0.1);
        let (_, all, _) = penalised.still(other(), &questions(), &one_dead);
        let (_, alone, _) = penalised.set(|s| s.prompts = 2).still(other(), &live, &one_dead);
        let thirds: Vec<f64> = alone.iter().map(|g| g * 2.0 / 3.0).collect();
        assert!(apart(&all, &thirds) > 1e-3, "{preset}: the dead group is penalised too");
    }
}
