//! Sampler: the law that is drawn from, what filters keep, replay, and bits that depend on the row alone.

mod kernels;
mod mixture;

use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::log_probability::{Inputs, Outputs, Saved, forward};
use latch::ops::sampler::{Law, Noise, Sampled, Scored, Support, Workspace, sample, score_on_support};
use std::ops::Range;

/// What a call gives back: tokens, log-probabilities, and each row's kept ids (none: all).
#[derive(Debug, PartialEq, Clone)]
struct Drawn {
    tokens: Vec<u32>,
    scores: Vec<f32>,
    kept: Vec<Vec<u32>>,
}

/// Draws from `rows` of logits; row `r` has the key of rollout `r` and step `first_step + r`.
fn try_draw(
    logits: &[f32],
    vocabulary: usize,
    rows: Range<usize>,
    law: &Law,
    capacity: usize,
) -> latch::base::Result<Drawn> {
    let device = Device::cpu();
    let n = rows.len();
    let keys: Vec<u32> =
        rows.clone().flat_map(|r| StreamKey::new(11, 0, 0, r as u32, Purpose::Token).0).collect();
    let steps: Vec<u32> = rows.clone().map(|r| (r % 7) as u32).collect();
    let keys = Tensor::from_host(&device, [n, 2], &keys)?;
    let steps = Tensor::from_host(&device, [n, 1], &steps)?;
    let data = &logits[rows.start * vocabulary..rows.end * vocabulary];
    let logits = Tensor::from_host(&device, [n, vocabulary], data)?;
    let mut tokens = Tensor::zeros(&device, [n, 1], Dtype::U32)?;
    let mut scores = Tensor::zeros(&device, [n, 1], Dtype::F32)?;
    let mut support = Support::reserve(&device, n + 1, capacity)?;
    let out = Sampled {
        tokens: tokens.view_mut(),
        log_probability: scores.view_mut(),
        support: Some((&mut support, 1..n + 1)),
        workspace: &Workspace::default(),
    };
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: 3 };
    sample(logits.view(), law, noise, out)?;

    // Replay on the stored support must give the sampled bits.
    let mut replayed = Tensor::zeros(&device, [n, 1], Dtype::F32)?;
    let scored = Scored { logits: logits.view(), tokens: tokens.view(), law };
    score_on_support(&scored, &support, 1..n + 1, replayed.view_mut())?;
    assert_eq!(replayed.download::<f32>()?, scores.download::<f32>()?);

    let (ids, counts) = (support.ids().download::<u32>()?, support.counts().download::<u32>()?);
    let kept = ids.chunks(capacity).zip(&counts).skip(1).map(|(ids, &n)| ids[..n as usize].to_vec());
    Ok(Drawn { tokens: tokens.download()?, scores: scores.download()?, kept: kept.collect() })
}

fn draw(logits: &[f32], vocabulary: usize, rows: Range<usize>, law: &Law, capacity: usize) -> Drawn {
    try_draw(logits, vocabulary, rows, law, capacity).unwrap()
}

fn filtered(temperature: f64, top_k: Option<usize>, top_p: Option<f64>, min_p: Option<f64>) -> Law {
    Law::Categorical { temperature, top_k, top_p, min_p }
}

/// Kept ids and their probabilities by the definition, in f64, with a full sort.
fn naive(logits: &[f32], law: &Law) -> Vec<(u32, f64)> {
    let Law::Categorical { temperature, top_k, top_p, min_p } = *law else { panic!("greedy has no law") };
    let mut kept: Vec<(u32, f64)> =
        logits.iter().enumerate().map(|(id, &l)| (id as u32, f64::from(l) / temperature)).collect();
    kept.retain(|(_, s)| *s > f64::NEG_INFINITY);
    kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let normalise = |kept: &mut Vec<(u32, f64)>| {
        let total: f64 = kept.iter().map(|k| k.1).sum();
        kept.iter_mut().for_each(|k| k.1 /= total);
    };
    let largest = kept[0].1;
    kept.iter_mut().for_each(|k| k.1 = (k.1 - largest).exp());
    kept.truncate(top_k.unwrap_or(usize::MAX));
    normalise(&mut kept);
    if let Some(p) = top_p {
        let mut mass = 0.0;
        let fewest = kept.iter().position(|k| {
            mass += k.1;
            mass >= p
        });
        kept.truncate(fewest.map_or(kept.len(), |last| last + 1));
        normalise(&mut kept);
    }
    let best = kept[0].1;
    kept.retain(|k| k.1 >= min_p.unwrap_or(0.0) * best);
    normalise(&mut kept);
    kept.sort_by_key(|k| k.0);
    kept
}

/// Logits with a peak and a long tail, like a model's.
fn peaked(name: &str, count: usize) -> Vec<f32> {
    super::normals_f32(name, count).into_iter().map(|v| 2.5 * v).collect()
}

#[test]
fn draws_follow_the_law() {
    let vocabulary = 37;
    let row = super::normals_f32("sampler law", vocabulary);
    let rows = 24_000;
    let logits: Vec<f32> = row.iter().copied().cycle().take(rows * vocabulary).collect();
    let laws = [
        Law::PLAIN,
        filtered(0.6, None, None, None),
        filtered(1.4, Some(11), None, None),
        filtered(1.0, None, Some(0.8), None),
        filtered(1.0, Some(20), Some(0.9), Some(0.1)),
    ];
    for law in laws {
        let drawn = draw(&logits, vocabulary, 0..rows, &law, vocabulary);
        let expected = naive(&row, &law);
        let mut counts = vec![0_usize; vocabulary];
        for (&token, &score) in drawn.tokens.iter().zip(&drawn.scores) {
            counts[token as usize] += 1;
            let p = expected.iter().find(|e| e.0 == token).expect("a token outside the support").1;
            assert!(
                (f64::from(score) - p.ln()).abs() < 1e-5,
                "{law:?}: token {token} has {score}, not {}",
                p.ln()
            );
        }
        // Pearson's statistic; cells with few expected draws are pooled.
        let (mut statistic, mut cells, mut rest) = (0.0, 0_usize, (0.0, 0.0));
        for (id, p) in &expected {
            let (found, mean) = (counts[*id as usize] as f64, p * rows as f64);
            if mean < 10.0 {
                rest = (rest.0 + found, rest.1 + mean);
            } else {
                statistic += (found - mean).powi(2) / mean;
                cells += 1;
            }
        }
        if rest.1 >= 10.0 {
            statistic += (rest.0 - rest.1).powi(2) / rest.1;
            cells += 1;
        }
        // The upper 0.1% point of chi-square by Wilson and Hilferty (1931).
        let freedom = (cells - 1) as f64;
        let limit = freedom * (1.0 - 2.0 / (9.0 * freedom) + 3.09 * (2.0 / (9.0 * freedom)).sqrt()).powi(3);
        assert!(
            statistic < limit,
            "{law:?}: chi-square {statistic:.1} with {freedom} degrees, limit {limit:.1}"
        );
    }
}

#[test]
fn filters_keep_what_their_definitions_keep() {
    for vocabulary in [1, 2, 31, 613, 5001] {
        let rows = 6;
        let logits = peaked(&format!("sampler filters {vocabulary}"), rows * vocabulary);
        for law in [
            filtered(1.0, Some(1), None, None),
            filtered(0.7, Some(7), None, None),
            filtered(1.0, Some(600), None, None),
            filtered(1.3, None, Some(0.05), None),
            filtered(1.0, None, Some(0.93), None),
            filtered(1.0, None, Some(0.999_9), None),
            filtered(8.0, None, None, Some(0.3)),
            filtered(1.0, None, None, Some(1.0)),
            filtered(1.0, Some(50), Some(0.7), None),
            filtered(1.0, Some(40), Some(0.95), Some(0.05)),
            filtered(1.0, None, Some(0.9), Some(0.02)),
        ] {
            let drawn = draw(&logits, vocabulary, 0..rows, &law, vocabulary);
            for (row, logits) in logits.chunks(vocabulary).enumerate() {
                let expected = naive(logits, &law);
                if !drawn.kept[row].is_empty() {
                    let ids: Vec<u32> = expected.iter().map(|e| e.0).collect();
                    assert_eq!(drawn.kept[row], ids, "{law:?}, vocabulary {vocabulary}, row {row}");
                } else {
                    assert_eq!(expected.len(), vocabulary, "{law:?} keeps less than all");
                }
                let p = expected.iter().find(|e| e.0 == drawn.tokens[row]).expect("token is kept").1;
                assert!((f64::from(drawn.scores[row]) - p.ln()).abs() < 2e-5, "{law:?}, row {row}");
            }
        }
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    let vocabulary = 1003;
    let mut logits = vec![0.5_f32; vocabulary];
    let kept = |law: &Law, logits: &[f32]| draw(logits, vocabulary, 0..1, law, vocabulary).kept[0].clone();
    let lowest = |count: u32| (0..count).collect::<Vec<_>>();
    assert_eq!(kept(&filtered(1.0, Some(5), None, None), &logits), lowest(5));
    // 1003 equal ids: a tenth of the mass is 101 of them.
    assert_eq!(kept(&filtered(1.0, None, Some(0.1), None), &logits), lowest(101));
    assert_eq!(kept(&filtered(1.0, None, None, Some(1.0)), &logits), lowest(1003));
    let drawn = draw(&logits, vocabulary, 0..1, &Law::Greedy, 1);
    assert_eq!(drawn.tokens, [0]);
    assert!((drawn.scores[0] + (vocabulary as f32).ln()).abs() < 1e-5);
    (logits[700], logits[1002]) = (2.0, 2.0);
    assert_eq!(draw(&logits, vocabulary, 0..1, &Law::Greedy, 1).tokens, [700]);
    assert_eq!(kept(&filtered(1.0, Some(3), None, None), &logits), [0, 700, 1002]);
    // All equal, whole vocabulary: the noise alone decides, so rows differ.
    let logits = vec![-3.0_f32; 64 * vocabulary];
    let drawn = draw(&logits, vocabulary, 0..64, &Law::PLAIN, 1);
    let different: std::collections::BTreeSet<_> = drawn.tokens.iter().collect();
    assert!(different.len() > 50, "{different:?}");
}

#[test]
fn minus_infinity_is_never_drawn_nor_kept() {
    let vocabulary = 530;
    let rows = 300;
    let mut logits = vec![f32::NEG_INFINITY; rows * vocabulary];
    for row in 0..rows {
        (logits[row * vocabulary + 17], logits[row * vocabulary + 529]) = (1.0, 0.0);
    }
    for law in [
        Law::PLAIN,
        Law::Greedy,
        filtered(1.0, Some(100), None, None),
        filtered(1.0, None, Some(0.999_999), None),
        filtered(1.0, None, None, Some(1e-3)),
    ] {
        let drawn = draw(&logits, vocabulary, 0..rows, &law, vocabulary);
        assert!(drawn.tokens.iter().all(|&t| t == 17 || t == 529), "{law:?}");
        assert!(drawn.scores.iter().all(|s| s.is_finite()), "{law:?}");
        assert!(drawn.kept.iter().all(|kept| kept.is_empty() || kept == &[17, 529]), "{law:?}");
        let both = [17, 529].iter().all(|t| drawn.tokens.contains(t));
        assert_eq!(both, law != Law::Greedy, "{law:?}");
    }
}

#[test]
fn a_row_draws_the_same_alone_in_a_batch_and_on_any_threads() {
    let (rows, vocabulary) = (41, 20_011);
    let logits = peaked("sampler batch", rows * vocabulary);
    for law in [Law::PLAIN, filtered(0.8, Some(50), Some(0.95), None), filtered(1.0, None, Some(0.9), None)] {
        let whole = super::on_threads(1, || draw(&logits, vocabulary, 0..rows, &law, vocabulary));
        assert_eq!(whole, super::on_threads(3, || draw(&logits, vocabulary, 0..rows, &law, vocabulary)));
        for row in [0, 1, 20, 40] {
            let alone = draw(&logits, vocabulary, row..row + 1, &law, vocabulary);
            assert_eq!(alone.tokens[0], whole.tokens[row]);
            assert_eq!(alone.scores[0].to_bits(), whole.scores[row].to_bits());
        }
    }
}

#[test]
fn the_unfiltered_score_has_the_bits_of_the_fused_one() {
    // Several panels and a ragged last chunk; the logits by the products' contract, one ascending chain of FMAs.
    let (rows, width, vocabulary) = (7, 29, 5003);
    let h = super::normals_f32("sampler h", rows * width);
    let w = super::normals_f32("sampler w", vocabulary * width);
    let mut logits = Vec::new();
    for h in h.chunks(width) {
        for w in w.chunks(width) {
            logits.push(h.iter().zip(w).fold(0.0_f32, |sum, (&h, &w)| h.mul_add(w, sum)));
        }
    }
    for law in [Law::PLAIN, Law::Greedy, filtered(0.7, None, None, None)] {
        let drawn = draw(&logits, vocabulary, 0..rows, &law, 1);
        let device = Device::cpu();
        let h = Tensor::from_host(&device, [rows, width], &h).unwrap();
        let w = Tensor::from_host(&device, [vocabulary, width], &w).unwrap();
        let targets = Tensor::from_host(&device, [rows, 1], &drawn.tokens).unwrap();
        let inverse_temperature = law.inverse_temperature();
        let inputs = Inputs { h: h.view(), w: &w, targets: targets.view(), inverse_temperature };
        let mut score = Tensor::zeros(&device, [rows, 1], Dtype::F32).unwrap();
        let mut saved = Saved::reserve(&device, rows, [vocabulary, width], Dtype::F32).unwrap();
        let out = Outputs { log_probability: score.view_mut(), entropy: None };
        forward(&inputs, out, &mut saved, 0..rows).unwrap();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&score.download::<f32>().unwrap()), bits(&drawn.scores), "{law:?}");
    }
}

#[test]
fn the_draw_is_the_argmax_of_logits_plus_the_rows_noise() {
    let (rows, vocabulary) = (50, 2049);
    let logits = peaked("sampler argmax", rows * vocabulary);
    for law in [Law::PLAIN, filtered(1.5, Some(33), None, None)] {
        let drawn = draw(&logits, vocabulary, 0..rows, &law, vocabulary);
        for row in 0..rows {
            let key = StreamKey::new(11, 0, 0, row as u32, Purpose::Token);
            let logits = &logits[row * vocabulary..(row + 1) * vocabulary];
            let noisy = |id: u32| {
                let u = (f64::from(key.word(3, (row % 7) as u32, id, 0)) + 0.5) / 4_294_967_296.0;
                let scaled = f64::from(logits[id as usize]) * law.inverse_temperature();
                scaled - (-u.ln()).ln()
            };
            let kept = naive(logits, &law);
            let winner = kept.iter().map(|k| k.0).max_by(|&a, &b| noisy(a).total_cmp(&noisy(b))).unwrap();
            assert_eq!(drawn.tokens[row], winner, "row {row}");
        }
    }
}

#[test]
fn impossible_requests_are_named() {
    let message = |law: &Law| law.validate().unwrap_err().to_string();
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let text = message(&filtered(temperature, None, None, None));
        assert!(text.contains("temperature") && text.contains("greedy"), "{text}");
    }
    assert!(message(&filtered(1.0, Some(0), None, None)).contains("top_k: found 0, expected at least 1"));
    assert!(message(&filtered(1.0, None, Some(0.0), None)).contains("top_p: found 0, expected above 0"));
    assert!(message(&filtered(1.0, None, Some(1.1), None)).contains("top_p: found 1.1"));
    assert!(message(&filtered(1.0, None, None, Some(-0.1))).contains("min_p: found -0.1"));

    let mut logits = super::normals_f32("sampler errors", 3 * 100);
    let failure = |logits: &[f32], law: &Law, capacity| {
        try_draw(logits, 100, 0..3, law, capacity).unwrap_err().to_string()
    };
    let text = failure(&logits, &filtered(1.0, None, Some(0.99), None), 4);
    assert!(text.contains("the support has room for 4") && text.contains("row 0 keeps"), "{text}");
    for (bad, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        logits[207] = bad;
        for law in [Law::Greedy, Law::PLAIN, filtered(1.0, Some(3), None, None)] {
            let text = failure(&logits, &law, 100);
            assert!(text.contains(&format!("row 2, token 7 has {name}")), "{text}");
        }
    }
    logits[100..200].fill(f32::NEG_INFINITY);
    let text = failure(&logits, &Law::PLAIN, 100);
    assert!(text.contains("row 1 is minus infinity everywhere"), "{text}");
}

#[test]
fn a_token_outside_its_support_is_refused() {
    let device = Device::cpu();
    let logits = Tensor::from_host(&device, [1, 4], &[0.0_f32, 3.0, 1.0, 2.0]).unwrap();
    let keys = Tensor::zeros(&device, [1, 2], Dtype::U32).unwrap();
    let steps = Tensor::zeros(&device, [1, 1], Dtype::U32).unwrap();
    let mut tokens = Tensor::zeros(&device, [1, 1], Dtype::U32).unwrap();
    let mut score = Tensor::zeros(&device, [1, 1], Dtype::F32).unwrap();
    let mut support = Support::reserve(&device, 1, 2).unwrap();
    let law = filtered(1.0, Some(2), None, None);
    let out = Sampled {
        tokens: tokens.view_mut(),
        log_probability: score.view_mut(),
        support: Some((&mut support, 0..1)),
        workspace: &Workspace::default(),
    };
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: 0 };
    sample(logits.view(), &law, noise, out).unwrap();
    assert_eq!(support.ids().download::<u32>().unwrap(), [1, 3]);
    for token in [2_u32, 400] {
        let tokens = Tensor::from_host(&device, [1, 1], &[token]).unwrap();
        let scored = Scored { logits: logits.view(), tokens: tokens.view(), law: &law };
        let message = score_on_support(&scored, &support, 0..1, score.view_mut()).unwrap_err().to_string();
        assert!(message.contains(&format!("does not keep the scored token {token}")), "{message}");
    }
}
