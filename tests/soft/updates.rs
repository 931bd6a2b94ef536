//! Updates from the tape and replayed; what cannot be trained.

use super::*;

#[test]
fn updates_from_the_tape_are_updates_from_a_replay() {
    for estimator in estimators() {
        for (ratio, preset) in [(false, Preset::TrlBnpo), (true, Preset::DropoutGrpo)] {
            let hard = estimator == SoftEstimator::StraightThrough;
            let mut thoughts = thoughts(noise_of(estimator).0, hard);
            thoughts.proxies_stop = ratio;
            let what = format!("{estimator} {preset}");
            let fresh = || model("llama", Dtype::F64, &Device::cpu());
            let own = settings(estimator, ratio);
            let (tape, from_tape) = updated(&mut fresh(), own.clone(), thoughts, preset, 0.0);
            assert_eq!(tape.source, Some(Source::Tape), "{what}");
            assert_eq!(tape.replay_gap, 0.0, "{what}");
            assert_eq!(tape.audited, 12);
            // At learning rate 0 the second pass replays under the same weights.
            let twice = Settings { passes: 2, ..own };
            let (twice, replayed) = updated(&mut fresh(), twice, thoughts, preset, 0.0);
            assert_eq!(twice.passes.len(), 2);
            for passed in &twice.passes {
                assert_eq!((passed.log_ratio, passed.ratio_spread), (0.0, 0.0), "{what}");
                assert_eq!(passed.loss.to_bits(), tape.passes[0].loss.to_bits(), "{what}");
                let soft = (passed.soft.as_ref(), tape.passes[0].soft.as_ref());
                assert_eq!(soft.0.map(|soft| soft.tokens), soft.1.map(|soft| soft.tokens));
                if let (Some(soft), true) = (soft.0, ratio) {
                    assert_eq!(soft.log_ratio, 0.0, "{what}");
                }
                if let Some(soft) = soft.0 {
                    assert_eq!((soft.mean(Statistic::Ratio), soft.churn()), (1.0, (0.0, 0.0)), "{what}");
                    assert_eq!(
                        soft.mean_score(),
                        tape.passes[0].soft.as_ref().unwrap().mean_score(),
                        "{what}"
                    );
                }
            }
            let apart = models::apart(&replayed, &from_tape);
            assert!(apart <= 1e-12, "{what}: {apart:e}");
            let scored = tape.passes[0].soft.is_some();
            let scores = matches!(
                estimator,
                SoftEstimator::SoftCe { .. }
                    | SoftEstimator::Concrete { .. }
                    | SoftEstimator::GumbelG { .. }
                    | SoftEstimator::GaussEmbed { .. }
            );
            assert_eq!(scored, scores, "{what}");
            let statistics = SoftStatistics::of(&tape).unwrap();
            assert!(statistics.kept > 1.0 && statistics.entropy > 0.0, "{statistics:?}");
        }
    }
}

/// What a loss of soft steps brings to the host beside what an update without one does: in every pass its scores, the terms
/// of its loss and their statistics, once each; in later ones also the ids that would be kept now, and their number.
#[test]
fn scores_of_soft_steps_come_down_once_a_pass() {
    let thoughts = SoftThoughts { proxies_stop: false, ..thoughts(Perturbation::None, false) };
    let downloads = |estimator, passes| {
        let mut model = model("llama", Dtype::F64, &Device::cpu());
        let count = |model: &Model| model.device().traffic().count().downloads;
        let before = count(&model);
        let settings = Settings { passes, audit_all: false, ..settings(estimator, true) };
        let (report, _) = updated(&mut model, settings, thoughts, Preset::DropoutGrpo, 0.0);
        assert_eq!((report.source, report.passes.len()), (Some(Source::Tape), passes));
        count(&model) - before
    };
    let of_loss = |passes| {
        downloads(SoftEstimator::SoftCe { full: true }, passes) - downloads(SoftEstimator::None, passes)
    };
    assert_eq!([1, 2, 3].map(of_loss), [3, 3 + 5, 3 + 2 * 5]);
}

#[test]
fn estimators_refuse_thoughts_that_they_cannot_train() {
    let model = model("gpt2", Dtype::F32, &Device::cpu());
    let refusal = |estimator, perturbation, hard| -> String {
        let optimizer = Optimizer::new(&model, optimizer::Settings::default()).unwrap();
        let drawn = (form(4), drawing(thoughts(perturbation, hard)));
        let objective = Preset::DropoutGrpo.objective();
        let settings = settings(estimator, false);
        Policy::new(&model, drawn, objective, settings, optimizer, None).err().unwrap().to_string()
    };
    let gumbel = Perturbation::Gumbel { clamp: None };
    let concrete = SoftEstimator::Concrete { mean: false };
    for (message, words) in [
        (refusal(concrete, Perturbation::None, false), ["lepo.estimator `concrete`", "lepo.noise"]),
        (
            refusal(SoftEstimator::Pathwise, Perturbation::Dirichlet { concentration: 1.0 }, false),
            ["lepo.estimator `pathwise`", "Dirichlet"],
        ),
        (
            refusal(SoftEstimator::GaussEmbed { mean: false }, Perturbation::None, false),
            ["lepo.estimator `gauss_embed`", "lepo.embedding_noise = 0"],
        ),
        (
            refusal(SoftEstimator::GaussEmbed { mean: false }, gumbel, false),
            ["lepo.estimator `gauss_embed`", "lepo.noise = \"none\""],
        ),
        (refusal(SoftEstimator::StraightThrough, gumbel, false), ["straight_through", "one-hot"]),
        (refusal(SoftEstimator::Pathwise, gumbel, true), ["lepo.estimator `pathwise`", "one-hot"]),
    ] {
        words.iter().for_each(|word| assert!(message.contains(word), "`{word}` is missing in: {message}"));
    }
}
