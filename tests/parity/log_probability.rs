//! Fused linear + log-softmax: values, gradients, and bits that depend on the row alone.

mod kernels;

use half::bf16;
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::linear::Accumulate;
use latch::ops::log_probability::{Inputs, Outputs, Saved, Upstream, backward, forward};
use latch::verify::gradient::normals;
use latch::verify::operations;
use std::ops::Range;

/// One problem in f32: operands and upstream gradients.
struct Problem {
    rows: usize,
    width: usize,
    vocabulary: usize,
    temperature: f64,
    h: Vec<f32>,
    w: Vec<f32>,
    targets: Vec<u32>,
    dy: Vec<f32>,
}

/// Everything the operation gives back.
#[derive(Debug, PartialEq)]
struct Results {
    log_probability: Vec<f32>,
    entropy: Vec<f32>,
    dh: Vec<f32>,
    dw: Vec<f32>,
}

impl Problem {
    fn new(rows: usize, width: usize, vocabulary: usize, temperature: f64) -> Problem {
        let name = format!("log_probability values {rows} {width} {vocabulary}");
        Problem {
            rows,
            width,
            vocabulary,
            temperature,
            h: super::normals_f32(&format!("{name} h"), rows * width),
            w: super::normals_f32(&format!("{name} w"), vocabulary * width),
            targets: (0..rows).map(|r| ((r * 7919 + vocabulary - 1) % vocabulary) as u32).collect(),
            dy: super::normals_f32(&format!("{name} dy"), 2 * rows),
        }
    }

    /// Forward and backward of some rows, with the head stored as `w_dtype`. Logits that are kept change no bit.
    fn run(&self, rows: Range<usize>, w_dtype: Dtype) -> Results {
        let device = Device::cpu();
        let (n, d) = (rows.len(), self.width);
        let h = Tensor::from_host(&device, [n, d], &self.h[rows.start * d..rows.end * d]).unwrap();
        let shape = [self.vocabulary, d];
        let w = match w_dtype {
            Dtype::Bf16 => {
                let w: Vec<bf16> = self.w.iter().map(|&w| bf16::from_f32(w)).collect();
                Tensor::from_host(&device, shape, &w).unwrap()
            }
            _ => Tensor::from_host(&device, shape, &self.w).unwrap(),
        };
        let column = |data: &[f32]| Tensor::from_host(&device, [n, 1], data).unwrap();
        let targets = Tensor::from_host(&device, [n, 1], &self.targets[rows.clone()]).unwrap();
        let zeros = |rows, cols| Tensor::zeros(&device, [rows, cols], Dtype::F32).unwrap();
        let (mut score, mut entropy, mut dh, mut dw) =
            (zeros(n, 1), zeros(n, 1), zeros(n, d), zeros(self.vocabulary, d));
        let mut saved = Saved::reserve(&device, n + 3, shape, Dtype::F32).unwrap();
        let inputs = Inputs {
            h: h.view(),
            w: &w,
            targets: targets.view(),
            inverse_temperature: 1.0 / self.temperature,
        };
        let out = Outputs { log_probability: score.view_mut(), entropy: Some(entropy.view_mut()) };
        forward(&inputs, out, &mut saved, 2..n + 2).unwrap();
        let d_score = column(&self.dy[rows.clone()]);
        let d_entropy = column(&self.dy[self.rows..][rows]);
        let upstream = Upstream { d_log_probability: d_score.view(), d_entropy: Some(d_entropy.view()) };
        let (saved, at) = (&mut saved, 2..n + 2);
        let added = Some((&mut dw, Accumulate::Add));
        backward(&upstream, &inputs, saved, at.clone(), dh.view_mut(), added).unwrap();
        // What is assigned does not depend on what stood there, nothing on whether logits are made again.
        let again = dh.download::<f32>().unwrap();
        let mut kept = Saved::reserve_to_differentiate(&device, n + 3, shape, Dtype::F32).unwrap();
        let out = Outputs { log_probability: score.view_mut(), entropy: Some(entropy.view_mut()) };
        forward(&inputs, out, &mut kept, at.clone()).unwrap();
        let mut assigned = Tensor::from_host(&device, shape, &vec![f32::NAN; self.vocabulary * d]).unwrap();
        let replaced = Some((&mut assigned, Accumulate::Assign));
        backward(&upstream, &inputs, &mut kept, at, dh.view_mut(), replaced).unwrap();
        assert_eq!(dh.download::<f32>().unwrap(), again);
        assert_eq!(assigned.download::<f32>().unwrap(), dw.download::<f32>().unwrap());
        Results {
            log_probability: score.download().unwrap(),
            entropy: entropy.download().unwrap(),
            dh: dh.download().unwrap(),
            dw: dw.download().unwrap(),
        }
    }

    /// Log-probability and entropy of a row by the definition, in f64.
    fn naive(&self, row: usize) -> (f64, f64) {
        let h = &self.h[row * self.width..][..self.width];
        let scores: Vec<f64> = self
            .w
            .chunks(self.width)
            .map(|w| {
                h.iter().zip(w).map(|(&h, &w)| f64::from(h) * f64::from(w)).sum::<f64>() / self.temperature
            })
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
        let log_p = |s: f64| s - largest - total.ln();
        let entropy = -scores.iter().map(|&s| log_p(s).exp() * log_p(s)).sum::<f64>();
        (log_p(scores[self.targets[row] as usize]), entropy)
    }
}

#[test]
fn gradient() {
    super::check_gradients(operations::log_probability::cases());
}

#[test]
fn values_match_the_definition() {
    for (rows, width, vocabulary, temperature) in
        [(1, 1, 1, 1.0), (3, 7, 13, 1.0), (4, 33, 517, 0.6), (7, 16, 5003, 1.0), (530, 5, 65, 1.5)]
    {
        let problem = Problem::new(rows, width, vocabulary, temperature);
        let found = problem.run(0..rows, Dtype::F32);
        for row in 0..rows {
            let (log_probability, entropy) = problem.naive(row);
            let error = (f64::from(found.log_probability[row]) - log_probability).abs();
            assert!(error < 3e-6 * (1.0 + log_probability.abs()), "{vocabulary} row {row}: {error:e}");
            let error = (f64::from(found.entropy[row]) - entropy).abs();
            assert!(error < 5e-6 * (1.0 + entropy.abs()), "{vocabulary} row {row} entropy: {error:e}");
        }
    }
}

#[test]
fn a_row_depends_on_itself_alone_and_nothing_on_threads() {
    // Rows and vocabulary that end inside a row block, a panel and a chunk.
    let problem = Problem::new(517, 19, 2570, 0.9);
    let whole = super::on_threads(1, || problem.run(0..517, Dtype::F32));
    assert_eq!(whole, super::on_threads(3, || problem.run(0..517, Dtype::F32)));
    for row in [0, 1, 511, 512, 516] {
        let alone = problem.run(row..row + 1, Dtype::F32);
        assert_eq!(alone.log_probability[0].to_bits(), whole.log_probability[row].to_bits(), "row {row}");
        assert_eq!(alone.entropy[0].to_bits(), whole.entropy[row].to_bits(), "row {row}");
        assert_eq!(alone.dh, whole.dh[row * 19..(row + 1) * 19], "row {row}");
    }
}

/// What is kept is what forward left of these rows: [`Problem::run`] compares it with logits that are made again.
#[test]
fn kept_logits_are_those_of_the_rows() {
    // All of them over two blocks of rows, and the first panels of one block and of two.
    for (rows, width, vocabulary) in [(530, 5, 600), (300, 19, 5000), (520, 1500, 3000)] {
        let problem = Problem::new(rows, width, vocabulary, 0.9);
        for dtype in [Dtype::F32, Dtype::Bf16] {
            problem.run(0..rows, dtype);
        }
    }
    // Logits of other rows have taken their place: they are made again.
    let device = Device::cpu();
    let problem = Problem::new(8, 5, 11, 1.0);
    let (h, w) =
        (Tensor::from_host(&device, [8, 5], &problem.h), Tensor::from_host(&device, [11, 5], &problem.w));
    let (h, w) = (h.unwrap(), w.unwrap());
    let column = |data: &[f32]| Tensor::from_host(&device, [8, 1], data).unwrap();
    let targets = Tensor::from_host(&device, [8, 1], &problem.targets).unwrap();
    let (dy, mut score) = (column(&problem.dy[..8]), column(&[0.0; 8]));
    let mut saved = Saved::reserve_to_differentiate(&device, 8, [11, 5], Dtype::F32).unwrap();
    let inputs = |at: Range<usize>| Inputs {
        h: h.rows(at.clone()).unwrap(),
        w: &w,
        targets: targets.rows(at).unwrap(),
        inverse_temperature: 1.0,
    };
    for at in [0..3, 3..8] {
        let log_probability = score.rows_mut(at.clone()).unwrap();
        let out = Outputs { log_probability, entropy: None };
        forward(&inputs(at.clone()), out, &mut saved, at).unwrap();
    }
    let mut dh = Tensor::zeros(&device, [8, 5], Dtype::F32).unwrap();
    for at in [0..3, 3..8] {
        let upstream = Upstream { d_log_probability: dy.rows(at.clone()).unwrap(), d_entropy: None };
        let out = dh.rows_mut(at.clone()).unwrap();
        backward(&upstream, &inputs(at.clone()), &mut saved, at, out, None).unwrap();
    }
    let mut whole = Tensor::zeros(&device, [8, 5], Dtype::F32).unwrap();
    let out = Outputs { log_probability: score.view_mut(), entropy: None };
    forward(&inputs(0..8), out, &mut saved, 0..8).unwrap();
    let upstream = Upstream { d_log_probability: dy.view(), d_entropy: None };
    backward(&upstream, &inputs(0..8), &mut saved, 0..8, whole.view_mut(), None).unwrap();
    assert_eq!(dh.download::<f32>().unwrap(), whole.download::<f32>().unwrap());
}

#[test]
fn a_bf16_head_gives_what_its_rounded_values_give() {
    let mut problem = Problem::new(9, 40, 700, 1.0);
    for w in &mut problem.w {
        *w = bf16::from_f32(*w).to_f32();
    }
    let (half, full) = (problem.run(0..9, Dtype::Bf16), problem.run(0..9, Dtype::F32));
    let near = |a: &[f32], b: &[f32]| {
        let largest = b.iter().fold(0.0_f32, |m, b| m.max(b.abs()));
        a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 2e-2 * largest)
    };
    // Products with bf16 may round their operands where the processor has bf16 instructions.
    assert!(near(&half.log_probability, &full.log_probability) && near(&half.entropy, &full.entropy));
    assert!(near(&half.dh, &full.dh) && near(&half.dw, &full.dw));
}

#[test]
fn gradients_of_the_head_add_and_of_the_states_replace() {
    let device = Device::cpu();
    let (h, w) = (normals("add h", 6), normals("add w", 15));
    let h = Tensor::from_host(&device, [2, 3], &h).unwrap();
    let w = Tensor::from_host(&device, [5, 3], &w).unwrap();
    let targets = Tensor::from_host(&device, [2, 1], &[4_u32, 0]).unwrap();
    let dy = Tensor::from_host(&device, [2, 1], &[0.5_f64, -2.0]).unwrap();
    let inputs = Inputs { h: h.view(), w: &w, targets: targets.view(), inverse_temperature: 1.0 };
    let upstream = Upstream { d_log_probability: dy.view(), d_entropy: None };
    let mut score = Tensor::zeros(&device, [2, 1], Dtype::F64).unwrap();
    let mut saved = Saved::reserve(&device, 2, [5, 3], Dtype::F64).unwrap();
    forward(&inputs, Outputs { log_probability: score.view_mut(), entropy: None }, &mut saved, 0..2).unwrap();
    let mut run = |start: f64| {
        let mut dh = Tensor::from_host(&device, [2, 3], &[start; 6]).unwrap();
        let mut dw = Tensor::from_host(&device, [5, 3], &[start; 15]).unwrap();
        let added = Some((&mut dw, Accumulate::Add));
        backward(&upstream, &inputs, &mut saved, 0..2, dh.view_mut(), added).unwrap();
        (dh.download::<f64>().unwrap(), dw.download::<f64>().unwrap())
    };
    let (from_zero, from_one) = (run(0.0), run(1.0));
    assert_eq!(from_zero.0, from_one.0);
    for (zero, one) in from_zero.1.iter().zip(&from_one.1) {
        assert!((one - zero - 1.0).abs() < 1e-14);
    }
}

#[test]
fn wrong_operands_are_named() {
    let device = Device::cpu();
    let h = Tensor::zeros(&device, [2, 3], Dtype::F32).unwrap();
    let run = |w: &Tensor, targets: &[u32], inverse_temperature: f64| {
        let targets = Tensor::from_host(&device, [targets.len(), 1], targets).unwrap();
        let mut score = Tensor::zeros(&device, [2, 1], Dtype::F32).unwrap();
        let mut saved = Saved::reserve(&device, 2, [5, 3], Dtype::F32).unwrap();
        let inputs = Inputs { h: h.view(), w, targets: targets.view(), inverse_temperature };
        let out = Outputs { log_probability: score.view_mut(), entropy: None };
        forward(&inputs, out, &mut saved, 0..2).unwrap_err().to_string()
    };
    let zeros = |rows, cols, dtype| Tensor::zeros(&device, [rows, cols], dtype).unwrap();
    let w = zeros(5, 3, Dtype::F32);
    let message = run(&w, &[4, 5], 1.0);
    assert!(message.contains("row 1 has token 5, the vocabulary has 5"), "{message}");
    let message = run(&w, &[u32::MAX, 0], 1.0);
    assert!(message.contains("row 0 has token 4294967295"), "{message}");
    let message = run(&w, &[1], 1.0);
    assert!(message.contains("targets") && message.contains("expected 2 rows of 1"), "{message}");
    let message = run(&zeros(5, 4, Dtype::F32), &[0, 0], 1.0);
    assert!(message.contains("log_probability w") && message.contains("[vocabulary, 3]"), "{message}");
    let message = run(&zeros(5, 3, Dtype::F64), &[0, 0], 1.0);
    assert!(message.contains("element type f64, expected f32 or bf16"), "{message}");
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let message = run(&w, &[0, 0], bad);
        assert!(message.contains("inverse_temperature") && message.contains("positive"), "{message}");
    }
}
