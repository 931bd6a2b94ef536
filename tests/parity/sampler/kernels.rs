//! The sampler's kernels: given the same bits of logits, tokens and supports are the CPU's; scores, mixtures and
//! gradients are within the tolerance of the f64 CPU.

use super::super::gpu::{compare, devices, tensor, values};
use super::{filtered, peaked};
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::cpu::gumbel;
use latch::device::{Argument, Device, Grid, Kernel};
use latch::ops::Tensor;
use latch::ops::sampler::{
    FAULTY, Law, Mixed, Mixture, Noise, Sampled, Scored, Support, Workspace, expect_drawn, expect_mixed,
    mixture, mixture_backward, sample, score_on_support, score_on_support_backward,
};
use std::ops::Range;

/// Rows of logits with a law; row `r` of the problem has the stream of rollout `r`.
struct Problem<'a> {
    logits: &'a [f32],
    vocabulary: usize,
    law: Law,
    capacity: usize,
}

/// What a device gives back.
#[derive(Debug, PartialEq, Clone)]
struct Drawn {
    tokens: Vec<u32>,
    scores: Vec<f64>,
    counts: Vec<u32>,
    ids: Vec<u32>,
    /// Scores on the stored support.
    replayed: Vec<f64>,
    /// Gradient of `sum (row + 1) * score`.
    d_logits: Vec<f64>,
}

/// What a device gives back of mixtures.
#[derive(Debug, PartialEq, Clone)]
struct Mixtures {
    ids: Vec<u32>,
    counts: Vec<u32>,
    weights: Vec<f64>,
    d_logits: Vec<f64>,
}

impl Problem<'_> {
    fn rows(&self) -> usize {
        self.logits.len() / self.vocabulary
    }

    fn logits(&self, device: &Device, dtype: Dtype, rows: &Range<usize>) -> Tensor {
        let logits = &self.logits[rows.start * self.vocabulary..rows.end * self.vocabulary];
        let logits: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
        tensor(device, [rows.len(), self.vocabulary], &logits, dtype)
    }

    fn streams(&self, device: &Device, rows: &Range<usize>) -> (Tensor, Tensor) {
        let keys: Vec<u32> =
            rows.clone().flat_map(|r| StreamKey::new(31, 2, 0, r as u32, Purpose::Token).0).collect();
        let steps: Vec<u32> = rows.clone().map(|r| (r % 5) as u32).collect();
        (
            Tensor::from_host(device, [rows.len(), 2], &keys).unwrap(),
            Tensor::from_host(device, [rows.len(), 1], &steps).unwrap(),
        )
    }

    /// Samples with a stored support, scores it again and differentiates the score. Supports and outputs stand at an
    /// offset in larger tensors.
    fn draw(&self, device: &Device, dtype: Dtype, rows: Range<usize>) -> Drawn {
        let n = rows.len();
        let (keys, steps) = self.streams(device, &rows);
        let noise = Noise { keys: keys.view(), steps: steps.view(), site: 9 };
        let logits = self.logits(device, dtype, &rows);
        let mut tokens = Tensor::zeros(device, [n + 1, 1], Dtype::U32).unwrap();
        let mut scores = Tensor::zeros(device, [n + 1, 1], dtype).unwrap();
        let mut support = Support::reserve(device, n + 1, self.capacity).unwrap();
        let workspace = Workspace::reserve(device, n, self.vocabulary).unwrap();
        let out = Sampled {
            tokens: tokens.rows_mut(1..n + 1).unwrap(),
            log_probability: scores.rows_mut(1..n + 1).unwrap(),
            support: Some((&mut support, 1..n + 1)),
            workspace: &workspace,
        };
        sample(logits.view(), &self.law, noise, out).unwrap();
        let tokens = tokens.rows(1..n + 1).unwrap();
        let drawn = tokens.download::<u32>().unwrap();
        let counts = support.counts().rows(1..n + 1).unwrap().download::<u32>().unwrap();
        let ids = support.ids().rows(1..n + 1).unwrap().download::<u32>().unwrap();

        let scored = Scored { logits: logits.view(), tokens, law: &self.law };
        let mut replayed = Tensor::zeros(device, [n, 1], dtype).unwrap();
        let dy: Vec<f64> = rows.map(|row| row as f64 + 1.0).collect();
        let dy = tensor(device, [n, 1], &dy, dtype);
        let mut d_logits = Tensor::zeros(device, [n, self.vocabulary], dtype).unwrap();
        if !drawn.contains(&FAULTY) {
            score_on_support(&scored, &support, 1..n + 1, replayed.view_mut()).unwrap();
            score_on_support_backward(dy.view(), &scored, &support, 1..n + 1, d_logits.view_mut()).unwrap();
        }
        // Places beyond a row's count are not defined.
        let ids = ids.chunks(self.capacity).zip(&counts);
        Drawn {
            tokens: drawn,
            scores: values(scores.rows(1..n + 1).unwrap()),
            ids: ids.flat_map(|(ids, &count)| ids[..(count as usize).min(ids.len())].to_vec()).collect(),
            counts,
            replayed: values(replayed.view()),
            d_logits: values(d_logits.view()),
        }
    }

    fn mix(&self, device: &Device, dtype: Dtype, rows: Range<usize>, tau: f64) -> Mixtures {
        let n = rows.len();
        let (keys, steps) = self.streams(device, &rows);
        let noise = Noise { keys: keys.view(), steps: steps.view(), site: 4 };
        let logits = self.logits(device, dtype, &rows);
        let mut support = Support::reserve(device, n + 2, self.capacity).unwrap();
        let mut weights = Tensor::zeros(device, [n, self.capacity], dtype).unwrap();
        let law = Mixture { law: &self.law, tau };
        let workspace = Workspace::reserve(device, n, self.vocabulary).unwrap();
        let out =
            Mixed { support: &mut support, at: 2..n + 2, weights: weights.view_mut(), workspace: &workspace };
        mixture(logits.view(), &law, noise, out).unwrap();
        let dy: Vec<f64> = (0..n * self.capacity).map(|i| ((i * 37) % 11) as f64 / 4.0 - 1.25).collect();
        let dy = tensor(device, [n, self.capacity], &dy, dtype);
        let mut d_logits = Tensor::zeros(device, [n, self.vocabulary], dtype).unwrap();
        mixture_backward(dy.view(), weights.view(), &law, &support, 2..n + 2, d_logits.view_mut()).unwrap();
        Mixtures {
            ids: support.ids().rows(2..n + 2).unwrap().download().unwrap(),
            counts: support.counts().rows(2..n + 2).unwrap().download().unwrap(),
            weights: values(weights.view()),
            d_logits: values(d_logits.view()),
        }
    }

    /// Tokens and supports against the f32 CPU, scores and gradients against the f64 CPU. The f64 CPU decides alike
    /// wherever no decision hangs on the last bit; then the whole answer is compared.
    fn check(&self) {
        let rows = 0..self.rows();
        let single = self.draw(&Device::cpu(), Dtype::F32, rows.clone());
        let double = self.draw(&Device::cpu(), Dtype::F64, rows.clone());
        assert_eq!(
            (&single.tokens, &single.ids),
            (&double.tokens, &double.ids),
            "{:?}: choose others",
            self.law
        );
        for device in devices() {
            let what =
                |part: &str| format!("{part} of {:?}, {} ids, {}", self.law, self.vocabulary, device.name());
            let found = self.draw(&device, Dtype::F32, rows.clone());
            assert_eq!(found.counts, single.counts, "{}", what("counts"));
            assert_eq!(found.ids, single.ids, "{}", what("kept ids"));
            assert_eq!(found.tokens, single.tokens, "{}", what("tokens"));
            assert_eq!(found.scores, found.replayed, "{}", what("score on the support"));
            compare(&what("scores"), Dtype::F32, self.vocabulary, &found.scores, &double.scores);
            compare(&what("gradient"), Dtype::F32, self.vocabulary, &found.d_logits, &double.d_logits);
        }
    }

    fn check_mixture(&self, tau: f64) {
        let rows = 0..self.rows();
        let single = self.mix(&Device::cpu(), Dtype::F32, rows.clone(), tau);
        let double = self.mix(&Device::cpu(), Dtype::F64, rows.clone(), tau);
        assert_eq!(single.ids, double.ids, "{:?}: choose other logits", self.law);
        for device in devices() {
            let what =
                |part: &str| format!("{part} of {:?}, {} ids, {}", self.law, self.vocabulary, device.name());
            let found = self.mix(&device, Dtype::F32, rows.clone(), tau);
            assert_eq!((&found.counts, &found.ids), (&single.counts, &single.ids), "{}", what("kept ids"));
            compare(&what("weights"), Dtype::F32, self.capacity, &found.weights, &double.weights);
            compare(&what("mixture gradient"), Dtype::F32, self.capacity, &found.d_logits, &double.d_logits);
        }
    }
}

/// Laws that take every path: whole, one pass, few passes, with and without a cut.
fn laws() -> Vec<Law> {
    vec![
        Law::Greedy,
        Law::PLAIN,
        filtered(0.7, None, None, None),
        filtered(1.0, Some(1), None, None),
        filtered(0.7, Some(7), None, None),
        filtered(1.0, Some(128), None, None),
        filtered(1.0, Some(50), Some(0.7), None),
        filtered(1.0, Some(40), Some(0.95), Some(0.05)),
        filtered(1.0, Some(300), None, None),
        filtered(1.5, Some(300), Some(0.9), None),
        filtered(1.3, None, Some(0.05), None),
        filtered(1.0, None, Some(0.93), None),
        filtered(1.0, None, Some(0.999_9), None),
        filtered(1.0, None, Some(0.9), Some(0.02)),
        filtered(8.0, None, None, Some(0.3)),
        filtered(1.0, None, None, Some(1.0)),
    ]
}

#[test]
fn noise_has_the_bits_of_the_cpu() {
    static NOISE: Kernel = Kernel::new(
        "sampler",
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/ptx/sampler.ptx")),
        "sampler_noise_f32",
    );
    let near_zero = 1_580_030_168 - 300..1_580_030_168 + 300; // eps = 0 at u = 1/e
    let mut words: Vec<u32> = (0..600).chain(u32::MAX - 600..=u32::MAX).chain(near_zero).collect();
    words.extend((0..u32::MAX).step_by(1_048_573));
    words.extend((1..32).flat_map(|bit| [(1_u32 << bit) - 1, 1 << bit, (1 << bit) + 1]));
    for device in devices() {
        let Device::Gpu(gpu) = &device else { panic!("{} is no GPU", device.name()) };
        let bytes = 4 * words.len();
        let (from, to) = (gpu.allocate(bytes).unwrap(), gpu.allocate(bytes).unwrap());
        gpu.upload(from, &words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>()).unwrap();
        let count = words.len() as u32;
        let arguments = [Argument::Address(from), Argument::U32(count), Argument::Address(to)];
        gpu.launch(&NOISE, Grid::linear(count.div_ceil(512), 512), &arguments).unwrap();
        let mut found = vec![0_u8; bytes];
        gpu.download(to, &mut found).unwrap();
        gpu.free(from, bytes);
        gpu.free(to, bytes);
        for (&word, found) in words.iter().zip(found.as_chunks::<4>().0) {
            let (found, expected) = (f32::from_ne_bytes(*found), gumbel::noise(word));
            assert_eq!(found.to_bits(), expected.to_bits(), "word {word:#x}: {found} instead of {expected}");
        }
    }
}

#[test]
fn every_law_at_ragged_vocabularies() {
    for (vocabulary, rows) in [(1, 1), (2, 3), (31, 5), (613, 4), (5001, 3), (8196, 1)] {
        let mut logits = peaked(&format!("sampler kernels {vocabulary}"), rows * vocabulary);
        // Where a few ids share the mass, the gradient of a sure one is the difference of nearly equal numbers.
        if vocabulary < 100 {
            logits.iter_mut().for_each(|logit| *logit *= 0.25);
        }
        for law in laws() {
            Problem { logits: &logits, vocabulary, law, capacity: vocabulary }.check();
        }
    }
}

#[test]
fn vocabularies_of_gpt2_and_qwen() {
    for (vocabulary, rows) in [(50_257, 2), (151_936, 1)] {
        let logits = peaked(&format!("sampler kernels {vocabulary}"), rows * vocabulary);
        for law in [
            Law::PLAIN,
            filtered(0.8, Some(50), Some(0.95), None),
            filtered(1.0, None, Some(0.9), None),
            filtered(1.0, None, None, Some(0.05)),
        ] {
            Problem { logits: &logits, vocabulary, law, capacity: 20_000 }.check();
        }
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    let vocabulary = 5003;
    let mut logits = vec![0.5_f32; 2 * vocabulary];
    (logits[700], logits[5002], logits[4000]) = (2.0, 2.0, -3.0);
    logits[vocabulary + 9] = -0.0;
    logits[vocabulary..].iter_mut().skip(10).step_by(2).for_each(|l| *l = 0.0);
    for law in laws() {
        Problem { logits: &logits, vocabulary, law, capacity: vocabulary }.check();
    }
}

#[test]
fn rows_that_do_not_fit_the_usual_passes() {
    let vocabulary = 20_000;
    // Ascending: every id is among the best so far. Near equal: a bucket, or all of them, overflow the list.
    let ascending: Vec<f32> = (0..vocabulary).map(|id| id as f32 * 1e-3).collect();
    let equal = vec![-1.25_f32; vocabulary];
    let clustered: Vec<f32> =
        (0..vocabulary).map(|id| if id % 3 == 0 { 5.0 } else { -4.0 - (id % 7) as f32 * 1e-6 }).collect();
    for logits in [&ascending, &equal, &clustered] {
        for law in [
            filtered(1.0, Some(100), None, None),
            filtered(1.0, Some(9000), None, None),
            filtered(1.0, Some(9000), Some(0.5), None),
            filtered(1.0, None, Some(0.7), None),
            filtered(1.0, None, Some(0.999_999), None),
        ] {
            Problem { logits, vocabulary, law, capacity: vocabulary }.check();
        }
    }
}

#[test]
fn minus_infinity_is_never_drawn_nor_kept() {
    let vocabulary = 2061;
    let mut logits = vec![f32::NEG_INFINITY; 3 * vocabulary];
    for row in logits.chunks_mut(vocabulary) {
        (row[17], row[2060]) = (1.0, 0.0);
    }
    for law in laws() {
        Problem { logits: &logits, vocabulary, law, capacity: vocabulary }.check();
    }
}

#[test]
fn many_rows_and_a_row_alone() {
    let (rows, vocabulary) = (70, 1501);
    let logits = peaked("sampler kernels rows", rows * vocabulary);
    for law in [Law::PLAIN, filtered(0.9, Some(30), Some(0.9), None), filtered(1.0, None, Some(0.8), None)] {
        let problem = Problem { logits: &logits, vocabulary, law, capacity: 700 };
        problem.check();
        for device in devices() {
            let whole = problem.draw(&device, Dtype::F32, 0..rows);
            for row in [0, 33, 69] {
                let alone = problem.draw(&device, Dtype::F32, row..row + 1);
                assert_eq!(alone.tokens[0], whole.tokens[row]);
                assert_eq!(alone.scores[0].to_bits(), whole.scores[row].to_bits());
                let gradient = &whole.d_logits[row * vocabulary..(row + 1) * vocabulary];
                assert_eq!(alone.d_logits, gradient, "row {row}");
            }
        }
    }
}

#[test]
fn mixtures_at_ragged_vocabularies() {
    for (vocabulary, rows) in [(1, 1), (31, 3), (1009, 5), (50_257, 1)] {
        let logits = peaked(&format!("mixture kernels {vocabulary}"), rows * vocabulary);
        for (law, tau) in [
            (filtered(1.0, Some(30), Some(0.95), None), 0.5),
            (filtered(1.0, Some(1), None, None), 0.3),
            (filtered(1.0, None, Some(0.7), None), 1.0),
            (filtered(1.0, Some(200), Some(0.5), None), 0.8),
            (filtered(1.0, None, None, Some(0.1)), 0.7),
        ] {
            let capacity = vocabulary.min(4096);
            Problem { logits: &logits, vocabulary, law, capacity }.check_mixture(tau);
        }
    }
    // Nothing is filtered, and more ids than threads of a block are mixed.
    let logits = peaked("mixture kernels whole", 2 * 777);
    Problem { logits: &logits, vocabulary: 777, law: filtered(1.2, None, None, None), capacity: 777 }
        .check_mixture(0.9);
}

#[test]
fn rows_without_a_draw_are_marked_and_named() {
    let vocabulary = 1300;
    let clean = peaked("sampler kernels faults", 4 * vocabulary);
    let good = Problem { logits: &clean, vocabulary, law: Law::PLAIN, capacity: 1 };
    for device in devices() {
        for (bad, name) in
            [(f32::NAN, "token 77 has NaN"), (f32::INFINITY, "token 77 has inf"), (f32::NEG_INFINITY, "")]
        {
            let mut logits = clean.clone();
            match bad == f32::NEG_INFINITY {
                true => logits[2 * vocabulary..3 * vocabulary].fill(bad),
                false => logits[2 * vocabulary + 77] = bad,
            }
            let reason = if name.is_empty() { "is minus infinity everywhere" } else { name };
            for law in [
                Law::Greedy,
                Law::PLAIN,
                filtered(1.0, Some(5), None, None),
                filtered(1.0, None, Some(0.5), None),
            ] {
                let problem = Problem { logits: &logits, vocabulary, law, capacity: vocabulary };
                let found = problem.draw(&device, Dtype::F32, 0..4);
                let faulty: Vec<bool> = found.tokens.iter().map(|&token| token == FAULTY).collect();
                assert_eq!(faulty, [false, false, true, false], "{law:?} {reason}");
                assert!(found.scores[2].is_nan() && found.counts[2] == u32::MAX, "{law:?} {reason}");
                assert!(found.scores[3].is_finite());
                let logits = problem.logits(&device, Dtype::F32, &(0..4));
                let text = expect_drawn(&found.tokens, logits.view(), &law).unwrap_err().to_string();
                assert!(text.contains("row 2") && text.contains(reason), "{text}");
                expect_drawn(&found.tokens[..2], logits.rows(0..2).unwrap(), &law).unwrap();
            }
        }
        // More is kept than there is room for.
        for law in [filtered(1.0, Some(9), None, None), filtered(1.0, Some(200), None, None)] {
            let problem = Problem { logits: &clean, vocabulary, law, capacity: 4 };
            let found = problem.draw(&device, Dtype::F32, 0..4);
            assert!(found.tokens.iter().all(|&token| token == FAULTY) && found.counts[0] > 4, "{found:?}");
            let logits = problem.logits(&device, Dtype::F32, &(0..4));
            let text = expect_drawn(&found.tokens, logits.view(), &law).unwrap_err().to_string();
            assert!(text.contains("row 0 keeps more tokens than the support has room for"), "{text}");
            let found = problem.mix(&device, Dtype::F32, 0..4, 0.5);
            assert!(
                found.weights.iter().all(|w| w.is_nan()) && found.ids.iter().all(|&id| id == 0),
                "{found:?}"
            );
            assert!(found.d_logits.iter().all(|d| d.is_nan()), "{found:?}");
        }
        assert!(good.draw(&device, Dtype::F32, 0..4).tokens.iter().all(|&token| token != FAULTY));
    }
}

#[test]
fn broken_supports_give_nan() {
    let vocabulary = 40;
    let logits = peaked("sampler kernels support", 3 * vocabulary);
    let law = filtered(1.0, Some(6), None, None);
    let problem = Problem { logits: &logits, vocabulary, law, capacity: 6 };
    for device in devices() {
        let (keys, steps) = problem.streams(&device, &(0..3));
        let noise = Noise { keys: keys.view(), steps: steps.view(), site: 9 };
        let logits = problem.logits(&device, Dtype::F32, &(0..3));
        let mut tokens = Tensor::zeros(&device, [3, 1], Dtype::U32).unwrap();
        let mut score = Tensor::zeros(&device, [3, 1], Dtype::F32).unwrap();
        let mut support = Support::reserve(&device, 3, 6).unwrap();
        let workspace = Workspace::reserve(&device, 3, vocabulary).unwrap();
        let out = Sampled {
            tokens: tokens.view_mut(),
            log_probability: score.view_mut(),
            support: Some((&mut support, 0..3)),
            workspace: &workspace,
        };
        sample(logits.view(), &law, noise, out).unwrap();
        // A token of another row, and one that is in no vocabulary.
        let kept = support.ids().download::<u32>().unwrap();
        let stranger = (0..vocabulary as u32).find(|id| !kept[..6].contains(id)).unwrap();
        let wrong = [stranger, tokens.download::<u32>().unwrap()[1], FAULTY];
        let wrong = Tensor::from_host(&device, [3, 1], &wrong).unwrap();
        let scored = Scored { logits: logits.view(), tokens: wrong.view(), law: &law };
        score_on_support(&scored, &support, 0..3, score.view_mut()).unwrap();
        let dy = Tensor::from_host(&device, [3, 1], &[1.0_f32; 3]).unwrap();
        let mut d_logits = Tensor::zeros(&device, [3, vocabulary], Dtype::F32).unwrap();
        score_on_support_backward(dy.view(), &scored, &support, 0..3, d_logits.view_mut()).unwrap();
        let nan: Vec<bool> = values(score.view()).iter().map(|score| score.is_nan()).collect();
        assert_eq!(nan, [true, false, true]);
        for (row, d_logits) in values(d_logits.view()).chunks(vocabulary).enumerate() {
            assert!(d_logits.iter().all(|d| d.is_nan() == nan[row]), "row {row}");
        }
        expect_mixed(&support, 0..3, logits.view(), &law).unwrap();
        // Logits of a smaller vocabulary do not hold the ids.
        let small = Tensor::zeros(&device, [3, 2], Dtype::F32).unwrap();
        let scored = Scored { logits: small.view(), tokens: tokens.view(), law: &law };
        score_on_support(&scored, &support, 0..3, score.view_mut()).unwrap();
        assert!(values(score.view()).iter().all(|score| score.is_nan()));
    }
}
