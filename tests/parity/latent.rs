//! The feedback: states arrive where latents stand, gradients return to the state's row, masked both ways.

pub mod kernels;

use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::mask::{MaskKey, MaskSet, SiteKind, Sites};
use latch::ops::scatter::Order;
use latch::ops::{Tensor, latent};
use latch::verify::operations;

#[test]
fn gradient() {
    super::check_gradients(operations::latent::cases());
}

const ROWS: usize = 90;
const COLS: usize = 123;
const STATES: usize = 7;

#[test]
fn values_order_rows_and_threads() {
    let device = Device::cpu();
    let ids: Vec<i32> = (0..ROWS).map(|n| if n % 3 == 1 { n as i32 } else { -1 }).collect();
    let from: Vec<u32> = (0..ROWS).map(|n| (n * 5 % STATES) as u32).collect();
    let source: Vec<i32> = (0..ROWS).map(|n| (n * 5 % STATES) as i32 - 1).collect();
    let instance: Vec<i32> = (0..ROWS).map(|n| (n % 4) as i32 - 1).collect();
    let keys: Vec<MaskKey> = (0..3)
        .map(|k| MaskKey { stream: StreamKey::new(9, 0, 0, k, Purpose::Mask), step: 0, attempt: 0 })
        .collect();
    let masks = MaskSet::fill(&device, Sites::new(COLS, 1, 1, &[SiteKind::Latent]), 0.25, &keys).unwrap();
    let column = |values: &[i32]| Tensor::from_host(&device, [ROWS, 1], values).unwrap();
    let (id_tensor, source_tensor, instance_tensor) = (column(&ids), column(&source), column(&instance));
    let from_tensor = Tensor::from_host(&device, [ROWS, 1], &from).unwrap();
    let hidden = super::normals_f32("hidden", STATES * COLS);
    let hidden_tensor = Tensor::from_host(&device, [STATES, COLS], &hidden).unwrap();
    let before = super::normals_f32("before", ROWS * COLS);
    let before_tensor = Tensor::from_host(&device, [ROWS, COLS], &before).unwrap();

    let forward = |range: std::ops::Range<usize>| {
        let start = &before[range.start * COLS..range.end * COLS];
        let mut x = Tensor::from_host(&device, [range.len(), COLS], start).unwrap();
        let mask = masks.at(SiteKind::Latent, 0, instance_tensor.rows(range.clone()).unwrap());
        let (from, ids) = (from_tensor.rows(range.clone()).unwrap(), id_tensor.rows(range).unwrap());
        latent::forward(hidden_tensor.view(), from, ids, mask, x.view_mut()).unwrap();
        x.download::<f32>().unwrap()
    };
    let whole = super::on_threads(1, || forward(0..ROWS));
    assert_eq!(whole, super::on_threads(3, || forward(0..ROWS)));
    assert_eq!(forward(31..60), whole[31 * COLS..60 * COLS]);

    let backward = || {
        let mut dhidden =
            Tensor::from_host(&device, [STATES, COLS], &super::normals_f32("earlier", STATES * COLS))
                .unwrap();
        let mask = masks.at(SiteKind::Latent, 0, instance_tensor.view());
        let (ids, source) = (id_tensor.view(), source_tensor.view());
        latent::backward(before_tensor.view(), ids, source, mask, dhidden.view_mut(), &mut Order::default())
            .unwrap();
        dhidden.download::<f32>().unwrap()
    };
    let found = super::on_threads(1, backward);
    assert_eq!(found, super::on_threads(3, backward));

    let bits = masks.bits().download::<u32>().unwrap();
    let words = COLS.div_ceil(32);
    let mut dhidden = super::normals_f32("earlier", STATES * COLS);
    for n in 0..ROWS {
        for c in 0..COLS {
            let at = n * COLS + c;
            if ids[n] != -1 {
                assert_eq!(whole[at], before[at]);
                continue;
            }
            let kept = |r: i32| bits[r as usize * words + c / 32] >> (c % 32) & 1 == 1;
            let state = hidden[from[n] as usize * COLS + c];
            let scale = (1.0_f64 / 0.75) as f32;
            let (expected, back) = match instance[n] {
                -1 => (state, Some(1.0)),
                r if kept(r) => (state * scale, Some(scale)),
                _ => (0.0, None),
            };
            assert_eq!(whole[at], expected, "row {n} column {c}");
            if let (Some(m), true) = (back, source[n] >= 0) {
                let sum = &mut dhidden[source[n] as usize * COLS + c];
                *sum = before[at].mul_add(m, *sum);
            }
        }
    }
    assert_eq!(found, dhidden);
}

#[test]
fn the_newest_state_of_each_row_is_kept_and_forked() {
    let device = Device::cpu();
    let hidden: Vec<f32> = (0..10).map(|v| v as f32).collect();
    let hidden = Tensor::from_host(&device, [5, 2], &hidden).unwrap();
    let rows = Tensor::from_host(&device, [5, 1], &[2_u32, 2, 0, 3, 3]).unwrap();
    let last = Tensor::from_host(&device, [5, 1], &[0_u32, 1, 1, 0, 1]).unwrap();
    let mut feedback = Tensor::from_host(&device, [4, 2], &[-1.0_f32; 8]).unwrap();
    latent::store(hidden.view(), rows.view(), last.view(), feedback.view_mut()).unwrap();
    assert_eq!(feedback.download::<f32>().unwrap(), [4.0, 5.0, -1.0, -1.0, 2.0, 3.0, 8.0, 9.0]);
    latent::fork(feedback.view_mut(), 2, 0..2).unwrap();
    assert_eq!(feedback.download::<f32>().unwrap(), [2.0, 3.0, 2.0, 3.0, 2.0, 3.0, 8.0, 9.0]);
    let message = latent::fork(feedback.view_mut(), 4, 0..2).unwrap_err().to_string();
    assert_eq!(message, "latent fork: found 4 to 0..2, expected rows in 0..4");
}

#[test]
fn misuse_is_named() {
    let device = Device::cpu();
    let zeros = |rows, cols| Tensor::zeros(&device, [rows, cols], Dtype::F32).unwrap();
    let (hidden, mut x) = (zeros(2, 3), zeros(1, 3));
    let ids = Tensor::from_host(&device, [1, 1], &[-1_i32]).unwrap();
    let from = Tensor::from_host(&device, [1, 1], &[2_u32]).unwrap();
    let message =
        latent::forward(hidden.view(), from.view(), ids.view(), None, x.view_mut()).unwrap_err().to_string();
    assert_eq!(message, "latent rows: found index 2 at entry 0, expected 0..2");
    let source = Tensor::from_host(&device, [1, 1], &[1_i32]).unwrap();
    let mut dhidden = zeros(1, 3);
    let message = latent::backward(
        x.view(),
        ids.view(),
        source.view(),
        None,
        dhidden.view_mut(),
        &mut Order::default(),
    )
    .unwrap_err()
    .to_string();
    assert_eq!(message, "latent source: found index 1 at entry 0, expected -1..1");
}
