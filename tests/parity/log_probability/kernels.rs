//! The kernels of log_probability: values and gradients against the f64 CPU, bits against the sampler's and against
//! other batches.

use super::super::gpu::{DTYPES, compare, devices, exact, tensor, values};
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::linear::{self, Accumulate, Layout, Projection};
use latch::ops::log_probability::{Inputs, Outputs, Saved, Upstream, backward, forward};
use latch::ops::sampler::{Law, Noise, Sampled, Workspace, sample};
use std::ops::Range;

/// Operands that both sides hold exactly.
struct Problem {
    rows: usize,
    width: usize,
    vocabulary: usize,
    temperature: f64,
    entropy: bool,
    h: Vec<f64>,
    w: Vec<f64>,
    /// Gradients of log-probabilities, then of entropies.
    dy: Vec<f64>,
}

/// Everything the operation gives back.
#[derive(Debug, PartialEq)]
struct Results {
    log_probability: Vec<f64>,
    entropy: Vec<f64>,
    dh: Vec<f64>,
    dw: Vec<f64>,
}

impl Problem {
    fn new(
        [rows, width, vocabulary]: [usize; 3],
        temperature: f64,
        entropy: bool,
        dtypes: [Dtype; 2],
    ) -> Problem {
        let name = format!("log_probability kernels {rows} {width} {vocabulary}");
        let h = exact(&format!("{name} h"), rows * width, dtypes[0]);
        // Logits of a few nats, exact in either dtype.
        let scale = 0.5_f64.powi((width as f64).sqrt().log2().round() as i32);
        Problem {
            rows,
            width,
            vocabulary,
            temperature,
            entropy,
            h: h.into_iter().map(|h| h * scale).collect(),
            w: exact(&format!("{name} w"), vocabulary * width, dtypes[1]),
            dy: exact(&format!("{name} dy"), 2 * rows, Dtype::F32),
        }
    }

    fn targets(&self, rows: &Range<usize>) -> Vec<u32> {
        rows.clone().map(|r| ((r * 7919 + self.vocabulary - 1) % self.vocabulary) as u32).collect()
    }

    /// Forward and backward of some rows with `h` and the head in these dtypes. What is saved stands at an offset.
    /// Backward runs twice: the head's gradient is assigned and then added, that of the states assigned.
    fn run(&self, device: &Device, [h_dtype, w_dtype]: [Dtype; 2], rows: Range<usize>) -> Results {
        let (n, d, v) = (rows.len(), self.width, self.vocabulary);
        let h = tensor(device, [n, d], &self.h[rows.start * d..rows.end * d], h_dtype);
        let w = tensor(device, [v, d], &self.w, w_dtype);
        let other = h_dtype.accumulation();
        let targets = Tensor::from_host(device, [n, 1], &self.targets(&rows)).unwrap();
        let zeros = |rows, cols, dtype| Tensor::zeros(device, [rows, cols], dtype).unwrap();
        let (mut score, mut entropy) = (zeros(n, 1, other), zeros(n, 1, other));
        let (mut dh, mut dw) = (zeros(n, d, h_dtype), tensor(device, [v, d], &vec![7.0; v * d], other));
        let mut saved = Saved::reserve(device, n + 3, [v, d], h_dtype).unwrap();
        let inputs = Inputs {
            h: h.view(),
            w: &w,
            targets: targets.view(),
            inverse_temperature: 1.0 / self.temperature,
        };
        let entropy_out = self.entropy.then(|| entropy.view_mut());
        let out = Outputs { log_probability: score.view_mut(), entropy: entropy_out };
        forward(&inputs, out, &mut saved, 2..n + 2).unwrap();
        let column = |data: &[f64]| tensor(device, [n, 1], data, other);
        let (d_score, d_entropy) = (column(&self.dy[rows.clone()]), column(&self.dy[self.rows..][rows]));
        let upstream =
            Upstream { d_log_probability: d_score.view(), d_entropy: self.entropy.then(|| d_entropy.view()) };
        for accumulate in [Accumulate::Assign, Accumulate::Add] {
            let dw = Some((&mut dw, accumulate));
            backward(&upstream, &inputs, &mut saved, 2..n + 2, dh.view_mut(), dw).unwrap();
        }
        Results {
            log_probability: values(score.view()),
            entropy: values(entropy.view()),
            dh: values(dh.view()),
            dw: values(dw.view()),
        }
    }

    fn check(&self, device: &Device, dtypes: [Dtype; 2]) {
        let rows = 0..self.rows;
        let expected = self.run(&Device::cpu(), [Dtype::F64; 2], rows.clone());
        let found = self.run(device, dtypes, rows);
        let Problem { rows, width, vocabulary, .. } = *self;
        let name =
            format!("{rows}x{width}x{vocabulary}, {} with {}, {}", dtypes[0], dtypes[1], device.name());
        let half = if dtypes.contains(&Dtype::Bf16) { Dtype::Bf16 } else { Dtype::F32 };
        compare(
            &format!("log-probability {name}"),
            half,
            width,
            &found.log_probability,
            &expected.log_probability,
        );
        compare(&format!("entropy {name}"), half, vocabulary, &found.entropy, &expected.entropy);
        compare(&format!("dh {name}"), half, vocabulary, &found.dh, &expected.dh);
        compare(&format!("dw {name}"), half, rows, &found.dw, &expected.dw);
    }
}

/// Activations and head of one dtype, and f32 activations with a bf16 head.
fn pairs() -> Vec<[Dtype; 2]> {
    DTYPES.iter().map(|&dtype| [dtype; 2]).chain([[Dtype::F32, Dtype::Bf16]]).collect()
}

#[test]
fn ragged_shapes_in_every_dtype() {
    for device in devices() {
        for dtypes in pairs() {
            for (shape, temperature, entropy) in [
                ([1, 1, 1], 1.0, false),
                ([3, 7, 13], 1.0, true),
                ([4, 33, 517], 0.6, false),
                ([2, 16, 5003], 1.3, true),
                ([70, 24, 1025], 1.0, true),
            ] {
                Problem::new(shape, temperature, entropy, dtypes).check(&device, dtypes);
            }
        }
    }
}

#[test]
fn a_real_width_and_vocabulary() {
    for device in devices() {
        for dtypes in [[Dtype::F32; 2], [Dtype::Bf16; 2]] {
            Problem::new([2, 768, 9001], 1.0, true, dtypes).check(&device, dtypes);
        }
    }
}

#[test]
fn more_rows_than_are_held_at_once() {
    for device in devices() {
        let dtypes = [Dtype::F32; 2];
        let problem = Problem::new([1030, 8, 70], 1.0, true, dtypes);
        problem.check(&device, dtypes);
        // A row's bits do not depend on the batch, forward and in its own gradient.
        let whole = problem.run(&device, dtypes, 0..1030);
        for row in [0, 1023, 1024, 1029] {
            let alone = problem.run(&device, dtypes, row..row + 1);
            assert_eq!(alone.log_probability[0].to_bits(), whole.log_probability[row].to_bits(), "row {row}");
            assert_eq!(alone.entropy[0].to_bits(), whole.entropy[row].to_bits(), "row {row}");
            assert_eq!(alone.dh, whole.dh[row * 8..(row + 1) * 8], "row {row}");
        }
    }
}

#[test]
fn the_sampler_reports_the_same_bits() {
    let (rows, width, vocabulary) = (5, 40, 6003);
    for device in devices() {
        for dtypes in pairs() {
            let problem = Problem::new([rows, width, vocabulary], 1.0, false, dtypes);
            let h = tensor(&device, [rows, width], &problem.h, dtypes[0]);
            let w = tensor(&device, [vocabulary, width], &problem.w, dtypes[1]);
            let mut logits = Tensor::zeros(&device, [rows, vocabulary], Dtype::F32).unwrap();
            let projection = Projection::whole(Layout::OutIn, width, vocabulary);
            linear::forward(h.view(), &projection, &w, None, logits.view_mut()).unwrap();
            let keys: Vec<u32> =
                (0..rows as u32).flat_map(|r| StreamKey::new(3, 0, 0, r, Purpose::Token).0).collect();
            let keys = Tensor::from_host(&device, [rows, 2], &keys).unwrap();
            let steps = Tensor::zeros(&device, [rows, 1], Dtype::U32).unwrap();
            let workspace = Workspace::reserve(&device, rows, vocabulary).unwrap();
            let warm = Law::Categorical { temperature: 0.7, top_k: None, top_p: None, min_p: None };
            for law in [Law::PLAIN, Law::Greedy, warm] {
                let column = |dtype| Tensor::zeros(&device, [rows, 1], dtype).unwrap();
                let (mut tokens, mut sampled, mut scored) =
                    (column(Dtype::U32), column(Dtype::F32), column(Dtype::F32));
                let noise = Noise { keys: keys.view(), steps: steps.view(), site: 3 };
                let (token, score) = (tokens.view_mut(), sampled.view_mut());
                let out =
                    Sampled { tokens: token, log_probability: score, support: None, workspace: &workspace };
                sample(logits.view(), &law, noise, out).unwrap();
                let inverse_temperature = law.inverse_temperature();
                let inputs = Inputs { h: h.view(), w: &w, targets: tokens.view(), inverse_temperature };
                let mut saved = Saved::reserve(&device, rows, [vocabulary, width], dtypes[0]).unwrap();
                let out = Outputs { log_probability: scored.view_mut(), entropy: None };
                forward(&inputs, out, &mut saved, 0..rows).unwrap();
                let bits = |tensor: &Tensor| {
                    tensor.download::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                assert_eq!(bits(&sampled), bits(&scored), "{law:?} {dtypes:?} on {}", device.name());
            }
        }
    }
}

#[test]
fn a_target_outside_the_vocabulary_gives_nan() {
    for device in devices() {
        let h = tensor(&device, [3, 4], &[0.5; 12], Dtype::F32);
        let w = tensor(&device, [6, 4], &[0.25; 24], Dtype::F32);
        let targets = Tensor::from_host(&device, [3, 1], &[5_u32, 6, u32::MAX]).unwrap();
        let mut score = Tensor::zeros(&device, [3, 1], Dtype::F32).unwrap();
        let mut saved = Saved::reserve(&device, 3, [6, 4], Dtype::F32).unwrap();
        let inputs = Inputs { h: h.view(), w: &w, targets: targets.view(), inverse_temperature: 1.0 };
        let out = Outputs { log_probability: score.view_mut(), entropy: None };
        forward(&inputs, out, &mut saved, 0..3).unwrap();
        let nan: Vec<bool> = values(score.view()).iter().map(|score| score.is_nan()).collect();
        assert_eq!(nan, [false, true, true]);
        // Memory for another head is refused.
        let mut other = Saved::reserve(&device, 3, [7, 4], Dtype::F32).unwrap();
        let out = Outputs { log_probability: score.view_mut(), entropy: None };
        let message = forward(&inputs, out, &mut other, 0..3).unwrap_err().to_string();
        assert!(message.contains("log_probability w") && message.contains("[7, 4]"), "{message}");
    }
}
