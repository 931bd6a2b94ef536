//! The kernels of the feedback against the CPU in f64: dtypes, widths, masks; bits, and rows that do not exist.

use crate::parity::gpu;
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::mask::{MaskKey, MaskSet, SiteKind, Sites};
use latch::ops::scatter::Order;
use latch::ops::{Tensor, latent};

const STATES: usize = 7;

#[derive(Clone)]
struct Problem {
    cols: usize,
    ids: Vec<i32>,
    from: Vec<u32>,
    source: Vec<i32>,
    /// Mask instances; none = no mask.
    instance: Option<Vec<i32>>,
    hidden: Vec<f64>,
    before: Vec<f64>,
}

impl Problem {
    fn new(rows: usize, cols: usize, masked: bool, dtype: Dtype) -> Problem {
        Problem {
            cols,
            ids: (0..rows).map(|n| if n % 3 == 1 { n as i32 } else { -1 }).collect(),
            from: (0..rows).map(|n| (n * 5 % STATES) as u32).collect(),
            source: (0..rows).map(|n| (n * 5 % STATES) as i32 - 1).collect(),
            instance: masked.then(|| (0..rows).map(|n| (n % 4) as i32 - 1).collect()),
            hidden: gpu::exact("latent hidden", STATES * cols, dtype),
            before: gpu::exact("latent before", rows * cols, dtype),
        }
    }

    /// x and dhidden.
    fn run(&self, device: &Device, dtype: Dtype) -> [Vec<f64>; 2] {
        let (rows, cols) = (self.ids.len(), self.cols);
        let column = |values: &[i32]| Tensor::from_host(device, [rows, 1], values).unwrap();
        let (ids, source) = (column(&self.ids), column(&self.source));
        let from = Tensor::from_host(device, [rows, 1], &self.from).unwrap();
        let masks = masks(device, cols);
        let instance = self.instance.as_deref().map(column);
        let mask = || instance.as_ref().and_then(|at| masks.at(SiteKind::Latent, 0, at.view()));
        let hidden = gpu::tensor(device, [STATES, cols], &self.hidden, dtype);
        let mut x = gpu::tensor(device, [rows, cols], &self.before, dtype);
        latent::forward(hidden.view(), from.view(), ids.view(), mask(), x.view_mut()).unwrap();
        let dx = gpu::tensor(device, [rows, cols], &self.before, dtype);
        let (mut dhidden, order) =
            (gpu::tensor(device, [STATES, cols], &self.hidden, dtype), &mut Order::default());
        latent::backward(dx.view(), ids.view(), source.view(), mask(), dhidden.view_mut(), order).unwrap();
        [gpu::values(x.view()), gpu::values(dhidden.view())]
    }
}

/// Three instances with p = 1/4. The bits are drawn on the CPU, so that this asks about nothing but the feedback.
fn masks(device: &Device, cols: usize) -> MaskSet {
    let sites = || Sites::new(cols, 1, 1, &[SiteKind::Emb, SiteKind::Latent]);
    let keys: Vec<MaskKey> = (0..3)
        .map(|k| MaskKey { stream: StreamKey::new(9, 0, 0, k, Purpose::Mask), step: 0, attempt: 0 })
        .collect();
    let drawn = MaskSet::fill(&Device::cpu(), sites(), 0.25, &keys).unwrap();
    let (bits, words) = (drawn.bits().download::<u32>().unwrap(), drawn.sites().words());
    let first: usize = drawn.sites().iter().take(1).map(|site| site.width.div_ceil(32)).sum();
    let keep: Vec<u8> = (0..3 * cols)
        .map(|at| (bits[at / cols * words + first + at % cols / 32] >> (at % cols % 32) & 1) as u8)
        .collect();
    let other = vec![1_u8; 3 * cols];
    let choose = |site: &latch::ops::mask::Site| {
        Some(if site.kind == SiteKind::Latent { &keep[..] } else { &other[..3 * site.width] })
    };
    MaskSet::from_keep(device, sites(), 0.25, 3, choose).unwrap()
}

/// What a broken kernel is tried on.
pub fn small(device: &Device, dtype: Dtype) -> Vec<Vec<f64>> {
    Problem::new(40, 20, true, dtype).run(device, dtype).to_vec()
}

#[test]
fn every_dtype_and_shape_agrees_with_f64() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for (rows, cols) in
                [(1, 1), (90, 123), (1, 768), (11, 896), (700, 20), (4, 1036), (1500, 4), (8300, 4)]
            {
                for masked in [false, true] {
                    let problem = Problem::new(rows, cols, masked, dtype);
                    let (found, exact) =
                        (problem.run(&device, dtype), problem.run(&Device::cpu(), Dtype::F64));
                    let what = format!("{} latent {dtype} {rows}x{cols} masked {masked}", device.name());
                    gpu::compare(&what, dtype, 1, &found[0], &exact[0]);
                    gpu::compare(&what, dtype, rows, &found[1], &exact[1]);
                    if dtype == Dtype::F32 {
                        assert_eq!(found, problem.run(&Device::cpu(), dtype), "{what}: the CPU's bits");
                    }
                }
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_the_order_of_blocks() {
    for dtype in gpu::DTYPES {
        let problem = Problem::new(1100, 136, true, dtype);
        let [first, second] = gpu::orders().map(|device| problem.run(&device, dtype));
        assert_eq!(first, second, "{dtype}");
    }
}

#[test]
fn a_dropped_element_is_exactly_zero_whatever_it_was() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            let mut problem = Problem::new(3, 64, true, dtype);
            problem.ids = vec![-1; 3];
            problem.instance = Some(vec![0, 1, 2]);
            problem.source = vec![1, 2, 3];
            let clean = problem.run(&device, dtype);
            let at = clean[0].iter().position(|&x| x == 0.0).unwrap();
            let state = problem.from[at / 64] as usize * 64 + at % 64;
            problem.hidden[state] = f64::NAN;
            let found = problem.run(&device, dtype);
            assert_eq!(found[0][at].to_bits(), 0.0_f64.to_bits());
        }
    }
}

#[test]
fn rows_that_do_not_exist_become_nan() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for cols in [7, 40] {
                let good = Problem::new(12, cols, true, dtype);
                let clean = good.run(&device, dtype);
                let nan = |values: &[f64]| values.iter().all(|v| v.is_nan());
                let mut bad = good.clone();
                bad.from[3] = STATES as u32;
                bad.source[5] = STATES as i32;
                bad.source[6] = -2;
                let found = bad.run(&device, dtype);
                assert!(nan(&found[0][3 * cols..4 * cols]) && nan(&found[1][..cols]));
                assert_eq!(found[0][4 * cols..], clean[0][4 * cols..]);
                assert!(found[1][cols..].iter().all(|v| v.is_finite()));
                let mut bad = good.clone();
                bad.instance.as_mut().unwrap()[3] = 3;
                bad.source[3] = 4;
                let found = bad.run(&device, dtype);
                assert!(nan(&found[0][3 * cols..4 * cols]) && nan(&found[1][4 * cols..5 * cols]));
            }
        }
    }
}

#[test]
fn states_are_kept_and_forked() {
    for device in gpu::devices() {
        for dtype in gpu::DTYPES {
            for cols in [1, 33, 768, 1048] {
                let hidden = gpu::exact("hidden", 5 * cols, dtype);
                let before = gpu::exact("feedback", 4 * cols, dtype);
                let state = gpu::tensor(&device, [5, cols], &hidden, dtype);
                let mut feedback = gpu::tensor(&device, [4, cols], &before, dtype);
                let rows = Tensor::from_host(&device, [5, 1], &[2_u32, 2, 0, 3, 9]).unwrap();
                let last = Tensor::from_host(&device, [5, 1], &[0_u32, 1, 7, 0, 1]).unwrap();
                // The last position names a row that does not exist: nothing is written for it.
                latent::store(state.view(), rows.view(), last.view(), feedback.view_mut()).unwrap();
                let row = |n: usize| &hidden[n * cols..(n + 1) * cols];
                let expected = [row(2), &before[cols..2 * cols], row(1), &before[3 * cols..]].concat();
                assert_eq!(gpu::values(feedback.view()), expected);
                latent::fork(feedback.view_mut(), 2, 1..4).unwrap();
                assert_eq!(gpu::values(feedback.view()), [row(2), row(1), row(1), row(1)].concat());
                latent::fork(feedback.view_mut(), 0, 1..1).unwrap();
            }
        }
    }
}
